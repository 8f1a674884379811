//! The sled backend: pure Rust, for programs that cannot compile C. sled calls itself beta; LMDB is the better choice
//! where it can be had.
//!
//! ```
//! use backend_sled::{Options, open};
//! use eventstore_api::{Context, Event, EventStoreExt, Expected};
//!
//! # async fn run(path: &std::path::Path) -> eventstore_api::Result<()> {
//! let store = open(Options::new(path)).await?;
//! let event = Event::builder("OrderPlaced", "order-42").data("{}").build()?;
//! store.store(&Context::background(), event, Expected::Any).await?;
//! # Ok(())
//! # }
//! # let directory = tempfile::tempdir().unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(run(directory.path())).unwrap();
//! ```
//!
//! | | |
//! |---|---|
//! | `Sync` | sled writes its log and waits for the disk; then one sync of the file, which sled leaves out |
//! | `Buffered` | sled writes its log and waits for the disk, but the disk may keep it in its cache |
//! | opening | reads the page table, and the log as far as it was written since the last opening: not bounded work |
//! | space | sled uses it again by itself as it writes, and never shrinks its file on request |
//! | several stores | all sled stores of a process share one lock: while one applies a batch, none reads |
//! | damage | [`repair`] mends a damaged page table; a store that has lost its newest events does not open |

#![forbid(unsafe_code)]

mod engine;
mod error;
mod files;
mod keys;
mod options;
mod repair;
mod watch;

use eventstore_api::{Error, Result};
use eventstore_kv::KvStore;

pub use engine::{SledEngine, SledSnapshot};
pub use options::Options;
pub use repair::repair;

/// The backend's name: the scheme of its URLs and the mark in its directories.
pub const NAME: &str = "sled";

/// An event store on sled.
pub type SledStore = KvStore<SledEngine>;

/// Opens or creates a store. Must be called inside a Tokio runtime; [`open_blocking`] needs none.
///
/// # Errors
///
/// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
pub async fn open(options: Options) -> Result<SledStore> {
    let opening = tokio::task::spawn_blocking(move || open_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// As [`open`], but it blocks the thread while sled reads its page table.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<SledStore> {
    KvStore::open(SledEngine::open(options)?, options.store.clone())
}

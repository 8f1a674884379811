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
//! | holds | the index; the events are in the store's log |
//! | opening | reads its files wholly; after an end that was not clean the index is made again, which takes long |
//! | memory | what sled frees, glibc gives back to the system every ten seconds at most, and when the store is closed |
//! | closing | reads its files wholly, to note what they are |
//! | space | sled uses it again by itself as it writes, and never shrinks its file |
//! | damage | found when it is opened, or by the checksums of sled's pages: the index is made again |

#![deny(unsafe_code)]

mod engine;
mod error;
mod flush;
#[allow(unsafe_code, reason = "a call of the C library")]
mod memory;
mod options;
mod seal;

use eventstore_api::{Context, Error, Result};
use eventstore_kv::{Engine, KvStore};

pub use engine::{SledEngine, SledSnapshot};
pub use options::Options;

/// The backend's name: the scheme of its URLs and the mark in its directories.
pub const NAME: &str = SledEngine::NAME;

/// An event store whose index is kept by sled.
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

/// As [`open`], but it blocks the thread while the index is read.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<SledStore> {
    options.validate()?;
    KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
}

/// Opens a store to read it, and writes nothing there: others may read it as well, but nobody may write to it meanwhile. Must be
/// called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_read_only(options: Options) -> Result<SledStore> {
    let opening = tokio::task::spawn_blocking(move || open_read_only_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// As [`open_read_only`], but it blocks the thread.
///
/// # Errors
///
/// Those of [`open_read_only`].
pub fn open_read_only_blocking(options: &Options) -> Result<SledStore> {
    options.validate()?;
    KvStore::open_read_only(&options.path, options.clone(), options.store.clone())
}

/// Makes the index of a store that is closed anew from its log, and accepts it if the log has lost its end. It tells what was
/// done, and blocks.
///
/// # Errors
///
/// `Open` if there is no store; `Locked`; `Corrupt` if the log is damaged; those of the context.
pub fn repair(ctx: &Context, options: &Options) -> Result<Vec<String>> {
    options.validate()?;
    eventstore_kv::repair::<SledEngine>(ctx, &options.path, options, &options.store)
}

//! The fjall backend: an LSM tree in Rust, for stores much larger than memory. It needs no C++ compiler.
//!
//! ```
//! use backend_fjall::{Options, open};
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
//! The index into the store's log is in two trees of `lsm-tree`, the part of fjall without a log: one for event ids,
//! one for aggregates. A small file beside them, `mark`, records up to which version they are complete.
//!
//! | | |
//! |---|---|
//! | a checkpoint | is written to a new table of each tree; `mark` is replaced once they are synced |
//! | after a kill or a power cut | the trees are complete up to the mark; the store adds later events from its log |
//! | damage | every block that is read is checked, and the store rebuilds a damaged index |
//! | files | `mark`, and the trees `ids` and `aggregates`, whose tables one background thread compacts |

#![forbid(unsafe_code)]

mod engine;
mod error;
mod files;
mod merging;
mod options;

use eventstore_api::{Context, Error, Result};
use eventstore_kv::KvStore;

pub use engine::{FjallEngine, FjallSnapshot};
pub use options::{Compression, Options};

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = "fjall";

/// An event store whose index is in fjall's trees.
pub type FjallStore = KvStore<FjallEngine>;

/// Opens or creates a store. Must be called inside a Tokio runtime; [`open_blocking`] needs none.
///
/// # Errors
///
/// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
pub async fn open(options: Options) -> Result<FjallStore> {
    let opening = tokio::task::spawn_blocking(move || open_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// Like [`open`], but blocks the thread.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<FjallStore> {
    options.validate()?;
    KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
}

/// Opens a store for reading and writes nothing. Others may read it at the same time, but nobody may write to it. Must
/// be called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_read_only(options: Options) -> Result<FjallStore> {
    let opening = tokio::task::spawn_blocking(move || open_read_only_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// Like [`open_read_only`], but blocks the thread.
///
/// # Errors
///
/// Those of [`open_read_only`].
pub fn open_read_only_blocking(options: &Options) -> Result<FjallStore> {
    options.validate()?;
    KvStore::open_read_only(&options.path, options.clone(), options.store.clone())
}

/// Rebuilds the index of a closed store from its log, and accepts a log that has lost its end. Returns what was done.
/// Blocks the thread.
///
/// # Errors
///
/// `Open` if there is no store; `Locked`; `Corrupt` if the log is damaged; those of the context.
pub fn repair(ctx: &Context, options: &Options) -> Result<Vec<String>> {
    options.validate()?;
    eventstore_kv::repair::<FjallEngine>(ctx, &options.path, options, &options.store)
}

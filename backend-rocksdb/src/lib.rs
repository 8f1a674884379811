//! The RocksDB backend: for stores much larger than memory.
//!
//! ```
//! use backend_rocksdb::{Options, open};
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
//! RocksDB holds the index into the store's log: event ids and aggregates, each in a column family.
//!
//! | | |
//! |---|---|
//! | a checkpoint | is written directly to tables, for all column families together; RocksDB's own log is not used |
//! | after a kill or a power cut | RocksDB has the state of a checkpoint; the store adds later events from its log |
//! | damage | every block that is read is checked, and the store rebuilds a damaged index |
//! | files | a table for each checkpoint; tables are compacted in the background as their number grows |

#![forbid(unsafe_code)]

mod engine;
mod error;
mod manifest;
mod options;

use eventstore_api::{Context, Error, Result};
use eventstore_kv::KvStore;

pub use engine::{RocksDbEngine, RocksDbSnapshot};
pub use options::{Compression, LogLevel, Options};

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = "rocksdb";

/// An event store whose index is in RocksDB.
pub type RocksDbStore = KvStore<RocksDbEngine>;

/// Opens or creates a store. Must be called inside a Tokio runtime; [`open_blocking`] needs none.
///
/// # Errors
///
/// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
pub async fn open(options: Options) -> Result<RocksDbStore> {
    let opening = tokio::task::spawn_blocking(move || open_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// Like [`open`], but blocks the thread.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<RocksDbStore> {
    options.validate()?;
    KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
}

/// Opens a store for reading and writes nothing. Others may read it at the same time, but nobody may write to it. Must
/// be called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_read_only(options: Options) -> Result<RocksDbStore> {
    let opening = tokio::task::spawn_blocking(move || open_read_only_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// Like [`open_read_only`], but blocks the thread.
///
/// # Errors
///
/// Those of [`open_read_only`].
pub fn open_read_only_blocking(options: &Options) -> Result<RocksDbStore> {
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
    eventstore_kv::repair::<RocksDbEngine>(ctx, &options.path, options, &options.store)
}

//! The RocksDB backend: for stores much larger than memory, and for many appends at once.
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
//! | | |
//! |---|---|
//! | `Sync` | one sync a group, of the write-ahead log |
//! | `Buffered` | no sync: the group survives the end of the process, and a power cut may undo the newest groups |
//! | opening | replays what was not flushed: nothing after a clean close, about `wal_size` at most after a kill |
//! | damage in the write-ahead log | refused, so that nothing is lost in silence; [`repair`] keeps what comes before it |
//! | files | in the subdirectory `rocksdb` of the store's directory; one process at a time |

#![forbid(unsafe_code)]

mod backup;
mod engine;
mod error;
mod gc;
mod options;
mod repair;
mod wal;

use eventstore_api::{Error, Result};
use eventstore_kv::KvStore;

pub use engine::{RocksDbEngine, RocksDbSnapshot};
pub use options::{Compression, LogLevel, Options, WalRecovery};
pub use repair::repair;

/// The backend's name: the scheme of its URLs and the mark in its directories.
pub const NAME: &str = "rocksdb";

/// An event store on RocksDB.
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

/// As [`open`], but it blocks the thread.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<RocksDbStore> {
    KvStore::open(RocksDbEngine::open(options)?, options.store.clone())
}

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

use eventstore_kv::KvStore;

pub use engine::{RocksDbEngine, RocksDbSnapshot};
pub use options::{Compression, LogLevel, Options};

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = "rocksdb";

/// An event store whose index is in RocksDB.
pub type RocksDbStore = KvStore<RocksDbEngine>;

eventstore_kv::backend!(RocksDbStore = RocksDbEngine);

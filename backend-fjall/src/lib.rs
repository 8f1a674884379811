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

use eventstore_kv::KvStore;

pub use engine::{FjallEngine, FjallSnapshot};
pub use options::{Compression, Options};

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = "fjall";

/// An event store whose index is in fjall's trees.
pub type FjallStore = KvStore<FjallEngine>;

eventstore_kv::backend!(FjallStore = FjallEngine);

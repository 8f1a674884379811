//! The LMDB backend, the default: it reads fast, opens instantly, and only needs a C compiler.
//!
//! ```
//! use backend_lmdb::{Options, open};
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
//! | opening | nothing to recover or replay |
//! | writing | a transaction with two syncs: the pages, then the page that makes them visible |
//! | growing | the map doubles when it is full, up to `max_map_size`; readers wait briefly |
//! | space | the file never shrinks |
//! | limits | local file systems only; one process at a time |
//! | damage | opening checks the few pages that it reads; `verify` checks all |
//!
//! LMDB's pages have no checksums. The checks cover whether pages are complete and lead to each key, but not the
//! values. Reading or writing through a damaged, unchecked page can return a wrong answer or crash the process.

#![deny(unsafe_code)]

#[allow(
    unsafe_code,
    reason = "LMDB maps a file: that nobody changes it, nor looks into the map while it moves, cannot be checked"
)]
mod engine;
mod error;
mod options;
mod pages;

use eventstore_kv::{Engine, KvStore};

pub use engine::{LmdbEngine, LmdbSnapshot};
pub use options::Options;

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = LmdbEngine::NAME;

/// An event store whose index is in LMDB.
pub type LmdbStore = KvStore<LmdbEngine>;

eventstore_kv::backend!(LmdbStore = LmdbEngine);

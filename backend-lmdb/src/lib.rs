//! The LMDB backend: the default, for its fast reads, instant opening and build with a C compiler alone.
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
//! | `Sync` | two syncs a group: the pages, then the page that makes them visible |
//! | `Buffered` | one sync a group: the second one is left out, so a power cut may undo the newest groups |
//! | opening | nothing to recover or replay |
//! | growing | the map doubles when it is full, up to `max_map_size`; readers wait a moment |
//! | backup | LMDB's compacting copy, as of one moment, while reads and appends go on |
//! | full collection | a compacted copy takes the place of the file; appends wait for it, reads go on |
//! | limits | local file systems only; one process at a time |
//! | damage | records have checksums, LMDB's pages have none: the pages that opening reads are checked first, all of them by
//! `verify` and before a copy; reading through a damaged page that nobody checked can end the process |

#![deny(unsafe_code)]

mod copy;
#[allow(unsafe_code, reason = "LMDB maps a file: that nobody looks into the map while it moves cannot be checked")]
mod engine;
#[allow(unsafe_code, reason = "LMDB maps a file: that nobody else changes it cannot be checked by the compiler")]
mod environment;
mod error;
mod gate;
mod options;
mod pages;
mod pipe;
mod sync;

use eventstore_api::{Error, Result};
use eventstore_kv::KvStore;

pub use engine::{LmdbEngine, LmdbSnapshot};
pub use options::Options;

/// The backend's name: the scheme of its URLs and the mark in its directories.
pub const NAME: &str = "lmdb";

/// An event store on LMDB.
pub type LmdbStore = KvStore<LmdbEngine>;

/// Opens or creates a store. Must be called inside a Tokio runtime; [`open_blocking`] needs none.
///
/// # Errors
///
/// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
pub async fn open(options: Options) -> Result<LmdbStore> {
    let opening = tokio::task::spawn_blocking(move || open_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// As [`open`], but it blocks the thread, for a few reads and for a sync if the store is new.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<LmdbStore> {
    KvStore::open(LmdbEngine::open(options)?, options.store.clone())
}

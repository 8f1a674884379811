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
//! LMDB's pages have no checksums. The checks cover whether pages are complete and lead to each key, not the values.
//! Reading or writing through a damaged, unchecked page can give a wrong answer, or crash the process.

#![deny(unsafe_code)]

#[allow(
    unsafe_code,
    reason = "LMDB maps a file: that nobody changes it, nor looks into the map while it moves, cannot be checked"
)]
mod engine;
mod error;
mod options;
mod pages;

use eventstore_api::{Context, Error, Result};
use eventstore_kv::{Engine, KvStore};

pub use engine::{LmdbEngine, LmdbSnapshot};
pub use options::Options;

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = LmdbEngine::NAME;

/// An event store whose index is in LMDB.
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

/// Like [`open`], but blocks the thread for a few reads and syncs.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<LmdbStore> {
    options.validate()?;
    KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
}

/// Opens a store for reading and writes nothing. Others may read it at the same time, but nobody may write to it. Must
/// be called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_read_only(options: Options) -> Result<LmdbStore> {
    let opening = tokio::task::spawn_blocking(move || open_read_only_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// Like [`open_read_only`], but blocks the thread.
///
/// # Errors
///
/// Those of [`open_read_only`].
pub fn open_read_only_blocking(options: &Options) -> Result<LmdbStore> {
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
    eventstore_kv::repair::<LmdbEngine>(ctx, &options.path, options, &options.store)
}

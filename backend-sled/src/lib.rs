//! The sled backend: pure Rust, for programs that cannot compile C. sled calls itself beta; prefer LMDB if you can
//! build it.
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
//! | opening | reads all of its files; after an unclean shutdown the index is rebuilt, which takes long |
//! | memory | glibc returns what sled frees to the system, at most every ten seconds, and when the store is closed |
//! | closing | reads all of its files, to record their checksums |
//! | space | sled reuses free space as it writes, but never shrinks its file |
//! | damage | detected on open, or by the checksums of sled's pages: the index is rebuilt |

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

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = SledEngine::NAME;

/// An event store whose index is in sled.
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

/// Like [`open`], but blocks the thread while the index is read.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<SledStore> {
    options.validate()?;
    KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
}

/// Opens a store for reading and writes nothing. Others may read it at the same time, but nobody may write to it. Must
/// be called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_read_only(options: Options) -> Result<SledStore> {
    let opening = tokio::task::spawn_blocking(move || open_read_only_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// Like [`open_read_only`], but blocks the thread.
///
/// # Errors
///
/// Those of [`open_read_only`].
pub fn open_read_only_blocking(options: &Options) -> Result<SledStore> {
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
    eventstore_kv::repair::<SledEngine>(ctx, &options.path, options, &options.store)
}

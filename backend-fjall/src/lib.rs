//! The fjall backend: an LSM tree in Rust, for stores much larger than memory, without a C++ compiler.
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
//! The index that leads into the store's log is in two trees of `lsm-tree`, the part of fjall that has no log of its own: one
//! for event ids, one for aggregates. How far they reach says a small file beside them.
//!
//! | | |
//! |---|---|
//! | a checkpoint | is written to a new table of each tree, and the file `mark` is replaced when those are synced |
//! | after a kill or a power cut | the trees have all that the mark says, and the store adds what its log has since |
//! | damage | every block that is read is checked, and the store makes a damaged index again |
//! | files | `mark`, and the trees `ids` and `aggregates`, whose tables one thread merges in the background |

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

/// The backend's name: the scheme of its URLs and the mark in its directories.
pub const NAME: &str = "fjall";

/// An event store with an index in fjall's trees.
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

/// As [`open`], but it blocks the thread.
///
/// # Errors
///
/// Those of [`open`].
pub fn open_blocking(options: &Options) -> Result<FjallStore> {
    options.validate()?;
    KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
}

/// Opens a store to read it, and writes nothing there: others may read it as well, but nobody may write to it meanwhile. Must be
/// called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_read_only(options: Options) -> Result<FjallStore> {
    let opening = tokio::task::spawn_blocking(move || open_read_only_blocking(&options));
    opening.await.map_err(|error| Error::engine("open the store", error))?
}

/// As [`open_read_only`], but it blocks the thread.
///
/// # Errors
///
/// Those of [`open_read_only`].
pub fn open_read_only_blocking(options: &Options) -> Result<FjallStore> {
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
    eventstore_kv::repair::<FjallEngine>(ctx, &options.path, options, &options.store)
}

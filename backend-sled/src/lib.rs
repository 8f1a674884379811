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

use eventstore_kv::{Engine, KvStore};

pub use engine::{SledEngine, SledSnapshot};
pub use options::Options;

/// The backend's name: the scheme of its URLs, and the engine's name in `eventstore.json`.
pub const NAME: &str = SledEngine::NAME;

/// An event store whose index is in sled.
pub type SledStore = KvStore<SledEngine>;

eventstore_kv::backend!(SledStore = SledEngine);

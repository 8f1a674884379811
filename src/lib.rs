//! An embedded event store with interchangeable engines.
//!
//! A program appends events, reads them back by version or by aggregate, follows them live, and knows after every call
//! what is on disk. [`open`] opens a store by its URL; the engine behind it is chosen by cargo feature and scheme.
//!
//! ```
//! use eventstore::{Context, Event, EventStoreExt, Expected, Version};
//!
//! # async fn run(directory: &str) -> eventstore::Result<()> {
//! # let url = format!("lmdb:{directory}"); let url = url.as_str();
//! let store = eventstore::open(url).await?; // such as "lmdb:./data"
//! let ctx = Context::background();
//!
//! let placed = Event::builder("OrderPlaced", "order-42").data(r#"{"total":12}"#).build()?;
//! let stored = store.store(&ctx, placed, Expected::NoEvents).await?;
//! assert_eq!(stored.version, Version::new(1));
//!
//! let mut events = store.load_by_aggregate(&ctx, "order-42", Version::ZERO);
//! while let Some(event) = events.next().await {
//!     let event = event?;
//!     println!("{} {} {}", event.version, event.event.event_type(), event.event.aggregate_id());
//! }
//! store.close().await
//! # }
//! # let directory = tempfile::tempdir().unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(run(directory.path().to_str().unwrap())).unwrap();
//! ```
//!
//! # How to
//!
//! Keep a projection that goes on where it ended; `apply` saves its state and the version together:
//!
//! ```
//! use eventstore::{Context, Error, EventStore, EventStoreExt, RecordedEvent, Result, Version};
//!
//! async fn project<S: EventStore + Clone>(
//!     store: &S,
//!     ctx: &Context, // cancel it to stop
//!     saved: Version,
//!     mut apply: impl FnMut(&[RecordedEvent]),
//! ) -> Result<()> {
//!     let mut events = store.subscribe(ctx, saved);
//!     while let Some(page) = events.next_page().await {
//!         match page {
//!             Ok(page) => apply(&page),
//!             Err(Error::Cancelled) => break,
//!             Err(error) => return Err(error),
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Append until the answer is known, whatever happens to the first attempt; each attempt has its own time:
//!
//! ```
//! use std::time::Duration;
//! use eventstore::{Context, Event, EventStore, EventStoreExt, Expected, Result, Stored};
//!
//! async fn append<S: EventStore + Clone>(store: &S, event: Event) -> Result<Stored> {
//!     loop {
//!         let ctx = Context::background().with_timeout(Duration::from_secs(5));
//!         match store.store(&ctx, event.clone(), Expected::Any).await {
//!             Err(error) if error.is_retryable() => continue, // the same event: it is never written twice
//!             result => return result,
//!         }
//!     }
//! }
//! ```
//!
//! Decide on what an aggregate is and append only if it still is: see [`Expected`].
//!
//! # Features
//!
//! | feature | scheme | default | what keeps the index |
//! |---|---|---|---|
//! | | `memory:` | always there | memory, and the events as well: for tests |
//! | `lmdb` | `lmdb:PATH` | yes | LMDB: the fastest reads, instant opening; builds with a C compiler alone |
//! | `rocksdb` | `rocksdb:PATH` | no | RocksDB: large stores with random ids; builds with a C++ compiler and libclang, for many minutes |
//! | `fjall` | `fjall:PATH` | no | fjall's tables: as RocksDB, in Rust alone |
//! | `sled` | `sled:PATH` | no | sled: a beta engine, made again from the log after a crash |
//! | `full` | | no | every backend |
//! | `zstd` | | yes | not the index, but the log: the option `compression=zstd`; builds with a C compiler |
//! | `cli` | | yes | the `eventstore` command; a library user can turn it off |

#![forbid(unsafe_code)]

mod copy;
mod digest;
mod files;
mod open;

pub use copy::{CopyReport, copy};
pub use digest::{digest, digest_until};
pub use files::{repair, restore};
pub use open::{open, open_existing, open_read_only};

pub use eventstore_api::{
    BackupReport, Batch, BoxError, Bytes, CancellationToken, Context, Digest, Direction, Durability, Error, Event,
    EventBuilder, EventStore, EventStoreExt, EventStream, Expected, Finding, Gc, GcReport, Layout, LoadOptions, Page,
    PageSize, Progress, RecordedEvent, Result, Stats, StoreOutcome, Stored, VerifyReport, Version, async_trait, limits,
};
pub use eventstore_kv::{Compression, MemoryStore, StoreOptions, memory};

/// The LMDB backend with its typed options.
#[cfg(feature = "lmdb")]
pub use backend_lmdb as lmdb;

/// The RocksDB backend with its typed options.
#[cfg(feature = "rocksdb")]
pub use backend_rocksdb as rocksdb;

/// The fjall backend with its typed options.
#[cfg(feature = "fjall")]
pub use backend_fjall as fjall;

/// The sled backend with its typed options.
#[cfg(feature = "sled")]
pub use backend_sled as sled;

/// The examples of the README compile.
#[allow(clippy::needless_doctest_main, reason = "they are whole programs, to be pasted")]
#[cfg(all(doctest, feature = "lmdb"))]
#[doc = include_str!("../README.md")]
struct Readme;

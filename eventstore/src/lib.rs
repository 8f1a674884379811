//! An embedded event store with interchangeable engines.
//!
//! A program appends events, reads them by version or by aggregate, subscribes to new ones, and knows after every call what is
//! on disk. [`open`] opens a store by its URL; a cargo feature and the URL's scheme select the engine.
//!
//! ```
//! use eventstore::{Event, Expected, Version};
//!
//! #[derive(Debug, serde::Serialize, serde::Deserialize)]
//! enum Order {
//!     Placed { customer: String },
//!     Paid { cents: u64 },
//! }
//!
//! # async fn run(directory: &str) -> eventstore::Result<()> {
//! # let url = format!("lmdb:{directory}"); let url = url.as_str();
//! let store = eventstore::open(url).await?; // such as "lmdb:./data"
//! let placed = Event::of("order-42", &Order::Placed { customer: "Ada".into() })?;
//! store.append(placed).expected(Expected::NoEvents).await?;
//!
//! for recorded in store.load(Version::ZERO).aggregate("order-42").await? {
//!     println!("{} {:?}", recorded.version, recorded.decode::<Order>()?);
//! }
//! store.close().await
//! # }
//! # let directory = tempfile::tempdir().unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(run(directory.path().to_str().unwrap())).unwrap();
//! ```
//!
//! # Where to look
//!
//! - [`Store`]: the calls and their options.
//! - [`Event::of`] and [`RecordedEvent::decode`]: events as variants of a serde enum.
//! - [`Aggregate`] and [`Store::decide`]: decisions on an aggregate's state, with idempotent commands and
//!   [snapshots](SnapshotPolicy).
//! - [`Projection`] and [`Store::project`]: views that are kept up to date and resume where they stopped.
//! - [`Store::at`]: the store as it was at a version.
//! - [`Cursor`]: a position to resume from, which detects another history.
//! - [`blocking`]: for programs without an async runtime.
//! - [`testing`]: stores that fail on request, and given-when-then tests for aggregates.
//! - [`backend`]: the contract, [`EventStore`](backend::EventStore), for those who write stores or need its explicit
//!   [`Context`](backend::Context).
//!
//! # Features
//!
//! | feature | scheme | default | what it adds |
//! |---|---|---|---|
//! | | `memory:` | always on | a store in memory, for tests |
//! | `lmdb` | `lmdb:PATH` | yes | LMDB: the fastest reads, opens at once; needs only a C compiler |
//! | `rocksdb` | `rocksdb:PATH` | no | RocksDB: large stores with random ids; needs a C++ compiler and libclang, compiles for many minutes |
//! | `fjall` | `fjall:PATH` | no | fjall: as RocksDB, in pure Rust |
//! | `sled` | `sled:PATH` | no | sled: a beta engine; its index is rebuilt from the log after a crash |
//! | `http` | `http://HOST/PATH`, `https://HOST/PATH`, `unix:PATH` | no | the store of a server, `eventstore serve` |
//! | `postgres` | `postgres://USER@HOST/DATABASE?schema=NAME` | no | a store on PostgreSQL, for any number of processes |
//! | `full` | | no | every engine; neither `http` nor `postgres` |
//! | `serde` | | no | `Serialize` and `Deserialize` for versions, cursors, conditions, events and reports |
//! | `zstd` | | yes | log compression, the option `compression=zstd`; needs a C compiler |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod aggregate;
mod append;
mod at;
pub mod backend;
pub mod blocking;
mod call;
mod copy;
mod digest;
mod files;
#[cfg(feature = "http")]
mod gosync;
mod load;
mod open;
mod projection;
mod snapshots;
mod store;
pub mod testing;

pub use aggregate::{Aggregate, Decide, DecideError, Decided, Loaded};
pub use append::{Append, Appended};
pub use at::StoreAt;
pub use call::Call;
pub use copy::CopyReport;
pub use load::{Load, Since, Subscribe};
pub use open::{open, open_existing, open_read_only};
pub use projection::{Project, Projection, Running, ViewProgress};
pub use snapshots::{FileSnapshots, MemorySnapshots, SnapshotPolicy, Snapshots};
pub use store::Store;

pub use eventstore_api::{
    Actual, AggregateInfo, AggregateOptions, AggregatePage, BackupReport, Batch, BoxError, Bytes, CancellationToken,
    Cursor, Digest, Durability, Error, Event, EventBuilder, EventStream, Expected, Finding, Gc, GcReport, Idempotency,
    RecordedEvent, Result, Revision, Source, Stats, StoreOutcome, Stored, VerifyReport, Version, Written, async_trait,
    limits,
};
pub use eventstore_kv::{Compression, StoreOptions};

/// The LMDB backend with its typed options.
#[cfg(feature = "lmdb")]
#[doc(inline)]
pub use backend_lmdb as lmdb;

/// The RocksDB backend with its typed options.
#[cfg(feature = "rocksdb")]
#[doc(inline)]
pub use backend_rocksdb as rocksdb;

/// The fjall backend with its typed options.
#[cfg(feature = "fjall")]
#[doc(inline)]
pub use backend_fjall as fjall;

/// The sled backend with its typed options.
#[cfg(feature = "sled")]
#[doc(inline)]
pub use backend_sled as sled;

/// The client of a server with its typed options.
#[cfg(feature = "http")]
#[doc(inline)]
pub use backend_http as http;

/// Stores on PostgreSQL with their typed options.
#[cfg(feature = "postgres")]
#[doc(inline)]
pub use backend_postgres as postgres;

/// Compiles the examples of both READMEs, of this package and of the repository.
#[allow(clippy::needless_doctest_main, reason = "they are whole programs, to be pasted")]
#[cfg(all(doctest, feature = "lmdb"))]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Compiles the examples of the guide.
#[allow(clippy::needless_doctest_main, reason = "they are whole programs, to be pasted")]
#[cfg(all(doctest, feature = "lmdb"))]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;

//! The event store for all engines: its own log, and an index that is stored in any ordered key-value engine.
//!
//! [`KvStore`] is the store; an [`Engine`] is what a backend supplies: three ordered tables that accept sorted entries.
//! The log is the source of truth, and the index can be rebuilt from it. [`memory`] is an engine in memory;
//! [`StoreUrl`] parses the URLs of backends.
//!
//! ```text
//!  store_batch ─▶ queue (bounded) ─▶ writer thread: decide, place, encode ─▶ one write, one sync of the log
//!      ▲                                  the next group meanwhile                      │
//!      └────────────────────────── answers ◀── publish the new head ◀───────────────────┤
//!                                                    │ wakes                            │ behind it, sorted
//!  load_page ─▶ one read of the log, up to the published head ─▶ streams           index, digest
//! ```

#![forbid(unsafe_code)]

#[macro_use(tell)]
extern crate eventstore_log;

mod backend;
mod engine;
mod error;
mod files;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod index;
pub mod memory;
mod observe;
mod options;
mod read;
mod shared;
mod store;
mod sync;
mod task;
mod url;
mod write;

#[doc(hidden)]
pub use backend::blocking;
pub use engine::{Engine, Entries, KeyRange, Snapshot, Table, damaged_index, unclosed_index};
#[doc(hidden)]
pub use eventstore_api::{Context, Result};
pub use eventstore_log::background::give_way;
#[doc(hidden)]
pub use eventstore_log::tell;
pub use files::directory::StoreDirectory;
pub use files::open::repair;
pub use files::transfer::restore;
pub use memory::{MemoryEngine, MemoryStore};
pub use observe::HISTOGRAM_BUCKETS;
pub use options::{Compression, StoreOptions, check_range};
pub use store::KvStore;
pub use task::Task;
pub use url::{StoreUrl, UrlOptions};

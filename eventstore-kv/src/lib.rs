//! The event store, written once: a log of its own, and an index that any ordered key-value engine keeps.
//!
//! [`KvStore`] is the store; an [`Engine`] is what a backend supplies: three ordered tables that take sorted entries. The log
//! is the truth, and the index can be made again from it. [`memory`] is an engine of its own; [`StoreUrl`] reads the
//! addresses of backends.
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

mod aggregates;
mod backup;
mod commit;
mod compress;
mod digests;
mod directory;
mod engine;
mod error;
mod fenced;
mod filter;
mod filters;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod index;
mod indexer;
mod keys;
mod mark;
pub mod memory;
mod observe;
mod open;
mod options;
mod place;
mod queue;
mod reader;
mod recent;
mod record;
mod revisions;
mod shared;
mod staging;
mod store;
mod sync;
mod task;
mod transfer;
mod url;
mod verify;
mod writer;

pub use directory::StoreDirectory;
pub use engine::{Engine, Entries, KeyRange, Snapshot, Table, damaged_index, unclosed_index};
pub use eventstore_log::background::give_way;
#[doc(hidden)]
pub use eventstore_log::tell;
pub use memory::{MemoryEngine, MemoryStore};
pub use open::repair;
pub use options::{Compression, StoreOptions, check_range};
pub use store::KvStore;
pub use task::Task;
pub use transfer::restore;
pub use url::{StoreUrl, UrlOptions};

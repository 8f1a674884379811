//! The event store, written once over any ordered key-value engine.
//!
//! [`KvStore`] is the store; an [`Engine`] is what a backend supplies: four ordered tables, atomic batches, a sync. The
//! store brings the keys, the records, the writer thread with its group commit, and the paged reads. [`memory`] is an
//! engine of its own; [`StoreDirectory`] and [`StoreUrl`] are what backends on disk share.
//!
//! ```text
//!  store_batch ─▶ queue (bounded) ─▶ writer thread: take a group ─▶ check, place, encode ─▶ one commit, one sync
//!      ▲                                                                                            │
//!      └────────────────────────── answers ◀── publish the new head ◀──────────────────────────────┘
//!                                                    │ wakes
//!  load_page ─▶ one page from one snapshot, up to the published head ─▶ streams, subscriptions
//! ```

#![forbid(unsafe_code)]

mod directory;
mod engine;
#[allow(dead_code, reason = "nothing asks it yet")]
mod filter;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod index;
mod keys;
pub mod memory;
mod observe;
mod options;
mod queue;
mod reader;
mod recent;
mod record;
mod rows;
mod shared;
mod staging;
mod store;
mod sync;
mod task;
mod transfer;
mod url;
mod verify;
mod writer;

pub use directory::{StoreDirectory, sync_dir};
pub use engine::{CommitError, Engine, KeyRange, Snapshot, Table, WriteBatch};
pub use memory::{MemoryEngine, MemoryStore};
pub use options::{StoreOptions, check_range};
pub use store::KvStore;
pub use task::Task;
pub use transfer::{copy_events, copy_files, restore};
pub use url::{StoreUrl, UrlOptions};

/// The format of tables, keys and records that this version writes. It reads the one before it as well, and changes such a
/// store into its own when it opens it.
pub const FORMAT: u32 = 2;

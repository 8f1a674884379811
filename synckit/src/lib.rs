//! Offline-first replicas of an event store.

#![forbid(unsafe_code)]

mod config;
mod confirmed;
pub mod core;
mod error;
mod hub;
mod journal;
mod load;
mod replica;
mod resolve;
mod sync;
mod worker;

/// Implements the `async` methods of a [`Resolver`].
pub use async_trait::async_trait;
pub use error::{Error, Result};
pub use load::{Basis, Entry, Load, Loaded, Notice, PendingEvent, Subscribe};
pub use replica::{Append, Appended, DecideError, Options, OwnBatch, Replica, ReplicaStatus};
pub use resolve::{
    Answer, Conflict, DecideAgain, KeepBoth, LastWriterWins, RejectConflicts, Resolution, Resolver, with_new_ids,
    write_time,
};
pub use sync::{SyncOptions, SyncReport, SyncState};

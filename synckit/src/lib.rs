//! Offline-first replicas of an event store: a program works in its own directory and syncs with a hub.
//!
//! A *hub* is any store, in the same process or over HTTP. It defines the order of events. A [`Replica`] has
//! *confirmed* events, an exact prefix of the hub's log, and *pending* ones: own batches, which are durable when
//! [`append`](Replica::append) returns, whether the hub is reachable or not. [`sync_once`](Replica::sync_once) and
//! [`run`](Replica::run) sync both. Conflicts with what others did meanwhile go to a [`Resolver`].
//!
//! ```
//! use eventstore::{Event, Store};
//! use synckit::{KeepBoth, Options, SyncOptions};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = |name: &str| directory.path().join(name);
//! let hub = eventstore::open("memory:").await?; // or the address of a served store: Options::hub(url)
//! let laptop = Options::new(path("laptop")).hub_store(hub.clone()).open().await?;
//! let phone = Options::new(path("phone")).hub_store(hub.clone()).open().await?;
//!
//! // Both decide on the same state, and neither sees the other's event.
//! for (replica, text) in [(&laptop, r#"{"text":"milk"}"#), (&phone, r#"{"text":"bread"}"#)] {
//!     let list = replica.load().aggregate("list").await?;
//!     let event = Event::builder("Added", "list").data(text).build()?;
//!     replica.append(event).basis(&list.basis).await?;
//! }
//! laptop.sync_once(&SyncOptions::new()).await?;
//!
//! // The second one has not seen the first. Without a resolver it would wait.
//! phone.sync_once(&SyncOptions::new().resolver(KeepBoth)).await?;
//! laptop.sync_once(&SyncOptions::new()).await?;
//! assert_eq!(laptop.cursor().await?, phone.cursor().await?);
//! assert_eq!(laptop.load().await?.entries.len(), 2);
//! # Ok::<(), synckit::Error>(())
//! # }).unwrap();
//! ```
//!
//! The protocol is a state machine without I/O, in [`core`]. `tools/sync-simulation` shows with random schedules what
//! each of its rules is for. `docs/sync.md` in the repository describes the model and its guarantees.

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
/// The documentation of syncing, whose examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/sync.md")]
struct Chapter;

pub use crate::core::{Notice, PendingEvent};
pub use error::{Error, Result};
pub use load::{Basis, Entry, Load, Loaded, Subscribe};
pub use replica::{Append, Appended, DecideError, Options, OwnBatch, Replica, ReplicaStatus};
pub use resolve::{
    Answer, Conflict, DecideAgain, KeepBoth, LastWriterWins, RejectConflicts, Resolution, Resolver, with_new_ids,
    write_time,
};
pub use sync::{AcceptedHistory, SyncOptions, SyncReport, SyncState};

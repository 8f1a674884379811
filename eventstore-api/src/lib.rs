//! The contract of an embedded event store.
//!
//! [`EventStore`] is the trait that every backend implements, with the rules that all of them keep. [`EventStoreExt`]
//! adds the most common calls. An [`Event`] is appended, alone or in a [`Batch`], with a condition ([`Expected`]), a
//! [`Durability`] and an [`Idempotency`]. It is read back as a [`RecordedEvent`] with its [`Version`]. Every call takes
//! a [`Context`] with a deadline and a cancellation, and fails with an [`Error`] that says what to do.
//!
//! This crate has no engine, starts no runtime, and forbids unsafe code. Applications use the `eventstore` crate, which
//! re-exports all of it. To write a store of your own, implement [`EventStore`] and test it with the `conformance`
//! crate.

//!
//! # Features
//!
//! `serde`, off by default: `Serialize` and `Deserialize` for versions, cursors, digests, conditions, positions, events
//! and reports. Events have the JSON form that the command `eventstore` prints and reads. Types with a text form are
//! serialized as that text.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod aggregates;
mod batch;
mod context;
mod cursor;
mod digest;
mod error;
mod event;
mod ext;
#[cfg(feature = "serde")]
mod json;
pub mod limits;
mod load;
mod maintenance;
mod progress;
#[doc(hidden)]
pub mod replication;
mod stats;
mod store;
mod stream;
mod typed;
mod version;

/// Implements the trait's `async` methods: put it on `impl EventStore for …`.
pub use async_trait::async_trait;
/// Shared bytes, as used in events.
pub use bytes::Bytes;
/// Cancels the calls whose [`Context`] carries it.
pub use tokio_util::sync::CancellationToken;

pub use aggregates::{AggregateInfo, AggregateOptions, AggregatePage};
pub use batch::{Batch, Durability, Expected, Idempotency, StoreOutcome, Stored};
pub use context::Context;
pub use cursor::Cursor;
pub use digest::Digest;
pub use error::{Actual, BoxError, Error, Result, Source, Written};
pub use event::{Event, EventBuilder, Layout, RecordedEvent};
pub use ext::EventStoreExt;
pub use load::{Direction, LoadOptions, Page, PageSize};
pub use maintenance::{BackupReport, Finding, Gc, GcReport, VerifyReport};
pub use progress::Progress;
pub use replication::{Place, Pulled, Pushed};
pub use stats::Stats;
pub use store::EventStore;
pub use stream::EventStream;
pub use version::{Revision, Version};

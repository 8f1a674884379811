//! An event store on PostgreSQL: one order of events for any number of processes.
//!
//! ```no_run
//! use backend_postgres::{Options, open};
//! use eventstore_api::{Context, Event, EventStoreExt, Expected};
//!
//! # async fn run() -> eventstore_api::Result<()> {
//! let store = open(Options::from_url("postgres://app@db.example.org/app?schema=orders")?).await?;
//! let event = Event::builder("OrderPlaced", "order-42").data("{}").build()?;
//! store.store(&Context::background(), event, Expected::Any).await?;
//! # Ok(())
//! # }
//! ```
//!
//! | | |
//! |---|---|
//! | holds | two tables in a schema of its own: `events`, and `head` with one row |
//! | order | a transaction locks the row of `head`, takes the next versions, and updates it: so versions have no gaps and become visible in order |
//! | appending | each process groups its waiting appends into one transaction of two round trips |
//! | reading | one statement for each page, over a pool of connections |
//! | following | `LISTEN`, as a wake-up only; without it, the head is polled |
//! | memory | at most 1,024 waiting appends or 64 MiB of them; one page for each read |
//!
//! # Connections
//!
//! A store has at most `max_connections` for reads, one for appends, and one that listens while somebody waits for
//! events. They are created when they are needed, and again when they are lost.
//!
//! A read is retried until it is answered, for at most `retry_for`; then it is `Unavailable`. An append that certainly
//! was not committed is retried as well. If its commit was not answered, it is `OutcomeUnknown`: append the same events
//! again. Waiting for events ends with `Unavailable` when the server has been away for `retry_for`; while it is there, a
//! wait ends only with an event or its context.
//!
//! # Runtime
//!
//! A store is opened in a Tokio runtime with I/O and time, to which its connections belong. It can be used from other
//! runtimes as well, as long as that one runs.

#![forbid(unsafe_code)]

mod connect;
mod error;
mod follow;
#[doc(hidden)]
pub mod mutants;
mod options;
mod probe;
mod queue;
mod read;
mod schema;
mod sql;
mod store;
mod verify;
mod writer;

use eventstore_api::Result;

pub use options::{Options, Reads, SynchronousCommit};
pub use schema::statements as schema;
pub use store::PostgresStore;

/// The backend's name.
pub const NAME: &str = "postgres";

/// Opens the store in the options' schema. Creates it if it is missing and `create_if_missing` is set. Must be called
/// inside a Tokio runtime.
///
/// # Errors
///
/// `InvalidOption`; `Open` if the database does not exist, or the store does not exist and may not be created;
/// `Forbidden` if the user lacks a privilege; `Unsupported` if the store has a newer version; `Unavailable` if the
/// server cannot be reached within `connect_timeout`.
pub async fn open(options: Options) -> Result<PostgresStore> {
    PostgresStore::open(options).await
}

/// Opens the store in the options' schema if there is one. Must be called inside a Tokio runtime.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_existing(mut options: Options) -> Result<PostgresStore> {
    options.create_if_missing = false;
    PostgresStore::open(options).await
}

/// Opens the store for reading: appends and garbage collections are `Unsupported`. Others may write to it. It may be on
/// a standby.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_read_only(mut options: Options) -> Result<PostgresStore> {
    options.read_only = true;
    options.create_if_missing = false;
    PostgresStore::open(options).await
}

/// Deletes the store in the options' schema, with all of its events. Nobody should have it open.
///
/// # Errors
///
/// Those of [`open`]; `Open` if the schema has no store, and `Engine` if it has other objects as well.
pub async fn delete(mut options: Options) -> Result<()> {
    options.create_if_missing = false;
    PostgresStore::open(options).await?.delete().await
}

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
//! | order | a transaction locks the row of `head`, takes the next versions, and updates it: so versions have no gap, and become visible in their order |
//! | appending | each process groups the appends that wait into one transaction, of two round trips |
//! | reading | one statement for each page, over a pool of connections |
//! | following | `LISTEN`, as a wake-up only; without it, the head is polled |
//! | memory | at most 1,024 appends or 64 MiB that wait; one page for each read |
//!
//! # Connections
//!
//! A store has at most `max_connections` for reads, one for appends, and one that listens if somebody waits for events. They are made
//! when they are needed, and again when they are lost.
//!
//! A read is repeated until it is answered, for `retry_for` at most, and is `Unavailable` then. An append that certainly was not
//! committed is repeated as well; one whose commit was not answered is `OutcomeUnknown`: append the same events again.
//!
//! # Runtime
//!
//! A store is opened in a Tokio runtime with I/O and time, which its connections belong to. It can be used from others as well, as
//! long as that one runs.

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

/// Opens the store in the options' schema, and creates it if it is missing and `create_if_missing` is set. Must be called inside a
/// Tokio runtime.
///
/// # Errors
///
/// `InvalidOption`; `Open` if there is no such database, or no store and it may not be created; `Forbidden` if the user may not;
/// `Unsupported` if the store is of a newer version; `Unavailable` if the server cannot be reached within `connect_timeout`.
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

/// Opens the store to read it: appends and collections are `Unsupported`. Others may write to it. It may be on a standby.
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
/// Those of [`open`]; `Open` if the schema holds no store, and `Engine` if it holds something else as well.
pub async fn delete(mut options: Options) -> Result<()> {
    options.create_if_missing = false;
    PostgresStore::open(options).await?.delete().await
}

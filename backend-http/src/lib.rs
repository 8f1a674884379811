//! The client of an eventstore server: a store over HTTP.
//!
//! ```no_run
//! use backend_http::{Options, open};
//! use eventstore_api::{Context, Event, EventStoreExt, Expected};
//!
//! # async fn run() -> eventstore_api::Result<()> {
//! let store = open(Options::from_url("http://127.0.0.1:7080?retry_for=10s")?).await?;
//! let event = Event::builder("OrderPlaced", "order-42").data("{}").build()?;
//! store.store(&Context::background(), event, Expected::Any).await?;
//! # Ok(())
//! # }
//! ```
//!
//! | | |
//! |---|---|
//! | holds | nothing; the server does |
//! | reading | a request for each page, over a pool of connections; repeated when the connection is lost or the server restarts |
//! | appending | one WebSocket for all appends, many in a message; an append that may have arrived is never sent twice by itself |
//! | memory | at most 1,024 unanswered appends or 64 MiB of them; one page for each read |
//! | limits | requests of at most 64 KiB, which bounds filters by many types |
//!
//! [`gosync`] is another client, for servers of Go Sync Kit.
//!
//! # Lost connections
//!
//! A read is repeated until it is answered, for `retry_for` at most, and is `Unavailable` then. Waiting for events, and so a
//! subscription that waits, goes on over restarts of the server until its context ends, unless `retry_waits` is false.
//!
//! An append that was not sent waits for a connection for as long. One that may have reached the server when the connection was
//! lost is `OutcomeUnknown`: append the same events again, as after any unknown outcome. Nothing is written twice then.
//!
//! # Time
//!
//! The context's deadline travels with each request, and the server stops there. When it is cancelled or dropped, the connection
//! of a read is closed, which stops the server's work; an append is cancelled on the server, and waits up to 250 ms for what
//! became of it. A read without a deadline waits for as long as the system says that the other machine is there.
//!
//! # Runtime
//!
//! A store is opened in a Tokio runtime with I/O and time, which its connections belong to. It can be used from others as well, as
//! long as that one runs.

#![forbid(unsafe_code)]

mod backup;
mod client;
pub mod gosync;
mod net;
mod options;
mod pool;
mod queue;
mod session;
mod store;

use eventstore_api::Result;

pub use options::Options;
pub use store::HttpStore;

/// The backend's name.
pub const NAME: &str = "http";

/// Opens the store at the options' URL, and makes it if the server has none and the token may. Must be called inside a Tokio
/// runtime.
///
/// # Errors
///
/// `InvalidOption`; `Open` if there is no store, or no eventstore server; `Forbidden`; `Unsupported` if the server speaks other
/// versions of the wire only; `Unavailable` if it cannot be reached within `connect_timeout`.
pub async fn open(options: Options) -> Result<HttpStore> {
    HttpStore::open(options, true).await
}

/// Opens the store at the options' URL if there is one. Must be called inside a Tokio runtime.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_existing(options: Options) -> Result<HttpStore> {
    HttpStore::open(options, false).await
}

/// Opens the store at the options' URL to read it: appends and collections are `Unsupported`, whatever the token may do. Must be
/// called inside a Tokio runtime.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_read_only(mut options: Options) -> Result<HttpStore> {
    options.read_only = true;
    HttpStore::open(options, false).await
}

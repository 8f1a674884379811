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
//! | appending | one WebSocket for all appends, many in a message; an append that may have arrived is never resent automatically |
//! | memory | at most 1,024 unanswered appends or 64 MiB of them; one page for each read |
//! | limits | requests of at most 64 KiB, which bounds filters by many types |
//!
//! [`gosync`] is another client, for servers of Go Sync Kit.
//!
//! # Lost connections
//!
//! A read is retried until it is answered, for at most `retry_for`; then it is `Unavailable`. Waiting for events, and
//! so a waiting subscription, continues over restarts of the server until its context ends, unless `retry_waits` is
//! false.
//!
//! An append that was not sent waits for a connection for the same time. One that may have reached the server when the
//! connection was lost is `OutcomeUnknown`: append the same events again, as after any unknown outcome. Then nothing is
//! written twice.
//!
//! # Time
//!
//! The context's deadline is sent with each request, and the server stops at it. When the context is cancelled or the
//! future is dropped, the connection of a read is closed, which stops the server's work. An append is cancelled on the
//! server, and waits up to 250 ms for its outcome. A read without a deadline waits as long as the system considers the
//! other machine reachable.
//!
//! # Runtime
//!
//! A store is opened in a Tokio runtime with I/O and time, to which its connections belong. It can be used from other
//! runtimes as well, as long as that one runs.

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

/// Opens the store at the options' URL. Creates it if the server does not have it and the token allows that. Must be
/// called inside a Tokio runtime.
///
/// # Errors
///
/// `InvalidOption`; `Open` if there is no store or no eventstore server; `Forbidden`; `Unsupported` if the server
/// speaks only other versions of the wire protocol; `Unavailable` if it cannot be reached within `connect_timeout`.
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

/// Opens the store at the options' URL for reading: appends and garbage collections are `Unsupported`, whatever the
/// token allows. Must be called inside a Tokio runtime.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_read_only(mut options: Options) -> Result<HttpStore> {
    options.read_only = true;
    HttpStore::open(options, false).await
}

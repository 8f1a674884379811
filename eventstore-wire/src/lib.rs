//! The wire format between servers of event stores and their clients, without I/O: queries, pages, batches and errors,
//! in the JSON form for people and scripts, and in the binary form of
//! [`backend-http`](https://docs.rs/synckit-backend-http).
//!
//! `docs/wire.md` describes the resources. This crate does no I/O and starts no runtime. Its input may come from
//! anybody: for any bytes, reading terminates, allocates at most a small multiple of their length, and returns what was
//! written or an error.

#![forbid(unsafe_code)]

mod binary;
mod forms;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gosync;
mod incoming;
mod page;
mod problem;
mod query;
mod session;

pub use binary::Malformed;
pub use forms::{
    AggregatesForm, Appended, BackupForm, DigestForm, Info, Latest, LineOfWork, PageForm, Pushed, RevisionForm,
    StoredForm,
};
pub use incoming::{AtMost, Incoming, read_batches, read_events};
pub use page::{decode_batch, decode_batches, decode_page, encode_batch, encode_batches, encode_page};
pub use problem::{ActualForm, Problem};
pub use query::{Query, QueryWriter, aggregate_query, format_time, load_query, parse_duration};
pub use session::{Answer, Frame, decode_answers, decode_frames, encode_answers, encode_frames};

/// The version of the wire protocol that this crate speaks. A server lists all its versions in [`Info`].
pub const WIRE: u32 = 1;

/// The media type of the binary form.
pub const BINARY: &str = "application/vnd.eventstore.v1";

/// The media type of JSON, one value.
pub const JSON: &str = "application/json";

/// The media type of lines with one JSON value each.
pub const JSON_LINES: &str = "application/x-ndjson";

/// The media type of a [`Problem`].
pub const PROBLEM: &str = "application/problem+json";

/// The media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";

/// The WebSocket protocol of a session of appends.
pub const SESSION: &str = "eventstore.v1";

/// The largest size of a body or message in bytes: a batch of maximal size, and the overhead of its events.
pub const MAX_BODY: usize = eventstore_api::limits::MAX_BATCH_BYTES + (1 << 20);

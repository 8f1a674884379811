//! Serves event stores over HTTP.
//!
//! A store belongs to one process. Others read, append, follow and copy it through that process: with
//! `open("http://…")` of the crate `eventstore`, the command `eventstore --store http://…`, `curl`, or a browser.
//! `docs/wire.md` describes the resources.
//!
//! [`Server`] creates an [`axum::Router`] for a store that a program has open, or for a directory of many stores.
//! [`serve`] runs the server on its own, on TCP with or without TLS, or on a Unix socket.

#![forbid(unsafe_code)]

mod about;
mod access;
mod answer;
mod append;
mod backup;
mod description;
mod follow;
mod gosync;
mod held;
mod listen;
mod page;
mod read;
mod replicas;
mod request_log;
mod server;
mod session;
mod socket;
mod stores;
mod tail;
mod work;

pub use access::{Right, Tokens};
pub use listen::{Address, ListenError, Listener, Tls, serve};
pub use server::{Limits, Server};
pub use stores::Stores;

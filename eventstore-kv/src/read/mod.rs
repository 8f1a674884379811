//! Reads: pages and points, lists of aggregates, digests, and the verification that reads everything.

pub(crate) mod digests;
pub(crate) mod list;
pub(crate) mod reader;
pub(crate) mod verify;

//! Reads: pages and single events, lists of aggregates, digests, and verification.

pub(crate) mod digests;
pub(crate) mod list;
pub(crate) mod reader;
pub(crate) mod verify;

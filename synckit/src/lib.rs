//! Offline-first replicas of an event store.

#![forbid(unsafe_code)]

pub mod core;

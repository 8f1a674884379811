//! A simulation of syncing: the state machine of `synckit`, a hub, and everything that can happen between them.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "it is no library for others")]

mod hub;
mod replica;
mod world;

pub use replica::Broken;
pub use world::{Healed, run};

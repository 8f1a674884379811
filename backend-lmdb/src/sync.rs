//! What the gate is made of, in one place: the crate `models` compiles it over a `sync` of its own, which tries the
//! orders in which threads may meet.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

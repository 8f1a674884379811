//! Everything in which threads and tasks meet, in one place: the crate `models` compiles this crate's sources over a
//! `sync` of its own, which tries the orders in which they may meet.

use std::time::Instant;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub(crate) use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
pub(crate) use std::thread;

pub(crate) use eventstore_log::background;
pub(crate) use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Whether the clock has come to this instant.
pub(crate) fn is_past(instant: Instant) -> bool {
    Instant::now() >= instant
}

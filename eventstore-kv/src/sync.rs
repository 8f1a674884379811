//! All synchronization primitives, in one place: the crate `models` compiles the sources of this crate with its own
//! `sync`, which explores the possible interleavings.

use std::time::Instant;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub(crate) use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
pub(crate) use std::thread;

pub(crate) use eventstore_log::background::{self, linger};
pub(crate) use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Whether this instant has passed.
pub(crate) fn is_past(instant: Instant) -> bool {
    Instant::now() >= instant
}

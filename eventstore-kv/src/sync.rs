//! All synchronization primitives, in one place: the crate `models` compiles the sources of this crate with its own
//! `sync`, which explores the possible interleavings.

use std::sync::LazyLock;
use std::time::Instant;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub(crate) use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
pub(crate) use std::thread;

pub(crate) use eventstore_log::background;
pub(crate) use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Whether this instant has passed.
pub(crate) fn is_past(instant: Instant) -> bool {
    Instant::now() >= instant
}

/// Spins for a moment. It does not yield if there is another processor: a thread of low priority could then occupy this
/// one for milliseconds.
pub(crate) fn linger() {
    static HAS_OTHERS: LazyLock<bool> =
        LazyLock::new(|| thread::available_parallelism().is_ok_and(|all| all.get() > 1));
    if *HAS_OTHERS { std::hint::spin_loop() } else { thread::yield_now() }
}

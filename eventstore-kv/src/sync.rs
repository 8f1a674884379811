//! Everything in which threads and tasks meet, in one place: the crate `models` compiles this crate's sources over a
//! `sync` of its own, which tries the orders in which they may meet.

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

/// Whether the clock has come to this instant.
pub(crate) fn is_past(instant: Instant) -> bool {
    Instant::now() >= instant
}

/// Lets a moment pass, awake. It does not give way where there is another processor: who then got this one, such as a thread of
/// low priority, might keep it for milliseconds.
pub(crate) fn linger() {
    static HAS_OTHERS: LazyLock<bool> =
        LazyLock::new(|| thread::available_parallelism().is_ok_and(|all| all.get() > 1));
    if *HAS_OTHERS { std::hint::spin_loop() } else { thread::yield_now() }
}

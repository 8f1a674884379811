//! Memory that sled has given back to the allocator, back to the system.
//!
//! sled makes and frees pages of all lengths on many threads. glibc has a heap for each of some threads, and keeps what is free
//! in it between pages that are in use: after minutes of appends several times as much as those take. It gives that back when it
//! is asked to, which takes some milliseconds. Other allocators are not asked.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Not more often than this, for all stores of the process: whoever allocates meanwhile may have to wait.
const AT_MOST: Duration = Duration::from_secs(10);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Gives free memory back, unless that was done a short time ago.
pub(crate) fn give_back_now_and_then() {
    let Ok(mut last) = LAST.try_lock() else { return };
    if last.is_none_or(|last| last.elapsed() >= AT_MOST) {
        give_back();
        *last = Some(Instant::now());
    }
}

/// Gives free memory back.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: It may be called at any time, by any thread, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

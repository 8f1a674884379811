//! Returns memory that sled has freed to the system.
//!
//! sled allocates and frees pages of all lengths on many threads. glibc has a heap for every few threads and keeps free
//! memory between used pages: after minutes of appends, several times the used memory. It returns that memory on
//! request, which takes some milliseconds. Other allocators are not asked.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The shortest time between two requests, for all stores of the process: other allocations may have to wait meanwhile.
const AT_MOST: Duration = Duration::from_secs(10);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Returns free memory to the system, unless that was done recently.
pub(crate) fn give_back_now_and_then() {
    let Ok(mut last) = LAST.try_lock() else { return };
    if last.is_none_or(|last| last.elapsed() >= AT_MOST) {
        give_back();
        *last = Some(Instant::now());
    }
}

/// Returns free memory to the system.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: It may be called at any time from any thread, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

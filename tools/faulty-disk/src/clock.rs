//! The clock that tells what time it is, as this process sees it.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use libc::{clockid_t, timespec};

use crate::calls::kernel;

/// Whether somebody has set it. Looked at in front of every call, so that a program that only links this pays one load.
static IS_SET: AtomicBool = AtomicBool::new(false);

/// What it shows, one after the other.
static TIMES: Mutex<Vec<i64>> = Mutex::new(Vec::new());

static LOOKED: AtomicUsize = AtomicUsize::new(0);

/// Sets the clock of this process, as Rust's `SystemTime` and C's `clock_gettime` read it: whoever looks at it is shown one of
/// these times after the other, in seconds since 1970, and the first again after the last. One of them stands still; without
/// any, the clock is right again.
///
/// Clocks that only tell how much time has passed go on as they are.
pub fn set_clock(seconds: &[i64]) {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    *times = seconds.to_vec();
    IS_SET.store(!times.is_empty(), Ordering::SeqCst);
    // Whoever looks at the address keeps the linker from taking the C library's.
    std::hint::black_box(clock_gettime as *const ());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let tells_the_time = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
    if tells_the_time && IS_SET.load(Ordering::SeqCst) {
        let times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = LOOKED.fetch_add(1, Ordering::Relaxed);
        if let Some(&seconds) = times.get(nth % times.len().max(1)) {
            // SAFETY: The caller vouches for the place, as it does to the function that this stands for.
            unsafe { time.write(timespec { tv_sec: seconds, tv_nsec: 0 }) };
            return 0;
        }
    }
    kernel!(SYS_clock_gettime, clock, time) as c_int
}

//! What the process was started with, and its end at once: the few calls that the standard library has not.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed when the process began.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed when the process began. Before `main` Rust puts `/dev/null` in its place, which cannot
/// be told from one that was given. So it is looked at still earlier, which is done on Linux alone: elsewhere this is false.
pub(crate) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

#[cfg(target_os = "linux")]
mod before_main {
    use super::{Ordering, STDOUT_WAS_CLOSED};

    // SAFETY: The section holds pointers to functions with C's way of calling, each of which is called once before `main`, and
    // may leave its arguments alone. This one uses nothing of the standard library that `main` has to be begun for.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        // SAFETY: It asks for a flag of a descriptor, whether that is open or not.
        let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        STDOUT_WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
    }
}

/// Whether a signal was ignored when the process began, as SIGHUP is under `nohup`. To be asked before it is listened for.
#[cfg(unix)]
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: All of it may be zeros.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: Without a new action it only writes the present one to the place that it is given.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Ends the process at once. What C++ engines do at a usual exit would happen under the feet of their threads.
pub(crate) fn end(status: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: It does not return, and touches no memory of the process.
    unsafe {
        libc::_exit(status.into())
    }
    #[cfg(not(unix))]
    std::process::exit(status.into())
}

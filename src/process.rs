//! State at the start of the process, and its immediate end: the few system calls that the standard library lacks.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed when the process began.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed when the process started. Before `main`, Rust replaces it by `/dev/null`, which
/// cannot be distinguished from a real redirection. So it is checked even earlier, but only on Linux: on other systems
/// this is false.
pub(crate) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

#[cfg(target_os = "linux")]
mod before_main {
    use super::{Ordering, STDOUT_WAS_CLOSED};

    // SAFETY: The section has pointers to functions with the C calling convention, each of which is called once before
    // `main` and may ignore its arguments. This one uses nothing of the standard library that requires `main` to have
    // started.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        // SAFETY: It queries a flag of a descriptor, whether that is open or not.
        let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        STDOUT_WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
    }
}

/// Whether a signal was ignored when the process started, as SIGHUP is under `nohup`. Must be called before a handler
/// is set.
#[cfg(unix)]
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: All zeros are a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: Without a new action, it only writes the current one to the given place.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Ends the process at once. A normal exit would run destructors of C++ engines while their threads are running.
pub(crate) fn end(status: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: It does not return, and touches no memory of the process.
    unsafe {
        libc::_exit(status.into())
    }
    #[cfg(not(unix))]
    std::process::exit(status.into())
}

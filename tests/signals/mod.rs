//! Signals as a terminal has them.

/// Lets signals end the processes that this one starts. In the background of a script some are ignored, and a command that was
/// started so goes on ignoring them.
pub(crate) fn restore() {
    #[cfg(unix)]
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: It is the default, and nobody in this process has another.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

//! Signals as in a terminal.

/// Lets signals end the child processes of this one. In the background of a script some signals are ignored, and child
/// processes inherit that.
pub(crate) fn restore() {
    #[cfg(unix)]
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: It is the default action, and nobody in this process has set another.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sends a signal to a process.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn send(child: &std::process::Child, signal: i32) {
    let status = std::process::Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
    assert!(status.expect("kill is there").success());
}

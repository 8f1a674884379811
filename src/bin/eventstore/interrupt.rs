//! Ctrl-C as a request to end in good order.

use eventstore::CancellationToken;

use crate::failure::Failure;

/// What a shell shows for a command that an interrupt ended: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// A token that the first Ctrl-C cancels. The second ends the process at once; what was acknowledged is durable anyway.
///
/// From the return of this function on, Ctrl-C does nothing else.
pub(crate) fn listen() -> Result<CancellationToken, Failure> {
    #[cfg(unix)]
    let signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    #[cfg(windows)]
    let signals = tokio::signal::windows::ctrl_c();
    let mut signals = signals.map_err(|error| Failure::io("listen for Ctrl-C", &error))?;

    let interrupted = CancellationToken::new();
    let cancel = interrupted.clone();
    tokio::spawn(async move {
        signals.recv().await;
        cancel.cancel();
        signals.recv().await;
        std::process::exit(i32::from(EXIT_CODE));
    });
    Ok(interrupted)
}

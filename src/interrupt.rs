//! Signals as requests to stop in an orderly way: Ctrl-C, and the signals with which a system ends a process.
//!
//! Every command handles them, because the first process of a container is not ended by a signal without a handler.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use eventstore::backend::CancellationToken;

use crate::failure::Failure;
use crate::process;

/// The time limit for a command that only prints. One that waits for its reader would not end at all.
const GRACE: Duration = Duration::from_secs(1);

/// The requested stop, and how to respond.
#[derive(Default)]
struct Requests {
    token: CancellationToken,
    /// The number of the first signal; 0 if there was none.
    signal: AtomicU8,
    /// The command may take any time to stop in an orderly way.
    is_working: AtomicBool,
    /// A store is being opened. Only the end of the process stops that, and nothing has to be cleaned up.
    is_opening: AtomicBool,
    /// SIGHUP does not stop the command: it makes it read its files again.
    is_kept_by_hangup: AtomicBool,
}

fn requests() -> &'static Requests {
    static REQUESTS: OnceLock<Requests> = OnceLock::new();
    REQUESTS.get_or_init(Requests::default)
}

impl Requests {
    fn take(&self, signal: u8) {
        let _ = self.signal.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        self.token.cancel();
    }
}

/// The exit code for a command that was ended by the signal: 128 plus its number.
pub(crate) fn exit_code() -> u8 {
    128 + requests().signal.load(Ordering::Relaxed)
}

/// From here on, SIGHUP does not end the process: the caller handles it.
#[cfg(all(unix, feature = "serve"))]
pub(crate) fn keep_on_hangup() {
    requests().is_kept_by_hangup.store(true, Ordering::SeqCst);
}

/// Handles signals from here on. The first one is a request to stop, the second ends the process at once; acknowledged
/// events are durable in any case.
pub(crate) fn listen() -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::io("listen for signals", &error))?;
    tokio::spawn(async move {
        let requests = requests();
        let signal = signals.next().await;
        requests.take(signal);
        if requests.is_opening.load(Ordering::SeqCst) {
            process::end(exit_code());
        }
        if requests.is_working.load(Ordering::SeqCst) {
            signals.next().await;
        } else {
            tokio::select! {
                _ = signals.next() => {}
                () = tokio::time::sleep(GRACE) => {}
            }
        }
        process::end(exit_code());
    });
    Ok(())
}

/// A token that the first signal cancels, for a command that only prints. If the command has not ended shortly after,
/// the process is ended.
pub(crate) fn token() -> CancellationToken {
    requests().token.clone()
}

/// A token that the first signal cancels, for a command that stops in an orderly way, however long that takes.
pub(crate) fn token_of_work() -> CancellationToken {
    requests().is_working.store(true, Ordering::SeqCst);
    token()
}

/// Waits for a store to be opened. A signal ends the process meanwhile; `None` if there was one before.
pub(crate) async fn while_opening<T>(opening: impl Future<Output = T>) -> Option<T> {
    let Requests { token, is_opening, .. } = requests();
    is_opening.store(true, Ordering::SeqCst);
    // Checked afterwards: whoever cancels the token checks whether a store is being opened.
    let opened = if token.is_cancelled() { None } else { Some(opening.await) };
    is_opening.store(false, Ordering::SeqCst);
    opened
}

/// The handled signals.
#[cfg(unix)]
struct Signals {
    /// With their numbers. Signals that were ignored when the process started stay ignored.
    listeners: Vec<(u8, tokio::signal::unix::Signal)>,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut listeners = Vec::new();
        for kind in [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()] {
            let number = kind.as_raw_value();
            if !process::is_ignored(number) {
                listeners.push((u8::try_from(number).unwrap_or_default(), signal(kind)?));
            }
        }
        Ok(Signals { listeners })
    }

    async fn next(&mut self) -> u8 {
        let hangup = u8::try_from(tokio::signal::unix::SignalKind::hangup().as_raw_value()).unwrap_or_default();
        loop {
            let signal = std::future::poll_fn(|cx| {
                let mut signals = self.listeners.iter_mut();
                let received = signals.find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
                received.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
            });
            let signal = signal.await;
            if signal != hangup || !requests().is_kept_by_hangup.load(Ordering::SeqCst) {
                return signal;
            }
        }
    }
}

/// The corresponding events of the console and the system.
#[cfg(windows)]
struct Signals {
    ctrl_c: tokio::signal::windows::CtrlC,
    ctrl_break: tokio::signal::windows::CtrlBreak,
    close: tokio::signal::windows::CtrlClose,
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(windows)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
        Ok(Signals { ctrl_c: ctrl_c()?, ctrl_break: ctrl_break()?, close: ctrl_close()?, shutdown: ctrl_shutdown()? })
    }

    /// The number of the corresponding signal on other systems.
    async fn next(&mut self) -> u8 {
        const HANGUP: u8 = 1;
        const INTERRUPT: u8 = 2;
        const TERMINATE: u8 = 15;
        tokio::select! {
            _ = self.ctrl_c.recv() => INTERRUPT,
            _ = self.ctrl_break.recv() => INTERRUPT,
            _ = self.close.recv() => HANGUP,
            _ = self.shutdown.recv() => TERMINATE,
        }
    }
}

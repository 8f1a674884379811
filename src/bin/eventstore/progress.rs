//! A progress bar on stderr, where that is a terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::input::Input;

/// How far an input was read. It disappears when dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    position: Arc<AtomicU64>,
}

impl Progress {
    pub(crate) fn of(input: &Input) -> Self {
        let (bar, template) = match (std::io::stderr().is_terminal(), input.len()) {
            (false, _) => (ProgressBar::hidden(), "{msg}"),
            (true, Some(len)) => (ProgressBar::new(len), "{wide_bar} {bytes} of {total_bytes}, {msg}, {eta} left"),
            (true, None) => (ProgressBar::no_length(), "{spinner} {bytes} read, {msg}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Progress { bar: bar.with_style(style), position: input.position() }
    }

    /// Shows that this many events are done.
    pub(crate) fn show(&self, events: u64) {
        self.bar.set_message(format!("{} events", HumanCount(events)));
        self.bar.set_position(self.position.load(Ordering::Relaxed));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

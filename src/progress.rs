//! Progress bars on stderr, if that is a terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::failure::tell;
use crate::input::Input;

/// The progress of reading an input. It disappears when dropped.
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

/// The progress of long work. It disappears when dropped.
pub(crate) struct Work(ProgressBar);

impl Work {
    /// Work whose progress counts in this unit, such as `events`.
    pub(crate) fn new(unit: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = match unit {
            "bytes" => "{wide_bar} {bytes} of {total_bytes}, {eta} left".to_owned(),
            unit => format!("{{wide_bar}} {{human_pos}} of {{human_len}} {unit}, {{eta}} left"),
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Work(bar.with_style(style))
    }

    /// Writes one line to stderr, above the bar.
    pub(crate) fn tell(&self, text: &str) {
        self.0.suspend(|| tell(text));
    }

    /// The listener that shows the progress of the work.
    pub(crate) fn listener(&self) -> eventstore::backend::Progress {
        let bar = self.0.clone();
        eventstore::backend::Progress::new(move |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

//! The output of `serve --log` on stderr: warnings, and a line for each request.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::SystemTime;

use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::failure;

/// What to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Log {
    /// Warnings and errors of the server and its stores
    Warnings,
    /// These, and a line for each request: when it ended, method, path, status, duration, bytes of the answer
    Requests,
}

/// The most lines that wait for a slow reader of stderr. Further ones are dropped: nobody waits for a log.
const MOST_LINES: usize = 4096;

/// The log target of requests.
const REQUESTS: &str = "eventstore_server::request";

enum Line {
    Text(String),
    End,
}

/// The writing thread.
pub(crate) struct Writing {
    lines: SyncSender<Line>,
    thread: JoinHandle<()>,
}

impl Log {
    /// Starts logging, for the whole process.
    pub(crate) fn begin(self) -> Writing {
        let (lines, waiting) = sync_channel(MOST_LINES);
        let thread = std::thread::spawn(move || write(&waiting));
        // The command has no other subscriber.
        let _ = tracing::subscriber::set_global_default(Logger {
            log: self,
            lines: lines.clone(),
            left_out: AtomicU64::new(0),
        });
        Writing { lines, thread }
    }
}

impl Writing {
    /// Waits until everything is written.
    pub(crate) fn end(self) {
        if self.lines.send(Line::End).is_ok() {
            let _ = self.thread.join();
        }
    }
}

fn write(waiting: &Receiver<Line>) {
    while let Ok(Line::Text(line)) = waiting.recv() {
        failure::tell(&line);
    }
}

struct Logger {
    log: Log,
    lines: SyncSender<Line>,
    left_out: AtomicU64,
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_request = metadata.target() == REQUESTS;
        metadata.is_event() && (*metadata.level() <= Level::WARN || (is_request && self.log == Log::Requests))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.log {
            Log::Warnings => LevelFilter::WARN,
            Log::Requests => LevelFilter::DEBUG,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let metadata = event.metadata();
        let mut line = match metadata.target() {
            REQUESTS => format!("{time} {}", fields.request()),
            target => format!("{time} {} {target}: {}{}", metadata.level(), fields.message, fields.rest),
        };
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let _ = write!(line, " (before this, {left_out} lines were left out)");
        }
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Line::Text(line)) {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
    }

    // No span is enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    /// The fields without a dedicated place, each preceded by a space.
    rest: String,
    method: String,
    path: String,
    status: u64,
    duration_us: u64,
    bytes: u64,
    is_whole: bool,
}

impl Fields {
    /// `GET /events 200 1.234 ms 4096 B`.
    fn request(&self) -> String {
        let Fields { method, path, duration_us, bytes, .. } = self;
        let status = if self.status == 0 { "-".to_owned() } else { self.status.to_string() };
        let cut = if self.is_whole { "" } else { " cut short" };
        format!("{method} {path} {status} {}.{:03} ms {bytes} B{cut}", duration_us / 1000, duration_us % 1000)
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "status" => self.status = value,
            "duration_us" => self.duration_us = value,
            "bytes" => self.bytes = value,
            _ => self.record_debug(field, &value),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            "is_whole" => self.is_whole = value,
            _ => self.record_debug(field, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "method" => self.method = value.to_owned(),
            "path" => self.path = value.to_owned(),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}

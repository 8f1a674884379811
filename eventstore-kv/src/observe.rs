//! The store's observability: metrics through the `metrics` facade, logs and spans through `tracing`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use eventstore_api::{Batch, Durability, Result, StoreOutcome, Stored};
use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use tracing::Span;

/// The metrics of one store. They are looked up once, so install the recorder before opening the store.
/// `docs/metrics.md` lists them.
pub(crate) struct Observer {
    backend: &'static str,
    /// Common to every metric: the backend, and the name of the store.
    labels: [Label; 2],
    append_seconds: Histogram,
    queue_seconds: Histogram,
    commit_seconds: Histogram,
    group_events: Histogram,
    group_bytes: Histogram,
    events_written: Counter,
    latest_version: Gauge,
    fenced: Gauge,
    events_read: Counter,
    page_seconds: Histogram,
}

const APPENDS: &str = "eventstore_appends_total";
const APPEND_SECONDS: &str = "eventstore_append_seconds";
const QUEUE_SECONDS: &str = "eventstore_queue_seconds";
const COMMIT_SECONDS: &str = "eventstore_commit_seconds";
const GROUP_EVENTS: &str = "eventstore_group_events";
const GROUP_BYTES: &str = "eventstore_group_bytes";
const EVENTS_WRITTEN: &str = "eventstore_events_written_total";
const LATEST_VERSION: &str = "eventstore_latest_version";
const FENCED: &str = "eventstore_fenced";
const EVENTS_READ: &str = "eventstore_events_read_total";
const PAGE_SECONDS: &str = "eventstore_page_seconds";
const MAINTENANCE_SECONDS: &str = "eventstore_maintenance_seconds";

/// Suitable buckets for the histograms, by name. Without buckets, exporters produce quantiles, which cannot be
/// aggregated over stores and processes.
pub const HISTOGRAM_BUCKETS: [(&str, &[f64]); 7] = [
    (APPEND_SECONDS, SECONDS),
    (QUEUE_SECONDS, SECONDS),
    (COMMIT_SECONDS, SECONDS),
    (PAGE_SECONDS, SECONDS),
    (MAINTENANCE_SECONDS, &[0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]),
    (GROUP_EVENTS, &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0]),
    (GROUP_BYTES, &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0]),
];

/// From the fastest sync of a disk to unacceptable times.
const SECONDS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

impl Observer {
    /// `store` distinguishes the stores of a process.
    pub(crate) fn new(backend: &'static str, store: String, latest: u64) -> Self {
        describe();
        let labels = [Label::new("backend", backend), Label::new("store", store)];
        let observer = Observer {
            backend,
            append_seconds: histogram!(APPEND_SECONDS, labels.iter()),
            queue_seconds: histogram!(QUEUE_SECONDS, labels.iter()),
            commit_seconds: histogram!(COMMIT_SECONDS, labels.iter()),
            group_events: histogram!(GROUP_EVENTS, labels.iter()),
            group_bytes: histogram!(GROUP_BYTES, labels.iter()),
            events_written: counter!(EVENTS_WRITTEN, labels.iter()),
            latest_version: gauge!(LATEST_VERSION, labels.iter()),
            fenced: gauge!(FENCED, labels.iter()),
            events_read: counter!(EVENTS_READ, labels.iter()),
            page_seconds: histogram!(PAGE_SECONDS, labels.iter()),
            labels,
        };
        record(|| {
            observer.fenced.set(0.0);
            observer.latest_version.set(latest as f64);
        });
        observer
    }

    /// For a store that is not reported, such as an unfinished backup.
    pub(crate) fn silent(backend: &'static str) -> Self {
        Observer {
            backend,
            append_seconds: Histogram::noop(),
            queue_seconds: Histogram::noop(),
            commit_seconds: Histogram::noop(),
            group_events: Histogram::noop(),
            group_bytes: Histogram::noop(),
            events_written: Counter::noop(),
            latest_version: Gauge::noop(),
            fenced: Gauge::noop(),
            events_read: Counter::noop(),
            page_seconds: Histogram::noop(),
            labels: [Label::new("backend", backend), Label::new("store", "")],
        }
    }

    /// The labels of a metric with additional ones.
    fn labels<const N: usize>(&self, more: [(&'static str, &'static str); N]) -> Vec<Label> {
        let more = more.map(|(key, value)| Label::from_static_parts(key, value));
        self.labels.iter().cloned().chain(more).collect()
    }

    /// The store was opened.
    pub(crate) fn opened(&self, path: &Path, latest: u64, mended: &[String], took: Duration) {
        tell!(
            info,
            path = %path.display(),
            backend = self.backend,
            latest_version = latest,
            mended = mended.join("; "),
            ?took,
            "opened the store"
        );
    }

    /// A span around one append. Its fields are computed only if somebody listens.
    pub(crate) fn append_span(&self, batch: &Batch) -> Span {
        let (events, bytes) = (batch.events.len(), batch.len_bytes());
        span(|| tracing::debug_span!("append", backend = self.backend, events, bytes))
    }

    /// An append was answered, successfully or not.
    pub(crate) fn appended(&self, began: Instant, result: &Result<Vec<Stored>>) {
        let took = began.elapsed();
        let outcome = match result {
            Ok(stored) if stored.iter().any(|stored| stored.outcome == StoreOutcome::Written) => "written",
            Ok(_) => "already_stored",
            Err(error) => error.code(),
        };
        record(|| {
            counter!(APPENDS, self.labels([("outcome", outcome)])).increment(1);
            self.append_seconds.record(took);
        });
        tell!(debug, outcome, ?took, "answered an append");
    }

    /// An append was taken from the queue, after this time in it.
    pub(crate) fn dequeued(&self, waited: Duration) {
        record(|| self.queue_seconds.record(waited));
    }

    /// A group was committed.
    pub(crate) fn committed(&self, group: &Committed) {
        let Committed { events, bytes, head, durability, took } = *group;
        record(|| {
            self.commit_seconds.record(took);
            self.group_events.record(events as f64);
            self.group_bytes.record(bytes as f64);
            self.events_written.increment(events);
            self.latest_version.set(head as f64);
        });
        tell!(debug, backend = self.backend, events, bytes, head, ?durability, ?took, "committed a group");
    }

    /// The store was opened fenced: appends fail.
    pub(crate) fn set_fenced(&self) {
        record(|| self.fenced.set(1.0));
    }

    /// The writer was fenced.
    pub(crate) fn fenced(&self, reason: &str) {
        self.set_fenced();
        tell!(error, backend = self.backend, reason, "the writer is fenced: appends fail until the store is reopened");
    }

    /// A page was read, or found damaged.
    pub(crate) fn read(&self, began: Instant, events: Option<usize>) {
        let took = began.elapsed();
        record(|| {
            self.page_seconds.record(took);
            self.events_read.increment(events.unwrap_or(0) as u64);
        });
        tell!(trace, backend = self.backend, events, ?took, "read a page");
    }

    /// A span around a maintenance operation.
    pub(crate) fn maintenance_span(&self, operation: &'static str) -> Span {
        span(|| tracing::debug_span!("maintenance", backend = self.backend, operation))
    }

    /// A maintenance operation ended.
    pub(crate) fn maintained<T>(&self, operation: &'static str, began: Instant, result: &Result<T>) {
        let took = began.elapsed();
        let outcome = result.as_ref().map_or_else(eventstore_api::Error::code, |_| "done");
        record(|| {
            histogram!(MAINTENANCE_SECONDS, self.labels([("operation", operation), ("outcome", outcome)])).record(took);
        });
        tell!(debug, outcome, ?took, "finished {operation}");
    }
}

/// Records metrics. A panic of the recorder is caught.
fn record(record: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(record));
}

/// Creates a span, or none if the subscriber panics.
fn span(begin: impl FnOnce() -> Span) -> Span {
    catch_unwind(AssertUnwindSafe(begin)).unwrap_or_else(|_| Span::none())
}

/// Data about a committed group.
pub(crate) struct Committed {
    pub(crate) events: u64,
    /// The size of its records.
    pub(crate) bytes: usize,
    pub(crate) head: u64,
    pub(crate) durability: Durability,
    /// The time to write and sync it to the log.
    pub(crate) took: Duration,
}

fn describe() {
    describe_counter!(
        APPENDS,
        Unit::Count,
        "Appends answered, by outcome: written, already_stored or the error's code"
    );
    describe_histogram!(APPEND_SECONDS, Unit::Seconds, "From the call of an append to its answer");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "Time of an append in the queue");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "The commit of a group to the log, with its sync");
    describe_histogram!(GROUP_EVENTS, Unit::Count, "Events committed together");
    describe_histogram!(GROUP_BYTES, Unit::Bytes, "Bytes of records committed together");
    describe_counter!(EVENTS_WRITTEN, Unit::Count, "Events written");
    describe_gauge!(LATEST_VERSION, Unit::Count, "The version of the newest event");
    describe_gauge!(FENCED, Unit::Count, "1 if appends fail until the store is reopened");
    describe_counter!(EVENTS_READ, Unit::Count, "Events read by loads and subscriptions");
    describe_histogram!(PAGE_SECONDS, Unit::Seconds, "The reading of a page");
    describe_histogram!(
        MAINTENANCE_SECONDS,
        Unit::Seconds,
        "Garbage collections, backups, verifications, statistics, by operation and outcome"
    );
}

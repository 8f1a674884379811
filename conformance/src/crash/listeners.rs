//! A metrics recorder and a log subscriber that panic on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Recorder, SharedString, Unit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};

/// Whether those of this process panic.
static PANICS: AtomicBool = AtomicBool::new(false);

static TOLD: AtomicU64 = AtomicU64::new(0);

/// Installs them for this process.
pub(crate) fn install() {
    // If the process already has others, this is not checked.
    let _ = tracing::subscriber::set_global_default(Panicking);
    let _ = metrics::set_global_recorder(Panicking);
}

/// Sets whether they panic from now on.
pub(crate) fn panic(panics: bool) {
    PANICS.store(panics, Ordering::SeqCst);
}

/// The number of calls to them.
pub(crate) fn told() -> u64 {
    TOLD.load(Ordering::Relaxed)
}

#[derive(Clone, Copy)]
struct Panicking;

impl Panicking {
    fn told(self) {
        TOLD.fetch_add(1, Ordering::Relaxed);
        if PANICS.load(Ordering::SeqCst) {
            // Like a panic, but without a message on the terminal.
            std::panic::resume_unwind(Box::new("a listener panicked"));
        }
    }
}

impl Subscriber for Panicking {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.told();
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.told();
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.told();
    }

    // A future with a span also enters it when it is dropped, possibly during a panic.
    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl CounterFn for Panicking {
    fn increment(&self, _: u64) {
        self.told();
    }

    fn absolute(&self, _: u64) {
        self.told();
    }
}

impl GaugeFn for Panicking {
    fn increment(&self, _: f64) {
        self.told();
    }

    fn decrement(&self, _: f64) {
        self.told();
    }

    fn set(&self, _: f64) {
        self.told();
    }
}

impl HistogramFn for Panicking {
    fn record(&self, _: f64) {
        self.told();
    }
}

impl Recorder for Panicking {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &metrics::Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Panicking))
    }

    fn register_gauge(&self, _: &Key, _: &metrics::Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Panicking))
    }

    fn register_histogram(&self, _: &Key, _: &metrics::Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Panicking))
    }
}

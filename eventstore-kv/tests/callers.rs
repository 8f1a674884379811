//! What callers bring with them stops nobody: recorders that panic, listeners that hold the store.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventstore_api::{Context, Error, Event, EventStore, EventStoreExt, Expected, Progress};
use eventstore_kv::{MemoryStore, StoreOptions, memory};
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};

/// Panics wherever this metric is told, and when the store is fenced.
struct Broken(&'static str);

/// A metric that panics.
struct Panics;

impl HistogramFn for Panics {
    fn record(&self, _: f64) {
        panic!("this recorder panics, as the test wants it to");
    }
}

impl GaugeFn for Panics {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        assert_eq!(value, 0.0, "this recorder panics, as the test wants it to");
    }
}

impl Recorder for Broken {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Panics))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        if key.name() == self.0 { Histogram::from_arc(Arc::new(Panics)) } else { Histogram::noop() }
    }
}

fn event() -> Event {
    Event::builder("Tested", "a").id("1").build().expect("valid")
}

#[tokio::test]
async fn a_recorder_that_panics_fences_and_the_store_still_closes() {
    let recorder = Broken("eventstore_queue_seconds"); // told by the writer, about what it has taken
    let store = with_local_recorder(&recorder, || memory::open(StoreOptions::default())).expect("opened");
    let ctx = Context::background();
    let first = store.store(&ctx, event(), Expected::Any).await;
    assert!(matches!(first, Err(Error::OutcomeUnknown { .. })), "{first:?}");
    let second = store.store(&ctx, event(), Expected::Any).await;
    assert!(matches!(second, Err(Error::Fenced { .. })), "{second:?}");
    let closed = tokio::time::timeout(Duration::from_secs(30), store.close()).await;
    closed.expect("whoever closes is woken").expect("nothing was owed");
}

#[tokio::test]
async fn a_recorder_that_panics_behind_a_commit_stops_nobody() {
    let recorder = Broken("eventstore_commit_seconds"); // told before the callers are answered
    let store = with_local_recorder(&recorder, || memory::open(StoreOptions::default())).expect("opened");
    // Those who append at once are committed on another thread than the one who appends alone.
    for round in 0..10 {
        let appends: Vec<_> = (0..5)
            .map(|n| {
                let store = store.clone();
                let event = Event::builder("Tested", "a").id(format!("{round}-{n}")).build().expect("valid");
                tokio::spawn(async move { store.store(&Context::background(), event, Expected::Any).await })
            })
            .collect();
        for append in appends {
            append.await.expect("no panic here").expect("it is committed, whoever listens");
        }
    }
    store.close().await.expect("closed");
}

/// The last handle of a store, and then the end of a channel.
struct Last {
    _store: MemoryStore,
    _is_gone: std::sync::mpsc::Sender<()>,
}

#[test]
fn a_listener_may_hold_the_last_handle() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = memory::open(StoreOptions::default()).expect("opened");
    runtime.block_on(store.store(&Context::background(), event(), Expected::Any)).expect("stored");
    let (is_gone, gone) = channel();
    let (begun, begins) = channel();
    let (go_on, goes_on) = channel::<()>();
    let last = Last { _store: store.clone(), _is_gone: is_gone };
    let goes_on = Mutex::new(goes_on);
    let ctx = Context::background().with_progress(Progress::new(move |_, _| {
        let _last = &last;
        let _ = begun.send(());
        let _ = goes_on.lock().expect("not poisoned").recv(); // until the other end is dropped
    }));
    let verifying = runtime.spawn(async move { store.verify(&ctx).await });
    begins.recv().expect("it tells how far it has come");
    verifying.abort();
    runtime.block_on(verifying).expect_err("its future is dropped, and with it all other handles");
    drop(go_on);
    let gone = gone.recv_timeout(Duration::from_secs(30));
    runtime.shutdown_background();
    assert_eq!(gone, Err(RecvTimeoutError::Disconnected), "the store waits for the read that waits for the store");
}

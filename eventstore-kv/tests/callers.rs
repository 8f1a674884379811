//! Faulty caller code stops nobody: recorders and subscribers that panic, listeners that hold the store.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventstore_api::{Context, Error, Event, EventStore, EventStoreExt, Expected, Gc, Progress, Version};
use eventstore_kv::{MemoryStore, StoreOptions, memory};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use tokio::runtime::Handle;
use tracing::span;

const MESSAGE: &str = "it panics, as the test wants it to";

/// Panics on every call, except for the values of a store that opens.
struct Panics;

impl Panics {
    fn now(&self) {
        panic!("{MESSAGE}");
    }
}

impl CounterFn for Panics {
    fn increment(&self, _: u64) {
        self.now();
    }

    fn absolute(&self, _: u64) {
        self.now();
    }
}

impl HistogramFn for Panics {
    fn record(&self, _: f64) {
        self.now();
    }
}

impl GaugeFn for Panics {
    fn increment(&self, _: f64) {
        self.now();
    }

    fn decrement(&self, _: f64) {
        self.now();
    }

    fn set(&self, value: f64) {
        if value > 0.0 {
            self.now();
        }
    }
}

impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Panics))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Panics))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Panics))
    }
}

impl tracing::Subscriber for Panics {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        self.now();
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {
        self.now();
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.now();
    }

    fn enter(&self, _: &span::Id) {
        self.now();
    }

    fn exit(&self, _: &span::Id) {}
}

fn event() -> Event {
    Event::builder("Tested", "a").id("1").build().expect("valid")
}

#[tokio::test]
async fn recorders_and_subscribers_that_panic_stop_nobody() {
    tracing::subscriber::set_global_default(Panics).expect("the only one");
    let tell_others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // There are hundreds of panics.
        if panic.payload_as_str() != Some(MESSAGE) {
            tell_others(panic);
        }
    }));
    let store = with_local_recorder(&Panics, || memory::open(StoreOptions::default())).expect("opened");
    let ctx = Context::background();
    store.store(&ctx, event(), Expected::Any).await.expect("stored");
    // Concurrent appends are committed on another thread than a single one.
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
    assert_eq!(store.load(&ctx, Version::ZERO).into_vec().await.expect("read").len(), 51);
    store.get(&ctx, "1").await.expect("read");
    assert!(store.verify(&ctx).await.expect("verified").is_clean());
    store.run_gc(&ctx, Gc::Quick).await.expect("collected");
    assert_eq!(store.stats(&ctx).await.expect("counted").fenced, None);
    store.close().await.expect("closed");
}

#[test]
fn a_listener_may_read_the_store_and_close_it() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = memory::open(StoreOptions::default()).expect("opened");
    let ctx = Context::background();
    runtime.block_on(store.store(&ctx, event(), Expected::Any)).expect("stored");
    let (heard, hears) = channel();
    let (listening, heard) = (store.clone(), Mutex::new(heard));
    let listener = Progress::new(move |_, _| {
        let ctx = Context::background();
        let read = Handle::current().block_on(listening.get(&ctx, "1")).map(drop);
        let closed = Handle::current().block_on(listening.close());
        let _ = heard.lock().expect("not poisoned").send((read, closed));
    });
    let verifying = runtime.spawn({
        let store = store.clone();
        async move { store.verify(&ctx.with_progress(listener)).await }
    });
    let (read, closed) = hears.recv_timeout(Duration::from_secs(30)).expect("the listener comes to its end");
    read.expect("it is there");
    assert!(matches!(closed, Err(Error::Engine { .. })), "it would wait for itself: {closed:?}");
    let verified = runtime.block_on(verifying).expect("no panic");
    assert!(matches!(verified, Ok(_) | Err(Error::Closed)), "{verified:?}");
    runtime.block_on(store.close()).expect("closed");
}

#[test]
fn a_listener_may_drop_the_last_handle() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = memory::open(StoreOptions::default()).expect("opened");
    let ctx = Context::background();
    runtime.block_on(store.store(&ctx, event(), Expected::Any)).expect("stored");
    let (last, (dropped, drops)) = (Mutex::new(Some(store.clone())), channel());
    let (begun, begins) = channel();
    let (go_on, goes_on) = channel::<()>();
    let (goes_on, dropped) = (Mutex::new(goes_on), Mutex::new(dropped));
    let listener = Progress::new(move |_, _| {
        let _ = begun.send(());
        let _ = goes_on.lock().expect("not poisoned").recv(); // until the other end is dropped
        drop(last.lock().expect("not poisoned").take());
        let _ = dropped.lock().expect("not poisoned").send(());
    });
    let verifying = runtime.spawn(async move { store.verify(&ctx.with_progress(listener)).await });
    begins.recv().expect("it tells how far it has come");
    verifying.abort();
    runtime.block_on(verifying).expect_err("its future is dropped, and with it all other handles");
    drop(go_on);
    let dropped = drops.recv_timeout(Duration::from_secs(30));
    runtime.shutdown_background();
    dropped.expect("the listener waits for the work that it is told of");
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

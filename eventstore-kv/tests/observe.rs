//! The metrics and logs of a store.

use std::sync::{Arc, Mutex};

use eventstore_api::{Batch, Context, Event, EventStore, EventStoreExt, Expected, Gc, Version};
use eventstore_kv::{StoreOptions, memory};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// Every recorded value, as `name{label=value,…}=value`.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(String, f64)>>>);

struct Metric {
    name: String,
    told: Told,
}

impl Metric {
    fn tell(&self, value: f64) {
        self.told.0.lock().expect("not poisoned").push((self.name.clone(), value));
    }
}

impl CounterFn for Metric {
    fn increment(&self, value: u64) {
        self.tell(value as f64);
    }

    fn absolute(&self, value: u64) {
        self.tell(value as f64);
    }
}

impl GaugeFn for Metric {
    fn increment(&self, value: f64) {
        self.tell(value);
    }

    fn decrement(&self, value: f64) {
        self.tell(-value);
    }

    fn set(&self, value: f64) {
        self.tell(value);
    }
}

impl HistogramFn for Metric {
    fn record(&self, value: f64) {
        self.tell(value);
    }
}

impl Told {
    fn metric(&self, key: &Key) -> Arc<Metric> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Metric { name: format!("{}{{{}}}", key.name(), labels.join(",")), told: self.clone() })
    }

    /// The sum of the values of a metric, and their number.
    fn sum(&self, name: &str) -> (f64, usize) {
        let told = self.0.lock().expect("not poisoned");
        let values: Vec<_> = told.iter().filter(|(told, _)| told == name).map(|(_, value)| *value).collect();
        (values.iter().sum(), values.len())
    }
}

impl Recorder for Told {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.metric(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.metric(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.metric(key))
    }
}

#[tokio::test]
async fn every_metric_of_the_documentation_is_told() {
    let told = Told::default();
    metrics::set_global_recorder(told.clone()).unwrap_or_else(|_| panic!("another recorder is installed"));
    let mut options = StoreOptions::default();
    options.metrics_label = "orders".to_owned();
    let store = memory::open(options).expect("opened");
    let ctx = Context::background();
    let event = |id: &str| Event::builder("Tested", "a").id(id).build().expect("valid");
    store.store_batch(&ctx, Batch::new(vec![event("1"), event("2")])).await.expect("stored");
    store.store(&ctx, event("1"), Expected::Any).await.expect("stored before");
    store.store(&ctx, event("3"), Expected::NoEvents).await.expect_err("a conflict");
    store.load(&ctx, Version::ZERO).into_vec().await.expect("loaded");
    store.run_gc(&ctx, Gc::Quick).await.expect("collected");

    let backend = "backend=memory,store=orders";
    for outcome in ["written", "already_stored", "version_conflict"] {
        assert_eq!(told.sum(&format!("eventstore_appends_total{{{backend},outcome={outcome}}}")), (1.0, 1));
    }
    let sum = |name: &str| told.sum(&format!("{name}{{{backend}}}"));
    assert_eq!(sum("eventstore_append_seconds").1, 3);
    assert_eq!(sum("eventstore_queue_seconds").1, 3);
    assert_eq!(sum("eventstore_commit_seconds").1, 1);
    assert_eq!(sum("eventstore_group_events"), (2.0, 1));
    assert!(sum("eventstore_group_bytes").0 > 60.0);
    assert_eq!(sum("eventstore_events_written_total"), (2.0, 1));
    assert_eq!(sum("eventstore_latest_version"), (2.0, 2), "once when it was opened, and once when it was appended to");
    assert_eq!(sum("eventstore_fenced"), (0.0, 1));
    assert_eq!(sum("eventstore_events_read_total"), (2.0, 1));
    assert_eq!(sum("eventstore_page_seconds").1, 1);
    let gc = format!("eventstore_maintenance_seconds{{{backend},operation=gc,outcome=done}}");
    assert_eq!(told.sum(&gc).1, 1);

    let document = include_str!("../../docs/metrics.md");
    for (name, _) in told.0.lock().expect("not poisoned").iter() {
        let name = name.split('{').next().expect("a name");
        assert!(document.contains(&format!("| `{name}` |")), "{name} is documented");
    }
}

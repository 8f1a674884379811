//! Logs and metrics of stores from opening on, with several stores in one process.

#![cfg(feature = "lmdb")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use eventstore::backend::{Context, Event, EventStore, EventStoreExt, Expected, Version};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tempfile::TempDir;

/// The process's metrics recorder and its log.
struct Observed {
    metrics: PrometheusHandle,
    log: Log,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn observed() -> &'static Observed {
    static OBSERVED: OnceLock<Observed> = OnceLock::new();
    OBSERVED.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        Observed { metrics: PrometheusBuilder::new().install_recorder().unwrap(), log }
    })
}

impl Observed {
    /// The value of a metric of a store.
    fn metric(&self, name: &str, store: &str) -> Option<f64> {
        let labels = format!("{name}{{backend=\"lmdb\",store=\"{store}\"}} ");
        self.metrics.render().lines().find_map(|line| line.strip_prefix(&labels)?.parse().ok())
    }

    /// The lines of the log that mention a directory.
    fn lines_of(&self, path: &Path) -> Vec<String> {
        let log = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
        let path = format!("path={} ", path.display());
        log.lines().filter(|line| line.contains(&path)).map(str::to_owned).collect()
    }
}

fn ctx() -> Context {
    Context::background()
}

async fn open(path: &Path) -> Arc<dyn EventStore> {
    eventstore::backend::open(&format!("lmdb:{}", path.display())).await.unwrap()
}

async fn append(store: &Arc<dyn EventStore>, events: u64) {
    for n in 0..events {
        let event = Event::builder("Tested", "a").data(format!("payload-{n}")).build().unwrap();
        store.store(&ctx(), event, Expected::Any).await.unwrap();
    }
}

#[tokio::test]
async fn the_newest_version_is_told_when_a_store_is_opened() {
    let observed = observed();
    let directory = TempDir::new().unwrap();
    for name in ["orders", "payments"] {
        let store = open(&directory.path().join(name)).await;
        assert_eq!(observed.metric("eventstore_latest_version", name), Some(0.0));
        append(&store, if name == "orders" { 3 } else { 5 }).await;
        store.close().await.unwrap();
    }
    let [orders, payments] = ["orders", "payments"].map(|name| directory.path().join(name));
    let mut options = eventstore::lmdb::Options::new(&orders);
    options.store.metrics_label = "shop".to_owned();
    let labelled = eventstore::lmdb::open(options).await.unwrap();
    let named = open(&payments).await;
    assert_eq!(observed.metric("eventstore_latest_version", "shop"), Some(3.0));
    assert_eq!(observed.metric("eventstore_latest_version", "payments"), Some(5.0));
    // A backup is opened briefly as a store of its own, but must not be observed as one.
    labelled.backup(&ctx(), &directory.path().join("backup-of-today")).await.unwrap();
    assert!(!observed.metrics.render().contains("backup-of-today"));
    drop(named);
}

#[tokio::test]
async fn a_store_that_is_fenced_from_its_opening_on_says_so() {
    let observed = observed();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("damaged");
    let store = open(&path).await;
    append(&store, 3).await;
    store.close().await.unwrap();
    let file = path.join("log/0000000001-0.seg");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|window| window == b"payload-1").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::remove_dir_all(path.join("index")).unwrap(); // so that opening reads the damaged event
    let store = open(&path).await;
    assert!(store.stats(&ctx()).await.unwrap().fenced.is_some());
    assert_eq!(observed.metric("eventstore_fenced", "damaged"), Some(1.0));
    assert_eq!(observed.metric("eventstore_latest_version", "damaged"), Some(3.0));
}

#[tokio::test]
async fn one_line_tells_of_an_opening_and_of_what_was_mended_for_it() {
    let observed = observed();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("logged");
    let store = open(&path).await;
    append(&store, 3).await;
    store.close().await.unwrap();
    fs::remove_dir_all(path.join("index")).unwrap();
    let store = open(&path).await;
    assert_eq!(store.latest_version(&ctx()).await.unwrap(), Version::new(3));
    let lines = observed.lines_of(&path);
    assert_eq!(lines.len(), 2, "{lines:?}");
    for words in [" INFO ", "opened the store", "backend=\"lmdb\"", "latest_version=0", "mended=\"\"", "took="] {
        assert!(lines[0].contains(words), "{words:?} is not in {}", lines[0]);
    }
    for words in ["latest_version=3", "mended=\"rebuilt the index of 3 events from the log\""] {
        assert!(lines[1].contains(words), "{words:?} is not in {}", lines[1]);
    }
}

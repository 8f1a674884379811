//! eventstore on each of its engines, called from a Tokio runtime with many threads.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use eventstore::backend::{Batch, Context, Event, EventStore, EventStoreExt, Expected, LoadOptions, PageSize, Version};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{Appended, Contestant, Scan, Store, Work, tasks};
use crate::events::Sample;

pub(super) fn all() -> [Contestant; 5] {
    [
        Contestant {
            name: "eventstore-lmdb",
            floor: Some("raw-lmdb"),
            open: |path| open("lmdb", path, ""),
            open_small: Some(|path| {
                open("lmdb", path, "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384")
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-rocksdb",
            floor: Some("raw-rocksdb"),
            open: |path| open("rocksdb", path, ""),
            open_small: Some(|path| {
                open(
                    "rocksdb",
                    path,
                    "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384&block_cache=8MiB",
                )
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-fjall",
            floor: Some("raw-fjall"),
            open: |path| open("fjall", path, ""),
            open_small: Some(|path| {
                open(
                    "fjall",
                    path,
                    "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384&block_cache=8MiB",
                )
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-sled",
            floor: Some("raw-sled"),
            by_default: false,
            open: |path| open("sled", path, ""),
            open_small: Some(|path| {
                open(
                    "sled",
                    path,
                    "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384&cache_capacity=8MiB",
                )
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-postgres",
            by_default: false,
            settings: "defaults, on the server that EVENTSTORE_POSTGRES_URL names; its sync is that server's, and bytes on disk are \
                       not measured",
            index: None,
            open: open_postgres,
            ..ANY
        },
    ]
}

/// A schema for each path, on a server that is there for the whole run and whose stores survive the process.
fn open_postgres(path: &Path) -> Result<Box<dyn Store>> {
    const SERVER: &str = "EVENTSTORE_POSTGRES_URL";
    let server = std::env::var(SERVER).with_context(|| format!("set {SERVER} to the URL of a PostgreSQL server"))?;
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    let runtime = Runtime::new()?;
    let mut options = eventstore::postgres::Options::from_url(&server)?;
    options.schema = format!("bench_peers_{:016x}", hasher.finish());
    let store = Arc::new(runtime.block_on(eventstore::postgres::open(options))?);
    Ok(Box::new(Embedded { store, runtime }))
}

/// What all engines have in common below the store.
const ANY: Contestant = Contestant {
    name: "",
    guarantees: "durable when acknowledged; atomic batches; unique ids, repeatable appends; versions and revisions without \
                 gaps; conditions; checksums; fail-stop",
    lacks: "no tags: an event is of one aggregate, a condition about one aggregate or the whole store",
    settings: "defaults; appends that wait share a commit. Small caches: `log_cache`, `aggregate_cache` and `revision_cache` of 1 MiB, and 8 MiB of the engine's cache, \
               which LMDB has not; `id_filter` remains at 16 MiB",
    floor: None,
    by_default: true,
    index: Some("store/index"),
    open: |_| Err(anyhow::anyhow!("it has an engine to be opened with")),
    open_small: None,
};

struct Embedded {
    store: Arc<dyn EventStore>,
    runtime: Runtime,
}

fn open(scheme: &str, path: &Path, options: &str) -> Result<Box<dyn Store>> {
    let runtime = Runtime::new()?;
    let url = format!("{scheme}:{}{options}", path.join("store").display());
    let store = runtime.block_on(eventstore::backend::open(&url))?;
    Ok(Box::new(Embedded { store, runtime }))
}

impl Store for Embedded {
    fn append(&self, work: Work) -> Result<Appended> {
        let store = self.store.clone();
        tasks::append(
            &self.runtime,
            work,
            |events| Ok(Batch::new(events)),
            move |batch| append_batch(store.clone(), batch),
        )
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        self.runtime.block_on(async {
            match how {
                Scan::Pages => self.scan_pages().await,
                Scan::Stream => self.scan_stream().await,
            }
        })
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        self.runtime.block_on(async {
            let mut count = 0;
            for aggregate in aggregates {
                let events = self.store.load_by_aggregate(&Context::background(), aggregate, Version::ZERO);
                count += black_box(events.into_vec().await?).len() as u64;
            }
            Ok(count)
        })
    }

    fn get(&self, wanted: &[Sample]) -> Result<()> {
        self.runtime.block_on(async {
            for sample in wanted {
                let found = self.store.get(&Context::background(), &sample.id).await?;
                sample.check(found.event.data())?;
            }
            Ok(())
        })
    }

    fn follow(&self, events: Vec<Event>) -> Result<Vec<f64>> {
        self.runtime.block_on(async {
            let ctx = Context::background();
            let mut subscription = self.store.subscribe(&ctx, self.store.latest_version(&ctx).await?);
            let (woken, mut wakings) = mpsc::channel(1);
            let subscriber = tokio::spawn(async move {
                while let Some(event) = subscription.next().await {
                    let now = Instant::now();
                    if woken.send((event.map(|event| event.version), now)).await.is_err() {
                        break;
                    }
                }
            });
            let mut waits = Vec::with_capacity(events.len());
            for event in events {
                let stored = self.store.store(&ctx, event, Expected::Any).await?;
                let acknowledged = Instant::now();
                let (version, woken) = wakings.recv().await.context("the subscription ended")?;
                ensure!(version? == stored.version, "the subscriber got another event");
                let late = woken.saturating_duration_since(acknowledged).as_secs_f64();
                let early = acknowledged.saturating_duration_since(woken).as_secs_f64();
                waits.push((late - early) * 1e6);
            }
            subscriber.abort();
            Ok(waits)
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.store.close())?)
    }
}

async fn append_batch(store: Arc<dyn EventStore>, batch: Batch) -> Result<()> {
    let mut last = Version::ZERO;
    for stored in store.store_batch(&Context::background(), batch).await? {
        ensure!(stored.version > last, "the version {} is not after {last}", stored.version);
        last = stored.version;
    }
    Ok(())
}

impl Embedded {
    async fn scan_pages(&self) -> Result<u64> {
        let mut count = 0;
        let mut next = Some(LoadOptions::all());
        while let Some(options) = next {
            let page = self.store.load_page(&Context::background(), &options, PageSize::LARGEST).await?;
            count += black_box(&page.events).len() as u64;
            next = page.next;
        }
        Ok(count)
    }

    async fn scan_stream(&self) -> Result<u64> {
        let mut count = 0;
        let mut events = self.store.load(&Context::background(), Version::ZERO);
        while let Some(event) = events.next().await {
            black_box(event?);
            count += 1;
        }
        Ok(count)
    }
}

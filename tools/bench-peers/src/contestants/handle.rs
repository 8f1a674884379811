//! eventstore's own interface, called from a Tokio runtime with many threads.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use eventstore::backend::{Batch, Context, Event, EventStore, EventStoreExt, Expected, LoadOptions, PageSize, Version};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{Appended, Contestant, Scan, Store, Work, tasks};
use crate::events::Sample;

/// What does not depend on the engine.
pub(super) const ANY: Contestant = Contestant {
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

pub(super) struct Handle {
    pub(super) store: Arc<dyn EventStore>,
    pub(super) runtime: Runtime,
}

impl Store for Handle {
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
        let store = self.store.clone();
        tasks::run(&self.runtime, async move {
            match how {
                Scan::Pages => scan_pages(&store).await,
                Scan::Stream => scan_stream(&store).await,
            }
        })
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let (store, aggregates) = (self.store.clone(), aggregates.to_vec());
        tasks::run(&self.runtime, async move {
            let mut count = 0;
            for aggregate in &aggregates {
                let events = store.load_by_aggregate(&Context::background(), aggregate, Version::ZERO);
                count += black_box(events.into_vec().await?).len() as u64;
            }
            Ok(count)
        })
    }

    fn get(&self, wanted: &Arc<[Sample]>) -> Result<()> {
        let (store, wanted) = (self.store.clone(), wanted.clone());
        tasks::run(&self.runtime, async move {
            for sample in &*wanted {
                let found = store.get(&Context::background(), &sample.id).await?;
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

async fn scan_pages(store: &Arc<dyn EventStore>) -> Result<u64> {
    let mut count = 0;
    let mut next = Some(LoadOptions::all());
    while let Some(options) = next {
        let page = store.load_page(&Context::background(), &options, PageSize::LARGEST).await?;
        count += black_box(&page.events).len() as u64;
        next = page.next;
    }
    Ok(count)
}

async fn scan_stream(store: &Arc<dyn EventStore>) -> Result<u64> {
    let mut count = 0;
    let mut events = store.load(&Context::background(), Version::ZERO);
    while let Some(event) = events.next().await {
        black_box(event?);
        count += 1;
    }
    Ok(count)
}

//! The confirmed events of a replica, as a read-only store.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use eventstore::backend::EventStore;
use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, Error, Gc, GcReport, LoadOptions, Page,
    PageSize, Place, Pushed, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport, Version,
};

use crate::worker::State;

/// The visible confirmed events. Events that are staged after them are hidden.
pub(crate) struct Confirmed(pub(crate) Arc<State>);

impl fmt::Debug for Confirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirmed")
    }
}

impl Confirmed {
    fn now(&self) -> (Arc<dyn EventStore>, Version) {
        let machine = self.0.machine();
        (self.0.confirmed(), machine.published())
    }

    fn is_staging(&self) -> bool {
        self.0.machine().is_staging()
    }
}

/// The upper bound of a read: that of the caller, or the end of the visible events.
fn bounded(before: Option<Version>, published: Version) -> Version {
    before.map_or(published.next(), |before| before.min(published.next()))
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported { what: format!("{what} through the confirmed events of a replica; use the replica") })
}

#[async_trait]
impl EventStore for Confirmed {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        ctx.check()?;
        if batch.events.is_empty() { Ok(Vec::new()) } else { unsupported("an append") }
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        let (store, published) = self.now();
        let mut options = options.clone();
        options.before = Some(bounded(options.before, published));
        let mut page = store.load_page(ctx, &options, size).await?;
        page.head = page.head.min(published);
        Ok(page)
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        let (store, published) = self.now();
        let found = store.get(ctx, id).await?;
        if found.version <= published { Ok(found) } else { Err(Error::EventNotFound { id: id.to_owned() }) }
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        ctx.check()?;
        Ok(self.now().1)
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        if !self.is_staging() {
            return self.now().0.aggregate_revision(ctx, aggregate_id).await;
        }
        let newest = LoadOptions::all().aggregate(aggregate_id).backward().limit(1);
        let page = self.load_page(ctx, &newest, PageSize::new(1, 1)).await?;
        Ok(page.events.first().map_or(Revision::ZERO, |newest| newest.revision))
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        let (store, published) = self.now();
        let mut options = options.clone();
        options.before = Some(bounded(options.before, published));
        let mut page = store.list_aggregates(ctx, &options, most).await?;
        page.head = page.head.min(published);
        Ok(page)
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        let mut changes = self.0.changes();
        let waiting = async {
            loop {
                let published = self.now().1;
                if published > after {
                    return Ok(published);
                }
                if self.0.has_ended() || changes.changed().await.is_err() {
                    return Err(Error::Closed);
                }
            }
        };
        ctx.run(waiting).await?
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.now().0.run_gc(ctx, gc).await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        if self.is_staging() {
            return unsupported("a backup while events are pulled");
        }
        self.now().0.backup(ctx, target).await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.now().0.verify(ctx).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        let (store, published) = self.now();
        store.digest(ctx, until.min(published)).await
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        self.latest_version(ctx).await // events are synced before they are shown
    }

    async fn push(&self, _: &Context, _: Place, _: Vec<Batch>) -> Result<Pushed> {
        unsupported("a push")
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.now().0.stats(ctx).await
    }

    /// Does nothing: the replica is closed by its own handle.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

//! One store, opened by several processes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, EventStore, Gc, GcReport, LoadOptions, Page,
    PageSize, Place, Pulled, Pushed, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport, Version,
    async_trait,
};
use futures_util::future::try_join_all;

/// Each call goes to the next of the stores, so that a caller sees through one store what it did through another.
#[derive(Debug)]
pub(crate) struct Several {
    pub(crate) stores: Vec<Arc<dyn EventStore>>,
    pub(crate) next: AtomicUsize,
}

impl Several {
    fn next(&self) -> &Arc<dyn EventStore> {
        &self.stores[self.next.fetch_add(1, Ordering::Relaxed) % self.stores.len()]
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl EventStore for Several {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.next().store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.next().load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.next().get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.next().latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.next().aggregate_revision(ctx, aggregate_id).await
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        self.next().list_aggregates(ctx, options, most).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.next().wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.next().run_gc(ctx, gc).await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        self.next().backup(ctx, target).await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.next().verify(ctx).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.next().digest(ctx, until).await
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        self.next().sync(ctx).await
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        self.next().pull(ctx, since, size).await
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        self.next().push(ctx, at, batches).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.next().stats(ctx).await
    }

    async fn close(&self) -> Result<()> {
        try_join_all(self.stores.iter().map(|store| store.close())).await.map(drop)
    }
}

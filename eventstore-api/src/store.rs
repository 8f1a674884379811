use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::aggregates::list_by_reading;
use crate::replication;
use crate::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, Error, Gc, GcReport, LoadOptions, Page,
    PageSize, Place, Pulled, Pushed, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport, Version,
};

/// A durable, ordered, append-only store of events.
///
/// This trait is the contract: whatever implements it, on whatever engine, keeps the rules below, and the
/// `conformance` crate checks them by name. Programs use the handle `Store` of the crate `eventstore`. Code that takes any
/// store imports [`EventStoreExt`](crate::EventStoreExt), which adds `store`, `load`, `load_by_aggregate`, `subscribe` and
/// more on top of the few methods here.
///
/// # Contract
///
#[doc = include_str!("rules.md")]
///
/// # Not promised
///
/// Events cannot be changed or removed one by one. `recorded_at` is the system's clock, not an order. A condition is
/// about one aggregate or the whole store, not about several aggregates. Nothing is promised about the order of
/// appends that run at the same time, beyond that there is one.
///
/// # Concurrency
///
/// All methods may be called from any number of tasks and threads at once. Appends are serialized; reads never wait for
/// them.
///
/// # Cancellation
///
/// Every future may be dropped at any time. For reads nothing remains; for appends C4 says what does. An append's future
/// that is kept and not polled keeps its place in the queue from others.
#[async_trait]
pub trait EventStore: fmt::Debug + Send + Sync + 'static {
    /// Appends the events of `batch`, all or none, and returns the place of each, in the batch's order.
    ///
    /// Rules O1 to O3, W1 to W6, C1 to C4.
    ///
    /// # Errors
    ///
    /// Certainly nothing was written: `InvalidEvent`, `VersionConflict`, `DuplicateEvent`, `Cancelled`,
    /// `DeadlineExceeded`, `Closed`, `Fenced`, `Full`. It may have been: `OutcomeUnknown`.
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>>;

    /// Reads one page of the events that `options` names. [`Page::next`] leads to the following one.
    ///
    /// This is the one way events are read; streams and subscriptions repeat it. Rules O4 to O9, C5. With filters one page may
    /// have to look at every event there is, and is not empty before it has: a store looks at the context meanwhile, and does
    /// not keep a thread of its caller's runtime from other tasks.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Corrupt`, `Engine`.
    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page>;

    /// The event with this id. An id that no event can have, such as an empty one, is just not found.
    ///
    /// # Errors
    ///
    /// `EventNotFound`, and those of [`load_page`](EventStore::load_page).
    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent>;

    /// The version of the newest event, [`Version::ZERO`] for an empty store. Rule O7.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`.
    async fn latest_version(&self, ctx: &Context) -> Result<Version>;

    /// The revision of the aggregate's newest event, which is also its number of events; [`Revision::ZERO`] if it has none.
    ///
    /// # Errors
    ///
    /// Those of [`load_page`](EventStore::load_page).
    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision>;

    /// Reads one page of the list of aggregates: at most `most` of those that `options` names, in the order of their ids' bytes.
    /// [`AggregatePage::next`] leads to the following page. 0 is taken as 1, and more than [`AggregatePage::MOST`] are of no use.
    ///
    /// Rules O5, O8, C5. A store whose index has the aggregates looks up each of those that it lists, and no other. This method,
    /// which is what a store does that does not implement it, reads every event of the aggregates with the prefix, for every
    /// page.
    ///
    /// # Errors
    ///
    /// Those of [`load_page`](EventStore::load_page).
    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        list_by_reading(self, ctx, options, most).await
    }

    /// Waits until the latest version is greater than `after`, and returns it; at once if it is already.
    ///
    /// # Errors
    ///
    /// `Cancelled` or `DeadlineExceeded` when the context ends first, `Closed` when the store is closed meanwhile.
    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version>;

    /// Gives space back where the engine can; [`Gc`] says how much it may do for that. What was done is in the report.
    ///
    /// Rule M4. [`Progress`](crate::Progress) counts in bytes or steps, as the engine does.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Engine`; `Unsupported` for a full one of an engine that has none.
    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport>;

    /// Writes a copy of the store, as it is now, to the directory `target`, while reads and appends go on. The copy is a
    /// store of the same engine and can be opened; to restore it, copy the directory.
    ///
    /// Rules M1, M2. [`Progress`](crate::Progress) counts in bytes or events, as the engine does.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`; `Open` if the target cannot be used; `Engine`, `Corrupt`.
    /// `Unsupported`, which is what this method does if a store does not implement it.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the backup as a cancelled context does.
    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let _ = (ctx, target);
        Err(Error::Unsupported {
            what: "this store does not support backups; copy its events to another store".to_owned(),
        })
    }

    /// Reads everything and names what is wrong: records that are damaged, gaps in versions and revisions, indexes that do
    /// not agree with the log in either direction.
    ///
    /// Rule M3. [`Progress`](crate::Progress) counts in entries.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`; `Engine` for what cannot be read for want of resources. What is wrong with
    /// the store is not an error but a finding. `Unsupported`, which is what this method does if a store does not implement it.
    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let _ = ctx;
        Err(Error::Unsupported { what: "this store cannot be verified; load all events to read them once".to_owned() })
    }

    /// The [`Digest`] of the events up to the version `until`; if that is beyond the newest event, of all there are.
    ///
    /// Rule M6. This method reads every event up to there, a page at a time, if a store does not implement it; one that keeps
    /// the digest of its newest event, or of some, reads less or nothing. [`Progress`](crate::Progress) counts in events.
    ///
    /// While writers write, the digest of all is that of a moment of the call. Ask for the one of a version that is there, such
    /// as [`latest_version`](EventStore::latest_version), to know what it is of.
    ///
    /// # Errors
    ///
    /// Those of [`load_page`](EventStore::load_page).
    ///
    /// # Cancellation
    ///
    /// Dropping the future stops the reading within one page.
    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        let mut digest = Digest::EMPTY;
        let (mut next, mut size) = (Some(LoadOptions::all().before(until.next())), PageSize::FIRST);
        let mut total = None;
        while let Some(options) = next {
            let page = self.load_page(ctx, &options, size).await?;
            digest = page.events.iter().fold(digest, Digest::chain);
            // The pages show the store as it was at the first one.
            let total = *total.get_or_insert(page.head.min(until).get());
            ctx.progress().report(page.events.last().map_or(total, |last| last.version.get()), total);
            (next, size) = (page.next, size.grown());
        }
        Ok(digest)
    }

    /// Syncs all that was appended before the call, and returns the version up to which the store is synced: that of the newest
    /// event, or a later one. Rules W4, R1.
    ///
    /// A store that does not implement it appends its newest event again, which syncs all before it.
    ///
    /// # Errors
    ///
    /// Those of [`store_batch`](EventStore::store_batch). `OutcomeUnknown` says that nobody knows what is synced.
    async fn sync(&self, ctx: &Context) -> Result<Version> {
        replication::sync_by_appending(self, ctx).await
    }

    /// For replicas: one page of the events behind the place `since`, of those that are synced. Rules R1, R2.
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if this store has another history at `since`, or ends before it; those of
    /// [`load_page`](EventStore::load_page) and [`sync`](EventStore::sync).
    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        replication::pull(self, ctx, since, size).await
    }

    /// For replicas: appends batches, one after the other, up to the first that is refused. Rules R2, R3.
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if this store has another history at `at`, or ends before it, with nothing written; those of
    /// [`digest`](EventStore::digest); `OutcomeUnknown` if what was stored could not be synced. That a batch is refused, or its outcome unknown, is not an error of the push but in
    /// [`Pushed::refused`].
    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        replication::push(self, ctx, at, batches).await
    }

    /// A snapshot of the store's state.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Engine`.
    async fn stats(&self, ctx: &Context) -> Result<Stats>;

    /// Ends the store's work and releases its files, for all handles. Rule L1.
    ///
    /// # Errors
    ///
    /// If the last sync fails, the error of that; the store is closed all the same.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the closing.
    async fn close(&self) -> Result<()>;
}

/// Every method forwards, so that a shared handle is a store; the lint finds one that is missing, default or not.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<T: EventStore + ?Sized> EventStore for Arc<T> {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        (**self).store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        (**self).load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        (**self).get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        (**self).latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        (**self).aggregate_revision(ctx, aggregate_id).await
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        (**self).list_aggregates(ctx, options, most).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        (**self).wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        (**self).run_gc(ctx, gc).await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        (**self).backup(ctx, target).await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        (**self).verify(ctx).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        (**self).digest(ctx, until).await
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        (**self).sync(ctx).await
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        (**self).pull(ctx, since, size).await
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        (**self).push(ctx, at, batches).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        (**self).stats(ctx).await
    }

    async fn close(&self) -> Result<()> {
        (**self).close().await
    }
}

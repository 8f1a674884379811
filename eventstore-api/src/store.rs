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
/// This trait is the contract: every implementation keeps the rules below, whatever its engine. The `conformance` crate
/// checks them by name. Programs use the handle `Store` of the crate `eventstore`. Code that accepts any store imports
/// [`EventStoreExt`](crate::EventStoreExt), which adds `store`, `load`, `load_by_aggregate`, `subscribe` and more to
/// the few methods here.
///
/// # Contract
///
#[doc = include_str!("rules.md")]
///
/// # Not promised
///
/// Single events cannot be changed or removed. `recorded_at` is the system's clock and defines no order. A condition
/// covers one aggregate or the whole store, not several aggregates. Concurrent appends get some total order; which one
/// is not promised.
///
/// # Concurrency
///
/// All methods may be called from any number of tasks and threads at once. Appends are serialized. Reads never wait for
/// appends.
///
/// # Cancellation
///
/// Every future may be dropped at any time. A dropped read leaves nothing behind; for appends, see rule C4. The future
/// of an append that is neither polled nor dropped keeps its place in the queue and blocks those behind it.
#[async_trait]
pub trait EventStore: fmt::Debug + Send + Sync + 'static {
    /// Appends the events of `batch`, all or none, and returns the position of each, in the batch's order.
    ///
    /// Rules O1 to O3, W1 to W6, C1 to C4.
    ///
    /// # Errors
    ///
    /// Certainly nothing was written: `InvalidEvent`, `VersionConflict`, `DuplicateEvent`, `Cancelled`,
    /// `DeadlineExceeded`, `Closed`, `Fenced`, `Full`. Outcome unknown: `OutcomeUnknown`.
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>>;

    /// Reads one page of the events that `options` selects. [`Page::next`] has the options for the following page.
    ///
    /// This is the only way to read events; streams and subscriptions repeat it. Rules O4 to O9, C5. With filters, one
    /// page may have to read every event of the store before it finds a match. Meanwhile a store checks the context,
    /// and does not block a thread of its caller's runtime.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Corrupt`, `Engine`.
    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page>;

    /// The event with this id. An id that no event can have, such as an empty one, is simply not found.
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

    /// Reads one page of the list of aggregates: at most `most` of those that `options` selects, in byte order of their
    /// ids. [`AggregatePage::next`] has the options for the following page. 0 counts as 1; at most
    /// [`AggregatePage::MOST`] are returned.
    ///
    /// Rules O5, O8, C5. A store that has the aggregates in its index reads only those that it lists. The default
    /// implementation reads every event of the aggregates with the prefix, for every page.
    ///
    /// # Errors
    ///
    /// Those of [`load_page`](EventStore::load_page).
    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        list_by_reading(self, ctx, options, most).await
    }

    /// Waits until the latest version is greater than `after`, and returns it. Returns at once if it already is.
    ///
    /// # Errors
    ///
    /// `Cancelled` or `DeadlineExceeded` if the context ends first, `Closed` if the store is closed meanwhile,
    /// `Unavailable` if the server of the store is away for too long.
    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version>;

    /// Frees disk space where the engine can. [`Gc`] says how much work it may do. The report lists what was done.
    ///
    /// Rule M4. [`Progress`](crate::Progress) counts in bytes or steps, depending on the engine.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Engine`; `Unsupported` for [`Gc::Full`] if the engine has none.
    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport>;

    /// Writes a copy of the store, as it is now, to the directory `target`, while reads and appends continue. The copy
    /// is a store of the same engine and can be opened. To restore it, copy the directory.
    ///
    /// Rules M1, M2. [`Progress`](crate::Progress) counts in bytes or events, depending on the engine.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`; `Open` if the target cannot be used; `Engine`, `Corrupt`. The default
    /// implementation returns `Unsupported`.
    ///
    /// # Cancellation
    ///
    /// Dropping the future stops the backup, like a cancelled context. One that was nearly done may still become complete.
    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let _ = (ctx, target);
        Err(Error::Unsupported {
            what: "this store does not support backups; copy its events to another store".to_owned(),
        })
    }

    /// Reads everything and reports what is wrong: damaged records, gaps in versions and revisions, and differences
    /// between the index and the log in either direction.
    ///
    /// Rule M3. [`Progress`](crate::Progress) counts in entries.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`; `Engine` if something cannot be read for lack of resources. Damage to
    /// the store is not an error but a finding. The default implementation returns `Unsupported`.
    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let _ = ctx;
        Err(Error::Unsupported { what: "this store cannot be verified; load all events to read them once".to_owned() })
    }

    /// The [`Digest`] of the events up to the version `until`, or of all events if `until` is beyond the newest one.
    ///
    /// Rule M6. The default implementation reads every event up to there, a page at a time. A store that keeps the
    /// digest of some events reads less or nothing. [`Progress`](crate::Progress) counts in events.
    ///
    /// While events are appended, the digest of all events is that of some moment during the call. To know which events
    /// it covers, pass an existing version, such as [`latest_version`](EventStore::latest_version).
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

    /// Syncs everything that was appended before the call, and returns the version up to which the store is synced:
    /// that of the newest event, or a later one. Rules W4, R1.
    ///
    /// The default implementation appends the newest event again, which syncs all before it.
    ///
    /// # Errors
    ///
    /// Those of [`store_batch`](EventStore::store_batch). After `OutcomeUnknown`, it is unknown what is synced.
    async fn sync(&self, ctx: &Context) -> Result<Version> {
        replication::sync_by_appending(self, ctx).await
    }

    /// For replicas: reads one page of the synced events after the place `since`. Rules R1, R2.
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if this store has another history at `since`, or ends before it; those of
    /// [`load_page`](EventStore::load_page) and [`sync`](EventStore::sync).
    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        replication::pull(self, ctx, since, size).await
    }

    /// For replicas: appends batches in order, up to the first that is refused. Rules R2, R3.
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if this store has another history at `at`, or ends before it; nothing was written.
    /// `OutcomeUnknown` if the stored batches could not be synced. Those of [`digest`](EventStore::digest). A refused
    /// batch, or one with an unknown outcome, is not an error of the push: see [`Pushed::refused`].
    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        replication::push(self, ctx, at, batches).await
    }

    /// A snapshot of the store's state.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Engine`.
    async fn stats(&self, ctx: &Context) -> Result<Stats>;

    /// Stops the store's work and releases its files, for all handles. Rule L1.
    ///
    /// # Errors
    ///
    /// The error of the last sync, if that fails. The store is closed all the same.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the closing.
    async fn close(&self) -> Result<()>;
}

/// Forwards every method, so that a shared handle is a store. The lint finds a missing method, even one with a default.
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

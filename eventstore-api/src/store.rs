use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    BackupReport, Batch, Context, Digest, Error, Gc, GcReport, LoadOptions, Page, PageSize, RecordedEvent, Result,
    Stats, Stored, VerifyReport, Version,
};

/// A durable, ordered, append-only store of events.
///
/// This trait is the contract: whatever implements it, on whatever engine, keeps the rules below, and the
/// `conformance` crate checks them by name. Callers usually hold an `Arc<dyn EventStore>` and import
/// [`EventStoreExt`](crate::EventStoreExt), which adds `store`, `load`, `load_by_aggregate`, `subscribe` and
/// `parse_version` on top of the few methods here.
///
/// # Contract
///
/// ## Order
///
/// - **O1** Versions are 1 to `latest_version` without a gap; none is ever reused, but for those of `Buffered` events that a
///   power cut took; they are the same after reopening.
///   *So a version is a complete cursor: what is behind it is known without asking.*
/// - **O2** The new events of a batch get consecutive versions in the batch's order.
/// - **O3** The revisions of an aggregate are 1 to n without a gap, in version order.
/// - **O4** `load` since a version gives exactly the events with a greater version, ascending.
/// - **O5** What one load shows is a prefix of the store: never event N + 1 without event N. It shows the store as of
///   its first page, and ends there even while writers write.
/// - **O6** A read that begins after an append returned sees what was appended.
/// - **O7** `latest_version` never goes back and equals the number of events.
/// - **O8** `load_by_aggregate` gives what `load` gives, filtered by the aggregate.
/// - **O9** Loads go forward and backward, with limits. Paging with the last version seen misses nothing and repeats
///   nothing while writers write.
///
/// ## Writing
///
/// - **W1** A batch is all or nothing: for readers, for errors, for crashes.
/// - **W2** An event whose id is stored with identical content (type, aggregate, data and metadata, byte for byte) is
///   not written again: the append returns the place of the first. So any append may be repeated. With other content it is
///   `DuplicateEvent`, found before any condition is checked. The same holds inside one batch. A condition is checked only
///   if something is left to write, against the store as it is then.
/// - **W3** A condition that does not hold is `VersionConflict`, which tells what was found, with nothing written. Of
///   any number of racing appends with the same condition on a revision or version, exactly one succeeds.
/// - **W4** An append with `Sync` returns only after a sync of its events; also when they had been appended with `Buffered`
///   before.
/// - **W5** Empty or over-long ids, over-size events and batches, and conditions that do not fit the batch are
///   `InvalidEvent` before anything is queued. The store stays usable.
/// - **W6** Data and metadata come back byte for byte.
/// - **W7** Times of recording that an append names come back, to the microsecond. Otherwise it is the time of the append, or
///   the nearest that can be recorded if the clock is outside of the years 1970 to 9999.
///
/// ## Context
///
/// - **C1** A context that has ended before the call: `Cancelled` or `DeadlineExceeded`, and nothing is written.
/// - **C2** One that ends while the append waits in the queue: the same errors, and certainly nothing is written.
/// - **C3** One that ends after the append was staged for a commit: `OutcomeUnknown`, at once. Appending the same
///   events again resolves it, by W2.
/// - **C4** A dropped future: before staging nothing is written; after it, all of the batch or nothing. It never leaks
///   a place in the queue and never stops the writer.
/// - **C5** A cancelled or dropped read stops its work within one page.
/// - **C6** No minimum of time left is demanded of a context.
///
/// ## Life
///
/// - **L1** `close` refuses new work with `Closed`, finishes what was accepted, may be called again, and when it
///   returns the store can be opened again. Dropping the last handle does the same.
/// - **L2** A second opening, from this or another process, is `Locked` and harms nothing.
/// - **L3** Opening is bounded work: it does not grow with the number of events, but for a few bytes of each file of a log.
///   After a kill, it reads some of the newest events. An index that is lost, or is not trusted any more, is made again from
///   all of them (sled's after every end that was not clean).
///
/// ## Faults
///
/// - **F1** After a failed write or sync of events the outcome is unknown and the writer is fenced: appends fail with `Fenced`
///   until the store is reopened; reads go on, if the disk allows it. An append that repeats one whose outcome is unknown is
///   `OutcomeUnknown` again, and one that repeats what is stored gets the first result: so `Fenced` means that no attempt has
///   written it. A failed sync is never retried, because the second one may succeed without having written anything. An
///   index that cannot be written fences nothing: appends go on until too many events are missing from it, and are `Full`
///   then.
/// - **F2** After a kill at any point: every event acknowledged with `Sync` is there, no batch is there in part, and
///   indexes agree with the log.
/// - **F3** Every record carries a checksum. A damaged one is `Corrupt`, never a wrong event and never a panic. A damaged index
///   is told of or made again, and never leads to a wrong event. An engine may believe its own pages, and says so (LMDB): then
///   opening checks those that it reads and `verify` all of them. Until `verify` has found them sound, a damaged one can hide
///   an event, or end the process that reads it.
/// - **F4** When the disk is full: a clear error, nothing acknowledged is lost, and appends succeed again when there is room, at
///   the latest after the store was reopened.
///
/// ## Following
///
/// - **S1** `subscribe` since a version gives every event after it once, in order: first those that are there, then
///   each new one, without a seam.
/// - **S2** A slow subscriber costs bounded memory and never blocks the writer.
///
/// ## Maintenance
///
/// - **M1** A backup that was taken while writers write is a store of its own with the first events of this one: all that
///   were there when it began, and no batch in part. It is synced when the call returns.
/// - **M2** A backup goes into a directory that is missing or empty, or, if the store can, into an earlier backup of the same
///   store, to which only travels what is new; another is refused and not touched. One that fails or is cancelled leaves
///   nothing that opens, or the earlier backup.
/// - **M3** `verify` reads every record and every index entry, and names what is wrong. It finds nothing in a sound store,
///   also while writers write.
/// - **M4** A garbage collection changes no event and stops when its context ends.
/// - **M5** `stats` tells the numbers of events and aggregates as they are.
/// - **M6** `digest` is of the events up to a version, chained one behind the other. Two stores have the same one exactly when
///   they have the same events up to there: content, order, versions and revisions, whatever their engines.
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
    /// This is the one way events are read; streams and subscriptions repeat it. Rules O4 to O9, C5.
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

    /// The revision of the aggregate's newest event, which is also its number of events; 0 if it has none.
    ///
    /// # Errors
    ///
    /// Those of [`load_page`](EventStore::load_page).
    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<u64>;

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
        Err(Error::Unsupported { what: "this store takes no backups; copy its events into another store".to_owned() })
    }

    /// Reads everything and names what is wrong: records that are damaged, gaps in versions and revisions, indexes that do
    /// not agree with the log in either direction.
    ///
    /// Rule M3. [`Progress`](crate::Progress) counts in entries.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`. What is wrong with the store is not an error but a finding. `Unsupported`,
    /// which is what this method does if a store does not implement it.
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

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<u64> {
        (**self).aggregate_revision(ctx, aggregate_id).await
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

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        (**self).stats(ctx).await
    }

    async fn close(&self) -> Result<()> {
        (**self).close().await
    }
}

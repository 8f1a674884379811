//! The reference store with one fault. This file has the faults of everything except appends and pages.

use std::collections::HashSet;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, Error, EventStore, Finding, Gc, GcReport,
    LoadOptions, Page, PageSize, Place, Progress, Pulled, Pushed, RecordedEvent, Result, Revision, Stats, Stored,
    VerifyReport, Version, async_trait,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, RwLock, RwLockWriteGuard, Semaphore};

use crate::fault::Fault;
use crate::reference_store::Reference;

/// The state shared by the stores of one suite.
#[derive(Debug, Default)]
pub(crate) struct Common {
    openings: AtomicU64,
    first: Mutex<Option<Reference>>,
    backups: Mutex<HashSet<PathBuf>>,
}

pub(crate) async fn open(directory: PathBuf, fault: Fault, common: Arc<Common>) -> Result<Arc<dyn EventStore>> {
    let number = common.openings.fetch_add(1, Ordering::Relaxed);
    let other = directory.join(number.to_string());
    let inner = match fault {
        Fault::ForgetsWhenReopened => Reference::open(&other)?,
        Fault::OpensTwice => Reference::open(&directory).or_else(|_| Reference::open(&other))?,
        Fault::OpensTwiceByAnotherName => Reference::open_as(&directory)?,
        Fault::SharesOneStore => {
            let first = lock(&common.first).clone();
            first.map_or_else(|| Reference::open(&directory), Ok)?
        }
        _ => Reference::open(&directory)?,
    };
    match fault {
        Fault::SharesOneStore => *lock(&common.first) = Some(inner.clone()),
        Fault::IsNeverDropped => std::mem::forget(inner.clone()),
        Fault::DroppedOpeningKeepsTheLock => {
            let kept = ManuallyDrop::new(inner.clone());
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            drop(ManuallyDrop::into_inner(kept));
        }
        _ => {}
    }
    if fault == Fault::EmptyStoreDoesNotOpenAgain && number > 0 && inner.latest() == Version::ZERO {
        return Err(Error::engine("open", "the file is empty"));
    }
    opened(&directory, inner, fault, common, number).await
}

/// Opens it read-only.
pub(crate) async fn open_read_only(
    directory: PathBuf,
    fault: Fault,
    common: Arc<Common>,
) -> Result<Arc<dyn EventStore>> {
    let number = common.openings.fetch_add(1, Ordering::Relaxed);
    let inner = match (fault, Reference::open_read_only(&directory)) {
        (Fault::HasOnlyRequiredMethods, _) => return Err(Error::Unsupported { what: "to read only".to_owned() }),
        (Fault::OneReaderAtATime, Ok(reader)) => {
            reader.close().await?;
            Reference::open(&directory)?
        }
        (Fault::ReadersAndWritersMeet, Err(Error::Locked { .. })) => Reference::open(&directory.join("beside"))?,
        (Fault::ReadingMakesTheStore, Err(Error::Open { .. })) => Reference::open(&directory)?,
        (_, opened) => opened?,
    };
    if fault == Fault::ReadingLeavesAFile {
        let left = std::fs::write(directory.join("read.lock"), "");
        left.map_err(|error| Error::engine("write a file", error))?;
    }
    opened(&directory, inner, fault, common, number).await
}

async fn opened(
    directory: &Path,
    inner: Reference,
    fault: Fault,
    common: Arc<Common>,
    number: u64,
) -> Result<Arc<dyn EventStore>> {
    let stats = inner.stats(&Context::background()).await?;
    let is_backup = lock(&common.backups).contains(directory);
    Ok(Arc::new(Mutant {
        inner,
        fault,
        common,
        number,
        is_backup,
        calls: AtomicU64::new(0),
        running: AtomicU64::new(0),
        durable: AtomicU64::new(stats.latest_version.get()),
        at_opening: stats.aggregates,
        latest_at_opening: stats.latest_version.get(),
        happened: AtomicBool::new(false),
        places: Semaphore::new(4),
        slots: Semaphore::new(126),
        waiting: RwLock::new(()),
        collected: Notify::new(),
        memory: Mutex::default(),
        home: Handle::current().runtime_flavor(),
    }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reference store with one fault.
#[derive(Debug)]
pub(crate) struct Mutant {
    pub(crate) inner: Reference,
    pub(crate) fault: Fault,
    common: Arc<Common>,
    /// The number of stores that the suite opened before.
    pub(crate) number: u64,
    /// Whether the directory is that of a backup.
    pub(crate) is_backup: bool,
    pub(crate) calls: AtomicU64,
    /// Running calls of the kind that the fault concerns.
    pub(crate) running: AtomicU64,
    /// The latest version that is certainly on disk.
    pub(crate) durable: AtomicU64,
    /// The number of aggregates when it was opened.
    at_opening: u64,
    pub(crate) latest_at_opening: u64,
    pub(crate) happened: AtomicBool,
    pub(crate) places: Semaphore,
    /// For readers.
    pub(crate) slots: Semaphore,
    pub(crate) waiting: RwLock<()>,
    collected: Notify,
    /// Names that the fault concerns.
    memory: Mutex<HashSet<String>>,
    /// The kind of runtime on which it was opened.
    home: RuntimeFlavor,
}

impl Drop for Mutant {
    fn drop(&mut self) {
        if self.has(Fault::BufferedIsLostWhenDropped) {
            self.inner.lose_after(Version::new(*self.durable.get_mut()));
        }
    }
}

impl Mutant {
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Whether any append is running.
    pub(crate) fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_at_home(&self) -> bool {
        Handle::current().runtime_flavor() == self.home
    }

    pub(crate) fn remember(&self, names: impl IntoIterator<Item = String>) {
        lock(&self.memory).extend(names);
    }

    pub(crate) fn remembers(&self, name: &str) -> bool {
        lock(&self.memory).contains(name)
    }

    pub(crate) fn forget(&self, names: &[String]) {
        lock(&self.memory).retain(|name| !names.contains(name));
    }

    /// Begins a call of a kind that must not run twice at the same time.
    fn alone(&self) -> Result<Call<'_>> {
        let others = self.running.fetch_add(1, Ordering::Relaxed);
        let alone = Call(&self.running);
        if others == 0 { Ok(alone) } else { Err(Error::engine("begin", "another one is under way")) }
    }

    /// True on every nth call.
    pub(crate) fn every(&self, calls: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % calls == calls - 1
    }

    pub(crate) fn context(&self, ctx: &Context) -> Result<Context> {
        let short = ctx.deadline().is_some_and(|deadline| deadline < Instant::now() + Duration::from_secs(1));
        match self.fault {
            Fault::IgnoresContext => Ok(Context::background()),
            Fault::DemandsASecond if short => Err(Error::DeadlineExceeded),
            _ => Ok(ctx.clone()),
        }
    }

    /// The lock to hold during work, if the fault is that the work blocks others.
    async fn held(&self, by: Fault) -> Option<RwLockWriteGuard<'_, ()>> {
        if self.has(by) { Some(self.waiting.write().await) } else { None }
    }

    /// The result of work that was ended.
    fn ended<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(ended @ (Error::Cancelled | Error::DeadlineExceeded)) if self.has(Fault::EndedIsAnEngineError) => {
                Err(Error::engine("go on", ended))
            }
            outcome => outcome,
        }
    }
}

/// Notes a panic that passes through.
struct NotesPanics<'store>(&'store Mutant);

/// What is noted about it.
pub(crate) const PANIC: &str = "a panic";

impl Drop for NotesPanics<'_> {
    fn drop(&mut self) {
        self.0.remember(std::thread::panicking().then(|| PANIC.to_owned()));
    }
}

/// A running call.
struct Call<'store>(&'store AtomicU64);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[deny(clippy::missing_trait_methods)] // including those with a default
#[async_trait]
impl EventStore for Mutant {
    // Written out, so that something can happen before the future is polled.
    fn store_batch<'store, 'ctx, 'both>(
        &'store self,
        ctx: &'ctx Context,
        batch: Batch,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<Stored>>> + Send + 'both>>
    where
        'store: 'both,
        'ctx: 'both,
        Self: 'both,
    {
        if self.has(Fault::WritesBeforePolled) {
            let stored = self.inner.append(batch);
            return Box::pin(async { stored });
        }
        Box::pin(self.append(ctx, batch))
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        if self.has(Fault::LongIdsAreInvalid) && id.len() > 254 {
            return Err(Error::invalid_event("id", "it is long"));
        }
        let _held = self.held(Fault::BackupHoldsReaders).await;
        let event = self.inner.get(&self.context(ctx)?, id).await?;
        if self.has(Fault::GetLagsBehind) && event.version == self.inner.latest_version(ctx).await? {
            return Err(Error::EventNotFound { id: id.to_owned() });
        }
        let is_newest = event.version == self.inner.latest_version(ctx).await?;
        if self.has(Fault::GetIsStaleBesideWriters) && self.is_busy() && is_newest {
            return Err(Error::EventNotFound { id: id.to_owned() });
        }
        Ok(event)
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        let latest = self.inner.latest_version(&self.context(ctx)?).await?;
        let back = u64::from(self.has(Fault::LatestGoesBack) && self.every(3));
        Ok(Version::new(latest.get().saturating_sub(back)))
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        let revision = self.inner.aggregate_revision(&self.context(ctx)?, aggregate_id).await?.get();
        let ahead = match self.fault {
            Fault::RevisionRunsAhead => self.is_busy(),
            Fault::RefusedMakesTheAggregate => revision == 0 && self.remembers(aggregate_id),
            _ => false,
        };
        Ok((revision + u64::from(ahead)).into())
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        self.list(ctx, options, most).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        let mut after = after;
        match self.fault {
            Fault::WaitEndsTooSoon => return Ok(after),
            Fault::WaitReturnsAtAnyAppend => after = after.min(self.inner.latest_version(ctx).await?),
            Fault::WaitForgetsWhatWasThere => after = after.max(Version::new(self.latest_at_opening)),
            Fault::WakesTooSoon => loop {
                let latest = self.inner.latest_version(ctx).await?;
                if latest > after || self.is_busy() {
                    return Ok(latest.max(after.next()));
                }
                tokio::task::yield_now().await;
            },
            Fault::GcEndsFollowers => {
                let ended = self.collected.notified();
                return tokio::select! {
                    reached = self.inner.wait_for_events(ctx, after) => reached,
                    () = ended => Err(Error::Closed),
                };
            }
            _ => {}
        }
        let others = self.running.fetch_add(1, Ordering::Relaxed);
        let waiting = Call(&self.running);
        if self.has(Fault::ManyWaitersAreTooMany) && others > 128 {
            return Err(Error::engine("wait", "too many wait already"));
        }
        if self.has(Fault::LeaksWaits)
            && let Ok(place) = self.places.acquire().await
        {
            place.forget();
        }
        let _blocking = match self.fault {
            Fault::WaitersBlockWriters => Some(self.waiting.read().await),
            _ => None,
        };
        let background = Context::background();
        let ctx = if self.has(Fault::WaitIgnoresContext) { &background } else { &self.context(ctx)? };
        let reached = self.inner.wait_for_events(ctx, after).await;
        drop(waiting);
        if self.has(Fault::LeaksWaits) {
            self.places.add_permits(1);
        }
        match (self.fault, reached) {
            (Fault::WaitMissesClose, Err(Error::Closed)) => std::future::pending().await,
            (_, reached) => reached,
        }
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        let happened = self.happened.swap(true, Ordering::Relaxed);
        if self.has(Fault::LeaksMaintenance) {
            if happened {
                return Err(Error::engine("collect garbage", "somebody else does already"));
            }
            let report = self.inner.run_gc(ctx, gc).await;
            self.happened.store(false, Ordering::Relaxed);
            return report;
        }
        let _alone = match self.fault {
            Fault::OneCollectionAtATime => Some(self.alone()?),
            _ => None,
        };
        match self.fault {
            Fault::GcIgnoresContext => return self.inner.run_gc(&Context::background(), gc).await,
            Fault::GcEndsFollowers => self.collected.notify_waiters(),
            Fault::GcWantsEvents if self.inner.latest_version(ctx).await? == Version::ZERO => {
                return Err(Error::engine("collect garbage", "there is none"));
            }
            _ => {}
        }
        self.ended(self.inner.run_gc(&self.context(ctx)?, gc).await)
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let ctx = &self.context(ctx)?;
        self.happened.store(true, Ordering::Relaxed);
        let latest = self.inner.latest_version(ctx).await?.get();
        let _alone = match self.fault {
            Fault::OneBackupAtATime => Some(self.alone()?),
            _ => None,
        };
        let _held = self.held(Fault::BackupHoldsReaders).await;
        let is_the_first = lock(&self.common.backups).insert(target.to_owned());
        match self.fault {
            Fault::BackupTellsNothing => {
                return self.inner.backup(&ctx.clone().with_progress(Progress::none()), target).await;
            }
            Fault::ClosingLeavesHalfABackup => {
                let outcome = self.inner.backup(ctx, target).await;
                if matches!(outcome, Err(Error::Closed)) {
                    self.inner.write_copy(target, latest / 2);
                }
                return outcome;
            }
            Fault::HasOnlyRequiredMethods => {
                return Err(Error::Unsupported { what: "backups".to_owned() });
            }
            Fault::BackupWantsEvents if latest == 0 => return Err(Error::invalid_event("backup", "it is empty")),
            Fault::BackupHalvesTheEarlier if !is_the_first => self.inner.write_copy(target, latest / 2),
            Fault::BackupLeavesHalf => self.inner.write_copy(target, latest / 2),
            Fault::BackupOverwrites => {
                self.inner.write_copy(target, latest);
                return Ok(BackupReport::default());
            }
            _ => {}
        }
        let mut report = self.ended(self.inner.backup(ctx, target).await)?;
        let missing = match self.fault {
            Fault::BackupLagsBehind => 1,
            Fault::BackupSplitsBatches if latest > 3 => 1,
            _ => return Ok(report),
        };
        report.latest_version = Version::new(report.latest_version.get().saturating_sub(missing));
        self.inner.write_copy(target, report.latest_version.get());
        Ok(report)
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let ctx = &self.context(ctx)?;
        if self.has(Fault::HasOnlyRequiredMethods) {
            return Err(Error::Unsupported { what: "verification".to_owned() });
        }
        let _held = self.held(Fault::VerifyHoldsWriters).await;
        let _noted = self.has(Fault::FencesAfterAPanic).then_some(NotesPanics(self));
        let before = self.inner.latest_version(ctx).await?;
        if self.has(Fault::VerifyTellsTooMuch) {
            let progress = ctx.progress().clone();
            let ctx = ctx.clone().with_progress(Progress::new(move |done, total| progress.report(done + total, total)));
            return self.inner.verify(&ctx).await;
        }
        let mut report = self.ended(self.inner.verify(ctx).await)?;
        if self.has(Fault::VerifyCountsTwice) {
            report.events *= 2;
        }
        if self.has(Fault::VerifyFindsWriters) && (self.is_busy() || self.inner.latest_version(ctx).await? > before) {
            report.findings.push(Finding::new(None, "an entry that leads beyond the newest event"));
        }
        Ok(report)
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.ended(self.digest_until(ctx, until).await)
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        self.synced(ctx).await
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        self.pulled(ctx, since, size).await
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        self.pushed(ctx, at, batches).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let mut stats = self.inner.stats(&self.context(ctx)?).await?;
        match self.fault {
            Fault::QueueCountsWhatWasDropped => stats.queued_requests = self.calls.load(Ordering::Relaxed),
            Fault::StatsCountAppends => stats.aggregates = self.calls.load(Ordering::Relaxed),
            Fault::StatsCountSinceOpening => stats.aggregates = stats.aggregates.saturating_sub(self.at_opening),
            _ => {}
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        match self.fault {
            Fault::CloseDoesNothing => return Ok(()),
            Fault::SecondCloseFails if self.happened.swap(true, Ordering::Relaxed) => return Err(Error::Closed),
            Fault::CloseStopsWhenDropped => {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            }
            _ => {}
        }
        self.inner.close().await
    }
}

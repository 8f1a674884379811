//! The reference store with one fault: here those of everything but appends and pages.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventstore_api::{
    BackupReport, Batch, Context, Error, EventStore, Finding, Gc, GcReport, LoadOptions, Page, PageSize, RecordedEvent,
    Result, Stats, Stored, VerifyReport, Version, async_trait,
};
use tokio::sync::{RwLock, Semaphore};

use crate::fault::Fault;
use crate::reference_store::Reference;

pub(crate) async fn open(directory: PathBuf, fault: Fault, opened: Arc<AtomicU64>) -> Result<Arc<dyn EventStore>> {
    let number = opened.fetch_add(1, Ordering::Relaxed).to_string();
    let inner = match fault {
        Fault::ForgetsWhenReopened => Reference::open(&directory.join(number))?,
        Fault::OpensTwice => Reference::open(&directory).or_else(|_| Reference::open(&directory.join(number)))?,
        _ => Reference::open(&directory)?,
    };
    let at_opening = inner.stats(&Context::background()).await?.aggregates;
    if fault == Fault::IsNeverDropped {
        std::mem::forget(inner.clone());
    }
    Ok(Arc::new(Mutant {
        inner,
        fault,
        calls: AtomicU64::new(0),
        at_opening,
        happened: AtomicBool::new(false),
        places: Semaphore::new(4),
        waiting: RwLock::new(()),
    }))
}

/// The reference store with one fault.
#[derive(Debug)]
pub(crate) struct Mutant {
    pub(crate) inner: Reference,
    pub(crate) fault: Fault,
    pub(crate) calls: AtomicU64,
    /// Aggregates that were there when it was opened.
    pub(crate) at_opening: u64,
    pub(crate) happened: AtomicBool,
    pub(crate) places: Semaphore,
    pub(crate) waiting: RwLock<()>,
}

impl Mutant {
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// True every so many calls.
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

    /// The outcome of work that was ended.
    fn ended<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(ended @ (Error::Cancelled | Error::DeadlineExceeded)) if self.has(Fault::EndedIsAnEngineError) => {
                Err(Error::engine("go on", ended))
            }
            outcome => outcome,
        }
    }
}

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
        let event = self.inner.get(&self.context(ctx)?, id).await?;
        if self.has(Fault::GetLagsBehind) && event.version == self.inner.latest_version(ctx).await? {
            return Err(Error::EventNotFound { id: id.to_owned() });
        }
        Ok(event)
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        let latest = self.inner.latest_version(&self.context(ctx)?).await?;
        let back = u64::from(self.has(Fault::LatestGoesBack) && self.every(3));
        Ok(Version::new(latest.get().saturating_sub(back)))
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<u64> {
        self.inner.aggregate_revision(&self.context(ctx)?, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        if self.has(Fault::WaitEndsTooSoon) {
            return Ok(after);
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
        if self.has(Fault::LeaksWaits) {
            self.places.add_permits(1);
        }
        match (self.fault, reached) {
            (Fault::WaitMissesClose, Err(Error::Closed)) => std::future::pending().await,
            (_, reached) => reached,
        }
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.happened.store(true, Ordering::Relaxed);
        if self.has(Fault::GcIgnoresContext) {
            return self.inner.run_gc(&Context::background(), gc).await;
        }
        self.ended(self.inner.run_gc(&self.context(ctx)?, gc).await)
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let ctx = &self.context(ctx)?;
        self.happened.store(true, Ordering::Relaxed);
        let latest = self.inner.latest_version(ctx).await?.get();
        match self.fault {
            Fault::HasOnlyRequiredMethods => {
                return Err(Error::Unsupported { what: "backups".to_owned() });
            }
            Fault::BackupWantsEvents if latest == 0 => return Err(Error::invalid_event("backup", "it is empty")),
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
        let before = self.inner.latest_version(ctx).await?;
        let mut report = self.ended(self.inner.verify(ctx).await)?;
        if self.has(Fault::VerifyCountsTwice) {
            report.events *= 2;
        }
        if self.has(Fault::VerifyFindsWriters) && self.inner.latest_version(ctx).await? > before {
            report.findings.push(Finding::new(None, "an entry that leads beyond the newest event"));
        }
        Ok(report)
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let mut stats = self.inner.stats(&self.context(ctx)?).await?;
        match self.fault {
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

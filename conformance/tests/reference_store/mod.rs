//! The simplest store that keeps the contract: a vector behind a lock. The suite is tested with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{
    Actual, BackupReport, Batch, Context, Direction, Error, Event, EventStore, Finding, Gc, GcReport, Idempotency,
    LoadOptions, Page, PageSize, RecordedEvent, Result, Revision, Stats, StoreOutcome, Stored, VerifyReport, Version,
    async_trait,
};
use tokio::sync::watch;

/// A disk as simple as the store.
pub(crate) static DISK: Mutex<Disk> =
    Mutex::new(Disk { logs: BTreeMap::new(), open: BTreeSet::new(), read: BTreeMap::new() });

/// By directory.
pub(crate) struct Disk {
    /// The content of closed stores.
    pub(crate) logs: BTreeMap<PathBuf, Log>,
    /// The stores that are open.
    pub(crate) open: BTreeSet<PathBuf>,
    /// The number of readers of a store that is open read-only.
    pub(crate) read: BTreeMap<PathBuf, usize>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The canonical name of a directory. A missing directory keeps its name.
pub(crate) fn place(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// A handle to the store; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Reference(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) path: PathBuf,
    /// The queue for writing.
    turn: tokio::sync::Mutex<()>,
    pub(crate) is_read_only: bool,
    pub(crate) log: Mutex<Log>,
    /// The latest version; `None` once the store is closed. It changes only while the log is locked.
    pub(crate) head: watch::Sender<Option<Version>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) events: Vec<RecordedEvent>,
    /// The position of each id in `events`.
    ids: HashMap<String, usize>,
    revisions: HashMap<String, u64>,
}

impl Reference {
    /// Opens the store in a directory, under any of its names.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_as(&place(path))
    }

    /// Opens the store under exactly this name.
    pub(crate) fn open_as(path: &Path) -> Result<Self> {
        let mut disk = lock(&DISK);
        if disk.read.contains_key(path) || !disk.open.insert(path.to_owned()) {
            return Err(Error::Locked { path: path.display().to_string() });
        }
        let log = disk.logs.get(path).cloned().unwrap_or_default();
        Ok(Self::of(path, log, false))
    }

    /// Opens the store in a directory read-only.
    #[allow(dead_code, reason = "not every test that has this store asks")]
    pub(crate) fn open_read_only(path: &Path) -> Result<Self> {
        let (path, mut disk) = (place(path), lock(&DISK));
        if disk.open.contains(&path) {
            return Err(Error::Locked { path: path.display().to_string() });
        }
        let Some(log) = disk.logs.get(&path).cloned() else {
            let path = path.display().to_string();
            return Err(Error::Open { path, reason: "there is no store".to_owned(), source: None });
        };
        *disk.read.entry(path.clone()).or_default() += 1;
        Ok(Self::of(&path, log, true))
    }

    fn of(path: &Path, log: Log, is_read_only: bool) -> Self {
        let head = watch::Sender::new(Some(log.latest()));
        let turn = tokio::sync::Mutex::default();
        Reference(Arc::new(Inner { path: path.to_owned(), turn, is_read_only, log: Mutex::new(log), head }))
    }

    /// The latest version, also of a closed store.
    #[allow(dead_code, reason = "not every test that has this store asks")]
    pub(crate) fn latest(&self) -> Version {
        lock(&self.0.log).latest()
    }

    /// Whether an event has this id.
    #[allow(dead_code, reason = "not every test that has this store asks")]
    pub(crate) fn has(&self, id: &str) -> bool {
        lock(&self.0.log).get(id).is_some()
    }

    /// Appends without a queue and without waiting.
    pub(crate) fn append(&self, batch: Batch) -> Result<Vec<Stored>> {
        let mut log = lock(&self.0.log);
        if self.0.head.borrow().is_none() {
            return Err(Error::Closed);
        }
        let stored = log.append(batch)?;
        self.0.head.send_replace(Some(log.latest()));
        Ok(stored)
    }

    /// Common to the beginning of every method.
    fn check(&self, ctx: &Context) -> Result<Version> {
        let head = self.0.head.borrow().ok_or(Error::Closed)?;
        ctx.check().map(|()| head)
    }

    fn may_write(&self) -> Result<()> {
        match self.0.is_read_only {
            true => Err(Error::Unsupported { what: "the store is only read".to_owned() }),
            false => Ok(()),
        }
    }

    /// Work that reports progress and can be ended. Returns the latest version when it was done.
    async fn take_a_while(&self, ctx: &Context) -> Result<Version> {
        for done in 0..10 {
            self.check(ctx)?;
            ctx.progress().report(done, 10);
            tokio::task::yield_now().await;
        }
        ctx.progress().report(10, 10);
        self.check(ctx)
    }

    fn read<T>(&self, ctx: &Context, read: impl FnOnce(&Log) -> T) -> Result<T> {
        self.check(ctx)?;
        Ok(read(&lock(&self.0.log)))
    }
}

impl Inner {
    pub(crate) fn close(&self) {
        let log = lock(&self.log);
        if self.head.send_replace(None).is_some() {
            let mut disk = lock(&DISK);
            if self.is_read_only {
                let others = disk.read.remove(&self.path).unwrap_or_default().saturating_sub(1);
                disk.read.extend((others > 0).then(|| (self.path.clone(), others)));
                return;
            }
            disk.logs.insert(self.path.clone(), log.clone());
            disk.open.remove(&self.path);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Log {
    fn latest(&self) -> Version {
        Version::new(self.events.len() as u64)
    }

    fn revision(&self, aggregate_id: &str) -> u64 {
        self.revisions.get(aggregate_id).copied().unwrap_or_default()
    }

    fn get(&self, id: &str) -> Option<&RecordedEvent> {
        self.ids.get(id).map(|&at| &self.events[at])
    }

    /// Compares all redundant data.
    fn verify(&self) -> VerifyReport {
        let mut report = VerifyReport::default();
        let mut revisions: HashMap<&str, u64> = HashMap::new();
        for (at, event) in self.events.iter().enumerate() {
            let revision = revisions.entry(event.event.aggregate_id()).or_default();
            *revision += 1;
            let is_sound = event.version.get() == at as u64 + 1
                && event.revision.get() == *revision
                && self.ids.get(event.event.id()) == Some(&at);
            if !is_sound {
                report.findings.push(Finding::new(Some(event.version), "it is at a wrong place"));
            }
        }
        if self.ids.len() != self.events.len() || self.revisions.len() != revisions.len() {
            report.findings.push(Finding::new(None, "there are too many ids or aggregates"));
        }
        (report.events, report.aggregates) = (self.events.len() as u64, revisions.len() as u64);
        report
    }

    /// Adds the new events of the batch, or fails and leaves everything as it was.
    fn append(&mut self, batch: Batch) -> Result<Vec<Stored>> {
        let before = self.latest();
        let aggregate_id = batch.events.first().map(|event| event.aggregate_id().to_owned()).unwrap_or_default();
        let revision = self.revision(&aggregate_id).into();
        let (now, times) = (clamp_recorded_at(SystemTime::now()), batch.recorded_at.unwrap_or_default());
        let times = times.into_iter().map(Some).chain(std::iter::repeat(None));
        let events = batch.events.into_iter().zip(times);
        let append_one =
            |(event, time): (_, Option<_>)| self.append_one(before, event, batch.idempotency, time.unwrap_or(now));
        let result: Result<_> = events.map(append_one).collect();
        let holds = batch.expected.holds(revision, before) || self.latest() == before;
        if holds && result.is_ok() {
            return result;
        }
        self.truncate(before);
        result.and_then(|_: Vec<_>| {
            let actual = Actual::of(batch.expected, &aggregate_id, revision, before);
            Err(Error::VersionConflict { expected: batch.expected, actual })
        })
    }

    pub(crate) fn truncate(&mut self, latest: Version) {
        while self.latest() > latest
            && let Some(event) = self.events.pop()
        {
            self.ids.remove(event.event.id());
            if let Some(revision) = self.revisions.get_mut(event.event.aggregate_id()) {
                *revision -= 1;
            }
        }
        self.revisions.retain(|_, revision| *revision > 0);
    }

    fn append_one(
        &mut self,
        before: Version,
        event: Event,
        idempotency: Idempotency,
        recorded_at: SystemTime,
    ) -> Result<Stored> {
        if let Some(there) = self.get(event.id()) {
            if idempotency.is_same(&there.event, &event) {
                return Ok(Stored::new(there.version, there.revision, StoreOutcome::AlreadyStored));
            }
            let version = (there.version <= before).then_some(there.version);
            return Err(Error::DuplicateEvent { id: event.id().to_owned(), version });
        }
        let (version, revision) = (self.latest().next(), self.revision(event.aggregate_id()) + 1);
        self.ids.insert(event.id().to_owned(), self.events.len());
        self.revisions.insert(event.aggregate_id().to_owned(), revision);
        self.events.push(RecordedEvent::new(version, revision.into(), recorded_at, event));
        Ok(Stored::new(version, revision.into(), StoreOutcome::Written))
    }
}

fn page(log: &Log, options: &LoadOptions, size: PageSize) -> Page {
    let limit = options.limit.map_or(usize::MAX, |limit| limit as usize);
    let matching = log.events.iter().filter(|event| options.matches(event));
    let mut matching: Vec<_> = match options.direction {
        Direction::Forward => matching.take(limit).cloned().collect(),
        Direction::Backward => matching.rev().take(limit).cloned().collect(),
    };
    let mut bytes = 0;
    let filled = matching.iter().position(|event| {
        bytes += event.event.len_bytes();
        bytes >= size.bytes
    });
    let count = filled.map_or(usize::MAX, |last| last + 1).min(size.events.max(1)).min(matching.len());
    let complete = count == matching.len();
    matching.truncate(count);
    Page::new(options, matching, log.latest(), complete)
}

#[async_trait]
impl EventStore for Reference {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.check(ctx)?;
        self.may_write()?;
        batch.validate()?;
        let _turn = ctx.run(self.0.turn.lock()).await?;
        // Let others wait, so that there is a queue.
        tokio::task::yield_now().await;
        ctx.check()?;
        self.append(batch)
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.read(ctx, |log| page(log, options, size))
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        let found = self.read(ctx, |log| log.get(id).cloned())?;
        found.ok_or_else(|| Error::EventNotFound { id: id.to_owned() })
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.check(ctx)
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.read(ctx, |log| log.revision(aggregate_id).into())
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.check(ctx)?;
        let mut heads = self.0.head.subscribe();
        let reached = ctx.run(heads.wait_for(|head| head.is_none_or(|head| head > after))).await?;
        reached.ok().and_then(|head| *head).ok_or(Error::Closed)
    }

    async fn run_gc(&self, ctx: &Context, _: Gc) -> Result<GcReport> {
        self.check(ctx)?;
        self.may_write()?;
        self.take_a_while(ctx).await.map(|_| GcReport::default())
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let latest = self.take_a_while(ctx).await?;
        let is_empty = !target.exists() || fs::read_dir(target).is_ok_and(|mut content| content.next().is_none());
        let mut log = lock(&self.0.log).clone();
        log.truncate(latest);
        let mut disk = lock(&DISK);
        if !is_empty || disk.logs.contains_key(&place(target)) || disk.open.contains(&place(target)) {
            let path = target.display().to_string();
            return Err(Error::Open { path, reason: "it is not empty".to_owned(), source: None });
        }
        disk.logs.insert(place(target), log);
        let mut report = BackupReport::default();
        report.latest_version = latest;
        Ok(report)
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.take_a_while(ctx).await?;
        self.read(ctx, Log::verify)
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.read(ctx, |log| {
            let mut stats = Stats::default();
            stats.latest_version = log.latest();
            stats.aggregates = log.revisions.len() as u64;
            stats
        })
    }

    async fn close(&self) -> Result<()> {
        self.0.close();
        Ok(())
    }
}

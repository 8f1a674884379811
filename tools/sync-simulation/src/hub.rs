//! The hub: a store in memory of which the unsynced end can be lost, and that can be restored from an old copy.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use eventstore_api::{
    Actual, Batch, Context, Digest, Durability, Error, EventStore, Gc, GcReport, LoadOptions, Page, PageSize, Place,
    Pulled, Pushed, RecordedEvent, Result, Revision, Stats, StoreOutcome, Stored, Version, async_trait, replication,
};
use synckit::core::Rule;

/// What a hub has.
#[derive(Debug)]
pub(crate) struct Log {
    /// The events, in order.
    pub(crate) events: Vec<RecordedEvent>,
    /// The digests up to each version, that of none first.
    pub(crate) digests: Vec<Digest>,
    ids: HashMap<String, usize>,
    revisions: HashMap<String, u64>,
    /// How many events survive a crash.
    pub(crate) synced: usize,
    /// Lengths of the copies that were made.
    pub(crate) copies: Vec<usize>,
    /// The digests at the ends of batches, also of those that were lost.
    pub(crate) ends: HashSet<Digest>,
    /// The events that were lost last, in their order.
    pub(crate) lost: Vec<RecordedEvent>,
    /// The most events that a batch may have.
    pub(crate) limit: usize,
}

impl Log {
    /// Loses all but the first events.
    pub(crate) fn cut(&mut self, len: usize) {
        let lost = self.events.split_off(len);
        if !lost.is_empty() {
            self.lost = lost;
        }
        self.digests.truncate(len + 1);
        self.synced = self.synced.min(len);
        self.ids = self.events.iter().enumerate().map(|(at, event)| (event.event.id().to_owned(), at)).collect();
        self.revisions.clear();
        for event in &self.events {
            *self.revisions.entry(event.event.aggregate_id().to_owned()).or_default() += 1;
        }
    }

    /// The place behind the last event.
    pub(crate) fn end(&self) -> Place {
        Place::new(Version::new(self.events.len() as u64), self.digests[self.events.len()])
    }

    /// Whether there is an event with this id.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    fn revision(&self, aggregate_id: &str) -> Revision {
        Revision::new(self.revisions.get(aggregate_id).copied().unwrap_or_default())
    }

    fn append(&mut self, batch: &Batch) -> Result<Vec<Stored>> {
        batch.validate()?;
        if batch.events.len() > self.limit {
            return Err(Error::invalid_event("batch", "it has too many events"));
        }
        for event in &batch.events {
            if let Some(&at) = self.ids.get(event.id())
                && self.events[at].event != *event
            {
                return Err(Error::DuplicateEvent {
                    id: event.id().to_owned(),
                    version: Some(self.events[at].version),
                });
            }
        }
        let is_new = batch.events.iter().any(|event| !self.has(event.id()));
        if let Some(first) = batch.events.first().filter(|_| is_new) {
            let (revision, latest) = (self.revision(first.aggregate_id()), self.end().version);
            if !batch.expected.holds(revision, latest) {
                let actual = Actual::of(batch.expected, first.aggregate_id(), revision, latest);
                return Err(Error::VersionConflict { expected: batch.expected, actual });
            }
        }
        let stored = batch.events.iter().map(|event| {
            if let Some(&at) = self.ids.get(event.id()) {
                let found = &self.events[at];
                return Stored::new(found.version, found.revision, StoreOutcome::AlreadyStored);
            }
            let version = self.end().version.next();
            let revision = self.revision(event.aggregate_id()).next();
            let recorded = RecordedEvent::new(version, revision, SystemTime::UNIX_EPOCH, event.clone());
            let digest = self.end().digest.chain(&recorded);
            self.ids.insert(event.id().to_owned(), self.events.len());
            self.revisions.insert(event.aggregate_id().to_owned(), revision.get());
            self.events.push(recorded);
            self.digests.push(digest);
            Stored::new(version, revision, StoreOutcome::Written)
        });
        let stored = stored.collect();
        self.ends.insert(self.end().digest);
        if batch.durability != Some(Durability::Buffered) {
            self.synced = self.events.len();
        }
        Ok(stored)
    }
}

/// The hub.
#[derive(Clone, Debug)]
pub(crate) struct Hub(Arc<Mutex<Log>>);

impl Hub {
    /// An empty one that takes batches of at most so many events.
    pub(crate) fn new(limit: usize) -> Self {
        Hub(Arc::new(Mutex::new(Log {
            events: Vec::new(),
            digests: vec![Digest::EMPTY],
            ids: HashMap::new(),
            revisions: HashMap::new(),
            synced: 0,
            copies: vec![0],
            ends: HashSet::new(),
            lost: Vec::new(),
            limit,
        })))
    }

    /// What it has.
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left_out<T>() -> Result<T> {
    Err(Error::Unsupported { what: "replicas do not use it".to_owned() })
}

#[async_trait]
impl EventStore for Hub {
    async fn store_batch(&self, _: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.log().append(&batch)
    }

    async fn load_page(&self, _: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        let log = self.log();
        let since = (options.since.get() as usize).min(log.events.len());
        let until = options.before.map_or(log.events.len(), |before| before.get() as usize - 1).min(log.events.len());
        let end = (since + size.events).min(until).max(since);
        let events = log.events[since..end].to_vec();
        Ok(Page::new(options, events, log.end().version, end == until))
    }

    async fn get(&self, _: &Context, _: &str) -> Result<RecordedEvent> {
        left_out()
    }

    async fn latest_version(&self, _: &Context) -> Result<Version> {
        Ok(self.log().end().version)
    }

    async fn aggregate_revision(&self, _: &Context, aggregate_id: &str) -> Result<Revision> {
        Ok(self.log().revision(aggregate_id))
    }

    async fn wait_for_events(&self, _: &Context, _: Version) -> Result<Version> {
        left_out()
    }

    async fn run_gc(&self, _: &Context, _: Gc) -> Result<GcReport> {
        left_out()
    }

    async fn digest(&self, _: &Context, until: Version) -> Result<Digest> {
        let log = self.log();
        Ok(log.digests[(until.get() as usize).min(log.events.len())])
    }

    async fn sync(&self, _: &Context) -> Result<Version> {
        let log = self.log();
        // A store may sync first. This one tells what it has synced, so that some events are left out.
        let synced = if Rule::PullSyncedOnly.is_kept() { log.synced } else { log.events.len() };
        Ok(Version::new(synced as u64))
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        let mut since = since;
        if !Rule::DigestOnPull.is_kept() && since.version <= self.sync(ctx).await? {
            since.digest = self.digest(ctx, since.version).await?;
        }
        replication::pull(self, ctx, since, size).await
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        let mut at = at;
        if !Rule::DigestOnPush.is_kept() {
            let log = self.log();
            at = log.end();
        }
        if Rule::StopAtRefusal.is_kept() {
            let pushed = replication::push(self, ctx, at, batches).await?;
            let mut log = self.log();
            if !pushed.stored.is_empty() {
                log.synced = log.events.len();
            }
            return Ok(pushed);
        }
        replication::push(self, ctx, at, Vec::new()).await?;
        let (mut stored, mut refused) = (Vec::new(), None);
        for batch in batches {
            match self.log().append(&batch) {
                Ok(places) => stored.push(places),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let head = self.log().end().version;
        Ok(Pushed::new(stored, refused, head))
    }

    async fn stats(&self, _: &Context) -> Result<Stats> {
        left_out()
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

//! The one task that writes to a replica's directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eventstore::backend::{self, EventStore};
use eventstore_api::{
    Batch, Context, Error as StoreError, Event, LoadOptions, Page, PageSize, Place, RecordedEvent, Version,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::core::{
    Decision, EventPlace, Expectation, Facts, Machine, Misfit, Number, Proposed, Question, Record, Refused, Scope,
    Seen, Write,
};
use crate::error::{Error, Result};
use crate::journal::{Journal, remove, sync_directory};

/// The largest pages that events are copied in.
pub(crate) const PAGES: PageSize = PageSize::new(10_000, 8 << 20);

/// What all parts of a replica share.
#[derive(Debug)]
pub(crate) struct State {
    machine: Mutex<Machine>,
    confirmed: Mutex<Arc<dyn EventStore>>,
    /// Counts changes of what is shown.
    changes: watch::Sender<u64>,
    /// Why nothing is written any more.
    failed: Mutex<Option<String>>,
}

impl State {
    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn confirmed(&self) -> Arc<dyn EventStore> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn check(&self) -> Result<()> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(StoreError::Fenced { reason: reason.clone() }.into()),
            None => Ok(()),
        }
    }
}

/// The condition of an append, as the user says it.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Plain(eventstore_api::Expected),
    Basis { scope: Scope, seen: Seen, generation: u32 },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// What is to be written.
#[derive(Debug)]
pub(crate) enum Job {
    Append { events: Vec<Event>, wish: Wish, reply: Reply<(Option<Number>, Vec<EventPlace>)> },
    Page { since: Place, events: Vec<RecordedEvent>, head: Version, reply: Reply<()> },
    Decide { question: Question, decision: Decision, on_top: Vec<(Number, Decision)>, reply: Reply<()> },
    Delete { batch: Number, reply: Reply<bool> },
    Recover { common: Version, reply: Reply<PathBuf> },
    Close { reply: Reply<()> },
}

/// The most jobs that are taken together: their records are one write and one sync.
const TOGETHER: usize = 256;

pub(crate) struct Worker {
    pub(crate) directory: PathBuf,
    pub(crate) engine: String,
    pub(crate) state: Arc<State>,
    /// It is with a thread while it writes.
    pub(crate) journal: Option<Journal>,
}

/// A batch on its way.
struct Appending {
    record: Option<Record>,
    answer: (Option<Number>, Vec<EventPlace>),
    reply: Reply<(Option<Number>, Vec<EventPlace>)>,
}

pub(crate) fn path_of(directory: &Path, generation: u32) -> PathBuf {
    directory.join(format!("confirmed-{generation}"))
}

/// Opens a store of confirmed events; `is_new`: makes one.
pub(crate) async fn open_confirmed(engine: &str, path: &Path, is_new: bool) -> Result<Arc<dyn EventStore>> {
    let url = format!("{engine}:{}", path.display());
    if url.contains('?') {
        let reason = "its path has a ?, which stands before options in addresses of stores; choose another".to_owned();
        return Err(Error::NotAReplica { path: path.display().to_string(), reason });
    }
    Ok(if is_new { backend::open(&url).await? } else { backend::open_existing(&url).await? })
}

/// The state of a replica with this journal and these confirmed events.
pub(crate) async fn restore(records: Vec<Record>, confirmed: &Arc<dyn EventStore>) -> Result<Machine> {
    let ctx = &Context::background();
    let end = confirmed.latest_version(ctx).await?;
    let mut machine = Machine::restore(records, Place::new(end, confirmed.digest(ctx, end).await?));
    let wanted = machine.wanted();
    for id in &wanted.ids {
        if let Some(recorded) = find(confirmed, ctx, id).await? {
            machine.found(&recorded);
        }
    }
    let mut next = wanted.since.map(LoadOptions::since);
    while let Some(options) = next {
        let page = confirmed.load_page(ctx, &options, PAGES).await?;
        page.events.iter().for_each(|recorded| machine.observed(recorded));
        next = page.next;
    }
    for aggregate_id in &wanted.aggregates {
        let revision = confirmed.aggregate_revision(ctx, aggregate_id).await?;
        machine.counted(aggregate_id, revision);
    }
    machine.settle();
    Ok(machine)
}

async fn find(store: &Arc<dyn EventStore>, ctx: &Context, id: &str) -> Result<Option<RecordedEvent>> {
    match store.get(ctx, id).await {
        Ok(recorded) => Ok(Some(recorded)),
        Err(StoreError::EventNotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl State {
    pub(crate) fn new(machine: Machine, confirmed: Arc<dyn EventStore>) -> Self {
        State {
            machine: Mutex::new(machine),
            confirmed: Mutex::new(confirmed),
            changes: watch::Sender::new(0),
            failed: Mutex::new(None),
        }
    }
}

impl Worker {
    pub(crate) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut taken = Vec::new();
        loop {
            if jobs.recv_many(&mut taken, TOGETHER).await == 0 {
                break; // the last handle is gone
            }
            let mut appending = Vec::new();
            for job in taken.drain(..) {
                match job {
                    Job::Append { events, wish, reply } => match self.begin(events, wish).await {
                        Ok((record, answer)) => appending.push(Appending { record, answer, reply }),
                        Err(error) => _ = reply.send(Err(error)),
                    },
                    other => {
                        self.end(std::mem::take(&mut appending)).await;
                        if let Job::Close { reply } = other {
                            jobs.close();
                            let _ = reply.send(self.close().await);
                            return;
                        }
                        self.take(other).await;
                    }
                }
            }
            self.end(appending).await;
        }
        if let Err(error) = self.close().await {
            tracing::warn!(%error, "a replica was not closed cleanly");
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.journal = None;
        Ok(self.state.confirmed().close().await?)
    }

    /// A failed write is not made good by another one.
    fn fail(&self, error: &StoreError) {
        if matches!(error, StoreError::OutcomeUnknown { .. }) {
            *self.state.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }

    async fn write(&mut self, records: Vec<Record>) -> Result<()> {
        self.state.check()?;
        let Some(mut journal) = self.journal.take() else { return Err(StoreError::Closed.into()) };
        let written = tokio::task::spawn_blocking(move || {
            let written = journal.append(&records);
            (journal, written)
        });
        let (journal, written) = written.await.map_err(|error| StoreError::engine("write to the journal", error))?;
        self.journal = Some(journal);
        written.inspect_err(|error| self.fail(error))?;
        Ok(())
    }

    /// Looks whether a batch may be appended; from then on others are decided with it.
    async fn begin(
        &self,
        events: Vec<Event>,
        wish: Wish,
    ) -> Result<(Option<Record>, (Option<Number>, Vec<EventPlace>))> {
        self.state.check()?;
        let aggregate = events.first().map(|event| Scope::Aggregate(event.aggregate_id().to_owned()));
        let (expectation, scope, basis) = match wish {
            Wish::Plain(expected) => {
                let scope = match expected {
                    eventstore_api::Expected::Any => None,
                    eventstore_api::Expected::LatestVersion(_) => Some(Scope::Store),
                    _ => aggregate,
                };
                (Expectation::Plain(expected), scope, None)
            }
            Wish::Basis { scope, seen, generation } => {
                if generation != self.state.machine().generation() {
                    return Err(Error::Conflict);
                }
                (Expectation::Basis(scope.clone(), seen), Some(scope), Some(seen))
            }
        };
        let facts = self.facts(&events, scope.as_ref(), basis).await?;
        let mut machine = self.state.machine();
        match machine.propose(events, &expectation, &facts) {
            Ok(Proposed::Already(places)) => Ok((None, (None, places))),
            Ok(Proposed::New(record, places)) => {
                let number = record.number;
                machine.appended(record.clone(), &facts);
                Ok((Some(Record::Batch(record)), (Some(number), places)))
            }
            Err(refused) => Err(match refused {
                Refused::Duplicate { id, place } => Error::Duplicate { id, place },
                Refused::Rejected { id, batch } => Error::Rejected { id, batch },
                Refused::Conflict => Error::Conflict,
                Refused::PendingInScope => Error::PendingInScope,
            }),
        }
    }

    async fn facts(&self, events: &[Event], scope: Option<&Scope>, basis: Option<Seen>) -> Result<Facts> {
        let (ctx, confirmed) = (&Context::background(), self.state.confirmed());
        let mut facts = Facts::default();
        for event in events {
            facts.found.push(find(&confirmed, ctx, event.id()).await?);
        }
        let (published, is_staging) = {
            let machine = self.state.machine();
            (machine.published(), machine.is_staging())
        };
        let in_scope = |since: Version| {
            let options = LoadOptions::since(since);
            match scope {
                Some(Scope::Aggregate(aggregate_id)) => options.aggregate(aggregate_id.clone()),
                _ => options,
            }
        };
        if let Some(Scope::Aggregate(aggregate_id)) = scope {
            facts.count = confirmed.aggregate_revision(ctx, aggregate_id).await?.get();
        }
        if is_staging && scope.is_some() {
            let mut next = Some(in_scope(published));
            while let Some(options) = next {
                let Page { events, next: more, .. } = confirmed.load_page(ctx, &options, PAGES).await?;
                let staged = events.iter().map(|recorded| (recorded.version, recorded.event.id().to_owned()));
                facts.staged.extend(staged);
                next = more;
            }
        }
        if let Some(basis) = basis.filter(|basis| basis.version < published.get()) {
            let mut next = Some(in_scope(Version::new(basis.version)).before(published.next()));
            while let Some(options) = next.filter(|_| !facts.is_unseen) {
                let Page { events, next: more, .. } = confirmed.load_page(ctx, &options, PageSize::FIRST).await?;
                let machine = self.state.machine();
                facts.is_unseen =
                    events.iter().any(|recorded| !machine.is_seen(recorded.version, recorded.event.id(), basis));
                next = more;
            }
        }
        Ok(facts)
    }

    /// Writes what was begun, and answers.
    async fn end(&mut self, appending: Vec<Appending>) {
        let records: Vec<_> = appending.iter().filter_map(|appending| appending.record.clone()).collect();
        let written = if records.is_empty() { Ok(()) } else { self.write(records).await };
        if let Err(error) = &written {
            // What is decided from now on must not stand on what is not there.
            let reason = format!("a batch could not be written ({error}); open the replica again");
            *self.state.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        } else {
            self.state.machine().durable();
            self.state.tell();
        }
        for Appending { answer, reply, .. } in appending {
            let _ = reply.send(written.clone().map(|()| answer));
        }
    }

    async fn take(&mut self, job: Job) {
        match job {
            Job::Page { since, events, head, reply } => {
                let done = self.page(since, events, head).await;
                let _ = reply.send(done);
            }
            Job::Decide { question, decision, on_top, reply } => {
                let done = self.decide(&question, decision, on_top).await;
                let _ = reply.send(done);
            }
            Job::Delete { batch, reply } => {
                let done = self.delete(batch).await;
                let _ = reply.send(done);
            }
            Job::Recover { common, reply } => {
                let done = self.recover(common).await;
                let _ = reply.send(done);
            }
            Job::Append { .. } | Job::Close { .. } => {}
        }
        self.state.tell();
    }

    async fn page(&mut self, since: Place, events: Vec<RecordedEvent>, head: Version) -> Result<()> {
        self.state.check()?;
        let writes = self.state.machine().page(since, events, head);
        for write in writes {
            match write {
                Write::Journal(record) => {
                    self.write(vec![record.clone()]).await?;
                    if let Record::Shown(until) = record {
                        self.state.machine().shown(until);
                    }
                }
                Write::Confirmed(events) => {
                    let end = copy(&self.state.confirmed(), &events).await.inspect_err(|error| {
                        if let Error::Store(error) = error {
                            self.fail(error);
                        }
                    })?;
                    self.state.machine().staged(&events, end);
                }
            }
        }
        self.compact().await
    }

    async fn compact(&mut self) -> Result<()> {
        const LEAST: u64 = 1000;
        let (appended, kept) = self.journal.as_ref().map(Journal::lens).unwrap_or_default();
        if appended < LEAST.max(2 * kept) {
            return Ok(());
        }
        let records = self.state.machine().compacted();
        self.replace(records).await
    }

    async fn replace(&mut self, records: Vec<Record>) -> Result<()> {
        let Some(journal) = self.journal.take() else { return Err(StoreError::Closed.into()) };
        let replaced = tokio::task::spawn_blocking(move || journal.replace(&records)).await;
        let replaced = replaced.map_err(|error| StoreError::engine("write the journal anew", error));
        match replaced.and_then(|replaced| replaced) {
            Ok(journal) => {
                self.journal = Some(journal);
                Ok(())
            }
            Err(error) => {
                let reason = format!("the journal could not be written anew ({error}); open the replica again");
                *self.state.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                Err(error.into())
            }
        }
    }

    async fn decide(&mut self, question: &Question, decision: Decision, on_top: Vec<(Number, Decision)>) -> Result<()> {
        self.state.check()?;
        let confirmed = self.state.confirmed();
        let mut used = std::collections::HashSet::new();
        for decision in std::iter::once(&decision).chain(on_top.iter().map(|(_, decision)| decision)) {
            if let Decision::Replace(events) = decision {
                for event in events {
                    if find(&confirmed, &Context::background(), event.id()).await?.is_some() {
                        used.insert(event.id().to_owned());
                    }
                }
            }
        }
        let outcomes = self.state.machine().answer(question, decision, on_top, |id| used.contains(id));
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            // It does not wait any more: there is nothing to decide.
            Err(Misfit::Stale) => return Ok(()),
            Err(Misfit::NoAnyway) => {
                let reason = "it can only be replaced or rejected".to_owned();
                return Err(Error::Answer { batch: question.batch, reason });
            }
            Err(Misfit::BadReplacement(reason)) => {
                return Err(Error::Answer { batch: question.batch, reason: reason.to_owned() });
            }
        };
        self.write(outcomes.iter().cloned().map(Record::Outcome).collect()).await?;
        self.state.machine().decided(outcomes);
        Ok(())
    }

    async fn delete(&mut self, batch: Number) -> Result<bool> {
        let is_rejected = self.state.machine().rejection(batch).is_some();
        if is_rejected {
            self.write(vec![Record::Deleted(batch)]).await?;
            self.state.machine().deleted(batch);
        }
        Ok(is_rejected)
    }

    /// Begins a new generation, with the events up to a version. What was confirmed before is kept aside, at the path that is
    /// returned.
    async fn recover(&mut self, common: Version) -> Result<PathBuf> {
        self.state.check()?;
        let (ctx, old) = (&Context::background(), self.state.confirmed());
        let machine = self.state.machine().clone();
        let mut recovery = machine.recovery(common);
        for version in recovery.wanted() {
            let options = LoadOptions::since(Version::new(version.get() - 1)).limit(1);
            let page = old.load_page(ctx, &options, PageSize::new(1, usize::MAX)).await?;
            page.events.iter().for_each(|recorded| recovery.take(recorded));
        }
        let mut next = Some(LoadOptions::since(common));
        while let Some(options) = next {
            let page = old.load_page(ctx, &options, PAGES).await?;
            page.events.iter().for_each(|recorded| recovery.take(recorded));
            next = page.next;
        }
        let records = recovery.finish().map_err(|batch| StoreError::Corrupt {
            version: None,
            reason: format!("the events of own batch {batch} are not among the confirmed ones"),
        })?;
        let (from, to) = (machine.generation(), machine.generation() + 1);
        let path = path_of(&self.directory, to);
        remove(&path)?;
        let new = open_confirmed(&self.engine, &path, true).await?;
        let mut next = Some(LoadOptions::all().before(common.next()));
        while let Some(options) = next {
            let page = old.load_page(ctx, &options, PAGES).await?;
            if !page.events.is_empty() {
                copy(&new, &page.events).await?;
            }
            next = page.next;
        }
        sync_directory(&self.directory)?;
        self.replace(records.clone()).await?;
        // From here on the new ones count.
        let restored = restore(records, &new).await?;
        {
            let mut machine = self.state.machine();
            *self.state.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = new;
            *machine = restored;
        }
        old.close().await?;
        set_aside(&self.directory, from)
    }
}

/// Moves the confirmed events of an older generation out of the way.
pub(crate) fn set_aside(directory: &Path, generation: u32) -> Result<PathBuf> {
    let aside = directory.join("aside");
    let target = aside.join(generation.to_string());
    let moved = std::fs::create_dir_all(&aside).and_then(|()| std::fs::rename(path_of(directory, generation), &target));
    moved.map_err(|error| StoreError::engine("move older confirmed events aside", error))?;
    sync_directory(&aside)?;
    sync_directory(directory)?;
    Ok(target)
}

/// Appends a copy of events behind the end, and returns the place behind them.
async fn copy(store: &Arc<dyn EventStore>, events: &[RecordedEvent]) -> Result<Place> {
    let ctx = &Context::background();
    let stored = store.store_batch(ctx, Batch::copy_of(events)).await?;
    let is_same = stored
        .iter()
        .zip(events)
        .all(|(stored, event)| (stored.version, stored.revision) == (event.version, event.revision));
    let Some(last) = events.last().filter(|_| is_same && stored.len() == events.len()) else {
        return Err(StoreError::Corrupt {
            version: events.first().map(|first| first.version),
            reason: "copies of the hub's events have other places than there".to_owned(),
        }
        .into());
    };
    Ok(Place::new(last.version, store.digest(ctx, last.version).await?))
}

//! The only thread that writes to a replica's directory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eventstore::backend::{self, EventStore};
use eventstore_api::{
    Batch, Context, Digest, Error as StoreError, Event, LoadOptions, Page, PageSize, Place, RecordedEvent, Version,
};
use eventstore_log::background::linger;
use eventstore_log::create_private_dir;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Lock;
use crate::core::{
    Decision, EventPlace, Expectation, Facts, Machine, Misfit, Number, Proposed, Question, Record, Refused,
    SameContent, Scope, Seen, Status, Write,
};
use crate::error::{Error, Result};
use crate::journal::{GROUP_BYTES, Journal, io, remove, sync_directory};

/// Callers often append again as soon as they are answered. If the last job came within this time, the thread stays awake for as
/// long to wait for the next one.
const STAY_AWAKE: Duration = Duration::from_micros(100);

/// The largest pages for copying events.
pub(crate) const PAGES: PageSize = PageSize::new(5_000, 4 << 20);

/// The state shared by all parts of a replica.
#[derive(Debug)]
pub(crate) struct State {
    machine: Mutex<Machine>,
    confirmed: Mutex<Arc<dyn EventStore>>,
    /// Counts changes of what is visible.
    changes: watch::Sender<u64>,
    /// Why nothing is written any more.
    failed: Mutex<Option<String>>,
    /// Whether it is closed.
    has_ended: AtomicBool,
    /// Held while names in the directory are changed and synced: a failed sync must not concern what somebody else does.
    naming: Mutex<()>,
}

/// The visible confirmed events at one moment.
pub(crate) struct View {
    pub(crate) confirmed: Arc<dyn EventStore>,
    pub(crate) published: Version,
    pub(crate) generation: u32,
}

impl State {
    pub(crate) fn change_names<T>(&self, change: impl FnOnce() -> T) -> T {
        let _alone = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        change()
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn confirmed(&self) -> Arc<dyn EventStore> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The confirmed events, how far they are visible, and the number of their history, all at the same moment.
    pub(crate) fn view(&self) -> View {
        let machine = self.machine();
        View { confirmed: self.confirmed(), published: machine.published(), generation: machine.generation() }
    }

    /// Whether the replica has switched to another history since, and closed these confirmed events.
    pub(crate) fn has_moved_on(&self, view: &View) -> bool {
        self.machine().generation() != view.generation
    }

    /// Whether the replica is closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.tell();
    }

    fn set_failed(&self, reason: String) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
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

/// The condition of an append, as given by the user.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Plain(eventstore_api::Expected),
    Basis { scope: Scope, seen: Seen, generation: u32 },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// A job for the writing thread.
#[derive(Debug)]
pub(crate) enum Job {
    Append {
        events: Vec<Event>,
        wish: Wish,
        reply: Reply<(Option<Number>, Vec<EventPlace>)>,
    },
    /// `end` is the place after the events.
    Page {
        since: Place,
        events: Vec<RecordedEvent>,
        end: Place,
        head: Version,
        reply: Reply<()>,
    },
    Decide {
        question: Question,
        decision: Decision,
        on_top: Vec<(Number, Decision)>,
        reply: Reply<Vec<Decision>>,
    },
    Delete {
        batch: Number,
        reply: Reply<bool>,
    },
    /// Begins the confirmed events of another history of the hub with the common ones up to a version. Answers with the
    /// place after them.
    BeginHistory {
        common: Version,
        reply: Reply<Place>,
    },
    /// Continues them, up to the place `end`.
    CopyHistory {
        events: Vec<RecordedEvent>,
        end: Place,
        reply: Reply<()>,
    },
    /// Switches to them. Answers with the path of the previous ones, and the number of own batches that are pending again.
    EnterHistory {
        reply: Reply<(PathBuf, u64)>,
    },
    Close {
        reply: Reply<()>,
    },
}

/// The most jobs that are taken together: their records are one write and one sync.
const TOGETHER: usize = 256;

pub(crate) struct Worker {
    pub(crate) directory: PathBuf,
    pub(crate) engine: String,
    pub(crate) sizes: Sizes,
    pub(crate) state: Arc<State>,
    pub(crate) journal: Option<Journal>,
    /// Released after the journal.
    pub(crate) lock: Option<Lock>,
    /// The confirmed events of another history, before they take effect.
    pub(crate) next: Option<Next>,
    pub(crate) is_same: SameContent,
}

/// How large the files of a replica become. Tests make them small, so that everything that replaces one is done often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// The journal is compacted after so many records at the earliest.
    pub(crate) journal_records: u64,
    /// Options in the URL of the store of confirmed events, with the `?` before them.
    pub(crate) store_options: &'static str,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { journal_records: 1000, store_options: "" }
    }
}

/// The confirmed events of another history of the hub.
pub(crate) struct Next {
    /// Both histories are the same up to this version.
    common: Version,
    store: Arc<dyn EventStore>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.state.end();
    }
}

/// A batch that is being appended.
struct Appending {
    record: Option<Record>,
    answer: (Option<Number>, Vec<EventPlace>),
    reply: Reply<(Option<Number>, Vec<EventPlace>)>,
}

pub(crate) fn path_of(directory: &Path, generation: u32) -> PathBuf {
    directory.join(format!("confirmed-{generation}"))
}

/// Opens a store of confirmed events, or creates it if `is_new`.
pub(crate) async fn open_confirmed(
    engine: &str,
    path: &Path,
    sizes: Sizes,
    is_new: bool,
) -> Result<Arc<dyn EventStore>> {
    let url = format!("{engine}:{}", path.display());
    if url.contains('?') {
        let reason = "its path has a ?, which begins the options in the URL of a store; choose another".to_owned();
        return Err(Error::NotAReplica { path: path.display().to_string(), reason });
    }
    let url = url + sizes.store_options;
    Ok(if is_new { backend::open(&url).await? } else { backend::open_existing(&url).await? })
}

/// Restores the state of a replica from its journal and its confirmed events.
pub(crate) async fn restore(
    records: Vec<Record>,
    confirmed: &Arc<dyn EventStore>,
    is_same: SameContent,
) -> Result<Machine> {
    let ctx = &Context::background();
    let end = confirmed.latest_version(ctx).await?;
    let mut machine = Machine::restore(records, Place::new(end, confirmed.digest(ctx, end).await?));
    machine.compare_by(is_same);
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
            has_ended: AtomicBool::new(false),
            naming: Mutex::new(()),
        }
    }
}

impl Worker {
    /// Starts to process jobs, on a separate thread: a write may block, and the thread that wrote also answers.
    pub(crate) fn start(self, jobs: mpsc::Receiver<Job>) -> Result<()> {
        let failed = |error| io("start a thread", error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let thread = std::thread::Builder::new().name("replica".to_owned());
        thread.spawn(move || runtime.block_on(self.run(jobs))).map_err(failed)?;
        Ok(())
    }

    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let (mut taken, mut is_quick) = (Vec::new(), false);
        loop {
            let began = Instant::now();
            while is_quick && jobs.is_empty() && began.elapsed() < STAY_AWAKE {
                linger();
            }
            if jobs.recv_many(&mut taken, TOGETHER).await == 0 {
                break; // the last handle is dropped
            }
            is_quick = began.elapsed() < STAY_AWAKE;
            let (mut appending, mut bytes) = (Vec::new(), 0);
            for job in taken.drain(..) {
                match job {
                    Job::Append { events, wish, reply } => {
                        let len: usize = events.iter().map(Event::len_bytes).sum();
                        if bytes + len > GROUP_BYTES {
                            self.end(std::mem::take(&mut appending));
                            bytes = 0;
                        }
                        bytes += len;
                        match self.begin(events, wish).await {
                            Ok((record, answer)) => appending.push(Appending { record, answer, reply }),
                            Err(error) => _ = reply.send(Err(error)),
                        }
                    }
                    other => {
                        self.end(std::mem::take(&mut appending));
                        if let Job::Close { reply } = other {
                            let closed = self.close().await;
                            // Whoever else closes the replica waits for this, and finds the lock released.
                            jobs.close();
                            let _ = reply.send(closed);
                            return;
                        }
                        self.take(other).await;
                    }
                }
            }
            self.end(appending);
        }
        if let Err(error) = self.close().await {
            tracing::warn!(%error, "a replica was not closed cleanly");
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.journal = None;
        self.leave_next().await;
        let closed = self.state.confirmed().close().await;
        self.lock = None;
        self.state.end();
        Ok(closed?)
    }

    /// A failed write cannot be repaired by another one.
    fn fail(&self, error: &StoreError) {
        if matches!(error, StoreError::OutcomeUnknown { .. }) {
            self.state.set_failed(error.to_string());
        }
    }

    fn write(&mut self, records: &[Record]) -> Result<()> {
        self.state.check()?;
        let Some(journal) = &mut self.journal else { return Err(StoreError::Closed.into()) };
        let written = journal.append(records);
        written.inspect_err(|error| self.fail(error))?;
        Ok(())
    }

    /// Checks whether a batch may be appended. From then on, other decisions take it into account.
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
    fn end(&mut self, appending: Vec<Appending>) {
        let records: Vec<_> = appending.iter().filter_map(|appending| appending.record.clone()).collect();
        let written = if records.is_empty() { Ok(()) } else { self.write(&records) };
        if let Err(error) = &written {
            // Later decisions must not depend on batches that are not there.
            let numbers: Vec<_> = appending.iter().rev().filter_map(|appending| appending.answer.0).collect();
            self.state.machine().withdraw(&numbers);
            if !matches!(error, Error::Store(StoreError::Full { .. })) {
                self.state.set_failed(format!("a batch could not be written ({error}); open the replica again"));
            }
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
            Job::Page { since, events, end, head, reply } => {
                let done = self.page(since, events, end, head).await;
                self.answer(reply, done);
            }
            Job::Decide { question, decision, on_top, reply } => {
                let done = self.decide(&question, decision, on_top).await;
                self.answer(reply, done);
            }
            Job::Delete { batch, reply } => {
                let done = self.delete(batch);
                self.answer(reply, done);
            }
            Job::BeginHistory { common, reply } => {
                let done = self.begin_history(common).await;
                self.answer(reply, done);
            }
            Job::CopyHistory { events, end, reply } => {
                let done = self.copy_history(&events, end).await;
                self.answer(reply, done);
            }
            Job::EnterHistory { reply } => {
                let done = self.enter_history().await;
                self.answer(reply, done);
            }
            Job::Append { .. } | Job::Close { .. } => {}
        }
    }

    /// Answers a job. What waits for news has been told of the job's before whoever gave it goes on.
    fn answer<T>(&self, reply: oneshot::Sender<Result<T>>, done: Result<T>) {
        self.state.tell();
        let _ = reply.send(done); // fails if nobody waits
    }

    async fn page(&mut self, since: Place, events: Vec<RecordedEvent>, end: Place, head: Version) -> Result<()> {
        self.state.check()?;
        let writes = self.state.machine().page(since, events, head);
        for write in writes {
            match write {
                Write::Journal(record) => {
                    self.write(std::slice::from_ref(&record))?;
                    if let Record::Shown(until) = record {
                        self.state.machine().shown(until);
                    }
                }
                Write::Confirmed(events) => match copy(&self.state.confirmed(), &events, end).await {
                    Ok(()) => self.state.machine().staged(&events, end),
                    Err(NotCopied::NotThere(error)) => {
                        self.fail(&error);
                        return Err(error.into());
                    }
                    Err(NotCopied::Wrong(error)) => {
                        // They are stored but must not be shown. The hub will say that they do not belong to its
                        // history.
                        let published = self.state.machine().published().get();
                        let hidden = self.write(&[Record::Shown(Some(published))]);
                        self.state.set_failed(format!("{error}; open the replica again"));
                        hidden?;
                        return Err(error.into());
                    }
                },
            }
        }
        self.compact();
        Ok(())
    }

    /// Compacts the journal if most of it is no longer needed. If that fails, the old one stays in use.
    fn compact(&mut self) {
        let (appended, kept) = self.journal.as_ref().map(Journal::lens).unwrap_or_default();
        if appended < self.sizes.journal_records.max(2 * kept) {
            return;
        }
        let records = self.state.machine().compacted();
        if let Err(error) = self.replace(&records) {
            tracing::warn!(%error, "the journal of a replica could not be compacted");
            if let Some(journal) = &mut self.journal {
                journal.put_off();
            }
        }
    }

    fn replace(&mut self, records: &[Record]) -> Result<()> {
        let Some(journal) = self.journal.take() else { return Err(StoreError::Closed.into()) };
        let (journal, replaced) = self.state.change_names(|| journal.replace(records));
        self.journal = journal;
        let Err(error) = replaced else { return Ok(()) };
        if self.journal.is_none() {
            self.state.set_failed(format!("the journal could not be compacted ({error}); open the replica again"));
        }
        Err(error.into())
    }

    /// Returns the decisions that took effect.
    async fn decide(
        &mut self,
        question: &Question,
        decision: Decision,
        on_top: Vec<(Number, Decision)>,
    ) -> Result<Vec<Decision>> {
        self.state.check()?;
        let confirmed = self.state.confirmed();
        let mut used = std::collections::HashSet::new();
        let of_batch = std::iter::once((question.batch, &decision));
        for (batch, decision) in of_batch.chain(on_top.iter().map(|(batch, decision)| (*batch, decision))) {
            if let Decision::Replace(events) = decision {
                let valid = Batch::new(events.clone()).validate();
                valid.map_err(|error| Error::Answer { batch, reason: error.to_string() })?;
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
            // It no longer waits: there is nothing to decide.
            Err(Misfit::Stale) => return Ok(Vec::new()),
            Err(Misfit::NoAnyway) => {
                let reason = "it can only be replaced or rejected".to_owned();
                return Err(Error::Answer { batch: question.batch, reason });
            }
            Err(Misfit::NotOnTop(batch)) => {
                let reason = "it was not shown on top of the batch that was asked about, or is answered for twice";
                return Err(Error::Answer { batch, reason: reason.to_owned() });
            }
            Err(Misfit::BadReplacement(reason)) => {
                return Err(Error::Answer { batch: question.batch, reason: reason.to_owned() });
            }
        };
        self.write(&outcomes.iter().cloned().map(Record::Outcome).collect::<Vec<_>>())?;
        let taken = outcomes.iter().map(|outcome| outcome.decision.clone()).collect();
        self.state.machine().decided(outcomes);
        Ok(taken)
    }

    fn delete(&mut self, batch: Number) -> Result<bool> {
        let is_rejected = self.state.machine().rejection(batch).is_some();
        if is_rejected {
            self.write(&[Record::Deleted(batch)])?;
            self.state.machine().deleted(batch);
        }
        Ok(is_rejected)
    }

    /// Begins the next generation of confirmed events with those up to a version.
    async fn begin_history(&mut self, common: Version) -> Result<Place> {
        self.state.check()?;
        self.leave_next().await;
        let old = self.state.confirmed();
        let path = path_of(&self.directory, self.state.machine().generation() + 1);
        remove(&path)?;
        let store = open_confirmed(&self.engine, &path, self.sizes, true).await?;
        self.next = Some(Next { common, store: store.clone() });
        let (mut next, mut end) = (Some(LoadOptions::all().before(common.next())), Place::START);
        while let Some(options) = next {
            let page = old.load_page(&Context::background(), &options, PAGES).await?;
            if !page.events.is_empty() {
                end = behind(end, &page.events);
                copy(&store, &page.events, end).await.map_err(NotCopied::error)?;
            }
            next = page.next;
        }
        Ok(end)
    }

    async fn copy_history(&mut self, events: &[RecordedEvent], end: Place) -> Result<()> {
        self.state.check()?;
        let Some(next) = &self.next else { return Err(StoreError::Closed.into()) };
        if events.is_empty() {
            return Ok(());
        }
        Ok(copy(&next.store, events, end).await.map_err(NotCopied::error)?)
    }

    /// Discards what was begun; the next attempt starts again.
    async fn leave_next(&mut self) {
        if let Some(next) = self.next.take()
            && let Err(error) = next.store.close().await
        {
            tracing::debug!(%error, "copied events were not closed");
        }
    }

    /// Switches to the new generation. The previous confirmed events are moved aside. Returns their path, and the number
    /// of own batches that are pending again.
    async fn enter_history(&mut self) -> Result<(PathBuf, u64)> {
        self.state.check()?;
        let Some(Next { common, store: new }) = self.next.take() else { return Err(StoreError::Closed.into()) };
        let (records, restored) = match self.recovered(common, &new).await {
            Ok(recovered) => recovered,
            Err(error) => {
                let _ = new.close().await;
                return Err(error);
            }
        };
        if let Err(error) = self.replace(&records) {
            let _ = new.close().await;
            return Err(error);
        }
        // From here on, the new ones are in effect.
        let (old, from, again) = {
            let mut machine = self.state.machine();
            let is_again = |(number, status): &&(Number, Status)| {
                !matches!(status, Status::Rejected(_)) && machine.events(*number).is_none()
            };
            let again = restored.review().iter().filter(is_again).count();
            let mut confirmed = self.state.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
            let from = machine.generation();
            *machine = restored;
            (std::mem::replace(&mut *confirmed, new), from, again as u64)
        };
        let closed = old.close().await.map_err(Error::from);
        let aside = closed.and_then(|()| self.state.change_names(|| set_aside(&self.directory, from)));
        let aside = aside.unwrap_or_else(|error| {
            tracing::warn!(%error, "older confirmed events were not moved aside; the next opening does it");
            path_of(&self.directory, from)
        });
        Ok((aside, again))
    }

    /// The new journal, and the state that it leads to.
    async fn recovered(&self, common: Version, new: &Arc<dyn EventStore>) -> Result<(Vec<Record>, Machine)> {
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
        sync_directory(&self.directory)?;
        let restored = restore(records.clone(), new, self.is_same).await?;
        Ok((records, restored))
    }
}

/// Moves the confirmed events of an older generation aside.
pub(crate) fn set_aside(directory: &Path, generation: u32) -> Result<PathBuf> {
    let aside = directory.join("aside");
    let target = aside.join(generation.to_string());
    let moved = create_private_dir(&aside).and_then(|()| std::fs::rename(path_of(directory, generation), &target));
    moved.map_err(|error| StoreError::engine("move older confirmed events aside", error))?;
    sync_directory(&aside)?;
    sync_directory(directory)?;
    Ok(target)
}

/// Why events were not copied.
enum NotCopied {
    /// They are not stored, or that is unknown.
    NotThere(StoreError),
    /// They are stored, but not as they should be.
    Wrong(StoreError),
}

impl NotCopied {
    fn error(self) -> StoreError {
        let (NotCopied::NotThere(error) | NotCopied::Wrong(error)) = self;
        error
    }
}

/// The place after these events, which follow a place.
pub(crate) fn behind(since: Place, events: &[RecordedEvent]) -> Place {
    let version = events.last().map_or(since.version, |last| last.version);
    Place::new(version, events.iter().fold(since.digest, Digest::chain))
}

/// Appends copies of events. The last one must be at the place `end`.
async fn copy(store: &Arc<dyn EventStore>, events: &[RecordedEvent], end: Place) -> Result<(), NotCopied> {
    let ctx = &Context::background();
    store.store_batch(ctx, Batch::copy_of(events)).await.map_err(NotCopied::NotThere)?;
    // The digest covers versions and revisions, so equality also means equal positions.
    let digest = store.digest(ctx, end.version).await.map_err(NotCopied::Wrong)?;
    if digest != end.digest {
        let version = events.first().map(|first| first.version);
        let reason = "copies of the hub's events differ from the originals".to_owned();
        return Err(NotCopied::Wrong(StoreError::Corrupt { version, reason }));
    }
    Ok(())
}

//! The one thread that writes: it takes what the queue holds, and commits it as one group with one sync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventstore_api::{Durability, Error, Result, Version};
use tokio::sync::mpsc::error::TryRecvError;
use tracing::trace;

use crate::StoreOptions;
use crate::engine::{CommitError, Engine, WriteBatch};
use crate::head::HeadFile;
use crate::index::Debt;
use crate::observe::Committed;
use crate::queue::{Message, Request};
use crate::shared::{Shared, again, with_causes};
use crate::staging::{Decision, IdKeys, Known, Staging};
use crate::sync::{Ordering, is_past, mpsc, thread};

pub(crate) struct Writer<E> {
    shared: Arc<Shared<E>>,
    queue: mpsc::UnboundedReceiver<Message>,
    group_events: usize,
    group_bytes: usize,
    head: u64,
    /// Tells the next opening how far the log is synced.
    head_file: Option<HeadFile>,
    /// Something may be committed that was not synced. True at first: an earlier process may have been killed between
    /// the two.
    unsynced: bool,
    /// Something of this opening was acknowledged with `Buffered` and not synced since.
    owes_sync: bool,
    batch: WriteBatch,
    /// What is still to go into the index tables.
    debt: Debt,
    /// Made with the first group.
    known: Option<Known>,
    /// Requests that the next group is likely to have.
    expected: usize,
    /// How long the newest commit took.
    commit_took: Duration,
}

impl<E: Engine> Writer<E> {
    pub(crate) fn new(
        shared: Arc<Shared<E>>,
        queue: mpsc::UnboundedReceiver<Message>,
        options: &StoreOptions,
        head: Version,
        debt: Debt,
        head_file: Option<HeadFile>,
    ) -> Self {
        Writer {
            shared,
            queue,
            group_events: options.group_events,
            group_bytes: options.group_bytes,
            head: head.get(),
            head_file,
            unsynced: true,
            owes_sync: false,
            batch: WriteBatch::new(),
            debt,
            known: None,
            expected: 0,
            commit_took: Duration::ZERO,
        }
    }

    /// Works until the store is closed and the queue is empty; then syncs what is not, and releases the engine.
    pub(crate) fn run(mut self) {
        while let Some(message) = self.next_message() {
            // A panic leaves the engine in doubt as a failed commit does. Callers whose request is dropped unanswered
            // are told that the outcome is unknown.
            let worked = catch_unwind(AssertUnwindSafe(|| {
                let group = self.take_group(message);
                let requests = group.len();
                self.shared.newest_group.store(requests as u64, Ordering::Relaxed);
                self.commit_group(group);
                self.expected = requests + self.queue.len();
            }));
            if worked.is_err() {
                self.shared.fence("the writer panicked; its message is in the log".to_owned());
            }
            if self.shared.is_closing() {
                self.queue.close(); // what is in the queue is still received, nothing new comes in
            }
        }
        let last_sync = catch_unwind(AssertUnwindSafe(|| {
            let synced = self.last_sync();
            if synced.is_ok() && self.shared.check_fence().is_ok() {
                self.settle();
            }
            synced
        }));
        let last_sync = last_sync.unwrap_or_else(|_| Err(Error::engine("sync", "the engine panicked")));
        self.shared.finish_closing(last_sync.err());
    }

    /// Waits for a message; `None` once the queue is closed and empty. Whoever was just answered often appends again at
    /// once: for that long the thread stays awake, because being woken takes about as long as a sync of a fast disk.
    fn next_message(&mut self) -> Option<Message> {
        let awake_until = Instant::now() + STAY_AWAKE;
        loop {
            match self.queue.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) if !is_past(awake_until) => thread::yield_now(),
                Err(TryRecvError::Empty) => return self.queue.blocking_recv(),
            }
        }
    }

    /// # Errors
    ///
    /// If it fails, or must not be tried, events that were acknowledged with `Buffered` may not survive a power cut.
    fn last_sync(&mut self) -> Result<()> {
        trace!(name: "closing", "the queue is closed and empty");
        match self.shared.check_fence() {
            Ok(()) if self.unsynced => self.sync(),
            Err(fenced) if self.owes_sync => Err(fenced),
            _ => Ok(()),
        }
    }

    /// Writes what is left for the index tables, so that the next opening has no log to read.
    fn settle(&mut self) {
        let Writer { shared, debt, .. } = self;
        if let Err(error) = shared.with_engine(|engine| debt.settle(&shared.index, engine)) {
            tracing::warn!(error = with_causes(&error), "the index tables are behind; the next opening takes longer");
        }
    }

    fn take_group(&mut self, first: Message) -> Vec<Request> {
        let mut group = Vec::new();
        self.let_callers_return();
        let (mut events, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(message) = next {
            if let Message::Append(request) = message
                && request.ticket.stage()
            {
                if self.shared.fence_reason().is_none() {
                    // What a fenced writer refuses is no work, and a recorder that panicked does not do so again.
                    self.shared.observer.dequeued(request.queued_at.elapsed());
                }
                events += request.events.len();
                bytes += request.bytes;
                group.push(request);
            }
            let is_full = events >= self.group_events || bytes >= self.group_bytes;
            next = if is_full { None } else { self.queue.try_recv().ok() };
        }
        group
    }

    /// Where several appended at once, those who were just answered are likely to append again: taking the few that are
    /// back already would leave the others to a sync of their own. So the processor is left to them until all are back, for
    /// a small part of the time that a commit takes at most.
    fn let_callers_return(&self) {
        let until = Instant::now() + (self.commit_took / 4).min(MOST_PATIENCE);
        while 1 + self.queue.len() < self.expected && !is_past(until) {
            thread::yield_now();
        }
    }

    fn commit_group(&mut self, mut group: Vec<Request>) {
        if group.is_empty() {
            return; // it was only a wake, or everyone has withdrawn
        }
        trace!(name: "taken", requests = group.len(), "took a group from the queue");
        let (decisions, staged) = match self.stage(&group) {
            Ok(staged) => staged,
            Err(error) => return refuse_all(group, &error),
        };
        trace!(name: "staged", head = staged.head, "staged a group");
        // The bytes are in the batch: the places in the queue are free.
        group.iter_mut().for_each(|request| request.place = None);
        let rests_on_commit: Vec<bool> = decisions
            .iter()
            .map(|decision| match decision {
                Decision::Staged(_) => true,
                // Already stored is not already synced: it may have been stored with `Buffered`, or in this group.
                Decision::AlreadyStored(_) => self.unsynced || staged.head > self.head,
                Decision::Refused(_) => false,
            })
            .collect();
        let needs_sync = group.iter().zip(&rests_on_commit).any(|(request, &rests)| rests && request.is_sync());
        let committed = self.commit(staged, if needs_sync { Durability::Sync } else { Durability::Buffered });
        if matches!(committed, Err(Failure::NotWritten(_))) && group.len() > 1 {
            // One that finds no room must not take the others with it.
            return group.into_iter().for_each(|request| self.commit_group(vec![request]));
        }
        if committed.is_ok() {
            trace!(name: "published", head = self.head, "readers see a group, whose callers are answered now");
        }
        for ((request, decision), rests_on_commit) in group.into_iter().zip(decisions).zip(rests_on_commit) {
            let result = match (decision, &committed) {
                (Decision::Staged(_) | Decision::AlreadyStored(_), Err(failure)) if rests_on_commit => {
                    Err(failure.answer())
                }
                (Decision::Staged(places) | Decision::AlreadyStored(places), _) => Ok(places),
                (Decision::Refused(refusal), Err(failure)) => Err(failure.answer_refused(refusal)),
                (Decision::Refused(refusal), Ok(())) => Err(refusal),
            };
            let _ = request.reply.send(result); // a caller who has gone does not want it
        }
        trace!(name: "answered", "answered the callers of a group");
    }

    /// Decides every request of the group, and puts what is to be written into the batch.
    fn stage(&mut self, group: &[Request]) -> Result<(Vec<Decision>, Staged)> {
        self.batch.clear();
        self.shared.check_fence()?;
        let index = &self.shared.index;
        self.debt.begin_group(index);
        let (head, batch, known) = (self.head, &mut self.batch, &mut self.known);
        let id_keys = IdKeys::of(group);
        let (decisions, mut staged) = self.shared.with_engine(|engine| {
            let view = index.view(engine)?;
            let known = known.get_or_insert_with(|| Known::new(&view));
            let mut staging = Staging::new(view, index.newer(), batch, known, &id_keys, head);
            staging.look_ahead();
            let decisions = group.iter().map(|request| staging.decide(request)).collect();
            let (head, new_aggregates) = (staging.head(), staging.new_aggregates());
            Ok((decisions, Staged { head, new_aggregates, bytes: 0 }))
        })?;
        if staged.head > self.head {
            staged.bytes = self.batch.len_bytes() as u64;
            self.debt.pay(&mut self.batch, staged.head - self.head, staged.bytes);
        }
        Ok((decisions, staged))
    }

    /// Writes the batch, if there is one, and syncs, if that is asked for and needed.
    fn commit(&mut self, staged: Staged, durability: Durability) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return match durability {
                Durability::Sync if self.unsynced => self.sync().map_err(|error| self.fail(error)),
                _ => Ok(()),
            };
        }
        let (batch, began) = (&self.batch, Instant::now());
        let outcome = self.shared.with_engine(|engine| Ok(engine.commit(batch, durability)));
        let outcome = outcome.unwrap_or_else(|error| Err(CommitError::NotWritten(error)));
        self.commit_took = began.elapsed();
        match outcome {
            Ok(()) => {
                trace!(name: "committed", head = staged.head, "the engine has committed a group");
                let Staged { head, new_aggregates, bytes } = staged;
                let events = head - self.head;
                self.head = head;
                self.unsynced = durability != Durability::Sync;
                self.owes_sync = self.unsynced;
                if !self.unsynced {
                    self.note_synced();
                }
                self.debt.paid(bytes);
                self.shared.publish(Version::new(head), events, new_aggregates);
                let (bytes, took) = (self.batch.len_bytes(), self.commit_took);
                self.shared.observer.committed(&Committed { events, bytes, head, durability, took });
                Ok(())
            }
            Err(failure) => {
                self.shared.index.take_back(self.head);
                self.debt.not_paid();
                match failure {
                    CommitError::NotWritten(error) => Err(Failure::NotWritten(error)),
                    CommitError::Unknown(error) => Err(self.fail(error)),
                }
            }
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.shared.with_engine(Engine::sync)?;
        (self.unsynced, self.owes_sync) = (false, false);
        self.note_synced();
        Ok(())
    }

    /// Everything up to the head is synced.
    fn note_synced(&mut self) {
        if let Some(file) = &mut self.head_file {
            file.write(Version::new(self.head));
        }
    }

    fn fail(&self, error: Error) -> Failure {
        self.shared.fence(with_causes(&error));
        Failure::Unknown(Arc::new(error))
    }
}

/// How long the writer waits for a message before it sleeps.
const STAY_AWAKE: Duration = Duration::from_micros(100);

/// How long the writer waits for callers to come back, however long a commit takes.
const MOST_PATIENCE: Duration = Duration::from_micros(50);

/// What the store is once the staged group is committed.
#[derive(Clone, Copy)]
struct Staged {
    head: u64,
    new_aggregates: u64,
    /// Bytes of the records.
    bytes: u64,
}

/// Why a group was not committed, to be told to each of its callers.
enum Failure {
    NotWritten(Error),
    Unknown(Arc<Error>),
}

impl Failure {
    /// For an append whose events were to be written.
    fn answer(&self) -> Error {
        match self {
            Failure::NotWritten(error) => again(error),
            Failure::Unknown(error) => {
                Error::OutcomeUnknown { reason: "the commit failed".to_owned(), source: Some(Box::new(error.clone())) }
            }
        }
    }

    /// For one that was refused, perhaps because of events of its group, of which nobody knows now.
    fn answer_refused(&self, refusal: Error) -> Error {
        match self {
            Failure::NotWritten(_) => refusal,
            Failure::Unknown(error) => Error::Fenced { reason: with_causes(&**error) },
        }
    }
}

fn refuse_all(group: Vec<Request>, error: &Error) {
    for request in group {
        let _ = request.reply.send(Err(again(error)));
    }
}

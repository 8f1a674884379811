//! The writer: the one thread that decides what is written. It takes requests from the queue and stages them as a
//! group.
//!
//! While a group is being committed, the next one is staged after it, in memory only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventstore_api::{Error, Result};
use tokio::sync::mpsc::error::TryRecvError;

use crate::StoreOptions;
use crate::engine::Engine;
use crate::index::filters::Filters;
use crate::shared::{Shared, with_causes};
use crate::sync::{Ordering, is_past, linger, mpsc, thread};
use crate::write::commit::{Committer, Desk, Outcome, Prepared};
use crate::write::fenced;
use crate::write::queue::{Message, Request};
use crate::write::staging::{Decision, Ground, IdKeys, Known, Staging};

pub(crate) struct Writer<E: Engine> {
    shared: Arc<Shared<E>>,
    queue: mpsc::UnboundedReceiver<Message>,
    /// The committing thread wakes the writer through it.
    wake: mpsc::UnboundedSender<Message>,
    group_events: usize,
    group_bytes: usize,
    desk: Arc<Desk>,
    /// The group before the pending one is being committed.
    is_committing: bool,
    /// The group that is being staged.
    pending: Prepared,
    /// Its buffers are reused.
    spare: Option<Prepared>,
    /// Created with the first group.
    known: Option<Known>,
    filters: Filters,
    /// The size of the cache of revisions, in bytes.
    revision_cache: usize,
    /// The expected number of requests in the next group.
    expected: usize,
    /// The newest message came soon after the writer began to wait for it.
    is_quick: bool,
}

impl<E: Engine> Writer<E> {
    pub(crate) fn new(
        shared: Arc<Shared<E>>,
        queue: mpsc::UnboundedReceiver<Message>,
        wake: mpsc::UnboundedSender<Message>,
        options: &StoreOptions,
        committer: Option<Committer>,
        filters: Filters,
    ) -> Self {
        let mut pending = Prepared::default();
        pending.begin(shared.log.last());
        Writer {
            shared,
            queue,
            wake,
            group_events: options.group_events,
            group_bytes: options.group_bytes,
            desk: Arc::new(Desk::new(committer)),
            is_committing: false,
            pending,
            spare: None,
            known: None,
            filters,
            revision_cache: options.revision_cache,
            expected: 0,
            is_quick: false,
        }
    }

    /// Runs until the store is closed and the queue is empty. Then syncs what is not synced, and releases the files.
    pub(crate) fn run(mut self) {
        while let Some(message) = self.next_message() {
            // After a panic, the fate of staged requests is unknown. Callers whose request is dropped without an answer
            // get an unknown outcome.
            let worked = catch_unwind(AssertUnwindSafe(|| self.work(message)));
            if worked.is_err() {
                self.shared.fence("the writer panicked; its message is in the log".to_owned());
                self.pending.begin(self.shared.log.last());
            }
            if self.shared.is_closing() {
                self.queue.close(); // queued requests are still received, but no new ones
            }
        }
        let closed = catch_unwind(AssertUnwindSafe(|| self.close()));
        let closed = closed.unwrap_or_else(|_| Err(Error::engine("close", "the engine panicked")));
        self.shared.finish_closing(closed.err());
    }

    /// Waits for a message; `None` once the queue is closed and empty and nothing is pending. Callers often append
    /// again as soon as they are answered, and a wake-up takes about as long as a sync of a fast disk. So the thread
    /// stays awake for a while: for a single caller if the previous message came within that time, for several callers
    /// in any case, yielding to them.
    fn next_message(&mut self) -> Option<Message> {
        let (began, is_for_one) = (Instant::now(), self.shared.serves_one());
        let awake_until = began + if self.is_quick || !is_for_one { STAY_AWAKE } else { Duration::ZERO };
        let message = loop {
            match self.queue.try_recv() {
                Ok(message) => break Some(message),
                Err(TryRecvError::Disconnected) if self.is_committing || !self.pending.is_empty() => {
                    self.desk.wait();
                    break Some(Message::Wake);
                }
                Err(TryRecvError::Disconnected) => break None,
                Err(TryRecvError::Empty) if !is_past(awake_until) && is_for_one => linger(),
                Err(TryRecvError::Empty) if !is_past(awake_until) => thread::yield_now(),
                Err(TryRecvError::Empty) => break self.queue.blocking_recv(),
            }
        };
        self.is_quick = !is_past(began + STAY_AWAKE);
        message
    }

    /// Stages what is in the queue, and commits it unless another group is being committed.
    fn work(&mut self, first: Message) {
        self.take_done();
        self.stage_waiting(Some(first));
        self.take_done();
        if self.is_committing && self.is_full() {
            self.desk.wait();
            self.take_done();
        }
        if self.is_committing || self.pending.is_empty() {
            return;
        }
        self.let_callers_return();
        self.commit_pending();
        if let Some(known) = &mut self.known {
            known.settle(); // uses the time until callers return
        }
    }

    /// Waits briefly for recently answered callers, so that they share one sync. When several callers append at once,
    /// they usually append again after the answer. Committing the few that have already returned would leave the others
    /// to a sync of their own. So this yields the processor until all have returned, for at most a small part of the
    /// time of a commit.
    fn let_callers_return(&mut self) {
        let until = Instant::now() + (self.desk.commit_took() / 4).min(MOST_PATIENCE);
        while self.pending.requests.len() < self.expected && !self.is_full() && !is_past(until) {
            match self.queue.try_recv() {
                Ok(message) => self.stage_waiting(Some(message)),
                Err(_) => thread::yield_now(),
            }
        }
    }

    fn is_full(&self) -> bool {
        self.pending.events >= self.group_events || self.pending.bytes >= self.group_bytes
    }

    /// Takes requests from the queue, beginning with this message, until the group is full, and stages them.
    fn stage_waiting(&mut self, first: Option<Message>) {
        let mut requests = Vec::new();
        let mut next = first;
        while let Some(message) = next {
            if let Message::Append(request) = message
                && request.ticket.stage()
            {
                if self.shared.fence_reason().is_none() {
                    // Requests that a fenced writer refuses do not count as work.
                    self.shared.observer.dequeued(request.queued_at.elapsed());
                }
                self.pending.events += request.events.len();
                self.pending.bytes += request.bytes;
                requests.push(request);
            }
            next = if self.is_full() { None } else { self.queue.try_recv().ok() };
        }
        if !requests.is_empty() {
            tell!(trace, name: "taken", requests = requests.len(), "took appends from the queue");
            self.stage(requests);
            tell!(trace, name: "staged", head = self.pending.head(), "staged them");
        }
    }

    /// Decides the requests and puts what is to be written into the pending group.
    fn stage(&mut self, mut requests: Vec<Request>) {
        if self.shared.fence_reason().is_some() {
            self.desk.wait(); // what is being committed may be repeated here
            return requests.into_iter().for_each(|request| self.answer_fenced(request));
        }
        if let Err(error) = self.try_stage(&requests) {
            for request in requests {
                let _ = request.reply.send(Err(error.clone()));
            }
            return;
        }
        // The bytes are in the group, so the room in the queue is free.
        requests.iter_mut().for_each(|request| request.place = None);
        self.pending.requests.append(&mut requests);
    }

    fn answer_fenced(&self, request: Request) {
        let answer = fenced::answer(&self.shared, &request);
        let _ = request.reply.send(answer); // fails if the caller has gone
    }

    fn try_stage(&mut self, requests: &[Request]) -> Result<()> {
        let Writer { shared, pending, known, filters, desk, revision_cache, .. } = self;
        if pending.is_empty() {
            shared.indexer.begin_group(shared, pending.head())?;
        }
        let id_keys = IdKeys::of(requests);
        let base = pending.head() - pending.group.len() as u64;
        let wait_for_commit = || desk.wait();
        shared.with_parts(|parts| {
            let view = shared.index.view(parts.engine()?);
            let known = known.get_or_insert_with(|| Known::new(&view, filters.budget(), *revision_cache));
            filters.teach(known);
            let recent = shared.index.newer();
            let ground = Ground { view, log: &shared.log, base, wait_for_commit: &wait_for_commit, recent };
            let mut staging = Staging::new(ground, &mut pending.group, known, &id_keys);
            staging.look_ahead();
            pending.decisions.extend(requests.iter().map(|request| staging.decide(request)));
            pending.new_aggregates += staging.finish();
            Ok(())
        })
    }

    /// Commits the pending group: on this thread if nobody else is likely to append meanwhile, otherwise on the
    /// committing thread.
    fn commit_pending(&mut self) {
        let requests = self.pending.requests.len();
        self.shared.newest_group.store(requests as u64, Ordering::Relaxed);
        let others_wait = self.shared.waiting.load(Ordering::Relaxed) > requests as u64;
        if others_wait && self.shared.fence_reason().is_none() {
            let mut next = self.spare.take().unwrap_or_default();
            next.begin(self.pending.head());
            let prepared = std::mem::replace(&mut self.pending, next);
            self.is_committing = true;
            self.expected = 0; // later requests are staged during the commit
            self.desk.hand_over(&self.shared, prepared, &self.wake);
            return;
        }
        let outcome = self.desk.commit(&self.shared, &mut self.pending);
        self.expected = requests + self.queue.len();
        match outcome {
            Outcome::Answered => self.pending.begin(self.shared.log.last()),
            Outcome::NotWritten(_) if self.shared.fence_reason().is_some() => self.refuse_pending(),
            Outcome::NotWritten(error) => self.commit_one_by_one(&error),
        }
    }

    /// Handles the result of the previous group, if it is known.
    fn take_done(&mut self) {
        let Some((mut done, outcome)) = self.desk.take_done() else { return };
        self.is_committing = false;
        match outcome {
            _ if self.shared.fence_reason().is_some() => {
                self.refuse(&mut done);
                self.refuse_pending();
            }
            Outcome::Answered => {}
            Outcome::NotWritten(error) => {
                // What was staged after it is staged again.
                let behind = std::mem::replace(&mut self.pending, done);
                done = Prepared::default();
                self.pending.requests.extend(behind.requests);
                self.commit_one_by_one(&error);
            }
        }
        self.spare = Some(done);
    }

    /// The store is fenced: the pending group was not written and never will be. It stays in memory, with the group
    /// whose fate is unknown.
    fn refuse_pending(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        self.refuse(&mut pending);
        pending.begin(self.shared.log.last());
        self.pending = pending;
    }

    fn refuse(&self, prepared: &mut Prepared) {
        for (request, decision) in prepared.requests.drain(..).zip(prepared.decisions.drain(..)) {
            match decision {
                Decision::Refused(unknown @ Error::OutcomeUnknown { .. }) => drop(request.reply.send(Err(unknown))),
                _ => self.answer_fenced(request),
            }
        }
    }

    /// A group did not fit: each of its requests is tried alone, so that a large one does not fail the others.
    fn commit_one_by_one(&mut self, error: &Error) {
        let requests = std::mem::take(&mut self.pending.requests);
        let is_one = requests.len() == 1;
        self.begin_again();
        for request in requests {
            if is_one {
                let _ = request.reply.send(Err(error.clone()));
                continue;
            }
            self.pending.events += request.events.len();
            self.pending.bytes += request.bytes;
            self.stage(vec![request]);
            if self.pending.is_empty() {
                continue;
            }
            match self.desk.commit(&self.shared, &mut self.pending) {
                Outcome::Answered => self.pending.begin(self.shared.log.last()),
                Outcome::NotWritten(_) if self.shared.fence_reason().is_some() => self.refuse_pending(),
                Outcome::NotWritten(error) => {
                    self.pending.refuse(&error);
                    self.begin_again();
                }
            }
        }
    }

    /// Discards everything staged. Nothing of it was written.
    fn begin_again(&mut self) {
        let head = self.shared.log.last();
        self.shared.index.take_back(head);
        self.shared.indexer.take_back(head);
        if let Some(known) = &mut self.known {
            known.forget_revisions();
        }
        self.pending.begin(head);
    }

    /// # Errors
    ///
    /// Those of the last sync. An index that is behind is not an error.
    fn close(&mut self) -> Result<()> {
        tell!(trace, name: "closing", "the queue is closed and empty");
        let Some(mut committer) = self.desk.clear() else {
            // A damaged log was never written to.
            return if self.shared.index.incomplete().is_some() { Ok(()) } else { self.shared.check_fence() };
        };
        let synced = committer.last_sync(&self.shared);
        if synced.is_ok() && self.shared.check_fence().is_ok() {
            if let Err(error) = self.shared.indexer.settle(&self.shared) {
                let error = with_causes(&error);
                tell!(warn, error, "the index tables are behind; the next opening takes longer");
            } else {
                self.filters.save(&self.shared, self.known.take());
            }
        } else {
            self.shared.indexer.wait();
        }
        committer.close();
        synced
    }
}

/// How long the writer waits for a message before it sleeps.
const STAY_AWAKE: Duration = Duration::from_micros(150);

/// The longest time that the writer waits for callers to return, however long a commit takes.
const MOST_PATIENCE: Duration = Duration::from_micros(50);

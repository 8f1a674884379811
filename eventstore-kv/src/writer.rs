//! The one thread that writes: it takes what the queue holds, and commits it as one group with one sync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use eventstore_api::{Durability, Error, Result, Stored, Version};
use tokio::sync::{mpsc, oneshot};

use crate::StoreOptions;
use crate::engine::{CommitError, Engine, Table, WriteBatch};
use crate::queue::{Message, Request};
use crate::shared::Shared;
use crate::staging::{Decision, Staging};

pub(crate) struct Writer<E> {
    shared: Arc<Shared<E>>,
    queue: mpsc::UnboundedReceiver<Message>,
    group_events: usize,
    group_bytes: usize,
    head: u64,
    /// Something may be committed that was not synced. True at first: an earlier process may have been killed between
    /// the two.
    unsynced: bool,
    batch: WriteBatch,
    /// How many requests the newest group had.
    last_group: usize,
}

/// How a request is answered once the group's commit is done.
struct Answer {
    reply: oneshot::Sender<Result<Vec<Stored>>>,
    result: Result<Vec<Stored>>,
    /// The result rests on events that only this group's commit or sync makes durable.
    rests_on_commit: bool,
}

impl<E: Engine> Writer<E> {
    pub(crate) fn new(
        shared: Arc<Shared<E>>,
        queue: mpsc::UnboundedReceiver<Message>,
        options: &StoreOptions,
        head: Version,
    ) -> Self {
        Writer {
            shared,
            queue,
            group_events: options.group_events,
            group_bytes: options.group_bytes,
            head: head.get(),
            unsynced: true,
            batch: WriteBatch::new(),
            last_group: 0,
        }
    }

    /// Works until the store is closed and the queue is empty; then syncs what is not, and releases the engine.
    pub(crate) fn run(mut self) {
        let mut group = Vec::new();
        while let Some(message) = self.queue.blocking_recv() {
            self.take_group(message, &mut group);
            self.last_group = group.len();
            // A panic leaves the engine in doubt as a failed commit does. Callers whose request is dropped unanswered
            // are told that the outcome is unknown.
            if catch_unwind(AssertUnwindSafe(|| self.commit_group(&mut group))).is_err() {
                self.shared.fence("the writer panicked; its message is in the log".to_owned());
                group.clear();
            }
            if self.shared.is_closing() {
                self.queue.close(); // what is in the queue is still received, nothing new comes in
            }
        }
        let error = if self.unsynced { self.sync().err() } else { None };
        self.shared.finish_closing(error);
    }

    fn take_group(&mut self, first: Message, group: &mut Vec<Request>) {
        if self.last_group > 1 {
            self.let_callers_return();
        }
        let (mut events, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(message) = next {
            if let Message::Append(request) = message
                && request.ticket.stage()
            {
                events += request.events.len();
                bytes += request.bytes;
                group.push(request);
            }
            let is_full = events >= self.group_events || bytes >= self.group_bytes;
            next = if is_full { None } else { self.queue.try_recv().ok() };
        }
    }

    /// Where several appended at once, those who were just answered are likely to append again: taking the few that are
    /// back already would leave the others to a sync of their own. So the processor is left to them for as long as that
    /// makes the queue longer; nobody waits for a timer.
    fn let_callers_return(&self) {
        let mut queued = self.queue.len();
        loop {
            std::thread::yield_now();
            let before = std::mem::replace(&mut queued, self.queue.len());
            if queued <= before || queued >= self.last_group {
                return;
            }
        }
    }

    fn commit_group(&mut self, group: &mut Vec<Request>) {
        if group.is_empty() {
            return;
        }
        let (decisions, head) = match self.stage(group) {
            Ok(staged) => staged,
            Err(error) => return refuse_all(group, &error),
        };
        let mut durability = Durability::Buffered;
        let mut answers = Vec::with_capacity(group.len());
        for (request, decision) in group.drain(..).zip(decisions) {
            let wants_sync = request.durability == Durability::Sync;
            let (result, rests_on_commit) = match decision {
                Decision::Staged(places) => (Ok(places), true),
                // Already stored is not already synced: it may have been stored with `Buffered`, or in this group.
                Decision::AlreadyStored(places) => (Ok(places), self.unsynced || head > self.head),
                Decision::Refused(error) => (Err(error), false),
            };
            if wants_sync && rests_on_commit {
                durability = Durability::Sync;
            }
            answers.push(Answer { reply: request.reply, result, rests_on_commit });
            drop(request.place); // free as soon as its bytes are in the batch
        }
        let committed = self.commit(head, durability);
        for Answer { reply, result, rests_on_commit } in answers {
            let result = match (&committed, result) {
                (Err(failure), Ok(_)) if rests_on_commit => Err(failure.answer()),
                // It may have been refused because of events of this group, of which nobody knows now.
                (Err(failure), Err(_)) => Err(failure.answer_refused()),
                (_, result) => result,
            };
            let _ = reply.send(result); // a caller who has gone does not want it
        }
    }

    /// Decides every request of the group, and returns the head with everything that is to be written.
    fn stage(&mut self, group: &[Request]) -> Result<(Vec<Decision>, u64)> {
        self.batch.clear();
        self.shared.check_fence()?;
        let (head, batch) = (self.head, &mut self.batch);
        let staged = self.shared.with_engine(|engine| {
            let mut staging = Staging::new(engine.snapshot()?, batch, head);
            let decisions = group.iter().map(|request| staging.decide(request)).collect();
            Ok((decisions, staging.head()))
        })?;
        self.batch.sort(Table::Ids);
        self.batch.sort(Table::Aggregates);
        Ok(staged)
    }

    /// Writes the batch, if there is one, and syncs, if that is asked for and needed.
    fn commit(&mut self, head: u64, durability: Durability) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return match durability {
                Durability::Sync if self.unsynced => self.sync().map_err(|error| self.fail(error)),
                _ => Ok(()),
            };
        }
        let batch = &self.batch;
        let outcome = self.shared.with_engine(|engine| Ok(engine.commit(batch, durability)));
        match outcome.unwrap_or_else(|error| Err(CommitError::NotWritten(error))) {
            Ok(()) => {
                let events = head - self.head;
                self.head = head;
                self.unsynced = durability != Durability::Sync;
                self.shared.publish(Version::new(head), events);
                tracing::debug!(events, head, bytes = self.batch.len_bytes(), "committed a group");
                Ok(())
            }
            Err(CommitError::NotWritten(error)) => Err(Failure::NotWritten(error)),
            Err(CommitError::Unknown(error)) => Err(self.fail(error)),
        }
    }

    fn sync(&mut self) -> Result<()> {
        if self.shared.fence_reason().is_some() {
            return Ok(()); // after a failed sync another one proves nothing
        }
        self.shared.with_engine(Engine::sync)?;
        self.unsynced = false;
        Ok(())
    }

    fn fail(&self, error: Error) -> Failure {
        let reason = with_causes(&error);
        self.shared.fence(reason.clone());
        Failure::Unknown(reason)
    }
}

/// Why a group was not committed, to be told to each of its callers.
enum Failure {
    NotWritten(Error),
    Unknown(String),
}

impl Failure {
    fn answer(&self) -> Error {
        match self {
            Failure::NotWritten(error) => again(error),
            Failure::Unknown(reason) => {
                Error::OutcomeUnknown { reason: format!("the commit failed ({reason})"), source: None }
            }
        }
    }

    fn answer_refused(&self) -> Error {
        match self {
            Failure::NotWritten(error) => again(error),
            Failure::Unknown(reason) => Error::Fenced { reason: reason.clone() },
        }
    }
}

fn refuse_all(group: &mut Vec<Request>, error: &Error) {
    for request in group.drain(..) {
        let _ = request.reply.send(Err(again(error)));
    }
}

/// The same error for another caller of the group. Its source cannot be shared, so it becomes text.
fn again(error: &Error) -> Error {
    match error {
        Error::Closed => Error::Closed,
        Error::Full { reason } => Error::Full { reason: reason.clone() },
        Error::Fenced { reason } => Error::Fenced { reason: reason.clone() },
        Error::Corrupt { version, reason } => Error::Corrupt { version: *version, reason: reason.clone() },
        other => Error::engine("append", with_causes(other)),
    }
}

/// The error's text and those of its causes, each once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

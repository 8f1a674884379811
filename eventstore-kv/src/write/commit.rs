//! Commits a group: one write and one sync of the log, then the answers.
//!
//! The writer commits on its own thread if no other append waits. Otherwise it puts the group on the [`Desk`], where a
//! background thread takes it, and stages the next group meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventstore_api::{Durability, Error, Result, Version};
use eventstore_log::{Appender, CommitError, Group};

use crate::StoreDirectory;
use crate::engine::Engine;
use crate::error::{append_error, log_error};
use crate::files::head::HeadFile;
use crate::files::place::Place;
use crate::observe::Committed;
use crate::shared::{Shared, with_causes};
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering, PoisonError, background, is_past, mpsc, thread};
use crate::write::fenced;
use crate::write::queue::{Message, Request};
use crate::write::staging::Decision;

/// A group whose requests were decided.
#[derive(Default)]
pub(crate) struct Prepared {
    /// The records of its new events.
    pub(crate) group: Group,
    pub(crate) requests: Vec<Request>,
    /// One for each request.
    pub(crate) decisions: Vec<Decision>,
    pub(crate) new_aggregates: u64,
    /// The number of events of all requests, and their bytes, new or not.
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Prepared {
    /// Begins a group after this version.
    pub(crate) fn begin(&mut self, behind: u64) {
        self.group.begin(behind + 1);
        self.requests.clear();
        self.decisions.clear();
        (self.new_aggregates, self.events, self.bytes) = (0, 0, 0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The newest version, including the group.
    pub(crate) fn head(&self) -> u64 {
        self.group.next() - 1
    }

    /// Answers all requests. Certainly nothing was written for them.
    pub(crate) fn refuse(&mut self, error: &Error) {
        for (request, decision) in self.requests.drain(..).zip(self.decisions.drain(..)) {
            let answer = match decision {
                // What was decided before the failure is still true if it does not depend on what failed.
                Decision::Refused(unknown @ Error::OutcomeUnknown { .. }) => unknown,
                _ => error.clone(),
            };
            let _ = request.reply.send(Err(answer));
        }
    }
}

/// The result of a commit.
pub(crate) enum Outcome {
    /// Its callers were answered: it is committed, or the store is fenced.
    Answered,
    /// Certainly nothing was written, and the log remains usable. Nobody was answered.
    NotWritten(Error),
}

/// The only writer to the log.
pub(crate) struct Committer {
    appender: Appender,
    /// Records how far the log is synced, for the next opening.
    head_file: Option<HeadFile>,
    /// Something was acknowledged with `Buffered` since opening and not synced yet.
    owes_sync: bool,
    /// The place of the store's directory, if it has one, and the time of the next check.
    place: Option<(Place, Instant)>,
}

/// The time between two checks whether the store's directory is still in place.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

impl Committer {
    /// The committer for the store in this directory, if it has one.
    pub(crate) fn new(appender: Appender, directory: Option<&StoreDirectory>) -> Self {
        let place = directory.map(|directory| (directory.place().clone(), Instant::now()));
        Committer { appender, head_file: directory.map(HeadFile::new), owes_sync: false, place }
    }

    /// Checks now and then whether the store's directory is still in place.
    fn check_place<E: Engine>(&mut self, shared: &Shared<E>) -> Result<()> {
        let Some((place, next_look)) = &mut self.place else { return Ok(()) };
        if !is_past(*next_look) {
            return Ok(());
        }
        *next_look = Instant::now() + BETWEEN_LOOKS;
        shared.fence_if_left(place.check())
    }

    fn told(&self, error: eventstore_log::Error) -> Error {
        append_error(error, self.place.as_ref().map(|(place, _)| place.directory()))
    }

    /// Commits a group, makes it visible to readers, and answers its callers.
    pub(crate) fn commit<E: Engine>(&mut self, shared: &Arc<Shared<E>>, prepared: &mut Prepared) -> Outcome {
        if let Err(fenced) = self.check_place(shared) {
            return Outcome::NotWritten(fenced);
        }
        let before = shared.log.last();
        let is_behind = shared.log.synced() < before;
        let rests_on_commit = |decision: &Decision| match decision {
            Decision::Staged(_) => true,
            // Stored does not mean synced: it may have been stored with `Buffered`, or in this group.
            Decision::AlreadyStored(_) => is_behind || !prepared.group.is_empty(),
            Decision::Refused(_) => false,
        };
        let rests: Vec<bool> = prepared.decisions.iter().map(rests_on_commit).collect();
        let needs_sync = prepared.requests.iter().zip(&rests).any(|(request, rests)| *rests && request.is_sync());
        let committed = self.write(shared, prepared, needs_sync);
        let failure = match committed {
            Ok(()) => None,
            Err(CommitError::NotWritten(error)) => {
                let error = self.told(error);
                if let Error::Fenced { reason } = &error {
                    shared.fence(reason.clone()); // background work has failed
                }
                return Outcome::NotWritten(error);
            }
            Err(CommitError::Unknown(error)) => {
                let error = self.told(error);
                shared.doubt(prepared.head());
                shared.fence(with_causes(&error));
                Some(Failure(error))
            }
        };
        if failure.is_none() {
            tell!(trace, name: "published", head = prepared.head(), "readers see a group, whose callers are answered now");
        }
        let decided = prepared.requests.drain(..).zip(prepared.decisions.drain(..));
        for ((request, decision), rests_on_commit) in decided.zip(rests) {
            let result = match (decision, &failure) {
                (Decision::Staged(_) | Decision::AlreadyStored(_), Some(failure)) if rests_on_commit => {
                    Err(failure.answer())
                }
                (Decision::Staged(places) | Decision::AlreadyStored(places), _) => Ok(places),
                (Decision::Refused(unknown @ Error::OutcomeUnknown { .. }), Some(_)) => Err(unknown),
                // The refusal may rest on events of its group, whose fate is unknown, or on a failed look-up.
                (Decision::Refused(_), Some(_)) => fenced::answer(shared, &request),
                (Decision::Refused(refusal), None) => Err(refusal),
            };
            let _ = request.reply.send(result); // fails if the caller has gone
        }
        tell!(trace, name: "answered", "answered the callers of a group");
        Outcome::Answered
    }

    /// Writes the records if there are any, syncs if required, and publishes.
    fn write<E: Engine>(
        &mut self,
        shared: &Arc<Shared<E>>,
        prepared: &mut Prepared,
        sync: bool,
    ) -> Result<(), CommitError> {
        let Prepared { group, new_aggregates, .. } = prepared;
        if group.is_empty() {
            if sync && shared.log.synced() < shared.log.last() {
                shared.log.sync().map_err(CommitError::Unknown)?;
                self.note_synced(shared);
            }
            return Ok(());
        }
        let (events, bytes, began) = (group.len() as u64, group.bytes(), Instant::now());
        let position = self.appender.commit(group, sync)?;
        let head = position.record();
        tell!(trace, name: "committed", head, "a group is in the log");
        self.owes_sync = !sync;
        if sync {
            self.note_synced(shared);
        }
        let durability = if sync { Durability::Sync } else { Durability::Buffered };
        shared.publish(Version::new(head), events, *new_aggregates);
        shared.indexer.committed(shared, position, bytes as u64);
        if shared.has_files() {
            shared.digests.follow(events, bytes as u64);
        }
        let took = began.elapsed();
        shared.observer.committed(&Committed { events, bytes, head, durability, took });
        Ok(())
    }

    /// Notes that everything up to the log's end is synced.
    fn note_synced<E: Engine>(&mut self, shared: &Shared<E>) {
        self.owes_sync = false;
        if let Some(file) = &mut self.head_file {
            file.write(Version::new(shared.log.synced()));
        }
    }

    /// # Errors
    ///
    /// If the sync fails or cannot be tried, events that were acknowledged with `Buffered` may not survive a power cut.
    pub(crate) fn last_sync<E: Engine>(&mut self, shared: &Shared<E>) -> Result<()> {
        let synced = match shared.check_fence() {
            Ok(()) if shared.log.synced() < shared.log.last() => {
                shared.log.sync().map_err(log_error)?;
                self.note_synced(shared);
                Ok(())
            }
            Err(fenced) if self.owes_sync && shared.log.synced() < shared.log.last() => Err(fenced),
            _ => Ok(()),
        };
        if let Some((_, next_look)) = &mut self.place {
            *next_look = Instant::now();
        }
        synced.and(self.check_place(shared)) // nothing is created by path afterwards
    }

    /// Frees the preallocated space of the log.
    pub(crate) fn close(self) {
        self.appender.close();
    }
}

/// Why a group was not committed, for the answers to its callers.
struct Failure(Error);

impl Failure {
    /// The answer to an append whose events were to be written.
    fn answer(&self) -> Error {
        Error::OutcomeUnknown { reason: "the commit failed".to_owned(), source: Some(self.0.clone().into()) }
    }
}

/// Where the writer puts a group for the committing thread. It holds one at a time.
pub(crate) struct Desk {
    state: Mutex<DeskState>,
    changed: Condvar,
    /// The duration of the newest commit, in nanoseconds.
    took: AtomicU64,
}

#[derive(Default)]
struct DeskState {
    group: OnDesk,
    /// Present while nobody commits; `None` during a commit.
    committer: Option<Committer>,
    /// Whether a thread is watching the desk.
    is_tended: bool,
}

#[derive(Default)]
enum OnDesk {
    #[default]
    Nothing,
    Waiting(Prepared),
    /// It is being committed.
    Taken,
    Done(Prepared, Outcome),
}

/// How long the committing thread waits for the next group before it ends.
const STAY_AWAKE: Duration = Duration::from_micros(100);

impl Desk {
    /// Nobody commits to a damaged log: the store is fenced.
    pub(crate) fn new(committer: Option<Committer>) -> Self {
        let state = DeskState { committer, ..DeskState::default() };
        Desk { state: Mutex::new(state), changed: Condvar::new(), took: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The duration of the newest commit, with its answers.
    pub(crate) fn commit_took(&self) -> Duration {
        Duration::from_nanos(self.took.load(Ordering::Relaxed))
    }

    /// Commits a group on this thread. The desk is empty.
    pub(crate) fn commit<E: Engine>(&self, shared: &Arc<Shared<E>>, prepared: &mut Prepared) -> Outcome {
        let Some(mut committer) = self.lock().committer.take() else {
            prepared.refuse(&Error::Fenced { reason: shared.fence_reason().unwrap_or_default().to_owned() });
            return Outcome::Answered;
        };
        let began = Instant::now();
        // After a panic, the state of the log is unknown, as after a failed commit. Callers whose request is dropped
        // without an answer get an unknown outcome.
        let outcome = catch_unwind(AssertUnwindSafe(|| committer.commit(shared, prepared)));
        let outcome = outcome.unwrap_or_else(|_| {
            shared.doubt(prepared.head());
            shared.fence("a commit panicked; its message is in the log".to_owned());
            prepared.requests.clear();
            Outcome::Answered
        });
        self.took.store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.lock().committer = Some(committer);
        outcome
    }

    /// Hands a group to the committing thread, which wakes the writer when it is done. The desk is empty.
    pub(crate) fn hand_over<E: Engine>(
        self: &Arc<Self>,
        shared: &Arc<Shared<E>>,
        prepared: Prepared,
        writer: &mpsc::UnboundedSender<Message>,
    ) {
        let mut state = self.lock();
        state.group = OnDesk::Waiting(prepared);
        let was_tended = std::mem::replace(&mut state.is_tended, true);
        drop(state); // if no thread is available, the job runs here
        if !was_tended {
            let (desk, shared, writer) = (self.clone(), shared.clone(), writer.clone());
            let _ = background::spawn("eventstore-commit", move || desk.tend(&shared, &writer));
        }
    }

    /// Commits groups on the desk, until none comes for a while.
    fn tend<E: Engine>(&self, shared: &Arc<Shared<E>>, writer: &mpsc::UnboundedSender<Message>) {
        shared.set_committing(Some(thread::current().id()));
        let mut awake_until = Instant::now() + STAY_AWAKE;
        loop {
            let mut state = self.lock();
            if !matches!(state.group, OnDesk::Waiting(_)) {
                if is_past(awake_until) {
                    shared.set_committing(None); // while no other thread can begin
                    state.is_tended = false;
                    return;
                }
                drop(state);
                thread::yield_now();
                continue;
            }
            let OnDesk::Waiting(mut prepared) = std::mem::replace(&mut state.group, OnDesk::Taken) else { continue };
            drop(state);
            let outcome = self.commit(shared, &mut prepared);
            self.lock().group = OnDesk::Done(prepared, outcome);
            self.changed.notify_all();
            let _ = writer.send(Message::Wake); // fails if the writer has panicked
            awake_until = Instant::now() + STAY_AWAKE;
        }
    }

    /// Takes a finished group from the desk.
    pub(crate) fn take_done(&self) -> Option<(Prepared, Outcome)> {
        let mut state = self.lock();
        match std::mem::take(&mut state.group) {
            OnDesk::Done(prepared, outcome) => Some((prepared, outcome)),
            other => {
                state.group = other;
                None
            }
        }
    }

    /// Waits until no group is being committed.
    pub(crate) fn wait(&self) {
        let mut state = self.lock();
        while matches!(state.group, OnDesk::Waiting(_) | OnDesk::Taken) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Removes the committer for good. No group is on the desk.
    pub(crate) fn clear(&self) -> Option<Committer> {
        self.lock().committer.take()
    }
}

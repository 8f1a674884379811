//! Writes the index entries of older events to the engine's tables, after the log, on a background thread.
//!
//! The writer decides when the newer events become the older ones: between two groups. When the last of them is committed,
//! a job starts. It syncs the log if needed, writes the sorted entries with the mark, and then a checkpoint of the log, where the
//! next opening starts to read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use eventstore_api::{Error, Result};
use eventstore_log::Position;

use crate::StoreOptions;
use crate::engine::{Engine, Entries, Table, index_advice};
use crate::error::log_error;
use crate::files::compress;
use crate::format::keys;
use crate::format::mark::Mark;
use crate::index::recent::Recent;
use crate::shared::{Parts, Shared, with_causes};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, background};

/// When events go into the tables, and what became of it.
pub(crate) struct Indexer {
    state: Mutex<State>,
    changed: Condvar,
    run_events: u64,
    run_bytes: u64,
}

#[derive(Default)]
struct State {
    /// Bytes of the records of the newer events.
    newer_bytes: u64,
    /// The last of the older events, until the tables lead to them.
    frozen: Option<u64>,
    /// Those before them, which nobody needs any more.
    spent: Option<Arc<Recent>>,
    is_running: bool,
    failed: Option<Failed>,
}

struct Failed {
    reason: String,
    /// How many newer events there were then: it is tried again when there are more.
    newer: u64,
}

/// So many runs may be in memory and not in the tables; then appends wait.
pub(crate) const MOST_RUNS: u64 = 4;

/// A run that could not be written is tried again when so many more events have come.
const EVENTS_BETWEEN_ATTEMPTS: u64 = 1024;

impl Indexer {
    /// Of a store that was opened with so many bytes of records behind the mark.
    pub(crate) fn new(options: &StoreOptions, newer_bytes: u64) -> Self {
        Indexer {
            state: Mutex::new(State { newer_bytes, ..State::default() }),
            changed: Condvar::new(),
            run_events: options.index_events as u64,
            run_bytes: options.index_bytes as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Between two groups, of which the one before ends with `staged`: if the newer events are many, they become the older
    /// ones. Waits if the tables are too far behind.
    ///
    /// # Errors
    ///
    /// `Full` if they are, and nothing can be written to them.
    pub(crate) fn begin_group<E: Engine>(&self, shared: &Arc<Shared<E>>, staged: u64) -> Result<()> {
        let mut state = self.lock();
        loop {
            let newer = shared.index.newer().len() as u64;
            let is_due = newer >= self.run_events || state.newer_bytes >= self.run_bytes;
            if state.frozen.is_none() {
                if is_due && newer > 0 {
                    state.spent = shared.index.freeze();
                    (state.frozen, state.newer_bytes) = (Some(staged), 0);
                    drop(self.start_if_ready(state, shared, shared.log.position()));
                }
                return Ok(());
            }
            let runs = MOST_RUNS - 1; // beside the older events
            let is_behind = newer >= runs * self.run_events || state.newer_bytes >= runs * self.run_bytes;
            if !is_behind || !state.is_running && state.failed.is_none() {
                return Ok(()); // what was frozen is not committed yet
            }
            if !state.is_running {
                state = self.start_if_ready(state, shared, shared.log.position());
            }
            while state.is_running {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(failed) = &state.failed {
                return Err(Error::Full {
                    reason: format!(
                        "the index is {newer} events behind the log and cannot be written ({}); mend the cause, and \
                         append again",
                        failed.reason
                    ),
                });
            }
        }
    }

    /// A group was committed, up to this position. Called for each, in order.
    pub(crate) fn committed<E: Engine>(&self, shared: &Arc<Shared<E>>, position: Position, bytes: u64) {
        let mut state = self.lock();
        state.newer_bytes += bytes;
        let is_worth_it = state
            .failed
            .as_ref()
            .is_none_or(|failed| shared.index.newer().len() as u64 >= failed.newer + EVENTS_BETWEEN_ATTEMPTS);
        if is_worth_it {
            drop(self.start_if_ready(state, shared, position));
        }
    }

    /// The events behind `head` were not committed: older ones of which that is so are newer ones again.
    pub(crate) fn take_back(&self, head: u64) {
        let mut state = self.lock();
        state.frozen = state.frozen.filter(|&frozen| frozen <= head);
    }

    fn start_if_ready<'a, E: Engine>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        shared: &Arc<Shared<E>>,
        position: Position,
    ) -> MutexGuard<'a, State> {
        let is_ready = state.frozen.is_some_and(|frozen| frozen <= position.record());
        if !is_ready || state.is_running {
            return state;
        }
        state.is_running = true;
        let (has_failed, spent) = (state.failed.is_some(), state.spent.take());
        drop(state); // without a thread to be had, the job runs here
        let shared = shared.clone();
        let _ = background::spawn_low("eventstore-index", move || {
            drop(spent);
            let mut written = write_older_safely(&shared, position);
            if written.is_err() && has_failed {
                // Once more: some engines write nothing more after a failure, until they are opened again.
                written = shared.reopen_engine().and_then(|()| write_older_safely(&shared, position));
            }
            shared.indexer.ended(&shared, written);
        });
        self.lock()
    }

    fn ended<E: Engine>(&self, shared: &Shared<E>, written: Result<()>) {
        let mut state = self.lock();
        state.is_running = false;
        match written {
            Ok(()) => (state.frozen, state.failed) = (None, None),
            Err(error) => {
                let reason = match &error {
                    Error::Corrupt { version: None, reason } => index_advice(reason),
                    other => with_causes(other),
                };
                tell!(warn, error = reason, "the index could not be written; the write is retried");
                state.failed = Some(Failed { reason, newer: shared.index.newer().len() as u64 });
            }
        }
        self.changed.notify_all();
    }

    /// Waits until nothing is being written.
    pub(crate) fn wait(&self) {
        let mut state = self.lock();
        while state.is_running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes all that is left, while nobody appends. Nothing is lost if it fails: the next opening reads more of the log.
    ///
    /// # Errors
    ///
    /// Those of the log and the engine.
    pub(crate) fn settle<E: Engine>(&self, shared: &Arc<Shared<E>>) -> Result<()> {
        self.wait();
        loop {
            if shared.index.unwritten().is_none() {
                if shared.index.newer().len() == 0 {
                    return Ok(());
                }
                drop(shared.index.freeze());
            }
            write_older_safely(shared, shared.log.position())?;
            let mut state = self.lock();
            (state.frozen, state.newer_bytes) = (None, 0);
        }
    }
}

/// The same, also if the engine panics.
fn write_older_safely<E: Engine>(shared: &Arc<Shared<E>>, position: Position) -> Result<()> {
    let write = || shared.with_parts(|parts| write_older(shared, parts, position));
    catch_unwind(AssertUnwindSafe(write))
        .unwrap_or_else(|_| Err(Error::engine("write the index", "the engine panicked")))
}

/// Writes the entries of the older events, all of which lie before `position`, and a checkpoint of the log.
fn write_older<E: Engine>(shared: &Arc<Shared<E>>, parts: &Parts<E>, position: Position) -> Result<()> {
    let Some(older) = shared.index.unwritten() else { return Ok(()) };
    let log = &shared.log;
    if log.synced() < older.end() - 1 {
        log.sync().map_err(|error| {
            let error = log_error(error);
            shared.fence(with_causes(&error));
            error
        })?;
    }
    let version = older.end() - 1;
    let mark = Mark { store: shared.id, version, digest: shared.digests.at(version)? };
    let mut entries = Entries::new();
    older.put_all(&mut entries);
    entries.put(Table::Meta, keys::META_MARK, &mark.to_bytes());
    parts.check_place()?;
    parts.engine()?.write(&entries)?;
    shared.index.written();
    tell!(trace, name: "indexed", version, "the index tables reach further");
    // Openings would only take longer without it.
    match checkpoint(shared, position) {
        Ok(()) => compress::start(shared),
        Err(error) => {
            let error = with_causes(&error);
            tell!(warn, error, "a checkpoint of the log could not be written; openings take longer");
        }
    }
    Ok(())
}

/// Seals what is full of the log, and writes down what the next opening needs to go on from this position, which is synced.
pub(crate) fn checkpoint<E: Engine>(shared: &Shared<E>, position: Position) -> Result<()> {
    if shared.log.synced() < position.record() {
        return Ok(()); // the next one comes
    }
    let blob = shared.digests.at_checkpoint(position.record())?;
    let of_segment = &mut |versions| shared.digests.of_segment(versions).unwrap_or_default();
    shared.log.checkpoint(position, &blob, of_segment).map_err(log_error)
}

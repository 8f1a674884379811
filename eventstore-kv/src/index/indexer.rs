//! Writes the index entries of older events to the engine's tables, after the log, on a background thread.
//!
//! The writer decides between two groups when the newer events become the older ones. When the last of these is
//! committed, a job starts. It syncs the log if needed, writes the sorted entries with the mark, and then a checkpoint
//! of the log, from which the next opening reads.

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

/// Decides when events are written to the tables, and tracks the result.
pub(crate) struct Indexer {
    state: Mutex<State>,
    changed: Condvar,
    run_events: u64,
    run_bytes: u64,
}

#[derive(Default)]
struct State {
    /// The size of the records of the newer events, in bytes.
    newer_bytes: u64,
    /// The last of the older events, until they are in the tables.
    frozen: Option<u64>,
    /// The events before them, which are no longer needed.
    spent: Option<Arc<Recent>>,
    is_running: bool,
    failed: Option<Failed>,
}

struct Failed {
    reason: String,
    /// The number of newer events at that time. Writing is tried again when there are more.
    newer: u64,
}

/// The most runs in memory that are not in the tables. Beyond that, appends wait.
pub(crate) const MOST_RUNS: u64 = 4;

/// After a failed write, a run is tried again after this many more events.
const EVENTS_BETWEEN_ATTEMPTS: u64 = 1024;

impl Indexer {
    /// For a store that was opened with this many bytes of records after the mark.
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

    /// Called between two groups; the previous one ends with `staged`. If there are many newer events, they become the
    /// older ones. Waits if the tables are too far behind.
    ///
    /// # Errors
    ///
    /// `Full` if the tables are too far behind and cannot be written; `Fenced` if that is because the store's directory is
    /// no longer in place.
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
            let runs = MOST_RUNS - 1; // besides the older events
            let is_behind = newer >= runs * self.run_events || state.newer_bytes >= runs * self.run_bytes;
            if !is_behind || !state.is_running && state.failed.is_none() {
                return Ok(()); // the frozen events are not committed yet
            }
            if !state.is_running {
                state = self.start_if_ready(state, shared, shared.log.position());
            }
            while state.is_running {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(reason) = state.failed.as_ref().map(|failed| failed.reason.clone()) {
                drop(state);
                shared.with_parts(|parts| shared.fence_if_left(parts.check_place()))?;
                return Err(Error::Full {
                    reason: format!(
                        "the index is {newer} events behind the log and cannot be written ({reason}); fix the cause, and append again"
                    ),
                });
            }
        }
    }

    /// Notes that a group was committed, up to this position. Called for each group, in order.
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

    /// The events after `head` were not committed. Older events among them become newer ones again.
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
        drop(state); // if no thread is available, the job runs here
        let shared = shared.clone();
        let _ = background::spawn_low("eventstore-index", move || {
            drop(spent);
            let mut written = write_older_safely(&shared, position);
            if written.is_err() && has_failed {
                // Try again: after a failure, some engines write nothing until they are reopened.
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

    /// Waits until no write is running.
    pub(crate) fn wait(&self) {
        let mut state = self.lock();
        while state.is_running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes everything that is left, while nobody appends. If it fails, nothing is lost: the next opening reads more
    /// of the log.
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

/// Like [`write_older`], and catches a panic of the engine.
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
    // Without it, openings just take longer.
    match checkpoint(shared, position) {
        Ok(()) => compress::start(shared),
        Err(error) => {
            let error = with_causes(&error);
            tell!(warn, error, "a checkpoint of the log could not be written; openings take longer");
        }
    }
    Ok(())
}

/// Seals full segments of the log, and writes a checkpoint at this position, which is synced.
pub(crate) fn checkpoint<E: Engine>(shared: &Shared<E>, position: Position) -> Result<()> {
    if shared.log.synced() < position.record() {
        return Ok(()); // a later checkpoint follows
    }
    let blob = shared.digests.at_checkpoint(position.record())?;
    let of_segment = &mut |versions| shared.digests.of_segment(versions).unwrap_or_default();
    shared.log.checkpoint(position, &blob, of_segment).map_err(log_error)
}

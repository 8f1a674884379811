//! What callers and the writer share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use eventstore_api::{Error, Result, Version};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::database::Files;

pub(crate) struct Shared {
    pub(crate) files: Files,
    /// Readers see the store up to `head`, which is published when a commit has returned. What SQLite shows beyond it is
    /// not there yet: otherwise a page could hold what `latest_version` denies.
    pub(crate) state: watch::Sender<State>,
    /// Room in the queue, in bytes; see [`Place`].
    room: Arc<Semaphore>,
    /// How many may read at the same moment.
    pub(crate) readers: Arc<Semaphore>,
    /// Connections that nobody reads with; `None` once the store is closed.
    idle: Mutex<Option<Vec<Connection>>>,
    fence: OnceLock<String>,
    closing_error: OnceLock<String>,
    pub(crate) queued_requests: AtomicU64,
    pub(crate) queued_bytes: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) events_written: AtomicU64,
    pub(crate) largest_group: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) head: Version,
    pub(crate) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Closing,
    Closed,
}

const READERS: usize = 8;

/// Bytes that may wait in the queue.
const ROOM: usize = 64 << 20;

/// What an append takes of the room beside its bytes, so that small ones are bounded in number as well.
const PER_REQUEST: usize = 64 << 10;

impl Shared {
    pub(crate) fn new(files: Files, head: Version) -> Self {
        Shared {
            files,
            state: watch::Sender::new(State { head, phase: Phase::Open }),
            room: Arc::new(Semaphore::new(ROOM)),
            readers: Arc::new(Semaphore::new(READERS)),
            idle: Mutex::new(Some(Vec::new())),
            fence: OnceLock::new(),
            closing_error: OnceLock::new(),
            queued_requests: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            events_written: AtomicU64::new(0),
            largest_group: AtomicU64::new(0),
        }
    }

    /// The published head, for a new read.
    pub(crate) fn head(&self) -> Result<Version> {
        let state = *self.state.borrow();
        if state.phase == Phase::Open { Ok(state.head) } else { Err(Error::Closed) }
    }

    /// Shows a committed group to readers, and wakes who waits for it.
    pub(crate) fn publish(&self, head: Version, events: u64) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.events_written.fetch_add(events, Ordering::Relaxed);
        self.largest_group.fetch_max(events, Ordering::Relaxed);
        self.state.send_modify(|state| state.head = head);
    }

    /// Reads with an idle connection, or a new one. It blocks.
    pub(crate) fn with_reader<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let idle = self.idle().as_mut().ok_or(Error::Closed)?.pop();
        let db = match idle {
            Some(db) => db,
            None => self.files.connect_to_read()?,
        };
        let result = work(&db);
        if let Some(idle) = self.idle().as_mut() {
            idle.push(db);
        }
        result
    }

    fn idle(&self) -> MutexGuard<'_, Option<Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts no more appends until the store is opened again (F1).
    pub(crate) fn fence(&self, reason: String) {
        let _ = self.fence.set(reason); // an earlier reason stays: it is the cause of what came after
    }

    pub(crate) fn fence_reason(&self) -> Option<&str> {
        self.fence.get().map(String::as_str)
    }

    pub(crate) fn check_fence(&self) -> Result<()> {
        match self.fence_reason() {
            Some(reason) => Err(Error::Fenced { reason: reason.to_owned() }),
            None => Ok(()),
        }
    }

    /// Refuses new work, and those who wait for room, from now on.
    pub(crate) fn begin_closing(&self) {
        self.state.send_if_modified(|state| {
            let first = state.phase == Phase::Open;
            state.phase = if first { Phase::Closing } else { state.phase };
            first
        });
        self.room.close();
        self.readers.close();
    }

    /// Gives the files up. A read that is under way still ends as it would have: it may do that while the store is opened
    /// again, because it only reads.
    pub(crate) fn finish_closing(&self, result: std::result::Result<(), String>) {
        self.begin_closing(); // a writer that has panicked comes here first
        *self.idle() = None;
        self.files.unlock();
        if let Err(reason) = result {
            let _ = self.closing_error.set(reason);
        }
        self.state.send_modify(|state| state.phase = Phase::Closed);
    }

    /// What went wrong at the end, the same for everyone who asks.
    pub(crate) fn closing_result(&self) -> Result<()> {
        match self.closing_error.get() {
            Some(reason) => Err(Error::engine("sync the last events", reason.as_str())),
            None => Ok(()),
        }
    }
}

/// The room that an append takes in the queue, given back when it is dropped.
pub(crate) struct Place {
    shared: Arc<Shared>,
    bytes: u64,
    _room: OwnedSemaphorePermit,
}

impl Place {
    /// Waits for room, in order; a batch that is larger than the queue waits for all of it. Dropping the future gives back
    /// what it has (C4).
    pub(crate) async fn take(shared: &Arc<Shared>, bytes: usize) -> Result<Self> {
        let share = (bytes + PER_REQUEST).min(ROOM) as u32;
        let room = shared.room.clone().acquire_many_owned(share).await.map_err(|_| Error::Closed)?;
        shared.queued_requests.fetch_add(1, Ordering::Relaxed);
        shared.queued_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Place { shared: shared.clone(), bytes: bytes as u64, _room: room })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.queued_requests.fetch_sub(1, Ordering::Relaxed);
        self.shared.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

//! The state shared by the handles, the readers and the writer of one store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use eventstore_api::{Error, Result, Version};
use eventstore_log::Log;
use tempfile::TempDir;

use crate::engine::Engine;
use crate::files::open::{INDEX, open_again};
use crate::index::indexer::Indexer;
use crate::index::view::Index;
use crate::observe::Observer;
use crate::read::digests::Digests;
use crate::read::reader;
use crate::sync::{
    AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, OnceLock, Ordering, PoisonError, RwLock, TryLockError, thread,
    watch,
};
use crate::{StoreDirectory, Task};

pub(crate) struct Shared<E: Engine> {
    /// The id of the store and of every copy of it.
    pub(crate) id: [u8; 16],
    pub(crate) log: Log,
    /// `None` once the store is closed. Each read holds the lock for one page, so that closing waits for the pages that
    /// are being read.
    parts: RwLock<Option<Arc<Parts<E>>>>,
    /// The threads with long work that hold the parts without the lock. Closing waits for them as well.
    keepers: Mutex<Vec<thread::ThreadId>>,
    left: Condvar,
    /// For reopening the engine.
    engine_options: E::Options,
    /// Whether nothing may be written.
    is_read_only: bool,
    /// Why the index in the store's directory is not used, if it is damaged.
    pub(crate) unused_index: Option<String>,
    pub(crate) index: Index,
    pub(crate) indexer: Indexer,
    /// Whether the log is being compressed.
    pub(crate) is_compressing: AtomicBool,
    pub(crate) digests: Arc<Digests>,
    progress: watch::Sender<Progress>,
    fence: OnceLock<String>,
    /// Events after the log's end, up to this version, were in a failed commit: nobody knows whether they are stored.
    doubtful: AtomicU64,
    pub(crate) observer: Observer,
    closing_error: Mutex<Option<Error>>,
    pub(crate) commits: AtomicU64,
    pub(crate) events_written: AtomicU64,
    pub(crate) largest_group: AtomicU64,
    /// The number of requests in the newest group.
    pub(crate) newest_group: AtomicU64,
    /// The number of callers waiting for the answer to an append.
    pub(crate) waiting: AtomicU64,
    /// The thread that commits beside the writer, if there is one.
    committing: Mutex<Option<thread::ThreadId>>,
    aggregates: Aggregates,
}

/// Everything that is released when the store is closed.
pub(crate) struct Parts<E> {
    // Fields drop in this order: the engine is closed before the directory is unlocked.
    /// `None` if it failed and could not be reopened.
    engine: Option<E>,
    /// The directory with its files, which it keeps locked; `None` if it has none.
    pub(crate) directory: Option<StoreDirectory>,
    /// The directory of the engine's files, if the store is read-only and its own cannot be used.
    _temporary: Option<TempDir>,
}

impl<E> Parts<E> {
    pub(crate) fn new(engine: E, directory: Option<StoreDirectory>, temporary: Option<TempDir>) -> Self {
        Parts { engine: Some(engine), directory, _temporary: temporary }
    }

    /// # Errors
    ///
    /// `Open` if the directory is not where it was.
    pub(crate) fn check_place(&self) -> Result<()> {
        self.directory.as_ref().map_or(Ok(()), |directory| directory.place().check())
    }

    /// # Errors
    ///
    /// If the engine failed and could not be reopened.
    pub(crate) fn engine(&self) -> Result<&E> {
        self.engine.as_ref().ok_or_else(|| {
            Error::engine(
                "use the index",
                "a write to it failed, and it could not be reopened; close and reopen the store",
            )
        })
    }
}

/// An opened store before its first use.
pub(crate) struct Opened<E: Engine> {
    pub(crate) parts: Parts<E>,
    /// Why the index in the store's directory is not used, if the store is read-only and its index is damaged.
    pub(crate) unused_index: Option<String>,
    pub(crate) engine_options: E::Options,
    pub(crate) id: [u8; 16],
    pub(crate) log: Log,
    pub(crate) index: Index,
    pub(crate) indexer: Indexer,
    pub(crate) digests: Digests,
    /// The tables have the events up to this version.
    pub(crate) mark: Version,
    /// The number of aggregates whose first event is after that version.
    pub(crate) recent_aggregates: u64,
}

/// The number of aggregates. Those that existed when the store was opened are counted on first request, because the
/// time to open must not grow with them.
struct Aggregates {
    /// Aggregates whose first event is at or before this version still have to be counted.
    mark_at_opening: Version,
    /// The known number of the other aggregates.
    recent_at_opening: u64,
    at_opening: OnceLock<u64>,
}

/// The state that readers, subscribers and closers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The newest committed version. Later ones are not visible, although the log may have them already.
    pub(crate) head: Version,
    /// The number of aggregates that got their first event since opening, up to the head.
    pub(crate) new_aggregates: u64,
    pub(crate) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Closing,
    Closed,
}

impl<E: Engine> Shared<E> {
    /// Its work is not observed until [`told`](Shared::told) sets a name.
    pub(crate) fn new(opened: Opened<E>) -> Self {
        let Opened { parts, unused_index, engine_options, id, log, index, indexer, digests, mark, recent_aggregates } =
            opened;
        let fence = OnceLock::new();
        if let Some(incomplete) = index.incomplete() {
            let _ = fence.set(incomplete.fence_reason());
        }
        let head = Version::new(log.last());
        let is_read_only = parts.directory.as_ref().is_some_and(StoreDirectory::is_read_only);
        Shared {
            id,
            log,
            parts: RwLock::new(Some(Arc::new(parts))),
            keepers: Mutex::new(Vec::new()),
            left: Condvar::new(),
            engine_options,
            is_read_only,
            unused_index,
            index,
            indexer,
            is_compressing: AtomicBool::new(false),
            digests: Arc::new(digests),
            progress: watch::Sender::new(Progress { head, new_aggregates: 0, phase: Phase::Open }),
            fence,
            doubtful: AtomicU64::new(0),
            observer: Observer::silent(E::NAME),
            closing_error: Mutex::new(None),
            commits: AtomicU64::new(0),
            events_written: AtomicU64::new(0),
            largest_group: AtomicU64::new(0),
            newest_group: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            committing: Mutex::new(None),
            aggregates: Aggregates {
                mark_at_opening: mark,
                recent_at_opening: recent_aggregates,
                at_opening: OnceLock::new(),
            },
        }
    }

    /// The same store with this value of the label `store` in its metrics; the name of its directory if the value is
    /// empty.
    pub(crate) fn told(mut self, label: &str) -> Self {
        let name = || {
            let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
            let path = parts.as_ref()?.directory.as_ref()?.path().to_owned();
            Some(path.file_name()?.to_string_lossy().into_owned())
        };
        let store = match label {
            "" => name().unwrap_or_else(|| "memory".to_owned()),
            label => label.to_owned(),
        };
        self.observer = Observer::new(E::NAME, store, self.log.last());
        if self.fence.get().is_some() {
            self.observer.set_fenced();
        }
        self
    }

    /// Whether the newest group had a single request, or there was no group yet.
    pub(crate) fn serves_one(&self) -> bool {
        self.newest_group.load(Ordering::Relaxed) <= 1
    }

    /// Notes that a thread begins or ends to commit beside the writer.
    pub(crate) fn set_committing(&self, thread: Option<thread::ThreadId>) {
        *self.committing.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }

    /// Whether this thread commits beside the writer, which may wait for it.
    pub(crate) fn is_committing_here(&self) -> bool {
        *self.committing.lock().unwrap_or_else(PoisonError::into_inner) == Some(thread::current().id())
    }

    /// Runs short work with the parts. It blocks; see `store.rs` for where it may be called.
    pub(crate) fn with_parts<T>(&self, work: impl FnOnce(&Parts<E>) -> Result<T>) -> Result<T> {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        work(parts.as_ref().ok_or(Error::Closed)?)
    }

    /// Like [`with_parts`](Self::with_parts), without waiting: `None` while the engine is being reopened or the store
    /// closes.
    pub(crate) fn try_with_parts<T>(&self, work: impl FnOnce(&Parts<E>) -> Result<T>) -> Option<Result<T>> {
        let parts = match self.parts.try_read() {
            Ok(parts) => parts,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(parts.as_ref().ok_or(Error::Closed).and_then(|parts| work(parts)))
    }

    /// Runs long work with the parts. Meanwhile the store may be closed for reads, and the work may call functions that
    /// read the store.
    pub(crate) fn keep_parts<T>(&self, work: impl FnOnce(&Parts<E>) -> Result<T>) -> Result<T> {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        let opened = parts.as_ref().ok_or(Error::Closed)?;
        let _keeper = Keeper::new(self); // dropped after the parts are released
        let opened = opened.clone();
        drop(parts);
        work(&opened)
    }

    fn keepers(&self) -> MutexGuard<'_, Vec<thread::ThreadId>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether closing waits for this thread.
    pub(crate) fn is_kept_here(&self) -> bool {
        self.keepers().contains(&thread::current().id())
    }

    /// Reopens the engine after its writes have failed: some engines write nothing more after one disk error. Readers
    /// wait.
    ///
    /// # Errors
    ///
    /// Those of opening it. Then there is no engine until this is tried again. `Engine` while maintenance uses it.
    pub(crate) fn reopen_engine(&self) -> Result<()> {
        let reaches = self.index.unwritten().map_or(self.log.last(), |older| older.first() - 1);
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let parts = Arc::get_mut(parts.as_mut().ok_or(Error::Closed)?);
        let in_use = || Error::engine("reopen the index", "maintenance is using it");
        let parts = parts.ok_or_else(in_use)?;
        parts.check_place()?;
        let Parts { engine, directory, .. } = parts;
        *engine = None; // its files are closed first
        let path = directory.as_ref().map(|directory| directory.path().join(INDEX));
        let opened = open_again(path.as_deref(), &self.engine_options, self.id, &self.log, &self.digests, reaches)?;
        *engine = Some(opened);
        Ok(())
    }

    /// Whether the store is read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// # Errors
    ///
    /// `Unsupported` if the store is read-only.
    pub(crate) fn check_writable(&self, what: &str) -> Result<()> {
        match self.is_read_only {
            true => {
                Err(Error::Unsupported { what: format!("{what}: the store is open read-only; open it for writing") })
            }
            false => Ok(()),
        }
    }

    /// Whether the store has files.
    pub(crate) fn has_files(&self) -> bool {
        self.with_parts(|parts| Ok(parts.directory.is_some())).unwrap_or_default()
    }

    /// The published head, for a new read.
    pub(crate) fn head(&self) -> Result<Version> {
        Ok(self.open_progress()?.head)
    }

    fn open_progress(&self) -> Result<Progress> {
        let progress = *self.progress.borrow();
        match progress.phase {
            Phase::Open => Ok(progress),
            Phase::Closing | Phase::Closed => Err(Error::Closed),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Makes a committed group visible to readers and wakes those who wait for it.
    pub(crate) fn publish(&self, head: Version, events: u64, new_aggregates: u64) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.events_written.fetch_add(events, Ordering::Relaxed);
        self.largest_group.fetch_max(events, Ordering::Relaxed);
        self.progress.send_modify(|progress| {
            progress.head = head;
            progress.new_aggregates += new_aggregates;
        });
    }

    /// The newest version and the number of aggregates at the same moment. Counts those that existed at opening if
    /// nobody has yet.
    pub(crate) fn count(&self, engine: &E, task: &Task<'_>) -> Result<(Version, u64)> {
        let at_opening = match self.aggregates.at_opening.get() {
            Some(known) => *known,
            None => {
                let Aggregates { mark_at_opening, recent_at_opening, at_opening } = &self.aggregates;
                let counted = reader::count_aggregates(engine, *mark_at_opening, task)? + recent_at_opening;
                *at_opening.get_or_init(|| counted)
            }
        };
        let progress = self.open_progress()?;
        Ok((progress.head, at_opening + progress.new_aggregates))
    }

    /// From now on, new work is refused.
    pub(crate) fn begin_closing(&self) {
        self.progress.send_if_modified(|progress| {
            let first = progress.phase == Phase::Open;
            if first {
                progress.phase = Phase::Closing;
            }
            first
        });
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.progress.borrow().phase != Phase::Open
    }

    /// Releases the files, after current page reads and long work have ended.
    pub(crate) fn finish_closing(&self, error: Option<Error>) {
        let parts = self.parts.write().unwrap_or_else(PoisonError::into_inner).take();
        let mut keepers = self.keepers();
        while !keepers.is_empty() {
            keepers = self.left.wait(keepers).unwrap_or_else(PoisonError::into_inner);
        }
        drop(keepers);
        // Those who wait for the end must be woken even if the engine panics.
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            if let Some(Ok(mut parts)) = parts.map(Arc::try_unwrap)
                && parts.check_place().is_err()
                && let Some(engine) = parts.engine.take()
            {
                engine.abandon();
            }
        }));
        let error = error.or_else(|| dropped.err().map(|_| Error::engine("close the store", "the engine panicked")));
        if let Some(error) = &error {
            tell!(error, error = with_causes(error), "the store was not closed cleanly");
        }
        *self.closing_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        self.progress.send_modify(|progress| progress.phase = Phase::Closed);
    }

    /// The error at closing, if any; the same for everyone who asks.
    pub(crate) fn closing_result(&self) -> Result<()> {
        self.closing_error.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// Refuses appends until the store is reopened (rule F1).
    pub(crate) fn fence(&self, reason: String) {
        // An earlier reason is kept: it is the cause of later ones.
        let _ = self.fence.set(reason.clone());
        self.observer.fenced(&reason);
    }

    /// Fences the store if this check has found that its directory is no longer in place: appended events would be lost, or
    /// go to another store.
    pub(crate) fn fence_if_left(&self, checked: Result<()>) -> Result<()> {
        checked.map_err(|left| {
            let reason = with_causes(&left);
            self.fence(reason.clone());
            Error::Fenced { reason }
        })
    }

    /// The commit of the events up to this version failed, and nobody knows what is stored.
    pub(crate) fn doubt(&self, last: u64) {
        self.doubtful.store(last, Ordering::Release);
    }

    pub(crate) fn doubtful(&self) -> u64 {
        self.doubtful.load(Ordering::Acquire)
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
}

/// A thread with long work, which closing waits for.
struct Keeper<'a, E: Engine>(&'a Shared<E>);

impl<'a, E: Engine> Keeper<'a, E> {
    fn new(shared: &'a Shared<E>) -> Self {
        shared.keepers().push(thread::current().id());
        Keeper(shared)
    }
}

impl<E: Engine> Drop for Keeper<'_, E> {
    fn drop(&mut self) {
        let this = thread::current().id();
        let mut keepers = self.0.keepers();
        if let Some(place) = keepers.iter().position(|keeper| *keeper == this) {
            keepers.swap_remove(place);
        }
        self.0.left.notify_all();
    }
}

/// The error's text and those of its causes, without repetitions.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What is wrong, without the advice.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Corrupt { reason, .. } => reason.clone(),
        other => with_causes(other),
    }
}

//! What the handles, the readers and the writer of one store have in common.

use std::panic::{AssertUnwindSafe, catch_unwind};

use eventstore_api::{Error, Result, Version};

use crate::Task;
use crate::engine::Engine;
use crate::index::{Index, Opened};
use crate::observe::Observer;
use crate::reader;
use crate::sync::{AtomicU64, Mutex, OnceLock, Ordering, PoisonError, RwLock, watch};

pub(crate) struct Shared<E> {
    /// `None` once the store is closed. Each read holds the lock for one page, so that closing waits for the pages that
    /// are being read and for nothing else.
    engine: RwLock<Option<E>>,
    pub(crate) index: Index,
    progress: watch::Sender<Progress>,
    fence: OnceLock<String>,
    pub(crate) observer: Observer,
    closing_error: Mutex<Option<Error>>,
    pub(crate) commits: AtomicU64,
    pub(crate) events_written: AtomicU64,
    pub(crate) largest_group: AtomicU64,
    /// How many requests the newest group had.
    pub(crate) newest_group: AtomicU64,
    aggregates: Aggregates,
}

/// How many aggregates there are. Those that were there when the store was opened are counted when somebody asks for the
/// first time, because opening must not take longer the more there are.
struct Aggregates {
    /// Those whose first event is not behind this version are counted.
    mark_at_opening: Version,
    /// The others, which are known.
    recent_at_opening: u64,
    at_opening: OnceLock<u64>,
}

/// What readers, subscribers and closers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The newest version whose commit is done. Nobody is shown a later one, though the engine may hold it already.
    pub(crate) head: Version,
    /// How many aggregates got their first event since opening, up to the head.
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
    pub(crate) fn new(engine: E, head: Version, mark: Version, opened: Opened) -> Self {
        let Opened { index, recent_aggregates, .. } = opened;
        let fence = OnceLock::new();
        if let Some(incomplete) = index.incomplete() {
            let _ = fence.set(incomplete.error().to_string());
        }
        Shared {
            observer: Observer::new(engine.name()),
            engine: RwLock::new(Some(engine)),
            index,
            progress: watch::Sender::new(Progress { head, new_aggregates: 0, phase: Phase::Open }),
            fence,
            closing_error: Mutex::new(None),
            commits: AtomicU64::new(0),
            events_written: AtomicU64::new(0),
            largest_group: AtomicU64::new(0),
            newest_group: AtomicU64::new(0),
            aggregates: Aggregates {
                mark_at_opening: mark,
                recent_at_opening: recent_aggregates,
                at_opening: OnceLock::new(),
            },
        }
    }

    /// Runs one short piece of engine work. It blocks; see `store.rs` for where it may be called.
    pub(crate) fn with_engine<T>(&self, work: impl FnOnce(&E) -> Result<T>) -> Result<T> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        work(engine.as_ref().ok_or(Error::Closed)?)
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

    /// Shows a committed group to readers and wakes who waits for it.
    pub(crate) fn publish(&self, head: Version, events: u64, new_aggregates: u64) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.events_written.fetch_add(events, Ordering::Relaxed);
        self.largest_group.fetch_max(events, Ordering::Relaxed);
        self.progress.send_modify(|progress| {
            progress.head = head;
            progress.new_aggregates += new_aggregates;
        });
    }

    /// The newest version and the number of aggregates, both of one moment; by counting those that were there at opening if
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

    /// Refuses new work from now on.
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

    /// Drops the engine, which releases its files, once the pages that are being read are done.
    pub(crate) fn finish_closing(&self, error: Option<Error>) {
        let engine = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        // Whoever waits for the end has to be woken, also if the engine panics.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(engine)));
        let error = error.or_else(|| dropped.err().map(|_| Error::engine("close the store", "the engine panicked")));
        if let Some(error) = &error {
            tell(|| tracing::error!(error = with_causes(error), "the store did not close as it should"));
        }
        *self.closing_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        self.progress.send_modify(|progress| progress.phase = Phase::Closed);
    }

    /// What went wrong at the end, the same for everyone who asks.
    pub(crate) fn closing_result(&self) -> Result<()> {
        match &*self.closing_error.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(again(error)),
            None => Ok(()),
        }
    }

    /// Accepts no more appends until the store is reopened (rule F1).
    pub(crate) fn fence(&self, reason: String) {
        // An earlier reason stays: it is the cause of what came after.
        let _ = self.fence.set(reason.clone());
        tell(|| self.observer.fenced(&reason));
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

/// Tells whoever listens to logs and metrics. If that panics, the writer goes on.
fn tell(telling: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(telling));
}

/// The same error for another caller. Its source cannot be shared, so it becomes text.
pub(crate) fn again(error: &Error) -> Error {
    match error {
        Error::Closed => Error::Closed,
        Error::Full { reason } => Error::Full { reason: reason.clone() },
        Error::Fenced { reason } => Error::Fenced { reason: reason.clone() },
        Error::Corrupt { version, reason } => Error::Corrupt { version: *version, reason: reason.clone() },
        Error::Engine { operation, source } => Error::engine(operation, with_causes(&**source)),
        other => Error::engine("go on", with_causes(other)),
    }
}

/// The error's text and those of its causes, each once.
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

/// What is wrong, without what to do.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Corrupt { reason, .. } => reason.clone(),
        other => with_causes(other),
    }
}

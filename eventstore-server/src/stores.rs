//! The stores of a server: a single one, or those of a directory by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use eventstore::backend::EventStore;
use eventstore_api::Error;
use eventstore_wire::Problem;
use serde::Serialize;
use tokio::sync::Mutex as AsyncMutex;

use crate::answer::{Answer, too_many};
use crate::tail::Tail;

/// An open store, and the work of the server on it.
#[derive(Debug)]
pub(crate) struct Served {
    /// Its name; `""` if it is the only one.
    pub(crate) name: String,
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) tail: Tail,
    pub(crate) followers: AtomicUsize,
    pub(crate) sessions: AtomicUsize,
    pub(crate) jobs: Mutex<Vec<Job>>,
}

/// Long work.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Job {
    #[serde(skip)]
    number: u64,
    kind: &'static str,
    done: u64,
    total: u64,
    started: String,
}

impl Served {
    pub(crate) fn new(name: String, store: Arc<dyn EventStore>) -> Arc<Self> {
        Arc::new(Served {
            name,
            tail: Tail::new(store.clone()),
            store,
            followers: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            jobs: Mutex::default(),
        })
    }

    /// Lists a job until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, kind: &'static str) -> JobGuard {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let started = eventstore_wire::format_time(SystemTime::now());
        lock(&self.jobs).push(Job { number, kind, done: 0, total: 0, started });
        JobGuard { served: self.clone(), number }
    }
}

/// The entry of a job in the list.
pub(crate) struct JobGuard {
    served: Arc<Served>,
    number: u64,
}

impl JobGuard {
    /// Reports progress.
    pub(crate) fn report(&self, done: u64, total: u64) {
        if let Some(job) = lock(&self.served.jobs).iter_mut().find(|job| job.number == self.number) {
            (job.done, job.total) = (done, total);
        }
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        lock(&self.served.jobs).retain(|job| job.number != self.number);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Many stores, each in a subdirectory of one directory, opened on demand.
///
/// A name has 1 to 100 characters from `a` to `z`, `0` to `9`, `-`, `_` and `.`, and begins with a letter or a digit.
/// So it is a valid directory name on every system and cannot lead outside.
#[derive(Clone, Debug)]
pub struct Stores {
    directory: PathBuf,
    engine: String,
    options: String,
    most_open: usize,
    idle: Duration,
    is_read_only: bool,
}

impl Stores {
    /// The stores below `directory`, which is created if it is missing, with the engine `lmdb`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Stores {
            directory: directory.into(),
            engine: "lmdb".to_owned(),
            options: String::new(),
            most_open: 100,
            idle: Duration::from_secs(300),
            is_read_only: false,
        }
    }

    /// Sets the engine of all stores, as a URL scheme. `memory` is for tests: such stores are never closed when idle,
    /// because they would be empty when opened again.
    #[must_use]
    pub fn engine(mut self, engine: impl Into<String>) -> Self {
        self.engine = engine.into();
        self
    }

    /// Sets the options with which each store is opened, as in a URL after the `?`.
    #[must_use]
    pub fn options(mut self, options: impl Into<String>) -> Self {
        self.options = options.into();
        self
    }

    /// Sets the most stores that are open at the same time; 100 by default. At the limit, an unused store is closed for
    /// the next one; if all are in use, the next one is refused with `too_many`.
    #[must_use]
    pub fn most_open(mut self, stores: usize) -> Self {
        self.most_open = stores.max(1);
        self
    }

    /// Sets how long an unused store stays open; five minutes by default.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Opens the stores for reading, and writes nothing there.
    #[must_use]
    pub fn read_only(mut self, is_read_only: bool) -> Self {
        self.is_read_only = is_read_only;
        self
    }

    /// Whether a store with this name exists on disk.
    fn has(&self, name: &str) -> bool {
        !self.is_memory() && self.path(name).join("eventstore.json").is_file()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Creates the directory if it is missing.
    fn prepare(&self) -> std::io::Result<()> {
        if self.is_memory() || self.is_read_only { Ok(()) } else { std::fs::create_dir_all(&self.directory) }
    }

    fn is_memory(&self) -> bool {
        self.engine == "memory"
    }

    async fn open(&self, name: &str, create: bool) -> Result<Arc<dyn EventStore>, Error> {
        self.prepare().map_err(|error| Error::Open {
            path: self.directory.display().to_string(),
            reason: "the directory of the stores cannot be created".to_owned(),
            source: Some(error.into()),
        })?;
        let question = if self.options.is_empty() { "" } else { "?" };
        let url = match self.is_memory() {
            true => format!("memory:{question}{}", self.options),
            false => format!("{}:{}{question}{}", self.engine, self.path(name).display(), self.options),
        };
        match (self.is_read_only, create) {
            (true, _) => eventstore::backend::open_read_only(&url).await,
            (false, true) => eventstore::backend::open(&url).await,
            (false, false) => eventstore::backend::open_existing(&url).await,
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 100
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

/// A store of a directory: open, or being opened or closed by the holder of the lock.
#[derive(Debug)]
pub(crate) struct Slot {
    served: Arc<AsyncMutex<Option<Arc<Served>>>>,
    used: Mutex<Instant>,
}

/// The stores that are open or being opened, by name.
type Slots = Arc<Mutex<HashMap<String, Arc<Slot>>>>;

/// The stores that a server serves.
#[derive(Debug)]
pub(crate) enum Source {
    One(Arc<Served>),
    Many {
        stores: Stores,
        slots: Slots,
        /// Whether all were closed. Changed and read with the slots locked.
        is_closed: AtomicBool,
    },
}

impl Source {
    pub(crate) fn one(store: Arc<dyn EventStore>) -> Self {
        Source::One(Served::new(String::new(), store))
    }

    pub(crate) fn many(stores: Stores) -> Self {
        Source::Many { stores, slots: Slots::default(), is_closed: AtomicBool::new(false) }
    }

    /// The store with this name.
    pub(crate) async fn get(&self, name: &str, create: bool) -> Answer<Arc<Served>> {
        let (stores, slots, is_closed) = match self {
            Source::One(served) => return Ok(served.clone()),
            Source::Many { stores, slots, is_closed } => (stores, slots, is_closed),
        };
        if !is_name(name) {
            let detail = format!(
                "{name:?} is not a valid store name: 1 to 100 characters of a-z, 0-9, - _ and ., the first a letter or a digit"
            );
            return Err(Problem::new(400, "malformed", detail).into());
        }
        loop {
            let known = lock(slots).get(name).cloned();
            let is_there = known.is_some() || stores.has(name);
            if !is_there && !create {
                let detail = format!("there is no store {name:?}; PUT its address to create it");
                return Err(Problem::new(404, "not_found", detail).into());
            }
            let slot = match known {
                Some(slot) => slot,
                None => {
                    self.make_room().await?;
                    let new = || Arc::new(Slot { served: Arc::default(), used: Mutex::new(Instant::now()) });
                    let mut slots = lock(slots);
                    if is_closed.load(Ordering::Relaxed) {
                        return Err(Error::Closed.into()); // nobody would close it
                    }
                    slots.entry(name.to_owned()).or_insert_with(new).clone()
                }
            };
            let mut served = slot.served.clone().lock_owned().await;
            if !lock(slots).get(name).is_some_and(|listed| Arc::ptr_eq(listed, &slot)) {
                // It was closed meanwhile and may be opened again.
                continue;
            }
            *lock(&slot.used) = Instant::now();
            if let Some(served) = &*served {
                return Ok(served.clone());
            }
            // In a separate task, so that a cancelled request leaves no half-open store.
            let (stores, slots, name) = (stores.clone(), slots.clone(), name.to_owned());
            let opening = tokio::spawn(async move {
                match stores.open(&name, create).await {
                    Ok(store) => Ok(served.insert(Served::new(name, store)).clone()),
                    Err(error) => {
                        // Those who wait for it try again.
                        lock(&slots).retain(|_, other| !Arc::ptr_eq(other, &slot));
                        Err(error)
                    }
                }
            });
            let opened = opening.await.map_err(|error| Error::engine("open the store", error))?;
            return Ok(opened?);
        }
    }

    /// Whether a store with this name exists.
    pub(crate) fn exists(&self, name: &str) -> bool {
        match self {
            Source::One(_) => true,
            Source::Many { stores, slots, .. } => is_name(name) && (lock(slots).contains_key(name) || stores.has(name)),
        }
    }

    /// The names of all existing stores, sorted.
    pub(crate) fn names(&self) -> std::io::Result<Vec<String>> {
        let Source::Many { stores, slots, .. } = self else { return Ok(Vec::new()) };
        let mut names: Vec<String> = lock(slots).keys().cloned().collect();
        if !stores.is_memory() && stores.directory.is_dir() {
            for entry in std::fs::read_dir(&stores.directory)? {
                let entry = entry?;
                if let Some(name) = entry.file_name().to_str().filter(|name| is_name(name))
                    && stores.has(name)
                {
                    names.push(name.to_owned());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The stores that are open.
    pub(crate) fn open(&self) -> Vec<Arc<Served>> {
        match self {
            Source::One(served) => vec![served.clone()],
            Source::Many { slots, .. } => {
                let slots: Vec<_> = lock(slots).values().cloned().collect();
                slots.iter().filter_map(|slot| slot.served.try_lock().ok()?.clone()).collect()
            }
        }
    }

    /// Closes the least recently used store, if the limit of open stores is reached.
    async fn make_room(&self) -> Answer<()> {
        let Source::Many { stores, slots, .. } = self else { return Ok(()) };
        loop {
            let mut open: Vec<_> = match lock(slots) {
                slots if slots.len() < stores.most_open => return Ok(()),
                slots => slots.iter().map(|(name, slot)| (*lock(&slot.used), name.clone(), slot.clone())).collect(),
            };
            open.sort_by_key(|(used, ..)| *used);
            let mut has_closed = false;
            for (_, name, slot) in open {
                if !stores.is_memory() && self.close_if_unused(&name, &slot).await {
                    has_closed = true;
                    break;
                }
            }
            if !has_closed {
                let detail = format!(
                    "{} stores are open and in use; retry later, or let the server open more",
                    stores.most_open
                );
                return Err(too_many(detail));
            }
        }
    }

    /// Closes stores that were unused for a while.
    pub(crate) async fn close_idle(&self) {
        let Source::Many { stores, slots, .. } = self else { return };
        if stores.is_memory() {
            return;
        }
        let now = Instant::now();
        let all: Vec<_> = lock(slots).iter().map(|(name, slot)| (name.clone(), slot.clone())).collect();
        for (name, slot) in all {
            if now.duration_since(*lock(&slot.used)) >= stores.idle {
                self.close_if_unused(&name, &slot).await;
            }
        }
    }

    /// Closes a store that no request uses, and removes it from the list. Meanwhile, requests for it wait.
    async fn close_if_unused(&self, name: &str, slot: &Arc<Slot>) -> bool {
        let Source::Many { slots, .. } = self else { return false };
        let Ok(mut served) = slot.served.clone().try_lock_owned() else { return false };
        if served.as_ref().is_some_and(|served| Arc::strong_count(served) > 1) {
            return false;
        }
        let (slots, slot, name) = (slots.clone(), slot.clone(), name.to_owned());
        let closing = tokio::spawn(async move {
            if let Some(served) = served.take()
                && let Err(error) = served.store.close().await
            {
                tracing::warn!(store = name, %error, "closing a store that was not used failed");
            }
            lock(&slots).retain(|_, other| !Arc::ptr_eq(other, &slot));
        });
        closing.await.is_ok()
    }

    /// Closes all stores. None is opened again: a request may outlast the server.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        let mut result = Ok(());
        let stores = match self {
            Source::One(served) => vec![served.store.clone()],
            Source::Many { slots, is_closed, .. } => {
                let slots: Vec<_> = {
                    let mut slots = lock(slots);
                    is_closed.store(true, Ordering::Relaxed);
                    std::mem::take(&mut *slots).into_values().collect()
                };
                let mut stores = Vec::new();
                for slot in slots {
                    stores.extend(slot.served.lock().await.take().map(|served| served.store.clone()));
                }
                stores
            }
        };
        for store in stores {
            result = result.and(store.close().await);
        }
        result
    }

    /// How long an unused store stays open.
    pub(crate) fn idle(&self) -> Option<Duration> {
        match self {
            Source::One(_) => None,
            Source::Many { stores, .. } => (!stores.is_memory()).then_some(stores.idle),
        }
    }

    /// Creates the directory of many stores if it is missing.
    pub(crate) fn prepare(&self) -> std::io::Result<()> {
        match self {
            Source::Many { stores, .. } => stores.prepare(),
            Source::One(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that outlasts the server must not open a store that nobody closes.
    #[tokio::test]
    async fn what_was_closed_opens_no_store() {
        let source = Source::many(Stores::new("").engine("memory"));
        assert!(source.get("a", true).await.is_ok());
        source.close().await.expect("closed");
        for name in ["a", "b"] {
            assert!(source.get(name, true).await.is_err(), "{name}");
        }
        assert!(source.open().is_empty());
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["orders", "a", "7", "tenant-42_x.y", &"a".repeat(100)] {
            assert!(is_name(name), "{name}");
        }
        for name in
            ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "Orders", "é", "a b", "a\0", "a%2fb", &"a".repeat(101)]
        {
            assert!(!is_name(name), "{name}");
        }
    }
}

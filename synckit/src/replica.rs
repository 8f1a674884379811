//! The replica.

use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eventstore::{Aggregate, Store, backend};
use eventstore_api::{Batch, Context, Cursor, Digest, Error as StoreError, Event, Expected, Place, Version};
use eventstore_log::{create_private_dir, parent_of};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{self, Config, lock};
use crate::confirmed::Confirmed;
use crate::core::{EventPlace, Number, Record, Scope, Status};
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::journal::{Journal, io, remove, sync_directory};
use crate::load::{Basis, Load, Subscribe};
use crate::sync::SyncState;
use crate::worker::{Job, Sizes, State, Wish, Worker, open_confirmed, path_of, restore, set_aside};

/// Options for opening or creating a replica.
///
/// ```no_run
/// # async fn open() -> synckit::Result<()> {
/// let replica = synckit::Options::new("todos.replica").hub("http://127.0.0.1:7080/stores/todos").open().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is opened until `open` is called"]
pub struct Options {
    directory: PathBuf,
    hub: Option<String>,
    store: Option<Store>,
    engine: String,
    read_only: bool,
    must_exist: bool,
    sizes: Sizes,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("directory", &self.directory)
            .field("hub", &self.hub.as_deref().map(eventstore::backend::shown))
            .field("store", &self.store)
            .field("engine", &self.engine)
            .field("read_only", &self.read_only)
            .field("must_exist", &self.must_exist)
            .finish()
    }
}

impl Options {
    /// Options for the replica in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let engine = if cfg!(feature = "lmdb") || !cfg!(feature = "rocksdb") { "lmdb" } else { "rocksdb" };
        Options {
            directory: directory.into(),
            hub: None,
            store: None,
            engine: engine.to_owned(),
            read_only: false,
            must_exist: false,
            sizes: Sizes::default(),
        }
    }

    /// Sets the address of the hub: any store that [`eventstore::open`] accepts. The hub is opened on first use: the
    /// replica works without it. A new replica saves the address for later openings. A replica with another hub saves
    /// the new address once a sync has found the replica's history there, or has
    /// [accepted](crate::SyncOptions::accept_history) the history there.
    ///
    /// Unless the address says otherwise, calls are not retried when the hub cannot be reached
    /// (`retry_for=0s&retry_waits=false` for a served store, `retry_for=2s` for one on PostgreSQL): syncing has its own
    /// pauses.
    pub fn hub(mut self, url: impl Into<String>) -> Self {
        self.hub = Some(url.into());
        self
    }

    /// Uses a store of this process as the hub. This is not saved.
    pub fn hub_store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Sets the engine for the confirmed events of a new replica, as a URL scheme. Default: `lmdb`.
    pub fn engine(mut self, scheme: impl Into<String>) -> Self {
        self.engine = scheme.into();
        self
    }

    /// Makes a new replica read-only: it only follows its hub.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Fails instead of creating a new replica.
    pub fn existing(mut self) -> Self {
        self.must_exist = true;
        self
    }

    /// For tests: compacts the journal after a few records, and gives the store of confirmed events these options, such as
    /// `?segment_size=64KiB`.
    #[cfg(feature = "mutants")]
    #[doc(hidden)]
    pub fn small_files(mut self, store_options: &'static str) -> Self {
        self.sizes = Sizes { journal_records: 4, store_options };
        self
    }

    /// Opens the replica, or creates it if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::NotAReplica`]; [`Error::Hub`] if the hub's address is not one that this build can open; `Locked` while
    /// another process or another handle has it open; errors of its files.
    pub async fn open(self) -> Result<Replica> {
        if let Some(hub) = &self.hub {
            backend::check_url(hub).map_err(|source| Error::Hub { hub: backend::shown(hub), source })?;
        }
        let not =
            |reason: &str| Error::NotAReplica { path: self.directory.display().to_string(), reason: reason.to_owned() };
        let is_there = self.directory.is_dir() && Config::read(&self.directory)?.is_some();
        if !is_there {
            if self.must_exist {
                return Err(not("it has no replica.json"));
            }
            if self.hub.is_none() && self.store.is_none() {
                return Err(not("there is none yet, and no hub was named for a new one"));
            }
            if self.directory.exists() && !self.directory.is_dir() {
                return Err(not("it is a file; name another directory"));
            }
            create_private_dir(&self.directory).map_err(|error| io("make the replica's directory", error))?;
        }
        let lock = lock(&self.directory)?;
        // Another process may have created it meanwhile.
        let found = Config::read(&self.directory)?;
        let mut next_config = None;
        let (config, journal, records, confirmed) = match found {
            Some(config) => {
                if let Some(hub) = self.hub.filter(|hub| config.hub.as_ref() != Some(hub)) {
                    next_config = Some(Config { hub: Some(hub), ..config.clone() });
                }
                // A process that was killed may have left names in the cache only, such as that of a new journal. What is
                // appended to it must not vanish with it.
                sync_directory(&self.directory)?;
                if config::is_unfinished(&self.directory) {
                    // The settings had just got their name. If the sync behind that has failed, the one above has not made
                    // the name durable, but another file with that name is.
                    config.write(&self.directory)?;
                }
                config::finish(&self.directory)?;
                let (journal, records) = Journal::open(&self.directory, config.journal_id())?;
                let generation = tidy(&self.directory, &records)?;
                let path = path_of(&self.directory, generation);
                let confirmed = open_confirmed(&config.engine, &path, self.sizes, false).await?;
                (config, journal, records, confirmed)
            }
            None => {
                let others = std::fs::read_dir(&self.directory).map_err(|error| io("list a directory", error))?;
                let is_unfinished = config::is_unfinished(&self.directory);
                let is_foreign = |name: &str| {
                    let is_of_attempt = name.starts_with("replica.json.")
                        || name.starts_with("journal-1")
                        || name == "confirmed-1"
                        || name == config::UNFINISHED;
                    name != "lock" && !(is_unfinished && is_of_attempt)
                };
                for entry in others {
                    let entry = entry.map_err(|error| io("list a directory", error))?;
                    if is_foreign(&entry.file_name().to_string_lossy()) {
                        return Err(not(
                            "it is not empty and has no replica.json; choose a missing or empty directory, or restore that file",
                        ));
                    }
                }
                // Removes what an interrupted attempt left.
                for entry in std::fs::read_dir(&self.directory).map_err(|error| io("list a directory", error))? {
                    let entry = entry.map_err(|error| io("list a directory", error))?;
                    if entry.path().is_dir() {
                        remove(&entry.path())?;
                    }
                }
                config::begin(&self.directory)?;
                let config = Config::new(self.hub, self.engine, self.read_only);
                let (journal, records) = Journal::begin(&self.directory, config.journal_id())?;
                let path = path_of(&self.directory, 1);
                let confirmed = open_confirmed(&config.engine, &path, self.sizes, true).await?;
                sync_directory(&self.directory)?;
                sync_directory(parent_of(&self.directory))?;
                config.write(&self.directory)?;
                config::finish(&self.directory)?;
                (config, journal, records, confirmed)
            }
        };
        let mut journal = journal;
        let own_written = records.iter().filter(|record| matches!(record, Record::Own(_))).count();
        let hub = match (self.store, &next_config.as_ref().unwrap_or(&config).hub) {
            (Some(store), _) => Hub::Store(store.backend().clone()),
            (None, Some(url)) => Hub::url(url.clone(), &self.directory),
            (None, None) => Hub::Missing,
        };
        let machine = restore(records, &confirmed, hub.same_content()).await?;
        journal.set_kept(machine.needed_records(own_written) as u64);
        let state = Arc::new(State::new(machine, confirmed));
        let (jobs, waiting) = mpsc::channel(1024);
        let worker = Worker {
            directory: self.directory.clone(),
            engine: config.engine.clone(),
            sizes: self.sizes,
            state: state.clone(),
            journal: Some(journal),
            lock: Some(lock),
            next: None,
            is_same: hub.same_content(),
        };
        worker.start(waiting)?;
        Ok(Replica {
            shared: Arc::new(Shared {
                directory: self.directory,
                config: Mutex::new(config),
                next_config: Mutex::new(next_config),
                state,
                jobs,
                appending: AtomicUsize::new(0),
                hub,
                is_checked: AtomicBool::new(false),
                syncing: tokio::sync::Mutex::new(()),
                sync_state: watch::Sender::new(SyncState::Idle),
            }),
        })
    }
}

/// The generation of the journal. Files of other generations are moved aside, or deleted if they are unfinished.
fn tidy(directory: &Path, records: &[Record]) -> Result<u32> {
    let generation = records.iter().find_map(|record| match record {
        Record::Begin(begin) => Some(begin.generation),
        _ => None,
    });
    let generation = generation.unwrap_or(1);
    for entry in std::fs::read_dir(directory).map_err(|error| io("list the replica's directory", error))? {
        let entry = entry.map_err(|error| io("list the replica's directory", error))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("confirmed-")?.parse::<u32>().ok());
        match number {
            Some(number) if number < generation => _ = set_aside(directory, number)?,
            Some(number) if number > generation => remove(&entry.path())?,
            _ => {}
        }
    }
    Ok(generation)
}

/// A replica of a hub: a directory in which a program works offline, and which syncs with the hub.
///
/// *Confirmed* events are an exact prefix of the hub's. *Pending* events are own batches, in order, which are durable
/// when [`append`](Replica::append) returns. Loads and subscriptions return both.
///
/// # Clone
///
/// Cheap; clones are handles to the same replica. Dropping the last one closes it in the background.
#[derive(Clone)]
pub struct Replica {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) directory: PathBuf,
    /// The settings on disk.
    pub(crate) config: Mutex<Config>,
    /// The settings that replace them once the hub is known to be the right one.
    pub(crate) next_config: Mutex<Option<Config>>,
    pub(crate) state: Arc<State>,
    pub(crate) jobs: mpsc::Sender<Job>,
    /// The number of callers that wait for an append.
    pub(crate) appending: AtomicUsize,
    pub(crate) hub: Hub,
    /// Whether the hub was identified as the expected store since the replica was opened.
    pub(crate) is_checked: AtomicBool,
    pub(crate) syncing: tokio::sync::Mutex<()>,
    pub(crate) sync_state: watch::Sender<SyncState>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("directory", &self.shared.directory)
            .field("hub", &self.shared.hub)
            .finish_non_exhaustive()
    }
}

/// The places of appended events.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The number of the new batch; `None` if all events already existed.
    pub batch: Option<Number>,
    /// The place of each event, in their order.
    pub places: Vec<EventPlace>,
    /// The id of each event, in their order, including generated ids.
    pub ids: Vec<String>,
}

/// An unconfirmed batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnBatch {
    /// Its number.
    pub number: Number,
    /// Its status.
    pub status: Status,
    /// Its events, according to the latest decision.
    pub events: Vec<Event>,
}

/// The state of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// The address of the hub, without passwords.
    pub hub: String,
    /// The last visible confirmed version.
    pub confirmed: Version,
    /// The cursor at that version.
    pub cursor: Cursor,
    /// The digest at that version: the hub has the same.
    pub digest: Digest,
    /// The number of own batches to be confirmed, including those that wait for a decision.
    pub pending: usize,
    /// The number of events in them.
    pub pending_events: usize,
    /// The number of own batches that wait for a decision.
    pub waiting: usize,
    /// The number of events in them.
    pub waiting_events: usize,
    /// The number of rejected batches that are kept.
    pub rejected: usize,
    /// The number of events in them.
    pub rejected_events: usize,
    /// How often the replica has accepted another history of its hub.
    pub histories_before: u32,
    /// The state of syncing.
    pub sync: SyncState,
    /// Whether the replica is read-only.
    pub read_only: bool,
}

impl OwnBatch {
    /// Why it was rejected, if it was.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &self.status {
            Status::Rejected(reason) => Some(reason),
            _ => None,
        }
    }
}

impl Replica {
    /// Sends a job to the writing thread and waits for its answer.
    pub(crate) async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let closed = || Error::Store(StoreError::Closed);
        self.shared.jobs.send(job(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Appends events, all or none. They are durable when it returns, with or without a reachable hub.
    ///
    /// An append may be repeated: existing events with the same content are not written again.
    pub fn append(&self, events: impl Into<Batch>) -> Append {
        Append { replica: self.clone(), batch: events.into(), basis: None }
    }

    /// Loads events: the confirmed ones, followed by the pending ones.
    pub fn load(&self) -> Load {
        Load::new(self.clone())
    }

    /// Subscribes to the events after a cursor: the confirmed ones that exist, all pending ones, and then changes.
    #[must_use]
    pub fn subscribe(&self, since: Cursor) -> Subscribe {
        Subscribe::new(self.clone(), since)
    }

    /// Loads an aggregate with its pending events, decides, and appends the result if nothing changed meanwhile.
    ///
    /// After a conflict it starts again. So the decision may run several times and must have no side effects.
    ///
    /// # Errors
    ///
    /// Those of the decision and of the replica.
    pub async fn decide<A: Aggregate>(
        &self,
        aggregate_id: &str,
        mut decide: impl FnMut(&A) -> Result<Vec<A::Event>, A::Error> + Send,
    ) -> Result<(A, Appended), DecideError<A::Error>> {
        loop {
            let loaded = self.load().aggregate(aggregate_id).await?;
            let mut state = A::default();
            for entry in &loaded.entries {
                state.apply(entry.event().decode().map_err(Error::from)?);
            }
            let decided = decide(&state).map_err(DecideError::Rejected)?;
            let events: Vec<Event> = decided
                .iter()
                .map(|event| Event::of(aggregate_id, event))
                .collect::<Result<_, StoreError>>()
                .map_err(Error::from)?;
            if events.is_empty() {
                return Ok((state, Appended { batch: None, places: Vec::new(), ids: Vec::new() }));
            }
            match self.append(events).basis(&loaded.basis).await {
                Ok(appended) => {
                    decided.into_iter().for_each(|event| state.apply(event));
                    return Ok((state, appended));
                }
                Err(Error::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The cursor after the last confirmed event, to resume a durable subscription from. Pending events do not count.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files.
    pub async fn cursor(&self) -> Result<Cursor> {
        self.cursor_at(Version::new(u64::MAX)).await
    }

    /// The cursor after the confirmed event with this version, or after the last one if the replica ends before it.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files.
    pub async fn cursor_at(&self, version: Version) -> Result<Cursor> {
        Ok(self.place_at(version).await?.cursor())
    }

    async fn place_at(&self, version: Version) -> Result<Place> {
        loop {
            let view = self.shared.state.view();
            let version = version.min(view.published);
            match view.confirmed.digest(&Context::background(), version).await {
                Ok(digest) => return Ok(Place::new(version, digest)),
                Err(StoreError::Closed) if self.shared.state.has_moved_on(&view) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The confirmed events as a read-only store: for projections, whose cursors count only confirmed events, and to be
    /// served to other programs and to read-only replicas.
    ///
    /// Closing it does nothing; when the replica is closed, its calls fail.
    #[must_use]
    pub fn confirmed(&self) -> Store {
        Store::new(Confirmed(self.shared.state.clone()))
    }

    /// The unconfirmed own batches, in order, without rejected ones.
    #[must_use]
    pub fn pending(&self) -> Vec<OwnBatch> {
        self.own_batches(|status| !matches!(status, Status::Rejected(_)))
    }

    /// The rejected batches that were not deleted.
    #[must_use]
    pub fn rejected(&self) -> Vec<OwnBatch> {
        self.own_batches(|status| matches!(status, Status::Rejected(_)))
    }

    fn own_batches(&self, is_wanted: impl Fn(&Status) -> bool) -> Vec<OwnBatch> {
        let machine = self.shared.state.machine();
        let wanted = machine.review().into_iter().filter(|(_, status)| is_wanted(status));
        let batch = |(number, status)| Some(OwnBatch { number, status, events: machine.events(number)?.to_vec() });
        wanted.filter_map(batch).collect()
    }

    /// Deletes a rejected batch. Its ids may then be reused. Returns whether there was such a batch.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files.
    pub async fn delete_rejected(&self, batch: Number) -> Result<bool> {
        self.ask(|reply| Job::Delete { batch, reply }).await
    }

    /// The state of the replica.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files.
    pub async fn status(&self) -> Result<ReplicaStatus> {
        let place = self.place_at(Version::new(u64::MAX)).await?;
        let (review, generation) = {
            let machine = self.shared.state.machine();
            let batches = machine.review().into_iter();
            let events = |number| machine.events(number).map_or(0, <[Event]>::len);
            let review: Vec<_> = batches.map(|(number, status)| (status, events(number))).collect();
            (review, machine.generation())
        };
        let count = |is_wanted: fn(&Status) -> bool| {
            let wanted = review.iter().filter(|(status, _)| is_wanted(status));
            wanted.fold((0, 0), |(batches, events), (_, of_batch)| (batches + 1, events + of_batch))
        };
        let (pending, pending_events) = count(|status| !matches!(status, Status::Rejected(_)));
        let (waiting, waiting_events) = count(|status| matches!(status, Status::Waiting(_)));
        let (rejected, rejected_events) = count(|status| matches!(status, Status::Rejected(_)));
        let read_only = self.shared.config.lock().unwrap_or_else(PoisonError::into_inner).read_only;
        Ok(ReplicaStatus {
            hub: self.shared.hub.to_string(),
            confirmed: place.version,
            cursor: place.cursor(),
            digest: place.digest,
            pending,
            pending_events,
            waiting,
            waiting_events,
            rejected,
            rejected_events,
            histories_before: generation - 1,
            sync: self.sync_state(),
            read_only,
        })
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Stops all work and releases the files, for all handles.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files. It is closed all the same.
    pub async fn close(&self) -> Result<()> {
        self.shared.hub.forget().await;
        match self.ask(|reply| Job::Close { reply }).await {
            Err(Error::Store(StoreError::Closed)) => {}
            done => done?,
        }
        // The lock is released after that.
        self.shared.jobs.closed().await;
        Ok(())
    }
}

/// An append. It does nothing until it is awaited.
#[derive(Debug)]
#[must_use = "nothing is appended until it is awaited"]
pub struct Append {
    replica: Replica,
    batch: Batch,
    basis: Option<Basis>,
}

impl Append {
    /// Appends only if this condition holds. Conditions on a revision or version refer to confirmed events, and are
    /// refused while own events of their scope are pending: see [`basis`](Append::basis).
    pub fn expected(mut self, expected: Expected) -> Self {
        self.batch.expected = expected;
        self
    }

    /// Appends only if there is nothing that this load had not seen, in its aggregate or, if it was a load of all
    /// events, in the whole store. The same must hold at the hub, or the batch goes to the resolver.
    pub fn basis(mut self, basis: &Basis) -> Self {
        self.basis = Some(basis.clone());
        self
    }

    async fn run(self) -> Result<Appended> {
        let Append { replica, batch, basis } = self;
        if replica.shared.config.lock().unwrap_or_else(PoisonError::into_inner).read_only {
            return Err(Error::ReadOnly);
        }
        batch.validate()?;
        if batch.events.is_empty() {
            return Ok(Appended { batch: None, places: Vec::new(), ids: Vec::new() });
        }
        let wish = match basis {
            Some(Basis { scope, seen, generation }) => {
                if let Scope::Aggregate(aggregate_id) = &scope
                    && batch.events.iter().any(|event| event.aggregate_id() != aggregate_id)
                {
                    let reason = format!("the basis is one of {aggregate_id:?}, and an event is of another aggregate");
                    return Err(StoreError::invalid_event("expected", reason).into());
                }
                Wish::Basis { scope, seen, generation }
            }
            None => Wish::Plain(batch.expected),
        };
        let events = batch.events;
        let ids = events.iter().map(|event| event.id().to_owned()).collect();
        let appending = Appending::new(&replica.shared.appending);
        let answer = replica.ask(|reply| Job::Append { events, wish, reply });
        let (batch, places) = awake(answer, || appending.is_alone()).await?;
        Ok(Appended { batch, places, ids })
    }
}

impl IntoFuture for Append {
    type Output = Result<Appended>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A caller that waits for an append.
struct Appending<'a>(&'a AtomicUsize);

impl<'a> Appending<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Appending(count)
    }

    fn is_alone(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a single caller stays awake while it waits for its append.
const STAY_AWAKE: Duration = Duration::from_micros(300);

/// Waits for a future as a store does for an append: a single caller yields to others but does not sleep for a while, because a
/// wake-up takes about as long as a sync of a fast disk.
async fn awake<F: Future>(future: F, is_alone: impl Fn() -> bool) -> F::Output {
    let began = Instant::now();
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && is_alone() && began.elapsed() < STAY_AWAKE {
            std::thread::yield_now();
            cx.waker().wake_by_ref();
        }
        polled
    })
    .await
}

/// Why a decision failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DecideError<E> {
    /// The decision rejected the command.
    Rejected(E),
    /// The replica failed.
    Replica(Error),
}

impl<E> From<Error> for DecideError<E> {
    fn from(error: Error) -> Self {
        DecideError::Replica(error)
    }
}

impl<E: fmt::Display> fmt::Display for DecideError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecideError::Rejected(rejection) => rejection.fmt(f),
            DecideError::Replica(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for DecideError<E> {}

//! The engine of the models, and how they use a store over it.

use std::sync::{Arc, Mutex, MutexGuard};

use eventstore_api::{
    Batch, CancellationToken, Context, Durability, Error, Event, EventStore, Gc, LoadOptions, PageSize, Result, Stored,
    Version,
};
use shuttle::future::block_on;

use crate::engine::{CommitError, Engine, Table, WriteBatch};
use crate::memory::{MemoryEngine, MemorySnapshot};
use crate::sync::{step, thread};
use crate::{KvStore, StoreDirectory, StoreOptions, Task};

pub(crate) type Store = KvStore<Disk>;

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    /// Nothing is written, and the engine goes on.
    Full,
    /// It fails, and nothing of it is there.
    Lost,
    /// It fails, and all of it is there.
    Torn,
    Panics,
}

/// Tables in memory. What else it does is planned, and what is done with it is written down.
#[derive(Debug)]
pub(crate) struct Disk {
    memory: MemoryEngine,
    log: Log,
}

/// What has happened to a [`Disk`], also when that is gone. Nobody steps while it is looked into.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// Of the commits to come; those behind it succeed.
    plan: Vec<Fate>,
    /// Events of commits that have returned with success.
    pub(crate) done: u64,
    /// No commit that has failed may be followed by another, nor by a sync.
    pub(crate) failed: bool,
    pub(crate) called_after_failure: bool,
    pub(crate) is_dropped: bool,
}

impl Log {
    pub(crate) fn look(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("nobody panics in between")
    }
}

impl Disk {
    fn commit_as(&self, fate: Fate, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let failed = || CommitError::Unknown(Error::engine("commit", "as planned"));
        match fate {
            Fate::Done => self.memory.commit(batch, durability),
            Fate::Full => Err(CommitError::NotWritten(Error::Full { reason: "as planned".to_owned() })),
            Fate::Lost => Err(failed()),
            Fate::Torn => self.memory.commit(batch, durability).and_then(|()| Err(failed())),
            // Without the panic hook, which would print a schedule each time.
            Fate::Panics => std::panic::resume_unwind(Box::new("as planned")),
        }
    }
}

impl Engine for Disk {
    type Snapshot<'a> = MemorySnapshot<'a>;

    fn name(&self) -> &'static str {
        "model"
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        self.memory.snapshot()
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let events = batch.puts(Table::Events).len() as u64;
        if events == 0 {
            return self.memory.commit(batch, durability); // the format mark of a new store
        }
        let fate = {
            let mut log = self.log.look();
            log.called_after_failure |= log.failed;
            let fate = if log.plan.is_empty() { Fate::Done } else { log.plan.remove(0) };
            log.failed |= matches!(fate, Fate::Lost | Fate::Torn | Fate::Panics);
            fate
        };
        step(); // it has begun
        self.commit_as(fate, batch, durability)?;
        step(); // it can be read, and is not synced
        self.log.look().done += events;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        step();
        let mut log = self.log.look();
        log.called_after_failure |= log.failed;
        Ok(())
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        None
    }

    fn run_gc(&self, _: Gc, _: &Task<'_>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn backup(&self, _: StoreDirectory, _: &Task<'_>) -> Result<Self> {
        unreachable!("no model asks for one")
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        step();
        self.log.look().is_dropped = true;
    }
}

/// A new store whose first commits end as planned.
pub(crate) fn open(plan: &[Fate]) -> (Store, Log) {
    open_with(plan, StoreOptions::default())
}

/// The same with room for one request, so that appends also wait outside of the queue.
pub(crate) fn open_narrow(plan: &[Fate]) -> (Store, Log) {
    open_with(plan, StoreOptions { queue_requests: 1, ..StoreOptions::default() })
}

/// The same whose index entries are in memory for the shortest time.
pub(crate) fn open_indexing(plan: &[Fate]) -> (Store, Log) {
    open_with(plan, StoreOptions { index_events: 1, ..StoreOptions::default() })
}

fn open_with(plan: &[Fate], options: StoreOptions) -> (Store, Log) {
    let log = Log::default();
    log.look().plan = plan.to_vec();
    let disk = Disk { memory: MemoryEngine::default(), log: log.clone() };
    (KvStore::open(disk, options).expect("it opens"), log)
}

/// An event of an aggregate of its own.
pub(crate) fn event(id: &str) -> Event {
    Event::builder("Happened", id).id(id).build().expect("valid")
}

pub(crate) async fn append(store: &Store, ctx: &Context, id: &str) -> Result<Stored> {
    let batch = Batch::new(vec![event(id)]);
    store.store_batch(ctx, batch).await.map(|stored| stored[0])
}

/// The ids of all events, in order.
pub(crate) async fn ids(store: &Store) -> Result<Vec<String>> {
    let page = store.load_page(&Context::background(), &LoadOptions::default(), PageSize::default()).await?;
    let versions: Vec<u64> = page.events.iter().map(|recorded| recorded.version.get()).collect();
    assert!(versions.iter().copied().eq(1..=versions.len() as u64), "rule O1: {versions:?}");
    Ok(page.events.iter().map(|recorded| recorded.event.id().to_owned()).collect())
}

/// A thread of its own for one task.
pub(crate) fn spawn<T, F>(task: impl FnOnce() -> F + Send + 'static) -> thread::JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    thread::spawn(move || block_on(task()))
}

/// A context, and a thread that cancels it at some time.
pub(crate) fn cancelled_at_some_time() -> (Context, thread::JoinHandle<()>) {
    let token = CancellationToken::new();
    let ctx = Context::background().with_cancellation(token.clone());
    let canceller = thread::spawn(move || {
        step();
        token.cancel();
    });
    (ctx, canceller)
}

pub(crate) fn join<T>(thread: thread::JoinHandle<T>) -> T {
    thread.join().expect("no panic")
}

pub(crate) fn version(version: u64) -> Version {
    Version::new(version)
}

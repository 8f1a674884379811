//! The disk and the engine of the models, and how they use a store over them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use eventstore_api::{
    Batch, CancellationToken, Context, Error, Event, EventStore, LoadOptions, PageSize, Result, Stored, Version,
};
use shuttle::future::block_on;

use crate::engine::{Engine, Entries, Table};
use crate::format::record::Leads;
use crate::log::{self, Directory, File, MemoryDirectory};
use crate::memory::{MemoryEngine, MemorySnapshot};
use crate::sync::{step, thread};
use crate::{KvStore, StoreOptions, Task};

pub(crate) type Store = KvStore<Tables>;

/// What becomes of a group in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    /// There is no room for it, and the log goes on.
    Full,
    /// Its write fails, and nothing of it is there.
    Unwritten,
    /// Its sync fails, and after a power cut nothing of it is there.
    Lost,
    /// Its sync fails, and after a power cut all of it is there.
    Torn,
    /// Its sync panics.
    Panics,
}

/// What becomes of what is written to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IndexFate {
    Done,
    /// It fails, and some of it may be there.
    Fails,
    Panics,
}

/// How a store is opened, and what has happened to it, also when it is gone. Nobody steps while it is looked into.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal(Arc<Mutex<Happened>>);

#[derive(Debug, Default)]
pub(crate) struct Happened {
    /// Of the groups to come; those behind it are committed.
    plan: Vec<Fate>,
    /// Of what is written to the index; what comes behind it succeeds.
    index_plan: Vec<IndexFate>,
    /// What the sync of the newest group comes to.
    sync: Option<Fate>,
    /// The last event whose group was written, and the last one that is synced.
    pub(crate) written: u64,
    pub(crate) done: u64,
    /// The last event to which the index leads. It must not be behind one that is not synced.
    pub(crate) indexed: u64,
    pub(crate) index_was_ahead: bool,
    /// No group that has failed may be followed by another, nor by a sync, nor by an index of it.
    pub(crate) failed: bool,
    pub(crate) called_after_failure: bool,
    /// The index is being written by this many.
    indexing: u64,
    pub(crate) is_dropped: bool,
    /// The files that would be left after a power cut.
    durable: BTreeMap<String, Vec<u8>>,
}

impl Journal {
    pub(crate) fn look(&self) -> MutexGuard<'_, Happened> {
        self.0.lock().expect("nobody panics in between")
    }

    /// The ids of the events that are there after a power cut, in order.
    pub(crate) fn left(&self) -> Vec<String> {
        let files = MemoryDirectory::default();
        for (name, bytes) in &self.look().durable {
            files.create(name).and_then(|file| file.write_at(bytes, 0)).expect("it is in memory");
        }
        let mut ids = Vec::new();
        let mut visit = |version: u64, content: &[u8]| {
            assert_eq!(version, ids.len() as u64 + 1);
            ids.push(Leads::read(version, content).expect("whole").id.to_owned());
        };
        let known = log::Known { synced: 0 };
        let opened = real_log::Log::open(Arc::new(files), [0; 16], &log::Options::default(), known, 0, &mut visit);
        assert!(opened.expect("it opens").damage.is_none(), "the log is damaged");
        ids
    }
}

/// Files in memory. What else they do is planned.
#[derive(Debug)]
struct Disk {
    memory: MemoryDirectory,
    journal: Journal,
}

#[derive(Debug)]
struct DiskFile {
    memory: Arc<dyn File>,
    name: String,
    journal: Journal,
}

impl Disk {
    fn file(&self, name: &str, memory: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(DiskFile { memory, name: name.to_owned(), journal: self.journal.clone() })
    }
}

impl Directory for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.memory.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name, self.memory.open(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name, self.memory.create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.memory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.memory.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.memory.sync()
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.memory.subdirectory(name)
    }

    fn is_memory(&self) -> bool {
        true
    }
}

fn planned() -> io::Error {
    io::Error::other("as planned")
}

/// Without the panic hook, which would print a schedule each time.
fn panic_as_planned() -> ! {
    std::panic::resume_unwind(Box::new("as planned"))
}

impl DiskFile {
    /// A group is written, of which this is the last event.
    fn write_group(&self, bytes: &[u8], at: u64, last: u64) -> io::Result<()> {
        let fate = {
            let mut happened = self.journal.look();
            happened.called_after_failure |= happened.failed;
            let fate = if happened.plan.is_empty() { Fate::Done } else { happened.plan.remove(0) };
            happened.failed |= fate == Fate::Unwritten;
            happened.sync = Some(fate);
            fate
        };
        step(); // it has begun
        match fate {
            Fate::Full => Err(io::ErrorKind::StorageFull.into()),
            Fate::Unwritten => Err(planned()),
            _ => {
                self.memory.write_at(bytes, at)?;
                self.journal.look().written = last;
                step(); // it can be read, and is not synced
                log::wait_for_sync();
                Ok(())
            }
        }
    }

    fn sync_groups(&self) -> io::Result<()> {
        let fate = {
            let mut happened = self.journal.look();
            happened.called_after_failure |= happened.failed;
            let fate = happened.sync.take().unwrap_or(Fate::Done);
            happened.failed |= matches!(fate, Fate::Lost | Fate::Torn | Fate::Panics);
            fate
        };
        let written = self.journal.look().written;
        step(); // it is under way
        let mut bytes = Vec::new();
        self.memory.read_at(&mut bytes, 0, usize::MAX)?;
        match fate {
            Fate::Lost => return Err(planned()),
            Fate::Panics => panic_as_planned(),
            _ => {}
        }
        let mut happened = self.journal.look();
        happened.durable.insert(self.name.clone(), bytes);
        if fate == Fate::Torn {
            return Err(planned());
        }
        happened.done = written;
        Ok(())
    }
}

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        self.memory.read_at(out, at, len)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match last_in(bytes) {
            Some(last) => self.write_group(bytes, at, last),
            None => self.memory.write_at(bytes, at),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        log::syncing(|| self.sync_groups())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The last event of the group that is written with these bytes: as the format of the log says.
fn last_in(bytes: &[u8]) -> Option<u64> {
    let frame = if bytes.starts_with(b"EVSLOG\0") { bytes.get(64..)? } else { bytes };
    let frame = frame.strip_prefix(b"evsF")?;
    let first = u64::from_le_bytes(frame.get(4..12)?.try_into().ok()?);
    let count = u32::from_le_bytes(frame.get(20..24)?.try_into().ok()?);
    Some(first + u64::from(count) - 1)
}

/// Tables in memory. What else they do is planned, and what is done with them is written down.
#[derive(Debug)]
pub(crate) struct Tables {
    memory: MemoryEngine,
    journal: Journal,
}

impl Engine for Tables {
    const NAME: &'static str = "model";
    type Options = Journal;
    type Snapshot<'a> = MemorySnapshot<'a>;

    fn open(_: &Path, journal: &Journal) -> Result<Self> {
        Ok(Tables { memory: MemoryEngine::default(), journal: journal.clone() })
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        self.memory.snapshot()
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        let version = |value: &[u8]| u64::from_be_bytes(value.try_into().expect("a version"));
        let last = entries.of(Table::Ids).map(|(_, value)| version(value)).max().unwrap_or(0);
        let fate = {
            let mut happened = self.journal.look();
            happened.index_was_ahead |= last > happened.done;
            happened.called_after_failure |= last > happened.done && happened.failed;
            happened.indexing += 1;
            assert_eq!(happened.indexing, 1, "two write to the index");
            if happened.index_plan.is_empty() { IndexFate::Done } else { happened.index_plan.remove(0) }
        };
        step(); // it has begun
        let written = match fate {
            IndexFate::Done => self.memory.write(entries),
            _ => Err(Error::engine("write", planned())),
        };
        let mut happened = self.journal.look();
        happened.indexing -= 1;
        if written.is_ok() {
            happened.indexed = last;
        }
        drop(happened);
        step(); // nobody knows of it
        match fate {
            IndexFate::Panics => panic_as_planned(),
            _ => written,
        }
    }

    fn compact(&self, _: &Task<'_>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        step();
        let mut happened = self.journal.look();
        happened.is_dropped = true;
        assert!(!happened.index_was_ahead, "the index was ahead of the log that is synced");
    }
}

/// A new store whose first groups end as planned.
pub(crate) fn open(plan: &[Fate]) -> (Store, Journal) {
    open_with(plan, &[], StoreOptions::default())
}

/// The same with room for one request, so that appends also wait outside of the queue.
pub(crate) fn open_narrow(plan: &[Fate]) -> (Store, Journal) {
    open_with(plan, &[], StoreOptions { queue_requests: 1, ..StoreOptions::default() })
}

/// The same with groups of one event, so that one is staged while another is being committed.
pub(crate) fn open_pipelined(plan: &[Fate]) -> (Store, Journal) {
    open_with(plan, &[], StoreOptions { group_events: 1, ..StoreOptions::default() })
}

/// The same whose index entries are in memory for the shortest time, and what is written of them ends as planned.
pub(crate) fn open_indexing(plan: &[Fate], index_plan: &[IndexFate]) -> (Store, Journal) {
    open_with(plan, index_plan, StoreOptions { index_events: 1, ..StoreOptions::default() })
}

/// Both.
pub(crate) fn open_pipelined_and_indexing(plan: &[Fate], index_plan: &[IndexFate]) -> (Store, Journal) {
    open_with(plan, index_plan, StoreOptions { group_events: 1, index_events: 1, ..StoreOptions::default() })
}

fn open_with(plan: &[Fate], index_plan: &[IndexFate], options: StoreOptions) -> (Store, Journal) {
    log::begin();
    let journal = Journal::default();
    journal.look().plan = plan.to_vec();
    journal.look().index_plan = index_plan.to_vec();
    let disk = Disk { memory: MemoryDirectory::default(), journal: journal.clone() };
    (KvStore::over(Arc::new(disk), journal.clone(), options).expect("it opens"), journal)
}

/// An event of an aggregate of its own.
pub(crate) fn event(id: &str) -> Event {
    event_of(id, id)
}

pub(crate) fn event_of(aggregate_id: &str, id: &str) -> Event {
    Event::builder("Happened", aggregate_id).id(id).build().expect("valid")
}

pub(crate) async fn append(store: &Store, ctx: &Context, id: &str) -> Result<Stored> {
    append_batch(store, ctx, Batch::new(vec![event(id)])).await
}

/// Appends a batch of one event.
pub(crate) async fn append_batch(store: &Store, ctx: &Context, batch: Batch) -> Result<Stored> {
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

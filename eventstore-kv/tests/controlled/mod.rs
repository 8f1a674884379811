//! A store whose disk and engine stop, fail and panic on request.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use eventstore_api::{Direction, Error, Result};
use eventstore_kv::memory::{MemoryEngine, MemorySnapshot};
use eventstore_kv::{Engine, Entries, KeyRange, KvStore, Snapshot, StoreOptions, Table, Task};
use eventstore_log::{Directory, File, MemoryDirectory};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) type Store = KvStore<Controlled>;

/// The outcome of a call, which the test decides while the call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Succeed,
    /// The disk is full. A part of the data may have been written.
    Refuse,
    /// It fails and does nothing.
    Fail,
    /// It fails after it has done everything.
    DoAndFail,
    Panic,
}

impl Order {
    fn obey<T>(self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Order::Succeed => act(),
            Order::Refuse => Err(io::ErrorKind::StorageFull.into()),
            Order::Fail => Err(on_fire()),
            Order::DoAndFail => act().and_then(|_| Err(on_fire())),
            Order::Panic => panic!("it panics, as this test told it to"),
        }
    }
}

fn on_fire() -> io::Error {
    io::Error::other("the disk is on fire")
}

/// A call that waits for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A group of this many events is about to be written to the log.
    Write(usize),
    /// The log is about to be synced.
    Sync,
    /// It is synced, but its caller has not been told.
    Synced,
    /// The writer is about to decide requests that it has taken from the queue.
    Stage,
    /// Entries are about to be written to the index.
    Index,
    /// The engine is reopened.
    Open,
}

/// Where calls wait. Without a test that gives orders, everything succeeds.
#[derive(Debug)]
struct Gate {
    is_shut: AtomicBool,
    calls: UnboundedSender<Call>,
    orders: Mutex<mpsc::Receiver<Order>>,
}

impl Gate {
    fn pass(&self, call: Call) -> Order {
        if !self.is_shut.load(Ordering::SeqCst) {
            return Order::Succeed;
        }
        let _ = self.calls.send(call);
        lock(&self.orders).recv().unwrap_or(Order::Succeed)
    }
}

/// The test's side of a gate.
pub(crate) struct Hand {
    gate: Arc<Gate>,
    calls: UnboundedReceiver<Call>,
    orders: mpsc::Sender<Order>,
}

impl Hand {
    fn new() -> Self {
        let (calls, received_calls) = unbounded_channel();
        let (orders, received_orders) = mpsc::channel();
        let gate = Gate { is_shut: AtomicBool::new(false), calls, orders: Mutex::new(received_orders) };
        Hand { gate: Arc::new(gate), calls: received_calls, orders }
    }

    /// From now on, calls wait.
    pub(crate) fn shut(&self) {
        self.gate.is_shut.store(true, Ordering::SeqCst);
    }

    /// From now on, calls do not wait. One that is waiting still needs its order.
    pub(crate) fn open(&self) {
        self.gate.is_shut.store(false, Ordering::SeqCst);
    }

    /// Waits until a call arrives.
    pub(crate) async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(Duration::from_secs(30), self.calls.recv()).await;
        call.expect("somebody calls").expect("the store lives")
    }

    /// Whether no call arrives for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.calls.try_recv().is_err()
    }

    pub(crate) fn order(&self, order: Order) {
        self.orders.send(order).expect("the store lives");
    }
}

/// The test's side of a store.
pub(crate) struct Control {
    /// Where the log is written and synced.
    pub(crate) log: Hand,
    /// Where the writer begins to decide a group, if it has to look up an id.
    pub(crate) staging: Hand,
    /// Where the index is written.
    pub(crate) index: Hand,
    pub(crate) disk: Arc<Disk>,
    pub(crate) engine: Arc<Tables>,
}

impl Control {
    /// Waits until a group is being synced, and returns the number of its events.
    pub(crate) async fn commit(&mut self) -> usize {
        let events = self.write().await;
        self.log.order(Order::Succeed);
        assert_eq!(self.log.call().await, Call::Sync);
        events
    }

    /// Waits until a group is about to be written, and returns the number of its events.
    pub(crate) async fn write(&mut self) -> usize {
        match self.log.call().await {
            Call::Write(events) => events,
            other => panic!("expected a write, got {other:?}"),
        }
    }

    /// Decides the call that is waiting at the log.
    pub(crate) fn order(&self, order: Order) {
        self.log.order(order);
    }

    /// Everything succeeds from now on.
    pub(crate) fn let_go(self) -> Arc<Disk> {
        self.disk
    }
}

/// Files in memory, and their state after a power cut.
#[derive(Debug)]
pub(crate) struct Disk {
    files: Mutex<Names>,
    durable: Mutex<Names>,
    aside: MemoryDirectory,
    gates: Gates,
    state: Arc<DiskState>,
}

type Names = BTreeMap<String, Arc<DiskFile>>;

#[derive(Debug)]
pub(crate) struct DiskState {
    /// Also reports when a sync is done.
    pub(crate) tells_synced: AtomicBool,
    /// Syncs that do not wait for orders fail.
    pub(crate) other_syncs_fail: AtomicBool,
    /// The free space in bytes.
    pub(crate) room: AtomicU64,
    used: AtomicU64,
    /// The last event written to the log, and the last one synced.
    written: AtomicU64,
    synced: AtomicU64,
}

#[derive(Clone, Debug)]
struct Gates {
    log: Arc<Gate>,
    staging: Arc<Gate>,
    index: Arc<Gate>,
}

#[derive(Debug)]
struct DiskFile {
    content: Arc<dyn File>,
    durable: Mutex<Vec<u8>>,
    log: Arc<Gate>,
    state: Arc<DiskState>,
}

impl Disk {
    fn new(gates: Gates) -> Self {
        let state = DiskState {
            tells_synced: AtomicBool::new(false),
            other_syncs_fail: AtomicBool::new(false),
            room: AtomicU64::new(u64::MAX),
            used: AtomicU64::new(0),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        };
        Disk {
            files: Mutex::default(),
            durable: Mutex::default(),
            aside: MemoryDirectory::default(),
            gates,
            state: Arc::new(state),
        }
    }

    pub(crate) fn state(&self) -> &DiskState {
        &self.state
    }

    /// The last event of the log that is on stable storage.
    pub(crate) fn synced(&self) -> u64 {
        self.state.synced.load(Ordering::SeqCst)
    }

    /// The files after a power cut: only what was synced.
    pub(crate) fn after_power_cut(&self) -> Left {
        let durable = lock(&self.durable);
        Left(durable.iter().map(|(name, file)| (name.clone(), lock(&file.durable).clone())).collect())
    }

    /// The files after a kill of the process: everything written.
    pub(crate) fn after_kill(&self) -> Left {
        let files = lock(&self.files);
        Left(files.iter().map(|(name, file)| (name.clone(), file.bytes())).collect())
    }

    fn file(&self) -> io::Result<Arc<DiskFile>> {
        let (log, state) = (self.gates.log.clone(), self.state.clone());
        let content = MemoryDirectory::default().create("file")?;
        Ok(Arc::new(DiskFile { content, durable: Mutex::default(), log, state }))
    }
}

/// Files by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Left(BTreeMap<String, Vec<u8>>);

impl Directory for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.files).keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = lock(&self.files).get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.file()?;
        match lock(&self.files).insert(name.to_owned(), file.clone()) {
            None => Ok(file),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        lock(&self.files).remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.state.check_other_sync()?;
        lock(&self.durable).clone_from(&lock(&self.files));
        Ok(())
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.aside.subdirectory(name)
    }
}

impl DiskState {
    fn check_other_sync(&self) -> io::Result<()> {
        if self.other_syncs_fail.load(Ordering::SeqCst) { Err(on_fire()) } else { Ok(()) }
    }
}

impl DiskFile {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.content.read_at(&mut bytes, 0, usize::MAX).expect("it is in memory");
        bytes
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let state = &self.state;
        let grows = (at + bytes.len() as u64).saturating_sub(self.content.len()?);
        if state.used.load(Ordering::SeqCst) + grows > state.room.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.used.fetch_add(grows, Ordering::SeqCst);
        self.content.write_at(bytes, at)
    }

    fn make_durable(&self) {
        *lock(&self.durable) = self.bytes();
        self.state.synced.store(self.state.written.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.content.len()
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        self.content.read_at(out, at, len)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let Some((last, events)) = group_in(bytes) else { return self.write(bytes, at) };
        let order = self.log.pass(Call::Write(events));
        if order == Order::Refuse {
            self.write(&bytes[..bytes.len() / 2], at)?;
        }
        order.obey(|| {
            self.write(bytes, at)?;
            self.state.written.fetch_max(last, Ordering::SeqCst);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.content.len()?;
        self.state.used.fetch_sub(before.saturating_sub(len), Ordering::SeqCst);
        self.content.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.log.pass(Call::Sync).obey(|| {
            self.make_durable();
            Ok(())
        })?;
        if self.state.tells_synced.load(Ordering::SeqCst) {
            self.log.pass(Call::Synced);
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.state.check_other_sync()?;
        self.make_durable();
        Ok(())
    }
}

/// The last event of the group in these bytes, and its number of events, according to the format of the log.
fn group_in(bytes: &[u8]) -> Option<(u64, usize)> {
    let frame = if bytes.starts_with(b"EVSLOG\0") { bytes.get(64..)? } else { bytes };
    let frame = frame.strip_prefix(b"evsF")?;
    let first = u64::from_le_bytes(frame.get(4..12)?.try_into().ok()?);
    let count = u32::from_le_bytes(frame.get(20..24)?.try_into().ok()?);
    Some((first + u64::from(count) - 1, count as usize))
}

/// The tables of an engine, and a record of what was done with them.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    memory: MemoryEngine,
    /// Each row takes a millisecond, as on a slow disk.
    pub(crate) is_slow: AtomicBool,
    /// The last event in the tables.
    reached: AtomicU64,
    /// They had an event that was not synced.
    was_ahead: AtomicBool,
    /// Opening the engine waits for an order as well.
    pub(crate) waits_to_open: AtomicBool,
    /// The number of times that the writer has read them.
    pub(crate) looks_of_writer: AtomicU64,
}

impl Tables {
    /// The last event in the tables.
    pub(crate) fn reached(&self) -> u64 {
        assert!(!self.was_ahead.load(Ordering::SeqCst), "the index was ahead of the log");
        self.reached.load(Ordering::SeqCst)
    }
}

/// An engine over tables that outlive it.
#[derive(Debug)]
pub(crate) struct Controlled(Means);

/// How the engine is opened.
#[derive(Clone, Debug)]
pub(crate) struct Means {
    tables: Arc<Tables>,
    disk: Arc<Disk>,
}

impl Engine for Controlled {
    const NAME: &'static str = "controlled";
    type Options = Means;
    type Snapshot<'a> = ControlledSnapshot<'a>;

    fn open(_: &Path, means: &Means) -> Result<Self> {
        if means.tables.waits_to_open.load(Ordering::SeqCst) {
            means.disk.gates.index.pass(Call::Open);
        }
        Ok(Controlled(means.clone()))
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        let Means { tables, disk } = &self.0;
        if thread::current().name() == Some("eventstore-write") {
            tables.looks_of_writer.fetch_add(1, Ordering::SeqCst);
            disk.gates.staging.pass(Call::Stage);
        }
        Ok(ControlledSnapshot { memory: tables.memory.snapshot()?, is_slow: tables.is_slow.load(Ordering::SeqCst) })
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        let Means { tables, disk } = &self.0;
        let version = |value: &[u8]| u64::from_be_bytes(value.try_into().expect("a version"));
        let last = entries.of(Table::Ids).map(|(_, value)| version(value)).max().unwrap_or(0);
        tables.was_ahead.fetch_or(last > disk.synced(), Ordering::SeqCst);
        let written = disk.gates.index.pass(Call::Index).obey(|| {
            tables.memory.write(entries).map_err(io::Error::other)?;
            tables.reached.fetch_max(last, Ordering::SeqCst);
            Ok(())
        });
        written.map_err(|error| Error::engine("write", error))
    }

    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>> {
        self.0.tables.memory.compact(task)
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }
}

pub(crate) struct ControlledSnapshot<'a> {
    memory: MemorySnapshot<'a>,
    is_slow: bool,
}

impl Snapshot for ControlledSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        self.memory.get(table, key, out)
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        self.memory.scan(table, range, direction, |key, value| {
            if self.is_slow {
                thread::sleep(Duration::from_millis(1));
            }
            visit(key, value)
        })
    }
}

/// A store whose log waits for orders; nothing else does yet.
pub(crate) fn open_with(options: StoreOptions) -> (Store, Control) {
    let (store, control) = reopen_with(Left::default(), Arc::default(), options).expect("opened");
    control.log.shut();
    (store, control)
}

pub(crate) fn open() -> (Store, Control) {
    open_with(options())
}

/// The options of most tests: without preallocation, so that only appends write to the log.
pub(crate) fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.space_ahead = 0;
    options
}

/// Another store over the files that the first one left, with a new index. Nothing waits for orders yet.
pub(crate) fn reopen(left: Left) -> (Store, Control) {
    reopen_with(left, Arc::default(), options()).expect("opened")
}

/// The same, with the tables that were left.
pub(crate) fn reopen_with(left: Left, engine: Arc<Tables>, options: StoreOptions) -> Result<(Store, Control)> {
    reopen_on(|_| {}, left, engine, options)
}

/// The same, on a disk that is prepared before the store is opened.
pub(crate) fn reopen_on(
    prepare: impl FnOnce(&Disk),
    left: Left,
    engine: Arc<Tables>,
    options: StoreOptions,
) -> Result<(Store, Control)> {
    let (log, staging, index) = (Hand::new(), Hand::new(), Hand::new());
    let gates = Gates { log: log.gate.clone(), staging: staging.gate.clone(), index: index.gate.clone() };
    let disk = Arc::new(Disk::new(gates));
    for (name, bytes) in left.0 {
        let groups = (0..bytes.len()).step_by(8).filter_map(|at| group_in(&bytes[at..]));
        let last = groups.map(|(last, _)| last).max().unwrap_or(0);
        disk.state.written.fetch_max(last, Ordering::SeqCst);
        let file = disk.file().expect("it is in memory");
        file.write(&bytes, 0).expect("there is room");
        *lock(&file.durable) = bytes;
        lock(&disk.files).insert(name, file);
    }
    lock(&disk.durable).clone_from(&lock(&disk.files));
    disk.state.synced.store(disk.state.written.load(Ordering::SeqCst), Ordering::SeqCst);
    prepare(&disk);
    let means = Means { tables: engine.clone(), disk: disk.clone() };
    let store = KvStore::over(disk.clone(), means, options)?;
    Ok((store, Control { log, staging, index, disk, engine }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

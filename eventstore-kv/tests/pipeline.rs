//! The writer's pipeline at every stage, over an engine that stops and fails when it is told to.
//!
//! What the conformance suite can only try by chance, because it sees a store from outside, is decided here: an append
//! is known to be queued, or staged, or inside its commit when its caller leaves or its engine fails.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use eventstore_api::{
    Batch, CancellationToken, Context, Direction, Durability, Error, Event, EventStore, EventStoreExt, Expected, Gc,
    LoadOptions, PageSize, Result, StoreOutcome, Stored, Version,
};
use eventstore_kv::memory::{MemoryEngine, MemorySnapshot};
use eventstore_kv::{
    CommitError, Engine, KeyRange, KvStore, Snapshot, StoreDirectory, StoreOptions, Table, Task, WriteBatch,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the engine does with a commit or sync, decided by the test while the engine waits.
#[derive(Clone, Copy, Debug)]
enum Order {
    Succeed,
    /// Certainly nothing is written, and the engine goes on.
    Refuse,
    /// The commit fails, with nothing of it visible.
    Lose,
    /// The commit fails, but is there after reopening.
    WriteAndFail,
    Panic,
}

/// Reports each commit and sync, and waits for an order.
#[derive(Debug)]
struct Controlled {
    memory: Arc<MemoryEngine>,
    calls: UnboundedSender<Call>,
    orders: Mutex<mpsc::Receiver<Order>>,
    stops: Arc<Stops>,
    /// Every row takes a millisecond, as on a slow disk.
    slow: bool,
}

/// Where the engine waits for an order beside commits and syncs.
#[derive(Debug, Default)]
struct Stops {
    /// When the writer begins to decide a group, whose requests it has taken.
    staging: AtomicBool,
    /// When a commit is done, and the writer has not been told.
    committed: AtomicBool,
}

#[derive(Debug, PartialEq, Eq)]
enum Call {
    Stage,
    Commit { events: usize, durability: Durability },
    Committed,
    Sync,
}

/// The test's side of the engine.
struct Control {
    memory: Arc<MemoryEngine>,
    calls: UnboundedReceiver<Call>,
    orders: mpsc::Sender<Order>,
    stops: Arc<Stops>,
}

impl Control {
    /// Waits until the writer stands in a call, and returns the call.
    async fn call(&mut self) -> Call {
        self.calls.recv().await.expect("the engine lives")
    }

    async fn commit(&mut self) -> usize {
        match self.call().await {
            Call::Commit { events, .. } => events,
            other => panic!("expected a commit, got {other:?}"),
        }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the engine lives");
    }

    /// Lets everything that comes succeed from now on.
    fn let_go(self) -> Arc<MemoryEngine> {
        self.memory
    }
}

impl Controlled {
    fn obey(&self, call: Call) -> Order {
        let _ = self.calls.send(call);
        // Without a test that gives orders, everything succeeds.
        self.orders.lock().expect("one writer").recv().unwrap_or(Order::Succeed)
    }
}

impl Engine for Controlled {
    type Snapshot<'a> = ControlledSnapshot<'a>;

    fn name(&self) -> &'static str {
        "controlled"
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        if self.stops.staging.load(Ordering::SeqCst) && thread::current().name() == Some("eventstore-write") {
            self.obey(Call::Stage);
        }
        Ok(ControlledSnapshot { memory: self.memory.snapshot()?, slow: self.slow })
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let events = batch.puts(Table::Events).len();
        if events == 0 {
            return self.memory.commit(batch, durability); // the format mark of a new store
        }
        let failure = || CommitError::Unknown(Error::engine("commit", "the disk is on fire"));
        match self.obey(Call::Commit { events, durability }) {
            Order::Succeed => {
                self.memory.commit(batch, durability)?;
                if self.stops.committed.load(Ordering::SeqCst) {
                    self.obey(Call::Committed);
                }
                Ok(())
            }
            Order::Refuse => Err(CommitError::NotWritten(Error::Full { reason: "no room".to_owned() })),
            Order::Lose => Err(failure()),
            Order::WriteAndFail => {
                self.memory.commit(batch, durability)?;
                Err(failure())
            }
            Order::Panic => panic!("the engine panics, as this test told it to"),
        }
    }

    fn sync(&self) -> Result<()> {
        match self.obey(Call::Sync) {
            Order::Succeed => Ok(()),
            Order::Panic => panic!("the engine panics, as this test told it to"),
            _ => Err(Error::engine("sync", "the disk is on fire")),
        }
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        None
    }

    fn run_gc(&self, gc: Gc, task: &Task<'_>) -> Result<Vec<String>> {
        self.memory.run_gc(gc, task)
    }

    fn backup(&self, _: StoreDirectory, _: &Task<'_>) -> Result<Self> {
        unreachable!("it has no directory")
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }
}

struct ControlledSnapshot<'a> {
    memory: MemorySnapshot<'a>,
    slow: bool,
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
            if self.slow {
                thread::sleep(Duration::from_millis(1));
            }
            visit(key, value)
        })
    }
}

fn controlled(memory: Arc<MemoryEngine>) -> (Controlled, Control) {
    let (calls, received_calls) = unbounded_channel();
    let (orders, received_orders) = mpsc::channel();
    let (orders_to_obey, stops) = (Mutex::new(received_orders), Arc::<Stops>::default());
    let engine =
        Controlled { memory: memory.clone(), calls, orders: orders_to_obey, stops: stops.clone(), slow: false };
    (engine, Control { memory, calls: received_calls, orders, stops })
}

fn open_with(options: StoreOptions) -> (KvStore<Controlled>, Control) {
    let (engine, control) = controlled(Arc::default());
    (KvStore::open(engine, options).expect("opened"), control)
}

fn open() -> (KvStore<Controlled>, Control) {
    open_with(StoreOptions::default())
}

/// Another store over what the first one left, as after a restart.
fn reopen(memory: Arc<MemoryEngine>) -> (KvStore<Controlled>, Control) {
    let (engine, control) = controlled(memory);
    (KvStore::open(engine, StoreOptions::default()).expect("opened"), control)
}

fn event(id: &str) -> Event {
    Event::builder("Tested", "aggregate").id(id).build().expect("valid")
}

fn background() -> Context {
    Context::background()
}

type Append = tokio::task::JoinHandle<Result<Vec<Stored>>>;

fn append(store: &KvStore<Controlled>, ctx: Context, batch: impl Into<Batch>) -> Append {
    let (store, batch) = (store.clone(), batch.into());
    tokio::spawn(async move { store.store_batch(&ctx, batch).await })
}

async fn answer(append: Append) -> Result<Vec<Stored>> {
    append.await.expect("no panic")
}

/// Waits until the queue holds this many requests.
async fn queued(store: &KvStore<Controlled>, requests: u64) {
    while store.stats(&background()).await.expect("stats").queued_requests != requests {
        tokio::task::yield_now().await;
    }
}

async fn ids(store: &KvStore<Controlled>) -> Vec<String> {
    let events = store.load(&background(), Version::ZERO).into_vec().await.expect("loaded");
    events.iter().map(|event| event.event.id().to_owned()).collect()
}

#[tokio::test]
async fn appends_that_wait_for_a_commit_are_committed_together() {
    let (store, mut control) = open();
    let first = append(&store, background(), event("first"));
    assert_eq!(control.commit().await, 1);
    let waiting: Vec<_> = (0..5).map(|n| append(&store, background(), event(&n.to_string()))).collect();
    queued(&store, 5).await;
    control.order(Order::Succeed);
    assert_eq!(control.commit().await, 5, "one group");
    assert_eq!(store.latest_version(&background()).await.expect("latest"), Version::new(1), "not published yet");
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    for (nth, append) in waiting.into_iter().enumerate() {
        assert_eq!(answer(append).await.expect("written")[0].version, Version::new(nth as u64 + 2));
    }
}

#[tokio::test]
async fn a_request_that_fails_its_check_fails_alone() {
    let (store, mut control) = open();
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let good = append(&store, background(), event("good"));
    let conflict = append(&store, background(), Batch::from(event("late")).expected(Expected::Revision(1)));
    let other = Event::builder("Other", "aggregate").id("good").build().expect("valid");
    let duplicate = append(&store, background(), other);
    let repeated = append(&store, background(), event("good"));
    let last = append(&store, background(), Batch::from(event("last")).expected(Expected::Revision(2)));
    queued(&store, 5).await;
    control.order(Order::Succeed);
    assert_eq!(control.commit().await, 2);
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    let good = answer(good).await.expect("written");
    assert!(matches!(answer(conflict).await, Err(Error::VersionConflict { actual: 2, .. })));
    assert!(matches!(answer(duplicate).await, Err(Error::DuplicateEvent { .. })));
    let repeated = answer(repeated).await.expect("already stored");
    assert_eq!((repeated[0].version, repeated[0].outcome), (good[0].version, StoreOutcome::AlreadyStored));
    assert_eq!(answer(last).await.expect("written")[0].revision, 3);
    assert_eq!(ids(&store).await, ["first", "good", "last"]);
}

#[tokio::test]
async fn c2_an_append_that_ends_before_the_queue_has_room_is_not_written() {
    let mut options = StoreOptions::default();
    options.queue_bytes = 64 << 10;
    options.queue_requests = 2;
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let large = |id: &str| Event::builder("T", "a").id(id).data(vec![0; 40 << 10]).build().expect("valid");
    let fits = append(&store, background(), large("fits"));
    queued(&store, 1).await;
    // The next does not fit into the bytes that are left; the one after it does not get past it.
    let expired = append(&store, background().with_timeout(Duration::from_millis(5)), large("expired"));
    assert!(matches!(answer(expired).await, Err(Error::DeadlineExceeded)));
    let huge = Event::builder("T", "a").id("huge").data(vec![0; 1 << 20]).build().expect("valid");
    let huge = append(&store, background(), huge);
    control.order(Order::Succeed);
    control.commit().await;
    control.order(Order::Succeed);
    control.commit().await;
    control.order(Order::Succeed);
    for append in [first, fits, huge] {
        answer(append).await.expect("written");
    }
    assert_eq!(ids(&store).await, ["first", "fits", "huge"], "a batch larger than the queue is let in alone");
}

#[tokio::test]
async fn f1_a_failed_commit_is_of_unknown_outcome_and_fences_the_writer() {
    for (failure, kept) in [(Order::Lose, 1), (Order::WriteAndFail, 3)] {
        let (store, mut control) = open();
        let first = append(&store, background(), event("first"));
        control.commit().await;
        let failing = append(&store, background(), vec![event("failing-1"), event("failing-2")]);
        let repeated = append(&store, background(), event("failing-1"));
        let refused = append(&store, background(), Batch::from(event("refused")).expected(Expected::NoEvents));
        queued(&store, 3).await;
        control.order(Order::Succeed);
        answer(first).await.expect("written");
        control.commit().await;
        let in_queue = append(&store, background(), event("queued"));
        queued(&store, 1).await;
        control.order(failure);
        let unknown = answer(failing).await.expect_err("failed");
        assert!(matches!(&unknown, Error::OutcomeUnknown { source: Some(_), .. }));
        let cause = std::error::Error::source(&unknown).and_then(std::error::Error::source);
        assert_eq!(cause.expect("the engine's error").to_string(), "the disk is on fire");
        assert!(matches!(answer(repeated).await, Err(Error::OutcomeUnknown { .. })));
        // Its conflict may have been with events that nobody knows of now.
        assert!(matches!(answer(refused).await, Err(Error::Fenced { .. })));
        assert!(matches!(answer(in_queue).await, Err(Error::Fenced { .. })));
        let after = store.store(&background(), event("after"), Expected::Any).await;
        assert!(matches!(after, Err(Error::Fenced { reason }) if reason.contains("fire")));
        assert!(store.stats(&background()).await.expect("stats").fenced.is_some());
        assert_eq!(ids(&store).await, ["first"], "reads go on and show what was acknowledged");
        store.close().await.expect("closed without another sync");
        let memory = control.let_go();

        let (store, control) = reopen(memory);
        drop(control);
        assert_eq!(ids(&store).await.len(), kept, "all of the batch or nothing");
        let again = store.store_batch(&background(), vec![event("failing-1"), event("failing-2")].into()).await;
        assert_eq!(again.expect("resolved").iter().map(|place| place.version.get()).collect::<Vec<_>>(), [2, 3]);
    }
}

#[tokio::test]
async fn a_commit_that_certainly_wrote_nothing_does_not_fence() {
    let (store, mut control) = open();
    let refused = append(&store, background(), event("refused"));
    control.commit().await;
    control.order(Order::Refuse);
    assert!(matches!(answer(refused).await, Err(Error::Full { .. })));
    let again = append(&store, background(), event("refused"));
    control.commit().await;
    control.order(Order::Succeed);
    assert_eq!(answer(again).await.expect("written")[0].version, Version::new(1));
}

#[tokio::test]
async fn one_that_finds_no_room_does_not_take_its_group_with_it() {
    let (store, mut control) = open();
    let stored = append(&store, background(), event("stored"));
    control.commit().await;
    let large = append(&store, background(), vec![event("large-1"), event("large-2")]);
    let retried = append(&store, background(), event("stored"));
    let other = Event::builder("Other", "aggregate").id("stored").build().expect("valid");
    let duplicate = append(&store, background(), other);
    let small = append(&store, background(), Batch::from(event("small")).expected(Expected::Revision(1)));
    queued(&store, 4).await;
    control.order(Order::Succeed);
    answer(stored).await.expect("written");
    assert_eq!(control.commit().await, 2, "the small one expects a revision that the large one has changed");
    control.order(Order::Refuse);
    assert_eq!(control.commit().await, 2, "once more, the large one alone");
    control.order(Order::Refuse);
    assert_eq!(control.commit().await, 1, "without it, the small one's condition holds");
    control.order(Order::Succeed);
    assert!(matches!(answer(large).await, Err(Error::Full { .. })));
    assert_eq!(answer(retried).await.expect("already stored")[0].version, Version::new(1));
    assert!(matches!(answer(duplicate).await, Err(Error::DuplicateEvent { .. })));
    assert_eq!(answer(small).await.expect("written")[0].revision, 2);
}

#[tokio::test]
async fn closing_says_that_what_was_buffered_is_not_synced() {
    let (store, mut control) = open();
    let buffered = append(&store, background(), Batch::from(event("b")).durability(Durability::Buffered));
    control.commit().await;
    control.order(Order::Succeed);
    answer(buffered).await.expect("written");
    let failing = append(&store, background(), event("failing"));
    control.commit().await;
    control.order(Order::Lose);
    answer(failing).await.expect_err("failed");
    assert_eq!(store.close().await.expect_err("acknowledged and not synced").code(), "fenced");
}

#[tokio::test]
async fn a_panic_in_the_last_sync_still_closes() {
    let (store, mut control) = open();
    let closing = tokio::spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    assert_eq!(control.call().await, Call::Sync);
    control.order(Order::Panic);
    assert_eq!(closing.await.expect("no panic here").expect_err("told").code(), "engine");
}

#[tokio::test]
async fn a_panic_in_the_engine_fences_and_the_store_still_closes() {
    let (store, mut control) = open();
    let append = append(&store, background(), event("panicking"));
    control.commit().await;
    control.order(Order::Panic);
    assert!(matches!(answer(append).await, Err(Error::OutcomeUnknown { .. })));
    let after = store.store(&background(), event("after"), Expected::Any).await;
    assert!(matches!(after, Err(Error::Fenced { .. })));
    assert!(ids(&store).await.is_empty());
    store.close().await.expect("closed");
}

#[tokio::test]
async fn w4_a_retry_with_sync_syncs_what_was_buffered() {
    let (store, mut control) = open();
    let buffered = || Batch::from(event("e")).durability(Durability::Buffered);
    let first = append(&store, background(), buffered());
    assert_eq!(control.call().await, Call::Commit { events: 1, durability: Durability::Buffered });
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    let again = append(&store, background(), buffered());
    answer(again).await.expect("already stored, and nobody asked for a sync");
    let synced = append(&store, background(), event("e"));
    assert_eq!(control.call().await, Call::Sync);
    control.order(Order::Succeed);
    assert_eq!(answer(synced).await.expect("synced")[0].outcome, StoreOutcome::AlreadyStored);
    let known = append(&store, background(), event("e"));
    answer(known).await.expect("no second sync");
}

#[tokio::test]
async fn w4_a_retry_after_a_restart_syncs_once() {
    let memory = {
        let (store, control) = open();
        let memory = control.let_go();
        store.store(&background(), event("e"), Expected::Any).await.expect("written");
        memory
    };
    // The process that wrote it may have been killed between the write and the end of its sync.
    let (store, mut control) = reopen(memory);
    let retry = append(&store, background(), event("e"));
    assert_eq!(control.call().await, Call::Sync);
    control.order(Order::Lose);
    assert!(matches!(answer(retry).await, Err(Error::OutcomeUnknown { .. })));
    let after = store.store(&background(), event("after"), Expected::Any).await;
    assert!(matches!(after, Err(Error::Fenced { .. })));
}

#[tokio::test]
async fn one_sync_request_makes_its_whole_group_durable() {
    let (store, mut control) = open();
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let buffered = append(&store, background(), Batch::from(event("b")).durability(Durability::Buffered));
    let synced = append(&store, background(), event("s"));
    queued(&store, 2).await;
    control.order(Order::Succeed);
    assert_eq!(control.call().await, Call::Commit { events: 2, durability: Durability::Sync });
    control.order(Order::Succeed);
    for append in [first, buffered, synced] {
        answer(append).await.expect("written");
    }
}

#[tokio::test]
async fn l1_close_finishes_what_was_accepted_and_syncs_what_was_buffered() {
    let (store, mut control) = open();
    let first = append(&store, background(), Batch::from(event("first")).durability(Durability::Buffered));
    control.commit().await;
    let accepted = append(&store, background(), Batch::from(event("accepted")).durability(Durability::Buffered));
    queued(&store, 1).await;
    let closing = tokio::spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    // Once reads are refused, closing has begun.
    while store.latest_version(&background()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(store.store(&background(), event("late"), Expected::Any).await, Err(Error::Closed)));
    control.order(Order::Succeed);
    control.commit().await;
    control.order(Order::Succeed);
    assert_eq!(control.call().await, Call::Sync);
    control.order(Order::Lose);
    answer(first).await.expect("written");
    answer(accepted).await.expect("written");
    let error = closing.await.expect("no panic").expect_err("the last sync failed");
    assert_eq!(error.code(), "engine");
    assert_eq!(store.close().await.expect_err("told to everyone").code(), "engine");
}

#[tokio::test]
async fn l1_a_future_that_is_kept_and_not_polled_does_not_stop_the_closing() {
    let mut options = StoreOptions::default();
    options.queue_requests = 1;
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let second = append(&store, background(), event("second"));
    queued(&store, 1).await;
    // Waits for the one place in the queue, is given it, and does not take it.
    let ctx = background();
    let mut kept = Box::pin(store.store(&ctx, event("kept"), Expected::Any));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(kept.as_mut().poll(cx).is_pending())).await);
    drop(control.orders); // everything succeeds from now on
    answer(first).await.expect("written");
    answer(second).await.expect("written");
    store.close().await.expect("closed");
    assert!(matches!(kept.await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_reader_never_sees_a_commit_before_it_is_published() {
    // The engine holds the events already, as LMDB does between its commit and our answer.
    let (store, mut control) = open();
    let failing = append(&store, background(), vec![event("a"), event("b")]);
    control.commit().await;
    control.order(Order::WriteAndFail);
    assert!(answer(failing).await.is_err());
    assert!(ids(&store).await.is_empty());
    assert!(matches!(store.get(&background(), "a").await, Err(Error::EventNotFound { .. })));
    assert_eq!(store.aggregate_revision(&background(), "aggregate").await.expect("read"), 0);
    let of_aggregate = store.load_by_aggregate(&background(), "aggregate", Version::ZERO).into_vec().await;
    assert!(of_aggregate.expect("read").is_empty());
    let backward = store.load(&background(), LoadOptions::all().backward()).into_vec().await;
    assert!(backward.expect("read").is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_page_that_takes_long_goes_on_where_blocking_is_allowed() {
    let memory = Arc::new(MemoryEngine::default());
    {
        let (store, control) = reopen(memory.clone());
        drop(control);
        let events = (0..100).map(|n| event(&n.to_string())).collect::<Vec<_>>();
        store.store_batch(&background(), events.into()).await.expect("written");
    }
    let (mut engine, control) = controlled(memory);
    drop(control);
    engine.slow = true;
    let store = KvStore::open(engine, StoreOptions::default()).expect("opened");
    let all = LoadOptions::all();
    let page = store.load_page(&background(), &all, PageSize::LARGEST).await.expect("read");
    assert_eq!(page.events.len(), 100);
    let token = CancellationToken::new();
    let ctx = background().with_cancellation(token.clone());
    let mut read = Box::pin(store.load_page(&ctx, &all, PageSize::LARGEST));
    // The first poll reads what it can in its time and hands the rest over, so it comes back unfinished.
    let unfinished = std::future::poll_fn(|cx| std::task::Poll::Ready(read.as_mut().poll(cx).is_pending())).await;
    assert!(unfinished);
    token.cancel();
    assert!(matches!(read.await, Err(Error::Cancelled)));
}

/// How far an append has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    WaitingForRoom,
    Queued,
    /// The writer has taken it and decides.
    Staged,
    InCommit,
    /// The engine has it, and the writer has not been told.
    CommittedByEngine,
    /// Its answer is there, and its caller has not taken it.
    Answered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Dropped,
    Cancelled,
    Expired,
}

const ENDINGS: [Ending; 3] = [Ending::Dropped, Ending::Cancelled, Ending::Expired];

type Appending = Pin<Box<dyn Future<Output = Result<Vec<Stored>>> + Send>>;

/// An append that the test polls itself, so that it is nowhere but where it was led to when it ends.
struct Leaving {
    future: Appending,
    token: CancellationToken,
    deadline: Instant,
}

impl Leaving {
    /// Calls, and polls once: it waits now for room or for its answer.
    async fn begin(store: &KvStore<Controlled>, ending: Ending, batch: &Batch) -> Self {
        let mut patience = Duration::from_millis(20);
        loop {
            let (store, batch, token) = (store.clone(), batch.clone(), CancellationToken::new());
            let deadline = Instant::now() + patience;
            let ctx = match ending {
                Ending::Dropped => background(),
                Ending::Cancelled => background().with_cancellation(token.clone()),
                Ending::Expired => background().with_deadline(deadline),
            };
            let mut future: Appending = Box::pin(async move { store.store_batch(&ctx, batch).await });
            match polled(&mut future).await {
                None => return Leaving { future, token, deadline },
                Some(Err(Error::DeadlineExceeded)) => patience *= 2, // the thread was kept waiting for longer
                Some(outcome) => panic!("the engine has not moved, and the append ended with {outcome:?}"),
            }
        }
    }

    /// What it comes to, at once; `None` if it is dropped.
    async fn end(mut self, ending: Ending) -> Option<Result<Vec<Stored>>> {
        match ending {
            Ending::Dropped => return None,
            Ending::Cancelled => self.token.cancel(),
            Ending::Expired => tokio::time::sleep_until(self.deadline.into()).await,
        }
        Some(polled(&mut self.future).await.expect("the answer comes at once, whatever the engine does"))
    }
}

async fn polled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn code(outcome: &Result<Vec<Stored>>) -> &'static str {
    outcome.as_ref().map_or_else(Error::code, |_| "stored")
}

/// The table "How far an append has come, and what its end means" of `docs/contract.md`, cell by cell: the error at once,
/// and whether it is in the store once the writer has gone on.
fn table(stage: Stage, ending: Ending, closing: bool) -> (Option<&'static str>, bool) {
    let ended = match ending {
        Ending::Dropped => None,
        Ending::Cancelled => Some("cancelled"),
        Ending::Expired => Some("deadline_exceeded"),
    };
    match stage {
        Stage::WaitingForRoom if closing => (ended.map(|_| "closed"), false),
        Stage::WaitingForRoom | Stage::Queued => (ended, false),
        Stage::Staged | Stage::InCommit | Stage::CommittedByEngine => (ended.map(|_| "outcome_unknown"), true),
        Stage::Answered => (ended.map(|_| "stored"), true),
    }
}

/// One row: `first` is in its commit when a group of `before`, the append that leaves, and `after` waits behind it.
async fn leaves(stage: Stage, ending: Ending, closing: bool) {
    let row = format!("{ending:?} when {stage:?}, closing: {closing}");
    let mut options = StoreOptions::default();
    options.queue_requests = if stage == Stage::WaitingForRoom { 1 } else { 1024 };
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let before = append(&store, background(), event("before"));
    queued(&store, 1).await;
    let batch = Batch::from(vec![event("left-1"), event("left-2")]);
    let leaving = Leaving::begin(&store, ending, &batch).await;
    let mut after = append(&store, background(), event("after"));
    if stage != Stage::WaitingForRoom {
        queued(&store, 3).await;
    }
    match stage {
        Stage::WaitingForRoom | Stage::Queued => {}
        Stage::Staged => {
            control.stops.staging.store(true, Ordering::SeqCst);
            control.order(Order::Succeed);
            assert_eq!(control.call().await, Call::Stage, "{row}");
        }
        Stage::InCommit => {
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
        }
        Stage::CommittedByEngine => {
            control.stops.committed.store(true, Ordering::SeqCst);
            control.order(Order::Succeed);
            assert_eq!(control.call().await, Call::Committed, "{row}: the first");
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
            control.order(Order::Succeed);
            assert_eq!(control.call().await, Call::Committed, "{row}");
        }
        Stage::Answered => {
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
            control.order(Order::Succeed);
            // Answers are given in the order of the group.
            let answered = (&mut after).await.expect("no panic");
            after = tokio::spawn(async { answered });
        }
    }
    let closed = closing.then(|| {
        let store = store.clone();
        tokio::spawn(async move { store.close().await })
    });
    while closing && store.latest_version(&background()).await.is_ok() {
        tokio::task::yield_now().await;
    }

    let outcome = leaving.end(ending).await;
    let (expected, is_written) = table(stage, ending, closing);
    assert_eq!(outcome.as_ref().map(code), expected, "{row}");
    let memory = control.let_go();

    assert_eq!(answer(first).await.expect("written")[0].version, Version::new(1), "{row}");
    assert_eq!(answer(before).await.expect("written")[0].version, Version::new(2), "{row}");
    let mut there = vec!["first", "before"];
    if is_written {
        there.extend(["left-1", "left-2"]);
    }
    match answer(after).await {
        Err(Error::Closed) if closing && stage == Stage::WaitingForRoom => {}
        outcome => {
            there.push("after");
            let versions: Vec<_> = outcome.expect("written").iter().map(|place| place.version.get()).collect();
            assert_eq!(versions, [there.len() as u64], "{row}");
        }
    }
    match closed {
        Some(closed) => closed.await.expect("no panic").expect("closed"),
        None => {
            store.store(&background(), event("last"), Expected::Any).await.expect("the writer goes on");
            there.push("last");
            let stats = store.stats(&background()).await.expect("stats");
            assert_eq!((stats.queued_requests, stats.queued_bytes), (0, 0), "{row}: no place is kept");
            assert_eq!(ids(&store).await, there, "{row}");
            store.close().await.expect("closed");
        }
    }
    let (store, control) = reopen(memory);
    drop(control);
    assert_eq!(ids(&store).await, there, "{row}: after reopening");
    let again = store.store_batch(&background(), batch).await.expect("appending the same again resolves it");
    let outcome = if is_written { StoreOutcome::AlreadyStored } else { StoreOutcome::Written };
    assert!(again.iter().all(|place| place.outcome == outcome), "{row}: {again:?}");
}

#[tokio::test]
async fn c2_to_c4_the_end_of_an_append_means_what_the_contract_says_at_every_stage() {
    let stages = [
        Stage::WaitingForRoom,
        Stage::Queued,
        Stage::Staged,
        Stage::InCommit,
        Stage::CommittedByEngine,
        Stage::Answered,
    ];
    for stage in stages {
        for ending in ENDINGS {
            for closing in [false, true] {
                leaves(stage, ending, closing).await;
            }
        }
    }
}

#[tokio::test]
async fn c4_an_append_that_left_during_its_commit_is_all_or_nothing_however_the_commit_ends() {
    // The order, whether the group is there after reopening, and what those are told who stayed.
    let ways: [(Order, bool, &str); 4] = [
        (Order::Refuse, true, "stored"), // none of the group finds room; each alone does
        (Order::Lose, false, "outcome_unknown"),
        (Order::WriteAndFail, true, "outcome_unknown"),
        (Order::Panic, false, "outcome_unknown"),
    ];
    for (order, is_there, told) in ways {
        for ending in ENDINGS {
            let row = format!("{ending:?}, then {order:?}");
            let (store, mut control) = open();
            let first = append(&store, background(), event("first"));
            control.commit().await;
            let before = append(&store, background(), event("before"));
            queued(&store, 1).await;
            let batch = Batch::from(vec![event("left-1"), event("left-2")]);
            let leaving = Leaving::begin(&store, ending, &batch).await;
            let after = append(&store, background(), event("after"));
            queued(&store, 3).await;
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
            let outcome = leaving.end(ending).await;
            assert_eq!(outcome.as_ref().map(code), (ending != Ending::Dropped).then_some("outcome_unknown"), "{row}");
            control.order(order);
            let memory = control.let_go();
            answer(first).await.expect("written");
            assert_eq!(code(&answer(before).await), told, "{row}");
            assert_eq!(code(&answer(after).await), told, "{row}");
            store.close().await.expect("closed");

            let (store, control) = reopen(memory);
            drop(control);
            let there: &[&str] = if is_there { &["first", "before", "left-1", "left-2", "after"] } else { &["first"] };
            assert_eq!(ids(&store).await, there, "{row}");
            store.store_batch(&background(), batch).await.expect("resolved");
            assert_eq!(ids(&store).await.iter().filter(|id| id.starts_with("left")).count(), 2, "{row}");
        }
    }
}

#[tokio::test]
async fn c3_a_repetition_that_ends_during_its_sync_is_of_unknown_outcome_and_leaves_the_sync_to_the_others() {
    for ending in ENDINGS {
        let (store, mut control) = open();
        let repeated = || Batch::from(event("repeated"));
        let buffered = append(&store, background(), repeated().durability(Durability::Buffered));
        control.commit().await;
        let leaving = Leaving::begin(&store, ending, &repeated()).await;
        let stays = append(&store, background(), repeated());
        queued(&store, 2).await;
        control.order(Order::Succeed);
        assert_eq!(control.call().await, Call::Sync);
        let outcome = leaving.end(ending).await;
        assert_eq!(outcome.as_ref().map(code), (ending != Ending::Dropped).then_some("outcome_unknown"), "{ending:?}");
        control.order(Order::Succeed);
        answer(buffered).await.expect("written");
        assert_eq!(answer(stays).await.expect("synced")[0].outcome, StoreOutcome::AlreadyStored);
        let known = append(&store, background(), repeated());
        answer(known).await.expect("no second sync");
        assert_eq!(ids(&store).await, ["repeated"]);
    }
}

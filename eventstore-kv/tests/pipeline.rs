//! The writer's pipeline at every stage, over an engine that stops and fails when it is told to.
//!
//! What the conformance suite can only try by chance, because it sees a store from outside, is decided here: an append
//! is known to be queued, or staged, or inside its commit when its caller leaves or its engine fails.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use eventstore_api::{
    Batch, CancellationToken, Context, Direction, Durability, Error, Event, EventStore, EventStoreExt, Expected, Gc,
    LoadOptions, PageSize, Result, StoreOutcome, Version,
};
use eventstore_kv::memory::{MemoryEngine, MemorySnapshot};
use eventstore_kv::{
    CommitError, Engine, KeyRange, KvStore, Snapshot, StoreDirectory, StoreOptions, Table, Task, WriteBatch,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the engine does with a commit or sync, decided by the test while the engine waits.
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
    /// Every row takes a millisecond, as on a slow disk.
    slow: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Call {
    Commit { events: usize, durability: Durability },
    Sync,
}

/// The test's side of the engine.
struct Control {
    memory: Arc<MemoryEngine>,
    calls: UnboundedReceiver<Call>,
    orders: mpsc::Sender<Order>,
}

impl Control {
    /// Waits until the writer stands in a call, and returns the call.
    async fn call(&mut self) -> Call {
        self.calls.recv().await.expect("the engine lives")
    }

    async fn commit(&mut self) -> usize {
        match self.call().await {
            Call::Commit { events, .. } => events,
            Call::Sync => panic!("expected a commit"),
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
        Ok(ControlledSnapshot { memory: self.memory.snapshot()?, slow: self.slow })
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let events = batch.puts(Table::Events).len();
        if events == 0 {
            return self.memory.commit(batch, durability); // the format mark of a new store
        }
        let failure = || CommitError::Unknown(Error::engine("commit", "the disk is on fire"));
        match self.obey(Call::Commit { events, durability }) {
            Order::Succeed => self.memory.commit(batch, durability),
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
    let engine = Controlled { memory: memory.clone(), calls, orders: Mutex::new(received_orders), slow: false };
    (engine, Control { memory, calls: received_calls, orders })
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

type Append = tokio::task::JoinHandle<Result<Vec<eventstore_api::Stored>>>;

fn append(store: &KvStore<Controlled>, ctx: Context, batch: impl Into<Batch>) -> Append {
    let (store, batch) = (store.clone(), batch.into());
    tokio::spawn(async move { store.store_batch(&ctx, batch).await })
}

async fn answer(append: Append) -> Result<Vec<eventstore_api::Stored>> {
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
async fn c2_an_append_that_ends_in_the_queue_is_not_written() {
    let (store, mut control) = open();
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let token = CancellationToken::new();
    let cancelled = append(&store, background().with_cancellation(token.clone()), event("cancelled"));
    let expired = append(&store, background().with_timeout(Duration::from_millis(5)), event("expired"));
    queued(&store, 2).await;
    token.cancel();
    assert!(matches!(answer(cancelled).await, Err(Error::Cancelled)));
    assert!(matches!(answer(expired).await, Err(Error::DeadlineExceeded)));
    let last = append(&store, background(), event("last"));
    queued(&store, 3).await;
    control.order(Order::Succeed);
    assert_eq!(control.commit().await, 1, "only the last");
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    assert_eq!(answer(last).await.expect("written")[0].version, Version::new(2));
    assert_eq!(ids(&store).await, ["first", "last"]);
    assert_eq!(store.stats(&background()).await.expect("stats").queued_bytes, 0, "no leaked room");
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
async fn c3_an_append_that_ends_inside_its_commit_is_of_unknown_outcome_at_once() {
    let (store, mut control) = open();
    let token = CancellationToken::new();
    let cancelled = append(&store, background().with_cancellation(token.clone()), event("cancelled"));
    control.commit().await;
    token.cancel();
    // The commit has not moved, so the answer does not wait for it.
    assert!(matches!(answer(cancelled).await, Err(Error::OutcomeUnknown { .. })));
    control.order(Order::Succeed);
    let expired = append(&store, background().with_timeout(Duration::from_millis(5)), event("expired"));
    control.commit().await;
    assert!(matches!(answer(expired).await, Err(Error::OutcomeUnknown { .. })));
    control.order(Order::Succeed);
    for (id, version) in [("cancelled", 1), ("expired", 2)] {
        let place = store.store(&background(), event(id), Expected::Any).await.expect("resolved");
        assert_eq!((place.version, place.outcome), (Version::new(version), StoreOutcome::AlreadyStored));
    }
}

#[tokio::test]
async fn c4_a_dropped_future_is_all_or_nothing() {
    let (store, mut control) = open();
    let staged = append(&store, background(), vec![event("staged-1"), event("staged-2")]);
    control.commit().await;
    let in_queue = append(&store, background(), vec![event("queued-1"), event("queued-2")]);
    queued(&store, 1).await;
    staged.abort();
    in_queue.abort();
    assert!(staged.await.expect_err("aborted").is_cancelled());
    assert!(in_queue.await.expect_err("aborted").is_cancelled());
    let last = append(&store, background(), event("last"));
    queued(&store, 2).await;
    control.order(Order::Succeed);
    control.commit().await;
    control.order(Order::Succeed);
    answer(last).await.expect("written");
    assert_eq!(ids(&store).await, ["staged-1", "staged-2", "last"]);
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

//! The handle: its calls, decisions, snapshots and projections.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use eventstore::backend::{Batch, Context, EventStore, Gc, GcReport, LoadOptions, Page, PageSize, Stats, Stored};
use eventstore::testing::{Fault, faulty, given};
use eventstore::{
    Actual, Aggregate, AggregateOptions, BoxError, CancellationToken, Cursor, DecideError, Error, Event, Expected,
    FileSnapshots, MemorySnapshots, Projection, RecordedEvent, Revision, SnapshotPolicy, Snapshots, Store,
    StoreOutcome, Version, async_trait,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    balance: u64,
    /// The number of events that were applied.
    events: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum AccountEvent {
    Deposited { cents: u64 },
    Withdrawn { cents: u64 },
}

use AccountEvent::{Deposited, Withdrawn};

#[derive(Clone, Debug, PartialEq)]
struct Overdrawn;

impl Aggregate for Account {
    type Event = AccountEvent;
    type Error = Overdrawn;

    fn apply(&mut self, event: AccountEvent) {
        self.events += 1;
        match event {
            Deposited { cents } => self.balance += cents,
            Withdrawn { cents } => self.balance -= cents,
        }
    }
}

fn deposit(cents: u64) -> impl Fn(&Account) -> Result<Vec<AccountEvent>, Overdrawn> {
    move |_| Ok(vec![Deposited { cents }])
}

fn withdraw(cents: u64) -> impl Fn(&Account) -> Result<Vec<AccountEvent>, Overdrawn> {
    move |account| if cents > account.balance { Err(Overdrawn) } else { Ok(vec![Withdrawn { cents }]) }
}

async fn memory() -> Store {
    eventstore::open("memory:").await.expect("opened")
}

fn event(id: &str, aggregate_id: &str) -> Event {
    Event::builder("Happened", aggregate_id).id(id).build().expect("valid")
}

async fn ids(events: eventstore::Load) -> Vec<String> {
    events.await.expect("loaded").iter().map(|recorded| recorded.event.id().to_owned()).collect()
}

#[tokio::test]
async fn an_append_tells_where_its_events_stand() {
    let store = memory().await;
    let one = store.append(event("one", "a")).expected(Expected::NoEvents).await.expect("appended");
    assert_eq!((one.first, one.last, one.revision.get()), (Version::new(1), Version::new(1), 1));
    let batch = [event("two", "b"), event("three", "a"), event("one", "a")];
    let several = store.append(batch.clone()).buffered().await.expect("appended");
    assert_eq!((several.first, several.last, several.revision.get()), (Version::new(1), Version::new(3), 1));
    assert_eq!(several.outcome, StoreOutcome::Written, "two of three");
    let places: Vec<_> = several.places().iter().map(|place| place.version.get()).collect();
    assert_eq!(places, [2, 3, 1]);
    let again = store.append(batch).await.expect("repeated");
    assert_eq!(again.outcome, StoreOutcome::AlreadyStored);
    let nothing = store.append([]).await.expect("nothing to do");
    assert_eq!((nothing.last, nothing.outcome), (Version::ZERO, StoreOutcome::AlreadyStored));
    let conflict = store.append(event("four", "a")).expected(Expected::Revision(one.revision)).await;
    let found = Actual::Aggregate { id: "a".into(), revision: Revision::new(2) };
    assert!(matches!(conflict, Err(Error::VersionConflict { actual, .. }) if actual == found));
}

#[tokio::test]
async fn calls_end_with_their_deadline_and_their_token() {
    let store = memory().await;
    let late = store.append(event("one", "a")).timeout(Duration::ZERO).await;
    assert!(matches!(late, Err(Error::DeadlineExceeded)));
    let stop = CancellationToken::new();
    let waiting = tokio::spawn(store.wait_for_events(Version::ZERO).cancel_on(&stop).into_future());
    let mut events = store.subscribe(Version::ZERO).cancel_on(&stop).stream();
    stop.cancel();
    assert!(matches!(waiting.await.expect("no panic"), Err(Error::Cancelled)));
    assert!(matches!(events.next().await, Some(Err(Error::Cancelled))));
    let ctx = Context::background().with_cancellation(stop);
    assert!(matches!(store.load(Version::ZERO).context(&ctx).await, Err(Error::Cancelled)));
    assert_eq!(store.latest_version().await.expect("read"), Version::ZERO);
}

#[tokio::test]
async fn loads_and_subscriptions_are_narrowed() {
    let store = memory().await;
    let all = [event("a-1", "a"), event("b-1", "b"), event("a-2", "a"), event("b-2", "b")];
    store.append(all).await.expect("appended");
    assert_eq!(ids(store.load(Version::new(1))).await, ["b-1", "a-2", "b-2"]);
    assert_eq!(ids(store.load(Version::ZERO).aggregate("a")).await, ["a-1", "a-2"]);
    assert_eq!(ids(store.load(Version::ZERO).before(Version::new(4)).backward().limit(2)).await, ["a-2", "b-1"]);
    assert_eq!(ids(store.load(Version::ZERO).types(["Never", "Happened"]).aggregate_prefix("b")).await, ["b-1", "b-2"]);
    assert_eq!(ids(store.load(Version::ZERO).aggregate("a").since_revision(Revision::new(1))).await, ["a-2"]);
    let now = SystemTime::now();
    let (past, future) = (now - Duration::from_secs(600), now + Duration::from_secs(600));
    assert_eq!(ids(store.load(Version::ZERO).recorded_since(past).recorded_before(future)).await.len(), 4);
    assert!(ids(store.load(Version::ZERO).recorded_since(future)).await.is_empty());
    let listed = store.aggregates(AggregateOptions::all(), 10).await.expect("listed").aggregates;
    let listed: Vec<_> = listed.iter().map(|found| (found.aggregate_id.as_str(), found.revision.get())).collect();
    assert_eq!(listed, [("a", 2), ("b", 2)]);
    let followed = store.subscribe(Version::new(1)).aggregate("b").limit(2).stream().into_vec().await;
    assert_eq!(followed.expect("read").len(), 2);
}

#[tokio::test]
async fn a_cursor_of_another_history_is_noticed() {
    let store = memory().await;
    store.append([event("one", "a"), event("two", "a")]).await.expect("appended");
    let cursor = store.cursor_at(Version::new(1)).await.expect("there");
    assert_eq!(ids(store.load(cursor)).await, ["two"]);
    assert_eq!(store.cursor().await.expect("there").version(), Version::new(2));
    assert!(matches!(store.cursor_at(Version::new(3)).await, Err(Error::InvalidVersion { .. })));

    let other = memory().await;
    other.append(event("another", "a")).await.expect("appended");
    let mut events = other.subscribe(cursor).stream();
    match events.next().await {
        Some(Err(Error::HistoryDiverged { cursor: asked, found })) => {
            assert_eq!((asked, found.version()), (cursor, Version::new(1)));
        }
        other => panic!("expected HistoryDiverged, got {other:?}"),
    }
    assert!(events.next().await.is_none());
    // A store that ends before the cursor would have other events at that version one day.
    let shorter = memory().await;
    let diverged = shorter.load(cursor).await;
    assert!(matches!(diverged, Err(Error::HistoryDiverged { found: Cursor::START, .. })), "{diverged:?}");
    assert!(ids(shorter.load(Cursor::START)).await.is_empty(), "the start is the same everywhere");
}

#[test]
fn a_program_without_a_runtime_has_the_same_calls() {
    let store = eventstore::blocking::open("memory:").expect("opened");
    store.run(store.append([event("one", "a"), event("two", "a")]).timeout(Duration::from_secs(60))).expect("appended");
    let versions: Vec<_> =
        store.iter(store.load(Version::ZERO).stream()).map(|event| event.unwrap().version.get()).collect();
    assert_eq!(versions, [1, 2]);
    let handle = Store::clone(&store);
    let again = std::thread::spawn(move || handle.blocking().unwrap().run(handle.latest_version()));
    assert_eq!(again.join().expect("no panic").expect("read"), Version::new(2));
}

#[tokio::test]
async fn a_runtime_of_its_own_may_end_anywhere() {
    let store = tokio::task::spawn_blocking(|| eventstore::blocking::open("memory:")).await.expect("no panic");
    drop(store.expect("opened"));
}

#[test]
fn blocking_calls_end_with_their_deadline_also_if_nobody_drives_the_runtime_of_the_caller() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("built");
    let store = runtime.block_on(async { memory().await.blocking() }).expect("a runtime");
    let (done, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let waited = store.run(store.wait_for_events(Version::ZERO).timeout(Duration::from_millis(1)));
        done.send(waited).expect("somebody waits");
    });
    let waited = outcome.recv_timeout(Duration::from_secs(60)).expect("it ends");
    assert!(matches!(waited, Err(Error::DeadlineExceeded)), "{waited:?}");
}

#[tokio::test]
async fn decisions_rest_on_what_is_there() {
    let store = memory().await;
    let done = store.decide::<Account>("a", deposit(100)).await.expect("decided");
    assert_eq!((done.state.balance, done.revision), (100, Revision::new(1)));
    let done = store.decide::<Account>("a", withdraw(70)).await.expect("decided");
    assert_eq!((done.state.balance, done.appended.map(|appended| appended.last.get())), (30, Some(2)));
    let refused = store.decide::<Account>("a", withdraw(31)).await;
    assert!(matches!(refused, Err(DecideError::Rejected(Overdrawn))));
    let nothing = store.decide::<Account>("a", |_| Ok(vec![])).await.expect("decided");
    assert!(nothing.appended.is_none() && nothing.revision == Revision::new(2));
    assert_eq!(store.latest_version().await.expect("read"), Version::new(2));
    let loaded = store.aggregate::<Account>("a").await.expect("loaded");
    assert_eq!((loaded.state.balance, loaded.version), (30, Version::new(2)));
}

#[tokio::test]
async fn a_type_that_the_aggregate_does_not_know_is_told_with_its_version() {
    let store = memory().await;
    store.append(event("unknown", "a")).await.expect("appended");
    let failed = store.decide::<Account>("a", deposit(1)).await;
    assert!(matches!(failed, Err(DecideError::Store(Error::Decode { version: Some(v), .. })) if v.get() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_decisions_are_all_made_each_on_the_one_before() {
    let store = memory().await;
    store.decide::<Account>("a", deposit(100)).await.expect("decided");
    let withdrawals = (0..20).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.decide::<Account>("a", withdraw(10)).await })
    });
    let mut done = 0;
    for withdrawal in withdrawals.collect::<Vec<_>>() {
        match withdrawal.await.expect("no panic") {
            Ok(_) => done += 1,
            Err(DecideError::Rejected(Overdrawn)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(done, 10);
    assert_eq!(store.aggregate::<Account>("a").await.expect("loaded").state.balance, 0);
}

#[tokio::test]
async fn the_last_conflict_is_told_when_attempts_are_counted() {
    let (store, faults) = faulty(memory().await);
    let conflict =
        || Error::VersionConflict { expected: Expected::Any, actual: Actual::Store { latest: Version::ZERO } };
    let asked = AtomicUsize::new(0);
    let mut decision = |_: &Account| {
        asked.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Deposited { cents: 1 }])
    };
    (0..3).for_each(|_| faults.next_append(Fault::Refuse(conflict())));
    let given_up = store.decide::<Account>("a", &mut decision).attempts(2).await;
    assert!(matches!(given_up, Err(DecideError::Store(Error::VersionConflict { .. }))));
    assert_eq!((asked.load(Ordering::Relaxed), faults.left()), (2, 1));
    store.decide::<Account>("a", &mut decision).await.expect("the third conflict is the last");
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn after_an_unknown_outcome_the_same_events_are_appended_again() {
    for fault in [Fault::LoseAnswer, Fault::LoseRequest] {
        let (store, faults) = faulty(memory().await);
        faults.next_append(fault.clone());
        faults.next_append(fault);
        let asked = AtomicUsize::new(0);
        let decision = |_: &Account| {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Deposited { cents: 5 }, Deposited { cents: 6 }])
        };
        let done = store.decide::<Account>("a", decision).await.expect("decided");
        assert_eq!((done.state.balance, asked.load(Ordering::Relaxed)), (11, 1));
        assert_eq!(store.latest_version().await.expect("read"), Version::new(2), "each once");
    }
}

#[tokio::test]
async fn an_append_is_repeated_until_it_is_known_if_it_is_to_be() {
    let (store, faults) = faulty(memory().await);
    for (fault, outcome) in
        [(Fault::LoseAnswer, StoreOutcome::AlreadyStored), (Fault::LoseRequest, StoreOutcome::Written)]
    {
        let next = store.latest_version().await.expect("read").next();
        let event = event(&next.to_string(), "a");
        faults.next_append(fault);
        let appended =
            store.append(event).expected(Expected::LatestVersion(Version::new(next.get() - 1))).until_known();
        let appended = appended.await.expect("appended");
        assert_eq!((appended.last, appended.outcome), (next, outcome));
    }
    faults.next_append(Fault::LoseAnswer);
    let unknown = store.append(event("once", "a")).await;
    assert!(matches!(unknown, Err(Error::OutcomeUnknown { .. })), "it was not asked to: {unknown:?}");
}

#[tokio::test]
async fn what_stays_unknown_is_told_as_unknown() {
    // The last attempt is known to have written nothing, but that says nothing about the attempt before it.
    let (store, faults) = faulty(memory().await);
    faults.next_append(Fault::LoseAnswer);
    faults.next_append(Fault::TimeOut);
    let unknown = store.decide::<Account>("a", deposit(5)).await;
    assert!(matches!(unknown, Err(DecideError::Store(Error::OutcomeUnknown { .. }))), "{unknown:?}");
    assert_eq!(store.latest_version().await.expect("read"), Version::new(1));
    // The same, when the deadline passes while it waits to retry.
    (0..1000).for_each(|_| faults.next_append(Fault::LoseRequest));
    let mut patience = Duration::from_millis(20);
    let unknown = loop {
        match store.decide::<Account>("a", deposit(5)).timeout(patience).await {
            // Nothing was appended in this time.
            Err(DecideError::Store(Error::DeadlineExceeded)) if patience < Duration::from_secs(5) => patience *= 2,
            decided => break decided,
        }
    };
    assert!(matches!(unknown, Err(DecideError::Store(Error::OutcomeUnknown { .. }))), "{unknown:?}");
    faults.clear();
    faults.fence("a sync failed");
    let fenced = store.decide::<Account>("a", deposit(5)).await;
    assert!(matches!(fenced, Err(DecideError::Store(Error::Fenced { .. }))), "{fenced:?}");
}

#[tokio::test]
async fn a_command_with_a_key_is_done_once() {
    let store = memory().await;
    let pay = |key: &'static str, trace: u64| {
        let decide = store.decide::<Account>("a", |_| Ok(vec![Deposited { cents: 1 }, Deposited { cents: 2 }]));
        decide.idempotency_key(key).metadata(&serde_json::json!({ "trace": trace })).into_future()
    };
    let first = pay("k", 1).await.expect("decided").appended.expect("events");
    assert_eq!(first.outcome, StoreOutcome::Written);
    let other = store.decide::<Account>("a", deposit(10)).await.expect("decided");
    assert!(other.earlier.is_empty());
    let again = pay("k", 2).await.expect("repeated");
    let metadata: Vec<_> = again.earlier.iter().map(|earlier| earlier.event.metadata()).collect();
    assert_eq!(metadata, [r#"{"trace":1}"#; 2], "what the first attempt wrote");
    assert_eq!((again.state.balance, again.revision), (13, Revision::new(3)));
    let again = again.appended.expect("events");
    assert_eq!((again.outcome, again.first, again.last), (StoreOutcome::AlreadyStored, first.first, first.last));
    assert_eq!(pay("other", 3).await.expect("decided").appended.expect("events").outcome, StoreOutcome::Written);
    // The same key on another aggregate is another command.
    let elsewhere = store.decide::<Account>("b", deposit(1)).idempotency_key("k").await.expect("decided");
    assert_eq!(elsewhere.appended.expect("events").outcome, StoreOutcome::Written);
}

#[tokio::test]
async fn a_store_at_a_version_is_as_it_was() {
    let store = memory().await;
    for (id, aggregate_id) in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "c"), ("5", "a")] {
        store.append(event(id, aggregate_id)).await.expect("appended");
    }
    let copy = memory().await;
    let mut then = store.at(Version::ZERO).await.expect("read");
    assert_eq!(then.digest().await.expect("read"), copy.digest().await.expect("read"));
    for version in 1..=5 {
        let recorded = store.load(Version::new(version - 1)).limit(1).await.expect("loaded").remove(0);
        copy.append(recorded.event).await.expect("appended");
        let version = Version::new(version);
        then = store.at(version).await.expect("read");
        // This shows the same as a store that ended there.
        assert_eq!(then.version(), version);
        assert_eq!(then.digest().await.expect("read"), copy.digest().await.expect("read"));
        assert_eq!(then.cursor().await.expect("read"), copy.cursor().await.expect("read"));
        let ids = |events: Vec<RecordedEvent>| -> Vec<_> { events.iter().map(|e| e.event.id().to_owned()).collect() };
        for backward in [false, true] {
            let (mut shown, mut expected) = (then.load(Version::ZERO), copy.load(Version::ZERO));
            if backward {
                (shown, expected) = (shown.backward(), expected.backward());
            }
            assert_eq!(ids(shown.await.expect("loaded")), ids(expected.await.expect("loaded")));
        }
        let beyond = then.load(Version::ZERO).before(Version::new(99)).await.expect("loaded");
        assert_eq!(beyond.len() as u64, version.get(), "no bound leads beyond it");
        assert_eq!(then.load(Version::ZERO).before(Version::new(2)).await.expect("loaded").len(), 1);
        for options in [AggregateOptions::all(), AggregateOptions::all().before(Version::new(99))] {
            let shown = then.aggregates(options.clone(), 10).await.expect("listed").aggregates;
            assert_eq!(shown, copy.aggregates(options, 10).await.expect("listed").aggregates);
        }
        for aggregate_id in ["a", "b", "c", "d"] {
            let shown = then.revision(aggregate_id).await.expect("read");
            assert_eq!(shown, copy.revision(aggregate_id).await.expect("read"), "{aggregate_id}");
        }
        for id in ["1", "2", "3", "4", "5", "6"] {
            match (then.get(id).await, copy.get(id).await) {
                (Ok(shown), Ok(expected)) => assert_eq!(shown.version, expected.version),
                (shown, _) => {
                    let later = id.parse::<u64>().expect("a number") > version.get();
                    assert!(later && matches!(&shown, Err(Error::EventNotFound { .. })), "{id}: {shown:?}");
                }
            }
        }
    }
    store.decide::<Account>("acc", deposit(5)).await.expect("decided");
    let rich = store.at(store.cursor().await.expect("read")).await.expect("read");
    store.decide::<Account>("acc", withdraw(5)).await.expect("decided");
    let loaded = rich.aggregate::<Account>("acc").await.expect("loaded");
    assert_eq!((loaded.state.balance, loaded.revision), (5, Revision::new(1)));
    let beyond = store.at(Version::new(8)).await;
    assert!(matches!(&beyond, Err(Error::InvalidVersion { text, .. }) if text == "8"), "{beyond:?}");
    let foreign = memory().await;
    foreign.append(event("other", "a")).await.expect("appended");
    let diverged = store.at(foreign.cursor().await.expect("read")).await;
    assert!(matches!(&diverged, Err(Error::HistoryDiverged { .. })), "{diverged:?}");
}

#[tokio::test]
async fn a_key_that_is_used_for_another_command_is_refused() {
    let store = memory().await;
    let policy = SnapshotPolicy::new(MemorySnapshots::default(), 1).every(1);
    store.decide::<Account>("a", deposit(10)).await.expect("decided");
    store.decide::<Account>("a", deposit(5)).idempotency_key("k").await.expect("decided");
    // The balance is sufficient now, and it was when the key was used.
    for policy in [None, Some(&policy)] {
        let mut other = store.decide::<Account>("a", withdraw(7)).idempotency_key("k");
        if let Some(policy) = policy {
            other = other.snapshots(policy);
        }
        let other = other.await;
        let Err(DecideError::Store(Error::DuplicateEvent { version, .. })) = &other else { panic!("{other:?}") };
        assert_eq!(*version, Some(Version::new(2)));
    }
    assert_eq!(store.latest_version().await.expect("read"), Version::new(2), "nothing was written");
    // These cannot be told apart and count as repetitions: other content, a rejection, or no effect on that state.
    for again in [
        store.decide::<Account>("a", deposit(6)).idempotency_key("k").await,
        store.decide::<Account>("a", withdraw(11)).idempotency_key("k").await,
        store.decide::<Account>("a", |_| Ok(vec![])).idempotency_key("k").await,
    ] {
        assert_eq!(again.expect("repeated").appended.expect("events").last, Version::new(2));
    }
    // An event of another aggregate has the id of a command here.
    let id = store.load(Version::new(1)).await.expect("loaded")[0].event.id().to_owned();
    let elsewhere = memory().await;
    let foreign = Event::builder("Deposited", "b").id(id).json(&serde_json::json!({ "cents": 5 })).build();
    elsewhere.append(foreign.expect("valid")).await.expect("appended");
    let refused = elsewhere.decide::<Account>("a", deposit(5)).idempotency_key("k").await;
    assert!(matches!(&refused, Err(DecideError::Store(Error::DuplicateEvent { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_key_that_another_command_uses_meanwhile_is_refused() {
    let store = memory().await;
    store.decide::<Account>("a", deposit(10)).await.expect("decided");
    let inner = store.clone();
    let mut is_first = true;
    let slow = store.decide::<Account>("a", move |account: &Account| {
        if std::mem::take(&mut is_first) {
            let store = inner.clone();
            let other = std::thread::spawn(move || {
                let store = store.blocking().expect("a runtime");
                store.run(store.decide::<Account>("a", deposit(7)).idempotency_key("k")).expect("decided");
            });
            other.join().expect("no panic");
        }
        withdraw(3)(account)
    });
    let refused = slow.idempotency_key("k").await;
    assert!(matches!(&refused, Err(DecideError::Store(Error::DuplicateEvent { .. }))), "{refused:?}");
}

#[tokio::test]
async fn of_attempts_of_one_command_that_decide_otherwise_the_first_counts() {
    // Both see that it is not stored yet. The slower one finds the other's event under its own id.
    let store = memory().await;
    let inner = store.clone();
    let overtaken = AtomicUsize::new(0);
    let slow = store.decide::<Account>("a", |account: &Account| {
        if overtaken.fetch_add(1, Ordering::Relaxed) == 0 {
            let store = inner.clone();
            let fast = std::thread::spawn(move || {
                let store = store.blocking().expect("a runtime");
                store.run(store.decide::<Account>("a", deposit(7)).idempotency_key("k")).expect("decided");
            });
            fast.join().expect("no panic");
        }
        Ok(vec![Deposited { cents: account.balance + 1 }])
    });
    let done = slow.idempotency_key("k").await.expect("decided");
    assert_eq!((done.state.balance, overtaken.load(Ordering::Relaxed)), (7, 1));
    assert_eq!(done.appended.expect("events").outcome, StoreOutcome::AlreadyStored);
    assert_eq!(store.latest_version().await.expect("read"), Version::new(1));
}

/// A store in which something else happens, once, after a read of this kind.
#[derive(Clone)]
struct Meanwhile {
    inner: Store,
    behind: &'static str,
    happens: Arc<Mutex<Option<Happens>>>,
}

type BoxedCall = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
type Happens = Box<dyn FnOnce(Store) -> BoxedCall + Send>;

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.behind)
    }
}

impl Meanwhile {
    async fn did(&self, what: &str) {
        let happens = if what == self.behind { self.happens.lock().unwrap().take() } else { None };
        if let Some(happens) = happens {
            happens(self.inner.clone()).await;
        }
    }
}

#[async_trait]
impl EventStore for Meanwhile {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> eventstore::Result<Vec<Stored>> {
        self.inner.backend().store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> eventstore::Result<Page> {
        let page = self.inner.backend().load_page(ctx, options, size).await;
        self.did("load_page").await;
        page
    }

    async fn get(&self, ctx: &Context, id: &str) -> eventstore::Result<RecordedEvent> {
        let found = self.inner.backend().get(ctx, id).await;
        self.did("get").await;
        found
    }

    async fn latest_version(&self, ctx: &Context) -> eventstore::Result<Version> {
        self.inner.backend().latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, id: &str) -> eventstore::Result<Revision> {
        self.inner.backend().aggregate_revision(ctx, id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> eventstore::Result<Version> {
        self.inner.backend().wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> eventstore::Result<GcReport> {
        self.inner.backend().run_gc(ctx, gc).await
    }

    async fn stats(&self, ctx: &Context) -> eventstore::Result<Stats> {
        self.inner.backend().stats(ctx).await
    }

    async fn close(&self) -> eventstore::Result<()> {
        self.inner.backend().close().await
    }
}

#[tokio::test]
async fn a_command_that_another_attempt_overtakes_is_done_once_wherever_that_happens() {
    for behind in ["load_page", "get", "decision"] {
        let inner = memory().await;
        inner.decide::<Account>("a", deposit(100)).await.expect("decided");
        let another = |store: Store| -> BoxedCall {
            Box::pin(async move {
                store.decide::<Account>("a", deposit(10)).await.expect("decided");
                store.decide::<Account>("a", withdraw(70)).idempotency_key("k").await.expect("decided");
            })
        };
        let happens: Happens = Box::new(another);
        let store = Meanwhile { inner: inner.clone(), behind, happens: Arc::new(Mutex::new(Some(happens))) };
        let policy = SnapshotPolicy::new(MemorySnapshots::default(), 1).every(1);
        let overtaking = store.clone();
        let decision = move |account: &Account| {
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.expect("built").block_on(overtaking.did("decision"));
                });
            });
            withdraw(70)(account)
        };
        let slow = Store::new(store).decide::<Account>("a", decision).idempotency_key("k").snapshots(&policy);
        let done = slow.await.expect("it was done by the other attempt");
        let expected = Account { balance: 40, events: 3 };
        assert_eq!((&done.state, done.revision), (&expected, Revision::new(3)), "behind {behind}");
        let appended = done.appended.expect("events");
        assert_eq!(
            (appended.outcome, appended.last),
            (StoreOutcome::AlreadyStored, Version::new(3)),
            "behind {behind}"
        );
        let later = inner.decide::<Account>("a", |_| Ok(vec![])).snapshots(&policy).await.expect("decided");
        assert_eq!(later.state, expected, "a snapshot has the same, behind {behind}");
    }
}

#[tokio::test]
async fn of_two_attempts_whose_events_begin_alike_all_of_the_first_count() {
    let decided = |events: u64| move |_: &Account| Ok((1..=events).map(|cents| Deposited { cents }).collect());
    for (of_fast, of_slow, balance) in [(2, 1, 3), (1, 2, 1)] {
        let store = memory().await;
        let (inner, overtaken) = (store.clone(), AtomicUsize::new(0));
        let slow = store.decide::<Account>("a", |account: &Account| {
            if overtaken.fetch_add(1, Ordering::Relaxed) == 0 {
                let store = inner.clone();
                let fast = std::thread::spawn(move || {
                    let store = store.blocking().expect("a runtime");
                    store.run(store.decide::<Account>("a", decided(of_fast)).idempotency_key("k")).expect("decided");
                });
                fast.join().expect("no panic");
            }
            decided(of_slow)(account)
        });
        // A conflict with the other attempt does not count as one.
        let done = slow.idempotency_key("k").attempts(1).await.expect("decided");
        assert_eq!((done.state.balance, done.revision), (balance, Revision::new(of_fast)));
        assert_eq!(done.appended.expect("events").places().len() as u64, of_fast);
    }
}

#[tokio::test]
async fn a_command_whose_events_are_there_in_part_is_an_error_and_not_tried_for_ever() {
    let both = |_: &Account| Ok(vec![Deposited { cents: 7 }, Deposited { cents: 1 }]);
    let elsewhere = memory().await;
    elsewhere.decide::<Account>("a", both).idempotency_key("k").await.expect("decided");
    let second = elsewhere.load(Version::new(1)).await.expect("loaded").remove(0).event;
    // For example, only some of the events were copied.
    let store = memory().await;
    let id = second.id();
    store.append(event(id, "a-copy")).await.expect("appended");
    let done = store.decide::<Account>("a", both).idempotency_key("k").timeout(Duration::from_secs(60)).await;
    assert!(matches!(&done, Err(DecideError::Store(Error::DuplicateEvent { .. }))), "{done:?}");
    assert_eq!(store.latest_version().await.expect("read"), Version::new(1));
}

#[tokio::test]
async fn an_attempt_that_was_overtaken_by_another_of_its_command_knows_all_that_happened() {
    // While the slow attempt decides, another event is appended, and then the same command's from another attempt.
    let store = memory().await;
    let inner = store.clone();
    let policy = SnapshotPolicy::new(MemorySnapshots::default(), 1).every(1);
    let mut is_first = true;
    let slow = store.decide::<Account>("a", move |_: &Account| {
        if std::mem::take(&mut is_first) {
            let store = inner.clone();
            let others = std::thread::spawn(move || {
                let store = store.blocking().expect("a runtime");
                store.run(store.decide::<Account>("a", deposit(100))).expect("decided");
                store.run(store.decide::<Account>("a", deposit(7)).idempotency_key("k")).expect("decided");
            });
            others.join().expect("no panic");
        }
        Ok(vec![Deposited { cents: 7 }])
    });
    let done = slow.idempotency_key("k").snapshots(&policy).await.expect("decided");
    assert_eq!((done.state.balance, done.revision), (107, Revision::new(2)));
    assert_eq!(done.appended.expect("events").outcome, StoreOutcome::AlreadyStored);
    let next = store.decide::<Account>("a", withdraw(107)).snapshots(&policy).await.expect("there is as much");
    assert_eq!(next.state.balance, 0);
}

#[tokio::test]
async fn events_of_a_decision_carry_what_they_follow_from() {
    let store = memory().await;
    let cause = event("cause", "other");
    store
        .decide::<Account>("a", deposit(1))
        .metadata(&serde_json::json!({ "by": "me" }))
        .caused_by(&cause)
        .correlation_id("request-7")
        .await
        .expect("decided");
    let recorded = store.load(Version::ZERO).await.expect("loaded").remove(0);
    assert_eq!(recorded.event.causation_id().as_deref(), Some("cause"));
    assert_eq!(recorded.event.correlation_id().as_deref(), Some("request-7"));
    assert!(recorded.event.metadata().starts_with(r#"{"by":"me","#));
    let refused = store.decide::<Account>("a", deposit(1)).metadata(&7).await;
    assert!(matches!(refused, Err(DecideError::Store(Error::InvalidEvent { field: "metadata", .. }))));
}

/// Counts what is read from it.
#[derive(Clone, Debug, Default)]
struct Looked(MemorySnapshots, Arc<Mutex<Vec<usize>>>);

#[async_trait]
impl Snapshots for Looked {
    async fn load(&self, name: &str) -> eventstore::Result<Option<eventstore::Bytes>> {
        self.0.load(name).await
    }

    async fn save(&self, name: &str, snapshot: eventstore::Bytes) -> eventstore::Result<()> {
        self.1.lock().unwrap().push(snapshot.len());
        self.0.save(name, snapshot).await
    }
}

/// An account to which each event adds five hundred.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Generous(Account);

impl Aggregate for Generous {
    type Event = AccountEvent;
    type Error = Overdrawn;

    fn apply(&mut self, _: AccountEvent) {
        self.0.events += 1;
        self.0.balance += 500;
    }
}

#[tokio::test]
async fn snapshots_are_taken_and_gone_on_from() {
    let looked = Looked::default();
    let policy = SnapshotPolicy::new(looked.clone(), 1).every(3);
    let store = memory().await;
    for number in 1..=7 {
        let done = store.decide::<Account>("a", deposit(1)).snapshots(&policy).await.expect("decided");
        assert_eq!((done.state.balance, done.state.events), (number, number));
    }
    assert_eq!(looked.1.lock().unwrap().len(), 2, "after 3 and after 6");
    // The content of the snapshot counts, and only events after it are read.
    let generous = SnapshotPolicy::new(looked.clone(), 1).every(1);
    let done = store.decide::<Generous>("a", |_| Ok(vec![Deposited { cents: 1 }])).snapshots(&generous).await;
    assert_eq!(done.expect("decided").state.0.balance, 1006, "six of the snapshot, and two");
    let done = store.decide::<Account>("a", |_| Ok(vec![])).snapshots(&policy).await.expect("decided");
    assert_eq!((done.state.balance, done.state.events), (1006, 8));
    // A policy with another schema ignores it.
    let next = SnapshotPolicy::new(looked.clone(), 2);
    let done = store.decide::<Account>("a", |_| Ok(vec![])).snapshots(&next).await.expect("decided");
    assert_eq!(done.state.balance, 8);
}

#[tokio::test]
async fn snapshots_that_are_damaged_lost_or_of_another_history_cost_nothing_but_time() {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("snapshots");
    let policy = SnapshotPolicy::new(FileSnapshots::open(&path).expect("opened"), 1).every(1);
    let store = memory().await;
    let add =
        |store: &Store, cents| store.decide::<Account>("a/../b\0", deposit(cents)).snapshots(&policy).into_future();
    add(&store, 1).await.expect("decided");
    add(&store, 1).await.expect("decided");
    let file = || std::fs::read_dir(&path).expect("there").next().expect("one file").expect("readable").path();
    assert_eq!(std::fs::read_dir(&path).expect("there").count(), 1);
    let whole = std::fs::read(file()).expect("readable");
    let text = String::from_utf8(whole.clone()).expect("JSON");
    let changed = [text.replace("\"balance\":2", "\"balance\":3"), text.replace("\"revision\":2", "\"revision\":1")];
    assert!(changed.iter().all(|changed| *changed != text));
    let changed = changed.iter().map(String::as_bytes);
    for damaged in [&whole[..whole.len() / 2], b"", b"null", &vec![0; whole.len()]].into_iter().chain(changed) {
        std::fs::write(file(), damaged).expect("written");
        assert_eq!(add(&store, 0).await.expect("decided").state.balance, 2);
    }
    // In another history, the snapshot's last event does not exist.
    let other = memory().await;
    assert_eq!(add(&other, 5).await.expect("decided").state.balance, 5);
    std::fs::remove_dir_all(&path).expect("removed");
    assert_eq!(add(&store, 1).await.expect("what cannot be kept is no error").state.balance, 3);
}

#[tokio::test]
async fn a_snapshot_of_another_history_is_ignored_also_if_it_ends_with_the_same_event() {
    let policy = SnapshotPolicy::new(MemorySnapshots::default(), 1).every(2);
    let pay = |store: &Store| store.decide::<Account>("a", deposit(5)).idempotency_key("k").snapshots(&policy);
    let store = memory().await;
    store.decide::<Account>("a", deposit(100)).await.expect("decided");
    assert_eq!(pay(&store).await.expect("decided").state.balance, 105);
    // After a restored backup, something else happened, and the command was repeated: its event has the same id and
    // position.
    let restored = memory().await;
    restored.decide::<Account>("a", deposit(1)).await.expect("decided");
    restored.decide::<Account>("a", deposit(5)).idempotency_key("k").await.expect("decided");
    let done = restored.decide::<Account>("a", |_| Ok(vec![])).snapshots(&policy).await.expect("decided");
    assert_eq!(done.state.balance, 6);
}

/// Cancels the call that uses it, and then never answers.
#[derive(Clone, Debug)]
struct Stuck(CancellationToken, &'static str);

impl Stuck {
    async fn at(&self, what: &str) {
        if what == self.1 {
            self.0.cancel();
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Snapshots for Stuck {
    async fn load(&self, _: &str) -> eventstore::Result<Option<eventstore::Bytes>> {
        self.at("load").await;
        Ok(None)
    }

    async fn save(&self, _: &str, _: eventstore::Bytes) -> eventstore::Result<()> {
        self.at("save").await;
        Ok(())
    }
}

#[tokio::test]
async fn a_decision_ends_with_its_context_also_if_snapshots_do_not_answer() {
    let store = memory().await;
    let decide = async |stuck: &'static str| {
        let token = CancellationToken::new();
        let policy = SnapshotPolicy::new(Stuck(token.clone(), stuck), 1).every(1);
        let decide = store.decide::<Account>("a", deposit(1)).snapshots(&policy).cancel_on(&token);
        tokio::time::timeout(Duration::from_secs(60), decide.into_future()).await.expect("it ends")
    };
    assert!(matches!(decide("load").await, Err(DecideError::Store(Error::Cancelled))));
    assert_eq!(store.latest_version().await.expect("read"), Version::ZERO);
    assert_eq!(decide("save").await.expect("it was appended").revision, Revision::new(1));
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Thermometer(Vec<f64>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Reading {
    Measured { degrees: f64 },
}

impl Aggregate for Thermometer {
    type Event = Reading;
    type Error = Infallible;

    fn apply(&mut self, Reading::Measured { degrees }: Reading) {
        self.0.push(degrees);
    }
}

#[tokio::test]
async fn what_could_not_be_read_back_is_not_appended() {
    let store = memory().await;
    let measured = |degrees| store.decide::<Thermometer>("t", move |_| Ok(vec![Reading::Measured { degrees }]));
    let done = measured(36.6).await.expect("decided");
    for degrees in [f64::NAN, f64::INFINITY] {
        // JSON has none of these values and writes `null`: the aggregate could never be loaded again.
        let refused = measured(degrees).await;
        assert!(matches!(&refused, Err(DecideError::Store(Error::InvalidEvent { field: "data", .. }))), "{refused:?}");
    }
    assert_eq!(store.aggregate::<Thermometer>("t").await.expect("loaded").state, done.state);
}

#[tokio::test]
async fn a_list_of_aggregates_is_one_read_to_what_makes_a_store_fail() {
    let (store, faults) = faulty(memory().await);
    let many: Vec<_> = (0..2_000).map(|number| event(&number.to_string(), &format!("a-{}", number % 2))).collect();
    store.append(many).await.expect("appended");
    for _ in 0..2 {
        faults.next_read(Fault::Delay(Duration::ZERO));
    }
    assert_eq!(store.aggregates(AggregateOptions::all(), 10).await.expect("listed").aggregates.len(), 2);
    assert_eq!(faults.left(), 1);
}

#[test]
fn what_has_happened_is_given_as_a_store_gives_it() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Odd {
        Kept {
            #[serde(skip)]
            by_nobody: u8,
        },
        Lost(f64),
    }
    #[derive(Default)]
    struct Sum(u8);
    impl Aggregate for Sum {
        type Event = Odd;
        type Error = u8;
        fn apply(&mut self, event: Odd) {
            self.0 += if let Odd::Kept { by_nobody } = event { by_nobody } else { 1 };
        }
    }
    given::<Sum>([Odd::Kept { by_nobody: 7 }]).when(|sum| Err(sum.0)).then_error(0);
    assert!(std::panic::catch_unwind(|| given::<Sum>([Odd::Lost(f64::NAN)])).is_err());
}

#[test]
fn given_when_then_fails_when_it_should() {
    given::<Account>([Deposited { cents: 10 }]).when(withdraw(10)).then([Withdrawn { cents: 10 }]);
    given::<Account>([]).when(withdraw(1)).then_error(Overdrawn);
    let panics = |test: fn()| assert!(std::panic::catch_unwind(test).is_err());
    panics(|| given::<Account>([]).when(withdraw(1)).then([]));
    panics(|| given::<Account>([]).when(deposit(1)).then_error(Overdrawn));
    panics(|| given::<Account>([]).when(deposit(1)).then([Deposited { cents: 2 }]));
}

/// A view that keeps ids and its cursor together, and fails on request.
#[derive(Clone, Debug, Default)]
struct View(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    ids: Vec<String>,
    cursor: Cursor,
    fails: usize,
    calls: usize,
}

#[async_trait]
impl Projection for View {
    async fn cursor(&mut self) -> Result<Cursor, BoxError> {
        Ok(self.0.lock().unwrap().cursor)
    }

    async fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
        let mut seen = self.0.lock().unwrap();
        seen.calls += 1;
        if seen.fails > 0 {
            seen.fails -= 1;
            return Err("the database is away".into());
        }
        seen.ids.extend(events.iter().map(|recorded| recorded.event.id().to_owned()));
        seen.cursor = cursor;
        Ok(())
    }
}

impl View {
    fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().ids.clone()
    }
}

const SOON: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_projection_has_every_event_once_and_goes_on_where_it_ended() {
    let (store, view) = (memory().await, View::default());
    store.append((1..=5).map(|n| event(&format!("{n}"), "a")).collect::<Vec<_>>()).await.expect("appended");
    let running = store.project(view.clone()).page_size(2).start();
    running.reached(Version::new(5)).await.expect("reached");
    store.append(event("6", "a")).await.expect("appended");
    running.reached(Version::new(6)).await.expect("reached");
    assert_eq!((running.version(), running.lag().await.expect("read")), (Version::new(6), 0));
    let progress = running.progress();
    running.stop().await.expect("stopped");
    progress.ended().await;
    assert!(matches!(progress.reached(Version::new(7)).await, Err(Error::Closed)));
    assert_eq!(progress.version(), Version::new(6), "what the view has stays known");
    store.append(event("7", "a")).await.expect("appended");
    let running = store.project(view.clone()).start();
    running.reached(Version::new(7)).await.expect("reached");
    assert_eq!(view.ids(), ["1", "2", "3", "4", "5", "6", "7"]);
    store.close().await.expect("closed");
    assert!(matches!(running.stop().await, Ok(_) | Err(Error::Closed)));
}

#[tokio::test]
async fn a_projection_that_fails_is_given_the_same_events_again() {
    let (store, faults) = faulty(memory().await);
    let view = View::default();
    store.append([event("1", "a"), event("2", "a")]).await.expect("appended");
    view.0.lock().unwrap().fails = 3;
    (0..2).for_each(|_| faults.next_read(Fault::LoseAnswer));
    let running = store.project(view.clone()).backoff(SOON, SOON).start();
    running.reached(Version::new(2)).await.expect("reached");
    assert_eq!((view.ids(), view.0.lock().unwrap().calls), (vec!["1".to_owned(), "2".to_owned()], 4));
    running.stop().await.expect("stopped");
    // A projection that gives up returns the reason.
    store.append(event("3", "a")).await.expect("appended");
    view.0.lock().unwrap().fails = 3;
    let running = store.project(view.clone()).backoff(SOON, SOON).give_up_after(2).start();
    assert!(matches!(running.reached(Version::new(3)).await, Err(Error::Engine { .. })));
    let error = running.stop().await.expect_err("it gave up");
    let source = std::error::Error::source(&error).expect("there is a cause").to_string();
    assert_eq!(source, "the database is away");
}

/// Adds up the deposits; its errors are of its own type.
#[derive(Debug, Default)]
struct Deposits {
    cents: u64,
    pages: Vec<Vec<u64>>,
    cursor: Cursor,
    /// The number of times to fail for another reason.
    fails: u32,
    /// Whether to wrap the error as a source.
    wraps: bool,
}

#[derive(Debug)]
struct Wrapped(Error);

impl std::fmt::Display for Wrapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the view failed")
    }
}

impl std::error::Error for Wrapped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl eventstore::blocking::Projection for Deposits {
    fn cursor(&mut self) -> Result<Cursor, BoxError> {
        Ok(self.cursor)
    }

    fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
        assert!(tokio::runtime::Handle::try_current().is_ok());
        self.pages.push(events.iter().map(|recorded| recorded.version.get()).collect());
        let mut cents = self.cents;
        for event in events {
            cents += match event.decode::<AccountEvent>() {
                Ok(Deposited { cents } | Withdrawn { cents }) => cents,
                Err(error) if self.wraps => return Err(Wrapped(error).into()),
                Err(error) => return Err(error.into()),
            };
        }
        if self.fails > 0 {
            self.fails -= 1;
            return Err("the database is away".into());
        }
        (self.cents, self.cursor) = (cents, cursor);
        Ok(())
    }
}

/// Two deposits, with undecodable events before, between and after them.
fn unreadable_store() -> eventstore::blocking::Blocking {
    let store = eventstore::blocking::open("memory:").expect("opened");
    let deposit = |cents: u64| Event::of("a", &Deposited { cents }).expect("valid");
    let broken = Event::builder("Deposited", "a").data("{").build().expect("valid");
    store.run(store.append([event("1", "a"), deposit(2), broken, deposit(4), event("5", "a")])).expect("appended");
    store
}

#[test]
fn a_projection_ends_with_an_event_that_it_cannot_decode() {
    for wraps in [false, true] {
        let store = unreadable_store();
        let running =
            store.start(store.project(Deposits { wraps, ..Deposits::default() }).backoff(SOON, SOON).give_up_after(9));
        let reached = store.run(running.reached(Version::new(5)));
        let is_it = |error: &Error| matches!(error, Error::Decode { version: Some(version), .. } if version.get() == 1);
        assert!(reached.as_ref().is_err_and(is_it), "{reached:?}");
        let ended = store.run(running.stop());
        assert!(ended.as_ref().is_err_and(is_it), "{ended:?}");
    }
}

#[test]
fn a_projection_leaves_out_what_it_cannot_decode_if_it_is_told_to() {
    let store = unreadable_store();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = told.clone();
    let project = store.project(Deposits { fails: 2, ..Deposits::default() }).backoff(SOON, SOON).give_up_after(9);
    let project = project.on_decode_error(move |recorded, error| {
        assert!(matches!(error, Error::Decode { version, .. } if *version == Some(recorded.version)));
        telling.lock().unwrap().push(recorded.version.get());
        Ok(())
    });
    let running = store.start(project);
    store.run(running.reached(Version::new(5))).expect("reached");
    let deposits = store.run(running.stop()).expect("stopped").into_inner();
    assert_eq!(*told.lock().unwrap(), [1, 3, 5], "once each, also where the page fails for another reason");
    let left = [vec![1, 2, 3, 4, 5], vec![2, 3, 4, 5], vec![2, 4, 5], vec![2, 4], vec![2, 4], vec![2, 4]];
    assert_eq!((deposits.cents, deposits.cursor.version()), (6, Version::new(5)));
    assert_eq!(deposits.pages, left);
    // The handler may also end the projection.
    let third = Version::new(3);
    let running = store.start(
        store
            .project(Deposits::default())
            .on_decode_error(move |event, error| if event.version == third { Err(error.clone()) } else { Ok(()) }),
    );
    let reached = store.run(running.reached(Version::new(5)));
    assert!(matches!(&reached, Err(Error::Decode { version, .. }) if *version == Some(third)), "{reached:?}");
}

#[test]
fn a_blocking_projection_that_panics_ends_and_says_so() {
    struct Panics;
    impl eventstore::blocking::Projection for Panics {
        fn cursor(&mut self) -> Result<Cursor, BoxError> {
            panic!("no view");
        }

        fn apply(&mut self, _: &[RecordedEvent], _: Cursor) -> Result<(), BoxError> {
            Ok(())
        }
    }
    let store = unreadable_store();
    let running = store.start(store.project(Panics));
    assert!(store.run(running.reached(Version::new(1))).is_err());
    let ended = store.run(running.stop());
    assert!(matches!(ended, Err(Error::Engine { .. })));
}

#[tokio::test]
async fn a_filtered_projection_reaches_what_does_not_match() {
    let (store, view) = (memory().await, View::default());
    let running = store.project(view.clone()).aggregate("a").start();
    let last = store.append([event("1", "a"), event("2", "b"), event("3", "b")]).await.expect("appended").last;
    running.reached(last).await.expect("reached");
    assert_eq!(view.ids(), ["1"]);
    assert_eq!(view.0.lock().unwrap().cursor.version(), last, "so that it does not begin before them again");
}

#[tokio::test]
async fn a_projection_of_another_history_ends() {
    let view = View::default();
    let store = memory().await;
    store.append([event("1", "a"), event("2", "a")]).await.expect("appended");
    let running = store.project(view.clone()).start();
    running.reached(Version::new(2)).await.expect("reached");
    running.stop().await.expect("stopped");
    // As after restoring a backup of the first event, to which other events were appended.
    let restored = memory().await;
    restored.append([event("1", "a"), event("other", "a"), event("more", "a")]).await.expect("appended");
    let running = restored.project(view.clone()).start();
    running.ended().await;
    let reached = running.progress().reached(Version::new(4)).await;
    assert!(matches!(reached, Err(Error::HistoryDiverged { .. })), "who waits is told why: {reached:?}");
    let error = running.stop().await.expect_err("it has ended");
    assert!(matches!(error, Error::HistoryDiverged { .. }), "{error:?}");
    assert_eq!(view.ids(), ["1", "2"]);
}

/// The view was at version 30 when a backup of the first 10 events was restored and 40 others were appended. Without
/// the cursor, the view would continue after version 30 and never have the events in between.
#[cfg(feature = "lmdb")]
#[tokio::test]
async fn a_restored_backup_is_noticed_by_projections_and_subscriptions() {
    let directory = tempfile::tempdir().expect("made");
    let url = |name: &str| format!("lmdb:{}", directory.path().join(name).display());
    let numbered = |from: u32, to: u32| (from..to).map(|n| event(&format!("{n}"), "a")).collect::<Vec<_>>();
    let store = eventstore::open(&url("store")).await.expect("opened");
    store.append(numbered(0, 10)).await.expect("appended");
    store.backup(directory.path().join("backup")).await.expect("backed up");
    store.append(numbered(10, 30)).await.expect("appended");
    let view = View::default();
    let running = store.project(view.clone()).start();
    running.reached(Version::new(30)).await.expect("reached");
    running.stop().await.expect("stopped");
    let cursor = store.cursor().await.expect("read");
    store.close().await.expect("closed");
    // It is detected again after the store was reopened.
    let store = eventstore::open(&url("store")).await.expect("opened");
    assert!(store.load(cursor).await.expect("the same history").is_empty());
    store.close().await.expect("closed");

    let restored = eventstore::open(&url("backup")).await.expect("opened");
    let early = restored.cursor().await.expect("read");
    restored.append(numbered(100, 140)).await.expect("appended");
    let running = restored.project(view.clone()).start();
    running.ended().await;
    assert!(matches!(running.stop().await, Err(Error::HistoryDiverged { .. })));
    let first = restored.subscribe(cursor).stream().next().await;
    assert!(matches!(first, Some(Err(Error::HistoryDiverged { .. }))), "{first:?}");
    // A view saved before the histories diverge continues.
    assert_eq!(ids(restored.load(early)).await.len(), 40);
    assert_eq!(view.ids().len(), 30);
    restored.close().await.expect("closed");
}

/// An aggregate that rejects nothing.
#[derive(Default)]
struct Tally(u32);

impl Aggregate for Tally {
    type Event = AccountEvent;
    type Error = Infallible;

    fn apply(&mut self, _: AccountEvent) {
        self.0 += 1;
    }
}

#[tokio::test]
async fn what_cannot_be_refused_needs_no_error() {
    let store = memory().await;
    let done = store.decide::<Tally>("t", |_| Ok(vec![Deposited { cents: 1 }])).await.expect("decided");
    assert_eq!(done.state.0, 1);
}

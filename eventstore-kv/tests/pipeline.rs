//! The writer's pipeline at every stage, over a disk and an engine that stop and fail on request.
//!
//! The conformance suite sees a store from outside and can reach these states only by chance. Here they are decided: an
//! append is known to be queued, staged, or inside its commit when its caller leaves or its disk fails.

mod controlled;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use controlled::{Call, Control, Order, Store, open, open_with, options, reopen, reopen_on, reopen_with};
use eventstore_api::{
    Actual, Batch, CancellationToken, Context, Durability, Error, Event, EventStore, EventStoreExt, Expected,
    Idempotency, LoadOptions, PageSize, Result, Revision, StoreOutcome, Stored, Version,
};
use eventstore_kv::StoreOptions;

fn event(id: &str) -> Event {
    Event::builder("Tested", "aggregate").id(id).build().expect("valid")
}

/// An event with the same id and other content.
fn other(id: &str) -> Event {
    Event::builder("Other", "aggregate").id(id).build().expect("valid")
}

fn buffered(id: &str) -> Batch {
    Batch::from(event(id)).durability(Durability::Buffered)
}

fn background() -> Context {
    Context::background()
}

type Append = tokio::task::JoinHandle<Result<Vec<Stored>>>;

fn append(store: &Store, ctx: Context, batch: impl Into<Batch>) -> Append {
    let (store, batch) = (store.clone(), batch.into());
    tokio::spawn(async move { store.store_batch(&ctx, batch).await })
}

async fn answer(append: Append) -> Result<Vec<Stored>> {
    let append = tokio::time::timeout(Duration::from_secs(30), append).await;
    append.expect("it is answered").expect("no panic")
}

/// Waits until the queue holds this many requests.
async fn queued(store: &Store, requests: u64) {
    let waits = async {
        while store.stats(&background()).await.expect("stats").queued_requests != requests {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waits).await.expect("as many are queued");
}

async fn latest(store: &Store) -> u64 {
    store.latest_version(&background()).await.expect("open").get()
}

async fn ids(store: &Store) -> Vec<String> {
    let events = store.load(&background(), Version::ZERO).into_vec().await.expect("loaded");
    events.iter().map(|event| event.event.id().to_owned()).collect()
}

/// A store whose groups have this many events at most, with an append that is being synced, so that later ones wait.
async fn open_at_work(group_events: usize) -> (Store, Control, Append) {
    let mut options = options();
    options.group_events = group_events;
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    assert_eq!(control.commit().await, 1);
    (store, control, first)
}

/// Lets the writer continue: the waiting group reaches its sync, and the writer decides the next one meanwhile. Both
/// repeat an event, so that the writer has to read the index. Returns the number of events of the first.
async fn one_is_synced_and_the_next_decided(control: &mut Control, before: Append) -> usize {
    control.staging.shut();
    control.order(Order::Succeed);
    answer(before).await.expect("written");
    assert_eq!(control.staging.call().await, Call::Stage, "one group");
    control.staging.order(Order::Succeed);
    let events = control.commit().await;
    assert_eq!(control.staging.call().await, Call::Stage, "the next");
    control.staging.open();
    control.staging.order(Order::Succeed);
    events
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
    assert_eq!(latest(&store).await, 1, "not published yet");
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
    let conflict = append(&store, background(), Batch::from(event("late")).expected(Expected::Revision(1.into())));
    let duplicate = append(&store, background(), other("good"));
    let repeated = append(&store, background(), event("good"));
    let last = append(&store, background(), Batch::from(event("last")).expected(Expected::Revision(2.into())));
    queued(&store, 5).await;
    control.order(Order::Succeed);
    assert_eq!(control.commit().await, 2);
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    let good = answer(good).await.expect("written");
    assert!(
        matches!(answer(conflict).await, Err(Error::VersionConflict { actual: Actual::Aggregate { revision: at, .. }, .. }) if at.get() == 2)
    );
    assert!(matches!(answer(duplicate).await, Err(Error::DuplicateEvent { .. })));
    let repeated = answer(repeated).await.expect("already stored");
    assert_eq!((repeated[0].version, repeated[0].outcome), (good[0].version, StoreOutcome::AlreadyStored));
    assert_eq!(answer(last).await.expect("written")[0].revision.get(), 3);
    assert_eq!(ids(&store).await, ["first", "good", "last"]);
}

#[tokio::test]
async fn while_a_group_is_synced_the_next_is_staged_and_written_only_when_that_sync_has_succeeded() {
    let (store, mut control, first) = open_at_work(2).await;
    let group = ["a-1", "a-2"].map(|id| append(&store, background(), event(id)));
    queued(&store, 2).await;
    let next = ["b-1", "b-2"].map(|id| append(&store, background(), event(id)));
    queued(&store, 4).await;
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    assert_eq!(control.commit().await, 2);
    queued(&store, 0).await; // the others are staged
    assert!(control.log.is_quiet().await, "it is in memory alone");
    assert_eq!(latest(&store).await, 1);
    assert!(group.iter().chain(&next).all(|append| !append.is_finished()), "nobody is answered");
    control.order(Order::Succeed);
    assert_eq!(control.write().await, 2);
    assert_eq!((latest(&store).await, control.disk.synced()), (3, 3), "the group before is synced and published");
    for append in group {
        answer(append).await.expect("answered while the next is written");
    }
    control.order(Order::Succeed);
    assert_eq!(control.log.call().await, Call::Sync);
    assert!(next.iter().all(|append| !append.is_finished()));
    control.order(Order::Succeed);
    for append in next {
        answer(append).await.expect("written");
    }
    assert_eq!(ids(&store).await, ["first", "a-1", "a-2", "b-1", "b-2"]);
}

#[tokio::test]
async fn w2_what_rests_on_a_group_that_is_being_synced_is_answered_after_it() {
    let (store, mut control, first) = open_at_work(4).await;
    let group = append(&store, background(), ["first", "a-1", "a-2", "a-3"].map(event).to_vec());
    queued(&store, 1).await;
    // None of them writes anything or asks for a sync.
    let repeated = append(&store, background(), buffered("a-1"));
    let duplicate = append(&store, background(), Batch::from(other("a-2")).durability(Durability::Buffered));
    let conflict = append(&store, background(), buffered("b").expected(Expected::Revision(1.into())));
    let known = append(&store, background(), buffered("first"));
    let by_id = Batch::from(other("a-3")).durability(Durability::Buffered).idempotency(Idempotency::Id);
    let by_id = append(&store, background(), by_id);
    queued(&store, 6).await;
    assert_eq!(one_is_synced_and_the_next_decided(&mut control, first).await, 3);
    assert!(control.log.is_quiet().await);
    let waiting = [&group, &repeated, &duplicate, &conflict, &known, &by_id];
    assert!(waiting.iter().all(|append| !append.is_finished()), "nobody is answered before the sync is done");
    control.order(Order::Succeed);
    let group = answer(group).await.expect("written");
    let repeated = answer(repeated).await.expect("already stored");
    assert_eq!((repeated[0].version, repeated[0].outcome), (group[1].version, StoreOutcome::AlreadyStored));
    let by_id = answer(by_id).await.expect("already stored");
    assert_eq!((by_id[0].version, by_id[0].outcome), (group[3].version, StoreOutcome::AlreadyStored));
    let duplicate = answer(duplicate).await;
    assert!(
        matches!(duplicate, Err(Error::DuplicateEvent { version: Some(first), .. }) if first == group[2].version),
        "{duplicate:?}"
    );
    assert!(
        matches!(answer(conflict).await, Err(Error::VersionConflict { actual: Actual::Aggregate { revision: at, .. }, .. }) if at.get() == 4)
    );
    assert_eq!(answer(known).await.expect("already stored")[0].version, Version::new(1));
    assert!(control.log.is_quiet().await, "nothing is left to be written");
}

#[tokio::test]
async fn f1_when_a_sync_fails_what_rests_on_it_is_of_unknown_outcome_and_the_rest_of_the_next_group_is_fenced() {
    for (failure, is_there) in
        [(Order::Fail, false), (Order::DoAndFail, true), (Order::Refuse, false), (Order::Panic, false)]
    {
        let (store, mut control, first) = open_at_work(9).await;
        let group = ["first", "a-1", "a-2", "a-3", "a-4", "a-5", "a-6", "a-7"].map(event).to_vec();
        let group = append(&store, background(), group);
        queued(&store, 1).await;
        let of_group = append(&store, background(), buffered("a-8"));
        queued(&store, 2).await;
        let new = append(&store, background(), event("new"));
        let conflict = append(&store, background(), Batch::from(event("late")).expected(Expected::Revision(1.into())));
        let repeated = append(&store, background(), event("a-2"));
        let mixed = append(&store, background(), vec![event("a-3"), event("mixed")]);
        let duplicate = append(&store, background(), other("a-4"));
        let early_duplicate = append(&store, background(), other("first"));
        let known = append(&store, background(), event("first"));
        let unsynced = append(&store, background(), buffered("buffered"));
        queued(&store, 10).await;
        assert_eq!(one_is_synced_and_the_next_decided(&mut control, first).await, 8);
        control.order(failure);
        for append in [group, of_group, repeated, mixed, duplicate] {
            let told = answer(append).await;
            assert!(matches!(told, Err(Error::OutcomeUnknown { .. })), "{failure:?}: {told:?}");
        }
        for append in [new, conflict, unsynced] {
            let told = answer(append).await;
            assert!(matches!(told, Err(Error::Fenced { .. })), "{failure:?}: {told:?}");
        }
        // What does not depend on the failed group is still true.
        assert!(matches!(answer(early_duplicate).await, Err(Error::DuplicateEvent { .. })), "{failure:?}");
        assert_eq!(answer(known).await.expect("it is there")[0].outcome, StoreOutcome::AlreadyStored, "{failure:?}");
        assert_eq!(ids(&store).await, ["first"], "reads go on and show what was acknowledged");
        assert!(control.log.is_quiet().await, "nothing more is written");
        store.close().await.expect("nothing is owed");

        let disk = control.let_go();
        for left in [disk.after_power_cut(), disk.after_kill()] {
            let (store, _) = reopen(left);
            let there = ids(&store).await;
            assert!(matches!(there.len(), 1 | 9), "{failure:?}: all of the group or nothing: {there:?}");
            assert!(there.iter().all(|id| id == "first" || id.starts_with("a-")), "{failure:?}: {there:?}");
        }
        let (store, control) = reopen(disk.after_power_cut());
        drop(control);
        assert_eq!(ids(&store).await.len(), if is_there { 9 } else { 1 }, "{failure:?}");
        let again = store.store_batch(&background(), ["a-1", "a-2"].map(event).to_vec().into()).await;
        assert_eq!(again.expect("resolved")[1].version, Version::new(3));
    }
}

#[tokio::test]
async fn o7_heads_are_published_in_order_and_each_is_synced() {
    let (store, mut control, first) = open_at_work(1).await;
    let appends: Vec<_> = (2..=6).map(|n| append(&store, background(), event(&n.to_string()))).collect();
    queued(&store, 5).await;
    let (watching, disk) = (store.clone(), control.disk.clone());
    let watcher = tokio::spawn(async move {
        let mut seen = Version::ZERO;
        while seen < Version::new(6) {
            let head = watching.wait_for_events(&background(), seen).await.expect("open");
            assert!(head > seen && head.get() <= disk.synced(), "{head} behind {seen}");
            seen = head;
        }
    });
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    for (append, version) in appends.into_iter().zip(2..) {
        assert_eq!(control.commit().await, 1);
        assert_eq!(latest(&store).await, version - 1);
        control.order(Order::Succeed);
        answer(append).await.expect("written");
        assert!(latest(&store).await >= version);
    }
    watcher.await.expect("in order");
    let versions = store.load(&background(), Version::ZERO).into_vec().await.expect("loaded");
    assert!(versions.iter().map(|event| event.version.get()).eq(1..=6));
}

#[tokio::test]
async fn c2_an_append_that_ends_before_the_queue_has_room_is_not_written() {
    let mut options = options();
    options.queue_bytes = 64 << 10;
    options.queue_requests = 2;
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let large = |id: &str| Event::builder("T", "a").id(id).data(vec![0; 40 << 10]).build().expect("valid");
    let fits = append(&store, background(), large("fits"));
    queued(&store, 1).await;
    // The next does not fit into the remaining bytes; the one after it must not overtake it.
    let expired = append(&store, background().with_timeout(Duration::from_millis(5)), large("expired"));
    assert!(matches!(answer(expired).await, Err(Error::DeadlineExceeded)));
    let huge = Event::builder("T", "a").id("huge").data(vec![0; 1 << 20]).build().expect("valid");
    let huge = append(&store, background(), huge);
    drop(control.let_go()); // everything succeeds from now on
    for append in [first, fits, huge] {
        answer(append).await.expect("written");
    }
    assert_eq!(ids(&store).await, ["first", "fits", "huge"], "a batch larger than the queue is let in alone");
}

#[tokio::test]
async fn f1_a_failed_commit_is_of_unknown_outcome_and_fences_the_writer() {
    // What fails, how, and the number of events after reopening.
    let ways = [
        (Call::Write(2), Order::Fail, 1),
        (Call::Write(2), Order::DoAndFail, 1), // it was written, and not synced
        (Call::Sync, Order::Fail, 1),
        (Call::Sync, Order::DoAndFail, 3),
    ];
    for (call, failure, kept) in ways {
        let row = format!("{failure:?} at {call:?}");
        let (store, mut control) = open();
        let first = append(&store, background(), event("first"));
        control.commit().await;
        let failing = append(&store, background(), vec![event("failing-1"), event("failing-2")]);
        queued(&store, 1).await;
        let repeated = append(&store, background(), event("failing-1"));
        let refused = append(&store, background(), Batch::from(event("refused")).expected(Expected::NoEvents));
        queued(&store, 3).await;
        control.order(Order::Succeed);
        answer(first).await.expect("written");
        assert_eq!(control.write().await, 2);
        if call == Call::Sync {
            control.order(Order::Succeed);
            assert_eq!(control.log.call().await, call);
        }
        // Accepted: it is in the queue, or already staged for the next group.
        let mut accepted: Appending = Box::pin({
            let store = store.clone();
            async move { store.store(&background(), event("queued"), Expected::Any).await.map(|stored| vec![stored]) }
        });
        assert!(polled(&mut accepted).await.is_none());
        control.order(failure);
        let unknown = answer(failing).await.expect_err("failed");
        assert!(matches!(&unknown, Error::OutcomeUnknown { source: Some(_), .. }), "{row}");
        let mut causes = std::iter::successors(std::error::Error::source(&unknown), |error| error.source());
        assert!(causes.any(|cause| cause.to_string() == "the disk is on fire"), "{row}: it is told why");
        assert!(matches!(answer(repeated).await, Err(Error::OutcomeUnknown { .. })), "{row}");
        // Its conflict may have been with events whose fate is unknown.
        assert!(matches!(answer(refused).await, Err(Error::Fenced { .. })), "{row}");
        assert!(matches!(accepted.await, Err(Error::Fenced { .. })), "{row}");
        let after = store.store(&background(), event("after"), Expected::Any).await;
        assert!(matches!(after, Err(Error::Fenced { reason }) if reason.contains("fire")), "{row}");
        // A caller who is told that nothing was written must be able to rely on it, even on the second attempt.
        let twice = store.store_batch(&background(), vec![event("failing-1"), event("failing-2")].into()).await;
        let twice = twice.expect_err("nobody knows");
        assert!(matches!(&twice, Error::OutcomeUnknown { .. }), "{row}: {twice:?}");
        assert!(unknown.is_retryable() && !twice.is_retryable(), "{row}: the store has to be opened again");
        let next = store.store(&background(), event("refused"), Expected::Any).await;
        assert!(matches!(next, Err(Error::Fenced { .. })), "{row}: {next:?}");
        let stored = store.store(&background(), event("first"), Expected::Any).await;
        assert_eq!(stored.expect("it is there").outcome, StoreOutcome::AlreadyStored, "{row}");
        let by_id = Batch::from(other("first")).idempotency(Idempotency::Id);
        let stored = store.store_batch(&background(), by_id).await.expect("it is there");
        assert_eq!(stored[0].outcome, StoreOutcome::AlreadyStored, "{row}: its id is");
        let duplicate = store.store(&background(), other("first"), Expected::Any).await;
        assert!(matches!(duplicate, Err(Error::DuplicateEvent { .. })), "{row}: {duplicate:?}");
        assert!(store.stats(&background()).await.expect("stats").fenced.is_some(), "{row}");
        assert_eq!(ids(&store).await, ["first"], "{row}: reads go on and show what was acknowledged");
        store.close().await.expect("closed without another sync");
        assert!(control.log.is_quiet().await, "{row}");
        let disk = control.let_go();

        let (store, control) = reopen(disk.after_power_cut());
        drop(control);
        assert_eq!(ids(&store).await.len(), kept, "{row}: all of the batch or nothing");
        let again = store.store_batch(&background(), vec![event("failing-1"), event("failing-2")].into()).await;
        let versions: Vec<_> = again.expect("resolved").iter().map(|place| place.version.get()).collect();
        assert_eq!(versions, [2, 3], "{row}");
    }
}

#[tokio::test]
async fn f1_what_fails_in_the_background_fences_the_store() {
    // Space is preallocated after the first append. Its sync stands for the syncs of the log.
    let (store, control) = open_with(StoreOptions::default());
    control.log.open();
    store.store(&background(), event("first"), Expected::Any).await.expect("written");
    control.disk.state().other_syncs_fail.store(true, Ordering::SeqCst);
    let mut refused = None;
    for id in (0..10_000).map(|n| n.to_string()) {
        match store.store(&background(), event(&id), Expected::Any).await {
            Ok(_) => {}
            Err(Error::OutcomeUnknown { .. }) => {} // it was being written then
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(matches!(refused, Some(Error::Fenced { .. })), "{refused:?}");
    assert!(store.stats(&background()).await.expect("stats").fenced.is_some(), "and the store says so");
}

#[tokio::test]
async fn a_commit_that_certainly_wrote_nothing_does_not_fence() {
    let (store, mut control) = open();
    let refused = append(&store, background(), event("refused"));
    control.write().await;
    control.order(Order::Refuse);
    assert!(matches!(answer(refused).await, Err(Error::Full { .. })));
    let again = append(&store, background(), event("refused"));
    control.commit().await;
    control.order(Order::Succeed);
    assert_eq!(answer(again).await.expect("written")[0].version, Version::new(1));
    assert_eq!(ids(&reopen(control.disk.after_power_cut()).0).await, ["refused"]);
}

#[tokio::test]
async fn a_disk_that_is_full_is_told_and_appends_go_on_when_it_has_room_again() {
    let (store, control) = open();
    control.log.open();
    store.store(&background(), event("before"), Expected::Any).await.expect("written");
    control.disk.state().room.store(4096, Ordering::SeqCst);
    let large = |id: &str| Event::builder("T", "a").id(id).data(vec![1; 5000]).build().expect("valid");
    for _ in 0..2 {
        let full = store.store(&background(), large("large"), Expected::Any).await;
        assert!(matches!(full, Err(Error::Full { .. })), "{full:?}");
    }
    store.store(&background(), event("small"), Expected::Any).await.expect("it fits");
    control.disk.state().room.store(u64::MAX, Ordering::SeqCst);
    store.store(&background(), large("large"), Expected::Any).await.expect("written");
    let there = ["before", "small", "large"];
    assert_eq!(ids(&store).await, there);
    assert_eq!(ids(&reopen(control.disk.after_power_cut()).0).await, there);
}

#[tokio::test]
async fn one_that_finds_no_room_does_not_take_its_group_with_it() {
    let (store, mut control) = open();
    let stored = append(&store, background(), event("stored"));
    control.commit().await;
    let large = append(&store, background(), vec![event("large-1"), event("large-2")]);
    let retried = append(&store, background(), event("stored"));
    let duplicate = append(&store, background(), other("stored"));
    let small = append(&store, background(), Batch::from(event("small")).expected(Expected::Revision(1.into())));
    queued(&store, 4).await;
    control.order(Order::Succeed);
    answer(stored).await.expect("written");
    assert_eq!(control.write().await, 2, "the small one expects a revision that the large one has changed");
    control.order(Order::Refuse);
    assert_eq!(control.write().await, 2, "once more, the large one alone");
    control.order(Order::Refuse);
    assert_eq!(control.commit().await, 1, "without it, the small one's condition holds");
    control.order(Order::Succeed);
    assert!(matches!(answer(large).await, Err(Error::Full { .. })));
    assert_eq!(answer(retried).await.expect("already stored")[0].version, Version::new(1));
    assert!(matches!(answer(duplicate).await, Err(Error::DuplicateEvent { .. })));
    assert_eq!(answer(small).await.expect("written")[0].revision.get(), 2);
}

#[tokio::test]
async fn a_group_that_finds_no_room_does_not_take_the_one_behind_it_with_it() {
    let (store, mut control, first) = open_at_work(3).await;
    let large = append(&store, background(), ["first", "large-1", "large-2"].map(event).to_vec());
    queued(&store, 1).await;
    let small = append(&store, background(), Batch::from(event("small")).expected(Expected::Revision(1.into())));
    queued(&store, 2).await;
    let repeated = append(&store, background(), event("large-1"));
    queued(&store, 3).await;
    let known = append(&store, background(), event("first"));
    queued(&store, 4).await;
    control.staging.shut();
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    assert_eq!(control.staging.call().await, Call::Stage);
    control.staging.order(Order::Succeed);
    assert_eq!(control.write().await, 2);
    assert_eq!(control.staging.call().await, Call::Stage, "those behind it are decided as if it were written");
    control.staging.open();
    control.staging.order(Order::Succeed);
    control.order(Order::Refuse);
    assert_eq!(control.write().await, 2, "once more, alone");
    control.order(Order::Refuse);
    assert!(matches!(answer(large).await, Err(Error::Full { .. })));
    assert_eq!(control.commit().await, 1, "without it, the condition of the small one holds");
    control.order(Order::Succeed);
    let small = answer(small).await.expect("written");
    assert_eq!((small[0].version, small[0].revision.get()), (Version::new(2), 2));
    assert_eq!(control.commit().await, 1, "what rested on the large one is new");
    control.order(Order::Succeed);
    let repeated = answer(repeated).await.expect("written");
    assert_eq!((repeated[0].version, repeated[0].outcome), (Version::new(3), StoreOutcome::Written));
    assert_eq!(answer(known).await.expect("already stored")[0].version, Version::new(1));
    let there = ["first", "small", "large-1"];
    assert_eq!(ids(&store).await, there);
    assert!(store.stats(&background()).await.expect("stats").fenced.is_none());
    assert_eq!(ids(&reopen(control.disk.after_power_cut()).0).await, there);
}

/// Options with which the index is behind after one event, and too far behind after four.
fn indexing() -> StoreOptions {
    let mut options = options();
    options.index_events = 1;
    options
}

#[tokio::test]
async fn an_index_that_cannot_be_written_stops_nobody_until_it_is_too_far_behind() {
    for failure in [Order::Fail, Order::Refuse, Order::Panic] {
        let (store, mut control) = open_with(indexing());
        control.log.open();
        control.index.shut();
        let store_one = async |id| store.store(&background(), event(id), Expected::Any).await;
        store_one("1").await.expect("written");
        let second = append(&store, background(), event("2"));
        assert_eq!(control.index.call().await, Call::Index);
        answer(second).await.expect("nobody waits for the index");
        control.index.order(failure);
        for id in ["3", "4"] {
            store_one(id).await.expect("the index is behind, and that is all");
        }
        let mut tried = 0;
        while tried < 2 {
            let mut full = append(&store, background(), event("5"));
            tokio::select! {
                call = control.index.call() => assert_eq!(call, Call::Index, "it is tried again"),
                // The first attempt was just ending: its failure is reported, and nothing is tried yet.
                told = &mut full => {
                    assert!(matches!(told.expect("answered"), Err(Error::Full { .. })));
                    continue;
                }
            }
            tried += 1;
            control.index.order(failure);
            assert_eq!(control.index.call().await, Call::Index, "and with the engine opened anew");
            control.index.order(failure);
            let full = answer(full).await;
            let reason = match failure {
                Order::Fail => "on fire",
                Order::Refuse => "no storage space",
                _ => "panicked",
            };
            assert!(matches!(&full, Err(Error::Full { reason: told }) if told.contains(reason)), "{full:?}");
        }
        assert!(store.stats(&background()).await.expect("stats").fenced.is_none());
        assert_eq!(ids(&store).await, ["1", "2", "3", "4"]);
        assert_eq!(store.get(&background(), "2").await.expect("found").version, Version::new(2));
        let again = append(&store, background(), event("5"));
        assert_eq!(control.index.call().await, Call::Index);
        control.index.open();
        control.index.order(Order::Succeed);
        assert_eq!(answer(again).await.expect("it works again")[0].version, Version::new(5));
        for id in ["6", "7", "8", "9"] {
            store_one(id).await.expect("written");
        }
        store.close().await.expect("closed");
        assert_eq!(control.engine.reached(), 9);
    }
}

#[test]
fn while_the_engine_is_opened_again_no_read_keeps_a_thread_of_the_runtime() {
    let (sender, done) = std::sync::mpsc::channel();
    // On a separate thread, so that a blocked one does not block the test.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (store, mut control) = open_with(indexing());
            control.log.open();
            control.index.shut();
            control.engine.waits_to_open.store(true, Ordering::SeqCst);
            let mut next = 0;
            // The second failure in a row makes the store reopen the engine.
            loop {
                let mut appended = append(&store, background(), event(&next.to_string()));
                next += 1;
                tokio::select! {
                    call = control.index.call() => match call {
                        Call::Open => break,
                        _ => control.index.order(Order::Fail),
                    },
                    _ = &mut appended => {}
                }
            }
            let reads = async {
                let (ctx, all) = (background(), LoadOptions::all());
                let page = store.load_page(&ctx, &all, PageSize::FIRST);
                let aggregate = store.aggregate_revision(&ctx, "aggregate");
                let (page, found, revision) = tokio::join!(page, store.get(&ctx, "0"), aggregate);
                (page.expect("read").events.len(), found.expect("read").version.get(), revision.expect("read"))
            };
            let order = async {
                tokio::task::yield_now().await; // the reads have begun
                control.engine.waits_to_open.store(false, Ordering::SeqCst);
                control.index.open();
                control.index.order(Order::Succeed);
            };
            let (read, ()) = tokio::join!(reads, order);
            sender.send(read).expect("somebody waits");
        });
    });
    let (events, version, revision) = done.recv_timeout(Duration::from_secs(30)).expect("the reads leave their thread");
    assert!(events >= 2 && version == 1 && revision.get() >= 2, "{events}, {version}, {revision}");
}

#[tokio::test]
async fn closing_with_an_index_that_cannot_be_written_loses_nothing() {
    for failure in [Order::Fail, Order::Panic] {
        let (store, mut control) = open();
        control.log.open();
        control.index.shut();
        store.store(&background(), event("1"), Expected::Any).await.expect("written");
        let closing = tokio::spawn({
            let store = store.clone();
            async move { store.close().await }
        });
        assert_eq!(control.index.call().await, Call::Index);
        control.index.order(failure);
        closing.await.expect("no panic here").expect("the next opening reads the log, and that is all");
        assert_eq!(control.engine.reached(), 0);
        let engine = control.engine.clone();
        let (store, _) = reopen_with(control.disk.after_power_cut(), engine, options()).expect("opened");
        assert_eq!(store.get(&background(), "1").await.expect("found").version, Version::new(1));
    }
}

#[tokio::test]
async fn closing_waits_for_the_index_that_is_being_written() {
    let (store, mut control) = open_with(indexing());
    control.log.open();
    control.index.shut();
    store.store(&background(), event("1"), Expected::Any).await.expect("written");
    store.store(&background(), event("2"), Expected::Any).await.expect("written");
    assert_eq!(control.index.call().await, Call::Index);
    let closing = tokio::spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    assert!(control.index.is_quiet().await, "one writes at a time");
    assert!(!closing.is_finished());
    control.index.open();
    control.index.order(Order::Succeed);
    closing.await.expect("no panic").expect("closed");
    assert_eq!(control.engine.reached(), 2, "and what is left is written");
}

#[tokio::test]
async fn the_index_is_never_ahead_of_the_log_that_is_synced() {
    for order in [Order::Succeed, Order::Fail, Order::DoAndFail, Order::Panic] {
        let (store, mut control) = open_with(indexing());
        control.log.open();
        control.index.shut();
        store.store_batch(&background(), buffered("1")).await.expect("written");
        control.log.shut();
        control.staging.shut();
        // It repeats an event, so that the writer stops before it decides.
        let repeats = Batch::from(vec![event("1"), event("2")]).durability(Durability::Buffered);
        let second = append(&store, background(), repeats);
        assert_eq!(control.staging.call().await, Call::Stage);
        assert_eq!(control.log.call().await, Call::Sync, "before the index is written");
        assert!(control.index.is_quiet().await);
        assert_eq!(control.disk.synced(), 0);
        control.log.open();
        control.order(order);
        control.staging.open();
        if order == Order::Succeed {
            assert_eq!(control.index.call().await, Call::Index);
            assert_eq!(control.disk.synced(), 1);
            control.index.open();
            control.index.order(Order::Succeed);
            control.staging.order(Order::Succeed);
            answer(second).await.expect("written");
            store.close().await.expect("closed");
            assert_eq!(control.engine.reached(), 2);
        } else {
            assert!(control.index.is_quiet().await, "{order:?}");
            while order != Order::Panic && store.stats(&background()).await.expect("stats").fenced.is_none() {
                tokio::task::yield_now().await;
            }
            control.staging.order(Order::Succeed);
            let second = answer(second).await;
            match order {
                Order::Panic => drop(second.expect("a panic says nothing of the log, and nobody has asked for a sync")),
                _ => {
                    assert!(matches!(second, Err(Error::Fenced { .. })), "{order:?}: {second:?}");
                    let closed = store.close().await;
                    assert_eq!(closed.expect_err("acknowledged and not synced").code(), "fenced");
                }
            }
        }
    }
}

#[tokio::test]
async fn closing_says_that_what_was_buffered_is_not_synced() {
    let (store, mut control) = open();
    let kept = append(&store, background(), buffered("b"));
    control.write().await;
    control.order(Order::Succeed);
    answer(kept).await.expect("written");
    let failing = append(&store, background(), event("failing"));
    control.commit().await;
    control.order(Order::Fail);
    answer(failing).await.expect_err("failed");
    assert_eq!(store.close().await.expect_err("acknowledged and not synced").code(), "fenced");
}

#[tokio::test]
async fn closing_says_nothing_of_what_was_synced_before_the_failure() {
    let (store, mut control) = open_with(indexing());
    control.log.open();
    store.store_batch(&background(), buffered("1")).await.expect("written");
    control.index.shut();
    control.staging.shut();
    let repeats = append(&store, background(), vec![event("1"), event("2")]);
    assert_eq!(control.staging.call().await, Call::Stage);
    assert_eq!(control.index.call().await, Call::Index, "for which the log was synced");
    control.index.open();
    control.index.order(Order::Succeed);
    control.log.shut();
    control.staging.order(Order::Succeed);
    assert_eq!(control.commit().await, 1);
    control.order(Order::Fail);
    answer(repeats).await.expect_err("failed");
    store.close().await.expect("what was acknowledged is synced");
}

#[tokio::test]
async fn a_panic_in_the_last_sync_still_closes() {
    let (store, mut control) = open();
    let kept = append(&store, background(), buffered("b"));
    control.write().await;
    control.order(Order::Succeed);
    answer(kept).await.expect("written");
    let closing = tokio::spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    assert_eq!(control.log.call().await, Call::Sync);
    control.order(Order::Panic);
    assert_eq!(closing.await.expect("no panic here").expect_err("told").code(), "engine");
}

#[tokio::test]
async fn a_panic_in_a_commit_fences_and_the_store_still_closes() {
    for call in [Call::Write(1), Call::Sync] {
        let (store, mut control) = open();
        let append = append(&store, background(), event("panicking"));
        control.write().await;
        if call == Call::Sync {
            control.order(Order::Succeed);
            assert_eq!(control.log.call().await, call);
        }
        control.order(Order::Panic);
        assert!(matches!(answer(append).await, Err(Error::OutcomeUnknown { .. })));
        let after = store.store(&background(), event("after"), Expected::Any).await;
        assert!(matches!(after, Err(Error::Fenced { .. })));
        assert!(ids(&store).await.is_empty());
        store.close().await.expect("closed");
    }
}

#[tokio::test]
async fn w4_a_retry_with_sync_syncs_what_was_buffered() {
    let (store, mut control) = open();
    let first = append(&store, background(), buffered("e"));
    assert_eq!(control.write().await, 1);
    control.order(Order::Succeed);
    answer(first).await.expect("written, and nobody asked for a sync");
    let again = append(&store, background(), buffered("e"));
    answer(again).await.expect("already stored, and nobody asked for a sync");
    assert_eq!(control.disk.synced(), 0);
    let synced = append(&store, background(), event("e"));
    assert_eq!(control.log.call().await, Call::Sync);
    assert!(!synced.is_finished());
    control.order(Order::Succeed);
    assert_eq!(answer(synced).await.expect("synced")[0].outcome, StoreOutcome::AlreadyStored);
    let known = append(&store, background(), event("e"));
    answer(known).await.expect("no second sync");
    assert!(control.log.is_quiet().await);
}

#[tokio::test]
async fn w4_a_retry_whose_sync_fails_is_of_unknown_outcome_and_fences() {
    let (store, mut control) = open();
    let first = append(&store, background(), buffered("e"));
    control.write().await;
    control.order(Order::Succeed);
    answer(first).await.expect("written");
    let retry = append(&store, background(), event("e"));
    assert_eq!(control.log.call().await, Call::Sync);
    control.order(Order::Fail);
    assert!(matches!(answer(retry).await, Err(Error::OutcomeUnknown { .. })));
    let after = store.store(&background(), event("after"), Expected::Any).await;
    assert!(matches!(after, Err(Error::Fenced { .. })));
}

#[tokio::test]
async fn w4_what_a_process_that_was_killed_has_written_is_synced_before_anything_is_answered() {
    let (store, control) = open();
    control.log.open();
    store.store_batch(&background(), buffered("e")).await.expect("written");
    assert_eq!(control.disk.synced(), 0);
    let left = control.disk.after_kill();
    let failing = reopen_on(
        |disk| disk.state().other_syncs_fail.store(true, Ordering::SeqCst),
        left.clone(),
        Arc::default(),
        options(),
    );
    assert!(failing.is_err(), "it does not open without the sync");
    let (store, control) = reopen(left);
    control.log.shut();
    let retry = store.store(&background(), event("e"), Expected::Any).await.expect("no other sync");
    assert_eq!(retry.outcome, StoreOutcome::AlreadyStored);
    assert_eq!(ids(&reopen(control.disk.after_power_cut()).0).await, ["e"]);
}

#[tokio::test]
async fn one_sync_request_makes_its_whole_group_durable() {
    let (store, mut control) = open();
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let kept = append(&store, background(), buffered("b"));
    let synced = append(&store, background(), event("s"));
    queued(&store, 2).await;
    control.order(Order::Succeed);
    assert_eq!(control.commit().await, 2);
    control.order(Order::Succeed);
    for append in [first, kept, synced] {
        answer(append).await.expect("written");
    }
    assert_eq!(ids(&reopen(control.disk.after_power_cut()).0).await.len(), 3);
}

/// Begins to close the store, and waits until closing has begun.
async fn begin_closing(store: &Store) -> tokio::task::JoinHandle<Result<()>> {
    let closing = tokio::spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    // When reads are refused, closing has begun.
    while store.latest_version(&background()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    closing
}

#[tokio::test]
async fn l1_close_finishes_what_was_accepted_and_syncs_what_was_buffered() {
    let (store, mut control) = open();
    let first = append(&store, background(), buffered("first"));
    control.write().await;
    let accepted = append(&store, background(), buffered("accepted"));
    queued(&store, 1).await;
    let closing = begin_closing(&store).await;
    assert!(matches!(store.store(&background(), event("late"), Expected::Any).await, Err(Error::Closed)));
    control.order(Order::Succeed);
    control.write().await;
    control.order(Order::Succeed);
    assert_eq!(control.log.call().await, Call::Sync);
    control.order(Order::Fail);
    answer(first).await.expect("written");
    answer(accepted).await.expect("written");
    let error = closing.await.expect("no panic").expect_err("the last sync failed");
    assert_eq!(error.code(), "engine");
    assert_eq!(store.close().await.expect_err("told to everyone").code(), "engine");
}

#[tokio::test]
async fn l1_close_finishes_the_group_that_is_being_synced_the_one_that_is_staged_and_the_queue() {
    for failure in [None, Some(Order::Fail), Some(Order::Panic)] {
        let (store, mut control, first) = open_at_work(2).await;
        let group = append(&store, background(), ["first", "a"].map(event).to_vec());
        queued(&store, 1).await;
        let next = append(&store, background(), ["first", "b"].map(event).to_vec());
        queued(&store, 2).await;
        let last = append(&store, background(), event("c"));
        queued(&store, 3).await;
        assert_eq!(one_is_synced_and_the_next_decided(&mut control, first).await, 1);
        let closing = begin_closing(&store).await;
        assert!(matches!(store.store(&background(), event("late"), Expected::Any).await, Err(Error::Closed)));
        assert!(!closing.is_finished());
        if let Some(failure) = failure {
            control.order(failure);
            assert!(matches!(answer(group).await, Err(Error::OutcomeUnknown { .. })));
            for append in [next, last] {
                let told = answer(append).await;
                assert!(matches!(told, Err(Error::Fenced { .. })), "{failure:?}: {told:?}");
            }
            closing.await.expect("no panic").expect("nothing is owed");
            continue;
        }
        for _ in 0..2 {
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 1);
        }
        control.order(Order::Succeed);
        for append in [group, next, last] {
            answer(append).await.expect("it was accepted");
        }
        closing.await.expect("no panic").expect("closed");
        assert_eq!(control.engine.reached(), 4);
        assert_eq!(ids(&reopen(control.disk.after_power_cut()).0).await, ["first", "a", "b", "c"]);
    }
}

#[tokio::test]
async fn l1_a_future_that_is_kept_and_not_polled_does_not_stop_the_closing() {
    let mut options = options();
    options.queue_requests = 1;
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let second = append(&store, background(), event("second"));
    queued(&store, 1).await;
    // It waits for the only slot in the queue, is given it, and does not take it.
    let ctx = background();
    let mut kept = Box::pin(store.store(&ctx, event("kept"), Expected::Any));
    assert!(polled(&mut kept).await.is_none());
    drop(control.let_go()); // everything succeeds from now on
    answer(first).await.expect("written");
    answer(second).await.expect("written");
    store.close().await.expect("closed");
    assert!(matches!(kept.await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_reader_never_sees_a_commit_before_it_is_published() {
    // The log's file has the events already, and their index entries are in memory.
    let (store, mut control) = open();
    let failing = append(&store, background(), vec![event("a"), event("b")]);
    control.commit().await;
    for is_over in [false, true] {
        if is_over {
            control.order(Order::DoAndFail);
            while store.stats(&background()).await.expect("stats").fenced.is_none() {
                tokio::task::yield_now().await;
            }
        }
        assert!(ids(&store).await.is_empty());
        assert!(matches!(store.get(&background(), "a").await, Err(Error::EventNotFound { .. })));
        assert_eq!(store.aggregate_revision(&background(), "aggregate").await.expect("read"), Revision::ZERO);
        let of_aggregate = store.load_by_aggregate(&background(), "aggregate", Version::ZERO).into_vec().await;
        assert!(of_aggregate.expect("read").is_empty());
        let backward = store.load(&background(), LoadOptions::all().backward()).into_vec().await;
        assert!(backward.expect("read").is_empty());
    }
    assert!(answer(failing).await.is_err());
}

#[tokio::test(flavor = "current_thread")]
async fn a_page_that_takes_long_goes_on_where_blocking_is_allowed() {
    let left = {
        let (store, control) = open();
        control.log.open();
        let events = (0..400).map(|n| event(&n.to_string())).collect::<Vec<_>>();
        store.store_batch(&background(), events.into()).await.expect("written");
        control.disk.after_power_cut()
    };
    let mut options = options();
    options.aggregate_cache = 0; // the engine is read each time
    let (store, control) = reopen_with(left, Arc::default(), options).expect("opened");
    control.engine.is_slow.store(true, Ordering::SeqCst);
    let all = LoadOptions::all().aggregate("aggregate");
    let page = store.load_page(&background(), &all, PageSize::LARGEST).await.expect("read");
    assert_eq!(page.events.len(), 400);
    let token = CancellationToken::new();
    let ctx = background().with_cancellation(token.clone());
    let mut read = Box::pin(store.load_page(&ctx, &all, PageSize::LARGEST));
    // The first poll reads what it can in its time and hands the rest over, so it returns pending.
    assert!(polled(&mut read).await.is_none());
    token.cancel();
    assert!(matches!(read.await, Err(Error::Cancelled)));
}

#[tokio::test]
async fn an_append_to_a_known_or_a_new_aggregate_asks_nothing_of_the_engine() {
    let mut options = options();
    options.index_events = 1;
    let (store, control) = open_with(options.clone());
    control.log.open();
    let tables = control.engine.clone();
    let in_order = |numbers: std::ops::Range<u64>| {
        let of = |n: u64| Event::builder("Tested", format!("aggregate-{}", n % 40)).id(format!("{n:03}")).build();
        numbers.map(move |n| of(n).expect("valid"))
    };
    let looks = |control: &Control| control.engine.looks_of_writer.load(Ordering::SeqCst);
    let mut at_first = None;
    for event in in_order(0..100) {
        store.store(&background(), event, Expected::Any).await.expect("stored");
        let known = *at_first.get_or_insert_with(|| looks(&control));
        assert_eq!(looks(&control), known, "it has opened with nothing, and knows all");
    }
    store.close().await.expect("closed");
    drop(store);
    let left = control.let_go().after_kill();
    let (store, control) = reopen_with(left, tables, options).expect("opened");
    for events in [100..140, 140..180] {
        let before = looks(&control);
        for event in in_order(events.clone()) {
            let revision = store.aggregate_revision(&background(), event.aggregate_id()).await.expect("read");
            let stored = store.store(&background(), event, Expected::Any).await.expect("stored");
            assert_eq!(stored.revision, revision.next());
        }
        assert!(events.start == 100 || looks(&control) == before, "it remembers what it has looked up");
    }
}

/// The stage of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    WaitingForRoom,
    Queued,
    /// The writer has taken it and is deciding.
    Staged,
    /// It is decided, and the previous group is being synced.
    StagedBehind,
    InWrite,
    InSync,
    /// It is synced, but nobody has been told.
    Synced,
    /// Its answer is there, but its caller has not taken it.
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

/// An append that the test polls itself, so that it is exactly at the intended stage when it ends.
struct Leaving {
    future: Appending,
    token: CancellationToken,
    deadline: Instant,
}

impl Leaving {
    /// Calls, and polls once: it then waits for room or for its answer.
    async fn begin(store: &Store, ending: Ending, batch: &Batch) -> Self {
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
                Some(Err(Error::DeadlineExceeded)) => patience *= 2, // the thread was delayed for longer
                Some(outcome) => panic!("the disk has not moved, and the append ended with {outcome:?}"),
            }
        }
    }

    /// The result at once; `None` if it is dropped.
    async fn end(mut self, ending: Ending) -> Option<Result<Vec<Stored>>> {
        match ending {
            Ending::Dropped => return None,
            Ending::Cancelled => self.token.cancel(),
            Ending::Expired => tokio::time::sleep_until(self.deadline.into()).await,
        }
        Some(polled(&mut self.future).await.expect("the answer comes at once, whatever the disk does"))
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

/// The table "How far an append has come, and what its end means" of `docs/contract.md`, cell by cell: the immediate
/// error, and whether the append is in the store after the writer has continued.
fn table(stage: Stage, ending: Ending, closing: bool) -> (Option<&'static str>, bool) {
    let ended = match ending {
        Ending::Dropped => None,
        Ending::Cancelled => Some("cancelled"),
        Ending::Expired => Some("deadline_exceeded"),
    };
    match stage {
        Stage::WaitingForRoom if closing => (ended.map(|_| "closed"), false),
        Stage::WaitingForRoom | Stage::Queued => (ended, false),
        Stage::Staged | Stage::StagedBehind | Stage::InWrite | Stage::InSync | Stage::Synced => {
            (ended.map(|_| "outcome_unknown"), true)
        }
        Stage::Answered => (ended.map(|_| "stored"), true),
    }
}

/// One row: `first` is being synced while a group of `before`, the leaving append, and `after` waits behind it.
async fn leaves(stage: Stage, ending: Ending, closing: bool) {
    let row = format!("{ending:?} when {stage:?}, closing: {closing}");
    let mut options = options();
    options.queue_requests = if stage == Stage::WaitingForRoom { 1 } else { 1024 };
    options.group_events = if stage == Stage::StagedBehind { 5 } else { 4096 };
    let (store, mut control) = open_with(options);
    let first = append(&store, background(), event("first"));
    control.commit().await;
    let ahead = if stage == Stage::StagedBehind { 4 } else { 0 };
    let group = (ahead > 0).then(|| append(&store, background(), ["first", "1", "2", "3", "4"].map(event).to_vec()));
    queued(&store, u64::from(group.is_some())).await;
    // It repeats an event, so that the writer reads the index when it decides.
    let before = append(&store, background(), vec![event("first"), event("before")]);
    queued(&store, 1 + u64::from(group.is_some())).await;
    let batch = Batch::from(vec![event("left-1"), event("left-2")]);
    let leaving = Leaving::begin(&store, ending, &batch).await;
    let mut after = append(&store, background(), event("after"));
    if stage != Stage::WaitingForRoom {
        queued(&store, 3 + u64::from(group.is_some())).await;
    }
    let mut first = Some(first);
    match stage {
        Stage::WaitingForRoom | Stage::Queued => {}
        Stage::Staged => {
            control.staging.shut();
            control.order(Order::Succeed);
            assert_eq!(control.staging.call().await, Call::Stage, "{row}");
        }
        Stage::StagedBehind => {
            let first = first.take().expect("it is there");
            assert_eq!(one_is_synced_and_the_next_decided(&mut control, first).await, 4, "{row}");
            queued(&store, 0).await;
            assert!(control.log.is_quiet().await, "{row}");
        }
        Stage::InWrite => {
            control.order(Order::Succeed);
            assert_eq!(control.write().await, 4, "{row}: one group");
        }
        Stage::InSync => {
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
        }
        Stage::Synced => {
            control.disk.state().tells_synced.store(true, Ordering::SeqCst);
            control.order(Order::Succeed);
            assert_eq!(control.log.call().await, Call::Synced, "{row}: the first");
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
            control.order(Order::Succeed);
            assert_eq!(control.log.call().await, Call::Synced, "{row}");
        }
        Stage::Answered => {
            control.order(Order::Succeed);
            assert_eq!(control.commit().await, 4, "{row}: one group");
            control.order(Order::Succeed);
            // Answers come in the order of the group.
            let answered = (&mut after).await.expect("no panic");
            after = tokio::spawn(async { answered });
        }
    }
    let closed = if closing { Some(begin_closing(&store).await) } else { None };

    let outcome = leaving.end(ending).await;
    let (expected, is_written) = table(stage, ending, closing);
    assert_eq!(outcome.as_ref().map(code), expected, "{row}");
    let disk = control.let_go();

    let mut there = vec!["first"];
    if let Some(first) = first {
        assert_eq!(answer(first).await.expect("written")[0].version, Version::new(1), "{row}");
    }
    if let Some(group) = group {
        assert_eq!(answer(group).await.expect("written")[4].version, Version::new(5), "{row}");
        there.extend(["1", "2", "3", "4"]);
    }
    there.push("before");
    assert_eq!(answer(before).await.expect("written")[1].version, Version::new(2 + ahead), "{row}");
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
    let (store, _) = reopen(disk.after_power_cut());
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
        Stage::StagedBehind,
        Stage::InWrite,
        Stage::InSync,
        Stage::Synced,
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
    // What ends, and how; whether the group survives a power cut, and the answer to those who stayed.
    let ways: [(Call, Order, bool, &str); 8] = [
        (Call::Write(4), Order::Refuse, true, "stored"), // the group does not fit; each append alone does
        (Call::Write(4), Order::Fail, false, "outcome_unknown"),
        (Call::Write(4), Order::DoAndFail, false, "outcome_unknown"),
        (Call::Write(4), Order::Panic, false, "outcome_unknown"),
        (Call::Sync, Order::Refuse, false, "outcome_unknown"), // the effect of a sync without space is unknown
        (Call::Sync, Order::Fail, false, "outcome_unknown"),
        (Call::Sync, Order::DoAndFail, true, "outcome_unknown"),
        (Call::Sync, Order::Panic, false, "outcome_unknown"),
    ];
    for (call, order, is_there, told) in ways {
        for ending in ENDINGS {
            let row = format!("{ending:?}, then {order:?} at {call:?}");
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
            assert_eq!(control.write().await, 4, "{row}: one group");
            if call == Call::Sync {
                control.order(Order::Succeed);
                assert_eq!(control.log.call().await, call, "{row}");
            }
            let outcome = leaving.end(ending).await;
            assert_eq!(outcome.as_ref().map(code), (ending != Ending::Dropped).then_some("outcome_unknown"), "{row}");
            control.order(order);
            let disk = control.let_go();
            answer(first).await.expect("written");
            assert_eq!(code(&answer(before).await), told, "{row}");
            assert_eq!(code(&answer(after).await), told, "{row}");
            store.close().await.expect("closed");

            let whole: &[&str] = &["first", "before", "left-1", "left-2", "after"];
            let killed = ids(&reopen(disk.after_kill()).0).await;
            assert!(killed == whole || killed == whole[..1], "{row}: {killed:?}");
            let (store, control) = reopen(disk.after_power_cut());
            drop(control);
            assert_eq!(ids(&store).await, if is_there { whole } else { &whole[..1] }, "{row}");
            store.store_batch(&background(), batch).await.expect("resolved");
            assert_eq!(ids(&store).await.iter().filter(|id| id.starts_with("left")).count(), 2, "{row}");
        }
    }
}

#[tokio::test]
async fn c4_an_append_that_left_behind_a_group_is_all_or_nothing_however_that_ends() {
    // How the previous group ends; whether the groups after it are stored, and the answer to those who stayed.
    let ways = [
        (Order::Succeed, true, "stored"),
        (Order::Fail, false, "fenced"),
        (Order::DoAndFail, false, "fenced"),
        (Order::Panic, false, "fenced"),
    ];
    for (order, is_there, told) in ways {
        for ending in ENDINGS {
            let row = format!("{ending:?}, then {order:?}");
            let (store, mut control, first) = open_at_work(5).await;
            let group = append(&store, background(), ["first", "1", "2", "3", "4"].map(event).to_vec());
            queued(&store, 1).await;
            let before = append(&store, background(), vec![event("first"), event("before")]);
            queued(&store, 2).await;
            let batch = Batch::from(vec![event("left-1"), event("left-2")]);
            let leaving = Leaving::begin(&store, ending, &batch).await;
            let after = append(&store, background(), event("after"));
            queued(&store, 4).await;
            assert_eq!(one_is_synced_and_the_next_decided(&mut control, first).await, 4, "{row}");
            let outcome = leaving.end(ending).await;
            assert_eq!(outcome.as_ref().map(code), (ending != Ending::Dropped).then_some("outcome_unknown"), "{row}");
            control.order(order);
            let disk = control.let_go();
            let of_group = code(&answer(group).await);
            assert_eq!(of_group, if order == Order::Succeed { "stored" } else { "outcome_unknown" }, "{row}");
            assert_eq!(code(&answer(before).await), told, "{row}");
            assert_eq!(code(&answer(after).await), told, "{row}");
            store.close().await.expect("closed");
            for left in [disk.after_kill(), disk.after_power_cut()] {
                let there = ids(&reopen(left).0).await;
                let behind = there.iter().filter(|id| id.starts_with("left")).count();
                assert_eq!(behind, if is_there { 2 } else { 0 }, "{row}: {there:?}");
                assert!(matches!(there.len(), 1 | 5 | 9), "{row}: {there:?}");
            }
        }
    }
}

#[tokio::test]
async fn c3_a_repetition_that_ends_during_its_sync_is_of_unknown_outcome_and_leaves_the_sync_to_the_others() {
    for ending in ENDINGS {
        let (store, mut control) = open();
        let kept = append(&store, background(), buffered("repeated"));
        control.write().await;
        let leaving = Leaving::begin(&store, ending, &Batch::from(event("repeated"))).await;
        let stays = append(&store, background(), event("repeated"));
        queued(&store, 2).await;
        control.order(Order::Succeed);
        assert_eq!(control.log.call().await, Call::Sync);
        let outcome = leaving.end(ending).await;
        assert_eq!(outcome.as_ref().map(code), (ending != Ending::Dropped).then_some("outcome_unknown"), "{ending:?}");
        control.order(Order::Succeed);
        answer(kept).await.expect("written");
        assert_eq!(answer(stays).await.expect("synced")[0].outcome, StoreOutcome::AlreadyStored);
        let known = append(&store, background(), event("repeated"));
        answer(known).await.expect("no second sync");
        assert!(control.log.is_quiet().await);
        assert_eq!(ids(&store).await, ["repeated"]);
    }
}

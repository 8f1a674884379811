//! Replicas and their hubs in one process.

mod common;

use std::sync::Arc;

use eventstore::{CancellationToken, Cursor, Durability, Event, Expected, Revision, Version};
use synckit::core::{EventPlace, Number, Status, Why};
use synckit::{
    Answer, Conflict, DecideAgain, DecideError, Entry, Error, KeepBoth, LastWriterWins, Notice, Options,
    RejectConflicts, Replica, Resolution, SyncOptions, SyncState,
};

use common::{Hub, event, ids};

async fn sync(replica: &Replica) -> synckit::SyncReport {
    replica.sync_once(&SyncOptions::new()).await.expect("a sync")
}

fn resolved(resolver: impl synckit::Resolver + 'static) -> SyncOptions {
    SyncOptions::new().resolver(resolver)
}

#[tokio::test]
async fn appending_works_offline_and_is_durable() {
    let hub = Hub::new().await;
    let replica = hub.replica("a").await;
    let appended = replica.append([event("1", "x"), event("2", "y")]).await.expect("appended");
    let batch = appended.batch.expect("a new batch");
    assert_eq!(appended.ids, ["1", "2"]);
    assert_eq!(appended.places, [EventPlace::Pending(batch, 0), EventPlace::Pending(batch, 1)]);
    // A repetition writes nothing.
    let again = replica.append([event("1", "x"), event("2", "y")]).await.expect("a repetition");
    assert_eq!((again.batch, again.places), (None, appended.places));
    replica.close().await.expect("closed");
    let replica = hub.replica("a").await;
    assert_eq!(ids(&replica).await, ["1", "2"]);
    assert_eq!(replica.status().await.expect("a status").pending, 1);
    assert_eq!(hub.store.latest_version().await.expect("a version"), Version::ZERO);
}

#[tokio::test]
async fn two_replicas_come_to_the_hubs_history() {
    let hub = Hub::new().await;
    let (a, b) = (hub.replica("a").await, hub.replica("b").await);
    a.append([event("a1", "x"), event("a2", "x")]).await.expect("appended");
    b.append(event("b1", "y")).await.expect("appended");
    hub.store.append(event("h1", "z")).durability(Durability::Buffered).await.expect("appended");
    assert_eq!(sync(&a).await.confirmed, 1);
    sync(&b).await;
    sync(&a).await;
    for replica in [&a, &b] {
        assert_eq!(ids(replica).await, ["h1", "a1", "a2", "b1"]);
        let loaded = replica.load().await.expect("a load");
        assert!(loaded.entries.iter().all(|entry| matches!(entry, Entry::Confirmed(_))));
        let hubs = hub.store.cursor().await.expect("a cursor");
        assert_eq!(replica.cursor().await.expect("a cursor"), hubs);
    }
    assert_eq!(a.sync_state(), SyncState::Live);
    // Confirmed events are recognised and can be appended again.
    let again = a.append(event("b1", "y")).await.expect("a repetition");
    assert_eq!(again.places, [EventPlace::Confirmed(Version::new(4))]);
}

/// Two replicas decide on the same state, and the second one to sync finds what it had not seen.
async fn conflicting() -> (Hub, Replica) {
    let hub = Hub::new().await;
    let (a, b) = (hub.replica("a").await, hub.replica("b").await);
    for (replica, id) in [(&a, "of a"), (&b, "of b")] {
        let basis = replica.load().aggregate("x").await.expect("a load").basis;
        replica.append(event(id, "x")).basis(&basis).await.expect("appended");
    }
    b.append(event("b on top", "x")).await.expect("appended");
    b.append(event("b beside", "y")).await.expect("appended");
    sync(&a).await;
    (hub, b)
}

#[tokio::test]
async fn without_a_resolver_syncing_stops_at_a_conflict_and_says_so() {
    let (hub, b) = conflicting().await;
    let report = sync(&b).await;
    let waiting = report.waiting.expect("a conflict");
    assert_eq!(b.sync_state(), SyncState::Waiting(waiting));
    let conflict = b.next_conflict().await.expect("a look").expect("a conflict");
    assert_eq!((conflict.batch, &conflict.why), (waiting, &Why::Conflict));
    assert_eq!(conflict.unseen.iter().map(|recorded| recorded.event.id()).collect::<Vec<_>>(), ["of a"]);
    assert_eq!(conflict.on_top.len(), 1, "one batch is on top, and one is beside it");
    assert_eq!(hub.store.latest_version().await.expect("a version"), Version::new(1));
    assert_eq!(ids(&b).await, ["of a", "of b", "b on top", "b beside"], "own writes are shown all the time");
    // Others may overtake it.
    b.sync_once(&SyncOptions::new().skip_waiting()).await.expect("a sync");
    assert_eq!(ids(&b).await, ["of a", "b beside", "of b", "b on top"]);
}

#[tokio::test]
async fn keeping_both_appends_behind_what_was_not_seen() {
    let (hub, b) = conflicting().await;
    b.sync_once(&resolved(KeepBoth)).await.expect("a sync");
    assert_eq!(ids(&b).await, ["of a", "of b", "b on top", "b beside"]);
    assert_eq!(hub.store.latest_version().await.expect("a version"), Version::new(4));
}

#[tokio::test]
async fn a_rejected_batch_stays_readable_until_it_is_deleted() {
    let (hub, b) = conflicting().await;
    b.sync_once(&resolved(RejectConflicts)).await.expect("a sync");
    assert_eq!(ids(&b).await, ["of a", "b beside"]);
    let rejected = b.rejected();
    assert_eq!(rejected.len(), 2, "with the batch on top");
    let Status::Rejected(reason) = &rejected[0].status else { panic!("{:?}", rejected[0].status) };
    assert_eq!(reason, "others changed it meanwhile");
    assert_eq!(rejected[0].events, [event("of b", "x")]);
    let number = rejected[0].number;
    let again = b.append(event("of b", "x")).await;
    assert!(matches!(&again, Err(Error::Rejected { batch, .. }) if *batch == number), "{again:?}");
    b.close().await.expect("closed");
    let b = hub.replica("b").await;
    assert_eq!(b.rejected().len(), 2, "after reopening");
    assert!(b.delete_rejected(number).await.expect("deleted"));
    assert!(!b.delete_rejected(number).await.expect("nothing to delete"));
    b.append(event("of b", "x")).await.expect("the id is free");
}

#[tokio::test]
async fn a_sync_tells_how_many_batches_were_confirmed_rejected_and_dropped() {
    let (_hub, b) = conflicting().await;
    let status = b.status().await.expect("a status");
    assert_eq!((status.pending, status.pending_events, status.waiting), (3, 3, 0));
    let report = b.sync_once(&resolved(RejectConflicts)).await.expect("a sync");
    assert_eq!((report.confirmed, report.rejected, report.dropped, report.waiting), (1, 2, 0, None));
    let status = b.status().await.expect("a status");
    assert_eq!((status.pending, status.rejected, status.rejected_events), (0, 2, 2));

    let (_hub, b) = conflicting().await;
    let report = sync(&b).await;
    assert_eq!((report.confirmed, report.rejected, report.dropped), (0, 0, 0));
    let status = b.status().await.expect("a status");
    assert_eq!((status.waiting, status.waiting_events, status.pending_events), (1, 1, 3));
    let report = b.sync_once(&resolved(|_: &Conflict| Resolution::Drop)).await.expect("a sync");
    assert_eq!((report.confirmed, report.rejected, report.dropped, report.waiting), (1, 0, 2, None));
}

/// The result includes generated ids.
#[tokio::test]
async fn an_append_tells_the_ids_of_its_events() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let made = || Event::builder("Happened", "x").data("{}").build().expect("valid");
    let appended = a.append([made(), event("given", "x"), made()]).await.expect("appended");
    assert_eq!(appended.ids, ids(&a).await);
    assert_eq!(appended.ids.len(), 3);
    a.append(Vec::new()).await.map(|none| assert!(none.ids.is_empty())).expect("nothing");
}

#[tokio::test]
async fn a_dropped_batch_is_gone_and_those_on_top_are_asked_about() {
    let (hub, b) = conflicting().await;
    let mut notices = b.subscribe(Cursor::START);
    while notices.try_next().await.expect("a notice").is_some() {}
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let drops = {
        let asked = asked.clone();
        move |conflict: &synckit::Conflict| {
            let mut asked = asked.lock().expect("no panic");
            asked.push(conflict.why.clone());
            if asked.len() == 1 { Resolution::Drop } else { Resolution::AppendAnyway }
        }
    };
    let report = b.sync_once(&resolved(drops)).await.expect("a sync");
    assert_eq!(report.waiting, None);
    assert_eq!(*asked.lock().expect("no panic"), [Why::Conflict, Why::Dependency]);
    assert_eq!(ids(&b).await, ["of a", "b on top", "b beside"]);
    assert!(b.rejected().is_empty(), "it is none of the rejected ones");
    let mut told = Vec::new();
    while let Some(notice) = notices.try_next().await.expect("a notice") {
        told.push(match notice {
            Notice::Confirmed { event, .. } => format!("confirmed {}", event.event.id()),
            Notice::Dropped { batch } => format!("dropped {batch}"),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(told, ["confirmed of a", "confirmed b on top", "confirmed b beside", "dropped 1"]);
    // As if it had never existed, also after reopening.
    b.close().await.expect("closed");
    let b = hub.replica("b").await;
    assert_eq!(ids(&b).await, ["of a", "b on top", "b beside"]);
    assert!(b.rejected().is_empty() && b.pending().is_empty());
    let again = b.append(event("of b", "x")).await.expect("its id may be used again");
    assert!(again.batch.is_some());
}

#[tokio::test]
async fn a_batch_can_be_replaced_with_those_on_top() {
    #[derive(Debug)]
    struct Replace;

    #[synckit::async_trait]
    impl synckit::Resolver for Replace {
        async fn resolve(&self, conflict: &synckit::Conflict) -> synckit::Result<Answer> {
            let answer = Answer::from(Resolution::AppendInstead(vec![event("instead", "x")]));
            let (on_top, _) = conflict.on_top[0];
            Ok(answer.on_top(on_top, Resolution::Reject("not on that".to_owned())))
        }
    }
    let (hub, b) = conflicting().await;
    b.sync_once(&resolved(Replace)).await.expect("a sync");
    assert_eq!(ids(&b).await, ["of a", "instead", "b beside"]);
    assert_eq!(b.rejected().len(), 1);
    let stored = hub.store.get("instead").await.expect("it is there");
    assert_eq!(stored.revision, Revision::new(2));
    // A replacement with a used id is refused.
    let a = hub.replica("c").await;
    a.append(event("c1", "x")).expected(Expected::NoEvents).await.expect("appended");
    let again = |_: &synckit::Conflict| Resolution::AppendInstead(vec![event("of a", "x")]);
    assert!(matches!(a.sync_once(&resolved(again)).await, Err(Error::Answer { .. })));
}

#[tokio::test]
async fn the_last_writer_wins_by_the_users_time() {
    let time = |event: &Event| {
        let seconds: u64 = std::str::from_utf8(event.data()).ok()?.parse().ok()?;
        Some(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
    };
    let write = |id: &str, seconds: u64| {
        Event::builder("Set", "register").id(id).data(seconds.to_string()).build().expect("valid")
    };
    let hub = Hub::new().await;
    let (early, late, newest) = (hub.replica("early").await, hub.replica("late").await, hub.replica("newest").await);
    for (replica, id, seconds) in [(&early, "early", 100), (&late, "late", 200), (&newest, "newest", 300)] {
        let basis = replica.load().aggregate("register").await.expect("a load").basis;
        replica.append(write(id, seconds)).basis(&basis).await.expect("appended");
    }
    for replica in [&late, &early, &newest] {
        replica.sync_once(&resolved(LastWriterWins::new(time))).await.expect("a sync");
    }
    assert_eq!(ids(&newest).await, ["late", "newest"]);
    assert_eq!(early.rejected().len(), 1);
}

#[tokio::test]
async fn an_id_with_other_content_goes_to_the_resolver() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("same", "x")).await.expect("appended");
    let other = Event::builder("Other", "x").id("same").build().expect("valid");
    hub.store.append(other.clone()).await.expect("appended");
    sync(&a).await;
    let conflict = a.next_conflict().await.expect("a look").expect("a conflict");
    assert_eq!((&conflict.why, &conflict.unseen[0].event), (&Why::Duplicate, &other));
    a.sync_once(&resolved(KeepBoth)).await.expect("a sync");
    let all = a.load().await.expect("a load").entries;
    assert_eq!(all.len(), 2);
    assert_ne!(all[1].event().id(), "same");
    assert_eq!(all[1].event().data(), event("same", "x").data());
}

#[tokio::test]
async fn conditions_are_about_what_was_seen() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    hub.store.append(event("h1", "x")).await.expect("appended");
    sync(&a).await;
    let old = a.load().aggregate("x").await.expect("a load").basis;
    let all = a.load().await.expect("a load").basis;
    assert!(matches!(a.append(event("1", "x")).expected(Expected::NoEvents).await, Err(Error::Conflict)));
    assert!(matches!(a.append(event("1", "none")).expected(Expected::Exists).await, Err(Error::Conflict)));
    a.append(event("1", "x")).expected(Expected::Revision(Revision::new(1))).await.expect("it holds");
    let plain = a.append(event("2", "x")).expected(Expected::Revision(Revision::new(2))).await;
    assert!(matches!(plain, Err(Error::PendingInScope)), "{plain:?}");
    assert!(matches!(a.append(event("2", "x")).basis(&old).await, Err(Error::Conflict)), "an own batch is unseen");
    assert!(matches!(a.append(event("2", "y")).basis(&all).await, Err(Error::Conflict)));
    let now = a.load().aggregate("x").await.expect("a load").basis;
    sync(&a).await;
    // Own events that are confirmed meanwhile still count as seen; those of others do not.
    a.append(event("2", "x")).basis(&now).await.expect("it holds");
    let now = a.load().aggregate("x").await.expect("a load").basis;
    hub.store.append(event("h2", "x")).await.expect("appended");
    sync(&a).await;
    assert!(matches!(a.append(event("3", "x")).basis(&now).await, Err(Error::Conflict)));
}

#[derive(Default)]
struct Account {
    balance: i64,
}

#[derive(serde::Serialize, serde::Deserialize)]
enum AccountEvent {
    Deposited { cents: i64 },
}

#[derive(Debug, PartialEq)]
struct TooMuch;

impl std::fmt::Display for TooMuch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("too much")
    }
}

impl eventstore::Aggregate for Account {
    type Event = AccountEvent;
    type Error = TooMuch;

    fn apply(&mut self, event: AccountEvent) {
        let AccountEvent::Deposited { cents } = event;
        self.balance += cents;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_see_confirmed_and_pending_events_and_none_is_made_on_less() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let deposit = |account: &Account| match account.balance < 20 {
        true => Ok(vec![AccountEvent::Deposited { cents: 1 }]),
        false => Err(TooMuch),
    };
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let a = a.clone();
            tokio::spawn(async move { while a.decide::<Account>("account", deposit).await.is_ok() {} })
        })
        .collect();
    for _ in 0..10 {
        sync(&a).await;
    }
    for task in tasks {
        task.await.expect("it ends");
    }
    sync(&a).await;
    let refused = a.decide::<Account>("account", deposit).await;
    assert!(matches!(refused, Err(DecideError::Rejected(TooMuch))));
    assert_eq!(hub.store.latest_version().await.expect("a version"), Version::new(20));
}

#[tokio::test]
async fn another_history_is_noticed_and_the_way_out_loses_nothing() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    hub.store.append([event("h1", "x"), event("h2", "x")]).await.expect("appended");
    sync(&a).await;
    a.append(event("own", "y")).await.expect("appended");
    sync(&a).await;
    let basis = a.load().aggregate("x").await.expect("a load").basis;
    a.append(event("on h2", "x")).basis(&basis).await.expect("appended");
    let cursor = a.cursor().await.expect("a cursor");
    a.close().await.expect("closed");

    // The hub was restored from a copy with one event, and continued.
    let restored = eventstore::open("memory:").await.expect("memory");
    restored.append([event("h1", "x")]).await.expect("appended");
    restored.append([event("new", "z"), event("new 2", "z")]).await.expect("appended");
    let a = Options::new(hub.directory.path().join("a")).hub_store(restored.clone()).open().await.expect("a replica");
    let noticed = a.sync_once(&SyncOptions::new()).await;
    assert!(matches!(noticed, Err(Error::AnotherHistory { .. })), "{noticed:?}");
    assert_eq!(a.sync_state(), SyncState::AnotherHistory);
    assert_eq!(ids(&a).await, ["h1", "h2", "own", "on h2"], "nothing happened yet");

    let report = a.sync_once(&SyncOptions::new().accept_history()).await.expect("a sync");
    let [accepted] = report.accepted.as_slice() else { panic!("{report:?}") };
    assert_eq!((accepted.common, accepted.was, accepted.pending_again), (Version::new(1), Version::new(3), 1));
    assert_eq!(accepted.aside, hub.path("a/aside/1"));
    let waiting = report.waiting.expect("what stood on h2 waits");
    let conflict = a.next_conflict().await.expect("a look").expect("a conflict");
    assert_eq!((conflict.batch, &conflict.why), (waiting, &Why::Dependency));
    assert_eq!(ids(&a).await, ["h1", "new", "new 2", "own", "on h2"]);
    a.sync_once(&resolved(KeepBoth)).await.expect("a sync");
    assert_eq!(a.cursor().await.expect("a cursor"), restored.cursor().await.expect("a cursor"));
    // The previous confirmed events are kept aside as a store.
    let aside = format!("lmdb:{}", hub.directory.path().join("a/aside/1").display());
    let aside = eventstore::open_read_only(&aside).await.expect("the old events");
    let old = aside.load(Version::ZERO).await.expect("a load");
    assert_eq!(old.iter().map(|event| event.event.id()).collect::<Vec<_>>(), ["h1", "h2", "own"]);
    // A durable subscription notices it as well.
    let noticed = a.subscribe(cursor).next().await;
    assert!(matches!(noticed, Err(Error::Store(eventstore::Error::HistoryDiverged { .. }))), "{noticed:?}");
    a.close().await.expect("closed");
    let a = Options::new(hub.directory.path().join("a")).hub_store(restored).open().await.expect("a replica");
    assert_eq!(ids(&a).await, ["h1", "new", "new 2", "own", "on h2"], "after reopening");
}

#[tokio::test]
async fn a_new_replica_does_not_take_another_store_for_its_hub() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    sync(&a).await;
    a.append(event("1", "x")).await.expect("appended");
    a.close().await.expect("closed");
    let other = eventstore::open("memory:").await.expect("memory");
    let a = Options::new(hub.directory.path().join("a")).hub_store(other.clone()).open().await.expect("a replica");
    let refused = a.sync_once(&SyncOptions::new()).await;
    assert!(matches!(refused, Err(Error::AnotherHub { .. })), "{refused:?}");
    assert_eq!(other.latest_version().await.expect("a version"), Version::ZERO);
}

#[tokio::test]
async fn another_address_of_the_hub_is_kept_once_its_history_is_known_to_be_the_replicas() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = |name: &str| format!("lmdb:{}", directory.path().join(name).display());
    let open = |hub: Option<&str>| {
        let options = Options::new(directory.path().join("a"));
        hub.map_or(Options::new(directory.path().join("a")).existing(), |hub| options.hub(url(hub))).open()
    };
    for name in ["one", "other"] {
        let store = eventstore::open(&url(name)).await.expect("a store");
        store.append(event(name, "x")).await.expect("appended");
        if name == "one" {
            store.backup(directory.path().join("moved")).await.expect("a backup");
        }
        store.close().await.expect("closed");
    }
    let a = open(Some("one")).await.expect("a replica");
    sync(&a).await;
    a.close().await.expect("closed");
    // Neither one of another history nor one that is not there.
    for name in ["other", "none"] {
        let a = open(Some(name)).await.expect("a replica");
        a.sync_once(&SyncOptions::new()).await.expect_err("it is not the hub");
        a.close().await.expect("closed");
        let a = open(None).await.expect("a replica");
        assert_eq!(a.status().await.expect("a status").hub, url("one"), "after {name}");
        sync(&a).await;
        a.close().await.expect("closed");
    }
    // What has the same events is the same hub, and what was accepted is the hub from then on.
    for (name, options) in [("moved", SyncOptions::new()), ("other", SyncOptions::new().accept_history())] {
        let a = open(Some(name)).await.expect("a replica");
        a.sync_once(&options).await.expect("a sync");
        a.close().await.expect("closed");
        let a = open(None).await.expect("a replica");
        assert_eq!(a.status().await.expect("a status").hub, url(name));
        sync(&a).await;
        a.close().await.expect("closed");
    }
}

/// Its directory is made like that of a store, and its settings may have the password of the hub.
#[cfg(unix)]
#[tokio::test]
async fn nobody_else_reads_a_replica() {
    use std::os::unix::fs::PermissionsExt as _;
    let hub = Hub::new().await;
    let mode = |name: &str| std::fs::metadata(hub.path(name)).expect(name).permissions().mode() & 0o777;
    let a = hub.options("above/a").hub("postgres://app:geheim@host/shop").open().await.expect("a replica");
    assert_eq!(mode("above/a/replica.json"), 0o600);
    sync(&a).await;
    assert_eq!(mode("above/a/replica.json"), 0o600, "with the id of the hub's store");
    for name in ["above/a", "above/a/journal-1", "above/a/confirmed-1"] {
        assert_eq!(mode(name) & 0o707, 0o700, "{name}");
    }
    a.close().await.expect("closed");
    let a = Options::new(hub.path("above/a")).open().await.expect("a replica");
    let hub = a.status().await.expect("a status").hub;
    let options = Options::new("x").hub("postgres://app:geheim@host");
    let shown = format!("{hub} {a:?} {options:?}");
    assert!(hub.contains("host") && !shown.contains("geheim"), "{shown}");
}

#[tokio::test]
async fn a_subscription_tells_what_becomes_of_pending_events() {
    let (hub, b) = conflicting().await;
    let mut all = b.subscribe(Cursor::START);
    let mut told = Vec::new();
    for _ in 0..3 {
        let Notice::Pending(pending) = all.next().await.expect("a notice") else {
            panic!("the whole pending set comes")
        };
        told.push(pending.event.id().to_owned());
    }
    assert_eq!(told, ["of b", "b on top", "b beside"]);
    assert!(all.try_next().await.expect("nothing").is_none());
    b.sync_once(&resolved(RejectConflicts)).await.expect("a sync");
    let mut notices = Vec::new();
    for _ in 0..4 {
        notices.push(all.next().await.expect("a notice"));
    }
    let confirmed: Vec<_> = notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::Confirmed { event, was } => Some((event.event.id(), was.is_some())),
            _ => None,
        })
        .collect();
    assert_eq!(confirmed, [("of a", false), ("b beside", true)]);
    let rejected = notices.iter().filter(|notice| matches!(notice, Notice::Rejected { .. }));
    assert_eq!(rejected.count(), 2);
    // From a cursor on, for one aggregate.
    let mut behind = b.subscribe(b.cursor().await.expect("a cursor")).aggregate("x");
    assert!(behind.try_next().await.expect("nothing").is_none());
    let waiting = tokio::spawn(async move { behind.next().await });
    b.append(event("beside", "y")).await.expect("appended");
    b.append(event("more", "x")).await.expect("appended");
    let Ok(Ok(Notice::Pending(pending))) = waiting.await else { panic!("a pending event comes") };
    assert_eq!(pending.event.id(), "more");
    drop(hub);
}

#[tokio::test]
async fn deciding_again_is_done_on_what_the_aggregate_is_now() {
    let hub = Hub::new().await;
    let (a, b) = (hub.replica("a").await, hub.replica("b").await);
    let deposit = |cents| Event::of("account", &AccountEvent::Deposited { cents }).expect("valid");
    for (replica, first, second) in [(&a, 10, 1), (&b, 5, 7)] {
        let basis = replica.load().aggregate("account").await.expect("a load").basis;
        replica.append(deposit(first)).basis(&basis).await.expect("appended");
        replica.append(deposit(second)).await.expect("appended");
    }
    sync(&a).await;
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let resolver = DecideAgain::new({
        let seen = seen.clone();
        move |account: &Account, _: &synckit::Conflict| {
            seen.lock().expect("no panic").push(account.balance);
            Resolution::AppendAnyway
        }
    });
    b.sync_once(&resolved(resolver)).await.expect("a sync");
    assert_eq!(*seen.lock().expect("no panic"), [11], "neither the batch nor the one on top of it");
    assert_eq!(b.load().await.expect("a load").entries.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_replicas_push_at_once_and_follow_the_hub() {
    let hub = Hub::new().await;
    let (a, b) = (hub.replica("a").await, hub.replica("b").await);
    let stop = CancellationToken::new();
    let run = |replica: &Replica| {
        let (replica, options) = (replica.clone(), SyncOptions::new().stop(stop.clone()));
        tokio::spawn(async move { replica.run(&options).await })
    };
    let running = [run(&a), run(&b)];
    let mut notices = b.subscribe(Cursor::START);
    for number in 0..20 {
        let id = format!("e{number}");
        a.append(event(&id, "x")).await.expect("appended");
        let Notice::Confirmed { event, .. } = notices.next().await.expect("a notice") else {
            panic!("it is confirmed")
        };
        assert_eq!(event.event.id(), id);
    }
    stop.cancel();
    for running in running {
        running.await.expect("it ends").expect("well");
    }
    assert_eq!(a.sync_state(), SyncState::Idle);
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_offline_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let replica = Options::new(directory.path().join("a")).hub("http://127.0.0.1:9/stores/none").open().await;
    let replica = replica.expect("it works without a hub");
    replica.append(event("1", "x")).await.expect("appended");
    let offline = replica.sync_once(&SyncOptions::new()).await.expect_err("there is no hub");
    assert!(offline.is_offline(), "{offline}");
    assert!(matches!(replica.sync_state(), SyncState::Offline(_)));
    assert_eq!(ids(&replica).await, ["1"]);
}

#[tokio::test]
async fn an_address_that_no_hub_can_have_is_refused_when_the_replica_is_opened() {
    let hub = Hub::new().await;
    for (address, why) in [
        ("htp://127.0.0.1:7080", "not a known engine"),
        ("http://127.0.0.1:7080?retry=1s", "retry"),
        ("postgres://app:geheim@host?nonsense=1", "nonsense"),
    ] {
        let refused = Options::new(hub.path("new")).hub(address).open().await.expect_err("no address");
        assert!(!refused.is_offline() && !hub.path("new").exists(), "{refused:?}");
        let told =
            std::error::Error::source(&refused).map_or(refused.to_string(), |source| format!("{refused}: {source}"));
        assert!(told.contains(why) && !told.contains("geheim"), "{told}");
    }
}

#[tokio::test]
async fn one_sync_asks_a_hub_that_fails_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let directory = tempfile::tempdir().expect("a directory");
    let hub = format!("http://{}", listener.local_addr().expect("an address"));
    let replica = Options::new(directory.path().join("a")).hub(hub).open().await.expect("a replica");
    let (options, sync) = (SyncOptions::new(), async |options| replica.sync_once(options).await);
    let (mut syncing, mut asked) = (std::pin::pin!(sync(&options)), 0);
    let offline = loop {
        tokio::select! {
            done = &mut syncing => break done.expect_err("nobody answers"),
            connection = listener.accept() => {
                drop(connection);
                asked += 1;
            }
        }
    };
    assert!(offline.is_offline(), "{offline}");
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn one_process_owns_a_replica() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let second = hub.options("a").open().await;
    assert!(matches!(second, Err(Error::Store(eventstore::Error::Locked { .. }))), "{second:?}");
    a.close().await.expect("closed");
    a.close().await.expect("again");
    assert!(matches!(a.append(event("1", "x")).await, Err(Error::Store(eventstore::Error::Closed))));
    hub.replica("a").await;
}

#[tokio::test]
async fn a_read_only_replica_follows_and_appends_nothing() {
    let hub = Hub::new().await;
    let a = hub.options("a").read_only().open().await.expect("a replica");
    hub.store.append(event("1", "x")).await.expect("appended");
    sync(&a).await;
    assert_eq!(ids(&a).await, ["1"]);
    assert!(matches!(a.append(event("2", "x")).await, Err(Error::ReadOnly)));
}

#[tokio::test]
async fn the_confirmed_events_are_a_store_that_others_read_and_follow() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    hub.store.append([event("1", "x"), event("2", "x"), event("3", "y")]).await.expect("appended");
    a.append(event("pending", "x")).await.expect("appended");
    let confirmed = a.confirmed();
    assert_eq!(confirmed.latest_version().await.expect("a version"), Version::ZERO);
    let waiting = tokio::spawn({
        let confirmed = confirmed.clone();
        async move { confirmed.wait_for_events(Version::ZERO).await }
    });
    sync(&a).await;
    assert_eq!(waiting.await.expect("it ends").expect("news"), Version::new(3));
    confirmed.wait_for_events(Version::new(3)).await.expect("the own batch is confirmed as well");
    assert_eq!(confirmed.digest().await.expect("a digest"), hub.store.digest().await.expect("a digest"));
    assert_eq!(confirmed.revision("x").await.expect("a revision"), Revision::new(3));
    let refused = confirmed.append(event("4", "x")).await;
    assert!(matches!(refused, Err(eventstore::Error::Unsupported { .. })), "{refused:?}");
    // A read-only replica can use it as its hub.
    let behind = Options::new(hub.directory.path().join("behind")).hub_store(confirmed).read_only().open().await;
    let behind = behind.expect("a replica");
    sync(&behind).await;
    assert_eq!(ids(&behind).await, ["1", "2", "3", "pending"]);
}

#[tokio::test]
async fn other_directories_are_not_taken_for_replicas() {
    let directory = tempfile::tempdir().expect("a directory");
    let hub = eventstore::open("memory:").await.expect("memory");
    let options = || Options::new(directory.path()).hub_store(hub.clone());
    assert!(matches!(options().existing().open().await, Err(Error::NotAReplica { .. })));
    assert!(matches!(Options::new(directory.path()).open().await, Err(Error::NotAReplica { .. })), "no hub");
    std::fs::write(directory.path().join("mine"), "something").expect("written");
    assert!(matches!(options().open().await, Err(Error::NotAReplica { .. })));
    assert!(directory.path().join("mine").exists());
    let file = Options::new(directory.path().join("mine")).hub_store(hub.clone()).open().await.expect_err("a file");
    assert!(file.to_string().ends_with("is not a replica: it is a file; name another directory"), "{file}");
    let full = options().open().await.expect_err("it has files").to_string();
    assert!(full.matches(';').count() == 1 && full.contains("choose a missing or empty directory"), "{full}");
}

#[tokio::test]
async fn many_batches_are_pushed_with_their_boundaries_and_the_journal_is_compacted() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let appends: Vec<_> = (0..1_500)
        .map(|number| {
            let a = a.clone();
            tokio::spawn(async move {
                let events = [event(&format!("{number}-1"), "x"), event(&format!("{number}-2"), "y")];
                a.append(events).await.expect("appended")
            })
        })
        .collect();
    for append in appends {
        append.await.expect("it ends");
    }
    let report = sync(&a).await;
    assert_eq!((report.confirmed, report.version), (1_500, Version::new(3_000)));
    let all = hub.store.load(Version::ZERO).await.expect("a load");
    let batch = |id: &str| id.split('-').next().map(str::to_owned);
    assert!(all.chunks(2).all(|pair| batch(pair[0].event.id()) == batch(pair[1].event.id())), "no batch is torn");
    a.close().await.expect("closed");
    let journals: Vec<_> = std::fs::read_dir(hub.directory.path().join("a"))
        .expect("a directory")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.starts_with("journal-"))
        .collect();
    assert_eq!(journals, ["journal-2"]);
    let a = hub.replica("a").await;
    let status = a.status().await.expect("a status");
    assert_eq!((status.pending, status.digest), (0, hub.store.digest().await.expect("a digest")));
    assert_eq!(a.load().await.expect("a load").entries.len(), 3_000);
}

#[test]
fn handles_can_be_shared() {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Replica>();
    is_shared::<Arc<SyncOptions>>();
    assert_eq!(Number(3).to_string(), "3");
}

/// A foreign event with an own id does not count as own: decisions made without it conflict with it, wherever it is.
#[tokio::test]
async fn an_event_of_somebody_else_with_an_own_id_is_a_conflict_for_its_aggregate() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("taken", "x")).await.expect("appended");
    let y = a.load().aggregate("y").await.expect("a load");
    let number = a.append(event("decided", "y")).basis(&y.basis).await.expect("appended").batch.expect("a batch");
    hub.store.append(event("taken", "y")).await.expect("appended");
    // The first one waits, and shares no aggregate with the second.
    a.sync_once(&SyncOptions::new().skip_waiting()).await.expect("a sync");
    let waiting: Vec<_> = a.pending().into_iter().map(|batch| (batch.number, batch.status)).collect();
    let why = |at: usize| waiting.get(at).map(|(_, status)| status);
    assert_eq!(why(0), Some(&Status::Waiting(Why::Duplicate)));
    assert_eq!(why(1), Some(&Status::Waiting(Why::Conflict)), "{waiting:?}");
    let also = a.append(event("later", "y")).basis(&y.basis).await;
    assert!(matches!(also, Err(Error::Conflict)), "{also:?}");
    // This also holds after reopening, and the resolver sees the unseen events.
    a.close().await.expect("closed");
    let a = hub.replica("a").await;
    a.sync_once(&resolved(move |conflict: &synckit::Conflict| match conflict.batch == number {
        true if conflict.unseen.len() == 1 && conflict.unseen[0].event.id() == "taken" => Resolution::AppendAnyway,
        true => Resolution::Reject(format!("{:?}", conflict.unseen)),
        false => Resolution::Drop,
    }))
    .await
    .expect("a sync");
    assert_eq!(ids(&a).await, ["taken", "decided"]);
}

/// The hub may have events that a batch had before it was replaced. They do not count as own, and if they are lost,
/// batches that depend on them go to the resolver.
#[tokio::test]
async fn what_stands_on_a_lost_event_that_a_batch_had_once_is_asked_about() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let first = a.load().aggregate("x").await.expect("a load");
    a.append(event("first", "x")).basis(&first.basis).await.expect("appended");
    hub.store.append(event("of the hub", "x")).await.expect("appended");
    // A push that was delayed for long arrives after the decision to append another event.
    struct Late(eventstore::Store, std::sync::atomic::AtomicBool);
    #[synckit::async_trait]
    impl synckit::Resolver for Late {
        async fn resolve(&self, _: &synckit::Conflict) -> synckit::Result<Answer> {
            if !self.1.swap(false, std::sync::atomic::Ordering::SeqCst) {
                return Ok(Resolution::Wait.into());
            }
            self.0.append(event("first", "x")).await?;
            Ok(Resolution::AppendInstead(vec![event("instead", "x")]).into())
        }
    }
    let late = Late(hub.store.clone(), std::sync::atomic::AtomicBool::new(true));
    a.sync_once(&resolved(late)).await.expect("a sync");
    assert_eq!(ids(&a).await, ["of the hub", "first", "instead"]);
    let seen = a.load().aggregate("x").await.expect("a load");
    let on_it = a.append(event("on it", "x")).basis(&seen.basis).await.expect("appended").batch;
    a.close().await.expect("closed");
    // The hub has lost it.
    let restored = eventstore::open("memory:").await.expect("memory");
    restored.append(event("of the hub", "x")).await.expect("appended");
    let a = Options::new(hub.path("a")).hub_store(restored.clone()).open().await.expect("a replica");
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let asks = asked.clone();
    let options = resolved(move |conflict: &synckit::Conflict| {
        asks.lock().expect("no panic").push(conflict.batch);
        Resolution::Reject("it stood on what is lost".to_owned())
    });
    a.sync_once(&options.accept_history()).await.expect("a sync");
    let asked = asked.lock().expect("no panic").clone();
    assert!(asked.contains(&on_it.expect("a batch")), "{asked:?}, and the hub has {:?}", ids(&a).await);
}

//! Servers of Go Sync Kit as stores and as hubs. The server here behaves like that of the kit: it stores event by
//! event, rewrites JSON, skips what it cannot store, and reports success.

#![cfg(feature = "http")]

mod common;

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use eventstore::{Actual, CancellationToken, Error, Event, Expected, Revision, Store, StoreOutcome, Version};
use serde_json::{Value, json};
use synckit::core::{Status, Why};
use synckit::{Entry, KeepBoth, Options, Replica, SyncOptions};

use common::{event, ids};

/// The state of the server, and its faults.
#[derive(Default)]
struct Kit {
    events: Vec<(u64, Value)>,
    last: u64,
    /// How many events it can still store; it reports success in any case.
    room: Option<usize>,
    /// Answers are lost after this many requests.
    lost_after: Option<usize>,
    /// It accepts pushes but does not store them yet.
    is_slow: bool,
    /// The number of pushes that came while it was slow.
    pushes: usize,
    /// It answers with 503.
    is_down: bool,
    /// The number of events returned.
    given: usize,
    /// The versions after which events were requested.
    since: Vec<u64>,
}

/// JSON as Go rewrites it: sorted keys, numbers as float64.
fn written_anew(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<_, _> = members.into_iter().map(|(key, value)| (key, written_anew(value))).collect();
            members.into_iter().collect()
        }
        Value::Array(values) => values.into_iter().map(written_anew).collect(),
        Value::Number(number) => {
            let float = number.as_f64().expect("a number");
            if float.fract() == 0.0 && float.abs() < 1e17 { json!(float as i64) } else { json!(float) }
        }
        other => other,
    }
}

impl Kit {
    fn store(&mut self, sent: &Value) {
        let event = &sent["event"];
        let is_there = |(_, stored): &(u64, Value)| stored["id"] == event["id"];
        if self.events.iter().any(is_there) || self.room == Some(0) {
            return;
        }
        self.room = self.room.map(|room| room - 1);
        self.last += 1;
        let mut stored = serde_json::Map::new();
        for name in ["id", "type", "aggregate_id"] {
            stored.insert(name.to_owned(), event.get(name).cloned().unwrap_or_else(|| json!("")));
        }
        for name in ["data", "metadata"] {
            stored.insert(name.to_owned(), written_anew(event.get(name).cloned().unwrap_or(Value::Null)));
        }
        self.events.push((self.last, stored.into()));
    }

    /// Somebody else writes an event.
    fn write(&mut self, id: &str, aggregate_id: &str) {
        self.store(
            &json!({ "event": { "id": id, "type": "Written", "aggregate_id": aggregate_id, "data": { "by": "go" } } }),
        );
    }
}

type Shared = Arc<Mutex<Kit>>;

/// A running server. Dropping it stops it.
struct Server {
    url: String,
    kit: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start() -> Self {
        let kit = Shared::default();
        let routes = Router::new()
            .route("/sync/push", post(push))
            .route("/sync/pull-cursor", post(pull))
            .route("/sync/latest-version", get(latest))
            .layer(DefaultBodyLimit::disable())
            .with_state(kit.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("gosync+http://{}/sync", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move { axum::serve(listener, routes).into_future().await.expect("served") });
        Server { url, kit, task }
    }

    fn kit(&self) -> MutexGuard<'_, Kit> {
        self.kit.lock().expect("no panic")
    }

    async fn open(&self, options: &str) -> Store {
        eventstore::open(&format!("{}?retry_for=0s{options}", self.url)).await.expect("opened")
    }

    fn ids(&self) -> Vec<String> {
        self.kit().events.iter().map(|(_, event)| event["id"].as_str().expect("text").to_owned()).collect()
    }
}

/// The answer, or a failure after the work was done.
fn answer(kit: &mut Kit, body: Value) -> Response {
    if kit.lost_after.is_some_and(|left| left == 0) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    kit.lost_after = kit.lost_after.map(|left| left - 1);
    Json(body).into_response()
}

async fn push(State(kit): State<Shared>, body: Bytes) -> Response {
    let is_slow = kit.lock().expect("no panic").is_slow;
    if is_slow {
        kit.lock().expect("no panic").pushes += 1;
        std::future::pending::<()>().await;
    }
    let mut kit = kit.lock().expect("no panic");
    if kit.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if body.len() > 10 << 20 {
        return (StatusCode::PAYLOAD_TOO_LARGE, Json(json!({ "error": "request body too large" }))).into_response();
    }
    let Ok(events) = serde_json::from_slice::<Vec<Value>>(&body) else {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "bad" }))).into_response();
    };
    events.iter().for_each(|event| kit.store(event));
    answer(&mut kit, json!({ "status": "ok" }))
}

async fn pull(State(kit): State<Shared>, body: Bytes) -> Response {
    let mut kit = kit.lock().expect("no panic");
    if kit.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let request: Value = serde_json::from_slice(&body).expect("JSON");
    let since = request["since"]["data"].as_u64().expect("a number");
    let limit = request["limit"].as_u64().filter(|limit| (1..=1000).contains(limit)).expect("a limit");
    kit.since.push(since);
    let behind = kit.events.iter().filter(|(version, _)| *version > since).take(limit as usize);
    let events: Vec<_> =
        behind.map(|(version, event)| json!({ "event": event, "version": version.to_string() })).collect();
    kit.given += events.len();
    answer(&mut kit, json!({ "events": events }))
}

async fn latest(State(kit): State<Shared>) -> Response {
    let mut kit = kit.lock().expect("no panic");
    if kit.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let last = kit.last.to_string();
    answer(&mut kit, json!(last))
}

#[tokio::test]
async fn a_server_of_the_kit_is_a_store() {
    let server = Server::start().await;
    let store = server.open("").await;
    assert_eq!(store.latest_version().await.expect("a version"), Version::ZERO);
    server.kit().write("g1", "a");
    let first = store.append(event("1", "a")).expected(Expected::Revision(Revision::new(1))).await.expect("appended");
    assert_eq!((first.first, first.revision), (Version::new(2), Revision::new(2)));
    server.kit().write("g2", "b");
    let conflict = store.append(event("2", "a")).expected(Expected::NoEvents).await;
    let expected = Actual::Aggregate { id: "a".to_owned(), revision: Revision::new(2) };
    assert!(matches!(&conflict, Err(Error::VersionConflict { actual, .. }) if *actual == expected), "{conflict:?}");
    // An event that occurs twice in a batch is not one that was stored before.
    let conflict = store.append([event("2", "a"), event("2", "a")]).expected(Expected::NoEvents).await;
    assert!(matches!(&conflict, Err(Error::VersionConflict { actual, .. }) if *actual == expected), "{conflict:?}");
    let again = store.append(event("1", "a")).expected(Expected::NoEvents).await.expect("known");
    assert_eq!((again.first, again.outcome), (Version::new(2), StoreOutcome::AlreadyStored));
    let other = Event::builder("Happened", "a").id("1").data("{}").build().expect("valid");
    assert!(matches!(store.append(other).await, Err(Error::DuplicateEvent { .. })));
    let loaded = store.load(Version::ZERO).aggregate("a").await.expect("a load");
    assert_eq!(loaded.iter().map(|event| event.event.id()).collect::<Vec<_>>(), ["g1", "1"]);
    let batch = store.append([event("3", "c"), event("4", "d"), event("5", "c")]).await.expect("appended");
    assert_eq!((batch.first, batch.last), (Version::new(4), Version::new(6)));
    assert_eq!(store.revision("c").await.expect("a revision"), Revision::new(2));
    assert_eq!(server.ids(), ["g1", "1", "g2", "3", "4", "5"]);
    let copy = eventstore::open("memory:").await.expect("memory");
    store.copy_to(&copy).await.expect("copied");
    assert_eq!(copy.cursor().await.expect("a cursor"), store.cursor().await.expect("a cursor"));
    store.close().await.expect("closed");
    assert!(matches!(store.latest_version().await, Err(Error::Closed)));
}

#[tokio::test]
async fn what_the_server_would_alter_is_refused() {
    let server = Server::start().await;
    let store = server.open("").await;
    let of = |id: &str, data: &str| Event::builder("T", "a").id(id).data(data.to_owned()).build().expect("valid");
    for (id, data) in
        [("a", "no JSON"), ("b", "9007199254740993"), ("c", r#"{"n":[12345678901234567890]}"#), ("d", "\u{0}")]
    {
        let refused = store.append([of("ok", "1"), of(id, data)]).await;
        assert!(matches!(refused, Err(Error::InvalidEvent { .. })), "{data}: {refused:?}");
    }
    assert!(server.ids().is_empty());
    let kept = [("e", r#"{"b":1, "a":[0.1, 9007199254740992]}"#), ("f", ""), ("g", r#""<\u003c>""#)];
    for (id, data) in kept {
        store.append(of(id, data)).await.expect(data);
        // And it is recognised again.
        let again = store.append(of(id, data)).await.expect(data);
        assert_eq!(again.outcome, StoreOutcome::AlreadyStored);
    }
    let found: Vec<_> = store.load(Version::ZERO).await.expect("a load");
    let data: Vec<_> = found.iter().map(|event| event.event.data().to_vec()).collect();
    assert_eq!(data, [br#"{"a":[0.1,9007199254740992],"b":1}"#.as_slice(), b"null", br#""<<>""#]);
}

#[tokio::test]
async fn an_append_that_the_server_has_not_stored_is_an_error() {
    let server = Server::start().await;
    let store = server.open("").await;
    server.kit().room = Some(0);
    let lost = store.append([event("1", "a"), event("2", "a")]).await;
    assert!(matches!(&lost, Err(Error::Unavailable { reason, .. }) if reason.contains("\"1\"")), "{lost:?}");
    server.kit().room = Some(1);
    let batch = || store.append([event("1", "a"), event("2", "a"), event("3", "a")]).expected(Expected::NoEvents);
    let part = batch().await;
    assert!(matches!(&part, Err(Error::OutcomeUnknown { reason, .. }) if reason.contains("1 events")), "{part:?}");
    assert_eq!(server.ids(), ["1"]);
    server.kit().room = None;
    server.kit().write("g1", "a");
    // A repetition completes it; its condition held when it was begun.
    let whole = batch().await.expect("completed");
    assert_eq!((whole.first, whole.last), (Version::new(1), Version::new(4)));
    assert_eq!(server.ids(), ["1", "g1", "2", "3"]);
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_or_late_is_looked_for() {
    let server = Server::start().await;
    let store = server.open("").await;
    // The mirror is read and the push is done; its answer is lost, and so is everything that follows.
    server.kit().lost_after = Some(1);
    let unknown = store.append(event("1", "a")).await;
    assert!(matches!(unknown, Err(Error::OutcomeUnknown { .. })), "{unknown:?}");
    server.kit().lost_after = None;
    let known = store.append(event("1", "a")).await.expect("resolved");
    assert_eq!((known.first, known.outcome), (Version::new(1), StoreOutcome::AlreadyStored));
    // The server is slow: the outcome is unknown, and later the event is there.
    server.kit().is_slow = true;
    let stop = CancellationToken::new();
    let append = store.append(event("late", "a")).cancel_on(&stop);
    let pushed = async {
        while server.kit().pushes == 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (late, ()) = tokio::join!(append, pushed);
    assert!(matches!(late, Err(Error::OutcomeUnknown { .. })), "{late:?}");
    server.kit().is_slow = false;
    server.kit().is_down = true;
    assert!(matches!(store.append(event("2", "a")).await, Err(Error::Unavailable { .. })));
    assert!(matches!(store.latest_version().await, Err(Error::Unavailable { .. })));
    server.kit().is_down = false;
    assert_eq!(server.ids(), ["1"]);
}

#[tokio::test]
async fn an_event_that_is_too_large_for_the_server_is_refused_and_others_are_not() {
    let server = Server::start().await;
    let store = server.open("").await;
    let of = |id: &str, bytes: usize| {
        Event::builder("T", "a").id(id).data(format!("\"{}\"", "x".repeat(bytes))).build().expect("valid")
    };
    let refused = store.append(of("large", 11 << 20)).await;
    assert!(matches!(&refused, Err(Error::InvalidEvent { reason, .. }) if reason.contains("large")), "{refused:?}");
    // More than fits into one request.
    store.append((0..10).map(|n| of(&n.to_string(), 3 << 20)).collect::<Vec<_>>()).await.expect("appended");
    assert_eq!(server.ids().len(), 10);
    // And more than fits into one answer.
    assert_eq!(server.open("").await.latest_version().await.expect("a version"), Version::new(10));
}

#[tokio::test]
async fn nothing_is_read_behind_a_gap() {
    let server = Server::start().await;
    let store = server.open("").await;
    server.kit().write("g1", "a");
    server.kit().last = 2;
    server.kit().write("g3", "a");
    assert_eq!(store.latest_version().await.expect("up to the gap"), Version::new(1));
    let gap = store.latest_version().await;
    assert!(matches!(&gap, Err(Error::Unavailable { reason, .. }) if reason.contains("gap")), "{gap:?}");
    let late = server.kit().events[0].1.clone();
    server.kit().events.insert(1, (2, late));
    server.kit().events[1].1["id"] = json!("g2");
    assert_eq!(store.latest_version().await.expect("all"), Version::new(3));
}

#[tokio::test]
async fn a_mirror_on_disk_is_used_again_until_the_server_has_another_history() {
    let server = Server::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let mirror = directory.path().join("my mirror");
    let option = format!("&mirror={}", mirror.display().to_string().replace(' ', "%20"));
    (0..2500).for_each(|number| server.kit().write(&format!("g{number}"), "a"));
    let store = server.open(&option).await;
    assert_eq!(store.latest_version().await.expect("a version"), Version::new(2500));
    let before = store.cursor().await.expect("a cursor");
    store.close().await.expect("closed");
    server.kit().write("new", "a");
    server.kit().given = 0;
    let store = server.open(&option).await;
    assert_eq!(store.latest_version().await.expect("a version"), Version::new(2501));
    // The last one of the mirror, and the new one.
    assert_eq!(server.kit().given, 2);
    assert_eq!(server.kit().since.last(), Some(&2499));
    assert_eq!(store.cursor_at(before.version()).await.expect("a cursor"), before);
    // An older copy of the server that has diverged.
    {
        let mut kit = server.kit();
        kit.events.truncate(2000);
        kit.last = 2000;
        kit.write("other", "a");
    }
    assert_eq!(store.latest_version().await.expect("a version"), Version::new(2001));
    assert!(matches!(store.load(before).await, Err(Error::HistoryDiverged { .. })));
    assert_eq!(store.get("other").await.expect("there").version, Version::new(2001));
    // Another one, which has more events by now.
    {
        let mut kit = server.kit();
        kit.events.truncate(1000);
        kit.last = 1000;
        (0..2000).for_each(|number| kit.write(&format!("o{number}"), "a"));
    }
    assert_eq!(store.latest_version().await.expect("a version"), Version::new(3000));
    assert_eq!(store.get("o0").await.expect("there").version, Version::new(1001));
    store.close().await.expect("closed");
}

#[tokio::test]
async fn a_directory_that_is_no_mirror_is_left_alone() {
    let server = Server::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("thesis.txt"), "my only copy").expect("written");
    let url = format!("{}?mirror={}", server.url, directory.path().display());
    let refused = eventstore::open(&url).await;
    assert!(matches!(&refused, Err(Error::Open { reason, .. }) if reason.contains("nor a mirror")), "{refused:?}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1);
    for (url, named) in [
        (format!("{}?colour=red", server.url), "colour"),
        (format!("{}?lost_after=1s", server.url), "lost_after"),
        (server.url.replace("/sync", "/elsewhere"), "base URL"),
        ("gosync+http://".to_owned(), "host"),
    ] {
        let refused = eventstore::open(&url).await.expect_err("refused").to_string();
        assert!(refused.contains(named), "{refused}");
    }
}

struct Replicas {
    server: Server,
    directory: tempfile::TempDir,
}

impl Replicas {
    async fn new() -> Self {
        Replicas { server: Server::start().await, directory: tempfile::tempdir().expect("a directory") }
    }

    async fn open(&self, name: &str) -> Replica {
        Options::new(self.directory.path().join(name)).hub(&self.server.url).open().await.expect("a replica")
    }
}

async fn sync(replica: &Replica, options: &SyncOptions) -> synckit::SyncReport {
    replica.sync_once(options).await.expect("a sync")
}

#[tokio::test]
async fn a_server_of_the_kit_is_a_hub() {
    let all = Replicas::new().await;
    let (a, b) = (all.open("a").await, all.open("b").await);
    let keep = SyncOptions::new().resolver(KeepBoth);
    // Keys in another order than Go's, and no data.
    let own = |id: &str, aggregate_id: &str| {
        Event::builder("T", aggregate_id).id(id).data(format!(r#"{{"z":1, "id":"{id}"}}"#)).build().expect("valid")
    };
    let none = Event::builder("T", "x").id("a2").build().expect("valid");
    a.append([own("a1", "x"), none]).await.expect("appended");
    let seen = b.load().aggregate("x").await.expect("a load");
    b.append(own("b1", "x")).basis(&seen.basis).await.expect("appended");
    all.server.kit().write("g1", "y");
    assert_eq!(sync(&a, &keep).await.confirmed, 1);
    // It had not seen that of a.
    let waiting = sync(&b, &SyncOptions::new()).await.waiting;
    assert!(waiting.is_some());
    assert_eq!(b.next_conflict().await.expect("asked").expect("one").why, Why::Conflict);
    assert_eq!(sync(&b, &keep).await.confirmed, 1);
    sync(&a, &keep).await;
    assert_eq!(all.server.ids(), ["g1", "a1", "a2", "b1"]);
    for replica in [&a, &b] {
        assert_eq!(ids(replica).await, ["g1", "a1", "a2", "b1"]);
        let loaded = replica.load().await.expect("a load");
        assert!(loaded.entries.iter().all(|entry| matches!(entry, Entry::Confirmed(_))));
    }
    assert_eq!(a.cursor().await.expect("a cursor"), b.cursor().await.expect("a cursor"));
    // Confirmed events can be appended again with their original content.
    assert_eq!(a.append(own("a1", "x")).await.expect("known").batch, None);
    // After reopening, it knows what was confirmed, and reads only what is new.
    a.append(own("a3", "x")).await.expect("appended");
    a.close().await.expect("closed");
    all.server.kit().given = 0;
    let a = all.open("a").await;
    assert_eq!(sync(&a, &keep).await.confirmed, 1);
    assert!(all.server.kit().given < 8, "{}", all.server.kit().given);
}

#[tokio::test]
async fn what_a_hub_of_the_kit_does_not_store_stays_pending() {
    let all = Replicas::new().await;
    let a = all.open("a").await;
    a.append([event("1", "x"), event("2", "x")]).await.expect("appended");
    let text = Event::builder("T", "x").id("text").data("no JSON").build().expect("valid");
    a.append(text).await.expect("offline, nobody knows");
    all.server.kit().room = Some(1);
    let failed = a.sync_once(&SyncOptions::new()).await.expect_err("not stored");
    assert!(failed.is_offline(), "{failed}");
    assert_eq!(a.status().await.expect("a status").pending, 2);
    all.server.kit().room = None;
    // The batch is completed, and what the hub will never accept waits for a decision.
    let report = sync(&a, &SyncOptions::new()).await;
    assert_eq!(report.confirmed, 1);
    let conflict = a.next_conflict().await.expect("asked").expect("one");
    assert!(matches!(&conflict.why, Why::Refused(reason) if reason.contains("JSON")), "{:?}", conflict.why);
    assert_eq!(report.waiting, Some(conflict.batch));
    let pending = a.pending();
    assert!(pending.iter().all(|batch| !matches!(batch.status, Status::Rejected(_))));
    assert_eq!(all.server.ids(), ["1", "2"]);
}

#[tokio::test]
async fn an_older_copy_of_a_hub_of_the_kit_is_noticed_and_loses_nothing_of_ones_own() {
    let all = Replicas::new().await;
    let a = all.open("a").await;
    for id in ["1", "2", "3"] {
        a.append(event(id, "x")).await.expect("appended");
        sync(&a, &SyncOptions::new()).await;
    }
    {
        let mut kit = all.server.kit();
        kit.events.truncate(1);
        kit.last = 1;
        kit.write("g1", "y");
    }
    let other = a.sync_once(&SyncOptions::new()).await.expect_err("another history");
    assert!(matches!(other, synckit::Error::AnotherHistory { .. }), "{other}");
    sync(&a, &SyncOptions::new().resolver(KeepBoth).accept_history()).await;
    assert_eq!(all.server.ids(), ["1", "g1", "2", "3"]);
    assert_eq!(ids(&a).await, ["1", "g1", "2", "3"]);
}

#[tokio::test]
async fn a_live_replica_follows_a_hub_of_the_kit() {
    let all = Replicas::new().await;
    let a = all.open("a").await;
    let options = SyncOptions::new();
    let running = tokio::spawn({
        let (a, options) = (a.clone(), options.clone());
        async move { a.run(&options).await }
    });
    let mut notices = a.subscribe(eventstore::Cursor::START);
    let mut confirmed = async || {
        let next = async {
            loop {
                if let synckit::Notice::Confirmed { event, .. } = notices.next().await.expect("a notice") {
                    return event.event.id().to_owned();
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), next).await.expect("confirmed")
    };
    all.server.kit().write("g1", "x");
    assert_eq!(confirmed().await, "g1");
    a.append(event("a1", "x")).await.expect("appended");
    assert_eq!(confirmed().await, "a1");
    assert_eq!(all.server.ids(), ["g1", "a1"]);
    options.stop.cancel();
    running.await.expect("no panic").expect("stopped");
}

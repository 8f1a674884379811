//! The resources of docs/wire.md, over plain HTTP.

mod common;

use common::{Running, event, memory};
use eventstore_server::{Limits, Server, Stores, Tokens};
use serde_json::{Value, json};
use std::time::Duration;

fn versions(page: &Value) -> Vec<u64> {
    page["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| event["version"].as_u64().expect("a number"))
        .collect()
}

async fn with_events(count: usize) -> Running {
    let server = Running::start(Server::new(memory().await)).await;
    let events: Vec<_> = (1..=count)
        .map(|n| event(&format!("e{n}"), if n % 2 == 0 { "Even" } else { "Odd" }, &format!("a{}", n % 3)))
        .collect();
    server.post("/events", &format!("[{}]", events.join(","))).await.ok();
    server
}

#[tokio::test]
async fn what_was_appended_is_read_back() {
    let server = Running::start(Server::new(memory().await)).await;
    let one = r#"{"id":"o1","type":"OrderPlaced","aggregate_id":"order-42","data":{"total": 12.50,"b":1}}"#;
    let stored = server.post("/events?expected=none", one).await.ok();
    assert_eq!(stored, json!({ "stored": [{ "id": "o1", "version": 1, "revision": 1, "outcome": "written" }] }));
    let again = server.post("/events", one).await.ok();
    assert_eq!(again["stored"][0]["outcome"], "already_stored");
    let read = server.get("/event?id=o1").await;
    assert!(read.text().contains(r#""data":{"total": 12.50,"b":1}"#), "byte for byte: {}", read.text());
    assert_eq!(server.get("/latest").await.ok(), json!({ "version": 1 }));
    let cursor = server.get("/latest?cursor").await.ok()["cursor"].as_str().expect("a cursor").to_owned();
    assert!(cursor.starts_with("1-"));
    assert_eq!(
        server.get("/revision?aggregate=order-42").await.ok(),
        json!({ "aggregate_id": "order-42", "revision": 1 })
    );
    let aggregates = server.get("/aggregates?prefix=order-").await.ok();
    assert_eq!(aggregates["aggregates"], json!([{ "aggregate_id": "order-42", "revision": 1, "version": 1 }]));
    let digest = server.get("/digest").await.ok();
    assert_eq!(digest["version"], 1);
    assert!(digest["digest"].as_str().expect("text").starts_with(&cursor[2..]));
    let stats = server.get("/stats").await.ok();
    assert_eq!((&stats["latest_version"], &stats["server"]["followers"]), (&json!(1), &json!(0)));
    // For an event without an id, the answer has the generated one.
    let nameless = r#"{"type":"OrderPaid","aggregate_id":"order-7"}"#;
    let batch = format!("{nameless}\n{}\n{nameless}", event("o2", "OrderPaid", "order-7"));
    let lines = [("content-type", "application/x-ndjson")];
    let stored = server.request("POST", "/events", &lines, batch.as_bytes()).await.ok();
    assert_eq!(stored["stored"][1]["id"], "o2");
    for place in [0, 2] {
        let place = &stored["stored"][place];
        let found = server.get(&format!("/event?id={}", place["id"].as_str().expect("an id"))).await.ok();
        assert_eq!((&found["version"], &found["revision"]), (&place["version"], &place["revision"]));
    }
    server.stop().await;
}

#[tokio::test]
async fn pages_lead_to_the_next_in_both_directions() {
    let server = with_events(20).await;
    for direction in ["forward", "backward"] {
        let (mut query, mut all) = (format!("direction={direction}&page_events=7"), Vec::new());
        loop {
            let page = server.get(&format!("/events?{query}")).await.ok();
            all.extend(versions(&page));
            // Appended during the load, and not visible in it (rule O5).
            server.post("/events", &event(&format!("later-{}", all.len()), "Later", "b")).await;
            match page["next"].as_str() {
                Some(next) => query = format!("{next}&page_events=7"),
                None => break,
            }
        }
        let head = all.iter().copied().max().expect("events");
        all.sort_unstable();
        assert_eq!(all, (1..=head).collect::<Vec<_>>(), "{direction}");
    }
    let even = server.get("/events?type=Even&aggregate=a1&limit=2").await.ok();
    assert_eq!(versions(&even), [4, 10]);
    assert_eq!(versions(&server.get("/events?aggregate=a0&since_revision=5").await.ok()), [18]);
    assert_eq!(versions(&server.get("/events?since=18&before=20").await.ok()), [19]);
    assert!(versions(&server.get("/events?recorded_before=1999-01-01T00:00:00Z").await.ok()).is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_cursor_of_another_history_is_refused() {
    let server = with_events(3).await;
    let cursor = server.get("/latest?cursor").await.ok()["cursor"].as_str().expect("a cursor").to_owned();
    assert!(versions(&server.get(&format!("/events?since={cursor}")).await.ok()).is_empty());
    for path in ["/events?since=3-00000000", "/follow?since=3-00000000", "/events?since=9-12345678"] {
        let refused = server.get(path).await;
        assert_eq!((refused.status, refused.code().as_str()), (410, "history_diverged"), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn errors_are_problems_with_their_status() {
    let server = with_events(3).await;
    let conflict = server.post("/events?expected=revision%3D7", &event("new", "T", "a1")).await;
    assert_eq!((conflict.status, conflict.code().as_str()), (409, "version_conflict"));
    let problem = conflict.json();
    assert_eq!(
        (&problem["expected"], &problem["written"], &problem["retryable"]),
        (&json!("revision=7"), &json!("nothing"), &json!(false))
    );
    assert_eq!(problem["actual"], json!({ "aggregate_id": "a1", "revision": 1 }));
    let duplicate = server.post("/events", &event("e1", "Other", "a1")).await;
    assert_eq!(
        (duplicate.status, duplicate.code().as_str(), &duplicate.json()["version"]),
        (409, "duplicate_event", &json!(1))
    );
    for (path, status, code) in [
        ("/event?id=none", 404, "event_not_found"),
        ("/event", 400, "invalid_option"),
        ("/events?sinse=1", 400, "invalid_option"),
        ("/events?since=x", 400, "invalid_version"),
        ("/events?limit=-1", 400, "invalid_option"),
        ("/events?timeout=soon", 400, "invalid_option"),
        ("/nothing", 404, "not_found"),
        ("/stores/x/events", 404, "not_found"),
        ("/stores", 404, "not_found"),
        ("/verify", 405, "method_not_allowed"),
        ("/wait?after=3&timeout=20ms", 504, "deadline_exceeded"),
        ("/follow?direction=backward", 400, "invalid_option"),
        ("/backup?id=none", 404, "not_found"),
        ("/backup", 400, "invalid_option"),
        ("/pull?since=3", 400, "invalid_option"),
        ("/?x=1", 400, "invalid_option"),
        ("/event?id=%FF", 400, "invalid_option"),
        ("/metrics", 404, "not_found"),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
        let told = answer.json()["detail"].to_string();
        assert_eq!(told.contains("serves one store"), path.starts_with("/stores"), "{told}");
    }
    for (body, status, code) in [
        (r#"{"type":"","aggregate_id":"a"}"#, 422, "invalid_event"),
        ("{", 422, "invalid_event"),
        (r#"[{"type":"T"}]"#, 422, "invalid_event"),
    ] {
        let answer = server.post("/events", body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}");
    }
    for (headers, status, code) in [
        (&[("content-type", "text/plain")][..], 415, "unsupported_media_type"),
        (&[], 415, "unsupported_media_type"),
        (&[("content-type", "application/vnd.eventstore.v1")], 400, "malformed"),
    ] {
        let answer = server.request("POST", "/events", headers, event("x", "T", "a").as_bytes()).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{headers:?}");
    }
    let answer = server.request("GET", "/events", &[("accept", "image/png")], b"").await;
    assert_eq!((answer.status, answer.code().as_str()), (406, "not_acceptable"));
    assert_eq!(server.get("/latest").await.ok()["version"], 3, "nothing was written");
    server.stop().await;
}

#[tokio::test]
async fn a_wait_ends_with_the_next_event() {
    let server = with_events(1).await;
    let (waiting, new) = (server.get("/wait?after=1"), event("new", "T", "a"));
    let (latest, _) = tokio::join!(waiting, server.post("/events", &new));
    assert_eq!(latest.ok()["version"], 2);
    server.stop().await;
}

#[tokio::test]
async fn a_follower_gets_every_event_once_and_in_order() {
    let server = with_events(3).await;
    let mut all = server.stream("/follow", &[]).await;
    let mut odd = server.stream("/follow?since=1&type=Odd&limit=2", &[]).await;
    for version in 1..=3 {
        assert_eq!(all.event().await["event"]["version"], version);
    }
    for n in 4..=40 {
        server.post("/events", &event(&format!("e{n}"), if n % 2 == 0 { "Even" } else { "Odd" }, "b")).await.ok();
    }
    for version in 4..=40 {
        assert_eq!(all.event().await["event"]["version"], version);
    }
    assert_eq!(odd.event().await["event"]["version"], 3);
    assert_eq!(odd.event().await["event"]["version"], 5);
    assert_eq!(odd.next().await, None, "it had a limit");
    let stats = server.get("/stats").await.ok();
    assert_eq!(stats["server"]["followers"], 1);
    server.ask_to_stop();
    assert_eq!(all.event().await["end"]["code"], "unavailable");
    assert_eq!(all.next().await, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_that_come_and_go_miss_nothing() {
    let server = std::sync::Arc::new(with_events(1).await);
    let followers: Vec<_> = (0..8)
        .map(|_| {
            let server = server.clone();
            tokio::spawn(async move {
                let mut seen = 0;
                while seen < 300 {
                    let mut stream = server.stream(&format!("/follow?since={seen}&limit=15"), &[]).await;
                    for _ in 0..15 {
                        seen += 1;
                        assert_eq!(stream.event().await["event"]["version"], seen);
                    }
                }
            })
        })
        .collect();
    for n in 2..=300 {
        server.post("/events", &event(&format!("e{n}"), "T", "b")).await.ok();
    }
    for follower in followers {
        follower.await.expect("nothing was missed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_with_filters_get_what_matches_whenever_they_come() {
    // With the type and the aggregate of an event that matches.
    const FILTERS: [(&str, &str, &str); 7] = [
        ("", "T", "c"),
        ("&aggregate=a1", "T", "a1"),
        ("&aggregate=missing", "T", "missing"),
        ("&type=T2", "T2", "c"),
        ("&type=T1&type=T3", "T3", "c"),
        ("&aggregate_prefix=a", "T", "a9"),
        ("&aggregate=b1&type=T1", "T1", "b1"),
    ];
    let server = std::sync::Arc::new(with_events(1).await);
    let follow = |nth: usize| {
        let server = server.clone();
        async move {
            let (mut since, mut seen, end) = (0, Vec::new(), format!("end-{nth}"));
            loop {
                let path = format!("/follow?since={since}&limit=9{}", FILTERS[nth].0);
                let mut stream = server.stream(&path, &[]).await;
                for _ in 0..9 {
                    let line = stream.event().await;
                    since = line["event"]["version"].as_u64().unwrap_or_else(|| panic!("{line}"));
                    seen.push(since);
                    if line["event"]["id"] == end {
                        return seen;
                    }
                }
            }
        }
    };
    let followers: Vec<_> = (0..FILTERS.len()).map(|nth| tokio::spawn(follow(nth))).collect();
    for n in 2..=400 {
        let aggregate = format!("{}{}", ["a", "b"][n % 2], n % 3);
        server.post("/events", &event(&format!("e{n}"), &format!("T{}", n % 5), &aggregate)).await.ok();
    }
    for (nth, (_, event_type, aggregate_id)) in FILTERS.into_iter().enumerate() {
        server.post("/events", &event(&format!("end-{nth}"), event_type, aggregate_id)).await.ok();
    }
    for (nth, follower) in followers.into_iter().enumerate() {
        let seen = tokio::time::timeout(common::LONG, follower).await.expect("it ends").expect("no panic");
        let last = seen.last().expect("some");
        let path = format!("/events?page_events=10000&before={}{}", last + 1, FILTERS[nth].0);
        assert_eq!(seen, versions(&server.get(&path).await.ok()), "{:?}", FILTERS[nth]);
    }
}

#[tokio::test]
async fn heartbeats_tell_how_far_was_looked_where_nothing_matches() {
    let mut limits = Limits::default();
    limits.heartbeat = Duration::from_millis(20);
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let mut streams = Vec::new();
    for filter in ["aggregate=missing", "type=Missing", "aggregate_prefix=missing"] {
        let mut stream = server.stream(&format!("/follow?{filter}"), &[]).await;
        stream.next().await.expect("it follows");
        streams.push(stream);
    }
    server.post("/events", &format!("[{},{}]", event("1", "T", "a"), event("2", "T", "b"))).await.ok();
    for stream in &mut streams {
        let mut lines = 0;
        while stream.next().await.expect("it goes on") != r#"{"heartbeat":{"head":2}}"# {
            lines += 1;
            assert!(lines < 500, "its heartbeats stay behind");
        }
    }
    // Matching events are still returned.
    server.post("/events", &event("3", "Missing", "missing")).await.ok();
    for stream in &mut streams {
        assert_eq!(stream.event().await["event"]["version"], 3);
    }
    server.stop().await;
}

#[tokio::test]
async fn server_sent_events_have_ids_and_go_on() {
    let server = with_events(2).await;
    let mut stream = server.stream("/follow?since=1", &[("accept", "text/event-stream")]).await;
    let mut lines = Vec::new();
    while lines.len() < 3 {
        lines.extend(stream.next().await.filter(|line| !line.starts_with(':')));
    }
    assert_eq!(lines[..2], ["id: 2", "event: event"]);
    let data: Value = serde_json::from_str(lines[2].strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!(data["version"], 2);
    drop(stream);
    let mut stream = server.stream("/follow", &[("accept", "text/event-stream"), ("last-event-id", "2")]).await;
    server.post("/events", &event("new", "T", "a")).await.ok();
    loop {
        let line = stream.next().await.expect("a line");
        if let Some(id) = line.strip_prefix("id: ") {
            assert_eq!(id, "3");
            break;
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn heartbeats_come_while_nothing_happens() {
    let mut limits = Limits::default();
    limits.heartbeat = Duration::from_millis(20);
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let mut stream = server.stream("/follow", &[]).await;
    for _ in 0..5 {
        assert_eq!(stream.next().await.as_deref(), Some(r#"{"heartbeat":{"head":0}}"#));
    }
    // It is still notified of new events.
    server.post("/events", &event("new", "T", "a")).await.ok();
    assert_eq!(stream.event().await["event"]["id"], "new");
    server.stop().await;
}

#[tokio::test]
async fn work_tells_how_it_ended() {
    let server = with_events(5).await;
    for (path, member) in [("/verify", "events"), ("/gc", "actions")] {
        let answer = server.request("POST", path, &[], b"").await;
        let last: Value = serde_json::from_str(answer.text().lines().last().expect("a line")).expect("JSON");
        assert!(last["result"].get(member).is_some(), "{path}: {last}");
    }
    let answer = server.request("POST", "/backup", &[], b"").await;
    let last: Value = serde_json::from_str(answer.text().lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["error"]["code"], "unsupported", "a store in memory has no backups");
    server.stop().await;
}

#[tokio::test]
async fn a_backup_is_taken_once_and_opens() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("lmdb:{}", directory.path().join("store").display());
    let server = Running::start(Server::new(eventstore::open(&url).await.expect("opened"))).await;
    server.post("/events", &event("e1", "T", "a")).await.ok();
    let answer = server.request("POST", "/backup", &[], b"").await;
    let last: Value = serde_json::from_str(answer.text().lines().last().expect("a line")).expect("JSON");
    let id = last["result"]["id"].as_str().expect("an id");
    let archive = server.get(&format!("/backup?id={id}")).await;
    assert_eq!((archive.status, archive.header("content-type")), (200, "application/x-tar"));
    let target = directory.path().join("taken");
    tar::Archive::new(archive.body.as_slice()).unpack(&target).expect("an archive");
    assert_eq!(server.get(&format!("/backup?id={id}")).await.code(), "not_found");
    let backup = eventstore::open(&format!("lmdb:{}", target.display())).await.expect("it opens");
    assert_eq!(backup.get("e1").await.expect("there").version.get(), 1);
    server.stop().await;
}

#[tokio::test]
async fn replicas_pull_and_push_on_the_same_history_only() {
    let server = with_events(2).await;
    let digest = |until: u64| {
        let path = format!("/digest?until={until}");
        let server = &server;
        async move { server.get(&path).await.ok()["digest"].as_str().expect("text").to_owned() }
    };
    let (one, two) = (digest(1).await, digest(2).await);
    assert_eq!(versions(&server.get(&format!("/pull?since=1&digest={one}")).await.ok()), [2]);
    assert_eq!(versions(&server.get("/pull").await.ok()), [1, 2]);
    for path in [format!("/pull?since=1&digest={two}"), format!("/pull?since=7&digest={two}")] {
        assert_eq!(server.get(&path).await.code(), "history_diverged", "{path}");
    }
    let batches = json!([
        { "events": [serde_json::from_str::<Value>(&event("p1", "T", "new")).expect("JSON")], "expected": "none" },
        { "events": [serde_json::from_str::<Value>(&event("p2", "T", "new")).expect("JSON")], "expected": "none" },
        { "events": [serde_json::from_str::<Value>(&event("p3", "T", "new")).expect("JSON")] },
    ]);
    let other = server.post(&format!("/push?at=2&digest={one}"), &batches.to_string()).await;
    assert_eq!(other.code(), "history_diverged");
    assert_eq!(server.get("/latest").await.ok()["version"], 2, "nothing was written");
    let pushed = server.post(&format!("/push?at=2&digest={two}"), &batches.to_string()).await.ok();
    assert_eq!(pushed["stored"], json!([[{ "version": 3, "revision": 1, "outcome": "written" }]]));
    assert_eq!((&pushed["refused"]["code"], &pushed["head"]), (&json!("version_conflict"), &json!(3)));
    server.stop().await;
}

const READER: &str = "reader-0123456789abcdef";
const WRITER: &str = "writer-0123456789abcdef";
const KEEPER: &str = "keeper-0123456789abcdef";

fn tokens() -> Tokens {
    format!("{READER} read *\n{WRITER} write,create tenant-*\n{KEEPER} admin tenant-1\n").parse().expect("valid")
}

#[tokio::test]
async fn stores_of_a_directory_are_apart_and_made_by_those_who_may() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::new(directory.path()).most_open(2);
    let server = Running::start(Server::of_many(stores).tokens(tokens())).await;
    let as_who = |token: &str, method: &'static str, path: String, body: String| {
        let (server, header) = (&server, format!("Bearer {token}"));
        async move {
            let headers = [("authorization", header.as_str()), ("content-type", "application/json")];
            server.request(method, &path, &headers, body.as_bytes()).await
        }
    };
    let none = String::new;
    assert_eq!(server.get("/stores/tenant-1/events").await.code(), "unauthorized");
    assert_eq!(as_who(READER, "GET", "/stores/tenant-1/events".into(), none()).await.code(), "not_found");
    let above = as_who(READER, "GET", "/events".into(), none()).await;
    assert!(above.json()["detail"].to_string().contains("below /stores/NAME"), "{}", above.json());
    assert_eq!(as_who(READER, "PUT", "/stores/tenant-1".into(), none()).await.code(), "forbidden");
    assert_eq!(as_who(WRITER, "PUT", "/stores/other".into(), none()).await.code(), "forbidden");
    for n in 1..=4 {
        let path = format!("/stores/tenant-{n}");
        let made = as_who(WRITER, "PUT", path.clone(), none()).await;
        assert_eq!((made.status, &made.json()["name"]), (201, &json!(format!("tenant-{n}"))));
        assert_eq!(as_who(WRITER, "PUT", path.clone(), none()).await.status, 200, "again");
        let appended = as_who(WRITER, "POST", format!("{path}/events"), event(&format!("of-{n}"), "T", "a")).await;
        assert_eq!(appended.ok()["stored"][0]["version"], 1);
    }
    // More than may be open at the same time.
    for n in (1..=4).rev() {
        let page = as_who(READER, "GET", format!("/stores/tenant-{n}/events"), none()).await.ok();
        assert_eq!(page["events"][0]["id"], format!("of-{n}"));
    }
    assert_eq!(
        as_who(READER, "POST", "/stores/tenant-1/events".into(), event("x", "T", "a")).await.code(),
        "forbidden"
    );
    assert_eq!(as_who(WRITER, "POST", "/stores/tenant-1/verify".into(), none()).await.code(), "forbidden");
    assert_eq!(as_who(KEEPER, "POST", "/stores/tenant-1/verify".into(), none()).await.status, 200);
    assert_eq!(as_who(KEEPER, "POST", "/stores/tenant-2/verify".into(), none()).await.code(), "forbidden");
    let listed = |token| as_who(token, "GET", "/stores".into(), none());
    assert_eq!(listed(READER).await.ok()["stores"], json!(["tenant-1", "tenant-2", "tenant-3", "tenant-4"]));
    assert_eq!(listed(KEEPER).await.ok()["stores"], json!(["tenant-1"]));
    assert_eq!(as_who(KEEPER, "GET", "/metrics".into(), none()).await.code(), "forbidden", "they are of all stores");
    for name in ["..", "%2e%2e", "..%2f..%2fetc", "A", ".x", "%00", "a%2Fb"] {
        let answer = as_who(WRITER, "PUT", format!("/stores/{name}"), none()).await;
        assert!(matches!(answer.status, 400 | 403 | 404), "{name}: {answer:?}");
        answer.code();
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 4);
    assert_eq!(
        std::fs::read_dir(directory.path().parent().expect("one"))
            .expect("there")
            .filter(|e| e.as_ref().is_ok_and(|e| e.path() == directory.path()))
            .count(),
        1
    );
    server.stop().await;
}

#[tokio::test]
async fn all_stores_in_use_is_too_many_and_unused_ones_are_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = || Stores::new(directory.path()).most_open(1);
    let server = Running::start(Server::of_many(stores())).await;
    server.request("PUT", "/stores/one", &[], b"").await;
    let mut following = server.stream("/stores/one/follow", &[]).await;
    assert_eq!(server.request("PUT", "/stores/two", &[], b"").await.code(), "too_many");
    server.post("/stores/one/events", &event("e", "T", "a")).await.ok();
    assert_eq!(following.event().await["event"]["id"], "e", "the other goes on");
    drop(following);
    // The server notices that the client is gone when it sends to it or checks the connection.
    loop {
        server.post("/stores/one/events", r#"{"type":"T","aggregate_id":"a"}"#).await;
        if server.request("PUT", "/stores/two", &[], b"").await.status == 201 {
            break;
        }
        tokio::task::yield_now().await;
    }
    server.stop().await;
    let server = Running::start(Server::of_many(stores().idle(Duration::from_millis(50)))).await;
    server.get("/stores/one/latest").await.ok();
    // Once it is closed, somebody else can open it.
    let url = format!("lmdb:{}", directory.path().join("one").display());
    while eventstore::open(&url).await.is_err() {
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn limits_hold() {
    let mut limits = Limits::default();
    limits.followers = 1;
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let following = server.stream("/follow", &[]).await;
    let second = server.get("/follow").await;
    assert_eq!((second.status, second.code().as_str()), (429, "too_many"));
    drop(following);
    let headers = [("content-type", "application/json"), ("content-length", "99999999999")];
    let large = server.request("POST", "/events", &headers[..1], &vec![b' '; 66 << 20]).await;
    assert_eq!((large.status, large.code().as_str()), (413, "too_large"));
    // Ten kilobytes that expand to ten megabytes, and ten that expand to a hundred.
    let mut bomb = Vec::new();
    for (len, status) in [(10 << 20, 422), (100 << 20, 413)] {
        bomb.clear();
        let mut encoder = flate2::write::GzEncoder::new(&mut bomb, flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, &vec![b'7'; len]).expect("written");
        encoder.finish().expect("finished");
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        assert_eq!(server.request("POST", "/events", &headers, &bomb).await.status, status);
    }
    server.stop().await;
}

#[tokio::test]
async fn compressed_bodies_are_read_to_their_end() {
    let server = Running::start(Server::new(memory().await)).await;
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).expect("written");
        encoder.finish().expect("finished")
    };
    let send = |body: Vec<u8>, encoding: &'static str| {
        let server = &server;
        async move {
            let headers = [("content-type", "application/x-ndjson"), ("content-encoding", encoding)];
            server.request("POST", "/events", &headers, &body).await
        }
    };
    // Two concatenated files.
    let both = [gzip(&format!("{}\n", event("one", "T", "a"))), gzip(&event("two", "T", "a"))].concat();
    assert_eq!(send(both, "gzip").await.ok()["stored"].as_array().expect("places").len(), 2);
    let mut cut = gzip(&event("three", "T", "a"));
    cut.truncate(cut.len() - 3);
    assert_eq!(send(cut, "gzip").await.code(), "malformed");
    assert_eq!(send([gzip(&event("four", "T", "a")), b"more".to_vec()].concat(), "gzip").await.code(), "malformed");
    let other = send(b"x".to_vec(), "br").await;
    assert_eq!((other.status, other.code().as_str()), (415, "unsupported_media_type"));
    assert_eq!(server.get("/latest").await.ok()["version"], 2);
    server.stop().await;
}

#[tokio::test]
async fn a_slow_upload_ends_with_its_timeout_and_holds_up_nobody() {
    let mut limits = Limits::default();
    limits.body_bytes = 256 << 10;
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = tokio::net::TcpStream::connect(&server.address).await.expect("connected");
        let head = "POST /events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n \r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("written");
        slow.push(stream);
    }
    let head = server.head("POST", "/events?timeout=50ms", &[("content-type", "application/json")], 9);
    let mut stream = tokio::net::TcpStream::connect(&server.address).await.expect("connected");
    tokio::io::AsyncWriteExt::write_all(&mut stream, &head).await.expect("written");
    assert_eq!(common::answer(stream).await.code(), "deadline_exceeded");
    drop(slow);
    // Nothing is written by an attempt for which there is no room yet.
    let there_is_room = async {
        loop {
            match server.post("/events", &event("one", "T", "a")).await {
                full if full.status == 429 => {}
                answer => break answer.ok(),
            }
        }
    };
    tokio::time::timeout(common::LONG, there_is_room).await.expect("there is room");
    server.stop().await;
}

#[tokio::test]
async fn heartbeats_come_beside_events_that_do_not_match() {
    let mut limits = Limits::default();
    limits.heartbeat = Duration::from_millis(30);
    let server = std::sync::Arc::new(Running::start(Server::new(memory().await).limits(limits)).await);
    let mut stream = server.stream("/follow?type=Never", &[]).await;
    let writer = {
        let server = server.clone();
        tokio::spawn(async move {
            for n in 0.. {
                server.post("/events", &event(&format!("e{n}"), "T", "a")).await.ok();
            }
        })
    };
    // And they report how far the filter has come.
    loop {
        let line: Value = serde_json::from_str(&stream.next().await.expect("a line")).expect("JSON");
        if line["heartbeat"]["head"].as_u64().expect("a heartbeat") > 20 {
            break;
        }
    }
    writer.abort();
}

#[tokio::test]
async fn what_an_event_source_has_seen_takes_the_place_of_since() {
    let server = with_events(5).await;
    let mut stream = server.stream("/follow?since=4", &[("last-event-id", "2")]).await;
    assert_eq!(stream.event().await["event"]["version"], 3);
    let refused = server.request("GET", "/follow", &[("last-event-id", "x")], b"").await;
    assert_eq!(refused.code(), "invalid_version");
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_backup_outlives_the_closing_of_its_store_and_a_look_at_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::new(directory.path()).most_open(1);
    let server = Running::start(Server::of_many(stores)).await;
    server.request("PUT", "/stores/one", &[], b"").await;
    server.post("/stores/one/events", &event("e", "T", "a")).await.ok();
    let made = server.request("POST", "/stores/one/backup", &[], b"").await;
    let last: Value = serde_json::from_str(made.text().lines().last().expect("a line")).expect("JSON");
    let path = format!("/stores/one/backup?id={}", last["result"]["id"].as_str().expect("an id"));
    assert_eq!(server.request("PUT", "/stores/two", &[], b"").await.status, 201, "the first one is closed");
    assert_eq!(server.request("HEAD", &path, &[], b"").await.status, 405);
    assert_eq!(server.get(&path.replace("one", "two")).await.code(), "not_found", "it is not of that store");
    assert_eq!(server.get(&path).await.status, 200);
    assert_eq!(server.get(&path).await.code(), "not_found");
    assert_eq!(server.get("/stores/one/backup").await.code(), "invalid_option");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_given_up_leave_no_store_half_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Running::start(Server::of_many(Stores::new(directory.path()).most_open(1))).await;
    for name in ["one", "two"] {
        server.request("PUT", &format!("/stores/{name}"), &[], b"").await;
    }
    for n in 0..60 {
        let path = format!("/stores/{}/latest", if n % 2 == 0 { "one" } else { "two" });
        let mut given_up = tokio::net::TcpStream::connect(&server.address).await.expect("connected");
        tokio::io::AsyncWriteExt::write_all(&mut given_up, &server.head("GET", &path, &[], 0)).await.expect("written");
        for _ in 0..n % 7 {
            tokio::task::yield_now().await;
        }
        drop(given_up);
        let answer = server.get(&path).await;
        assert!(matches!(answer.status, 200 | 429), "{answer:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_read_only_server_of_many_makes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = eventstore::open(&format!("lmdb:{}", directory.path().join("one").display())).await.expect("opened");
    made.append(eventstore::Event::builder("T", "a").build().expect("valid")).await.expect("stored");
    made.close().await.expect("closed");
    std::fs::create_dir(directory.path().join("empty")).expect("created");
    let stores = Stores::new(directory.path()).read_only(true);
    let server = Running::start(Server::of_many(stores).read_only(true)).await;
    assert_eq!(server.get("/stores/one/latest").await.ok()["version"], 1);
    assert_eq!(server.get("/stores/empty/latest").await.code(), "not_found");
    assert_eq!(server.request("PUT", "/stores/new", &[], b"").await.code(), "forbidden");
    assert_eq!(server.get("/stores").await.ok()["stores"], json!(["one"]));
    assert_eq!(std::fs::read_dir(directory.path().join("empty")).expect("there").count(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_session_is_a_websocket_of_its_protocol() {
    let server = Running::start(Server::new(memory().await)).await;
    assert_eq!(server.get("/appends").await.code(), "malformed");
    for protocol in ["", "eventstore.v2"] {
        let mut headers = vec![
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ];
        headers.extend((!protocol.is_empty()).then_some(("sec-websocket-protocol", protocol)));
        let head = String::from_utf8(server.head("GET", "/appends", &headers, 0)).expect("text");
        let mut stream = tokio::net::TcpStream::connect(&server.address).await.expect("connected");
        let head = head.replace("connection: close", "connection: upgrade");
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("written");
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await.expect("shut down");
        let answer = common::answer_of_one(stream).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{protocol:?}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn tokens_that_are_replaced_end_what_was_opened_with_them_and_leave_the_rest() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let tokens: Tokens = format!("{READER} read *\n{WRITER} write *\n{KEEPER} read *\n").parse().expect("valid");
    let server = Running::start(Server::new(memory().await).tokens(tokens.clone())).await;
    let of = |token: &str| format!("Bearer {token}");
    let (reader, writer, keeper) = (of(READER), of(WRITER), of(KEEPER));
    let mut stays = server.stream("/follow", &[("authorization", &reader)]).await;
    let mut goes = server.stream("/follow", &[("authorization", &writer)]).await;
    let mut changes = server.stream("/sync/sse", &[("authorization", &keeper)]).await;
    for lines in [&mut stays, &mut goes, &mut changes] {
        lines.next().await.expect("it follows");
    }
    let session = [
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ("sec-websocket-protocol", "eventstore.v1"),
        ("authorization", writer.as_str()),
    ];
    let head = String::from_utf8(server.head("GET", "/appends", &session, 0)).expect("text");
    let mut session = tokio::net::TcpStream::connect(&server.address).await.expect("connected");
    session.write_all(head.replace("connection: close", "connection: upgrade").as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(session.read_u8().await.expect("an answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));

    const NEW: &str = "brand-new-0123456789abcdef";
    // One is unchanged, one is missing, one has other rights, one is new.
    let text = format!("{NEW} write *\n{KEEPER} write *\n{READER} read *\n");
    tokens.replace(text.parse().expect("valid"));
    let end = goes.event().await;
    assert_eq!(end["end"]["code"], "unauthorized", "{end}");
    assert!(goes.next().await.is_none(), "it ends");
    // A comment, behind heartbeats that are comments as well.
    while !changes.next().await.expect("a reason").contains("unauthorized") {}
    let mut frame = [0; 4];
    session.read_exact(&mut frame).await.expect("a frame");
    assert_eq!((frame[0], u16::from_be_bytes([frame[2], frame[3]])), (0x88, 1008), "closed for a reason of rights");
    let append = |token: &str, id: &str| {
        let (server, token, body) = (&server, of(token), event(id, "T", "a"));
        async move {
            let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
            server.request("POST", "/events", &headers, body.as_bytes()).await
        }
    };
    assert_eq!(append(WRITER, "e1").await.code(), "unauthorized");
    assert_eq!(append(READER, "e1").await.code(), "forbidden");
    assert_eq!(append(NEW, "e1").await.ok()["stored"][0]["version"], 1);
    assert_eq!(append(KEEPER, "e2").await.ok()["stored"][0]["version"], 2);
    assert_eq!(stays.event().await["event"]["id"], "e1");
    // Setting the same tokens again changes nothing.
    tokens.replace(text.parse().expect("valid"));
    assert_eq!(stays.event().await["event"]["id"], "e2");
    assert_eq!(append(NEW, "e3").await.status, 200);
    assert_eq!(stays.event().await["event"]["id"], "e3");
    server.stop().await;
}

#[tokio::test]
async fn a_server_for_this_machine_answers_no_other_origin() {
    let server = Running::start(Server::new(memory().await).only_this_machine()).await;
    assert_eq!(server.get("/latest").await.status, 200);
    for headers in [[("host", "example.com")], [("origin", "http://example.com")], [("sec-fetch-site", "cross-site")]] {
        let answer = server.request("GET", "/latest", &headers, b"").await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"), "{headers:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_read_only_server_refuses_appends() {
    let server = Running::start(Server::new(memory().await).read_only(true)).await;
    assert_eq!(server.post("/events", &event("e", "T", "a")).await.code(), "forbidden");
    assert_eq!(server.get("/latest").await.ok()["version"], 0);
    let info = server.request("GET", "/", &[("accept", "application/json")], b"").await.ok();
    assert_eq!((&info["writable"], &info["wire"]), (&json!(false), &json!([1])));
    server.stop().await;
}

#[tokio::test]
async fn a_router_answers_below_the_path_where_it_stands() {
    let router = Server::new(memory().await).router();
    let app = axum::Router::new().nest("/es", router);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    let get = |path: &'static str, accept: &'static str| async move {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        common::plain(stream, path, accept).await
    };
    assert_eq!(get("/es/latest", "*/*").await.ok()["version"], 0);
    assert_eq!(get("/es", "*/*").await.ok()["wire"], json!([1]));
    let page = get("/es", "text/html").await;
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    assert!(page.text().contains(r#"src="./es/page.js""#) && page.text().contains(r#"href="./es/page.css""#));
    assert_eq!(get("/es/page.js", "*/*").await.status, 200);
    assert_eq!(get("/es/health", "*/*").await.status, 200);
}

#[tokio::test]
async fn a_page_names_nothing_by_an_absolute_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let one = Running::start(Server::new(memory().await)).await;
    let many = Running::start(Server::of_many(Stores::new(directory.path()))).await;
    assert_eq!(many.request("PUT", "/stores/a.b", &[], b"").await.status, 201);
    for (server, path, base) in
        [(&one, "/", "."), (&many, "/", "."), (&many, "/stores/a.b", "./a.b"), (&many, "/stores/a.b/", ".")]
    {
        let page = server.request("GET", path, &[("accept", "text/html")], b"").await;
        for name in [format!(r#"src="{base}/page.js""#), format!(r#"href="{base}/page.css""#)] {
            assert!(page.text().contains(&name), "{path}: {name}");
        }
        assert!(!page.text().contains(r#"="/"#), "{path}");
    }
    for server in [one, many] {
        let script = server.get("/page.js").await;
        assert!(script.text().contains("const BASE = new URL('.', import.meta.url);"), "all else is relative to it");
        server.stop().await;
    }
}

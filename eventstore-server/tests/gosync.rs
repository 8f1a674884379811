//! Clients of Go Sync Kit: the answers match those of its own server, and its managers lose nothing.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use common::{Response, Running, event, memory};
use eventstore::testing::{Fault, faulty};
use eventstore_api::Error;
use eventstore_server::{Limits, Server, Stores, Tokens};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

/// A pushed event.
fn pushed(id: &str, version: u64, data: Value) -> Value {
    let event = json!({ "id": id, "type": "T", "aggregate_id": "a", "data": data, "metadata": null });
    json!({ "event": event, "version": version.to_string() })
}

async fn push(server: &Running, base: &str, events: &[Value]) -> Response {
    server.post(&format!("{base}/push"), &Value::from(events).to_string()).await
}

/// The error in an answer, in the kit's form.
#[track_caller]
fn error(response: &Response, status: u16, code: &str) -> String {
    assert_eq!((response.status, response.header("content-type")), (status, "application/json"), "{response:?}");
    let told = response.json();
    assert_eq!(told["code"], code, "{told}");
    told["error"].as_str().expect("a text").to_owned()
}

/// The ids and versions of events.
fn ids(events: &Value) -> Vec<(String, u64)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let read = |event: &Value| (text(&event["event"]["id"]), text(&event["version"]).parse().expect("a number"));
    events.as_array().expect("events").iter().map(read).collect()
}

// The answers of the kit's server.

/// A recorded request, and the answer of the kit's server. Requests without a status are handled better here than in
/// the kit; for these, only the effect counts.
#[derive(serde::Deserialize)]
struct Recorded {
    name: String,
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
    /// The members of a gzip file, or one that is cut in half.
    gzip: Option<Vec<Value>>,
    gzip_cut: Option<Value>,
    #[serde(default)]
    chunked: bool,
    /// A false Content-Length.
    claim: Option<usize>,
    status: Option<u16>,
    answer: Option<Value>,
}

/// A body is text, or a list of parts, some of which are repeated, or hexadecimal.
fn bytes(body: &Value) -> Vec<u8> {
    match body {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        Value::Array(parts) => {
            let part = |part: &Value| match part {
                Value::String(text) => text.clone(),
                part => part[0].as_str().expect("text").repeat(part[1].as_u64().expect("a number") as usize),
            };
            parts.iter().map(part).collect::<String>().into_bytes()
        }
        hex => {
            let hex = hex["hex"].as_str().expect("text").as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex");
            hex.chunks(2).map(byte).collect()
        }
    }
}

impl Recorded {
    async fn ask(&self, server: &Running, base: &str) -> Response {
        let body = match (&self.gzip, &self.gzip_cut) {
            (Some(members), _) => members.iter().flat_map(|member| gzip(&bytes(member))).collect(),
            (_, Some(cut)) => {
                let whole = gzip(&bytes(cut));
                whole[..whole.len() / 2].to_vec()
            }
            _ => bytes(&self.body),
        };
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let path = format!("{base}{}", self.path);
        if !self.chunked && self.claim.is_none() {
            return server.request(&self.method, &path, &headers, &body).await;
        }
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        let mut head = server.head(&self.method, &path, &headers, self.claim.unwrap_or_default());
        if self.chunked {
            let text = String::from_utf8(head).expect("text");
            head = text.replace("content-length: 0", "transfer-encoding: chunked").into_bytes();
        }
        stream.write_all(&head).await.expect("written");
        if self.chunked {
            for piece in body.chunks(64 << 10) {
                // The server may have seen enough.
                let _ = stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await;
                let _ = stream.write_all(piece).await;
                let _ = stream.write_all(b"\r\n").await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
        common::answer(stream).await
    }
}

/// Sends all recorded requests, and returns those with differing answers.
async fn differing(base: &str) -> Vec<String> {
    let all: Vec<Recorded> = serde_json::from_str(include_str!("gosync.json")).expect("JSON");
    assert!(all.iter().filter(|recorded| recorded.status.is_some()).count() >= 100);
    let server = Running::start(Server::new(memory().await)).await;
    let mut differing = Vec::new();
    for recorded in all {
        let answer = recorded.ask(&server, base).await;
        let Some(status) = recorded.status else { continue };
        let is_json = answer.header("content-type") == "application/json";
        let is_same = match recorded.answer {
            Some(expected) => answer.status == status && is_json && answer.json() == expected,
            None => answer.status == status && is_json && answer.json()["error"].is_string(),
        };
        if !is_same {
            differing.push(format!("{}: {}", recorded.name, answer.status));
        }
    }
    server.stop().await;
    differing
}

#[tokio::test]
async fn answers_are_those_that_were_recorded() {
    assert_eq!(differing("/sync/first-wins").await, [] as [&str; 0]);
    // What the kit's server silently drops is refused here.
    let refused = ["push, a duplicate and a new one: 409", "push, same id twice in one batch: 409"];
    assert_eq!(differing("/sync").await, refused);
}

#[tokio::test]
async fn a_replica_is_asked_for_its_newest_event_once_more() {
    let server = Running::start(Server::new(memory().await)).await;
    let base = "/sync/replicas/phone-7";
    // The default parser of the kit's client rejects 0.
    assert_eq!(server.get(&format!("{base}/latest-version")).await.ok(), "-1");
    push(&server, base, &[pushed("e1", 1, json!(1))]).await.ok();
    assert_eq!(server.get(&format!("{base}/latest-version")).await.ok(), "-1");
    push(&server, base, &[pushed("e1", 1, json!(1)), pushed("e2", 2, json!(2)), pushed("e3", 3, json!(3))]).await.ok();
    assert_eq!(server.get(&format!("{base}/latest-version")).await.ok(), "2");
    assert_eq!(server.get("/sync/latest-version").await.ok(), "3");
    for name in ["", "a%20b", "%c3%a4", &"x".repeat(101)] {
        let refused = server.get(&format!("/sync/replicas/{name}/latest-version")).await;
        error(&refused, 400, "malformed");
    }
    error(&server.get("/sync/replicas/phone-7").await, 404, "not_found");
    server.stop().await;
}

// Events.

#[tokio::test]
async fn json_comes_back_byte_for_byte_and_what_is_no_json_as_base64() {
    let server = Running::start(Server::new(memory().await)).await;
    let data = r#"{"b":1, "a":[ 9007199254740993,-0.0,1e3,18446744073709551615],"c":"\u003c<"}"#;
    let event = format!(r#"[{{"event":{{"id":"raw","data":{data},"metadata":{{ "z":1,"a":{{}} }}}},"version":"1"}}]"#);
    server.post("/sync/push", &event).await.ok();
    let pulled = server.get("/sync/pull").await;
    assert!(
        pulled.text().contains(&format!("\"data\":{data},\"metadata\":{{ \"z\":1,\"a\":{{}} }}")),
        "{}",
        pulled.text()
    );
    let stored = server.get("/event?id=raw").await;
    assert!(stored.text().contains(data), "{}", stored.text());

    // Events that others appended.
    for (id, event) in [
        ("bytes", r#""data_base64":"/wA=""#),
        ("none", r#""metadata":{"a":1}"#),
        ("lines", r#""data_base64":"WzEsCiAyXQ==""#),
        ("huge", r#""data":1e400"#),
        ("empty", r#""data":"","metadata":{ }"#),
    ] {
        let event = format!(r#"{{"id":"{id}","type":"T","aggregate_id":"(none)",{event}}}"#);
        server.post("/events", &event).await.ok();
    }
    let pulled = server.get("/sync/pull?since=1").await;
    assert!(pulled.text().contains("[1,\n 2]"), "{}", pulled.text());
    let events = pulled.json();
    let told = |n: usize, name: &str| events[n]["event"][name].clone();
    assert_eq!(told(0, "data"), json!({ "data_base64": "/wA=" }));
    assert_eq!((told(1, "data"), told(1, "metadata")), (Value::Null, json!({ "a": 1 })));
    assert_eq!(told(3, "data"), json!({ "data_base64": "MWU0MDA=" }));
    assert_eq!((told(4, "data"), told(4, "metadata")), (json!(""), json!({})));
    assert_eq!((told(0, "metadata"), told(0, "aggregate_id")), (Value::Null, json!("")));
    // As the kit's client rewrites them, they count as the same.
    let again: Vec<_> = events.as_array().expect("events").to_vec();
    push(&server, "/sync", &again).await.ok();
    let mut other = again;
    other[1]["event"]["metadata"] = json!({ "a": 2 });
    error(&push(&server, "/sync", &other).await, 409, "duplicate_event");
    assert_eq!(server.get("/sync/latest-version").await.ok(), "6");
    // A line break would end a frame.
    let mut frames = server.stream("/sync/sse", &[]).await;
    let frame = frame(&mut frames).await;
    assert_eq!((frame["events"].as_array().expect("events").len(), &frame["next_cursor"]["data"]), (6, &json!(6)));
    drop(frames);
    server.stop().await;
}

#[tokio::test]
async fn an_id_with_other_content_is_refused_and_all_others_are_stored() {
    let server = Running::start(Server::new(memory().await)).await;
    let base = "/sync/replicas/one";
    assert_eq!(server.get(&format!("{base}/latest-version")).await.ok(), "-1");
    push(&server, "/sync", &[pushed("taken", 1, json!("first"))]).await.ok();
    let events = [
        pushed("e1", 1, json!(1)),
        pushed("taken", 2, json!("second")),
        pushed(&"x".repeat(256), 3, json!(1)),
        pushed("e4", 4, json!(1)),
    ];
    let refused = push(&server, base, &events).await;
    let text = error(&refused, 409, "duplicate_event");
    assert!(text.contains("2 of 4 events") && text.contains("\"taken\"") && text.contains("version 1"), "{text}");
    assert_eq!(ids(&server.get("/sync/pull").await.ok()).len(), 3);
    // The refusal was reported once: the replica continues after it, and is never sent the other event with this id.
    assert_eq!(server.get(&format!("{base}/latest-version")).await.ok(), "3");
    assert_eq!(server.get(&format!("{base}/pull?since=4")).await.ok(), json!([]));
    let too_long = push(&server, "/sync", &[pushed(&"x".repeat(256), 0, json!(1))]).await;
    error(&too_long, 422, "invalid_event");
    error(&push(&server, "/sync", &[pushed("", 0, json!(1))]).await, 422, "invalid_event");
    // The first event with an id wins, if requested.
    push(&server, "/sync/first-wins", &events[1..2]).await.ok();
    assert_eq!(server.get("/event?id=taken").await.ok()["data"], "first");
    server.stop().await;
}

#[tokio::test]
async fn a_push_that_is_repeated_or_overtaken_is_stored_once() {
    let server = Running::start(Server::new(memory().await)).await;
    let events: Vec<_> = (0..500).map(|n| pushed(&format!("e{n}"), 0, json!({ "a": n, "b": [n] }))).collect();
    // The same events formatted differently, so that none is recognised by its bytes.
    let text = Value::from(events.as_slice()).to_string().replace("\"data\":{", "\"data\":{ ");
    let (a, b, c) = tokio::join!(
        push(&server, "/sync", &events),
        server.post("/sync/push", &text),
        push(&server, "/sync", &events[250..]),
    );
    for answer in [a, b, c] {
        answer.ok();
    }
    let stored: BTreeSet<_> = ids(&server.get("/sync/pull").await.ok()).into_iter().map(|(id, _)| id).collect();
    assert_eq!((stored.len(), server.get("/sync/latest-version").await.ok()), (500, json!("500")));
    server.stop().await;
}

#[tokio::test]
async fn pages_end_before_the_kits_client_gives_up_and_miss_nothing() {
    let server = Running::start(Server::new(memory().await)).await;
    let large = "x".repeat(3 << 20);
    for n in 1..=5 {
        push(&server, "/sync", &[pushed(&format!("e{n}"), 0, json!(large))]).await.ok();
    }
    // Larger than a page, and than what the kit pushes.
    let huge = json!({ "id": "huge", "type": "T", "aggregate_id": "a", "data": "x".repeat(11 << 20) }).to_string();
    server.post("/events", &huge).await.ok();
    server.post("/events", &event("last", "T", "a")).await.ok();
    let mut since = 0;
    let mut lens = Vec::new();
    while since < 7 {
        let page = server.get(&format!("/sync/pull?since={since}")).await;
        let page = ids(&page.ok());
        lens.push(page.len());
        for (_, version) in page {
            since += 1;
            assert_eq!(version, since);
        }
    }
    assert_eq!(lens, [2, 2, 1, 1, 1]);
    let page = server.post("/sync/pull-cursor", r#"{"limit":10}"#).await.ok();
    assert_eq!((page["events"].as_array().expect("events").len(), &page["next"]["data"]), (2, &json!(2)));
    // A replica first gets what it can accept.
    let mut frames = server.stream("/sync/sse", &[]).await;
    let mut versions = Vec::new();
    let mut comments = Vec::new();
    while versions.len() < 6 {
        let line = frames.next().await.expect("a line");
        match line.strip_prefix("data: ") {
            Some(json) => {
                assert!(line.len() < 10 << 20);
                versions.extend(
                    ids(&serde_json::from_str::<Value>(json).expect("JSON")["events"]).into_iter().map(|(_, v)| v),
                );
            }
            None => comments.push(line),
        }
    }
    assert_eq!(versions, [1, 2, 3, 4, 5, 7]);
    assert!(comments.iter().any(|comment| comment == ": version 6 is too large for a frame"), "{comments:?}");
    drop(frames);
    let base = "/sync/replicas/new";
    let mut database = Database::new(base);
    for _ in 0..8 {
        database.sync(&server, Drops::default()).await.expect("synced");
    }
    assert_eq!(database.ids().len(), 7);
    assert_eq!(database.events.last().expect("one")["id"], "huge");
    server.stop().await;
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_ask() {
    let server = Running::start(Server::new(memory().await)).await;
    let events: Vec<_> = (0..100).map(|n| pushed(&format!("e{n}"), 0, json!("x".repeat(100)))).collect();
    let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let body = gzip(Value::from(events).to_string().as_bytes());
    server.request("POST", "/sync/push", &headers, &body).await.ok();
    let plain = server.get("/sync/pull").await;
    let packed = server.request("GET", "/sync/pull", &[("accept-encoding", "gzip, deflate")], b"").await;
    assert_eq!((packed.status, packed.header("content-encoding")), (200, "gzip"));
    assert!(packed.header("vary").contains("accept-encoding"), "{}", packed.head);
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed.body), &mut unpacked).expect("gzip");
    assert_eq!(unpacked, plain.body);
    let refused = server.request("GET", "/sync/pull", &[("accept-encoding", "deflate")], b"").await;
    assert_eq!((refused.header("content-encoding"), &refused.body), ("", &plain.body));
    server.stop().await;
}

// Streams.

/// The next frame, as JSON.
async fn frame(lines: &mut common::Lines) -> Value {
    loop {
        let line = lines.next().await.expect("one more line");
        if let Some(json) = line.strip_prefix("data: ") {
            return serde_json::from_str(json).expect("JSON");
        }
        assert!(line.starts_with(": "), "{line}");
    }
}

#[tokio::test]
async fn a_stream_gives_all_events_once_and_each_new_one() {
    let mut limits = Limits::default();
    limits.heartbeat = Duration::from_millis(20);
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let batch = |from: u64, to: u64| (from..=to).map(|n| pushed(&format!("e{n}"), 0, json!(n))).collect::<Vec<_>>();
    push(&server, "/sync", &batch(1, 1050)).await.ok();
    // Without a cursor, from the beginning; an empty store answers as well.
    let cursor = |version: u64| format!("/sync/sse?cursor=%7B%22kind%22%3A%22integer%22%2C%22data%22%3A{version}%7D");
    for (path, mut seen) in [("/sync/sse".to_owned(), 0), (cursor(0), 0), (cursor(1000), 1000), (cursor(2000), 1050)] {
        let mut frames = server.stream(&path, &[("last-event-id", "7")]).await;
        while seen < 1050 {
            let frame = frame(&mut frames).await;
            let events = ids(&frame["events"]);
            assert!((1..=100).contains(&events.len()));
            for (id, version) in events {
                seen += 1;
                assert_eq!((id, version), (format!("e{seen}"), seen));
            }
            assert_eq!(frame["next_cursor"], json!({ "kind": "integer", "data": seen }));
        }
        // Heartbeats, which the kit's client ignores.
        for _ in 0..2 {
            let line = frames.next().await.expect("a heartbeat");
            assert!(line.starts_with(": "), "{line}");
        }
    }
    let mut frames = [server.stream(&cursor(1050), &[]).await, server.stream(&cursor(1051), &[]).await];
    push(&server, "/sync", &batch(1051, 1051)).await.ok();
    assert_eq!(ids(&frame(&mut frames[0]).await["events"]), [("e1051".to_owned(), 1051)]);
    push(&server, "/sync", &batch(1052, 1052)).await.ok();
    for frames in &mut frames {
        assert_eq!(ids(&frame(frames).await["events"]), [("e1052".to_owned(), 1052)]);
    }
    for bad in ["12", "%7B", "%7B%22kind%22%3A%22vector%22%2C%22data%22%3A%7B%22a%22%3A1%7D%7D"] {
        let refused = server.get(&format!("/sync/sse?cursor={bad}")).await;
        assert!(error(&refused, 400, "malformed").contains("bad cursor"));
    }
    // A stopping server ends them.
    server.ask_to_stop();
    for frames in &mut frames {
        let mut last = String::new();
        while let Some(line) = frames.next().await {
            last = line;
        }
        assert!(last.starts_with(": {") && last.contains("shutting down"), "{last}");
    }
    server.stop().await;
}

// Access control, and failures of the store.

#[tokio::test]
async fn rights_hold_as_for_all_resources() {
    let directory = tempfile::tempdir().expect("a directory");
    let tokens: Tokens = "0123456789abcdef-read read *\n0123456789abcdef-write write one\n".parse().expect("valid");
    let stores = || Stores::new(directory.path());
    let creating = Running::start(Server::of_many(stores())).await;
    for name in ["one", "two"] {
        assert_eq!(creating.request("PUT", &format!("/stores/{name}"), &[], b"").await.status, 201);
    }
    creating.stop().await;
    let server = Running::start(Server::of_many(stores()).tokens(tokens)).await;
    let body = Value::from(vec![pushed("e1", 1, json!(1))]).to_string();
    let ask = async |method: &str, path: &str, token: &str| {
        let authorization = format!("Bearer 0123456789abcdef-{token}");
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        let body = if method == "POST" { body.as_bytes() } else { b"" };
        server.request(method, path, &headers, body).await
    };
    for base in ["/stores/one/sync", "/stores/one/sync/replicas/phone"] {
        error(&server.get(&format!("{base}/pull")).await, 401, "unauthorized");
        error(&ask("GET", &format!("{base}/pull"), "unknown").await, 401, "unauthorized");
        error(&ask("POST", &format!("{base}/push"), "read").await, 403, "forbidden");
        ask("POST", &format!("{base}/push"), "write").await.ok();
        ask("GET", &format!("{base}/pull"), "read").await.ok();
        ask("GET", &format!("{base}/latest-version"), "read").await.ok();
    }
    error(&ask("GET", "/stores/two/sync/pull", "write").await, 403, "forbidden");
    error(&ask("GET", "/stores/none/sync/pull", "read").await, 404, "not_found");
    error(&ask("GET", "/stores/one/sync/nothing", "read").await, 404, "not_found");
    server.stop().await;

    let server = Running::start(Server::of_many(stores().read_only(true)).read_only(true)).await;
    error(&server.post("/stores/one/sync/push", &body).await, 403, "forbidden");
    assert_eq!(ids(&server.get("/stores/one/sync/pull").await.ok()), [("e1".to_owned(), 1)]);
    server.stop().await;

    let server = Running::start(Server::new(memory().await).only_this_machine()).await;
    let foreign = server.request("POST", "/sync/push", &[("origin", "http://example.com")], body.as_bytes()).await;
    assert_eq!(foreign.status, 403);
    server.stop().await;
}

#[tokio::test]
async fn a_failure_is_never_told_as_success() {
    let (store, faults) = faulty(memory().await);
    let server = Running::start(Server::new(store)).await;
    let full = || Fault::Refuse(Error::Full { reason: "no space left".to_owned() });
    let events = [pushed("e1", 1, json!(1)), pushed("e2", 2, json!(2))];
    for base in ["/sync", "/sync/first-wins", "/sync/replicas/one"] {
        faults.next_append(full());
        let text = error(&push(&server, base, &events).await, 507, "full");
        assert!(text.contains("no space left"), "{text}");
        faults.next_append(Fault::LoseAnswer);
        error(&push(&server, base, &events).await, 504, "outcome_unknown");
        push(&server, base, &events).await.ok();
        // Also if it fails when it looks for existing events.
        let again = push(&server, base, &[pushed("e1", 1, json!(1.0))]).await;
        assert_eq!(again.status, 200);
        faults.next_read(Fault::Refuse(Error::Corrupt { version: None, reason: "damaged".to_owned() }));
        error(&push(&server, base, &[pushed("e1", 1, json!(1.0))]).await, 500, "corrupt");
        // The number of a replica is known without the store.
        let count = if base.ends_with("one") { 1 } else { 2 };
        for path in ["pull", "latest-version"].into_iter().take(count) {
            faults.next_read(Fault::Refuse(Error::Corrupt { version: None, reason: "damaged".to_owned() }));
            error(&server.get(&format!("{base}/{path}")).await, 500, "corrupt");
            faults.clear();
        }
        let slow = server.get(&format!("{base}/pull?timeout=1ns")).await;
        error(&slow, 504, "deadline_exceeded");
    }
    faults.fence("sync failed: EIO");
    error(&push(&server, "/sync", &[pushed("e3", 1, json!(1))]).await, 503, "fenced");
    // It is unknown how much of it will survive.
    error(&server.get("/sync/pull").await, 503, "fenced");
    server.stop().await;
}

#[tokio::test]
async fn bodies_are_bounded_in_bytes_and_in_events() {
    let server = Running::start(Server::new(memory().await)).await;
    let many = format!("[{}]", vec!["{}"; 100_001].join(","));
    error(&server.post("/sync/push", &many).await, 400, "malformed");
    let deep = format!("[{}{}]", "[".repeat(1 << 20), "]".repeat(1 << 20));
    error(&server.post("/sync/push", &deep).await, 400, "malformed");
    let members = format!("[{{{}}}]", vec!["\"x\":1"; 1 << 20].join(","));
    error(&server.post("/sync/push", &members).await, 422, "invalid_event");
    let headers = [("content-type", "application/json"), ("content-encoding", "zstd")];
    error(&server.request("POST", "/sync/push", &headers, b"[]").await, 400, "malformed");
    assert_eq!(server.get("/sync/latest-version").await.ok(), "0");
    server.stop().await;
    let mut limits = Limits::default();
    (limits.followers, limits.body_bytes, limits.body_wait) = (1, 1 << 20, Duration::from_millis(20));
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let following = server.stream("/sync/sse", &[]).await;
    error(&server.get("/sync/replicas/one/sse").await, 429, "too_many");
    error(&server.post("/sync/push", &" ".repeat(2 << 20)).await, 429, "too_many");
    drop(following);
    server.stop().await;
}

// Managers.

/// Which requests of a sync fail: before the server receives them, or by losing the answer.
#[derive(Clone, Copy, Debug, Default)]
struct Drops {
    lost: u16,
    unanswered: u16,
}

impl Drops {
    fn next(&mut self) -> (bool, bool) {
        let both = (self.lost & 1 == 1, self.unanswered & 1 == 1);
        (self.lost, self.unanswered) = (self.lost >> 1, self.unanswered >> 1);
        both
    }
}

/// A database of the kit with its manager: local numbers are positions in the list, ids are unique, and all JSON is
/// converted to Go's values and back.
#[derive(Clone, Debug)]
struct Database {
    base: String,
    events: Vec<Value>,
    batch_size: usize,
    pulls_only: bool,
    /// Events with this id prefix are neither stored when they are pulled, nor pushed.
    filter: Option<&'static str>,
}

/// JSON as Go returns it: numbers are float64.
fn as_go(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().expect("a number")),
        Value::Array(values) => values.into_iter().map(as_go).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, as_go(value))).collect(),
        other => other,
    }
}

impl Database {
    fn new(base: &str) -> Self {
        Database { base: base.to_owned(), events: Vec::new(), batch_size: 100, pulls_only: false, filter: None }
    }

    fn ids(&self) -> BTreeSet<String> {
        self.events.iter().map(|event| event["id"].as_str().expect("text").to_owned()).collect()
    }

    /// Except those that its filter keeps back.
    fn shared_ids(&self) -> BTreeSet<String> {
        self.ids().into_iter().filter(|id| self.filter.is_none_or(|filter| !id.starts_with(filter))).collect()
    }

    fn has(&self, id: &Value) -> bool {
        self.events.iter().any(|event| event["id"] == *id)
    }

    fn is_filtered(&self, event: &Value) -> bool {
        self.filter.is_some_and(|filter| event["id"].as_str().expect("text").starts_with(filter))
    }

    fn write(&mut self, id: &str) {
        let data = json!({ "of": id, "<": [1.5, 9_007_199_254_740_993_u64], "z": null });
        self.events.push(as_go(pushed(id, 0, data)["event"].clone()));
    }

    async fn ask(
        &self,
        server: &Running,
        drops: &mut Drops,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, String> {
        let (is_lost, is_unanswered) = drops.next();
        if is_lost {
            return Err("EOF".to_owned());
        }
        let path = format!("{}/{path}", self.base);
        let answer = match body {
            Some(body) => server.post(&path, &body.to_string()).await,
            None => server.get(&path).await,
        };
        match answer.status {
            _ if is_unanswered => Err("EOF".to_owned()),
            200 => Ok(answer.json()),
            _ => Err(answer.text().to_owned()),
        }
    }

    /// Pulls, and then pushes regardless of the result.
    async fn sync(&mut self, server: &Running, mut drops: Drops) -> Result<(), String> {
        let pulled = self.pull(server, &mut drops).await;
        if self.pulls_only {
            return pulled;
        }
        let pushed = self.push(server, &mut drops).await;
        pulled.and(pushed)
    }

    async fn pull(&mut self, server: &Running, drops: &mut Drops) -> Result<(), String> {
        let path = format!("pull?since={}", self.events.len());
        let events = self.ask(server, drops, &path, None).await?;
        for event in events.as_array().expect("events") {
            let event = event["event"].clone();
            if self.is_filtered(&event) {
                continue;
            }
            if self.has(&event["id"]) {
                return Err(format!("UNIQUE constraint failed: {}", event["id"]));
            }
            self.events.push(as_go(event));
        }
        Ok(())
    }

    async fn push(&self, server: &Running, drops: &mut Drops) -> Result<(), String> {
        let latest = self.ask(server, drops, "latest-version", None).await?;
        let latest: i64 = latest.as_str().expect("text").parse().expect("a number");
        let above = usize::try_from(latest).unwrap_or_default().min(self.events.len());
        let numbered: Vec<Value> = (above + 1..)
            .zip(&self.events[above..])
            .filter(|(_, event)| !self.is_filtered(event))
            .map(|(number, event)| json!({ "event": event, "version": number.to_string() }))
            .collect();
        for batch in numbered.chunks(self.batch_size) {
            self.ask(server, drops, "push", Some(&Value::from(batch))).await?;
        }
        Ok(())
    }
}

/// Makes the server forget all replicas: others take their places.
async fn forget(server: &Running, others: usize) {
    for n in 0..others {
        server.get(&format!("/sync/replicas/other-{n}/latest-version")).await.ok();
    }
}

#[derive(Clone, Debug)]
enum Turn {
    /// A replica writes this many events.
    Write(usize, u8),
    Sync(usize, Drops),
    /// Somebody appends in another way.
    Append(u8),
    /// A backup of a replica's database, with a part of its events, is restored.
    Restore(usize, u8),
    /// The server forgets all replicas.
    Forget,
}

fn turns(replicas: usize) -> impl Strategy<Value = Vec<Turn>> {
    let drops = prop_oneof![
        3 => Just(Drops::default()),
        1 => (0..32_u16, 0..32_u16).prop_map(|(lost, unanswered)| Drops { lost, unanswered }),
    ];
    let turn = prop_oneof![
        4 => (0..replicas, 1..4_u8).prop_map(|(replica, count)| Turn::Write(replica, count)),
        6 => (0..replicas, drops).prop_map(|(replica, drops)| Turn::Sync(replica, drops)),
        1 => (1..4_u8).prop_map(Turn::Append),
        1 => (0..replicas, 0..100_u8).prop_map(|(replica, part)| Turn::Restore(replica, part)),
        1 => Just(Turn::Forget),
    ];
    prop::collection::vec(turn, 1..40)
}

const REMEMBERED: usize = 8;

fn forgetful() -> Limits {
    let mut limits = Limits::default();
    limits.kit_replicas = REMEMBERED;
    limits
}

/// Plays the turns, then syncs without faults. Returns the databases, and the ids that existed after the turns.
///
/// The filter applies to the last replica.
async fn play(bases: &[String], filter: Option<&'static str>, turns: &[Turn]) -> Result<(), TestCaseError> {
    let server = Running::start(Server::new(memory().await).limits(forgetful())).await;
    let mut databases: Vec<_> = bases.iter().map(|base| Database { batch_size: 3, ..Database::new(base) }).collect();
    databases.last_mut().expect("one").filter = filter;
    let mut written = 0;
    let mut next = || {
        written += 1;
        format!("e{written}")
    };
    for turn in turns {
        match turn {
            Turn::Write(replica, count) => (0..*count).for_each(|_| databases[*replica].write(&next())),
            Turn::Sync(replica, drops) => drop(databases[*replica].sync(&server, *drops).await),
            Turn::Append(count) => {
                for _ in 0..*count {
                    let id = next();
                    let event = format!(
                        r#"{{"id":"{id}","type":"","aggregate_id":"b","data":{{"z":9007199254740993, "a":"\u003c"}}}}"#
                    );
                    server.post("/events", &event.replace("\"type\":\"\"", "\"type\":\"(none)\"")).await.ok();
                }
            }
            Turn::Restore(replica, part) => {
                let events = &mut databases[*replica].events;
                events.truncate(events.len() * usize::from(*part) / 100);
            }
            Turn::Forget => forget(&server, REMEMBERED).await,
        }
    }
    // Two that shared a name and diverged get separate names.
    for (n, database) in databases.iter_mut().enumerate() {
        if bases.iter().filter(|base| **base == database.base).count() > 1 {
            database.base = format!("{}-{n}", database.base);
        }
    }
    let mut all: BTreeSet<String> = databases.iter().flat_map(Database::shared_ids).collect();
    all.extend(
        server
            .get("/sync/pull")
            .await
            .ok()
            .as_array()
            .expect("events")
            .iter()
            .map(|event| event["event"]["id"].as_str().expect("text").to_owned()),
    );
    // A wrong guess costs one sync, and a guess hidden by a filter some more. Then each replica needs one to push, and
    // one to pull what the others pushed.
    let mut errors = Vec::new();
    for _ in 0..if filter.is_some() { 9 } else { 6 } {
        errors.clear();
        for database in &mut databases {
            errors.extend(database.sync(&server, Drops::default()).await.err());
        }
    }
    prop_assert_eq!(errors, [] as [&str; 0]);
    let stored = server.get("/sync/pull").await.ok();
    let stored: BTreeSet<_> = ids(&stored).into_iter().map(|(id, _)| id).collect();
    prop_assert_eq!(&stored, &all, "on the server");
    for database in &databases {
        let taken = |id: &&String| database.filter.is_none_or(|filter| !id.starts_with(filter));
        let expected: BTreeSet<_> = all.iter().filter(taken).cloned().collect();
        prop_assert_eq!(&database.shared_ids(), &expected, "on {}", database.base);
        prop_assert_eq!(database.ids().len(), database.events.len());
    }
    server.stop().await;
    Ok(())
}

fn check(name: &str, bases: &[&str], filter: Option<&'static str>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bases: Vec<_> = bases.iter().map(|base| format!("/sync/replicas/{base}")).collect();
    let config = Config { failure_persistence: None, ..Config::default() };
    // Each case takes some milliseconds.
    let config = Config { cases: config.cases / 4, ..config };
    let run = TestRunner::new(config).run(&turns(bases.len()), |turns| runtime.block_on(play(&bases, filter, &turns)));
    run.unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[tokio::test]
async fn one_that_only_pulls_gets_all_whatever_is_lost_on_the_way() {
    let server = Running::start(Server::new(memory().await).limits(forgetful())).await;
    for base in ["/sync", "/sync/replicas/reader"] {
        let mut reader = Database { pulls_only: true, ..Database::new(base) };
        for n in 0..30 {
            push(&server, "/sync", &[pushed(&format!("{base}-{n}"), 0, json!(n))]).await.ok();
            let drops = Drops { lost: u16::from(n % 5 == 1), unanswered: u16::from(n % 3 == 1) };
            let pulled = reader.sync(&server, drops).await;
            assert_eq!(pulled.is_err(), n % 5 == 1 || n % 3 == 1);
            if n % 7 == 0 {
                forget(&server, REMEMBERED).await;
            }
        }
        // The first time, it might just be about to push.
        for _ in 0..2 {
            reader.sync(&server, Drops::default()).await.expect("pulled");
        }
        assert_eq!(Value::from(reader.events.len().to_string()), server.get("/sync/latest-version").await.ok());
    }
    server.stop().await;
}

#[tokio::test]
async fn one_that_only_pulls_after_it_has_pushed_gets_all() {
    let server = Running::start(Server::new(memory().await)).await;
    let mut database = Database::new("/sync/replicas/one");
    push(&server, "/sync", &[pushed("before", 0, json!(0))]).await.ok();
    (0..3).for_each(|n| database.write(&format!("own-{n}")));
    database.sync(&server, Drops::default()).await.expect("synced");
    database.pulls_only = true;
    for n in 0..30 {
        push(&server, "/sync", &[pushed(&format!("e{n}"), 0, json!(n)), pushed(&format!("f{n}"), 0, json!(n))])
            .await
            .ok();
        let drops = Drops { lost: u16::from(n % 5 == 1), unanswered: u16::from(n % 3 == 1) };
        let pulled = database.sync(&server, drops).await;
        assert_eq!(pulled.is_err(), n % 5 == 1 || n % 3 == 1, "{pulled:?}");
    }
    database.sync(&server, Drops::default()).await.expect("synced");
    assert_eq!(database.ids().len(), 64);
    server.stop().await;
}

#[tokio::test]
async fn one_with_a_filter_gets_what_lies_behind_all_that_it_does_not_take() {
    let server = Running::start(Server::new(memory().await)).await;
    let large = json!("x".repeat(3 << 20));
    for n in 1..=8 {
        push(&server, "/sync", &[pushed(&format!("large-{n}"), 0, large.clone())]).await.ok();
        push(&server, "/sync", &[pushed(&format!("e{n}"), 0, json!(n))]).await.ok();
    }
    let mut empty = Database { filter: Some("large"), ..Database::new("/sync/replicas/empty") };
    let mut other = Database { filter: Some("large"), ..Database::new("/sync/replicas/other") };
    ["large-own", "own-1", "large-own-2", "own-2"].iter().for_each(|id| other.write(id));
    for database in [&mut empty, &mut other] {
        for _ in 0..40 {
            database.sync(&server, Drops::default()).await.expect("synced");
        }
    }
    empty.sync(&server, Drops::default()).await.expect("synced");
    assert_eq!(empty.ids().len(), 10, "{:?}", empty.ids());
    assert_eq!(other.ids().len(), 12, "{:?}", other.ids());
    // Events that are kept back are no loss.
    assert_eq!(server.get("/sync/latest-version").await.ok(), "18");
    server.stop().await;
}

#[tokio::test]
async fn events_that_are_too_large_for_the_kits_own_server_are_pushed() {
    let server = Running::start(Server::new(memory().await)).await;
    let mut writer = Database::new("/sync/replicas/writer");
    let mut reader = Database::new("/sync/replicas/reader");
    for n in 0..100 {
        writer.events.push(pushed(&format!("e{n}"), 0, json!("x".repeat(300_000)))["event"].clone());
    }
    let shared = Database { base: "/sync".to_owned(), ..writer.clone() };
    let refused = shared.push(&server, &mut Drops::default()).await;
    assert!(refused.expect_err("as the kit's server").contains("too_large"));
    writer.sync(&server, Drops::default()).await.expect("synced");
    for _ in 0..6 {
        reader.sync(&server, Drops::default()).await.expect("synced");
    }
    assert_eq!(reader.ids(), writer.ids());
    server.stop().await;
}

#[tokio::test]
async fn what_is_known_outlives_the_closing_of_the_store_but_not_its_history() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("one");
    let stores = || Stores::new(directory.path()).idle(Duration::from_millis(50));
    let server = Running::start(Server::of_many(stores())).await;
    assert_eq!(server.request("PUT", "/stores/one", &[], b"").await.status, 201);
    let base = "/stores/one/sync/replicas/phone";
    let mut database = Database::new(base);
    (1..=3).for_each(|n| database.write(&format!("e{n}")));
    database.sync(&server, Drops::default()).await.expect("synced");
    let latest = format!("{base}/latest-version");
    assert_eq!(server.get(&latest).await.ok(), "2");
    // Once it is closed, somebody else can open it.
    let url = format!("lmdb:{}", store.display());
    let open = async || loop {
        if let Ok(store) = eventstore::open(&url).await {
            return store;
        }
        tokio::task::yield_now().await;
    };
    open().await.close().await.expect("closed");
    assert_eq!(server.get(&latest).await.ok(), "2");
    let opened = open().await;
    // Another history in its place, such as a backup.
    opened.close().await.expect("closed");
    std::fs::remove_dir_all(&store).expect("removed");
    let other = eventstore::open(&url).await.expect("opened");
    for n in 1..=3 {
        let event = eventstore_api::Event::builder("T", "a").id(format!("other-{n}")).build().expect("valid");
        other.append(event).await.expect("stored");
    }
    other.close().await.expect("closed");
    assert_eq!(server.get(&latest).await.ok(), "-1");
    for _ in 0..3 {
        database.sync(&server, Drops::default()).await.expect("synced");
    }
    assert_eq!(database.ids().len(), 6);
    assert_eq!(server.get("/stores/one/sync/latest-version").await.ok(), "6");
    server.stop().await;
    // A restarted server knows no replicas.
    let server = Running::start(Server::of_many(stores())).await;
    assert_eq!(server.get(&format!("{base}/pull?since=6")).await.ok(), json!([]));
    assert_eq!(server.get(&latest).await.ok(), "-1");
    database.sync(&server, Drops::default()).await.expect("synced");
    assert_eq!(server.get(&latest).await.ok(), "5");
    assert_eq!(server.get("/stores/one/sync/latest-version").await.ok(), "6");
    server.stop().await;
}

#[test]
fn managers_with_base_urls_of_their_own_lose_nothing() {
    check("two replicas", &["a", "b"], None);
    check("four replicas", &["a", "b", "c", "d"], None);
    check("one of three with a filter", &["a", "b", "c"], Some("e1"));
}

#[test]
fn two_databases_under_one_name_lose_nothing() {
    check("two under one name", &["a", "a", "b"], None);
}

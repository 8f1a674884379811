//! Faults of the store behind the server and of clients are reported, and do not affect others.

mod common;

use std::fs;

use common::{Running, event, memory};
use eventstore::testing::{Fault, faulty};
use eventstore_api::{Error, Event};
use eventstore_server::Server;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

#[tokio::test]
async fn an_unknown_outcome_says_so_and_is_resolved_by_repeating_the_request() {
    let (store, faults) = faulty(memory().await);
    let server = Running::start(Server::new(store)).await;
    for (fault, outcome) in [(Fault::LoseAnswer, "already_stored"), (Fault::LoseRequest, "written")] {
        let event = event(outcome, "T", "a");
        faults.next_append(fault);
        let unknown = server.post("/events?expected=any", &event).await;
        assert_eq!((unknown.status, unknown.code().as_str()), (504, "outcome_unknown"));
        assert_eq!((&unknown.json()["written"], &unknown.json()["retryable"]), (&json!("unknown"), &json!(true)));
        assert_eq!(server.post("/events", &event).await.ok()["stored"][0]["outcome"], outcome);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_fenced_store_is_not_ready_and_is_still_read() {
    let (store, faults) = faulty(memory().await);
    let server = Running::start(Server::new(store)).await;
    server.post("/events", &event("one", "T", "a")).await.ok();
    server.get("/ready").await.ok();
    faults.fence("sync failed: EIO");
    let fenced = server.post("/events", &event("two", "T", "a")).await;
    assert_eq!((fenced.status, fenced.code().as_str(), &fenced.json()["written"]), (503, "fenced", &json!("nothing")));
    let not_ready = server.get("/ready").await;
    assert_eq!((not_ready.status, not_ready.code().as_str()), (503, "fenced"));
    assert!(not_ready.json()["detail"].as_str().expect("text").contains("EIO"));
    server.get("/health").await.ok();
    assert_eq!(server.get("/event?id=one").await.ok()["version"], 1);
    assert_eq!(server.get("/stats").await.ok()["fenced"], "sync failed: EIO");
    server.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_a_retry_succeeds_when_there_is_room() {
    let (store, faults) = faulty(memory().await);
    let server = Running::start(Server::new(store)).await;
    faults.next_append(Fault::Refuse(Error::Full { reason: "no space left".to_owned() }));
    let full = server.post("/events", &event("one", "T", "a")).await;
    assert_eq!((full.status, full.code().as_str(), &full.json()["written"]), (507, "full", &json!("nothing")));
    assert_eq!(server.post("/events", &event("one", "T", "a")).await.ok()["stored"][0]["outcome"], "written");
    server.stop().await;
}

#[tokio::test]
async fn a_damaged_event_is_an_error_and_no_other_event() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("lmdb:{}", directory.path().join("store").display());
    let store = eventstore::open(&url).await.expect("opened");
    for n in 1..=3 {
        let data = format!("\"what is in event {n}\"");
        let event = Event::builder("T", "a").id(format!("e{n}")).data(data).build().expect("valid");
        store.append(event).await.expect("stored");
    }
    store.close().await.expect("closed");
    drop(store);
    let log = directory.path().join("store/log");
    let mut damaged = false;
    for entry in fs::read_dir(&log).expect("there") {
        let path = entry.expect("an entry").path();
        let Ok(mut bytes) = fs::read(&path) else { continue };
        if let Some(at) = bytes.windows(20).position(|window| window.starts_with(b"what is in event 2")) {
            bytes[at] ^= 1;
            fs::write(&path, bytes).expect("written");
            damaged = true;
        }
    }
    assert!(damaged);
    let server =
        Running::start(Server::new(eventstore::open_read_only(&url).await.expect("opened")).read_only(true)).await;
    assert_eq!(server.get("/events?before=2").await.ok()["events"][0]["id"], "e1");
    for path in ["/events?since=1", "/event?id=e2", "/events?aggregate=a&since=1"] {
        let corrupt = server.get(path).await;
        assert_eq!(
            (corrupt.status, corrupt.code().as_str(), &corrupt.json()["version"]),
            (500, "corrupt", &json!(2)),
            "{path}"
        );
    }
    let mut following = server.stream("/follow?since=1", &[]).await;
    assert_eq!(following.event().await["end"]["code"], "corrupt");
    assert_eq!(following.next().await, None);
    let verified = server.request("POST", "/verify", &[], b"").await;
    let report: Value = serde_json::from_str(verified.text().lines().last().expect("a line")).expect("JSON");
    assert_eq!(report["result"]["findings"][0]["version"], 2, "{report}");
    server.stop().await;
}

#[tokio::test]
async fn clients_that_never_read_hold_up_nobody() {
    let server = Running::start(Server::new(memory().await)).await;
    let mut silent = Vec::new();
    for path in ["/follow", "/events?page_events=10000&page_bytes=16777216"] {
        for _ in 0..8 {
            let mut stream = TcpStream::connect(&server.address).await.expect("connected");
            stream.write_all(&server.head("GET", path, &[], 0)).await.expect("written");
            silent.push(stream);
        }
    }
    let mut reading = server.stream("/follow", &[]).await;
    // More than sockets buffer.
    let data = "x".repeat(1 << 20);
    for n in 1..=40 {
        let event = json!({ "id": format!("e{n}"), "type": "T", "aggregate_id": "a", "data": data }).to_string();
        server.post("/events", &event).await.ok();
        assert_eq!(reading.event().await["event"]["version"], n);
    }
    drop(silent);
    drop(reading);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_harms_nobody() {
    let server = Running::start(Server::new(memory().await)).await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1 << 20));
    let headers = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"nonsense\r\n\r\n",
        b"GET",
        b"\0\0\0",
        long.as_bytes(),
        headers.as_bytes(),
    ] {
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        // The server may close the connection before it has everything.
        let _ = stream.write_all(bytes).await;
        drop(stream);
    }
    for (method, path) in [
        ("GET", "/events?aggregate=%ff%fe"),
        ("GET", "/event?id=%00"),
        ("BREW", "/events"),
        ("GET", "//"),
        ("GET", "/events/../latest"),
    ] {
        let answer = server.request(method, path, &[], b"").await;
        assert!(answer.status < 500, "{method} {path}: {answer:?}");
    }
    server.get("/latest").await.ok();
    server.stop().await;
}

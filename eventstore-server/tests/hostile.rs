//! Clients that try to harm the server or others.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, Running, event, memory};
use eventstore::testing::{Fault, faulty};
use eventstore_api::{
    Batch, Context, Error, Event, EventStore, Gc, GcReport, LoadOptions, Page, PageSize, RecordedEvent, Result,
    Revision, Stats, Stored, Version, async_trait,
};
use eventstore_server::{Limits, Server};
use eventstore_wire::{Answer, Frame, decode_answers, encode_frames};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A client of a session that sends arbitrary bytes.
struct Raw {
    stream: TcpStream,
}

/// The opcodes of frames.
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

impl Raw {
    async fn connect(server: &Running) -> Self {
        let headers = [
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
            ("sec-websocket-protocol", "eventstore.v1"),
        ];
        let head = String::from_utf8(server.head("GET", "/appends", &headers, 0)).expect("text");
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        let head = head.replace("connection: close", "connection: upgrade");
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("an answer"));
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        Raw { stream }
    }

    /// Sends the beginning of a message: its length, and these of its bytes.
    async fn begin(&mut self, len: u64, bytes: &[u8]) {
        let mut head = vec![0x80 | BINARY, 0x80 | 127];
        head.extend_from_slice(&len.to_be_bytes());
        // A mask of zeros leaves the bytes unchanged.
        head.extend_from_slice(&[0; 4]);
        self.stream.write_all(&head).await.expect("written");
        self.stream.write_all(bytes).await.expect("written");
    }

    async fn send(&mut self, frames: &[Frame]) {
        let message = encode_frames(frames);
        self.begin(message.len() as u64, &message).await;
    }

    /// The next frame: its opcode and content.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let next = async {
            let opcode = self.stream.read_u8().await.expect("a frame") & 0x0f;
            let len = match self.stream.read_u8().await.expect("its length") {
                126 => usize::from(self.stream.read_u16().await.expect("its length")),
                len => usize::from(len),
            };
            let mut content = vec![0; len];
            self.stream.read_exact(&mut content).await.expect("its content");
            (opcode, content)
        };
        tokio::time::timeout(LONG, next).await.expect("one more comes")
    }

    /// The code of the closing frame.
    async fn close_code(&mut self) -> u16 {
        let (opcode, content) = self.next().await;
        assert_eq!(opcode, CLOSE);
        u16::from_be_bytes([content[0], content[1]])
    }

    async fn answers(&mut self) -> Vec<Answer> {
        let (opcode, content) = self.next().await;
        assert_eq!(opcode, BINARY);
        decode_answers(content.into()).expect("answers")
    }
}

fn append(number: u64, len: usize) -> Frame {
    let event = Event::builder("T", "a").data(format!("\"{}\"", "x".repeat(len))).build().expect("valid");
    Frame::Append { number, timeout: None, batch: Ok(event.into()) }
}

/// Limits with this room for all large bodies together.
fn room(bytes: usize) -> Limits {
    let mut limits = Limits::default();
    limits.body_bytes = bytes;
    limits.body_wait = Duration::from_millis(50);
    limits
}

/// Repeats the request until the answer has this status.
async fn until(server: &Running, status: u16, body: &str) {
    let asking = async { while server.post("/events", body).await.status != status {} };
    tokio::time::timeout(LONG, asking).await.expect("it is answered so");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_with_its_reason() {
    let server = Running::start(Server::new(memory().await)).await;
    let mut session = Raw::connect(&server).await;
    session.begin(66 << 20, &[0; 1000]).await;
    assert_eq!(session.close_code().await, 1009);
    let mut session = Raw::connect(&server).await;
    session.stream.write_all(&[0xff; 64]).await.expect("written");
    assert_eq!(session.close_code().await, 1002);
    server.stop().await;
}

#[tokio::test]
async fn messages_that_are_on_their_way_have_the_room_of_all_bodies() {
    let server = Running::start(Server::new(memory().await).limits(room(1 << 20))).await;
    let large = "7".repeat(300 << 10);
    until(&server, 422, &large).await;
    let mut slow = Raw::connect(&server).await;
    slow.begin(900 << 10, &vec![0xff; 880 << 10]).await;
    until(&server, 429, &large).await;
    // A further session is refused with that reason, while a small append still succeeds.
    let mut other = Raw::connect(&server).await;
    other.begin(900 << 10, &vec![0xff; 600 << 10]).await;
    assert_eq!(other.close_code().await, 1013);
    let mut small = Raw::connect(&server).await;
    small.send(&[append(1, 100)]).await;
    assert!(small.answers().await[0].outcome.is_ok());
    // The room is released with the message.
    slow.stream.write_all(&vec![0xff; 20 << 10]).await.expect("written");
    assert_eq!(slow.close_code().await, 1007, "it was no message");
    until(&server, 422, &large).await;
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_pauses_holds_its_room_for_a_while_only() {
    let mut limits = room(1 << 20);
    limits.body_pause = Duration::from_millis(200);
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let mut silent = Raw::connect(&server).await;
    silent.begin(900 << 10, &vec![0xff; 880 << 10]).await;
    let mut end = Vec::new();
    tokio::time::timeout(LONG, silent.stream.read_to_end(&mut end)).await.expect("it ends").ok();
    until(&server, 422, &"7".repeat(300 << 10)).await;
    server.stop().await;
}

#[tokio::test]
async fn appends_that_are_not_answered_have_the_room_of_all_bodies() {
    let (store, faults) = faulty(memory().await);
    let server = Running::start(Server::new(store).limits(room(1 << 20))).await;
    let mut session = Raw::connect(&server).await;
    for number in 1..=22 {
        faults.next_append(Fault::Delay(Duration::from_secs(3600)));
        session.send(&[append(number, 50 << 10)]).await;
    }
    session.send(&[append(23, 50 << 10)]).await;
    let refused = session.answers().await.remove(0);
    assert_eq!((refused.number, refused.outcome.expect_err("refused").code.as_str()), (23, "too_many"));
    let large = "7".repeat(300 << 10);
    until(&server, 429, &large).await;
    drop(session);
    until(&server, 422, &large).await;
    server.stop().await;
}

#[tokio::test]
async fn pages_that_nobody_takes_have_limited_room_for_a_limited_time() {
    let mut limits = Limits::default();
    limits.answer_bytes = 1 << 20;
    limits.answer_pause = Duration::from_millis(500);
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    let large = json!({ "id": "e", "type": "T", "aggregate_id": "a", "data": "x".repeat(700 << 10) }).to_string();
    server.post("/events", &large).await.ok();
    let stream = TcpStream::connect(&server.address).await.expect("connected");
    // Without a window, the head of an answer arrives, but its body is not read.
    let (mut client, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let uri = format!("http://{}/event?id=e", server.address);
    let mut ask = async || {
        let request = http::Request::get(&uri).body(()).expect("a request");
        let (answer, _) = client.send_request(request, true).expect("sent");
        answer.await.expect("answered")
    };
    let mut first = ask().await;
    assert_eq!(first.status(), 200);
    let full = async {
        loop {
            let next = ask().await;
            if next.status() == 429 {
                break;
            }
            first = next; // a machine that stood still has had the first one dropped before
        }
    };
    tokio::time::timeout(LONG, full).await.expect("there is no room for another");
    // The first one is dropped after a while, and there is room again, also for clients that read their answers.
    tokio::time::timeout(LONG, async { while ask().await.status() != 200 {} }).await.expect("there is room");
    tokio::time::timeout(LONG, async { while server.get("/event?id=e").await.status != 200 {} }).await.expect("room");
    assert_eq!(server.get("/event?id=e").await.ok()["data"].as_str().expect("text").len(), 700 << 10);
    drop((first, client));
    connection.abort();
    server.stop().await;
}

#[tokio::test]
async fn a_follower_names_few_types() {
    let server = Running::start(Server::new(memory().await)).await;
    let types = |count: usize| (0..count).map(|n| format!("type=T{n}&")).collect::<String>();
    let refused = server.get(&format!("/follow?{}limit=0", types(101))).await;
    assert_eq!((refused.status, refused.json()["option"].as_str()), (400, Some("type")));
    assert_eq!(server.get(&format!("/follow?{}limit=0", types(100))).await.status, 200);
    assert_eq!(server.get(&format!("/events?{}", types(101))).await.status, 200, "of a page they are no burden");
    server.stop().await;
}

#[tokio::test]
async fn every_resource_refuses_parameters_that_it_does_not_have() {
    let server = Running::start(Server::new(memory().await).metrics(|| "up 1\n".to_owned())).await;
    for path in ["/health", "/ready", "/metrics", "/openapi.json", "/", "/latest", "/stats"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
        let refused = server.get(&format!("{path}?x")).await;
        assert_eq!((refused.status, refused.json()["option"].as_str()), (400, Some("x")), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_has_closed_its_side_gets_its_answer() {
    let (store, faults) = faulty(memory().await);
    let server = Running::start(Server::new(store)).await;
    let body = event("one", "T", "a");
    let head = server.head("POST", "/events", &[("content-type", "application/json")], body.len());
    let is_answered = async || {
        // It takes longer than the end of the request.
        faults.next_append(Fault::Delay(Duration::from_millis(300)));
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        stream.write_all(&[&head, body.as_bytes()].concat()).await.expect("written");
        stream.shutdown().await.expect("closed");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await; // fails if it is reset
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"version\":1")
    };
    // A server that is held up for two seconds takes the client for gone.
    tokio::time::timeout(LONG, async { while !is_answered().await {} }).await.expect("it is answered");
    server.stop().await;
}

#[tokio::test]
async fn work_ends_when_its_client_is_gone() {
    let server = Running::start(Server::new(memory().await)).await;
    let following = server.stream("/follow", &[]).await;
    assert_eq!(server.get("/stats").await.ok()["server"]["followers"], 1);
    drop(following);
    let gone = async { while server.get("/stats").await.ok()["server"]["followers"] != 0 {} };
    tokio::time::timeout(LONG, gone).await.expect("it is noticed");
    server.stop().await;
}

#[tokio::test]
async fn connections_that_say_nothing_or_too_little_are_closed() {
    let mut limits = Limits::default();
    limits.head_wait = Duration::from_millis(100);
    let server = Running::start(Server::new(memory().await).limits(limits)).await;
    for beginning in [&b""[..], b"PRI * HT", b"GET /latest HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        stream.write_all(beginning).await.expect("written");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{:?}", String::from_utf8_lossy(beginning));
    }
    server.stop().await;
}

#[tokio::test]
async fn small_bodies_become_no_large_ones_for_nothing() {
    let server = Running::start(Server::new(memory().await).limits(room(1 << 20))).await;
    let post = async |encoding: &str, body: &[u8]| {
        let headers = [("content-type", "application/json"), ("content-encoding", encoding)];
        server.request("POST", "/events", &headers, body).await
    };
    // The uncompressed content counts against the limit.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut bomb, &vec![b'7'; 10 << 20]).expect("written");
    let bomb = bomb.finish().expect("finished");
    assert!(bomb.len() < 20 << 10);
    assert_eq!(post("gzip", &bomb).await.code(), "too_many");
    assert_eq!(post("gzip", &bomb[..1000]).await.code(), "malformed");
    // A small frame that requests this much memory for its window: 8 MiB are allowed.
    let frame = |window_log: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3, 0x11, 0, 0][..], b"[]"].concat();
    for window_log in [10, 23] {
        assert_eq!(post("zstd", &frame(window_log)).await.status, 200, "{window_log}");
    }
    for window_log in [24, 27, 31] {
        assert_eq!(post("zstd", &frame(window_log)).await.code(), "malformed", "{window_log}");
    }
    until(&server, 422, &"7".repeat(300 << 10)).await;
    server.stop().await;
}

/// A store whose backups continue until they are cancelled.
#[derive(Debug)]
struct Endless {
    store: Arc<dyn EventStore>,
    places: mpsc::UnboundedSender<PathBuf>,
}

#[async_trait]
impl EventStore for Endless {
    async fn backup(&self, ctx: &Context, target: &Path) -> Result<eventstore_api::BackupReport> {
        std::fs::create_dir(target).expect("made");
        std::fs::write(target.join("a file"), "of a backup").expect("written");
        self.places.send(target.to_owned()).expect("told");
        Err(ctx.done().await)
    }

    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.store.store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.store.load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.store.get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.store.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.store.aggregate_revision(ctx, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.store.wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.store.run_gc(ctx, gc).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.store.stats(ctx).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.store.close().await
    }
}

#[tokio::test]
async fn a_backup_that_nobody_waits_for_leaves_nothing() {
    let (places, mut made) = mpsc::unbounded_channel();
    let store = Arc::new(Endless { store: memory().await.backend().clone(), places }) as Arc<dyn EventStore>;
    let server = Running::start(Server::new(store)).await;
    for with_timeout in [true, false] {
        let path = if with_timeout { "/backup?timeout=100ms" } else { "/backup" };
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        stream.write_all(&server.head("POST", path, &[], 0)).await.expect("written");
        let place = tokio::time::timeout(LONG, made.recv()).await.expect("it begins").expect("a path");
        let directory = place.parent().expect("its own").to_owned();
        assert!(directory.file_name().expect("a name").to_string_lossy().starts_with("eventstore-backup-"));
        if with_timeout {
            assert!(common::answer(stream).await.text().contains("deadline_exceeded"));
        } else {
            drop(stream);
        }
        let is_gone = async {
            while directory.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, is_gone).await.expect("it is removed");
    }
    server.stop().await;
}

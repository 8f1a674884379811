//! What a client reports about its server: its identity, permissions, and failure.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backend_http::{Options, open, open_existing, open_read_only};
use base64::Engine as _;
use common::{Running, ctx, event, in_memory};
use eventstore::Store;
use eventstore::testing::{Fault, faulty};
use eventstore_api::{
    AggregateOptions, Batch, CancellationToken, Context, Error, EventStore, Expected, Gc, GcReport, LoadOptions, Page,
    PageSize, Progress, RecordedEvent, Revision, Stats, StoreOutcome, Stored, Version, async_trait, limits,
};
use eventstore_server::{Address, Listener, Server, Stores, Tls, Tokens};
use eventstore_wire::{Answer, Frame, SESSION, decode_frames, encode_answers};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// A server that gives this answer to every request.
async fn somebody_else(answer: impl Into<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let (url, answer) = (format!("http://{}", listener.local_addr().expect("an address")), answer.into());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    url
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn another_server_is_no_store() {
    for told in [
        answer("200 OK", "text/html", "<html>"),
        answer("200 OK", "application/json", "{\"hello\":1}"),
        answer("404 Not Found", "text/html", "<html>"),
        answer("401 Unauthorized", "text/plain", "no"),
        answer("302 Found", "text/html", ""),
    ] {
        let url = somebody_else(&told).await;
        for opened in [open(Options::new(&url)).await, open_existing(Options::new(&url)).await] {
            let Err(Error::Open { path, reason, .. }) = opened else { panic!("{told}: {opened:?}") };
            assert!(path == url && reason.contains("does not come from an eventstore server"), "{reason}");
        }
    }
    for told in [String::new(), "garbage\r\n\r\n".to_owned(), answer("503 Busy", "text/html", "<html>")] {
        let mut options = Options::new(somebody_else(&told).await);
        options.connect_timeout = Duration::from_millis(50);
        let opened = open(options).await;
        assert!(matches!(opened, Err(Error::Unavailable { .. })), "{told:?}: {opened:?}");
    }
}

#[tokio::test]
async fn a_server_of_another_wire_is_unsupported_and_says_what_both_speak() {
    let info = r#"{"wire":[7,8],"backend":"lmdb","latest_version":3,"writable":true,"server":"9.9.9"}"#;
    let opened = open(Options::new(somebody_else(answer("200 OK", "application/json", info)).await)).await;
    let Err(Error::Unsupported { what }) = opened else { panic!("{opened:?}") };
    assert!(what.contains("7, 8") && what.contains("this program 1") && what.contains("9.9.9"), "{what}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_an_error_and_no_memory() {
    let info = r#"{"wire":[1],"backend":"x","latest_version":0,"writable":true,"server":"1"}"#;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap_or_default();
                if !request[..read].windows(7).any(|window| window == b"/events") {
                    return stream.write_all(answer("200 OK", "application/json", info).as_bytes()).await;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.eventstore.v1\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                let piece = [b"100000\r\n".as_slice(), &vec![7; 1 << 20], b"\r\n"].concat();
                loop {
                    stream.write_all(&piece).await?; // until nobody reads it any more
                }
            });
        }
    });
    let store = open(Options::new(url)).await.expect("opened");
    let page = store.load_page(&ctx(), &LoadOptions::all(), PageSize::FIRST).await;
    assert!(matches!(page, Err(Error::Engine { .. })), "{page:?}");
}

#[tokio::test]
async fn a_store_that_was_opened_to_read_refuses_appends_and_collections_at_once() {
    let behind = in_memory();
    behind.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    let server = Running::start(Server::new(behind)).await;
    let store = open_read_only(Options::new(&server.url)).await.expect("opened");
    server.stop().await;
    let refused = store.store_batch(&ctx(), event("second", "a").into()).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    let refused = store.run_gc(&ctx(), Gc::Quick).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_store_that_is_closed_on_the_server_is_unavailable_here() {
    let behind = in_memory();
    let server = Running::start(Server::new(behind.clone())).await;
    let mut options = Options::new(&server.url);
    options.retry_for = Duration::from_millis(50);
    let store = open(options).await.expect("opened");
    store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    behind.close().await.expect("closed");
    for outcome in [
        store.store_batch(&ctx(), event("second", "a").into()).await.map(drop),
        store.store_batch(&ctx(), event("third", "a").into()).await.map(drop),
        store.latest_version(&ctx()).await.map(drop),
        store.load_page(&ctx(), &LoadOptions::all(), PageSize::FIRST).await.map(drop),
    ] {
        assert!(matches!(&outcome, Err(Error::Unavailable { url, .. }) if *url == server.url), "{outcome:?}");
    }
    store.close().await.expect("closed");
    assert!(matches!(store.latest_version(&ctx()).await, Err(Error::Closed)));
}

#[tokio::test]
async fn waiting_goes_on_over_whatever_the_server_says_until_there_is_something() {
    let problem = |status: u16, code: &str| {
        let json = format!(
            r#"{{"type":"about:blank","title":"","status":{status},"code":"{code}","detail":"x","written":"nothing","retryable":true}}"#
        );
        answer(&format!("{status} X"), "application/problem+json", &json)
    };
    let script = [
        answer("200 OK", "application/json", INFO),
        problem(504, "deadline_exceeded"),
        String::new(),
        problem(503, "unavailable"),
        problem(503, "closed"),
        problem(429, "too_many"),
        answer("502 Bad Gateway", "text/html", "<html>"),
        answer("200 OK", "application/json", r#"{"version":"#),
        answer("200 OK", "application/json", r#"{"version":3}"#),
        answer("200 OK", "application/json", r#"{"version":8}"#),
        problem(500, "corrupt"),
    ];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move {
        for told in script {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(told.as_bytes()).await;
        }
    });
    let mut options = Options::new(url);
    options.retry_for = Duration::ZERO; // it must not depend on retries
    let store = open(options).await.expect("opened");
    assert_eq!(store.wait_for_events(&ctx(), Version::new(3)).await.expect("there is something"), Version::new(8));
    let damaged = store.wait_for_events(&ctx(), Version::new(8)).await;
    assert!(matches!(damaged, Err(Error::Corrupt { .. })), "{damaged:?}");
    server.await.expect("all of it was asked for");
}

/// Replicas learn in this way that their hub is away.
#[tokio::test]
async fn waiting_that_is_not_to_outlast_an_outage_ends_with_it() {
    let behind = in_memory();
    let server = Running::start(Server::new(behind.clone())).await;
    let mut options = Options::new(&server.url);
    (options.retry_for, options.retry_waits) = (Duration::from_millis(50), false);
    let store = open(options).await.expect("opened");
    // Without an outage, it waits until its context ends.
    let soon = Context::background().with_timeout(Duration::from_millis(200));
    let waited = store.wait_for_events(&soon, Version::ZERO).await;
    assert!(matches!(waited, Err(Error::DeadlineExceeded)), "{waited:?}");
    let waiting = tokio::spawn(async move { store.wait_for_events(&ctx(), Version::ZERO).await });
    behind.close().await.expect("closed");
    let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it ends").expect("no panic");
    assert!(matches!(&ended, Err(Error::Unavailable { url, .. }) if *url == server.url), "{ended:?}");
}

const INFO: &str = r#"{"wire":[1],"backend":"x","latest_version":0,"writable":true,"server":"1"}"#;

/// On one thread, so that the order of turns is always the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_that_are_answered_together_append_in_one_message() {
    const CALLERS: usize = 64;
    const ROUNDS: usize = 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // Answers all callers at once, and counts the messages in which they came.
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let _ = stream.read(&mut vec![0; 4096]).await.expect("a request");
        stream.write_all(answer("200 OK", "application/json", INFO).as_bytes()).await.expect("written");
        let (stream, _) = listener.accept().await.expect("a connection");
        #[allow(clippy::result_large_err, reason = "the library gives the type")]
        let agree = |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SESSION));
            Ok(response)
        };
        let mut socket = accept_hdr_async(stream, agree).await.expect("a session");
        let (mut messages, mut waiting) = (0, Vec::new());
        while let Some(Ok(message)) = socket.next().await {
            let Message::Binary(message) = message else { continue };
            messages += 1;
            for frame in decode_frames(message).expect("whole") {
                let Frame::Append { number, .. } = frame else { panic!("{frame:?}") };
                let stored = Stored::new(Version::new(1), Revision::new(1), StoreOutcome::Written);
                waiting.push(Answer { number, outcome: Ok(vec![stored]) });
            }
            if waiting.len() == CALLERS {
                let answers = encode_answers(&std::mem::take(&mut waiting));
                socket.send(Message::Binary(answers.into())).await.expect("sent");
            }
        }
        messages
    });
    let store = Arc::new(open(Options::new(url)).await.expect("opened"));
    let of_callers = store.clone();
    // Begun on the thread on which they run: none of them runs before all are there.
    let callers = tokio::spawn(async move {
        let callers = (0..CALLERS).map(|caller| {
            let store = of_callers.clone();
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let batch = Batch::from(event(&format!("{caller}-{round}"), "a"));
                    store.store_batch(&ctx(), batch).await.expect("stored");
                }
            })
        });
        callers.collect::<Vec<_>>()
    });
    for caller in callers.await.expect("no panic") {
        caller.await.expect("no panic");
    }
    store.close().await.expect("closed");
    let messages = server.await.expect("no panic");
    assert!(messages <= ROUNDS + 5, "{messages} messages for {ROUNDS} rounds");
}

const READS: &str = "reads-0123456789abcdef";
const WRITES: &str = "writes-0123456789abcdef";

#[tokio::test]
async fn tokens_are_sent_and_shown_to_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tokens, one) = (directory.path().join("tokens"), directory.path().join("one"));
    std::fs::write(&tokens, format!("{READS} read *\n{WRITES} write,create team-*\n")).expect("written");
    let stores = Stores::new(directory.path().join("stores")).engine("lmdb");
    let server = Running::start(Server::of_many(stores).tokens(Tokens::from_file(&tokens).expect("read"))).await;
    let base = format!("{}/stores/team-a", server.url);
    let with = |token: &str| {
        let mut options = Options::new(&base);
        options.token = Some(token.to_owned());
        options
    };
    let is_missing = open_existing(with(WRITES)).await;
    assert!(matches!(is_missing, Err(Error::Open { .. })), "{is_missing:?}");
    for (options, what) in [
        (Options::new(&base), "without a token"),
        (with("wrong-0123456789abcdef"), "with another token"),
        (with(READS), "that may not create"),
    ] {
        let refused = open(options).await;
        let Err(Error::Forbidden { what: told }) = refused else { panic!("{what}: {refused:?}") };
        assert!(!told.contains("0123456789abcdef"), "{told}");
    }
    std::fs::write(&one, format!("{WRITES}\nmore\n")).expect("written");
    let url = format!("{base}?token_file={}", one.display());
    let store = open(Options::from_url(&url).expect("a URL")).await.expect("made");
    assert!(!format!("{store:?}").contains(WRITES));
    store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    // It exists now, so a token that may only read it need not create it.
    let reader = open(with(READS)).await.expect("opened");
    assert_eq!(reader.latest_version(&ctx()).await.expect("read"), Version::new(1));
    let refused = reader.store_batch(&ctx(), event("second", "a").into()).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let refused = reader.verify(&ctx()).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let missing = directory.path().join("missing");
    for (path, text, told) in [
        (&one, "\n", "is empty"),
        (&one, "two words", "the server's file"),
        (&one, "0123 read *", "without its rights"),
        (&missing, "", "cannot be read"),
    ] {
        if !text.is_empty() {
            std::fs::write(path, text).expect("written");
        }
        let mut options = Options::new(&base);
        options.token_file = Some(path.clone());
        let Err(Error::InvalidOption { option, reason }) = open(options).await else { panic!("{text:?} is no token") };
        assert_eq!(option, "token_file");
        assert!(reason.contains(told) && reason.contains(path.to_str().expect("text")), "{reason}");
    }
    drop((store, reader));
    server.stop().await;
}

async fn works(options: Options) {
    let store = open(options).await.expect("opened");
    let stored = store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    assert_eq!((stored[0].version, stored[0].outcome), (Version::new(1), StoreOutcome::Written));
    assert_eq!(store.get(&ctx(), "first").await.expect("read").event.id(), "first");
    let stats = store.stats(&ctx()).await.expect("read");
    assert_eq!(stats.latest_version, Version::new(1));
    assert_eq!(stats.store_id.map(|id| id.len()), Some(32));
    store.close().await.expect("closed");
}

#[tokio::test]
async fn a_server_on_a_unix_socket_is_reached() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s.sock");
    let listener = Listener::bind(&Address::Unix(path.clone())).await.expect("bound");
    let server = Running::on(Server::new(in_memory()).only_this_machine(), listener);
    works(Options::from_url(&format!("unix:{}", path.display())).expect("a URL")).await;
    server.stop().await;
    let mut options = Options::new(format!("unix:{}", path.display()));
    options.connect_timeout = Duration::from_millis(50);
    let gone = open(options).await;
    assert!(matches!(&gone, Err(Error::Unavailable { reason, .. }) if reason.contains("reached")), "{gone:?}");
    let stores = Stores::new(directory.path().join("stores")).engine("lmdb");
    let listener = Listener::bind(&Address::Unix(path.clone())).await.expect("bound");
    let server = Running::on(Server::of_many(stores).only_this_machine(), listener);
    works(Options::new(format!("unix:{}:/stores/one", path.display()))).await;
    server.stop().await;
}

fn pem(path: &Path, label: &str, der: &[u8]) {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    let text = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    std::fs::write(path, text).expect("written");
}

#[tokio::test]
async fn a_server_with_a_certificate_is_trusted_if_its_certificate_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let issued = |name: &str, host: &str| {
        let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).expect("made");
        pem(&file(&format!("{name}.pem")), "CERTIFICATE", made.cert.der());
        pem(&file(&format!("{name}.key")), "PRIVATE KEY", &made.signing_key.serialize_der());
    };
    issued("sound", "localhost");
    issued("other", "localhost");
    let tls = Tls::from_files(&file("sound.pem"), &file("sound.key")).expect("read");
    let listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("bound").tls(tls.clone());
    let url = listener.url().replace("127.0.0.1", "localhost");
    let server = Running::on(Server::new(in_memory()), listener);
    works(Options::from_url(&format!("{url}?ca_file={}", file("sound.pem").display())).expect("a URL")).await;
    let with = |ca_file: &str, url: &str| {
        let mut options = Options::new(url);
        options.ca_file = Some(file(ca_file));
        options
    };
    // No other CA helps against another name.
    for (options, told) in
        [(with("other.pem", &url), "by ca_file=PATH"), (with("sound.pem", &server.url), "under a name that")]
    {
        let refused = open(options).await;
        assert!(matches!(&refused, Err(Error::Open { reason, .. }) if reason.contains(told)), "{told}: {refused:?}");
    }
    // The kinds of servers are distinguished at once: a wrong scheme does not become right.
    let plain = Running::start(Server::new(in_memory())).await;
    let to_tls = open(Options::new(url.replace("https:", "http:"))).await;
    let to_plain = open(with("sound.pem", &plain.url.replace("http:", "https:"))).await;
    for (refused, right) in [(to_tls, "https://"), (to_plain, "http://")] {
        assert!(matches!(&refused, Err(Error::Open { reason, .. }) if reason.contains(right)), "{refused:?}");
    }
    plain.stop().await;
    for (certificate, key, told) in [
        ("missing.pem", "sound.key", "cannot read the certificate"),
        ("sound.pem", "missing.key", "cannot read the private key"),
        ("sound.pem", "other.key", "issued together"),
        ("sound.key", "sound.key", "has no certificate"),
        ("sound.pem", "sound.pem", "has no private key"),
    ] {
        let refused = Tls::from_files(&file(certificate), &file(key)).expect_err(told).to_string();
        assert!(refused.contains(told) && refused.contains(directory.path().to_str().expect("text")), "{refused}");
    }
    // Another certificate, while it runs, for new connections.
    tls.replace(Tls::from_files(&file("other.pem"), &file("other.key")).expect("read"));
    let opened = open(with("other.pem", &url)).await;
    assert!(opened.is_ok(), "{opened:?}");
    let refused = open(with("sound.pem", &url)).await;
    assert!(matches!(&refused, Err(Error::Open { reason, .. }) if reason.contains("ca_file")), "{refused:?}");
    let mut old = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    old.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    pem(&file("old.pem"), "CERTIFICATE", old.self_signed(&key).expect("signed").der());
    pem(&file("old.key"), "PRIVATE KEY", &key.serialize_der());
    tls.replace(Tls::from_files(&file("old.pem"), &file("old.key")).expect("read"));
    let refused = open(with("old.pem", &url)).await;
    assert!(matches!(&refused, Err(Error::Open { reason, .. }) if reason.contains("renew")), "{refused:?}");
    std::fs::write(file("empty.pem"), "nothing").expect("written");
    for name in ["empty.pem", "missing.pem"] {
        let refused = open(with(name, &url)).await;
        assert!(matches!(&refused, Err(Error::InvalidOption { option, .. }) if option == "ca_file"), "{refused:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_too_long_for_a_request_is_answered_as_in_process() {
    let behind = in_memory();
    behind.store_batch(&ctx(), [event("first", "a"), event("second", "b")].into()).await.expect("stored");
    let server = Running::start(Server::new(behind.clone())).await;
    let store = open(Options::new(&server.url)).await.expect("opened");
    let long = "é".repeat(300_000);
    let size = PageSize::new(usize::MAX, usize::MAX);
    for options in [
        LoadOptions::all().aggregate(long.as_str()),
        LoadOptions::all().aggregate_prefix(long.as_str()),
        LoadOptions::all().types([long.as_str()]),
        LoadOptions::all().types([long.as_str(), "T"]),
        LoadOptions::all().types([""; 0]),
    ] {
        let expected = behind.load_page(&ctx(), &options, size).await.expect("read");
        let page = store.load_page(&ctx(), &options, size).await.expect("read");
        assert_eq!((page.events, page.next, page.head), (expected.events, expected.next, expected.head));
    }
    for id in ["", &long, &long[..limits::MAX_ID_LEN + 1]] {
        assert!(matches!(store.get(&ctx(), id).await, Err(Error::EventNotFound { .. })));
        assert_eq!(store.aggregate_revision(&ctx(), id).await.expect("read"), Revision::ZERO);
    }
    let after = |text: &str| AggregateOptions::all().after(text);
    let above = format!("a{long}");
    for options in [after(&long), after(&above), AggregateOptions::all().prefix(long.as_str()), after("")] {
        let expected = behind.list_aggregates(&ctx(), &options, 10).await.expect("read");
        let page = store.list_aggregates(&ctx(), &options, 10).await.expect("read");
        assert_eq!((page.aggregates, page.next), (expected.aggregates, expected.next));
    }
    let many = LoadOptions::all().types((0..10_000).map(|number| format!("type-{number}")));
    let refused = store.load_page(&ctx(), &many, size).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_the_contract_refuses_is_refused_before_anything_is_sent() {
    let server = Running::start(Server::new(in_memory())).await;
    let store = open(Options::new(&server.url)).await.expect("opened");
    server.stop().await;
    let two = Batch::from([event("one", "a"), event("two", "b")]).expected(Expected::NoEvents);
    assert!(matches!(store.store_batch(&ctx(), two).await, Err(Error::InvalidEvent { field: "expected", .. })));
    assert!(store.store_batch(&ctx(), Batch::default()).await.expect("nothing to do").is_empty());
    let over = Context::background().with_timeout(Duration::ZERO);
    assert!(matches!(store.store_batch(&over, event("late", "a").into()).await, Err(Error::DeadlineExceeded)));
    assert!(matches!(store.latest_version(&over).await, Err(Error::DeadlineExceeded)));
}

/// A store whose appends are delayed.
#[derive(Debug)]
struct Slow {
    store: Arc<dyn EventStore>,
    gate: Semaphore,
    begun: AtomicUsize,
}

#[async_trait]
impl EventStore for Slow {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>, Error> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let _open = ctx.run(self.gate.acquire()).await?;
        self.store.store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page, Error> {
        self.store.load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent, Error> {
        self.store.get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version, Error> {
        self.store.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision, Error> {
        self.store.aggregate_revision(ctx, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version, Error> {
        self.store.wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport, Error> {
        self.store.run_gc(ctx, gc).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats, Error> {
        self.store.stats(ctx).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.store.close().await
    }
}

/// Checks that an append whose end began then was ended as the server says. If its answer takes longer than the client
/// waits for it, the outcome is unknown.
fn is_ended(outcome: &Result<Vec<Stored>, Error>, code: &str, began: Instant) {
    let Err(error) = outcome else { panic!("{outcome:?}") };
    let is_slow = began.elapsed() >= Duration::from_millis(250) && matches!(error, Error::OutcomeUnknown { .. });
    assert!(error.code() == code || is_slow, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_cancelled_while_the_server_has_it_says_what_the_server_says_and_disturbs_no_other() {
    let slow = Arc::new(Slow { store: in_memory(), gate: Semaphore::new(0), begun: AtomicUsize::new(0) });
    let server = Running::start(Server::new(slow.clone() as Arc<dyn EventStore>)).await;
    let store = open(Options::new(&server.url)).await.expect("opened");
    #[allow(clippy::async_yields_async, reason = "it waits until the append is with the server, and not for its end")]
    let begin = async |id: &str, ctx: Context| {
        let (store, batch, before) = (store.clone(), Batch::from(event(id, "a")), slow.begun.load(Ordering::Relaxed));
        let append = tokio::spawn(async move { store.store_batch(&ctx, batch).await });
        while slow.begun.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
        append
    };
    let kept = begin("kept", Context::background()).await;
    for number in 0..20 {
        let stop = CancellationToken::new();
        let ctx = Context::background().with_cancellation(stop.clone());
        let cancelled = begin(&format!("cancelled-{number}"), ctx).await;
        let began = Instant::now();
        stop.cancel();
        let outcome = cancelled.await.expect("no panic");
        is_ended(&outcome, "cancelled", began);
        let dropped = begin(&format!("dropped-{number}"), Context::background()).await;
        dropped.abort();
        assert!(dropped.await.expect_err("it waits").is_cancelled());
        let began = Instant::now();
        let soon = Context::background().with_timeout(Duration::from_millis(5));
        let late = store.store_batch(&soon, event(&format!("late-{number}"), "a").into()).await;
        is_ended(&late, "deadline_exceeded", began); // there is a connection, and it works
    }
    assert_eq!(server.stats().await["server"]["sessions"], 1);
    slow.gate.add_permits(1);
    let stored = kept.await.expect("no panic").expect("stored");
    assert_eq!(stored[0].version, Version::new(1));
    store.close().await.expect("closed");
    assert_eq!(slow.latest_version(&ctx()).await.expect("read"), Version::new(1), "nothing else was");
}

/// On another runtime: that of the test has a single thread, on which the client runs.
async fn serve_elsewhere(store: Arc<dyn EventStore>) -> (tokio::runtime::Runtime, Running) {
    let server = tokio::task::spawn_blocking(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("built");
        let server = runtime.block_on(Running::start(Server::new(store)));
        (runtime, server)
    });
    server.await.expect("no panic")
}

/// As on a machine that was suspended: the server is asked before it counts as lost.
#[tokio::test]
async fn a_client_that_stood_still_does_not_take_its_server_for_lost() {
    let slow = Arc::new(Slow { store: in_memory(), gate: Semaphore::new(0), begun: AtomicUsize::new(0) });
    let (runtime, server) = serve_elsewhere(slow.clone()).await;
    let mut options = Options::new(&server.url);
    options.lost_after = Duration::from_secs(2);
    let store = open(options).await.expect("opened");
    let append = tokio::spawn(async move { store.store_batch(&ctx(), event("one", "a").into()).await });
    while slow.begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    std::thread::sleep(Duration::from_secs(3)); // nothing of the client runs
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    slow.gate.add_permits(1);
    let stored = append.await.expect("no panic").expect("the server was there all the time");
    assert_eq!(stored[0].version, Version::new(1));
    runtime.shutdown_background();
}

#[tokio::test]
async fn a_listener_of_progress_may_wait_for_others_who_read() {
    let behind = in_memory();
    behind.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    let (runtime, server) = serve_elsewhere(behind).await;
    let store = open(Options::new(&server.url)).await.expect("opened");
    let (reader, read) = (store.clone(), Arc::new(AtomicUsize::new(0)));
    let told = read.clone();
    let progress = Progress::new(move |_, _| {
        let (reader, told) = (reader.clone(), told.clone());
        let reading = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("built");
            let latest = runtime.block_on(reader.latest_version(&ctx())).expect("read");
            told.fetch_add(latest.get() as usize, Ordering::Relaxed);
        });
        reading.join().expect("no panic");
    });
    let report = store.verify(&ctx().with_progress(progress)).await.expect("verified");
    assert!(report.is_clean() && read.load(Ordering::Relaxed) > 0);
    runtime.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_finishes_what_was_accepted() {
    let behind = in_memory();
    let server = Running::start(Server::new(behind.clone())).await;
    for round in 0..20 {
        let store = open(Options::new(&server.url)).await.expect("opened");
        let appends: Vec<_> = (0..50)
            .map(|number| {
                let (store, batch) = (store.clone(), Batch::from(event(&format!("{round}-{number}"), "a")));
                tokio::spawn(async move { store.store_batch(&Context::background(), batch).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let (one, two) = tokio::join!(store.close(), store.close());
        one.and(two).expect("closed");
        for append in appends {
            match append.await.expect("no panic") {
                Ok(_) | Err(Error::Closed) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(matches!(store.store_batch(&ctx(), event("late", "a").into()).await, Err(Error::Closed)));
    }
    while server.stats().await["server"]["sessions"] != 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_stops_answers_the_appends_that_it_has_taken() {
    let (store, faults) = faulty(Store::from(in_memory()));
    let server = Running::start(Server::new(store)).await;
    let mut options = Options::new(&server.url);
    options.retry_for = Duration::from_millis(100);
    let client = open(options).await.expect("opened");
    // It is with the store while the server stops.
    faults.next_append(Fault::Delay(Duration::from_millis(300)));
    let appending = {
        let client = client.clone();
        tokio::spawn(async move { client.store_batch(&ctx(), event("one", "a").into()).await })
    };
    while faults.left() > 0 {
        tokio::task::yield_now().await;
    }
    server.stop().await;
    let stored = appending.await.expect("no panic").expect("it was answered");
    assert_eq!(stored[0].outcome, StoreOutcome::Written);
}

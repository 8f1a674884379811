//! Faults of the store behind the server and of clients are reported, and do not affect others.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, Running, event, memory};
use eventstore::testing::{Fault, faulty};
use eventstore_api::{
    Batch, Context, Error, Event, EventStore, Gc, GcReport, LoadOptions, Page, PageSize, RecordedEvent, Revision,
    Stats, Stored, Version, async_trait,
};
use eventstore_server::Server;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

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

/// A store on a server of its own that is away.
#[derive(Debug)]
struct Away {
    /// It says nothing at all, whatever the context says.
    is_silent: bool,
}

impl Away {
    async fn fail<T>(&self) -> Result<T, Error> {
        if self.is_silent {
            std::future::pending::<()>().await;
        }
        Err(Error::Unavailable { url: "postgres://db/shop".to_owned(), reason: "refused".to_owned(), source: None })
    }
}

#[async_trait]
impl EventStore for Away {
    async fn store_batch(&self, _: &Context, _: Batch) -> Result<Vec<Stored>, Error> {
        self.fail().await
    }

    async fn load_page(&self, _: &Context, _: &LoadOptions, _: PageSize) -> Result<Page, Error> {
        self.fail().await
    }

    async fn get(&self, _: &Context, _: &str) -> Result<RecordedEvent, Error> {
        self.fail().await
    }

    async fn latest_version(&self, _: &Context) -> Result<Version, Error> {
        self.fail().await
    }

    async fn aggregate_revision(&self, _: &Context, _: &str) -> Result<Revision, Error> {
        self.fail().await
    }

    async fn wait_for_events(&self, _: &Context, _: Version) -> Result<Version, Error> {
        self.fail().await
    }

    async fn run_gc(&self, _: &Context, _: Gc) -> Result<GcReport, Error> {
        self.fail().await
    }

    async fn stats(&self, _: &Context) -> Result<Stats, Error> {
        self.fail().await
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A store whose server is away for some reads, from the first news on.
#[derive(Debug)]
struct AwayForAWhile {
    store: Arc<dyn EventStore>,
    /// How many reads still fail once there is news.
    failures: AtomicUsize,
    has_news: AtomicBool,
}

impl AwayForAWhile {
    fn check(&self) -> Result<(), Error> {
        let fails = |left: usize| left.checked_sub(1);
        let is_away = self.has_news.load(Ordering::SeqCst)
            && self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok();
        match is_away {
            true => {
                Err(Error::Unavailable { url: "postgres://db".to_owned(), reason: "refused".to_owned(), source: None })
            }
            false => Ok(()),
        }
    }
}

#[async_trait]
impl EventStore for AwayForAWhile {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>, Error> {
        self.store.store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page, Error> {
        self.check()?;
        self.store.load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent, Error> {
        self.store.get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version, Error> {
        self.check()?;
        self.store.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision, Error> {
        self.store.aggregate_revision(ctx, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version, Error> {
        let head = self.store.wait_for_events(ctx, after).await?;
        self.has_news.store(true, Ordering::SeqCst);
        Ok(head)
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

#[tokio::test]
async fn followers_outlast_a_store_that_is_away_while_news_are_read() {
    let store: Arc<dyn EventStore> = Arc::new(AwayForAWhile {
        store: memory().await.backend().clone(),
        failures: AtomicUsize::new(3),
        has_news: AtomicBool::new(false),
    });
    let server = Running::start(Server::new(store.clone())).await;
    server.post("/events", &event("one", "T", "a")).await.ok();
    let mut following = server.stream("/follow", &[]).await;
    assert_eq!(following.event().await["event"]["id"], "one");
    server.post("/events", &event("two", "T", "a")).await.ok();
    let next = following.event().await;
    assert_eq!(next["event"]["id"], "two", "{next}");
    drop(following);
    server.stop().await;
}

#[tokio::test]
async fn a_store_that_says_nothing_is_not_ready_and_the_server_says_so() {
    let store = Arc::new(Away { is_silent: true }) as Arc<dyn EventStore>;
    let server = Running::start(Server::new(store)).await;
    server.get("/health").await.ok();
    let (not_ready, not_opened) =
        tokio::join!(server.request_once("GET", "/ready", &[], b""), server.request_once("GET", "/", &[], b""));
    for answer in [not_ready, not_opened] {
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"));
        assert!(answer.json()["detail"].as_str().expect("text").contains("has not answered within"), "{answer:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_is_told_from_the_server_that_serves_it() {
    let store = Arc::new(Away { is_silent: false }) as Arc<dyn EventStore>;
    let server = Running::start(Server::new(store)).await;
    let event = event("one", "T", "a");
    // Whoever waits does not wait for an hour.
    let (ready, opened, read, waited, appended) = tokio::join!(
        server.get("/ready"),
        server.get("/"),
        server.get("/latest"),
        server.get("/wait?timeout=1h"),
        server.post("/events", &event)
    );
    for answer in [ready, opened, read, waited, appended] {
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"));
        let problem = answer.json();
        assert_eq!((&problem["written"], &problem["retryable"]), (&json!("nothing"), &json!(true)));
        assert_eq!(problem["reason"], "it serves postgres://db/shop, which is not available: refused");
    }
    server.stop().await;
}

/// What a store is told and tells about a wait.
#[derive(Debug, PartialEq)]
enum Wait {
    /// It begins, and has to end at this time.
    Begins(Option<Instant>),
    Ends,
}

/// An empty store that reports the waits for its events, which take as long as they are wanted.
#[derive(Debug)]
struct Waits {
    told: mpsc::UnboundedSender<Wait>,
    /// Its server goes away when somebody waits.
    goes_away: bool,
    is_away: AtomicBool,
}

impl Waits {
    /// The store, and what it reports.
    fn store(goes_away: bool) -> (Arc<dyn EventStore>, mpsc::UnboundedReceiver<Wait>) {
        let (told, waits) = mpsc::unbounded_channel();
        (Arc::new(Waits { told, goes_away, is_away: AtomicBool::new(false) }), waits)
    }

    fn check(&self) -> Result<(), Error> {
        let (url, reason) = ("postgres://db/shop".to_owned(), "refused".to_owned());
        match self.is_away.load(Ordering::SeqCst) {
            true => Err(Error::Unavailable { url, reason, source: None }),
            false => Ok(()),
        }
    }
}

async fn next(waits: &mut mpsc::UnboundedReceiver<Wait>) -> Wait {
    tokio::time::timeout(LONG, waits.recv()).await.expect("it is told").expect("the store is there")
}

#[async_trait]
impl EventStore for Waits {
    async fn wait_for_events(&self, ctx: &Context, _: Version) -> Result<Version, Error> {
        struct End<'w>(&'w Waits);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                let _ = self.0.told.send(Wait::Ends); // fails if the test has ended
            }
        }
        let _ = self.told.send(Wait::Begins(ctx.deadline()));
        let _end = End(self);
        self.is_away.store(self.goes_away, Ordering::SeqCst);
        self.check()?;
        std::future::pending().await
    }

    async fn load_page(&self, _: &Context, options: &LoadOptions, _: PageSize) -> Result<Page, Error> {
        self.check()?;
        Ok(Page::new(options, Vec::new(), Version::ZERO, true))
    }

    async fn latest_version(&self, _: &Context) -> Result<Version, Error> {
        self.check()?;
        Ok(Version::ZERO)
    }

    async fn store_batch(&self, _: &Context, _: Batch) -> Result<Vec<Stored>, Error> {
        Err(Error::Closed)
    }

    async fn get(&self, _: &Context, id: &str) -> Result<RecordedEvent, Error> {
        Err(Error::EventNotFound { id: id.to_owned() })
    }

    async fn aggregate_revision(&self, _: &Context, _: &str) -> Result<Revision, Error> {
        Ok(Revision::ZERO)
    }

    async fn run_gc(&self, _: &Context, _: Gc) -> Result<GcReport, Error> {
        Ok(GcReport::default())
    }

    async fn stats(&self, _: &Context) -> Result<Stats, Error> {
        Ok(Stats::default())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[tokio::test]
async fn a_store_is_asked_once_by_each_who_waits_and_once_for_all_followers() {
    let (store, mut waits) = Waits::store(false);
    let server = Running::start(Server::new(store)).await;
    // For as long as the client asks.
    let asked = Instant::now();
    let mut client = TcpStream::connect(&server.address).await.expect("connected");
    client.write_all(&server.head("GET", "/wait?timeout=1h", &[], 0)).await.expect("written");
    let Wait::Begins(Some(until)) = next(&mut waits).await else { panic!("without a deadline") };
    assert!(until >= asked + Duration::from_secs(3600), "{:?} too early", asked + Duration::from_secs(3600) - until);
    drop(client);
    assert_eq!(next(&mut waits).await, Wait::Ends);
    // For as long as anybody follows.
    let (first, second) = (server.stream("/follow", &[]).await, server.stream("/follow", &[]).await);
    assert_eq!(next(&mut waits).await, Wait::Begins(None));
    drop((first, second));
    assert_eq!(next(&mut waits).await, Wait::Ends);
    let third = server.stream("/follow", &[]).await;
    assert_eq!(next(&mut waits).await, Wait::Begins(None));
    drop(third);
    server.stop().await;
    assert_eq!(next(&mut waits).await, Wait::Ends);
}

#[tokio::test]
async fn followers_stay_while_the_server_of_the_store_is_away() {
    let (store, mut waits) = Waits::store(true);
    let server = Running::start(Server::new(store)).await;
    let _follower = server.stream("/follow", &[]).await;
    for _ in 0..2 {
        assert_eq!(next(&mut waits).await, Wait::Begins(None), "it is asked again");
        assert_eq!(next(&mut waits).await, Wait::Ends);
    }
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

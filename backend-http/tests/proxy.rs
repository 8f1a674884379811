//! Connections between client and server are cut, stall, and corrupt data; and servers are killed.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use backend_http::{HttpStore, Options, open};
use common::{LONG, Running, ctx, event, in_memory};
use conformance::{Outcome, Profile, Suite};
use cutting_proxy::{Fate, Proxy};
use eventstore_api::{
    Batch, CancellationToken, Context, Error, Event, EventStore, EventStoreExt, Expected, LoadOptions, PageSize,
    RecordedEvent, StoreOutcome, Stored, Version,
};
use eventstore_server::Server;
use tokio::sync::Mutex;

async fn serve(store: &Arc<dyn EventStore>) -> Running {
    Running::start(Server::new(store.clone())).await
}

async fn client(url: &str, change: impl FnOnce(&mut Options)) -> HttpStore {
    let mut options = Options::new(url);
    options.connect_timeout = LONG;
    change(&mut options);
    open(options).await.expect("opened")
}

/// All events of a store. They must be complete.
async fn all(store: &impl EventStore) -> Vec<RecordedEvent> {
    let page = store.load_page(&ctx(), &LoadOptions::all(), PageSize::new(10_000, 16 << 20)).await.expect("a page");
    assert!(page.next.is_none());
    assert!(page.events.iter().zip(1..).all(|(event, version)| event.version.get() == version));
    page.events
}

/// How often each id occurs.
fn ids(events: &[RecordedEvent]) -> HashMap<&str, usize> {
    let mut ids = HashMap::new();
    for event in events {
        *ids.entry(event.event.id()).or_default() += 1;
    }
    ids
}

/// Appends until the outcome is known, as callers should do after `OutcomeUnknown` or `Unavailable`.
async fn append_surely(store: &HttpStore, batch: Batch) -> Result<Vec<Stored>, Error> {
    loop {
        match store.store_batch(&ctx(), batch.clone()).await {
            Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. }) => tokio::task::yield_now().await,
            outcome => return outcome,
        }
    }
}

/// The bytes of a session with one append, from the client and from the server, up to the append and in total.
struct Session {
    handshake: (u64, u64),
    whole: (u64, u64),
}

async fn session(server: &Running) -> Session {
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |_| {}).await;
    let count = |proxy: &Proxy| {
        let connections = proxy.connections();
        let session = connections.get(1)?;
        Some((session.requests.load(Ordering::Relaxed), session.answers.load(Ordering::Relaxed)))
    };
    // An event of another size: the difference is known.
    store.store_batch(&ctx(), event("measured", "measured").into()).await.expect("stored");
    let first = count(&proxy).expect("a session");
    store.store_batch(&ctx(), event("measured", "measured").into()).await.expect("stored");
    let second = count(&proxy).expect("a session");
    let message = (second.0 - first.0, second.1 - first.1);
    Session { handshake: (first.0 - message.0, first.1 - message.1), whole: first }
}

/// Cuts a session at each byte, in one direction.
async fn cut_everywhere(fate: fn(u64) -> Fate, of: fn(&Session) -> (u64, u64)) {
    let behind = in_memory();
    let server = serve(&behind).await;
    let (handshake, whole) = of(&session(&server).await);
    let (mut unknown, mut done) = (0, 0);
    // Also a little further: then it succeeds.
    for at in 0..=whole + 3 {
        let proxy = Proxy::start(server.address()).await;
        let store = client(&proxy.url, |_| {}).await;
        proxy.next([fate(at)]);
        let id = format!("cut-at-{at:04}");
        let batch = Batch::from(event(&id, "measured"));
        match store.store_batch(&ctx(), batch.clone()).await {
            Ok(_) => done += 1,
            Err(Error::OutcomeUnknown { reason, .. }) => {
                assert!(at >= handshake, "nothing of the append was sent at byte {at} of {handshake}: {reason}");
                unknown += 1;
            }
            Err(error) => panic!("byte {at}: {error:?}"),
        }
        let again = append_surely(&store, batch).await.expect("resolved");
        let there = behind.get(&ctx(), &id).await.expect("stored");
        assert_eq!((again[0].version, again.len()), (there.version, 1));
        store.close().await.expect("closed");
    }
    assert!(unknown > 0 && done > handshake, "{unknown} {done}");
    let events = all(&behind).await;
    assert!(ids(&events).values().all(|&count| count == 1));
    assert_eq!(events.len() as u64, whole + 4 + 1, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_cut_at_any_byte_is_sent_again_only_if_it_was_not_sent() {
    cut_everywhere(Fate::CutRequest, |session| (session.handshake.0, session.whole.0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_answer_is_cut_at_any_byte_is_unknown_and_stored_once() {
    cut_everywhere(Fate::CutAnswer, |session| (session.handshake.1, session.whole.1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_cut_while_it_is_written_is_unknown() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |_| {}).await;
    proxy.next([Fate::CutRequest(1 << 20)]);
    // More than the system buffers.
    let parts = (0..3).map(|part| Event::builder("T", "large").id(format!("large-{part}")).data(vec![7; 15 << 20]));
    let batch = Batch::new(parts.map(|part| part.build().expect("valid")).collect());
    let append = store.store_batch(&ctx(), batch.clone()).await;
    assert!(matches!(append, Err(Error::OutcomeUnknown { .. })), "{append:?}");
    append_surely(&store, batch).await.expect("resolved");
    assert_eq!(behind.latest_version(&ctx()).await.expect("read"), Version::new(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_answer_to_an_append_is_no_wrong_place() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let bytes = session(&server).await.whole.1;
    for at in 0..bytes {
        let proxy = Proxy::start(server.address()).await;
        let store = client(&proxy.url, |options| options.lost_after = Duration::from_millis(300)).await;
        proxy.next([Fate::Damage(at)]);
        let id = format!("damaged-{at:04}");
        let batch = Batch::from(event(&id, "measured"));
        match store.store_batch(&ctx(), batch.clone()).await {
            Ok(stored) => assert_eq!(stored[0].version, behind.get(&ctx(), &id).await.expect("there").version, "{at}"),
            // The damage may be in the handshake, whose answer is then not recognised.
            Err(Error::OutcomeUnknown { .. } | Error::Open { .. } | Error::Unavailable { .. }) => {}
            Err(error) => panic!("byte {at}: {error:?}"),
        }
        append_surely(&store, batch).await.expect("resolved");
    }
    let events = all(&behind).await;
    assert!(events.len() as u64 == bytes + 1 && ids(&events).values().all(|&count| count == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_is_cut_at_any_byte_is_read_again() {
    let behind = in_memory();
    for number in 0..20 {
        behind.store_batch(&ctx(), event(&format!("e{number}"), "a").into()).await.expect("stored");
    }
    let expected = all(&behind).await;
    let server = serve(&behind).await;
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |_| {}).await;
    let measured = |proxy: &Proxy| {
        let traffic = proxy.connections().pop().expect("one");
        (traffic.requests.load(Ordering::Relaxed), traffic.answers.load(Ordering::Relaxed))
    };
    proxy.cut_all().await;
    assert_eq!(all(&store).await, expected);
    let (requests, answers) = measured(&proxy);
    let cuts = (0..=requests).map(Fate::CutRequest).chain((0..=answers).map(Fate::CutAnswer));
    for fate in cuts {
        proxy.cut_all().await;
        proxy.next([fate]);
        assert_eq!(all(&store).await, expected, "{fate:?}");
    }
    // A damaged answer is never accepted as an answer of the server.
    for at in 0..answers {
        proxy.cut_all().await;
        proxy.next([Fate::Damage(at)]);
        // The head of the answer may be damaged: another status, length or media type.
        let is_head = at < 400;
        let ctx = if is_head { Context::background().with_timeout(Duration::from_millis(300)) } else { ctx() };
        match store.load_page(&ctx, &LoadOptions::all(), PageSize::new(10_000, 16 << 20)).await {
            Ok(page) => assert_eq!((page.events, page.next), (expected.clone(), None), "{at}"),
            Err(error) => assert!(is_head, "byte {at}: {error:?}"),
        }
    }
}

/// A request may be given to a connection just when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_meets_the_end_of_its_connection_is_answered() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |_| {}).await;
    for _ in 0..3_000 {
        store.latest_version(&ctx()).await.expect("answered");
        proxy.cut_soon();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_without_a_server_is_sent_later_or_unavailable_but_never_unknown() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let proxy = Proxy::start(server.address()).await;
    let hasty = client(&proxy.url, |options| options.retry_for = Duration::ZERO).await;
    let patient = client(&proxy.url, |_| {}).await;
    proxy.refuse(true);
    proxy.cut_all().await;
    for number in 0..3 {
        let append = hasty.store_batch(&ctx(), event(&format!("hasty-{number}"), "a").into()).await;
        let Err(Error::Unavailable { url, reason, .. }) = append else { panic!("{append:?}") };
        assert!(url == proxy.url && !reason.is_empty());
        assert!(matches!(hasty.latest_version(&ctx()).await, Err(Error::Unavailable { .. })));
    }
    let soon = Context::background().with_timeout(Duration::from_millis(100));
    let append = patient.store_batch(&soon, event("late", "a").into()).await;
    // The latter if not even an attempt has failed in this time.
    assert!(matches!(append, Err(Error::Unavailable { .. } | Error::DeadlineExceeded)), "{append:?}");
    let stop = CancellationToken::new();
    let cancelled = Context::background().with_cancellation(stop.clone());
    let append = patient.store_batch(&cancelled, event("cancelled", "a").into());
    let (append, ()) = tokio::join!(append, async {
        tokio::task::yield_now().await;
        stop.cancel();
    });
    assert!(matches!(append, Err(Error::Cancelled)), "{append:?}");
    let (waiting, reading) = {
        let (one, two) = (patient.clone(), patient.clone());
        let append = async move { one.store_batch(&ctx(), event("patient", "a").into()).await };
        (tokio::spawn(append), tokio::spawn(async move { two.latest_version(&ctx()).await }))
    };
    // Wait until there were attempts.
    let before = proxy.refused();
    while proxy.refused() < before + 4 {
        tokio::task::yield_now().await;
    }
    proxy.refuse(false);
    waiting.await.expect("no panic").expect("sent when it could be");
    reading.await.expect("no panic").expect("answered when it could be");
    assert_eq!(ids(&all(&behind).await).into_keys().collect::<Vec<_>>(), ["patient"]);
}

/// Whether an append may arrive. With [`Fate::Pass`], connections are refused.
fn fate_lets_through(fate: Fate) -> bool {
    !matches!(fate, Fate::Pass | Fate::StallRequest(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_were_dropped_while_there_is_no_server_leave_nothing() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |_| {}).await;
    for fate in [Fate::Pass, Fate::StallRequest(0), Fate::StallRequest(2000), Fate::StallAnswer(200)] {
        proxy.refuse(fate == Fate::Pass);
        proxy.others(fate);
        proxy.cut_all().await;
        let data = eventstore_api::Bytes::from(vec![7; 512 << 10]);
        for number in 0..10_000 {
            let builder = Event::builder("T", "dropped").id(format!("dropped-{number}"));
            let event = if number % 50 == 0 { builder.data(data.clone()) } else { builder };
            let batch = Batch::from(event.build().expect("valid"));
            let ctx = Context::background();
            let mut append = Box::pin(store.store_batch(&ctx, batch));
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(append.as_mut().poll(cx).is_ready())).await;
            assert!(!polled || fate_lets_through(fate), "there is no server");
            // Otherwise the runtime makes it wait before it is in the queue.
            if number % 30 == 0 {
                tokio::task::yield_now().await;
            }
        }
        proxy.refuse(false);
        proxy.others(Fate::Pass);
        proxy.cut_all().await;
        let appends = (0..64).map(|number| {
            let store = store.clone();
            let batch = Batch::from(event(&format!("{fate:?}-{number}"), "kept"));
            tokio::spawn(async move { append_surely(&store, batch).await })
        });
        for append in appends.collect::<Vec<_>>() {
            append.await.expect("no panic").expect("stored");
        }
        if !fate_lets_through(fate) {
            let dropped = behind.aggregate_revision(&ctx(), "dropped").await.expect("read");
            assert_eq!(dropped.get(), 0, "nothing was sent, and nobody wanted it any more");
        }
    }
    let kept = behind.aggregate_revision(&ctx(), "kept").await.expect("read");
    assert_eq!(kept.get(), 4 * 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_nothing_comes_any_more_is_given_up() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let bytes = session(&server).await;
    let fates = [
        // After the handshake: the append does not arrive, or only in part, or its answer does not.
        Fate::StallRequest(bytes.handshake.0),
        Fate::StallRequest(bytes.whole.0 - 1),
        Fate::StallAnswer(bytes.handshake.1),
        Fate::StallAnswer(bytes.whole.1 - 1),
    ];
    for fate in fates {
        let proxy = Proxy::start(server.address()).await;
        let store = client(&proxy.url, |options| options.lost_after = Duration::from_millis(200)).await;
        proxy.next([fate]);
        let batch = Batch::from(event(&format!("{fate:?}"), "measured"));
        let append = store.store_batch(&Context::background(), batch.clone()).await;
        assert!(matches!(&append, Err(Error::OutcomeUnknown { .. })), "{fate:?}: {append:?}");
        append_surely(&store, batch).await.expect("resolved");
        // A cancelled one is also answered soon, and does not disturb others.
        proxy.cut_all().await;
        proxy.next([fate]);
        let soon = Context::background().with_timeout(Duration::from_millis(20));
        let append = store.store_batch(&soon, event(&format!("{fate:?}, soon"), "b").into()).await;
        let is_told = matches!(
            append,
            Ok(_) | Err(Error::OutcomeUnknown { .. } | Error::DeadlineExceeded | Error::Unavailable { .. })
        );
        assert!(is_told, "{append:?}");
        append_surely(&store, event(&format!("{fate:?}, later"), "b").into()).await.expect("stored");
        // A read fails when its time is up.
        proxy.cut_all().await;
        proxy.others(Fate::StallAnswer(0));
        let read = store.load_page(&soon_again(), &LoadOptions::all(), PageSize::FIRST).await;
        assert!(matches!(read, Err(Error::DeadlineExceeded | Error::Unavailable { .. })), "{read:?}");
        proxy.cut_all().await;
    }
    // A slow server is alive nevertheless: it answers pings.
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |options| options.lost_after = Duration::from_secs(1)).await;
    append_surely(&store, event("slow", "b").into()).await.expect("stored");
    let soon = Context::background().with_timeout(Duration::from_secs(3));
    let waited = store.wait_for_events(&soon, u64::MAX.into()).await;
    assert!(matches!(waited, Err(Error::DeadlineExceeded)), "{waited:?}");
    store.store_batch(&ctx(), event("slow again", "b").into()).await.expect("over the same connection");
    assert_eq!(proxy.connections().len(), 2, "one of opening and of waiting, and one session, and no other");
}

fn soon_again() -> Context {
    Context::background().with_timeout(Duration::from_millis(50))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_over_a_connection_that_is_cut_again_and_again_are_each_stored_once() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let proxy = Arc::new(Proxy::start(server.address()).await);
    let store = client(&proxy.url, |_| {}).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let cutting = {
        let (proxy, is_done) = (proxy.clone(), is_done.clone());
        tokio::spawn(async move {
            let (mut random, mut longest) = (fastrand::Rng::with_seed(7), 40);
            while !is_done.load(Ordering::Relaxed) {
                let at = random.u64(200..3000);
                proxy.others(if random.bool() { Fate::CutRequest(at) } else { Fate::CutAnswer(at) });
                // Even a slow machine comes through at last.
                tokio::time::sleep(Duration::from_millis(random.u64(5..longest))).await;
                longest += 1;
                proxy.cut_all().await;
            }
            proxy.others(Fate::Pass);
        })
    };
    let unknown = Arc::new(AtomicU64::new(0));
    let appenders = (0..16).map(|appender| {
        let (store, unknown) = (store.clone(), unknown.clone());
        tokio::spawn(async move {
            let mut won = 0;
            for number in 0..30_u64 {
                // Exactly one appender wins each revision of the common aggregate, whatever is lost on the way.
                let race = event(&format!("race-{appender}-{number}"), "race");
                let race = Batch::from(race).expected(Expected::Revision(number.into()));
                match append_surely(&store, race).await {
                    Ok(_) => won += 1,
                    Err(Error::VersionConflict { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
                let own =
                    [event(&format!("{appender}-{number}"), "own"), event(&format!("{appender}-{number}b"), "own")];
                loop {
                    match store.store_batch(&ctx(), own.clone().into()).await {
                        Ok(stored) => {
                            assert_eq!(stored[0].version.next(), stored[1].version, "whole and in order");
                            break;
                        }
                        Err(Error::OutcomeUnknown { .. }) => drop(unknown.fetch_add(1, Ordering::Relaxed)),
                        Err(Error::Unavailable { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
                // Wait until everybody has tried this revision, or somebody has won it.
                loop {
                    match store.aggregate_revision(&ctx(), "race").await {
                        Ok(revision) if revision.get() > number => break,
                        Ok(_) | Err(Error::Unavailable { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
            won
        })
    });
    let mut won = 0;
    for appender in appenders.collect::<Vec<_>>() {
        won += appender.await.expect("no panic");
    }
    is_done.store(true, Ordering::Relaxed);
    cutting.await.expect("no panic");
    let events = all(&behind).await;
    assert!(ids(&events).values().all(|&count| count == 1));
    assert_eq!(events.iter().filter(|event| event.event.aggregate_id() == "own").count(), 16 * 30 * 2);
    assert_eq!((won, behind.aggregate_revision(&ctx(), "race").await.expect("read").get()), (30, 30));
    assert!(unknown.load(Ordering::Relaxed) > 0, "some were cut where it matters");
}

/// A server in a separate process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SERVED: &str = "BACKEND_HTTP_TEST_SERVES";

impl Process {
    /// Starts a server for the store in a directory. Returns it with its address.
    async fn start(directory: &Path) -> (Self, String) {
        let told = directory.join("address");
        let _ = std::fs::remove_file(&told);
        let child = Command::new(std::env::current_exe().expect("this one"))
            .args(["--exact", "a_process_serves_when_it_is_asked_to", "--nocapture"])
            .env(SERVED, directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        let process = Process(child);
        let address = tokio::time::timeout(LONG, async {
            loop {
                match std::fs::read_to_string(&told) {
                    Ok(address) => return address,
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        });
        (process, address.await.expect("it serves"))
    }
}

/// Not a test, but the body of a process that a test starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_serves_when_it_is_asked_to() {
    let Some(directory) = std::env::var_os(SERVED).map(PathBuf::from) else { return };
    let store = backend_lmdb::open(backend_lmdb::Options::new(directory.join("store"))).await.expect("opened");
    let server = serve(&(Arc::new(store) as Arc<dyn EventStore>)).await;
    std::fs::write(directory.join("told"), server.address()).expect("written");
    std::fs::rename(directory.join("told"), directory.join("address")).expect("renamed");
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_was_acknowledged_is_there_after_the_server_was_killed_and_a_follower_misses_and_repeats_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut process, address) = Process::start(directory.path()).await;
    let proxy = Proxy::start(&address).await;
    let store = client(&proxy.url, |_| {}).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let appended = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, is_done, appended) = (store.clone(), is_done.clone(), appended.clone());
            tokio::spawn(async move {
                let mut acknowledged: Vec<(String, Version)> = Vec::new();
                for number in 0.. {
                    if is_done.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = format!("{writer}-{number}");
                    let stored = append_surely(&store, event(&id, &format!("a{writer}")).into()).await.expect("stored");
                    acknowledged.push((id, stored[0].version));
                    appended.fetch_add(1, Ordering::Relaxed);
                }
                acknowledged
            })
        })
        .collect();
    let stop = CancellationToken::new();
    let count = Arc::new(AtomicU64::new(0));
    let following = {
        let (store, ctx, count) = (store.clone(), Context::background().with_cancellation(stop.clone()), count.clone());
        tokio::spawn(async move {
            let mut stream = store.subscribe(&ctx, Version::ZERO);
            let mut seen: Vec<RecordedEvent> = Vec::new();
            while let Some(next) = stream.next().await {
                match next {
                    Ok(event) => {
                        seen.push(event);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Error::Cancelled) => break,
                    Err(error) => panic!("{error:?}"),
                }
            }
            seen
        })
    };
    for _ in 0..4 {
        let before = appended.load(Ordering::Relaxed);
        while appended.load(Ordering::Relaxed) < before + 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        let started = Process::start(directory.path()).await;
        proxy.lead_to(&started.1);
        process = started.0;
    }
    let before = appended.load(Ordering::Relaxed);
    while appended.load(Ordering::Relaxed) < before + 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    is_done.store(true, Ordering::Relaxed);
    let mut acknowledged = HashMap::new();
    for writer in writers {
        acknowledged.extend(writer.await.expect("no panic"));
    }
    let latest = store.latest_version(&ctx()).await.expect("read");
    let there = store.load(&ctx(), Version::ZERO).into_vec().await.expect("read");
    assert_eq!(there.len() as u64, latest.get());
    assert!(ids(&there).values().all(|&count| count == 1));
    let found: HashMap<_, _> = there.iter().map(|event| (event.event.id().to_owned(), event.version)).collect();
    assert_eq!(found, acknowledged);
    // The follower catches up, and then nothing more comes.
    let seen = tokio::time::timeout(LONG, async {
        while count.load(Ordering::Relaxed) < latest.get() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.cancel();
        following.await.expect("no panic")
    });
    assert!(seen.await.expect("it ends") == there, "each event once, in order");
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_server_that_is_stopped_in_good_order_and_started_again_costs_time_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = async || {
        let store = backend_lmdb::open(backend_lmdb::Options::new(directory.path())).await.expect("opened");
        serve(&(Arc::new(store) as Arc<dyn EventStore>)).await
    };
    let mut server = start().await;
    let proxy = Proxy::start(server.address()).await;
    let store = client(&proxy.url, |_| {}).await;
    let (is_done, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let users = (0..8).map(|user| {
        let (store, is_done, appended) = (store.clone(), is_done.clone(), appended.clone());
        tokio::spawn(async move {
            let mut last = Version::ZERO;
            for number in 0.. {
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                let batch = Batch::from(event(&format!("{user}-{number}"), &format!("a{user}")));
                match store.store_batch(&ctx(), batch.clone()).await {
                    Ok(_) => {}
                    Err(Error::OutcomeUnknown { .. }) => drop(append_surely(&store, batch).await.expect("resolved")),
                    Err(error) => panic!("{error:?}"),
                }
                let latest = store.wait_for_events(&ctx(), last).await.expect("answered");
                assert!(latest > last && store.latest_version(&ctx()).await.expect("answered") >= latest);
                last = latest;
                appended.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let users: Vec<_> = users.collect();
    let goes_on = async || {
        let before = appended.load(Ordering::Relaxed);
        while appended.load(Ordering::Relaxed) < before + 50 && users.iter().all(|user| !user.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    for _ in 0..5 {
        goes_on().await;
        server.stop().await;
        server = start().await;
        proxy.lead_to(server.address());
    }
    goes_on().await;
    is_done.store(true, Ordering::Relaxed);
    for user in users {
        user.await.expect("no panic");
    }
    let events = store.load(&ctx(), Version::ZERO).into_vec().await.expect("read");
    assert_eq!(events.len() as u64, appended.load(Ordering::Relaxed));
}

/// The servers have a separate runtime: the suite creates and drops others.
static SERVERS: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("built")
});

type Behind = HashMap<PathBuf, (Running, Proxy)>;

/// Runs the checks of the suite with these name prefixes, with a proxy of this kind in front of each server.
fn run_suite(areas: &'static [&'static str], cuts: bool) {
    let running: Arc<Mutex<Behind>> = Arc::default();
    let factory = move |directory: PathBuf| {
        let running = running.clone();
        async move {
            let starting = SERVERS.spawn(async move {
                let mut running = running.lock().await;
                if let Some((_, proxy)) = running.get(&directory) {
                    return proxy.url.clone();
                }
                let server = serve(&in_memory()).await;
                let proxy = Proxy::start(server.address()).await;
                proxy.others(Fate::Rough { seed: 7, cuts });
                let url = proxy.url.clone();
                running.insert(directory, (server, proxy));
                url
            });
            let options = Options::new(starting.await.expect("no panic"));
            Ok(Arc::new(open(options).await?) as Arc<dyn EventStore>)
        }
    };
    let profile = Profile::persistent().without_locking().without_backup().without_read_only().time_limit(LONG * 4);
    let suite = Suite::new("http over a rough way", profile, factory);
    let suite = suite.only(|name| areas.iter().any(|area| name.starts_with(area)) && !AS_IN_PROCESS.contains(&name));
    let mut passed = 0;
    for (name, outcome) in suite.outcomes() {
        match outcome {
            Outcome::Failed(failure) => panic!("{name}: {failure}"),
            Outcome::Passed => passed += 1,
            Outcome::Ignored(_) => {}
        }
    }
    assert!(passed >= areas.len(), "{passed} checks of {areas:?}");
}

/// What a dropped client has in transit arrives a little later.
const AS_IN_PROCESS: [&str; 1] = ["life::l1_dropping_everything_leaves_whole_batches"];

#[test]
fn the_suite_passes_over_a_way_that_delays() {
    run_suite(&["concurrency", "context::c3", "context::c4", "writing::w3"], false);
}

#[test]
fn the_suite_passes_over_a_way_that_cuts_reads() {
    // A read that is cut and has no more time is `Unavailable`, which is more specific than `DeadlineExceeded`. So the
    // checks of `context` are left out.
    run_suite(&["concurrency", "following::s1", "order::o5", "order::o6"], true);
}

#[test]
fn random_programs_agree_with_the_model_over_a_way_that_cuts_reads() {
    run_suite(&["model"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rough_way_cuts() {
    let behind = in_memory();
    let server = serve(&behind).await;
    let proxy = Proxy::start(server.address()).await;
    proxy.others(Fate::Rough { seed: 7, cuts: true });
    let store = client(&proxy.url, |_| {}).await;
    let stored = store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    assert_eq!(stored[0].outcome, StoreOutcome::Written);
    while proxy.cuts() < 10 {
        assert_eq!(store.latest_version(&ctx()).await.expect("read"), Version::new(1));
    }
}

//! The cost of accessing a store over HTTP, compared with the same store inside the program.
//!
//! ```text
//! cargo bench --bench served                     # five rounds, some minutes on a quiet machine
//! cargo bench --bench served -- --rounds 3
//! cargo bench --bench served -- --only by-id     # or append-1, append-64, batches, scan, scan-json, go-sync-kit, followers
//! ```
//!
//! The server is the command `eventstore serve` on loopback, in a separate process, with LMDB; the embedded store is
//! opened with the same options. Both are filled with the same events of 300 bytes. In each round, each workload is
//! measured on both, one right after the other; the figures are medians over the rounds. Every answer is checked. Linux
//! only.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

mod process;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventstore::Event;
use eventstore::backend::{Batch, Context, EventStore, LoadOptions, PageSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use process::{Server, event, raise_descriptors};

type Store = Arc<dyn EventStore>;

fn main() {
    let Some((is_test, rounds)) = process::arguments(5) else { return };
    let size = if is_test {
        Size { events: 5_000, time: Duration::from_millis(100), followers: 50 }
    } else {
        Size { events: 100_000, time: Duration::from_secs(2), followers: 10_000 }
    };
    raise_descriptors();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // As in a typical program: in a task on the threads of the runtime, not on a thread that each answer has to wake.
    runtime.block_on(async { tokio::spawn(run(size, rounds)).await.expect("no panic") });
}

#[derive(Clone, Copy)]
struct Size {
    /// The number of events in each store before the measurements.
    events: u64,
    /// The duration of each measurement.
    time: Duration,
    followers: usize,
}

async fn fill(store: &Store, events: u64) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..events / 1_000 {
        let batch: Vec<_> = (0..1_000).map(|_| event()).collect();
        ids.push(batch[7].id().to_owned());
        store.store_batch(&Context::background(), batch.into()).await.expect("stored");
    }
    ids
}

/// Repeats something for a while with this concurrency, and returns the number of events per second.
async fn rate<F: Future<Output = u64> + Send + 'static>(
    time: Duration,
    at_once: usize,
    step: impl Fn() -> F + Send + Sync + 'static,
) -> f64 {
    let (step, done) = (Arc::new(step), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let tasks = (0..at_once).map(|_| {
        let (step, done) = (step.clone(), done.clone());
        tokio::spawn(async move {
            while began.elapsed() < time {
                done.fetch_add(step().await, Ordering::Relaxed);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

async fn append(store: Store, events: usize) -> u64 {
    let batch: Batch = (0..events).map(|_| event()).collect::<Vec<_>>().into();
    let stored = store.store_batch(&Context::background(), batch).await.expect("stored");
    assert_eq!(stored.len(), events);
    events as u64
}

/// Reads every event, page by page, repeatedly.
async fn scan(store: &Store, time: Duration) -> f64 {
    let began = Instant::now();
    let mut events = 0;
    while began.elapsed() < time {
        let mut options = LoadOptions::all();
        let mut expected = 1;
        loop {
            let page = store.load_page(&Context::background(), &options, PageSize::LARGEST).await.expect("read");
            for recorded in &page.events {
                assert_eq!(recorded.version.get(), expected);
                expected += 1;
            }
            events += page.events.len() as u64;
            match page.next {
                Some(next) if began.elapsed() < time => options = next,
                _ => break,
            }
        }
    }
    events as f64 / began.elapsed().as_secs_f64()
}

/// The same as JSON, with a client that only checks lengths.
async fn scan_json(address: &str, latest: u64, time: Duration) -> f64 {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let (began, mut since, mut events) = (Instant::now(), 0, 0);
    let mut bytes = Vec::with_capacity(1 << 20);
    while began.elapsed() < time {
        let request =
            format!("GET /events?since={since}&page_events=500&page_bytes=1048576 HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        bytes.clear();
        let (body, len) = loop {
            stream.read_buf(&mut bytes).await.expect("read");
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            break (end + 4, len.trim().parse::<usize>().expect("a number"));
        };
        while bytes.len() < body + len {
            stream.read_buf(&mut bytes).await.expect("read");
        }
        let read = 500.min(latest - since);
        let last = format!("\"version\":{},", since + read);
        assert!(bytes[bytes.len() - 600..].windows(last.len()).any(|window| window == last.as_bytes()), "{last}");
        events += read;
        since = if since + 1_000 > latest { 0 } else { since + 500 };
    }
    events as f64 / began.elapsed().as_secs_f64()
}

/// Receives every event as a client of Go Sync Kit that begins at the first one.
async fn catch_up(address: &str, latest: u64) -> f64 {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let began = Instant::now();
    let request = format!("GET /sync/sse HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let last = format!("\"next_cursor\":{{\"kind\":\"integer\",\"data\":{latest}}}}}");
    let mut bytes = Vec::with_capacity(1 << 20);
    // After the last frame, only the chunk framing of HTTP follows.
    while !bytes.windows(last.len()).any(|window| window == last.as_bytes()) {
        assert!(stream.read_buf(&mut bytes).await.expect("read") > 0, "it ended");
        bytes.drain(..bytes.len().saturating_sub(2 * last.len()));
    }
    latest as f64 / began.elapsed().as_secs_f64()
}

/// Looks up events by id in sequence.
async fn gets(store: &Store, ids: &[String], time: Duration) -> f64 {
    let (began, mut done) = (Instant::now(), 0_u64);
    while began.elapsed() < time {
        let id = &ids[(done as usize * 7919) % ids.len()];
        let found = store.get(&Context::background(), id).await.expect("there");
        assert_eq!(found.event.id(), id);
        done += 1;
    }
    done as f64 / began.elapsed().as_secs_f64()
}

struct Figures {
    /// The name, and the measurements of the embedded store and over HTTP.
    rows: Vec<(&'static str, Vec<(f64, f64)>)>,
}

impl Figures {
    fn add(&mut self, name: &'static str, floor: f64, served: f64) {
        match self.rows.iter_mut().find(|(other, _)| *other == name) {
            Some((_, figures)) => figures.push((floor, served)),
            None => self.rows.push((name, vec![(floor, served)])),
        }
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

async fn run(size: Size, rounds: usize) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory below target");
    let url = format!("lmdb:{}", directory.path().join("embedded").display());
    let embedded = eventstore::backend::open(&url).await.expect("opened");
    let server = Server::start(&directory.path().join("served"));
    let served = eventstore::backend::open(&server.url).await.expect("opened");
    let ids = [fill(&embedded, size.events).await, fill(&served, size.events).await];
    let mut figures = Figures { rows: Vec::new() };
    let mut followed = Vec::new();
    let arguments: Vec<String> = std::env::args().collect();
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let is_wanted = |name: &str| only.is_none_or(|only| only == name);
    for round in 1..=rounds {
        eprintln_round(round, rounds);
        for (name, key, at_once, events) in [
            ("append, 1 at a time", "append-1", 1, 1),
            ("append, 64 at a time", "append-64", 64, 1),
            ("append, batches of 1,000", "batches", 1, 1_000),
        ] {
            if !is_wanted(key) {
                continue;
            }
            let mut both = [0.0; 2];
            for (store, figure) in [&embedded, &served].into_iter().zip(&mut both) {
                let store = store.clone();
                *figure = rate(size.time, at_once, move || append(store.clone(), events)).await;
            }
            figures.add(name, both[0], both[1]);
        }
        if is_wanted("scan") {
            figures.add("scan by page", scan(&embedded, size.time).await, scan(&served, size.time).await);
        }
        let latest = served.latest_version(&Context::background()).await.expect("read").get();
        if is_wanted("scan-json") {
            figures.add("scan by page, JSON", f64::NAN, scan_json(server.address(), latest, size.time).await);
        }
        if is_wanted("go-sync-kit") {
            figures.add("stream for Go Sync Kit", f64::NAN, catch_up(server.address(), latest).await);
        }
        if is_wanted("by-id") {
            figures.add("by id", gets(&embedded, &ids[0], size.time).await, gets(&served, &ids[1], size.time).await);
        }
        if is_wanted("followers") {
            followed.push(follow(&server, &served, size).await);
        }
    }
    println!("| events/s | embedded | over HTTP | ratio | added to each call |\n|---|---|---|---|---|");
    for (name, all) in &figures.rows {
        let floor = median(all.iter().map(|(floor, _)| *floor).collect());
        let over_http = median(all.iter().map(|(_, served)| *served).collect());
        let ratio = median(all.iter().map(|(floor, served)| served / floor).collect());
        let added = median(all.iter().map(|(floor, served)| 1e6 / served - 1e6 / floor).collect());
        match (floor.is_nan(), *name) {
            (true, _) => println!("| {name} | | {over_http:.0} | | |"),
            (_, "append, 1 at a time" | "by id") => {
                println!("| {name} | {floor:.0} | {over_http:.0} | {ratio:.2} | {added:.0} us |")
            }
            _ => println!("| {name} | {floor:.0} | {over_http:.0} | {ratio:.2} | |"),
        }
    }
    if followed.is_empty() {
        return;
    }
    let of = |of: fn(&Followed) -> f64| median(followed.iter().map(of).collect());
    println!(
        "\n{} idle followers and one writer: {:.0} appends/s, without them {:.0} (ratio {:.2}); an append costs the \
         server {:.0} us of processor time, without them {:.0} us; every follower had an event \
         of its own after {:.0} ms; the server's memory grew by {:.0} MB to {:.0} MB",
        size.followers,
        of(|followed| followed.with),
        of(|followed| followed.without),
        of(|followed| followed.with / followed.without),
        of(|followed| followed.cost_with),
        of(|followed| followed.cost_without),
        of(|followed| followed.last_after.as_secs_f64() * 1e3),
        of(|followed| followed.grown as f64 / 1e3),
        of(|followed| followed.memory as f64 / 1e3),
    );
}

#[allow(clippy::print_stderr, reason = "how far it is")]
fn eprintln_round(round: usize, rounds: usize) {
    eprintln!("round {round} of {rounds}");
}

struct Followed {
    without: f64,
    with: f64,
    /// The processor time of the server per append, in microseconds. Other load on the machine hardly affects it.
    cost_without: f64,
    cost_with: f64,
    last_after: Duration,
    grown: u64,
    memory: u64,
}

/// Appends in sequence: the rate, and the cost per append for the server.
async fn writing(server: &Server, served: &Store, time: Duration) -> (f64, f64) {
    let (began, used) = (Instant::now(), server.processor_time());
    let writer = served.clone();
    let rate = rate(time, 1, move || append(writer.clone(), 1)).await;
    let used = server.processor_time().saturating_sub(used);
    (rate, used.as_secs_f64() * 1e6 / (rate * began.elapsed().as_secs_f64()))
}

/// Followers of one aggregate each, which are up to date, and one writer, which appends to other aggregates. At the
/// end, each follower is woken by an event of its own.
async fn follow(server: &Server, served: &Store, size: Size) -> Followed {
    let (without, cost_without) = writing(server, served, size.time).await;
    let before = server.memory_kib();
    let latest = served.latest_version(&Context::background()).await.expect("read");
    let own = |number: usize| format!("followed-{latest}-{number}");
    let mut tasks = Vec::with_capacity(size.followers);
    for number in 0..size.followers {
        let (mut stream, own) = (TcpStream::connect(server.address()).await.expect("connected"), own(number));
        let host = server.address();
        let request = format!("GET /follow?since={latest}&aggregate={own} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        // It follows as soon as it has answered.
        let mut head = Vec::with_capacity(1024);
        while !String::from_utf8_lossy(&head).contains("heartbeat") {
            assert!(stream.read_buf(&mut head).await.expect("read") > 0, "the stream ended");
        }
        tasks.push(tokio::spawn(woken(stream, own)));
    }
    let (with, cost_with) = writing(server, served, size.time * 2).await;
    assert!(tasks.iter().all(|task| !task.is_finished()), "nobody was woken by what others get");
    let memory = server.memory_kib();
    let began = Instant::now();
    let numbers: Vec<_> = (0..size.followers).collect();
    for numbers in numbers.chunks(1_000) {
        let event = |number: &usize| Event::builder("Woken", own(*number)).build().expect("valid");
        let batch: Vec<_> = numbers.iter().map(event).collect();
        served.store_batch(&Context::background(), batch.into()).await.expect("stored");
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("woken").expect("no panic");
    }
    let (last_after, grown) = (began.elapsed(), memory.saturating_sub(before));
    Followed { without, with, cost_without, cost_with, last_after, grown, memory }
}

/// Reads until an event arrives, which must belong to this aggregate. Heartbeats may come before.
async fn woken(mut stream: TcpStream, own: String) {
    let mut bytes = Vec::with_capacity(512);
    loop {
        assert!(stream.read_buf(&mut bytes).await.expect("read") > 0, "the stream ended");
        let text = String::from_utf8_lossy(&bytes);
        let Some((_, event)) = text.split_once("{\"event\":") else { continue };
        if event.contains('\n') {
            assert!(event.contains(&format!("\"aggregate_id\":\"{own}\"")), "{event}");
            return;
        }
    }
}

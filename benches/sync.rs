//! What syncing costs: a replica beside a plain store, and a hub over HTTP on loopback.
//!
//! ```text
//! cargo bench --bench sync                     # three rounds, some minutes on a quiet machine
//! cargo bench --bench sync -- --rounds 5
//! ```
//!
//! The hub is the command `eventstore serve`, in a process of its own, with LMDB. Events have 300 bytes of data that does not
//! compress. The figures are medians over the rounds. At the end of each measurement the digests are compared. Linux only.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use eventstore::{CancellationToken, Cursor, Event, Store};
use synckit::{Notice, Options, Replica, SyncOptions};

fn main() {
    if !Path::new("/proc/self/status").exists() {
        println!("needs /proc/self/status: left out on this system");
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo bench -- --test` runs everything once, small.
    let is_test = arguments.iter().any(|argument| argument == "--test");
    let rounds = arguments.iter().skip_while(|argument| *argument != "--rounds").nth(1);
    let rounds = rounds.map_or(if is_test { 1 } else { 3 }, |rounds| rounds.parse().expect("a number of rounds"));
    let size = match is_test {
        true => Size { events: 5_000, pending: 200, appends: 50, replicas: 5, seconds: 1 },
        false => Size { events: 1_000_000, pending: 10_000, appends: 2_000, replicas: 1_000, seconds: 20 },
    };
    tokio::runtime::Runtime::new().expect("a runtime").block_on(run(size, rounds));
}

#[derive(Clone, Copy)]
struct Size {
    /// Of the hub that a new replica pulls.
    events: u64,
    /// Batches of two events that are pushed.
    pending: u64,
    /// One after the other.
    appends: u64,
    /// That are live at the same time.
    replicas: u64,
    /// How long they are.
    seconds: u64,
}

/// `eventstore serve`, which is killed at the end.
struct Hub {
    child: Child,
    url: String,
}

impl Hub {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_eventstore"))
            .args(["--store", &format!("lmdb:{}", directory.display()), "serve", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line).expect("a line");
        let url = line.split(" at ").nth(1).and_then(|rest| rest.split(';').next());
        let url = url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Hub { child, url }
    }

    async fn store(&self) -> Store {
        eventstore::open(&self.url).await.expect("served")
    }

    /// Anonymous memory in MB.
    fn memory(&self) -> u64 {
        memory(&self.child.id().to_string())
    }

    /// The time that its threads were on a processor.
    fn processor_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<_> = text.rsplit(')').next().expect("a name").split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks");
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn memory(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") / 1_000
}

fn event(number: u64, aggregate: u64) -> Event {
    let mut state = number ^ 0x9e37_79b9_7f4a_7c15;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(300)
    .collect();
    Event::builder("OrderPlaced", format!("order-{aggregate}")).data(data).build().expect("valid")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn replica(directory: &Path, name: &str, hub: &str) -> Replica {
    Options::new(directory.join(name)).hub(hub).open().await.expect("a replica")
}

async fn run(size: Size, rounds: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    initial(directory.path(), size, rounds).await;
    pushing(directory.path(), size, rounds).await;
    appending(directory.path(), size, rounds).await;
    confirming(directory.path(), size, rounds).await;
    many(directory.path(), size).await;
}

/// A new replica of a large hub.
async fn initial(directory: &Path, size: Size, rounds: usize) {
    let hub = Hub::start(&directory.join("large"));
    let store = hub.store().await;
    for number in 0..size.events / 1_000 {
        let batch: Vec<_> = (0..1_000).map(|at| event(number * 1_000 + at, at)).collect();
        store.append(batch).await.expect("stored");
    }
    let (before, mut most) = (memory("self"), 0);
    let mut rates = Vec::new();
    for round in 0..rounds {
        let replica = replica(directory, &format!("initial-{round}"), &hub.url).await;
        let began = Instant::now();
        let options = SyncOptions::new();
        let mut syncing = std::pin::pin!(replica.sync_once(&options));
        let report = loop {
            tokio::select! {
                report = &mut syncing => break report.expect("synced"),
                () = tokio::time::sleep(Duration::from_millis(50)) => most = most.max(memory("self").saturating_sub(before)),
            }
        };
        rates.push(size.events as f64 / began.elapsed().as_secs_f64());
        assert_eq!(report.pulled, size.events);
        assert_eq!(replica.cursor().await.expect("a cursor"), store.cursor().await.expect("a cursor"));
        replica.close().await.expect("closed");
    }
    println!(
        "initial sync of {} events: {:.0} events/s; memory at most: replica {most} MB, hub {} MB",
        size.events,
        median(rates),
        hub.memory()
    );
}

/// Many batches that are pending.
async fn pushing(directory: &Path, size: Size, rounds: usize) {
    let hub = Hub::start(&directory.join("pushing"));
    let mut rates = Vec::new();
    for round in 0..rounds as u64 {
        let replica = replica(directory, &format!("pushing-{round}"), &hub.url).await;
        replica.sync_once(&SyncOptions::new()).await.expect("synced");
        let appends: Vec<_> = (0..size.pending)
            .map(|number| {
                let replica = replica.clone();
                tokio::spawn(async move {
                    let pair = [event(number * 2, number % 1_000), event(number * 2 + 1, number % 1_000)];
                    replica.append(pair).await.expect("appended");
                })
            })
            .collect();
        for append in appends {
            append.await.expect("it ends");
        }
        let began = Instant::now();
        let report = replica.sync_once(&SyncOptions::new()).await.expect("synced");
        rates.push(2.0 * size.pending as f64 / began.elapsed().as_secs_f64());
        assert_eq!(report.confirmed, size.pending);
        replica.close().await.expect("closed");
    }
    println!("{} pending batches of two events, pushed and confirmed: {:.0} events/s", size.pending, median(rates));
}

/// Appends one after the other, on a replica and on a plain store in turns.
async fn appending(directory: &Path, size: Size, rounds: usize) {
    let plain = eventstore::open(&format!("lmdb:{}", directory.join("plain").display())).await.expect("opened");
    let nobody = eventstore::open("memory:").await.expect("memory");
    let replica = Options::new(directory.join("appending")).hub_store(nobody).open().await.expect("a replica");
    let (mut on_plain, mut on_replica) = (Vec::new(), Vec::new());
    for round in 0..2 * rounds as u64 {
        let began = Instant::now();
        for number in 0..size.appends {
            plain.append(event(round * size.appends + number, number % 100)).await.expect("appended");
        }
        on_plain.push(began.elapsed().as_secs_f64() / size.appends as f64);
        let began = Instant::now();
        for number in 0..size.appends {
            replica.append(event(round * size.appends + number, number % 100)).await.expect("appended");
        }
        on_replica.push(began.elapsed().as_secs_f64() / size.appends as f64);
    }
    let (plain, replica) = (median(on_plain) * 1e6, median(on_replica) * 1e6);
    println!("append, one at a time: plain store {plain:.0} us, replica {replica:.0} us, ratio {:.2}", replica / plain);
}

/// How long it takes from an append to its confirmation, on a live replica.
async fn confirming(directory: &Path, size: Size, rounds: usize) {
    let hub = Hub::start(&directory.join("confirming"));
    let replica = replica(directory, "confirming-replica", &hub.url).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (replica, options) = (replica.clone(), SyncOptions::new().stop(stop.clone()));
        async move { replica.run(&options).await }
    });
    let mut notices = replica.subscribe(Cursor::START);
    let mut times = Vec::new();
    for number in 0..size.appends.min(1_000) * rounds as u64 {
        let began = Instant::now();
        replica.append(event(number, number % 100)).await.expect("appended");
        while !matches!(notices.next().await.expect("a notice"), Notice::Confirmed { .. }) {}
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    stop.cancel();
    running.await.expect("it ends").expect("well");
    println!("from an append to its confirmation on a loopback hub: median {:.2} ms", median(times));
}

/// Many live replicas, each of which appends an event a second.
async fn many(directory: &Path, size: Size) {
    let hub = Hub::start(&directory.join("many-hub"));
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    let mut replicas = Vec::new();
    for number in 0..size.replicas {
        let replica = replica(directory, &format!("many-{number}"), &hub.url).await;
        replicas.push(replica.clone());
        let options = SyncOptions::new().stop(stop.clone());
        tasks.push(tokio::spawn(async move { replica.run(&options).await }));
    }
    let (began, before) = (Instant::now(), hub.processor_time());
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for second in 0..size.seconds {
        ticks.tick().await;
        for (number, replica) in (0..).zip(&replicas) {
            replica.append(event(second * size.replicas + number, number)).await.expect("appended");
        }
    }
    let total = size.seconds * size.replicas;
    let appended = began.elapsed();
    for replica in &replicas {
        let all = replica.confirmed().wait_for_events((total - 1).into());
        tokio::time::timeout(Duration::from_secs(600), all).await.expect("in time").expect("all are confirmed");
    }
    let (done, used) = (began.elapsed(), hub.processor_time() - before);
    stop.cancel();
    for task in tasks {
        task.await.expect("it ends").expect("well");
    }
    let cursor = hub.store().await.cursor().await.expect("a cursor");
    for replica in &replicas {
        assert_eq!(replica.cursor().await.expect("a cursor"), cursor);
    }
    println!(
        "{} live replicas, {total} events in {:.1} s: all delivered to all {:.1} s after the first, the hub took {:.2} of a \
         processor",
        size.replicas,
        appended.as_secs_f64(),
        done.as_secs_f64(),
        used.as_secs_f64() / done.as_secs_f64()
    );
}

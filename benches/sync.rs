//! The cost of syncing: a replica compared with a plain store, and a hub over HTTP on loopback.
//!
//! ```text
//! cargo bench --bench sync                     # three rounds, some minutes on a quiet machine
//! cargo bench --bench sync -- --rounds 5
//! cargo bench --bench sync -- --only pushing   # or initial, appending, confirming, many
//! ```
//!
//! The hub is the command `eventstore serve`, in a separate process, with LMDB. Events have 300 incompressible bytes of
//! data. The figures are medians over the rounds. At the end of each measurement, the digests are compared. Linux only.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

mod process;

use std::path::Path;
use std::time::{Duration, Instant};

use eventstore::{CancellationToken, Cursor, Store};
use synckit::{Notice, Options, Replica, SyncOptions};

use process::{Server, event, memory_kib, raise_descriptors};

fn main() {
    let Some((is_test, rounds)) = process::arguments(3) else { return };
    let size = match is_test {
        true => Size { events: 5_000, pending: 200, appends: 50, replicas: 5, seconds: 1 },
        false => Size { events: 1_000_000, pending: 10_000, appends: 2_000, replicas: 1_000, seconds: 20 },
    };
    raise_descriptors();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(run(size, rounds));
}

#[derive(Clone, Copy)]
struct Size {
    /// The events of the hub that a new replica pulls.
    events: u64,
    /// The batches of two events that are pushed.
    pending: u64,
    /// The appends in sequence.
    appends: u64,
    /// The replicas that are live at the same time.
    replicas: u64,
    /// The duration in seconds for which they are live.
    seconds: u64,
}

async fn served(hub: &Server) -> Store {
    eventstore::open(&hub.url).await.expect("served")
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
    let arguments: Vec<String> = std::env::args().collect();
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let is_wanted = |name: &str| only.is_none_or(|only| only == name);
    if is_wanted("initial") {
        initial(directory.path(), size, rounds).await;
    }
    if is_wanted("pushing") {
        pushing(directory.path(), size, rounds).await;
    }
    if is_wanted("appending") {
        appending(directory.path(), size, rounds).await;
    }
    if is_wanted("confirming") {
        confirming(directory.path(), size, rounds).await;
    }
    if is_wanted("many") {
        many(directory.path(), size).await;
    }
    directory.close().expect("the directory is removed");
}

/// A new replica of a large hub.
async fn initial(directory: &Path, size: Size, rounds: usize) {
    let hub = Server::start(&directory.join("large"));
    let store = served(&hub).await;
    for _ in 0..size.events / 1_000 {
        let batch: Vec<_> = (0..1_000).map(|_| event()).collect();
        store.append(batch).await.expect("stored");
    }
    let (before, mut most) = (memory_kib("self"), 0);
    let mut rates = Vec::new();
    for round in 0..rounds {
        let replica = replica(directory, &format!("initial-{round}"), &hub.url).await;
        let began = Instant::now();
        let options = SyncOptions::new();
        let mut syncing = std::pin::pin!(replica.sync_once(&options));
        let report = loop {
            tokio::select! {
                report = &mut syncing => break report.expect("synced"),
                () = tokio::time::sleep(Duration::from_millis(50)) => most = most.max(memory_kib("self").saturating_sub(before)),
            }
        };
        rates.push(size.events as f64 / began.elapsed().as_secs_f64());
        assert_eq!(report.pulled, size.events);
        assert_eq!(replica.cursor().await.expect("a cursor"), store.cursor().await.expect("a cursor"));
        replica.close().await.expect("closed");
    }
    println!(
        "initial sync of {} events: {:.0} events/s; memory at most: replica {} MB, hub {} MB",
        size.events,
        median(rates),
        most / 1_000,
        hub.memory_kib() / 1_000
    );
}

/// Pushes many pending batches.
async fn pushing(directory: &Path, size: Size, rounds: usize) {
    let hub = Server::start(&directory.join("pushing"));
    let mut rates = Vec::new();
    for round in 0..rounds as u64 {
        let replica = replica(directory, &format!("pushing-{round}"), &hub.url).await;
        replica.sync_once(&SyncOptions::new()).await.expect("synced");
        let appends: Vec<_> = (0..size.pending)
            .map(|_| {
                let replica = replica.clone();
                tokio::spawn(async move {
                    let pair = [event(), event()];
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

/// Appends in sequence, on a replica and on a plain store in turns.
async fn appending(directory: &Path, size: Size, rounds: usize) {
    let plain = eventstore::open(&format!("lmdb:{}", directory.join("plain").display())).await.expect("opened");
    let nobody = eventstore::open("memory:").await.expect("memory");
    let replica = Options::new(directory.join("appending")).hub_store(nobody).open().await.expect("a replica");
    let (mut on_plain, mut on_replica) = (Vec::new(), Vec::new());
    for _ in 0..2 * rounds {
        let began = Instant::now();
        for _ in 0..size.appends {
            plain.append(event()).await.expect("appended");
        }
        on_plain.push(began.elapsed().as_secs_f64() / size.appends as f64);
        let began = Instant::now();
        for _ in 0..size.appends {
            replica.append(event()).await.expect("appended");
        }
        on_replica.push(began.elapsed().as_secs_f64() / size.appends as f64);
    }
    plain.close().await.expect("closed");
    replica.close().await.expect("closed");
    let (plain, replica) = (median(on_plain) * 1e6, median(on_replica) * 1e6);
    println!("append, one at a time: plain store {plain:.0} us, replica {replica:.0} us, ratio {:.2}", replica / plain);
}

/// The time from an append to its confirmation, on a live replica.
async fn confirming(directory: &Path, size: Size, rounds: usize) {
    let hub = Server::start(&directory.join("confirming"));
    let replica = replica(directory, "confirming-replica", &hub.url).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (replica, options) = (replica.clone(), SyncOptions::new().stop(stop.clone()));
        async move { replica.run(&options).await }
    });
    let mut notices = replica.subscribe(Cursor::START);
    let mut times = Vec::new();
    for _ in 0..size.appends.min(1_000) * rounds as u64 {
        let began = Instant::now();
        replica.append(event()).await.expect("appended");
        while !matches!(notices.next().await.expect("a notice"), Notice::Confirmed { .. }) {}
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    stop.cancel();
    running.await.expect("it ends").expect("well");
    replica.close().await.expect("closed");
    println!("from an append to its confirmation on a loopback hub: median {:.2} ms", median(times));
}

/// Many live replicas, each of which appends an event per second.
async fn many(directory: &Path, size: Size) {
    let hub = Server::start(&directory.join("many-hub"));
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
    for _ in 0..size.seconds {
        ticks.tick().await;
        for replica in &replicas {
            replica.append(event()).await.expect("appended");
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
    let cursor = served(&hub).await.cursor().await.expect("a cursor");
    for replica in &replicas {
        assert_eq!(replica.cursor().await.expect("a cursor"), cursor);
        replica.close().await.expect("closed");
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

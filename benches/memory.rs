//! The memory of an import, and whether ten times as many events take more.
//!
//! ```text
//! cargo bench --bench memory
//! ```
//!
//! Prints the peak of the anonymous resident memory (`RssAnon`): the memory of the process itself, without the pages of
//! the engine's map, which belong to the page cache. Linux only.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use eventstore::backend::{Batch, Context, Event, EventStoreExt, Version};

const EVENTS: u64 = 40_000;

fn main() {
    if !Path::new("/proc/self/status").exists() {
        println!("needs /proc/self/status: left out on this system");
        return;
    }
    // `cargo bench -- --test` runs everything once with little data.
    let events = if std::env::args().any(|argument| argument == "--test") { EVENTS / 20 } else { EVENTS };
    for events in [events, events * 10] {
        println!("import of {events} events by the command: peak {} MB", in_mb(import_by_command(events)));
        println!("import of {events} events beside a slow follower: peak {} MB", in_mb(import_with_follower(events)));
    }
}

fn in_mb(kib: u64) -> u64 {
    kib * 1024 / 1_000_000
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory below target")
}

/// The anonymous resident memory of a process in KiB; `None` once it has ended.
fn rss_anon(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn import_by_command(events: u64) -> u64 {
    let directory = directory();
    let file = directory.path().join("events.jsonl");
    let mut lines = String::new();
    for n in 0..events {
        let padding = "x".repeat(250);
        let aggregate = n % 3000;
        writeln!(
            lines,
            r#"{{"id":"e-{n}","type":"T","aggregate_id":"a-{aggregate}","data":{{"padding":"{padding}"}}}}"#
        )
        .expect("in memory");
    }
    std::fs::File::create(&file).and_then(|mut file| file.write_all(lines.as_bytes())).expect("written");
    drop(lines);
    let store = format!("lmdb:{}", directory.path().join("store").display());
    let mut child = Command::new(env!("CARGO_BIN_EXE_eventstore"))
        .args(["--store", &store, "import"])
        .arg(&file)
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let peak = peak_while_running(&mut child);
    assert!(child.wait().expect("ended").success());
    peak
}

fn peak_while_running(child: &mut Child) -> u64 {
    let process = child.id().to_string();
    let mut peak = 0;
    while child.try_wait().expect("watched").is_none() {
        peak = peak.max(rss_anon(&process).unwrap_or(0));
        thread::sleep(Duration::from_millis(2)); // between two samples
    }
    peak
}

/// The follower takes one event for each batch of a thousand, so it falls further and further behind.
fn import_with_follower(events: u64) -> u64 {
    let directory = directory();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = eventstore::backend::open(&format!("lmdb:{}", directory.path().display())).await.expect("opened");
        let ctx = Context::background();
        let before = rss_anon("self").expect("readable");
        let mut follower = store.subscribe(&ctx, Version::ZERO);
        let mut peak = 0;
        for batch in 0..events / 1000 {
            let event = |n: u64| {
                let id = format!("e-{batch}-{n}");
                Event::builder("T", format!("a-{n}")).id(id).data(vec![7; 300]).build().expect("valid")
            };
            store.store_batch(&ctx, Batch::new((0..1000).map(event).collect())).await.expect("stored");
            let followed = follower.next().await.expect("endless").expect("loaded");
            assert_eq!(followed.version, Version::new(batch + 1));
            peak = peak.max(rss_anon("self").expect("readable").saturating_sub(before));
        }
        peak
    })
}

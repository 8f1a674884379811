//! How long it takes to open a store of a million events whose process was killed, for each compiled-in backend.
//!
//! ```text
//! cargo bench --bench open
//! cargo bench --bench open -- --test       # with a thousand events
//! ```
//!
//! The events have 300 bytes of data and time-ordered ids. A process appends them in batches of 1,000 and is killed. Three
//! times a process opens the store, appends once more and is killed, and the next opening is measured.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use eventstore::backend::{Batch, Context, Event};
use tokio::runtime::Runtime;

const BACKENDS: &[&str] = &[
    #[cfg(feature = "lmdb")]
    "lmdb",
    #[cfg(feature = "rocksdb")]
    "rocksdb",
    #[cfg(feature = "fjall")]
    "fjall",
    #[cfg(feature = "sled")]
    "sled",
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [fill, url, events] = arguments.as_slice()
        && fill == FILL
    {
        return append_and_wait(url, events.parse().expect("a number"));
    }
    let events = if arguments.iter().any(|argument| argument == "--test") { 1_000 } else { 1_000_000 };
    for backend in BACKENDS {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory below target");
        measure(backend, directory.path(), events);
    }
}

/// The argument that makes this program the process that is killed.
const FILL: &str = "--fill";

fn measure(backend: &str, directory: &Path, events: u64) {
    let url = format!("{backend}:{}", directory.join("store").display());
    fill_and_kill(&url, events);
    let runtime = Runtime::new().expect("a runtime");
    let times: Vec<_> = (1..=3)
        .map(|round| {
            let began = Instant::now();
            let store = runtime.block_on(eventstore::backend::open(&url)).expect("opened");
            let took = began.elapsed();
            runtime.block_on(async {
                let there = store.latest_version(&Context::background()).await.expect("open").get();
                assert!(there >= events + (round - 1) * BATCH, "{there} events: some were lost");
                store.close().await.expect("closed");
            });
            drop(store);
            fill_and_kill(&url, BATCH);
            format!("{:.1}", took.as_secs_f64() * 1e3)
        })
        .collect();
    println!("open/{events}/{backend}: {} ms", times.join(", "));
}

const BATCH: u64 = 1_000;

/// Lets another process append to the store, and kills it while the store is open.
fn fill_and_kill(url: &str, events: u64) {
    let program = std::env::current_exe().expect("its own path");
    let mut child = Command::new(program)
        .args([FILL, url, &events.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    assert_eq!(line, "done\n");
    child.kill().expect("killed");
    child.wait().expect("ended");
}

fn append_and_wait(url: &str, events: u64) {
    let data = |n: u64| n.to_le_bytes().into_iter().cycle().take(300).collect::<Vec<_>>();
    Runtime::new().expect("a runtime").block_on(async {
        let store = eventstore::backend::open(url).await.expect("opened");
        for first in (0..events).step_by(BATCH as usize) {
            let event = |n| Event::builder("Measured", format!("aggregate-{}", n % 3_000)).data(data(n)).build();
            let batch = (first..first + BATCH).map(|n| event(n).expect("valid")).collect();
            store.store_batch(&Context::background(), Batch::new(batch)).await.expect("stored");
        }
        println!("done");
        std::io::stdout().flush().expect("written");
        // Until it is killed.
        let _ = std::io::stdin().read_line(&mut String::new());
    });
}

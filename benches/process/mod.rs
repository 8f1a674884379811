//! Common parts of benchmarks with a server in a separate process.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eventstore::Event;

/// Whether to run everything once with little data, as by `cargo bench -- --test`, and the number of rounds; `None`
/// where it cannot run.
#[allow(clippy::print_stdout, reason = "a benchmark prints what it found")]
pub(crate) fn arguments(rounds: usize) -> Option<(bool, usize)> {
    if !Path::new("/proc/self/status").exists() {
        println!("needs /proc/self/status: left out on this system");
        return None;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let is_test = arguments.iter().any(|argument| argument == "--test");
    let given = arguments.iter().skip_while(|argument| *argument != "--rounds").nth(1);
    let rounds = given.map_or(if is_test { 1 } else { rounds }, |given| given.parse().expect("a number of rounds"));
    Some((is_test, rounds))
}

/// Ten thousand connections need as many descriptors on each side. A child inherits the limit.
#[allow(unsafe_code, reason = "the standard library cannot change a limit")]
pub(crate) fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: Both calls only use the given structure.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// `eventstore serve`. Dropping it kills the process.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

impl Server {
    /// Serves an LMDB store in this directory, on loopback.
    pub(crate) fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_eventstore"))
            .args(["--store", &format!("lmdb:{}", directory.display()), "serve", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line).expect("a line");
        let url = line.split(" at ").nth(1).and_then(|rest| rest.split(';').next());
        let url = url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Server { child, url }
    }

    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// The anonymous memory in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        memory_kib(&self.child.id().to_string())
    }

    /// The processor time of its threads.
    pub(crate) fn processor_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<_> = text.rsplit(')').next().expect("a name").split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks");
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The anonymous memory of a process in KiB; `self` means this one.
pub(crate) fn memory_kib(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// A new event of 300 incompressible bytes, of one of 10,000 aggregates.
pub(crate) fn event() -> Event {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let mut state = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let aggregate = state % 10_000;
    // Incompressible bytes.
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(300)
    .collect();
    Event::builder("OrderPlaced", format!("order-{aggregate}")).data(data).build().expect("valid")
}

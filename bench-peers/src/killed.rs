//! A process fills a store and is killed; how fast it was, and how long opening the store again takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::contestants::{Contestant, Scan};
use crate::events::{Corpus, Ids, SHORT};
use crate::turn;

/// What the filling process tells, before it waits to be killed.
#[derive(Serialize, Deserialize)]
struct Filled {
    seconds: f64,
    /// Of the last tenth of the events.
    last_seconds: f64,
    last_events: u64,
}

/// The rate of appending, that of the last tenth of it, and the milliseconds of opening.
pub(crate) fn measure(contestant: &Contestant, corpus: Corpus, directory: &Path) -> Result<Vec<f64>> {
    let directory = tempfile::tempdir_in(directory)?;
    let filled = fill_and_kill(contestant, corpus, directory.path())?;
    let began = Instant::now();
    let store = (contestant.open)(directory.path())?;
    // The first read belongs to it: some do their work only then.
    let read = store.load_aggregates(&corpus.aggregates(SHORT, 1))?;
    let opened = began.elapsed();
    ensure!(read == SHORT, "{read} of {SHORT} events of an aggregate are there after the kill");
    let count = store.scan(Scan::Stream)?;
    ensure!(count == corpus.events(), "{count} of {} acknowledged events are there after the kill", corpus.events());
    store.close()?;
    Ok(vec![
        corpus.events() as f64 / filled.seconds,
        filled.last_events as f64 / filled.last_seconds,
        opened.as_secs_f64() * 1e3,
    ])
}

fn fill_and_kill(contestant: &Contestant, corpus: Corpus, directory: &Path) -> Result<Filled> {
    let child = Command::new(std::env::current_exe()?)
        .arg("fill")
        .args(["--contestant", contestant.name, "--events", &corpus.events().to_string(), "--directory"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut child = KilledOnDrop(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().context("it is piped")?).read_line(&mut line)?;
    if line.is_empty() {
        let mut reason = String::new();
        child.0.stderr.take().context("it is piped")?.read_to_string(&mut reason)?;
        bail!("the process that fills the store ended: {}", reason.trim());
    }
    // While the store is open in it.
    child.0.kill()?;
    child.0.wait()?;
    Ok(serde_json::from_str(&line)?)
}

/// Leaves no process behind, whatever goes wrong.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The filling process: tells how fast it was, and keeps the store open until it is killed or its caller is gone.
pub(crate) fn fill(contestant: &Contestant, events: u64, directory: &Path) -> Result<()> {
    let store = (contestant.open)(directory)?;
    let (times, _) = turn::fill(&*store, Corpus::new(events, Ids::TimeOrdered))?;
    let last = &times[times.len() - times.len().div_ceil(10)..];
    let events_of = |batches: usize| (batches * events as usize / times.len()) as u64;
    let filled = Filled {
        seconds: times.iter().sum::<Duration>().as_secs_f64(),
        last_seconds: last.iter().sum::<Duration>().as_secs_f64(),
        last_events: events_of(last.len()),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(&filled)?)?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

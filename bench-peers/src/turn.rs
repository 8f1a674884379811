//! One contestant's turn in one round: a store is filled, read, appended to, and removed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;

use crate::contestants::{Appended, Batches, Contestant, Scan, Store, Work};
use crate::events::{Corpus, Ids, Sample};
use crate::killed;
use crate::workloads::{Kind, Scale, Workload};

/// Runs the workloads and gives each one's figures, in the order of its columns, to `found`.
pub(crate) fn take(
    contestant: &Contestant,
    workloads: &[&'static Workload],
    scale: &Scale,
    directory: &Path,
    mut found: impl FnMut(&'static Workload, Result<Vec<f64>>),
) {
    for ids in [Ids::TimeOrdered, Ids::Random] {
        let of_store = |workload: &&&Workload| workload.ids == ids && !matches!(workload.kind, Kind::Killed);
        let workloads: Vec<_> = workloads.iter().filter(of_store).copied().collect();
        if workloads.is_empty() {
            continue;
        }
        let mut turn = match caught(|| Turn::begin(contestant, Corpus::new(scale.events, ids), directory)) {
            Ok(turn) => turn,
            Err(error) => {
                workloads.into_iter().for_each(|workload| found(workload, Err(anyhow!("filling: {error:#}"))));
                continue;
            }
        };
        let (last, others) = workloads.split_last().expect("there are some");
        for workload in others {
            found(workload, caught(|| turn.run(workload.kind, scale)));
        }
        // What is wrong with the store in the end makes the last figure worthless.
        let figures = caught(|| turn.run(last.kind, scale));
        let ended = caught(|| turn.end());
        found(last, figures.and_then(|figures| ended.map(|()| figures)));
    }
    for workload in workloads.iter().filter(|workload| matches!(workload.kind, Kind::Killed)) {
        found(workload, caught(|| killed::measure(contestant, Corpus::new(scale.events, workload.ids), directory)));
    }
}

/// A panic becomes an error: the floors have no other errors, and one contestant must not end the others' run.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow!("it panicked: {}", message.unwrap_or("without a message")))
    })
}

/// Appends all of a corpus in batches of 1,000; gives the time of each, and events to look for.
pub(crate) fn fill(store: &dyn Store, corpus: Corpus) -> Result<(Vec<Duration>, Vec<Sample>)> {
    /// Every so many events one is looked for: a prime, so that all kinds of aggregates have some.
    const SAMPLED: u64 = 97;
    let (samples, sampled) = mpsc::channel();
    let batches = (0..corpus.events()).step_by(BATCH as usize).map(move |first| {
        let numbers = first..(first + BATCH).min(corpus.events());
        let events: Vec<_> = numbers.clone().map(|n| corpus.event(n)).collect();
        for (n, event) in numbers.zip(&events) {
            if n % SAMPLED == 0 {
                // The receiver lives until the appending has ended.
                let _ = samples.send(Corpus::sample(event));
            }
        }
        events
    });
    let work = Work { appenders: vec![Box::new(batches)], prepared: false };
    let appended = store.append(work)?;
    Ok((appended.latencies, sampled.into_iter().collect()))
}

const BATCH: u64 = 1_000;

struct Turn {
    store: Option<Box<dyn Store>>,
    corpus: Corpus,
    samples: Vec<Sample>,
    /// The number of the next event that is appended.
    next: Arc<AtomicU64>,
    failed: bool,
    directory: TempDir,
}

impl Turn {
    fn begin(contestant: &Contestant, corpus: Corpus, directory: &Path) -> Result<Self> {
        let directory = tempfile::tempdir_in(directory)?;
        let store = (contestant.open)(directory.path())?;
        let (_, mut samples) = fill(&*store, corpus)?;
        // Looked for in an order that jumps through the store.
        samples.sort_by_key(|sample| u64::from_le_bytes(sample.data[..8].try_into().expect("eight bytes")));
        let next = Arc::new(AtomicU64::new(corpus.events()));
        Ok(Turn { store: Some(store), corpus, samples, next, failed: false, directory })
    }

    fn run(&mut self, kind: Kind, scale: &Scale) -> Result<Vec<f64>> {
        let figures = match kind {
            Kind::Scan(how) => self.scan(how, scale.scans),
            Kind::Aggregates(length) => self.load_aggregates(length, scale.aggregates),
            Kind::Get => self.get(),
            Kind::Size => self.size(),
            Kind::Append { appenders, batch } => self.append(appenders, batch, scale.appends(appenders, batch)),
            Kind::Sustained { appenders } => self.sustained(appenders, scale.sustained),
            Kind::Follow => self.follow(scale.followed),
            Kind::Killed => unreachable!("it has no store here"),
        };
        self.failed |= figures.is_err();
        figures
    }

    /// Checks that all that was appended is there, and closes the store.
    fn end(mut self) -> Result<()> {
        let store = self.store.take().context("it is open")?;
        let count = store.scan(Scan::Stream)?;
        let appended = self.next.load(Ordering::Relaxed);
        // Of an append that failed nobody knows how much there is.
        ensure!(self.failed || count == appended, "{count} of {appended} events are there in the end");
        store.close()
    }

    fn store(&self) -> &dyn Store {
        self.store.as_deref().expect("open until the turn ends")
    }

    fn scan(&self, how: Scan, times: u32) -> Result<Vec<f64>> {
        let scan = || {
            let count = self.store().scan(how)?;
            ensure!(count == self.corpus.events(), "{count} of {} events were read", self.corpus.events());
            Ok(())
        };
        scan()?; // Warms the caches.
        let began = Instant::now();
        (0..times).try_for_each(|_| scan())?;
        Ok(vec![per_second(self.corpus.events() * u64::from(times), began.elapsed())])
    }

    fn load_aggregates(&self, length: u64, count: u64) -> Result<Vec<f64>> {
        let aggregates = self.corpus.aggregates(length, count);
        let expected = aggregates.len() as u64 * length;
        let load = || {
            let events = self.store().load_aggregates(&aggregates)?;
            ensure!(events == expected, "{events} of {expected} events were read");
            Ok(())
        };
        load()?;
        let began = Instant::now();
        load()?;
        Ok(vec![per_second(expected, began.elapsed())])
    }

    fn get(&self) -> Result<Vec<f64>> {
        self.store().get(&self.samples)?;
        let began = Instant::now();
        self.store().get(&self.samples)?;
        Ok(vec![per_second(self.samples.len() as u64, began.elapsed())])
    }

    fn size(&self) -> Result<Vec<f64>> {
        Ok(vec![bytes_on_disk(self.directory.path())? as f64 / self.corpus.events() as f64])
    }

    fn append(&self, appenders: usize, batch: usize, appends: usize) -> Result<Vec<f64>> {
        let mut queues: Vec<Vec<_>> = (0..appenders).map(|_| Vec::with_capacity(appends)).collect();
        // In turn, so that time-ordered ids are nearly in the order in which they are appended.
        for _ in 0..appends {
            for queue in &mut queues {
                queue.push((0..batch).map(|_| self.corpus.event(self.next.fetch_add(1, Ordering::Relaxed))).collect());
            }
        }
        let appenders = queues.into_iter().map(|queue| Box::new(queue.into_iter()) as Batches).collect::<Vec<_>>();
        let events = (appenders.len() * batch * appends) as u64;
        let Appended { took, .. } = self.store().append(Work { appenders, prepared: true })?;
        Ok(vec![per_second(events, took)])
    }

    fn sustained(&self, appenders: usize, duration: Duration) -> Result<Vec<f64>> {
        let deadline = Instant::now() + duration;
        let appender = || {
            let (corpus, next) = (self.corpus, self.next.clone());
            let batches = std::iter::from_fn(move || {
                (Instant::now() < deadline).then(|| vec![corpus.event(next.fetch_add(1, Ordering::Relaxed))])
            });
            Box::new(batches) as Batches
        };
        let work = Work { appenders: (0..appenders).map(|_| appender()).collect(), prepared: false };
        let Appended { took, mut latencies } = self.store().append(work)?;
        latencies.sort_unstable();
        let last = latencies.len().checked_sub(1).context("nothing was appended in time")?;
        let quantile = |of: f64| latencies[(last as f64 * of).round() as usize].as_secs_f64() * 1e3;
        Ok(vec![
            per_second(latencies.len() as u64, took),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            quantile(1.0),
        ])
    }

    fn follow(&self, events: u64) -> Result<Vec<f64>> {
        let first = self.next.fetch_add(events, Ordering::Relaxed);
        let events = (first..first + events).map(|n| self.corpus.event(n)).collect();
        let mut waits = self.store().follow(events).inspect_err(|_| {
            self.next.store(first, Ordering::Relaxed);
        })?;
        waits.sort_by(f64::total_cmp);
        Ok(vec![*waits.get(waits.len() / 2).context("nothing was followed")?])
    }
}

pub(crate) fn per_second(events: u64, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64()
}

/// What the files take, as the file system counts it.
fn bytes_on_disk(directory: &Path) -> Result<u64> {
    walkdir::WalkDir::new(directory).into_iter().try_fold(0, |sum, entry| {
        let entry = entry?;
        Ok(sum + if entry.file_type().is_file() { allocated(&entry.metadata()?) } else { 0 })
    })
}

#[cfg(unix)]
fn allocated(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    /// The unit of `st_blocks`, whatever the file system's own is.
    const BLOCK: u64 = 512;
    file.blocks() * BLOCK
}

#[cfg(not(unix))]
fn allocated(file: &fs::Metadata) -> u64 {
    file.len()
}

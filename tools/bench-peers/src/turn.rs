//! One contestant's turn in one round: a store is filled, read, appended to, and removed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use eventstore::backend::Event;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::contestants::{Appended, Batches, Contestant, Scan, Store, Work};
use crate::events::{Corpus, Ids, Sample};
use crate::own;
use crate::workloads::{Kind, Scale, Workload};

/// Look-ups of the samples by id, before the clock starts and while it runs: one pass over them takes a few milliseconds, in
/// which a processor's caches fill.
const WARMING_PASSES: u64 = 5;
const GET_PASSES: u64 = 50;

/// Runs the workloads and gives each one's figures, in the order of its columns, to `found`.
pub(crate) fn take(
    contestant: &Contestant,
    workloads: &[&'static Workload],
    scale: &Scale,
    directory: &Path,
    mut found: impl FnMut(&'static Workload, Result<Vec<f64>>),
) {
    for ids in [Ids::TimeOrdered, Ids::Random] {
        let of_store = |workload: &&&Workload| workload.ids == ids && workload.kind.shares_store();
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
    for workload in workloads.iter().filter(|workload| !workload.kind.shares_store()) {
        found(workload, caught(|| own::run(contestant, workload, scale, directory)));
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

/// The appending of a corpus in batches of 1,000.
pub(crate) struct Fill {
    corpus: Corpus,
    /// Sees each batch before it is appended.
    watch: Watch,
}

type Watch = Box<dyn FnMut(&[Event]) + Send>;

impl Fill {
    const BATCH: u64 = 1_000;

    pub(crate) fn new(corpus: Corpus) -> Self {
        Self::watched(corpus, |_| {})
    }

    pub(crate) fn watched(corpus: Corpus, watch: impl FnMut(&[Event]) + Send + 'static) -> Self {
        Fill { corpus, watch: Box::new(watch) }
    }

    pub(crate) fn into_store(self, store: &dyn Store) -> Result<Rates> {
        let Fill { corpus, mut watch } = self;
        let batches = (0..corpus.events()).step_by(Self::BATCH as usize).map(move |first| {
            let numbers = first..(first + Self::BATCH).min(corpus.events());
            let events: Vec<_> = numbers.map(|n| corpus.event(n)).collect();
            watch(&events);
            events
        });
        let appended = store.append(Work { appenders: vec![Box::new(batches)], prepared: false })?;
        Ok(Rates::of(corpus.events(), &appended.latencies))
    }
}

/// Events a second, without the time in which they are made.
#[derive(Serialize, Deserialize)]
pub(crate) struct Rates {
    pub(crate) all: f64,
    pub(crate) last_tenth: f64,
}

impl Rates {
    /// Of batches of 1,000, the last of which may be smaller.
    fn of(events: u64, batches: &[Duration]) -> Self {
        let before = batches.len() - batches.len().div_ceil(10);
        let last = events - before as u64 * Fill::BATCH;
        Rates {
            all: per_second(events, batches.iter().sum()),
            last_tenth: per_second(last, batches[before..].iter().sum()),
        }
    }
}

/// Fills a store and gives events to look for.
fn filled(store: &dyn Store, corpus: Corpus) -> Result<Vec<Sample>> {
    /// Every so many events one is looked for: a prime, so that all kinds of aggregates have some.
    const SAMPLED: usize = 97;
    let (samples, sampled) = mpsc::channel();
    let mut skipped = 0;
    let fill = Fill::watched(corpus, move |events| {
        for event in events {
            if skipped == 0 {
                // The receiver lives until the appending has ended.
                let _ = samples.send(Corpus::sample(event));
            }
            skipped = (skipped + 1) % SAMPLED;
        }
    });
    fill.into_store(store)?;
    Ok(sampled.into_iter().collect())
}

struct Turn {
    store: Option<Box<dyn Store>>,
    corpus: Corpus,
    samples: Arc<[Sample]>,
    /// The number of the next event that is appended.
    next: Arc<AtomicU64>,
    failed: bool,
    _directory: TempDir,
}

impl Turn {
    fn begin(contestant: &Contestant, corpus: Corpus, directory: &Path) -> Result<Self> {
        let directory = tempfile::tempdir_in(directory)?;
        let store = (contestant.open)(directory.path())?;
        let mut samples = filled(&*store, corpus)?;
        // Looked for in an order that jumps through the store.
        samples.sort_by_key(|sample| u64::from_le_bytes(sample.data[..8].try_into().expect("eight bytes")));
        let next = Arc::new(AtomicU64::new(corpus.events()));
        Ok(Turn { store: Some(store), corpus, samples: samples.into(), next, failed: false, _directory: directory })
    }

    fn run(&mut self, kind: Kind, scale: &Scale) -> Result<Vec<f64>> {
        let figures = match kind {
            Kind::Scan(how) => self.scan(how, scale.scans),
            Kind::Aggregates(length) => self.load_aggregates(length, scale.aggregates),
            Kind::Get => self.get(),
            Kind::Append { appenders, batch } => self.append(appenders, batch, scale.appends(appenders, batch)),
            Kind::Sustained { appenders } => self.sustained(appenders, scale.sustained),
            Kind::Follow => self.follow(scale.followed),
            _ => unreachable!("it has a store of its own"),
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
        (0..WARMING_PASSES).try_for_each(|_| self.store().get(&self.samples))?;
        let began = Instant::now();
        (0..GET_PASSES).try_for_each(|_| self.store().get(&self.samples))?;
        Ok(vec![per_second(self.samples.len() as u64 * GET_PASSES, began.elapsed())])
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

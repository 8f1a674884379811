//! Workloads with stores of their own: filled, closed or killed, and opened again.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::contestants::{Contestant, Scan, Store, Work};
use crate::events::{Corpus, Ids, SHORT};
use crate::machine;
use crate::process::fill_and_kill;
use crate::turn::{Fill, per_second};
use crate::workloads::{Kind, Scale, Workload};

/// The figures of a workload, in the order of its columns. The last are missing if the contestant has nothing of that kind.
pub(crate) fn run(contestant: &Contestant, workload: &Workload, scale: &Scale, directory: &Path) -> Result<Vec<f64>> {
    let directory = tempfile::tempdir_in(directory)?;
    let own = Own { contestant, scale, directory: directory.path() };
    let corpus = Corpus::new(scale.events, workload.ids);
    match workload.kind {
        Kind::Killed => own.killed(corpus),
        Kind::Closed => own.closed(corpus),
        Kind::Idle => own.idle(),
        Kind::LargeAppend => own.large_append(Corpus::new(scale.long_append(), workload.ids)),
        Kind::LargeStore => own.large_store(corpus, Corpus::new(scale.large_events, workload.ids)),
        Kind::LargeMemory => own.large_memory(Corpus::new(scale.large_events, workload.ids)),
        _ => unreachable!("it finds the store of the turn"),
    }
}

struct Own<'a> {
    contestant: &'a Contestant,
    scale: &'a Scale,
    directory: &'a Path,
}

impl Own<'_> {
    fn killed(&self, corpus: Corpus) -> Result<Vec<f64>> {
        let rates = fill_and_kill(self.contestant, corpus, self.directory, None)?.rates;
        let opening = self.opening(corpus)?;
        self.check(corpus)?;
        Ok(vec![rates.all, rates.last_tenth, milliseconds(opening)])
    }

    fn closed(&self, corpus: Corpus) -> Result<Vec<f64>> {
        let store = self.open()?;
        Fill::new(corpus).into_store(&*store)?;
        store.close()?;
        let mut figures = vec![self.bytes_an_event(corpus)?];
        figures.extend(self.index_made_again(corpus)?);
        Ok(figures)
    }

    fn idle(&self) -> Result<Vec<f64>> {
        let store = self.open()?;
        let events = vec![Corpus::new(1, Ids::TimeOrdered).event(0)];
        store.append(Work { appenders: vec![Box::new(std::iter::once(events))], prepared: true })?;
        thread::sleep(self.scale.idle);
        let open = machine::bytes_on_disk(self.directory)?;
        let descriptors = machine::descriptors_below(self.directory)?;
        store.close()?;
        let closed = machine::bytes_on_disk(self.directory)?;
        Ok(vec![open as f64, descriptors as f64, closed as f64])
    }

    fn large_append(&self, corpus: Corpus) -> Result<Vec<f64>> {
        let rates = fill_and_kill(self.contestant, corpus, self.directory, None)?.rates;
        self.check(corpus)?;
        Ok(vec![rates.all, rates.last_tenth])
    }

    fn large_store(&self, small: Corpus, large: Corpus) -> Result<Vec<f64>> {
        let beside = tempfile::tempdir_in(self.directory.parent().context("it was made in a directory")?)?;
        let small = fill_and_kill(self.contestant, small, beside.path(), None)?.rates.last_tenth;
        beside.close()?;
        let rate = fill_and_kill(self.contestant, large, self.directory, None)?.rates.last_tenth;
        let after_kill = self.opening(large)?;
        self.check(large)?;
        let closed = self.opening(large)?;
        let mut figures = vec![small, rate, rate / small, milliseconds(after_kill), milliseconds(closed)];
        figures.push(self.bytes_an_event(large)?);
        figures.extend(self.index_made_again(large)?);
        Ok(figures)
    }

    fn large_memory(&self, corpus: Corpus) -> Result<Vec<f64>> {
        let filled = fill_and_kill(self.contestant, corpus, self.directory, Some(self.scale.idle))?;
        let memory = filled.memory.context("it was asked for")?;
        self.check(corpus)?;
        Ok([memory.after, memory.most].map(|bytes| bytes as f64 / f64::from(1 << 20)).into())
    }

    fn open(&self) -> Result<Box<dyn Store>> {
        (self.contestant.open)(self.directory)
    }

    /// How long opening takes, with the first read, as some do their work only then. The store is closed after it.
    fn opening(&self, corpus: Corpus) -> Result<Duration> {
        let began = Instant::now();
        let store = self.open()?;
        let read = store.load_aggregates(&corpus.aggregates(SHORT, 1))?;
        let took = began.elapsed();
        ensure!(read == SHORT, "{read} of {SHORT} events of an aggregate are there");
        store.close()?;
        Ok(took)
    }

    /// Opens the store, counts its events, and closes it.
    fn check(&self, corpus: Corpus) -> Result<()> {
        let store = self.open()?;
        let count = store.scan(Scan::Stream)?;
        ensure!(count == corpus.events(), "{count} of {} acknowledged events are there", corpus.events());
        store.close()
    }

    fn bytes_an_event(&self, corpus: Corpus) -> Result<f64> {
        Ok(machine::bytes_on_disk(self.directory)? as f64 / corpus.events() as f64)
    }

    /// Events a second of opening after the index was lost, if there is one.
    fn index_made_again(&self, corpus: Corpus) -> Result<Option<f64>> {
        let Some(index) = self.contestant.index else { return Ok(None) };
        fs::remove_dir_all(self.directory.join(index))?;
        let took = self.opening(corpus)?;
        Ok(Some(per_second(corpus.events(), took)))
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

//! `bench`: compares engines on this machine.
//!
//! `workloads.rs` lists the measurements; `append.rs` and `read.rs` run them on a store of `candidate.rs` with the
//! events of `events.rs`; `measure.rs` computes numbers from times. Everything, including the findings of `machine.rs`,
//! is collected in `results.rs` and shown by `summary.rs`, and by `report.rs` with `plots.rs`.

mod append;
mod candidate;
mod events;
mod machine;
mod measure;
mod plots;
mod read;
mod report;
mod results;
mod summary;
mod workloads;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use eventstore::backend::{CancellationToken, Context, Error, EventStore, Progress};

use self::candidate::{Candidate, is_missing_or_empty};
use self::events::{DATA_LEN, Events, LONG, SHORT};
use self::machine::{Disk, Machine, peak_memory};
use self::measure::{Limit, Measurement, Slice};
use self::results::{Measured, Named, Program, Results, Settings};
use self::workloads::{DISK_APPENDED, DISK_FILLED, Workload};
use super::Ending;
use crate::cli::{BenchArgs, ResultFormat};
use crate::failure::{Failure, tell};
use crate::interrupt;
use crate::output::Output;
use crate::progress::Work;

/// The number of parts of each measurement. In each part, every store is measured once, starting with another one.
const SLICES: u32 = 3;

/// The default duration and number of events, and those with `--quick`.
const USUAL: (Duration, u64) = (Duration::from_secs(3), 94_000);
const QUICK: (Duration, u64) = (Duration::from_millis(30), 470);

pub(crate) async fn run(url: &str, args: &BenchArgs) -> Result<Ending, Failure> {
    if let Some(directory) = &args.report {
        prepare(directory)?;
    }
    let interrupted = interrupt::token_of_work();
    let mut bench = Bench::new(args, interrupted.clone());
    let urls: Vec<_> = std::iter::once(url).chain(args.against.iter().map(String::as_str)).collect();
    let measured = bench.run(&urls).await;
    let removed = bench.remove().await;
    let results = match measured {
        Err(failure) if failure.code() == Error::Cancelled.code() && interrupted.is_cancelled() => {
            removed?;
            tell("interrupted: nothing was measured to its end");
            return Ok(Ending::Interrupted);
        }
        measured => measured?,
    };
    removed?;

    // Before anything is printed, since it may fail.
    if let Some(directory) = &args.report {
        report::write(directory, &results)?;
    }
    let mut output = Output::of_work();
    match args.format {
        ResultFormat::Json => output.line(|out| Ok(serde_json::to_writer(out, &results)?))?,
        ResultFormat::Table => summary::write(&mut output, &results)?,
    }
    output.flush()?;
    if let Some(directory) = &args.report {
        tell(&format!("the report is {}", directory.join(report::INDEX).display()));
    }
    Ok(Ending::Finished)
}

/// Creates the report's directory in advance, so that a wrong path is noticed before everything is measured.
fn prepare(directory: &Path) -> Result<(), Failure> {
    let cannot = |error| Failure::io(format_args!("make the report in {}", directory.display()), &error);
    if !is_missing_or_empty(directory).map_err(cannot)? {
        let reason = "it is not empty; name a directory for the report that is missing or empty".to_owned();
        return Err(Error::Open { path: directory.display().to_string(), reason, source: None }.into());
    }
    fs::create_dir_all(directory).map_err(cannot)
}

/// A running benchmark.
struct Bench {
    settings: Settings,
    events: Events,
    interrupted: CancellationToken,
    candidates: Vec<Candidate>,
    warnings: Vec<String>,
    bar: Work,
}

impl Bench {
    fn new(args: &BenchArgs, interrupted: CancellationToken) -> Self {
        let (time, len) = if args.quick { QUICK } else { USUAL };
        let events = Events::new(args.seed, args.events.unwrap_or(len));
        let settings = Settings {
            seconds: args.seconds.unwrap_or(time).as_secs_f64(),
            slices: SLICES,
            events: events.len(),
            most_appended: 2 * events.len(),
            data_bytes: DATA_LEN,
            aggregates_of_each_length: events.pairs(),
            aggregate_lengths: [SHORT, LONG],
            seed: args.seed,
            quick: args.quick,
            worker_threads: tokio::runtime::Handle::current().metrics().num_workers(),
        };
        Bench { settings, events, interrupted, candidates: Vec::new(), warnings: Vec::new(), bar: Work::new("steps") }
    }

    async fn run(&mut self, urls: &[&str]) -> Result<Results, Failure> {
        if Program::IS_DEBUG_BUILD {
            self.warn("this is a debug build, many times slower than what users get: build with --release".to_owned());
        }
        if self.settings.quick {
            self.warn("--quick measures for moments only: the numbers mean nothing".to_owned());
        }
        let workloads = Workload::all();
        let mut steps = Steps::new(self.bar.listener(), urls.len() * (2 + workloads.len() * SLICES as usize));

        let mut measured = Vec::new();
        for url in urls {
            let store = self.fill(url).await?;
            measured.push(store);
            steps.done();
        }
        number_titles(&mut measured);
        for workload in workloads {
            for (store, measurement) in measured.iter_mut().zip(self.measure(workload, &mut steps).await?) {
                let measurement = measurement.map(|measurement| named(workload.name(), workload.title(), measurement));
                store.measurements.extend(measurement);
            }
        }
        let ctx = self.context();
        for (store, candidate) in measured.iter_mut().zip(&mut self.candidates) {
            candidate.check(&ctx).await?;
            candidate.close().await?;
            store.measurements.extend(disk_use(candidate, DISK_APPENDED)?);
            steps.done();
        }
        Ok(Results {
            warnings: self.warnings.clone(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            program: Program::this(),
            settings: self.settings,
            machine: Machine::look(),
            stores: measured,
            peak_memory_bytes: peak_memory(),
        })
    }

    /// Creates a store, and takes the measurements that need no workload.
    async fn fill(&mut self, url: &str) -> Result<Measured, Failure> {
        let mut candidate = Candidate::filled(url, self.events, &self.context()).await?;
        let measured = self.describe(&mut candidate).await;
        // From here on it is deleted with the others, whatever happens.
        self.candidates.push(candidate);
        let measured = measured?;
        if let Some(disk) = measured.disk.as_ref().filter(|disk| disk.is_in_memory) {
            self.warn(format!(
                "{url} lies on {}, in memory: nothing is durable there and syncs cost nothing; name a directory on a disk, \
                 such as {}:./bench",
                disk.file_system.as_deref().unwrap_or_default(),
                measured.backend
            ));
        }
        Ok(measured)
    }

    async fn describe(&self, candidate: &mut Candidate) -> Result<Measured, Failure> {
        candidate.check(&self.context()).await?;
        let properties = candidate.store()?.stats(&self.context()).await?.properties;
        let mut measured = Measured {
            title: candidate.url.clone(),
            url: candidate.url.clone(),
            backend: candidate.backend.clone(),
            options: candidate.options.iter().cloned().collect(),
            properties: properties.into_iter().map(|(name, value)| (name.into_owned(), value)).collect(),
            disk: None,
            measurements: Vec::new(),
        };
        if candidate.directory().is_none()
            && let Some(bytes) = candidate.store()?.stats(&self.context()).await?.bytes_on_disk
        {
            let (name, title) = DISK_FILLED;
            let filled = Measurement::bytes(bytes, candidate.next);
            measured.measurements.push(named(name.to_owned(), title.to_owned(), filled));
        }
        if let Some(directory) = candidate.directory().map(Path::to_owned) {
            candidate.close().await?;
            measured.measurements.extend(disk_use(candidate, DISK_FILLED)?);
            candidate.open().await?;
            let disk = Disk::measure(&directory, Duration::from_secs_f64(self.settings.seconds));
            let failed = |error| Failure::io(format_args!("sync a file in {}", directory.display()), &error);
            measured.disk = Some(disk.map_err(failed)?);
        }
        Ok(measured)
    }

    /// A context that ends when the user interrupts.
    fn context(&self) -> Context {
        Context::background().with_cancellation(self.interrupted.clone())
    }

    /// Runs one workload on every store; `None` for a store to which it does not apply.
    async fn measure(&mut self, workload: Workload, steps: &mut Steps) -> Result<Vec<Option<Measurement>>, Failure> {
        let limit = Limit {
            time: Duration::from_secs_f64(self.settings.seconds) / SLICES,
            events: match workload {
                Workload::Append(_) | Workload::Wake => self.settings.most_appended.div_ceil(u64::from(SLICES)),
                _ => u64::MAX,
            },
            interrupted: self.interrupted.clone(),
        };
        let stores = self.candidates.len();
        let mut slices = vec![Vec::new(); stores];
        for turn in 0..SLICES as usize {
            for at in (0..stores).map(|at| (at + turn) % stores) {
                let candidate = &mut self.candidates[at];
                let slice = slice(candidate, workload, &limit).await;
                let place = format!("{}, {}", candidate.url, workload.title());
                slices[at].push(slice.map_err(|failure| match limit.interrupted.is_cancelled() {
                    true => failure,
                    false => failure.at(place),
                })?);
                steps.done();
            }
        }
        let measurements = slices.into_iter().map(|slices| match workload {
            Workload::Open | Workload::Wake => Measurement::time(slices),
            _ => Some(Measurement::rate(slices)),
        });
        Ok(measurements.collect())
    }

    fn warn(&mut self, warning: String) {
        self.bar.tell(&format!("warning: {warning}"));
        self.warnings.push(warning);
    }

    /// Deletes every store.
    async fn remove(self) -> Result<(), Failure> {
        let mut removed = Ok(());
        for mut candidate in self.candidates {
            let this = candidate.remove().await;
            removed = removed.and(this);
        }
        removed
    }
}

async fn slice(candidate: &mut Candidate, workload: Workload, limit: &Limit) -> Result<Slice, Failure> {
    match workload {
        Workload::ScanPages => read::scan_pages(candidate, limit).await,
        Workload::ScanStream => read::scan_stream(candidate, limit).await,
        Workload::Aggregate(length) => read::aggregates(candidate, length, limit).await,
        Workload::Get => read::get(candidate, limit).await,
        Workload::Open => read::open(candidate).await,
        Workload::Append(appends) => append::append(candidate, appends, limit).await,
        Workload::Wake => append::wake(candidate, limit).await,
    }
}

fn disk_use(candidate: &Candidate, (name, title): (&str, &str)) -> Result<Option<Named>, Failure> {
    let bytes = candidate.bytes_on_disk()?;
    Ok(bytes.map(|bytes| named(name.to_owned(), title.to_owned(), Measurement::bytes(bytes, candidate.next))))
}

fn named(name: String, title: String, measurement: Measurement) -> Named {
    Named { name, title, measurement }
}

/// Numbers repeated URLs. Giving the same URL twice shows how much the numbers vary by themselves.
fn number_titles(stores: &mut [Measured]) {
    let mut seen = BTreeMap::new();
    for store in stores {
        let times: &mut u32 = seen.entry(store.url.clone()).or_default();
        *times += 1;
        if *times > 1 {
            store.title = format!("{} ({times})", store.url);
        }
    }
}

/// The progress of the benchmark.
struct Steps {
    progress: Progress,
    done: u64,
    total: u64,
}

impl Steps {
    fn new(progress: Progress, total: usize) -> Self {
        let steps = Steps { progress, done: 0, total: total as u64 };
        steps.progress.report(0, steps.total);
        steps
    }

    fn done(&mut self) {
        self.done += 1;
        self.progress.report(self.done, self.total);
    }
}

//! eventstore, the raw engines below it and its peers, under the same workloads in one run on one machine.
//!
//! See `README.md`.

mod contestants;
mod events;
mod killed;
mod machine;
mod report;
mod turn;
mod workloads;

// The floors are those of the root's own benchmarks.
#[expect(dead_code, reason = "not all of it is measured here")]
#[path = "../../benches/store/raw.rs"]
mod raw;
#[path = "../../benches/store/raw_lmdb.rs"]
mod raw_lmdb;
#[path = "../../benches/store/raw_rocksdb.rs"]
mod raw_rocksdb;
#[path = "../../benches/store/raw_sled.rs"]
mod raw_sled;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::contestants::Contestant;
use crate::machine::Machine;
use crate::report::Report;
use crate::workloads::{Scale, WORKLOADS, Workload};

/// Runs eventstore, the raw engines below it and its peers under the same workloads.
///
/// Results go to stdout as Markdown, progress to stderr.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Names the contestants and the workloads.
    List,
    /// Fills a store and waits to be killed: what `killed` workloads start.
    #[command(hide = true)]
    Fill {
        #[arg(long)]
        contestant: String,
        #[arg(long)]
        events: u64,
        #[arg(long)]
        directory: PathBuf,
    },
}

#[derive(Args)]
struct Options {
    /// Only workloads with this in their name; can be given several times.
    #[arg(long, value_name = "FILTER")]
    workload: Vec<String>,
    /// Only contestants with this in their name; can be given several times.
    #[arg(long, value_name = "NAME")]
    contestant: Vec<String>,
    /// Turns of each contestant; the figure is their median [default: 3, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Events that a store is filled with [default: 235,000, which belong to 10,000 aggregates; or 2,350 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// Seconds of the sustained workload.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where the stores are made and removed again: on a real disk, as a RAM disk flatters every sync.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// A run of seconds that shows that everything works; its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Writes every figure of every round to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    fn scale(&self) -> Scale {
        match self.quick {
            true => Scale::quick(self.events.unwrap_or(2_350)),
            false => Scale::full(self.events.unwrap_or(235_000), Duration::from_secs(self.seconds)),
        }
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn contestants(&self) -> Vec<Contestant> {
        let mut all = contestants::all();
        all.retain(|contestant| matches(&self.contestant, contestant.name));
        all
    }

    fn workloads(&self) -> Vec<&'static Workload> {
        WORKLOADS.iter().filter(|workload| matches(&self.workload, &workload.path())).collect()
    }
}

/// Whether one of the filters is in the name, or there is none.
fn matches(filters: &[String], name: &str) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::List) => list(),
        Some(Command::Fill { contestant, events, directory }) => fill(&contestant, events, &directory),
        None => run(&cli.options),
    }
}

fn list() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "Contestants:")?;
    contestants::all().iter().try_for_each(|contestant| writeln!(out, "  {}", contestant.name))?;
    writeln!(out, "Workloads:")?;
    WORKLOADS.iter().try_for_each(|workload| writeln!(out, "  {}", workload.path()))?;
    Ok(ExitCode::SUCCESS)
}

fn fill(contestant: &str, events: u64, directory: &Path) -> Result<ExitCode> {
    let contestants = contestants::all();
    let contestant = contestants.iter().find(|known| known.name == contestant).context("no such contestant")?;
    killed::fill(contestant, events, directory)?;
    Ok(ExitCode::SUCCESS)
}

fn run(options: &Options) -> Result<ExitCode> {
    let (contestants, workloads, scale) = (options.contestants(), options.workloads(), options.scale());
    ensure!(!contestants.is_empty(), "no contestant has such a name; `list` names them");
    ensure!(!workloads.is_empty(), "no workload has such a name; `list` names them");
    fs::create_dir_all(&options.directory)?;
    let directory = tempfile::Builder::new().prefix(".bench-peers-").tempdir_in(&options.directory)?;

    let steps = contestants.len() * workloads.len() * options.rounds() as usize;
    let progress = ProgressBar::new(steps as u64)
        .with_style(ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len} {msg}")?);
    progress.enable_steady_tick(Duration::from_millis(250));
    let mut report = Report::new(Machine::of(directory.path())?, scale, options.rounds(), contestants.clone());
    for round in 0..options.rounds() {
        // Whoever is slow because of the disk's mood is somebody else in the next round.
        let mut order = contestants.clone();
        order.rotate_left(round as usize * contestants.len() / options.rounds() as usize);
        for contestant in &order {
            progress.set_message(format!("round {} {}", round + 1, contestant.name));
            report.add_sync(round, contestant.name, machine::sync_times(directory.path(), scale.syncs)?);
            turn::take(contestant, &workloads, &scale, directory.path(), |workload, found| {
                report.add(round, contestant.name, workload, found);
                progress.inc(1);
            });
        }
    }
    progress.finish_and_clear();

    write!(std::io::stdout().lock(), "{report}")?;
    if let Some(path) = &options.json {
        serde_json::to_writer_pretty(File::create(path)?, &report)?;
    }
    Ok(if report.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

//! The command: what is asked for, and the rounds.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::contestants::{self, Contestant};
use crate::machine::{self, Machine};
use crate::report::Report;
use crate::workloads::{Scale, WORKLOADS, Workload};
use crate::{process, turn};

#[derive(Parser)]
#[command(
    about,
    after_help = "Results go to stdout as Markdown, progress to stderr.",
    args_conflicts_with_subcommands = true
)]
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
    /// Fills a store and waits to be killed: what the workloads start whose process is killed.
    #[command(hide = true)]
    Fill {
        #[arg(long)]
        contestant: String,
        #[arg(long)]
        events: u64,
        #[arg(long)]
        directory: PathBuf,
        /// Opens the store with small caches, and measures the memory so many milliseconds after the last append.
        #[arg(long)]
        memory_after: Option<u64>,
    },
}

#[derive(Args)]
struct Options {
    /// Only workloads with this in their name; can be given several times. It is looked for in the names of those that run by
    /// default, and if none has it in those of the others, which take long.
    #[arg(long, value_name = "FILTER")]
    workload: Vec<String>,
    /// Only contestants with this in their name, which is looked for in the same way; can be given several times.
    #[arg(long, value_name = "NAME")]
    contestant: Vec<String>,
    /// Turns of each contestant; the figure is their median [default: 5, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Events that a store is filled with [default: 235,000, which belong to 10,000 aggregates; or 2,350 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// Events of a large store, and twice those that are appended for a long time [default: 10,000,000, or 47,000 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    large_events: Option<u64>,
    /// Seconds of the sustained workload.
    #[arg(long, default_value_t = 5)]
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
        let (events, large) = if self.quick { (2_350, 47_000) } else { (235_000, 10_000_000) };
        let (events, large) = (self.events.unwrap_or(events), self.large_events.unwrap_or(large));
        match self.quick {
            true => Scale::quick(events, large),
            false => Scale::full(events, large, Duration::from_secs(self.seconds)),
        }
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    fn contestants(&self) -> Vec<Contestant> {
        selected(&self.contestant, contestants::all(), |contestant| (contestant.name.to_owned(), contestant.by_default))
    }

    fn workloads(&self, offered: Offered) -> Vec<&'static Workload> {
        let all = WORKLOADS.iter().filter(|workload| offered(workload)).collect();
        selected(&self.workload, all, |workload| (workload.path(), workload.by_default()))
    }
}

/// What the filters ask for, or all that runs by default if there is none. Something else is asked for only by a filter that
/// nothing has which runs by default.
fn selected<T>(filters: &[String], mut all: Vec<T>, describe: impl Fn(&T) -> (String, bool)) -> Vec<T> {
    let described: Vec<_> = all.iter().map(&describe).collect();
    let has_default = |filter: &str| described.iter().any(|(name, by_default)| *by_default && name.contains(filter));
    all.retain(|one| {
        let (name, by_default) = describe(one);
        let asked = |filter: &String| name.contains(filter.as_str()) && (by_default || !has_default(filter));
        if filters.is_empty() { by_default } else { filters.iter().any(asked) }
    });
    all
}

/// Which workloads a program has.
type Offered = fn(&Workload) -> bool;

/// Does what the arguments of the program say.
pub(crate) fn main(offered: Offered) -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::List) => list(offered),
        Some(Command::Fill { contestant, events, directory, memory_after }) => {
            fill(&contestant, events, &directory, memory_after.map(Duration::from_millis))
        }
        None => run(&cli.options, offered),
    }
}

fn list(offered: Offered) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let asked_for = |by_default: bool| if by_default { "" } else { " (only if it is asked for)" };
    writeln!(out, "Contestants:")?;
    for Contestant { name, by_default, .. } in contestants::all() {
        writeln!(out, "  {name}{}", asked_for(by_default))?;
    }
    writeln!(out, "Workloads:")?;
    for workload in WORKLOADS.iter().filter(|workload| offered(workload)) {
        writeln!(out, "  {}{}", workload.path(), asked_for(workload.by_default()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fill(contestant: &str, events: u64, directory: &Path, memory_after: Option<Duration>) -> Result<ExitCode> {
    let contestants = contestants::all();
    let contestant = contestants.iter().find(|known| known.name == contestant).context("no such contestant")?;
    process::fill(contestant, events, directory, memory_after)?;
    Ok(ExitCode::SUCCESS)
}

fn run(options: &Options, offered: Offered) -> Result<ExitCode> {
    let (contestants, workloads, scale) = (options.contestants(), options.workloads(offered), options.scale());
    ensure!(!contestants.is_empty(), "no contestant has such a name; `list` names them");
    ensure!(!workloads.is_empty(), "no workload has such a name; `list` names them");
    fs::create_dir_all(&options.directory)?;
    let directory =
        tempfile::Builder::new().prefix(concat!(".", env!("CARGO_PKG_NAME"), "-")).tempdir_in(&options.directory)?;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_default_has_to_be_asked_for() {
        let names = |filters: &[&str]| {
            let filters: Vec<_> = filters.iter().map(|filter| (*filter).to_owned()).collect();
            selected(&filters, vec![("raw-a", true), ("store-a", true), ("store-b", false)], |(name, by_default)| {
                ((*name).to_owned(), *by_default)
            })
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["raw-a", "store-a"]);
        assert_eq!(names(&["store"]), ["store-a"]);
        assert_eq!(names(&["b"]), ["store-b"]);
        assert_eq!(names(&["raw", "store-b"]), ["raw-a", "store-b"]);
        assert!(names(&["c"]).is_empty());
    }
}

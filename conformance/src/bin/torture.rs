//! Thousands of kills, power cuts and disk failures, for any store of this repository.

mod address;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use conformance::crash::{Kit, Torture};
use indicatif::{ProgressBar, ProgressStyle};

use address::Address;

/// Runs child processes that work on a store and are killed, lose power or have a failing disk, and checks the store
/// against everything that it acknowledged.
///
/// Prints a summary in Markdown. Exits with 1 if a rule was broken; the files of that store are kept.
#[derive(Parser)]
#[command(name = "torture", version)]
struct Arguments {
    /// The store, as `scheme:directory?option=value`. The stores are created below the directory, which must be empty
    /// or missing. Without a directory, as in `lmdb:`, a temporary one is used.
    #[arg(long, value_name = "URL")]
    store: String,
    /// The number of incidents.
    #[arg(long, default_value_t = 1000)]
    cycles: u64,
    /// The number of stores to work on at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// The random seed; a new one by default.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match torture(&arguments) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn torture(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let address = Address::parse(&arguments.store)?;
    if address.is_memory() {
        return Err("a store in memory cannot survive a crash; name one with files, such as lmdb:".into());
    }
    let (path, is_on_server) = (address.directory.clone(), address.is_on_server());
    let kit = Kit::new(&address.scheme.clone(), address.profile(), move |directory| address.open(&directory));
    if kit.is_child() {
        return Ok(kit.run());
    }
    let temporary = tempfile::Builder::new().prefix("eventstore-torture-").tempdir()?;
    let directory = if path.is_empty() || is_on_server { temporary.path().to_owned() } else { PathBuf::from(path) };
    if directory.read_dir().is_ok_and(|mut content| content.next().is_some()) {
        return Err(format!("{} is not empty; choose another directory, or empty it", directory.display()).into());
    }
    let mut torture = Torture::new(arguments.cycles, directory);
    torture.jobs = arguments.jobs;
    torture.seed = arguments.seed.unwrap_or(torture.seed);
    let bar = ProgressBar::new(torture.cycles).with_style(ProgressStyle::with_template(
        "{elapsed_precise} {bar:40} {pos}/{len} incidents, {msg}, about {eta} left",
    )?);
    bar.enable_steady_tick(Duration::from_millis(500));
    let summary = kit.torture(&torture, &|summary| {
        bar.set_position(summary.cycles);
        bar.set_message(format!("{} events acknowledged", summary.acknowledged));
    });
    bar.finish_and_clear();
    let mut out = std::io::stdout();
    writeln!(out, "`torture --store {} --cycles {}`, seed {}\n", arguments.store, torture.cycles, torture.seed)?;
    write!(out, "{summary}")?;
    if summary.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let kept = temporary.keep();
    writeln!(out, "\nThe files are kept below {}.", kept.display())?;
    Ok(ExitCode::FAILURE)
}

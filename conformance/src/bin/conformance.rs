//! Runs the conformance suite and the crash kit against any store of this repository, and prints a report.

mod address;

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use conformance::crash::Kit;
use conformance::{CheckReport, Outcome, Suite, check_environment};
use indicatif::{ProgressBar, ProgressStyle};

use address::Address;

/// Checks a store against every rule of the contract, and prints which rules it keeps.
///
/// Exits with 1 if a rule is broken. `docs/contract.md` has the rules; the environment variables of the suite and of
/// the crash kit are in their documentation.
#[derive(Parser)]
#[command(name = "conformance", version)]
struct Arguments {
    /// The store, as `scheme:?option=value`, such as `lmdb:` or `rocksdb:?block_cache=1MiB`. Each check creates its own
    /// store in a temporary directory. Or the stores of a server, such as `http://127.0.0.1:7080/stores`, where each
    /// check creates a store named conformance-…: start it with `eventstore serve --stores` and a directory to delete
    /// afterwards.
    #[arg(long, value_name = "URL")]
    store: String,
    /// Only checks whose names contain this, such as `w2_` or `crash::`.
    filter: Option<String>,
    /// How many checks to run at the same time.
    #[arg(long, default_value_t = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))]
    threads: NonZeroUsize,
    /// Print every check with its duration, and why some were not run.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let address = Address::parse(&arguments.store)?;
    if !address.directory.is_empty() && !address.is_on_server() {
        return Err(format!(
            "{:?} has to be a scheme without a directory, such as lmdb: (each check makes a store of its own)",
            arguments.store
        )
        .into());
    }
    let (name, profile) = (address.scheme.clone(), address.profile());
    let (is_on_server, has_files) = (address.is_on_server(), !address.is_memory() && !address.is_on_server());
    let reads = address.clone();
    let open = move |directory: std::path::PathBuf| address.open(&directory);
    let read_only = move |directory: std::path::PathBuf| reads.open_read_only(&directory);
    let kit = has_files.then(|| Kit::new(&name, profile.clone(), open.clone()));
    if let Some(kit) = &kit
        && kit.is_child()
    {
        return Ok(kit.clone().run());
    }
    check_environment().map_err(|failure| failure.to_string())?;

    let is_wanted = |name: &str| arguments.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let suite = Suite::new(&name, profile, open).only(is_wanted);
    let suite = if is_on_server { suite } else { suite.read_only(read_only) };
    let kit = kit.map(|kit| kit.only(is_wanted));
    let checks = suite.checks().count() + kit.as_ref().map_or(0, |kit| kit.checks().count());
    let bar = ProgressBar::new(checks as u64)
        .with_style(ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos}/{len} checks, {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(500));
    let ended = |report: &CheckReport| {
        bar.inc(1);
        bar.set_message(report.check.name.clone());
    };
    let mut report = suite.run_all(arguments.threads, ended);
    if let Some(kit) = kit {
        let began = std::time::Instant::now();
        report.checks.extend(kit.run_all(arguments.threads, ended));
        report.took += began.elapsed();
    }
    bar.finish_and_clear();

    let mut out = std::io::stdout();
    if arguments.verbose {
        for CheckReport { check, outcome, took, .. } in &report.checks {
            let (word, why) = match outcome {
                Outcome::Passed => ("passed", String::new()),
                Outcome::Failed(_) => ("FAILED", String::new()),
                Outcome::Ignored(reason) => ("not run", format!(": {reason}")),
            };
            writeln!(out, "{word:<8} {:>6.2} s  {}{why}", took.as_secs_f64(), check.name)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{report}")?;
    if report.is_ok() {
        return Ok(ExitCode::SUCCESS);
    }
    if report.sum().failed == 0 {
        writeln!(out, "no check was run, which proves nothing")?;
    }
    Ok(ExitCode::FAILURE)
}

//! Replicas and a hub as processes that are killed, with networks and disks that fail.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sync_torture::{Only, Torture, run_child};
use synckit::core::Rule;

/// Runs a hub and its replicas as processes that are killed, lose power, and have connections and disks that fail, and holds them
/// to what they acknowledged.
///
/// Prints a summary in Markdown. Ends with 1 if something happened that may never happen; the directories are kept then.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many rounds.
    #[arg(short = 'n', long, default_value_t = 100)]
    rounds: u64,
    /// The seed of everything random but threads and time. Every eight rounds begin anew, with the next seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the directories are made; a temporary one by default.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Switches a rule of syncing off, by its name: sync-simulation --list.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    off: Option<String>,
    /// The only kind of fault that replicas have. stops: they are stopped at some call, as by a kill, and opened again by the same
    /// process. failing-disks: their disk fails for a while. In both cases they go on, and then the power is cut.
    #[arg(long, value_name = "KIND", value_parser = only)]
    only: Option<Only>,
    /// Tells nothing before the end.
    #[arg(short, long)]
    quiet: bool,
}

fn rule(name: &str) -> Result<String, String> {
    let found = Rule::ALL.iter().map(|rule| format!("{rule:?}")).find(|rule| rule.eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("{name:?} is none of the rules that sync-simulation --list shows"))
}

fn only(name: &str) -> Result<Only, String> {
    match name {
        "stops" => Ok(Only::Stops),
        "failing-disks" => Ok(Only::FailingDisks),
        _ => Err("the kinds are stops and failing-disks".to_owned()),
    }
}

fn main() -> ExitCode {
    if let Some(code) = run_child() {
        return code;
    }
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
    let temporary = tempfile::Builder::new().prefix("sync-torture-").tempdir()?;
    let torture = Torture {
        program: std::env::current_exe()?,
        directory: arguments.directory.clone().unwrap_or_else(|| temporary.path().to_owned()),
        rounds: arguments.rounds,
        seed: arguments.seed,
        off: arguments.off.clone(),
        only: arguments.only,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let progress = |summary: &sync_torture::Summary| {
        if !arguments.quiet {
            let (rounds, acknowledged) = (summary.rounds, summary.acknowledged());
            let _ = write!(std::io::stderr(), "\r{rounds} rounds, {acknowledged} batches acknowledged");
        }
    };
    let done = runtime.block_on(torture.run(&progress));
    if !arguments.quiet {
        writeln!(std::io::stderr())?;
    }
    let mut out = std::io::stdout();
    match done {
        Ok(summary) => {
            write!(out, "{summary}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(broken) => {
            let _ = temporary.keep();
            writeln!(out, "{broken}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

//! The `eventstore` command: append, import, load and inspect events from the shell.

#![deny(unsafe_code)]

mod batches;
mod cli;
mod commands;
mod compression;
mod failure;
#[cfg(test)]
mod fuzzing;
mod input;
mod interrupt;
mod json;
mod mapping;
#[cfg(feature = "http")]
mod outages;
mod output;
#[allow(unsafe_code, reason = "calls of the system that the standard library has not")]
mod process;
mod progress;
mod records;
mod rejects;
#[cfg(feature = "serve")]
mod request_log;
mod table;
mod times;

use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::commands::Ending;
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    // Each command prints its result. Nothing is done whose result nobody could see.
    if process::stdout_was_closed() {
        return Failure::closed_stdout().report();
    }
    match run(cli) {
        Ok(Ending::Finished) => ExitCode::SUCCESS,
        Ok(Ending::FoundDamage) => ExitCode::FAILURE,
        Ok(Ending::LeftOut) => ExitCode::from(commands::LEFT_OUT),
        #[cfg(feature = "sync")]
        Ok(Ending::Waiting) => ExitCode::from(commands::WAITING),
        Ok(Ending::Interrupted) => ExitCode::from(interrupt::exit_code()),
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<Ending, Failure> {
    let all = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = match cli.command {
        // As in a program that embeds the store.
        Command::Bench(_) => all(),
        #[cfg(feature = "serve")]
        Command::Serve(_) => all(),
        // One thread is enough for timers and signals, and keeps them running while the main thread waits for a slow
        // reader of the output.
        _ => 1,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    runtime.block_on(commands::run(cli))
}

/// Help and version are not errors and go to stdout as clap formats them; everything else is one line.
fn not_understood(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match error.kind() {
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand => {
            if process::stdout_was_closed() {
                return Failure::closed_stdout().report();
            }
            match error.print() {
                Err(unwritten) if unwritten.kind() != ErrorKind::BrokenPipe => output::failure(&unwritten).report(),
                _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1)),
            }
        }
        _ => Failure::usage(error).report(),
    }
}

//! The subcommands, one file each.

mod aggregates;
mod append;
mod backup;
mod bench;
mod copy;
mod demo;
#[cfg(feature = "sync")]
mod demo_sync;
mod digest;
mod gc;
mod get;
mod import;
mod latest;
mod load;
mod repair;
#[cfg(feature = "sync")]
mod replica;
mod restore;
#[cfg(feature = "postgres")]
mod schema;
#[cfg(feature = "serve")]
mod serve;
mod stats;
mod verify;

use std::future::Future;
use std::sync::Arc;

use eventstore::backend::{CancellationToken, Context, Cursor, Error, EventStore, Version};

#[cfg(feature = "sync")]
use crate::cli::ReplicaCommand;
use crate::cli::{Cli, Command, Tour};
use crate::failure::{Failure, tell};
use crate::interrupt;
use crate::progress::Work;

type Store = Arc<dyn EventStore>;

/// How a command ends without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is done.
    Finished,
    /// It was interrupted and stopped in an orderly way.
    Interrupted,
    /// It is done and found damage.
    FoundDamage,
    /// It is done, except for some skipped lines of the input, which are in a file.
    LeftOut,
    /// It is done up to a batch that waits for a decision.
    #[cfg(feature = "sync")]
    Waiting,
}

/// The exit code of [`Ending::LeftOut`]: neither complete nor aborted.
pub(crate) const LEFT_OUT: u8 = 3;

/// The exit code of [`Ending::Waiting`].
#[cfg(feature = "sync")]
pub(crate) const WAITING: u8 = 4;

/// The version that `text` names, and the cursor if it is one. Only a cursor has a hyphen.
pub(crate) fn version_or_cursor(text: &str) -> Result<(Version, Option<Cursor>), Error> {
    if text.contains('-') {
        let cursor: Cursor = text.parse()?;
        return Ok((cursor.version(), Some(cursor)));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok((text.parse()?, None));
    }
    Err(Error::InvalidVersion {
        text: text.to_owned(),
        reason: "give a version, such as 1987, or a cursor, such as 1987-9f86d081".to_owned(),
    })
}

pub(crate) async fn run(cli: Cli) -> Result<Ending, Failure> {
    interrupt::listen()?;
    let url = cli.store.as_str();
    #[cfg(feature = "sync")]
    if let Some(directory) = replica::directory(url).filter(|_| replica::is_of_store(&cli.command)) {
        return replica::with_store(directory, &cli.name, cli.command).await;
    }
    match cli.command {
        Command::Demo { tour: Tour::Store } => demo::run().await,
        #[cfg(feature = "sync")]
        Command::Demo { tour: Tour::Sync } => demo_sync::run().await,
        Command::Append(args) => append::run(url, &args).await,
        Command::Import(args) => import::run(url, &args).await,
        Command::Load(args) => load::run(url, args).await,
        Command::Aggregates { prefix } => aggregates::run(url, prefix).await,
        Command::Get { id } => get::run(url, &id).await,
        Command::Latest(args) => latest::run(url, args).await,
        Command::Stats { json } => stats::run(url, json).await,
        Command::Gc { full } => gc::run(url, full).await,
        Command::Digest { until } => digest::run(url, until.as_deref()).await,
        Command::Backup { directory } => backup::run(url, &directory).await,
        Command::Restore { directory } => restore::run(url, &directory).await,
        Command::Verify => verify::run(url).await,
        Command::Copy { to } => copy::run(url, &to).await,
        Command::Bench(args) => bench::run(url, &args).await,
        #[cfg(feature = "postgres")]
        Command::Schema => schema::run(url),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(url, args).await,
        #[cfg(feature = "sync")]
        Command::Replica(ReplicaCommand::Init { directory, hub, engine, read_only }) => {
            replica::init(replica::argument(directory), hub, engine, read_only).await
        }
        #[cfg(feature = "sync")]
        Command::Sync(args) => replica::sync::run(args).await,
        #[cfg(feature = "sync")]
        Command::Status { directory, json } => replica::status::run(&replica::argument(directory), json).await,
        #[cfg(feature = "sync")]
        Command::Pending { directory } => replica::own::pending(&replica::argument(directory)).await,
        #[cfg(feature = "sync")]
        Command::Rejected { directory, delete } => replica::own::rejected(&replica::argument(directory), delete).await,
        Command::Repair => repair::run(url).await,
    }
}

/// Opens or creates the store, runs the work, and closes the store in any case.
async fn with_store(url: &str, work: impl AsyncFnOnce(&Store) -> Result<Ending, Failure>) -> Result<Ending, Failure> {
    with_open(eventstore::backend::open(url), work).await
}

/// Opens the store for reading, which writes nothing, runs the work, and closes the store.
async fn reading(url: &str, work: impl AsyncFnOnce(&Store) -> Result<Ending, Failure>) -> Result<Ending, Failure> {
    with_open(eventstore::backend::open_read_only(url), work).await
}

/// Like [`with_store`], but the store must exist, so that a mistyped path is an error.
async fn with_existing(
    url: &str,
    work: impl AsyncFnOnce(&Store) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    with_open(eventstore::backend::open_existing(url), work).await
}

async fn with_open(
    opening: impl Future<Output = eventstore::backend::Result<Store>>,
    work: impl AsyncFnOnce(&Store) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    let Some(store) = interrupt::while_opening(opening).await else { return Ok(Ending::Interrupted) };
    let store = store?;
    let result = work(&store).await;
    closed(result, store.close().await)
}

/// The ending of work on something that was closed after it.
fn closed<E>(result: Result<Ending, Failure>, closed: Result<(), E>) -> Result<Ending, Failure>
where
    Failure: From<E>,
{
    match result {
        // A reader that has left must not hide an error on closing.
        Err(failure) if failure.is_closed_pipe() => closed.map_err(Failure::from).and(Err(failure)),
        Ok(ending) => closed.map(|()| ending).map_err(Failure::from),
        failed => failed,
    }
}

/// Runs short work whose result is printed. A signal ends it.
async fn printing<T>(work: impl AsyncFnOnce(&Context) -> eventstore::backend::Result<T>) -> Result<Option<T>, Failure> {
    let interrupted = interrupt::token();
    unless_interrupted(work(&Context::background().with_cancellation(interrupted.clone())).await, &interrupted)
}

/// Runs work that may take long: shows its progress in this unit, and stops in an orderly way on a signal, which gives
/// `None`.
async fn interruptible<T>(
    unit: &str,
    work: impl AsyncFnOnce(&Context) -> eventstore::backend::Result<T>,
) -> Result<Option<T>, Failure> {
    let interrupted = interrupt::token_of_work();
    let bar = Work::new(unit);
    let ctx = Context::background().with_cancellation(interrupted.clone()).with_progress(bar.listener());
    let done = unless_interrupted(work(&ctx).await, &interrupted)?;
    drop(bar);
    if done.is_none() {
        tell("interrupted");
    }
    Ok(done)
}

/// The ending of work that prints as it proceeds, and that a signal may have stopped.
fn ending(result: Result<(), Failure>, interrupted: &CancellationToken) -> Result<Ending, Failure> {
    match result {
        Err(failure) if failure.code() == Error::Cancelled.code() && interrupted.is_cancelled() => {
            Ok(Ending::Interrupted)
        }
        result => result.map(|()| Ending::Finished),
    }
}

/// `None` if a signal stopped it.
fn unless_interrupted<T>(
    result: eventstore::backend::Result<T>,
    interrupted: &CancellationToken,
) -> Result<Option<T>, Failure> {
    match result {
        Err(Error::Cancelled) if interrupted.is_cancelled() => Ok(None),
        result => Ok(Some(result?)),
    }
}

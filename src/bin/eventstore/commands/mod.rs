//! One file for each command.

mod append;
mod demo;
mod digest;
mod gc;
mod get;
mod import;
mod latest;
mod load;
mod stats;

use std::sync::Arc;

use eventstore::EventStore;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

type Store = Arc<dyn EventStore>;

/// How a command ends that does not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It did all there was to do.
    Finished,
    /// It was asked to stop, and did so in good order.
    Interrupted,
}

pub(crate) async fn run(cli: Cli) -> Result<Ending, Failure> {
    let url = match cli.command {
        Command::Demo | Command::Append(_) | Command::Import(_) => cli.store,
        _ => existing(cli.store),
    };
    let url = url.as_str();
    match cli.command {
        Command::Demo => demo::run().await,
        Command::Append(args) => append::run(url, &args).await,
        Command::Import(args) => import::run(url, &args).await,
        Command::Load(args) => load::run(url, args).await,
        Command::Get { id } => get::run(url, &id).await,
        Command::Latest => latest::run(url).await,
        Command::Stats => stats::run(url).await,
        Command::Gc => gc::run(url).await,
        Command::Digest => digest::run(url).await,
    }
}

/// The URL of a store that has to be there: whoever reads from a mistyped path wants to be told.
fn existing(mut url: String) -> String {
    const OPTION: &str = "create_if_missing=";
    if url.contains(':') && !url.starts_with("memory:") && !url.contains(OPTION) {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(OPTION);
        url.push_str("false");
    }
    url
}

/// Opens the store, works with it, and closes it, whatever came of the work.
async fn with_store(url: &str, work: impl AsyncFnOnce(&Store) -> Result<Ending, Failure>) -> Result<Ending, Failure> {
    let store = eventstore::open(url).await?;
    let result = work(&store).await;
    let closed = store.close().await;
    let ending = result?;
    closed?;
    Ok(ending)
}

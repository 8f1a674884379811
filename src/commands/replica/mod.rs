//! Replicas: their commands, and other commands on `replica:DIR`.

mod append;
mod load;
pub(crate) mod own;
pub(crate) mod status;
pub(crate) mod sync;

use std::path::{Path, PathBuf};

use eventstore::backend::Error;
use synckit::{Options, Replica};

use super::Ending;
use crate::cli::Command;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::Output;

/// The directory of a replica, if the URL names one.
pub(crate) fn directory(url: &str) -> Option<&Path> {
    url.strip_prefix("replica:").map(Path::new)
}

/// Whether a command works on the store of `--store`.
pub(crate) fn is_of_store(command: &Command) -> bool {
    !matches!(
        command,
        Command::Demo { .. }
            | Command::Replica(_)
            | Command::Sync(_)
            | Command::Status { .. }
            | Command::Pending { .. }
            | Command::Rejected { .. }
    )
}

/// Runs a command for stores on a replica.
pub(crate) async fn with_store(directory: &Path, command: Command) -> Result<Ending, Failure> {
    match command {
        Command::Append(args) => append::run(directory, &args).await,
        Command::Load(args) => load::run(directory, args).await,
        _ => Err(Error::Unsupported {
            what: format!(
                "this on a replica; `append` and `load` work on replica:DIR, `status`, `pending`, `rejected` and `sync` take \
                 the directory, and its confirmed events are the store in {}",
                directory.join("confirmed-1").display()
            ),
        }
        .into()),
    }
}

/// Opens an existing replica, runs the work, and closes the replica in any case.
async fn with_replica(
    options: Options,
    work: impl AsyncFnOnce(&Replica) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    let replica = options.open().await?;
    let result = work(&replica).await;
    super::closed(result, replica.close().await)
}

async fn existing(
    directory: &Path,
    work: impl AsyncFnOnce(&Replica) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    with_replica(Options::new(directory).existing(), work).await
}

/// `replica init`.
pub(crate) async fn init(
    directory: PathBuf,
    hub: String,
    engine: Option<String>,
    read_only: bool,
) -> Result<Ending, Failure> {
    if directory.join("replica.json").exists() {
        let reason = format!("{} is a replica already; name another directory", directory.display());
        return Err(Error::Open { path: directory.display().to_string(), reason, source: None }.into());
    }
    let mut options = Options::new(&directory).hub(hub);
    if let Some(engine) = engine {
        options = options.engine(engine);
    }
    if read_only {
        options = options.read_only();
    }
    let _stop = interrupt::token_of_work();
    with_replica(options, async |_| {
        let mut output = Output::of_printing();
        output.text(&format!("{} is now a replica; next: eventstore sync {0}", directory.display()))?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

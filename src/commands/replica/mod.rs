//! Replicas: their commands, and other commands on `replica:DIR`.

mod append;
mod load;
pub(crate) mod own;
pub(crate) mod status;
pub(crate) mod sync;

use std::path::{Path, PathBuf};

use eventstore::backend::{Error, check_url, engine_of, is_gosync, is_postgres, is_served};
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

/// The directory in an argument, which may also be written as `replica:DIR`, as for `--store`.
pub(crate) fn argument(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(directory) {
        Some(directory) => directory.to_owned(),
        None => path,
    }
}

/// Runs a command for stores on a replica.
pub(crate) async fn with_store(directory: &Path, name: &str, command: Command) -> Result<Ending, Failure> {
    match command {
        Command::Append(args) => append::run(directory, &args).await,
        Command::Load(args) => load::run(directory, args).await,
        _ => {
            let instead = match confirmed(directory) {
                Some(url) => format!("its confirmed events are in the store {url}"),
                None => "`append` and `load` do".to_owned(),
            };
            let what = format!("`{name}` does not work on a replica; {instead}");
            Err(Failure::told("unsupported", what))
        }
    }
}

/// The URL of the store with a replica's confirmed events.
fn confirmed(directory: &Path) -> Option<String> {
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix("confirmed-")?.parse::<u32>().ok();
    let newest = std::fs::read_dir(directory).ok()?.filter_map(|entry| number(entry.ok()?)).max()?;
    url_of(&directory.join(format!("confirmed-{newest}")))
}

/// The URL of the store in a directory.
fn url_of(path: &Path) -> Option<String> {
    Some(format!("{}:{}", engine_of(path).ok()?, path.display()))
}

/// The error as the command reports it: its advice names commands.
fn told(directory: &Path, error: synckit::Error) -> Failure {
    let replica = directory.display();
    let message = match &error {
        synckit::Error::Store(Error::Locked { path }) if *path == replica.to_string() => format!(
            "{replica} is open in another process, and a replica belongs to one process at a time; stop the `sync --live` or \
             `load --follow` that has it open, or wait for the command that has"
        ),
        synckit::Error::PendingInScope => format!(
            "own events are pending here, which have no revision or version yet; confirm them first with `eventstore sync \
             {replica}`, or append with `--expect exists`"
        ),
        synckit::Error::Rejected { id, batch } => format!(
            "the event id {id:?} is that of batch {batch}, which was rejected or replaced; delete that batch with `eventstore \
             rejected {replica} --delete {batch}`, or give the event a new id"
        ),
        synckit::Error::AnotherHistory { hub, confirmed, found } => format!(
            "{hub} has another history: this replica is at {confirmed}, and the hub at {found}; restore the hub, or accept its \
             history with `eventstore sync {replica} --accept-history` (nothing is lost: own events become pending again, and \
             what was confirmed is kept aside)"
        ),
        _ => return error.into(),
    };
    Failure::told(error.code(), message)
}

/// Checks the URL of a hub, without network access.
fn check_hub(url: &str) -> Result<(), Failure> {
    if url.starts_with("memory:") {
        let what = "memory: is another empty store in every process, and no hub; name a store that is served, such as \
                    http://127.0.0.1:7080";
        return Err(Error::Unsupported { what: what.to_owned() }.into());
    }
    let note = "a hub is http://host:port, https://…, unix:PATH, postgres://…, gosync+http://…, or an embedded store such as \
                lmdb:DIR";
    check_url(url).map_err(|error| match &error {
        Error::Unsupported { what } if what.contains("not a known engine") => Failure::from(error).note(note),
        Error::InvalidOption { option, .. } if option == "store" => Failure::from(error).note(note),
        _ => error.into(),
    })?;
    let is_remote = is_served(url) || is_gosync(url) || is_postgres(url);
    if let Some((_, path)) = url.split_once(':').filter(|_| !is_remote) {
        let advice = "a hub in a directory has to be there: append or import something to it first";
        let found = engine_of(Path::new(path.split('?').next().unwrap_or_default()));
        found.map_err(|error| Failure::from(error).note(advice))?;
    }
    Ok(())
}

/// Opens an existing replica, runs the work, and closes the replica in any case.
async fn with_replica(
    directory: &Path,
    options: Options,
    work: impl AsyncFnOnce(&Replica) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    let replica = options.open().await.map_err(|error| told(directory, error))?;
    let result = work(&replica).await;
    super::closed(result, replica.close().await)
}

async fn existing(
    directory: &Path,
    work: impl AsyncFnOnce(&Replica) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    with_replica(directory, Options::new(directory).existing(), work).await
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
    check_hub(&hub)?;
    let mut options = Options::new(&directory).hub(hub);
    if let Some(engine) = engine {
        options = options.engine(engine);
    }
    if read_only {
        options = options.read_only();
    }
    let _stop = interrupt::token_of_work();
    with_replica(&directory, options, async |_| {
        let mut output = Output::of_printing();
        output.text(&format!("{} is now a replica; next: eventstore sync {0}", directory.display()))?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

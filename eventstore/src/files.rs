//! What is done with a store's files while nobody has it open.

use std::path::Path;

use eventstore_kv::{StoreDirectory, StoreUrl};

use crate::backend::Context;
use crate::open::{MEMORY, parse, with_engine};
use crate::{Error, Result};

/// The engine of the store in a directory: the scheme of the URL that opens it.
///
/// # Errors
///
/// `Open` if there is no store.
pub fn engine_of(directory: &Path) -> Result<String> {
    StoreDirectory::engine_of(directory)
}

/// Makes a new store at `url` of the backup in the directory `backup`, which stays as it is.
///
/// The store's directory has to be missing or empty, and the URL's scheme the backup's engine; to change engines, open the
/// backup and [`copy`](crate::backend::copy) it. Everything is on stable storage when this returns, and nothing is left of the new
/// store if it fails. [`Progress`](crate::backend::Progress) counts in bytes. Must be called inside a Tokio runtime.
///
/// A restored store may have fewer events than some reader has seen: compare saved versions with `latest_version` before
/// going on from them.
///
/// # Errors
///
/// `Open` if there is no finished backup or the target cannot be used; `Locked` if the backup is open; `Unsupported` if
/// the backup is another engine's; `Cancelled`, `DeadlineExceeded`, `Engine`.
///
/// # Cancellation
///
/// Dropping the future does not stop it; the context does.
pub async fn restore(ctx: &Context, backup: &Path, url: &str) -> Result<()> {
    let url = parse(url)?;
    let engine = engine_of(backup)?;
    if engine != url.scheme {
        let (backup, path) = (backup.display(), url.path.display());
        return Err(Error::Unsupported {
            what: format!(
                "{backup} is a backup of the {engine} engine; restore it as {engine}:{path}, or copy it into a store of \
                 another engine (eventstore --store {engine}:{backup} copy --to {}:{path})",
                url.scheme
            ),
        });
    }
    check_options(&url)?;
    let (ctx, backup) = (ctx.clone(), backup.to_owned());
    blocking(move || eventstore_kv::restore(&ctx, &backup, &url.path).map(drop)).await
}

/// Refuses options that the store could not be opened with, before it is made.
fn check_options(url: &StoreUrl) -> Result<()> {
    with_engine!(url, engine => engine::Options::from_url(url).map(drop))
}

/// Makes the index of a store anew from its log, and accepts it if the log has lost its end: the same for every engine.
/// Footers of the log that are damaged are made again. It tells what was done.
///
/// What was the index is put aside in the store's directory, as is what is in the way in the log. Opening a store makes a
/// lost or damaged index by itself; this is for an index that nobody trusts, and for a log that does not open because events
/// that had been synced are missing at its end. [`Progress`](crate::backend::Progress) counts in events. Must be called inside a
/// Tokio runtime.
///
/// # Errors
///
/// `Open` if there is no store; `Corrupt` if the log is damaged before its end: restore a backup then, or load what comes
/// before the damage and after it; `Locked`; `Cancelled`, `DeadlineExceeded`; `Unsupported` for `memory:`.
pub async fn repair(ctx: &Context, url: &str) -> Result<Vec<String>> {
    ctx.check()?;
    let url = parse(url)?;
    if url.scheme == MEMORY {
        return Err(Error::Unsupported { what: "a memory store has no files to repair".to_owned() });
    }
    with_engine!(url, engine => {
        let (ctx, options) = (ctx.clone(), engine::Options::from_url(&url)?);
        blocking(move || engine::repair(&ctx, &options)).await
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::engine("finish", error))?
}

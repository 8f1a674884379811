//! Operations on the files of a closed store.

use std::path::Path;

use eventstore_kv::{StoreDirectory, StoreUrl};

use crate::backend::Context;
use crate::open::{MEMORY, parse, with_engine};
use crate::{Error, Result};

/// The engine of the store in a directory, as the scheme of its URL.
///
/// # Errors
///
/// `Open` if there is no store.
pub fn engine_of(directory: &Path) -> Result<String> {
    StoreDirectory::engine_of(directory)
}

/// Creates a new store at `url` from the backup in the directory `backup`, which is not changed.
///
/// The store's directory must be missing or empty, and the URL's scheme must be the backup's engine. To change engines,
/// open the backup and [`copy`](crate::backend::copy) it. Everything is on stable storage when this returns. If it
/// fails, nothing is left of the new store. [`Progress`](crate::backend::Progress) counts in bytes. Must be called
/// inside a Tokio runtime.
///
/// A restored store may have fewer events than some reader has seen. Compare saved versions with `latest_version`
/// before you resume from them.
///
/// # Errors
///
/// `Open` if there is no finished backup or the target cannot be used; `Locked` if the backup is open; `Unsupported` if
/// the backup belongs to another engine; `Cancelled`, `DeadlineExceeded`, `Engine`.
///
/// # Cancellation
///
/// Dropping the future does not stop the restore. Cancelling the context does.
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

/// Rejects invalid options before the store is created.
fn check_options(url: &StoreUrl) -> Result<()> {
    with_engine!(url, engine => engine::Options::from_url(url).map(drop))
}

/// Rebuilds the index of a store from its log, and accepts a log that has lost its end. It works the same for every
/// engine. It also rebuilds damaged footers of the log. Returns a description of what was done.
///
/// The old index is moved aside in the store's directory, as is anything in the way in the log. Opening a store
/// rebuilds a lost or damaged index by itself. Use this for an index that you do not trust, and for a log that does not
/// open because synced events are missing at its end. [`Progress`](crate::backend::Progress) counts in events. Must be
/// called inside a Tokio runtime.
///
/// # Errors
///
/// `Open` if there is no store; `Corrupt` if the log is damaged before its end (restore a backup, or load what comes
/// before and after the damage); `Locked`; `Cancelled`, `DeadlineExceeded`; `Unsupported` for `memory:`.
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

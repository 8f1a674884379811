//! What is done with a store's files while nobody has it open.

use std::path::Path;

use eventstore_kv::{StoreDirectory, StoreUrl};

use crate::open::{no_backend, parse};
use crate::{Context, Error, Result};

/// Makes a new store at `url` of the backup in the directory `backup`, which stays as it is.
///
/// The store's directory has to be missing or empty, and the URL's scheme the backup's engine; to change engines, open the
/// backup and [`copy`](crate::copy) it. Everything is on stable storage when this returns, and nothing is left of the new
/// store if it fails. [`Progress`](crate::Progress) counts in bytes. Must be called inside a Tokio runtime.
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
    let engine = StoreDirectory::engine_of(backup)?;
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
    match url.scheme.as_str() {
        #[cfg(feature = "lmdb")]
        backend_lmdb::NAME => backend_lmdb::Options::from_url(url).map(drop),
        #[cfg(feature = "rocksdb")]
        backend_rocksdb::NAME => backend_rocksdb::Options::from_url(url).map(drop),
        #[cfg(feature = "fjall")]
        backend_fjall::NAME => backend_fjall::Options::from_url(url).map(drop),
        #[cfg(feature = "sled")]
        backend_sled::NAME => backend_sled::Options::from_url(url).map(drop),
        other => Err(no_backend(other)),
    }
}

/// Makes the index of a store anew from its log, and accepts it if the log has lost its end: the same for every engine. It
/// tells what was done.
///
/// What was the index is put aside in the store's directory, as is what is in the way in the log. Opening a store makes a
/// lost or damaged index by itself; this is for an index that nobody trusts, and for a log that does not open because events
/// that had been synced are missing at its end. [`Progress`](crate::Progress) counts in events. Must be called inside a
/// Tokio runtime.
///
/// # Errors
///
/// `Open` if there is no store; `Corrupt` if the log is damaged before its end: restore a backup then, or load what comes
/// before the damage and after it; `Locked`; `Cancelled`, `DeadlineExceeded`; `Unsupported` for `memory:`.
pub async fn repair(ctx: &Context, url: &str) -> Result<Vec<String>> {
    let url = parse(url)?;
    let ctx = ctx.clone();
    match url.scheme.as_str() {
        #[cfg(feature = "lmdb")]
        backend_lmdb::NAME => {
            let options = backend_lmdb::Options::from_url(&url)?;
            blocking(move || backend_lmdb::repair(&ctx, &options)).await
        }
        #[cfg(feature = "rocksdb")]
        backend_rocksdb::NAME => {
            let options = backend_rocksdb::Options::from_url(&url)?;
            blocking(move || backend_rocksdb::repair(&ctx, &options)).await
        }
        #[cfg(feature = "fjall")]
        backend_fjall::NAME => {
            let options = backend_fjall::Options::from_url(&url)?;
            blocking(move || backend_fjall::repair(&ctx, &options)).await
        }
        #[cfg(feature = "sled")]
        backend_sled::NAME => {
            let options = backend_sled::Options::from_url(&url)?;
            blocking(move || backend_sled::repair(&ctx, &options)).await
        }
        "memory" => Err(Error::Unsupported { what: "a store in memory has no files to repair".to_owned() }),
        other => Err(no_backend(other)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::engine("finish", error))?
}

//! What is done with a store's files while nobody has it open.

use std::path::Path;

use eventstore_kv::{StoreDirectory, StoreUrl};

use crate::open::no_backend;
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
    let url: StoreUrl = url.parse()?;
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
        #[cfg(feature = "sled")]
        backend_sled::NAME => backend_sled::Options::from_url(url).map(drop),
        other => Err(no_backend(other)),
    }
}

/// Mends what a crash may leave that an engine refuses to open, and tells what was done; nothing if the store opens.
///
/// What is in the way is moved or copied aside, into a directory of its own in the store's directory. Nothing is ever
/// deleted, and nothing calls this by itself. Must be called inside a Tokio runtime.
///
/// | engine | what it mends |
/// |---|---|
/// | RocksDB | a log with a damaged record: what comes before the damage is kept |
/// | sled | a damaged snapshot or settings file: sled makes it anew, from its log. Verify the store afterwards |
/// | LMDB | nothing: a crash leaves nothing that it refuses. Restore a backup |
///
/// # Errors
///
/// `Unsupported` for an engine that has nothing to mend; `Corrupt` or `Open` if this damage cannot be mended; `Locked`.
pub async fn repair(url: &str) -> Result<Vec<String>> {
    let url: StoreUrl = url.parse()?;
    match url.scheme.as_str() {
        #[cfg(feature = "rocksdb")]
        backend_rocksdb::NAME => blocking(move || backend_rocksdb::repair(&url.path)).await,
        #[cfg(feature = "sled")]
        backend_sled::NAME => blocking(move || backend_sled::repair(&url.path)).await,
        #[cfg(feature = "lmdb")]
        backend_lmdb::NAME => Err(Error::Unsupported {
            what:
                "a crash leaves nothing in LMDB's files that needs repair; if they are damaged, restore a backup, or \
                   load what comes before and after the damage"
                    .to_owned(),
        }),
        "memory" => Err(Error::Unsupported { what: "a store in memory has no files to repair".to_owned() }),
        other => Err(no_backend(other)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::engine("finish", error))?
}

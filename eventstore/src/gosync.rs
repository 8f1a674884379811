//! Stores on servers of Go Sync Kit, and their local mirrors.

use std::path::PathBuf;
use std::sync::Arc;

use backend_http::gosync::{self, Mirror, Options};
use eventstore_api::async_trait;

use crate::backend::{self, EventStore, engine_of};
use crate::{Error, Result};

/// Opens the store at a URL.
pub(crate) async fn open(url: &str, is_read_only: bool) -> Result<Arc<dyn EventStore>> {
    let mut options = Options::from_url(url)?;
    options.server.read_only |= is_read_only;
    Ok(match options.mirror.take() {
        Some(directory) => Arc::new(gosync::open(options.server, InDirectory(directory)).await?),
        None => Arc::new(gosync::open(options.server, InMemory).await?),
    })
}

#[derive(Debug)]
struct InMemory;

#[async_trait]
impl Mirror for InMemory {
    async fn open(&self) -> Result<Arc<dyn EventStore>> {
        backend::open("memory:").await
    }

    async fn remove(&self) -> Result<()> {
        Ok(())
    }
}

/// A mirror in a directory of its own.
#[derive(Debug)]
struct InDirectory(PathBuf);

/// The marker file of a mirror's directory. The mirror may delete what is in such a directory.
const MARKER: &str = "gosync-mirror";
const MARKER_TEXT: &str =
    "The store beside this file has the events of a server of Go Sync Kit, and is made anew from it when needed.\n";

/// The directory of the mirror's store.
const STORE: &str = "events";

/// The engines for a new mirror. The first one that this build has is used.
const ENGINES: [(&str, bool); 4] = [
    ("lmdb", cfg!(feature = "lmdb")),
    ("rocksdb", cfg!(feature = "rocksdb")),
    ("fjall", cfg!(feature = "fjall")),
    ("sled", cfg!(feature = "sled")),
];

impl InDirectory {
    fn unusable(&self, reason: &str, source: Option<std::io::Error>) -> Error {
        let reason = source.as_ref().map_or_else(|| reason.to_owned(), |source| format!("{reason}: {source}"));
        Error::Open { path: self.0.display().to_string(), reason, source: source.map(Into::into) }
    }

    /// Creates the directory if it is missing.
    fn prepare(&self) -> Result<()> {
        let failed = |error| self.unusable("the directory of the mirror cannot be made", Some(error));
        std::fs::create_dir_all(&self.0).map_err(failed)?;
        if self.0.join(MARKER).exists() {
            return Ok(());
        }
        let mut entries = std::fs::read_dir(&self.0).map_err(failed)?;
        if entries.next().is_some() {
            return Err(self.unusable("it is neither empty nor a mirror; choose a missing or empty directory", None));
        }
        std::fs::write(self.0.join(MARKER), MARKER_TEXT).map_err(failed)
    }
}

#[async_trait]
impl Mirror for InDirectory {
    async fn open(&self) -> Result<Arc<dyn EventStore>> {
        self.prepare()?;
        let path = self.0.join(STORE);
        let engine = match path.exists() {
            true => engine_of(&path)?,
            false => {
                let first = ENGINES.iter().find(|(_, is_there)| *is_there);
                let none = || Error::Unsupported {
                    what:
                        "this build has no engine for a mirror on disk; build with one of the features lmdb, rocksdb, \
                           fjall and sled, or leave the option mirror out"
                            .to_owned(),
                };
                first.ok_or_else(none)?.0.to_owned()
            }
        };
        backend::open(&format!("{engine}:{}", path.display())).await
    }

    async fn remove(&self) -> Result<()> {
        let removed = tokio::task::spawn_blocking({
            let path = self.0.join(STORE);
            move || std::fs::remove_dir_all(path)
        });
        let removed = removed.await.map_err(|error| Error::engine("remove a mirror", error))?;
        removed.map_err(|error| self.unusable("the mirror cannot be removed", Some(error)))
    }
}

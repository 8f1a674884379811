//! The settings of a replica, in its directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use eventstore_api::Error as StoreError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::journal::{io, sync_directory};

/// The file `replica.json`, which is written when everything else exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) format: u32,
    /// The id of the replica's journal, in hexadecimal digits.
    pub(crate) id: String,
    /// The address of the hub; `None` if the program passes it on opening.
    pub(crate) hub: Option<String>,
    /// The id of the hub's store, once it is known.
    pub(crate) store_id: Option<String>,
    /// The engine of the store of confirmed events.
    pub(crate) engine: String,
    /// Whether the replica is read-only: it only follows its hub.
    pub(crate) read_only: bool,
}

const NAME: &str = "replica.json";
const FORMAT: u32 = 1;

impl Config {
    pub(crate) fn new(hub: Option<String>, engine: String, read_only: bool) -> Self {
        Config { format: FORMAT, id: Uuid::new_v4().simple().to_string(), hub, store_id: None, engine, read_only }
    }

    /// Reads the settings, if they exist.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read the replica's settings", error).into()),
        };
        let not = |reason: String| Error::NotAReplica { path: directory.display().to_string(), reason };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let is_wrong = |error: serde_json::Error| not(format!("{NAME}: {error}"));
        // Check the format first: everything else depends on it.
        let Format { format } = serde_json::from_slice(&text).map_err(is_wrong)?;
        if format != FORMAT {
            return Err(StoreError::Unsupported {
                what: format!("{} has the format {format}, and this program knows {FORMAT}", path.display()),
            }
            .into());
        }
        Ok(Some(serde_json::from_slice(&text).map_err(is_wrong)?))
    }

    /// Writes the settings, replacing older ones. Only the owner can read them: the hub's URL may contain a password.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| StoreError::engine("write the replica's settings", error))?;
        let (path, new) = (directory.join(NAME), directory.join(format!("{NAME}.new")));
        let write = || {
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut private = OpenOptions::new();
            private.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut private, 0o600);
            let mut file = private.open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|error| io("write the replica's settings", error))?;
        Ok(sync_directory(directory)?)
    }

    /// The id of the journal.
    pub(crate) fn journal_id(&self) -> [u8; 16] {
        u128::from_str_radix(&self.id, 16).unwrap_or_default().to_be_bytes()
    }
}

/// A file that exists while a replica is being created: everything beside it may be deleted.
pub(crate) const UNFINISHED: &str = "unfinished";

/// Marks that a replica is being created.
pub(crate) fn begin(directory: &Path) -> Result<()> {
    let made = File::create(directory.join(UNFINISHED)).and_then(|file| file.sync_all());
    made.map_err(|error| io("begin a replica", error))?;
    Ok(sync_directory(directory)?)
}

/// Whether a replica in this directory was not finished, or a kill or power cut has left that mark.
pub(crate) fn is_unfinished(directory: &Path) -> bool {
    directory.join(UNFINISHED).exists()
}

/// Removes that mark, if it exists.
pub(crate) fn finish(directory: &Path) -> Result<()> {
    match std::fs::remove_file(directory.join(UNFINISHED)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("finish a replica", error).into()),
        _ => Ok(()),
    }
}

/// The lock on a directory. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is being started holds it as well, until it executes its
        // program.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the lock of a replica was not released");
        }
    }
}

/// Locks the directory: only one process may have it open.
pub(crate) fn lock(directory: &Path) -> Result<Lock> {
    let path = directory.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| io("open the replica's lock file", error))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: directory.display().to_string() }.into()),
        Err(TryLockError::Error(error)) => Err(io("lock the replica", error).into()),
    }
}

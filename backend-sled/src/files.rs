//! Opening sled's files, and what has to be right about them before and after.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use eventstore_api::{Error, Result, Version};
use eventstore_kv::{StoreDirectory, Table, sync_dir};
use sled::Db;

use crate::Options;
use crate::error::{Failure, engine_error, guard, is_lock_error, open_error};
use crate::keys::table_byte;

/// sled's directory, in the store's.
pub(crate) const SLED_DIR: &str = "sled";

/// The file with sled's log, which is also its data.
const DB_FILE: &str = "db";

/// The file with sled's settings, which are the same for every store.
pub(crate) const SETTINGS_FILE: &str = "conf";

/// Begins the names of sled's snapshots: its page table as of some opening.
const SNAPSHOT: &str = "snap.";

/// Ends the name of a snapshot that is being written.
const UNFINISHED: &str = ".generating";

/// sled may hold its file for a moment after it was closed, until its threads have come to an end.
const LOCK_TIME: Duration = Duration::from_secs(5);

/// sled's files, open.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) db: Db,
    /// Our own handle to sled's file. The system reports an error of writing to each handle that was open then, so what
    /// sled passes over is seen here.
    pub(crate) file: File,
}

impl Files {
    /// Opens the files of a store, or makes those of a new one, and makes them durable.
    pub(crate) fn open(directory: &StoreDirectory, options: &Options) -> Result<Self> {
        let path = directory.path().join(SLED_DIR);
        let is_new = !directory.is_marked();
        if !is_new && path.join(DB_FILE).metadata().map_or(0, |metadata| metadata.len()) == 0 {
            return Err(Error::Open {
                path: directory.path().display().to_string(),
                reason: format!("its {SLED_DIR}/{DB_FILE} is missing or empty; restore it from a backup"),
                source: None,
            });
        }
        let prepare = || -> io::Result<()> {
            if is_new && path.exists() {
                fs::remove_dir_all(&path)?; // of a creation that was cut short
            }
            fs::create_dir_all(&path)?;
            remove_unfinished_snapshots(&path)
        };
        prepare().map_err(|error| cannot_open(directory, error))?;
        let db = open_db(&path, options)?;
        Self::check(directory, path, db, is_new)
    }

    fn check(directory: &StoreDirectory, path: PathBuf, db: Db, is_new: bool) -> Result<Self> {
        if !is_new && !db.was_recovered() {
            return Err(Error::Corrupt {
                version: None,
                reason: format!("sled found nothing in its {SLED_DIR}/{DB_FILE}"),
            });
        }
        if is_new {
            guard(|| db.flush()).map_err(|failure| engine_error("begin a store", failure))?;
        }
        let finish = || -> io::Result<_> {
            let file = File::options().read(true).write(true).open(path.join(DB_FILE))?;
            if is_new {
                file.sync_all()?;
                File::options().write(true).open(path.join(SETTINGS_FILE))?.sync_all()?;
            }
            // sled renames its snapshots, and makes its files, without it.
            sync_dir(&path)?;
            Ok(file)
        };
        let file = finish().map_err(|error| cannot_open(directory, error))?;
        Ok(Files { db, file })
    }

    /// The newest event's version.
    pub(crate) fn newest_version(&self) -> Result<Version> {
        Ok(version_of(newest_event(&self.db)?).unwrap_or(Version::ZERO))
    }
}

fn open_db(path: &Path, options: &Options) -> Result<Db> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(options.cache_capacity as u64)
        // Its own thread would only write what each commit writes anyway; and if it panics, sled cannot be closed.
        .flush_every_ms(None);
    let until = Instant::now() + LOCK_TIME;
    loop {
        match guard(|| config.open()) {
            Ok(db) => return Ok(db),
            Err(Failure::Error(error)) if is_lock_error(&error) && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(failure) => return Err(open_error(path, failure)),
        }
    }
}

/// The key of the newest event, which is its version.
fn newest_event(db: &Db) -> Result<Option<Vec<u8>>> {
    let newest = guard(|| db.scan_prefix([table_byte(Table::Events)]).keys().next_back().transpose())
        .map_err(|failure| engine_error("find the newest event", failure))?;
    Ok(newest.map(|key| key[1..].to_vec()))
}

fn version_of(key: Option<Vec<u8>>) -> Option<Version> {
    key?.try_into().ok().map(|key| Version::new(u64::from_be_bytes(key)))
}

/// Deletes snapshots that a killed process was writing: sled would take one for a damaged snapshot. Nothing depends on
/// them; the snapshot before is still there.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for snapshot in snapshots_in(path)? {
        if snapshot.to_string_lossy().ends_with(UNFINISHED) {
            tracing::info!(path = %snapshot.display(), "sled was killed while it wrote a snapshot; deleting that");
            fs::remove_file(snapshot)?;
        }
    }
    Ok(())
}

/// sled's snapshots, finished or not.
pub(crate) fn snapshots_in(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut snapshots = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SNAPSHOT) {
            snapshots.push(entry.path());
        }
    }
    Ok(snapshots)
}

fn cannot_open(directory: &StoreDirectory, error: io::Error) -> Error {
    Error::Open {
        path: directory.path().display().to_string(),
        reason: format!("its {SLED_DIR} cannot be read or written"),
        source: Some(error.into()),
    }
}

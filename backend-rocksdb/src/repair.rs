//! Opening a store whose write-ahead log is damaged.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use eventstore_api::{Error, Result};
use eventstore_kv::{StoreDirectory, Table, sync_dir};
use rocksdb::DB;

use crate::engine::{Opening, Refused, files_of, open_db, tables};
use crate::error::engine_error;
use crate::wal;
use crate::{NAME, Options, WalRecovery};

/// Mends a store that does not open because its write-ahead log is damaged, and says what was done. It blocks.
///
/// What comes before the damage stays in the store. The files of the log, with what comes behind the damage, are copied into
/// a directory `aside-1` of the store first, or the next number that is free; nothing is deleted that is not there. A store
/// that opens as it is stays as it is.
///
/// # Errors
///
/// `Open` if there is no store; `Locked`; `Corrupt` if something else than the log is damaged, or if the store has gone
/// on since without what the log has: a backup has to be restored then, and nothing was changed.
pub fn repair(path: &Path) -> Result<Vec<String>> {
    let directory = StoreDirectory::open_existing(path, NAME)?;
    let mut options = Options::new(path);
    let refusal = match open_db(path, &options, Opening::Existing) {
        Ok(db) => {
            let newest = newest_version(&db)?;
            if let Err(lost) = directory.check_synced_head(newest.into()) {
                directory.forget_synced_head()?;
                return Ok(vec![format!("accepted what cannot be brought back: {lost}")]);
            }
            return Ok(vec![format!("the store opens and was left as it is; its newest version is {newest}")]);
        }
        Err(Refused::Wal(refusal)) => refusal,
        Err(Refused::Other(error)) => return Err(error),
    };
    let mut actions = vec![format!("the store did not open: {refusal}")];
    let aside = copy_aside(directory.path()).map_err(|error| Error::engine("copy the log aside", error))?;
    let name = aside.file_name().unwrap_or_default().display().to_string();
    actions.push(format!("copied the write-ahead log and the manifest to {}", aside.display()));
    options.wal_recovery = WalRecovery::PointInTime;
    let db = match open_db(path, &options, Opening::Existing) {
        Ok(db) => db,
        Err(refused) => {
            // The files are still where they were, so the copy is of no use.
            fs::remove_dir_all(&aside).map_err(|error| Error::engine("delete the copy of the log", error))?;
            return Err(refused.into());
        }
    };
    let newest = newest_version(&db)?;
    drop(db);
    options.wal_recovery = WalRecovery::Strict;
    drop(open_db(path, &options, Opening::Existing)?);
    directory.forget_synced_head()?;
    actions.push(format!(
        "kept everything up to version {newest}, and left out what came behind the damage: it is only in {name} now"
    ));
    Ok(actions)
}

/// The version of the newest event.
fn newest_version(db: &DB) -> Result<u64> {
    let mut events = db.raw_iterator_cf(tables(db)?[Table::Events.index()]);
    events.seek_to_last();
    let newest = events.key().and_then(|key| key.try_into().ok()).map_or(0, u64::from_be_bytes);
    events.status().map_err(|error| engine_error("read the newest event", error))?;
    Ok(newest)
}

/// Copies the files of the log and those that name the tables into a new directory in the store's.
fn copy_aside(store: &Path) -> io::Result<PathBuf> {
    let files = files_of(store);
    let mut wanted = wal::files(&files)?;
    for entry in fs::read_dir(&files)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name == "CURRENT" || name.starts_with("MANIFEST-")) {
            wanted.push(entry.path());
        }
    }
    let aside = new_directory(store)?;
    for path in wanted {
        let copy = aside.join(path.file_name().unwrap_or_default());
        fs::copy(&path, &copy)?;
        File::open(&copy)?.sync_all()?;
    }
    for directory in [&aside, store] {
        sync_dir(directory)?;
    }
    Ok(aside)
}

fn new_directory(store: &Path) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let path = store.join(format!("aside-{number}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

//! Backups: a checkpoint of hard links beside the store's files, copied file by file, and opened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use eventstore_api::{Error, Result};
use eventstore_kv::{StoreDirectory, Task, copy_files};
use rocksdb::checkpoint::Checkpoint;

use crate::RocksDbEngine;
use crate::engine::{Opening, files_of};
use crate::error::engine_error;

/// How the names of directories of checkpoints begin.
const PREFIX: &str = "backup-in-progress-";

/// Copies what is committed into the target and opens the copy.
pub(crate) fn take(engine: &RocksDbEngine, target: StoreDirectory, task: &Task<'_>) -> Result<RocksDbEngine> {
    let checkpoint = TemporaryCheckpoint::new(engine)?;
    let copied = copy_directory(&checkpoint.0, &files_of(target.path()), task);
    drop(checkpoint);
    copied?;
    let mut options = engine.options().clone();
    options.path = target.path().to_owned();
    RocksDbEngine::open_in(target, &options, Opening::Copy)
}

/// A checkpoint in the directory of the store, so that its files can be hard links; deleted when it is dropped.
struct TemporaryCheckpoint(PathBuf);

impl TemporaryCheckpoint {
    /// The tables are linked, and the log is copied as far as it goes, so nothing has to be flushed. Whatever is
    /// acknowledged is in one of them: the log is read after the list of tables, and no file is deleted meanwhile. A batch
    /// that is being written may be there in part; opening the copy leaves it out.
    fn new(engine: &RocksDbEngine) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("{PREFIX}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let this = TemporaryCheckpoint(engine.store_directory().path().join(name));
        let made =
            Checkpoint::new(engine.db()).and_then(|made| made.create_checkpoint_with_log_size(&this.0, u64::MAX));
        made.map_err(|error| engine_error("make a checkpoint", error))?;
        Ok(this)
    }
}

impl Drop for TemporaryCheckpoint {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.0) {
            let path = self.0.display();
            tracing::warn!(%path, %error, "a checkpoint could not be deleted; the next opening will try again");
        }
    }
}

/// Deletes what is left of backups that a killed process was taking.
pub(crate) fn delete_leftovers(store: &Path) -> Result<()> {
    let run = || -> io::Result<()> {
        for entry in fs::read_dir(store)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
                delete(&entry.path())?;
            }
        }
        Ok(())
    };
    run().map_err(|error| Error::engine("delete what is left of a backup", error))
}

fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()), // it was never made
        result => result,
    }
}

/// Copies the files of a directory into a new one. Whoever marks the store syncs them.
fn copy_directory(from: &Path, into: &Path, task: &Task<'_>) -> Result<()> {
    let list = || -> io::Result<(Vec<PathBuf>, u64)> {
        let (mut paths, mut total) = (Vec::new(), 0);
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            paths.push(entry.path());
            total += entry.metadata()?.len();
        }
        fs::create_dir(into)?;
        Ok((paths, total))
    };
    let (paths, total) = list().map_err(|error| Error::engine("begin a backup", error))?;
    copy_files(&paths, into, total, task)
}

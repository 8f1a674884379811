use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eventstore_api::{Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task, damaged_index, tell};
use sled::{Batch, Db, IVec};

use crate::error::{Failure, cannot_open, engine_error, guard, open_error};
use crate::{Options, flush, memory, seal};

/// The file of sled's log, which also has its data.
const DB_FILE: &str = "db";

/// Entries per batch. While a batch is applied, no sled store of the process can read.
const BATCH_LEN: usize = 256;

/// The longest time for which sled may keep its file open after it was closed, until its threads have ended.
const CLOSING_TIME: Duration = Duration::from_secs(30);

/// sled as the engine of a store: one tree with the entries of all tables. Each key begins with a byte that names its
/// table.
pub struct SledEngine {
    /// Present until the engine is dropped.
    db: Option<Db>,
    /// A separate handle to sled's file, for syncs: sled leaves its log in the disk's cache.
    file: File,
    directory: PathBuf,
    cache_capacity: usize,
    /// The number of entries written, except those of `Meta`. Each has a distinct key.
    entries: AtomicU64,
    /// After a failure, these files are not used again.
    has_failed: AtomicBool,
}

impl SledEngine {
    fn db(&self) -> Result<&Db> {
        self.db.as_ref().ok_or_else(|| Error::engine("read", "sled is closed"))
    }

    /// Converts a failure, and prevents the files from being sealed.
    fn failed(&self, operation: &'static str, failure: Failure) -> Error {
        self.has_failed.store(true, Ordering::Relaxed);
        engine_error(operation, failure)
    }

    /// Waits until sled has closed its file.
    fn wait_until_closed(&self) -> io::Result<()> {
        let until = Instant::now() + CLOSING_TIME;
        loop {
            match self.file.try_lock() {
                Ok(()) => return self.file.unlock(),
                Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sled's own implementation would print all entries.
        f.debug_struct("SledEngine").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Drop for SledEngine {
    /// Closes sled and seals its files. Without the seal, the index is rebuilt, so it is omitted in case of any doubt.
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        if self.has_failed.load(Ordering::Relaxed) {
            // After a failure, closing may hang. If no thread is available, sled is left open.
            let _ = thread::Builder::new().spawn(move || flush::close(db));
            return;
        }
        let sealed = flush::write(&db, Vec::new())
            .and_then(|()| flush::close(db))
            .map_err(|failure| engine_error("close", failure))
            .and_then(|()| {
                self.wait_until_closed()
                    .and_then(|()| seal::seal(&self.directory, self.entries.load(Ordering::Relaxed)))
                    .map_err(|error| Error::engine("close", error))
            });
        if let Err(error) = sealed {
            tell!(warn, %error, "sled was not closed cleanly; the index is rebuilt when the store is opened");
        }
        memory::give_back();
    }
}

/// The key of an entry in sled's tree.
fn key_of(table: Table, key: &[u8]) -> Vec<u8> {
    [&[table.index() as u8], key].concat()
}

/// The number of entries, except those of `Meta`, which come first.
fn count(db: &Db) -> std::result::Result<u64, Failure> {
    guard(|| db.range(key_of(Table::Ids, &[])..).try_fold(0, |count, entry| entry.map(|_| count + 1)))
}

/// The settings of sled. One of them is a name derived from the time, which must not be before 1970.
fn config(directory: &Path) -> Result<sled::Config> {
    let is_there = SystemTime::now() >= UNIX_EPOCH;
    // The clock may be set back just now.
    let config = if is_there { guard(|| Ok(sled::Config::new())).ok() } else { None };
    config.ok_or_else(|| Error::Open {
        path: directory.display().to_string(),
        reason: "the system clock is before 1970, and sled cannot start then; set the clock".to_owned(),
        source: None,
    })
}

impl Engine for SledEngine {
    const NAME: &'static str = "sled";

    type Options = Options;

    type Snapshot<'a> = SledSnapshot<'a>;

    fn open(directory: &Path, options: &Options) -> Result<Self> {
        let config = config(directory)?; // before the files are touched
        let sealed = seal::open(directory)?;
        let config = config
            .path(directory)
            .cache_capacity(options.cache_capacity as u64)
            // Its own flush thread would only repeat what each write does; and if it panics, sled cannot be closed.
            .flush_every_ms(None);
        let db = guard(|| config.open()).map_err(|failure| open_error(directory, failure))?;
        let entries = count(&db).map_err(|failure| open_error(directory, failure))?;
        if entries != sealed {
            return Err(damaged_index(format!("sled has {entries} entries, and had {sealed} when it was closed")));
        }
        let file = File::options().read(true).write(true).open(directory.join(DB_FILE));
        Ok(SledEngine {
            db: Some(db),
            file: file.map_err(|error| cannot_open(directory, error))?,
            directory: directory.to_owned(),
            cache_capacity: options.cache_capacity,
            entries: AtomicU64::new(entries),
            has_failed: AtomicBool::new(false),
        })
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(SledSnapshot { engine: self, db: self.db()? })
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        // Nothing of this is used after a power cut, so the entries of `Meta` need no separate sync.
        let mut batches = Vec::with_capacity(entries.len() / BATCH_LEN + 1);
        let (mut batch, mut len) = (Batch::default(), 0);
        for table in [Table::Ids, Table::Aggregates, Table::Meta] {
            for (key, value) in entries.of(table) {
                // sled would store a large page in a separate file, which it never syncs.
                debug_assert!(value.len() <= 2 << 10, "a value of {} bytes", value.len());
                batch.insert(key_of(table, key), value);
                len += 1;
                if len == BATCH_LEN {
                    batches.push(std::mem::take(&mut batch));
                    len = 0;
                }
            }
        }
        batches.push(batch);
        flush::write(self.db()?, batches).map_err(|failure| self.failed("write", failure))?;
        self.file.sync_data().map_err(|error| self.failed("sync", Failure::Error(error.into())))?;
        let new = entries.of(Table::Ids).len() + entries.of(Table::Aggregates).len();
        self.entries.fetch_add(new as u64, Ordering::Relaxed);
        memory::give_back_now_and_then();
        Ok(())
    }

    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>> {
        task.check()?;
        Ok(vec!["nothing to do for the index: sled reuses space by itself, and not on request".to_owned()])
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let db = self.db()?;
        let size = guard(|| db.size_on_disk()).map_err(|failure| self.failed("measure its files", failure))?;
        Ok(vec![("size", size.to_string()), ("cache_capacity", self.cache_capacity.to_string())])
    }
}

/// A view of the current state of sled's tree.
pub struct SledSnapshot<'a> {
    engine: &'a SledEngine,
    db: &'a Db,
}

impl SledSnapshot<'_> {
    fn read<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        guard(call).map_err(|failure| self.engine.failed("read", failure))
    }
}

impl fmt::Debug for SledSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledSnapshot").finish_non_exhaustive()
    }
}

impl Snapshot for SledSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let value = self.read(|| self.db.get(key_of(table, key)))?;
        if let Some(value) = &value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        if range.first > range.last {
            return Ok(()); // sled does not accept such a range
        }
        let mut entries = self.db.range(key_of(table, range.first)..=key_of(table, range.last));
        let mut next = || -> Option<sled::Result<(IVec, IVec)>> {
            match direction {
                Direction::Forward => entries.next(),
                Direction::Backward => entries.next_back(),
            }
        };
        while let Some((key, value)) = self.read(|| next().transpose())? {
            if visit(&key[1..], &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_has_lost_an_entry_is_damaged() {
        let directory = tempfile::tempdir().expect("directory");
        let open = || SledEngine::open(directory.path(), &Options::new("elsewhere"));
        for round in 0..3_u8 {
            let engine = open().expect("opened");
            let mut entries = Entries::new();
            for table in [Table::Ids, Table::Aggregates] {
                (0..200).for_each(|n| entries.put(table, &[round, n], b"value"));
            }
            entries.put(Table::Meta, b"mark", &[round]);
            engine.write(&entries).expect("written");
        }
        let engine = open().expect("all are there");
        engine.db().map(|db| db.remove(key_of(Table::Ids, &[1, 1])).expect("removed")).expect("open");
        drop(engine);
        let reason = open().expect_err("one is missing").to_string();
        assert!(reason.contains("has 1199 entries, and had 1200"), "{reason}");
    }
}

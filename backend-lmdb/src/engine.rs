use std::fmt;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use eventstore_api::{Direction, Durability, Error, Gc, Result};
use eventstore_kv::{CommitError, Engine, KeyRange, Snapshot, StoreDirectory, Table, Task, WriteBatch, sync_dir};
use heed::{MdbError, RoTxn, WithoutTls};

use crate::Options;
use crate::copy::copy_compacted;
use crate::environment::{COMPACT_FILE, DATA_FILE, Environment, MAP_UNIT, TableHandle, data_len, remove_unfinished};
use crate::error::engine_error;
use crate::gate::{Broken, Gate, Pass};
use crate::pages::check_all;

/// LMDB as the engine of a store: one environment, one named database per table.
#[derive(Debug)]
pub struct LmdbEngine {
    // Fields drop in this order: the environment is closed before the directory is unlocked.
    /// Growing the map moves it, and compacting closes and opens the environment: both wait until nobody uses it.
    gate: Gate<Environment>,
    /// Held by each commit, and by a compaction for as long as it lasts: a commit meanwhile would be lost.
    commits: Mutex<()>,
    /// Held by work on the whole file, a copy or a check: there is a reader slot for one.
    copies: Mutex<()>,
    options: Options,
    directory: StoreDirectory,
}

/// Work on the whole file that was in the way so often gives up. The map doubles each time it grows, so that this is never the reason.
const MOST_RESTARTS: u32 = 64;

impl LmdbEngine {
    /// Opens or creates the environment in the options' directory. It blocks, but does no work that grows with the
    /// store.
    ///
    /// # Errors
    ///
    /// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
    pub fn open(options: &Options) -> Result<Self> {
        options.validate()?;
        let directory = match options.create_if_missing {
            true => StoreDirectory::open(&options.path, crate::NAME)?,
            false => StoreDirectory::open_existing(&options.path, crate::NAME)?,
        };
        directory.delete_unfinished(DATA_FILE)?;
        Self::open_in(directory, options.clone())
    }

    fn open_in(mut directory: StoreDirectory, mut options: Options) -> Result<Self> {
        // That one is absolute: the program may change its working directory.
        options.path = directory.path().to_owned();
        if directory.is_marked() && data_len(&options.path) == 0 {
            return Err(Error::Open {
                path: options.path.display().to_string(),
                reason: format!("its {DATA_FILE} is missing or empty; restore it from a backup"),
                source: None,
            });
        }
        remove_unfinished(&options.path);
        let environment = Environment::open(&options)?;
        directory.mark()?;
        let gate = Gate::new(environment, options.max_readers);
        Ok(LmdbEngine { gate, commits: Mutex::default(), copies: Mutex::default(), options, directory })
    }

    fn enter(&self) -> Result<Pass<'_, Environment>> {
        self.gate.enter().map_err(no_environment)
    }

    /// Makes the map larger, once nobody looks into it.
    fn grow(&self, batch_bytes: usize) -> Result<(), CommitError> {
        let old_size = self.enter().map_err(CommitError::NotWritten)?.env().info().map_size;
        let max_size = self.options.max_map_size.next_multiple_of(MAP_UNIT);
        let wanted = old_size.saturating_mul(2).max(old_size.saturating_add(batch_bytes.saturating_mul(2)));
        let new_size = wanted.next_multiple_of(MAP_UNIT).min(max_size);
        if new_size <= old_size {
            return Err(CommitError::NotWritten(Error::Full {
                reason: format!("it has grown to its max_map_size of {max_size} bytes; open it with a larger one"),
            }));
        }
        if !address_space_is_free(new_size) {
            return Err(CommitError::NotWritten(Error::Full {
                reason: format!("the system does not let it map {new_size} bytes; raise the limit (ulimit -v)"),
            }));
        }
        let moved = self.gate.alone(|environment| {
            tracing::trace!(name: "growing", old_size, new_size, "nobody looks into the map, which is grown now");
            // SAFETY: No transaction may be alive, and nothing else may look into the map. The environment can only be
            // reached with a pass of the gate, and none is out. If moving fails, the map is gone, and the gate keeps the
            // environment from everybody.
            match unsafe { environment.env().resize(new_size) } {
                Ok(()) => (Some(environment), Ok(())),
                Err(error) => (None, Err(engine_error("grow the map", error))),
            }
        });
        moved.map_err(no_environment).flatten().map_err(CommitError::Unknown)?;
        tracing::info!(name: "grown", old_size, new_size, "the map is full and was grown");
        Ok(())
    }

    /// Waits until nobody else copies or checks the file.
    fn begin_copy(&self, task: &Task<'_>) -> Result<MutexGuard<'_, ()>> {
        loop {
            task.check()?;
            match self.copies.try_lock() {
                Ok(copying) => return Ok(copying),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Does long work inside the gate, which returns `None` where it has to begin again: it was in somebody's way.
    fn stay<T>(&self, task: &Task<'_>, mut work: impl FnMut(&Pass<'_, Environment>) -> Result<Option<T>>) -> Result<T> {
        for _ in 0..MOST_RESTARTS {
            task.check()?;
            let pass = self.gate.enter_for_long().map_err(no_environment)?;
            if let Some(done) = work(&pass)? {
                return Ok(done);
            }
            tracing::debug!("work on the whole file begins again: it was in the way of the writer, or behind it");
        }
        Err(Error::Full {
            reason: "appends need the pages that work on the whole file keeps from being used again; raise its \
                     max_map_size"
                .to_owned(),
        })
    }

    /// Looks at every page of one moment, and believes none.
    fn check_pages(&self, task: &Task<'_>) -> Result<()> {
        self.stay(task, |pass| check_all(pass, &self.options.path, task))
    }

    /// Writes a compacted copy to a file, synced, and returns its length.
    fn copy_to(&self, path: &Path, task: &Task<'_>) -> Result<u64> {
        self.check_pages(task)?; // LMDB follows every one of them
        let failed = |error: io::Error| Error::engine("write the copy", error);
        let mut file = File::create(path).map_err(failed)?;
        // Who may read the events stays the same.
        let permissions = self.options.path.join(DATA_FILE).metadata().map_err(failed)?.permissions();
        file.set_permissions(permissions).map_err(failed)?;
        let len = self.stay(task, |pass| {
            file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
            copy_compacted(pass, &mut file, task)
        })?;
        file.sync_all().map_err(failed)?;
        Ok(len)
    }

    /// Replaces the data file by a compacted copy, while reads go on and commits wait.
    fn compact(&self, task: &Task<'_>) -> Result<String> {
        let _copying = self.begin_copy(task)?;
        let _commits = lock(&self.commits);
        let (len, needed) = (data_len(&self.options.path), self.enter()?.len_compacted()?);
        if needed >= len {
            return Ok(format!("nothing to compact: all {len} bytes of {DATA_FILE} are in use"));
        }
        let unfinished = self.options.path.join(COMPACT_FILE);
        let compacted = self.copy_to(&unfinished, task).and_then(|copied| match copied == needed {
            true => self.replace_data(&unfinished),
            false => Err(Error::engine("compact", format!("the copy has {copied} bytes, not {needed}"))),
        });
        remove_unfinished(&self.options.path); // it is not there if all went well
        compacted.map(|()| format!("compacted {DATA_FILE} from {len} to {needed} bytes"))
    }

    /// Puts a synced file in the place of the data file. Called while commits wait.
    fn replace_data(&self, by: &Path) -> Result<()> {
        let directory = &self.options.path;
        let replaced = self.gate.alone(|environment| {
            environment.close();
            let renamed = fs::rename(by, directory.join(DATA_FILE));
            // A later commit would be lost if the new name were.
            if renamed.is_ok()
                && let Err(error) = sync_dir(directory)
            {
                return (None, Err(Error::engine("compact", error)));
            }
            match Environment::open(&self.options) {
                Ok(environment) => (Some(environment), renamed.map_err(|error| Error::engine("compact", error))),
                Err(error) => (None, Err(error)),
            }
        });
        replaced.map_err(no_environment).flatten()
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the process could map this many bytes more. If LMDB tried in vain, it would be left without a map.
fn address_space_is_free(len: usize) -> bool {
    #[cfg(unix)]
    {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: A new mapping at a place that the system chooses, without access, which nobody else knows of.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: It unmaps exactly what was mapped above.
        unsafe { libc::munmap(address, len) };
    }
    true
}

fn no_environment(Broken: Broken) -> Error {
    Error::Fenced { reason: "its file could not be mapped again after it had grown or was compacted".to_owned() }
}

impl Engine for LmdbEngine {
    type Snapshot<'a> = LmdbSnapshot<'a>;

    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        let pass = self.gate.enter_as_reader().map_err(no_environment)?;
        let begun = pass.try_map(|environment| {
            let (env, tables) = environment.into_parts();
            Ok(Reading { txn: env.static_read_txn()?, tables })
        });
        begun.map(LmdbSnapshot).map_err(|error| engine_error("begin a read", error))
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let _commit = lock(&self.commits);
        let mut has_waited = false;
        loop {
            let environment = self.enter().map_err(CommitError::NotWritten)?;
            let written = environment.set_durability(durability).and_then(|()| environment.write(batch));
            drop(environment);
            match written {
                Ok(()) => return Ok(()),
                // Found while pages are taken for the transaction, before anything of it is written.
                Err(heed::Error::Mdb(MdbError::MapFull)) => match self.grow(batch.len_bytes()) {
                    // A copy keeps pages from being used again, and so do readers. Once they have left, there may be room.
                    // Whether there are any is not asked: they might just have left, and the room be there.
                    Err(CommitError::NotWritten(_)) if !has_waited => {
                        has_waited = true;
                        self.gate
                            .alone(|environment| (Some(environment), ()))
                            .map_err(|broken| CommitError::NotWritten(no_environment(broken)))?;
                    }
                    grown => grown?,
                },
                Err(error) => return Err(CommitError::Unknown(engine_error("commit", error))),
            }
        }
    }

    fn sync(&self) -> Result<()> {
        self.enter()?.env().force_sync().map_err(|error| engine_error("sync", error))
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        Some(&self.directory)
    }

    fn check_files(&self, task: &Task<'_>) -> Result<()> {
        let _checking = self.begin_copy(task)?;
        self.check_pages(task)
    }

    fn run_gc(&self, gc: Gc, task: &Task<'_>) -> Result<Vec<String>> {
        let cleared = self.enter()?.env().clear_stale_readers();
        let cleared = cleared.map_err(|error| engine_error("clear stale readers", error))?;
        let mut actions = vec![format!("cleared {cleared} stale readers; pages they held can be used again")];
        if gc == Gc::Full {
            actions.push(self.compact(task)?);
        }
        Ok(actions)
    }

    fn backup(&self, target: StoreDirectory, task: &Task<'_>) -> Result<Self> {
        let copying = self.begin_copy(task)?;
        self.copy_to(&target.path().join(DATA_FILE), task)?;
        drop(copying);
        Self::open_in(target, self.options.clone())
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let info = self.enter()?.env().info();
        Ok(vec![
            ("map_size", info.map_size.to_string()),
            ("max_map_size", self.options.max_map_size.to_string()),
            ("last_page", info.last_page_number.to_string()),
            ("last_transaction", info.last_txn_id.to_string()),
            ("readers", info.number_of_readers.to_string()),
            ("max_readers", self.options.max_readers.to_string()),
        ])
    }
}

/// A read transaction.
pub struct LmdbSnapshot<'a>(Pass<'a, Environment, Reading>);

struct Reading {
    txn: RoTxn<'static, WithoutTls>,
    tables: [TableHandle; Table::ALL.len()],
}

impl Reading {
    fn table(&self, table: Table) -> &TableHandle {
        &self.tables[table.index()]
    }
}

impl fmt::Debug for LmdbSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LmdbSnapshot").field("transaction", &self.0.txn.id()).finish_non_exhaustive()
    }
}

impl Snapshot for LmdbSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let value = self.0.table(table).get(&self.0.txn, key).map_err(|error| engine_error("read", error))?;
        if let Some(value) = value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn get_many<F>(&self, table: Table, keys: &[&[u8]], mut visit: F) -> Result<()>
    where
        F: FnMut(usize, &[u8]) -> ControlFlow<()>,
    {
        let (database, txn) = (self.0.table(table), &self.0.txn);
        for (place, key) in keys.iter().enumerate() {
            let value = database.get(txn, key).map_err(|error| engine_error("read", error))?;
            if value.is_some_and(|value| visit(place, value).is_break()) {
                break;
            }
        }
        Ok(())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        let (database, txn) = (self.0.table(table), &self.0.txn);
        let bounds = (Bound::Included(range.first), Bound::Included(range.last));
        let mut run = || -> heed::Result<()> {
            match direction {
                Direction::Forward => visit_all(database.range(txn, &bounds)?, &mut visit),
                Direction::Backward => visit_all(database.rev_range(txn, &bounds)?, &mut visit),
            }
        };
        run().map_err(|error| engine_error("read", error))
    }
}

fn visit_all<'t>(
    entries: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>,
    visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> heed::Result<()> {
    for entry in entries {
        let (key, value) = entry?;
        if visit(key, value).is_break() {
            break;
        }
    }
    Ok(())
}

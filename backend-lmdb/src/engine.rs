use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use eventstore_api::{Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task, tell};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, PutFlags, RoTxn, WithoutTls};

use crate::Options;
use crate::error::{engine_error, open_error};
use crate::pages::{DATA_FILE, Looks, check_before_opening, check_moment};

/// Map sizes are multiples of this, and so of every common page size.
const MAP_UNIT: usize = 64 << 10;

/// The most concurrent reads; further ones wait a moment.
const MAX_READERS: u32 = 256;

/// The number of attempts to begin a read, a millisecond apart, while there are too many.
const READ_TRIES: u32 = 30_000;

/// A check gives up after blocking the writer this often. The map doubles each time it grows, so growth is never the
/// reason.
const CHECK_TRIES: u32 = 64;

/// LMDB as the engine of a store: one environment, one named database per table.
#[derive(Debug)]
pub struct LmdbEngine {
    /// Every use of the map takes a read lock. Growing, which moves the map, takes a write lock. `None` after growing
    /// has failed. A thread that holds the lock must not take it again.
    environment: RwLock<Option<Environment>>,
    /// Asks long users of the map to release it.
    is_in_the_way: AtomicBool,
    max_map_size: usize,
}

#[derive(Debug)]
struct Environment {
    env: Env<WithoutTls>,
    tables: [Database<'static, Bytes, Bytes>; Table::ALL.len()],
}

impl Environment {
    /// Opens the environment as it is; `None` if it does not have all tables yet.
    fn open_read_only(directory: &Path, options: &Options) -> Result<Option<Self>> {
        if !directory.join(DATA_FILE).exists() {
            return Ok(None);
        }
        check_before_opening(directory)?;
        let mut env_options = env_options(options);
        // SAFETY: Nobody writes to the file, not even LMDB, so readers need not be registered. The store's directory is
        // locked against writers if it has a lock file. If it has none, the documentation of the store asks the user to
        // ensure that.
        unsafe { env_options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK | EnvFlags::NO_READ_AHEAD) };
        // SAFETY: As below, where it is opened for writing.
        let env = match unsafe { env_options.open(directory) } {
            Err(heed::Error::EnvAlreadyOpened) => return Ok(None), // this process already reads it
            opened => opened.map_err(|error| open_error(directory, error))?,
        };
        let opened = || -> heed::Result<_> {
            #[cfg(unix)]
            close_on_exec(&env)?;
            let opened = env.open_databases_and_commit(env.read_txn()?, |opener, txn| -> heed::Result<_> {
                let open = |table: Table| opener.open_database::<Bytes, Bytes>(txn, Some(table.name()));
                let [meta, ids, aggregates] = Table::ALL;
                Ok(match (open(meta)?, open(ids)?, open(aggregates)?) {
                    (Some(meta), Some(ids), Some(aggregates)) => CommitOrAbort::Commit([meta, ids, aggregates]),
                    _ => CommitOrAbort::Abort(()),
                })
            })?;
            Ok(match opened {
                CommitOrAbort::Commit(tables) => Some(tables),
                CommitOrAbort::Abort(()) => None,
            })
        };
        let tables = opened().map_err(|error| open_error(directory, error))?;
        Ok(tables.map(|tables| Environment { env, tables }))
    }

    fn open(directory: &Path, options: &Options) -> Result<Self> {
        check_before_opening(directory)?;
        make_files(directory).map_err(|error| open_error(directory, error.into()))?;
        let mut env_options = env_options(options);
        if !options.read_ahead {
            // SAFETY: The flag is only advice to the system about reading ahead.
            unsafe { env_options.flags(EnvFlags::NO_READ_AHEAD) };
        }
        // SAFETY: Nothing but LMDB may change the mapped file. The store's directory is locked against every other
        // handle and process of this library while the environment lives, and nothing here opens LMDB's own lock file.
        // No flag weakens LMDB's locking or write order. Transactions are short: a read has a few entries, a write is
        // one batch; a check is longer and stops when it blocks others. A process that dies inside one leaves a stale
        // reader slot, which is cleared below. The documentation of `Options::path` requires a local file system. The
        // pages that opening reads are checked here; all others are checked only by verification, as the documentation
        // of the crate says.
        let env = unsafe { env_options.open(directory) }.map_err(|error| open_error(directory, error))?;
        let opened = || -> heed::Result<_> {
            #[cfg(unix)]
            close_on_exec(&env)?;
            env.clear_stale_readers()?;
            let txn = env.write_txn()?;
            let created = env.create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
                let mut create = |table: Table| opener.create_database::<Bytes, Bytes>(txn, Some(table.name()));
                let [meta, ids, aggregates] = Table::ALL;
                Ok(CommitOrAbort::<_, ()>::Commit([create(meta)?, create(ids)?, create(aggregates)?]))
            })?;
            // A process that was killed may have made the last commit visible but not durable.
            env.force_sync()?;
            if cfg!(unix) {
                File::open(directory)?.sync_all()?; // the names of its files
            }
            Ok(created.unwrap_commit())
        };
        let tables = opened().map_err(|error| open_error(directory, error))?;
        Ok(Environment { env, tables })
    }

    /// Writes all entries in one transaction, which is durable when it is committed.
    fn write(&self, entries: &Entries) -> heed::Result<()> {
        let mut txn = self.env.write_txn()?;
        for table in Table::ALL {
            let database = &self.tables[table.index()];
            let mut entries = entries.of(table).peekable();
            let Some((first, _)) = entries.peek() else { continue };
            // After the last key, LMDB fills pages completely and needs no search.
            let is_behind = database.last(&txn)?.is_none_or(|(last, _)| last < *first);
            let flags = if is_behind { PutFlags::APPEND } else { PutFlags::empty() };
            for (key, value) in entries {
                database.put_with_flags(&mut txn, flags, key, value)?;
            }
        }
        txn.commit()
    }

    /// Begins a read as soon as a reader slot is free: readers hold one only for a moment.
    fn begin_read(&self) -> heed::Result<RoTxn<'static, WithoutTls>> {
        for _ in 1..READ_TRIES {
            match self.env.clone().static_read_txn() {
                Err(heed::Error::Mdb(MdbError::ReadersFull)) => thread::sleep(Duration::from_millis(1)),
                begun => return begun,
            }
        }
        self.env.clone().static_read_txn()
    }
}

fn env_options(options: &Options) -> EnvOpenOptions<WithoutTls> {
    let mut env_options = EnvOpenOptions::new().read_txn_without_tls();
    env_options
        .map_size(options.map_size.next_multiple_of(MAP_UNIT)) // or the size of the file, if that is larger
        .max_readers(MAX_READERS)
        .max_dbs(Table::ALL.len() as u32);
    env_options
}

/// Creates LMDB's files with the permissions that the umask leaves, like all files of a store: LMDB would restrict them
/// to their owner. LMDB treats an empty file like a missing one.
fn make_files(directory: &Path) -> io::Result<()> {
    for name in [DATA_FILE, "lock.mdb"] {
        match File::create_new(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl LmdbEngine {
    fn of(environment: Environment, options: &Options) -> Self {
        LmdbEngine {
            environment: RwLock::new(Some(environment)),
            is_in_the_way: AtomicBool::new(false),
            max_map_size: options.max_map_size.next_multiple_of(MAP_UNIT),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Environment>> {
        self.environment.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows the map, once nobody uses it.
    fn grow(&self) -> Result<()> {
        self.is_in_the_way.store(true, Ordering::Relaxed);
        let mut environment = self.environment.write().unwrap_or_else(PoisonError::into_inner);
        self.is_in_the_way.store(false, Ordering::Relaxed);
        let env = &environment.as_ref().ok_or_else(no_map)?.env;
        let (old_size, max_size) = (env.info().map_size, self.max_map_size);
        let new_size = old_size.saturating_mul(2).min(max_size);
        if new_size <= old_size {
            return Err(Error::Full {
                reason: format!(
                    "the index has reached its max_map_size of {max_size} bytes; reopen the store with a larger one"
                ),
            });
        }
        if !address_space_is_free(new_size) {
            return Err(Error::Full {
                reason: format!("the system refuses to map {new_size} bytes; raise the limit (ulimit -v)"),
            });
        }
        tell!(trace, name: "growing", old_size, new_size, "nobody looks into the map, which is grown now");
        // SAFETY: No transaction may be alive, and nothing else may use the map. All users hold a read lock, and this
        // holds the write lock. If moving fails, the map is gone, and the environment is dropped.
        if let Err(error) = unsafe { env.resize(new_size) } {
            *environment = None;
            return Err(engine_error("grow the map", error));
        }
        tell!(info, name: "grown", old_size, new_size, "the map is full and was grown");
        Ok(())
    }
}

/// Prevents child processes from inheriting LMDB's data file, the only file that is opened without close-on-exec. A
/// child that another thread starts at this moment may still inherit it.
#[cfg(unix)]
fn close_on_exec(env: &Env<WithoutTls>) -> heed::Result<()> {
    use std::os::unix::fs::MetadataExt;
    // LMDB does not expose its descriptor, so it is identified by its file.
    let file = env.try_clone_inner_file()?.metadata()?;
    let descriptors: Vec<i32> = match fs::read_dir("/dev/fd") {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => (0..MOST_DESCRIPTORS).collect(),
    };
    for descriptor in descriptors {
        // SAFETY: All zeros are a valid value.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: It writes to the given place, or fails if the descriptor is not open.
        let is_open = unsafe { libc::fstat(descriptor, &raw mut found) } == 0;
        if !is_open || !same_file(&found, &file) {
            continue;
        }
        // SAFETY: It sets a flag of the descriptor. Every user of the file in this process is part of the store.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error().into());
        }
    }
    return Ok(());

    #[allow(clippy::unnecessary_cast, reason = "the types differ from system to system")]
    fn same_file(found: &libc::stat, file: &fs::Metadata) -> bool {
        (found.st_dev as u64, found.st_ino as u64) == (file.dev(), file.ino())
    }
}

/// The descriptors to try where the system does not list them.
#[cfg(unix)]
const MOST_DESCRIPTORS: i32 = 4096;

/// Whether the process could map this many bytes more. If LMDB's own attempt failed, it would be left without a map.
fn address_space_is_free(len: usize) -> bool {
    #[cfg(unix)]
    {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: A new mapping at an address chosen by the system, without access, unknown to everybody else.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: It unmaps exactly what was mapped above.
        unsafe { libc::munmap(address, len) };
    }
    true
}

fn no_map() -> Error {
    Error::engine("use the index", io::Error::other("its file could not be mapped again after it had grown"))
}

impl Engine for LmdbEngine {
    const NAME: &'static str = "lmdb";

    type Options = Options;

    type Snapshot<'a> = LmdbSnapshot<'a>;

    fn open(directory: &Path, options: &Options) -> Result<Self> {
        Ok(LmdbEngine::of(Environment::open(directory, options)?, options))
    }

    fn open_read_only(directory: &Path, options: &Options) -> Result<Option<Self>> {
        let opened = Environment::open_read_only(directory, options)?;
        Ok(opened.map(|environment| LmdbEngine::of(environment, options)))
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        let environment = self.read();
        let opened = environment.as_ref().ok_or_else(no_map)?;
        let txn = opened.begin_read().map_err(|error| engine_error("begin a read", error))?;
        Ok(LmdbSnapshot { txn, tables: opened.tables, environment })
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        let mut was_full = false;
        loop {
            let written = self.read().as_ref().ok_or_else(no_map)?.write(entries);
            match written {
                // This occurs while pages are allocated for the transaction, before anything of it is written.
                Err(heed::Error::Mdb(MdbError::MapFull)) => match self.grow() {
                    // Readers, above all a check, keep pages from being reused. They have left now.
                    Err(Error::Full { .. }) if !was_full => was_full = true,
                    grown => grown?,
                },
                written => return written.map_err(|error| engine_error("write", error)),
            }
        }
    }

    fn abandon(self) {} // it closes its open files, and uses no path

    fn check_files(&self, task: &Task<'_>) -> Result<()> {
        for _ in 0..CHECK_TRIES {
            task.check()?;
            // As long as it is open, no page visible to it is overwritten.
            let snapshot = self.snapshot()?;
            let directory = snapshot.environment.as_ref().ok_or_else(no_map)?.env.path();
            let looks = Looks::new(task, &self.is_in_the_way);
            if check_moment(directory, snapshot.txn.id() as u64, looks)? {
                return Ok(());
            }
            tell!(debug, "the check of all pages restarts: it blocked the writer, or fell behind");
        }
        Err(Error::engine(
            "check the pages",
            "the check pins pages that appends need; verify again when there are fewer appends",
        ))
    }

    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>> {
        task.check()?;
        Ok(vec![
            "nothing to do for the index: its entries are never deleted, and LMDB gives back nothing of its file"
                .to_owned(),
        ])
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let info = self.read().as_ref().ok_or_else(no_map)?.env.info();
        Ok(vec![
            ("map_size", info.map_size.to_string()),
            ("max_map_size", self.max_map_size.to_string()),
            ("last_page", info.last_page_number.to_string()),
            ("last_transaction", info.last_txn_id.to_string()),
        ])
    }
}

/// A read transaction.
pub struct LmdbSnapshot<'a> {
    // Fields drop in this order: the map may move when the lock is released.
    txn: RoTxn<'static, WithoutTls>,
    tables: [Database<'static, Bytes, Bytes>; Table::ALL.len()],
    environment: RwLockReadGuard<'a, Option<Environment>>,
}

impl fmt::Debug for LmdbSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LmdbSnapshot").field("transaction", &self.txn.id()).finish_non_exhaustive()
    }
}

impl Snapshot for LmdbSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let value = self.tables[table.index()].get(&self.txn, key).map_err(|error| engine_error("read", error))?;
        if let Some(value) = value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        let (database, txn) = (&self.tables[table.index()], &self.txn);
        if range.last.is_empty() {
            return Ok(()); // there is no empty key, and LMDB does not accept one as a bound
        }
        let first = if range.first.is_empty() { &[0] } else { range.first };
        let bounds = (Bound::Included(first), Bound::Included(range.last));
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

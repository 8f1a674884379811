use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::Path;

use eventstore_api::{Direction, Durability, Error, Gc, Result};
use eventstore_kv::{CommitError, Engine, KeyRange, Snapshot, StoreDirectory, Table, Task, WriteBatch, copy_events};
use heed::types::Bytes;
use heed::{
    CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode, MdbError, PutFlags, RoTxn, WithoutTls,
};

use crate::Options;
use crate::error::{engine_error, open_error};
use crate::gate::{Broken, Gate, Pass};

/// LMDB as the engine of a store: one environment, one named database per table.
#[derive(Debug)]
pub struct LmdbEngine {
    // Fields drop in this order: the environment is closed before the directory is unlocked.
    env: Env<WithoutTls>,
    tables: [Database<'static, Bytes, Bytes>; Table::ALL.len()],
    /// Growing the map moves it, so it waits until nobody looks into it.
    gate: Gate,
    options: Options,
    directory: StoreDirectory,
}

/// Map sizes are multiples of this, and so of every page size in use.
const MAP_UNIT: usize = 64 << 10;

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
        Self::open_in(directory, options)
    }

    fn open_in(mut directory: StoreDirectory, options: &Options) -> Result<Self> {
        if directory.is_marked() && data_len(&options.path) == 0 {
            return Err(Error::Open {
                path: options.path.display().to_string(),
                reason: format!("its {DATA_FILE} is missing or empty; restore it from a backup"),
                source: None,
            });
        }
        let mut env_options = EnvOpenOptions::new().read_txn_without_tls();
        env_options
            .map_size(options.map_size.next_multiple_of(MAP_UNIT))
            .max_readers(options.max_readers) // as many as the gate lets in
            .max_dbs(Table::ALL.len() as u32);
        // SAFETY: The mapped file must not be changed by anything but LMDB. `directory` holds a lock that keeps every
        // other handle and process of this library out for as long as the environment lives, and neither it nor
        // anything else here opens LMDB's own lock file. No flag weakens LMDB's locking or write order. Transactions
        // are short: a read is one page, a write is one group. A process that dies inside one leaves a stale reader
        // slot, which is cleared below. That the file system is a local one is asked of the user, in `Options::path`.
        let env = unsafe { env_options.open(&options.path) }.map_err(|error| open_error(&options.path, error))?;
        check_length(&env, data_len(&options.path))?;
        let opened = || -> heed::Result<_> {
            env.clear_stale_readers()?;
            let txn = env.write_txn()?;
            let created = env.create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
                let mut create = |table: Table| opener.create_database::<Bytes, Bytes>(txn, Some(table.name()));
                let [meta, events, ids, aggregates] = Table::ALL;
                let tables = [create(meta)?, create(events)?, create(ids)?, create(aggregates)?];
                Ok(CommitOrAbort::<_, ()>::Commit(tables))
            })?;
            Ok(created.unwrap_commit())
        };
        let tables = opened().map_err(|error| open_error(&options.path, error))?;
        directory.mark()?;
        Ok(LmdbEngine { env, tables, gate: Gate::new(options.max_readers), options: options.clone(), directory })
    }

    fn table(&self, table: Table) -> &Database<'static, Bytes, Bytes> {
        &self.tables[table.index()]
    }

    fn write(&self, batch: &WriteBatch) -> heed::Result<()> {
        let mut txn = self.env.write_txn()?;
        for table in Table::ALL {
            // The log only grows at its end: LMDB then fills pages to the brim, and would refuse a key out of order.
            let flags = if table == Table::Events { PutFlags::APPEND } else { PutFlags::empty() };
            for (key, value) in batch.puts(table) {
                self.table(table).put_with_flags(&mut txn, flags, key, value)?;
            }
        }
        txn.commit()
    }

    /// `Buffered` leaves out the second of a commit's two syncs, the one of the page that makes it visible. The first
    /// one stays, so that a power cut can undo commits from the end, but never leaves the tree in pieces.
    fn set_durability(&self, durability: Durability) -> heed::Result<()> {
        let mode = match durability {
            Durability::Buffered => FlagSetMode::Enable,
            _ => FlagSetMode::Disable,
        };
        // SAFETY: Only one thread at a time may set flags: commits come from one thread, the writer's. The flag weakens
        // durability as described above, and not integrity.
        unsafe { self.env.set_flags(EnvFlags::NO_META_SYNC, mode) }
    }

    /// Makes the map larger, after the readers that look into it.
    fn grow(&self, batch_bytes: usize) -> Result<(), CommitError> {
        let old_size = self.env.info().map_size;
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
        let moved = self.gate.move_map(|| {
            // SAFETY: No transaction may be alive, and nothing else may look into the map. Everything that does holds a
            // pass of the gate, which lets nobody in now, or runs on this thread, the only one that writes; its write
            // transaction has ended. If it fails, the map is gone, and the gate lets nobody in any more.
            unsafe { self.env.resize(new_size) }
        });
        moved.map_err(|error| CommitError::Unknown(engine_error("grow the map", error)))?;
        tracing::info!(old_size, new_size, "the map is full and was grown");
        Ok(())
    }
}

/// The file with LMDB's pages.
const DATA_FILE: &str = "data.mdb";

/// The length of the data file; 0 if there is none.
fn data_len(directory: &Path) -> u64 {
    directory.join(DATA_FILE).metadata().map_or(0, |metadata| metadata.len())
}

/// Refuses a file that was cut short: touching a mapped page that is not there would kill the process.
///
/// Nothing is ever deleted from the tables, so every page up to the last one was written.
fn check_length(env: &Env<WithoutTls>, len: u64) -> Result<()> {
    let page_size = u64::from(env.unnamed_database_stat().page_size);
    let needed = (env.info().last_page_number as u64 + 1) * page_size;
    if len >= needed {
        return Ok(());
    }
    Err(Error::Corrupt {
        version: None,
        reason: format!("its {DATA_FILE} was cut short: it has {len} bytes and needs {needed}"),
    })
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

fn no_map(Broken: Broken) -> Error {
    Error::Fenced { reason: "its map could not be grown and is gone".to_owned() }
}

impl Engine for LmdbEngine {
    type Snapshot<'a> = LmdbSnapshot<'a>;

    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        let pass = self.gate.enter().map_err(no_map)?;
        let txn = self.env.read_txn().map_err(|error| engine_error("begin a read", error))?;
        Ok(LmdbSnapshot { engine: self, txn, _pass: pass })
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let failed = |error| CommitError::Unknown(engine_error("commit", error));
        self.set_durability(durability).map_err(failed)?;
        loop {
            match self.write(batch) {
                Ok(()) => return Ok(()),
                // Found while pages are taken for the transaction, before anything of it is written.
                Err(heed::Error::Mdb(MdbError::MapFull)) => self.grow(batch.len_bytes())?,
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn sync(&self) -> Result<()> {
        self.env.force_sync().map_err(|error| engine_error("sync", error))
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        Some(&self.directory)
    }

    fn run_gc(&self, _: Gc, _: &Task<'_>) -> Result<Vec<String>> {
        let cleared = self.env.clear_stale_readers().map_err(|error| engine_error("clear stale readers", error))?;
        Ok(vec![format!("cleared {cleared} stale readers; pages they held can be used again")])
    }

    fn backup(&self, target: StoreDirectory, task: &Task<'_>) -> Result<Self> {
        let mut options = self.options.clone();
        options.path = target.path().to_owned();
        let copy = Self::open_in(target, &options)?;
        copy_events(self, &copy, task)?;
        Ok(copy)
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let _pass = self.gate.enter().map_err(no_map)?; // LMDB reads the map's first pages for it
        let info = self.env.info();
        Ok(vec![
            ("map_size", info.map_size.to_string()),
            ("max_map_size", self.options.max_map_size.to_string()),
            ("last_page", info.last_page_number.to_string()),
            ("last_transaction", info.last_txn_id.to_string()),
            ("readers", info.number_of_readers.to_string()),
            ("max_readers", info.maximum_number_of_readers.to_string()),
        ])
    }
}

/// A read transaction.
pub struct LmdbSnapshot<'a> {
    engine: &'a LmdbEngine,
    // Dropped before the pass is given back.
    txn: RoTxn<'a, WithoutTls>,
    _pass: Pass<'a>,
}

impl fmt::Debug for LmdbSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LmdbSnapshot").field("transaction", &self.txn.id()).finish_non_exhaustive()
    }
}

impl Snapshot for LmdbSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let value = self.engine.table(table).get(&self.txn, key).map_err(|error| engine_error("read", error))?;
        if let Some(value) = value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        let database = self.engine.table(table);
        let bounds = (Bound::Included(range.first), Bound::Included(range.last));
        let mut run = || -> heed::Result<()> {
            match direction {
                Direction::Forward => visit_all(database.range(&self.txn, &bounds)?, &mut visit),
                Direction::Backward => visit_all(database.rev_range(&self.txn, &bounds)?, &mut visit),
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

use std::fs;
use std::io;
use std::path::Path;

use eventstore_api::{Durability, Result};
use eventstore_kv::{Table, WriteBatch};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode, PutFlags, WithoutTls};

use crate::Options;
use crate::error::{engine_error, open_error};
use crate::pages::check_before_mapping;

/// The file with LMDB's pages.
pub(crate) const DATA_FILE: &str = "data.mdb";

/// What takes its place when the store is compacted, while it is written.
pub(crate) const COMPACT_FILE: &str = "data.mdb.compact";

/// Map sizes are multiples of this, and so of every page size in use.
pub(crate) const MAP_UNIT: usize = 64 << 10;

/// One table.
pub(crate) type TableHandle = Database<'static, Bytes, Bytes>;

/// An open environment, with one named database per table. Clones are the same one; it is closed with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    env: Env<WithoutTls>,
    tables: [TableHandle; Table::ALL.len()],
}

impl Environment {
    /// Opens or creates the environment in the options' directory, which must be locked. Its map is as large as its content
    /// at least.
    pub(crate) fn open(options: &Options) -> Result<Self> {
        check_before_mapping(&options.path)?;
        let mut env_options = EnvOpenOptions::new().read_txn_without_tls();
        env_options
            .map_size(options.map_size.next_multiple_of(MAP_UNIT))
            .max_readers(options.max_readers + 1) // as many as the gate lets in, and a copy
            .max_dbs(Table::ALL.len() as u32);
        if !options.read_ahead {
            // SAFETY: The flag is an advice to the system about reading, and weakens nothing.
            unsafe { env_options.flags(EnvFlags::NO_READ_AHEAD) };
        }
        // SAFETY: The mapped file must not be changed by anything but LMDB. The directory is locked against every other
        // handle and process of this library for as long as the environment lives, and nothing here opens LMDB's own lock
        // file. The file is replaced only while the environment is closed. No flag weakens LMDB's locking or write order.
        // Transactions are short: a read is one page, a write is one group; a copy is longer and ends when it is in the
        // way. A process that dies inside one leaves a stale reader slot, which is cleared below. That the file system is
        // a local one is asked of the user, in `Options::path`. That its pages are sound is checked of those that opening
        // reads; of all others only when the store is verified or copied, which is said in the documentation of the crate.
        let env = unsafe { env_options.open(&options.path) }.map_err(|error| open_error(&options.path, error))?;
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
        Ok(Environment { env, tables })
    }

    pub(crate) fn env(&self) -> &Env<WithoutTls> {
        &self.env
    }

    /// The environment and its tables, for a read transaction that owns it.
    pub(crate) fn into_parts(self) -> (Env<WithoutTls>, [TableHandle; Table::ALL.len()]) {
        (self.env, self.tables)
    }

    /// Commits all of the batch.
    pub(crate) fn write(&self, batch: &WriteBatch) -> heed::Result<()> {
        let mut txn = self.env.write_txn()?;
        for table in Table::ALL {
            // The log only grows at its end: LMDB then fills pages to the brim, and would refuse a key out of order.
            let flags = if table == Table::Events { PutFlags::APPEND } else { PutFlags::empty() };
            for (key, value) in batch.puts(table) {
                self.tables[table.index()].put_with_flags(&mut txn, flags, key, value)?;
            }
        }
        txn.commit()
    }

    /// `Buffered` leaves out the second of a commit's two syncs, the one of the page that makes it visible. The first
    /// one stays, so that a power cut can undo commits from the end, but never leaves the tree in pieces.
    pub(crate) fn set_durability(&self, durability: Durability) -> heed::Result<()> {
        let mode = match durability {
            Durability::Buffered => FlagSetMode::Enable,
            _ => FlagSetMode::Disable,
        };
        // SAFETY: Only one thread at a time may set flags: only commits do, and they come from one thread, the writer's.
        // The flag weakens durability as described above, and not integrity.
        unsafe { self.env.set_flags(EnvFlags::NO_META_SYNC, mode) }
    }

    /// Bytes that a compacted copy has: two pages that make commits visible, and those of the trees.
    pub(crate) fn len_compacted(&self) -> Result<u64> {
        let failed = |error| engine_error("count the pages", error);
        let txn = self.env.read_txn().map_err(failed)?;
        let names = self.env.unnamed_database_stat();
        let mut bytes = 2 * names.page_size as usize + names.non_free_page_size();
        for table in &self.tables {
            bytes += table.stat(&txn).map_err(failed)?.non_free_page_size();
        }
        Ok(bytes as u64)
    }

    /// Closes it. Nothing else may have a clone of it, or this waits for that to be dropped.
    pub(crate) fn close(self) {
        self.env.prepare_for_closing().wait();
    }
}

/// The length of the data file; 0 if there is none.
pub(crate) fn data_len(directory: &Path) -> u64 {
    directory.join(DATA_FILE).metadata().map_or(0, |metadata| metadata.len())
}

/// Deletes what a killed process left of a compaction.
pub(crate) fn remove_unfinished(directory: &Path) {
    let path = directory.join(COMPACT_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "what is left of a compaction could not be deleted");
        }
        _ => {}
    }
}

use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use eventstore_api::{Direction, Durability, Error, Gc, Result};
use eventstore_kv::{CommitError, Engine, KeyRange, Snapshot, StoreDirectory, Table, Task, WriteBatch};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator,
    DBRecoveryMode, DEFAULT_COLUMN_FAMILY_NAME, FlushOptions, InfoLogger, ReadOptions, WriteOptions, properties,
};

use crate::error::{engine_error, open_error};
use crate::options::{Compression, LogLevel};
use crate::wal::{self, Damage, Extent};
use crate::{Options, WalRecovery, backup, gc};

/// RocksDB as the engine of a store: one database, one column family per table.
pub struct RocksDbEngine {
    // Fields drop in this order: the database is closed before the directory is unlocked.
    db: DB,
    /// Held by each commit, and by a flush that they have to wait for.
    commits: Mutex<()>,
    reads: ReadOptions,
    synced_writes: WriteOptions,
    buffered_writes: WriteOptions,
    options: Options,
    directory: StoreDirectory,
}

/// The subdirectory with RocksDB's files.
const FILES: &str = "rocksdb";

/// The files of a database in the directory of its store.
pub(crate) fn files_of(store: &Path) -> PathBuf {
    store.join(FILES)
}

/// What is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A new database.
    New,
    /// One that is there.
    Existing,
    /// A copy that is about to be marked as a store, which reads every file: no merging may delete one meanwhile.
    Copy,
}

/// Why a database was not opened.
pub(crate) enum Refused {
    /// Its write-ahead log is damaged, and nothing else is known to be.
    Wal(Error),
    Other(Error),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Wal(error) | Refused::Other(error) => error,
        }
    }
}

impl RocksDbEngine {
    /// Opens or creates the database in the options' directory. It blocks, and replays what was not flushed before.
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
        backup::delete_leftovers(directory.path())?;
        directory.delete_unfinished(FILES)?;
        if options.wal_recovery == WalRecovery::PointInTime {
            directory.forget_synced_head()?; // what is lost then is accepted
        }
        let opening = if directory.is_marked() { Opening::Existing } else { Opening::New };
        Self::open_in(directory, options, opening)
    }

    /// Opens the database in a directory and marks that as a store.
    pub(crate) fn open_in(mut directory: StoreDirectory, options: &Options, opening: Opening) -> Result<Self> {
        let db = open_db(directory.path(), options, opening)?;
        directory.mark()?;
        let mut synced_writes = WriteOptions::default();
        synced_writes.set_sync(true);
        Ok(RocksDbEngine {
            db,
            commits: Mutex::default(),
            reads: ReadOptions::default(),
            synced_writes,
            buffered_writes: WriteOptions::default(),
            options: options.clone(),
            directory,
        })
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn store_directory(&self) -> &StoreDirectory {
        &self.directory
    }

    /// Flushes while commits wait.
    ///
    /// The log goes on in a new file then. Were the old one not synced before, a power cut could take buffered events from
    /// it and leave later ones in the new file: a gap.
    pub(crate) fn flush_synced(&self) -> Result<()> {
        let _commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync()?;
        self.flush()
    }

    /// Writes everything that is only in memory and the log to tables.
    fn flush(&self) -> Result<()> {
        let tables = tables(&self.db)?;
        let families: Vec<&ColumnFamily> = tables.into_iter().collect();
        let flushed = self.db.flush_cfs_opt(&families, &FlushOptions::default());
        flushed.map_err(|error| engine_error("flush", error))
    }

    /// A property of the database or of all its column families together.
    fn property(&self, name: &CStr, of: Of) -> Result<u64> {
        let mut sum = 0;
        for family in tables(&self.db)? {
            let value =
                self.db.property_value_cf(family, name).map_err(|error| engine_error("ask for a property", error))?;
            let value: u64 = value.and_then(|value| value.parse().ok()).unwrap_or_default();
            match of {
                Of::Database => return Ok(value),
                Of::Tables => sum += value,
            }
        }
        Ok(sum)
    }

    /// How many flushes and merges have failed since the database was opened.
    pub(crate) fn background_errors(&self) -> Result<u64> {
        self.property(properties::BACKGROUND_ERRORS.as_c_str(), Of::Database)
    }
}

/// What a property is about.
#[derive(Clone, Copy)]
enum Of {
    Database,
    Tables,
}

/// The column families, one per table.
pub(crate) fn tables(db: &DB) -> Result<[&ColumnFamily; Table::ALL.len()]> {
    let family =
        |table| db.cf_handle(family_name(table)).ok_or_else(|| Error::engine("find a table", "it is not open"));
    let [meta, events, ids, aggregates] = Table::ALL;
    Ok([family(meta)?, family(events)?, family(ids)?, family(aggregates)?])
}

pub(crate) const fn family_name(table: Table) -> &'static str {
    match table {
        Table::Meta => DEFAULT_COLUMN_FAMILY_NAME, // RocksDB always has it
        _ => table.name(),
    }
}

/// Opens the files of a store, whose directory is locked.
pub(crate) fn open_db(store: &Path, options: &Options, opening: Opening) -> Result<DB, Refused> {
    let files = files_of(store);
    let cannot_read = |error| Refused::Other(Error::engine("look at the write-ahead log", error));
    let is_new = opening == Opening::New;
    if !is_new && !files.join("CURRENT").exists() {
        return Err(Refused::Other(Error::Open {
            path: store.display().to_string(),
            reason: format!("its {FILES}/CURRENT is missing; restore it from a backup"),
            source: None,
        }));
    }
    if !is_new {
        wal::manifest(&files).and_then(wal::cut_lost_writes).map_err(cannot_read)?;
    }
    let is_strict = options.wal_recovery == WalRecovery::Strict;
    if is_strict && !is_new {
        let log = wal::files(&files).map_err(cannot_read)?;
        if log.is_empty() {
            return Err(Refused::Wal(wal_error("its file is missing"))); // an open database always has one
        }
        wal::cut_lost_writes(log).map_err(cannot_read)?;
        if let Some(damage) = wal::find_damage(&files, Extent::LastBlock).map_err(cannot_read)? {
            return Err(Refused::Wal(wal_error(&describe(&damage))));
        }
    }
    let cache = Cache::new_lru_cache(options.block_cache);
    let families = Table::ALL.map(|table| {
        let mut family = table_options(table, options, &cache);
        family.set_disable_auto_compactions(opening == Opening::Copy);
        ColumnFamilyDescriptor::new(family_name(table), family)
    });
    let error = match DB::open_cf_descriptors(&database_options(options, is_new), &files, families) {
        Ok(db) => return Ok(db),
        Err(error) => error,
    };
    let message = error.as_ref().to_owned();
    match open_error(store, error) {
        damaged @ Error::Corrupt { .. } if is_strict => {
            match wal::find_damage(&files, Extent::Whole).map_err(cannot_read)? {
                Some(damage) => Err(Refused::Wal(wal_error(&describe(&damage)))),
                // A file of the log that is missing or too short: the manifest knows them.
                None if message.contains("WAL") => Err(Refused::Wal(wal_error(&message))),
                None => Err(Refused::Other(damaged)),
            }
        }
        other => Err(Refused::Other(other)),
    }
}

fn describe(damage: &Damage) -> String {
    let name = damage.file.file_name().unwrap_or_default().display();
    format!("{FILES}/{name} is damaged at byte {}", damage.at)
}

fn wal_error(what: &str) -> Error {
    Error::Corrupt {
        version: None,
        reason: format!(
            "its write-ahead log cannot be replayed ({what}), and events behind the damage would be lost; `eventstore \
             repair` keeps those before it and puts the log aside"
        ),
    }
}

fn database_options(options: &Options, create: bool) -> rocksdb::Options {
    let is_strict = options.wal_recovery == WalRecovery::Strict;
    let mut database = rocksdb::Options::default();
    database.create_if_missing(create);
    database.create_missing_column_families(create);
    database.set_wal_recovery_mode(match options.wal_recovery {
        WalRecovery::Strict => DBRecoveryMode::TolerateCorruptedTailRecords,
        WalRecovery::PointInTime => DBRecoveryMode::PointInTime,
    });
    // Finds files of the log that are missing or were cut short.
    database.set_track_and_verify_wals_in_manifest(is_strict);
    // All tables reach the disk together, so the log never holds what one table has and another has not: what comes
    // before a damage in it is consistent, and it is no longer than what is in memory.
    database.set_atomic_flush(true);
    database.set_max_total_wal_size(options.wal_size as u64);
    database.set_max_background_jobs(clamped(options.background_jobs));
    database.set_max_open_files(if options.open_files == 0 { -1 } else { clamped(options.open_files) });
    database.set_bytes_per_sync(1 << 20); // so that a sync of the log does not wait for a whole table
    database.set_stats_dump_period_sec(0);
    database.set_stats_persist_period_sec(0);
    let level = match options.log_level {
        LogLevel::Debug => rocksdb::LogLevel::Debug,
        LogLevel::Info => rocksdb::LogLevel::Info,
        LogLevel::Warn => rocksdb::LogLevel::Warn,
        LogLevel::Error => rocksdb::LogLevel::Error,
    };
    database.set_info_logger(InfoLogger::new_callback_logger(level, log));
    database.set_log_level(level);
    database
}

fn log(level: rocksdb::LogLevel, message: &str) {
    let message = message.trim_end();
    match level {
        rocksdb::LogLevel::Debug => tracing::debug!(target: "rocksdb", "{message}"),
        rocksdb::LogLevel::Info | rocksdb::LogLevel::Header => tracing::info!(target: "rocksdb", "{message}"),
        rocksdb::LogLevel::Warn => tracing::warn!(target: "rocksdb", "{message}"),
        rocksdb::LogLevel::Error | rocksdb::LogLevel::Fatal => tracing::error!(target: "rocksdb", "{message}"),
    }
}

fn table_options(table: Table, options: &Options, cache: &Cache) -> rocksdb::Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true); // so that the cache's size is all they take
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // A page of events is a few blocks; a look-up in an index is one key.
    blocks.set_block_size(if table == Table::Events { 16 << 10 } else { 4 << 10 });
    if table == Table::Ids && options.bloom_bits > 0 {
        blocks.set_bloom_filter(options.bloom_bits as f64, false);
    }
    let mut family = rocksdb::Options::default();
    family.set_block_based_table_factory(&blocks);
    family.set_write_buffer_size(options.memtable_size);
    family.set_max_write_buffer_number(clamped(options.memtables));
    family.set_compression_type(compression_type(options.compression));
    family.set_level_zero_file_num_compaction_trigger(clamped(options.level0_tables));
    family.set_level_zero_slowdown_writes_trigger(clamped(options.level0_tables.midpoint(options.level0_stall)));
    family.set_level_zero_stop_writes_trigger(clamped(options.level0_stall));
    family.set_target_file_size_base(options.table_size as u64);
    family.set_max_bytes_for_level_base(options.level_base_size as u64);
    family.set_max_bytes_for_level_multiplier(options.level_size_multiplier as f64);
    if table == Table::Events && options.blob_threshold > 0 {
        family.set_enable_blob_files(true);
        family.set_min_blob_size(options.blob_threshold as u64);
        family.set_blob_file_size(options.blob_file_size as u64);
        family.set_blob_compression_type(compression_type(options.blob_compression));
        family.set_enable_blob_gc(true);
        family.set_blob_gc_age_cutoff(options.blob_gc_age_cutoff);
        family.set_blob_gc_force_threshold(options.blob_gc_force_threshold);
    }
    family
}

fn compression_type(compression: Compression) -> DBCompressionType {
    match compression {
        Compression::None => DBCompressionType::None,
        Compression::Lz4 => DBCompressionType::Lz4,
        Compression::Zstd => DBCompressionType::Zstd,
    }
}

/// A number that was checked to be in a range far smaller.
fn clamped(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl Drop for RocksDbEngine {
    /// Leaves nothing to be replayed when the store is opened again.
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "what is in memory could not be flushed; it is in the write-ahead log");
        }
    }
}

impl Engine for RocksDbEngine {
    type Snapshot<'a> = RocksDbSnapshot<'a>;

    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(RocksDbSnapshot { engine: self, tables: tables(&self.db)?, iterators: Default::default() })
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let _commit = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let write = || -> Result<()> {
            let tables = tables(&self.db)?;
            let entries: usize = Table::ALL.into_iter().map(|table| batch.puts(table).len()).sum();
            let mut writes = rocksdb::WriteBatch::with_capacity_bytes(batch.len_bytes() + entries * PUT_OVERHEAD);
            for table in Table::ALL {
                for (key, value) in batch.puts(table) {
                    writes.put_cf(tables[table.index()], key, value);
                }
            }
            let options = match durability {
                Durability::Buffered => &self.buffered_writes,
                _ => &self.synced_writes,
            };
            self.db.write_opt(writes, options).map_err(|error| engine_error("commit", error))
        };
        write().map_err(CommitError::Unknown)
    }

    fn sync(&self) -> Result<()> {
        self.db.flush_wal(true).map_err(|error| engine_error("sync", error))
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        Some(&self.directory)
    }

    fn run_gc(&self, gc: Gc, task: &Task<'_>) -> Result<Vec<String>> {
        gc::run(self, gc, task)
    }

    fn backup(&self, target: StoreDirectory, task: &Task<'_>) -> Result<Self> {
        backup::take(self, target, task)
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let level0_tables = properties::num_files_at_level(0);
        let all = [
            ("live_data_bytes", properties::ESTIMATE_LIVE_DATA_SIZE.as_c_str(), Of::Tables),
            ("table_bytes", properties::TOTAL_SST_FILES_SIZE.as_c_str(), Of::Tables),
            ("blob_bytes", c"rocksdb.total-blob-file-size", Of::Tables),
            ("memtable_bytes", properties::CUR_SIZE_ALL_MEM_TABLES.as_c_str(), Of::Tables),
            ("pending_compaction_bytes", properties::ESTIMATE_PENDING_COMPACTION_BYTES.as_c_str(), Of::Tables),
            ("level0_tables", level0_tables.as_c_str(), Of::Tables),
            ("running_compactions", properties::NUM_RUNNING_COMPACTIONS.as_c_str(), Of::Database),
            ("block_cache_bytes", properties::BLOCK_CACHE_USAGE.as_c_str(), Of::Database),
            ("background_errors", properties::BACKGROUND_ERRORS.as_c_str(), Of::Database),
            ("writes_stopped", properties::IS_WRITE_STOPPED.as_c_str(), Of::Database),
        ];
        let values = all.into_iter().map(|(name, property, of)| Ok((name, self.property(property, of)?.to_string())));
        values.collect()
    }
}

impl fmt::Debug for RocksDbEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksDbEngine")
            .field("options", &self.options)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Bytes that RocksDB's batch needs for a put beside its key and value: a tag, the table, and two lengths.
const PUT_OVERHEAD: usize = 12;

/// A view of the database.
///
/// It holds no snapshot of RocksDB's, which it does not need: see [`Snapshot`]. Its iterators are kept for the next scan of
/// the same table, because making one takes longer than using it for a short scan.
pub struct RocksDbSnapshot<'a> {
    engine: &'a RocksDbEngine,
    tables: [&'a ColumnFamily; Table::ALL.len()],
    iterators: [Cell<Option<DBRawIterator<'a>>>; Table::ALL.len()],
}

impl fmt::Debug for RocksDbSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksDbSnapshot").finish_non_exhaustive()
    }
}

impl Snapshot for RocksDbSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let found = self.engine.db.get_pinned_cf_opt(self.tables[table.index()], key, &self.engine.reads);
        let value = found.map_err(|error| engine_error("read", error))?;
        if let Some(value) = &value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn get_many<F>(&self, table: Table, keys: &[&[u8]], mut visit: F) -> Result<()>
    where
        F: FnMut(usize, &[u8]) -> ControlFlow<()>,
    {
        let (family, reads) = (self.tables[table.index()], &self.engine.reads);
        let found = self.engine.db.batched_multi_get_cf_opt(family, keys, keys.is_sorted(), reads);
        for (place, value) in found.into_iter().enumerate() {
            let value = value.map_err(|error| engine_error("read", error))?;
            if value.is_some_and(|value| visit(place, &value).is_break()) {
                break;
            }
        }
        Ok(())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        let kept = &self.iterators[table.index()];
        let mut entries = kept
            .take()
            .unwrap_or_else(|| self.engine.db.raw_iterator_cf_opt(self.tables[table.index()], ReadOptions::default()));
        let end = match direction {
            Direction::Forward => {
                entries.seek(range.first);
                range.last
            }
            Direction::Backward => {
                entries.seek_for_prev(range.last);
                range.first
            }
        };
        loop {
            let Some((key, value)) = entries.item() else {
                // The end of the table, or damage. Asked only here: an iterator that goes backward has looked at the next
                // entry already, whose damage is none of this one.
                entries.status().map_err(|error| engine_error("read", error))?;
                break;
            };
            let is_beyond = if direction == Direction::Forward { key > end } else { key < end };
            // Nothing comes behind the end, which may be in a block that nobody else needs.
            if is_beyond || visit(key, value).is_break() || key == end {
                break;
            }
            match direction {
                Direction::Forward => entries.next(),
                Direction::Backward => entries.prev(),
            }
        }
        kept.set(Some(entries));
        Ok(())
    }
}

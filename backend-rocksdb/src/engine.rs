use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use eventstore_api::{Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task, tell};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompactionStyle,
    DBCompressionType, DBRawIterator, DEFAULT_COLUMN_FAMILY_NAME, ErrorKind, FlushOptions, InfoLogger, ReadOptions,
    SliceTransform, WaitForCompactOptions, WriteBatch, WriteOptions, properties,
};

use crate::error::{engine_error, open_error};
use crate::options::{Compression, LogLevel};
use crate::{Options, manifest};

/// A memtable holds one checkpoint and is flushed with it. This is larger than any checkpoint.
const MEMTABLE_SIZE: usize = 64 << 20;

const MOMENT: Duration = Duration::from_millis(100);

/// The number of runs of sorted tables from which on some are merged.
const MERGED_RUNS: i32 = 8;

/// With this many runs, a checkpoint waits until some are merged.
const MOST_RUNS: i32 = 24;

/// RocksDB as the engine of an index: one database, one column family per table.
pub struct RocksDbEngine {
    db: DB,
    reads: ReadOptions,
    options: Options,
}

impl RocksDbEngine {
    /// The column families, one per table.
    fn families(&self) -> Result<[&ColumnFamily; Table::ALL.len()]> {
        let family = |table| {
            let family = self.db.cf_handle(family_name(table));
            family.ok_or_else(|| Error::engine("find a table", "it is not open"))
        };
        let [meta, ids, aggregates] = Table::ALL;
        Ok([family(meta)?, family(ids)?, family(aggregates)?])
    }

    /// A property of the database, or the sum over its column families.
    fn property(&self, name: &CStr, of: Of) -> Result<u64> {
        let mut sum = 0;
        for family in self.families()? {
            let value = self.db.property_int_value_cf(family, name);
            let value = value.map_err(|error| engine_error("ask for a property", error))?.unwrap_or_default();
            match of {
                Of::Database => return Ok(value),
                Of::Tables => sum += value,
            }
        }
        Ok(sum)
    }
}

/// The scope of a property.
#[derive(Clone, Copy)]
enum Of {
    Database,
    Tables,
}

const fn family_name(table: Table) -> &'static str {
    match table {
        Table::Meta => DEFAULT_COLUMN_FAMILY_NAME, // RocksDB always has it
        _ => table.name(),
    }
}

fn database_options(options: &Options, is_new: bool) -> rocksdb::Options {
    let mut database = rocksdb::Options::default();
    database.create_if_missing(is_new);
    database.create_missing_column_families(is_new);
    database.set_paranoid_checks(true);
    // All tables of a checkpoint become part of the database atomically.
    database.set_atomic_flush(true);
    database.set_max_background_jobs(clamped(options.background_jobs));
    database.set_max_open_files(clamped(options.open_files));
    database.set_manifest_preallocation_size(64 << 10); // the default would take megabytes for an idle store
    database.set_bytes_per_sync(1 << 20); // so that a sync does not wait for a whole merged table
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
        rocksdb::LogLevel::Debug => tell!(debug, target: "rocksdb", "{message}"),
        rocksdb::LogLevel::Info | rocksdb::LogLevel::Header => tell!(info, target: "rocksdb", "{message}"),
        rocksdb::LogLevel::Warn => tell!(warn, target: "rocksdb", "{message}"),
        rocksdb::LogLevel::Error | rocksdb::LogLevel::Fatal => tell!(error, target: "rocksdb", "{message}"),
    }
}

fn family_options(table: Table, options: &Options, cache: &Cache) -> rocksdb::Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    // Parts of filters and indexes are in the cache, so that its size bounds their memory. Whole ones do not fit into a
    // shard.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_pin_top_level_index_and_filter(true);
    let mut family = rocksdb::Options::default();
    if options.bloom_bits > 0 && table != Table::Meta {
        blocks.set_bloom_filter(options.bloom_bits as f64, false);
    }
    if table == Table::Aggregates {
        // A scan of an aggregate skips the tables without its entries.
        family.set_prefix_extractor(SliceTransform::create("aggregate", aggregate_of, Some(has_aggregate)));
        blocks.set_whole_key_filtering(false);
    }
    family.set_block_based_table_factory(&blocks);
    family.set_write_buffer_size(MEMTABLE_SIZE);
    family.set_compression_type(compression_type(options.table_compression));
    family.set_target_file_size_base(options.table_size as u64);
    // With keys in any order, this writes half as much as leveled compaction.
    family.set_compaction_style(DBCompactionStyle::Universal);
    family.set_level_zero_file_num_compaction_trigger(MERGED_RUNS);
    family.set_level_zero_slowdown_writes_trigger(MOST_RUNS);
    family.set_level_zero_stop_writes_trigger(MOST_RUNS);
    family
}

/// The common prefix of an aggregate's keys: its id, which never contains the terminating byte, and that byte.
fn aggregate_of(key: &[u8]) -> &[u8] {
    let end = key.iter().position(|&byte| byte == 0xff).map_or(key.len(), |at| at + 1);
    &key[..end]
}

fn has_aggregate(key: &[u8]) -> bool {
    key.contains(&0xff)
}

/// Whether all keys of a range belong to one aggregate.
fn is_of_one_aggregate(range: KeyRange<'_>) -> bool {
    has_aggregate(range.first) && aggregate_of(range.first) == aggregate_of(range.last)
}

fn compression_type(compression: Compression) -> DBCompressionType {
    match compression {
        Compression::None => DBCompressionType::None,
        Compression::Lz4 => DBCompressionType::Lz4,
        Compression::Zstd => DBCompressionType::Zstd,
    }
}

/// Converts a number that was checked to be in a much smaller range.
fn clamped(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn families(options: &Options) -> [ColumnFamilyDescriptor; Table::ALL.len()] {
    let cache = Cache::new_lru_cache(options.block_cache);
    Table::ALL.map(|table| ColumnFamilyDescriptor::new(family_name(table), family_options(table, options, &cache)))
}

impl Engine for RocksDbEngine {
    const NAME: &'static str = crate::NAME;

    type Options = Options;

    type Snapshot<'a> = RocksDbSnapshot<'a>;

    fn open(directory: &Path, options: &Options) -> Result<Self> {
        let mut entries = fs::read_dir(directory).map_err(|error| Error::engine("list the index's files", error))?;
        let is_new = entries.next().is_none();
        if !is_new {
            manifest::check(directory)?;
        }
        // RocksDB would make it writable for its owner only, but everyone who opens the index has to write to it.
        let lock = fs::File::options().create(true).append(true).open(directory.join("LOCK"));
        lock.map_err(|error| Error::engine("make RocksDB's lock file", error))?;
        let db = DB::open_cf_descriptors(&database_options(options, is_new), directory, families(options))
            .map_err(|error| open_error(directory, error))?;
        Ok(RocksDbEngine { db, reads: ReadOptions::default(), options: options.clone() })
    }

    fn open_read_only(directory: &Path, options: &Options) -> Result<Option<Self>> {
        let mut entries = fs::read_dir(directory).map_err(|error| Error::engine("list the index's files", error))?;
        if entries.next().is_none() {
            return Ok(None);
        }
        manifest::check(directory)?;
        let (made, families) = (database_options(options, false), families(options));
        let db = DB::open_cf_descriptors_read_only(&made, directory, families, false)
            .map_err(|error| open_error(directory, error))?;
        Ok(Some(RocksDbEngine { db, reads: ReadOptions::default(), options: options.clone() }))
    }

    fn abandon(self) {
        self.db.cancel_all_background_work(false);
        std::mem::forget(self); // closing would delete tables that it does not know
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(RocksDbSnapshot { engine: self, families: self.families()?, iterators: Default::default() })
    }

    /// Writes the entries to separate tables, which RocksDB syncs before its manifest names them, all in one change of
    /// the manifest.
    fn write(&self, entries: &Entries) -> Result<()> {
        let families = self.families()?;
        let mut batch = WriteBatch::with_capacity_bytes(entries.len_bytes() + entries.len() * PUT_OVERHEAD);
        for table in Table::ALL {
            entries.of(table).for_each(|(key, value)| batch.put_cf(families[table.index()], key, value));
        }
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        self.db.write_opt(batch, &unlogged).map_err(|error| engine_error("write", error))?;
        let flushed = self.db.flush_cfs_opt(&families, &FlushOptions::default());
        flushed.map_err(|error| engine_error("flush", error))
    }

    /// Waits until RocksDB has merged what it considers worthwhile. Nothing is ever deleted, so merging the rest would
    /// free no space.
    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>> {
        let mut moment = WaitForCompactOptions::default();
        moment.set_timeout(MOMENT.as_micros() as u64);
        loop {
            match self.db.wait_for_compact(&moment) {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::TimedOut => task.check()?,
                Err(error) => return Err(engine_error("merge tables", error)),
            }
        }
        let bytes = self.property(properties::TOTAL_SST_FILES_SIZE.as_c_str(), Of::Tables)?;
        Ok(vec![format!("waited until RocksDB had merged its tables; they have {bytes} bytes")])
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let level0_tables = properties::num_files_at_level(0);
        let all = [
            ("table_bytes", properties::TOTAL_SST_FILES_SIZE.as_c_str(), Of::Tables),
            ("pending_compaction_bytes", properties::ESTIMATE_PENDING_COMPACTION_BYTES.as_c_str(), Of::Tables),
            ("level0_tables", level0_tables.as_c_str(), Of::Tables),
            ("running_compactions", properties::NUM_RUNNING_COMPACTIONS.as_c_str(), Of::Database),
            ("block_cache_bytes", properties::BLOCK_CACHE_USAGE.as_c_str(), Of::Database),
            ("background_errors", properties::BACKGROUND_ERRORS.as_c_str(), Of::Database),
        ];
        let values = all.into_iter().map(|(name, property, of)| Ok((name, self.property(property, of)?.to_string())));
        values.collect()
    }
}

impl fmt::Debug for RocksDbEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksDbEngine").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The overhead of a put in RocksDB's batch, in bytes: a tag, the table, and two lengths.
const PUT_OVERHEAD: usize = 12;

/// A view of the database.
///
/// It holds no snapshot of RocksDB, which is not required: see [`Snapshot`]. Its iterators are kept for the next scan
/// of the same table, because creating one takes longer than a short scan.
pub struct RocksDbSnapshot<'a> {
    engine: &'a RocksDbEngine,
    families: [&'a ColumnFamily; Table::ALL.len()],
    /// The iterators of each table, without and with the filters of aggregates.
    iterators: [[Cell<Option<DBRawIterator<'a>>>; 2]; Table::ALL.len()],
}

impl fmt::Debug for RocksDbSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksDbSnapshot").finish_non_exhaustive()
    }
}

impl Snapshot for RocksDbSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let found = self.engine.db.get_pinned_cf_opt(self.families[table.index()], key, &self.engine.reads);
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
        let (family, reads) = (self.families[table.index()], &self.engine.reads);
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
        let is_filtered = table == Table::Aggregates && is_of_one_aggregate(range);
        let kept = &self.iterators[table.index()][usize::from(is_filtered)];
        let mut entries = kept.take().unwrap_or_else(|| {
            let mut reads = ReadOptions::default();
            reads.set_total_order_seek(!is_filtered);
            self.engine.db.raw_iterator_cf_opt(self.families[table.index()], reads)
        });
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
                // The end of the table, or damage. Checked only here: a backward iterator has already read the next
                // entry, whose damage does not concern this one.
                entries.status().map_err(|error| engine_error("read", error))?;
                break;
            };
            let is_beyond = if direction == Direction::Forward { key > end } else { key < end };
            // Do not read past the end, which may touch a block that is not needed otherwise.
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

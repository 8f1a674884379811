use std::path::PathBuf;
use std::str::FromStr;

use eventstore_api::{Error, Result};
use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, check_range};

/// How to open a RocksDB store.
///
/// In a URL the options have the names of the fields: `rocksdb:./data?memtable_size=64MiB&compression=zstd`. Those of
/// [`StoreOptions`] may stand there as well. Each may be another one at the next opening.
///
/// With the defaults RocksDB takes up to about 300 MiB of memory: the block cache, and memtables while they wait for the
/// disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The store's directory, created if it is missing.
    pub path: PathBuf,
    /// Whether to create a store if there is none in the directory; otherwise that is an error. Default: true.
    pub create_if_missing: bool,
    /// Bytes of new events that are gathered in memory before they are written to a table. Opening after a kill reads
    /// about as much again. Default: 32 MiB, 64 KiB to 4 GiB. RocksDB: `write_buffer_size`.
    pub memtable_size: usize,
    /// Memtables that may be in memory, full ones that wait for the disk with the one that is being filled; then appends
    /// wait. Default: 4, 2 to 64. RocksDB: `max_write_buffer_number`.
    pub memtables: usize,
    /// Bytes of blocks of tables that are kept in memory, with their indexes and filters. Default: 128 MiB, 1 MiB to
    /// 1 TiB. RocksDB: `block_cache`.
    pub block_cache: usize,
    /// From this many tables in level 0 on they are merged into the next one. Default: 4, 1 to 1,000. RocksDB:
    /// `level0_file_num_compaction_trigger`.
    pub level0_tables: usize,
    /// With this many tables in level 0 appends wait until some are merged; halfway there they are slowed down. Default:
    /// 36, from `level0_tables` to 10,000. RocksDB: `level0_stop_writes_trigger`.
    pub level0_stall: usize,
    /// Bytes of a table below level 0. Default: 64 MiB, 64 KiB to 16 GiB. RocksDB: `target_file_size_base`.
    pub table_size: usize,
    /// How many times larger each level is than the one before. Default: 10, 2 to 100. RocksDB:
    /// `max_bytes_for_level_multiplier`.
    pub level_size_multiplier: usize,
    /// Bytes of the first level below level 0. Default: 256 MiB, from `table_size` to 1 TiB. RocksDB:
    /// `max_bytes_for_level_base`.
    pub level_base_size: usize,
    /// Events from this many bytes on go into blob files, which merging leaves alone; `0`, or `off` in a URL, for none.
    /// Events that are there already stay where they are. Default: 0, up to 64 MiB. RocksDB: `enable_blob_files`,
    /// `min_blob_size`.
    pub blob_threshold: usize,
    /// Bytes of a blob file. Default: 256 MiB, 64 KiB to 16 GiB. RocksDB: `blob_file_size`.
    pub blob_file_size: usize,
    /// The part of the blob files, the oldest ones, from which merging moves what is still needed into new files.
    /// Default: 0.25, 0 to 1. RocksDB: `blob_garbage_collection_age_cutoff`.
    pub blob_gc_age_cutoff: f64,
    /// With this part of garbage in those files RocksDB merges only to be rid of it. Default: 1, 0 to 1. RocksDB:
    /// `blob_garbage_collection_force_threshold`.
    pub blob_gc_force_threshold: f64,
    /// How blobs are compressed, each by itself. Default: [`Compression::None`]. RocksDB: `blob_compression_type`.
    pub blob_compression: Compression,
    /// How tables are compressed. Default: [`Compression::Lz4`]. RocksDB: `compression`.
    pub compression: Compression,
    /// Threads that write and merge tables. Default: half of the processors, at least 2; 1 to 1,024. RocksDB:
    /// `max_background_jobs`.
    pub background_jobs: usize,
    /// Files that are kept open; `0` for all. Default: 512, else at least 32, up to 1,000,000. RocksDB: `max_open_files`.
    pub open_files: usize,
    /// Bytes of write-ahead log from which on memtables are written out, however full they are. It bounds what opening
    /// after a kill has to replay. Default: 64 MiB, 64 KiB to 64 GiB. RocksDB: `max_total_wal_size`.
    pub wal_size: usize,
    /// Bits a key of the filters that tell which tables cannot have an event id; 0 for no filters. Default: 10, up to 64.
    /// RocksDB: `filter_policy`.
    pub bloom_bits: usize,
    /// What to do with a damaged write-ahead log. Default: [`WalRecovery::Strict`]. RocksDB: `wal_recovery_mode`.
    pub wal_recovery: WalRecovery,
    /// What RocksDB tells the log, which is `tracing` with the target `rocksdb`. Default: [`LogLevel::Warn`]. RocksDB:
    /// `info_log_level`.
    pub log_level: LogLevel,
    /// How the store queues and groups appends.
    pub store: StoreOptions,
}

/// How blocks or blobs are compressed. In a URL: `none`, `lz4`, `zstd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
}

/// What opening does when a write-ahead log is damaged. In a URL: `strict`, `point_in_time`.
///
/// A log whose last record is not whole is not damaged: a process that is killed while it writes leaves one, and nothing
/// of it was acknowledged. It is left out in both modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalRecovery {
    /// It is refused as `Corrupt`, and nothing is changed. RocksDB: `kTolerateCorruptedTailRecords`, with a closer look at
    /// what is not whole.
    Strict,
    /// Everything before the damage is kept, and what comes behind it is gone, with no more than a warning in the log. A
    /// power cut can damage the log of `Buffered` events, which may be lost anyway. RocksDB: `kPointInTimeRecovery`.
    PointInTime,
}

/// From which level on RocksDB's messages are passed on. In a URL: `debug`, `info`, `warn`, `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// Each write and merge of a table as well.
    Info,
    /// What may need attention.
    Warn,
    /// What failed.
    Error,
}

impl Options {
    /// The default options for a store in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Options {
            path: path.into(),
            create_if_missing: true,
            memtable_size: 32 << 20,
            memtables: 4,
            block_cache: 128 << 20,
            level0_tables: 4,
            level0_stall: 36,
            table_size: 64 << 20,
            level_size_multiplier: 10,
            level_base_size: 256 << 20,
            blob_threshold: 0,
            blob_file_size: 256 << 20,
            blob_gc_age_cutoff: 0.25,
            blob_gc_force_threshold: 1.0,
            blob_compression: Compression::None,
            compression: Compression::Lz4,
            background_jobs: std::thread::available_parallelism().map_or(2, |cores| (cores.get() / 2).max(2)),
            open_files: 512,
            wal_size: 64 << 20,
            bloom_bits: 10,
            wal_recovery: WalRecovery::Strict,
            log_level: LogLevel::Warn,
            store: StoreOptions::default(),
        }
    }

    /// The options that a URL names.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](Error::InvalidOption) for an option that is unknown, cannot be read, or is out of its
    /// range.
    pub fn from_url(url: &StoreUrl) -> Result<Self> {
        let mut options = Options::new(&url.path);
        let mut url = url.clone();
        for (name, value) in &mut url.options {
            if name == "blob_threshold" && value == "off" {
                "0".clone_into(value);
            }
        }
        let mut given = UrlOptions::new(&url);
        given.take_flag("create_if_missing", &mut options.create_if_missing)?;
        given.take_bytes("memtable_size", &mut options.memtable_size)?;
        given.take_number("memtables", &mut options.memtables)?;
        given.take_bytes("block_cache", &mut options.block_cache)?;
        given.take_number("level0_tables", &mut options.level0_tables)?;
        given.take_number("level0_stall", &mut options.level0_stall)?;
        given.take_bytes("table_size", &mut options.table_size)?;
        given.take_number("level_size_multiplier", &mut options.level_size_multiplier)?;
        given.take_bytes("level_base_size", &mut options.level_base_size)?;
        given.take_bytes("blob_threshold", &mut options.blob_threshold)?;
        given.take_bytes("blob_file_size", &mut options.blob_file_size)?;
        take_fraction(&mut given, "blob_gc_age_cutoff", &mut options.blob_gc_age_cutoff)?;
        take_fraction(&mut given, "blob_gc_force_threshold", &mut options.blob_gc_force_threshold)?;
        given.take_parsed("blob_compression", &mut options.blob_compression)?;
        given.take_parsed("compression", &mut options.compression)?;
        given.take_number("background_jobs", &mut options.background_jobs)?;
        given.take_number("open_files", &mut options.open_files)?;
        given.take_bytes("wal_size", &mut options.wal_size)?;
        given.take_number("bloom_bits", &mut options.bloom_bits)?;
        given.take_parsed("wal_recovery", &mut options.wal_recovery)?;
        given.take_parsed("log_level", &mut options.log_level)?;
        options.store.take_from(&mut given)?;
        given.finish()?;
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_range("memtable_size", self.memtable_size, 64 << 10, 4 << 30)?;
        check_range("memtables", self.memtables, 2, 64)?;
        check_range("block_cache", self.block_cache, 1 << 20, 1 << 40)?;
        check_range("level0_tables", self.level0_tables, 1, 1000)?;
        check_range("level0_stall", self.level0_stall, self.level0_tables, 10_000)?;
        check_range("table_size", self.table_size, 64 << 10, 16 << 30)?;
        check_range("level_size_multiplier", self.level_size_multiplier, 2, 100)?;
        check_range("level_base_size", self.level_base_size, self.table_size, 1 << 40)?;
        check_range("blob_threshold", self.blob_threshold, 0, 64 << 20)?;
        check_range("blob_file_size", self.blob_file_size, 64 << 10, 16 << 30)?;
        check_fraction("blob_gc_age_cutoff", self.blob_gc_age_cutoff)?;
        check_fraction("blob_gc_force_threshold", self.blob_gc_force_threshold)?;
        check_range("background_jobs", self.background_jobs, 1, 1024)?;
        if self.open_files != 0 {
            check_range("open_files", self.open_files, 32, 1_000_000)?;
        }
        check_range("wal_size", self.wal_size, 64 << 10, 64 << 30)?;
        check_range("bloom_bits", self.bloom_bits, 0, 64)?;
        self.store.validate()
    }
}

/// A number between 0 and 1, as a URL has it.
struct Fraction(f64);

impl FromStr for Fraction {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Fraction).map_err(|_| unknown(text, "a number such as 0.25"))
    }
}

fn take_fraction(given: &mut UrlOptions, name: &'static str, target: &mut f64) -> Result<()> {
    let mut fraction = Fraction(*target);
    given.take_parsed(name, &mut fraction)?;
    *target = fraction.0;
    Ok(())
}

fn check_fraction(option: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidOption { option: option.to_owned(), reason: format!("{value} is not between 0 and 1") })
}

/// A value that cannot be read; whoever takes it knows the option's name.
fn unknown(text: &str, expected: &str) -> Error {
    Error::InvalidOption { option: String::new(), reason: format!("{text:?} is not {expected}") }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Compression::None),
            "lz4" => Ok(Compression::Lz4),
            "zstd" => Ok(Compression::Zstd),
            _ => Err(unknown(text, "one of none, lz4, zstd")),
        }
    }
}

impl FromStr for WalRecovery {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "strict" => Ok(WalRecovery::Strict),
            "point_in_time" => Ok(WalRecovery::PointInTime),
            _ => Err(unknown(text, "one of strict, point_in_time")),
        }
    }
}

impl FromStr for LogLevel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "debug" => Ok(LogLevel::Debug),
            "info" => Ok(LogLevel::Info),
            "warn" => Ok(LogLevel::Warn),
            "error" => Ok(LogLevel::Error),
            _ => Err(unknown(text, "one of debug, info, warn, error")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_can_stand_in_a_url() {
        let url = "rocksdb:./d?create_if_missing=false&memtable_size=1MiB&memtables=3&block_cache=2MiB&level0_tables=5\
                   &level0_stall=6&table_size=3MiB&level_size_multiplier=7&level_base_size=4MiB&blob_threshold=8KiB\
                   &blob_file_size=5MiB&blob_gc_age_cutoff=0.5&blob_gc_force_threshold=0.75&blob_compression=zstd\
                   &compression=none&background_jobs=9&open_files=100&wal_size=6MiB&bloom_bits=12\
                   &wal_recovery=point_in_time&log_level=debug&queue_requests=3";
        let options = Options::from_url(&url.parse().expect("url")).expect("options");
        options.validate().expect("in range");
        let sizes = [options.memtable_size, options.block_cache, options.table_size, options.level_base_size];
        assert_eq!(sizes, [1 << 20, 2 << 20, 3 << 20, 4 << 20]);
        assert_eq!((options.blob_threshold, options.blob_file_size, options.wal_size), (8 << 10, 5 << 20, 6 << 20));
        let numbers = [options.memtables, options.level0_tables, options.level0_stall, options.level_size_multiplier];
        assert_eq!(numbers, [3, 5, 6, 7]);
        assert_eq!((options.background_jobs, options.open_files, options.bloom_bits), (9, 100, 12));
        assert_eq!((options.blob_gc_age_cutoff, options.blob_gc_force_threshold), (0.5, 0.75));
        assert_eq!((options.compression, options.blob_compression), (Compression::None, Compression::Zstd));
        assert_eq!((options.wal_recovery, options.log_level), (WalRecovery::PointInTime, LogLevel::Debug));
        assert_eq!((options.create_if_missing, options.store.queue_requests), (false, 3));
        assert_eq!(options.path, PathBuf::from("./d"));
    }

    #[test]
    fn values_that_cannot_be_read_are_refused_by_name() {
        let refused = |query: &str| match Options::from_url(&format!("rocksdb:./d?{query}").parse().expect("url")) {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("expected InvalidOption, got {other:?}"),
        };
        for option in ["compression", "blob_compression", "wal_recovery", "log_level", "blob_gc_age_cutoff", "map_size"]
        {
            assert_eq!(refused(&format!("{option}=much")), option);
        }
        let off = Options::from_url(&"rocksdb:./d?blob_threshold=off".parse().expect("url")).expect("options");
        assert_eq!(off.blob_threshold, 0);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let refused = |change: fn(&mut Options)| {
            let mut options = Options::new("d");
            change(&mut options);
            match options.validate() {
                Err(Error::InvalidOption { option, .. }) => option,
                other => panic!("expected InvalidOption, got {other:?}"),
            }
        };
        Options::new("d").validate().expect("the defaults are in range");
        assert_eq!(refused(|options| options.memtable_size = 1), "memtable_size");
        assert_eq!(refused(|options| options.memtables = 1), "memtables");
        assert_eq!(refused(|options| options.level0_stall = options.level0_tables - 1), "level0_stall");
        assert_eq!(refused(|options| options.level_base_size = options.table_size - 1), "level_base_size");
        assert_eq!(refused(|options| options.blob_gc_age_cutoff = 1.5), "blob_gc_age_cutoff");
        assert_eq!(refused(|options| options.blob_gc_force_threshold = f64::NAN), "blob_gc_force_threshold");
        assert_eq!(refused(|options| options.open_files = 1), "open_files");
        assert_eq!(refused(|options| options.bloom_bits = 65), "bloom_bits");
        assert_eq!(refused(|options| options.store.queue_requests = 0), "queue_requests");
    }
}

use std::path::PathBuf;
use std::str::FromStr;

use eventstore_api::{Error, Result};
use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, check_range};

/// Options of a RocksDB store.
///
/// In a URL, each option has its field's name: `rocksdb:./data?block_cache=64MiB&table_compression=zstd`. The options
/// of [`StoreOptions`] may be in the URL as well. Every option can be changed at the next open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The store's directory, created if it is missing.
    pub path: PathBuf,
    /// Whether to create a store if the directory has none; if false, that is an error. Default: true.
    pub create_if_missing: bool,
    /// Cache of the tables' blocks, indexes and filters, in bytes. Default: 32 MiB, 1 MiB to 1 TiB. RocksDB:
    /// `block_cache`.
    pub block_cache: usize,
    /// The compression of tables. Default: [`Compression::Lz4`]. RocksDB: `compression`.
    pub table_compression: Compression,
    /// The target size of a compacted table, in bytes. Default: 64 MiB, 64 KiB to 16 GiB. RocksDB:
    /// `target_file_size_base`.
    pub table_size: usize,
    /// Bits per key of the tables' Bloom filters for event ids; 0 for no filters. Default: 10, up to 64. RocksDB:
    /// `filter_policy`.
    pub bloom_bits: usize,
    /// Threads that flush and compact tables. Default: half of the processors, at least 4; 1 to 1,024. RocksDB:
    /// `max_background_jobs`.
    pub background_jobs: usize,
    /// The number of files kept open. Default: 128, 32 to 1,000,000. RocksDB: `max_open_files`.
    pub open_files: usize,
    /// The level of RocksDB's own log, which goes to `tracing` with the target `rocksdb`. Default: [`LogLevel::Warn`].
    /// RocksDB: `info_log_level`.
    pub log_level: LogLevel,
    /// Options of the store itself, the same for every engine: queue, group commit, log and caches.
    pub store: StoreOptions,
}

/// The compression of tables. In a URL: `none`, `lz4`, `zstd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// LZ4, fast.
    Lz4,
    /// Zstandard, smaller tables.
    Zstd,
}

/// The lowest level of RocksDB's messages that are passed on. In a URL: `debug`, `info`, `warn`, `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogLevel {
    /// All messages.
    Debug,
    /// Also each flush and compaction of a table.
    Info,
    /// Conditions that may need attention.
    Warn,
    /// Failures only.
    Error,
}

impl Options {
    /// The default options for a store in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Options {
            path: path.into(),
            create_if_missing: true,
            block_cache: 32 << 20,
            table_compression: Compression::Lz4,
            table_size: 64 << 20,
            bloom_bits: 10,
            background_jobs: std::thread::available_parallelism().map_or(4, |cores| (cores.get() / 2).max(4)),
            open_files: 128,
            log_level: LogLevel::Warn,
            store: StoreOptions::default(),
        }
    }

    /// The options in a URL.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](Error::InvalidOption) for an option that is unknown, cannot be parsed, or is out of range.
    pub fn from_url(url: &StoreUrl) -> Result<Self> {
        let mut options = Options::new(&url.path);
        let mut given = UrlOptions::new(url);
        given.take_flag("create_if_missing", &mut options.create_if_missing)?;
        given.take_bytes("block_cache", &mut options.block_cache)?;
        given.take_parsed("table_compression", &mut options.table_compression)?;
        given.take_bytes("table_size", &mut options.table_size)?;
        given.take_number("bloom_bits", &mut options.bloom_bits)?;
        given.take_number("background_jobs", &mut options.background_jobs)?;
        given.take_number("open_files", &mut options.open_files)?;
        given.take_parsed("log_level", &mut options.log_level)?;
        options.store.take_from(&mut given)?;
        given.finish()?;
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_range("block_cache", self.block_cache, 1 << 20, 1 << 40)?;
        check_range("table_size", self.table_size, 64 << 10, 16 << 30)?;
        check_range("bloom_bits", self.bloom_bits, 0, 64)?;
        check_range("background_jobs", self.background_jobs, 1, 1024)?;
        check_range("open_files", self.open_files, 32, 1_000_000)?;
        self.store.validate()
    }
}

/// The error for a value that cannot be parsed; the caller adds the option's name.
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
        let url = "rocksdb:./d?create_if_missing=false&block_cache=2MiB&table_compression=none&table_size=3MiB&bloom_bits=12\
                   &background_jobs=9&open_files=100&log_level=debug&queue_requests=3";
        let options = Options::from_url(&url.parse().expect("url")).expect("options");
        assert_eq!((options.block_cache, options.table_size), (2 << 20, 3 << 20));
        assert_eq!((options.background_jobs, options.open_files, options.bloom_bits), (9, 100, 12));
        assert_eq!((options.table_compression, options.log_level), (Compression::None, LogLevel::Debug));
        assert_eq!((options.create_if_missing, options.store.queue_requests), (false, 3));
        assert_eq!(options.path, PathBuf::from("./d"));
    }

    #[test]
    fn values_that_cannot_be_read_are_refused_by_name() {
        for (option, value) in [
            ("table_compression", "much"),
            ("compression", "much"),
            ("log_level", "much"),
            ("block_cache", "1KiB"),
            ("table_size", "1KiB"),
            ("bloom_bits", "65"),
            ("background_jobs", "0"),
            ("open_files", "0"),
            ("map_size", "1GiB"),
        ] {
            match Options::from_url(&format!("rocksdb:./d?{option}={value}").parse().expect("url")) {
                Err(Error::InvalidOption { option: refused, .. }) => assert_eq!(refused, option),
                other => panic!("expected InvalidOption, got {other:?}"),
            }
        }
    }
}

use std::path::PathBuf;
use std::str::FromStr;

use eventstore_api::{Error, Result};
use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, check_range};

/// Options of a fjall store.
///
/// In a URL, each option has its field's name: `fjall:./data?block_cache=64MiB&table_compression=none`. The options of
/// [`StoreOptions`] may be in the URL as well. Every option can be changed at the next open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The store's directory, created if it is missing.
    pub path: PathBuf,
    /// Whether to create a store if the directory has none; if false, that is an error. Default: true.
    pub create_if_missing: bool,
    /// Cache of the tables' blocks, indexes and filters, in bytes. Default: 32 MiB, 1 MiB to 1 TiB.
    pub block_cache: usize,
    /// The compression of tables. Default: [`Compression::Lz4`].
    pub table_compression: Compression,
    /// Bits per key of the tables' Bloom filters for event ids; 0 for no filters. Default: 10, up to 64.
    pub bloom_bits: usize,
    /// The number of files kept open. Default: 128, 8 to 1,000,000.
    pub open_files: usize,
    /// Options of the store itself, the same for every engine: queue, group commit, log and caches.
    pub store: StoreOptions,
}

/// The compression of tables. In a URL: `none`, `lz4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// LZ4, fast.
    Lz4,
}

impl Options {
    /// The default options for a store in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Options {
            path: path.into(),
            create_if_missing: true,
            block_cache: 32 << 20,
            table_compression: Compression::Lz4,
            bloom_bits: 10,
            open_files: 128,
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
        given.take_number("bloom_bits", &mut options.bloom_bits)?;
        given.take_number("open_files", &mut options.open_files)?;
        options.store.take_from(&mut given)?;
        given.finish()?;
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_range("block_cache", self.block_cache, 1 << 20, 1 << 40)?;
        check_range("bloom_bits", self.bloom_bits, 0, 64)?;
        check_range("open_files", self.open_files, 8, 1_000_000)?;
        self.store.validate()
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Compression::None),
            "lz4" => Ok(Compression::Lz4),
            // The caller adds the option's name.
            _ => {
                Err(Error::InvalidOption { option: String::new(), reason: format!("{text:?} is not one of none, lz4") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_can_stand_in_a_url() {
        let url = "fjall:./d?create_if_missing=false&block_cache=2MiB&table_compression=none&bloom_bits=12&open_files=100\
                   &queue_requests=3";
        let options = Options::from_url(&url.parse().expect("url")).expect("options");
        assert_eq!((options.block_cache, options.table_compression), (2 << 20, Compression::None));
        assert_eq!((options.open_files, options.bloom_bits), (100, 12));
        assert_eq!((options.create_if_missing, options.store.queue_requests), (false, 3));
        assert_eq!(options.path, PathBuf::from("./d"));
    }

    #[test]
    fn values_that_cannot_be_read_are_refused_by_name() {
        for (option, value) in [
            ("table_compression", "much"),
            ("compression", "much"),
            ("block_cache", "1KiB"),
            ("bloom_bits", "65"),
            ("open_files", "0"),
            ("map_size", "1GiB"),
        ] {
            match Options::from_url(&format!("fjall:./d?{option}={value}").parse().expect("url")) {
                Err(Error::InvalidOption { option: refused, .. }) => assert_eq!(refused, option),
                other => panic!("expected InvalidOption, got {other:?}"),
            }
        }
    }
}

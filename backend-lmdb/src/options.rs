use std::path::PathBuf;

use eventstore_api::Result;
use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, check_range};

/// Options of an LMDB store.
///
/// In a URL, each option has its field's name: `lmdb:./data?map_size=4GiB&read_ahead=false`. The options of
/// [`StoreOptions`] may be in the URL as well.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The store's directory, created if it is missing. It must be on a local file system: LMDB maps and locks its
    /// file, and neither works over a network.
    pub path: PathBuf,
    /// Whether to create a store if the directory has none; if false, that is an error. Default: true.
    pub create_if_missing: bool,
    /// Initial address space for the index, in bytes; the file is only as large as its content. It doubles
    /// automatically when it is full, up to `max_map_size`. Default: 1 GiB, at least 1 MiB.
    pub map_size: usize,
    /// The maximum size of the index, in bytes; beyond it, appends fail with `Full`. The index takes 40 bytes per event
    /// with ascending ids, and up to 150 with random ids. Default: 1 TiB, at least `map_size`.
    pub max_map_size: usize,
    /// Whether the operating system reads ahead in the index. With it, the cache warms up sooner; without it, look-ups
    /// in an index that is larger than memory are faster. Default: true.
    pub read_ahead: bool,
    /// Options of the store itself, the same for every engine: queue, group commit, log and caches.
    pub store: StoreOptions,
}

impl Options {
    /// The default options for a store in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Options {
            path: path.into(),
            create_if_missing: true,
            map_size: 1 << 30,
            max_map_size: 1 << 40,
            read_ahead: true,
            store: StoreOptions::default(),
        }
    }

    /// The options in a URL.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](eventstore_api::Error::InvalidOption) for an option that is unknown, cannot be parsed, or is
    /// out of range.
    pub fn from_url(url: &StoreUrl) -> Result<Self> {
        let mut options = Options::new(&url.path);
        let mut given = UrlOptions::new(url);
        given.take_flag("create_if_missing", &mut options.create_if_missing)?;
        given.take_bytes("map_size", &mut options.map_size)?;
        given.take_bytes("max_map_size", &mut options.max_map_size)?;
        given.take_flag("read_ahead", &mut options.read_ahead)?;
        if url.options.iter().all(|(name, _)| name != "map_size") {
            options.map_size = options.map_size.min(options.max_map_size); // for a small store, setting one of them is enough
        }
        options.store.take_from(&mut given)?;
        given.finish()?;
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_range("max_map_size", self.max_map_size, MIN_MAP_SIZE, MAX_MAP_SIZE)?;
        check_range("map_size", self.map_size, MIN_MAP_SIZE, self.max_map_size)?;
        self.store.validate()
    }
}

const MIN_MAP_SIZE: usize = 1 << 20;

/// The address space that x86-64 and AArch64 can map, minus room for everything else in the process.
const MAX_MAP_SIZE: usize = 1 << 46;

#[cfg(test)]
mod tests {
    use eventstore_api::Error;

    use super::*;

    #[test]
    fn every_option_can_stand_in_a_url() {
        let url = "lmdb:./d?map_size=2MiB&max_map_size=4MiB&read_ahead=false&queue_requests=3&durability=buffered&create_if_missing=false";
        let options = Options::from_url(&url.parse().expect("url")).expect("options");
        assert_eq!((options.map_size, options.max_map_size), (2 << 20, 4 << 20));
        assert!(!options.read_ahead && Options::new("d").read_ahead);
        assert_eq!((options.store.queue_requests, options.create_if_missing), (3, false));
        assert_eq!(options.path, PathBuf::from("./d"));
        let small = Options::from_url(&"lmdb:./d?max_map_size=10MiB".parse().expect("url")).expect("options");
        small.validate().expect("a map that begins no larger than it may grow");
        let unknown = Options::from_url(&"lmdb:./d?block_cache=1GiB".parse().expect("url"));
        assert!(matches!(unknown, Err(Error::InvalidOption { option, .. }) if option == "block_cache"));
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
        assert_eq!(refused(|options| options.map_size = 4096), "map_size");
        assert_eq!(refused(|options| options.max_map_size = options.map_size - 1), "map_size");
        assert_eq!(refused(|options| options.max_map_size = 1 << 50), "max_map_size");
        assert_eq!(refused(|options| options.store.queue_requests = 0), "queue_requests");
    }
}

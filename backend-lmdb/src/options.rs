use std::path::PathBuf;

use eventstore_api::Result;
use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, check_range};

/// How to open an LMDB store.
///
/// In a URL the options have the names of the fields: `lmdb:./data?map_size=4GiB&read_ahead=false`. Those of
/// [`StoreOptions`] may stand there as well.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The store's directory, created if it is missing. It must be on a local file system: LMDB maps the file and
    /// locks it, and neither works over a network.
    pub path: PathBuf,
    /// Whether to create a store if there is none in the directory; otherwise that is an error. Default: true.
    pub create_if_missing: bool,
    /// Bytes of address space to begin with; the file is only as large as its content. It doubles by itself whenever it
    /// is full, up to `max_map_size`. Default: 1 GiB, at least 1 MiB.
    pub map_size: usize,
    /// Bytes that the index may grow to; beyond it appends fail with `Full`. An index takes 40 bytes an event
    /// where ids ascend, and up to 150 where they are random. Default: 1 TiB, at least `map_size`.
    pub max_map_size: usize,
    /// Whether the system reads more of the index from the disk than is asked for. It warms up sooner with it; look-ups
    /// in an index that is larger than memory are faster without it. Default: true.
    pub read_ahead: bool,
    /// How the store queues and groups appends.
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

    /// The options that a URL names.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](eventstore_api::Error::InvalidOption) for an option that is unknown, cannot be read, or is out
    /// of its range.
    pub fn from_url(url: &StoreUrl) -> Result<Self> {
        let mut options = Options::new(&url.path);
        let mut given = UrlOptions::new(url);
        given.take_flag("create_if_missing", &mut options.create_if_missing)?;
        given.take_bytes("map_size", &mut options.map_size)?;
        given.take_bytes("max_map_size", &mut options.max_map_size)?;
        given.take_flag("read_ahead", &mut options.read_ahead)?;
        if url.options.iter().all(|(name, _)| name != "map_size") {
            options.map_size = options.map_size.min(options.max_map_size); // a small store needs only to say one of them
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

/// What x86-64 and AArch64 can map, with room for everything else in the process.
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

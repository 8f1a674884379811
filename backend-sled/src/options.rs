use std::path::PathBuf;

use eventstore_api::Result;
use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, check_range};

/// Options of a sled store.
///
/// In a URL, each option has its field's name: `sled:./data?cache_capacity=1GiB&durability=buffered`. The options of
/// [`StoreOptions`] may be in the URL as well.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The store's directory, created if it is missing.
    pub path: PathBuf,
    /// Whether to create a store if the directory has none; if false, that is an error. Default: true.
    pub create_if_missing: bool,
    /// The size of sled's page cache in bytes, measured by the pages' size on disk; in memory they take five to six
    /// times as much. The index takes about 150 bytes per event. Default: 64 MiB, at least 1 MiB.
    pub cache_capacity: usize,
    /// Options of the store itself, the same for every engine: queue, group commit, log and caches.
    pub store: StoreOptions,
}

impl Options {
    /// The default options for a store in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Options { path: path.into(), create_if_missing: true, cache_capacity: 64 << 20, store: StoreOptions::default() }
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
        given.take_bytes("cache_capacity", &mut options.cache_capacity)?;
        options.store.take_from(&mut given)?;
        given.finish()?;
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_range("cache_capacity", self.cache_capacity, 1 << 20, 1 << 40)?;
        self.store.validate()
    }
}

#[cfg(test)]
mod tests {
    use eventstore_api::Error;

    use super::*;

    #[test]
    fn every_option_can_stand_in_a_url() {
        let url = "sled:./d?cache_capacity=2MiB&queue_requests=3&durability=buffered&create_if_missing=false";
        let options = Options::from_url(&url.parse().expect("url")).expect("options");
        assert_eq!(options.cache_capacity, 2 << 20);
        assert_eq!((options.store.queue_requests, options.create_if_missing), (3, false));
        assert_eq!(options.path, PathBuf::from("./d"));
        let unknown = Options::from_url(&"sled:./d?use_compression=true".parse().expect("url"));
        assert!(matches!(unknown, Err(Error::InvalidOption { option, .. }) if option == "use_compression"));
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
        assert_eq!(refused(|options| options.cache_capacity = 4096), "cache_capacity");
        assert_eq!(refused(|options| options.cache_capacity = usize::MAX), "cache_capacity");
        assert_eq!(refused(|options| options.store.queue_requests = 0), "queue_requests");
    }
}

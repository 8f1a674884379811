//! The floors: each engine itself, with the same three puts an event in one commit, and the same reads with values copied.

#![cfg_attr(not(any(feature = "lmdb", feature = "rocksdb", feature = "sled")), allow(unused))]

use std::path::Path;

use eventstore::backend::{Event, PageSize};

/// An engine with three tables and nothing around them.
pub(crate) trait Raw {
    /// Commits the three puts of each event, durable when it returns.
    fn append(&self, batch: &[Event]);

    /// Copies each value into a buffer of its own and keeps a page of them, as a program does that hands values out.
    fn scan(&self) -> u64;

    /// Copies the values of a page behind one another into one buffer: the least that any reading can cost.
    fn scan_into_one_buffer(&self) -> u64;

    /// Copies the values of an aggregate's events, and counts them.
    fn load_aggregate(&self, aggregate_id: &str) -> u64;

    /// Copies the value of the event with this key of the id table.
    fn get(&self, id: &[u8]) -> Vec<u8>;

    /// Every 97th key of the id table.
    fn some_ids(&self) -> Vec<Vec<u8>>;
}

/// Opens the raw engine of a backend in a directory.
pub(crate) fn open(backend: &str, path: &Path) -> Option<Box<dyn Raw>> {
    match backend {
        #[cfg(feature = "lmdb")]
        "lmdb" => Some(Box::new(crate::raw_lmdb::RawLmdb::open(path))),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Some(Box::new(crate::raw_rocksdb::RawRocksDb::open(path))),
        #[cfg(feature = "sled")]
        "sled" => Some(Box::new(crate::raw_sled::RawSled::open(path))),
        _ => None,
    }
}

/// Values that are kept until a page of them is full.
#[derive(Default)]
pub(crate) struct Pages<P> {
    page: P,
    count: u64,
}

impl<P: Default> Pages<P> {
    /// Takes one value up, as `copy` does it.
    pub(crate) fn take(&mut self, value: &[u8], copy: impl Fn(&mut P, &[u8])) {
        copy(&mut self.page, value);
        self.count += 1;
        if self.count.is_multiple_of(PageSize::LARGEST.events as u64) {
            drop(std::hint::black_box(std::mem::take(&mut self.page)));
        }
    }

    /// How many were taken up.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// The key of an aggregate's revision.
pub(crate) fn aggregate_key(aggregate_id: &str, revision: u64) -> Vec<u8> {
    [aggregate_id.as_bytes(), &[0xff], &revision.to_be_bytes()].concat()
}

/// The 16 bytes of an id that is a UUID.
pub(crate) fn id_key(id: &str) -> Vec<u8> {
    uuid::Uuid::try_parse(id).expect("a UUID").into_bytes().to_vec()
}

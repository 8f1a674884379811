//! RocksDB itself.
//!
//! With a log of its own and as much cache as the store has for its log and its index; tables are compressed with LZ4, and those
//! of ids have filters.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use eventstore::backend::Event;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, IteratorMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

use crate::raw::{Pages, Raw, aggregate_key, id_key};

pub(crate) struct RawRocksDb {
    db: DB,
    synced: WriteOptions,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    revisions: HashMap<String, u64>,
}

impl RawRocksDb {
    pub(crate) fn open(path: &Path) -> Self {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_total_wal_size(64 << 20);
        options.set_bytes_per_sync(1 << 20);
        let cache = Cache::new_lru_cache(128 << 20);
        let family = |name, block_size, with_filter| {
            let mut blocks = BlockBasedOptions::default();
            blocks.set_block_cache(&cache);
            blocks.set_block_size(block_size);
            if with_filter {
                blocks.set_bloom_filter(10.0, false);
            }
            let mut options = Options::default();
            options.set_block_based_table_factory(&blocks);
            options.set_write_buffer_size(32 << 20);
            options.set_max_write_buffer_number(4);
            options.set_compression_type(DBCompressionType::Lz4);
            ColumnFamilyDescriptor::new(name, options)
        };
        let families =
            [family("events", 16 << 10, false), family("ids", 4 << 10, true), family("aggregates", 4 << 10, false)];
        let db = DB::open_cf_descriptors(&options, path, families).expect("opened");
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        RawRocksDb { db, synced, state: RefCell::default() }
    }

    fn table(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("opened")
    }

    fn scan_pages<P: Default>(&self, copy: impl Fn(&mut P, &[u8])) -> u64 {
        let mut pages = Pages::default();
        let mut entries = self.db.raw_iterator_cf(self.table("events"));
        entries.seek_to_first();
        while let Some(value) = entries.value() {
            pages.take(value, &copy);
            entries.next();
        }
        entries.status().expect("read");
        pages.count()
    }
}

impl Raw for RawRocksDb {
    fn append(&self, batch: &[Event]) {
        let mut state = self.state.borrow_mut();
        let (events, ids, aggregates) = (self.table("events"), self.table("ids"), self.table("aggregates"));
        let mut writes = WriteBatch::default();
        for event in batch {
            state.version += 1;
            let version = state.version.to_be_bytes();
            let revision = state.revisions.entry(event.aggregate_id().to_owned()).or_default();
            *revision += 1;
            writes.put_cf(events, version, event.bytes());
            writes.put_cf(ids, id_key(event.id()), version);
            writes.put_cf(aggregates, aggregate_key(event.aggregate_id(), *revision), version);
        }
        self.db.write_opt(writes, &self.synced).expect("committed");
    }

    fn scan(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<Vec<u8>>, value| page.push(value.to_vec()))
    }

    fn scan_into_one_buffer(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<u8>, value| page.extend_from_slice(value))
    }

    fn load_aggregate(&self, aggregate_id: &str) -> u64 {
        let events = self.table("events");
        let first = aggregate_key(aggregate_id, 0);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(aggregate_key(aggregate_id, u64::MAX));
        let mut entries = self.db.raw_iterator_cf_opt(self.table("aggregates"), options);
        let mut count = 0;
        entries.seek(first);
        while let Some(version) = entries.value() {
            let value = self.db.get_pinned_cf(events, version).expect("read").expect("found");
            count += std::hint::black_box(value.to_vec()).len().min(1) as u64;
            entries.next();
        }
        entries.status().expect("read");
        count
    }

    fn get(&self, id: &[u8]) -> Vec<u8> {
        let version = self.db.get_pinned_cf(self.table("ids"), id).expect("read").expect("found");
        self.db.get_pinned_cf(self.table("events"), version).expect("read").expect("found").to_vec()
    }

    fn some_ids(&self) -> Vec<Vec<u8>> {
        let keys = self.db.iterator_cf(self.table("ids"), IteratorMode::Start);
        keys.step_by(97).map(|entry| entry.expect("entry").0.to_vec()).collect()
    }
}

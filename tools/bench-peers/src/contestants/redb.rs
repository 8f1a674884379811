//! redb itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;

use anyhow::Result;
use eventstore::backend::Event;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::raw::{ENGINE, Engine};
use super::{Contestant, file};
use crate::raw::{Pages, Raw, aggregate_key, id_key};

pub(super) const CONTESTANT: Contestant = Contestant {
    name: "redb",
    by_default: false,
    settings: "three tables, 128 MiB of cache; Durability::Immediate with one phase and without quick repair, the defaults",
    open: |path| Ok(Engine::new(RawRedb::open(path)?)),
    ..ENGINE
};

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const EVENTS: Table = TableDefinition::new("events");
const IDS: Table = TableDefinition::new("ids");
const AGGREGATES: Table = TableDefinition::new("aggregates");

struct RawRedb {
    db: Database,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    revisions: HashMap<String, u64>,
}

impl RawRedb {
    fn open(path: &Path) -> Result<Self> {
        let db = Database::builder().set_cache_size(128 << 20).create(file(path))?;
        let txn = db.begin_write()?;
        for table in [EVENTS, IDS, AGGREGATES] {
            txn.open_table(table)?;
        }
        txn.commit()?;
        Ok(RawRedb { db, state: RefCell::default() })
    }

    fn table(&self, table: Table) -> redb::ReadOnlyTable<&'static [u8], &'static [u8]> {
        self.db.begin_read().expect("transaction").open_table(table).expect("created")
    }

    fn scan_pages<P: Default>(&self, copy: impl Fn(&mut P, &[u8])) -> u64 {
        let mut pages = Pages::default();
        for entry in self.table(EVENTS).iter().expect("iterator") {
            pages.take(entry.expect("entry").1.value(), &copy);
        }
        pages.count()
    }
}

impl Raw for RawRedb {
    fn append(&self, batch: &[Event]) {
        let mut state = self.state.borrow_mut();
        let txn = self.db.begin_write().expect("transaction");
        {
            let [mut events, mut ids, mut aggregates] =
                [EVENTS, IDS, AGGREGATES].map(|table| txn.open_table(table).expect("created"));
            for event in batch {
                state.version += 1;
                let version = state.version.to_be_bytes();
                let revision = state.revisions.entry(event.aggregate_id().to_owned()).or_default();
                *revision += 1;
                let aggregate = aggregate_key(event.aggregate_id(), *revision);
                events.insert(version.as_slice(), event.bytes().as_ref()).expect("put");
                ids.insert(id_key(event.id()).as_slice(), version.as_slice()).expect("put");
                aggregates.insert(aggregate.as_slice(), version.as_slice()).expect("put");
            }
        }
        txn.commit().expect("committed");
    }

    fn scan(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<Vec<u8>>, value| page.push(value.to_vec()))
    }

    fn scan_into_one_buffer(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<u8>, value| page.extend_from_slice(value))
    }

    fn load_aggregate(&self, aggregate_id: &str) -> u64 {
        let (first, last) = (aggregate_key(aggregate_id, 0), aggregate_key(aggregate_id, u64::MAX));
        let txn = self.db.begin_read().expect("transaction");
        let [events, aggregates] = [EVENTS, AGGREGATES].map(|table| txn.open_table(table).expect("created"));
        let mut count = 0;
        for entry in aggregates.range(first.as_slice()..=last.as_slice()).expect("range") {
            let value = events.get(entry.expect("entry").1.value()).expect("read").expect("found");
            count += black_box(value.value().to_vec()).len().min(1) as u64;
        }
        count
    }

    fn get(&self, id: &[u8]) -> Vec<u8> {
        let txn = self.db.begin_read().expect("transaction");
        let [events, ids] = [EVENTS, IDS].map(|table| txn.open_table(table).expect("created"));
        let version = ids.get(id).expect("read").expect("found");
        events.get(version.value()).expect("read").expect("found").value().to_vec()
    }

    fn some_ids(&self) -> Vec<Vec<u8>> {
        let ids = self.table(IDS);
        let keys = ids.iter().expect("iterator").map(|entry| entry.expect("entry").0.value().to_vec());
        keys.step_by(97).collect()
    }
}

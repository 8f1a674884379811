//! LMDB itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Bound::Included;
use std::path::Path;

use eventstore::backend::Event;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, PutFlags, WithoutTls};

use crate::raw::{Pages, Raw, aggregate_key, id_key};

type Table = Database<'static, Bytes, Bytes>;

pub(crate) struct RawLmdb {
    env: Env<WithoutTls>,
    events: Table,
    ids: Table,
    aggregates: Table,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    revisions: HashMap<String, u64>,
}

impl RawLmdb {
    pub(crate) fn open(path: &Path) -> Self {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(16 << 30).max_dbs(3);
        // SAFETY: the directory was made for this benchmark, which opens it once.
        let env = unsafe { options.open(path) }.expect("opened");
        let txn = env.write_txn().expect("transaction");
        let tables = env.create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
            let mut create = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name));
            Ok(CommitOrAbort::<_, ()>::Commit([create("events")?, create("ids")?, create("aggregates")?]))
        });
        let [events, ids, aggregates] = tables.expect("created").unwrap_commit();
        RawLmdb { env, events, ids, aggregates, state: RefCell::default() }
    }

    fn scan_pages<P: Default>(&self, copy: impl Fn(&mut P, &[u8])) -> u64 {
        let txn = self.env.read_txn().expect("transaction");
        let mut pages = Pages::default();
        for entry in self.events.iter(&txn).expect("iterator") {
            pages.take(entry.expect("entry").1, &copy);
        }
        pages.count()
    }
}

impl Raw for RawLmdb {
    fn append(&self, batch: &[Event]) {
        let mut state = self.state.borrow_mut();
        let mut txn = self.env.write_txn().expect("transaction");
        for event in batch {
            state.version += 1;
            let version = state.version.to_be_bytes();
            let revision = state.revisions.entry(event.aggregate_id().to_owned()).or_default();
            *revision += 1;
            let record = event.bytes();
            let aggregate = aggregate_key(event.aggregate_id(), *revision);
            self.events.put_with_flags(&mut txn, PutFlags::APPEND, &version, record).expect("put");
            self.ids.put(&mut txn, &id_key(event.id()), &version).expect("put");
            self.aggregates.put(&mut txn, &aggregate, &version).expect("put");
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
        let txn = self.env.read_txn().expect("transaction");
        let (first, last) = (aggregate_key(aggregate_id, 0), aggregate_key(aggregate_id, u64::MAX));
        let mut count = 0;
        for entry in
            self.aggregates.range(&txn, &(Included(first.as_slice()), Included(last.as_slice()))).expect("range")
        {
            let (_, version) = entry.expect("entry");
            let value = self.events.get(&txn, version).expect("read").expect("found");
            count += std::hint::black_box(value.to_vec()).len().min(1) as u64;
        }
        count
    }

    fn get(&self, id: &[u8]) -> Vec<u8> {
        let txn = self.env.read_txn().expect("transaction");
        let version = self.ids.get(&txn, id).expect("read").expect("found");
        self.events.get(&txn, version).expect("read").expect("found").to_vec()
    }

    fn some_ids(&self) -> Vec<Vec<u8>> {
        let txn = self.env.read_txn().expect("transaction");
        let keys = self.ids.iter(&txn).expect("iterator").map(|entry| entry.expect("entry").0.to_vec());
        keys.step_by(97).collect()
    }
}

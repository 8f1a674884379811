//! The floor: LMDB itself, with the same three puts an event in one transaction, and the same reads with values copied.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Bound::Included;
use std::path::Path;

use eventstore::{Event, PageSize};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, PutFlags, WithoutTls};

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

    pub(crate) fn append(&self, batch: &[Event]) {
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

    /// Copies each value into a buffer of its own and keeps a page of them, as a program does that hands values out.
    pub(crate) fn scan(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<Vec<u8>>, value| page.push(value.to_vec()))
    }

    /// Copies the values of a page behind one another into one buffer: the least that any reading can cost.
    pub(crate) fn scan_into_one_buffer(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<u8>, value| page.extend_from_slice(value))
    }

    fn scan_pages<P: Default>(&self, copy: impl Fn(&mut P, &[u8])) -> u64 {
        let txn = self.env.read_txn().expect("transaction");
        let mut page = P::default();
        let mut count = 0;
        for entry in self.events.iter(&txn).expect("iterator") {
            let (_, value) = entry.expect("entry");
            copy(&mut page, value);
            count += 1;
            if count % PageSize::LARGEST.events as u64 == 0 {
                drop(std::hint::black_box(std::mem::take(&mut page)));
            }
        }
        count
    }

    pub(crate) fn load_aggregate(&self, aggregate_id: &str) -> u64 {
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

    pub(crate) fn get(&self, id: &[u8]) -> Vec<u8> {
        let txn = self.env.read_txn().expect("transaction");
        let version = self.ids.get(&txn, id).expect("read").expect("found");
        self.events.get(&txn, version).expect("read").expect("found").to_vec()
    }

    /// Every 97th key of the id index.
    pub(crate) fn some_ids(&self) -> Vec<Vec<u8>> {
        let txn = self.env.read_txn().expect("transaction");
        let keys = self.ids.iter(&txn).expect("iterator").map(|entry| entry.expect("entry").0.to_vec());
        keys.step_by(97).collect()
    }
}

fn aggregate_key(aggregate_id: &str, revision: u64) -> Vec<u8> {
    [aggregate_id.as_bytes(), &[0xff], &revision.to_be_bytes()].concat()
}

/// The 16 bytes of the UUID, as the store keeps it.
fn id_key(id: &str) -> Vec<u8> {
    let digits: Vec<u8> = id.bytes().filter(|&byte| byte != b'-').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex")).collect()
}

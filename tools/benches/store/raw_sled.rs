//! sled itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use eventstore::backend::Event;
use sled::{Batch, Db};

use crate::raw::{self, Pages, Raw};

const EVENTS: u8 = 1;
const IDS: u8 = 2;
const AGGREGATES: u8 = 3;

pub(crate) struct RawSled {
    db: Db,
    /// sled's own file, to sync what sled only hands to the disk.
    file: File,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    revisions: HashMap<String, u64>,
}

impl RawSled {
    pub(crate) fn open(path: &Path) -> Self {
        let db = sled::Config::new().path(path).cache_capacity(128 << 20).flush_every_ms(None).open().expect("opened");
        let file = File::options().write(true).open(path.join("db")).expect("opened");
        RawSled { db, file, state: RefCell::default() }
    }

    fn scan_pages<P: Default>(&self, copy: impl Fn(&mut P, &[u8])) -> u64 {
        let mut pages = Pages::default();
        for entry in self.db.scan_prefix([EVENTS]) {
            pages.take(&entry.expect("entry").1, &copy);
        }
        pages.count()
    }
}

impl Raw for RawSled {
    fn append(&self, batch: &[Event]) {
        let mut state = self.state.borrow_mut();
        let mut puts = Batch::default();
        for event in batch {
            state.version += 1;
            let version = state.version.to_be_bytes();
            let revision = state.revisions.entry(event.aggregate_id().to_owned()).or_default();
            *revision += 1;
            let aggregate = aggregate_key(event.aggregate_id(), *revision);
            puts.insert(event_key(&version).as_slice(), event.bytes().as_ref());
            puts.insert(id_key(event.id()), version.as_slice());
            puts.insert(aggregate, version.as_slice());
        }
        self.db.apply_batch(puts).expect("applied");
        self.db.flush().expect("flushed");
        self.file.sync_data().expect("synced");
    }

    fn scan(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<Vec<u8>>, value| page.push(value.to_vec()))
    }

    fn scan_into_one_buffer(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<u8>, value| page.extend_from_slice(value))
    }

    fn load_aggregate(&self, aggregate_id: &str) -> u64 {
        let mut count = 0;
        for entry in self.db.range(aggregate_key(aggregate_id, 0)..=aggregate_key(aggregate_id, u64::MAX)) {
            let (_, version) = entry.expect("entry");
            let value = self.db.get(event_key(&version)).expect("read").expect("found");
            count += std::hint::black_box(value.to_vec()).len().min(1) as u64;
        }
        count
    }

    fn get(&self, id: &[u8]) -> Vec<u8> {
        let version = self.db.get(id).expect("read").expect("found");
        self.db.get(event_key(&version)).expect("read").expect("found").to_vec()
    }

    fn some_ids(&self) -> Vec<Vec<u8>> {
        let keys = self.db.scan_prefix([IDS]).keys().map(|key| key.expect("entry").to_vec());
        keys.step_by(97).collect()
    }
}

fn event_key(version: &[u8]) -> [u8; 9] {
    let mut key = [EVENTS; 9];
    key[1..].copy_from_slice(version);
    key
}

/// An aggregate's key, in its table.
fn aggregate_key(aggregate_id: &str, revision: u64) -> Vec<u8> {
    [&[AGGREGATES], raw::aggregate_key(aggregate_id, revision).as_slice()].concat()
}

/// An id's key, in its table.
fn id_key(id: &str) -> Vec<u8> {
    [&[IDS], raw::id_key(id).as_slice()].concat()
}

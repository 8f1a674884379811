//! fjall itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;

use eventstore::backend::Event;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::Contestant;
use super::raw::{ENGINE, Engine};
use crate::raw::{Pages, Raw, aggregate_key, id_key};

pub(super) const CONTESTANT: Contestant = Contestant {
    name: "raw-fjall",
    settings: "three keyspaces with defaults, 128 MiB of cache; a write batch with PersistMode::SyncData, which is fdatasync",
    open: |path| Ok(Engine::new(RawFjall::open(path)?)),
    ..ENGINE
};

struct RawFjall {
    db: Database,
    events: Keyspace,
    ids: Keyspace,
    aggregates: Keyspace,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    revisions: HashMap<String, u64>,
}

impl RawFjall {
    fn open(path: &Path) -> fjall::Result<Self> {
        let db = Database::builder(path).cache_size(128 << 20).open()?;
        let keyspace = |name| db.keyspace(name, KeyspaceCreateOptions::default);
        let (events, ids, aggregates) = (keyspace("events")?, keyspace("ids")?, keyspace("aggregates")?);
        Ok(RawFjall { db, events, ids, aggregates, state: RefCell::default() })
    }

    fn scan_pages<P: Default>(&self, copy: impl Fn(&mut P, &[u8])) -> u64 {
        let mut pages = Pages::default();
        for entry in self.events.iter() {
            pages.take(&entry.value().expect("read"), &copy);
        }
        pages.count()
    }
}

impl Raw for RawFjall {
    fn append(&self, batch: &[Event]) {
        let mut state = self.state.borrow_mut();
        let mut writes = self.db.batch().durability(Some(PersistMode::SyncData));
        for event in batch {
            state.version += 1;
            let version = state.version.to_be_bytes();
            let revision = state.revisions.entry(event.aggregate_id().to_owned()).or_default();
            *revision += 1;
            writes.insert(&self.events, version, event.bytes().as_ref());
            writes.insert(&self.ids, id_key(event.id()), version);
            writes.insert(&self.aggregates, aggregate_key(event.aggregate_id(), *revision), version);
        }
        writes.commit().expect("committed");
    }

    fn scan(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<Vec<u8>>, value| page.push(value.to_vec()))
    }

    fn scan_into_one_buffer(&self) -> u64 {
        self.scan_pages(|page: &mut Vec<u8>, value| page.extend_from_slice(value))
    }

    fn load_aggregate(&self, aggregate_id: &str) -> u64 {
        let mut count = 0;
        for entry in self.aggregates.range(aggregate_key(aggregate_id, 0)..=aggregate_key(aggregate_id, u64::MAX)) {
            let version = entry.value().expect("read");
            let value = self.events.get(version).expect("read").expect("found");
            count += black_box(value.to_vec()).len().min(1) as u64;
        }
        count
    }

    fn get(&self, id: &[u8]) -> Vec<u8> {
        let version = self.ids.get(id).expect("read").expect("found");
        self.events.get(version).expect("read").expect("found").to_vec()
    }

    fn some_ids(&self) -> Vec<Vec<u8>> {
        self.ids.iter().step_by(97).map(|entry| entry.key().expect("read").to_vec()).collect()
    }
}

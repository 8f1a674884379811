//! Common parts of the tests of replicas.

#![allow(dead_code, reason = "each test uses a part of it")]

use eventstore::{Event, Store};
use synckit::{Options, Replica};
use tempfile::TempDir;

/// A hub in memory, and a directory for its replicas.
pub(crate) struct Hub {
    pub(crate) store: Store,
    pub(crate) directory: TempDir,
}

impl Hub {
    pub(crate) async fn new() -> Self {
        let store = eventstore::open("memory:").await.expect("memory");
        Hub { store, directory: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn options(&self, name: &str) -> Options {
        Options::new(self.path(name)).hub_store(self.store.clone())
    }

    pub(crate) async fn replica(&self, name: &str) -> Replica {
        self.options(name).open().await.expect("a replica")
    }
}

pub(crate) fn event(id: &str, aggregate_id: &str) -> Event {
    Event::builder("Happened", aggregate_id).id(id).data(format!("{{\"of\":\"{id}\"}}")).build().expect("valid")
}

pub(crate) async fn ids(replica: &Replica) -> Vec<String> {
    let loaded = replica.load().await.expect("a load");
    loaded.entries.iter().map(|entry| entry.event().id().to_owned()).collect()
}

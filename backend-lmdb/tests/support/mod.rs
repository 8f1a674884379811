//! What the tests of the files have in common.

#![allow(dead_code, reason = "each test target uses some of it")]

use std::path::Path;

use backend_lmdb::{LmdbStore, Options};
use eventstore_api::{Context, Error, Event, EventStoreExt, Expected, Version};
use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions};

pub(crate) fn ctx() -> Context {
    Context::background()
}

pub(crate) fn event(id: &str, data: impl Into<Vec<u8>>) -> Event {
    Event::builder("Tested", "aggregate").id(id).data(data.into()).build().unwrap()
}

pub(crate) async fn store(store: &LmdbStore, id: &str, data: impl Into<Vec<u8>>) -> Result<Version, Error> {
    store.store(&ctx(), event(id, data), Expected::Any).await.map(|stored| stored.version)
}

pub(crate) async fn versions(store: &LmdbStore) -> Vec<u64> {
    let events = store.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
    events.iter().map(|event| event.version.get()).collect()
}

pub(crate) fn small(directory: &Path, max_map_size: usize) -> Options {
    let mut options = Options::new(directory);
    options.map_size = 1 << 20;
    options.max_map_size = max_map_size;
    options
}

/// The index tables lead to every event but the newest.
pub(crate) fn indexed(directory: &Path) -> Options {
    let mut options = Options::new(directory);
    options.store.index_events = 1;
    options
}

/// Puts a value into a table behind the store's back.
pub(crate) fn put(directory: &Path, table: &str, key: &[u8], value: Option<&[u8]>) {
    let mut options = EnvOpenOptions::new();
    // SAFETY: the store is closed, and the test opens the files alone.
    let env = unsafe { options.max_dbs(4).map_size(1 << 30).open(directory) }.unwrap();
    let txn = env.write_txn().unwrap();
    let done = env.create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
        let table = opener.create_database::<Bytes, Bytes>(txn, Some(table))?;
        match value {
            Some(value) => table.put(txn, key, value)?,
            None => assert!(table.delete(txn, key)?),
        }
        Ok(CommitOrAbort::<_, ()>::Commit(table))
    });
    done.unwrap();
}

/// The value of a key in a table.
pub(crate) fn get(directory: &Path, table: &str, key: &[u8]) -> Vec<u8> {
    let mut options = EnvOpenOptions::new();
    // SAFETY: as above.
    let env = unsafe { options.max_dbs(4).map_size(1 << 30).open(directory) }.unwrap();
    let txn = env.read_txn().unwrap();
    let table = env.open_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
        Ok(CommitOrAbort::<_, ()>::Commit(opener.open_database::<Bytes, Bytes>(txn, Some(table))?))
    });
    let table = table.unwrap().unwrap_commit().unwrap();
    let txn = env.read_txn().unwrap();
    table.get(&txn, key).unwrap().unwrap().to_vec()
}

//! A store in memory: for tests, and for programs that want no files. Its content ends with it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use eventstore_api::{Direction, Durability, Error, Gc, Result};

use crate::engine::{CommitError, Engine, KeyRange, Snapshot, Table, WriteBatch};
use crate::sync::{PoisonError, RwLock, RwLockReadGuard};
use crate::{KvStore, StoreDirectory, StoreOptions, Task};

/// An event store in memory.
pub type MemoryStore = KvStore<MemoryEngine>;

/// Opens a new, empty store in memory. Each call makes another one; clone the handle to share one.
///
/// # Errors
///
/// [`InvalidOption`](eventstore_api::Error::InvalidOption).
pub fn open(options: StoreOptions) -> Result<MemoryStore> {
    KvStore::open(MemoryEngine::default(), options)
}

type Tables = [BTreeMap<Vec<u8>, Vec<u8>>; Table::ALL.len()];

/// The engine of [`MemoryStore`]: a sorted map per table.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    tables: RwLock<Tables>,
}

impl Engine for MemoryEngine {
    type Snapshot<'a> = MemorySnapshot<'a>;

    fn name(&self) -> &'static str {
        "memory"
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(MemorySnapshot(self.tables.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn commit(&self, batch: &WriteBatch, _: Durability) -> Result<(), CommitError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for table in Table::ALL {
            tables[table.index()].extend(batch.puts(table).map(|(key, value)| (key.to_vec(), value.to_vec())));
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        None
    }

    fn run_gc(&self, _: Gc, _: &Task<'_>) -> Result<Vec<String>> {
        Ok(vec!["nothing to do: a store in memory has no garbage".to_owned()])
    }

    fn backup(&self, _: StoreDirectory, _: &Task<'_>) -> Result<Self> {
        Err(no_files())
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }
}

/// Why a store in memory takes no backups.
pub(crate) fn no_files() -> Error {
    Error::Unsupported {
        what: "a store in memory has no files to back up; copy its events into another store".to_owned(),
    }
}

/// A view of a [`MemoryEngine`]; commits wait while it is alive.
#[derive(Debug)]
pub struct MemorySnapshot<'a>(RwLockReadGuard<'a, Tables>);

impl Snapshot for MemorySnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let value = self.0[table.index()].get(key);
        if let Some(value) = value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        let mut entries = self.0[table.index()]
            .range::<[u8], _>((std::ops::Bound::Included(range.first), std::ops::Bound::Included(range.last)));
        while let Some((key, value)) = match direction {
            Direction::Forward => entries.next(),
            Direction::Backward => entries.next_back(),
        } {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

//! A store in memory: for tests, and for programs that need no files. Its content is lost when it is closed.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use eventstore_api::{Direction, Error, Result};
use eventstore_log::MemoryDirectory;

use crate::engine::{Engine, Entries, KeyRange, Snapshot, Table};
use crate::files::directory::new_id;
use crate::sync::{PoisonError, RwLock, RwLockReadGuard};
use crate::{KvStore, StoreOptions, Task};

/// An event store in memory.
pub type MemoryStore = KvStore<MemoryEngine>;

/// Opens a new, empty store in memory. Each call creates another one; clone the handle to share one.
///
/// # Errors
///
/// [`InvalidOption`](eventstore_api::Error::InvalidOption).
pub fn open(options: StoreOptions) -> Result<MemoryStore> {
    KvStore::with_id(new_id().into_bytes(), Arc::new(MemoryDirectory::default()), (), options)
}

type Tables = [BTreeMap<Vec<u8>, Vec<u8>>; Table::ALL.len()];

/// The engine of [`MemoryStore`]: a sorted map per table.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    tables: RwLock<Tables>,
}

impl Engine for MemoryEngine {
    const NAME: &'static str = "memory";
    type Options = ();
    type Snapshot<'a> = MemorySnapshot<'a>;

    fn open(_: &Path, (): &()) -> Result<Self> {
        Ok(MemoryEngine::default())
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(MemorySnapshot(self.tables.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for table in Table::ALL {
            tables[table.index()].extend(entries.of(table).map(|(key, value)| (key.to_vec(), value.to_vec())));
        }
        Ok(())
    }

    fn compact(&self, _: &Task<'_>) -> Result<Vec<String>> {
        Ok(vec!["nothing to do: a store in memory has no garbage".to_owned()])
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }
}

/// The error for a backup of a store in memory.
pub(crate) fn no_files() -> Error {
    Error::Unsupported { what: "a memory store has no files to back up; copy its events to another store".to_owned() }
}

/// A view of a [`MemoryEngine`]. Writes wait while it is alive.
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
        if range.first > range.last {
            return Ok(());
        }
        let bounds = (Bound::Included(range.first), Bound::Included(range.last));
        let mut entries = self.0[table.index()].range::<[u8], _>(bounds);
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

//! A cache of aggregates: the versions of all events of each, as far as the engine's tables have them.
//!
//! Aggregates are often loaded repeatedly, before each command. The cache saves reading the engine then.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::recent::Recent;
use crate::sync::{Mutex, PoisonError};

/// Aggregates with more events are not cached.
pub(crate) const MOST_EVENTS: usize = 4096;

/// The approximate size of an entry in bytes, apart from its text and versions.
const OVERHEAD: usize = 96;

/// For each cached aggregate, the versions of its first events, one for each revision from 1 on.
///
/// Events never change, so everything in the cache stays valid. All other events of a cached aggregate are in memory,
/// among those that are not written to the tables yet. So entries must be updated when events are written, and nobody
/// may add one meanwhile.
pub(crate) struct Aggregates {
    cache: Cache<String, Arc<[u64]>, Bytewise>,
    epoch: Mutex<Epoch>,
}

/// The period between two changes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    number: u64,
    is_changing: bool,
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<String, Arc<[u64]>> for Bytewise {
    fn weight(&self, id: &String, versions: &Arc<[u64]>) -> u64 {
        (id.len() + size_of_val(&versions[..]) + OVERHEAD) as u64
    }
}

impl Aggregates {
    /// A cache of at most this many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let cache = Cache::with_weighter(bytes / 256, bytes as u64, Bytewise);
        Aggregates { cache, epoch: Mutex::new(Epoch { number: 0, is_changing: false }) }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, aggregate_id: &str) -> Option<Arc<[u64]>> {
        self.cache.get(aggregate_id)
    }

    /// Adds the versions of all events of an aggregate, except those that were not in the tables in this epoch.
    pub(crate) fn insert(&self, read_in: Epoch, aggregate_id: &str, versions: &[u64]) {
        if versions.is_empty() || versions.len() > MOST_EVENTS {
            return;
        }
        let epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if *epoch == read_in && !epoch.is_changing {
            self.cache.insert(aggregate_id.to_owned(), versions.into());
        }
    }

    /// From now on, the tables have these events. `end` makes that visible to views.
    pub(crate) fn written(&self, events: &Recent, end: impl FnOnce()) {
        self.set_changing(true);
        events.for_each_aggregate(|aggregate_id, first_revision, versions| {
            let Some(before) = self.cache.peek(aggregate_id) else { return };
            let is_next = before.len() as u64 + 1 == first_revision && before.len() + versions.len() <= MOST_EVENTS;
            if is_next {
                self.cache.insert(aggregate_id.to_owned(), before.iter().copied().chain(versions).collect());
            } else {
                self.cache.remove(aggregate_id);
            }
        });
        end();
        self.set_changing(false);
    }

    fn set_changing(&self, is_changing: bool) {
        let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        *epoch = Epoch { number: epoch.number + 1, is_changing };
    }
}

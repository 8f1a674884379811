//! A cache of aggregates: the versions of all events of each, as far as the engine's tables lead to them.
//!
//! Aggregates are often loaded again, before each command. Then the engine is not read.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::recent::Recent;
use crate::sync::{Mutex, PoisonError};

/// An aggregate with more events is not kept.
pub(crate) const MOST_EVENTS: usize = 4096;

/// About so many bytes an entry takes beside its text and its versions.
const OVERHEAD: usize = 96;

/// For each aggregate in it the versions of its first events, one for each revision from 1 on.
///
/// Whatever is in it is right, for events never change. And of an aggregate that is in it, every other event is in memory, among
/// those that are not written to the tables yet. So entries change when events are written, and nobody adds one meanwhile.
pub(crate) struct Aggregates {
    cache: Cache<String, Arc<[u64]>, Bytewise>,
    epoch: Mutex<Epoch>,
}

/// The times between two changes of the tables.
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
    /// Takes at most so many bytes.
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

    /// Adds the versions of all events of an aggregate but those that were not written to the tables in this epoch.
    pub(crate) fn insert(&self, read_in: Epoch, aggregate_id: &str, versions: &[u64]) {
        if versions.is_empty() || versions.len() > MOST_EVENTS {
            return;
        }
        let epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if *epoch == read_in && !epoch.is_changing {
            self.cache.insert(aggregate_id.to_owned(), versions.into());
        }
    }

    /// The tables lead to these events from now on. `end` makes that known to views.
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

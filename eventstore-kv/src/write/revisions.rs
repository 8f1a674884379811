//! The writer's cache of aggregates' newest revisions. An append to a cached aggregate does not read the engine, which
//! would take longer than the rest of the append if the tables are large.
//!
//! The key of an aggregate is a 128-bit hash with a secret seed, so that its id takes no memory. The least recently
//! used ones are evicted: there are two generations, and when the newer one is full, it becomes the older one.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The high and the low half of the hash: a single number would take 8 bytes more because of its alignment.
type Key = (u64, u64);

/// Including the map's control byte.
const BYTES_OF_ENTRY: usize = size_of::<(Key, u32)>() + 1;

pub(crate) struct Revisions {
    newer: HashMap<Key, u32>,
    older: HashMap<Key, u32>,
    /// The capacity of one generation.
    most: usize,
    seed: u64,
}

impl Revisions {
    /// An empty cache of at most this many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        // The capacity of a map is a power of two, of which it leaves an eighth free.
        let places = (bytes / 2 / BYTES_OF_ENTRY).checked_ilog2().map_or(0, |log| 1 << log);
        Revisions {
            newer: HashMap::new(),
            older: HashMap::new(),
            most: places / 8 * 7,
            seed: RandomState::new().hash_one(0),
        }
    }

    /// The newest revision of an aggregate, if it is cached.
    pub(crate) fn get(&mut self, aggregate_id: &str) -> Option<u64> {
        let key = self.key(aggregate_id);
        if let Some(&revision) = self.newer.get(&key) {
            return Some(revision.into());
        }
        let revision = self.older.remove(&key)?;
        self.insert(key, revision);
        Some(revision.into())
    }

    /// Caches the newest revision of an aggregate.
    pub(crate) fn put(&mut self, aggregate_id: &str, revision: u64) {
        let key = self.key(aggregate_id);
        self.older.remove(&key);
        match u32::try_from(revision) {
            Ok(revision) => self.insert(key, revision),
            Err(_) => drop(self.newer.remove(&key)),
        }
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        self.newer.clear();
        self.older.clear();
    }

    fn insert(&mut self, key: Key, revision: u32) {
        if self.newer.len() >= self.most && !self.newer.contains_key(&key) {
            if self.most == 0 {
                return;
            }
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert(key, revision);
    }

    fn key(&self, aggregate_id: &str) -> Key {
        let hash = xxh3_128_with_seed(aggregate_id.as_bytes(), self.seed);
        ((hash >> 64) as u64, hash as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Revisions {
        fn bytes(&self) -> usize {
            [&self.newer, &self.older].map(HashMap::allocation_size).iter().sum()
        }
    }

    #[test]
    fn what_is_remembered_is_the_newest() {
        let mut revisions = Revisions::new(1 << 20);
        assert_eq!(revisions.get("a"), None);
        revisions.put("a", 1);
        revisions.put("b", 7);
        revisions.put("a", 2);
        assert_eq!((revisions.get("a"), revisions.get("b"), revisions.get("c")), (Some(2), Some(7), None));
        revisions.put("a", u64::from(u32::MAX) + 1);
        assert_eq!(revisions.get("a"), None, "no room for so many");
        revisions.clear();
        assert_eq!(revisions.get("b"), None);
    }

    #[test]
    fn it_takes_no_more_bytes_than_it_may_and_forgets_what_was_not_used() {
        for budget in [0, 100, 10_000, 1 << 16, 1 << 20] {
            let mut revisions = Revisions::new(budget);
            for n in 0..50_000 {
                revisions.put(&n.to_string(), n);
                if n > 0 {
                    revisions.get("1");
                }
                assert!(revisions.bytes() <= budget, "{} of {budget}", revisions.bytes());
            }
            let kept = (0..50_000).rev().take_while(|n| revisions.get(&n.to_string()).is_some()).count();
            assert!(kept * 8 * BYTES_OF_ENTRY >= budget.saturating_sub(1000).min(50_000 * BYTES_OF_ENTRY), "{kept}");
            assert_eq!(revisions.get("1").is_some(), kept > 0);
            assert!(kept == 50_000 || revisions.get("2").is_none());
        }
    }

    proptest! {
        #[test]
        fn it_remembers_the_right_ones_or_none(steps in prop::collection::vec((0..200u64, 0..1000u64, any::<bool>()), 0..2000)) {
            let mut revisions = Revisions::new(2000);
            let mut all = std::collections::HashMap::new();
            for (id, revision, puts) in steps {
                if puts {
                    revisions.put(&id.to_string(), revision);
                    all.insert(id, revision);
                } else if let Some(found) = revisions.get(&id.to_string()) {
                    prop_assert_eq!(Some(&found), all.get(&id));
                }
            }
        }
    }
}

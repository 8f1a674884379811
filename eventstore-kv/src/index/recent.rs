//! The in-memory index of the newest events.

use std::collections::BTreeSet;
use std::ops::Range;

use eventstore_api::Direction;
use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use crate::engine::{Entries as TableEntries, Table};
use crate::format::keys;
use crate::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// An in-memory index over a contiguous range of events, by id and by aggregate.
///
/// The writer adds events as it stages them, so some may not be committed yet, after the published head. Events whose
/// commit failed are removed again.
pub(crate) struct Recent {
    /// The version of the first event.
    first: u64,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    events: Vec<Entry>,
    aggregates: Vec<Aggregate>,
    /// The keys of the ids, and the aggregate ids, each with its terminating byte.
    text: Vec<u8>,
    by_id: HashTable<u32>,
    by_aggregate: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

struct Entry {
    id: Text,
    /// The position of its aggregate in the list.
    aggregate: u32,
}

struct Aggregate {
    id: Text,
    /// The revision of the first of its events.
    first_revision: u64,
    /// The positions of its events, in order.
    events: SmallVec<[u32; 4]>,
}

#[derive(Clone, Copy)]
struct Text {
    start: u32,
    len: u16,
}

impl Text {
    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + usize::from(self.len)
    }
}

impl Recent {
    /// An index of events from this version on.
    pub(crate) fn new(first: u64) -> Self {
        Recent { first, entries: RwLock::new(Entries::default()) }
    }

    /// An index of the events after these, with room for as many.
    pub(crate) fn behind(before: &Recent) -> Self {
        let full = before.read();
        let (events, aggregates) = (full.events.len(), full.aggregates.len());
        let entries = Entries {
            events: Vec::with_capacity(events),
            aggregates: Vec::with_capacity(aggregates),
            text: Vec::with_capacity(full.text.len()),
            by_id: HashTable::with_capacity(events),
            by_aggregate: HashTable::with_capacity(aggregates),
            hasher: DefaultHashBuilder::default(),
        };
        drop(full);
        Recent { first: before.end(), entries: RwLock::new(entries) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of the first event.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The version after the last event.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.len() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.read().events.len()
    }

    /// Adds the event with the next version. `id_key` is the key of its id, which no other event has.
    pub(crate) fn push(&self, id_key: &[u8], aggregate_id: &str, revision: u64) {
        self.write().push(id_key, aggregate_id, revision);
    }

    /// Removes the events from this version on.
    pub(crate) fn truncate(&self, end: u64) {
        let mut entries = self.write();
        let len = usize::try_from(end.saturating_sub(self.first)).unwrap_or(usize::MAX);
        while entries.events.len() > len {
            entries.pop();
        }
    }

    /// The version of the event with this id key.
    pub(crate) fn find_id(&self, id_key: &[u8]) -> Option<u64> {
        self.read().find_id(id_key).map(|place| self.first + u64::from(place))
    }

    /// The newest revision of an aggregate with a version before this one, and its version.
    pub(crate) fn newest_revision(&self, aggregate_id: &str, before: u64) -> Option<(u64, u64)> {
        let entries = self.read();
        let aggregate = entries.aggregate(aggregate_id)?;
        let version = |place: &u32| self.first + u64::from(*place);
        let count = aggregate.events.partition_point(|place| version(place) < before);
        let newest = aggregate.events[..count].last()?;
        Some((aggregate.first_revision + count as u64 - 1, version(newest)))
    }

    /// The oldest revision of an aggregate in this index.
    pub(crate) fn oldest_revision(&self, aggregate_id: &str) -> Option<u64> {
        self.read().aggregate(aggregate_id).map(|aggregate| aggregate.first_revision)
    }

    /// Appends the versions of these revisions, as far as they are here, to `versions`, until it has `most`.
    pub(crate) fn versions_of(
        &self,
        aggregate_id: &str,
        revisions: &Range<u64>,
        direction: Direction,
        versions: &mut Vec<u64>,
        most: usize,
    ) {
        let entries = self.read();
        let Some(aggregate) = entries.aggregate(aggregate_id) else { return };
        let place = |revision: u64| {
            let place = revision.saturating_sub(aggregate.first_revision);
            usize::try_from(place).unwrap_or(usize::MAX).min(aggregate.events.len())
        };
        let wanted = place(revisions.start)..place(revisions.end);
        let wanted = aggregate.events.get(wanted).unwrap_or_default().iter();
        let room = most.saturating_sub(versions.len());
        let version = |place: &u32| self.first + u64::from(*place);
        match direction {
            Direction::Forward => versions.extend(wanted.map(version).take(room)),
            Direction::Backward => versions.extend(wanted.rev().map(version).take(room)),
        }
    }

    /// Appends the versions of an aggregate's events here to `versions`, which has only earlier ones, until it has
    /// `most`.
    pub(crate) fn add_versions(&self, aggregate_id: &str, versions: &mut Vec<u64>, most: usize) {
        let revisions = versions.len() as u64 + 1..u64::MAX;
        self.versions_of(aggregate_id, &revisions, Direction::Forward, versions, most);
    }

    /// Visits each aggregate, with the revision of its first event here and the versions of all its events here.
    pub(crate) fn for_each_aggregate(&self, mut visit: impl FnMut(&str, u64, &mut dyn ExactSizeIterator<Item = u64>)) {
        let entries = self.read();
        for aggregate in &entries.aggregates {
            let Ok(id) = std::str::from_utf8(id_of(&entries.text, aggregate)) else { continue };
            let mut versions = aggregate.events.iter().map(|&place| self.first + u64::from(place));
            visit(id, aggregate.first_revision, &mut versions);
        }
    }

    /// Adds the smallest aggregate ids that begin with `prefix` and are greater than `after` to `smallest`, until it
    /// has `most`. It may have some already.
    pub(crate) fn smallest_ids(&self, prefix: &str, after: &str, smallest: &mut BTreeSet<String>, most: usize) {
        let entries = self.read();
        for aggregate in &entries.aggregates {
            let id = id_of(&entries.text, aggregate);
            if !id.starts_with(prefix.as_bytes()) || id <= after.as_bytes() {
                continue;
            }
            let is_full = smallest.len() >= most;
            if is_full && smallest.last().is_none_or(|last| last.as_bytes() <= id) {
                continue;
            }
            let Ok(id) = std::str::from_utf8(id) else { continue };
            if smallest.insert(id.to_owned()) && is_full {
                smallest.pop_last();
            }
        }
    }

    /// The number of aggregates whose first event is here.
    pub(crate) fn new_aggregates(&self) -> u64 {
        self.read().aggregates.iter().filter(|aggregate| aggregate.first_revision == 1).count() as u64
    }

    /// Visits the id key of each event after `version`.
    pub(crate) fn for_each_id_behind(&self, version: u64, visit: impl FnMut(&[u8])) {
        let entries = self.read();
        let known = (version + 1).saturating_sub(self.first());
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(entries.events.len());
        entries.events[known..].iter().map(|entry| &entries.text[entry.id.range()]).for_each(visit);
    }

    /// The entries of all its events, in key order, each once. If an id occurs twice, the entry of its first event.
    pub(crate) fn put_all(&self, into: &mut TableEntries) {
        let entries = self.read();
        let Entries { events, aggregates, text, .. } = &*entries;
        let mut ids: Vec<u32> = (0..).take(events.len()).collect();
        let key = |place: &u32| &text[events[*place as usize].id.range()];
        ids.sort_unstable_by(|one, other| key(one).cmp(key(other)).then(one.cmp(other)));
        ids.dedup_by(|next, first| key(next) == key(first)); // a damaged index may have accepted an id twice
        for place in ids {
            let version = keys::version_bytes(self.first + u64::from(place));
            into.put_parts(Table::Ids, &[&text[events[place as usize].id.range()]], &[&version]);
        }
        let mut by_key: Vec<u32> = (0..).take(aggregates.len()).collect();
        by_key.sort_unstable_by_key(|&place| &text[aggregates[place as usize].id.range()]);
        let mut value = Vec::new();
        for place in by_key {
            let aggregate = &aggregates[place as usize];
            let mut newest = aggregate.first_revision - 1;
            for places in aggregate.events.chunks(keys::MOST_VERSIONS) {
                newest += places.len() as u64;
                keys::write_versions(&mut value, places.iter().map(|&place| self.first + u64::from(place)));
                into.put_parts(Table::Aggregates, &[&text[aggregate.id.range()], &newest.to_be_bytes()], &[&value]);
            }
        }
    }
}

impl Entries {
    fn hash(&self, bytes: &[u8]) -> u64 {
        hash(&self.hasher, bytes)
    }

    fn find_id(&self, key: &[u8]) -> Option<u32> {
        let is_it = |&place: &u32| &self.text[self.events[place as usize].id.range()] == key;
        self.by_id.find(self.hash(key), is_it).copied()
    }

    fn aggregate(&self, aggregate_id: &str) -> Option<&Aggregate> {
        self.find_aggregate(aggregate_id).map(|place| &self.aggregates[place as usize])
    }

    fn find_aggregate(&self, aggregate_id: &str) -> Option<u32> {
        let is_it = |&place: &u32| id_of(&self.text, &self.aggregates[place as usize]) == aggregate_id.as_bytes();
        self.by_aggregate.find(self.hash(aggregate_id.as_bytes()), is_it).copied()
    }

    fn push(&mut self, id_key: &[u8], aggregate_id: &str, revision: u64) {
        let id = self.add_text(id_key);
        let place = self.events.len() as u32;
        let aggregate = match self.find_aggregate(aggregate_id) {
            Some(aggregate) => aggregate,
            None => self.add_aggregate(aggregate_id, revision),
        };
        self.aggregates[aggregate as usize].events.push(place);
        self.events.push(Entry { id, aggregate });
        let hash = self.hash(id_key);
        let Entries { events, text, by_id, hasher, .. } = self;
        by_id.insert_unique(hash, place, |&place| self::hash(hasher, &text[events[place as usize].id.range()]));
    }

    fn add_aggregate(&mut self, aggregate_id: &str, first_revision: u64) -> u32 {
        let start = self.text.len();
        self.text.extend_from_slice(aggregate_id.as_bytes());
        keys::end_aggregate(&mut self.text);
        let id = Text { start: start as u32, len: (self.text.len() - start) as u16 };
        let place = self.aggregates.len() as u32;
        self.aggregates.push(Aggregate { id, first_revision, events: SmallVec::new() });
        let hash = self.hash(aggregate_id.as_bytes());
        let Entries { aggregates, text, by_aggregate, hasher, .. } = self;
        by_aggregate.insert_unique(hash, place, |&place| self::hash(hasher, id_of(text, &aggregates[place as usize])));
        place
    }

    fn add_text(&mut self, bytes: &[u8]) -> Text {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(bytes);
        Text { start, len: bytes.len() as u16 }
    }

    /// Removes the last event, and its aggregate if it was its first event here.
    fn pop(&mut self) {
        let Some(Entry { id, aggregate }) = self.events.pop() else { return };
        let place = self.events.len() as u32;
        let hash = self.hash(&self.text[id.range()]);
        if let Ok(entry) = self.by_id.find_entry(hash, |&at| at == place) {
            entry.remove();
        }
        self.aggregates[aggregate as usize].events.pop();
        if self.aggregates[aggregate as usize].events.is_empty() {
            let hash = self.hash(id_of(&self.text, &self.aggregates[aggregate as usize]));
            if let Ok(entry) = self.by_aggregate.find_entry(hash, |&at| at == aggregate) {
                entry.remove();
            }
            self.aggregates.pop(); // it is the last, because later ones began with later events
        }
        self.text.truncate(id.start as usize);
    }
}

fn hash(hasher: &DefaultHashBuilder, bytes: &[u8]) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, bytes)
}

/// The aggregate id without its terminating byte.
fn id_of<'a>(text: &'a [u8], aggregate: &Aggregate) -> &'a [u8] {
    let range = aggregate.id.range();
    &text[range.start..range.end - 1]
}

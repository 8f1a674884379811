//! Locates the events with an id or of an aggregate.
//!
//! Before an append is answered, only the log has to be synced. The index entries of the newest events stay in memory.
//! They are written to the engine's tables later, sorted, on a background thread (see
//! [`Indexer`](crate::index::indexer::Indexer)). A mark in the table `meta` says how far the tables reach. Opening
//! reads the log after the mark, which is bounded.
//!
//! ```text
//!   versions   1 ──────────────────── mark ────────── older ────────── newer ──── head
//!   found in   the engine's tables     │  memory, being       │  memory
//!                                      │  written to tables   │
//! ```
//!
//! The older events stay in memory until the newer ones become the older. A view reads memory first and takes the
//! snapshot afterwards: what has left memory by then is in the snapshot.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use eventstore_api::{Direction, Error, Result};

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::format::keys;
use crate::format::record::corrupt;
use crate::index::aggregates::{Aggregates, Epoch};
use crate::index::recent::Recent;
use crate::sync::{PoisonError, RwLock};

/// The in-memory part of the index, for readers and the writer.
pub(crate) struct Index {
    generations: RwLock<Generations>,
    incomplete: Option<Arc<Incomplete>>,
    aggregates: Arc<Aggregates>,
}

#[derive(Clone)]
struct Generations {
    /// Events to which no more are added. Once the tables have all of them, they only serve as a cache.
    older: Option<Older>,
    newer: Arc<Recent>,
}

#[derive(Clone)]
struct Older {
    recent: Arc<Recent>,
    is_written: bool,
}

/// The log is damaged after the mark, so the index has no entries for this version and later ones.
#[derive(Debug)]
pub(crate) struct Incomplete {
    pub(crate) version: u64,
    pub(crate) reason: String,
}

impl Incomplete {
    pub(crate) fn error(&self) -> Error {
        corrupt(self.version, &format!("{}, and this version and all later ones are not in the index", self.reason))
    }

    /// The reason why appends are refused.
    pub(crate) fn fence_reason(&self) -> String {
        let what = match self.reason.strip_prefix("it ") {
            Some(what) => format!("the event at version {} {what}", self.version),
            None => self.reason.clone(),
        };
        format!("{what}; restore a backup")
    }
}

impl Index {
    /// The tables have everything before the first of these events. Entries of aggregates read from them are cached in
    /// this many bytes.
    pub(crate) fn new(recent: Recent, incomplete: Option<Incomplete>, cache_bytes: usize) -> Self {
        let generations = RwLock::new(Generations { older: None, newer: Arc::new(recent) });
        let aggregates = Arc::new(Aggregates::new(cache_bytes));
        Index { generations, incomplete: incomplete.map(Arc::new), aggregates }
    }

    fn generations(&self) -> Generations {
        self.generations.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The damage of the log that makes the index incomplete. In that case, appends are refused.
    pub(crate) fn incomplete(&self) -> Option<&Incomplete> {
        self.incomplete.as_deref()
    }

    /// The events to which more are added.
    pub(crate) fn newer(&self) -> Arc<Recent> {
        self.generations.read().unwrap_or_else(PoisonError::into_inner).newer.clone()
    }

    /// The older events, if they are not in the tables yet.
    pub(crate) fn unwritten(&self) -> Option<Arc<Recent>> {
        let generations = self.generations.read().unwrap_or_else(PoisonError::into_inner);
        generations.older.as_ref().filter(|older| !older.is_written).map(|older| older.recent.clone())
    }

    /// The events after `head` were not committed.
    pub(crate) fn take_back(&self, head: u64) {
        let mut generations = self.generations.write().unwrap_or_else(PoisonError::into_inner);
        generations.newer.truncate(head + 1);
        // Older events become newer ones again if some of them were not committed.
        if let Some(older) = generations.older.take_if(|older| older.recent.end() > head + 1) {
            older.recent.truncate(head + 1);
            generations.newer = older.recent;
        }
    }

    /// A view of the whole index, as of now or later.
    pub(crate) fn view<'e, E: Engine>(&self, engine: &'e E) -> View<'e, E> {
        View {
            epoch: self.aggregates.epoch(), // read before the in-memory part
            recent: self.generations(),
            incomplete: self.incomplete.clone(),
            aggregates: self.aggregates.clone(),
            engine,
            snapshot: OnceCell::new(),
        }
    }

    /// The newer events become the older ones. Returns the previous older ones, which are in the tables: dropping them
    /// takes time.
    pub(crate) fn freeze(&self) -> Option<Arc<Recent>> {
        let next = Arc::new(Recent::behind(&self.newer()));
        let mut generations = self.generations.write().unwrap_or_else(PoisonError::into_inner);
        let frozen = std::mem::replace(&mut generations.newer, next);
        let before = generations.older.replace(Older { recent: frozen, is_written: false });
        before.map(|older| older.recent)
    }

    /// The tables have the older events.
    pub(crate) fn written(&self) {
        let Some(older) = self.unwritten() else { return };
        self.aggregates.written(&older, || {
            let mut generations = self.generations.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(older) = &mut generations.older {
                older.is_written = true;
            }
        });
    }
}

/// The index at one moment.
pub(crate) struct View<'e, E: Engine> {
    epoch: Epoch,
    recent: Generations,
    incomplete: Option<Arc<Incomplete>>,
    aggregates: Arc<Aggregates>,
    engine: &'e E,
    /// Taken on first use: often the in-memory part is enough.
    snapshot: OnceCell<E::Snapshot<'e>>,
}

impl<'e, E: Engine> View<'e, E> {
    /// The tables.
    pub(crate) fn snapshot(&self) -> Result<&E::Snapshot<'e>> {
        if let Some(snapshot) = self.snapshot.get() {
            return Ok(snapshot);
        }
        let snapshot = self.engine.snapshot()?;
        Ok(self.snapshot.get_or_init(|| snapshot))
    }

    /// The end of the index, if it is not after this version.
    pub(crate) fn ends_before(&self, last: u64) -> Option<&Incomplete> {
        self.incomplete.as_deref().filter(|incomplete| incomplete.version <= last)
    }

    fn generations(&self) -> impl DoubleEndedIterator<Item = &Recent> {
        self.recent.older.iter().map(|older| &older.recent).chain([&self.recent.newer]).map(|recent| &**recent)
    }

    /// The version of the event with this id key, if it is in memory.
    pub(crate) fn find_recent_id(&self, id_key: &[u8]) -> Option<u64> {
        self.generations().rev().find_map(|recent| recent.find_id(id_key))
    }

    /// The version of the event with this id key, if it is in the table.
    pub(crate) fn find_id_in_table(&self, id_key: &[u8]) -> Result<Option<u64>> {
        let mut value = Vec::with_capacity(size_of::<u64>());
        if !self.snapshot()?.get(Table::Ids, id_key, &mut value)? {
            return Ok(None);
        }
        let version = keys::read_version(&value).map(Some);
        version.ok_or_else(|| {
            let id = keys::read_id(id_key).unwrap_or_default();
            Error::Corrupt { version: None, reason: format!("the index entry of event {id:?} has a wrong size") }
        })
    }

    /// The version of the event with this id key.
    pub(crate) fn find_id(&self, id_key: &[u8]) -> Result<Option<u64>> {
        match self.find_recent_id(id_key) {
            Some(version) => Ok(Some(version)),
            None => self.find_id_in_table(id_key),
        }
    }

    /// The newest revision of an aggregate and its version. In memory, only versions before `before` count, since
    /// uncommitted events may be removed again.
    pub(crate) fn newest_revision(&self, aggregate_id: &str, before: u64) -> Result<Option<(u64, u64)>> {
        match self.newest_recent_revision(aggregate_id, before) {
            Some(newest) => Ok(Some(newest)),
            None => self.newest_revision_in_table(aggregate_id),
        }
    }

    /// The newest revision of an aggregate with a version before `before`, and its version, if it is in memory.
    pub(crate) fn newest_recent_revision(&self, aggregate_id: &str, before: u64) -> Option<(u64, u64)> {
        self.generations().rev().find_map(|recent| recent.newest_revision(aggregate_id, before))
    }

    /// The `most` smallest ids among the aggregates in memory that begin with `prefix` and are greater than `after`.
    pub(crate) fn smallest_recent_ids(&self, prefix: &str, after: &str, most: usize) -> BTreeSet<String> {
        let mut smallest = BTreeSet::new();
        self.generations().for_each(|recent| recent.smallest_ids(prefix, after, &mut smallest, most));
        smallest
    }

    fn newest_revision_in_table(&self, aggregate_id: &str) -> Result<Option<(u64, u64)>> {
        if let Some(versions) = self.aggregates.get(aggregate_id) {
            return Ok(versions.last().map(|&version| (versions.len() as u64, version)));
        }
        let mut newest = None;
        self.scan_blocks(aggregate_id, 1, u64::MAX, Direction::Backward, |block| {
            newest = block.versions.last().map(|&version| (block.last, version));
            ControlFlow::Break(())
        })?;
        Ok(newest)
    }

    /// The version of an existing revision.
    pub(crate) fn version_of(&self, aggregate_id: &str, revision: u64) -> Result<u64> {
        let revisions = revision..revision + 1;
        let mut found = self.versions_of(aggregate_id, revisions.clone(), Direction::Forward, 1)?;
        if found.is_empty() {
            // The tables may be newer than the part in memory here, and the only ones that have it.
            self.versions_in_table(aggregate_id, Direction::Forward, Taken::new(revisions, 1, &mut found))?;
        }
        found.first().copied().ok_or_else(|| damage_of(aggregate_id, "has gaps"))
    }

    /// The version of a revision, in the tables alone or also in memory; `None` if it is not found.
    pub(crate) fn version_of_revision(&self, aggregate_id: &str, revision: u64, in_table: bool) -> Result<Option<u64>> {
        let revisions = revision..revision.saturating_add(1);
        if !in_table {
            return Ok(self.versions_of(aggregate_id, revisions, Direction::Forward, 1)?.first().copied());
        }
        let mut versions = Vec::new();
        self.versions_in_table(aggregate_id, Direction::Forward, Taken::new(revisions, 1, &mut versions))?;
        Ok(versions.first().copied())
    }

    /// The versions of an aggregate's first events before `before`, at most `most` of them.
    pub(crate) fn first_versions(&self, aggregate_id: &str, before: u64, most: usize) -> Result<(Vec<u64>, Listed)> {
        let is_enough = |versions: &[u64]| versions.len() > most || versions.last().is_some_and(|&last| last >= before);
        let (mut versions, mut has_gap) = (Vec::new(), false);
        match self.aggregates.get(aggregate_id) {
            Some(kept) => versions.extend_from_slice(&kept),
            None => {
                let end_of_table = self.end_of_table(aggregate_id);
                let mut next = 1;
                let mut scan = |block: Block<'_>| {
                    has_gap = block.first > next;
                    if has_gap {
                        return block.look_further_for(next);
                    }
                    versions.extend(block.ascending(next..end_of_table));
                    next = next.max(block.last + 1);
                    let is_done = next >= end_of_table || is_enough(&versions);
                    if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                if end_of_table > 1 {
                    self.scan_blocks(aggregate_id, 1, u64::MAX, Direction::Forward, &mut scan)?;
                }
                let is_whole = !has_gap && !is_enough(&versions);
                has_gap |= is_whole && end_of_table < u64::MAX && versions.len() as u64 + 1 != end_of_table;
                if is_whole && !has_gap {
                    let written = self.recent.older.as_ref().filter(|older| older.is_written);
                    written.inspect(|older| older.recent.add_versions(aggregate_id, &mut versions, usize::MAX));
                    self.aggregates.insert(self.epoch, aggregate_id, &versions);
                }
            }
        }
        if !has_gap && !is_enough(&versions) {
            self.generations().for_each(|recent| recent.add_versions(aggregate_id, &mut versions, most + 1));
        }
        let listed = match versions.iter().position(|&version| version >= before) {
            Some(place) => {
                versions.truncate(place);
                if place > most { Listed::Most } else { Listed::All }
            }
            None if versions.len() > most => Listed::Most,
            None if has_gap => Listed::UpToGap,
            None => Listed::All,
        };
        versions.truncate(most);
        Ok((versions, listed))
    }

    /// The versions of the first `most` of these existing revisions, in this direction. Fewer if the table has gaps.
    pub(crate) fn versions_of(
        &self,
        aggregate_id: &str,
        revisions: Range<u64>,
        direction: Direction,
        most: usize,
    ) -> Result<Vec<u64>> {
        let mut versions = Vec::new();
        let in_table = revisions.start..revisions.end.min(self.end_of_table(aggregate_id));
        match direction {
            Direction::Forward => {
                self.kept_or_in_table(aggregate_id, direction, Taken::new(in_table.clone(), most, &mut versions))?;
                if versions.len() as u64 >= in_table.end.saturating_sub(in_table.start) {
                    for recent in self.generations() {
                        recent.versions_of(aggregate_id, &revisions, direction, &mut versions, most);
                    }
                }
            }
            Direction::Backward => {
                for recent in self.generations().rev() {
                    recent.versions_of(aggregate_id, &revisions, direction, &mut versions, most);
                }
                self.kept_or_in_table(aggregate_id, direction, Taken::new(in_table.clone(), most, &mut versions))?;
            }
        }
        Ok(versions)
    }

    /// The first revision of an aggregate that is in memory.
    fn end_of_table(&self, aggregate_id: &str) -> u64 {
        self.generations().find_map(|recent| recent.oldest_revision(aggregate_id)).unwrap_or(u64::MAX)
    }

    /// Takes the wanted versions from the cache or from the table.
    fn kept_or_in_table(&self, aggregate_id: &str, direction: Direction, mut taken: Taken<'_>) -> Result<()> {
        let kept = if taken.is_done() { None } else { self.aggregates.get(aggregate_id) };
        let Some(kept) = kept.filter(|kept| taken.left.end <= kept.len() as u64 + 1) else {
            return self.versions_in_table(aggregate_id, direction, taken);
        };
        let all = Block { first: 1, last: kept.len() as u64, versions: &kept };
        let _ = match direction {
            Direction::Forward => taken.forward(&all),
            Direction::Backward => taken.backward(&all),
        };
        Ok(())
    }

    fn versions_in_table(&self, aggregate_id: &str, direction: Direction, mut taken: Taken<'_>) -> Result<()> {
        if taken.is_done() {
            return Ok(());
        }
        if direction == Direction::Forward {
            let first = taken.left.start;
            return self.scan_blocks(aggregate_id, first, u64::MAX, direction, |block| taken.forward(&block));
        }
        while !taken.is_done() {
            let end = taken.left.end;
            // The block with the last of these revisions ends with it or after it.
            self.scan_blocks(aggregate_id, end - 1, u64::MAX, Direction::Forward, |block| {
                if block.first >= end {
                    return block.look_further_for(end - 1);
                }
                let _ = taken.backward(&block);
                ControlFlow::Break(())
            })?;
            if taken.left.end == end {
                break; // a gap
            }
            if !taken.is_done() {
                let (first, last) = (taken.left.start, taken.left.end - 1);
                self.scan_blocks(aggregate_id, first, last, direction, |block| taken.backward(&block))?;
            }
        }
        Ok(())
    }

    /// Visits the blocks of an aggregate that end with the revisions from `first` to `last`.
    fn scan_blocks(
        &self,
        aggregate_id: &str,
        first: u64,
        last: u64,
        direction: Direction,
        mut visit: impl FnMut(Block<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let (mut first_key, mut last_key) = (Vec::new(), Vec::new());
        keys::write_aggregate(&mut first_key, aggregate_id, first);
        keys::write_aggregate(&mut last_key, aggregate_id, last);
        let range = KeyRange { first: &first_key, last: &last_key };
        let (mut versions, mut is_damaged) = (Vec::new(), false);
        self.snapshot()?.scan(Table::Aggregates, range, direction, |key, value| {
            versions.clear();
            match Block::read(key, value, &mut versions) {
                Some(block) => visit(block),
                None => {
                    is_damaged = true;
                    ControlFlow::Break(())
                }
            }
        })?;
        if is_damaged { Err(damage_of(aggregate_id, "has a damaged entry")) } else { Ok(()) }
    }

    /// The greatest key of each kind of id; empty if there is none.
    pub(crate) fn greatest_ids(&self) -> Result<[Vec<u8>; keys::ID_KINDS]> {
        let mut greatest: [Vec<u8>; keys::ID_KINDS] = Default::default();
        for (kind, greatest) in keys::ID_KIND_BYTES.into_iter().zip(&mut greatest) {
            let range = KeyRange { first: &[kind], last: &[kind + 1] };
            self.snapshot()?.scan(Table::Ids, range, Direction::Backward, |key, _| {
                if key.first() != Some(&kind) {
                    return ControlFlow::Continue(()); // a damaged key of this one byte
                }
                greatest.extend_from_slice(key);
                ControlFlow::Break(())
            })?;
        }
        for recent in self.generations() {
            recent.for_each_id_behind(0, |key| {
                let greatest = &mut greatest[keys::id_kind(key)];
                if key > greatest.as_slice() {
                    greatest.clear();
                    greatest.extend_from_slice(key);
                }
            });
        }
        Ok(greatest)
    }
}

/// The versions of consecutive revisions of an aggregate: one entry of the table.
///
/// Blocks may overlap: after a crash that lost the mark, the entries after the old mark are written again in other
/// blocks, and some of the first ones may be missing.
pub(crate) struct Block<'a> {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) versions: &'a [u64],
}

impl<'a> Block<'a> {
    /// Reads an entry of the table and stores its versions in `versions`; `None` if it is damaged.
    pub(crate) fn read(key: &[u8], value: &[u8], versions: &'a mut Vec<u64>) -> Option<Self> {
        let last = keys::read_revision(key)?;
        if !keys::read_versions(value, versions) {
            return None;
        }
        let before = last.checked_sub(versions.len() as u64)?;
        (last < u64::MAX).then_some(Block { first: before + 1, last, versions })
    }

    /// Whether a revision before the start of this block may be in a block that ends later.
    fn look_further_for(&self, revision: u64) -> ControlFlow<()> {
        let is_far = self.last - revision >= keys::MOST_VERSIONS as u64 - 1;
        if is_far { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The versions of these revisions, as far as it has them.
    fn ascending(&self, revisions: Range<u64>) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + '_ {
        let place = |revision: u64| revision.clamp(self.first, self.last + 1) - self.first;
        let places = place(revisions.start) as usize..place(revisions.end).max(place(revisions.start)) as usize;
        self.versions[places].iter().copied()
    }
}

/// The versions taken so far, and the revisions that are still wanted.
struct Taken<'a> {
    left: Range<u64>,
    most: usize,
    versions: &'a mut Vec<u64>,
}

impl<'a> Taken<'a> {
    /// Wants the first `most` of these revisions.
    fn new(left: Range<u64>, most: usize, versions: &'a mut Vec<u64>) -> Self {
        Taken { left, most, versions }
    }

    fn forward(&mut self, block: &Block<'_>) -> ControlFlow<()> {
        if block.first > self.left.start {
            return block.look_further_for(self.left.start);
        }
        let room = self.most - self.versions.len();
        self.versions.extend(block.ascending(self.left.clone()).take(room));
        self.left.start = self.left.start.max(block.last + 1);
        self.goes_on()
    }

    fn backward(&mut self, block: &Block<'_>) -> ControlFlow<()> {
        if block.last + 1 < self.left.end {
            return ControlFlow::Break(()); // a gap, or it is in a block that ends later
        }
        let room = self.most - self.versions.len();
        self.versions.extend(block.ascending(self.left.clone()).rev().take(room));
        self.left.end = self.left.end.min(block.first);
        self.goes_on()
    }

    fn is_done(&self) -> bool {
        self.left.is_empty() || self.versions.len() >= self.most
    }

    fn goes_on(&self) -> ControlFlow<()> {
        if self.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Where a list of an aggregate's versions ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// It has all that were requested.
    All,
    /// There are more.
    Most,
    /// The next one is missing from the index, or damaged.
    UpToGap,
}

/// The error for an invalid index entry of an aggregate.
pub(crate) fn damage_of(aggregate_id: &str, what: &str) -> Error {
    Error::Corrupt { version: None, reason: format!("the index of aggregate {aggregate_id:?} {what}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use eventstore_api::{AggregateInfo, AggregateOptions, Version};
    use eventstore_log::{Known, Log, MemoryDirectory, Options};
    use proptest::prelude::*;

    use super::*;
    use crate::MemoryEngine;
    use crate::engine::Entries;
    use crate::format::keys::MOST_VERSIONS;
    use crate::index::aggregates::MOST_EVENTS as MOST_KEPT;
    use crate::read::list::ListRead;
    use crate::read::reader;

    const CACHE: usize = 1 << 20;

    /// An index of events with ids `id-1`, `id-2` and so on, in the tables or in memory.
    struct Fixture {
        engine: MemoryEngine,
        index: Index,
        mark: u64,
        head: u64,
        /// The aggregate of each version.
        aggregate_of: fn(u64) -> String,
        /// The expected versions, by aggregate.
        versions: BTreeMap<String, Vec<u64>>,
    }

    fn id_key(version: u64) -> Vec<u8> {
        let mut key = Vec::new();
        keys::write_id(&mut key, &format!("id-{version}"));
        key
    }

    /// Some aggregates have many events, some have one.
    fn some_have_many(version: u64) -> String {
        if version.is_multiple_of(7) { format!("rare-{version}") } else { format!("aggregate-{}", version % 3) }
    }

    fn all_of_one(_: u64) -> String {
        "a".to_owned()
    }

    impl Fixture {
        fn new(aggregate_of: fn(u64) -> String) -> Self {
            let (engine, index) = (MemoryEngine::default(), Index::new(Recent::new(1), None, CACHE));
            Fixture { engine, index, mark: 0, head: 0, aggregate_of, versions: BTreeMap::new() }
        }

        /// Adds events like the writer. Uncommitted ones stay until they are taken back.
        fn stage(&mut self, events: u64) {
            let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
            let first = self.index.newer().end();
            for version in first..first + events {
                let aggregate_id = (self.aggregate_of)(version);
                let known = || self.revisions_before(&aggregate_id, first);
                let revision = revisions.entry(aggregate_id.clone()).or_insert_with(known);
                *revision += 1;
                self.index.newer().push(&id_key(version), &aggregate_id, *revision);
            }
        }

        fn revisions_before(&self, aggregate_id: &str, version: u64) -> u64 {
            let of_version = |version: &u64| (self.aggregate_of)(*version) == aggregate_id;
            (self.head + 1..version).filter(of_version).count() as u64
                + self.versions.get(aggregate_id).map_or(0, Vec::len) as u64
        }

        fn commit(&mut self) {
            for version in self.head + 1..self.index.newer().end() {
                self.versions.entry((self.aggregate_of)(version)).or_default().push(version);
            }
            self.head = self.index.newer().end() - 1;
        }

        fn append(&mut self, events: u64) {
            self.stage(events);
            self.commit();
        }

        fn entries(&self) -> Entries {
            let mut entries = Entries::new();
            if let Some(older) = self.index.unwritten() {
                older.put_all(&mut entries);
            }
            entries
        }

        fn write(&mut self) {
            if let Some(older) = self.index.unwritten() {
                self.engine.write(&self.entries()).expect("written");
                self.index.written();
                self.mark = older.end() - 1;
            }
        }

        /// Stops in the middle of a write: some entries are there, but no mark.
        fn write_some(&mut self, mut is_there: impl FnMut() -> bool) {
            let (all, mut some) = (self.entries(), Entries::new());
            for table in [Table::Ids, Table::Aggregates] {
                all.of(table).filter(|_| is_there()).for_each(|(key, value)| some.put(table, key, value));
            }
            self.engine.write(&some).expect("written");
            self.reopen();
        }

        fn reopen(&mut self) {
            let recent = Recent::new(self.mark + 1);
            for (aggregate_id, version, revision) in self.events() {
                if version > self.mark {
                    recent.push(&id_key(version), &aggregate_id, revision);
                }
            }
            self.index = Index::new(recent, None, CACHE);
        }

        /// The aggregate, version and revision of each event, in order.
        fn events(&self) -> Vec<(String, u64, u64)> {
            let of_one = |(id, versions): (&String, &Vec<u64>)| {
                let id = id.clone();
                versions.clone().into_iter().zip(1..).map(move |(version, revision)| (id.clone(), version, revision))
            };
            let mut events: Vec<_> = self.versions.iter().flat_map(of_one).collect();
            events.sort_unstable_by_key(|event| event.1);
            events
        }

        fn view(&self) -> View<'_, MemoryEngine> {
            self.index.view(&self.engine)
        }

        /// Checks that the index has every event, in every way of reading.
        fn check(&self) {
            let view = self.view();
            for version in 1..=self.head {
                assert_eq!(view.find_id(&id_key(version)).expect("read"), Some(version));
                let in_table = view.find_id_in_table(&id_key(version)).expect("read");
                assert!(in_table == Some(version) || in_table.is_none() && version > self.mark, "{version}");
            }
            assert_eq!(view.find_id(&id_key(self.index.newer().end())).expect("read"), None);
            assert_eq!(view.newest_revision("nobody", u64::MAX).expect("read"), None);
            for (aggregate_id, versions) in &self.versions {
                let len = versions.len() as u64;
                let newest = (len, *versions.last().expect("one at least"));
                assert_eq!(view.newest_revision(aggregate_id, self.head + 1).expect("read"), Some(newest));
                for (&version, revision) in versions.iter().zip(1..) {
                    assert_eq!(view.version_of(aggregate_id, revision).expect("read"), version);
                    let in_table = view.version_of_revision(aggregate_id, revision, true).expect("read");
                    assert!(in_table == Some(version) || in_table.is_none() && version > self.mark);
                }
                assert_eq!(view.version_of_revision(aggregate_id, len + 1, true).expect("read"), None);
                for (before, most) in [(u64::MAX, 1000), (self.head + 1, 3), (newest.1, 2), (newest.1, 1000), (1, 1)] {
                    self.check_first(&view, aggregate_id, before.min(self.head + 1), most);
                }
                for (start, end, most) in
                    [(1, len + 1, 1000), (2, len + 1, 3), (1, len, 2), (3, 6, 9), (len, len + 1, 1)]
                {
                    if 0 < start && start <= end && end <= len + 1 {
                        self.check_versions(&view, aggregate_id, start..end, most);
                    }
                }
            }
            let half = self.head / 2 + 1;
            for (prefix, after, before, most) in [
                ("", "", self.head + 1, 1000),
                ("", "", half, 3),
                ("", "aggregate-1", self.head + 1, 7),
                ("rare-7", "rare-7", self.head + 1, 1),
                ("aggregate-", "", half, 2),
                ("rare-", "aggregate-", half, 1000),
            ] {
                self.check_list(&view, prefix, after, before, most);
            }
        }

        /// Checks the list of aggregates in pages of `most`, with a time limit that ends after each aggregate.
        fn check_list(&self, view: &View<'_, MemoryEngine>, prefix: &str, after: &str, before: u64, most: usize) {
            let is_asked_for = |id: &str| id.starts_with(prefix) && id > after;
            let aggregates = self.versions.iter().filter(|(id, _)| is_asked_for(id));
            let expected: Vec<_> = aggregates
                .filter_map(|(id, versions)| {
                    let count = versions.partition_point(|version| *version < before);
                    let newest = versions[..count].last()?;
                    Some(AggregateInfo::new(id.clone(), (count as u64).into(), Version::new(*newest)))
                })
                .collect();
            let mut next = Some(AggregateOptions::all().prefix(prefix).after(after).before(before.into()));
            let mut listed = Vec::new();
            while let Some(options) = next {
                let mut list = ListRead::new(&options, most, Version::new(self.head));
                while !list.is_done() {
                    list.run(view, Instant::now()).expect("read");
                }
                let page = list.finish();
                let is_full = page.aggregates.len() == most;
                assert!(is_full || page.aggregates.len() < most && page.next.is_none(), "{page:?}");
                listed.extend(page.aggregates);
                next = page.next;
            }
            assert_eq!(listed, expected, "{prefix:?} after {after:?} before {before}, {most} a page");
        }

        fn check_first(&self, view: &View<'_, MemoryEngine>, aggregate_id: &str, before: u64, most: usize) {
            let versions = self.versions[aggregate_id].iter().copied();
            let mut expected: Vec<_> = versions.filter(|&version| version < before).collect();
            let listed = if expected.len() > most { Listed::Most } else { Listed::All };
            expected.truncate(most);
            let first = view.first_versions(aggregate_id, before, most).expect("read");
            assert_eq!(first, (expected, listed), "{aggregate_id}, {most} before {before}");
        }

        fn check_versions(
            &self,
            view: &View<'_, MemoryEngine>,
            aggregate_id: &str,
            revisions: Range<u64>,
            most: usize,
        ) {
            let all = &self.versions[aggregate_id][revisions.start as usize - 1..revisions.end as usize - 1];
            let read = |direction| view.versions_of(aggregate_id, revisions.clone(), direction, most).expect("read");
            let forward: Vec<_> = all.iter().copied().take(most).collect();
            assert_eq!(read(Direction::Forward), forward, "{aggregate_id} {revisions:?}, {most}");
            let backward: Vec<_> = all.iter().rev().copied().take(most).collect();
            assert_eq!(read(Direction::Backward), backward, "{aggregate_id} {revisions:?}, {most}, backward");
        }
    }

    #[test]
    fn it_leads_to_every_event_at_every_moment() {
        for events_in_memory in [1, 2, 10, 100, 1000] {
            let mut fixture = Fixture::new(some_have_many);
            for group in 0..60 {
                if group % 5 == 3 {
                    fixture.stage(group % 4 + 1);
                    fixture.index.take_back(fixture.head);
                    fixture.check();
                }
                fixture.append(group * 7 % 11 + 1);
                fixture.check();
                if fixture.index.unwritten().is_some() && group % 2 == 0 {
                    fixture.write();
                    fixture.check();
                } else if fixture.index.unwritten().is_none() && fixture.index.newer().len() >= events_in_memory {
                    fixture.index.freeze();
                    fixture.check();
                }
                if group % 13 == 12 {
                    fixture.reopen();
                    fixture.check();
                }
            }
            fixture.write();
            fixture.index.freeze();
            fixture.write();
            fixture.check();
            assert_eq!((fixture.mark, fixture.index.newer().len()), (fixture.head, 0));
        }
    }

    /// The versions of an aggregate, in order.
    fn first(view: &View<'_, MemoryEngine>, aggregate_id: &str) -> Vec<u64> {
        view.first_versions(aggregate_id, u64::MAX, 1000).expect("read").0
    }

    #[test]
    fn an_aggregate_that_was_loaded_asks_nothing_of_the_engine_when_it_is_loaded_again() {
        let mut fixture = Fixture::new(all_of_one);
        let mut expected = Vec::new();
        for events in [10, 7, 300, 1] {
            fixture.append(events);
            expected.extend(expected.len() as u64 + 1..=expected.len() as u64 + events);
            assert_eq!(first(&fixture.view(), "a"), expected);
            fixture.index.freeze();
            fixture.write();
            assert_eq!(first(&fixture.view(), "a"), expected);
            // Written and in memory, then only in the tables.
            for _ in 0..2 {
                let nothing = MemoryEngine::default();
                let view = fixture.index.view(&nothing);
                let len = expected.len() as u64;
                assert_eq!(first(&view, "a"), expected);
                assert_eq!(view.newest_revision("a", u64::MAX).expect("read"), Some((len, len)));
                assert_eq!(view.versions_of("a", 2..len, Direction::Backward, 1).expect("read"), [len - 1]);
                assert_eq!(view.version_of_revision("a", 1, true).expect("read"), None, "not for who asks the tables");
                fixture.index.freeze();
                fixture.write();
            }
        }
        let many = MOST_KEPT as u64;
        fixture.append(many);
        fixture.index.freeze();
        fixture.write();
        fixture.index.freeze();
        assert!(first(&fixture.index.view(&MemoryEngine::default()), "a").is_empty(), "it has become too long");
        fixture.check();
    }

    #[test]
    fn what_was_read_before_the_tables_changed_is_not_kept() {
        for is_read_before in [false, true] {
            let mut fixture = Fixture::new(all_of_one);
            fixture.append(10);
            fixture.index.freeze();
            let tables_before = MemoryEngine::default();
            tables_before.write(&fixture.entries()).expect("written");
            fixture.write();
            fixture.append(5);
            fixture.index.freeze();
            let Fixture { index, engine, .. } = &fixture;
            let early = index.view(&tables_before);
            if is_read_before {
                assert_eq!(first(&early, "a").len(), 15);
            }
            engine.write(&fixture.entries()).expect("written");
            index.written();
            assert_eq!(first(&early, "a").len(), 15);
            index.freeze();
            assert_eq!(first(&early, "a").len(), 15);
            assert_eq!(first(&index.view(engine), "a").len(), 15);
        }
    }

    #[test]
    fn older_events_that_were_not_committed_are_newer_ones_again() {
        let mut fixture = Fixture::new(some_have_many);
        fixture.append(20);
        fixture.index.freeze();
        fixture.write();
        fixture.append(10);
        fixture.stage(5);
        // Frozen while the group is being committed, with another one staged after it.
        fixture.index.freeze();
        fixture.stage(3);
        assert_eq!(fixture.index.unwritten().expect("frozen").end(), 36);
        fixture.index.take_back(30);
        assert!(fixture.index.unwritten().is_none());
        assert_eq!((fixture.index.newer().first(), fixture.index.newer().end()), (21, 31));
        fixture.check();
        fixture.append(4);
        fixture.check();
        // Committed events stay frozen.
        fixture.index.freeze();
        fixture.stage(2);
        fixture.index.take_back(34);
        assert_eq!(fixture.index.unwritten().expect("frozen").end(), 35);
        fixture.write();
        fixture.index.take_back(34);
        fixture.check();
    }

    #[test]
    fn what_is_staged_counts_only_for_those_who_ask_for_it() {
        let mut fixture = Fixture::new(all_of_one);
        fixture.append(3);
        fixture.stage(2);
        assert_eq!(fixture.view().newest_revision("a", u64::MAX).expect("read"), Some((5, 5)));
        assert_eq!(fixture.view().newest_revision("a", 4).expect("read"), Some((3, 3)));
        assert_eq!(fixture.view().first_versions("a", 4, 9).expect("read"), (vec![1, 2, 3], Listed::All));
        fixture.check_first(&fixture.view(), "a", 3, 2);
    }

    #[test]
    fn a_view_leads_to_all_that_was_there_whatever_becomes_of_memory() {
        let mut fixture = Fixture::new(some_have_many);
        fixture.append(100);
        let engine = MemoryEngine::default();
        let view = fixture.index.view(&engine);
        for _ in 0..3 {
            fixture.index.freeze();
            let mut entries = fixture.entries();
            engine.write(&entries).expect("written");
            entries.clear();
            fixture.write();
            fixture.append(100);
        }
        for version in 1..=100 {
            assert_eq!(view.find_id(&id_key(version)).expect("read"), Some(version));
        }
        for (aggregate_id, versions) in &fixture.versions {
            let first: Vec<_> = versions.iter().copied().filter(|&version| version <= 100).collect();
            if !first.is_empty() {
                assert_eq!(view.first_versions(aggregate_id, 101, 1000).expect("read"), (first, Listed::All));
            }
        }
    }

    #[test]
    fn an_entry_has_a_block_of_versions_up_to_its_key() {
        let mut fixture = Fixture::new(all_of_one);
        let most = MOST_VERSIONS as u64;
        fixture.append(2 * most + 5);
        fixture.index.freeze();
        fixture.write();
        fixture.append(1);
        fixture.index.freeze();
        fixture.write();
        let mut blocks = Vec::new();
        let scanned = fixture.view().scan_blocks("a", 1, u64::MAX, Direction::Forward, |block| {
            blocks.push((block.first, block.last));
            assert!(block.versions.iter().copied().eq(block.first..=block.last));
            ControlFlow::Continue(())
        });
        scanned.expect("read");
        assert_eq!(
            blocks,
            [(1, most), (most + 1, 2 * most), (2 * most + 1, 2 * most + 5), (2 * most + 6, 2 * most + 6)]
        );
        fixture.check();
        let mut key = Vec::new();
        keys::write_aggregate(&mut key, "a", 3);
        for (revision, value, is_sound) in
            [(3, &[1, 1, 1][..], true), (2, &[1, 1, 1], false), (3, &[], false), (u64::MAX, &[1], false)]
        {
            keys::write_aggregate(&mut key, "a", revision);
            assert_eq!(Block::read(&key, value, &mut Vec::new()).is_some(), is_sound, "{revision} {value:?}");
        }
        assert!(Block::read(b"short", &[1], &mut Vec::new()).is_none());
    }

    /// Checks every range of revisions with every limit.
    fn check_all(fixture: &Fixture) {
        let len = fixture.versions["a"].len() as u64;
        let view = fixture.view();
        for start in 1..=len {
            for end in start..=len + 1 {
                for most in [1, 2, 7, 1000] {
                    fixture.check_versions(&view, "a", start..end, most);
                }
            }
            for most in [1, 2, 7, 1000] {
                fixture.check_first(&view, "a", start, most);
            }
        }
    }

    #[test]
    fn every_part_of_an_aggregate_is_listed_in_both_directions() {
        let mut fixture = Fixture::new(all_of_one);
        for events in [1, 4, 9, 2, 5] {
            fixture.index.freeze();
            fixture.write();
            fixture.append(events);
            check_all(&fixture);
        }
    }

    #[test]
    fn blocks_that_a_crash_left_behind_the_mark_do_no_harm() {
        // Blocks of the first attempt, with holes, followed by those of the next.
        for mask in 0..8u32 {
            let mut fixture = Fixture::new(all_of_one);
            fixture.append(5);
            fixture.index.freeze();
            fixture.write();
            let mut nth = 0;
            for events in [6, 10] {
                fixture.append(events);
                fixture.index.freeze();
                fixture.write_some(|| {
                    nth += 1;
                    mask >> (nth % 3) & 1 != 0
                });
                check_all(&fixture);
            }
            fixture.append(1);
            fixture.index.freeze();
            fixture.write();
            check_all(&fixture);
            fixture.append(3);
            check_all(&fixture);
        }
    }

    #[test]
    fn a_block_with_a_hole_before_it_hides_nothing_of_a_longer_one() {
        let most = MOST_VERSIONS as u64;
        for (first_try, kept) in [(2 * most + 30, 0), (2 * most + 30, 1), (2 * most + 30, 2), (most + 12, 1)] {
            let mut fixture = Fixture::new(all_of_one);
            fixture.append(first_try);
            fixture.index.freeze();
            let mut nth = 0;
            fixture.write_some(|| {
                nth += 1;
                nth > first_try && nth - first_try - 1 == kept
            });
            // Now in blocks that begin and end elsewhere.
            for events in [10, 50] {
                fixture.index = Index::new(Recent::new(fixture.mark + 1), None, CACHE);
                for version in fixture.mark + 1..=fixture.mark + events {
                    fixture.index.newer().push(&id_key(version), "a", version);
                }
                fixture.index.freeze();
                fixture.write();
            }
            fixture.reopen();
            fixture.check();
            fixture.append(60);
            fixture.index.freeze();
            fixture.write();
            fixture.check();
            fixture.reopen(); // with nothing in memory
            fixture.check();
            let (view, len) = (fixture.view(), fixture.head);
            for start in (1..=len).step_by(13) {
                for end in (start..=len + 1).step_by(7) {
                    fixture.check_versions(&view, "a", start..end, 1000);
                    fixture.check_versions(&view, "a", start..end, 3);
                }
            }
        }
    }

    fn put(engine: &MemoryEngine, aggregate_id: &str, last: u64, value: &[u8]) {
        let (mut entries, mut key) = (Entries::new(), Vec::new());
        keys::write_aggregate(&mut key, aggregate_id, last);
        entries.put(Table::Aggregates, &key, value);
        engine.write(&entries).expect("written");
    }

    #[test]
    fn a_gap_in_an_aggregate_is_told_from_its_end() {
        let engine = MemoryEngine::default();
        for (aggregate_id, last, value) in [
            ("gap", 2, &[10, 10][..]),
            ("gap", 4, &[40]),
            ("gap", 5, &[50]),
            ("damaged", 1, &[10]),
            ("damaged", 2, &[0x80]),
            ("begins late", 2, &[20]),
            ("goes on later", 1, &[10]),
            ("goes on", 1, &[10]),
        ] {
            put(&engine, aggregate_id, last, value);
        }
        let index = Index::new(Recent::new(100), None, CACHE);
        index.newer().push(&id_key(100), "goes on later", 3);
        index.newer().push(&id_key(101), "goes on", 2);
        let view = index.view(&engine);
        let first = |aggregate_id, before| view.first_versions(aggregate_id, before, 9).expect("read");
        assert_eq!(first("gap", u64::MAX), (vec![10, 20], Listed::UpToGap));
        assert_eq!(first("gap", 20), (vec![10], Listed::All), "what lies behind is nobody's concern");
        assert!(matches!(view.first_versions("damaged", u64::MAX, 9), Err(Error::Corrupt { .. })));
        assert_eq!(first("begins late", u64::MAX), (vec![], Listed::UpToGap));
        assert_eq!(first("goes on later", u64::MAX), (vec![10], Listed::UpToGap));
        assert_eq!(first("goes on", u64::MAX), (vec![10, 101], Listed::All));
        assert_eq!(first("goes on", 101), (vec![10], Listed::All));
        assert_eq!(first("nobody", u64::MAX), (vec![], Listed::All));
        let listed =
            |aggregate_id, revisions, direction| view.versions_of(aggregate_id, revisions, direction, 9).expect("read");
        assert_eq!(listed("gap", 1..6, Direction::Forward), [10, 20]);
        assert_eq!(listed("gap", 1..6, Direction::Backward), [50, 40]);
        assert_eq!(listed("gap", 3..4, Direction::Backward), [0; 0]);
        assert_eq!(listed("gap", 3..4, Direction::Forward), [0; 0]);
        assert_eq!(listed("goes on later", 1..4, Direction::Forward), [10]);
        for revision in [1, 2] {
            let is_there = view.version_of("begins late", revision).is_ok();
            assert_eq!(is_there, revision == 2);
        }
    }

    #[test]
    fn ids_of_a_wrong_size_are_damage() {
        let engine = MemoryEngine::default();
        let mut entries = Entries::new();
        entries.put(Table::Ids, &id_key(1), b"seven b");
        engine.write(&entries).expect("written");
        let index = Index::new(Recent::new(5), None, CACHE);
        let found = index.view(&engine).find_id(&id_key(1));
        assert!(matches!(&found, Err(Error::Corrupt { reason, .. }) if reason.contains("id-1")), "{found:?}");
    }

    #[test]
    fn the_greatest_id_of_each_kind_is_known_wherever_it_is() {
        let key = |id: &str| {
            let mut key = Vec::new();
            keys::write_id(&mut key, id);
            key
        };
        let uuid = |nth: u64| format!("0190a2b4-0000-7000-8000-{nth:012x}");
        let engine = MemoryEngine::default();
        let greatest = |index: &Index| index.view(&engine).greatest_ids().expect("read");
        assert!(greatest(&Index::new(Recent::new(1), None, CACHE)).concat().is_empty());
        let index = Index::new(Recent::new(1), None, CACHE);
        index.newer().push(&key("text-9"), "a", 1);
        index.newer().push(&key(&uuid(5)), "a", 2);
        index.freeze();
        let mut entries = Entries::new();
        index.unwritten().expect("frozen").put_all(&mut entries);
        engine.write(&entries).expect("written");
        index.newer().push(&key("text-5"), "a", 3);
        index.newer().push(&key(&uuid(7)), "a", 4);
        assert_eq!(greatest(&index), [key(&uuid(7)), key("text-9")]);
        assert_eq!(
            greatest(&Index::new(Recent::new(3), None, CACHE)),
            [key(&uuid(5)), key("text-9")],
            "in the tables alone"
        );
    }

    #[test]
    fn what_an_incomplete_index_could_miss_is_corrupt_and_not_missing() {
        let fixture = Fixture::new(|version| format!("aggregate-{}", version % 3));
        let recent = Recent::new(1);
        for version in 1..=8 {
            recent.push(&id_key(version), &(fixture.aggregate_of)(version), version.div_ceil(3));
        }
        let incomplete = Incomplete { version: 9, reason: "its checksum is wrong".to_owned() };
        let index = Index::new(recent, Some(incomplete), CACHE);
        let view = index.view(&fixture.engine);
        let files = std::sync::Arc::new(MemoryDirectory::default());
        let log =
            Log::open(files, [0; 16], &Options::default(), Known { synced: 0 }, 0, &mut |_, _| {}).expect("opened").log;
        for (id, head, is_known) in [(9, 20, false), (99, 20, false), (9, 9, false), (9, 8, true), (99, 8, true)] {
            let found = reader::find(&log, &view, &format!("id-{id}"), Version::new(head));
            assert_eq!(matches!(found, Ok(None)), is_known, "{id} up to {head}: {found:?}");
            assert_eq!(matches!(found, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 9), !is_known);
        }
        assert!(matches!(reader::revision_at(&view, "aggregate-1", Version::new(20)), Err(Error::Corrupt { .. })));
        assert_eq!(reader::revision_at(&view, "aggregate-1", Version::new(8)).expect("all of it is known"), 3);
        assert!(index.incomplete().is_some());
    }

    /// A step in the life of an index.
    #[derive(Clone, Debug)]
    enum Step {
        Append(u64),
        Lose(u64),
        /// Freezes while a group is being committed; the flag says whether that succeeds.
        FreezeInFlight(u64, bool),
        Freeze,
        Write,
        /// Crashes after writing the entries selected by these bits.
        Crash(u64),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..60u64).prop_map(Step::Append),
            1 => (1..9u64).prop_map(Step::Lose),
            1 => (1..9u64, any::<bool>()).prop_map(|(events, is_committed)| Step::FreezeInFlight(events, is_committed)),
            3 => Just(Step::Freeze),
            2 => Just(Step::Write),
            2 => any::<u64>().prop_map(Step::Crash),
            1 => Just(Step::Reopen),
        ]
    }

    impl Fixture {
        fn take(&mut self, step: Step) {
            match step {
                Step::Append(events) => self.append(events),
                Step::Lose(events) => {
                    self.stage(events);
                    self.index.take_back(self.head);
                }
                Step::FreezeInFlight(events, is_committed) if self.index.unwritten().is_none() => {
                    self.stage(events);
                    self.index.freeze();
                    if is_committed { self.commit() } else { self.index.take_back(self.head) }
                }
                Step::Freeze if self.index.unwritten().is_none() => drop(self.index.freeze()),
                Step::FreezeInFlight(..) | Step::Freeze => {}
                Step::Write => self.write(),
                Step::Crash(bits) => {
                    let mut nth = 0;
                    self.write_some(|| {
                        nth = (nth + 1) % 64;
                        bits >> nth & 1 != 0
                    });
                }
                Step::Reopen => self.reopen(),
            }
        }
    }

    #[test]
    fn tables_that_are_younger_than_what_is_in_memory_show_no_gap() {
        let (engine, index) = (MemoryEngine::default(), Index::new(Recent::new(1), None, CACHE));
        let append = |version: u64| index.newer().push(&id_key(version), "a", version);
        let write = || {
            index.freeze();
            let mut entries = Entries::new();
            index.unwritten().expect("just frozen").put_all(&mut entries);
            engine.write(&entries).expect("written");
            index.written();
        };
        let head = Version::new(2);
        for versions in [1..3, 3..5] {
            versions.for_each(append);
            write();
        }
        (5..7).for_each(append);
        // The view has taken the in-memory part. It takes the snapshot when everything else is in the tables.
        let view = index.view(&engine);
        write();
        (7..40).for_each(append);
        write();
        assert_eq!(reader::revision_at(&view, "a", head).expect("read"), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_happens_it_leads_to_every_event(
            steps in proptest::collection::vec(step(), 1..40),
            is_one: bool,
            parts in proptest::collection::vec((0.0..1.0f64, 0.0..1.0f64, 1..200usize), 20),
        ) {
            let mut fixture = Fixture::new(if is_one { all_of_one } else { some_have_many });
            for step in steps {
                fixture.take(step);
            }
            fixture.check();
            let view = fixture.view();
            for (aggregate_id, versions) in &fixture.versions {
                let len = versions.len() as f64;
                for &(start, part, most) in &parts {
                    let start = 1 + (start * len) as u64;
                    let end = start + (part * (len + 1.0 - start as f64)).round() as u64;
                    fixture.check_versions(&view, aggregate_id, start..end, most);
                    fixture.check_first(&view, aggregate_id, (part * fixture.head as f64) as u64 + 1, most);
                }
            }
        }
    }
}

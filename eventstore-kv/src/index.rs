//! Where the events with an id or of an aggregate are.
//!
//! Only the log has to be synced before an append is answered. What leads to the newest events is kept in memory, and
//! goes into the engine's index tables later, sorted, a slice with each group: an index that is written in the order of
//! its keys costs a fraction of one that is written as the events come. A mark in the table `meta` says how far the tables
//! reach. Opening reads the log behind it, which is bounded.
//!
//! ```text
//!   versions   1 ──────────────────── mark ────────── older ────────── newer ──── head
//!   found in   the engine's tables     │  memory, and on its  │  memory
//!                                      │  way into the tables │
//! ```
//!
//! The older events stay in memory until the newer ones become the older. A view takes what is in memory first and the
//! snapshot after it: what has left memory by then is in the snapshot.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use eventstore_api::{Direction, Durability, Error, Result};

use crate::engine::{Engine, KeyRange, Snapshot, Table, WriteBatch};
use crate::recent::{KeyOrder, Recent, Written};
use crate::record::corrupt;
use crate::rows::{End, read_rows};
use crate::sync::{OnceLock, PoisonError, RwLock, thread};
use crate::{StoreOptions, keys, reader, record};

/// What is in memory, for readers and the writer.
pub(crate) struct Index {
    generations: RwLock<Generations>,
    incomplete: Option<Arc<Incomplete>>,
}

#[derive(Clone)]
struct Generations {
    /// No more events come to it. Once the tables lead to all of them, they are here for speed alone.
    older: Option<Arc<Recent>>,
    newer: Arc<Recent>,
}

/// The log is damaged behind the mark, so that nobody knows what leads to this version and those behind it.
#[derive(Debug)]
pub(crate) struct Incomplete {
    pub(crate) version: u64,
    pub(crate) reason: String,
}

impl Incomplete {
    pub(crate) fn error(&self) -> Error {
        corrupt(self.version, &format!("{}; what leads to it and to all behind it is not known", self.reason))
    }
}

/// The index of a store that is opened.
pub(crate) struct Opened {
    pub(crate) index: Index,
    /// Bytes of the records behind the mark.
    pub(crate) recent_bytes: u64,
    /// Aggregates whose first event is one of them.
    pub(crate) recent_aggregates: u64,
}

impl Opened {
    /// Reads the log behind the mark, up to the newest event.
    ///
    /// # Errors
    ///
    /// Those of the engine. Damage leaves the index incomplete.
    pub(crate) fn read<E: Engine>(engine: &E, mark: u64, newest: u64) -> Result<Self> {
        let recent = Recent::new(mark + 1);
        let (mut next, mut bytes, mut key, mut incomplete) = (mark + 1, 0, Vec::new(), None);
        while next <= newest && incomplete.is_none() {
            let (rows, end) = read_rows(&engine.snapshot()?, next..newest + 1);
            let before = next;
            for (version, range) in rows.ranges {
                let len = range.len() as u64;
                let damage = match record::decode(version, &rows.bytes, range) {
                    _ if version != next => Some("it is missing from the log".to_owned()),
                    Ok(recorded) => {
                        keys::write_id(&mut key, recorded.event.id());
                        recent.push(&key, recorded.event.aggregate_id(), recorded.revision);
                        None
                    }
                    Err(Error::Corrupt { reason, .. }) => Some(reason),
                    Err(other) => return Err(other),
                };
                if let Some(reason) = damage {
                    incomplete = Some(Incomplete { version: next, reason });
                    break;
                }
                (next, bytes) = (version + 1, bytes + len);
            }
            if incomplete.is_none() && next == before {
                let reason = match end {
                    End::Unreadable(reason) => reason,
                    End::Full | End::Range => "it is missing from the log".to_owned(),
                };
                incomplete = Some(Incomplete { version: next, reason });
            }
        }
        let recent_aggregates = recent.new_aggregates();
        let generations = RwLock::new(Generations { older: None, newer: Arc::new(recent) });
        let index = Index { generations, incomplete: incomplete.map(Arc::new) };
        Ok(Opened { index, recent_bytes: bytes, recent_aggregates })
    }
}

impl Index {
    fn generations(&self) -> Generations {
        self.generations.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The damage of the log that keeps it from being complete. Nothing may be appended then.
    pub(crate) fn incomplete(&self) -> Option<&Incomplete> {
        self.incomplete.as_deref()
    }

    /// The events to which more are added.
    pub(crate) fn newer(&self) -> Arc<Recent> {
        self.generations.read().unwrap_or_else(PoisonError::into_inner).newer.clone()
    }

    /// The events behind `head` were not committed.
    pub(crate) fn take_back(&self, head: u64) {
        self.newer().truncate(head + 1);
    }

    /// All of the index, as of now or later.
    pub(crate) fn view<'e, E: Engine>(&self, engine: &'e E) -> Result<View<E::Snapshot<'e>>> {
        let recent = self.generations(); // before the snapshot
        Ok(View { recent, incomplete: self.incomplete.clone(), snapshot: engine.snapshot()? })
    }

    /// The newer events become the older ones.
    fn freeze(&self) -> Arc<Recent> {
        let mut generations = self.generations.write().unwrap_or_else(PoisonError::into_inner);
        let next = Arc::new(Recent::behind(&generations.newer));
        let frozen = std::mem::replace(&mut generations.newer, next);
        generations.older = Some(frozen.clone());
        frozen
    }
}

/// The index at one moment, and a snapshot of the engine for everything else.
pub(crate) struct View<S> {
    recent: Generations,
    incomplete: Option<Arc<Incomplete>>,
    snapshot: S,
}

impl<S: Snapshot> View<S> {
    pub(crate) fn snapshot(&self) -> &S {
        &self.snapshot
    }

    /// Where the index ends, if that is not behind this version.
    pub(crate) fn ends_before(&self, last: u64) -> Option<&Incomplete> {
        self.incomplete.as_deref().filter(|incomplete| incomplete.version <= last)
    }

    fn generations(&self) -> impl DoubleEndedIterator<Item = &Recent> {
        self.recent.older.iter().chain([&self.recent.newer]).map(|recent| &**recent)
    }

    /// The version of the event whose id has this key, if it is in memory.
    pub(crate) fn find_recent_id(&self, id_key: &[u8]) -> Option<u64> {
        self.generations().rev().find_map(|recent| recent.find_id(id_key))
    }

    /// The version of the event whose id has this key, if the table has it.
    pub(crate) fn find_id_in_table(&self, id_key: &[u8]) -> Result<Option<u64>> {
        self.find_in_table(Table::Ids, id_key, || {
            format!("the index entry of event {:?} has a wrong size", keys::read_id(id_key).unwrap_or_default())
        })
    }

    /// The version of the event whose id has this key.
    pub(crate) fn find_id(&self, id_key: &[u8]) -> Result<Option<u64>> {
        match self.find_recent_id(id_key) {
            Some(version) => Ok(Some(version)),
            None => self.find_id_in_table(id_key),
        }
    }

    fn find_in_table(&self, table: Table, key: &[u8], damage: impl FnOnce() -> String) -> Result<Option<u64>> {
        let mut value = Vec::with_capacity(size_of::<u64>());
        if !self.snapshot.get(table, key, &mut value)? {
            return Ok(None);
        }
        let version = keys::read_version(&value);
        version.map(Some).ok_or_else(|| Error::Corrupt { version: None, reason: damage() })
    }

    /// The newest revision of an aggregate and its version: before `before` if it is in memory, where what is not committed
    /// may vanish again.
    pub(crate) fn newest_revision(&self, aggregate_id: &str, before: u64) -> Result<Option<(u64, u64)>> {
        match self.generations().rev().find_map(|recent| recent.newest_revision(aggregate_id, before)) {
            Some(newest) => Ok(Some(newest)),
            None => self.newest_revision_in_table(aggregate_id),
        }
    }

    fn newest_revision_in_table(&self, aggregate_id: &str) -> Result<Option<(u64, u64)>> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        keys::write_aggregate(&mut first, aggregate_id, 0);
        keys::write_aggregate(&mut last, aggregate_id, u64::MAX);
        let mut newest = None;
        let range = KeyRange { first: &first, last: &last };
        self.snapshot.scan(Table::Aggregates, range, Direction::Backward, |key, value| {
            newest = Some(keys::read_revision(key).zip(keys::read_version(value)));
            ControlFlow::Break(())
        })?;
        match newest {
            None => Ok(None),
            Some(Some(found)) => Ok(Some(found)),
            Some(None) => Err(damage_of(aggregate_id, "has an entry of a wrong size")),
        }
    }

    /// The version of a revision, which exists.
    pub(crate) fn version_of(&self, aggregate_id: &str, revision: u64, key: &mut Vec<u8>) -> Result<u64> {
        let mut found = Vec::new();
        for recent in self.generations() {
            recent.versions_of(aggregate_id, &(revision..revision + 1), Direction::Forward, &mut found, 1);
        }
        if let Some(&version) = found.first() {
            return Ok(version);
        }
        keys::write_aggregate(key, aggregate_id, revision);
        let has_gaps = || format!("the index of aggregate {aggregate_id:?} has gaps");
        let found = self.find_in_table(Table::Aggregates, key, has_gaps)?;
        found.ok_or_else(|| damage_of(aggregate_id, "has gaps"))
    }

    /// The versions of an aggregate's first events, those before `before` and up to `most` of them.
    pub(crate) fn first_versions(&self, aggregate_id: &str, before: u64, most: usize) -> Result<(Vec<u64>, Listed)> {
        let oldest_recent = self.generations().find_map(|recent| recent.oldest_revision(aggregate_id));
        let last_in_table = oldest_recent.map_or(u64::MAX, |oldest| oldest - 1);
        let (mut versions, mut has_gap) = (Vec::new(), false);
        let is_enough = |versions: &[u64]| versions.len() > most || versions.last().is_some_and(|&last| last >= before);
        if last_in_table > 0 {
            let (mut first, mut last) = (Vec::new(), Vec::new());
            keys::write_aggregate(&mut first, aggregate_id, 1);
            keys::write_aggregate(&mut last, aggregate_id, last_in_table);
            let range = KeyRange { first: &first, last: &last };
            self.snapshot.scan(Table::Aggregates, range, Direction::Forward, |key, value| {
                let is_next = keys::read_revision(key) == Some(versions.len() as u64 + 1);
                versions.extend(keys::read_version(value).filter(|_| is_next));
                has_gap = !is_next || keys::read_version(value).is_none();
                if has_gap || is_enough(&versions) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        if !has_gap && !is_enough(&versions) && oldest_recent.is_some() {
            has_gap = versions.len() as u64 != last_in_table;
            if !has_gap {
                for recent in self.generations() {
                    recent.versions_of(aggregate_id, &(1..u64::MAX), Direction::Forward, &mut versions, most + 1);
                }
            }
        }
        let listed = match versions.iter().position(|&version| version >= before) {
            Some(place) => {
                versions.truncate(place);
                Listed::All
            }
            None if versions.len() > most => Listed::Most,
            None if has_gap => Listed::UpToGap,
            None => Listed::All,
        };
        versions.truncate(most);
        Ok((versions, listed))
    }

    /// The versions of the first `most` of these revisions in a direction, which exist; fewer if the table has gaps. A
    /// damaged entry is version 0.
    pub(crate) fn versions_of(
        &self,
        aggregate_id: &str,
        revisions: &Range<u64>,
        direction: Direction,
        most: usize,
    ) -> Result<Vec<u64>> {
        let mut versions = Vec::with_capacity(most);
        let oldest_recent = self.generations().find_map(|recent| recent.oldest_revision(aggregate_id));
        let in_table = revisions.start..revisions.end.min(oldest_recent.unwrap_or(u64::MAX));
        match direction {
            Direction::Forward => {
                self.versions_in_table(aggregate_id, &in_table, direction, most, &mut versions)?;
                if versions.len() as u64 >= in_table.end.saturating_sub(in_table.start) {
                    for recent in self.generations() {
                        recent.versions_of(aggregate_id, revisions, direction, &mut versions, most);
                    }
                }
            }
            Direction::Backward => {
                for recent in self.generations().rev() {
                    recent.versions_of(aggregate_id, revisions, direction, &mut versions, most);
                }
                self.versions_in_table(aggregate_id, &in_table, direction, most, &mut versions)?;
            }
        }
        Ok(versions)
    }

    fn versions_in_table(
        &self,
        aggregate_id: &str,
        revisions: &Range<u64>,
        direction: Direction,
        most: usize,
        versions: &mut Vec<u64>,
    ) -> Result<()> {
        if revisions.is_empty() || versions.len() >= most {
            return Ok(());
        }
        let (mut first, mut last) = (Vec::new(), Vec::new());
        keys::write_aggregate(&mut first, aggregate_id, revisions.start);
        keys::write_aggregate(&mut last, aggregate_id, revisions.end - 1);
        let range = KeyRange { first: &first, last: &last };
        self.snapshot.scan(Table::Aggregates, range, direction, |_, value| {
            versions.push(keys::read_version(value).unwrap_or(0));
            if versions.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }

    /// The greatest key of each kind of ids; empty if there is none.
    pub(crate) fn greatest_ids(&self) -> Result<[Vec<u8>; keys::ID_KINDS]> {
        let mut greatest = reader::greatest_ids(&self.snapshot)?;
        for recent in self.generations() {
            recent.for_each_id(|key| {
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

/// How far a list of an aggregate's versions goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// To the last one that was asked for.
    All,
    /// There are more of them.
    Most,
    /// What comes next is missing from the index, or damaged.
    UpToGap,
}

/// The version up to which the tables lead to every event.
///
/// # Errors
///
/// `Corrupt` if a store does not say so, which every store of this format does.
pub(crate) fn mark<S: Snapshot>(snapshot: &S) -> Result<u64> {
    let mut value = Vec::new();
    let found = snapshot.get(Table::Meta, keys::META_INDEXED, &mut value)?;
    let mark = found.then(|| keys::read_version(&value)).flatten();
    mark.ok_or_else(|| Error::Corrupt {
        version: None,
        reason: "it does not say how far its index tables reach".to_owned(),
    })
}

/// An index entry of an aggregate that cannot be.
pub(crate) fn damage_of(aggregate_id: &str, what: &str) -> Error {
    Error::Corrupt { version: None, reason: format!("the index of aggregate {aggregate_id:?} {what}") }
}

/// What the writer still has to put into the index tables.
pub(crate) struct Debt {
    run_events: u64,
    run_bytes: u64,
    /// Bytes of the records of the newer events.
    newer_bytes: u64,
    run: Option<Run>,
}

/// The older events, whose entries are being written.
struct Run {
    recent: Arc<Recent>,
    order: Sorted,
    /// Entries of all of them.
    entries: u64,
    written: Written,
    /// With the batch that is being committed.
    writing: Written,
    /// Entries that should have been written, and were not yet.
    due: u64,
}

/// The order of the keys of older events. That of many is made on a thread of its own: no append waits for it.
struct Sorted {
    order: Arc<OnceLock<KeyOrder>>,
    sorting: Option<thread::JoinHandle<()>>,
}

/// So many events are sorted at once.
const FEW_EVENTS: usize = 2048;

impl Sorted {
    fn begin(recent: &Arc<Recent>) -> Self {
        let order = Arc::new(OnceLock::new());
        let sort = {
            let (recent, order) = (recent.clone(), order.clone());
            move || drop(order.set(recent.key_order()))
        };
        let thread = || thread::Builder::new().name("eventstore-sort".to_owned());
        let sorting = match recent.len() {
            ..=FEW_EVENTS => None,
            _ => thread().spawn(sort).ok(),
        };
        let mut sorted = Sorted { order, sorting };
        if sorted.sorting.is_none() {
            sorted.wait(recent);
        }
        sorted
    }

    fn get(&self) -> Option<&KeyOrder> {
        self.order.get()
    }

    /// Waits until there is one.
    fn wait(&mut self, recent: &Recent) {
        if let Some(sorting) = self.sorting.take() {
            let _ = sorting.join();
        }
        self.order.get_or_init(|| recent.key_order());
    }
}

/// Fewer entries are not worth a place in a batch: neighbours share a page.
const FEWEST_ENTRIES: u64 = 128;

/// Entries that are written together when nobody appends.
const LARGEST_SLICE: usize = 16_384;

impl Run {
    /// Puts a slice into the batch, and the mark with the last; nothing while the keys are being sorted.
    fn put_some(&mut self, batch: &mut WriteBatch, most: usize) {
        let Some(order) = self.order.get() else { return };
        self.writing = self.recent.put_some(order, self.written, most, batch);
        if order.is_done(self.writing) {
            batch.put(Table::Meta, keys::META_INDEXED, &keys::version_bytes(self.recent.end() - 1));
        }
    }
}

impl Debt {
    /// Of a store that was opened with so many bytes of records behind the mark.
    pub(crate) fn new(options: &StoreOptions, newer_bytes: u64) -> Self {
        let (run_events, run_bytes) = (options.index_events as u64, options.index_bytes as u64);
        Debt { run_events, run_bytes, newer_bytes, run: None }
    }

    /// Before a group is staged: if the newer events are many, they become the older ones.
    pub(crate) fn begin_group(&mut self, index: &Index) {
        let newer = index.newer().len() as u64;
        match &mut self.run {
            None if newer >= self.run_events || self.newer_bytes >= self.run_bytes => self.begin_run(index),
            // However busy the processors are, what is in memory does not grow for ever.
            Some(run) if newer >= 2 * self.run_events => run.order.wait(&run.recent),
            _ => {}
        }
    }

    fn begin_run(&mut self, index: &Index) {
        let events = index.newer().len() as u64;
        if self.run.is_some() || events == 0 {
            return;
        }
        let recent = index.freeze();
        let order = Sorted::begin(&recent);
        self.newer_bytes = 0;
        let written = Written::default();
        self.run = Some(Run { recent, order, entries: 2 * events, written, writing: written, due: 0 });
    }

    /// Puts a slice of what is due into the batch of a group that has `events` new ones, in `bytes` of records. It is so
    /// large that all of the older events are done before the newer ones are many.
    pub(crate) fn pay(&mut self, batch: &mut WriteBatch, events: u64, bytes: u64) {
        let Some(run) = &mut self.run else { return };
        let share = |of: u64, all: u64| (run.entries * of).div_ceil(all.max(1)) * 5 / 4 + 1;
        run.due += share(events, self.run_events).max(share(bytes, self.run_bytes));
        if run.due >= FEWEST_ENTRIES.min(run.entries) {
            run.put_some(batch, usize::try_from(run.due).unwrap_or(usize::MAX));
        }
    }

    /// Whether there is more than a store that is open ever has. It was killed again and again then, each time before it had
    /// written all that was due.
    pub(crate) fn is_overdue(&self, index: &Index) -> bool {
        index.newer().len() as u64 > 4 * self.run_events || self.newer_bytes > 4 * self.run_bytes
    }

    /// Writes all that is left, while nobody appends. Nothing is lost if it fails: the next opening reads more of the log.
    ///
    /// # Errors
    ///
    /// Those of a commit.
    pub(crate) fn settle<E: Engine>(&mut self, index: &Index, engine: &E) -> Result<()> {
        let mut batch = WriteBatch::new();
        self.begin_run(index);
        while let Some(run) = &mut self.run {
            run.order.wait(&run.recent);
            run.put_some(&mut batch, LARGEST_SLICE);
            engine.commit(&batch, Durability::Sync)?;
            self.paid(0);
            batch.clear();
            self.begin_run(index);
        }
        Ok(())
    }

    /// The batch was committed.
    pub(crate) fn paid(&mut self, bytes: u64) {
        self.newer_bytes += bytes;
        let Some(run) = &mut self.run else { return };
        if run.writing != run.written {
            (run.written, run.due) = (run.writing, 0);
        }
        if run.order.get().is_some_and(|order| order.is_done(run.written)) {
            self.run = None; // the older events stay in memory for as long as there is room, which is faster
        }
    }

    /// The batch was not committed.
    pub(crate) fn not_paid(&mut self) {
        if let Some(run) = &mut self.run {
            run.writing = run.written;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use eventstore_api::{Event, Version};

    use super::*;
    use crate::MemoryEngine;
    use crate::record::Micros;
    use crate::transfer::put_indexes;

    /// A store of events `id-1`, `id-2` and so on, all of whose index entries are known, in a table or in memory.
    struct Fixture {
        engine: MemoryEngine,
        index: Index,
        debt: Debt,
        head: u64,
        revisions: BTreeMap<String, u64>,
    }

    fn options(index_events: usize) -> StoreOptions {
        StoreOptions { index_events, ..StoreOptions::default() }
    }

    fn id_key(version: u64) -> Vec<u8> {
        let mut key = Vec::new();
        keys::write_id(&mut key, &format!("id-{version}"));
        key
    }

    /// Which aggregate a version belongs to: some have many events, some one.
    fn aggregate_of(version: u64) -> String {
        if version.is_multiple_of(7) { format!("rare-{version}") } else { format!("aggregate-{}", version % 3) }
    }

    fn event(version: u64) -> Event {
        let builder = Event::builder("Tested", aggregate_of(version)).id(format!("id-{version}"));
        builder.data(vec![7; 20]).build().expect("valid")
    }

    impl Fixture {
        fn new(index_events: usize) -> Self {
            let engine = MemoryEngine::default();
            let mut batch = WriteBatch::new();
            batch.put(Table::Meta, keys::META_INDEXED, &keys::version_bytes(0));
            engine.commit(&batch, Durability::Sync).expect("committed");
            let index = Opened::read(&engine, 0, 0).expect("read").index;
            let debt = Debt::new(&options(index_events), 0);
            Fixture { engine, index, debt, head: 0, revisions: BTreeMap::new() }
        }

        /// As the writer does it.
        fn append(&mut self, events: u64, is_committed: bool) {
            self.debt.begin_group(&self.index);
            let mut batch = WriteBatch::new();
            let mut revisions = self.revisions.clone();
            for version in self.head + 1..=self.head + events {
                let event = event(version);
                let revision = revisions.entry(event.aggregate_id().to_owned()).or_default();
                *revision += 1;
                let header = record::header(&event, version, *revision, Micros::now());
                batch.put_parts(Table::Events, &keys::version_bytes(version), &[&header, event.bytes()]);
                self.index.newer().push(&id_key(version), event.aggregate_id(), *revision);
            }
            let bytes = batch.len_bytes() as u64;
            self.debt.pay(&mut batch, events, bytes);
            if is_committed {
                self.engine.commit(&batch, Durability::Sync).expect("committed");
                self.debt.paid(bytes);
                (self.head, self.revisions) = (self.head + events, revisions);
            } else {
                self.index.take_back(self.head);
                self.debt.not_paid();
            }
        }

        /// The index leads to every event, in all of its ways.
        fn check(&self) {
            let view = self.index.view(&self.engine).expect("view");
            let mut key = Vec::new();
            let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for version in 1..=self.head {
                assert_eq!(view.find_id(&id_key(version)).expect("read"), Some(version));
                versions.entry(aggregate_of(version)).or_default().push(version);
            }
            assert_eq!(view.find_id(&id_key(self.head + 1)).expect("read"), None);
            for (aggregate_id, versions) in versions {
                let newest = (versions.len() as u64, *versions.last().expect("one at least"));
                assert_eq!(view.newest_revision(&aggregate_id, u64::MAX).expect("read"), Some(newest));
                for (&version, revision) in versions.iter().zip(1..) {
                    assert_eq!(view.version_of(&aggregate_id, revision, &mut key).expect("read"), version);
                }
                for (before, most) in [(u64::MAX, 1000), (u64::MAX, 3), (newest.1, 2), (newest.1, 1000), (1, 1)] {
                    let mut expected: Vec<_> = versions.iter().copied().filter(|&version| version < before).collect();
                    let listed = if expected.len() > most { Listed::Most } else { Listed::All };
                    expected.truncate(most);
                    let first = view.first_versions(&aggregate_id, before, most).expect("read");
                    assert_eq!(first, (expected, listed), "{aggregate_id}, {most} before {before}");
                }
                for (start, end, most) in [(1, newest.0 + 1, 1000), (2, newest.0 + 1, 3), (1, newest.0, 2), (3, 6, 9)] {
                    let Some(expected) = versions.get(start as usize - 1..end as usize - 1) else { continue };
                    let read =
                        |direction| view.versions_of(&aggregate_id, &(start..end), direction, most).expect("read");
                    let forward: Vec<_> = expected.iter().copied().take(most).collect();
                    assert_eq!(read(Direction::Forward), forward, "{aggregate_id} {start}..{end}");
                    let backward: Vec<_> = expected.iter().rev().copied().take(most).collect();
                    assert_eq!(read(Direction::Backward), backward, "{aggregate_id} {start}..{end}");
                }
            }
        }

        fn mark(&self) -> u64 {
            mark(&self.engine.snapshot().expect("snapshot")).expect("there")
        }

        fn reopen(&mut self, index_events: usize) {
            let opened = Opened::read(&self.engine, self.mark(), self.head).expect("read");
            assert!(opened.index.incomplete().is_none());
            self.debt = Debt::new(&options(index_events), opened.recent_bytes);
            self.index = opened.index;
        }
    }

    #[test]
    fn it_leads_to_every_event_at_every_moment() {
        for index_events in [1, 2, 10, 100, 1000] {
            let mut fixture = Fixture::new(index_events);
            for group in 0..60 {
                if group % 5 == 3 {
                    fixture.append(group % 4 + 1, false);
                    fixture.check();
                }
                fixture.append(group * 7 % 11 + 1, true);
                fixture.check();
                if group % 13 == 12 {
                    fixture.reopen(index_events);
                    fixture.check();
                }
            }
            fixture.debt.settle(&fixture.index, &fixture.engine).expect("committed");
            fixture.check();
            assert_eq!((fixture.mark(), fixture.index.newer().len()), (fixture.head, 0));
        }
    }

    #[test]
    fn what_is_in_memory_is_bounded() {
        for (index_events, group) in [(1, 1), (10, 3), (100, 1), (100, 70), (300, 7), (3000, 100)] {
            let mut fixture = Fixture::new(index_events);
            for _ in 0..(6 * index_events as u64).max(2000) / group {
                fixture.append(group, true);
                let in_memory = fixture.head - fixture.mark();
                // While the keys of many are sorted, twice so many may come.
                let generations = if index_events > FEW_EVENTS { 3 } else { 2 };
                let most = generations * (index_events as u64 + group);
                assert!(in_memory <= most, "{in_memory} of {index_events}, {group}");
                assert!(!fixture.debt.is_overdue(&fixture.index));
            }
        }
        // A store that is always killed before it has written what is due.
        let mut fixture = Fixture::new(100);
        while !fixture.debt.is_overdue(&fixture.index) {
            fixture.append(50, true);
            fixture.reopen(100);
        }
        assert_eq!((fixture.head, fixture.mark()), (450, 0));
        fixture.debt.settle(&fixture.index, &fixture.engine).expect("committed");
        assert_eq!(fixture.mark(), 450);
        fixture.check();
    }

    #[test]
    fn the_tables_are_those_that_would_be_written_at_once() {
        let mut fixture = Fixture::new(10);
        (0..40).for_each(|_| fixture.append(3, true));
        fixture.debt.settle(&fixture.index, &fixture.engine).expect("committed");
        let mut batch = WriteBatch::new();
        let at_once = MemoryEngine::default();
        let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
        for version in 1..=fixture.head {
            let revision = revisions.entry(aggregate_of(version)).or_default();
            *revision += 1;
            put_indexes(&mut batch, &mut Vec::new(), &event(version), version, *revision);
        }
        at_once.commit(&batch, Durability::Sync).expect("committed");
        let content = |engine: &MemoryEngine, table| {
            let mut content = Vec::new();
            let range = KeyRange { first: keys::FIRST_KEY, last: keys::LAST_KEY };
            let snapshot = engine.snapshot().expect("snapshot");
            let scanned = snapshot.scan(table, range, Direction::Forward, |key, value| {
                content.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            });
            scanned.expect("scanned");
            content
        };
        for table in [Table::Ids, Table::Aggregates] {
            assert_eq!(content(&fixture.engine, table), content(&at_once, table), "{table:?}");
        }
    }

    #[test]
    fn a_gap_in_an_aggregate_is_told_from_its_end() {
        let engine = MemoryEngine::default();
        let mut batch = WriteBatch::new();
        let mut put = |aggregate_id: &str, revision: u64, value: &[u8]| {
            let mut key = Vec::new();
            keys::write_aggregate(&mut key, aggregate_id, revision);
            batch.put(Table::Aggregates, &key, value);
        };
        for revision in [1, 2, 4] {
            put("gap", revision, &keys::version_bytes(revision * 10));
        }
        put("damaged", 1, &keys::version_bytes(10));
        put("damaged", 2, b"short");
        put("begins late", 2, &keys::version_bytes(20));
        put("goes on later", 1, &keys::version_bytes(10));
        put("goes on", 1, &keys::version_bytes(10));
        engine.commit(&batch, Durability::Sync).expect("committed");
        let index = Opened::read(&engine, 99, 99).expect("read").index;
        index.newer().push(&id_key(100), "goes on later", 3);
        index.newer().push(&id_key(101), "goes on", 2);
        let view = index.view(&engine).expect("view");
        let first = |aggregate_id, before| view.first_versions(aggregate_id, before, 9).expect("read");
        assert_eq!(first("gap", u64::MAX), (vec![10, 20], Listed::UpToGap));
        assert_eq!(first("gap", 20), (vec![10], Listed::All), "what lies behind is nobody's concern");
        assert_eq!(first("damaged", u64::MAX), (vec![10], Listed::UpToGap));
        assert_eq!(first("begins late", u64::MAX), (vec![], Listed::UpToGap));
        assert_eq!(first("goes on later", u64::MAX), (vec![10], Listed::UpToGap));
        assert_eq!(first("goes on", u64::MAX), (vec![10, 101], Listed::All));
        assert_eq!(first("goes on", 101), (vec![10], Listed::All));
        assert_eq!(first("nobody", u64::MAX), (vec![], Listed::All));
    }

    #[test]
    fn damage_behind_the_mark_leaves_it_incomplete_and_says_so() {
        for value in [&b"damaged"[..], b""] {
            let mut fixture = Fixture::new(1000);
            fixture.append(20, true);
            let mut batch = WriteBatch::new();
            batch.put(Table::Events, &keys::version_bytes(9), value);
            fixture.engine.commit(&batch, Durability::Sync).expect("committed");
            let opened = Opened::read(&fixture.engine, 0, 20).expect("read");
            let incomplete = opened.index.incomplete().expect("it is damaged");
            assert_eq!(incomplete.version, 9);
            let view = opened.index.view(&fixture.engine).expect("view");
            let find = |version: u64| reader::find(&view, &format!("id-{version}"), Version::new(20));
            assert!(find(8).expect("read").is_some());
            for unknown in [9, 10, 20, 99] {
                assert!(matches!(find(unknown), Err(Error::Corrupt { .. })), "{unknown}");
            }
            assert!(matches!(reader::revision_at(&view, "aggregate-1", Version::new(20)), Err(Error::Corrupt { .. })));
            assert_eq!(reader::revision_at(&view, "aggregate-1", Version::new(8)).expect("all of it is known"), 2);
        }
    }

    #[test]
    fn a_gap_behind_the_mark_is_damage() {
        let mut fixture = Fixture::new(1000);
        fixture.append(5, true);
        let opened = Opened::read(&fixture.engine, 0, 7).expect("read");
        assert_eq!(opened.index.incomplete().map(|incomplete| incomplete.version), Some(6));
    }
}

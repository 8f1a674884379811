//! Verification: reads everything and reports what is wrong.
//!
//! One thread reads the log: every frame and record. It recomputes the digest of all events and compares it with the
//! marks that were stored when the events were new. Another thread looks up each event in the index, in the tables up
//! to the mark, and after it in memory. If all are found, the tables can only have too many entries. So these are
//! counted next, and each one is followed only if there are more than events. The engine's own files are checked before
//! the index; if they are damaged, the index is not read.

use std::ops::ControlFlow;

use eventstore_api::{Bytes, Digest, Direction, Error, Event, Finding, RecordedEvent, Result, VerifyReport, Version};
use eventstore_log::Page;

use crate::Task;
use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::error::log_error;
use crate::format::keys;
use crate::format::mark::Mark;
use crate::format::record;
use crate::index::view::{Block, View};
use crate::shared::{Shared, reason};
use crate::sync::{Receiver, SyncSender, sync_channel, thread};

/// Rows between two checks of the task, read from one snapshot.
const ROWS: usize = 1024;

/// Batches of events that may be read from the log ahead of the index checks.
const BATCHES_AHEAD: usize = 8;

/// As large as any key can be, so that a misplaced entry is read as well.
const LARGEST_KEY: [u8; 489] = [0xff; 489];

/// Verifies the events of a store up to its head.
///
/// # Errors
///
/// Those of the task, and of reading what is not damaged. Damage to the store is in the report.
pub(crate) fn verify<E: Engine>(shared: &Shared<E>, engine: &E, task: &Task<'_>) -> Result<VerifyReport> {
    let head = shared.head()?.get();
    let mut findings = Findings::default();
    if let Some(reason) = &shared.unused_index {
        findings.add(None, format!("the index is damaged, so a temporary one was built: {reason}"));
    }
    let is_index_sound = match damage_of(engine.check_files(task))? {
        Err(damage) => {
            findings.add(None, format!("the index is damaged: {damage}; a repair rebuilds it"));
            false
        }
        Ok(()) => true,
    };
    let (sender, receiver) = sync_channel(BATCHES_AHEAD);
    let (log, index) = thread::scope(|scope| {
        let log = scope.spawn(move || LogCheck::new(shared, head, sender).run(task));
        let index = IndexCheck { shared, engine, head, mark: 0, task, findings, done: 0 };
        let index = if is_index_sound { index.run(&receiver) } else { index.pass_over(&receiver) };
        drop(receiver);
        let log = log.join().unwrap_or_else(|_| Err(Error::engine("verify", "the thread that reads the log panicked")));
        (log, index)
    });
    let (log, index) = (log?, index?);
    let mut report = VerifyReport::default();
    report.events = head;
    report.aggregates = log.aggregates;
    report.findings = log.findings.list;
    report.findings.extend(index.list);
    report.is_cut_short = log.findings.is_enough || index.is_enough;
    if report.findings.len() > VerifyReport::MOST_FINDINGS {
        report.findings.truncate(VerifyReport::MOST_FINDINGS);
        report.is_cut_short = true;
    }
    Ok(report)
}

/// The value that was read, or how it is damaged. If reading fails for another reason, such as a lack of file
/// descriptors, the store is not at fault: the verification fails.
fn damage_of<T>(read: Result<T>) -> Result<Result<T, String>> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(damage @ Error::Corrupt { .. }) => Ok(Err(reason(&damage))),
        Err(other) => Err(other),
    }
}

#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    is_enough: bool,
}

impl Findings {
    fn add(&mut self, version: Option<u64>, what: impl Into<String>) {
        if self.list.len() < VerifyReport::MOST_FINDINGS {
            self.list.push(Finding::new(version.map(Version::new), what));
        }
        self.is_enough = self.list.len() == VerifyReport::MOST_FINDINGS;
    }
}

/// What was found in the log.
struct CheckedLog {
    findings: Findings,
    aggregates: u64,
}

struct LogCheck<'a, E: Engine> {
    shared: &'a Shared<E>,
    head: u64,
    /// To the thread that checks the index.
    sender: SyncSender<Vec<RecordedEvent>>,
    batch: Vec<RecordedEvent>,
    /// The other thread has ended: it failed, or has enough findings.
    is_alone: bool,
    findings: Findings,
    aggregates: u64,
    digest: Digest,
    /// The version of the computed digest, if the events up to there are known.
    digest_at: Option<u64>,
    marks: std::iter::Peekable<std::vec::IntoIter<(u64, Digest)>>,
}

impl<'a, E: Engine> LogCheck<'a, E> {
    fn new(shared: &'a Shared<E>, head: u64, sender: SyncSender<Vec<RecordedEvent>>) -> Self {
        LogCheck {
            shared,
            head,
            sender,
            batch: Vec::new(),
            is_alone: false,
            findings: Findings::default(),
            aggregates: 0,
            digest: Digest::EMPTY,
            digest_at: Some(0),
            marks: Vec::new().into_iter().peekable(),
        }
    }

    fn run(mut self, task: &Task<'_>) -> Result<CheckedLog> {
        let log = &self.shared.log;
        for segment in log.segments() {
            if segment.records.start > self.head || self.is_over() {
                break;
            }
            match damage_of(self.shared.digests.marks_of(&segment))? {
                Ok(marks) => self.marks = marks.into_iter().peekable(),
                Err(damage) => self.findings.add(Some(segment.records.start), damage),
            }
            let (mut ended, mut damages) = (None, Vec::new());
            let this = &mut self;
            let checked = log.check_segment(
                segment.number,
                &mut |version, content| this.event(version, content),
                &mut |version, reason| damages.push((version, reason)),
                &mut |_| {
                    ended = task.check().err();
                    ended.is_none()
                },
            );
            if let Some(error) = ended {
                return Err(error);
            }
            for (version, reason) in damages.into_iter().filter(|(version, _)| *version <= self.head) {
                self.findings.add(Some(version), reason);
            }
            match checked {
                Ok(()) => {}
                Err(eventstore_log::Error::Corrupt { record, reason }) => self.findings.add(record, reason),
                Err(other) => return Err(log_error(other)),
            }
        }
        self.send();
        Ok(CheckedLog { findings: self.findings, aggregates: self.aggregates })
    }

    fn event(&mut self, version: u64, content: &[u8]) {
        if version > self.head || self.is_over() {
            return;
        }
        let recorded = match record::decode(version, &Bytes::copy_from_slice(content), 0..content.len()) {
            Ok(recorded) => recorded,
            Err(damage) => return self.findings.add(Some(version), reason(&damage)),
        };
        self.aggregates += u64::from(recorded.revision.get() == 1);
        self.chain(&recorded);
        self.batch.push(recorded);
        if self.batch.len() == ROWS {
            self.send();
        }
    }

    /// Continues the digest and compares it with the marks.
    fn chain(&mut self, recorded: &RecordedEvent) {
        let version = recorded.version.get();
        // After a gap, the digest is unknown up to the next mark.
        self.digest_at = self.digest_at.filter(|&at| at + 1 == version).map(|at| at + 1);
        self.digest = self.digest.chain(recorded);
        while let Some((at, expected)) = self.marks.next_if(|mark| mark.0 <= version) {
            if at < version {
                continue; // in a gap
            }
            if self.digest_at.is_some() && self.digest != expected {
                let what = "the digest of all events up to it differs from the one stored when they were new: this \
                            event or one before it was altered";
                self.findings.add(Some(version), what);
            }
            (self.digest, self.digest_at) = (expected, Some(version));
        }
    }

    fn send(&mut self) {
        self.is_alone = self.sender.send(std::mem::take(&mut self.batch)).is_err();
    }

    fn is_over(&self) -> bool {
        self.is_alone || self.findings.is_enough
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Index {
    Ids,
    Aggregates,
}

impl Index {
    fn table(self) -> Table {
        match self {
            Index::Ids => Table::Ids,
            Index::Aggregates => Table::Aggregates,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Index::Ids => "the id index",
            Index::Aggregates => "the aggregate index",
        }
    }

    /// Describes an event's position in the index.
    fn describe(self, event: &Event, revision: u64) -> String {
        match self {
            Index::Ids => format!("id {:?}", event.id()),
            Index::Aggregates => format!("aggregate {:?}, revision {revision}", event.aggregate_id()),
        }
    }

    /// Describes an entry.
    fn describe_key(self, key: &[u8]) -> String {
        let read = match self {
            Index::Ids => keys::read_id(key).map(|id| format!("id {id:?}")),
            Index::Aggregates => {
                keys::read_aggregate(key).map(|(id, revision)| format!("aggregate {id:?}, up to revision {revision}"))
            }
        };
        read.unwrap_or_else(|| format!("the key {}", key.escape_ascii()))
    }
}

/// The revisions of an aggregate while they are counted.
#[derive(Default)]
struct Counting {
    aggregate_id: String,
    newest: u64,
    newest_version: u64,
    counted: u64,
    /// The first revisions of blocks after a gap, and their versions. A block that ends later may fill the gap.
    waiting: Vec<(u64, Vec<u64>)>,
}

struct IndexCheck<'a, E: Engine> {
    shared: &'a Shared<E>,
    engine: &'a E,
    head: u64,
    /// The tables must have every event up to this version.
    mark: u64,
    task: &'a Task<'a>,
    findings: Findings,
    done: u64,
}

impl<E: Engine> IndexCheck<'_, E> {
    /// Reports what was found in the log, and checks nothing in the index.
    fn pass_over(mut self, receiver: &Receiver<Vec<RecordedEvent>>) -> Result<Findings> {
        while let Ok(batch) = receiver.recv() {
            self.goes_on(batch.len())?;
        }
        Ok(self.findings)
    }

    fn run(mut self, receiver: &Receiver<Vec<RecordedEvent>>) -> Result<Findings> {
        self.mark = match damage_of(self.read_mark())? {
            Ok(mark) => mark.min(self.head),
            Err(damage) => {
                self.findings.add(None, damage);
                self.head
            }
        };
        let mut expected = [0, 0];
        while let Ok(batch) = receiver.recv() {
            let view = self.shared.index.view(self.engine);
            for recorded in &batch {
                for (index, expected) in [Index::Ids, Index::Aggregates].into_iter().zip(&mut expected) {
                    let leads_to = self.leads_to(&view, index, recorded)?;
                    *expected += u64::from(leads_to && recorded.version.get() <= self.mark);
                }
            }
            drop(view); // the caller's progress listener may be slow
            if !self.goes_on(batch.len())? {
                return Ok(self.findings);
            }
        }
        let [ids, aggregates] = expected;
        if self.count_ids()? != ids {
            self.follow_ids()?;
        }
        if self.count_aggregates()? != aggregates {
            self.follow_aggregates()?;
        }
        Ok(self.findings)
    }

    fn read_mark(&self) -> Result<u64> {
        let mut value = Vec::new();
        if !self.engine.snapshot()?.get(Table::Meta, keys::META_MARK, &mut value)? {
            return Ok(0);
        }
        let damaged = || Error::Corrupt {
            version: None,
            reason: "the index does not record up to which version it reaches".to_owned(),
        };
        Mark::from_bytes(&value).map(|mark| mark.version).ok_or_else(damaged)
    }

    /// Whether to continue after this many more rows. Reports progress.
    fn goes_on(&mut self, rows: usize) -> Result<bool> {
        self.done += rows as u64;
        self.task.report(self.done, self.head.saturating_mul(3).max(self.done));
        self.task.check()?;
        Ok(!self.findings.is_enough)
    }

    /// Whether the index finds the event. If not, the reason is added to the findings.
    fn leads_to(&mut self, view: &View<'_, E>, index: Index, to: &RecordedEvent) -> Result<bool> {
        let version = to.version.get();
        let found = match index {
            Index::Ids => {
                let mut key = Vec::new();
                keys::write_id(&mut key, to.event.id());
                if version <= self.mark { view.find_id_in_table(&key) } else { view.find_id(&key) }
            }
            Index::Aggregates => {
                view.version_of_revision(to.event.aggregate_id(), to.revision.get(), version <= self.mark)
            }
        };
        let (name, place) = (index.name(), || index.describe(&to.event, to.revision.get()));
        let what = match damage_of(found)? {
            Ok(Some(found)) if found == version => return Ok(true),
            Ok(Some(other)) => format!("{name} leads from its {} to version {other}", place()),
            Ok(None) => format!("{name} has no entry for its {}", place()),
            Err(damage) => format!("{name} cannot be read for its {}: {damage}", place()),
        };
        self.findings.add(Some(version), what);
        Ok(false)
    }

    /// Counts the ids in the table with versions up to the mark.
    fn count_ids(&mut self) -> Result<u64> {
        let mut counted = 0;
        self.walk(Index::Ids, |this, key, value| {
            match keys::read_version(value) {
                None => this
                    .findings
                    .add(None, format!("the id index has a damaged entry: {}", Index::Ids.describe_key(key))),
                Some(version) if version == 0 || version > this.shared.log.last() => {
                    this.no_event(Index::Ids, key, version)
                }
                Some(version) => counted += u64::from(version <= this.mark),
            }
            Ok(())
        })?;
        Ok(counted)
    }

    /// Reports the ids in the table that point to another event.
    fn follow_ids(&mut self) -> Result<()> {
        let mut own = Vec::new();
        self.walk(Index::Ids, |this, key, value| {
            let Some(version) = keys::read_version(value).filter(|version| (1..=this.mark).contains(version)) else {
                return Ok(());
            };
            if let Some(recorded) = this.event(version)? {
                keys::write_id(&mut own, recorded.event.id());
                if own != key {
                    this.other_event(Index::Ids, key, version);
                }
            } // otherwise it was found in the log
            Ok(())
        })
    }

    /// Counts the revisions in the table with versions up to the mark. Those of an aggregate must be consecutive.
    fn count_aggregates(&mut self) -> Result<u64> {
        let mut counting = Counting::default();
        let mut versions = Vec::new();
        self.walk(Index::Aggregates, |this, key, value| {
            versions.clear();
            let aggregate = keys::read_aggregate(key);
            let block = Block::read(key, value, &mut versions);
            let Some(((aggregate_id, _), block)) = aggregate.zip(block) else {
                let what = Index::Aggregates.describe_key(key);
                this.findings.add(None, format!("the aggregate index has a damaged entry: {what}"));
                return Ok(());
            };
            if let Some(&version) = block.versions.iter().find(|&&version| version > this.shared.log.last()) {
                this.no_event(Index::Aggregates, key, version);
            }
            if aggregate_id != counting.aggregate_id {
                this.count_waiting(&mut counting);
                let counted = counting.counted;
                counting = Counting { aggregate_id: aggregate_id.to_owned(), counted, ..Counting::default() };
            }
            if block.first <= counting.newest + 1 {
                counting.waiting.clear(); // all of them end before it
                this.count_block(&mut counting, block.first, block.versions);
                return Ok(());
            }
            counting.waiting.push((block.first, block.versions.to_vec()));
            if block.last - counting.newest >= keys::MOST_VERSIONS as u64 {
                this.count_waiting(&mut counting);
            }
            Ok(())
        })?;
        self.count_waiting(&mut counting);
        Ok(counting.counted)
    }

    /// Nothing can fill the gap any more.
    fn count_waiting(&mut self, counting: &mut Counting) {
        for (first, versions) in std::mem::take(&mut counting.waiting) {
            let Counting { aggregate_id, newest, .. } = counting;
            if first > *newest + 1 {
                let what = format!("the aggregate {aggregate_id:?} has revision {first} after {newest}");
                self.findings.add(versions.first().copied(), what);
            }
            self.count_block(counting, first, &versions);
        }
    }

    fn count_block(&mut self, counting: &mut Counting, first: u64, versions: &[u64]) {
        let Counting { aggregate_id, newest, newest_version, counted, .. } = counting;
        for (&version, revision) in versions.iter().zip(first..) {
            if revision <= *newest {
                continue;
            }
            if version <= *newest_version {
                let what = format!(
                    "the aggregate {aggregate_id:?} has revision {revision} before an older one, which is version \
                     {newest_version}"
                );
                self.findings.add(Some(version), what);
            }
            *counted += u64::from(version <= self.mark);
            (*newest, *newest_version) = (revision, version);
        }
    }

    /// Reports the revisions in the table that point to another event.
    fn follow_aggregates(&mut self) -> Result<()> {
        let mut versions = Vec::new();
        self.walk(Index::Aggregates, |this, key, value| {
            versions.clear();
            let Some((aggregate_id, _)) = keys::read_aggregate(key) else { return Ok(()) };
            let Some(block) = Block::read(key, value, &mut versions) else { return Ok(()) };
            for (&version, revision) in block.versions.iter().zip(block.first..) {
                let recorded = if version <= this.mark { this.event(version)? } else { None };
                let is_its = |recorded: &RecordedEvent| {
                    recorded.event.aggregate_id() == aggregate_id && recorded.revision.get() == revision
                };
                if recorded.is_some_and(|recorded| !is_its(&recorded)) {
                    this.other_event(Index::Aggregates, key, version);
                }
            }
            Ok(())
        })
    }

    /// The event at a version, if it is valid.
    fn event(&self, version: u64) -> Result<Option<RecordedEvent>> {
        let mut page = Page::default();
        let read = damage_of(self.shared.log.read_one(version, &mut page).map_err(log_error))?;
        let recorded = read.ok().and_then(|_| {
            let (_, range) = page.records.pop()?;
            record::decode(version, &page.bytes.into(), range).ok()
        });
        Ok(recorded)
    }

    fn no_event(&mut self, index: Index, key: &[u8], version: u64) {
        let what = format!(
            "{} leads from {} to version {version}, which is no event's",
            index.name(),
            index.describe_key(key)
        );
        self.findings.add(None, what);
    }

    fn other_event(&mut self, index: Index, key: &[u8], version: u64) {
        let what =
            format!("{} leads from {} to another event, version {version}", index.name(), index.describe_key(key));
        self.findings.add(None, what);
    }

    /// Visits every entry of an index.
    fn walk(&mut self, index: Index, mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut from = keys::FIRST_KEY.to_vec();
        while self.goes_on(0)? {
            let snapshot = self.engine.snapshot()?;
            let mut entries = Vec::with_capacity(ROWS);
            let range = KeyRange { first: &from, last: &LARGEST_KEY };
            let scanned = snapshot.scan(index.table(), range, Direction::Forward, |key, value| {
                entries.push((key.to_vec(), value.to_vec()));
                if entries.len() == ROWS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            drop(snapshot);
            for (key, value) in &entries {
                visit(self, key, value)?;
            }
            if let Err(damage) = damage_of(scanned)? {
                self.findings.add(None, format!("{} cannot be read further: {damage}", index.name()));
                break;
            }
            self.goes_on(entries.len())?;
            match entries.pop() {
                Some((last, _)) if entries.len() + 1 == ROWS => {
                    from = last;
                    from.push(0); // the smallest key after it
                }
                _ => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use eventstore_api::{Context, Progress};
    use eventstore_log::{Directory, MemoryDirectory};

    use super::*;
    use crate::StoreOptions;
    use crate::engine::Entries;
    use crate::files::open::{Opening, open};
    use crate::memory::MemoryEngine;
    use crate::read::digests::Digests;
    use crate::read::digests::tests::{append, event, open_log};

    pub(crate) type Tested = Shared<MemoryEngine>;

    /// A log of events of these aggregates, in order, with ids `id-1`, `id-2`, and so on, in a group each.
    pub(crate) fn log_of(aggregates: &[&str]) -> MemoryDirectory {
        log_with(aggregates, |number, aggregate_id| event(number, aggregate_id, 2))
    }

    fn log_with(aggregates: &[&str], event: impl Fn(u64, &str) -> Event) -> MemoryDirectory {
        let files = MemoryDirectory::default();
        let mut opened = open_log(files.clone(), 64 << 10);
        let events: Vec<_> =
            aggregates.iter().zip(1..).map(|(aggregate_id, number)| event(number, aggregate_id)).collect();
        append(&mut opened, &mut HashMap::new(), &events, 1);
        files
    }

    /// Opens the store, with the whole index in the tables.
    fn store_over(files: &MemoryDirectory) -> Tested {
        let ctx = Context::background();
        let options = StoreOptions { segment_size: 64 << 10, ..StoreOptions::default() };
        let task = Task::new(&ctx, &|| Ok(()));
        let files = Arc::new(files.clone());
        let opening = Opening { files, id: [0; 16], directory: None, engine: &(), options: &options, task: &task };
        Shared::new(open::<MemoryEngine>(opening).expect("opened").opened)
    }

    fn store_of(aggregates: &[&str]) -> Tested {
        store_over(&log_of(aggregates))
    }

    fn put(shared: &Tested, table: Table, key: &[u8], value: &[u8]) {
        let mut entries = Entries::new();
        entries.put(table, key, value);
        shared.with_parts(|parts| parts.engine()?.write(&entries)).expect("written");
    }

    fn aggregate_key(aggregate_id: &str, revision: u64) -> Vec<u8> {
        let mut key = Vec::new();
        keys::write_aggregate(&mut key, aggregate_id, revision);
        key
    }

    fn run(shared: &Tested, task: &Task<'_>) -> Result<VerifyReport> {
        shared.with_parts(|parts| verify(shared, parts.engine()?, task))
    }

    fn verified(shared: &Tested) -> VerifyReport {
        run(shared, &Task::new(&Context::background(), &|| Ok(()))).expect("nobody ends it")
    }

    fn findings(shared: &Tested) -> Vec<String> {
        verified(shared).findings.iter().map(ToString::to_string).collect()
    }

    const SOUND: [&str; 5] = ["a", "b", "a", "a", "b"];

    #[test]
    fn a_sound_store_has_no_findings() {
        for (events, aggregates) in [0, 1, 2, 2, 2, 2].into_iter().enumerate() {
            let report = verified(&store_of(&SOUND[..events]));
            assert_eq!((report.events, report.aggregates), (events as u64, aggregates));
            assert!(report.is_clean() && !report.is_cut_short, "{:?}", report.findings);
        }
    }

    #[test]
    fn more_events_than_are_read_at_once_have_no_findings() {
        let many: Vec<_> = (0..ROWS * 3 + 1).map(|nth| if nth % 3 == 0 { "a" } else { "b" }).collect();
        let store = store_of(&many);
        assert!(store.log.segments().len() > 2);
        let report = verified(&store);
        assert_eq!((report.events, report.aggregates, report.findings), (many.len() as u64, 2, vec![]));
    }

    #[test]
    fn what_is_only_in_memory_is_verified_as_well() {
        let store = store_of(&SOUND);
        let recent = crate::index::recent::Recent::new(4);
        for (number, aggregate_id, revision) in [(4, "a", 3), (5, "b", 2)] {
            let mut key = Vec::new();
            keys::write_id(&mut key, &format!("id-{number}"));
            recent.push(&key, aggregate_id, revision);
        }
        let missing = crate::index::view::Index::new(crate::index::recent::Recent::new(4), None, 0);
        for (index, is_sound) in [(crate::index::view::Index::new(recent, None, 0), true), (missing, false)] {
            let mut store = store_of(&SOUND[..3]);
            store.index = index;
            let whole = store_of(&SOUND);
            (store.log, store.digests) = (whole.log, whole.digests);
            store.publish(Version::new(5), 2, 0);
            let found = findings(&store);
            assert_eq!(found.len(), if is_sound { 0 } else { 4 }, "{found:?}");
        }
        assert!(findings(&store).is_empty());
    }

    /// The file and offset of an event's data in its segment.
    fn place(files: &MemoryDirectory, event: &Event) -> (Arc<dyn eventstore_log::File>, u64) {
        for name in files.list().expect("listed") {
            let Ok(file) = files.open(&name) else { continue };
            let mut bytes = Vec::new();
            file.read_at(&mut bytes, 0, usize::MAX >> 1).expect("read");
            if let Some(at) = bytes.windows(event.bytes().len()).position(|part| part == &event.bytes()[..]) {
                return (file, at as u64);
            }
        }
        panic!("the event is in no segment");
    }

    #[test]
    fn damaged_records_are_named() {
        let files = log_of(&SOUND);
        let store = store_over(&files);
        for number in [2, 4] {
            let (file, at) = place(&files, &event(number, SOUND[number as usize - 1], 2));
            file.write_at(&[0xee], at).expect("written");
        }
        let found = findings(&store);
        for version in [2, 4] {
            let named = found.iter().filter(|found| found.contains(&format!("version {version}:"))).count();
            assert_eq!(named, 1, "{found:?}");
        }
        assert_eq!(found.len(), 2, "what leads to them is as it was: {found:?}");
    }

    #[test]
    fn a_part_of_the_log_that_is_gone_is_named() {
        let many = vec!["a"; 2000];
        let files = log_of(&many);
        let store = store_over(&files);
        let (file, at) = place(&files, &event(1000, "a", 2));
        let (_, end) = place(&files, &event(1010, "a", 2));
        file.write_at(&vec![0; (end - at) as usize], at).expect("written");
        let report = verified(&store);
        assert!(!report.is_clean());
        let at = |finding: &Finding| finding.version.map(Version::get);
        assert!(
            report.findings.iter().all(|finding| at(finding).is_some_and(|at| (999..=1011).contains(&at))),
            "{report:?}"
        );
    }

    #[test]
    fn records_of_another_program_are_named() {
        let files = MemoryDirectory::default();
        let mut opened = open_log(files.clone(), 64 << 10);
        append(&mut opened, &mut HashMap::new(), &[event(1, "a", 2)], 1);
        let store = store_over(&files);
        let mut group = eventstore_log::Group::default();
        group.begin(2);
        group.push(&[b"short"]);
        opened.appender.as_mut().expect("sound").commit(&mut group, true).expect("committed");
        let mut store = store;
        store.log = opened.log;
        store.publish(Version::new(2), 1, 0);
        assert_eq!(findings(&store), ["version 2: its record is cut short"]);
    }

    #[test]
    fn index_entries_that_do_not_fit_are_named() {
        let named = |table, key: &[u8], value: &[u8], what: &[&str]| {
            let store = store_of(&SOUND);
            put(&store, table, key, value);
            let found = findings(&store);
            assert_eq!(found.len(), what.len(), "{found:?}");
            for what in what {
                assert!(found.iter().any(|found| found.contains(what)), "{what}: {found:?}");
            }
            assert_eq!(verified(&store).aggregates, 2);
        };
        let at = keys::version_bytes;
        named(
            Table::Ids,
            b"\x02id-3",
            &at(4),
            &["version 3: the id index leads from its id \"id-3\" to version 4", "to another event, version 4"],
        );
        named(Table::Ids, b"\x02ghost", &at(1), &["the id index leads from id \"ghost\" to another event, version 1"]);
        named(Table::Ids, b"\x02ghost", &at(6), &["id \"ghost\" to version 6, which is no event's"]);
        named(Table::Ids, b"\x02ghost", &at(0), &["id \"ghost\" to version 0, which is no event's"]);
        named(Table::Ids, b"\x02ghost", b"x", &["the id index has a damaged entry: id \"ghost\""]);
        named(Table::Ids, b"\xff\xff", &at(1), &["leads from the key \\xff\\xff to another event"]);
        named(Table::Ids, b"\x02id-3", b"x", &["entry of event \"id-3\" has a wrong size", "has a damaged entry"]);
        let twice = [
            "revision 3 before an older one, which is version 5",
            "aggregate \"b\", up to revision 3 to another event",
        ];
        named(Table::Aggregates, &aggregate_key("b", 3), &[4], &twice);
        let beyond = ["revision 3 to version 99, which is no event's"];
        named(Table::Aggregates, &aggregate_key("b", 3), &[99], &beyond);
        named(
            Table::Aggregates,
            &aggregate_key("b", 9),
            &[0x80],
            &["has a damaged entry: aggregate \"b\", up to revision 9"],
        );
        named(Table::Aggregates, b"no key", &[1], &["has a damaged entry: the key no key"]);
        let ghost = ["the aggregate \"ghost\" has revision 2 after 0", "up to revision 2 to another event, version 1"];
        named(Table::Aggregates, &aggregate_key("ghost", 2), &[1], &ghost);
        // Another block with the same revisions is not one too many, unless it points elsewhere.
        named(Table::Aggregates, &aggregate_key("a", 2), &[1, 2], &[]);
        named(
            Table::Aggregates,
            &aggregate_key("b", 2),
            &[1, 4],
            &["to version 1", "up to revision 2 to another event, version 1"],
        );
    }

    #[test]
    fn what_a_crash_left_in_the_index_is_no_damage() {
        let aggregates = ["a"; 300];
        for (last, versions) in [(60, 51..=60), (200, 150..=200), (299, 299..=299)] {
            let mut value = Vec::new();
            keys::write_versions(&mut value, versions);
            let store = store_of(&aggregates);
            put(&store, Table::Aggregates, &aggregate_key("a", last), &value);
            assert_eq!(findings(&store), [""; 0], "up to {last}");
        }
    }

    /// A store whose index has only these entries of each table, and the mark.
    pub(crate) fn with_entries(files: &MemoryDirectory, mut is_there: impl FnMut(Table, usize) -> bool) -> Tested {
        let (whole, store) = (store_over(files), store_over(files));
        let mut entries = Entries::new();
        let scanned = whole.with_parts(|parts| {
            let snapshot = parts.engine()?.snapshot()?;
            for table in Table::ALL {
                let mut nth = 0;
                let range = KeyRange { first: &[0], last: &LARGEST_KEY };
                snapshot.scan(table, range, Direction::Forward, |key, value| {
                    if table == Table::Meta || is_there(table, nth) {
                        entries.put(table, key, value);
                    }
                    nth += 1;
                    ControlFlow::Continue(())
                })?;
            }
            Ok(())
        });
        scanned.expect("read");
        let engine = MemoryEngine::default();
        engine.write(&entries).expect("written");
        store.replace_engine(engine)
    }

    impl Tested {
        /// The same store with another engine.
        fn replace_engine(self, engine: MemoryEngine) -> Self {
            let parts = crate::shared::Parts::new(engine, None, None);
            let Shared { id, log, index, indexer, .. } = self;
            let digests = Digests::open(log.clone(), None);
            let mark = Version::new(log.last());
            Shared::new(crate::shared::Opened {
                unused_index: None,
                parts,
                engine_options: (),
                id,
                log,
                index,
                indexer,
                digests,
                mark,
                recent_aggregates: 0,
            })
        }
    }

    #[test]
    fn missing_index_entries_are_named() {
        let files = log_of(&["a", "b", "c"]);
        let store = with_entries(&files, |_, nth| nth != 2);
        let expected = [
            "version 3: the id index has no entry for its id \"id-3\"",
            "version 3: the aggregate index has no entry for its aggregate \"c\", revision 1",
        ];
        assert_eq!(findings(&store), expected);
        let store = with_entries(&files, |table, nth| (table, nth) != (Table::Ids, 0));
        assert_eq!(findings(&store), ["version 1: the id index has no entry for its id \"id-1\""]);
        // One is missing and another one too many.
        put(&store, Table::Ids, b"\x02ghost", &keys::version_bytes(2));
        let found = findings(&store);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("id \"ghost\" to another event, version 2"), "{found:?}");
    }

    #[test]
    fn an_index_that_does_not_say_how_far_it_reaches_is_named() {
        let store = store_of(&SOUND);
        put(&store, Table::Meta, keys::META_MARK, b"damaged");
        assert_eq!(findings(&store), ["the index does not record up to which version it reaches"]);
    }

    #[test]
    fn an_event_that_was_altered_with_the_right_checksums_is_found_by_the_digest() {
        let many = vec!["a"; 3000];
        let sound = log_of(&many);
        let altered_at = |at: u64| {
            log_with(&many, move |number, id| event(if number == at { 7_000_000 + number } else { number }, id, 2))
        };
        let digests = Digests::open(open_log(sound.clone(), 64 << 10).log, None);
        let blob = digests.at_checkpoint(3000).expect("read");
        for (version, expected) in [(1, 1024), (1500, 2048), (2048, 2048), (3000, 3000)] {
            // With the marks in the segments, and with the newest checkpoint alone.
            for is_sealed in [false, true] {
                let files = altered_at(version);
                let altered = open_log(files.clone(), 64 << 10);
                // Whoever alters the log leaves the stored marks.
                let original = Digests::open(open_log(sound.clone(), 64 << 10).log, None);
                let mut of_segment = |versions| original.of_segment(versions).expect("read");
                let position = altered.log.position();
                let nothing: &mut dyn FnMut(std::ops::Range<u64>) -> Vec<u8> = &mut |_| Vec::new();
                let of_segment = if is_sealed { &mut of_segment } else { nothing };
                altered.log.checkpoint(position, &blob, of_segment).expect("written");
                drop(altered);
                let found = findings(&store_over(&files));
                let what = "the digest of all events up to it differs from the one stored";
                assert_eq!(found.len(), 1, "{version}, {is_sealed}: {found:?}");
                assert!(found[0].contains(what), "{found:?}");
                let at = verified(&store_over(&files)).findings[0].version.expect("a version").get();
                let expected = if is_sealed { expected } else { 3000 };
                assert!((version..=expected).contains(&at), "{version} was found at {at}");
            }
        }
    }

    #[test]
    fn behind_damage_the_digest_is_compared_again() {
        let many = vec!["a"; 4000];
        let sound = log_of(&many);
        let altered = log_with(&many, |number, id| event(if number == 3500 { 7_003_500 } else { number }, id, 2));
        let opened = open_log(altered.clone(), 64 << 10);
        let original = Digests::open(open_log(sound, 64 << 10).log, None);
        let blob = original.at_checkpoint(4000).expect("read");
        let of_segment = &mut |versions| original.of_segment(versions).expect("read");
        opened.log.checkpoint(opened.log.position(), &blob, of_segment).expect("written");
        drop(opened);
        let store = store_over(&altered);
        let (file, at) = place(&altered, &event(100, "a", 2));
        file.write_at(&[0xee], at).expect("written");
        let found = verified(&store).findings;
        let at: Vec<_> = found.iter().filter_map(|found| found.version.map(Version::get)).collect();
        assert_eq!(at.len(), 2, "{found:?}");
        assert_eq!(at[0], 100);
        assert!((3500..=4000).contains(&at[1]), "{found:?}");
    }

    #[test]
    fn it_ends_when_there_is_enough_to_report() {
        // Also if the log is not read to its end when the first events are looked up in the index.
        for events in [VerifyReport::MOST_FINDINGS * 2, ROWS * (BATCHES_AHEAD + 4)] {
            let store = with_entries(&log_of(&vec!["a"; events]), |table, _| table == Table::Aggregates);
            let report = verified(&store);
            assert!(report.is_cut_short);
            assert_eq!(report.findings.len(), VerifyReport::MOST_FINDINGS);
        }
    }

    #[test]
    fn it_tells_how_far_it_has_come_and_ends_when_it_must() {
        let store = store_of(&SOUND);
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        let progress = Progress::new(move |done, total| listener.lock().expect("no panic").push((done, total)));
        let ctx = Context::background().with_progress(progress);
        assert!(run(&store, &Task::new(&ctx, &|| Ok(()))).expect("done").is_clean());
        let told = std::mem::take(&mut *told.lock().expect("no panic"));
        assert!(told.is_sorted() && told.iter().all(|&(_, total)| total == 15), "{told:?}");
        assert!(told.len() >= 3, "{told:?}");
        for error in [Error::Closed, Error::Cancelled] {
            let is_wanted = || Err(error.clone());
            let ended = run(&store, &Task::new(&ctx, &is_wanted));
            assert!(ended.is_err(), "{ended:?}");
        }
        let ended = run(&store, &Task::new(&ctx, &|| Err(Error::Closed)));
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    }
}

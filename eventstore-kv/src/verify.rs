//! Reads everything and names what is wrong.
//!
//! First the engine's files, behind which nothing is read if they are damaged. Then the log, and for each event the index
//! entries that should lead to it: in the tables up to the mark, and behind it in memory. If all of them do, the tables can
//! only have entries too many, so these are counted next, and only if there are more than events each one is followed.

use std::ops::{ControlFlow, Range};

use eventstore_api::{Direction, Error, Event, Finding, RecordedEvent, Result, VerifyReport, Version};

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::index::{self, View};
use crate::rows::{End, read_rows};
use crate::shared::reason;
use crate::{Task, keys, reader, record};

/// Rows between two looks at the task, read from one snapshot.
const ROWS: usize = 1024;

/// As large as any key can be: an entry where none belongs is read as well.
const LARGEST_KEY: [u8; 489] = [0xff; 489];

/// Verifies the first events of a store, up to `head`.
///
/// # Errors
///
/// Those of the task. What is wrong with the store is in the report.
pub(crate) fn verify<E: Engine>(
    engine: &E,
    index: &index::Index,
    head: Version,
    task: &Task<'_>,
) -> Result<VerifyReport> {
    let mut verify =
        Verify { engine, index, head: head.get(), mark: 0, task, report: VerifyReport::default(), done: 0 };
    match engine.check_files(task) {
        Err(damage @ Error::Corrupt { .. }) => {
            verify.find(None, reason(&damage));
            verify.report.is_cut_short = true;
            return Ok(verify.report);
        }
        checked => checked?,
    }
    verify.report.events = head.get();
    verify.mark = match index::mark(&engine.snapshot()?) {
        Err(damage @ Error::Corrupt { .. }) => {
            verify.find(None, reason(&damage));
            verify.head
        }
        mark => mark?.min(verify.head),
    };
    let mut key = Vec::new();
    let [ids, aggregates] = verify.log(&mut key)?;
    verify.index(Index::Ids, ids, &mut key)?;
    verify.index(Index::Aggregates, aggregates, &mut key)?;
    Ok(verify.report)
}

struct Verify<'a, E> {
    engine: &'a E,
    index: &'a index::Index,
    head: u64,
    /// The tables of the indexes have to lead to every event up to this version.
    mark: u64,
    task: &'a Task<'a>,
    report: VerifyReport,
    done: u64,
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

    /// Writes the key that an event has in it.
    fn write_key(self, key: &mut Vec<u8>, event: &Event, revision: u64) {
        match self {
            Index::Ids => keys::write_id(key, event.id()),
            Index::Aggregates => keys::write_aggregate(key, event.aggregate_id(), revision),
        }
    }

    /// The entry in words.
    fn describe(self, key: &[u8]) -> String {
        let read = match self {
            Index::Ids => keys::read_id(key).map(|id| format!("id {id:?}")),
            Index::Aggregates => {
                keys::read_aggregate(key).map(|(id, revision)| format!("aggregate {id:?}, revision {revision}"))
            }
        };
        read.unwrap_or_else(|| format!("the key {}", key.escape_ascii()))
    }
}

impl<E: Engine> Verify<'_, E> {
    /// Notes what is wrong; false once that is enough.
    fn find(&mut self, version: Option<u64>, what: impl Into<String>) {
        if self.report.findings.len() < VerifyReport::MOST_FINDINGS {
            self.report.findings.push(Finding::new(version.map(Version::new), what));
        }
        self.report.is_cut_short = self.report.findings.len() == VerifyReport::MOST_FINDINGS;
    }

    /// Whether to go on with what comes after `rows` more entries.
    fn goes_on(&mut self, rows: usize) -> Result<bool> {
        self.done += rows as u64;
        self.task.report(self.done, self.head.saturating_mul(3).max(self.done));
        self.task.check()?;
        Ok(!self.report.is_cut_short)
    }

    /// Reads the log, and tells how many entries in the table of each index its events have.
    fn log(&mut self, key: &mut Vec<u8>) -> Result<[u64; 2]> {
        let mut entries = [0, 0];
        self.before_the_first()?;
        let mut next = 1;
        while next <= self.head && self.goes_on(0)? {
            let view = self.index.view(self.engine)?;
            let last = self.head.min(next + ROWS as u64 - 1);
            let (rows, end) = read_rows(view.snapshot(), next..last + 1);
            for key in &rows.strange_keys {
                self.find(None, no_version(key));
            }
            let before = next;
            for (version, range) in rows.ranges {
                if version > next {
                    self.missing(next..version);
                }
                next = version + 1;
                let decoded = record::decode(version, &rows.bytes, range);
                match decoded {
                    Ok(recorded) => {
                        for (index, entries) in [Index::Ids, Index::Aggregates].into_iter().zip(&mut entries) {
                            let leads_to = self.leads_to(&view, index, &recorded, key);
                            *entries += u64::from(leads_to && version <= self.mark);
                        }
                        self.report.aggregates += u64::from(recorded.revision == 1 && version > self.mark);
                    }
                    Err(damage) => self.find(Some(version), reason(&damage)),
                }
            }
            match end {
                End::Full => {}
                End::Range if next <= last => {
                    self.missing(next..last + 1);
                    next = last + 1;
                }
                End::Range => {}
                End::Unreadable(error) => {
                    self.find(Some(next), error);
                    next += 1;
                }
            }
            drop(view); // the caller is told, and may take his time
            self.goes_on((next - before) as usize)?;
        }
        Ok(entries)
    }

    /// Looks for keys in front of the first version.
    fn before_the_first(&mut self) -> Result<()> {
        let (first, last) = (keys::FIRST_KEY, keys::version_bytes(0));
        let mut found = None;
        let range = KeyRange { first, last: &last };
        // What cannot be read here cannot be read in the log either.
        let _ = self.engine.snapshot()?.scan(Table::Events, range, Direction::Forward, |key, _| {
            found = Some(key.to_vec());
            ControlFlow::Break(())
        });
        if let Some(key) = found {
            self.find(None, no_version(&key));
        }
        Ok(())
    }

    fn missing(&mut self, versions: Range<u64>) {
        let what = match versions.end - versions.start {
            1 => "it is missing from the log".to_owned(),
            _ => format!("it and all up to {} are missing from the log", versions.end - 1),
        };
        self.find(Some(versions.start), what);
    }

    /// Whether the index leads to the event; notes why if it does not.
    fn leads_to<S: Snapshot>(&mut self, view: &View<S>, index: Index, to: &RecordedEvent, key: &mut Vec<u8>) -> bool {
        let version = to.version.get();
        index.write_key(key, &to.event, to.revision);
        // An entry is there, and leads to a version unless it is damaged.
        let found = match index {
            _ if version <= self.mark => {
                let mut value = Vec::with_capacity(size_of::<u64>());
                let there = view.snapshot().get(index.table(), key, &mut value);
                there.map(|there| there.then(|| keys::read_version(&value)))
            }
            Index::Ids => view.find_id(key).map(|found| found.map(Some)),
            Index::Aggregates => {
                let revisions = to.revision..to.revision.saturating_add(1);
                let versions = view.versions_of(to.event.aggregate_id(), &revisions, Direction::Forward, 1);
                versions.map(|versions| versions.first().copied().map(Some))
            }
        };
        let (name, entry) = (index.name(), || index.describe(key));
        let what = match found {
            Ok(Some(Some(found))) if found == version => return true,
            Ok(Some(Some(other))) => format!("{name} leads from its {} to version {other}", entry()),
            Ok(Some(None)) => format!("{name} has an entry of a wrong size for its {}", entry()),
            Ok(None) => format!("{name} has no entry for its {}", entry()),
            Err(error) => format!("{name} cannot be read for its {}: {}", entry(), reason(&error)),
        };
        self.find(Some(version), what);
        false
    }

    /// Counts the entries in the table of an index, up to the mark, and if there are more than `expected`, names those that lead to no event of theirs.
    fn index(&mut self, index: Index, expected: u64, key: &mut Vec<u8>) -> Result<()> {
        let mut counted = 0;
        let mut before = (Vec::new(), 0);
        self.walk(index, |this, snapshot, entry, version| {
            let Some(version) = version else {
                this.find(None, format!("{} has a damaged entry: {}", index.name(), index.describe(entry)));
                return Ok(());
            };
            // What is beyond the head was committed since the verification began, if there is such an event.
            if version == 0 || (version > this.head && version > reader::newest_version(snapshot)?) {
                let (name, entry) = (index.name(), index.describe(entry));
                this.find(None, format!("{name} leads from {entry} to version {version}, which is no event's"));
            }
            if (1..=this.mark).contains(&version) {
                counted += 1;
                if index == Index::Aggregates {
                    this.report.aggregates += u64::from(keys::read_revision(entry) == Some(1));
                    this.follows(entry, version, &before.0, before.1);
                    before = (entry.to_vec(), version);
                }
            }
            Ok(())
        })?;
        if counted == expected {
            return Ok(());
        }
        self.walk(index, |this, snapshot, entry, version| {
            let Some(version) = version.filter(|&version| version <= this.mark) else { return Ok(()) };
            let mut bytes = Vec::new();
            let found = reader::get_record(snapshot, version, &mut bytes).unwrap_or(false);
            let len = bytes.len();
            if let Some(recorded) = found.then(|| record::decode(version, &bytes.into(), 0..len).ok()).flatten() {
                index.write_key(key, &recorded.event, recorded.revision);
                if key != entry {
                    let entry = index.describe(entry);
                    this.find(None, format!("{} leads from {entry} to another event, version {version}", index.name()));
                }
            } // otherwise it was found in the log
            Ok(())
        })
    }

    /// Whether an entry of the aggregate index has the revision that comes after the one before it, and a later version.
    fn follows(&mut self, entry: &[u8], version: u64, before: &[u8], version_before: u64) {
        let (Some((aggregate_id, revision)), before) = (keys::read_aggregate(entry), keys::read_aggregate(before))
        else {
            return; // it was found by its version
        };
        let before = before.filter(|(id, _)| *id == aggregate_id).map_or(0, |(_, revision)| revision);
        if revision != before + 1 {
            let what = format!("the aggregate {aggregate_id:?} has revision {revision} after {before}");
            self.find(Some(version), what);
        } else if before > 0 && version <= version_before {
            let what = format!(
                "the aggregate {aggregate_id:?} has revision {revision} before {before}, which is version {version_before}"
            );
            self.find(Some(version), what);
        }
    }

    /// Visits every entry of an index with the version that it leads to; `None` if that is damaged.
    fn walk(
        &mut self,
        index: Index,
        mut visit: impl FnMut(&mut Self, &E::Snapshot<'_>, &[u8], Option<u64>) -> Result<()>,
    ) -> Result<()> {
        let mut from = keys::FIRST_KEY.to_vec();
        while self.goes_on(0)? {
            let engine = self.engine;
            let snapshot = engine.snapshot()?;
            let mut entries = Vec::with_capacity(ROWS);
            let range = KeyRange { first: &from, last: &LARGEST_KEY };
            let scanned = snapshot.scan(index.table(), range, Direction::Forward, |key, value| {
                entries.push((key.to_vec(), keys::read_version(value)));
                if entries.len() == ROWS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            for (key, version) in &entries {
                visit(self, &snapshot, key, *version)?;
            }
            if let Err(error) = scanned {
                self.find(None, format!("{} cannot be read further: {}", index.name(), reason(&error)));
                break;
            }
            drop(snapshot);
            self.goes_on(entries.len())?;
            match entries.pop() {
                Some((last, _)) if entries.len() + 1 == ROWS => {
                    from = last;
                    from.push(0); // the smallest key behind it
                }
                _ => break,
            }
        }
        Ok(())
    }
}

fn no_version(key: &[u8]) -> String {
    format!("the log has a key that is no version: {}", key.escape_ascii())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use eventstore_api::{Context, Durability, Error, Progress};

    use super::*;
    use crate::engine::WriteBatch;
    use crate::record::Micros;
    use crate::{MemoryEngine, transfer};

    /// Events of these aggregates, one behind the other, with ids `id-1`, `id-2`, and so on.
    fn engine_with(aggregates: &[(&str, u64)]) -> MemoryEngine {
        let engine = MemoryEngine::default();
        let mut batch = WriteBatch::new();
        batch.put(Table::Meta, keys::META_INDEXED, &keys::version_bytes(u64::MAX));
        for (&(aggregate_id, revision), version) in aggregates.iter().zip(1..) {
            let event = event(version, aggregate_id);
            put_record(&mut batch, &event, version, revision);
            transfer::put_indexes(&mut batch, &mut Vec::new(), &event, version, revision);
        }
        engine.commit(&batch, Durability::Sync).expect("committed");
        engine
    }

    fn event(number: u64, aggregate_id: &str) -> Event {
        Event::builder("Tested", aggregate_id).id(format!("id-{number}")).data("{}").build().expect("valid")
    }

    fn put_record(batch: &mut WriteBatch, event: &Event, version: u64, revision: u64) {
        let header = record::header(event, version, revision, Micros::from(SystemTime::now()));
        batch.put_parts(Table::Events, &keys::version_bytes(version), &[&header, event.bytes()]);
    }

    fn put(engine: &MemoryEngine, table: Table, key: &[u8], value: &[u8]) {
        let mut batch = WriteBatch::new();
        batch.put(table, key, value);
        engine.commit(&batch, Durability::Sync).expect("committed");
    }

    fn aggregate_key(aggregate_id: &str, revision: u64) -> Vec<u8> {
        let mut key = Vec::new();
        keys::write_aggregate(&mut key, aggregate_id, revision);
        key
    }

    /// Verifies an engine whose index tables have to lead to every event.
    fn run(engine: &MemoryEngine, head: u64, task: &Task<'_>) -> Result<VerifyReport> {
        let opened = index::Opened::read(engine, head, head).expect("there is nothing to read");
        verify(engine, &opened.index, Version::new(head), task)
    }

    fn verified(engine: &MemoryEngine, head: u64) -> VerifyReport {
        run(engine, head, &Task::new(&Context::background(), &|| Ok(()))).expect("nobody ends it")
    }

    fn findings(engine: &MemoryEngine, head: u64) -> Vec<String> {
        verified(engine, head).findings.iter().map(ToString::to_string).collect()
    }

    const SOUND: [(&str, u64); 5] = [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)];

    #[test]
    fn a_sound_store_has_no_findings_up_to_any_head() {
        let engine = engine_with(&SOUND);
        for (head, aggregates) in [0, 1, 2, 2, 2, 2].into_iter().enumerate() {
            let report = verified(&engine, head as u64);
            assert_eq!((report.events, report.aggregates), (head as u64, aggregates));
            assert!(report.is_clean() && !report.is_cut_short, "{:?}", report.findings);
        }
        assert!(verified(&engine_with(&[]), 0).is_clean());
    }

    #[test]
    fn more_rows_than_are_read_at_once_have_no_findings() {
        let many: Vec<_> = (1..=ROWS as u64 * 3 + 1).map(|revision| ("a", revision)).collect();
        let report = verified(&engine_with(&many), many.len() as u64);
        assert_eq!((report.aggregates, report.findings), (1, vec![]));
    }

    #[test]
    fn damaged_records_and_strange_keys_are_named() {
        let engine = engine_with(&SOUND);
        put(&engine, Table::Events, &keys::version_bytes(3), b"short");
        put(&engine, Table::Events, &keys::version_bytes(0), b"");
        put(&engine, Table::Events, &[0, 0, 0, 0, 0, 0, 0, 1, 1], b"");
        let found = findings(&engine, 5);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|found| found.contains("version 3: its record is cut short")), "{found:?}");
        assert_eq!(found.iter().filter(|found| found.contains("is no version")).count(), 2, "{found:?}");
    }

    #[test]
    fn missing_records_are_named_together() {
        assert_eq!(findings(&engine_with(&SOUND[..2]), 2), [""; 0]);
        let mut batch = WriteBatch::new();
        let engine = engine_with(&SOUND[..1]);
        put_record(&mut batch, &event(4, "a"), 4, 2);
        transfer::put_indexes(&mut batch, &mut Vec::new(), &event(4, "a"), 4, 2);
        engine.commit(&batch, Durability::Sync).expect("committed");
        assert_eq!(findings(&engine, 4), ["version 2: it and all up to 3 are missing from the log"]);
        assert_eq!(findings(&engine, 5).last().map(String::as_str), Some("version 5: it is missing from the log"));
    }

    #[test]
    fn index_entries_that_do_not_fit_are_named() {
        let named = |table, key: &[u8], value: &[u8], what: &[&str]| {
            let engine = engine_with(&SOUND);
            put(&engine, table, key, value);
            let found = findings(&engine, 5);
            assert_eq!(found.len(), what.len(), "{found:?}");
            for what in what {
                assert!(found.iter().any(|found| found.contains(what)), "{what}: {found:?}");
            }
            assert_eq!(verified(&engine, 5).aggregates, 2);
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
        named(Table::Ids, b"\x02id-3", b"x", &["entry of a wrong size for its id \"id-3\"", "has a damaged entry"]);
        let twice = ["revision 3 before 2, which is version 5", "aggregate \"b\", revision 3 to another event"];
        named(Table::Aggregates, &aggregate_key("b", 3), &at(4), &twice);
        named(Table::Aggregates, &aggregate_key("b", 3), &at(99), &["revision 3 to version 99, which is no event's"]);
    }

    #[test]
    fn missing_index_entries_are_named() {
        let engine = engine_with(&SOUND[..2]);
        let mut batch = WriteBatch::new();
        put_record(&mut batch, &event(3, "a"), 3, 2);
        engine.commit(&batch, Durability::Sync).expect("committed");
        let expected = [
            "version 3: the id index has no entry for its id \"id-3\"",
            "version 3: the aggregate index has no entry for its aggregate \"a\", revision 2",
        ];
        assert_eq!(findings(&engine, 3), expected);
    }

    #[test]
    fn revisions_with_a_gap_or_out_of_order_are_named() {
        let gap = engine_with(&[("a", 1), ("b", 1), ("a", 3)]);
        assert_eq!(findings(&gap, 3), ["version 3: the aggregate \"a\" has revision 3 after 1"]);
        let late = engine_with(&[("a", 2), ("b", 1)]);
        assert_eq!(findings(&late, 2), ["version 1: the aggregate \"a\" has revision 2 after 0"]);
        let swapped = engine_with(&[("a", 2), ("a", 1)]);
        assert_eq!(
            findings(&swapped, 2),
            ["version 1: the aggregate \"a\" has revision 2 before 1, which is version 2"]
        );
    }

    #[test]
    fn it_ends_when_there_is_enough_to_report() {
        let engine = engine_with(&[]);
        let mut batch = WriteBatch::new();
        for version in 1..=VerifyReport::MOST_FINDINGS as u64 * 2 {
            batch.put(Table::Events, &keys::version_bytes(version), b"");
        }
        engine.commit(&batch, Durability::Sync).expect("committed");
        let report = verified(&engine, VerifyReport::MOST_FINDINGS as u64 * 2);
        assert!(report.is_cut_short);
        assert_eq!(report.findings.len(), VerifyReport::MOST_FINDINGS);
    }

    #[test]
    fn it_tells_how_far_it_has_come_and_ends_when_it_must() {
        let engine = engine_with(&SOUND);
        let told = std::sync::Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        let progress = Progress::new(move |done, total| listener.lock().expect("no panic").push((done, total)));
        let ctx = Context::background().with_progress(progress);
        assert!(run(&engine, 5, &Task::new(&ctx, &|| Ok(()))).expect("done").is_clean());
        let told = std::mem::take(&mut *told.lock().expect("no panic"));
        assert!(told.is_sorted() && told.iter().all(|&(_, total)| total == 15), "{told:?}");
        assert_eq!(told.last(), Some(&(15, 15)));
        let ended = run(&engine, 5, &Task::new(&ctx, &|| Err(Error::Closed)));
        assert!(matches!(ended, Err(Error::Closed)));
    }
}

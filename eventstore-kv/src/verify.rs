//! Reads everything and names what is wrong.
//!
//! First the log, and for each event the index entries that should lead to it. If all of them do, the indexes can only
//! have entries too many, so these are counted next, and only if there are more than events each one is followed.

use std::ops::{ControlFlow, Range};

use eventstore_api::{Bytes, Direction, Event, Finding, RecordedEvent, Result, VerifyReport, Version};

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::{Task, keys, reader, record};

/// Rows between two looks at the task, read from one snapshot.
const ROWS: usize = 1024;

/// Bytes of records that are kept before they are checked.
const BYTES: usize = 1 << 20;

/// Verifies the first events of a store, up to `head`.
///
/// # Errors
///
/// Those of the task. What is wrong with the store is in the report.
pub(crate) fn verify<E: Engine>(engine: &E, head: Version, task: &Task<'_>) -> Result<VerifyReport> {
    let mut verify = Verify { engine, head: head.get(), task, report: VerifyReport::default(), done: 0 };
    verify.report.events = head.get();
    let mut key = Vec::new();
    let [ids, aggregates] = verify.log(&mut key)?;
    verify.index(Index::Ids, ids, &mut key)?;
    verify.index(Index::Aggregates, aggregates, &mut key)?;
    Ok(verify.report)
}

struct Verify<'a, E> {
    engine: &'a E,
    head: u64,
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

    /// Reads the log, and tells how many entries of each index its events have.
    fn log(&mut self, key: &mut Vec<u8>) -> Result<[u64; 2]> {
        let mut entries = [0, 0];
        let mut next = 1;
        while next <= self.head && self.goes_on(0)? {
            let snapshot = self.engine.snapshot()?;
            let last = self.head.min(next + ROWS as u64 - 1);
            let (rows, end) = read_rows(&snapshot, next..last + 1);
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
                            *entries += u64::from(self.leads_to(&snapshot, index, &recorded, key));
                        }
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
                End::NoVersion(key) => {
                    self.find(None, format!("the log has a key that is no version: {}", key.escape_ascii()));
                    next = last + 1;
                }
            }
            self.goes_on((next - before) as usize)?;
        }
        Ok(entries)
    }

    fn missing(&mut self, versions: Range<u64>) {
        let what = match versions.end - versions.start {
            1 => "it is missing from the log".to_owned(),
            _ => format!("it and all up to {} are missing from the log", versions.end - 1),
        };
        self.find(Some(versions.start), what);
    }

    /// Whether the index leads to the event; notes why if it does not.
    fn leads_to<S: Snapshot>(&mut self, snapshot: &S, index: Index, to: &RecordedEvent, key: &mut Vec<u8>) -> bool {
        let version = to.version.get();
        index.write_key(key, &to.event, to.revision);
        let mut value = Vec::with_capacity(size_of::<u64>());
        let (name, entry) = (index.name(), || index.describe(key));
        let what = match snapshot.get(index.table(), key, &mut value) {
            Ok(true) if keys::read_version(&value) == Some(version) => return true,
            Ok(true) => match keys::read_version(&value) {
                Some(other) => format!("{name} leads from its {} to version {other}", entry()),
                None => format!("{name} has an entry of a wrong size for its {}", entry()),
            },
            Ok(false) => format!("{name} has no entry for its {}", entry()),
            Err(error) => format!("{name} cannot be read for its {}: {}", entry(), reason(&error)),
        };
        self.find(Some(version), what);
        false
    }

    /// Counts the entries of an index, and if there are more than `expected`, names those that lead to no event of theirs.
    fn index(&mut self, index: Index, expected: u64, key: &mut Vec<u8>) -> Result<()> {
        let counted = self.walk(index, |this, snapshot, entry, version| {
            if version > this.head {
                // Committed since the verification began, if there is such an event.
                let newest = reader::newest_version(snapshot)?;
                if version > newest {
                    let entry = index.describe(entry);
                    let what = format!("{} leads from {entry} to version {version}, which is no event's", index.name());
                    this.find(None, what);
                }
                return Ok(false);
            }
            Ok(true)
        })?;
        if counted == expected {
            return Ok(());
        }
        self.walk(index, |this, snapshot, entry, version| {
            if version > this.head {
                return Ok(false);
            }
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
            Ok(true)
        })?;
        Ok(())
    }

    /// Visits every entry of an index with the version that it leads to, and counts those for which that is true.
    fn walk(
        &mut self,
        index: Index,
        mut visit: impl FnMut(&mut Self, &E::Snapshot<'_>, &[u8], u64) -> Result<bool>,
    ) -> Result<u64> {
        let mut from = keys::FIRST_KEY.to_vec();
        let mut count = 0;
        while self.goes_on(0)? {
            let engine = self.engine;
            let snapshot = engine.snapshot()?;
            let mut entries = Vec::with_capacity(ROWS);
            let range = KeyRange { first: &from, last: keys::LAST_KEY };
            let scanned = snapshot.scan(index.table(), range, Direction::Forward, |key, value| {
                entries.push((key.to_vec(), keys::read_version(value)));
                if entries.len() == ROWS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            for (key, version) in &entries {
                match version {
                    Some(version) => count += u64::from(visit(self, &snapshot, key, *version)?),
                    None => self.find(None, format!("{} has a damaged entry: {}", index.name(), index.describe(key))),
                }
                if index == Index::Aggregates && keys::read_revision(key) == Some(1) {
                    self.report.aggregates += u64::from(version.is_some_and(|version| version <= self.head));
                }
            }
            if let Err(error) = scanned {
                self.find(None, format!("{} cannot be read further: {}", index.name(), reason(&error)));
                break;
            }
            self.goes_on(entries.len())?;
            match entries.pop() {
                Some((last, _)) if entries.len() + 1 == ROWS => {
                    from = last;
                    from.push(0); // the smallest key behind it
                }
                _ => break,
            }
        }
        Ok(count)
    }
}

/// Records of the log, one behind the other.
#[derive(Default)]
struct Rows {
    bytes: Bytes,
    ranges: Vec<(u64, Range<usize>)>,
}

/// Why a reading of rows came to its end.
enum End {
    /// There is room for no more.
    Full,
    /// All of the range was read.
    Range,
    /// The engine cannot read what comes next.
    Unreadable(String),
    /// What comes next has this key.
    NoVersion(Vec<u8>),
}

fn read_rows<S: Snapshot>(snapshot: &S, versions: Range<u64>) -> (Rows, End) {
    let (first, last) = (keys::version_bytes(versions.start), keys::version_bytes(versions.end - 1));
    let mut bytes = Vec::new();
    let mut ranges = Vec::new();
    let mut end = End::Range;
    let scanned =
        snapshot.scan(Table::Events, KeyRange { first: &first, last: &last }, Direction::Forward, |key, value| {
            let Some(version) = keys::read_version(key) else {
                end = End::NoVersion(key.to_vec());
                return ControlFlow::Break(());
            };
            let start = bytes.len();
            bytes.extend_from_slice(value);
            ranges.push((version, start..bytes.len()));
            if bytes.len() >= BYTES {
                end = End::Full;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
    if let Err(error) = scanned {
        end = End::Unreadable(format!("it cannot be read: {}", reason(&error)));
    }
    (Rows { bytes: bytes.into(), ranges }, end)
}

/// What is wrong, without what to do.
fn reason(error: &eventstore_api::Error) -> String {
    match error {
        eventstore_api::Error::Corrupt { reason, .. } => reason.clone(),
        other => crate::shared::with_causes(other),
    }
}

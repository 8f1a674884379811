//! Reads: one page, or one point, from one snapshot.
//!
//! Every read is clamped to the published head. The log only grows, so pages that are read one after the other show the
//! same events as one long snapshot would, without holding one.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use eventstore_api::limits::MAX_AGGREGATE_ID_LEN;
use eventstore_api::{Bytes, Direction, Error, LoadOptions, Page, PageSize, RecordedEvent, Result, Version};

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::index::{Listed, View, damage_of};
use crate::record::{self, corrupt};
use crate::sync::is_past;
use crate::{Task, keys};

/// A page that is being read. It can stop when its time is up and go on later, on another thread and snapshot.
#[derive(Debug)]
pub(crate) struct PageRead {
    options: LoadOptions,
    size: PageSize,
    head: Version,
    /// Events with these versions are still wanted; reading moves one end towards the other.
    wanted: Range<u64>,
    most_events: usize,
    /// The records of the page, one behind the other. They are checked when all of them are here: copying them first
    /// lets the processor fetch ahead, which checking each one as it comes does not.
    bytes: Vec<u8>,
    records: Vec<(u64, Range<usize>)>,
    /// No further event matches.
    complete: bool,
}

impl PageRead {
    pub(crate) fn new(options: &LoadOptions, size: PageSize, head: Version) -> Self {
        let before = options.before.map_or(u64::MAX, Version::get).min(head.next().get());
        let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let wanted = options.since.next().get()..before;
        let size = PageSize::new(size.events.clamp(1, MOST_EVENTS), size.bytes.min(MOST_BYTES));
        let most_events = size.events.min(limit);
        let too_long = options.aggregate_id.as_ref().is_some_and(|id| id.len() > MAX_AGGREGATE_ID_LEN);
        PageRead {
            options: options.clone(),
            size,
            head,
            complete: wanted.is_empty() || most_events == 0 || too_long,
            wanted,
            most_events,
            bytes: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Whether the page has all that fits or matches.
    pub(crate) fn is_done(&self) -> bool {
        self.complete || self.is_full()
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.most_events || (self.bytes.len() >= self.size.bytes && !self.records.is_empty())
    }

    /// Reads until the page is done, or a little beyond `until`.
    pub(crate) fn run<S: Snapshot>(&mut self, view: &View<S>, until: Option<Instant>) -> Result<()> {
        while !self.is_done() {
            match self.options.aggregate_id.clone() {
                None => self.scan_log(view.snapshot(), until)?,
                Some(aggregate_id) => self.scan_aggregate(view, &aggregate_id, until)?,
            }
            if is_over(until) {
                break;
            }
        }
        Ok(())
    }

    /// The page. A damaged record ends it, if there are events before it; at its begin it is the error.
    pub(crate) fn finish(mut self) -> Result<Page> {
        let page = Bytes::from(std::mem::take(&mut self.bytes));
        let mut events = Vec::with_capacity(self.records.len());
        for (version, range) in std::mem::take(&mut self.records) {
            match self.decode(version, &page, range) {
                Ok(event) => events.push(event),
                Err(damage) if events.is_empty() => return Err(damage),
                Err(_) => {
                    self.complete = false;
                    break;
                }
            }
        }
        Ok(Page::new(&self.options, events, self.head, self.complete))
    }

    fn decode(&self, version: u64, page: &Bytes, range: Range<usize>) -> Result<RecordedEvent> {
        let recorded = record::decode(version, page, range)?;
        match &self.options.aggregate_id {
            Some(aggregate_id) if recorded.event.aggregate_id() != aggregate_id => {
                Err(corrupt(version, "the aggregate index leads to it, but it belongs to another aggregate"))
            }
            _ => Ok(recorded),
        }
    }

    fn scan_log<S: Snapshot>(&mut self, snapshot: &S, until: Option<Instant>) -> Result<()> {
        let (first, last) = (keys::version_bytes(self.wanted.start), keys::version_bytes(self.wanted.end - 1));
        let direction = self.options.direction;
        let matching = usize::try_from(self.wanted.end - self.wanted.start).unwrap_or(usize::MAX);
        let mut broke_off = false;
        let scanned = snapshot.scan(Table::Events, KeyRange { first: &first, last: &last }, direction, |key, value| {
            let version = self.next_wanted();
            if keys::read_version(key) != Some(version) {
                return ControlFlow::Break(());
            }
            let start = self.bytes.len();
            self.bytes.extend_from_slice(value);
            self.take_up(version, start, matching);
            broke_off = self.is_done() || self.is_time_up(until);
            if broke_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Err(error) = scanned {
            return self.end_at(at_version(self.next_wanted(), error));
        }
        // A scan that was not broken off has come to a gap, or to an early end of the log.
        if broke_off { Ok(()) } else { self.end_at(missing(self.next_wanted())) }
    }

    fn scan_aggregate<S: Snapshot>(
        &mut self,
        view: &View<S>,
        aggregate_id: &str,
        until: Option<Instant>,
    ) -> Result<()> {
        let unknown = view.ends_before(self.wanted.end - 1);
        if let Some(incomplete) = unknown
            && self.options.direction == Direction::Backward
        {
            return self.end_at(incomplete.error());
        }
        let room = (self.most_events - self.records.len()).min(ROWS_PER_INDEX_SCAN);
        let (versions, listed) = if self.options.direction == Direction::Forward && self.wanted.start <= 1 {
            view.first_versions(aggregate_id, self.wanted.end, room)?
        } else {
            self.list_versions(view, aggregate_id, room)?
        };
        let matching = if listed == Listed::Most { usize::MAX } else { versions.len() };
        let read = self.read_versions(view.snapshot(), aggregate_id, &versions, matching, until);
        match (read, listed) {
            (Err(damage), _) => self.end_at(damage),
            (Ok(false), _) | (Ok(true), Listed::Most) => Ok(()),
            (Ok(true), Listed::UpToGap) => self.end_at(damage_of(aggregate_id, "has gaps")),
            (Ok(true), Listed::All) => match unknown {
                Some(incomplete) => self.end_at(incomplete.error()),
                None => {
                    self.complete = true;
                    Ok(())
                }
            },
        }
    }

    /// The versions of an aggregate's wanted events, `most` at most, in the direction of the page.
    fn list_versions<S: Snapshot>(
        &self,
        view: &View<S>,
        aggregate_id: &str,
        most: usize,
    ) -> Result<(Vec<u64>, Listed)> {
        let Some(revisions) = revisions_in(view, aggregate_id, &self.wanted)? else {
            return Ok((Vec::new(), Listed::All));
        };
        let matching = usize::try_from(revisions.end - revisions.start).unwrap_or(usize::MAX);
        let most = most.min(matching);
        let versions = view.versions_of(aggregate_id, &revisions, self.options.direction, most)?;
        let listed = match versions.len() {
            len if len < most => Listed::UpToGap,
            len if len < matching => Listed::Most,
            _ => Listed::All,
        };
        Ok((versions, listed))
    }

    /// Reads the events that the aggregate index has named; false if the page was done, or the time up, before the last.
    fn read_versions<S: Snapshot>(
        &mut self,
        snapshot: &S,
        aggregate_id: &str,
        mut versions: &[u64],
        matching: usize,
        until: Option<Instant>,
    ) -> Result<bool> {
        let mut at_once = FEWEST_AT_ONCE;
        while !versions.is_empty() {
            let (some, rest) = versions.split_at(at_once.min(versions.len()));
            let in_order = self.count_in_order(some);
            let read = self.read_some(snapshot, &some[..in_order], matching)?;
            if self.is_done() {
                return Ok(rest.is_empty() && read == some.len());
            }
            if in_order < some.len() {
                return Err(damage_of(aggregate_id, "does not hold versions in order"));
            }
            if is_over(until) {
                return Ok(rest.is_empty());
            }
            let average_len = self.bytes.len() / self.records.len().max(1);
            at_once = (2 * at_once).min(MOST_AT_ONCE).min(BYTES_AT_ONCE / average_len.max(1)).max(1);
            versions = rest;
        }
        Ok(true)
    }

    /// How many of the first of these versions are wanted, one behind the other.
    fn count_in_order(&self, versions: &[u64]) -> usize {
        let mut wanted = self.wanted.clone();
        let is_next = |version: &&u64| {
            let is_wanted = wanted.contains(version);
            match self.options.direction {
                Direction::Forward => wanted.start = version.saturating_add(1),
                Direction::Backward => wanted.end = **version,
            }
            is_wanted
        };
        versions.iter().take_while(is_next).count()
    }

    /// Reads the events of these versions until the page is done, and says how many there were.
    fn read_some<S: Snapshot>(&mut self, snapshot: &S, versions: &[u64], matching: usize) -> Result<usize> {
        let keys: Vec<_> = versions.iter().map(|&version| keys::version_bytes(version)).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_slice()).collect();
        let mut read = 0;
        let looked_up = snapshot.get_many(Table::Events, &keys, |place, value| {
            if place > read {
                return ControlFlow::Break(()); // one is missing before it
            }
            let start = self.bytes.len();
            self.bytes.extend_from_slice(value);
            self.take_up(versions[place], start, matching);
            read += 1;
            if self.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match (looked_up, versions.get(read)) {
            (Err(error), Some(&version)) => Err(at_version(version, error)),
            (Err(error), None) => Err(error),
            (Ok(()), Some(&version)) if !self.is_done() => Err(missing(version)),
            (Ok(()), _) => Ok(read),
        }
    }

    /// The version that comes next in the log.
    fn next_wanted(&self) -> u64 {
        match self.options.direction {
            Direction::Forward => self.wanted.start,
            Direction::Backward => self.wanted.end - 1,
        }
    }

    /// Takes up the record of a wanted version, which was copied to the end of the bytes. When the scan began, this many
    /// events were still `matching`.
    fn take_up(&mut self, version: u64, start: usize, matching: usize) {
        self.records.push((version, start..self.bytes.len()));
        match self.options.direction {
            Direction::Forward => self.wanted.start = version + 1,
            Direction::Backward => self.wanted.end = version,
        }
        self.complete = self.wanted.is_empty();
        if start == 0 && !self.is_done() {
            // Room for the rest of the page at once, if its records are about as long as the first one.
            let fitting = self.size.bytes / self.bytes.len().max(1);
            let others = matching.min(self.most_events).min(fitting).saturating_sub(1);
            self.records.reserve(others);
            let bytes = others.saturating_mul(self.bytes.len() + self.bytes.len() / 8);
            self.bytes.reserve(bytes.min(MOST_RESERVED));
        }
    }

    /// What was read before the damage is sound and is handed out; the next page begins with the damage and fails.
    fn end_at(&mut self, damage: Error) -> Result<()> {
        if self.records.is_empty() {
            return Err(damage);
        }
        self.most_events = self.records.len();
        Ok(())
    }

    fn is_time_up(&self, until: Option<Instant>) -> bool {
        let rows = self.records.len();
        (rows.is_power_of_two() || rows.is_multiple_of(ROWS_BETWEEN_CLOCKS)) && is_over(until)
    }
}

/// Larger pages would only hold the engine for longer.
const MOST_EVENTS: usize = 65_536;
const MOST_BYTES: usize = 64 << 20;

/// Memory is taken ahead for no more than this.
const MOST_RESERVED: usize = 1 << 20;

/// The clock is looked at after 1, 2, 4, 8 rows and then each time after this many, because it costs as much as a few.
const ROWS_BETWEEN_CLOCKS: usize = 16;

/// How many entries of the aggregate index are read before their events are.
const ROWS_PER_INDEX_SCAN: usize = 256;

/// How many events of an aggregate are looked up together: first few, as they may be large, and then more.
const FEWEST_AT_ONCE: usize = 4;
const MOST_AT_ONCE: usize = 32;
const BYTES_AT_ONCE: usize = 256 << 10;

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(is_past)
}

fn missing(version: u64) -> Error {
    corrupt(version, "it is missing from the log")
}

/// Appends the record of a version to `out`, if it is there.
pub(crate) fn get_record<S: Snapshot>(snapshot: &S, version: u64, out: &mut Vec<u8>) -> Result<bool> {
    let found = snapshot.get(Table::Events, &keys::version_bytes(version), out);
    found.map_err(|error| at_version(version, error))
}

/// Damage that the engine found itself, in whatever it keeps the event in.
fn at_version(version: u64, error: Error) -> Error {
    match error {
        Error::Corrupt { version: None, reason } => corrupt(version, &reason),
        other => other,
    }
}

/// The revisions of an aggregate whose versions lie in `versions`; `None` if there are none.
///
/// Versions rise with revisions, so each end is found by halving.
fn revisions_in<S: Snapshot>(view: &View<S>, aggregate_id: &str, versions: &Range<u64>) -> Result<Option<Range<u64>>> {
    let Some((newest, newest_version)) = view.newest_revision(aggregate_id, versions.end)? else { return Ok(None) };
    let beyond = newest.checked_add(1).ok_or_else(|| damage_of(aggregate_id, "has an impossible revision"))?;
    let mut lookup = RevisionLookup { view, aggregate_id, key: Vec::new() };
    let start = match versions.start {
        0 | 1 => 1,
        start => lookup.first_from(start, beyond)?,
    };
    let end = if newest_version < versions.end { beyond } else { lookup.first_from(versions.end, newest)? };
    Ok((start < end).then_some(start..end))
}

struct RevisionLookup<'a, S> {
    view: &'a View<S>,
    aggregate_id: &'a str,
    key: Vec<u8>,
}

impl<S: Snapshot> RevisionLookup<'_, S> {
    /// The smallest revision whose version is at least `version`, or `most` if there is none below it.
    fn first_from(&mut self, version: u64, most: u64) -> Result<u64> {
        let (mut low, mut high) = (1, most);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.view.version_of(self.aggregate_id, middle, &mut self.key)? < version {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// The number of an aggregate's events up to the head, which is the revision of the newest of them.
pub(crate) fn revision_at<S: Snapshot>(view: &View<S>, aggregate_id: &str, head: Version) -> Result<u64> {
    if let Some(incomplete) = view.ends_before(head.get()) {
        return Err(incomplete.error());
    }
    let revisions = revisions_in(view, aggregate_id, &(0..head.next().get()))?;
    Ok(revisions.map_or(0, |revisions| revisions.end - 1))
}

/// How many aggregates have their first event at `head` or before it, as the table of their index has them: one seek for
/// each, in short snapshots.
pub(crate) fn count_aggregates<E: Engine>(engine: &E, head: Version, task: &Task<'_>) -> Result<u64> {
    let (mut from, mut count) = (keys::FIRST_KEY.to_vec(), 0);
    loop {
        task.check()?;
        let snapshot = engine.snapshot()?;
        for _ in 0..ROWS_PER_INDEX_SCAN {
            let mut first_version = None;
            let range = KeyRange { first: &from, last: keys::LAST_KEY };
            let mut next = Vec::new();
            snapshot.scan(Table::Aggregates, range, Direction::Forward, |key, value| {
                first_version = Some(keys::read_version(value));
                keys::write_behind_aggregate(&mut next, key);
                ControlFlow::Break(())
            })?;
            match first_version {
                None => return Ok(count),
                Some(version) => count += u64::from(version.is_some_and(|version| version <= head.get())),
            }
            from = next;
        }
    }
}

/// The version of the newest event in this snapshot, published or not; 0 if there is none.
pub(crate) fn newest_version<S: Snapshot>(snapshot: &S) -> Result<u64> {
    let (first, last) = (keys::version_bytes(0), keys::version_bytes(u64::MAX));
    let mut newest = Some(0);
    snapshot.scan(Table::Events, KeyRange { first: &first, last: &last }, Direction::Backward, |key, _| {
        newest = keys::read_version(key);
        ControlFlow::Break(())
    })?;
    // The largest number is nobody's version: no event could follow it.
    newest
        .filter(|&newest| newest < u64::MAX)
        .ok_or_else(|| Error::Corrupt { version: None, reason: "the log has a key that is no version".to_owned() })
}

/// The greatest key of each kind in the table of the id index; empty if there is none.
pub(crate) fn greatest_ids<S: Snapshot>(snapshot: &S) -> Result<[Vec<u8>; keys::ID_KINDS]> {
    let mut greatest: [Vec<u8>; keys::ID_KINDS] = Default::default();
    for (kind, greatest) in keys::ID_KIND_BYTES.into_iter().zip(&mut greatest) {
        let range = KeyRange { first: &[kind], last: &[kind + 1] };
        snapshot.scan(Table::Ids, range, Direction::Backward, |key, _| {
            if key.first() != Some(&kind) {
                return ControlFlow::Continue(()); // a damaged key of this one byte
            }
            greatest.extend_from_slice(key);
            ControlFlow::Break(())
        })?;
    }
    Ok(greatest)
}

/// The event with this id, if its version is at most `head`.
pub(crate) fn find<S: Snapshot>(view: &View<S>, id: &str, head: Version) -> Result<Option<RecordedEvent>> {
    let mut key = Vec::new();
    keys::write_id(&mut key, id);
    // Memory is looked into once: what comes into it later may not be committed.
    let found = match view.find_recent_id(&key) {
        Some(version) if version > head.get() => return Ok(None),
        Some(version) => Some(version),
        None => view.find_id_in_table(&key)?,
    };
    let Some(version) = found else {
        return view.ends_before(head.get()).map_or(Ok(None), |incomplete| Err(incomplete.error()));
    };
    read_found(view.snapshot(), id, version, head)
}

/// The event at a version to which the index leads from this id, if the version is at most `head`.
pub(crate) fn read_found<S: Snapshot>(
    snapshot: &S,
    id: &str,
    version: u64,
    head: Version,
) -> Result<Option<RecordedEvent>> {
    let mut record = Vec::new();
    if !get_record(snapshot, version, &mut record)? {
        return Err(missing(version));
    }
    if version > head.get() {
        return Ok(None); // it is there, but not published yet
    }
    let range = 0..record.len();
    let event = record::decode(version, &record.into(), range)?;
    if event.event.id() != id {
        return Err(corrupt(version, "the id index leads to an event with another id"));
    }
    Ok(Some(event))
}

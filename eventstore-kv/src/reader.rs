//! Reads: one page, or one point.
//!
//! Every read is clamped to the published head. The log only grows, so pages that are read one after the other show the
//! same events as one long snapshot would, without holding one.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use eventstore_api::limits::MAX_AGGREGATE_ID_LEN;
use eventstore_api::{Bytes, Direction, Error, LoadOptions, Page, PageSize, RecordedEvent, Result, Version};
use eventstore_log::Log;

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::error::log_error;
use crate::index::{Block, Listed, View, damage_of};
use crate::record::{self, corrupt};
use crate::sync::is_past;
use crate::{Task, keys};

/// A page that is being read. It can stop when its time is up and go on later, on another thread.
#[derive(Debug)]
pub(crate) struct PageRead {
    options: LoadOptions,
    size: PageSize,
    head: Version,
    /// Events with these versions are still wanted; reading moves one end towards the other.
    wanted: Range<u64>,
    most_events: usize,
    /// The records of the page, checked, one behind the other.
    page: eventstore_log::Page,
    /// So many of them were taken up, with so many bytes.
    taken: usize,
    bytes: usize,
    /// Of an aggregate's events: the revision of the first record. Those that follow have the next ones.
    first_revision: Option<u64>,
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
            page: eventstore_log::Page::default(),
            taken: 0,
            bytes: 0,
            first_revision: None,
        }
    }

    /// Whether the page has all that fits or matches.
    pub(crate) fn is_done(&self) -> bool {
        self.complete || self.is_full()
    }

    fn is_full(&self) -> bool {
        self.taken >= self.most_events || (self.bytes >= self.size.bytes && self.taken > 0)
    }

    /// Reads until the page is done, or a little beyond `until`.
    pub(crate) fn run<E: Engine>(&mut self, log: &Log, view: &View<'_, E>, until: Option<Instant>) -> Result<()> {
        while !self.is_done() {
            match self.options.aggregate_id.clone() {
                None => self.read_log(log)?,
                Some(aggregate_id) => self.read_aggregate(log, view, &aggregate_id, until)?,
            }
            if is_over(until) {
                break;
            }
        }
        Ok(())
    }

    /// The page. A record that cannot be ends it, if there are events before it; at its begin it is the error.
    pub(crate) fn finish(mut self) -> Result<Page> {
        let eventstore_log::Page { bytes, records } = std::mem::take(&mut self.page);
        let page = Bytes::from(bytes);
        let mut events = Vec::with_capacity(records.len());
        for (nth, (version, range)) in records.into_iter().enumerate() {
            match self.decode(version, &page, range, nth as u64) {
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

    fn decode(&self, version: u64, page: &Bytes, range: Range<usize>, nth: u64) -> Result<RecordedEvent> {
        let recorded = record::decode(version, page, range)?;
        let Some(aggregate_id) = &self.options.aggregate_id else { return Ok(recorded) };
        if recorded.event.aggregate_id() != aggregate_id {
            return Err(corrupt(version, "the aggregate index leads to it, but it belongs to another aggregate"));
        }
        let revision = self.first_revision.map(|first| match self.options.direction {
            Direction::Forward => first.saturating_add(nth),
            Direction::Backward => first.saturating_sub(nth),
        });
        match revision {
            Some(revision) if revision != recorded.revision => {
                Err(corrupt(version, "the aggregate index leads to it for another revision than it has"))
            }
            _ => Ok(recorded),
        }
    }

    /// Reads the next part of the log: all of it at once, or up to the end of a segment.
    fn read_log(&mut self, log: &Log) -> Result<()> {
        let before = self.page.records.len();
        let (bytes, records) = (self.size.bytes.saturating_sub(self.bytes), self.most_events - before);
        let read = match self.options.direction {
            Direction::Forward => log.read(self.wanted.clone(), bytes, records, &mut self.page),
            Direction::Backward => log.read_backward(self.wanted.clone(), bytes, records, &mut self.page),
        };
        match read {
            Ok(()) if self.page.records.len() == before => return self.end_at(missing(self.next_wanted())),
            Ok(()) => {}
            Err(error) => return self.end_at(log_error(error)),
        }
        for nth in before..self.page.records.len() {
            if self.is_full() {
                self.page.records.truncate(nth);
                break;
            }
            self.take_up(nth);
        }
        Ok(())
    }

    fn read_aggregate<E: Engine>(
        &mut self,
        log: &Log,
        view: &View<'_, E>,
        aggregate_id: &str,
        until: Option<Instant>,
    ) -> Result<()> {
        let unknown = view.ends_before(self.wanted.end - 1);
        if let Some(incomplete) = unknown
            && self.options.direction == Direction::Backward
        {
            return self.end_at(incomplete.error());
        }
        let room = (self.most_events - self.page.records.len()).min(ROWS_PER_INDEX_SCAN);
        let (versions, first, listed) = if self.options.direction == Direction::Forward && self.wanted.start <= 1 {
            let (versions, listed) = view.first_versions(aggregate_id, self.wanted.end, room)?;
            (versions, 1, listed)
        } else {
            self.list_versions(view, aggregate_id, room)?
        };
        self.first_revision.get_or_insert(first);
        let read = self.read_versions(log, aggregate_id, &versions, until);
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

    /// The versions of an aggregate's wanted events, `most` at most, in the direction of the page, and the revision of the
    /// first of them.
    fn list_versions<E: Engine>(
        &self,
        view: &View<'_, E>,
        aggregate_id: &str,
        most: usize,
    ) -> Result<(Vec<u64>, u64, Listed)> {
        let Some(revisions) = revisions_in(view, aggregate_id, &self.wanted)? else {
            return Ok((Vec::new(), 0, Listed::All));
        };
        let first = match self.options.direction {
            Direction::Forward => revisions.start,
            Direction::Backward => revisions.end - 1,
        };
        let matching = usize::try_from(revisions.end - revisions.start).unwrap_or(usize::MAX);
        let most = most.min(matching);
        let versions = view.versions_of(aggregate_id, revisions, self.options.direction, most)?;
        let listed = match versions.len() {
            len if len < most => Listed::UpToGap,
            len if len < matching => Listed::Most,
            _ => Listed::All,
        };
        Ok((versions, first, listed))
    }

    /// Reads the events that the aggregate index has named; false if the page was done, or the time up, before the last.
    fn read_versions(
        &mut self,
        log: &Log,
        aggregate_id: &str,
        versions: &[u64],
        until: Option<Instant>,
    ) -> Result<bool> {
        let mut rest = versions;
        while !rest.is_empty() {
            let before = self.page.records.len();
            let (some, behind) = rest.split_at(MOST_AT_ONCE.min(rest.len()));
            let in_order = self.count_in_order(some);
            let bytes = self.size.bytes.saturating_sub(self.bytes);
            log.read_many(&some[..in_order], bytes, &mut self.page).map_err(log_error)?;
            let read = self.page.records.len() - before;
            for nth in before..self.page.records.len() {
                if self.is_full() {
                    self.page.records.truncate(nth);
                    return Ok(false);
                }
                self.take_up(nth);
            }
            if read < in_order {
                // The next page begins with the damage, or there was no room for more.
                return if read == 0 { Err(missing(some[0])) } else { Ok(false) };
            }
            if in_order < some.len() {
                return Err(damage_of(aggregate_id, "does not hold versions in order"));
            }
            rest = behind;
            if self.is_done() || is_over(until) {
                break;
            }
        }
        Ok(rest.is_empty())
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

    /// The version that comes next in the log.
    fn next_wanted(&self) -> u64 {
        match self.options.direction {
            Direction::Forward => self.wanted.start,
            Direction::Backward => self.wanted.end - 1,
        }
    }

    /// Takes up a record of the page, whose version is wanted.
    fn take_up(&mut self, nth: usize) {
        let (version, range) = &self.page.records[nth];
        (self.taken, self.bytes) = (self.taken + 1, self.bytes + range.len());
        match self.options.direction {
            Direction::Forward => self.wanted.start = version + 1,
            Direction::Backward => self.wanted.end = *version,
        }
        self.complete = self.wanted.is_empty();
    }

    /// What was read before the damage is sound and is handed out; the next page begins with the damage and fails.
    fn end_at(&mut self, damage: Error) -> Result<()> {
        if self.page.records.is_empty() {
            return Err(damage);
        }
        self.most_events = self.taken;
        Ok(())
    }
}

/// Larger pages would only hold the engine for longer.
const MOST_EVENTS: usize = 65_536;
const MOST_BYTES: usize = 64 << 20;

/// How many events of an aggregate are read before the time is looked at.
const MOST_AT_ONCE: usize = 64;

/// How many versions of an aggregate are listed before their events are read.
const ROWS_PER_INDEX_SCAN: usize = 256;

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(is_past)
}

fn missing(version: u64) -> Error {
    corrupt(version, "it is missing from the log")
}

/// The revisions of an aggregate whose versions lie in `versions`; `None` if there are none.
///
/// Versions rise with revisions, so each end is found by halving.
fn revisions_in<E: Engine>(
    view: &View<'_, E>,
    aggregate_id: &str,
    versions: &Range<u64>,
) -> Result<Option<Range<u64>>> {
    let Some((newest, newest_version)) = view.newest_revision(aggregate_id, versions.end)? else { return Ok(None) };
    let beyond = newest.checked_add(1).ok_or_else(|| damage_of(aggregate_id, "has an impossible revision"))?;
    let start = match versions.start {
        0 | 1 => 1,
        start => first_revision_from(view, aggregate_id, start, beyond)?,
    };
    let end = match newest_version < versions.end {
        true => beyond,
        false => first_revision_from(view, aggregate_id, versions.end, newest)?,
    };
    Ok((start < end).then_some(start..end))
}

/// The smallest revision whose version is at least `version`, or `most` if there is none below it.
fn first_revision_from<E: Engine>(view: &View<'_, E>, aggregate_id: &str, version: u64, most: u64) -> Result<u64> {
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low + (high - low) / 2;
        if view.version_of(aggregate_id, middle)? < version {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The number of an aggregate's events up to the head, which is the revision of the newest of them.
pub(crate) fn revision_at<E: Engine>(view: &View<'_, E>, aggregate_id: &str, head: Version) -> Result<u64> {
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
    let mut versions = Vec::new();
    loop {
        task.check()?;
        let snapshot = engine.snapshot()?;
        for _ in 0..ROWS_PER_INDEX_SCAN {
            let mut found = None;
            let range = KeyRange { first: &from, last: keys::LAST_KEY };
            let mut next = Vec::new();
            snapshot.scan(Table::Aggregates, range, Direction::Forward, |key, value| {
                versions.clear();
                let block = Block::read(key, value, &mut versions);
                found = Some(block.is_some_and(|block| block.versions[0] <= head.get()));
                keys::write_behind_aggregate(&mut next, key);
                ControlFlow::Break(())
            })?;
            match found {
                None => return Ok(count),
                Some(counts) => count += u64::from(counts),
            }
            from = next;
        }
    }
}

/// The event with this id, if its version is at most `head`.
pub(crate) fn find<E: Engine>(log: &Log, view: &View<'_, E>, id: &str, head: Version) -> Result<Option<RecordedEvent>> {
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
    if version > head.get() {
        return Ok(None); // it is there, but not published yet
    }
    read_found(log, id, version).map(Some)
}

/// The event at a version to which the index leads from this id.
pub(crate) fn read_found(log: &Log, id: &str, version: u64) -> Result<RecordedEvent> {
    let mut page = eventstore_log::Page::default();
    log.read_one(version, &mut page).map_err(log_error)?;
    let eventstore_log::Page { bytes, records } = page;
    let (_, range) = records.into_iter().next().ok_or_else(|| missing(version))?;
    let event = record::decode(version, &bytes.into(), range)?;
    if event.event.id() != id {
        return Err(corrupt(version, "the id index leads to an event with another id"));
    }
    Ok(event)
}

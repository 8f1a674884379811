//! Reads of one page or one event.
//!
//! Every read ends at the published head. The log only grows, so a sequence of pages shows the same events as one long
//! snapshot, without holding one.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use eventstore_api::limits::MAX_AGGREGATE_ID_LEN;
use eventstore_api::{Bytes, Direction, Error, LoadOptions, Page, PageSize, RecordedEvent, Result, Revision, Version};
use eventstore_log::Log;

use crate::Task;
use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::error::log_error;
use crate::format::keys;
use crate::format::record::{self, Filter, corrupt};
use crate::index::view::{Block, Listed, View, damage_of};
use crate::sync::is_past;

/// A page that is being read. It can pause when its time is up, and continue later on another thread.
#[derive(Debug)]
pub(crate) struct PageRead {
    options: LoadOptions,
    size: PageSize,
    head: Version,
    /// The versions still to read. Reading moves one end towards the other.
    wanted: Range<u64>,
    most_events: usize,
    /// The records of the page, verified.
    page: eventstore_log::Page,
    /// The number of accepted records, and their size in bytes.
    taken: usize,
    bytes: usize,
    /// For a load of an aggregate: the revision of the first record. The following records have the next ones.
    first_revision: Option<u64>,
    /// `None` if no filter is needed.
    filtered: Option<Filtered>,
    /// Whether no further event matches.
    complete: bool,
}

/// The state of a load with a filter.
#[derive(Debug)]
struct Filtered {
    filter: Filter,
    /// How much to read next.
    next: PageSize,
    /// The number of events read so far.
    seen: u64,
    /// For each record of the page, the number of events read before it.
    places: Vec<u64>,
}

impl Filtered {
    /// As much as fits into the processor's cache.
    const MOST: PageSize = PageSize::new(4096, PageSize::LARGEST.bytes);

    /// The first read has the size of the page.
    fn new(filter: Filter, page: PageSize) -> Self {
        let next = PageSize::new(page.events.min(Self::MOST.events), page.bytes.min(Self::MOST.bytes));
        Filtered { filter, next, seen: 0, places: Vec::new() }
    }

    /// This many events are still wanted. Reads as many as probably contain them, and more each time that none was
    /// found.
    fn read_next(&mut self, wanted: usize) {
        let likely = match self.places.len() as u64 {
            0 => self.next.events.saturating_mul(2),
            found => usize::try_from((wanted as u64).saturating_mul(self.seen) / found).unwrap_or(usize::MAX),
        };
        // A few more, so that the last one is seldom missed by a little.
        self.next = PageSize::new(likely.saturating_add(8).min(Self::MOST.events), Self::MOST.bytes);
    }
}

impl PageRead {
    pub(crate) fn new(options: &LoadOptions, size: PageSize, head: Version) -> Self {
        let before = options.before.map_or(u64::MAX, Version::get).min(head.next().get());
        let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let wanted = options.since.next().get()..before;
        let size = PageSize::new(size.events.clamp(1, MOST_EVENTS), size.bytes.min(MOST_BYTES));
        let most_events = size.events.min(limit);
        PageRead {
            options: options.clone(),
            size,
            head,
            complete: wanted.is_empty() || most_events == 0 || is_impossible(options),
            wanted,
            most_events,
            page: eventstore_log::Page::default(),
            taken: 0,
            bytes: 0,
            first_revision: None,
            filtered: Filter::of(options).map(|filter| Filtered::new(filter, PageSize::new(most_events, size.bytes))),
        }
    }

    /// Whether the page is full, or no more events match.
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
                None if self.filtered.is_some() => self.search_log(log)?,
                None => self.read_log(log)?,
                Some(aggregate_id) => self.read_aggregate(log, view, &aggregate_id, until)?,
            }
            if is_over(until) {
                break;
            }
        }
        Ok(())
    }

    /// The finished page. An invalid record ends the page before it; if it is the first, it is the error.
    pub(crate) fn finish(mut self) -> Result<Page> {
        let eventstore_log::Page { mut bytes, records } = std::mem::take(&mut self.page);
        if self.filtered.is_some() && bytes.len() < bytes.capacity() / 2 {
            bytes.shrink_to_fit(); // little of what was read matched
        }
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
            return Err(corrupt(version, "the aggregate index points to it, but it belongs to another aggregate"));
        }
        let nth = self.filtered.as_ref().map_or(nth, |filtered| filtered.places[nth as usize]);
        match self.revision_of(nth) {
            Some(revision) if revision != recorded.revision.get() => {
                Err(corrupt(version, "the aggregate index points to it with a wrong revision"))
            }
            _ => Ok(recorded),
        }
    }

    /// The revision of an aggregate's event, given the number of events read before it.
    fn revision_of(&self, nth: u64) -> Option<u64> {
        self.first_revision.map(|first| match self.options.direction {
            Direction::Forward => first.saturating_add(nth),
            Direction::Backward => first.saturating_sub(nth),
        })
    }

    /// Reads the next part of the log and keeps the matching records.
    fn search_log(&mut self, log: &Log) -> Result<()> {
        let Some(Filtered { next, .. }) = &self.filtered else { return Ok(()) };
        let (base, before) = (self.page.bytes.len(), self.page.records.len());
        let read = match self.options.direction {
            Direction::Forward => log.read(self.wanted.clone(), next.bytes, next.events, &mut self.page),
            Direction::Backward => log.read_backward(self.wanted.clone(), next.bytes, next.events, &mut self.page),
        };
        match read {
            Ok(()) if self.page.records.len() == before => self.end_at(missing(self.next_wanted())),
            Ok(()) => {
                self.take_up_matching(base, before, None);
                Ok(())
            }
            Err(error) => self.end_at(log_error(error)),
        }
    }

    /// Keeps the matching ones of the records that were just read, starting at `before`, until the page is full.
    /// Returns false if it filled up before the last one. Records of an aggregate with a wrong revision are kept as
    /// well, so that they are reported.
    fn take_up_matching(&mut self, base: usize, before: usize, aggregate_id: Option<&str>) -> bool {
        let Some(mut filtered) = self.filtered.take() else { return true };
        let read = self.page.records.split_off(before);
        let (mut all, mut kept) = (true, 0);
        for (version, range) in read {
            if self.is_full() {
                all = false;
                break;
            }
            let (nth, record) = (filtered.seen, &self.page.bytes[range.clone()]);
            filtered.seen += 1;
            let is_at_its_place = aggregate_id
                .zip(self.revision_of(nth))
                .is_none_or(|(aggregate_id, revision)| record::is_at(version, record, aggregate_id, revision));
            if is_at_its_place && !filtered.filter.accepts(version, record) {
                self.pass(version);
                continue;
            }
            kept += range.len();
            self.page.records.push((version, range));
            filtered.places.push(nth);
            self.take_up(self.page.records.len() - 1);
        }
        // Frees the memory of records that do not match, unless it is little.
        if kept < (self.page.bytes.len() - base) / 2 {
            self.close_up(base, before);
        }
        filtered.read_next(self.most_events.saturating_sub(self.taken));
        self.filtered = Some(filtered);
        all
    }

    /// Moves the contents of the records from this one on together, after `base`.
    fn close_up(&mut self, base: usize, before: usize) {
        let eventstore_log::Page { bytes, records } = &mut self.page;
        let records = &mut records[before..];
        // Records read backward are in the opposite order.
        records.sort_unstable_by_key(|(_, range)| range.start);
        let mut end = base;
        for (_, range) in records.iter_mut() {
            bytes.copy_within(range.clone(), end);
            *range = end..end + range.len();
            end = range.end;
        }
        if self.options.direction == Direction::Backward {
            records.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
        } else {
            records.sort_unstable_by_key(|(version, _)| *version);
        }
        bytes.truncate(end);
    }

    /// Reads the next part of the log, everything at once or up to the end of a segment.
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
        let room = match &self.filtered {
            None => (self.most_events - self.page.records.len()).min(ROWS_PER_INDEX_SCAN),
            Some(filtered) => filtered.next.events.min(ROWS_PER_INDEX_SCAN),
        };
        let is_from_the_first = self.wanted.start <= 1 && self.options.since_revision == Revision::ZERO;
        let (versions, first, listed) = if self.options.direction == Direction::Forward && is_from_the_first {
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

    /// The versions of an aggregate's wanted events, at most `most`, in the direction of the page, and the revision of
    /// the first one.
    fn list_versions<E: Engine>(
        &self,
        view: &View<'_, E>,
        aggregate_id: &str,
        most: usize,
    ) -> Result<(Vec<u64>, u64, Listed)> {
        let since_revision = self.options.since_revision.get();
        let Some(revisions) = revisions_in(view, aggregate_id, &self.wanted, since_revision)? else {
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

    /// Reads the events listed by the aggregate index. Returns false if the page was full, or the time was up, before
    /// the last.
    fn read_versions(
        &mut self,
        log: &Log,
        aggregate_id: &str,
        versions: &[u64],
        until: Option<Instant>,
    ) -> Result<bool> {
        let mut rest = versions;
        while !rest.is_empty() {
            let (some, behind) = rest.split_at(MOST_AT_ONCE.min(rest.len()));
            let in_order = self.count_in_order(some);
            let (read, all) = match self.filtered.is_some() {
                true => self.read_matching(log, aggregate_id, &some[..in_order])?,
                false => self.read_many(log, &some[..in_order])?,
            };
            if !all {
                return Ok(false);
            }
            if read < in_order {
                // The next page begins with the damage, or there was no more room.
                return if read == 0 { Err(missing(some[0])) } else { Ok(false) };
            }
            if in_order < some.len() {
                return Err(damage_of(aggregate_id, "has versions out of order"));
            }
            rest = behind;
            if self.is_done() || is_over(until) {
                break;
            }
        }
        Ok(rest.is_empty())
    }

    /// Reads the events with these versions, as far as there is room. Returns their number, and whether all of them
    /// were accepted.
    fn read_many(&mut self, log: &Log, versions: &[u64]) -> Result<(usize, bool)> {
        let before = self.page.records.len();
        let bytes = self.size.bytes.saturating_sub(self.bytes);
        log.read_many(versions, bytes, &mut self.page).map_err(log_error)?;
        let read = self.page.records.len() - before;
        for nth in before..self.page.records.len() {
            if self.is_full() {
                self.page.records.truncate(nth);
                return Ok((read, false));
            }
            self.take_up(nth);
        }
        Ok((read, true))
    }

    /// Like [`read_many`](Self::read_many), but keeps only matching events.
    fn read_matching(&mut self, log: &Log, aggregate_id: &str, versions: &[u64]) -> Result<(usize, bool)> {
        let (base, before) = (self.page.bytes.len(), self.page.records.len());
        log.read_many(versions, Filtered::MOST.bytes, &mut self.page).map_err(log_error)?;
        let read = self.page.records.len() - before;
        Ok((read, self.take_up_matching(base, before, Some(aggregate_id))))
    }

    /// The length of the longest prefix of these versions that are wanted and in order.
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

    /// The next version in the log to read.
    fn next_wanted(&self) -> u64 {
        match self.options.direction {
            Direction::Forward => self.wanted.start,
            Direction::Backward => self.wanted.end - 1,
        }
    }

    /// Adds a record to the page. Its version is wanted.
    fn take_up(&mut self, nth: usize) {
        let (version, range) = &self.page.records[nth];
        let version = *version;
        (self.taken, self.bytes) = (self.taken + 1, self.bytes + range.len());
        self.pass(version);
    }

    /// Marks an event as read.
    fn pass(&mut self, version: u64) {
        match self.options.direction {
            Direction::Forward => self.wanted.start = version + 1,
            Direction::Backward => self.wanted.end = version,
        }
        self.complete = self.wanted.is_empty();
    }

    /// Everything read before the damage is valid and is returned. The next page begins with the damage and fails.
    fn end_at(&mut self, damage: Error) -> Result<()> {
        if self.page.records.is_empty() {
            return Err(damage);
        }
        self.most_events = self.taken;
        Ok(())
    }
}

/// Larger pages would only occupy the engine for longer.
const MOST_EVENTS: usize = 65_536;
const MOST_BYTES: usize = 64 << 20;

/// The number of an aggregate's events read between two checks of the time.
const MOST_AT_ONCE: usize = 64;

/// The number of an aggregate's versions listed before their events are read.
const ROWS_PER_INDEX_SCAN: usize = 256;

/// Whether no event can match these options.
fn is_impossible(options: &LoadOptions) -> bool {
    let LoadOptions { aggregate_id, aggregate_prefix, recorded_since, recorded_before, .. } = options;
    let is_too_long = |id: &Option<String>| id.as_ref().is_some_and(|id| id.len() > MAX_AGGREGATE_ID_LEN);
    let differ = |(id, prefix): (&String, &String)| !id.starts_with(prefix.as_str());
    is_too_long(aggregate_id)
        || is_too_long(aggregate_prefix)
        || aggregate_id.as_ref().zip(aggregate_prefix.as_ref()).is_some_and(differ)
        || recorded_since.zip(*recorded_before).is_some_and(|(since, before)| since >= before)
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(is_past)
}

fn missing(version: u64) -> Error {
    corrupt(version, "it is missing from the log")
}

/// The revisions of an aggregate after `since` whose versions are in `versions`; `None` if there are none.
///
/// Versions rise with revisions, so each end is found by binary search.
fn revisions_in<E: Engine>(
    view: &View<'_, E>,
    aggregate_id: &str,
    versions: &Range<u64>,
    since: u64,
) -> Result<Option<Range<u64>>> {
    let Some((newest, newest_version)) = view.newest_revision(aggregate_id, versions.end)? else { return Ok(None) };
    let beyond = newest.checked_add(1).ok_or_else(|| damage_of(aggregate_id, "has an impossible revision"))?;
    if newest <= since {
        return Ok(None);
    }
    let start = match versions.start {
        0 | 1 => 1,
        start => first_revision_from(view, aggregate_id, start, beyond)?,
    };
    let start = start.max(since + 1);
    let end = match newest_version < versions.end {
        true => beyond,
        false => first_revision_from(view, aggregate_id, versions.end, newest)?,
    };
    Ok((start < end).then_some(start..end))
}

/// The newest revision of an aggregate with a version before `before`, and its version, given its newest known
/// revision; `None` if there is none.
pub(crate) fn newest_before<E: Engine>(
    view: &View<'_, E>,
    aggregate_id: &str,
    (revision, version): (u64, u64),
    before: u64,
) -> Result<Option<(u64, u64)>> {
    if version < before {
        return Ok(Some((revision, version)));
    }
    match first_revision_from(view, aggregate_id, before, revision)? - 1 {
        0 => Ok(None),
        newest => Ok(Some((newest, view.version_of(aggregate_id, newest)?))),
    }
}

/// The smallest revision whose version is at least `version`, or `most` if no smaller one has such a version.
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

/// The number of an aggregate's events up to the head, which is its newest revision there.
pub(crate) fn revision_at<E: Engine>(view: &View<'_, E>, aggregate_id: &str, head: Version) -> Result<u64> {
    if let Some(incomplete) = view.ends_before(head.get()) {
        return Err(incomplete.error());
    }
    let revisions = revisions_in(view, aggregate_id, &(0..head.next().get()), 0)?;
    Ok(revisions.map_or(0, |revisions| revisions.end - 1))
}

/// The number of aggregates in the table whose first event is at or before `head`. One seek for each, in short
/// snapshots.
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
    // Memory is searched only once: events added to it later may not be committed.
    let found = match view.find_recent_id(&key) {
        Some(version) if version > head.get() => return Ok(None),
        Some(version) => Some(version),
        None => view.find_id_in_table(&key)?,
    };
    let Some(version) = found else {
        return view.ends_before(head.get()).map_or(Ok(None), |incomplete| Err(incomplete.error()));
    };
    if version > head.get() {
        return Ok(None); // it is stored, but not published yet
    }
    read_found(log, id, version).map(Some)
}

/// The event at the version that the index has for this id.
pub(crate) fn read_found(log: &Log, id: &str, version: u64) -> Result<RecordedEvent> {
    let mut page = eventstore_log::Page::default();
    log.read_one(version, &mut page).map_err(log_error)?;
    let eventstore_log::Page { bytes, records } = page;
    let (_, range) = records.into_iter().next().ok_or_else(|| missing(version))?;
    let event = record::decode(version, &bytes.into(), range)?;
    if event.event.id() != id {
        return Err(corrupt(version, "the id index points to an event with another id"));
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use eventstore_api::Event;
    use eventstore_log::{Group, Known, MemoryDirectory, Options};

    use super::*;
    use crate::MemoryEngine;
    use crate::index::recent::Recent;
    use crate::index::view::Index;

    /// A log of events with these types, aggregates and revisions, and an index that has these aggregates and revisions
    /// instead.
    fn store(events: &[(&str, &str, u64)], led_to: &[(&str, u64)]) -> (Log, Index) {
        let files = Arc::new(MemoryDirectory::default());
        let opened = Log::open(files, [0; 16], &Options::default(), Known { synced: 0 }, 0, &mut |_, _| {});
        let opened = opened.expect("opened");
        let (mut appender, mut group) = (opened.appender.expect("nothing is damaged"), Group::default());
        let (index, mut at) = (Index::new(Recent::new(1), None, 0), SystemTime::UNIX_EPOCH);
        group.begin(1);
        for (nth, ((event_type, aggregate_id, revision), (led_from, led_as))) in events.iter().zip(led_to).enumerate() {
            let event = Event::builder(*event_type, *aggregate_id).id(format!("id-{nth}")).build().expect("valid");
            at += Duration::from_secs(1);
            group.push(&[&record::header(&event, *revision, at.into()), event.bytes()]);
            index.newer().push(format!("id-{nth}").as_bytes(), led_from, *led_as);
        }
        appender.commit(&mut group, true).expect("committed");
        (opened.log, index)
    }

    /// The versions of all pages, and the result at the end.
    fn read((log, index): &(Log, Index), options: &LoadOptions, events: usize) -> (Vec<u64>, Result<()>) {
        let engine = MemoryEngine::default();
        let (mut versions, mut next) = (Vec::new(), Some(options.clone()));
        while let Some(options) = next {
            let mut page = PageRead::new(&options, PageSize::new(events, 1 << 20), Version::new(log.last()));
            // The time is up immediately on each call.
            while !page.is_done() {
                if let Err(error) = page.run(log, &index.view(&engine), Some(Instant::now())) {
                    return (versions, Err(error));
                }
            }
            match page.finish() {
                Ok(page) => {
                    versions.extend(page.events.iter().map(|event| event.version.get()));
                    next = page.next;
                }
                Err(error) => return (versions, Err(error)),
            }
        }
        (versions, Ok(()))
    }

    #[test]
    fn what_the_index_leads_to_wrongly_is_told_of_also_if_no_filter_accepts_it() {
        let events = [("T", "a", 1), ("U", "b", 1), ("T", "a", 2), ("U", "a", 3), ("T", "a", 4)];
        let sound = [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("a", 4)];
        let options = LoadOptions::all().aggregate("a").types(["T"]);
        let (versions, outcome) = read(&store(&events, &sound), &options, 2);
        assert_eq!(versions, [1, 3, 5]);
        outcome.expect("it is sound");
        // The second event does not belong to `a`, so one of its own may be hidden. The fourth has a wrong revision.
        let foreign = [("a", 1), ("a", 2), ("a", 3), ("c", 1), ("a", 4)];
        let other_revision = [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("a", 3)];
        for (led_to, damaged) in [(foreign, 2), (other_revision, 4)] {
            let store = store(&events, &led_to);
            for events in [1, 2, 10] {
                let (versions, outcome) = read(&store, &options, events);
                assert_eq!(versions, [1], "{led_to:?}");
                let is_told = matches!(outcome, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == damaged);
                assert!(is_told, "{led_to:?}: {outcome:?}");
            }
        }
    }

    #[test]
    fn what_no_event_can_be_is_not_looked_for() {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let every = LoadOptions::all();
        let long = "x".repeat(MAX_AGGREGATE_ID_LEN + 1);
        for options in [
            every.clone().aggregate("b").aggregate_prefix("a"),
            every.clone().aggregate_prefix(&long),
            every.clone().aggregate(&long),
            every.clone().recorded_since(time(2)).recorded_before(time(2)),
            every.clone().limit(0),
        ] {
            assert!(PageRead::new(&options, PageSize::FIRST, Version::new(9)).is_done(), "{options:?}");
        }
        for options in [
            every.clone().aggregate("ab").aggregate_prefix("a"),
            every.clone().recorded_since(time(1)).recorded_before(time(2)),
        ] {
            assert!(!PageRead::new(&options, PageSize::FIRST, Version::new(9)).is_done(), "{options:?}");
        }
    }

    #[test]
    fn any_filter_gives_the_same_in_pages_of_any_size() {
        let types = ["T", "U", "V"];
        let aggregates = ["a", "ab", "b"];
        let mut revisions = [0; 3];
        let events: Vec<_> = (0..300_usize)
            .map(|nth| {
                let aggregate = nth * nth % 7 % 3;
                revisions[aggregate] += 1;
                (types[nth * 5 % 11 % 3], aggregates[aggregate], revisions[aggregate])
            })
            .collect();
        let led_to: Vec<_> = events.iter().map(|(_, aggregate_id, revision)| (*aggregate_id, *revision)).collect();
        let store = store(&events, &led_to);
        let every = LoadOptions::all();
        for options in [
            every.clone().types(["U"]),
            every.clone().types(["V", "T"]).aggregate_prefix("a"),
            every.clone().aggregate("ab").types(["U"]),
            every.clone().aggregate("ab").since_revision(20.into()),
            every.clone().aggregate("ab").since_revision(20.into()).types(["T"]),
            every.clone().since_revision(60.into()),
            every.recorded_since(SystemTime::UNIX_EPOCH + Duration::from_secs(100)).types(["T"]),
        ] {
            for options in [options.clone(), options.clone().backward(), options.before(200.into())] {
                let matches = |(nth, (event_type, aggregate_id, revision)): (usize, &(&str, &str, u64))| {
                    let event = Event::builder(*event_type, *aggregate_id).build().expect("valid");
                    let (version, at) = (nth as u64 + 1, SystemTime::UNIX_EPOCH + Duration::from_secs(nth as u64 + 1));
                    let recorded = RecordedEvent::new(Version::new(version), (*revision).into(), at, event);
                    options.matches(&recorded).then_some(version)
                };
                let mut expected: Vec<_> = events.iter().enumerate().filter_map(matches).collect();
                if options.direction == Direction::Backward {
                    expected.reverse();
                }
                assert!(!expected.is_empty(), "{options:?}");
                for events in [1, 2, 7, 64, 1000] {
                    let (versions, outcome) = read(&store, &options, events);
                    outcome.expect("it is sound");
                    assert_eq!(versions, expected, "{options:?} in pages of {events}");
                }
            }
        }
    }
}

//! The list of aggregates, a page at a time: those in the table and those in memory, ordered by id.

use std::cmp::Ordering;
use std::collections::btree_set;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::time::Instant;

use eventstore_api::limits::MAX_AGGREGATE_ID_LEN;
use eventstore_api::{AggregateInfo, AggregateOptions, AggregatePage, Direction, Error, Result, Revision, Version};

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::format::keys;
use crate::index::view::{Block, View, damage_of};
use crate::read::reader::newest_before;
use crate::sync::is_past;

/// A page that is being read. It can pause when its time is up, and continue later on another thread.
#[derive(Debug)]
pub(crate) struct ListRead {
    options: AggregateOptions,
    most: usize,
    head: Version,
    /// Only events with smaller versions count.
    before: u64,
    /// One more than fits on the page, unless it is the last page.
    found: Vec<AggregateInfo>,
    /// All aggregates up to this one were processed.
    last: String,
    complete: bool,
}

impl ListRead {
    pub(crate) fn new(options: &AggregateOptions, most: usize, head: Version) -> Self {
        let before = options.before.map_or(u64::MAX, Version::get).min(head.next().get());
        ListRead {
            most: most.clamp(1, AggregatePage::MOST),
            head,
            before,
            found: Vec::new(),
            last: options.after.clone(),
            complete: before <= 1 || options.prefix.len() > MAX_AGGREGATE_ID_LEN,
            options: options.clone(),
        }
    }

    /// Whether the page is full, or there are no more aggregates.
    pub(crate) fn is_done(&self) -> bool {
        self.complete || self.found.len() > self.most
    }

    /// Reads until the page is done, or a little beyond `until`.
    pub(crate) fn run<E: Engine>(&mut self, view: &View<'_, E>, until: Instant) -> Result<()> {
        while !self.is_done() {
            if let Some(incomplete) = view.ends_before(self.before - 1) {
                return Err(incomplete.error());
            }
            let most = self.most + 1 - self.found.len();
            let recent = view.smallest_recent_ids(&self.options.prefix, &self.last, most);
            let are_all = recent.len() < most;
            let in_table = Walk::new(view, &self.options.prefix, &self.last);
            let mut both = Both { recent: recent.into_iter().peekable(), are_all, in_table, next_in_table: None };
            while let Some(next) = both.next()? {
                if self.take_up(view, next)?.is_break() || is_past(until) {
                    return Ok(());
                }
            }
            self.complete = are_all;
        }
        Ok(())
    }

    fn take_up<E: Engine>(&mut self, view: &View<'_, E>, next: Next) -> Result<ControlFlow<()>> {
        let Next { id, in_table } = next;
        // The part in memory may have events that the table does not have yet, and uncommitted ones.
        let newest = view.newest_recent_revision(&id, self.before).or(in_table);
        let newest = newest.map(|newest| newest_before(view, &id, newest, self.before)).transpose()?.flatten();
        self.last.clone_from(&id);
        if let Some((revision, version)) = newest {
            self.found.push(AggregateInfo::new(id, Revision::new(revision), Version::new(version)));
        }
        Ok(if self.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// The page.
    pub(crate) fn finish(mut self) -> AggregatePage {
        let complete = self.found.len() <= self.most;
        self.found.truncate(self.most);
        AggregatePage::new(&self.options, self.found, self.head, complete)
    }
}

/// The next aggregate, with its newest revision in the table and the version of that.
struct Next {
    id: String,
    in_table: Option<(u64, u64)>,
}

/// The aggregates in memory and those in the table, in order, each once.
struct Both<'v, 'e, E: Engine> {
    /// The smallest ones in memory.
    recent: Peekable<btree_set::IntoIter<String>>,
    /// Whether these are all aggregates in memory.
    are_all: bool,
    in_table: Walk<'v, 'e, E>,
    /// It was read, but not returned yet.
    next_in_table: Option<Next>,
}

impl<E: Engine> Both<'_, '_, E> {
    /// `None` if there are no more, or if others in memory may come first.
    fn next(&mut self) -> Result<Option<Next>> {
        if self.recent.peek().is_none() && !self.are_all {
            return Ok(None);
        }
        if self.next_in_table.is_none() {
            self.next_in_table = self.in_table.next()?;
        }
        let (recent, in_table) = (self.recent.peek(), self.next_in_table.as_ref());
        let order = match (recent, in_table) {
            (Some(recent), Some(in_table)) => recent.cmp(&in_table.id),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let id = if order.is_le() { self.recent.next() } else { None };
        let in_table = if order.is_ge() { self.next_in_table.take() } else { None };
        Ok(in_table.or(id.map(|id| Next { id, in_table: None })))
    }
}

/// Walks over the aggregates in the table, ordered by id.
///
/// The table has another order: the entries of an id come after those of all longer ids that begin with it, so `ab`
/// comes before `a`. So before an aggregate is returned, its prefixes are looked up: the last entry of all ids with a
/// common prefix belongs to the shortest of them, if there is one. Mostly it is the aggregate itself, which is needed
/// in any case.
struct Walk<'v, 'e, E: Engine> {
    view: &'v View<'e, E>,
    prefix_len: usize,
    /// The aggregate that was returned last.
    last: Vec<u8>,
    /// Everything before this key was returned.
    from: Vec<u8>,
    /// The last key that may be returned.
    end: Vec<u8>,
    /// The next aggregate in key order, if it is known.
    first: Option<Vec<u8>>,
    /// There are no more in the table. What is added to it later was in memory before, and is returned from there.
    is_over: bool,
}

impl<'v, 'e, E: Engine> Walk<'v, 'e, E> {
    fn new(view: &'v View<'e, E>, prefix: &str, after: &str) -> Self {
        let mut end = Vec::new();
        keys::write_last_beginning_with(&mut end, prefix.as_bytes());
        let from = prefix.max(after).as_bytes().to_vec();
        Walk { view, prefix_len: prefix.len(), last: after.as_bytes().to_vec(), from, end, first: None, is_over: false }
    }

    fn next(&mut self) -> Result<Option<Next>> {
        if self.is_over {
            return Ok(None);
        }
        let Some(first) = self.first.take().map_or_else(|| self.first_in_table(), |first| Ok(Some(first)))? else {
            self.is_over = true;
            return Ok(None);
        };
        // Returned ids share no longer prefix with it.
        let mut len = (common_len(&first, &self.last) + 1).max(self.prefix_len);
        loop {
            let start = &first[..len.min(first.len())];
            let (id, newest) = self.last_beginning_with(start, len >= first.len())?;
            if !first.starts_with(id.as_bytes()) {
                len = common_len(&first, id.as_bytes()) + 1;
                continue;
            }
            self.last.clear();
            self.last.extend_from_slice(id.as_bytes());
            if id.len() < first.len() {
                self.first = Some(first);
            } else {
                keys::write_last_beginning_with(&mut self.from, &first);
            }
            return Ok(Some(Next { id, in_table: Some(newest) }));
        }
    }

    /// The first aggregate in the table, in key order, that was not returned.
    fn first_in_table(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if self.from > self.end {
                return Ok(None);
            }
            let mut found = None;
            let range = KeyRange { first: &self.from, last: &self.end };
            self.view.snapshot()?.scan(Table::Aggregates, range, Direction::Forward, |key, _| {
                found = Some(key.to_vec());
                ControlFlow::Break(())
            })?;
            let Some(key) = found else { return Ok(None) };
            let Some((id, _)) = keys::read_aggregate(&key) else { return Err(damaged()) };
            if !self.last.starts_with(id.as_bytes()) {
                return Ok(Some(id.as_bytes().to_vec()));
            }
            // It was returned before the ids that begin with it, or is itself the last one returned.
            keys::write_behind_aggregate(&mut self.from, &key);
        }
    }

    /// The last aggregate in the table with this prefix, of which there is at least one, with its newest revision and
    /// version; or the aggregate with exactly this id.
    fn last_beginning_with(&self, start: &[u8], is_whole: bool) -> Result<(String, (u64, u64))> {
        let (mut first_key, mut last_key) = (start.to_vec(), Vec::new());
        if is_whole {
            keys::end_aggregate(&mut first_key);
        }
        keys::write_last_beginning_with(&mut last_key, start);
        let (mut found, mut versions) = (None, Vec::new());
        let range = KeyRange { first: &first_key, last: &last_key };
        self.view.snapshot()?.scan(Table::Aggregates, range, Direction::Backward, |key, value| {
            let id = keys::read_aggregate(key).map(|(id, _)| id.to_owned());
            let newest = Block::read(key, value, &mut versions)
                .and_then(|block| Some((block.last, block.versions.last().copied()?)));
            found = Some((id, newest));
            ControlFlow::Break(())
        })?;
        match found {
            Some((Some(id), Some(newest))) => Ok((id, newest)),
            Some((Some(id), None)) => Err(damage_of(&id, "has a damaged entry")),
            Some((None, _)) | None => Err(damaged()),
        }
    }
}

fn common_len(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn damaged() -> Error {
    Error::Corrupt { version: None, reason: "the index of aggregates has a damaged entry".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::MemoryEngine;
    use crate::engine::Entries;
    use crate::index::recent::Recent;
    use crate::index::view::{Incomplete, Index};

    /// An index of events of these aggregates: the first ones in the table, the next ones in memory and frozen, the
    /// rest in memory.
    fn index(aggregates: &[String], in_table: usize, frozen: usize) -> (Index, MemoryEngine) {
        let (index, engine) = (Index::new(Recent::new(1), None, 0), MemoryEngine::default());
        let mut revisions: BTreeMap<&str, u64> = BTreeMap::new();
        for (nth, aggregate_id) in aggregates.iter().enumerate() {
            let revision = revisions.entry(aggregate_id).or_default();
            *revision += 1;
            index.newer().push(nth.to_string().as_bytes(), aggregate_id, *revision);
            let is_written = nth + 1 == in_table;
            if is_written || nth + 1 == frozen {
                index.freeze();
            }
            if is_written {
                let mut entries = Entries::new();
                index.unwritten().expect("just frozen").put_all(&mut entries);
                engine.write(&entries).expect("written");
                index.written();
                index.freeze(); // and it is removed from memory
                index.written();
            }
        }
        (index, engine)
    }

    fn ids(view: &View<'_, MemoryEngine>, head: u64, prefix: &str) -> Vec<String> {
        let mut list = ListRead::new(&AggregateOptions::all().prefix(prefix), 1000, Version::new(head));
        list.run(view, Instant::now() + std::time::Duration::from_secs(60)).expect("read");
        list.finish().aggregates.into_iter().map(|aggregate| aggregate.aggregate_id).collect()
    }

    #[test]
    fn a_shorter_id_comes_before_those_that_begin_with_it() {
        let aggregates = ["b", "abc", "a", "abd", "ab", "a\0", "a\u{10ffff}", "\u{10ffff}", "\0"].map(str::to_owned);
        let len = aggregates.len();
        let mut sorted = aggregates.to_vec();
        sorted.sort();
        for (in_table, frozen) in [(len, len), (0, 0), (0, len), (4, 7), (4, 4), (8, 9), (1, 2)] {
            let (index, engine) = index(&aggregates, in_table, frozen);
            let view = index.view(&engine);
            assert_eq!(ids(&view, len as u64, ""), sorted, "{in_table} in the table, {frozen} frozen");
            assert_eq!(ids(&view, len as u64, "ab"), ["ab", "abc", "abd"]);
            assert_eq!(ids(&view, len as u64, "abcd"), [""; 0]);
            assert_eq!(ids(&view, 2, ""), ["abc", "b"], "what is not committed is not there");
        }
    }

    #[test]
    fn what_comes_into_the_table_meanwhile_is_not_listed_twice() {
        let (index, empty) = index(&["a", "ab", "b"].map(str::to_owned), 0, 3);
        let (mut entries, full) = (Entries::new(), MemoryEngine::default());
        index.unwritten().expect("it is frozen").put_all(&mut entries);
        full.write(&entries).expect("written");
        let (before, after) = (index.view(&empty), index.view(&full));
        let recent = before.smallest_recent_ids("", "", 10).into_iter().peekable();
        let in_table = Walk::new(&before, "", "");
        let mut both = Both { recent, are_all: true, in_table, next_in_table: None };
        let mut listed = Vec::new();
        while let Some(next) = both.next().expect("read") {
            listed.push(next.id);
            both.in_table.view = &after; // an engine may show writes made after a snapshot began
        }
        assert_eq!(listed, ["a", "ab", "b"]);
    }

    #[test]
    fn an_entry_that_cannot_be_is_told_of() {
        for (key, value) in [
            (&b"no end"[..], &[1][..]),
            (b"\xfe\xff\0\0\0\0\0\0\0\x01", &[1]),
            (b"a\xff\0\0\0\0\0\0\0\x01", &[0x80]),
            (b"a\xff\0\0\0\0\0\0\0\x01", &[1, 1]),
        ] {
            let (index, engine) = (Index::new(Recent::new(5), None, 0), MemoryEngine::default());
            let mut entries = Entries::new();
            entries.put(Table::Aggregates, key, value);
            engine.write(&entries).expect("written");
            let mut list = ListRead::new(&AggregateOptions::all(), 1, Version::new(9));
            let outcome = list.run(&index.view(&engine), Instant::now());
            assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{key:?}: {outcome:?}");
        }
    }

    #[test]
    fn an_index_that_ends_before_the_head_lists_what_was_before_its_end_alone() {
        let incomplete = Incomplete { version: 3, reason: "its checksum is wrong".to_owned() };
        let index = Index::new(Recent::new(1), Some(incomplete), 0);
        index.newer().push(b"1", "a", 1);
        index.newer().push(b"2", "b", 1);
        let engine = MemoryEngine::default();
        let list = |before: u64| {
            let options = AggregateOptions::all().before(before.into());
            let mut list = ListRead::new(&options, 9, Version::new(4));
            list.run(&index.view(&engine), Instant::now() + std::time::Duration::from_secs(60))?;
            Ok::<_, Error>(list.finish().aggregates.len())
        };
        assert_eq!(list(3).expect("all of it is known"), 2);
        assert!(matches!(list(4), Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 3));
    }

    proptest! {
        #[test]
        fn any_aggregates_anywhere_are_listed_in_order(
            aggregates in proptest::collection::vec("[abé]{1,4}", 1..60),
            in_table in 0..60usize,
            frozen in 0..60usize,
            head in 0..70u64,
            prefix in "[abé]{0,2}",
            after in "[abé]{0,3}",
            before in proptest::option::of(0..70u64),
            most in 1..9usize,
        ) {
            let (index, engine) = index(&aggregates, in_table, frozen.max(in_table));
            let view = index.view(&engine);
            let head = head.clamp(in_table.min(aggregates.len()) as u64, aggregates.len() as u64);
            let below = before.unwrap_or(u64::MAX).min(head + 1);
            let mut expected: BTreeMap<&str, AggregateInfo> = BTreeMap::new();
            for (id, version) in aggregates.iter().zip(1..below) {
                if id.starts_with(&prefix) && id.as_str() > after.as_str() {
                    let new = || AggregateInfo::new(id.clone(), Revision::ZERO, Version::ZERO);
                    let aggregate = expected.entry(id).or_insert_with(new);
                    (aggregate.revision, aggregate.version) = (aggregate.revision.next(), version.into());
                }
            }
            let mut options = AggregateOptions::all().prefix(prefix).after(after);
            options.before = before.map(Version::new);
            let (mut listed, mut next) = (Vec::new(), Some(options));
            while let Some(options) = next {
                let mut list = ListRead::new(&options, most, Version::new(head));
                while !list.is_done() {
                    list.run(&view, Instant::now()).expect("read");
                }
                let page = list.finish();
                prop_assert!(page.aggregates.len() <= most && (page.next.is_none() || !page.aggregates.is_empty()));
                listed.extend(page.aggregates);
                next = page.next;
            }
            prop_assert_eq!(listed, expected.into_values().collect::<Vec<_>>());
        }
    }
}

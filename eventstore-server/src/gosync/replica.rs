//! What the server remembers of the databases with their own base URLs.
//!
//! A manager of the kit knows one number: how many events its database has. It pulls everything above this number,
//! pushes its events above the answer of `latest-version`, each with its number, and stores pulled events under its
//! next numbers. The two logs have different orders, so the numbers of one mean nothing in the other. The server learns
//! from a replica's pushes which of its versions are at the replica's numbers, and thus what the replica lacks.
//!
//! Only the log has to be durable. Everything here can be learned again: an unknown replica is told that the server has
//! none of its events, and pushes everything.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::sync::{Arc, Mutex, Weak};

use eventstore_api::{Context, Cursor, Error, EventStoreExt as _};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::stores::{Served, lock};

/// Versions, from the first to the last, both included.
pub(super) type Range = RangeInclusive<u64>;

/// The number of bits for the length of a run; the others are for its first version, which is below 2^40, about a
/// trillion.
const LEN_BITS: u32 = 24;
const LONGEST: u64 = (1 << LEN_BITS) - 1;
const MOST: u64 = (1 << (64 - LEN_BITS)) - 1;

/// The most runs that are kept for one replica.
const MOST_RUNS: usize = 1 << 20;

/// The versions at a replica's numbers 1, 2, 3, …, as runs of consecutive versions. A run has 8 bytes, so an event
/// never takes more. Version 0 is an event that only the replica has.
#[derive(Debug, Default)]
struct Held {
    runs: Vec<u64>,
    len: u64,
}

impl Held {
    fn run(packed: u64) -> (u64, u64) {
        (packed >> LEN_BITS, packed & LONGEST)
    }

    /// Adds the version at the next number.
    fn push(&mut self, version: u64) {
        if let Some(last) = self.runs.last_mut() {
            let (first, len) = Self::run(*last);
            let continues = if first == 0 { version == 0 } else { version == first + len };
            if continues && len < LONGEST {
                *last += 1;
                self.len += 1;
                return;
            }
        }
        self.runs.push((version << LEN_BITS) | 1);
        self.len += 1;
    }

    /// Only the replica has the events at the next numbers, up to this one.
    fn skip_to(&mut self, number: u64) {
        while self.len < number {
            let missing = number - self.len;
            let taken = match self.runs.last_mut() {
                Some(last) if Self::run(*last).0 == 0 && Self::run(*last).1 < LONGEST => {
                    let taken = missing.min(LONGEST - Self::run(*last).1);
                    *last += taken;
                    taken
                }
                _ => {
                    let taken = missing.min(LONGEST);
                    self.runs.push(taken);
                    taken
                }
            };
            self.len += taken;
        }
    }

    /// Whether these versions are at these numbers, which are ascending and not beyond the end.
    fn has(&self, pushed: &[(u64, u64)]) -> bool {
        // From the end: nearly always, only the last one is checked.
        let mut runs = self.runs.iter().rev().map(|run| Self::run(*run));
        let (mut start, mut first) = (self.len + 1, 0);
        pushed.iter().rev().all(|(number, version)| {
            while start > *number {
                let Some((next, len)) = runs.next() else { return false };
                (start, first) = (start - len, next);
            }
            *version == if first == 0 { 0 } else { first + (number - start) }
        })
    }

    /// The versions, sorted.
    fn versions(&self) -> Vec<Range> {
        let runs = self.runs.iter().map(|run| Self::run(*run)).filter(|(first, _)| *first > 0);
        sorted(runs.map(|(first, len)| first..=first + len - 1).collect())
    }
}

/// Ranges in order, with adjacent ones merged.
fn sorted(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() <= *last.end() + 1 => *last = *last.start()..=*range.end().max(last.end()),
            _ => joined.push(range),
        }
    }
    joined
}

/// Sorted ranges without the versions in others.
fn without(ranges: &[Range], others: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    let mut others = others.iter().peekable();
    for range in ranges {
        let mut start = *range.start();
        while let Some(other) = others.peek() {
            if *other.end() < start {
                others.next();
                continue;
            }
            if other.start() > range.end() {
                break;
            }
            if *other.start() > start {
                left.push(start..=*other.start() - 1);
            }
            start = *other.end() + 1;
            if start > *range.end() {
                break;
            }
            others.next();
        }
        if start <= *range.end() {
            left.push(start..=*range.end());
        }
    }
    left
}

/// Ranges in their given order, with consecutive ones merged.
fn in_order(ranges: Vec<Range>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() == *last.end() + 1 => *last = *last.start()..=*range.end(),
            _ => joined.push(range),
        }
    }
    joined
}

/// The ranges without their first `count` versions.
fn behind(ranges: Vec<Range>, mut count: u64) -> Vec<Range> {
    let mut rest = Vec::new();
    for range in ranges {
        let len = range.end() - range.start() + 1;
        let taken = count.min(len);
        count -= taken;
        if taken < len {
            rest.push(range.start() + taken..=*range.end());
        }
    }
    rest
}

/// The versions in both.
fn both(ranges: &[Range], others: &[Range]) -> Vec<Range> {
    without(ranges, &without(ranges, others))
}

/// The state of a replica whose pushes are known from its first number on.
#[derive(Debug, Default)]
struct Known {
    held: Held,
    /// What it was sent and has not pushed back: since it last asked where to push from, and before that. If it had
    /// stored the latter, it would have pushed them.
    sent: Vec<Range>,
    sent_before: Vec<Range>,
    /// What it apparently never accepts.
    refused: Vec<Range>,
    /// Its number at the last pull, and the answer, in order, until it asks where to push from.
    pulled_at: u64,
    answer: Vec<Range>,
    /// How often it was sent something without effect.
    repeats: u32,
    /// The number of syncs in which it was asked for the newest held event and did not push it.
    is_asked: bool,
    silent: u32,
    /// The position in the store's history at the greatest of these versions.
    seen: Option<Cursor>,
}

impl Known {
    /// Evaluates earlier answers. The replica now has this many events.
    fn pulls_at(&mut self, number: u64) {
        // It has not pushed since, so it stored as many of them as its number has grown, the first ones.
        let stored = number.saturating_sub(self.pulled_at);
        self.sent = without(&self.sent, &sorted(behind(std::mem::take(&mut self.answer), stored)));
        let is_waiting = self.sent.len() + self.sent_before.len() > 0;
        self.repeats = if is_waiting && number == self.pulled_at { self.repeats + 1 } else { 0 };
        if number == self.held.len {
            // It has only what it pushed. An answer may get lost a few times; a filter never accepts it.
            let sent = [std::mem::take(&mut self.sent), std::mem::take(&mut self.sent_before)].concat();
            if self.repeats > MOST_REPEATS {
                self.refused = sorted([std::mem::take(&mut self.refused), sent].concat());
            }
        }
        self.pulled_at = number;
    }
}

/// A replica and what is known of it.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// The open store to which the versions belong.
    served: Weak<Served>,
    known: Option<Known>,
    /// For an unknown replica: it was told to push everything.
    was_told: bool,
    /// For an unknown replica: it has pulled.
    has_pulled: bool,
    /// For an unknown replica: how often it was told to push everything, but pushed nothing.
    silent: u32,
}

/// How often a push may be lost. After that, the requested event counts as missing.
const MOST_SILENT: u32 = 3;

/// How often the same events are sent first, in their order. After that, others come first.
const MOST_REPEATS: u32 = 3;

/// The answer to a pull.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pull {
    /// As many of these as there is room for, beginning with the first.
    Versions(Vec<Range>),
    /// Nothing, because its push will tell more.
    Later,
}

impl Replica {
    fn forget(&mut self) {
        (self.known, self.was_told, self.has_pulled, self.silent) = (None, false, false, 0);
    }

    /// Forgets the versions if they belong to another history: the store may have been closed, replaced and reopened.
    pub(super) async fn check(&mut self, served: &Arc<Served>, ctx: &Context) -> Result<(), Error> {
        let opening = Arc::downgrade(served);
        if !Weak::ptr_eq(&self.served, &opening) {
            if let Some(seen) = self.known.as_ref().and_then(|known| known.seen) {
                match served.store.check_cursor(ctx, seen).await {
                    Ok(()) => {}
                    Err(Error::HistoryDiverged { .. }) => self.forget(),
                    Err(error) => return Err(error),
                }
            }
            self.served = opening;
        }
        Ok(())
    }

    /// Answers a pull of a replica with this many events, when the store's newest version is `head`.
    pub(super) fn pull(&mut self, number: u64, head: u64) -> Pull {
        if self.known.as_ref().is_some_and(|known| number < known.held.len) {
            // The database was restored or is another one.
            self.forget();
        }
        if self.known.is_none() && self.silent >= MOST_SILENT && number <= MOST {
            // A filter keeps back everything that it has.
            self.known.get_or_insert_default().held.skip_to(number);
        }
        if self.known.is_none() && number > 0 {
            // A replica that only pulls has the store's events in the store's order. One that writes pushes next, and
            // is known then.
            return match std::mem::replace(&mut self.has_pulled, true) {
                false => Pull::Later,
                true => Pull::Versions(from_to(number.saturating_add(1), head)),
            };
        }
        let known = self.known.get_or_insert_default();
        known.pulls_at(number);
        let lacking = without(&from_to(1, head), &known.held.versions());
        for sent in [&mut known.sent, &mut known.sent_before, &mut known.refused] {
            *sent = both(&lacking, sent);
        }
        let sent = sorted([known.sent.as_slice(), &known.sent_before, &known.refused].concat());
        let new = without(&lacking, &sent);
        // New ones come first: it may have stored the others already, and then accepts nothing that comes after them.
        let refused = without(&known.refused, &known.sent_before);
        Pull::Versions([new, known.sent_before.clone(), refused].concat())
    }

    /// Notes that these were sent in the answer.
    pub(super) fn is_sent(&mut self, versions: Vec<Range>) {
        if let Some(known) = &mut self.known {
            known.answer = in_order(versions);
            let versions = sorted(known.answer.clone());
            known.sent_before = without(&known.sent_before, &versions);
            known.sent = sorted([std::mem::take(&mut known.sent), versions].concat());
        }
    }

    /// Answers `latest-version`: the replica pushes everything above it. It is asked to push its newest known event
    /// again, which shows whether its database is still the same.
    pub(super) fn latest(&mut self) -> Option<u64> {
        if let Some(known) = &mut self.known {
            known.silent = if known.is_asked { known.silent + 1 } else { 0 };
            if known.silent >= MOST_SILENT {
                self.forget();
            }
        }
        let Some(known) = &mut self.known else {
            self.was_told = true;
            self.silent = self.silent.saturating_add(1);
            return None;
        };
        // Events that a filter keeps back are not pushed.
        known.is_asked = known.held.runs.last().is_some_and(|run| Held::run(*run).0 > 0);
        known.sent_before = sorted([known.sent_before.as_slice(), &known.sent].concat());
        (known.sent, known.answer) = (Vec::new(), Vec::new());
        Some(known.held.len.saturating_sub(1)).filter(|number| *number > 0)
    }

    /// Learns from a push which versions are at which numbers. Version 0 is an event that was refused. The cursor is at
    /// the greatest of the versions. Returns whether the database may still be the known one.
    pub(super) fn learn(&mut self, pushed: &[(u64, u64)], newest: Cursor) -> bool {
        let is_ascending = pushed.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let is_small = pushed.iter().all(|(number, version)| *number <= MOST && *version <= MOST);
        if pushed.is_empty() || !is_ascending || !is_small {
            return true;
        }
        if self.known.is_none() && !self.was_told {
            // The rest of a push whose beginning was forgotten.
            return true;
        }
        let known = self.known.get_or_insert_default();
        let (again, new) = pushed.split_at(pushed.partition_point(|(number, _)| *number <= known.held.len));
        // The newest one passed the filter before, if there is a filter.
        let is_missing = known.is_asked && again.is_empty();
        if is_missing || !known.held.has(again) {
            // Another database has this name, or this one was restored and written to.
            self.forget();
            return false;
        }
        known.is_asked = false;
        for (number, version) in new {
            // Events that a filter keeps back.
            known.held.skip_to(number - 1);
            known.held.push(*version);
        }
        if known.seen.is_none_or(|seen| seen.version() < newest.version()) {
            known.seen = Some(newest);
        }
        if known.held.runs.len() > MOST_RUNS {
            self.forget();
        }
        true
    }

    fn len_bytes(&self) -> usize {
        let known = self.known.as_ref().map_or(0, |known| {
            let ranges = [&known.sent, &known.sent_before, &known.refused, &known.answer].map(Vec::capacity);
            8 * known.held.runs.capacity() + size_of::<Range>() * ranges.iter().sum::<usize>()
        });
        size_of::<Self>() + known
    }
}

/// All versions from the first to the last.
pub(super) fn from_to(first: u64, last: u64) -> Vec<Range> {
    if first <= last { vec![first..=last] } else { Vec::new() }
}

/// The names of the store and the replica.
type Name = (String, String);

#[derive(Debug, Default)]
struct Entry {
    replica: Arc<AsyncMutex<Replica>>,
    /// The time of its last use, as a count of requests.
    used: u64,
    bytes: usize,
}

/// The known replicas of all stores. The least recently used ones are forgotten.
#[derive(Debug)]
pub(crate) struct Replicas {
    most: usize,
    most_bytes: usize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    entries: HashMap<Name, Entry>,
    requests: u64,
    bytes: usize,
}

impl Replicas {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        Replicas { most, most_bytes, all: Mutex::default() }
    }

    /// Locks the replica with this name for one request. It is unknown if it was never used or was forgotten.
    pub(super) async fn lock(&self, served: &Served, name: &str) -> Locked<'_> {
        let name = (served.name.clone(), name.to_owned());
        let replica = self.get(&name);
        Locked { replicas: self, name, replica: replica.lock_owned().await }
    }

    fn get(&self, name: &Name) -> Arc<AsyncMutex<Replica>> {
        let mut all = lock(&self.all);
        all.requests += 1;
        let used = all.requests;
        if let Some(entry) = all.entries.get_mut(name) {
            entry.used = used;
            return entry.replica.clone();
        }
        let entry = Entry { used, ..Entry::default() };
        let replica = entry.replica.clone();
        all.entries.insert(name.clone(), entry);
        self.make_room(&mut all);
        replica
    }

    /// Saves what a request has changed.
    fn keep(&self, name: &Name, replica: &Replica) {
        let mut all = lock(&self.all);
        let bytes = replica.len_bytes() + size_of::<Entry>() + name.0.len() + name.1.len();
        // It may have been forgotten meanwhile.
        let Some(entry) = all.entries.get_mut(name) else { return };
        let before = std::mem::replace(&mut entry.bytes, bytes);
        all.bytes = all.bytes - before + bytes;
        self.make_room(&mut all);
    }

    fn make_room(&self, all: &mut All) {
        while all.entries.len() > self.most || all.bytes > self.most_bytes {
            let oldest = all.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone());
            let Some(entry) = oldest.and_then(|name| all.entries.remove(&name)) else { return };
            all.bytes -= entry.bytes;
        }
    }
}

/// A replica that is locked by a request; the next request waits.
pub(super) struct Locked<'a> {
    replicas: &'a Replicas,
    name: Name,
    replica: OwnedMutexGuard<Replica>,
}

impl Deref for Locked<'_> {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        &self.replica
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Replica {
        &mut self.replica
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.replicas.keep(&self.name, &self.replica);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(replica: &mut Replica, number: u64, head: u64) -> Vec<Range> {
        match replica.pull(number, head) {
            Pull::Versions(versions) => versions,
            Pull::Later => panic!("it is put off"),
        }
    }

    fn newest() -> Cursor {
        Cursor::new(eventstore_api::Version::new(9), eventstore_api::Digest::EMPTY)
    }

    /// A replica whose numbers 1 to n have these versions.
    fn known(versions: &[u64]) -> Replica {
        let mut replica = Replica::default();
        assert_eq!(replica.latest(), None);
        let numbered: Vec<_> = (1..).zip(versions.iter().copied()).collect();
        replica.learn(&numbered, newest());
        replica
    }

    #[test]
    fn what_a_replica_lacks_is_what_it_never_pushed() {
        let mut replica = known(&[3, 4, 9]);
        assert_eq!(replica.latest(), Some(2));
        assert_eq!(versions(&mut replica, 3, 10), [1..=2, 5..=8, 10..=10]);
        replica.is_sent(vec![5..=6, 7..=8, 1..=2]);
        // It has stored the first part, and has not been asked to push yet.
        assert_eq!(versions(&mut replica, 5, 10), [1..=2, 7..=8, 10..=10]);
        replica.is_sent(vec![1..=2, 7..=8, 10..=10]);
        assert_eq!(replica.latest(), Some(2));
        replica.learn(&[(3, 9), (4, 5), (5, 6)], newest());
        // The replica reports nothing about what was lost in transit.
        assert_eq!(versions(&mut replica, 6, 11), [11..=11, 1..=2, 7..=8, 10..=10]);
        // It has no events of its own, so it has nothing that was not sent.
        assert_eq!(versions(&mut replica, 5, 11), [1..=2, 7..=8, 10..=11]);
    }

    #[test]
    fn what_a_filter_never_takes_comes_last() {
        for mut replica in [known(&[3]), Replica::default()] {
            let (number, rest) = if replica.known.is_some() { (1, 4..=5) } else { (0, 2..=4) };
            for _ in 0..=MOST_REPEATS {
                assert_eq!(versions(&mut replica, number, 5)[0], 1..=if number == 1 { 2 } else { 5 });
                replica.is_sent(vec![1..=1]);
                replica.latest();
                if number == 1 {
                    replica.learn(&[(1, 3)], newest());
                }
            }
            for _ in 0..9 {
                let all = versions(&mut replica, number, 5);
                assert_eq!(all.last(), Some(&(1..=1)), "{all:?}");
                assert!(all.iter().any(|range| range.contains(rest.start())));
            }
        }
    }

    #[test]
    fn one_whose_filter_keeps_back_all_that_it_has_gets_everything() {
        let mut replica = Replica::default();
        assert_eq!(replica.pull(2, 2), Pull::Later);
        for _ in 0..MOST_SILENT {
            assert_eq!(replica.latest(), None);
        }
        assert_eq!(versions(&mut replica, 2, 2), [1..=2]);
        replica.is_sent(vec![1..=2]);
        for _ in 0..9 {
            assert_eq!(replica.latest(), Some(1));
        }
        assert!(replica.learn(&[(3, 1), (4, 2)], newest()));
        assert_eq!((replica.latest(), versions(&mut replica, 4, 3)), (Some(3), vec![3..=3]));
    }

    #[test]
    fn one_that_is_not_known_is_asked_before_it_is_told() {
        let mut replica = Replica::default();
        assert_eq!(replica.pull(5, 9), Pull::Later);
        // It only pulls: it has the beginning.
        assert_eq!(versions(&mut replica, 5, 9), [6..=9]);
        assert_eq!(versions(&mut replica, 9, 9), [] as [Range; 0]);
        let mut empty = Replica::default();
        assert_eq!(versions(&mut empty, 0, 9), [1..=9]);
        let mut far = Replica { has_pulled: true, ..Replica::default() };
        assert_eq!(versions(&mut far, u64::MAX, 9), [] as [Range; 0]);
    }

    #[test]
    fn the_end_of_a_push_whose_beginning_was_forgotten_teaches_nothing() {
        let mut replica = Replica::default();
        replica.learn(&[(101, 1), (102, 2)], newest());
        assert!(replica.known.is_none());
        assert_eq!(replica.latest(), None);
        replica.learn(&[(3, 7), (4, 8)], newest());
        assert_eq!(replica.latest(), Some(3), "a filter keeps back what is before");
        assert_eq!(versions(&mut replica, 4, 9), [1..=6, 9..=9]);
    }

    #[test]
    fn another_database_under_the_same_name_is_noticed() {
        for pushed in [&[(3, 8)][..], &[(2, 4), (3, 9), (4, 1)], &[(1, 1)], &[(3, 0), (4, 5)]] {
            let mut replica = known(&[3, 4, 9]);
            replica.learn(pushed, newest());
            let is_same = pushed[0] == (2, 4);
            assert_eq!(replica.known.is_some(), is_same, "{pushed:?}");
            assert_eq!(replica.latest(), is_same.then_some(3), "{pushed:?}");
        }
        let mut restored = known(&[3, 4, 9]);
        assert_eq!(restored.pull(2, 9), Pull::Later);
        assert_eq!(restored.latest(), None);
    }

    #[test]
    fn a_database_without_the_newest_event_is_another_one() {
        // A filter keeps back what it has in its place.
        let mut replica = known(&[3, 4, 9]);
        assert_eq!(replica.latest(), Some(2));
        assert!(!replica.learn(&[(4, 1)], newest()));
        assert_eq!(replica.latest(), None);
        // Nothing arrives at all. A push may be lost now and then.
        let mut replica = known(&[3, 4, 9]);
        for _ in 0..9 {
            for _ in 0..MOST_SILENT {
                assert_eq!(replica.latest(), Some(2));
            }
            assert!(replica.learn(&[(3, 9)], newest()));
        }
        for _ in 0..MOST_SILENT {
            assert_eq!(replica.latest(), Some(2));
        }
        assert_eq!(replica.latest(), None);
        // The parts of a push follow each other.
        let mut replica = known(&[3, 4, 9]);
        assert_eq!(replica.latest(), Some(2));
        assert!(replica.learn(&[(3, 9), (4, 1)], newest()) && replica.learn(&[(6, 2)], newest()));
        assert_eq!(replica.latest(), Some(5));
    }

    #[test]
    fn a_push_that_no_manager_sends_teaches_nothing() {
        for pushed in
            [&[][..], &[(4, 1), (4, 2)], &[(5, 1), (4, 2)], &[(MOST + 1, 1)], &[(4, MOST + 1)], &[(u64::MAX, 1)]]
        {
            let mut replica = known(&[3, 4, 9]);
            replica.learn(pushed, newest());
            assert_eq!(replica.latest(), Some(2), "{pushed:?}");
        }
    }

    #[test]
    fn runs_are_as_the_versions_one_by_one() {
        let mut held = Held::default();
        let mut all = Vec::new();
        let mut state = 7_u64;
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (first, len) = ((state >> 40) % 3_000, (state >> 33) % 5);
            for version in first..=first + len {
                held.push(version);
                all.push(version);
            }
        }
        assert_eq!(held.len, all.len() as u64);
        assert!(held.runs.len() <= all.len());
        let numbered: Vec<(u64, u64)> = (1..).zip(all.iter().copied()).collect();
        for part in numbered.windows(3).chain([&numbered[..]]) {
            assert!(held.has(part));
        }
        for (number, version) in &numbered {
            assert!(!held.has(&[(*number, version + 1)]));
        }
        let mut expected: Vec<u64> = all.into_iter().filter(|version| *version > 0).collect();
        expected.sort_unstable();
        expected.dedup();
        let versions: Vec<u64> = held.versions().into_iter().flatten().collect();
        assert_eq!(versions, expected);
    }

    #[test]
    fn long_runs_and_gaps_cost_little() {
        let mut held = Held::default();
        held.push(1);
        held.skip_to(MOST);
        held.push(2);
        assert_eq!(held.len, MOST + 1);
        assert!(held.runs.len() < 70_000);
        assert!(held.has(&[(1, 1), (2, 0), (MOST, 0), (MOST + 1, 2)]));
        let mut long = Held { runs: vec![(5 << LEN_BITS) | (LONGEST - 1)], len: LONGEST - 1 };
        for next in 0..3 {
            long.push(5 + LONGEST - 1 + next);
        }
        assert_eq!(long.versions(), [5..=5 + LONGEST + 1]);
    }

    #[test]
    fn answers_keep_their_order() {
        let answer = in_order(vec![7..=7, 8..=9, 3..=3, 4..=4, 12..=12]);
        assert_eq!(answer, [7..=9, 3..=4, 12..=12]);
        let rest = |count| behind(answer.clone(), count);
        assert_eq!(rest(0), answer);
        assert_eq!(rest(2), [9..=9, 3..=4, 12..=12]);
        assert_eq!(rest(3), [3..=4, 12..=12]);
        assert_eq!(rest(5), [12..=12]);
        assert_eq!(rest(u64::MAX), [] as [Range; 0]);
    }

    #[test]
    fn ranges_are_sets() {
        let set = |ranges: &[Range]| -> Vec<u64> { ranges.iter().cloned().flatten().collect() };
        let mut state = 3_u64;
        let mut some = || {
            let ranges = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let first = 1 + (state >> 40) % 40;
                first..=first + (state >> 33) % 4
            });
            sorted(ranges.take(6).collect())
        };
        for _ in 0..2_000 {
            let (a, b) = (some(), some());
            let expect =
                |keep: bool| -> Vec<u64> { set(&a).into_iter().filter(|n| set(&b).contains(n) == keep).collect() };
            assert_eq!(set(&without(&a, &b)), expect(false), "{a:?} {b:?}");
            assert_eq!(set(&both(&a, &b)), expect(true), "{a:?} {b:?}");
        }
    }

    #[test]
    fn the_ones_that_were_not_heard_of_for_longest_are_forgotten() {
        let replicas = Replicas::new(2, usize::MAX);
        let name = |name: &str| (String::new(), name.to_owned());
        let learn = |of: &str| *replicas.get(&name(of)).try_lock().expect("free") = known(&[1]);
        let is_known = |of: &str| replicas.get(&name(of)).try_lock().expect("free").known.is_some();
        learn("a");
        learn("b");
        assert!(is_known("a"));
        assert!(!is_known("c"));
        assert!(is_known("a"));
        assert!(!is_known("b"), "c took its place");

        let replicas = Replicas::new(usize::MAX, 4096);
        for n in 0..1_000 {
            let name = name(&n.to_string());
            replicas.keep(&name, &replicas.get(&name).try_lock().expect("free"));
        }
        let all = lock(&replicas.all);
        assert!(all.bytes <= 4096 && (5..100).contains(&all.entries.len()), "{} {}", all.bytes, all.entries.len());
        assert!(all.entries.contains_key(&name("999")));
    }
}

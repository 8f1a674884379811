//! The state of a replica, derived from its journal and its confirmed events.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use eventstore_api::{Batch, Event, Expected, Idempotency, Place, RecordedEvent, Revision, Version};

use super::record::{
    BatchRecord, BeginRecord, Condition, Decision, MarkRecord, Number, OutcomeRecord, OwnRecord, Record, Scope, Seen,
};
use super::rules::Rule;

/// The place of an event in a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventPlace {
    /// Confirmed: the hub has it at this version.
    Confirmed(Version),
    /// Pending: the batch, and the event's index in it, counted from 0.
    Pending(Number, u32),
}

impl std::fmt::Display for EventPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EventPlace::Confirmed(version) => version.fmt(f),
            EventPlace::Pending(batch, index) => write!(f, "{batch}.{index}"),
        }
    }
}

/// Why a batch waits for a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The scope of its condition has events that its decision had not seen.
    Conflict,
    /// It depends on an own batch that was rejected, dropped or replaced, or on events that the hub has lost.
    Dependency,
    /// The hub has one of its ids with other content.
    Duplicate,
    /// The hub will never accept it, for this reason.
    Refused(String),
}

/// The status of an own batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was not sent yet, or was sent and is not confirmed.
    Pending,
    /// It waits for a decision.
    Waiting(Why),
    /// It was rejected, for this reason.
    Rejected(String),
}

/// Why a batch cannot be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An id is in use with other content.
    Duplicate {
        /// The id.
        id: String,
        /// Where the event with this id is; `None` if it is in the same batch.
        place: Option<EventPlace>,
    },
    /// An id belongs to a batch that was rejected or replaced and is not deleted.
    Rejected {
        /// The id.
        id: String,
        /// The batch.
        batch: Number,
    },
    /// The condition does not hold.
    Conflict,
    /// The condition names a revision or version, but the scope has pending own events, which have neither yet.
    PendingInScope,
}

/// The state of the confirmed events that matters for an append.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// For each event of the batch, the confirmed or staged event with its id.
    pub found: Vec<Option<RecordedEvent>>,
    /// The number of confirmed and staged events in the condition's scope.
    pub count: u64,
    /// The staged events in the condition's scope, which are not shown yet: their versions and ids.
    pub staged: Vec<(Version, String)>,
    /// Whether the condition's scope has an event that the basis had not seen. See [`Machine::is_seen`].
    pub is_unseen: bool,
}

/// The condition of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// A plain condition. Revisions and versions count confirmed events only.
    Plain(Expected),
    /// The scope has nothing that this basis had not seen.
    Basis(Scope, Seen),
}

/// A batch that may be appended.
#[derive(Clone, Debug)]
pub enum Proposed {
    /// All of its events already exist.
    Already(Vec<EventPlace>),
    /// It is new: this has to be written.
    New(BatchRecord, Vec<EventPlace>),
}

/// An unconfirmed own batch, as it is shown.
#[derive(Clone, Debug)]
pub struct PendingBatch<'machine> {
    /// Its number.
    pub number: Number,
    /// Whether it waits for a decision.
    pub is_waiting: bool,
    /// The number of decisions made on it.
    pub changes: usize,
    /// Its events with their indexes in the batch, without those that are confirmed or shown before.
    pub events: Vec<(u32, &'machine Event)>,
}

/// Something to write. Writes are done in order; each must be durable before the next one begins.
#[derive(Clone, Debug)]
pub enum Write {
    /// A record of the journal.
    Journal(Record),
    /// Events after the end of the confirmed ones, all or none.
    Confirmed(Vec<RecordedEvent>),
}

/// A question to the resolver.
#[derive(Clone, Debug)]
pub struct Question {
    /// The waiting batch.
    pub batch: Number,
    /// Why it waits.
    pub why: Why,
    /// Its events.
    pub events: Vec<Event>,
    /// Its condition.
    pub condition: Condition,
    /// What the decision to append it had seen.
    pub basis: Seen,
    /// What is visible to whoever answers.
    pub seen: Seen,
    /// Batches on top of it: later ones that share an aggregate with it, or with one of these.
    pub on_top: Vec<Number>,
}

/// Why an answer is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The batch no longer waits, or waits for another reason.
    Stale,
    /// It cannot be appended anyway: its id is in use, or the hub will never accept it.
    NoAnyway,
    /// The answer has a batch that the question did not show on top, or the same batch twice.
    NotOnTop(Number),
    /// A replacement has no events, a used id, or events outside the condition's aggregate.
    BadReplacement(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    version: Version,
    is_same: bool,
}

/// An unconfirmed own batch.
#[derive(Clone, Debug)]
struct Entry {
    record: BatchRecord,
    outcomes: Vec<OutcomeRecord>,
    /// According to the latest decision.
    events: Vec<Event>,
    condition: Condition,
    seen: Seen,
    is_anyway: bool,
    rejected: Option<String>,
    found: Vec<Option<Found>>,
    /// For the events that it was appended with, if they were replaced.
    found_first: Vec<Option<Found>>,
}

impl Entry {
    fn new(record: BatchRecord) -> Self {
        Entry {
            events: record.events.clone(),
            condition: record.condition.clone(),
            seen: record.seen,
            found: vec![None; record.events.len()],
            record,
            outcomes: Vec::new(),
            is_anyway: false,
            rejected: None,
            found_first: Vec::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.rejected.is_none()
    }

    fn is_replaced(&self) -> bool {
        !self.found_first.is_empty()
    }

    fn decide(&mut self, outcome: OutcomeRecord) {
        match &outcome.decision {
            Decision::Reject(reason) => self.rejected = Some(reason.clone()),
            Decision::Drop => {}
            Decision::Anyway | Decision::Replace(_) => {
                self.seen = outcome.seen;
                self.is_anyway = outcome.decision == Decision::Anyway;
                // A later decision is based on what is there, and that is what the batch depends on.
                if let Condition::Exists(aggregate_id) = &self.condition {
                    self.condition = Condition::Aggregate(aggregate_id.clone());
                }
            }
        }
        if let Decision::Replace(events) = &outcome.decision {
            let found = std::mem::replace(&mut self.found, vec![None; events.len()]);
            if !self.is_replaced() {
                self.found_first = found;
            }
            self.events.clone_from(events);
        }
        self.outcomes.push(outcome);
    }

    /// Its current events, and those that it was appended with.
    fn all_events(&self) -> impl Iterator<Item = &Event> {
        let first = if self.is_replaced() { self.record.events.as_slice() } else { &[] };
        self.events.iter().chain(first)
    }

    /// All events that it has ever had.
    fn ever_events(&self) -> impl Iterator<Item = &Event> {
        let replacements = self.outcomes.iter().flat_map(|outcome| match &outcome.decision {
            Decision::Replace(events) => events.as_slice(),
            _ => &[],
        });
        self.record.events.iter().chain(replacements)
    }

    fn aggregates(&self) -> BTreeSet<&str> {
        self.all_events().map(Event::aggregate_id).collect()
    }

    fn find(&mut self, recorded: &RecordedEvent, is_same: SameContent) {
        let event = &recorded.event;
        let look = |events: &[Event], found: &mut [Option<Found>]| {
            for (own, found) in events.iter().zip(found) {
                if own.id() == event.id() {
                    *found = Some(Found { version: recorded.version, is_same: is_same(event, own) });
                }
            }
        };
        look(&self.events, &mut self.found);
        if self.is_replaced() {
            look(&self.record.events, &mut self.found_first);
        }
    }
}

/// Whether all of these exist with the same content, up to a version.
fn are_there(found: &[Option<Found>], until: Version) -> bool {
    let is_there = |found: &Option<Found>| found.is_some_and(|found| found.is_same && found.version <= until);
    if Rule::AllIds.is_kept() { found.iter().all(is_there) } else { found.first().is_some_and(is_there) }
}

/// What was confirmed in a condition's scope since a batch has that condition.
#[derive(Clone, Debug, Default)]
struct Watch {
    /// The number of batches with this scope, and a lower bound of their numbers.
    open: usize,
    first_open: Option<Number>,
    /// The numbers of visible and of staged confirmed events.
    count: u64,
    staged: u64,
    /// The newest event that is certainly foreign, and the newest of all; among visible events, and among staged ones.
    foreign: u64,
    staged_foreign: u64,
    newest: u64,
    /// Events whose ids belong to unconfirmed own batches.
    known: Vec<(u64, String)>,
    /// Own batches that were confirmed before an earlier one, which only a copy of the directory can cause, and their
    /// newest events.
    overtaken_by: Vec<(Number, u64)>,
}

impl Watch {
    fn take(&mut self, version: Version, known: Option<&str>, is_shown: bool) {
        let version = version.get();
        match known {
            Some(id) => self.known.push((version, id.to_owned())),
            None if is_shown => self.foreign = self.foreign.max(version),
            None => self.staged_foreign = self.staged_foreign.max(version),
        }
        self.newest = self.newest.max(version);
        if is_shown {
            self.count += 1
        } else {
            self.staged += 1
        };
    }

    /// Re-examines staged events in the scope, about which more may be known now.
    fn look_again<'staged>(&mut self, staged: impl Iterator<Item = (&'staged (Version, String), bool)>) {
        self.staged_foreign = 0;
        for ((version, id), is_known) in staged {
            let version = version.get();
            if !is_known {
                self.staged_foreign = self.staged_foreign.max(version);
            } else if !self.known.iter().any(|(known, _)| *known == version) {
                self.known.push((version, id.clone()));
            }
        }
    }

    /// Notes that an own batch has an event in the scope.
    fn overtaken(&mut self, by: Number, version: Version) {
        if self.first_open.is_some_and(|first| first < by) {
            self.overtaken_by.push((by, version.get()));
        }
    }

    fn publish(&mut self) {
        self.count += std::mem::take(&mut self.staged);
        self.foreign = self.foreign.max(std::mem::take(&mut self.staged_foreign));
    }
}

#[derive(Clone, Debug)]
struct Own {
    condition: Condition,
    seen: Seen,
    runs: Vec<(u64, u32)>,
    rejected: Option<OutcomeRecord>,
}

impl Own {
    fn record(&self, number: Number) -> OwnRecord {
        let Own { condition, seen, runs, rejected } = self.clone();
        OwnRecord { number, runs, condition, seen, rejected }
    }

    /// Whether it has an event after a version.
    fn reaches_behind(&self, version: Version) -> bool {
        versions_of(&self.runs).any(|own| own > version.get())
    }
}

/// The state of a replica.
///
/// It performs no I/O: it says what has to be written or sent, and is told when that is done. Everything in it is
/// derived from the journal and the confirmed events.
#[derive(Clone, Debug)]
pub struct Machine {
    generation: u32,
    last: Number,
    durable: Number,
    end: Place,
    published: Version,
    is_staging: bool,
    entries: BTreeMap<Number, Entry>,
    ids: HashMap<String, Vec<Number>>,
    /// The number of events of open batches, by aggregate.
    open_in: HashMap<String, usize>,
    aggregates: HashMap<String, Watch>,
    store: Option<Watch>,
    own: BTreeMap<Number, Own>,
    /// The runs of own events, by first version.
    own_at: BTreeMap<u64, (u32, Number)>,
    marks: Vec<MarkRecord>,
    /// The marks of each aggregate, and their batches.
    marked: HashMap<String, Vec<(Number, Number)>>,
    /// Batches that the hub will never accept.
    refused: BTreeMap<Number, String>,
    /// Known heads and reported conflicts. Used only by rules that are switched off.
    heads: BTreeSet<Version>,
    told: HashSet<Number>,
    is_same: SameContent,
}

/// Whether an event of the hub has the same content as an own one. This is equality if the hub preserves every byte.
pub type SameContent = fn(&Event, &Event) -> bool;

/// What has to be looked up in the confirmed events before the machine's state is complete.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The events with these ids, for [`Machine::found`].
    pub ids: Vec<String>,
    /// The numbers of confirmed and staged events of these aggregates, for [`Machine::counted`].
    pub aggregates: Vec<String>,
    /// All events since this version, for [`Machine::observed`]; `None` if none are wanted.
    pub since: Option<Version>,
}

impl Machine {
    /// Restores the state from these records, with confirmed events up to `end`. Afterwards, provide what
    /// [`wanted`](Machine::wanted) requests, and call [`settle`](Machine::settle).
    #[must_use]
    pub fn restore(records: impl IntoIterator<Item = Record>, end: Place) -> Self {
        let mut machine = Machine {
            generation: 1,
            last: Number::ZERO,
            durable: Number::ZERO,
            end,
            published: end.version,
            is_staging: false,
            entries: BTreeMap::new(),
            ids: HashMap::new(),
            open_in: HashMap::new(),
            aggregates: HashMap::new(),
            store: None,
            own: BTreeMap::new(),
            own_at: BTreeMap::new(),
            marks: Vec::new(),
            marked: HashMap::new(),
            refused: BTreeMap::new(),
            heads: BTreeSet::new(),
            told: HashSet::new(),
            is_same: Event::eq,
        };
        for record in records {
            machine.load(record);
        }
        machine.durable = machine.last;
        let open = machine.entries.iter().filter(|(_, entry)| entry.is_open());
        let open: Vec<_> = open.map(|(number, entry)| (*number, entry.condition.clone())).collect();
        for (number, condition) in &open {
            machine.watch(condition, *number);
        }
        machine
    }

    /// Sets how events of the hub are compared with own ones, for a hub that rewrites content. Must be called before
    /// anything is looked up.
    pub fn compare_by(&mut self, is_same: SameContent) {
        self.is_same = is_same;
    }

    fn load(&mut self, record: Record) {
        match record {
            Record::Begin(begin) => {
                self.generation = begin.generation;
                self.last = self.last.max(begin.last);
            }
            Record::Batch(batch) => {
                self.last = self.last.max(batch.number);
                self.enter(batch);
            }
            Record::Outcome(outcome) => {
                self.last = self.last.max(outcome.number);
                self.take_outcome(outcome);
            }
            Record::Mark(mark) => {
                self.last = self.last.max(mark.number);
                self.mark(mark);
            }
            Record::Own(own) => {
                self.last = self.last.max(own.number);
                if own.rejected.is_none() {
                    self.own_runs(own.number, &own.runs);
                }
                let OwnRecord { number, runs, condition, seen, rejected } = own;
                self.own.insert(number, Own { condition, seen, runs, rejected });
            }
            Record::Deleted(number) => self.forget(number),
            Record::Shown(Some(version)) => {
                self.is_staging = true;
                self.published = Version::new(version).min(self.end.version);
            }
            Record::Shown(None) => {
                self.is_staging = false;
                self.published = self.end.version;
            }
        }
    }

    /// Adds the runs of own events. If batches share events, each event belongs to its first owner.
    fn own_runs(&mut self, number: Number, runs: &[(u64, u32)]) {
        for &(first, more) in runs {
            let is_free = self.owner(Version::new(first)).is_none()
                && self.own_at.range(first..=first + u64::from(more)).next().is_none();
            if is_free {
                self.own_at.insert(first, (more, number));
                continue;
            }
            for version in first..=first + u64::from(more) {
                if self.owner(Version::new(version)).is_none() {
                    self.own_at.insert(version, (0, number));
                }
            }
        }
    }

    /// The own batch of the event with this version.
    fn owner(&self, version: Version) -> Option<Number> {
        owner_in(&self.own_at, version.get())
    }

    fn enter(&mut self, batch: BatchRecord) {
        for event in &batch.events {
            self.ids.entry(event.id().to_owned()).or_default().push(batch.number);
        }
        self.count_open(&batch.events, true);
        self.entries.insert(batch.number, Entry::new(batch));
    }

    fn count_open(&mut self, events: &[Event], is_more: bool) {
        for event in events {
            let count = self.open_in.entry(event.aggregate_id().to_owned()).or_default();
            *count = if is_more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.open_in.remove(event.aggregate_id());
            }
        }
    }

    fn watch(&mut self, condition: &Condition, batch: Number) {
        let watch = match condition.scope() {
            Some(Scope::Aggregate(aggregate_id)) => self.aggregates.entry(aggregate_id).or_default(),
            Some(Scope::Store) => self.store.get_or_insert_default(),
            None => return,
        };
        watch.open += 1;
        watch.first_open.get_or_insert(batch);
    }

    fn unwatch(&mut self, condition: &Condition) {
        match condition.scope() {
            Some(Scope::Aggregate(aggregate_id)) => {
                if let Some(watch) = self.aggregates.get_mut(&aggregate_id) {
                    watch.open -= 1;
                    if watch.open == 0 {
                        self.aggregates.remove(&aggregate_id);
                    }
                }
            }
            Some(Scope::Store) => {
                if let Some(watch) = &mut self.store {
                    watch.open -= 1;
                    if watch.open == 0 {
                        self.store = None;
                    }
                }
            }
            None => {}
        }
    }

    fn take_outcome(&mut self, outcome: OutcomeRecord) {
        let Some(entry) = self.entries.get(&outcome.batch) else { return };
        if !matches!(outcome.decision, Decision::Anyway) {
            let mut aggregates: BTreeSet<String> = entry.aggregates().into_iter().map(str::to_owned).collect();
            if let Decision::Replace(events) = &outcome.decision {
                aggregates.extend(events.iter().map(|event| event.aggregate_id().to_owned()));
            }
            let aggregates = aggregates.into_iter().collect();
            self.mark(MarkRecord { number: outcome.number, batch: outcome.batch, aggregates });
        }
        if let Decision::Replace(events) = &outcome.decision {
            for event in events {
                self.ids.entry(event.id().to_owned()).or_default().push(outcome.batch);
            }
        }
        if outcome.decision == Decision::Drop {
            return self.forget(outcome.batch);
        }
        let Some(entry) = self.entries.get_mut(&outcome.batch) else { return };
        let (was_open, before) = (entry.is_open(), entry.events.clone());
        entry.decide(outcome);
        let (is_open, after) = (entry.is_open(), entry.events.clone());
        if was_open {
            self.count_open(&before, false);
        }
        if is_open {
            self.count_open(&after, true);
        }
    }

    /// Removes an entry.
    fn forget(&mut self, number: Number) {
        let Some(entry) = self.entries.remove(&number) else { return };
        self.refused.remove(&number);
        if entry.is_open() {
            self.count_open(&entry.events, false);
        }
        for event in entry.ever_events() {
            if let Some(numbers) = self.ids.get_mut(event.id()) {
                numbers.retain(|other| *other != number);
                if numbers.is_empty() {
                    self.ids.remove(event.id());
                }
            }
        }
    }

    /// What has to be looked up after [`restore`](Machine::restore).
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let open = || self.entries.values().filter(|entry| entry.is_open());
        let watched = open().filter(|entry| entry.condition != Condition::Any);
        Wanted {
            ids: self.ids.keys().cloned().collect(),
            aggregates: self.aggregates.keys().cloned().collect(),
            since: watched.map(|entry| Version::new(entry.seen.version)).min(),
        }
    }

    /// After [`restore`](Machine::restore): passes an event that was wanted by its id.
    pub fn found(&mut self, recorded: &RecordedEvent) {
        let is_same = self.is_same;
        for number in self.ids.get(recorded.event.id()).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(number) {
                entry.find(recorded, is_same);
            }
        }
    }

    /// After [`restore`](Machine::restore): passes an event after the version that was wanted.
    pub fn observed(&mut self, recorded: &RecordedEvent) {
        let owner = self.owner(recorded.version);
        self.note(recorded, owner);
    }

    /// After [`restore`](Machine::restore) and all calls of [`observed`](Machine::observed): passes the number of an
    /// aggregate's events, confirmed and staged.
    pub fn counted(&mut self, aggregate_id: &str, count: Revision) {
        if let Some(watch) = self.aggregates.get_mut(aggregate_id) {
            watch.count = count.get().saturating_sub(watch.staged);
        }
    }

    /// Notes an event for the conditions whose scope it is in.
    fn note(&mut self, recorded: &RecordedEvent, owner: Option<Number>) {
        let event = &recorded.event;
        let is_shown = recorded.version <= self.published;
        let known = self.ids.contains_key(event.id()).then_some(event.id());
        for watch in self.aggregates.get_mut(event.aggregate_id()).into_iter().chain(&mut self.store) {
            if let Some(owner) = owner.filter(|_| known.is_none() && Rule::OwnIsKept.is_kept()) {
                watch.overtaken(owner, recorded.version);
                watch.newest = watch.newest.max(recorded.version.get());
                if is_shown {
                    watch.count += 1
                } else {
                    watch.staged += 1
                };
            } else {
                watch.take(recorded.version, known, is_shown);
            }
        }
    }

    /// The number of the replica's current history.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The end of the confirmed events, some of which may be staged.
    #[must_use]
    pub fn end(&self) -> Place {
        self.end
    }

    /// The version up to which confirmed events are visible.
    #[must_use]
    pub fn published(&self) -> Version {
        self.published
    }

    /// Whether events are staged after the visible ones.
    #[must_use]
    pub fn is_staging(&self) -> bool {
        self.published < self.end.version
    }

    /// What a decision made now has seen.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { version: self.published.get(), number: self.durable }
    }

    /// Whether a decision with this basis had seen a confirmed event.
    #[must_use]
    pub fn is_seen(&self, version: Version, id: &str, basis: Seen) -> bool {
        if version.get() <= basis.version {
            return true;
        }
        if let Some(number) = self.owner(version) {
            return number <= basis.number;
        }
        let numbers = self.ids.get(id).into_iter().flatten();
        numbers.into_iter().any(|number| *number <= basis.number && self.owns(*number, id))
    }

    /// Whether a confirmed event with this id belongs to an own batch, as it is decided now. With other content it does
    /// not.
    fn owns(&self, number: Number, id: &str) -> bool {
        let Some(entry) = self.entries.get(&number) else { return false };
        if !Rule::OwnIsAsDecided.is_kept() {
            return true;
        }
        let is_it =
            |(event, found): (&Event, &Option<Found>)| event.id() == id && found.is_none_or(|found| found.is_same);
        entry.is_open() && entry.events.iter().zip(&entry.found).any(is_it)
    }

    /// The newest visible event in a scope that does not belong to this batch or an earlier own one.
    fn newest_foreign(&self, watch: &Watch, batch: Number) -> u64 {
        if !Rule::OwnIsNotForeign.is_kept() {
            return watch.newest;
        }
        let is_earlier = |number: &Number| *number <= batch || !Rule::LaterIsForeign.is_kept();
        let is_own = |id: &str| {
            let mut numbers = self.ids.get(id).into_iter().flatten().filter(|number| is_earlier(number));
            numbers.any(|number| self.owns(*number, id))
        };
        let is_foreign = |(version, id): &&(u64, String)| {
            *version <= self.published.get()
                && !is_own(id)
                && !self.owner(Version::new(*version)).as_ref().is_some_and(is_earlier)
        };
        let known = watch.known.iter().filter(is_foreign).map(|(version, _)| *version);
        // A later batch may have an event of this one.
        let is_shared = |later: u64| watch.known.iter().any(|(version, id)| *version == later && is_own(id));
        let later = watch.overtaken_by.iter().filter(|(number, version)| !is_earlier(number) && !is_shared(*version));
        let later = later.map(|(_, version)| *version);
        known.chain(later).fold(watch.foreign, u64::max)
    }

    /// The status of each unconfirmed own batch, in order.
    #[must_use]
    pub fn review(&self) -> Vec<(Number, Status)> {
        self.statuses().collect()
    }

    /// The number of unconfirmed own batches, including rejected ones.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.entries.len()
    }

    fn statuses(&self) -> impl Iterator<Item = (Number, Status)> {
        let mut moved: HashMap<&str, u64> = HashMap::new();
        self.entries.iter().map(move |(&number, entry)| {
            if let Some(reason) = &entry.rejected {
                return (number, Status::Rejected(reason.clone()));
            }
            if !Rule::NoSilentMove.is_kept() {
                let decided = entry.outcomes.iter().filter(|outcome| !matches!(outcome.decision, Decision::Reject(_)));
                for outcome in decided {
                    for aggregate_id in entry.aggregates() {
                        let moved = moved.entry(aggregate_id).or_default();
                        *moved = (*moved).max(outcome.seen.version);
                    }
                }
            }
            let is_taken =
                |found: &Option<Found>| found.is_some_and(|found| !found.is_same && found.version <= self.published);
            let why = if entry.found.iter().any(is_taken) {
                Some(Why::Duplicate)
            } else if let Some(reason) = self.refused.get(&number) {
                Some(Why::Refused(reason.clone()))
            } else if self.stands_on_a_mark(number, entry) {
                Some(Why::Dependency)
            } else {
                let holds = match &entry.condition {
                    // Existing events disappear only together with a mark.
                    Condition::Any | Condition::Exists(_) => true,
                    Condition::Aggregate(aggregate_id) => {
                        let watch = self.aggregates.get(aggregate_id);
                        let newest = watch.map_or(0, |watch| self.newest_foreign(watch, number));
                        let moved = moved.get(aggregate_id.as_str()).copied().unwrap_or_default();
                        newest <= entry.seen.version.max(moved)
                    }
                    Condition::Store => {
                        let newest = self.store.as_ref().map_or(0, |watch| self.newest_foreign(watch, number));
                        newest <= entry.seen.version
                    }
                };
                let is_forced = entry.is_anyway && !Rule::AnywayHasCondition.is_kept();
                let is_told = !Rule::DecideFromPull.is_kept() && self.told.contains(&number);
                (!holds && !is_forced || is_told).then_some(Why::Conflict)
            };
            (number, why.map_or(Status::Pending, Status::Waiting))
        })
    }

    /// Whether something that a batch depends on has disappeared without its decision having seen that.
    fn stands_on_a_mark(&self, number: Number, entry: &Entry) -> bool {
        if self.marks.is_empty() || !Rule::Dependencies.is_kept() {
            return false;
        }
        let matters = |mark: &MarkRecord| mark.number > entry.seen.number && mark.batch < number;
        if entry.condition == Condition::Store && Rule::LatestOnAll.is_kept() {
            return self.marks.iter().any(matters);
        }
        let in_aggregates = entry.all_events().filter_map(|event| self.marked.get(event.aggregate_id())).flatten();
        in_aggregates.into_iter().any(|&(mark, batch)| mark > entry.seen.number && batch < number)
    }

    fn mark(&mut self, mark: MarkRecord) {
        for aggregate_id in &mark.aggregates {
            self.marked.entry(aggregate_id.clone()).or_default().push((mark.number, mark.batch));
        }
        self.marks.push(mark);
    }

    /// The visible unconfirmed own batches, in order.
    #[must_use]
    pub fn pending(&self) -> Vec<PendingBatch<'_>> {
        let mut seen: HashSet<&str> = HashSet::new();
        let shown = |entry: &Entry, number: Number| {
            entry.is_open() && (number <= self.durable || !Rule::DurableBeforeShown.is_kept())
        };
        let statuses: HashMap<Number, Status> = self.review().into_iter().collect();
        let mut all = Vec::new();
        for (&number, entry) in self.entries.iter().filter(|(number, entry)| shown(entry, **number)) {
            let events = entry.events.iter().zip(&entry.found).zip(0..);
            let events: Vec<_> = events
                .filter(|((event, found), _)| {
                    let is_confirmed = found.is_some_and(|found| found.version <= self.published);
                    !is_confirmed && seen.insert(event.id())
                })
                .map(|((event, _), at)| (at, event))
                .collect();
            let is_waiting = matches!(statuses.get(&number), Some(Status::Waiting(_)));
            let changes = entry.outcomes.len();
            all.push(PendingBatch { number, is_waiting, changes, events });
        }
        all
    }

    /// Whether an own batch is confirmed.
    #[must_use]
    pub fn is_confirmed(&self, batch: Number) -> bool {
        self.own.contains_key(&batch)
    }

    /// Why an own batch was rejected; `None` if it was not, or is deleted.
    #[must_use]
    pub fn rejection(&self, batch: Number) -> Option<&str> {
        self.entries.get(&batch)?.rejected.as_deref()
    }

    /// The events of an unconfirmed own batch, according to the latest decision.
    #[must_use]
    pub fn events(&self, batch: Number) -> Option<&[Event]> {
        self.entries.get(&batch).map(|entry| entry.events.as_slice())
    }

    /// The events that a batch was appended with, before any decision.
    #[must_use]
    pub fn first_events(&self, batch: Number) -> Option<&[Event]> {
        self.entries.get(&batch).map(|entry| entry.record.events.as_slice())
    }

    /// Whether the scope has unconfirmed own events.
    fn has_pending(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Store => !self.open_in.is_empty(),
            Scope::Aggregate(aggregate_id) => self.open_in.contains_key(aggregate_id),
        }
    }

    /// Whether the own log has a batch or mark in the scope that a decision with this basis had not seen.
    fn has_unseen(&self, scope: &Scope, basis: Seen) -> bool {
        let newer = self.entries.range(basis.number.next()..).map(|(_, entry)| entry).filter(|entry| entry.is_open());
        let marks = self.marks.iter().filter(|mark| mark.number > basis.number);
        match scope {
            Scope::Store => newer.count() > 0 || marks.count() > 0,
            Scope::Aggregate(aggregate_id) => {
                newer.flat_map(|entry| &entry.events).any(|event| event.aggregate_id() == aggregate_id)
                    || marks.flat_map(|mark| &mark.aggregates).any(|id| id == aggregate_id)
            }
        }
    }

    /// Whether a batch may be appended, and what has to be written for it. `facts` must be current.
    ///
    /// # Errors
    ///
    /// Why it may not be appended.
    pub fn propose(&self, events: Vec<Event>, expectation: &Expectation, facts: &Facts) -> Result<Proposed, Refused> {
        let number = self.last.next();
        let (mut places, mut new, mut at): (Vec<_>, Vec<Event>, HashMap<String, u32>) = Default::default();
        let (mut is_new, mut rejected) = (false, None);
        for (event, found) in events.into_iter().zip(&facts.found) {
            let duplicate = |place| Refused::Duplicate { id: event.id().to_owned(), place };
            if let Some(&place) = at.get(event.id()) {
                if new[place as usize] != event {
                    return Err(duplicate(None));
                }
                places.push(EventPlace::Pending(number, place));
                continue;
            }
            let mut place = None;
            if let Some(found) = found {
                let found_at = EventPlace::Confirmed(found.version);
                if !(self.is_same)(&found.event, &event) {
                    return Err(duplicate(Some(found_at)));
                }
                place = (found.version <= self.published).then_some(found_at);
            }
            for other in self.ids.get(event.id()).into_iter().flatten() {
                let Some(entry) = self.entries.get(other) else { continue };
                match entry.events.iter().position(|own| own.id() == event.id()) {
                    Some(index) if entry.is_open() => {
                        let own = EventPlace::Pending(*other, index as u32);
                        if entry.events[index] != event {
                            return Err(duplicate(Some(own)));
                        }
                        place = place.or(Some(own));
                    }
                    _ => rejected = Some(Refused::Rejected { id: event.id().to_owned(), batch: *other }),
                }
            }
            is_new |= place.is_none();
            let index = new.len() as u32;
            at.insert(event.id().to_owned(), index);
            places.push(place.unwrap_or(EventPlace::Pending(number, index)));
            new.push(event);
        }
        if !is_new {
            return Ok(Proposed::Already(places));
        }
        if let Some(rejected) = rejected.filter(|_| Rule::RejectedIdsKnown.is_kept()) {
            return Err(rejected);
        }
        let condition = self.condition(&new, expectation, facts)?;
        // The condition holds, so it has seen everything that is there now.
        let seen = Seen { version: self.published.get(), number: self.last };
        Ok(Proposed::New(BatchRecord { number, events: new, condition, seen }, places))
    }

    fn condition(&self, events: &[Event], expectation: &Expectation, facts: &Facts) -> Result<Condition, Refused> {
        let aggregate_id = events.first().map(|event| event.aggregate_id().to_owned()).unwrap_or_default();
        let staged = facts.staged.len() as u64;
        let count = facts.count.saturating_sub(staged);
        match expectation {
            Expectation::Plain(Expected::Any) => Ok(Condition::Any),
            Expectation::Plain(Expected::Exists) => {
                let scope = Scope::Aggregate(aggregate_id.clone());
                let is_there = count > 0 || self.has_pending(&scope) || !Rule::ExistsIsLocal.is_kept();
                if is_there { Ok(Condition::Exists(aggregate_id)) } else { Err(Refused::Conflict) }
            }
            Expectation::Plain(Expected::LatestVersion(version)) => {
                if self.has_pending(&Scope::Store) {
                    return Err(Refused::PendingInScope);
                }
                if *version == self.published { Ok(Condition::Store) } else { Err(Refused::Conflict) }
            }
            Expectation::Plain(plain) => {
                if self.has_pending(&Scope::Aggregate(aggregate_id.clone())) {
                    return Err(Refused::PendingInScope);
                }
                let holds = plain.holds(Revision::new(count), self.published);
                if holds { Ok(Condition::Aggregate(aggregate_id)) } else { Err(Refused::Conflict) }
            }
            Expectation::Basis(scope, basis) => {
                if facts.is_unseen || Rule::Basis.is_kept() && self.has_unseen(scope, *basis) {
                    return Err(Refused::Conflict);
                }
                Ok(match scope {
                    Scope::Aggregate(aggregate_id) => Condition::Aggregate(aggregate_id.clone()),
                    Scope::Store => Condition::Store,
                })
            }
        }
    }

    /// A proposed batch is being written to the journal. From now on, other decisions take it into account, but it is
    /// shown only when it is [`durable`](Machine::durable).
    pub fn appended(&mut self, record: BatchRecord, facts: &Facts) {
        let number = record.number;
        self.last = number;
        let condition = record.condition.clone();
        let is_watched = match condition.scope() {
            Some(Scope::Aggregate(aggregate_id)) => self.aggregates.contains_key(&aggregate_id),
            Some(Scope::Store) => self.store.is_some(),
            None => true,
        };
        self.watch(&condition, number);
        self.enter(record);
        for found in facts.found.iter().flatten() {
            self.found(found);
        }
        let known: Vec<_> = facts.staged.iter().map(|(_, id)| self.ids.contains_key(id)).collect();
        let watch = match condition.scope() {
            Some(Scope::Aggregate(aggregate_id)) => self.aggregates.get_mut(&aggregate_id),
            Some(Scope::Store) => self.store.as_mut(),
            None => None,
        };
        if let Some(watch) = watch {
            let staged = facts.staged.iter().zip(known);
            if !is_watched {
                watch.count = facts.count.saturating_sub(facts.staged.len() as u64);
                for ((version, id), is_known) in staged {
                    watch.take(*version, is_known.then_some(id.as_str()), false);
                }
            } else if !facts.staged.is_empty() {
                watch.look_again(staged);
            }
        }
    }

    /// The batches that were [`appended`](Machine::appended) last could not be written and are removed. Newest first;
    /// their numbers are not reused.
    pub fn withdraw(&mut self, numbers: &[Number]) {
        for number in numbers {
            let Some(entry) = self.entries.get(number) else { continue };
            let condition = entry.condition.clone();
            self.unwatch(&condition);
            self.forget(*number);
        }
    }

    /// Everything appended so far is durable.
    pub fn durable(&mut self) {
        self.durable = self.last;
    }

    /// What has to be written for a page that was pulled since `since`; nothing if it does not fit. `end` is the place
    /// after its last event.
    pub fn page(&mut self, since: Place, events: Vec<RecordedEvent>, head: Version) -> Vec<Write> {
        let mut events = events;
        if Rule::PageFits.is_kept() {
            if since != self.end {
                return Vec::new();
            }
        } else {
            events.retain(|event| event.version > self.end.version);
        }
        let end = events.last().map_or(self.end.version, |last| last.version);
        self.heads.insert(head);
        let mut until = (end >= head).then_some(end);
        if !Rule::PublishAtHeads.is_kept() {
            until = Some(end);
        } else if !Rule::HeadOfSamePage.is_kept() {
            until = self.heads.range(..=end).next_back().copied();
        }
        let until = until.filter(|until| *until > self.published);
        let mut writes = Vec::new();
        let is_at_once = until == Some(end) && !self.is_staging;
        if !events.is_empty() {
            if !self.is_staging && !is_at_once {
                writes.push(Write::Journal(Record::Shown(Some(self.published.get()))));
            }
            writes.push(Write::Confirmed(events));
        }
        if let Some(until) = until.filter(|_| !is_at_once) {
            writes.push(Write::Journal(Record::Shown((until < end).then_some(until.get()))));
        }
        writes
    }

    /// Events were written after the end, which is now this place.
    pub fn staged(&mut self, events: &[RecordedEvent], end: Place) {
        for recorded in events {
            self.found(recorded);
            // It becomes visible later.
            self.note(recorded, None);
        }
        self.end = end;
        if !self.is_staging {
            self.publish(end.version);
        } else if !Rule::ToldOnPublish.is_kept() {
            self.settle();
        }
    }

    /// A record [`Record::Shown`] was written.
    pub fn shown(&mut self, until: Option<u64>) {
        self.is_staging = until.is_some();
        self.publish(until.map_or(self.end.version, Version::new));
    }

    fn publish(&mut self, until: Version) {
        if until <= self.published {
            return;
        }
        self.published = until;
        self.heads.retain(|head| *head > until);
        self.aggregates.values_mut().chain(&mut self.store).for_each(Watch::publish);
        self.settle();
    }

    /// Removes confirmed batches from the unconfirmed ones.
    pub fn settle(&mut self) {
        let until = if Rule::ToldOnPublish.is_kept() { self.published } else { self.end.version };
        let is_confirmed = |entry: &Entry| {
            if entry.is_open() {
                return are_there(&entry.found, until);
            }
            let is_there =
                are_there(&entry.found, until) || entry.is_replaced() && are_there(&entry.found_first, until);
            is_there && Rule::ConfirmedWins.is_kept()
        };
        let confirmed: Vec<_> =
            self.entries.iter().filter(|(_, entry)| is_confirmed(entry)).map(|(number, _)| *number).collect();
        for number in &confirmed {
            let Some(entry) = self.entries.get(number).cloned() else { continue };
            let found = if are_there(&entry.found, until) { &entry.found } else { &entry.found_first };
            let versions: Vec<Version> = found.iter().flatten().map(|found| found.version).collect();
            let runs = runs_of(&versions);
            let rejected = entry.outcomes.last().filter(|_| !entry.is_open()).cloned();
            if entry.is_open() {
                self.unwatch(&entry.condition);
                if self.entries.range(..*number).any(|(_, earlier)| earlier.is_open()) {
                    let aggregates = entry.events.iter().map(Event::aggregate_id).zip(&versions);
                    for (aggregate_id, version) in aggregates {
                        let watches = self.aggregates.get_mut(aggregate_id).into_iter().chain(&mut self.store);
                        watches.for_each(|watch| watch.overtaken(*number, *version));
                    }
                }
                if Rule::OwnIsKept.is_kept() {
                    self.own_runs(*number, &runs);
                }
            }
            if Rule::OwnIsKept.is_kept() {
                self.own.insert(*number, Own { condition: entry.condition, seen: entry.seen, runs, rejected });
            }
            self.forget(*number);
            self.told.remove(number);
        }
        if !confirmed.is_empty() {
            self.sort_known();
        }
    }

    /// Events whose ids no longer belong to open batches are now definitely own or foreign.
    fn sort_known(&mut self) {
        let (ids, own_at) = (&self.ids, &self.own_at);
        for watch in self.aggregates.values_mut().chain(&mut self.store) {
            let published = self.published.get();
            let mut foreign = watch.foreign;
            watch.known.retain(|(version, id)| {
                if ids.contains_key(id) || *version > published {
                    return true;
                }
                if owner_in(own_at, *version).is_none() {
                    foreign = foreign.max(*version);
                }
                false
            });
            watch.foreign = foreign;
        }
    }

    /// The batches to send now, at the end of the confirmed events, each with its number: as many as have at most this
    /// many events and bytes together, but at least one. None while events are staged. `skips`: whether batches may
    /// overtake one that waits for a decision, if they share no aggregate with it.
    #[must_use]
    pub fn to_send(&self, skips: bool, most_events: usize, most_bytes: usize) -> Vec<(Number, Batch)> {
        let mut batches = Vec::new();
        if self.is_staging() {
            return batches;
        }
        let (mut held, mut new): (HashSet<&str>, HashSet<&str>) = Default::default();
        let mut counts: HashMap<&str, u64> = HashMap::new();
        let (mut events, mut bytes) = (0, 0);
        for (number, status) in self.review() {
            let Some(entry) = self.entries.get(&number) else { continue };
            let aggregates = || match Rule::SkipSharesAny.is_kept() {
                true => entry.aggregates(),
                false => entry.events.iter().take(1).map(Event::aggregate_id).collect(),
            };
            match status {
                Status::Rejected(_) => continue,
                Status::Waiting(_) if !skips => break,
                Status::Waiting(_) => {
                    held.extend(aggregates());
                    continue;
                }
                Status::Pending if number > self.durable => break,
                Status::Pending => {}
            }
            if !held.is_empty() {
                if entry.condition == Condition::Store {
                    break;
                }
                let aggregates = aggregates();
                if aggregates.iter().any(|id| held.contains(id)) {
                    held.extend(aggregates);
                    continue;
                }
            }
            let len: usize = entry.events.iter().map(Event::len_bytes).sum();
            if !batches.is_empty() && (events + entry.events.len() > most_events || bytes + len > most_bytes) {
                break;
            }
            (events, bytes) = (events + entry.events.len(), bytes + len);
            let expected = match &entry.condition {
                _ if entry.is_anyway && !Rule::AnywayHasCondition.is_kept() => Expected::Any,
                Condition::Any | Condition::Exists(_) => Expected::Any,
                Condition::Aggregate(aggregate_id) => {
                    let confirmed = self.aggregates.get(aggregate_id).map_or(0, |watch| watch.count);
                    let before = counts.get(aggregate_id.as_str()).copied().unwrap_or_default();
                    Expected::Revision(Revision::new(confirmed + before))
                }
                Condition::Store => Expected::LatestVersion(Version::new(self.published.get() + new.len() as u64)),
            };
            for (event, found) in entry.events.iter().zip(&entry.found) {
                let is_confirmed = found.is_some_and(|found| found.version <= self.published);
                if !is_confirmed && new.insert(event.id()) {
                    *counts.entry(event.aggregate_id()).or_default() += 1;
                }
            }
            let batch = Batch::new(entry.events.clone()).expected(expected).idempotency(Idempotency::Content);
            batches.push((number, batch));
        }
        batches
    }

    /// The hub's answer to a push. It is only a hint, except for what the hub will never accept.
    pub fn answered(&mut self, stored: &[Number], refused: Option<(Number, Refusal)>) {
        if !Rule::AckIsNoConfirmation.is_kept() {
            self.withdraw(stored);
        }
        match refused {
            Some((number, Refusal::ForEver(reason))) if self.entries.contains_key(&number) => {
                self.refused.insert(number, reason);
            }
            Some((number, Refusal::ForNow)) if !Rule::DecideFromPull.is_kept() => {
                self.told.insert(number);
            }
            _ => {}
        }
    }

    /// The question for the resolver, about the first waiting batch. None while events are staged.
    #[must_use]
    pub fn question(&self) -> Option<Question> {
        if self.is_staging() {
            return None;
        }
        let (batch, why) = self.statuses().find_map(|(number, status)| match status {
            Status::Waiting(why) => Some((number, why)),
            _ => None,
        })?;
        let entry = self.entries.get(&batch)?;
        Some(Question {
            batch,
            why,
            events: entry.events.clone(),
            condition: entry.condition.clone(),
            basis: entry.seen,
            seen: Seen { version: self.published.get(), number: self.last },
            on_top: self.on_top(batch),
        })
    }

    /// Later batches that share an aggregate with this one, or with one that does. Batches with a condition on the
    /// whole store depend on all.
    fn on_top(&self, batch: Number) -> Vec<Number> {
        let Some(entry) = self.entries.get(&batch) else { return Vec::new() };
        let mut below = entry.aggregates();
        let mut on_top = Vec::new();
        for (number, entry) in self.entries.range(batch.next()..).filter(|(_, entry)| entry.is_open()) {
            if entry.condition == Condition::Store
                || entry.all_events().any(|event| below.contains(event.aggregate_id()))
            {
                below.extend(entry.aggregates());
                on_top.push(*number);
            }
        }
        on_top
    }

    /// What has to be written for the answer to a question, including the answers for batches on top of it. `is_used`
    /// tells whether a confirmed event has an id.
    ///
    /// # Errors
    ///
    /// Why the answer is refused. Nothing of it takes effect then.
    pub fn answer(
        &self,
        question: &Question,
        decision: Decision,
        on_top: Vec<(Number, Decision)>,
        is_used: impl Fn(&str) -> bool,
    ) -> Result<Vec<OutcomeRecord>, Misfit> {
        let mut number = self.last.next();
        let entry = self.entries.get(&question.batch).ok_or(Misfit::Stale)?;
        match self.statuses().find(|(number, _)| *number == question.batch) {
            Some((_, Status::Waiting(why))) if why == question.why || !Rule::AnswerNamesSeen.is_kept() => {}
            _ => return Err(Misfit::Stale),
        }
        let mut answered = HashSet::new();
        if let Some((batch, _)) =
            on_top.iter().find(|(batch, _)| !question.on_top.contains(batch) || !answered.insert(*batch))
        {
            return Err(Misfit::NotOnTop(*batch));
        }
        let can_anyway = !matches!(question.why, Why::Duplicate | Why::Refused(_));
        if decision == Decision::Anyway && !can_anyway && Rule::DuplicateNoAnyway.is_kept() {
            return Err(Misfit::NoAnyway);
        }
        let mut fresh = HashSet::new();
        self.check_decision(entry, &decision, &mut fresh, &is_used)?;
        let seen = match Rule::AnswerNamesSeen.is_kept() {
            true => question.seen,
            false => Seen { version: self.published.get(), number: self.last },
        };
        let mut outcomes = vec![OutcomeRecord { number, batch: question.batch, decision, seen }];
        let scope = question.condition.scope();
        for (batch, decision) in on_top {
            let entry = self.entries.get(&batch).filter(|entry| entry.is_open()).ok_or(Misfit::Stale)?;
            if batch <= question.batch || batch > question.seen.number {
                return Err(Misfit::Stale);
            }
            self.check_decision(entry, &decision, &mut fresh, &is_used)?;
            // The question was about what was visible.
            let version = match entry.condition.scope() == scope {
                true => seen.version.max(entry.seen.version),
                false => entry.seen.version,
            };
            let seen = Seen { version, number };
            number = number.next();
            outcomes.push(OutcomeRecord { number, batch, decision, seen });
        }
        Ok(outcomes)
    }

    fn check_decision(
        &self,
        entry: &Entry,
        decision: &Decision,
        fresh: &mut HashSet<String>,
        is_used: &impl Fn(&str) -> bool,
    ) -> Result<(), Misfit> {
        let Decision::Replace(events) = decision else { return Ok(()) };
        if events.is_empty() {
            return Err(Misfit::BadReplacement("it has no events; reject the batch instead"));
        }
        if let Condition::Aggregate(aggregate_id) | Condition::Exists(aggregate_id) = &entry.condition
            && events.iter().any(|event| event.aggregate_id() != aggregate_id)
        {
            return Err(Misfit::BadReplacement(
                "the batch has a condition on one aggregate, and an event is of another",
            ));
        }
        for event in events {
            let is_taken = self.ids.contains_key(event.id()) || is_used(event.id());
            if (is_taken || !fresh.insert(event.id().to_owned())) && Rule::FreshIds.is_kept() {
                return Err(Misfit::BadReplacement("an id was used before; give its events new ids"));
            }
        }
        Ok(())
    }

    /// Outcomes are durable.
    pub fn decided(&mut self, outcomes: Vec<OutcomeRecord>) {
        for outcome in outcomes {
            let number = outcome.batch;
            self.last = self.last.max(outcome.number);
            let Some(before) = self.entries.get(&number).map(|entry| entry.condition.clone()) else { continue };
            self.refused.remove(&number);
            self.told.remove(&number);
            let is_over = matches!(outcome.decision, Decision::Reject(_) | Decision::Drop);
            self.take_outcome(outcome);
            // For the others, the scope stays the same.
            if is_over {
                self.unwatch(&before);
            }
        }
        self.durable = self.last;
        self.settle();
    }

    /// The rejected batches, with their events and reasons.
    pub fn rejected(&self) -> impl Iterator<Item = (Number, &[Event], &str)> {
        self.entries.iter().filter_map(|(number, entry)| {
            let reason = entry.rejected.as_deref()?;
            Some((*number, entry.events.as_slice(), reason))
        })
    }

    /// A rejected batch was deleted, and the record of that is durable. Returns whether there was such a batch.
    pub fn deleted(&mut self, number: Number) -> bool {
        let is_rejected = self.entries.get(&number).is_some_and(|entry| !entry.is_open());
        if is_rejected {
            self.forget(number);
            if !Rule::MarkIsKept.is_kept() {
                self.marks.retain(|mark| mark.batch != number);
                self.marked.values_mut().for_each(|marks| marks.retain(|(_, batch)| *batch != number));
            }
        }
        is_rejected
    }

    /// Whether a mark still matters to some batch.
    fn matters(&self, mark: &MarkRecord) -> bool {
        let later = self.entries.range(mark.batch.next()..);
        later.into_iter().any(|(_, entry)| entry.is_open() && entry.seen.number < mark.number)
    }

    /// The number of records that are still needed for this state. `own` of them are [`Record::Own`].
    #[must_use]
    pub fn needed_records(&self, own: usize) -> usize {
        let open: usize = self.entries.values().map(|entry| 1 + entry.outcomes.len()).sum();
        1 + own + open
    }

    /// A journal that leads to the same state, without the records that are no longer needed.
    #[must_use]
    pub fn compacted(&self) -> Vec<Record> {
        self.records(self.generation, |own| vec![Record::Own(own)], |seen| seen, None)
    }

    fn records(
        &self,
        generation: u32,
        own: impl Fn(OwnRecord) -> Vec<Record>,
        cut: impl Fn(Seen) -> Seen,
        mark: Option<MarkRecord>,
    ) -> Vec<Record> {
        let last = mark.as_ref().map_or(self.last, |mark| mark.number.max(self.last));
        let mut records = vec![Record::Begin(BeginRecord { format: BeginRecord::FORMAT, generation, last })];
        for (&number, kept) in &self.own {
            let record = kept.record(number);
            records.extend(own(OwnRecord { seen: cut(record.seen), ..record }));
        }
        let outcome = |outcome: &OutcomeRecord| OutcomeRecord { seen: cut(outcome.seen), ..outcome.clone() };
        let is_of_outcome = |mark: &&MarkRecord| {
            let outcomes = self.entries.get(&mark.batch).into_iter().flat_map(|entry| &entry.outcomes);
            outcomes.into_iter().any(|outcome| outcome.number == mark.number)
        };
        let marks = self.marks.iter().filter(|mark| !is_of_outcome(mark) && self.matters(mark));
        records.extend(marks.cloned().chain(mark).map(Record::Mark));
        for entry in self.entries.values() {
            records.push(Record::Batch(BatchRecord { seen: cut(entry.record.seen), ..entry.record.clone() }));
            records.extend(entry.outcomes.iter().map(outcome).map(Record::Outcome));
        }
        if self.is_staging && generation == self.generation {
            records.push(Record::Shown(Some(self.published.get())));
        }
        records
    }

    /// Begins the recovery from a hub with another history, which has the same events up to `common`.
    #[must_use]
    pub fn recovery(&self, common: Version) -> Recovery<'_> {
        let lost = self.own.values().filter(|own| own.reaches_behind(common));
        let needed = lost.flat_map(|own| versions_of(&own.runs)).collect();
        Recovery { machine: self, common, needed, contents: BTreeMap::new(), lost_foreign: BTreeSet::new() }
    }
}

/// The own batch of the event with this version, from the runs of own events.
fn owner_in(own_at: &BTreeMap<u64, (u32, Number)>, version: u64) -> Option<Number> {
    let (&first, &(more, number)) = own_at.range(..=version).next_back()?;
    (version <= first + u64::from(more)).then_some(number)
}

/// Versions as runs of consecutive ones.
fn runs_of(versions: &[Version]) -> Vec<(u64, u32)> {
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for version in versions {
        match runs.last_mut() {
            Some((first, more)) if *first + u64::from(*more) + 1 == version.get() => *more += 1,
            _ => runs.push((version.get(), 0)),
        }
    }
    runs
}

fn versions_of(runs: &[(u64, u32)]) -> impl Iterator<Item = u64> {
    runs.iter().flat_map(|&(first, more)| first..=first + u64::from(more))
}

/// Why the hub refused a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A pull will show the reason.
    ForNow,
    /// It will always refuse it, for this reason.
    ForEver(String),
}

/// The recovery of a replica whose hub has another history.
///
/// Own events that the hub does not have become pending again. The steps, in order: copy the confirmed events up to the
/// common version; append the events of the hub after it, up to its head, since the common version may be inside a
/// batch; replace the journal, which switches to the copy; move the previous confirmed events aside.
#[derive(Debug)]
pub struct Recovery<'machine> {
    machine: &'machine Machine,
    common: Version,
    /// The versions of own batches that are lost completely or in part.
    needed: BTreeSet<u64>,
    contents: BTreeMap<u64, Event>,
    lost_foreign: BTreeSet<String>,
}

impl Recovery<'_> {
    /// Versions up to the common one whose events are needed as well.
    #[must_use]
    pub fn wanted(&self) -> Vec<Version> {
        self.needed.range(..=self.common.get()).map(|version| Version::new(*version)).collect()
    }

    /// Passes an event that was wanted, or that comes after the common version, in any order.
    pub fn take(&mut self, recorded: &RecordedEvent) {
        let (machine, event) = (self.machine, &recorded.event);
        if self.needed.contains(&recorded.version.get()) {
            self.contents.insert(recorded.version.get(), event.clone());
        }
        let mut numbers = machine.ids.get(event.id()).into_iter().flatten();
        let is_own =
            machine.owner(recorded.version).is_some() || numbers.any(|number| machine.owns(*number, event.id()));
        if recorded.version > self.common && !is_own {
            self.lost_foreign.insert(event.aggregate_id().to_owned());
        }
    }

    /// The new journal, of the next generation.
    ///
    /// # Errors
    ///
    /// The number of an own batch whose events were not passed.
    pub fn finish(self) -> Result<Vec<Record>, Number> {
        let machine = self.machine;
        let mut missing = None;
        let mut again = BTreeMap::new();
        for (&number, own) in machine.own.iter().filter(|(_, own)| own.reaches_behind(self.common)) {
            let events = versions_of(&own.runs).map(|version| self.contents.get(&version).cloned());
            match events.collect::<Option<Vec<_>>>() {
                Some(events) => {
                    let seen = own.seen.cut(self.common);
                    again.insert(number, BatchRecord { number, events, condition: own.condition.clone(), seen });
                }
                None => missing = missing.or(Some(number)),
            }
        }
        if let Some(number) = missing {
            return Err(number);
        }
        // Only aggregates of existing batches matter; batches with a condition on the whole store depend on all.
        let mark = MarkRecord {
            number: machine.last.next(),
            batch: Number::ZERO,
            aggregates: {
                let of_again = again.values().flat_map(|batch| &batch.events).map(Event::aggregate_id);
                let of_open = machine.entries.values().flat_map(Entry::aggregates);
                let all: BTreeSet<&str> = of_again.chain(of_open).collect();
                self.lost_foreign.iter().filter(|id| all.contains(id.as_str())).cloned().collect()
            },
        };
        let is_marked = !self.lost_foreign.is_empty() && Rule::LostBasisMarks.is_kept();
        let own = |own: OwnRecord| match again.get(&own.number) {
            Some(batch) => {
                let rejected = own.rejected.map(Record::Outcome);
                std::iter::once(Record::Batch(batch.clone())).chain(rejected).collect()
            }
            None => vec![Record::Own(own)],
        };
        let cut = |seen: Seen| seen.cut(self.common);
        Ok(machine.records(machine.generation + 1, own, cut, is_marked.then_some(mark)))
    }
}

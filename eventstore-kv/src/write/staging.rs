//! Decides which requests of a group are written, and assigns versions and revisions.

use std::ops::ControlFlow;
use std::sync::Arc;

use eventstore_api::{
    Actual, Bytes, Error, Event, Idempotency, RecordedEvent, Result, Revision, StoreOutcome, Stored, Version,
};
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use eventstore_log::{Group, Log};

use crate::engine::{Engine, Snapshot, Table};
use crate::format::keys;
use crate::format::record::{self, Micros};
use crate::index::filter::{self, Filter};
use crate::index::recent::Recent;
use crate::index::view::View;
use crate::read::reader;
use crate::write::queue::Request;
use crate::write::revisions::Revisions;

/// The decision on one request.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It is part of the group. These are its positions once the group is committed.
    Staged(Vec<Stored>),
    /// All of it was stored before, by a request of this group or an earlier one. These are the positions of the stored
    /// events.
    AlreadyStored(Vec<Stored>),
    /// It is refused, and nothing of it was staged.
    Refused(Error),
}

/// What the writer knows of the store's ids without reading, because nobody else writes to it.
pub(crate) struct Known {
    /// The greatest key of each kind in the id index, or a greater one; `None` if unknown. Time-ordered ids are greater
    /// than all before them, and so known to be new.
    greatest_ids: Option<[Vec<u8>; keys::ID_KINDS]>,
    /// The ids of the events at opening; `None` until it is loaded or built.
    older: Option<Filter>,
    /// The ids of later events, except the newest.
    newer: Filter,
    /// Hashes of the newest ids, which are added when the writer has time.
    newest: Vec<u64>,
    revisions: Revisions,
}

impl Known {
    /// What a first view of the store shows. If that fails, every look-up goes to the store and fails there.
    pub(crate) fn new<E: Engine>(view: &View<'_, E>, filter_bytes: usize, revision_bytes: usize) -> Self {
        Known {
            greatest_ids: view.greatest_ids().ok(),
            older: None,
            newer: Filter::new(filter_bytes),
            newest: Vec::new(),
            revisions: Revisions::new(revision_bytes),
        }
    }

    /// Adds the ids of the events at opening.
    pub(crate) fn learn(&mut self, older: Filter) {
        self.older = Some(older);
    }

    pub(crate) fn knows_all(&self) -> bool {
        self.older.is_some()
    }

    /// A filter of all ids, if there is one.
    pub(crate) fn into_filter(mut self) -> Option<Filter> {
        self.settle();
        let mut filter = self.older?;
        filter.merge_newer(self.newer);
        Some(filter)
    }

    /// Adds the newest ids to their filter.
    pub(crate) fn settle(&mut self) {
        self.newest.drain(..).for_each(|hash| self.newer.add(hash));
    }

    /// Whether no event of the store has this key in the id index. False if unknown.
    fn is_new_id(&mut self, key: &[u8]) -> bool {
        let is_greatest = |greatest: &[Vec<u8>; keys::ID_KINDS]| key > greatest[keys::id_kind(key)].as_slice();
        if self.greatest_ids.as_ref().is_some_and(is_greatest) {
            return true;
        }
        self.settle();
        let Some(older) = &self.older else { return false };
        let hash = filter::hash(key);
        !older.may_have(hash) && !self.newer.may_have(hash)
    }

    /// The newest revision of an aggregate, including staged events, if it is cached or certainly none.
    fn revision(&mut self, aggregate_id: &str) -> Option<u64> {
        self.revisions.get(aggregate_id).or_else(|| self.is_new_aggregate(aggregate_id).then_some(0))
    }

    /// Whether the store has no event of this aggregate. False if unknown.
    fn is_new_aggregate(&mut self, aggregate_id: &str) -> bool {
        self.settle();
        let Some(older) = &self.older else { return false };
        let hash = filter::hash_of_aggregate(aggregate_id);
        !older.may_have(hash) && !self.newer.may_have(hash)
    }

    /// Staged events were not written.
    pub(crate) fn forget_revisions(&mut self) {
        self.revisions.clear();
    }

    fn note_aggregate(&mut self, aggregate_id: &str) {
        self.newest.push(filter::hash_of_aggregate(aggregate_id));
    }

    fn note_id(&mut self, key: &[u8]) {
        self.newest.push(filter::hash(key));
        if let Some(greatest) = self.greatest_ids.as_mut().map(|greatest| &mut greatest[keys::id_kind(key)])
            && key > greatest.as_slice()
        {
            greatest.clear();
            greatest.extend_from_slice(key);
        }
    }
}

/// The id keys of the events of some requests, in one buffer.
pub(crate) struct IdKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl IdKeys {
    pub(crate) fn of(requests: &[Request]) -> Self {
        let (mut bytes, mut ends, mut key) = (Vec::new(), Vec::new(), Vec::new());
        for event in requests.iter().flat_map(|request| &request.events) {
            keys::write_id(&mut key, event.id());
            bytes.extend_from_slice(&key);
            ends.push(bytes.len());
        }
        IdKeys { bytes, ends }
    }

    /// The key of the nth event.
    fn get(&self, nth: usize) -> &[u8] {
        let start = nth.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[nth]]
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len()).map(|nth| self.get(nth))
    }
}

/// What is stored, and what is being committed.
pub(crate) struct Ground<'g, 'e, E: Engine> {
    pub(crate) view: View<'e, E>,
    pub(crate) log: &'g Log,
    /// The newest version before the group.
    pub(crate) base: u64,
    /// Returns when the previous group is committed or has failed.
    pub(crate) wait_for_commit: &'g dyn Fn(),
    /// The index of the staged events.
    pub(crate) recent: Arc<Recent>,
}

/// Requests on their way into a group. Each is checked against what is stored and what this group and the previous one
/// have staged, so a group gives the same results as its requests one by one.
pub(crate) struct Staging<'g, 'e, E: Engine> {
    ground: Ground<'g, 'e, E>,
    group: &'g mut Group,
    new_aggregates: u64,
    recorded_at: Micros,
    /// The newest revisions of the requests' aggregates.
    revisions: HashMap<&'g str, u64>,
    known: &'g mut Known,
    id_keys: &'g IdKeys,
    /// The number of events of the decided requests.
    decided: usize,
    /// The id keys of the requests that the store has; `None` if they were not looked up together.
    stored_ids: Option<HashSet<&'g [u8]>>,
}

/// The result of looking up an event of a request.
enum Lookup {
    New,
    /// It repeats the event at this position of the same request.
    Repeats(usize),
    Stored(Stored),
}

impl<'g, 'e, E: Engine> Staging<'g, 'e, E> {
    /// Begins after what the group has.
    pub(crate) fn new(
        ground: Ground<'g, 'e, E>,
        group: &'g mut Group,
        known: &'g mut Known,
        id_keys: &'g IdKeys,
    ) -> Self {
        Staging {
            ground,
            group,
            new_aggregates: 0,
            recorded_at: Micros::now(),
            revisions: HashMap::new(),
            known,
            id_keys,
            decided: 0,
            stored_ids: None,
        }
    }

    /// Looks up the ids of all requests in the table at once, which is faster than one by one. If that fails, each is
    /// looked up by itself, and fails alone.
    pub(crate) fn look_ahead(&mut self) {
        let mut keys: Vec<&[u8]> = self.id_keys.iter().filter(|key| !self.known.is_new_id(key)).collect();
        if keys.is_empty() {
            return;
        }
        keys.sort_unstable();
        keys.dedup();
        let mut stored = HashSet::new();
        let found = self.ground.view.snapshot().and_then(|snapshot| {
            snapshot.get_many(Table::Ids, &keys, |place, _| {
                stored.insert(keys[place]);
                ControlFlow::Continue(())
            })
        });
        self.stored_ids = found.is_ok().then_some(stored);
    }

    /// All requests were decided. Returns the number of aggregates that get their first event.
    pub(crate) fn finish(self) -> u64 {
        for (aggregate_id, revision) in self.revisions {
            if revision > 0 {
                self.known.revisions.put(aggregate_id, revision);
            }
        }
        self.new_aggregates
    }

    /// The newest version, including everything staged.
    fn head(&self) -> u64 {
        self.group.next() - 1
    }

    pub(crate) fn decide(&mut self, request: &'g Request) -> Decision {
        // Everything that can fail comes before the first change, so a refused request has no effect.
        let decision = self.check(request).map(|lookups| {
            let any_new = lookups.iter().any(|lookup| matches!(lookup, Lookup::New));
            let places = self.stage(request, &lookups);
            if any_new { Decision::Staged(places) } else { Decision::AlreadyStored(places) }
        });
        self.decided += request.events.len();
        decision.unwrap_or_else(Decision::Refused)
    }

    fn check(&mut self, request: &'g Request) -> Result<Vec<Lookup>> {
        let lookups = self.look_up(request)?;
        let mut new_events = request.events.iter().zip(&lookups).filter(|(_, lookup)| matches!(lookup, Lookup::New));
        let Some((first_new, _)) = new_events.next() else { return Ok(lookups) };
        // Revisions are read here for every aggregate of the request, because reading can fail.
        let revision = self.revision(first_new.aggregate_id())?;
        for (event, _) in new_events {
            self.revision(event.aggregate_id())?;
        }
        let latest = Version::new(self.head());
        let (expected, revision) = (request.expected, Revision::new(revision));
        if !expected.holds(revision, latest) {
            let actual = Actual::of(expected, first_new.aggregate_id(), revision, latest);
            return Err(Error::VersionConflict { expected, actual });
        }
        Ok(lookups)
    }

    fn look_up(&mut self, request: &'g Request) -> Result<Vec<Lookup>> {
        let (events, idempotency) = (&request.events, request.idempotency);
        // Created for the first event whose id is not greater than all before it.
        let mut in_request: Option<HashMap<&str, usize>> = None;
        let mut greatest: &[u8] = &[];
        let mut lookups = Vec::with_capacity(events.len());
        for (place, event) in events.iter().enumerate() {
            let key = self.id_keys.get(self.decided + place);
            if in_request.is_none() && key > greatest {
                greatest = key;
                lookups.push(self.look_up_one(event, idempotency, key)?);
                continue;
            }
            let in_request = in_request.get_or_insert_with(|| {
                events[..place].iter().enumerate().map(|(at, first)| (first.id(), at)).collect()
            });
            match in_request.entry(event.id()) {
                Entry::Occupied(first) => {
                    let first = *first.get();
                    if !idempotency.is_same(&events[first], event) {
                        return Err(Error::DuplicateEvent { id: event.id().to_owned(), version: None });
                    }
                    lookups.push(Lookup::Repeats(first));
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(place);
                    lookups.push(self.look_up_one(event, idempotency, key)?);
                }
            }
        }
        Ok(lookups)
    }

    /// Looks up the event with this key in the id index.
    fn look_up_one(&mut self, event: &Event, idempotency: Idempotency, key: &[u8]) -> Result<Lookup> {
        if self.known.is_new_id(key) {
            return Ok(Lookup::New);
        }
        let found = match self.ground.view.find_recent_id(key) {
            Some(version) if version > self.ground.base => {
                return self.look_up_staged(event, idempotency, version).map(Lookup::Stored);
            }
            Some(version) => Some(version),
            None if self.stored_ids.as_ref().is_some_and(|stored| !stored.contains(key)) => None,
            None => self.ground.view.find_id_in_table(key)?,
        };
        let Some(version) = found else { return Ok(Lookup::New) };
        if version > self.ground.log.last() {
            // It is in the group that is being committed. The result of that decides this one as well.
            (self.ground.wait_for_commit)();
        }
        if version > self.ground.log.last() {
            return Err(Error::OutcomeUnknown {
                reason: format!("the commit of the event with the id {:?} failed", event.id()),
                source: None,
            });
        }
        let first = reader::read_found(self.ground.log, event.id(), version)?;
        require_same(idempotency, &first, event)?;
        Ok(Lookup::Stored(Stored::new(first.version, first.revision, StoreOutcome::AlreadyStored)))
    }

    /// The position of an event of this group, at this version.
    fn look_up_staged(&self, event: &Event, idempotency: Idempotency, version: u64) -> Result<Stored> {
        let record = Bytes::copy_from_slice(self.group.content(version).unwrap_or_default());
        let first = record::decode(version, &record, 0..record.len())?;
        require_same(idempotency, &first, event)?;
        Ok(Stored::new(first.version, first.revision, StoreOutcome::AlreadyStored))
    }

    /// The newest revision of an aggregate, including staged events.
    fn revision(&mut self, aggregate_id: &'g str) -> Result<u64> {
        if let Some(known) = self.revisions.get(aggregate_id) {
            return Ok(*known);
        }
        let revision = match self.known.revision(aggregate_id) {
            Some(revision) => revision,
            None => self.ground.view.newest_revision(aggregate_id, u64::MAX)?.map_or(0, |(revision, _)| revision),
        };
        self.revisions.insert(aggregate_id, revision);
        Ok(revision)
    }

    fn stage(&mut self, request: &'g Request, lookups: &[Lookup]) -> Vec<Stored> {
        let mut places: Vec<Stored> = Vec::with_capacity(lookups.len());
        for (nth, (event, lookup)) in request.events.iter().zip(lookups).enumerate() {
            let place = match lookup {
                Lookup::New => {
                    let named = request.recorded_at.as_ref().and_then(|times| times.get(nth));
                    let key = self.id_keys.get(self.decided + nth);
                    self.stage_one(event, key, named.map_or(self.recorded_at, |&time| Micros::from(time)))
                }
                Lookup::Stored(stored) => *stored,
                Lookup::Repeats(first) => {
                    let first = places[*first];
                    Stored::new(first.version, first.revision, StoreOutcome::AlreadyStored)
                }
            };
            places.push(place);
        }
        places
    }

    fn stage_one(&mut self, event: &'g Event, key: &[u8], recorded_at: Micros) -> Stored {
        let version = self.group.next();
        let revision = self.revisions.get_mut(event.aggregate_id());
        let revision = revision.expect("it was read when the request was checked");
        *revision += 1;
        let revision = *revision;
        if revision == 1 {
            self.new_aggregates += 1;
            self.known.note_aggregate(event.aggregate_id());
        }
        self.group.push(&[&record::header(event, revision, recorded_at), event.bytes()]);
        self.ground.recent.push(key, event.aggregate_id(), revision);
        self.known.note_id(key);
        Stored::new(Version::new(version), Revision::new(revision), StoreOutcome::Written)
    }
}

/// Rule W2: the same id is the same event or an error.
pub(crate) fn require_same(idempotency: Idempotency, first: &RecordedEvent, again: &Event) -> Result<()> {
    if idempotency.is_same(&first.event, again) {
        return Ok(());
    }
    Err(Error::DuplicateEvent { id: again.id().to_owned(), version: Some(first.version) })
}

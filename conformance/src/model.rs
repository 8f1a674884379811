//! Random programs, and the model that says what each of their operations has to give.

use std::fmt;
use std::time::SystemTime;

use eventstore_api::{
    Batch, Durability, Error, Event, Expected, Gc, LoadOptions, RecordedEvent, StoreOutcome, Stored, Version,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;

use crate::events::event;

/// One step of a program.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Append {
        events: Vec<Small>,
        on: On,
        durability: Durability,
    },
    Load {
        options: LoadOptions,
        page: Option<usize>,
    },
    Get(Small),
    Latest,
    Revision(usize),
    Gc(Gc),
    Verify,
    /// Take a backup, `close`, and go on with the backup.
    MoveToBackup,
    /// `close`, and open again.
    Reopen,
    /// Drop the last handle, and open again.
    DropAndOpen,
}

/// An event of the few that programs use, so that they meet: most often itself, sometimes its id with other content.
#[derive(Clone, Copy)]
pub(crate) struct Small {
    id: usize,
    other: Option<Other>,
}

#[derive(Clone, Copy, Debug)]
enum Other {
    Data,
    Metadata,
    Aggregate,
}

/// A condition, near what holds at that point of the program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    Any,
    NoEvents,
    Exists,
    RevisionPlus(i64),
    LatestPlus(i64),
}

pub(crate) const AGGREGATES: [&str; 3] = ["a", "ab", "a\0"];

impl Small {
    pub(crate) fn id(self) -> String {
        format!("event-{}", self.id)
    }

    pub(crate) fn event(self) -> Event {
        let aggregate = AGGREGATES[self.id % 3];
        let plain = event(self.id(), aggregate);
        let same =
            |aggregate: &str| Event::builder(plain.event_type(), aggregate).id(plain.id()).data(plain.data().to_vec());
        let builder = match self.other {
            None => return plain,
            Some(Other::Data) => same(aggregate).data("other"),
            Some(Other::Metadata) => same(aggregate).metadata_json("{\"other\":true}"),
            Some(Other::Aggregate) => same(AGGREGATES[(self.id + 1) % 3]),
        };
        builder.build().expect("the suite's own events are valid")
    }
}

impl fmt::Debug for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.id(), self.event().aggregate_id())?;
        match self.other {
            Some(other) => write!(f, " with other {other:?}"),
            None => Ok(()),
        }
    }
}

/// Programs of up to this many operations.
pub(crate) fn programs(operations: usize) -> impl Strategy<Value = Vec<Op>> {
    let other = prop_oneof![
        12 => Just(None),
        1 => Just(Some(Other::Data)),
        1 => Just(Some(Other::Metadata)),
        1 => Just(Some(Other::Aggregate)),
    ];
    let small = (0..24_usize, other).prop_map(|(id, other)| Small { id, other });
    let on = prop_oneof![
        4 => Just(On::Any),
        1 => Just(On::NoEvents),
        1 => Just(On::Exists),
        2 => (-1..=1_i64).prop_map(On::RevisionPlus),
        2 => (-1..=1_i64).prop_map(On::LatestPlus),
    ];
    let durability = prop_oneof![Just(Durability::Sync), Just(Durability::Buffered)];
    let append =
        (vec(small.clone(), 0..5), any::<bool>(), on, durability).prop_map(|(mut events, one, on, durability)| {
            if one && let [first, rest @ ..] = events.as_mut_slice() {
                // All of one aggregate, so that conditions about one fit.
                rest.iter_mut().for_each(|event| event.id = event.id - event.id % 3 + first.id % 3);
            }
            Op::Append { events, on, durability }
        });
    let version = || prop_oneof![8 => 0..30_u64, 1 => Just(u64::MAX)];
    let bounds = (version(), option::of(version()), option::of(0..6_u64), any::<bool>());
    let load = (bounds, option::of(0..3_usize), option::of(1..4_usize)).prop_map(|(bounds, aggregate, page)| {
        let (since, before, limit, backward) = bounds;
        let mut options = LoadOptions::since(Version::new(since));
        options.before = before.map(Version::new);
        options.limit = limit;
        options.aggregate_id = aggregate.map(|at| AGGREGATES[at].to_owned());
        Op::Load { options: if backward { options.backward() } else { options }, page }
    });
    let op = prop_oneof![
        12 => append,
        5 => load,
        2 => small.prop_map(Op::Get),
        1 => Just(Op::Latest),
        1 => (0..3_usize).prop_map(Op::Revision),
        1 => Just(Op::Gc(Gc::Quick)),
        1 => Just(Op::Gc(Gc::Full)),
        1 => Just(Op::Verify),
        1 => Just(Op::MoveToBackup),
        1 => Just(Op::Reopen),
        1 => Just(Op::DropAndOpen),
    ];
    vec(op, 1..=operations)
}

/// What a store is: its events in order. Their time of recording is left out.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) events: Vec<RecordedEvent>,
}

/// What an append may give. Where two rules refuse it, either may say so.
#[derive(Debug)]
pub(crate) enum Verdict {
    Accepted(Vec<Stored>),
    Refused(Vec<Error>),
}

impl Model {
    pub(crate) fn latest(&self) -> u64 {
        self.events.len() as u64
    }

    pub(crate) fn revision(&self, aggregate_id: &str) -> u64 {
        self.events.iter().filter(|there| there.event.aggregate_id() == aggregate_id).count() as u64
    }

    pub(crate) fn get(&self, id: &str) -> Option<&RecordedEvent> {
        self.events.iter().find(|there| there.event.id() == id)
    }

    /// The condition in numbers, for an append to this aggregate now.
    pub(crate) fn condition(&self, on: On, aggregate_id: &str) -> Expected {
        match on {
            On::Any => Expected::Any,
            On::NoEvents => Expected::NoEvents,
            On::Exists => Expected::Exists,
            On::RevisionPlus(n) => Expected::Revision(self.revision(aggregate_id).saturating_add_signed(n)),
            On::LatestPlus(n) => Expected::LatestVersion(self.latest().saturating_add_signed(n).into()),
        }
    }

    /// Appends the batch, if it may be.
    pub(crate) fn append(&mut self, batch: &Batch) -> Verdict {
        if let Err(invalid) = batch.validate() {
            return Verdict::Refused(vec![invalid]);
        }
        let (before, mut stored, mut refusals) = (self.events.len(), Vec::new(), Vec::new());
        let aggregate_id = batch.events.first().map_or("", Event::aggregate_id).to_owned();
        let revision = self.revision(&aggregate_id);
        for event in &batch.events {
            let Some(there) = self.get(event.id()) else {
                let place = Version::new(self.latest() + 1);
                let revision = self.revision(event.aggregate_id()) + 1;
                stored.push(Stored::new(place, revision, StoreOutcome::Written));
                self.events.push(RecordedEvent::new(place, revision, SystemTime::UNIX_EPOCH, event.clone()));
                continue;
            };
            stored.push(Stored::new(there.version, there.revision, StoreOutcome::AlreadyStored));
            if there.event != *event {
                let stored = (there.version.get() <= before as u64).then_some(there.version);
                let id = event.id().to_owned();
                // An id that is stored, and before this in the batch as well, is a duplicate of both.
                if batch.events.iter().filter(|other| other.id() == id).count() > 1 {
                    refusals.push(Error::DuplicateEvent { id: id.clone(), version: None });
                }
                refusals.push(Error::DuplicateEvent { id, version: stored });
            }
        }
        let latest = Version::new(before as u64);
        if self.events.len() > before && !batch.expected.holds(revision, latest) {
            let about_aggregate = batch.expected.is_about_aggregate();
            refusals.push(Error::VersionConflict {
                aggregate_id: about_aggregate.then_some(aggregate_id),
                expected: batch.expected,
                actual: if about_aggregate { revision } else { latest.get() },
            });
        }
        if refusals.is_empty() {
            return Verdict::Accepted(stored);
        }
        self.events.truncate(before);
        Verdict::Refused(refusals)
    }
}

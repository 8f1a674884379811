//! Random programs, and a model that predicts the result of each step.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, MAX_ID_LEN, MAX_TYPE_LEN, RECORDED_AT_END};
use eventstore_api::{
    Actual, AggregateOptions, Batch, CancellationToken, Context, Durability, Error, Event, Expected, Gc, Idempotency,
    LoadOptions, RecordedEvent, StoreOutcome, Stored, Version,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;

use crate::events::background;

/// One step of a program: a call through one of its handles to the store, possibly with a context that has ended.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) handle: usize,
    pub(crate) ended: Option<Ended>,
    pub(crate) op: Op,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Cancelled,
    Expired,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Append {
        events: Vec<Small>,
        on: On,
        durability: Option<Durability>,
        idempotency: Idempotency,
        times: Times,
    },
    /// Try to build an event that exceeds a limit: it never reaches a store.
    Make(Bad),
    Load {
        options: LoadOptions,
        page: Option<usize>,
    },
    Get(Lookup),
    Latest,
    Revision(Lookup),
    List {
        options: AggregateOptions,
        most: usize,
    },
    WaitFor(u64),
    /// Open a subscription that later steps read from.
    Subscribe(LoadOptions),
    /// Read this many events from a subscription, if it has them.
    Read {
        subscription: usize,
        events: usize,
    },
    Unsubscribe(usize),
    Gc(Gc),
    Verify,
    /// The digest of the events up to this version.
    Digest(u64),
    Stats,
    /// Take a backup and compare it with the model.
    Backup,
    /// Take a backup, call `close`, and continue with the backup.
    MoveToBackup,
    CloneHandle,
    DropHandle,
    /// Call `close` through one handle, and reopen.
    Reopen,
    /// Drop the last handle, and reopen.
    DropAndOpen,
}

/// One of the few events that programs use, so that they collide: usually the event itself, sometimes its id with other
/// content.
#[derive(Clone, Copy)]
pub(crate) struct Small {
    number: usize,
    other: Option<Other>,
}

#[derive(Clone, Copy, Debug)]
enum Other {
    Type,
    Data,
    Metadata,
    Aggregate,
}

/// An event or aggregate that may exist, or one that cannot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lookup {
    Number(usize),
    Empty,
    TooLong,
}

/// A condition: close to what holds at that point of the program, or far from it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    Any,
    NoEvents,
    Exists,
    RevisionPlus(i64),
    LatestPlus(i64),
    LastRevision,
    LastVersion,
}

/// The explicit recording times of an append.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Times {
    None,
    /// This many microseconds after 1970, and one more for each further event.
    Micros(u64),
    OneTooFew,
    OneTooMany,
    Before1970,
    After9999,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bad {
    EmptyId,
    LongId,
    EmptyType,
    LongType,
    EmptyAggregate,
    LongAggregate,
    Metadata,
}

pub(crate) const AGGREGATES: [&str; 3] = ["a", "ab", "a\0"];
const EVENTS: usize = 24;

impl Step {
    pub(crate) fn context(&self) -> Context {
        match self.ended {
            None => background(),
            Some(Ended::Expired) => background().with_timeout(Duration::ZERO),
            Some(Ended::Cancelled) => {
                let token = CancellationToken::new();
                token.cancel();
                background().with_cancellation(token)
            }
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ended {
            None => {}
            Some(Ended::Cancelled) => f.write_str("cancelled before the call: ")?,
            Some(Ended::Expired) => f.write_str("expired before the call: ")?,
        }
        self.op.fmt(f)?;
        if self.handle > 0 { write!(f, " through handle {}", self.handle) } else { Ok(()) }
    }
}

impl Small {
    /// An id of each kind: UUIDs, which a store may treat specially, ids that differ only in case, and long ones.
    pub(crate) fn id(self) -> String {
        let number = self.number;
        match number % 4 {
            0 => format!("event-{number}"),
            1 => format!("00000000-0000-4000-8000-abcdef{number:06}"),
            2 => format!("00000000-0000-4000-8000-ABCDEF{:06}", number - 1),
            _ => format!("{number:->MAX_ID_LEN$}"),
        }
    }

    /// In the aggregate that its number determines. Small, except for two that are larger than a page of most engines.
    pub(crate) fn event(self) -> Event {
        let len = [0, 10, 10, 150, 10, 2_500, 10, 10, 10, 5_000, 10, 10][self.number % 12];
        let data = self.number.to_string().into_bytes().repeat(len);
        let aggregate = AGGREGATES[(self.number + usize::from(matches!(self.other, Some(Other::Aggregate)))) % 3];
        let event_type = if matches!(self.other, Some(Other::Type)) { "Other" } else { "Happened" };
        let builder = Event::builder(event_type, aggregate).id(self.id());
        let builder = match self.other {
            Some(Other::Data) => builder.data("other"),
            Some(Other::Metadata) => builder.data(data).metadata_json("{\"other\":true}"),
            _ => builder.data(data),
        };
        builder.build().expect("the suite's own events are valid")
    }
}

impl fmt::Debug for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {} of {:?}", self.number, AGGREGATES[self.number % 3])?;
        match self.other {
            Some(other) => write!(f, " with other {other:?}"),
            None => Ok(()),
        }
    }
}

impl Lookup {
    pub(crate) fn id(self) -> String {
        match self {
            Lookup::Number(number) => Small { number, other: None }.id(),
            Lookup::Empty => String::new(),
            Lookup::TooLong => "i".repeat(MAX_ID_LEN + 1),
        }
    }

    pub(crate) fn aggregate(self) -> String {
        match self {
            Lookup::Number(number) => AGGREGATES[number % 3].to_owned(),
            Lookup::Empty => String::new(),
            Lookup::TooLong => "a".repeat(MAX_AGGREGATE_ID_LEN + 1),
        }
    }
}

impl Times {
    pub(crate) fn of(self, events: usize) -> Option<Vec<SystemTime>> {
        let micros = |micros: u64| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        let each = |time: SystemTime| Some(vec![time; events]);
        match self {
            Times::None => None,
            Times::Micros(first) => Some((first..).take(events).map(micros).collect()),
            Times::OneTooFew => Some(vec![micros(1); events.saturating_sub(1)]),
            Times::OneTooMany => Some(vec![micros(1); events + 1]),
            Times::Before1970 => each(SystemTime::UNIX_EPOCH - Duration::from_micros(1)),
            Times::After9999 => each(SystemTime::UNIX_EPOCH + RECORDED_AT_END),
        }
    }
}

impl Bad {
    /// The result of building such an event, and the field that the error must name.
    pub(crate) fn make(self) -> (Result<Event, Error>, &'static str) {
        let make = |id: &str, event_type: &str, aggregate: &str| Event::builder(event_type, aggregate).id(id).build();
        let long = |limit: usize| "x".repeat(limit + 1);
        match self {
            Bad::EmptyId => (make("", "T", "a"), "id"),
            Bad::LongId => (make(&long(MAX_ID_LEN), "T", "a"), "id"),
            Bad::EmptyType => (make("id", "", "a"), "type"),
            Bad::LongType => (make("id", &long(MAX_TYPE_LEN), "a"), "type"),
            Bad::EmptyAggregate => (make("id", "T", ""), "aggregate_id"),
            Bad::LongAggregate => (make("id", "T", &long(MAX_AGGREGATE_ID_LEN)), "aggregate_id"),
            Bad::Metadata => (Event::builder("T", "a").metadata_json("[]").build(), "metadata"),
        }
    }
}

/// Programs of up to this many steps. The first alternatives are the simplest: programs shrink towards them.
pub(crate) fn programs(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    let ended = prop_oneof![
        14 => Just(None),
        1 => Just(Some(Ended::Cancelled)),
        1 => Just(Some(Ended::Expired)),
    ];
    let op = prop_oneof![
        14 => appends(),
        7 => (bounds(), option::of(1..4_usize)).prop_map(|(options, page)| Op::Load { options, page }),
        2 => lookup(EVENTS).prop_map(Op::Get),
        1 => Just(Op::Latest),
        1 => lookup(3).prop_map(Op::Revision),
        2 => (lists(), 1..4_usize).prop_map(|(options, most)| Op::List { options, most }),
        2 => (0..30_u64).prop_map(Op::WaitFor),
        3 => subscriptions().prop_map(Op::Subscribe),
        6 => (0..4_usize, 0..8_usize).prop_map(|(subscription, events)| Op::Read { subscription, events }),
        1 => (0..4_usize).prop_map(Op::Unsubscribe),
        1 => Just(Op::Gc(Gc::Quick)),
        1 => Just(Op::Gc(Gc::Full)),
        1 => Just(Op::Verify),
        1 => prop_oneof![0_u64..40, Just(u64::MAX)].prop_map(Op::Digest),
        1 => Just(Op::Stats),
        1 => Just(Op::Backup),
        1 => Just(Op::MoveToBackup),
        1 => Just(Op::CloneHandle),
        1 => Just(Op::DropHandle),
        1 => Just(Op::Reopen),
        1 => Just(Op::DropAndOpen),
        1 => prop_oneof![
            Just(Bad::EmptyId), Just(Bad::LongId), Just(Bad::EmptyType), Just(Bad::LongType),
            Just(Bad::EmptyAggregate), Just(Bad::LongAggregate), Just(Bad::Metadata),
        ].prop_map(Op::Make),
    ];
    let step = (0..3_usize, ended, op).prop_map(|(handle, ended, op)| Step { handle, ended, op });
    vec(step, 1..=steps)
}

fn appends() -> impl Strategy<Value = Op> {
    let other = prop_oneof![
        15 => Just(None),
        1 => Just(Some(Other::Data)),
        1 => Just(Some(Other::Metadata)),
        1 => Just(Some(Other::Aggregate)),
        1 => Just(Some(Other::Type)),
    ];
    let small = (0..EVENTS, other).prop_map(|(number, other)| Small { number, other });
    let on = prop_oneof![
        4 => Just(On::Any),
        1 => Just(On::NoEvents),
        1 => Just(On::Exists),
        2 => (-1..=1_i64).prop_map(On::RevisionPlus),
        2 => (-1..=1_i64).prop_map(On::LatestPlus),
        1 => prop_oneof![Just(On::LastRevision), Just(On::LastVersion)],
    ];
    let durability = prop_oneof![Just(None), Just(Some(Durability::Sync)), Just(Some(Durability::Buffered))];
    let idempotency = prop_oneof![
        4 => Just(Idempotency::Content),
        1 => Just(Idempotency::Data),
        1 => Just(Idempotency::Id),
    ];
    let times = prop_oneof![
        8 => Just(Times::None),
        4 => (1..4_000_000_000_000_000_u64).prop_map(Times::Micros),
        1 => prop_oneof![
            Just(Times::OneTooFew), Just(Times::OneTooMany), Just(Times::Before1970), Just(Times::After9999),
        ],
    ];
    let parts = (vec(small, 0..5), any::<bool>(), on, durability, idempotency, times);
    parts.prop_map(|(mut events, one, on, durability, idempotency, times)| {
        if one && let [first, rest @ ..] = events.as_mut_slice() {
            // All of one aggregate, so that conditions about one aggregate are valid.
            rest.iter_mut().for_each(|event| event.number = event.number - event.number % 3 + first.number % 3);
        }
        Op::Append { events, on, durability, idempotency, times }
    })
}

fn lookup(numbers: usize) -> impl Strategy<Value = Lookup> {
    prop_oneof![
        8 => (0..numbers).prop_map(Lookup::Number),
        1 => Just(Lookup::Empty),
        1 => Just(Lookup::TooLong),
    ]
}

fn bounds() -> impl Strategy<Value = LoadOptions> {
    let version = || prop_oneof![8 => 0..30_u64, 1 => Just(u64::MAX)];
    let limit = prop_oneof![8 => 0..6_u64, 1 => Just(u64::MAX)];
    let parts = (version(), option::of(version()), option::of(limit), any::<bool>(), option::of(lookup(3)), filters(4));
    parts.prop_map(|(since, before, limit, backward, aggregate, filters)| {
        let mut options = LoadOptions::since(Version::new(since));
        options.before = before.map(Version::new);
        options.limit = limit;
        options.aggregate_id = aggregate.map(Lookup::aggregate);
        let options = filters.put_into(options);
        if backward { options.backward() } else { options }
    })
}

/// The filters of a load.
#[derive(Clone, Debug, Default)]
struct Filters {
    types: Vec<&'static str>,
    aggregate_prefix: Option<&'static str>,
    since_revision: u64,
    /// In microseconds since 1970.
    recorded_since: Option<u64>,
    recorded_before: Option<u64>,
}

/// Some filter, or none with a weight of 4: several filters together match little.
fn filters(weight: u32) -> impl Strategy<Value = Filters> {
    let types = prop_oneof![
        3 => Just(vec![]),
        1 => vec(prop_oneof![4 => Just("Happened"), 1 => Just("Other"), 1 => Just("Happen"), 1 => Just("")], 1..3),
    ];
    let prefix = prop_oneof![
        4 => Just(None),
        3 => prop_oneof![Just("ab"), Just("a\0")].prop_map(Some),
        1 => prop_oneof![Just(""), Just("a"), Just("b")].prop_map(Some),
    ];
    let revision = prop_oneof![8 => Just(0), 4 => 1..5_u64, 1 => Just(u64::MAX)];
    let time = || prop_oneof![6 => Just(None), 1 => (0..4_000_000_000_000_000_u64).prop_map(Some)];
    let parts = (types, prefix, revision, time(), time());
    let some = parts.prop_map(|(types, aggregate_prefix, since_revision, recorded_since, recorded_before)| Filters {
        types,
        aggregate_prefix,
        since_revision,
        recorded_since,
        recorded_before,
    });
    prop_oneof![4 => Just(Filters::default()), weight => some]
}

impl Filters {
    fn put_into(self, mut options: LoadOptions) -> LoadOptions {
        let time = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        options.types = self.types.into_iter().map(str::to_owned).collect();
        options.aggregate_prefix = self.aggregate_prefix.map(str::to_owned);
        options.since_revision = self.since_revision.into();
        options.recorded_since = self.recorded_since.map(time);
        options.recorded_before = self.recorded_before.map(time);
        options
    }
}

fn lists() -> impl Strategy<Value = AggregateOptions> {
    let name = || prop_oneof![2 => Just(""), 1 => Just("a"), 1 => Just("ab"), 1 => Just("a\0"), 1 => Just("b")];
    let before = prop_oneof![8 => 0..30_u64, 1 => Just(u64::MAX)];
    (name(), name(), option::of(before)).prop_map(|(prefix, after, before)| {
        let mut options = AggregateOptions::all().prefix(prefix).after(after);
        options.before = before.map(Version::new);
        options
    })
}

/// From near the beginning and usually without an end, so that there is something to follow.
fn subscriptions() -> impl Strategy<Value = LoadOptions> {
    let limit = prop_oneof![3 => Just(None), 1 => (0..6_u64).prop_map(Some)];
    let aggregate = prop_oneof![3 => Just(None), 1 => lookup(3).prop_map(Some)];
    (0..8_u64, limit, aggregate, filters(1)).prop_map(|(since, limit, aggregate, filters)| {
        let mut options = LoadOptions::since(Version::new(since));
        options.limit = limit;
        options.aggregate_id = aggregate.map(Lookup::aggregate);
        filters.put_into(options)
    })
}

/// The state of a store: its events in order.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) events: Vec<RecordedEvent>,
}

/// The possible results of an append. If two rules refuse it, either error is allowed.
#[derive(Debug)]
pub(crate) enum Verdict {
    Accepted(Vec<Stored>),
    Refused(Vec<Error>),
}

/// The recording time of an event whose append set none, until a read has shown it.
const NOT_KNOWN_YET: SystemTime = SystemTime::UNIX_EPOCH;

impl Model {
    pub(crate) fn latest(&self) -> u64 {
        self.events.len() as u64
    }

    pub(crate) fn revision(&self, aggregate_id: &str) -> u64 {
        self.events.iter().filter(|there| there.event.aggregate_id() == aggregate_id).count() as u64
    }

    pub(crate) fn aggregates(&self) -> u64 {
        self.events.iter().map(|there| there.event.aggregate_id()).collect::<BTreeSet<_>>().len() as u64
    }

    pub(crate) fn get(&self, id: &str) -> Option<&RecordedEvent> {
        self.events.iter().find(|there| there.event.id() == id)
    }

    /// Learns automatic recording times from the first read that shows them. From then on they must not change.
    pub(crate) fn learn(&mut self, read: &[RecordedEvent]) {
        for event in read {
            let at = usize::try_from(event.version.get()).unwrap_or_default().wrapping_sub(1);
            if let Some(there) = self.events.get_mut(at).filter(|there| there.recorded_at == NOT_KNOWN_YET) {
                there.recorded_at = event.recorded_at;
            }
        }
    }

    /// The condition in numbers, for an append to this aggregate now.
    pub(crate) fn condition(&self, on: On, aggregate_id: &str) -> Expected {
        match on {
            On::Any => Expected::Any,
            On::NoEvents => Expected::NoEvents,
            On::Exists => Expected::Exists,
            On::RevisionPlus(n) => Expected::Revision((self.revision(aggregate_id).saturating_add_signed(n)).into()),
            On::LatestPlus(n) => Expected::LatestVersion(self.latest().saturating_add_signed(n).into()),
            On::LastRevision => Expected::Revision((u64::MAX).into()),
            On::LastVersion => Expected::LatestVersion(u64::MAX.into()),
        }
    }

    /// Appends the batch, if it is allowed.
    pub(crate) fn append(&mut self, batch: &Batch) -> Verdict {
        if let Err(invalid) = batch.validate() {
            return Verdict::Refused(vec![invalid]);
        }
        let (before, mut stored, mut refusals) = (self.events.len(), Vec::new(), Vec::new());
        let aggregate_id = batch.events.first().map_or("", Event::aggregate_id).to_owned();
        let revision = self.revision(&aggregate_id);
        let times = batch.recorded_at.iter().flatten().copied().chain(std::iter::repeat(NOT_KNOWN_YET));
        for (event, time) in batch.events.iter().zip(times) {
            let Some(there) = self.get(event.id()) else {
                let place = Version::new(self.latest() + 1);
                let revision = self.revision(event.aggregate_id()) + 1;
                stored.push(Stored::new(place, revision.into(), StoreOutcome::Written));
                self.events.push(RecordedEvent::new(place, revision.into(), time, event.clone()));
                continue;
            };
            stored.push(Stored::new(there.version, there.revision, StoreOutcome::AlreadyStored));
            if !batch.idempotency.is_same(&there.event, event) {
                let stored = (there.version.get() <= before as u64).then_some(there.version);
                let id = event.id().to_owned();
                // An id that is both stored and repeated in the batch is a duplicate of both.
                if batch.events.iter().filter(|other| other.id() == id).count() > 1 {
                    refusals.push(Error::DuplicateEvent { id: id.clone(), version: None });
                }
                refusals.push(Error::DuplicateEvent { id, version: stored });
            }
        }
        let latest = Version::new(before as u64);
        let is_duplicate = !refusals.is_empty();
        let (expected, revision) = (batch.expected, revision.into());
        if self.events.len() > before && !is_duplicate && !expected.holds(revision, latest) {
            let actual = Actual::of(expected, &aggregate_id, revision, latest);
            refusals.push(Error::VersionConflict { expected, actual });
        }
        if refusals.is_empty() {
            return Verdict::Accepted(stored);
        }
        self.events.truncate(before);
        Verdict::Refused(refusals)
    }
}

//! A replica: the real state machine over a disk that may end anywhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use eventstore_api::{Batch, Digest, Event, Expected, Place, RecordedEvent, Revision, Version};
use synckit::core::{
    BatchRecord, Condition, Decision, EventPlace, Expectation, Facts, Listener, Machine, Notice, Number, Proposed,
    Question, Record, Rule, Scope, Seen, Status, Why, Write,
};

use crate::world::{Message, Shared, event_of};

/// Something that may never happen has happened.
#[derive(Debug, Clone)]
pub struct Broken(pub String);

/// How a step ends early.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The process is killed.
    Crash,
    /// An invariant does not hold.
    Broken(Broken),
}

impl From<Broken> for Ended {
    fn from(broken: Broken) -> Self {
        Ended::Broken(broken)
    }
}

pub(crate) fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

type Step<T = ()> = Result<T, Ended>;

/// What whoever decided a batch had seen, for the invariants only.
#[derive(Clone, Debug)]
pub(crate) struct Ghost {
    pub(crate) kind: &'static str,
    /// `None` for the whole store.
    pub(crate) aggregate: Option<u8>,
    pub(crate) known: Rc<HashSet<u32>>,
}

pub(crate) fn id_of(event: &Event) -> u32 {
    event.id()[1..].parse().unwrap_or_default()
}

/// The id of an event, and its content where that may be another one: what a condition is about.
pub(crate) fn key_of(event: &Event) -> u32 {
    let data = std::str::from_utf8(event.data()).unwrap_or_default();
    let content = data.split_once(':').and_then(|(content, _)| content.parse().ok()).unwrap_or(0);
    match id_of(event) {
        key @ ..10 => key + 10 * content,
        id => id,
    }
}

pub(crate) fn aggregate_of(event: &Event) -> u8 {
    event.aggregate_id()[1..].parse().unwrap_or_default()
}

/// The time of a write, by the user's clock.
pub(crate) fn time_of(event: &Event) -> i64 {
    let data = std::str::from_utf8(event.data()).unwrap_or_default();
    data.split_once(':').and_then(|(_, time)| time.parse().ok()).unwrap_or_default()
}

/// Confirmed events on the disk.
#[derive(Clone, Debug)]
pub(crate) struct Confirmed {
    pub(crate) events: Vec<RecordedEvent>,
    digests: Vec<Digest>,
    ids: HashMap<String, usize>,
}

impl Confirmed {
    fn new() -> Self {
        Confirmed { events: Vec::new(), digests: vec![Digest::EMPTY], ids: HashMap::new() }
    }

    pub(crate) fn end(&self) -> Place {
        Place::new(Version::new(self.events.len() as u64), self.digests[self.events.len()])
    }

    fn push(&mut self, event: RecordedEvent) -> Result<(), Broken> {
        if event.version != self.end().version.next() && Rule::PageFits.is_kept() {
            return broken("confirmed: a version is missing");
        }
        let digest = self.end().digest.chain(&event);
        if self.ids.insert(event.event.id().to_owned(), self.events.len()).is_some() {
            return broken("confirmed: an event twice");
        }
        self.digests.push(digest);
        self.events.push(event);
        Ok(())
    }

    fn get(&self, id: &str) -> Option<&RecordedEvent> {
        self.ids.get(id).map(|at| &self.events[*at])
    }

    fn prefix(&self, len: usize) -> Self {
        let mut prefix = Confirmed::new();
        prefix.events = self.events[..len].to_vec();
        prefix.digests = self.digests[..=len].to_vec();
        prefix.ids = prefix.events.iter().enumerate().map(|(at, event)| (event.event.id().to_owned(), at)).collect();
        prefix
    }
}

/// What the user has seen of an aggregate.
#[derive(Clone, Debug)]
struct Token {
    aggregate: u8,
    basis: Seen,
    ids: Vec<u32>,
    all: Vec<u32>,
    top: i64,
}

/// What somebody knows who only listens.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// Up to which version.
    confirmed: u64,
    /// Each pending event with its place in its batch.
    pending: BTreeMap<Number, Vec<(u32, u32)>>,
}

impl Heard {
    fn hear(&mut self, notice: Notice) -> Result<(), Broken> {
        match notice {
            Notice::Confirmed { event, was } => {
                if event.version.get() != self.confirmed + 1 {
                    return broken("told: a version is missing, or told twice");
                }
                self.confirmed += 1;
                let id = id_of(&event.event);
                let place = self.pending.iter().find_map(|(batch, events)| {
                    let (index, _) = events.iter().find(|(_, other)| *other == id)?;
                    Some(EventPlace::Pending(*batch, *index))
                });
                if was != place {
                    return broken("told: an event was somewhere else before it was confirmed");
                }
                if let Some(EventPlace::Pending(batch, index)) = was {
                    self.pending.entry(batch).or_default().retain(|(other, _)| *other != index);
                    self.pending.retain(|_, events| !events.is_empty());
                }
            }
            Notice::Pending(pending) => {
                self.pending.entry(pending.batch).or_default().push((pending.index, id_of(&pending.event)));
            }
            Notice::Rejected { batch, .. } | Notice::Dropped { batch } | Notice::Replaced { batch } => {
                if self.pending.remove(&batch).is_none() {
                    return broken("told: something of a batch that was not told");
                }
            }
            _ => return broken("told: what nobody knows"),
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) question: Question,
    known: Rc<HashSet<u32>>,
    top: i64,
    exists: bool,
}

/// A batch on its way to the disk.
struct Begun {
    record: BatchRecord,
    kind: &'static str,
}

#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) number: usize,
    // On the disk.
    journal: Vec<Record>,
    generation: u32,
    pub(crate) confirmed: BTreeMap<u32, Confirmed>,
    // In memory.
    pub(crate) machine: Machine,
    pub(crate) life: u64,
    pub(crate) has_diverged: bool,
    tokens: Vec<Token>,
    pub(crate) look: Option<Look>,
    listener: Listener,
    heard: Heard,
    // For the invariants.
    pub(crate) acked: BTreeMap<Number, Vec<Event>>,
    ghosts: HashMap<Number, Ghost>,
    contents: HashMap<u32, Vec<u8>>,
    shown: HashSet<Number>,
    deleted: HashSet<Number>,
    was_replaced: HashSet<Number>,
    /// The outcomes that rejected batches.
    rejected_by: HashMap<Number, Number>,
    pub(crate) skips: bool,
    skew: i64,
}

impl Replica {
    pub(crate) fn new(number: usize, shared: &mut Shared) -> Self {
        let machine = Machine::restore([], Place::START);
        Replica {
            number,
            journal: Vec::new(),
            generation: 1,
            confirmed: BTreeMap::from([(1, Confirmed::new())]),
            machine,
            life: 1,
            has_diverged: false,
            tokens: Vec::new(),
            look: None,
            listener: Listener::new(Version::ZERO),
            heard: Heard::default(),
            acked: BTreeMap::new(),
            ghosts: HashMap::new(),
            contents: HashMap::new(),
            shown: HashSet::new(),
            deleted: HashSet::new(),
            was_replaced: HashSet::new(),
            rejected_by: HashMap::new(),
            skips: shared.random.f64() < 0.3,
            skew: [0, 0, -40, 40][shared.random.usize(..4)],
        }
    }

    /// A copy of its directory.
    pub(crate) fn copied(&self, number: usize, shared: &mut Shared) -> Result<Self, Broken> {
        let mut copy = Replica { number, ..self.clone() };
        copy.skips = shared.random.f64() < 0.3;
        copy.restart()?;
        Ok(copy)
    }

    /// Whether a batch was ever rejected.
    pub(crate) fn was_rejected(&self, number: Number) -> bool {
        self.rejected_by.contains_key(&number)
    }

    /// Whether the events of a batch were replaced by others.
    pub(crate) fn was_replaced(&self, number: Number) -> bool {
        self.was_replaced.contains(&number)
    }

    pub(crate) fn conf(&self) -> &Confirmed {
        &self.confirmed[&self.generation]
    }

    /// The process begins anew with what is on the disk.
    pub(crate) fn restart(&mut self) -> Result<(), Broken> {
        let before = (self.generation, self.machine.generation(), self.machine.published());
        // What is on the disk are bytes.
        for record in &mut self.journal {
            let bytes = postcard::to_stdvec(record).expect("it can be written");
            let read: Record = postcard::from_bytes(&bytes).expect("it can be read");
            if read != *record {
                return broken("disk: a record is another one when it is read");
            }
            *record = read;
        }
        self.generation = self
            .journal
            .iter()
            .find_map(|record| match record {
                Record::Begin(begin) => Some(begin.generation),
                _ => None,
            })
            .unwrap_or(1);
        let Some(conf) = self.confirmed.get(&self.generation) else {
            return broken("disk: the confirmed events are gone");
        };
        // A copy that did not become the one that counts.
        let mut machine = Machine::restore(self.journal.iter().cloned(), conf.end());
        let wanted = machine.wanted();
        for id in &wanted.ids {
            if let Some(event) = conf.get(id) {
                machine.found(event);
            }
        }
        if let Some(since) = wanted.since {
            conf.events.iter().filter(|event| event.version > since).for_each(|event| machine.observed(event));
        }
        for aggregate_id in &wanted.aggregates {
            let count = conf.events.iter().filter(|event| event.event.aggregate_id() == aggregate_id).count();
            machine.counted(aggregate_id, Revision::new(count as u64));
        }
        machine.settle();
        self.machine = machine;
        let generation = self.generation;
        self.confirmed.retain(|other, _| *other <= generation);
        self.life += 1;
        (self.has_diverged, self.look) = (false, None);
        self.tokens.clear();
        if before.0 == self.generation && before.1 == self.generation && self.machine.published() < before.2 {
            return broken("view: what was shown is gone after a restart");
        }
        self.subscribe();
        Ok(())
    }

    /// Somebody begins to listen.
    fn subscribe(&mut self) {
        let since = self.machine.published().get() / 2;
        self.listener = Listener::new(Version::new(since));
        self.heard = Heard { confirmed: since, ..Heard::default() };
    }

    /// Tells whoever listens so many things. Returns whether all is told.
    fn tell(&mut self, most: usize) -> Result<bool, Broken> {
        for _ in 0..most {
            if !self.listener.look(&self.machine) {
                return Ok(true);
            }
            let notices = match self.listener.wanted() {
                Some((since, until)) => {
                    let until = until.min(Version::new(since.get() + 2));
                    let events = self.conf().events[since.get() as usize..until.get() as usize].to_vec();
                    self.listener.confirmed(events, until)
                }
                None => self.listener.end(),
            };
            for notice in notices {
                let is_true = match &notice {
                    Notice::Rejected { batch, .. } => self.rejected_by.contains_key(batch),
                    Notice::Dropped { batch } => self.deleted.contains(batch),
                    Notice::Replaced { batch } => {
                        // It may be gone since.
                        let was_replaced = self.was_replaced.contains(batch) || self.deleted.contains(batch);
                        was_replaced || self.machine.events(*batch).is_some()
                    }
                    _ => true,
                };
                if !is_true {
                    return broken("told: a batch is gone that was neither rejected nor dropped");
                }
                self.heard.hear(notice)?;
            }
        }
        Ok(false)
    }

    /// A durable write, which the process may not survive.
    fn write(&mut self, shared: &mut Shared, chance: f64, work: impl FnOnce(&mut Self) -> Result<(), Broken>) -> Step {
        if shared.crashes && shared.random.f64() < chance {
            return Err(Ended::Crash);
        }
        work(self)?;
        if shared.crashes && shared.random.f64() < chance {
            return Err(Ended::Crash);
        }
        Ok(())
    }

    fn log(&mut self, shared: &mut Shared, records: Vec<Record>) -> Step {
        self.write(shared, 0.03, |replica| {
            replica.journal.extend(records);
            Ok(())
        })
    }

    /// What is shown: confirmed events, then own ones.
    pub(crate) fn view(&self) -> Vec<Event> {
        let published = self.machine.published().get() as usize;
        let confirmed = self.conf().events[..published].iter().map(|event| event.event.clone());
        let pending = self.machine.pending();
        confirmed.chain(pending.into_iter().flat_map(|batch| batch.events).map(|(_, event)| event.clone())).collect()
    }

    fn look_around(&mut self) {
        let pending = self.machine.pending();
        self.shown.extend(pending.into_iter().map(|batch| batch.number));
    }

    // The user.

    pub(crate) fn load(&mut self, shared: &mut Shared) {
        let aggregate = shared.random.u8(..shared.aggregates);
        let view = self.view();
        let of_it = || view.iter().filter(|event| aggregate_of(event) == aggregate);
        self.tokens.push(Token {
            aggregate,
            basis: self.machine.seen(),
            ids: of_it().map(key_of).collect(),
            all: view.iter().map(key_of).collect(),
            top: of_it().map(time_of).max().unwrap_or_default(),
        });
    }

    fn facts(&self, events: &[Event], scope: Option<&Scope>, token: &Token) -> Facts {
        let conf = self.conf();
        let is_in = |event: &Event| match scope {
            Some(Scope::Aggregate(aggregate_id)) => event.aggregate_id() == aggregate_id,
            Some(Scope::Store) => true,
            None => false,
        };
        let all = || conf.events.iter().filter(|event| is_in(&event.event));
        let published = self.machine.published();
        let is_unseen = match Rule::Basis.is_kept() {
            true => all().any(|event| {
                event.version <= published && !self.machine.is_seen(event.version, event.event.id(), token.basis)
            }),
            // How much there is.
            false => {
                let then = if scope == Some(&Scope::Store) { token.all.len() } else { token.ids.len() };
                self.view().iter().filter(|event| is_in(event)).count() != then
            }
        };
        Facts {
            found: events.iter().map(|event| conf.get(event.id()).cloned()).collect(),
            count: all().count() as u64,
            staged: all()
                .filter(|event| event.version > published)
                .map(|event| (event.version, event.event.id().to_owned()))
                .collect(),
            is_unseen,
        }
    }

    /// Appends one batch, or several that are one write; sometimes there is no room for them.
    pub(crate) fn append(&mut self, shared: &mut Shared) -> Step {
        let count = if shared.random.f64() < 0.2 { shared.random.usize(2..4) } else { 1 };
        let mut begun = Vec::new();
        for _ in 0..count {
            begun.extend(self.begin(shared)?);
        }
        if begun.is_empty() {
            return Ok(());
        }
        // Meanwhile messages are sent.
        if Rule::DurableBeforeShown.is_kept() {
            let sent = self.machine.to_send(self.skips, 8, 1 << 20);
            if sent.iter().any(|(number, _)| begun.iter().any(|begun: &Begun| begun.record.number == *number)) {
                return Err(Broken("append: sent before it is durable".to_owned()).into());
            }
        }
        if shared.crashes && shared.random.f64() < 0.05 {
            let numbers: Vec<_> = begun.iter().rev().map(|begun| begun.record.number).collect();
            self.machine.withdraw(&numbers);
            numbers.iter().for_each(|number| {
                self.ghosts.remove(number);
                self.shown.remove(number);
            });
            shared.say(|| format!("replica {} has no room for {numbers:?}", self.number));
            return Ok(());
        }
        self.write(shared, 0.03, |replica| {
            for Begun { record, .. } in &begun {
                replica.journal.push(Record::Batch(record.clone()));
                replica.acked.insert(record.number, record.events.clone());
            }
            Ok(())
        })?;
        self.machine.durable();
        for Begun { record, kind } in begun {
            shared.say(|| {
                let what: Vec<_> = record.events.iter().map(|event| (id_of(event), aggregate_of(event))).collect();
                format!("replica {} appends batch {} {what:?} if {kind}", self.number, record.number)
            });
            shared.batches += 1;
        }
        Ok(())
    }

    fn begin(&mut self, shared: &mut Shared) -> Step<Option<Begun>> {
        if self.tokens.is_empty() {
            self.load(shared);
        }
        let token = self.tokens[shared.random.usize(..self.tokens.len())].clone();
        let keep = self.tokens.len().saturating_sub(6);
        self.tokens.drain(..keep);
        let aggregate = token.aggregate;
        let kind = if aggregate == 0 { "rev" } else { shared.kinds[shared.random.usize(..shared.kinds.len())] };
        let mut clock = shared.time + self.skew;
        if Rule::TimeAfterSeen.is_kept() {
            clock = clock.max(token.top + 1);
        }
        let count = if aggregate == 0 { 1 } else { [1, 1, 2, 3][shared.random.usize(..4)] };
        let mut events: Vec<_> = (0..count).map(|_| shared.event(aggregate, clock)).collect();
        if matches!(kind, "any" | "latest") && shared.random.f64() < 0.3 {
            let other = shared.random.u8(1..4);
            events.push(shared.event(other, clock));
        }
        let chance = shared.random.f64();
        if aggregate > 0 && chance < 0.1 {
            // A key that every replica may use, with one of two contents.
            let key = shared.random.u32(1..5);
            if 1 + (key % 3) as u8 == aggregate {
                events[0] = event_of(key, aggregate, shared.random.u32(..2), 0);
            }
        } else if aggregate > 0 && chance < 0.25 {
            // An event of an earlier batch again, with others around it.
            let earlier: Vec<_> =
                self.acked.values().flatten().filter(|event| aggregate_of(event) == aggregate).collect();
            if !earlier.is_empty() {
                events[0] = earlier[shared.random.usize(..earlier.len())].clone();
            }
        }
        let scope = match kind {
            "rev" | "exists" => Some(Scope::Aggregate(format!("a{aggregate}"))),
            "latest" => Some(Scope::Store),
            _ => None,
        };
        let expectation = match (kind, &scope) {
            ("rev" | "latest", Some(scope)) => Expectation::Basis(scope.clone(), token.basis),
            ("exists", _) => Expectation::Plain(Expected::Exists),
            _ => Expectation::Plain(Expected::Any),
        };
        let facts = self.facts(&events, scope.as_ref(), &token);
        let Ok(Proposed::New(record, _)) = self.machine.propose(events, &expectation, &facts) else { return Ok(None) };
        // What is there now is what was seen.
        let view = self.view();
        let now =
            |is_in: &dyn Fn(&Event) -> bool| view.iter().filter(|event| is_in(event)).map(key_of).collect::<Vec<_>>();
        let ids = now(&|event| aggregate_of(event) == aggregate);
        if Rule::Basis.is_kept()
            && (kind == "rev" && ids != token.ids || kind == "latest" && now(&|_| true) != token.all)
        {
            // The order of pending and foreign events may change, and what is there may not.
            let set = |ids: &[u32]| ids.iter().copied().collect::<HashSet<_>>();
            let is_same =
                if kind == "rev" { set(&ids) == set(&token.ids) } else { set(&now(&|_| true)) == set(&token.all) };
            if !is_same {
                return Err(Broken("append: accepted although something was unseen".to_owned()).into());
            }
        }
        let of_record: HashSet<u8> = record.events.iter().map(aggregate_of).collect();
        let pending = self.machine.pending();
        let own = pending
            .iter()
            .flat_map(|batch| &batch.events)
            .filter(|(_, event)| of_record.contains(&aggregate_of(event)));
        let known: HashSet<u32> = match kind {
            "rev" => token.ids.iter().copied().collect(),
            "latest" => token.all.iter().copied().collect(),
            _ => own.map(|(_, event)| key_of(event)).collect(),
        };
        let number = record.number;
        self.machine.appended(record.clone(), &facts);
        self.ghosts
            .insert(number, Ghost { kind, aggregate: (kind != "latest").then_some(aggregate), known: Rc::new(known) });
        self.look_around();
        Ok(Some(Begun { record, kind }))
    }

    // Syncing, one message at a time.

    pub(crate) fn pull(&mut self, shared: &mut Shared) {
        let limit = [1, 2, 3, 8][shared.random.usize(..4)];
        shared.send(Message::Pull { from: self.number, life: self.life, since: self.machine.end(), limit });
    }

    pub(crate) fn push(&mut self, shared: &mut Shared) {
        if self.machine.is_staging() {
            return self.pull(shared);
        }
        let batches = self.machine.to_send(self.skips, 8, 1 << 20);
        if batches.is_empty() {
            return;
        }
        shared.say(|| {
            let what: Vec<_> =
                batches.iter().map(|(number, batch)| format!("{number} if {}", batch.expected)).collect();
            format!("replica {} pushes {what:?} at {}", self.number, self.machine.end().version)
        });
        let with_ghosts = batches.into_iter().map(|(number, batch)| (number, batch, self.ghosts[&number].clone()));
        let batches = with_ghosts.collect();
        shared.send(Message::Push { from: self.number, life: self.life, at: self.machine.end(), batches });
    }

    pub(crate) fn take(&mut self, message: Message, shared: &mut Shared) -> Step {
        match message {
            Message::Diverged { life, .. } if life == self.life => self.has_diverged = true,
            Message::Page { life, since, events, head, .. } if life == self.life => {
                let mut writes = self.machine.page(since, events, head);
                if !Rule::PageFits.is_kept() {
                    // Whatever it is, it is put behind what is there.
                    for write in &mut writes {
                        if let Write::Confirmed(events) = write {
                            events.retain(|event| self.conf().get(event.event.id()).is_none());
                        }
                    }
                }
                for write in writes {
                    match write {
                        Write::Journal(record) => {
                            self.log(shared, vec![record.clone()])?;
                            if let Record::Shown(until) = record {
                                self.machine.shown(until);
                            }
                        }
                        Write::Confirmed(events) => {
                            let generation = self.generation;
                            self.write(shared, 0.03, |replica| {
                                let conf = replica.confirmed.get_mut(&generation).expect("it is there");
                                events.iter().try_for_each(|event| conf.push(event.clone()))
                            })?;
                            let end = self.conf().end();
                            self.machine.staged(&events, end);
                        }
                    }
                }
                shared.say(|| format!("replica {} shows up to {}", self.number, self.machine.published()));
            }
            Message::Answer { life, stored, refused, .. } if life == self.life => {
                self.machine.answered(&stored, refused);
            }
            _ => {}
        }
        Ok(())
    }

    // Decisions.

    /// The events that a batch stands on: those of the scope up to a version, and those of own batches before it.
    fn stands_on(&self, batch: Number, ghost: &Ghost, until: u64) -> HashSet<u32> {
        let pending = self.machine.pending();
        let below = pending.iter().filter(|other| other.number < batch).flat_map(|other| &other.events);
        let of_batch: HashSet<u8> = self.machine.events(batch).into_iter().flatten().map(aggregate_of).collect();
        let is_in = |event: &Event| match (ghost.kind, ghost.aggregate) {
            ("rev", Some(aggregate)) => aggregate_of(event) == aggregate,
            ("latest", _) => true,
            _ => of_batch.contains(&aggregate_of(event)),
        };
        // Own events are known, wherever they were confirmed.
        let own = self.confirmed_own(batch);
        let confirmed = self.conf().events.iter();
        let confirmed = confirmed.filter(|event| event.version.get() <= until || own.contains(&key_of(&event.event)));
        let confirmed = confirmed.map(|event| &event.event);
        let is_conditional = matches!(ghost.kind, "rev" | "latest");
        let confirmed = confirmed.filter(|event| is_conditional && is_in(event)).map(key_of);
        confirmed.chain(below.map(|(_, event)| *event).filter(|event| is_in(event)).map(key_of)).collect()
    }

    pub(crate) fn show(&mut self) -> Result<Option<Look>, Broken> {
        let Some(question) = self.machine.question() else { return Ok(None) };
        let ghost = self.ghosts[&question.batch].clone();
        if question.why == Why::Conflict && matches!(ghost.kind, "rev" | "latest") && Rule::DecideFromPull.is_kept() {
            let published = self.machine.published().get() as usize;
            let statuses: HashMap<Number, Status> = self.machine.review().into_iter().collect();
            let open = |number: &Number| !matches!(statuses.get(number), None | Some(Status::Rejected(_)));
            let own: HashSet<u32> = (self.acked.keys())
                .filter(|number| **number <= question.batch && open(number))
                .flat_map(|number| self.machine.events(*number).into_iter().flatten())
                .map(key_of)
                .collect();
            let confirmed_own: HashSet<u32> = self.confirmed_own(question.batch);
            let is_unknown = |event: &RecordedEvent| {
                let id = key_of(&event.event);
                ghost.aggregate.is_none_or(|aggregate| aggregate_of(&event.event) == aggregate)
                    && !ghost.known.contains(&id)
                    && !own.contains(&id)
                    && !confirmed_own.contains(&id)
            };
            if !self.conf().events[..published].iter().any(is_unknown) {
                return broken("resolver: asked although nothing is unknown");
            }
        }
        let known = self.stands_on(question.batch, &ghost, question.seen.version);
        let pending = self.machine.pending();
        let below = pending.iter().filter(|other| other.number < question.batch);
        let below = below.flat_map(|other| &other.events).map(|(_, event)| (*event).clone());
        let published = self.machine.published().get() as usize;
        let register = self.conf().events[..published].iter().map(|event| event.event.clone()).chain(below);
        let top = register.filter(|event| aggregate_of(event) == 0).map(|event| time_of(&event)).max();
        let exists = match &question.condition {
            Condition::Exists(id) | Condition::Aggregate(id) => {
                self.conf().events[..published].iter().any(|event| event.event.aggregate_id() == id)
                    || !known.is_empty()
            }
            _ => true,
        };
        Ok(Some(Look { question, known: Rc::new(known), top: top.unwrap_or_default(), exists }))
    }

    /// Own events of earlier batches that are confirmed.
    fn confirmed_own(&self, before: Number) -> HashSet<u32> {
        let basis = Seen { version: 0, number: before };
        let is_own = |event: &&RecordedEvent| self.machine.is_seen(event.version, event.event.id(), basis);
        self.conf().events.iter().filter(is_own).map(|event| key_of(&event.event)).collect()
    }

    fn decision(&self, look: &Look, shared: &mut Shared) -> Decision {
        let Question { events, why, .. } = &look.question;
        let policies: &[&str] =
            if shared.policy.is_empty() { &["any", "any", "rep", "rej", "drop"] } else { shared.policy };
        let mut kind = policies[shared.random.usize(..policies.len())];
        if aggregate_of(&events[0]) == 0 {
            kind = if time_of(&events[0]) > look.top { "any" } else { "rej" };
            if *why == Why::Duplicate {
                kind = "rej";
            }
        }
        if matches!(look.question.condition, Condition::Exists(_)) && !look.exists {
            kind = "rej";
        }
        if *why == Why::Duplicate && kind == "any" && Rule::DuplicateNoAnyway.is_kept() {
            kind = "rep";
        }
        if matches!(why, Why::Refused(_)) {
            kind = if events.len() > 1 && shared.random.bool() { "shorter" } else { "rej" };
        }
        match kind {
            "any" => Decision::Anyway,
            "rej" => Decision::Reject("it was decided so".to_owned()),
            "drop" => Decision::Drop,
            _ => {
                let count = if kind == "shorter" { 1 } else { events.len() };
                let replace = |event: &Event| {
                    let fresh = shared.event(aggregate_of(event), time_of(event));
                    if Rule::FreshIds.is_kept() {
                        return fresh;
                    }
                    event_of(id_of(event), aggregate_of(event), id_of(&fresh), time_of(event))
                };
                Decision::Replace(events.iter().take(count).map(replace).collect())
            }
        }
    }

    pub(crate) fn answer(&mut self, look: Look, shared: &mut Shared) -> Step {
        let decision = self.decision(&look, shared);
        let batch = look.question.batch;
        // Sometimes those on top are answered for as well.
        let mut on_top = Vec::new();
        if shared.random.f64() < 0.3 {
            for &number in &look.question.on_top {
                let Some(events) = self.machine.events(number) else { continue };
                if events.iter().any(|event| aggregate_of(event) == 0) || self.ghosts[&number].kind == "exists" {
                    break;
                }
                let decision = match shared.random.u8(..4) {
                    0 => Decision::Anyway,
                    1 => Decision::Reject("with what it stands on".to_owned()),
                    2 => Decision::Drop,
                    _ => Decision::Replace(
                        events.to_vec().iter().map(|event| shared.event(aggregate_of(event), time_of(event))).collect(),
                    ),
                };
                on_top.push((number, decision));
            }
        }
        let conf = self.conf();
        let outcomes = self.machine.answer(&look.question, decision, on_top, |id| conf.get(id).is_some());
        let Ok(outcomes) = outcomes else { return Ok(()) };
        shared.say(|| {
            let what: Vec<_> =
                outcomes.iter().map(|outcome| format!("{:?} for {}", outcome.decision, outcome.batch)).collect();
            format!(
                "replica {} ({:?}), shown up to {}: {what:?}",
                self.number, look.question.why, look.question.seen.version
            )
        });
        let first = outcomes[0].clone();
        if let (Decision::Replace(events), false) = (&first.decision, Rule::OutcomeFirst.is_kept()) {
            let expected = match &look.question.condition {
                Condition::Aggregate(id) => {
                    let count = self.conf().events.iter().filter(|event| event.event.aggregate_id() == id).count();
                    Expected::Revision(Revision::new(count as u64))
                }
                _ => Expected::Any,
            };
            let ghost = Ghost { known: look.known.clone(), ..self.ghosts[&batch].clone() };
            shared.sent_early.extend(events.iter().map(|event| event.id().to_owned()));
            let batches = vec![(batch, Batch::new(events.clone()).expected(expected), ghost)];
            shared.send(Message::Push { from: self.number, life: self.life, at: self.machine.end(), batches });
        }
        // What each decision saw, as of what it leaves.
        let mut after = self.clone();
        after.machine.decided(outcomes.clone());
        let mut ghosts = Vec::new();
        for outcome in &outcomes {
            let mut ghost = self.ghosts[&outcome.batch].clone();
            let was = ghost.kind;
            if was == "exists" && !matches!(outcome.decision, Decision::Reject(_) | Decision::Drop) {
                ghost.kind = "rev";
            }
            let known = match outcome.batch == batch && ghost.kind == was {
                true => look.known.clone(), // what was shown
                false => Rc::new(after.stands_on(outcome.batch, &ghost, outcome.seen.version)),
            };
            ghosts.push((outcome.batch, Ghost { known, ..ghost }));
        }
        let of_these: Vec<String> = (outcomes.iter())
            .flat_map(|outcome| match &outcome.decision {
                Decision::Replace(events) => events.as_slice(),
                _ => &[],
            })
            .map(|event| event.id().to_owned())
            .collect();
        let records: Vec<_> = outcomes.iter().cloned().map(Record::Outcome).collect();
        let mut is_written = false;
        let written = self.write(shared, 0.03, |replica| {
            is_written = true;
            for outcome in &outcomes {
                match outcome.decision {
                    Decision::Replace(_) => _ = replica.was_replaced.insert(outcome.batch),
                    Decision::Reject(_) => _ = replica.rejected_by.insert(outcome.batch, outcome.number),
                    Decision::Drop => {
                        replica.acked.remove(&outcome.batch);
                        replica.deleted.insert(outcome.batch);
                    }
                    Decision::Anyway => {}
                }
            }
            replica.journal.extend(records);
            replica.ghosts.extend(ghosts);
            Ok(())
        });
        if is_written {
            of_these.iter().for_each(|id| {
                shared.sent_early.remove(id);
            });
        }
        written?;
        self.machine.decided(outcomes);
        Ok(())
    }

    pub(crate) fn delete(&mut self, shared: &mut Shared) -> Step {
        let Some(number) = self.machine.rejected().next().map(|(number, ..)| number) else { return Ok(()) };
        self.write(shared, 0.03, |replica| {
            replica.journal.push(Record::Deleted(number));
            replica.acked.remove(&number);
            replica.deleted.insert(number);
            Ok(())
        })?;
        self.machine.deleted(number);
        Ok(())
    }

    pub(crate) fn compact(&mut self, shared: &mut Shared) -> Step {
        let records = self.machine.compacted();
        self.write(shared, 0.03, |replica| {
            replica.journal = records;
            Ok(())
        })
    }

    /// The way out when the hub has another history.
    pub(crate) fn recover(&mut self, shared: &mut Shared) -> Step {
        let hub = shared.hub.clone();
        let common = {
            let log = hub.log();
            let conf = self.conf();
            let mut common = conf.events.len().min(log.synced);
            while conf.digests[common] != log.digests[common] {
                common -= 1;
            }
            common
        };
        self.has_diverged = false;
        if common == self.conf().events.len() {
            return Ok(());
        }
        if !shared.restores {
            return Err(Broken("confirmed: what was shown is gone from a hub that was not restored".to_owned()).into());
        }
        shared.say(|| {
            format!("replica {} recovers: common prefix {common} of {}", self.number, self.conf().events.len())
        });
        let version = Version::new(common as u64);
        let mut recovery = self.machine.recovery(version);
        for wanted in recovery.wanted() {
            recovery.take(&self.conf().events[wanted.get() as usize - 1]);
        }
        for event in &self.conf().events[common..] {
            recovery.take(event);
        }
        let Ok(journal) = recovery.finish() else {
            return Err(Broken("recovery: the content of an own batch is nowhere".to_owned()).into());
        };
        let published = self.machine.published().get() as usize;
        for event in &self.conf().events[common.min(published)..published] {
            shared.must_keep.insert((self.number, event.event.id().to_owned()));
        }
        let (old, new) = (self.generation, self.generation + 1);
        let copy = self.conf().prefix(common);
        let make_copy = |replica: &mut Replica| {
            replica.confirmed.insert(new, copy);
            Ok(())
        };
        // Up to the head, by pages.
        let behind: Vec<RecordedEvent> = {
            let log = hub.log();
            let end = if Rule::HeadFirst.is_kept() { log.synced } else { common };
            log.events[common..end].to_vec()
        };
        let complete_copy = |replica: &mut Replica, shared: &mut Shared| -> Step {
            for page in behind.chunks(3) {
                replica.write(shared, 0.05, |replica| {
                    let copy = replica.confirmed.get_mut(&new).expect("it was begun");
                    page.iter().try_for_each(|event| copy.push(event.clone()))
                })?;
            }
            Ok(())
        };
        let replace_journal = |replica: &mut Replica| {
            replica.journal = journal;
            Ok(())
        };
        if Rule::AsideFirst.is_kept() {
            self.write(shared, 0.15, make_copy)?;
            complete_copy(self, shared)?;
            self.write(shared, 0.15, replace_journal)?;
        } else {
            self.write(shared, 0.15, |replica| {
                let cut = replica.confirmed[&old].prefix(common);
                replica.confirmed.insert(old, cut);
                Ok(())
            })?;
            self.write(shared, 0.15, make_copy)?;
            complete_copy(self, shared)?;
            self.write(shared, 0.15, replace_journal)?;
        }
        self.restart()?;
        Ok(())
    }

    // Invariants that hold at every moment.

    pub(crate) fn check(&mut self, shared: &Shared) -> Result<(), Broken> {
        self.look_around();
        let view = self.view();
        for event in &view {
            let id = id_of(event);
            if id > 100 && self.contents.entry(id).or_insert_with(|| event.data().to_vec()) != event.data() {
                return broken("view: an id changed its content");
            }
        }
        let published = self.machine.published().get() as usize;
        if published > 0 && !shared.hub.log().ends.contains(&self.conf().digests[published]) {
            return broken("view: a foreign batch is shown in part");
        }
        let shown: HashSet<&str> = view.iter().map(Event::id).collect();
        if shown.len() != view.len() {
            return broken("view: an event is shown twice");
        }
        let statuses: BTreeMap<Number, Status> = self.machine.review().into_iter().collect();
        let conf = self.conf();
        let is_confirmed = |event: &Event| {
            conf.get(event.id()).is_some_and(|found| found.event == *event && found.version.get() as usize <= published)
        };
        for (number, events) in &self.acked {
            match statuses.get(number) {
                Some(Status::Rejected(_)) => {
                    // Of one that was replaced, the events that count are others.
                    if events.iter().all(is_confirmed) && !self.was_replaced.contains(number) {
                        return broken("rejected, and confirmed as well");
                    }
                }
                Some(_) => {
                    let is_there = |event: &Event| shown.contains(event.id());
                    if !self.machine.events(*number).into_iter().flatten().all(is_there) {
                        return broken("view: an acknowledged batch is neither shown nor rejected");
                    }
                }
                None => {
                    let replaced = self.was_replaced.contains(number);
                    let is_there = events.iter().all(|event| shown.contains(event.id()));
                    if !is_there && !replaced && !self.deleted.contains(number) {
                        return broken("view: an acknowledged batch is neither shown nor rejected");
                    }
                }
            }
        }
        for number in &self.shown {
            if !self.acked.contains_key(number) && !self.deleted.contains(number) && !statuses.contains_key(number) {
                return broken("view: a batch was shown and is gone");
            }
        }
        let mut rejected: HashMap<u32, Number> = HashMap::new();
        for (number, events, _) in self.machine.rejected() {
            rejected.extend(events.iter().map(|event| (id_of(event), self.rejected_by[&number])));
        }
        for (number, status) in &statuses {
            let first = self.machine.first_events(*number).unwrap_or_default();
            let is_open = !matches!(status, Status::Rejected(_));
            if is_open && first.iter().any(|event| rejected.get(&id_of(event)).is_some_and(|by| by < number)) {
                return broken("rejected, and pending as well");
            }
        }
        // Whoever listens knows what is there, as soon as all is told; sometimes that takes a while.
        let most = if shared.crashes { [0, 1, 2, usize::MAX][shared.time as usize % 4] } else { usize::MAX };
        if self.tell(most)? {
            let mut pending = BTreeMap::<Number, Vec<(u32, u32)>>::new();
            for batch in self.machine.pending().iter().filter(|batch| !batch.events.is_empty()) {
                pending.insert(batch.number, batch.events.iter().map(|(at, event)| (*at, id_of(event))).collect());
            }
            if self.heard.pending != pending || self.heard.confirmed != published as u64 {
                return broken("told: a subscriber knows something else than is there");
            }
        }
        // A process that begins now comes to the same.
        if shared.is_thorough {
            let mut again = self.clone();
            again.restart()?;
            let same = again.machine.review() == self.machine.review()
                && again.machine.published() == self.machine.published()
                && again.view().iter().map(id_of).eq(self.view().iter().map(id_of));
            if !same
                && self.machine.review().iter().all(|(_, status)| !matches!(status, Status::Waiting(Why::Refused(_))))
            {
                return broken("restart: the journal leads to another state");
            }
        }
        Ok(())
    }
}

//! A schedule: a hub, replicas, and a network that drops, repeats, delays and reorders what they say.

use std::collections::HashSet;

use eventstore_api::{Batch, Context, Error, Event, EventStore, PageSize, Place, RecordedEvent, Version};
use futures_util::FutureExt as _;
use synckit::core::{Number, Refusal, Status};

use crate::hub::Hub;
use crate::replica::{Broken, Ended, Ghost, Replica, aggregate_of, broken, id_of, key_of, time_of};

/// What is under way.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Pull { from: usize, life: u64, since: Place, limit: usize },
    Push { from: usize, life: u64, at: Place, batches: Vec<(Number, Batch, Ghost)> },
    Page { to: usize, life: u64, since: Place, events: Vec<RecordedEvent>, head: Version },
    Answer { to: usize, life: u64, stored: Vec<Number>, refused: Option<(Number, Refusal)> },
    Diverged { to: usize, life: u64 },
}

/// What all replicas share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) random: fastrand::Rng,
    pub(crate) hub: Hub,
    network: Vec<Message>,
    ids: u32,
    pub(crate) time: i64,
    pub(crate) crashes: bool,
    pub(crate) restores: bool,
    pub(crate) aggregates: u8,
    pub(crate) kinds: &'static [&'static str],
    pub(crate) policy: &'static [&'static str],
    pub batches: u64,
    pub(crate) must_keep: HashSet<(usize, String)>,
    pub(crate) sent_early: HashSet<String>,
    pub(crate) is_thorough: bool,
    story: bool,
}

pub(crate) fn event_of(id: u32, aggregate: u8, content: u32, time: i64) -> Event {
    let event = Event::builder("T", format!("a{aggregate}")).id(format!("e{id}")).data(format!("{content}:{time}"));
    event.build().expect("it keeps the limits")
}

impl Shared {
    pub(crate) fn event(&mut self, aggregate: u8, time: i64) -> Event {
        self.ids += 1;
        event_of(self.ids, aggregate, self.ids, time)
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.network.push(message);
    }

    #[allow(clippy::print_stdout, reason = "the story of a schedule")]
    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.story {
            println!("  {}", what());
        }
    }
}

const STEPS: &[(&str, f64)] = &[
    ("net", 40.0),
    ("append", 11.0),
    ("load", 7.0),
    ("pull", 14.0),
    ("push", 9.0),
    ("show", 6.0),
    ("answer", 5.0),
    ("recover", 3.0),
    ("compact", 1.5),
    ("delete", 2.5),
    ("direct", 2.5),
    ("hub crash", 1.0),
    ("backup", 1.0),
    ("restore", 0.6),
    ("kill", 0.6),
    ("copy", 1.2),
];

/// One schedule.
#[derive(Debug)]
pub(crate) struct World {
    shared: Shared,
    replicas: Vec<Replica>,
    steps: usize,
    has_copies: bool,
    restores_any: bool,
    is_limited: bool,
    was_restored: bool,
}

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Healed {
    /// How many batches were appended.
    pub batches: u64,
    /// After how many rounds of syncing without disturbance all replicas had the digest of the hub.
    pub rounds: u64,
}

impl World {
    pub(crate) fn new(seed: u64, steps: usize, story: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let is_limited = random.f64() < 0.1;
        let hub = Hub::new(if is_limited { 2 } else { usize::MAX });
        let count = [2, 2, 3][random.usize(..3)];
        let kinds: [&'static [&'static str]; 4] = [
            &["rev"],
            &["any", "rev", "rev", "rev", "exists"],
            &["any", "exists", "exists", "rev"],
            &["rev", "rev", "latest", "any"],
        ];
        let policies: [&'static [&'static str]; 5] = [&[], &[], &["any"], &["rep"], &["rej", "rej", "drop"]];
        let restores_any = random.bool();
        let aggregates = [2, 2, 3, 4][random.usize(..4)];
        let (kinds, policy) = (kinds[random.usize(..4)], policies[random.usize(..5)]);
        let is_thorough = random.f64() < 0.1;
        let mut shared = Shared {
            random,
            hub,
            network: Vec::new(),
            ids: 100,
            time: 100,
            crashes: true,
            restores: false,
            aggregates,
            kinds,
            policy,
            batches: 0,
            must_keep: HashSet::new(),
            sent_early: HashSet::new(),
            is_thorough,
            story,
        };
        let replicas = (0..count).map(|number| Replica::new(number, &mut shared)).collect();
        World { shared, replicas, steps, has_copies: false, restores_any, is_limited, was_restored: false }
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// What may never happen.
    pub(crate) fn run(mut self) -> Result<Healed, Broken> {
        for _ in 0..self.steps {
            self.step()?;
        }
        self.shared.say(|| "-- messages flow again".to_owned());
        self.shared.crashes = false;
        while !self.shared.network.is_empty() {
            let at = self.shared.random.usize(..self.shared.network.len());
            self.deliver(at, false)?;
        }
        {
            let mut log = self.shared.hub.log();
            log.synced = log.events.len();
        }
        let rounds = self.heal()?;
        self.check_end()?;
        Ok(Healed { batches: self.shared.batches, rounds })
    }

    fn step(&mut self) -> Result<(), Broken> {
        self.shared.time += 1;
        let at = self.shared.random.usize(..self.replicas.len());
        let mut chance = self.shared.random.f64() * STEPS.iter().map(|(_, weight)| weight).sum::<f64>();
        let (kind, _) = STEPS
            .iter()
            .find(|(_, weight)| {
                chance -= weight;
                chance < 0.0
            })
            .unwrap_or(&STEPS[0]);
        let hub = self.shared.hub.clone();
        match *kind {
            "net" if !self.shared.network.is_empty() => {
                let chance = self.shared.random.f64();
                let at = if chance < 0.5 { self.shared.random.usize(..self.shared.network.len()) } else { 0 };
                if chance < 0.08 {
                    self.shared.network.swap_remove(at);
                } else {
                    self.deliver(at, chance < 0.16)?;
                }
            }
            "append" => self.on(at, Replica::append)?,
            "load" => self.replicas[at].load(&mut self.shared),
            "pull" => self.replicas[at].pull(&mut self.shared),
            "push" => self.replicas[at].push(&mut self.shared),
            "compact" => self.on(at, Replica::compact)?,
            "delete" => self.on(at, Replica::delete)?,
            "show" if self.replicas[at].look.is_none() => {
                self.replicas[at].look = self.replicas[at].show()?;
            }
            "answer" => {
                let look = match self.replicas[at].look.take() {
                    Some(look) => Some(look),
                    None => self.replicas[at].show()?,
                };
                if let Some(look) = look {
                    self.on(at, |replica, shared| replica.answer(look, shared))?;
                }
            }
            "recover" if self.replicas[at].has_diverged => self.on(at, Replica::recover)?,
            "direct" => {
                let aggregate = self.shared.random.u8(1..self.shared.aggregates.max(2));
                let count = [1, 2, 3][self.shared.random.usize(..3)].min(hub.log().limit);
                let time = self.shared.time;
                let mut events: Vec<_> = (0..count).map(|_| self.shared.event(aggregate, time)).collect();
                if self.shared.random.f64() < 0.2 {
                    // Somebody has some of what was lost, and appends it with something else.
                    let log = hub.log();
                    let lost = log.lost.iter().map(|lost| lost.event.clone());
                    let lost: Vec<_> = lost.take_while(|event| aggregate_of(event) != 0).take(log.limit - 1).collect();
                    let most = self.shared.random.usize(..=lost.len());
                    events.truncate(log.limit - most.min(log.limit - 1));
                    events.splice(..0, lost.into_iter().take(most));
                }
                let mut batch = Batch::new(events);
                if self.shared.random.f64() >= 0.6 {
                    batch = batch.durability(eventstore_api::Durability::Buffered);
                }
                let _ = now(hub.store_batch(&Context::background(), batch));
                self.shared.say(|| {
                    let log = hub.log();
                    format!("hub: direct, synced {} of {}", log.synced, log.events.len())
                });
            }
            "hub crash" => {
                let mut log = hub.log();
                let synced = log.synced;
                self.shared.say(|| format!("hub crashes, {} to {synced}", log.events.len()));
                log.cut(synced);
            }
            "backup" => {
                let mut log = hub.log();
                let synced = log.synced;
                log.copies.push(synced);
            }
            "restore" if self.restores_any => {
                let mut log = hub.log();
                let from = log.copies.len().saturating_sub(3);
                let len = log.copies[self.shared.random.usize(from..log.copies.len())];
                let synced = log.synced;
                log.cut(synced);
                let len = len.min(log.events.len());
                log.cut(len);
                log.synced = len;
                log.copies.retain(|copy| *copy <= len);
                self.shared.restores = true;
                self.was_restored = true;
                self.shared.say(|| format!("hub restored to {len}"));
            }
            "kill" => {
                self.shared.say(|| format!("replica {at} is killed"));
                self.replicas[at].restart()?;
                self.replicas[at].check(&self.shared)?;
            }
            "copy" if self.replicas.len() < 4 => {
                let number = self.replicas.len();
                let copy = self.replicas[at].copied(number, &mut self.shared)?;
                self.replicas.push(copy);
                self.has_copies = true;
                self.shared.say(|| format!("replica {at} is copied to {number}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn on(
        &mut self,
        at: usize,
        work: impl FnOnce(&mut Replica, &mut Shared) -> Result<(), Ended>,
    ) -> Result<(), Broken> {
        match work(&mut self.replicas[at], &mut self.shared) {
            Ok(()) => {}
            Err(Ended::Broken(broken)) => return Err(broken),
            Err(Ended::Crash) => {
                self.shared.say(|| format!("replica {at} crashes"));
                self.replicas[at].restart()?;
            }
        }
        self.replicas[at].check(&self.shared)
    }

    fn deliver(&mut self, at: usize, again: bool) -> Result<(), Broken> {
        let message = match again {
            true => self.shared.network[at].clone(),
            false => self.shared.network.remove(at),
        };
        match message {
            Message::Pull { .. } | Message::Push { .. } => {
                let answer = self.hub_takes(message)?;
                self.shared.send(answer);
                Ok(())
            }
            Message::Page { to, .. } | Message::Answer { to, .. } | Message::Diverged { to, .. } => {
                self.on(to, |replica, shared| replica.take(message, shared))
            }
        }
    }

    fn hub_takes(&mut self, message: Message) -> Result<Message, Broken> {
        let (hub, ctx) = (self.shared.hub.clone(), Context::background());
        match message {
            Message::Pull { from: to, life, since, limit } => {
                Ok(match now(hub.pull(&ctx, since, PageSize::new(limit, usize::MAX))) {
                    Ok(pulled) => Message::Page { to, life, since, events: pulled.events, head: pulled.head },
                    Err(_) => Message::Diverged { to, life },
                })
            }
            Message::Push { from: to, life, at, batches } => {
                let before = hub.log().events.len();
                let numbers: Vec<_> = batches.iter().map(|(number, ..)| *number).collect();
                let sent = batches.iter().map(|(_, batch, _)| batch.clone()).collect();
                let pushed = match now(hub.push(&ctx, at, sent)) {
                    Ok(pushed) => pushed,
                    Err(_) => return Ok(Message::Diverged { to, life }),
                };
                let log = hub.log();
                self.shared.say(|| {
                    let new: Vec<_> = log.events[before..].iter().map(|event| id_of(&event.event)).collect();
                    format!("hub: {new:?} of replica {to}, now {}", log.events.len())
                });
                check_accepted(&log.events, before, &batches)?;
                let refused = pushed.refused.map(|error| {
                    let refusal = match error {
                        Error::InvalidEvent { .. } => Refusal::ForEver(error.to_string()),
                        _ => Refusal::ForNow,
                    };
                    (numbers[pushed.stored.len().min(numbers.len() - 1)], refusal)
                });
                let stored = numbers.into_iter().take(pushed.stored.len()).collect();
                Ok(Message::Answer { to, life, stored, refused })
            }
            other => Ok(other),
        }
    }

    /// One round of syncing with nothing in the way.
    fn round(&mut self, at: usize) -> Result<(), Broken> {
        for _ in 0..200 {
            if self.replicas[at].has_diverged {
                self.on(at, Replica::recover)?;
            }
            let before = (self.replicas[at].machine.end(), self.replicas[at].machine.published());
            self.replicas[at].pull(&mut self.shared);
            self.flush()?;
            let machine = &self.replicas[at].machine;
            let is_level = machine.end() == self.shared.hub.log().end() && !machine.is_staging();
            let is_stuck = before == (machine.end(), machine.published());
            if !self.replicas[at].has_diverged && (is_level || is_stuck) {
                break;
            }
        }
        for _ in 0..20 {
            let Some(look) = self.replicas[at].show()? else { break };
            self.on(at, |replica, shared| replica.answer(look, shared))?;
        }
        self.replicas[at].push(&mut self.shared);
        self.flush()?;
        self.replicas[at].pull(&mut self.shared);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Broken> {
        while !self.shared.network.is_empty() {
            self.deliver(0, false)?;
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<u64, Broken> {
        const ROUNDS: u64 = 12;
        for round in 1..=ROUNDS {
            for at in 0..self.replicas.len() {
                self.round(at)?;
                self.replicas[at].check(&self.shared)?;
            }
            let end = self.shared.hub.log().end();
            let is_settled = |replica: &Replica| {
                let machine = &replica.machine;
                let is_open = |(_, status): &(Number, Status)| !matches!(status, Status::Rejected(_));
                machine.end() == end && !machine.is_staging() && !machine.review().iter().any(is_open)
            };
            if self.replicas.iter().all(is_settled) {
                return Ok(round);
            }
        }
        let end = self.shared.hub.log().end();
        if self.replicas.iter().any(|replica| replica.machine.end() != end) {
            return broken("end: a replica is not equal to the hub");
        }
        broken("end: batches wait forever")
    }

    fn check_end(&mut self) -> Result<(), Broken> {
        let log = self.shared.hub.log();
        for replica in &self.replicas {
            if replica.conf().events != log.events {
                return broken("end: a replica is not equal to the hub");
            }
            let rejected: HashSet<Number> = replica.machine.rejected().map(|(number, ..)| number).collect();
            for (number, events) in &replica.acked {
                let is_there = events.iter().all(|event| log.has(event.id()));
                if !is_there && !rejected.contains(number) && !replica.was_replaced(*number) {
                    return broken("end: an acknowledged batch is lost");
                }
            }
            for (_, id) in self.shared.must_keep.iter().filter(|(number, _)| *number == replica.number) {
                let is_aside =
                    replica.confirmed.values().any(|old| old.events.iter().any(|event| event.event.id() == id));
                if !is_aside && !log.has(id) {
                    return broken("end: what the hub lost was not kept aside");
                }
            }
            if !self.has_copies && !self.was_restored && !replica.skips && !self.is_limited {
                let at = |event: &Event| log.events.iter().position(|other| other.event.id() == event.id());
                let single = replica.acked.iter().filter(|(number, events)| {
                    events.len() == 1
                        && id_of(&events[0]) > 100
                        && !replica.was_replaced(**number)
                        && !replica.was_rejected(**number)
                });
                let places: Vec<_> = single.filter_map(|(_, events)| at(&events[0])).collect();
                if !places.is_sorted() {
                    return broken("end: own batches changed their order");
                }
            }
        }
        if self.shared.sent_early.iter().any(|id| log.has(id)) {
            return broken("end: an outcome is at the hub that its replica does not know");
        }
        Ok(())
    }
}

/// Whether what the hub has accepted was decided by somebody who knew what was there.
fn check_accepted(events: &[RecordedEvent], before: usize, batches: &[(Number, Batch, Ghost)]) -> Result<(), Broken> {
    let mut first = before;
    for (_, batch, ghost) in batches {
        let own: HashSet<u32> = batch.events.iter().map(key_of).collect();
        // What is new of it stands behind what is new of those before it.
        let new = (first..events.len()).take_while(|at| own.contains(&key_of(&events[*at].event)));
        let new: Vec<_> = new.collect();
        let earlier = &events[..first];
        first += new.len();
        if new.is_empty() {
            continue;
        }
        let is_in = |event: &Event| ghost.aggregate.is_none_or(|aggregate| aggregate_of(event) == aggregate);
        let there = || earlier.iter().map(|event| &event.event);
        match ghost.kind {
            "rev" | "latest" => {
                let there: HashSet<u32> =
                    there().filter(|event| is_in(event)).map(key_of).filter(|id| !own.contains(id)).collect();
                if there.iter().any(|id| !ghost.known.contains(id)) {
                    return broken("condition: accepted over an event its decision had not seen");
                }
                if ghost.known.iter().any(|id| !own.contains(id) && !there.contains(id)) {
                    return broken("condition: accepted without an event its decision stood on");
                }
            }
            kind => {
                let there_ids: HashSet<u32> = there().map(key_of).collect();
                if ghost.known.iter().any(|id| !own.contains(id) && !there_ids.contains(id)) {
                    return broken("dependency: accepted without the own batch below it");
                }
                if kind == "exists" && !there().any(is_in) {
                    return broken("condition: exists accepted on nothing");
                }
            }
        }
        for at in new {
            let event = &events[at].event;
            let write = |event: &Event| (time_of(event), id_of(event));
            let register = events[..at].iter().map(|event| &event.event).filter(|event| aggregate_of(event) == 0);
            if aggregate_of(event) == 0 && register.map(write).any(|earlier| earlier >= write(event)) {
                return broken("last writer: an older write is the last");
            }
        }
    }
    Ok(())
}

/// The hub answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the hub of the simulation does not wait")
}

/// Runs the schedule with this seed. `steps`: how many things happen before messages flow again.
///
/// # Errors
///
/// What may never happen.
pub fn run(seed: u64, steps: usize, story: bool) -> Result<Healed, Broken> {
    World::new(seed, steps, story).run()
}

//! Notices for subscribers: the difference between what they were told and the current state.

use std::collections::{BTreeMap, HashMap};

use eventstore_api::{Event, RecordedEvent, Version};

use super::machine::{EventPlace, Machine, PendingBatch};
use super::record::Number;
use super::rules::Rule;

/// A pending event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingEvent {
    /// Its batch.
    pub batch: Number,
    /// Its index in the batch, counted from 0.
    pub index: u32,
    /// Whether the batch waits for a decision.
    pub is_waiting: bool,
    /// The event.
    pub event: Event,
}

/// A notice to a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An event is confirmed.
    Confirmed {
        /// The event.
        event: RecordedEvent,
        /// The place with which it was announced while it was pending.
        was: Option<EventPlace>,
    },
    /// An event is pending.
    Pending(PendingEvent),
    /// A batch is no longer pending and will not be confirmed: it was rejected, for this reason.
    Rejected {
        /// The batch.
        batch: Number,
        /// Why.
        reason: String,
    },
    /// A batch is no longer pending, will not be confirmed, and nothing of it is kept: it was dropped, or it was
    /// rejected and has been deleted.
    Dropped {
        /// The batch.
        batch: Number,
    },
    /// The announced pending events of a batch are replaced: by those in the following notices, if any, or by events
    /// that were announced as confirmed.
    Replaced {
        /// The batch.
        batch: Number,
    },
}

/// A batch as it is shown.
#[derive(Clone, Debug)]
struct Shown {
    /// The number of decisions made on it.
    changes: usize,
    events: Vec<PendingEvent>,
}

impl Shown {
    fn has_same_events(&self, other: &Self) -> bool {
        let ids = |shown: &Self| shown.events.iter().map(|pending| pending.event.id().to_owned()).collect::<Vec<_>>();
        ids(self) == ids(other)
    }
}

/// The visible state of a replica: the confirmed events up to a version, followed by pending ones.
#[derive(Clone, Debug)]
pub struct View {
    published: Version,
    batches: BTreeMap<Number, Shown>,
}

impl View {
    /// The current view, of one aggregate or of all.
    #[must_use]
    pub fn of(machine: &Machine, aggregate_id: Option<&str>) -> Self {
        let shown = |batch: PendingBatch<'_>| {
            let event = |(index, event): &(u32, &Event)| PendingEvent {
                batch: batch.number,
                index: *index,
                is_waiting: batch.is_waiting,
                event: (*event).clone(),
            };
            let is_wanted = |event: &&(u32, &Event)| aggregate_id.is_none_or(|id| id == event.1.aggregate_id());
            let events: Vec<_> = batch.events.iter().filter(is_wanted).map(event).collect();
            (batch.number, Shown { changes: batch.changes, events })
        };
        let batches = machine.pending().into_iter().map(shown).filter(|(_, shown)| !shown.events.is_empty());
        View { published: machine.published(), batches: batches.collect() }
    }

    /// The pending events, in their order.
    pub fn into_pending(self) -> impl Iterator<Item = PendingEvent> {
        self.batches.into_values().flat_map(|batch| batch.events)
    }
}

/// A subscriber: what was announced so far, and what has to be announced next.
///
/// It [looks](Listener::look) at the machine, receives the confirmed events that it [wants](Listener::wanted), and
/// announces the rest [at the end](Listener::end). Any number of changes may happen between two looks; only their
/// combined effect is announced.
#[derive(Clone, Debug)]
pub struct Listener {
    aggregate_id: Option<String>,
    /// Confirmed events up to this version were announced.
    version: Version,
    told: BTreeMap<Number, Shown>,
    /// The places of the announced pending events.
    ids: HashMap<String, EventPlace>,
    view: Option<View>,
    /// Notices for announced batches that are no longer in the view, unless they are announced as confirmed.
    gone: Vec<(Number, Notice)>,
}

impl Listener {
    /// A subscriber that knows the confirmed events up to a version, and no pending ones.
    #[must_use]
    pub fn new(since: Version) -> Self {
        Listener {
            aggregate_id: None,
            version: since,
            told: BTreeMap::new(),
            ids: HashMap::new(),
            view: None,
            gone: Vec::new(),
        }
    }

    /// Restricts it to the events of this aggregate.
    #[must_use]
    pub fn aggregate(mut self, aggregate_id: String) -> Self {
        self.aggregate_id = Some(aggregate_id);
        self
    }

    /// The aggregate, if it listens to one.
    #[must_use]
    pub fn aggregate_id(&self) -> Option<&str> {
        self.aggregate_id.as_deref()
    }

    /// Takes the current view, if everything from the last look was announced. Returns whether there is anything to
    /// announce.
    pub fn look(&mut self, machine: &Machine) -> bool {
        if self.view.is_none() {
            let view = View::of(machine, self.aggregate_id.as_deref());
            if view.published > self.version || self.differs(&view) {
                let gone = self.told.keys().filter(|number| !view.batches.contains_key(number));
                self.gone = gone.map(|number| (*number, end_of(*number, machine))).collect();
                self.view = Some(view);
            }
        }
        self.view.is_some()
    }

    fn differs(&self, view: &View) -> bool {
        let numbers = |batches: &BTreeMap<Number, Shown>| {
            batches.iter().map(|(number, shown)| (*number, shown.changes, shown.events.len())).collect::<Vec<_>>()
        };
        numbers(&self.told) != numbers(&view.batches)
    }

    /// The confirmed events to announce first: those after the first version, up to the second.
    #[must_use]
    pub fn wanted(&self) -> Option<(Version, Version)> {
        let published = self.view.as_ref()?.published;
        (self.version < published).then_some((self.version, published))
    }

    /// Announces the next of the wanted events: all events up to this version.
    pub fn confirmed(&mut self, events: Vec<RecordedEvent>, until: Version) -> Vec<Notice> {
        self.version = until;
        let told = |event: RecordedEvent| {
            let was = self.ids.remove(event.event.id());
            if let Some(EventPlace::Pending(batch, index)) = was
                && let Some(shown) = self.told.get_mut(&batch)
            {
                shown.events.retain(|pending| pending.index != index);
                if shown.events.is_empty() {
                    self.told.remove(&batch);
                }
            }
            Notice::Confirmed { event, was }
        };
        events.into_iter().map(told).collect()
    }

    /// Announces the rest, after all wanted events were announced.
    pub fn end(&mut self) -> Vec<Notice> {
        let Some(view) = self.view.take() else { return Vec::new() };
        let mut notices = Vec::new();
        for (batch, notice) in std::mem::take(&mut self.gone) {
            if self.told.contains_key(&batch) {
                self.forget(batch);
                notices.push(notice);
            }
        }
        for (number, shown) in view.batches {
            match self.told.get(&number) {
                Some(told) if told.has_same_events(&shown) || !Rule::ReplacedIsTold.is_kept() => {
                    self.told.insert(number, shown);
                    continue;
                }
                Some(_) => {
                    self.forget(number);
                    notices.push(Notice::Replaced { batch: number });
                }
                None => {}
            }
            for pending in &shown.events {
                let place = EventPlace::Pending(number, pending.index);
                self.ids.insert(pending.event.id().to_owned(), place);
                notices.push(Notice::Pending(pending.clone()));
            }
            self.told.insert(number, shown);
        }
        notices
    }

    fn forget(&mut self, batch: Number) {
        let Some(shown) = self.told.remove(&batch) else { return };
        for pending in shown.events {
            self.ids.remove(pending.event.id());
        }
    }
}

/// What happened to a batch that is no longer shown.
fn end_of(batch: Number, machine: &Machine) -> Notice {
    match machine.rejection(batch) {
        Some(reason) => Notice::Rejected { batch, reason: reason.to_owned() },
        None if machine.is_confirmed(batch) => Notice::Replaced { batch },
        None => Notice::Dropped { batch },
    }
}

//! What somebody is told who listens to a replica: the difference between what was told and what is there.

use std::collections::{BTreeMap, HashMap};

use eventstore_api::{Event, RecordedEvent, Version};

use super::machine::{EventPlace, Machine, PendingBatch};
use super::record::Number;
use super::rules::Rule;

/// An event that is pending.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingEvent {
    /// Its batch.
    pub batch: Number,
    /// Its place in the batch, counted from 0.
    pub index: u32,
    /// Whether the batch waits for a decision.
    pub is_waiting: bool,
    /// The event.
    pub event: Event,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An event is confirmed. `was`: the place that it was told with while it was pending.
    Confirmed {
        /// The event.
        event: RecordedEvent,
        /// Its place before.
        was: Option<EventPlace>,
    },
    /// An event is pending.
    Pending(PendingEvent),
    /// A batch is not pending any more, and will not be confirmed: it was rejected, for this reason.
    Rejected {
        /// The batch.
        batch: Number,
        /// Why.
        reason: String,
    },
    /// A batch is not pending any more, will not be confirmed, and nothing is left of it: it was dropped, or it was rejected and
    /// is deleted by now.
    Dropped {
        /// The batch.
        batch: Number,
    },
    /// The events of a batch that are told as pending are replaced: by those that are told next, if any are, or by some that were
    /// told as confirmed.
    Replaced {
        /// The batch.
        batch: Number,
    },
}

/// A batch as it is shown.
#[derive(Clone, Debug)]
struct Shown {
    /// How many decisions were made on it.
    changes: usize,
    events: Vec<PendingEvent>,
}

impl Shown {
    fn has_same_events(&self, other: &Self) -> bool {
        let ids = |shown: &Self| shown.events.iter().map(|pending| pending.event.id().to_owned()).collect::<Vec<_>>();
        ids(self) == ids(other)
    }
}

/// What is shown of a replica at a moment: the confirmed events up to a version, and then pending ones.
#[derive(Clone, Debug)]
pub struct View {
    published: Version,
    batches: BTreeMap<Number, Shown>,
}

impl View {
    /// What is shown now, of one aggregate or of all.
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

/// Somebody who listens: what was told so far, and what is to be told next.
///
/// It [looks](Listener::look) at the machine, is given the confirmed events that it [wants](Listener::wanted), and tells the rest
/// [at the end](Listener::end). Between two looks any number of changes may be made: they are told as what they come to.
#[derive(Clone, Debug)]
pub struct Listener {
    aggregate_id: Option<String>,
    /// Confirmed events were told up to here.
    version: Version,
    told: BTreeMap<Number, Shown>,
    /// The places of the pending events that were told.
    ids: HashMap<String, EventPlace>,
    view: Option<View>,
    /// What is told of batches that were told and that the view does not have, as far as it is not told as confirmed.
    gone: Vec<(Number, Notice)>,
}

impl Listener {
    /// Somebody who knows the confirmed events up to a version, and no pending ones.
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

    /// Listens to the events of this aggregate only.
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

    /// Looks at what is there, if all was told that the last look has shown. Returns whether there is something to tell.
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

    /// The confirmed events to be told first: those behind the first version, up to the second.
    #[must_use]
    pub fn wanted(&self) -> Option<(Version, Version)> {
        let published = self.view.as_ref()?.published;
        (self.version < published).then_some((self.version, published))
    }

    /// The next of the events that are wanted: all that there are up to this version.
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

    /// Tells what else was to be seen, when all is told that was wanted.
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

/// What became of a batch that is not shown any more.
fn end_of(batch: Number, machine: &Machine) -> Notice {
    match machine.rejection(batch) {
        Some(reason) => Notice::Rejected { batch, reason: reason.to_owned() },
        None if machine.is_confirmed(batch) => Notice::Replaced { batch },
        None => Notice::Dropped { batch },
    }
}

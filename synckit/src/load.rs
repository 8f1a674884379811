//! Reading a replica: confirmed events and then pending ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::IntoFuture;
use std::pin::Pin;

use eventstore_api::{Context, Cursor, Error as StoreError, Event, LoadOptions, PageSize, RecordedEvent, Version};

use crate::core::{EventPlace, Number, Scope, Seen};
use crate::error::{Error, Result};
use crate::replica::Replica;
use crate::worker::PAGES;

/// What a load has seen: the condition of an append that was decided on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    pub(crate) scope: Scope,
    pub(crate) seen: Seen,
    pub(crate) generation: u32,
}

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

/// An event of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is confirmed.
    Confirmed(RecordedEvent),
    /// It is pending.
    Pending(PendingEvent),
}

impl Entry {
    /// The event.
    #[must_use]
    pub fn event(&self) -> &Event {
        match self {
            Entry::Confirmed(recorded) => &recorded.event,
            Entry::Pending(pending) => &pending.event,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> EventPlace {
        match self {
            Entry::Confirmed(recorded) => EventPlace::Confirmed(recorded.version),
            Entry::Pending(pending) => EventPlace::Pending(pending.batch, pending.index),
        }
    }
}

/// What was loaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The events: the confirmed ones in their order, and then those that are pending in theirs.
    pub entries: Vec<Entry>,
    /// The condition for what is decided on them.
    pub basis: Basis,
}

/// A load of confirmed and pending events. It does nothing until it is awaited.
#[derive(Debug)]
#[must_use = "nothing is loaded until it is awaited"]
pub struct Load {
    replica: Replica,
    since: Version,
    aggregate_id: Option<String>,
}

impl Load {
    pub(crate) fn new(replica: Replica) -> Self {
        Load { replica, since: Version::ZERO, aggregate_id: None }
    }

    /// Loads the events of this aggregate only.
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// Leaves confirmed events out up to this version. The basis is the same.
    pub fn since(mut self, version: Version) -> Self {
        self.since = version;
        self
    }

    async fn run(self) -> Result<Loaded> {
        loop {
            let generation = self.replica.shared.state.machine().generation();
            match self.attempt().await {
                // The confirmed events that were read are those of an older history by now.
                Err(Error::Store(StoreError::Closed))
                    if self.replica.shared.state.machine().generation() != generation => {}
                done => return done,
            }
        }
    }

    async fn attempt(&self) -> Result<Loaded> {
        let Load { replica, since, aggregate_id } = self;
        let scope = aggregate_id.clone().map_or(Scope::Store, Scope::Aggregate);
        let (basis, pending, confirmed) = {
            let machine = replica.shared.state.machine();
            let basis = Basis { scope, seen: machine.seen(), generation: machine.generation() };
            (basis, Snapshot::of(&machine, aggregate_id.as_deref()), replica.shared.state.confirmed())
        };
        let until = Version::new(basis.seen.version);
        let mut entries = Vec::new();
        let mut next = Some(options(*since, until, aggregate_id.as_deref()));
        while let Some(options) = next {
            let page = confirmed.load_page(&Context::background(), &options, PAGES).await?;
            entries.extend(page.events.into_iter().map(Entry::Confirmed));
            next = page.next;
        }
        entries.extend(pending.batches.into_values().flat_map(|batch| batch.events).map(Entry::Pending));
        Ok(Loaded { entries, basis })
    }
}

impl IntoFuture for Load {
    type Output = Result<Loaded>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

fn options(since: Version, until: Version, aggregate_id: Option<&str>) -> LoadOptions {
    let options = LoadOptions::since(since).before(until.next());
    match aggregate_id {
        Some(aggregate_id) => options.aggregate(aggregate_id),
        None => options,
    }
}

/// The pending batches of a moment.
#[derive(Debug)]
struct Snapshot {
    published: Version,
    generation: u32,
    batches: BTreeMap<Number, Shown>,
}

#[derive(Clone, Debug)]
struct Shown {
    changes: usize,
    events: Vec<PendingEvent>,
}

impl Snapshot {
    fn of(machine: &crate::core::Machine, aggregate_id: Option<&str>) -> Self {
        let shown = |batch: crate::core::PendingBatch<'_>| {
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
        Snapshot {
            published: machine.published(),
            generation: machine.generation(),
            batches: machine.pending().into_iter().map(shown).filter(|(_, shown)| !shown.events.is_empty()).collect(),
        }
    }
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
    /// The events of a batch are replaced by those that are told next.
    Replaced {
        /// The batch.
        batch: Number,
    },
}

/// A subscription.
///
/// It begins with the confirmed events behind its place and then the whole pending set, and goes on with what changes. It costs
/// memory for the pending events that were told and for one page.
#[derive(Debug)]
pub struct Subscribe {
    replica: Replica,
    aggregate_id: Option<String>,
    since: Cursor,
    version: Version,
    generation: Option<u32>,
    told: BTreeMap<Number, Shown>,
    ids: HashMap<String, EventPlace>,
    /// What is told next.
    queue: VecDeque<Notice>,
    /// The snapshot that is told when the confirmed events up to it are.
    snapshot: Option<Snapshot>,
    changes: tokio::sync::watch::Receiver<u64>,
}

impl Subscribe {
    pub(crate) fn new(replica: Replica, since: Cursor) -> Self {
        let changes = replica.shared.state.changes();
        Subscribe {
            replica,
            aggregate_id: None,
            since,
            version: since.version(),
            generation: None,
            told: BTreeMap::new(),
            ids: HashMap::new(),
            queue: VecDeque::new(),
            snapshot: None,
            changes,
        }
    }

    /// Follows the events of this aggregate only.
    #[must_use]
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// What comes next; it waits for it. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if the subscription began, or stands, in another history than that of the replica; `Closed`.
    pub async fn next(&mut self) -> Result<Notice> {
        loop {
            if let Some(notice) = self.try_next().await? {
                return Ok(notice);
            }
            if self.replica.shared.state.has_ended() || self.changes.changed().await.is_err() {
                return Err(StoreError::Closed.into());
            }
        }
    }

    /// What comes next, if it is there already.
    ///
    /// # Errors
    ///
    /// Those of [`next`](Subscribe::next).
    pub async fn try_next(&mut self) -> Result<Option<Notice>> {
        loop {
            if let Some(notice) = self.queue.pop_front() {
                return Ok(Some(notice));
            }
            while self.generation.is_none() {
                self.begin().await?;
            }
            if self.snapshot.is_none() {
                self.changes.mark_unchanged();
                let snapshot = Snapshot::of(&self.replica.shared.state.machine(), self.aggregate_id.as_deref());
                if self.generation != Some(snapshot.generation) {
                    return Err(self.diverged().await?.into());
                }
                let is_news = snapshot.published > self.version || self.differs(&snapshot);
                if !is_news {
                    return Ok(None);
                }
                self.snapshot = Some(snapshot);
            }
            self.step().await?;
        }
    }

    async fn begin(&mut self) -> Result<()> {
        let view = self.replica.shared.state.view();
        let version = self.since.version().min(view.published);
        let digest = match view.confirmed.digest(&Context::background(), version).await {
            Ok(digest) => digest,
            Err(StoreError::Closed) if self.replica.shared.state.has_moved_on(&view) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let found = Cursor::new(version, digest);
        if found != self.since {
            return Err(StoreError::HistoryDiverged { cursor: self.since, found }.into());
        }
        self.generation = Some(view.generation);
        Ok(())
    }

    async fn diverged(&self) -> Result<StoreError> {
        let found = self.replica.cursor().await?;
        Ok(StoreError::HistoryDiverged { cursor: self.since, found })
    }

    fn differs(&self, snapshot: &Snapshot) -> bool {
        let numbers = |batches: &BTreeMap<Number, Shown>| {
            batches.iter().map(|(number, shown)| (*number, shown.changes, shown.events.len())).collect::<Vec<_>>()
        };
        numbers(&self.told) != numbers(&snapshot.batches)
    }

    /// Puts something into the queue, or is done with the snapshot.
    async fn step(&mut self) -> Result<()> {
        let Some(snapshot) = &self.snapshot else { return Ok(()) };
        if self.version < snapshot.published {
            let options = options(self.version, snapshot.published, self.aggregate_id.as_deref());
            let view = self.replica.shared.state.view();
            if self.generation != Some(view.generation) {
                return Err(self.diverged().await?.into());
            }
            let page = view.confirmed.load_page(&Context::background(), &options, PageSize::LARGEST).await;
            let page = match page {
                Ok(page) => page,
                Err(StoreError::Closed) if self.replica.shared.state.has_moved_on(&view) => {
                    return Err(self.diverged().await?.into());
                }
                Err(error) => return Err(error.into()),
            };
            self.version = match (&page.next, page.events.last()) {
                (Some(_), Some(last)) => last.version,
                _ => snapshot.published,
            };
            for event in page.events {
                let was = self.ids.remove(event.event.id());
                if let Some(EventPlace::Pending(batch, index)) = was
                    && let Some(shown) = self.told.get_mut(&batch)
                {
                    shown.events.retain(|pending| pending.index != index);
                    if shown.events.is_empty() {
                        self.told.remove(&batch);
                    }
                }
                self.queue.push_back(Notice::Confirmed { event, was });
            }
            return Ok(());
        }
        let Some(snapshot) = self.snapshot.take() else { return Ok(()) };
        let gone: Vec<_> = self.told.keys().filter(|number| !snapshot.batches.contains_key(number)).copied().collect();
        for batch in gone {
            self.forget(batch);
            let reason = self.replica.shared.state.machine().rejection(batch).map(str::to_owned);
            let reason = reason.unwrap_or_else(|| "it was rejected and deleted".to_owned());
            self.queue.push_back(Notice::Rejected { batch, reason });
        }
        for (number, shown) in snapshot.batches {
            match self.told.get(&number) {
                Some(told) if same_events(told, &shown) => {
                    self.told.insert(number, shown);
                    continue;
                }
                Some(_) => {
                    self.forget(number);
                    self.queue.push_back(Notice::Replaced { batch: number });
                }
                None => {}
            }
            for pending in &shown.events {
                let place = EventPlace::Pending(number, pending.index);
                self.ids.insert(pending.event.id().to_owned(), place);
                self.queue.push_back(Notice::Pending(pending.clone()));
            }
            self.told.insert(number, shown);
        }
        Ok(())
    }

    fn forget(&mut self, batch: Number) {
        let Some(shown) = self.told.remove(&batch) else { return };
        for pending in shown.events {
            self.ids.remove(pending.event.id());
        }
    }
}

fn same_events(told: &Shown, shown: &Shown) -> bool {
    let ids = |shown: &Shown| shown.events.iter().map(|pending| pending.event.id().to_owned()).collect::<Vec<_>>();
    ids(told) == ids(shown)
}

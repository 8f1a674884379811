//! Reads of a replica: confirmed events followed by pending ones.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::pin::Pin;

use eventstore_api::{Context, Cursor, Error as StoreError, Event, LoadOptions, PageSize, RecordedEvent, Version};

use crate::core::{EventPlace, Listener, Notice, PendingEvent, Scope, Seen, View};
use crate::error::{Error, Result};
use crate::replica::Replica;
use crate::worker::PAGES;

/// What a load has seen: the condition for appending a decision that is based on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    pub(crate) scope: Scope,
    pub(crate) seen: Seen,
    pub(crate) generation: u32,
}

/// An event of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A confirmed event.
    Confirmed(RecordedEvent),
    /// A pending event.
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

    /// Its place.
    #[must_use]
    pub fn place(&self) -> EventPlace {
        match self {
            Entry::Confirmed(recorded) => EventPlace::Confirmed(recorded.version),
            Entry::Pending(pending) => EventPlace::Pending(pending.batch, pending.index),
        }
    }
}

/// The result of a load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The confirmed events in order, followed by the pending ones in order.
    pub entries: Vec<Entry>,
    /// The condition for decisions based on these events.
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

    /// Restricts the load to the events of this aggregate.
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// Omits confirmed events up to this version. The basis stays the same.
    pub fn since(mut self, version: Version) -> Self {
        self.since = version;
        self
    }

    async fn run(self) -> Result<Loaded> {
        loop {
            let generation = self.replica.shared.state.machine().generation();
            match self.attempt().await {
                // The confirmed events that were read belong to an older history by now.
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
            (basis, View::of(&machine, aggregate_id.as_deref()), replica.shared.state.confirmed())
        };
        let until = Version::new(basis.seen.version);
        let mut entries = Vec::new();
        let mut next = Some(options(*since, until, aggregate_id.as_deref()));
        while let Some(options) = next {
            let page = confirmed.load_page(&Context::background(), &options, PAGES).await?;
            entries.extend(page.events.into_iter().map(Entry::Confirmed));
            next = page.next;
        }
        entries.extend(pending.into_pending().map(Entry::Pending));
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

/// A subscription.
///
/// It begins with the confirmed events after its cursor, followed by all pending ones, and continues with changes. It
/// needs memory for the announced pending events and one page.
#[derive(Debug)]
pub struct Subscribe {
    replica: Replica,
    since: Cursor,
    generation: Option<u32>,
    listener: Listener,
    /// The next notices.
    queue: VecDeque<Notice>,
    changes: tokio::sync::watch::Receiver<u64>,
}

impl Subscribe {
    pub(crate) fn new(replica: Replica, since: Cursor) -> Self {
        let changes = replica.shared.state.changes();
        Subscribe {
            replica,
            since,
            generation: None,
            listener: Listener::new(since.version()),
            queue: VecDeque::new(),
            changes,
        }
    }

    /// Restricts the subscription to the events of this aggregate.
    #[must_use]
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.listener = self.listener.aggregate(aggregate_id.into());
        self
    }

    /// Waits for the next notice. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if the cursor or the current position of the subscription belongs to another history than the
    /// replica's; `Closed`.
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

    /// The next notice, if there is one already.
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
            self.changes.mark_unchanged();
            let is_same = {
                let machine = self.replica.shared.state.machine();
                let is_same = self.generation == Some(machine.generation());
                if is_same && !self.listener.look(&machine) {
                    return Ok(None);
                }
                is_same
            };
            if !is_same {
                return Err(self.diverged().await?.into());
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

    /// Adds notices to the queue.
    async fn step(&mut self) -> Result<()> {
        let Some((since, until)) = self.listener.wanted() else {
            self.queue.extend(self.listener.end());
            return Ok(());
        };
        let options = options(since, until, self.listener.aggregate_id());
        let view = self.replica.shared.state.view();
        if self.generation != Some(view.generation) {
            return Err(self.diverged().await?.into());
        }
        let page = match view.confirmed.load_page(&Context::background(), &options, PageSize::LARGEST).await {
            Ok(page) => page,
            Err(StoreError::Closed) if self.replica.shared.state.has_moved_on(&view) => {
                return Err(self.diverged().await?.into());
            }
            Err(error) => return Err(error.into()),
        };
        let until = match (&page.next, page.events.last()) {
            (Some(_), Some(last)) => last.version,
            _ => until,
        };
        self.queue.extend(self.listener.confirmed(page.events, until));
        Ok(())
    }
}

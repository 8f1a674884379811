//! Reading a replica: confirmed events and then pending ones.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::pin::Pin;

use eventstore_api::{Context, Cursor, Error as StoreError, Event, LoadOptions, PageSize, RecordedEvent, Version};

use crate::core::{EventPlace, Listener, Notice, PendingEvent, Scope, Seen, View};
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
/// It begins with the confirmed events behind its place and then the whole pending set, and goes on with what changes. It costs
/// memory for the pending events that were told and for one page.
#[derive(Debug)]
pub struct Subscribe {
    replica: Replica,
    since: Cursor,
    generation: Option<u32>,
    listener: Listener,
    /// What is told next.
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

    /// Follows the events of this aggregate only.
    #[must_use]
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.listener = self.listener.aggregate(aggregate_id.into());
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

    /// Puts something into the queue.
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

//! Resolvers, which decide what happens with a batch that cannot be appended as it was decided.

use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use eventstore::Aggregate;
use eventstore_api::{Event, RecordedEvent};

use crate::core::{Condition, Number, Why};
use crate::error::Result;
use crate::load::Entry;
use crate::replica::Replica;

/// A batch that waits for a decision, with everything needed to decide.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Conflict {
    /// The batch.
    pub batch: Number,
    /// Why it waits.
    pub why: Why,
    /// Its events, according to the latest decision.
    pub events: Vec<Event>,
    /// Its condition.
    pub condition: Condition,
    /// The confirmed events in the condition's scope that its decision had not seen; for a duplicate id, the events
    /// with these ids. At most the first [`Conflict::MOST`].
    pub unseen: Vec<RecordedEvent>,
    /// Own batches on top of it, which share an aggregate with it or with each other, and their events. They go to the
    /// resolver as well after the decision, unless the answer covers them.
    pub on_top: Vec<(Number, Vec<Event>)>,
    pub(crate) replica: Replica,
}

impl Conflict {
    /// The most events in [`unseen`](Conflict::unseen).
    pub const MOST: usize = 10_000;

    /// The events that would precede the batch: the confirmed ones of an aggregate, followed by those of earlier own
    /// batches.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files.
    pub async fn before(&self, aggregate_id: &str) -> Result<Vec<Entry>> {
        let mut entries = self.replica.load().aggregate(aggregate_id).await?.entries;
        entries.retain(|entry| !matches!(entry, Entry::Pending(pending) if pending.batch >= self.batch));
        Ok(entries)
    }

    /// The state of the batch's aggregate after these events. The aggregate is that of its first event.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files, and `Decode` for an event that does not belong to this kind of aggregate.
    pub async fn state<A: Aggregate>(&self) -> Result<A> {
        let mut state = A::default();
        if let Some(first) = self.events.first() {
            for entry in self.before(first.aggregate_id()).await? {
                state.apply(entry.event().decode()?);
            }
        }
        Ok(state)
    }
}

/// A decision on a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolution {
    /// Append it as it is. Anything newer than what was shown is a new conflict.
    AppendAnyway,
    /// Append these events instead. They must have new ids.
    AppendInstead(Vec<Event>),
    /// Reject it, for this reason. It remains readable until it is deleted.
    Reject(String),
    /// There is nothing left to append, for example because its effect is already there. Nothing is kept of it, and it
    /// does not count as rejected; its ids may be reused. Batches on top of it go to the resolver.
    Drop,
    /// Postpone the decision: the batch waits, and syncing stops at it.
    Wait,
}

/// An answer: the resolution of the batch, and of batches on top of it that are decided together with it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answer {
    /// The resolution of the batch.
    pub resolution: Resolution,
    /// Resolutions of batches on top of it, by number. `Wait` postpones that decision.
    pub on_top: Vec<(Number, Resolution)>,
}

impl Answer {
    /// Adds the resolution of a batch on top.
    #[must_use]
    pub fn on_top(mut self, batch: Number, resolution: Resolution) -> Self {
        self.on_top.push((batch, resolution));
        self
    }
}

impl From<Resolution> for Answer {
    fn from(resolution: Resolution) -> Self {
        Answer { resolution, on_top: Vec::new() }
    }
}

/// Decides on batches that cannot be appended as they were decided.
///
/// After everything was pulled from the hub, it is asked about one batch after the other, in order. A function from a
/// [`Conflict`] to a [`Resolution`] is a resolver. It may append, load and delete. It must not sync the replica that it
/// decides for ([`Error::Deciding`](crate::Error::Deciding)), nor wait for a task that does.
/// ([`Error::Deciding`](crate::Error::Deciding)), nor wait for a task that does.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// Decides on the batch.
    ///
    /// # Errors
    ///
    /// Any error that prevents the decision. It ends the sync.
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer>;
}

#[async_trait]
impl<F: Fn(&Conflict) -> Resolution + Send + Sync> Resolver for F {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        Ok(self(conflict).into())
    }
}

/// Keeps both: appends the batch as it is, after the unseen events. Events whose ids are in use get new ids. A batch
/// that the hub will never accept is rejected.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepBoth;

#[async_trait]
impl Resolver for KeepBoth {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        Ok(match &conflict.why {
            Why::Conflict | Why::Dependency => Resolution::AppendAnyway,
            Why::Duplicate => Resolution::AppendInstead(with_new_ids(&conflict.events)?),
            Why::Refused(reason) => Resolution::Reject(reason.clone()),
        }
        .into())
    }
}

/// The same events with new ids.
///
/// # Errors
///
/// None for valid events.
pub fn with_new_ids(events: &[Event]) -> Result<Vec<Event>> {
    let renew = |event: &Event| {
        let builder = Event::builder(event.event_type(), event.aggregate_id()).data(event.data_bytes());
        Ok(builder.metadata_json(event.metadata()).build()?)
    };
    events.iter().map(renew).collect()
}

/// Rejects every batch with a conflict.
#[derive(Clone, Copy, Debug, Default)]
pub struct RejectConflicts;

#[async_trait]
impl Resolver for RejectConflicts {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        let reason = match &conflict.why {
            Why::Conflict => "others changed it meanwhile".to_owned(),
            Why::Dependency => "it depends on a batch that was rejected, dropped or replaced".to_owned(),
            Why::Duplicate => "an id is used with other content".to_owned(),
            Why::Refused(reason) => reason.clone(),
        };
        Ok(Resolution::Reject(reason).into())
    }
}

/// Decides again, on the current state of the batch's aggregate without the batch itself, by a function of the program.
///
/// ```
/// use eventstore::Aggregate;
/// use synckit::{Conflict, DecideAgain, Resolution, SyncOptions};
///
/// #[derive(Default)]
/// struct Stock(u32);
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// enum StockEvent {
///     Received(u32),
///     Sold(u32),
/// }
///
/// impl Aggregate for Stock {
///     type Event = StockEvent;
///     type Error = String;
///
///     fn apply(&mut self, event: StockEvent) {
///         match event {
///             StockEvent::Received(pieces) => self.0 += pieces,
///             StockEvent::Sold(pieces) => self.0 -= pieces,
///         }
///     }
/// }
///
/// let resolver = DecideAgain::new(|stock: &Stock, conflict: &Conflict| {
///     let sold = conflict.events.iter().filter_map(|event| match event.decode() {
///         Ok(StockEvent::Sold(pieces)) => Some(pieces),
///         _ => None,
///     });
///     match sold.sum::<u32>() <= stock.0 {
///         true => Resolution::AppendAnyway,
///         false => Resolution::Reject(format!("{} are left", stock.0)),
///     }
/// });
/// let options = SyncOptions::new().resolver(resolver);
/// # drop(options);
/// ```
pub struct DecideAgain<A, F> {
    decide: F,
    state: PhantomData<fn() -> A>,
}

impl<A, F> fmt::Debug for DecideAgain<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DecideAgain")
    }
}

impl<A: Aggregate, F: Fn(&A, &Conflict) -> Resolution + Send + Sync> DecideAgain<A, F> {
    /// Decides by this function.
    pub fn new(decide: F) -> Self {
        DecideAgain { decide, state: PhantomData }
    }
}

#[async_trait]
impl<A: Aggregate, F: Fn(&A, &Conflict) -> Resolution + Send + Sync> Resolver for DecideAgain<A, F> {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        let state = conflict.state().await?;
        Ok((self.decide)(&state, conflict).into())
    }
}

/// Last writer wins, by the times that the program gives its writes: a batch is appended if all of its events are later
/// than the events that it had not seen, and rejected otherwise.
///
/// For aggregates that are registers, where each event has the whole state. The time of a write must be later than that
/// of everything it saw, whatever the clock says: [`write_time`] returns such a time. A time in the future is replaced
/// by the hub's recording time of the newest unseen event, or by the current time.
/// recording of the newest unseen event, or now.
pub struct LastWriterWins<F>(F);

impl<F> fmt::Debug for LastWriterWins<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastWriterWins")
    }
}

impl<F: Fn(&Event) -> Option<SystemTime> + Send + Sync> LastWriterWins<F> {
    /// Gets the time of a write by this function. Events without a time count as older than all others.
    pub fn new(time: F) -> Self {
        LastWriterWins(time)
    }
}

#[async_trait]
impl<F: Fn(&Event) -> Option<SystemTime> + Send + Sync> Resolver for LastWriterWins<F> {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        let is_taken = matches!(conflict.why, Why::Duplicate | Why::Refused(_));
        if is_taken {
            return RejectConflicts.resolve(conflict).await;
        }
        let now = SystemTime::now();
        let of_own = conflict.events.iter().map(|event| (self.0)(event).map(|time| time.min(now))).min().flatten();
        // The hub recorded it at that time, so it was not written later.
        let of_others =
            conflict.unseen.iter().map(|recorded| (self.0)(&recorded.event).map(|time| time.min(recorded.recorded_at)));
        Ok(match of_others.max().flatten().is_none_or(|others| of_own.is_some_and(|own| own > others)) {
            true => Resolution::AppendAnyway,
            false => Resolution::Reject("a later write was there already".to_owned()),
        }
        .into())
    }
}

/// The time for a write that has seen writes with these times: now, or just after the newest of them.
#[must_use]
pub fn write_time(now: SystemTime, seen: impl IntoIterator<Item = SystemTime>) -> SystemTime {
    let newest = seen.into_iter().max();
    newest.map_or(now, |newest| now.max(newest + Duration::from_micros(1)))
}

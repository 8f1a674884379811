//! Who decides when a batch cannot be appended as it was decided.

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

/// A batch that waits for a decision, and all that is needed to make it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Conflict {
    /// The batch.
    pub batch: Number,
    /// Why it waits.
    pub why: Why,
    /// Its events, as they were decided last.
    pub events: Vec<Event>,
    /// Its condition.
    pub condition: Condition,
    /// The confirmed events in the scope of the condition that its decision had not seen, or, of a duplicate, those that have its
    /// ids. Of more than [`Conflict::MOST`] these are the first.
    pub unseen: Vec<RecordedEvent>,
    /// Own batches on top of it, which share an aggregate with it or with each other, and their events. What is decided on it
    /// sends them to the resolver as well, unless it is answered for them with it.
    pub on_top: Vec<(Number, Vec<Event>)>,
    pub(crate) replica: Replica,
}

impl Conflict {
    /// The most events that [`unseen`](Conflict::unseen) has.
    pub const MOST: usize = 10_000;

    /// The events that the batch would come behind: the confirmed ones of an aggregate, and then those of own batches before it.
    ///
    /// # Errors
    ///
    /// What the replica's files say.
    pub async fn before(&self, aggregate_id: &str) -> Result<Vec<Entry>> {
        let mut entries = self.replica.load().aggregate(aggregate_id).await?.entries;
        entries.retain(|entry| !matches!(entry, Entry::Pending(pending) if pending.batch >= self.batch));
        Ok(entries)
    }

    /// The state that these events lead to, for the aggregate of the batch's first event.
    ///
    /// # Errors
    ///
    /// What the replica's files say, and `Decode` for an event that is none of the aggregate's.
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

/// What to do with a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolution {
    /// Append it as it is. Whatever comes after what was shown is a new conflict.
    AppendAnyway,
    /// Append these events instead. They have new ids.
    AppendInstead(Vec<Event>),
    /// Do not append it, for this reason. It stays readable until it is deleted.
    Reject(String),
    /// There is nothing to append any more, as when what it was to bring about is there already. Nothing is kept of it, and it does
    /// not count as rejected; its ids may be used again. Batches on top of it go to the resolver.
    Drop,
    /// Not now: the batch waits, and syncing stops there.
    Wait,
}

/// An answer: the resolution of the batch, and those of batches on top of it that are answered for with it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answer {
    /// The resolution of the batch.
    pub resolution: Resolution,
    /// Resolutions of batches on top of it, by their numbers. `Wait` leaves one to be asked for later.
    pub on_top: Vec<(Number, Resolution)>,
}

impl Answer {
    /// The same answer, with a resolution of a batch on top.
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
/// It is asked for one batch after the other, in their order, when all that the hub has is pulled. A function of a [`Conflict`] that
/// gives a [`Resolution`] is one. It may append, load and delete; it does not sync the replica that it decides for
/// ([`Error::Deciding`](crate::Error::Deciding)), nor wait for a task that does.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// What to do with the batch.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from deciding; syncing ends with it.
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer>;
}

#[async_trait]
impl<F: Fn(&Conflict) -> Resolution + Send + Sync> Resolver for F {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        Ok(self(conflict).into())
    }
}

/// Keeps both: appends the batch as it is, behind what was not seen. Events whose ids are taken get new ones; what the hub will
/// never take is rejected.
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

/// The same events with ids of their own.
///
/// # Errors
///
/// None that the events had not when they were made.
pub fn with_new_ids(events: &[Event]) -> Result<Vec<Event>> {
    let renew = |event: &Event| {
        let builder = Event::builder(event.event_type(), event.aggregate_id()).data(event.data_bytes());
        Ok(builder.metadata_json(event.metadata()).build()?)
    };
    events.iter().map(renew).collect()
}

/// Rejects every batch that conflicts.
#[derive(Clone, Copy, Debug, Default)]
pub struct RejectConflicts;

#[async_trait]
impl Resolver for RejectConflicts {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        let reason = match &conflict.why {
            Why::Conflict => "others changed it meanwhile".to_owned(),
            Why::Dependency => "it stands on a batch that was rejected, dropped or replaced".to_owned(),
            Why::Duplicate => "an id is used with other content".to_owned(),
            Why::Refused(reason) => reason.clone(),
        };
        Ok(Resolution::Reject(reason).into())
    }
}

/// Decides again on what the aggregate of the batch is now, without the batch itself, by a function of the program.
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

/// The last writer wins, by the times that the program gave its writes: a batch is appended if all of its events are later than
/// those that it had not seen, and rejected otherwise.
///
/// For aggregates that are registers: each event says all there is to say. The time of a write has to be later than that of
/// everything it saw, whatever the clock says: [`write_time`] gives such a one. A time in the future is taken as the hub's time of
/// recording of the newest unseen event, or now.
pub struct LastWriterWins<F>(F);

impl<F> fmt::Debug for LastWriterWins<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastWriterWins")
    }
}

impl<F: Fn(&Event) -> Option<SystemTime> + Send + Sync> LastWriterWins<F> {
    /// Takes the times of writes by this function. Events without a time are older than all others.
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
        // The hub recorded it then, so that it was not written later.
        let of_others =
            conflict.unseen.iter().map(|recorded| (self.0)(&recorded.event).map(|time| time.min(recorded.recorded_at)));
        Ok(match of_others.max().flatten().is_none_or(|others| of_own.is_some_and(|own| own > others)) {
            true => Resolution::AppendAnyway,
            false => Resolution::Reject("a later write was there already".to_owned()),
        }
        .into())
    }
}

/// The time for a write that has seen writes with these times: now, or just behind the newest of them.
#[must_use]
pub fn write_time(now: SystemTime, seen: impl IntoIterator<Item = SystemTime>) -> SystemTime {
    let newest = seen.into_iter().max();
    newest.map_or(now, |newest| now.max(newest + Duration::from_micros(1)))
}

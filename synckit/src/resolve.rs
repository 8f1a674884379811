//! Who decides when a batch cannot be appended as it was decided.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use eventstore_api::{Event, RecordedEvent};

use crate::core::{Condition, Number, Why};
use crate::error::Result;

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
}

impl Conflict {
    /// The most events that [`unseen`](Conflict::unseen) has.
    pub const MOST: usize = 10_000;
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
/// It is asked for one batch after the other, in their order, when all that the hub has is pulled.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync {
    /// What to do with the batch.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from deciding; syncing ends with it.
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer>;
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
            Why::Dependency => "it stands on a batch that was rejected or replaced".to_owned(),
            Why::Duplicate => "an id is used with other content".to_owned(),
            Why::Refused(reason) => reason.clone(),
        };
        Ok(Resolution::Reject(reason).into())
    }
}

/// Decides again, by a function of the program.
#[derive(Clone)]
pub struct DecideAgain<F>(Arc<F>);

impl<F> fmt::Debug for DecideAgain<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DecideAgain")
    }
}

impl<F: Fn(&Conflict) -> Resolution + Send + Sync> DecideAgain<F> {
    /// Decides by this function.
    pub fn new(decide: F) -> Self {
        DecideAgain(Arc::new(decide))
    }
}

#[async_trait]
impl<F: Fn(&Conflict) -> Resolution + Send + Sync> Resolver for DecideAgain<F> {
    async fn resolve(&self, conflict: &Conflict) -> Result<Answer> {
        Ok((self.0)(conflict).into())
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

//! Faults of appends.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use eventstore_api::limits::{MAX_BATCH_BYTES, RECORDED_AT_END};
use eventstore_api::{
    Actual, Batch, Context, Durability, Error, Event, EventStore, Expected, Idempotency, Result, Revision,
    StoreOutcome, Stored, Version,
};

use crate::fault::Fault;
use crate::store::{Mutant, PANIC};

impl Mutant {
    pub(crate) async fn append(&self, ctx: &Context, mut batch: Batch) -> Result<Vec<Stored>> {
        let ctx = &self.context(ctx)?;
        if self.has(Fault::StatsCountAppends) || self.has(Fault::QueueCountsWhatWasDropped) {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        let background = &Context::background();
        let given = batch.clone();
        if let Some(outcome) = self.refusal(&given).await {
            return outcome;
        }
        let _running = Running::new(self, &given);
        match self.fault {
            Fault::IgnoresExpectation => batch.expected = Expected::Any,
            Fault::IgnoresIdempotency => batch.idempotency = Idempotency::default(),
            Fault::IdCountsAlways => batch.idempotency = Idempotency::Id,
            Fault::EmptyBatchIsRefused if batch.events.is_empty() => {
                return Err(Error::invalid_event("batch", "it is empty"));
            }
            Fault::ExistsNeverHolds if batch.expected == Expected::Exists => batch.expected = Expected::NoEvents,
            Fault::LongIdsAreInvalid if batch.events.iter().any(|event| event.id().len() > 254) => {
                return Err(Error::invalid_event("id", "it is long"));
            }
            Fault::BatchReversed => batch.events.reverse(),
            Fault::IgnoresTimes => batch.recorded_at = None,
            Fault::TimesAreAlwaysPast if batch.recorded_at.is_none() => {
                batch.recorded_at = Some(vec![SystemTime::UNIX_EPOCH; batch.events.len()]);
            }
            Fault::InnerRepeatIsUnconditional if repeats_inside(&given) => batch.expected = Expected::Any,
            Fault::TimesEndIn2262 => {
                let end = SystemTime::UNIX_EPOCH + Duration::from_nanos(i64::MAX as u64);
                batch.recorded_at.iter_mut().flatten().for_each(|time| *time = end.min(*time));
            }
            Fault::ClampsTimes => {
                let (begin, end) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + RECORDED_AT_END);
                let last = end - Duration::from_micros(1);
                batch.recorded_at.iter_mut().flatten().for_each(|time| *time = begin.max(last.min(*time)));
            }
            Fault::TimesGoToTheNewEvents => batch.recorded_at = self.times_of_the_new(&given).await,
            Fault::AcceptsAnyTimes => {
                if let Some(times) = &mut batch.recorded_at {
                    times.resize(batch.events.len(), SystemTime::UNIX_EPOCH);
                }
            }
            Fault::TextOnly | Fault::NormalisesMetadata | Fault::FoldsIds => {
                batch.events = batch.events.iter().map(|event| self.rewritten(event)).collect();
            }
            Fault::MixedBatchIsUnconditional => {
                for event in &given.events {
                    if self.inner.get(background, event.id()).await.is_ok() {
                        batch.expected = Expected::Any;
                    }
                }
            }
            _ => {}
        }
        if self.has(Fault::VerifyFindsWriters) {
            // Slow enough that writers are still active when the first verification begins.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        let dropped = self.has(Fault::DropsSomeWrites) && self.every(7);
        let buffered = self.has(Fault::BufferedIsNotWritten) && batch.durability == Some(Durability::Buffered);
        if dropped || buffered {
            let next = self.inner.latest_version(ctx).await?.next();
            return Ok(vec![Stored::new(next, Revision::new(1), StoreOutcome::Written); batch.events.len()]);
        }
        let several = batch.events.windows(2).any(|pair| pair[0].aggregate_id() != pair[1].aggregate_id());
        let part = match self.fault {
            Fault::SplitsBatches => 1,
            Fault::SplitsByAggregate if several => 1,
            Fault::SplitsLargeBatches => 1000,
            _ => usize::MAX,
        };
        if batch.events.len() > part {
            let mut stored = Vec::new();
            for part in batch.events.chunks(part) {
                stored.extend(self.inner.store_batch(ctx, part.to_vec().into()).await?);
            }
            return Ok(stored);
        }
        if self.has(Fault::LeaksPlaces)
            && let Ok(place) = self.places.acquire().await
        {
            place.forget();
        }
        let found = self.inner.latest_version(background).await;
        if self.has(Fault::ChecksConditionTooEarly) {
            batch.expected = self.checked_too_early(&batch).await?;
        }
        let _blocked = match self.fault {
            Fault::WaitersBlockWriters | Fault::VerifyHoldsWriters => Some(self.waiting.write().await),
            _ => None,
        };
        let result = self.inner.store_batch(ctx, batch).await;
        if self.has(Fault::QueueCountsWhatWasDropped) {
            self.calls.fetch_sub(1, Ordering::Relaxed);
        }
        if self.has(Fault::LeaksPlaces) {
            self.places.add_permits(1);
        }
        match (self.fault, result) {
            (Fault::BatchReversed, Ok(mut stored)) => {
                stored.reverse();
                Ok(stored)
            }
            (Fault::WrongRevision, Ok(stored)) => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.version.get().into(), s.outcome)).collect())
            }
            (Fault::RepeatTakesTheNewTime, Ok(stored)) => {
                let is_repeated = stored.iter().any(|stored| stored.outcome == StoreOutcome::AlreadyStored);
                self.happened.fetch_or(is_repeated, Ordering::Relaxed);
                Ok(stored)
            }
            (Fault::RepeatTakesTheNewMetadata, Ok(stored)) => {
                let repeated =
                    given.events.iter().zip(&stored).filter(|(_, at)| at.outcome == StoreOutcome::AlreadyStored);
                repeated.for_each(|(event, _)| self.inner.overwrite(event));
                Ok(stored)
            }
            (Fault::LosesUpdates, Ok(stored)) => {
                // Concurrent appends that looked at the same time get the same positions.
                let first = stored.iter().find(|stored| stored.outcome == StoreOutcome::Written);
                let shift = first.map_or(0, |first| first.version.get()).saturating_sub(found?.next().get());
                let earlier = |s: &Stored| match s.outcome {
                    StoreOutcome::Written => Stored::new((s.version.get() - shift).into(), s.revision, s.outcome),
                    StoreOutcome::AlreadyStored => *s,
                };
                Ok(stored.iter().map(earlier).collect())
            }
            (Fault::ChecksIdsTooEarly, Ok(stored)) => {
                let found = found?;
                let not_seen = |s: &Stored| if s.version > found { StoreOutcome::Written } else { s.outcome };
                Ok(stored.iter().map(|s| Stored::new(s.version, s.revision, not_seen(s))).collect())
            }
            (Fault::WrittenAlways, Ok(stored)) => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.revision, StoreOutcome::Written)).collect())
            }
            (Fault::RepeatIsDuplicate, Ok(stored)) => {
                match stored.iter().position(|stored| stored.outcome == StoreOutcome::AlreadyStored) {
                    Some(at) => {
                        let id = given.events[at].id().to_owned();
                        Err(Error::DuplicateEvent { id, version: Some(stored[at].version) })
                    }
                    None => Ok(stored),
                }
            }
            (Fault::RepeatChecksCondition, Ok(stored)) => {
                let aggregate_id = given.events.first().map_or("", Event::aggregate_id);
                let revision = self.inner.aggregate_revision(background, aggregate_id).await?;
                let latest = self.inner.latest_version(background).await?;
                if stored.iter().any(|s| s.outcome == StoreOutcome::Written) || given.expected.holds(revision, latest) {
                    return Ok(stored);
                }
                let actual = Actual::of(given.expected, aggregate_id, revision, latest);
                Err(Error::VersionConflict { expected: given.expected, actual })
            }
            (Fault::DuplicateIsIgnored, Err(Error::DuplicateEvent { version, .. })) => {
                let version = version.unwrap_or(Version::new(1));
                Ok(vec![Stored::new(version, Revision::new(1), StoreOutcome::AlreadyStored); given.events.len()])
            }
            (Fault::ConflictTellsNothing, Err(Error::VersionConflict { expected, .. })) => {
                let aggregate_id = given.events.first().map_or("", Event::aggregate_id);
                let actual = Actual::of(expected, aggregate_id, Revision::ZERO, Version::ZERO);
                Err(Error::VersionConflict { expected, actual })
            }
            (Fault::BackupForgetsIds, Ok(stored)) if self.is_backup => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.revision, StoreOutcome::Written)).collect())
            }
            (Fault::GcForgetsIds, Ok(stored)) if self.happened.load(Ordering::Relaxed) => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.revision, StoreOutcome::Written)).collect())
            }
            (Fault::BufferedIsLostWhenDropped, Ok(stored)) => {
                if given.durability != Some(Durability::Buffered) {
                    let latest = self.inner.latest_version(background).await?;
                    self.durable.store(latest.get(), Ordering::Relaxed);
                }
                Ok(stored)
            }
            (Fault::ConditionsForgetWhenReopened, Ok(stored)) => {
                self.remember(given.events.iter().map(|event| event.aggregate_id().to_owned()));
                Ok(stored)
            }
            (Fault::ConditionBeforeDuplicate, Err(error @ Error::DuplicateEvent { .. })) => {
                let aggregate_id = given.events.first().map_or("", Event::aggregate_id);
                let revision = self.inner.aggregate_revision(background, aggregate_id).await?;
                let latest = self.inner.latest_version(background).await?;
                if given.expected.holds(revision, latest) {
                    return Err(error);
                }
                let actual = Actual::Store { latest };
                Err(Error::VersionConflict { expected: given.expected, actual })
            }
            (Fault::InnerDuplicateHidesTheVersion, Err(Error::DuplicateEvent { id, .. })) if repeats_inside(&given) => {
                Err(Error::DuplicateEvent { id, version: None })
            }
            (Fault::ComparesBeginnings, Err(error @ Error::DuplicateEvent { .. })) => {
                let Ok(there) = self.inner.get(background, given.events[0].id()).await else { return Err(error) };
                if beginning(&there.event) == beginning(&given.events[0]) {
                    return Ok(vec![Stored::new(there.version, there.revision, StoreOutcome::AlreadyStored)]);
                }
                Err(error)
            }
            (Fault::RepeatsHaveNoLimit, Err(error @ Error::InvalidEvent { .. })) => {
                let mut places = Vec::new();
                for event in &given.events {
                    let Ok(there) = self.inner.get(background, event.id()).await else { return Err(error) };
                    places.push(Stored::new(there.version, there.revision, StoreOutcome::AlreadyStored));
                }
                Ok(places)
            }
            (Fault::DigestCountsRefused, Err(error)) => {
                self.happened.store(true, Ordering::Relaxed);
                Err(error)
            }
            (Fault::RefusedMakesTheAggregate, Err(error)) => {
                self.remember(given.events.iter().map(|event| event.aggregate_id().to_owned()));
                Err(error)
            }
            (Fault::RefusedKeepsItsIds, Err(error)) => {
                self.remember(given.events.iter().map(|event| event.id().to_owned()));
                Err(error)
            }
            (Fault::FencesAfterAConflict, Err(error @ Error::VersionConflict { .. })) => {
                self.happened.store(true, Ordering::Relaxed);
                Err(error)
            }
            (Fault::ConflictGuesses, Err(Error::VersionConflict { expected, actual })) => {
                let guess = (self.running.load(Ordering::Relaxed) - 1) * 100;
                let actual = match actual {
                    Actual::Aggregate { id, revision } => {
                        Actual::Aggregate { id, revision: (revision.get() + guess).into() }
                    }
                    Actual::Store { latest } => Actual::Store { latest: (latest.get() + guess).into() },
                    other => other,
                };
                Err(Error::VersionConflict { expected, actual })
            }
            (Fault::RefusedIsWritten, Err(error)) => {
                let filler = Event::builder("Refused", "refused").build()?;
                self.inner.append(filler.into())?;
                Err(error)
            }
            (Fault::WritesWhenCancelled, Err(error @ (Error::Cancelled | Error::DeadlineExceeded))) => {
                self.inner.append(given)?;
                Err(error)
            }
            (Fault::UnknownIsHalf, Err(Error::Cancelled)) => {
                self.inner.append(given.events[..1].to_vec().into())?;
                Err(Error::OutcomeUnknown { reason: "half".to_owned(), source: None })
            }
            (_, result) => result,
        }
    }

    /// Checks the condition before it is this append's turn. Returns what is left of the condition.
    async fn checked_too_early(&self, batch: &Batch) -> Result<Expected> {
        let background = &Context::background();
        let aggregate_id = batch.events.first().map_or("", Event::aggregate_id);
        let revision = self.inner.aggregate_revision(background, aggregate_id).await?;
        let latest = self.inner.latest_version(background).await?;
        Ok(if batch.expected.holds(revision, latest) { Expected::Any } else { batch.expected })
    }

    /// Appends that are answered without further checks.
    async fn refusal(&self, batch: &Batch) -> Option<Result<Vec<Stored>>> {
        let background = &Context::background();
        match self.fault {
            Fault::NothingIsAlwaysDone if batch.events.is_empty() => Some(Ok(vec![])),
            Fault::EmptyTimesAreRefused if batch.events.is_empty() && batch.recorded_at.is_some() => {
                Some(Err(Error::invalid_event("recorded_at", "there are none")))
            }
            Fault::ByteLimitIsExclusive if batch.len_bytes() == MAX_BATCH_BYTES => {
                Some(Err(Error::invalid_event("batch", "it is large")))
            }
            Fault::FencesAfterAConflict if self.happened.load(Ordering::Relaxed) => {
                Some(Err(Error::Fenced { reason: "there was a conflict".to_owned() }))
            }
            Fault::FencesAfterAPanic if self.remembers(PANIC) => {
                Some(Err(Error::Fenced { reason: "there was a panic".to_owned() }))
            }
            Fault::ReadersMayAppend if self.inner.0.is_read_only => Some(self.inner.append(batch.clone())),
            Fault::KnowsOneRuntime if !self.is_at_home() => {
                Some(Err(Error::engine("find the runtime", "it is another one")))
            }
            Fault::RefusedKeepsItsIds | Fault::OverlappingBatchesAreDuplicates => {
                let taken = batch.events.iter().find(|event| self.remembers(event.id()))?;
                let same = self.inner.get(background, taken.id()).await.is_ok_and(|there| there.event == *taken);
                let id = taken.id().to_owned();
                (!same).then_some(Err(Error::DuplicateEvent { id, version: None }))
            }
            Fault::ConditionsForgetWhenReopened if self.number > 0 && batch.expected.is_about_aggregate() => {
                let aggregate_id = batch.events.first()?.aggregate_id();
                let forgotten = !self.remembers(aggregate_id) && !batch.expected.holds(Revision::ZERO, Version::ZERO);
                let actual = Actual::of(batch.expected, aggregate_id, Revision::ZERO, Version::ZERO);
                forgotten.then_some(Err(Error::VersionConflict { expected: batch.expected, actual }))
            }
            _ => None,
        }
    }

    /// The explicit times, assigned to the new events of the batch in order.
    async fn times_of_the_new(&self, batch: &Batch) -> Option<Vec<SystemTime>> {
        let mut times = batch.recorded_at.clone()?;
        let mut named = times.clone().into_iter();
        for (event, time) in batch.events.iter().zip(&mut times) {
            if self.inner.get(&Context::background(), event.id()).await.is_err() {
                *time = named.next()?;
            }
        }
        Some(times)
    }

    fn rewritten(&self, event: &Event) -> Event {
        let mut builder = Event::builder(event.event_type(), event.aggregate_id())
            .id(event.id())
            .data(event.data().to_vec())
            .metadata_json(event.metadata());
        match self.fault {
            Fault::TextOnly => builder = builder.data(String::from_utf8_lossy(event.data()).into_owned()),
            Fault::NormalisesMetadata => builder = builder.metadata_json(event.metadata().replace(' ', "")),
            Fault::FoldsIds => builder = builder.id(event.id().to_lowercase()),
            _ => {}
        }
        builder.build().expect("it was valid before")
    }
}

/// A running append.
struct Running<'store>(&'store Mutant, Vec<String>);

impl<'store> Running<'store> {
    fn new(store: &'store Mutant, batch: &Batch) -> Self {
        store.running.fetch_add(1, Ordering::Relaxed);
        let mut ids = Vec::new();
        if store.has(Fault::OverlappingBatchesAreDuplicates) {
            ids.extend(batch.events.iter().map(|event| event.id().to_owned()));
        }
        store.remember(ids.iter().cloned());
        Running(store, ids)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.forget(&self.1);
    }
}

fn repeats_inside(batch: &Batch) -> bool {
    let ids: HashSet<_> = batch.events.iter().map(Event::id).collect();
    ids.len() < batch.events.len()
}

/// What a store compares that reads only the first kilobyte.
fn beginning(event: &Event) -> (&str, &str, usize, &str, &[u8]) {
    let (metadata, data) = (event.metadata(), event.data());
    let first_of = |length: usize| length.min(1024);
    let lengths = metadata.len() + data.len();
    (
        event.event_type(),
        event.aggregate_id(),
        lengths,
        metadata.get(..first_of(metadata.len())).unwrap_or(metadata),
        &data[..first_of(data.len())],
    )
}

//! Faults of appends.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use eventstore_api::{
    Batch, Context, Durability, Error, Event, EventStore, Expected, Result, StoreOutcome, Stored, Version,
};

use crate::fault::Fault;
use crate::store::Mutant;

impl Mutant {
    pub(crate) async fn append(&self, ctx: &Context, mut batch: Batch) -> Result<Vec<Stored>> {
        let ctx = &self.context(ctx)?;
        if self.has(Fault::StatsCountAppends) {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        let background = &Context::background();
        let given = batch.clone();
        match self.fault {
            Fault::IgnoresExpectation => batch.expected = Expected::Any,
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
        let dropped = self.has(Fault::DropsSomeWrites) && self.every(7);
        let buffered = self.has(Fault::BufferedIsNotWritten) && batch.durability == Some(Durability::Buffered);
        if dropped || buffered {
            let next = self.inner.latest_version(ctx).await?.next();
            return Ok(vec![Stored::new(next, 1, StoreOutcome::Written); batch.events.len()]);
        }
        if self.has(Fault::SplitsBatches) && batch.events.len() > 1 {
            let mut stored = Vec::new();
            for event in batch.events {
                stored.extend(self.inner.store_batch(ctx, event.into()).await?);
            }
            return Ok(stored);
        }
        if self.has(Fault::LeaksPlaces)
            && let Ok(place) = self.places.acquire().await
        {
            place.forget();
        }
        let _blocked = match self.fault {
            Fault::WaitersBlockWriters => Some(self.waiting.write().await),
            _ => None,
        };
        let result = self.inner.store_batch(ctx, batch).await;
        if self.has(Fault::LeaksPlaces) {
            self.places.add_permits(1);
        }
        match (self.fault, result) {
            (Fault::BatchReversed, Ok(mut stored)) => {
                stored.reverse();
                Ok(stored)
            }
            (Fault::WrongRevision, Ok(stored)) => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.version.get(), s.outcome)).collect())
            }
            (Fault::RepeatTakesTheNewTime, Ok(stored)) => {
                let is_repeated = stored.iter().any(|stored| stored.outcome == StoreOutcome::AlreadyStored);
                self.happened.fetch_or(is_repeated, Ordering::Relaxed);
                Ok(stored)
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
                let aggregate_id = given.expected.is_about_aggregate().then(|| aggregate_id.to_owned());
                Err(Error::VersionConflict { aggregate_id, expected: given.expected, actual: revision })
            }
            (Fault::DuplicateIsIgnored, Err(Error::DuplicateEvent { version, .. })) => {
                let version = version.unwrap_or(Version::new(1));
                Ok(vec![Stored::new(version, 1, StoreOutcome::AlreadyStored); given.events.len()])
            }
            (Fault::ConflictTellsNothing, Err(Error::VersionConflict { aggregate_id, expected, .. })) => {
                Err(Error::VersionConflict { aggregate_id, expected, actual: 0 })
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

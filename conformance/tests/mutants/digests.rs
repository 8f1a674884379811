//! Faults of digests.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use eventstore_api::{
    Context, Digest, Error, Event, EventStore, EventStoreExt, LoadOptions, RecordedEvent, Result, Version,
};

use crate::fault::Fault;
use crate::store::Mutant;

impl Mutant {
    pub(crate) async fn digest_until(&self, ctx: &Context, until: Version) -> Result<Digest> {
        let ctx = &self.context(ctx)?;
        let latest = self.inner.latest_version(ctx).await?;
        let digest = match self.fault {
            Fault::DigestForgetsMetadata => self.chained(ctx, until, without_metadata).await,
            Fault::DigestForgetsTheOlder => {
                let events = self
                    .inner
                    .load(ctx, LoadOptions::all().before(until.next()).backward().limit(3))
                    .into_vec()
                    .await?;
                Ok(events.iter().rev().fold(Digest::EMPTY, Digest::chain))
            }
            Fault::DigestCountsTimes => self.chained(ctx, until, with_its_time).await,
            Fault::DigestIsAlwaysEmpty => self.inner.digest(ctx, Version::ZERO).await,
            Fault::DigestIsAlwaysOfAll => self.inner.digest(ctx, latest).await,
            Fault::DigestRoundsDown => {
                let until = until.min(latest).get();
                self.inner.digest(ctx, Version::new(if until > 8 { until - until % 8 } else { until })).await
            }
            Fault::DigestBeyondTheEndIsAnError if until > latest && until.get() < u64::MAX => {
                Err(Error::engine("make the digest", "there is no such version"))
            }
            Fault::DigestLagsBehind => {
                let seen = self.durable.swap(latest.get(), Ordering::Relaxed);
                self.inner.digest(ctx, until.min(Version::new(seen))).await
            }
            _ => self.inner.digest(ctx, until).await,
        }?;
        let is_wrong = match self.fault {
            Fault::DigestCountsRefused => self.happened.load(Ordering::Relaxed),
            Fault::BackupHasADigestOfItsOwn => self.is_backup && until > Version::ZERO,
            Fault::DigestStartsAnewWhenReopened => self.latest_at_opening > 0,
            _ => false,
        };
        Ok(if is_wrong { wrong(digest) } else { digest })
    }

    async fn chained(
        &self,
        ctx: &Context,
        until: Version,
        changed: fn(RecordedEvent) -> RecordedEvent,
    ) -> Result<Digest> {
        let events = self.inner.load(ctx, Version::ZERO).into_vec().await?;
        let events = events.into_iter().filter(|event| event.version <= until);
        Ok(events.fold(Digest::EMPTY, |digest, event| digest.chain(&changed(event))))
    }
}

fn wrong(digest: Digest) -> Digest {
    Digest::from_bytes(digest.as_bytes().map(|byte| !byte))
}

fn without_metadata(mut recorded: RecordedEvent) -> RecordedEvent {
    let event = recorded.event;
    let plain = Event::builder(event.event_type(), event.aggregate_id()).id(event.id()).data(event.data_bytes());
    recorded.event = plain.build().expect("it was valid before");
    recorded
}

fn with_its_time(mut recorded: RecordedEvent) -> RecordedEvent {
    let time = recorded.recorded_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    recorded.revision = (recorded.revision.get() + time.as_micros() as u64).into();
    recorded
}

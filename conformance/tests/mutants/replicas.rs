//! Faults of syncing, pulling and pushing.

use eventstore_api::{
    Batch, Context, Durability, Error, EventStore, EventStoreExt, Expected, PageSize, Place, Pulled, Pushed, Result,
    Version,
};

use crate::fault::Fault;
use crate::store::Mutant;

impl Mutant {
    /// The newest version that was not appended with `Buffered`.
    async fn last_synced(&self, ctx: &Context) -> Result<Version> {
        let all = self.inner.load(ctx, Version::ZERO).into_vec().await?;
        let buffered = Durability::Buffered.to_string();
        let is_synced = |id: &str| !id.starts_with(&buffered);
        Ok(all.iter().rev().find(|event| is_synced(event.event.id())).map_or(Version::ZERO, |last| last.version))
    }

    pub(crate) async fn synced(&self, ctx: &Context) -> Result<Version> {
        let ctx = &self.context(ctx)?;
        match self.fault {
            Fault::SyncForgetsBuffered => self.last_synced(ctx).await,
            _ => self.inner.sync(ctx).await,
        }
    }

    pub(crate) async fn pulled(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        let ctx = &self.context(ctx)?;
        let latest = self.inner.latest_version(ctx).await?;
        let of_this_history = |digest| Place::new(since.version, digest);
        let mut place = since;
        match self.fault {
            Fault::PullIgnoresThePlace if since.version <= latest => {
                place = of_this_history(self.inner.digest(ctx, since.version).await?);
            }
            Fault::PullTakesTheBeginningOfADigest if since.version <= latest => {
                let found = of_this_history(self.inner.digest(ctx, since.version).await?);
                if found.cursor() == since.cursor() {
                    place = found;
                }
            }
            Fault::PullsBeyondTheEndAreEmpty if since.version > latest => {
                return Ok(Pulled::new(Vec::new(), since.version));
            }
            _ => {}
        }
        let mut pulled = self.inner.pull(ctx, place, size).await?;
        match self.fault {
            Fault::PullForgetsBuffered => {
                pulled.head = self.last_synced(ctx).await?;
                pulled.events.retain(|event| event.version <= pulled.head);
            }
            Fault::PullHasGapsWhenBusy if self.is_busy() && pulled.events.len() > 2 => {
                pulled.events.remove(1);
            }
            _ => {}
        }
        Ok(pulled)
    }

    pub(crate) async fn pushed(&self, ctx: &Context, at: Place, mut batches: Vec<Batch>) -> Result<Pushed> {
        let ctx = &self.context(ctx)?;
        match self.fault {
            Fault::PushOfNothingIsRefused if batches.is_empty() => {
                return Err(Error::invalid_event("batch", "there is none"));
            }
            Fault::PushGoesBackwards => batches.reverse(),
            Fault::PushIgnoresConditions => {
                for batch in &mut batches {
                    batch.expected = Expected::Any;
                }
            }
            Fault::PushGoesOnAfterARefusal => {
                self.inner.push(ctx, at, Vec::new()).await?;
                let (mut stored, mut refused) = (Vec::new(), None);
                for batch in batches {
                    match self.inner.store_batch(ctx, batch).await {
                        Ok(places) => stored.push(places),
                        Err(error) => refused = refused.or(Some(error)),
                    }
                }
                return Ok(Pushed::new(stored, refused, self.inner.latest_version(ctx).await?));
            }
            _ => {}
        }
        self.inner.push(ctx, at, batches).await
    }
}

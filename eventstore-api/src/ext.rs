use std::future::Future;

use crate::{Batch, Context, Error, Event, EventStore, EventStream, Expected, LoadOptions, Result, Stored, Version};

/// What callers use most, on top of [`EventStore`]: available on every store handle that can be cloned, such as
/// `Arc<dyn EventStore>`.
pub trait EventStoreExt: EventStore + Clone {
    /// Appends one event if `expected` holds, with the store's durability.
    ///
    /// For several events at once, or another durability, see [`EventStore::store_batch`].
    ///
    /// # Errors
    ///
    /// Those of [`EventStore::store_batch`].
    fn store(&self, ctx: &Context, event: Event, expected: Expected) -> impl Future<Output = Result<Stored>> + Send {
        async move {
            let stored = self.store_batch(ctx, Batch::from(event).expected(expected)).await?;
            stored.into_iter().next().ok_or_else(|| Error::OutcomeUnknown {
                reason: "the store returned no place for the event".to_owned(),
                source: None,
            })
        }
    }

    /// Loads events: since a version, or as the [`LoadOptions`] say. Rules O4 to O6, O9.
    ///
    /// Errors come through the stream. See [`EventStream`] for how it behaves when dropped.
    fn load(&self, ctx: &Context, options: impl Into<LoadOptions>) -> EventStream {
        EventStream::load(self.clone(), ctx.clone(), options.into())
    }

    /// Loads events of one aggregate: since a version of the store, or as the [`LoadOptions`] say. Rule O8.
    fn load_by_aggregate(
        &self,
        ctx: &Context,
        aggregate_id: impl Into<String>,
        options: impl Into<LoadOptions>,
    ) -> EventStream {
        self.load(ctx, options.into().aggregate(aggregate_id))
    }

    /// Follows the store: every event after a version that is there, then each new one as it is appended. Rules S1, S2.
    ///
    /// With [`LoadOptions`] it follows one aggregate, or ends after a number of events. It ends with `Closed` when the
    /// store is closed, and with the context's error when that ends: `Err(Cancelled)` is how a subscription is stopped.
    ///
    /// A projection saves `version.get()` of the last event it has applied and subscribes from there when it starts
    /// again; [`EventStream::next_page`] gives what can be applied and saved together. A version beyond the newest event
    /// is waited for: after a backup was restored, compare with `latest_version` first.
    fn subscribe(&self, ctx: &Context, options: impl Into<LoadOptions>) -> EventStream {
        EventStream::subscribe(self.clone(), ctx.clone(), options.into())
    }

    /// Reads a version from its text form, for callers who keep it as text. The same as `text.parse()`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidVersion`].
    fn parse_version(&self, text: &str) -> Result<Version> {
        text.parse()
    }
}

impl<S: EventStore + Clone> EventStoreExt for S {}

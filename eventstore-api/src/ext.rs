use std::future::Future;
use std::time::Duration;

use crate::{
    Batch, Context, Cursor, Error, Event, EventStore, EventStream, Expected, Gc, GcReport, LoadOptions, Result, Stored,
    Version,
};

/// The most common calls, on top of [`EventStore`]. Every store handle that can be cloned has them, such as
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
                reason: "the store returned no position for the event".to_owned(),
                source: None,
            })
        }
    }

    /// Loads events: those after a version, or those that the [`LoadOptions`] select. Rules O4 to O6, O8, O9.
    ///
    /// Errors come through the stream. See [`EventStream`] for the effect of dropping it.
    fn load(&self, ctx: &Context, options: impl Into<LoadOptions>) -> EventStream {
        EventStream::load(self.clone(), ctx.clone(), options.into())
    }

    /// Loads events of one aggregate: those after a version of the store, or those that the [`LoadOptions`] select.
    /// Rule O8.
    fn load_by_aggregate(
        &self,
        ctx: &Context,
        aggregate_id: impl Into<String>,
        options: impl Into<LoadOptions>,
    ) -> EventStream {
        self.load(ctx, options.into().aggregate(aggregate_id))
    }

    /// Follows the store: every stored event after a version, then each new one as it is appended. Rules S1, S2.
    ///
    /// [`LoadOptions`] restrict it to one aggregate or by filters, or limit the number of events. Each event is read
    /// once, whether a filter accepts it or not. The stream ends with `Closed` when the store is closed, and with the
    /// context's error when the context ends: to stop a subscription, cancel its context.
    ///
    /// A projection saves `version.get()` of the last event that it has applied, and subscribes from there when it
    /// restarts. [`EventStream::next_page`] returns events that can be applied and saved together. If the version is
    /// beyond the newest event, the stream waits for it: after a backup was restored, compare with `latest_version`
    /// first.
    fn subscribe(&self, ctx: &Context, options: impl Into<LoadOptions>) -> EventStream {
        EventStream::subscribe(self.clone(), ctx.clone(), options.into())
    }

    /// Runs a garbage collection every `period`, until the context ends or the store is closed, and passes each result
    /// to `report`. After an error, the next collection runs as usual.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use eventstore_api::{Context, EventStore, EventStoreExt, Gc};
    /// # fn start<S: EventStore + Clone>(store: S, ctx: Context) {
    /// tokio::spawn(async move {
    ///     store.run_gc_every(&ctx, Duration::from_secs(600), Gc::Quick, |result| println!("{result:?}")).await;
    /// });
    /// # }
    /// ```
    fn run_gc_every<F>(&self, ctx: &Context, period: Duration, gc: Gc, mut report: F) -> impl Future<Output = ()> + Send
    where
        F: FnMut(Result<GcReport>) + Send,
    {
        async move {
            while ctx.run(tokio::time::sleep(period)).await.is_ok() {
                match self.run_gc(ctx, gc).await {
                    Err(Error::Closed) => return,
                    Err(_) if ctx.check().is_err() => return,
                    result => report(result),
                }
            }
        }
    }

    /// The cursor after the event with this version, to resume from later.
    ///
    /// # Errors
    ///
    /// `InvalidVersion` if the store ends before this version, and those of [`EventStore::digest`].
    fn cursor_at(&self, ctx: &Context, version: Version) -> impl Future<Output = Result<Cursor>> + Send {
        async move {
            let latest = self.latest_version(ctx).await?;
            if version > latest {
                let reason = format!("the store ends at version {latest}");
                return Err(Error::InvalidVersion { text: version.to_string(), reason });
            }
            Ok(Cursor::new(version, self.digest(ctx, version).await?))
        }
    }

    /// Checks that the store has the history of this cursor (rule S3).
    ///
    /// # Errors
    ///
    /// `HistoryDiverged` if it has another history or ends before the cursor, and those of [`EventStore::digest`].
    fn check_cursor(&self, ctx: &Context, cursor: Cursor) -> impl Future<Output = Result<()>> + Send {
        async move {
            if cursor == Cursor::START {
                return Ok(());
            }
            let latest = self.latest_version(ctx).await?;
            let found = self.cursor_at(ctx, cursor.version().min(latest)).await?;
            if found == cursor { Ok(()) } else { Err(Error::HistoryDiverged { cursor, found }) }
        }
    }

    /// Reads a version from its text form, for callers who keep it as text. Same as `text.parse()`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidVersion`].
    fn parse_version(&self, text: &str) -> Result<Version> {
        text.parse()
    }
}

impl<S: EventStore + Clone> EventStoreExt for S {}

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eventstore_api::{
    Batch, Context, Durability, Error, EventStore, Expected, Idempotency, Result, Revision, StoreOutcome, Stored,
    Version,
};

use crate::call::{BoxFuture, call_options};

/// An append. It starts when it is awaited. See [`Store::append`](crate::Store::append).
#[derive(Clone, Debug)]
#[must_use = "nothing is appended until it is awaited"]
pub struct Append {
    store: Arc<dyn EventStore>,
    ctx: Context,
    batch: Batch,
    until_known: bool,
}

impl Append {
    pub(crate) fn new(store: Arc<dyn EventStore>, batch: Batch) -> Self {
        Append { store, ctx: Context::background(), batch, until_known: false }
    }

    /// Appends only if this condition holds; otherwise returns [`VersionConflict`](crate::Error::VersionConflict). A
    /// condition about an aggregate requires all events to belong to that aggregate.
    pub fn expected(mut self, expected: Expected) -> Self {
        self.batch.expected = expected;
        self
    }

    /// Sets when the append may return. The default is the store's setting: [`Durability::Sync`], unless the store was
    /// opened with another.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.batch.durability = Some(durability);
        self
    }

    /// Returns as soon as the events survive a kill of the process: [`Durability::Buffered`]. A power cut may lose the newest ones.
    pub fn buffered(self) -> Self {
        self.durability(Durability::Buffered)
    }

    /// Sets which content is compared when an event is appended again (rule W2). With [`Idempotency::Data`] the metadata may
    /// differ, such as a trace id; with [`Idempotency::Id`] anything may.
    pub fn idempotency(mut self, idempotency: Idempotency) -> Self {
        self.batch.idempotency = idempotency;
        self
    }

    /// After [`OutcomeUnknown`](crate::Error::OutcomeUnknown), retries with the same events until the outcome is known,
    /// or until the deadline or the cancellation token ends the call. If only reopening the store can tell the outcome,
    /// it stays unknown.
    ///
    /// ```
    /// use std::time::Duration;
    /// use eventstore::testing::{Fault, faulty};
    /// use eventstore::{Event, Version};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let (store, faults) = faulty(eventstore::open("memory:").await?);
    /// faults.next_append(Fault::LoseAnswer);
    /// let event = Event::builder("OrderPlaced", "order-42").build()?;
    /// store.append(event).until_known().timeout(Duration::from_secs(5)).await?;
    /// assert_eq!(store.latest_version().await?, Version::new(1));
    /// # Ok::<(), eventstore::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn until_known(mut self) -> Self {
        self.until_known = true;
        self
    }

    /// Sets the recording times, one per event, for events that were recorded elsewhere.
    pub fn recorded_at(mut self, times: impl IntoIterator<Item = SystemTime>) -> Self {
        self.batch.recorded_at = Some(times.into_iter().collect());
        self
    }
}

call_options!(impl Append);

impl IntoFuture for Append {
    type Output = Result<Appended>;
    type IntoFuture = BoxFuture<'static, Result<Appended>>;

    fn into_future(self) -> Self::IntoFuture {
        let Append { store, ctx, batch, until_known } = self;
        Box::pin(async move {
            let places = match until_known {
                true => append_until_known(&*store, &ctx, batch).await?,
                false => store.store_batch(&ctx, batch).await?,
            };
            Ok(Appended::new(places))
        })
    }
}

/// Appends, and after an unknown outcome appends the same events again, until the outcome is known.
pub(crate) async fn append_until_known(store: &dyn EventStore, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
    let (mut pause, mut unknown) = (Duration::from_millis(5), None);
    loop {
        match store.store_batch(ctx, batch.clone()).await {
            Err(error @ Error::OutcomeUnknown { .. }) if error.is_retryable() => {
                unknown = Some(error);
                if ctx.run(tokio::time::sleep(pause)).await.is_err() {
                    break;
                }
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            // Repetitions are detected before a condition is checked, so a conflict means that nothing was written.
            result @ (Ok(_) | Err(Error::VersionConflict { .. } | Error::DuplicateEvent { .. })) => return result,
            // Nothing was written by this attempt, but possibly by an earlier one.
            Err(error) => return Err(unknown.unwrap_or(error)),
        }
    }
    Err(unknown.unwrap_or(Error::Cancelled))
}

/// The positions of appended events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Appended {
    /// The smallest version; [`Version::ZERO`] if there were no events.
    pub first: Version,
    /// The greatest version; [`Version::ZERO`] if there were no events.
    pub last: Version,
    /// The revision of the last event in its aggregate: the condition for the next append to that aggregate.
    pub revision: Revision,
    /// `Written` if this call wrote at least one event, `AlreadyStored` if all were stored before (rule W2).
    pub outcome: StoreOutcome,
    places: Vec<Stored>,
}

impl Appended {
    pub(crate) fn new(places: Vec<Stored>) -> Self {
        let versions = || places.iter().map(|place| place.version);
        let is_written = |place: &Stored| place.outcome == StoreOutcome::Written;
        Appended {
            first: versions().min().unwrap_or_default(),
            last: versions().max().unwrap_or_default(),
            revision: places.last().map_or(Revision::ZERO, |place| place.revision),
            outcome: match places.iter().any(is_written) {
                true => StoreOutcome::Written,
                false => StoreOutcome::AlreadyStored,
            },
            places,
        }
    }

    /// The position of each event, in the order of the append.
    #[must_use]
    pub fn places(&self) -> &[Stored] {
        &self.places
    }
}

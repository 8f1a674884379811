//! For tests: a store that fails on request, and given-when-then tests for aggregates.
//!
//! ```
//! use eventstore::testing::{Fault, faulty};
//! use eventstore::{Error, Event, StoreOutcome};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let (store, faults) = faulty(eventstore::open("memory:").await?);
//! let event = Event::builder("OrderPlaced", "order-42").build()?;
//!
//! faults.next_append(Fault::LoseAnswer);
//! let unknown = store.append(event.clone()).await;
//! assert!(matches!(unknown, Err(Error::OutcomeUnknown { .. })));
//! // Repeating the same event shows that it was written.
//! assert_eq!(store.append(event).await?.outcome, StoreOutcome::AlreadyStored);
//! # Ok::<(), eventstore::Error>(())
//! # }).unwrap();
//! ```

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, Error, EventStore, Gc, GcReport,
    LoadOptions, Page, PageSize, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport, Version, async_trait,
};

use crate::{Aggregate, Store};

/// A fault to inject into a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails with this error and does nothing.
    Refuse(Error),
    /// The call does nothing and fails with `DeadlineExceeded`.
    TimeOut,
    /// An append is written, but its answer is lost: `OutcomeUnknown`. A read fails with `Engine`.
    LoseAnswer,
    /// An append is not written, and the caller cannot know that: `OutcomeUnknown`. A read fails with `Engine`.
    LoseRequest,
    /// The call is delayed by this duration.
    Delay(Duration),
}

/// Wraps a store. Returns a handle that can fail, and the faults to inject.
#[must_use]
pub fn faulty(store: Store) -> (Store, Faults) {
    let faults = Faults::default();
    let store = FaultyStore { inner: store.backend().clone(), faults: faults.clone() };
    (Store::new(store), faults)
}

/// Faults for the next calls of a store. Each call takes the first fault in the queue.
///
/// # Clone
///
/// Clones share the same queues.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    appends: VecDeque<Fault>,
    reads: VecDeque<Fault>,
    fenced: Option<String>,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a fault for one append.
    pub fn next_append(&self, fault: Fault) {
        self.state().appends.push_back(fault);
    }

    /// Queues a fault for one read, of a page or of a single event.
    pub fn next_read(&self, fault: Fault) {
        self.state().reads.push_back(fault);
    }

    /// Appends are `Fenced` from now on, as after a failed sync (rule F1).
    pub fn fence(&self, reason: impl Into<String>) {
        self.state().fenced = Some(reason.into());
    }

    /// Removes all faults, as if the store had been reopened.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// The number of faults that are still queued.
    #[must_use]
    pub fn left(&self) -> usize {
        let state = self.state();
        state.appends.len() + state.reads.len()
    }
}

#[derive(Debug)]
struct FaultyStore {
    inner: Arc<dyn EventStore>,
    faults: Faults,
}

impl FaultyStore {
    async fn read<T>(&self, ctx: &Context, work: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = self.faults.state().reads.pop_front();
        match fault {
            None => work.await,
            Some(Fault::Delay(delay)) => {
                ctx.run(tokio::time::sleep(delay)).await?;
                work.await
            }
            Some(Fault::Refuse(error)) => Err(error),
            Some(Fault::TimeOut) => Err(Error::DeadlineExceeded),
            Some(Fault::LoseAnswer | Fault::LoseRequest) => {
                Err(Error::engine("read", "the answer was lost (injected by a test)"))
            }
        }
    }
}

#[async_trait]
impl EventStore for FaultyStore {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        let (fenced, fault) = {
            let mut state = self.faults.state();
            (state.fenced.clone(), state.appends.pop_front())
        };
        if let Some(reason) = fenced {
            return Err(Error::Fenced { reason });
        }
        let unknown =
            |reason: &str| Error::OutcomeUnknown { reason: format!("{reason} (injected by a test)"), source: None };
        match fault {
            None => self.inner.store_batch(ctx, batch).await,
            Some(Fault::Delay(delay)) => {
                ctx.run(tokio::time::sleep(delay)).await?;
                self.inner.store_batch(ctx, batch).await
            }
            Some(Fault::Refuse(error)) => Err(error),
            Some(Fault::TimeOut) => Err(Error::DeadlineExceeded),
            Some(Fault::LoseAnswer) => {
                self.inner.store_batch(ctx, batch).await?;
                Err(unknown("the answer was lost"))
            }
            Some(Fault::LoseRequest) => Err(unknown("the request was lost")),
        }
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.read(ctx, self.inner.load_page(ctx, options, size)).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.read(ctx, self.inner.get(ctx, id)).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.inner.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.read(ctx, self.inner.aggregate_revision(ctx, aggregate_id)).await
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        self.read(ctx, self.inner.list_aggregates(ctx, options, most)).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.inner.wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.inner.run_gc(ctx, gc).await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        self.inner.backup(ctx, target).await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.inner.verify(ctx).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.read(ctx, self.inner.digest(ctx, until)).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let mut stats = self.inner.stats(ctx).await?;
        if let Some(reason) = &self.faults.state().fenced {
            stats.fenced = Some(reason.clone());
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

/// Starts a test of an aggregate with its past events.
///
/// ```
/// use eventstore::Aggregate;
/// use eventstore::testing::given;
///
/// #[derive(Default)]
/// struct Order {
///     is_paid: bool,
/// }
///
/// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// enum OrderEvent {
///     Placed,
///     Paid,
/// }
///
/// #[derive(Debug, PartialEq)]
/// struct AlreadyPaid;
///
/// impl Aggregate for Order {
///     type Event = OrderEvent;
///     type Error = AlreadyPaid;
///
///     fn apply(&mut self, event: OrderEvent) {
///         self.is_paid |= event == OrderEvent::Paid;
///     }
/// }
///
/// fn pay(order: &Order) -> Result<Vec<OrderEvent>, AlreadyPaid> {
///     if order.is_paid { Err(AlreadyPaid) } else { Ok(vec![OrderEvent::Paid]) }
/// }
///
/// given::<Order>([OrderEvent::Placed]).when(pay).then([OrderEvent::Paid]);
/// given::<Order>([OrderEvent::Placed, OrderEvent::Paid]).when(pay).then_error(AlreadyPaid);
/// ```
///
/// # Panics
///
/// If an event cannot be read back from a store.
#[must_use = "nothing is tested until `then` says what is expected"]
#[track_caller]
#[allow(clippy::panic, reason = "it fails a test")]
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let mut state = A::default();
    for event in events {
        // As a store returns it.
        let stored = crate::Event::of("aggregate", &event);
        match stored.and_then(|stored| stored.decode()) {
            Ok(event) => state.apply(event),
            Err(error) => panic!("an event cannot be read back from a store: {error}"),
        }
    }
    Given { state }
}

/// An aggregate with its past events. See [`given`].
#[must_use = "nothing is tested until `then` says what is expected"]
#[derive(Debug)]
pub struct Given<A> {
    state: A,
}

impl<A: Aggregate> Given<A> {
    /// Calls the decision under test.
    pub fn when(self, decision: impl FnOnce(&A) -> Result<Vec<A::Event>, A::Error>) -> When<A> {
        When { decided: decision(&self.state) }
    }
}

/// The result of a decision. See [`given`].
#[must_use = "nothing is tested until `then` says what is expected"]
pub struct When<A: Aggregate> {
    decided: Result<Vec<A::Event>, A::Error>,
}

impl<A: Aggregate> When<A>
where
    A::Event: Debug + PartialEq,
    A::Error: Debug,
{
    /// Asserts that the decision produced these events, and that they survive encoding and decoding.
    ///
    /// # Panics
    ///
    /// If it did not.
    #[track_caller]
    #[allow(clippy::panic, reason = "it fails a test")]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) {
        let expected: Vec<_> = expected.into_iter().collect();
        match self.decided {
            Ok(decided) => {
                assert_eq!(decided, expected, "the decision produced other events");
                for event in &decided {
                    let stored = crate::Event::of("aggregate", event);
                    let read = stored.and_then(|stored| stored.decode::<A::Event>());
                    assert_eq!(read.as_ref().ok(), Some(event), "it cannot be read back from a store: {read:?}");
                }
            }
            Err(refused) => panic!("the decision was rejected: {refused:?}; expected events: {expected:?}"),
        }
    }

    /// Asserts that the decision was rejected with this error.
    ///
    /// # Panics
    ///
    /// If it was not rejected, or with another error.
    #[track_caller]
    #[allow(clippy::panic, reason = "it fails a test")]
    pub fn then_error(self, expected: A::Error)
    where
        A::Error: PartialEq,
    {
        match self.decided {
            Err(refused) => assert_eq!(refused, expected, "the decision was rejected for another reason"),
            Ok(decided) => panic!("the decision produced {decided:?}; expected rejection: {expected:?}"),
        }
    }
}

impl<A: Aggregate> fmt::Debug for When<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("When").field("is_refused", &self.decided.is_err()).finish()
    }
}

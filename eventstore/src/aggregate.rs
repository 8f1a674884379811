//! Decisions on the state of an aggregate.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;

use eventstore_api::{
    Batch, Context, Error, Event, EventStore, EventStoreExt, EventStream, Expected, LoadOptions, RecordedEvent, Result,
    Revision, StoreOutcome, Stored, Version,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::Store;
use crate::append::{Appended, append_until_known};
use crate::call::{BoxFuture, Call, call_options};
use crate::snapshots::{Codec, SnapshotPolicy};

/// The state of one aggregate, rebuilt from its events; decisions are made on it.
///
/// It starts as its `Default`, and each event changes it. `apply` cannot fail, because its event has already happened. Reject a
/// command in the decision, before its event exists.
///
/// ```
/// use eventstore::Aggregate;
///
/// #[derive(Default)]
/// struct Account {
///     balance: u64,
/// }
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// enum AccountEvent {
///     Deposited { cents: u64 },
///     Withdrawn { cents: u64 },
/// }
///
/// #[derive(Clone, Debug, PartialEq)]
/// struct Overdrawn;
///
/// impl Aggregate for Account {
///     type Event = AccountEvent;
///     type Error = Overdrawn;
///
///     fn apply(&mut self, event: AccountEvent) {
///         match event {
///             AccountEvent::Deposited { cents } => self.balance += cents,
///             AccountEvent::Withdrawn { cents } => self.balance -= cents,
///         }
///     }
/// }
///
/// impl Account {
///     fn deposit(&self, cents: u64) -> Result<Vec<AccountEvent>, Overdrawn> {
///         Ok(vec![AccountEvent::Deposited { cents }])
///     }
///
///     fn withdraw(&self, cents: u64) -> Result<Vec<AccountEvent>, Overdrawn> {
///         if cents > self.balance {
///             return Err(Overdrawn);
///         }
///         Ok(vec![AccountEvent::Withdrawn { cents }])
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let store = eventstore::open("memory:").await?;
/// store.decide::<Account>("account-7", |account| account.deposit(100)).await?;
/// let done = store.decide::<Account>("account-7", |account| account.withdraw(30)).await?;
/// assert_eq!(done.state.balance, 70);
/// let refused = store.decide::<Account>("account-7", |account| account.withdraw(71)).await;
/// assert_eq!(refused.err().and_then(|error| error.rejection().cloned()), Some(Overdrawn));
/// # Ok::<(), eventstore::DecideError<Overdrawn>>(())
/// # }).unwrap();
/// ```
pub trait Aggregate: Default + Send {
    /// Its events: an enum whose variants are the event types. See [`Event::of`].
    type Event: Serialize + DeserializeOwned + Send;

    /// Why a decision rejects a command. [`Infallible`](std::convert::Infallible) if it never does.
    type Error: Send;

    /// Applies an event to the state.
    fn apply(&mut self, event: Self::Event);
}

/// An aggregate, loaded from the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded<A> {
    /// Its state.
    pub state: A,
    /// The revision of its newest event; [`Revision::ZERO`] if it has none.
    pub revision: Revision,
    /// The version of its newest event; [`Version::ZERO`] if it has none.
    pub version: Version,
}

/// The result of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decided<A> {
    /// The state, with the new events applied.
    pub state: A,
    /// The revision of its newest event.
    pub revision: Revision,
    /// The positions of the decision's events; `None` if it produced none. Their outcome is `AlreadyStored` if an earlier
    /// attempt with the same idempotency key appended them.
    pub appended: Option<Appended>,
    /// The stored events of an earlier attempt with the same idempotency key; empty if there was no such attempt.
    pub earlier: Vec<RecordedEvent>,
}

/// Why a decision failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DecideError<E> {
    /// The decision rejected the command; nothing was written.
    Rejected(E),
    /// The store failed.
    Store(Error),
}

impl<E> DecideError<E> {
    /// The error of the decision, if it rejected the command.
    pub fn rejection(&self) -> Option<&E> {
        match self {
            DecideError::Rejected(rejection) => Some(rejection),
            DecideError::Store(_) => None,
        }
    }
}

impl<E> From<Error> for DecideError<E> {
    fn from(error: Error) -> Self {
        DecideError::Store(error)
    }
}

impl<E: fmt::Display> fmt::Display for DecideError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecideError::Rejected(rejection) => rejection.fmt(f),
            DecideError::Store(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for DecideError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DecideError::Rejected(rejection) => rejection.source(),
            DecideError::Store(error) => error.source(),
        }
    }
}

impl Store {
    /// Loads an aggregate: its state and its revision.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load); `Decode` if one of its events has a type that [`Aggregate::Event`] does not
    /// know, or another shape.
    pub fn aggregate<'a, A: Aggregate + 'a>(&self, aggregate_id: impl Into<String>) -> Call<'a, Loaded<A>> {
        let (store, id) = (self.backend().clone(), aggregate_id.into());
        Call::new(move |ctx| async move {
            let mut loaded = Loaded::default();
            catch_up(&store, &ctx, &id, &mut loaded).await.map(|_| loaded)
        })
    }

    /// Loads an aggregate, calls `decision` with its state, and appends the returned events on the condition that the
    /// aggregate has not changed meanwhile (optimistic concurrency).
    ///
    /// After a conflict, `decision` is called again with the new state, so it must have no side effects. After
    /// [`OutcomeUnknown`](crate::Error::OutcomeUnknown), the *same* events are appended again. These retries end with
    /// the deadline or the cancellation token of the call.
    ///
    /// See [`Aggregate`] for an example, [`idempotency_key`](Decide::idempotency_key) for commands that may be repeated
    /// after a restart, and [`snapshots`](Decide::snapshots) for aggregates with very many events.
    ///
    /// # Errors
    ///
    /// [`Rejected`](DecideError::Rejected) with the error of `decision`; [`Store`](DecideError::Store) with those of
    /// [`aggregate`](Store::aggregate) and [`append`](Store::append), except conflicts. `DuplicateEvent` if the
    /// [key](Decide::idempotency_key) was used for another command. `InvalidEvent` if an event could not be read back,
    /// such as one with a NaN float: it would break every later decision.
    pub fn decide<'a, A: Aggregate + 'a>(
        &self,
        aggregate_id: impl Into<String>,
        decision: impl FnMut(&A) -> Result<Vec<A::Event>, A::Error> + Send + 'a,
    ) -> Decide<'a, A> {
        Decide {
            store: self.backend().clone(),
            ctx: Context::background(),
            aggregate_id: aggregate_id.into(),
            decision: Box::new(decision),
            command: Command::default(),
            attempts: usize::MAX,
            snapshots: None,
        }
    }
}

type Decision<'a, A> = dyn FnMut(&A) -> Result<Vec<<A as Aggregate>::Event>, <A as Aggregate>::Error> + Send + 'a;

/// A decision. It starts when it is awaited. See [`Store::decide`].
#[must_use = "nothing is decided until it is awaited"]
pub struct Decide<'a, A: Aggregate> {
    store: Arc<dyn EventStore>,
    ctx: Context,
    aggregate_id: String,
    decision: Box<Decision<'a, A>>,
    command: Command,
    attempts: usize,
    snapshots: Option<(SnapshotPolicy, Codec<A>)>,
}

/// What all events of a decision share.
#[derive(Debug, Default)]
struct Command {
    key: Option<String>,
    metadata: Option<Result<String>>,
    correlation_id: Option<String>,
    cause: Option<Event>,
}

impl<'a, A: Aggregate + 'a> Decide<'a, A> {
    /// Makes the command idempotent. The ids of its events are derived from the aggregate id and this key. If these
    /// events are already stored, nothing is appended, and their positions are returned with the current state of the
    /// aggregate, even after a restart. The metadata may differ between attempts, such as a trace id; the first
    /// attempt's metadata is kept.
    ///
    /// The sender of the command chooses the key, such as the header `Idempotency-Key` of an HTTP request. It must be
    /// unique per aggregate. A command that produced no events is decided again.
    ///
    /// Reuse of a key for another command is [`DuplicateEvent`](crate::Error::DuplicateEvent) if the stored events show
    /// it: they belong to another aggregate, or the decision, called once more with the state that the first attempt
    /// saw, returns events of other types. This check reads the aggregate's events up to there. Events of the same
    /// types with other content count as a repetition. So do a rejection and a decision without events, because what a
    /// decision depends on besides the state, such as the time, may have changed. To detect these as well, store the
    /// command in the [`metadata`](Self::metadata) and compare it with that of [`Decided::earlier`].
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.command.key = Some(key.into());
        self
    }

    /// Sets the metadata of each event, a JSON object.
    pub fn metadata<M: Serialize + ?Sized>(mut self, metadata: &M) -> Self {
        let text = serde_json::to_string(metadata);
        let text = text.map_err(|error| Error::invalid_event("metadata", format!("it is not JSON: {error}")));
        self.command.metadata = Some(text);
        self
    }

    /// Sets the correlation id of each event: the id of the process or request that the command belongs to.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.command.correlation_id = Some(id.into());
        self
    }

    /// Records this event as the cause of each new event. See [`EventBuilder::caused_by`](crate::EventBuilder::caused_by).
    pub fn caused_by(mut self, cause: &Event) -> Self {
        self.command.cause = Some(cause.clone());
        self
    }

    /// Limits the number of times that the decision is called, at least 1; then the last conflict is returned. The
    /// default is no limit, because each conflict means that another append succeeded.
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Loads the aggregate from a snapshot and saves new snapshots, as the policy says.
    pub fn snapshots(mut self, policy: &SnapshotPolicy) -> Self
    where
        A: Serialize + DeserializeOwned,
    {
        self.snapshots = Some((policy.clone(), Codec::new()));
        self
    }

    async fn run(self) -> Result<Decided<A>, DecideError<A::Error>> {
        let Decide { store, ctx, aggregate_id, mut decision, command, attempts, snapshots } = self;
        let id = aggregate_id.as_str();
        let mut loaded = match &snapshots {
            Some((policy, codec)) => policy.load(&*store, &ctx, id, codec).await?.unwrap_or_default(),
            None => Loaded::default(),
        };
        let snapshot = loaded.revision;
        let is_of_earlier = |place: &Stored| place.outcome == StoreOutcome::AlreadyStored;
        let has_key = command.key.is_some();
        let mut failed = None;
        let mut attempted: Option<(Revision, Vec<String>)> = None;
        for attempt in 1.. {
            catch_up(&store, &ctx, id, &mut loaded).await?;
            // Only after loading the aggregate: an attempt that is stored later than this check violates the condition
            // on the revision.
            let earlier = command.already_appended(&*store, &ctx, id).await?;
            if let Some(first) = earlier.first() {
                let types = match attempted.take() {
                    // It decided on the same state.
                    Some((revision, types)) if revision.next() == first.revision => types,
                    _ => types_of(&decided_before(&store, &ctx, id, first.version, &mut *decision).await?),
                };
                refuse_other(id, &earlier, &types)?;
                catch_up(&store, &ctx, id, &mut loaded).await?;
                let place =
                    |event: &RecordedEvent| Stored::new(event.version, event.revision, StoreOutcome::AlreadyStored);
                let appended = Some(Appended::new(earlier.iter().map(place).collect()));
                let Loaded { state, revision, .. } = loaded;
                return Ok(Decided { state, revision, appended, earlier });
            }
            if let Some(error) = failed {
                return Err(DecideError::Store(error)); // not a conflict with an attempt of the same command
            }
            let decided = decision(&loaded.state).map_err(DecideError::Rejected)?;
            if decided.is_empty() {
                let Loaded { state, revision, .. } = loaded;
                return Ok(Decided { state, revision, appended: None, earlier });
            }
            let events = command.events(id, &decided)?;
            let decided = read_back(&events)?;
            if has_key {
                attempted = Some((loaded.revision, types_of(&events)));
            }
            let batch = Batch::new(events).expected(Expected::Revision(loaded.revision));
            match append_until_known(&*store, &ctx, batch).await {
                // Another attempt of the same command was faster. It may have produced more events, and other events
                // may precede them.
                Ok(places) if has_key && places.iter().any(is_of_earlier) => {}
                Ok(places) => {
                    let appended = Appended::new(places);
                    (loaded.revision, loaded.version) = (appended.revision, appended.last);
                    decided.into_iter().for_each(|event| loaded.state.apply(event));
                    if let Some((policy, codec)) = &snapshots
                        && policy.is_due(snapshot, loaded.revision)
                    {
                        let digest = store.digest(&ctx, loaded.version).await;
                        let taken = digest.and_then(|digest| policy.encode(id, &loaded, digest, codec));
                        policy.keep(&ctx, id, taken).await;
                    }
                    let Loaded { state, revision, .. } = loaded;
                    return Ok(Decided { state, revision, appended: Some(appended), earlier });
                }
                Err(Error::VersionConflict { .. }) if attempt < attempts => {}
                Err(error @ Error::VersionConflict { .. }) if has_key => failed = Some(error),
                // Another attempt of the same command was faster and decided otherwise.
                Err(error @ Error::DuplicateEvent { .. }) if has_key => failed = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("an attempt ends it")
    }
}

impl Command {
    fn events<E: Serialize>(&self, aggregate_id: &str, decided: &[E]) -> Result<Vec<Event>> {
        let metadata = self.metadata.clone().transpose()?;
        let event = |(nth, event): (u32, &E)| {
            let mut builder = Event::typed(aggregate_id, event);
            if let Some(key) = &self.key {
                builder = builder.id(id_of(aggregate_id, key, nth));
            }
            if let Some(metadata) = &metadata {
                builder = builder.metadata_json(metadata);
            }
            if let Some(cause) = &self.cause {
                builder = builder.caused_by(cause);
            }
            if let Some(id) = &self.correlation_id {
                builder = builder.correlation_id(id);
            }
            builder.build()
        };
        (0..).zip(decided).map(event).collect()
    }

    /// The events of an earlier attempt.
    async fn already_appended(
        &self,
        store: &dyn EventStore,
        ctx: &Context,
        aggregate_id: &str,
    ) -> Result<Vec<RecordedEvent>> {
        let mut earlier = Vec::new();
        let Some(key) = &self.key else { return Ok(earlier) };
        for nth in 0.. {
            match store.get(ctx, &id_of(aggregate_id, key, nth)).await {
                Ok(recorded) => earlier.push(recorded),
                Err(Error::EventNotFound { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(earlier)
    }
}

call_options!(impl<'a, A: Aggregate + 'a> Decide<'a, A>);

impl<'a, A: Aggregate + 'a> IntoFuture for Decide<'a, A> {
    type Output = Result<Decided<A>, DecideError<A::Error>>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<A: Aggregate> fmt::Debug for Decide<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decide")
            .field("aggregate_id", &self.aggregate_id)
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

/// Applies the events that the aggregate does not have yet.
async fn catch_up<A: Aggregate>(
    store: &Arc<dyn EventStore>,
    ctx: &Context,
    aggregate_id: &str,
    loaded: &mut Loaded<A>,
) -> Result<()> {
    take_up(store.load_by_aggregate(ctx, aggregate_id, loaded.version), loaded).await
}

/// An aggregate as it was before this version.
pub(crate) async fn load_before<A: Aggregate>(
    store: &Arc<dyn EventStore>,
    ctx: &Context,
    aggregate_id: &str,
    version: Version,
) -> Result<Loaded<A>> {
    let mut loaded = Loaded::default();
    take_up(store.load(ctx, LoadOptions::all().aggregate(aggregate_id).before(version)), &mut loaded).await?;
    Ok(loaded)
}

async fn take_up<A: Aggregate>(mut events: EventStream, loaded: &mut Loaded<A>) -> Result<()> {
    while let Some(page) = events.next_page().await {
        for recorded in &page? {
            loaded.state.apply(recorded.decode()?);
            (loaded.revision, loaded.version) = (recorded.revision, recorded.version);
        }
    }
    Ok(())
}

/// The result of a decision on the state before this version. Empty if the decision rejects the command there, or if
/// that state is unknown, for example because a snapshot stands for events whose shape has changed.
async fn decided_before<A: Aggregate>(
    store: &Arc<dyn EventStore>,
    ctx: &Context,
    aggregate_id: &str,
    version: Version,
    decision: &mut Decision<'_, A>,
) -> Result<Vec<Event>> {
    let then: Loaded<A> = match load_before(store, ctx, aggregate_id, version).await {
        Err(Error::Decode { .. }) => return Ok(Vec::new()),
        then => then?,
    };
    let decided = decision(&then.state).unwrap_or_default();
    let events = decided.iter().map(|event| Event::of(aggregate_id, event)).collect::<Result<_>>();
    Ok(events.unwrap_or_default())
}

fn types_of(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.event_type().to_owned()).collect()
}

/// Rejects a key whose events belong to another command, as far as the events show it. Their number is not compared: it
/// may depend on more than the state.
fn refuse_other(aggregate_id: &str, earlier: &[RecordedEvent], types: &[String]) -> Result<()> {
    let of_another_type = earlier.iter().zip(types).find(|(earlier, wanted)| earlier.event.event_type() != *wanted);
    let of_another_type = of_another_type.map(|(earlier, _)| earlier);
    let other = earlier.iter().find(|earlier| earlier.event.aggregate_id() != aggregate_id).or(of_another_type);
    match other {
        Some(other) => Err(Error::DuplicateEvent { id: other.event.id().to_owned(), version: Some(other.version) }),
        None => Ok(()),
    }
}

/// The events of a decision as a load would return them. Events that cannot be read back would break every later load.
fn read_back<E: DeserializeOwned>(events: &[Event]) -> Result<Vec<E>> {
    let read = |event: &Event| {
        let refused = |error: Error| Error::invalid_event("data", format!("it could not be read back: {error}"));
        event.decode().map_err(refused)
    };
    events.iter().map(read).collect()
}

/// The id of an event of a command that has a key.
fn id_of(aggregate_id: &str, key: &str, nth: u32) -> String {
    let mut hash = Sha256::new();
    for part in [aggregate_id.as_bytes(), key.as_bytes(), &nth.to_be_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::new_v8(bytes).to_string()
}

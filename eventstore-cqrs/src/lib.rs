//! An event repository for [cqrs-es](cqrs_es) over [eventstore]: aggregates, commands, queries and tests stay as they are, and
//! the events go to an embedded store instead of a database server.
//!
//! ```
//! use cqrs_es::CqrsFramework;
//! use cqrs_es::persist::PersistedEventStore;
//! use eventstore_cqrs::StoreRepository;
//! # use cqrs_es::doc::{Customer, CustomerCommand, CustomerService};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let store = eventstore::open("memory:").await?; // or "lmdb:./data", which is kept
//! let events = PersistedEventStore::<_, Customer>::new_event_store(StoreRepository::new(store.clone()));
//! let cqrs = CqrsFramework::new(events, vec![], CustomerService);
//! cqrs.execute("customer-7", CustomerCommand::UpdateEmail { new_email: "ada@example.com".into() }).await?;
//!
//! // What is there is there for everything else that a store can do.
//! let recorded = store.load(eventstore::Version::ZERO).aggregate("Customer/customer-7").await?;
//! assert_eq!(recorded[0].event.event_type(), "EmailUpdated");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How events stand in the store
//!
//! | cqrs-es | here |
//! |---|---|
//! | `Aggregate::TYPE` and the aggregate's id | the aggregate id `TYPE/id`; so `TYPE` must not have a `/` in it |
//! | sequence | revision |
//! | event type | type |
//! | payload | data, as JSON: [`Event::json`](eventstore::Event::json) reads it, not `decode` |
//! | metadata | metadata, and in it the member `cqrs-es` with the event's version and snapshots |
//!
//! # Concurrency
//!
//! Events are appended on the condition that the aggregate has no others than those that the command saw. If it has,
//! [`OptimisticLockError`](PersistenceError::OptimisticLockError) says so, which `execute` gives as `AggregateConflict`: execute the
//! command again. An append whose outcome is unknown is repeated until it is known.
//!
//! # Snapshots
//!
//! A snapshot is in the metadata of the event that it ends with, so both are written together or not at all, and copies and
//! backups have it. It is made of the events: what the framework hands over is only taken as the wish for one, since cqrs-es
//! 0.5.0 applies the events of a command to it twice. A snapshot is left out, with a warning in the log, if it makes the metadata
//! larger than 1 MiB, or if an older event can only be read through an upcaster. `new_aggregate_store` reads nothing but the
//! newest snapshot: for aggregates that have events without one take `new_snapshot_store`.

#![forbid(unsafe_code)]

use std::time::Duration;

use cqrs_es::persist::{PersistedEventRepository, PersistenceError, ReplayStream, SerializedEvent, SerializedSnapshot};
use cqrs_es::{Aggregate, EventEnvelope};
use eventstore::{Error, Event, EventStream, Expected, RecordedEvent, Revision, Store, Version, limits};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The member of the metadata that is not the user's.
const OURS: &str = "cqrs-es";

/// How many events of a replay wait to be taken.
const AHEAD: usize = 256;

/// The events of cqrs-es in a store. See the [crate].
///
/// # Clone
///
/// Cheap: clones use the same store.
#[derive(Clone, Debug)]
pub struct StoreRepository {
    store: Store,
    timeout: Duration,
}

/// What cqrs-es keeps of an event beside what a store does.
#[derive(Serialize, Deserialize)]
struct Ours {
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<Snapshot>,
}

/// The aggregate with all events up to the one that has it.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    number: usize,
    state: Value,
}

impl StoreRepository {
    /// In this store, which others may use as well.
    #[must_use]
    pub fn new(store: Store) -> Self {
        StoreRepository { store, timeout: Duration::from_secs(30) }
    }

    /// How long a call may take; 30 s without this. An append that is not done by then has written nothing, or is
    /// [`OutcomeUnknown`](Error::OutcomeUnknown).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// An event of the store as cqrs-es has it, for a [`Projection`](eventstore::Projection) over the events of an aggregate type;
    /// `None` if it is of something else.
    ///
    /// # Errors
    ///
    /// `DeserializationError` if it does not have the shape of `A::Event`.
    pub fn envelope<A: Aggregate>(recorded: &RecordedEvent) -> Result<Option<EventEnvelope<A>>, PersistenceError> {
        if !recorded.event.aggregate_id().starts_with(&prefix::<A>()?) {
            return Ok(None);
        }
        let (event, _) = read::<A>(recorded)?;
        EventEnvelope::try_from(event).map(Some)
    }

    /// The newest snapshot of the aggregate, and where it is.
    async fn newest_snapshot<A: Aggregate>(&self, id: &str) -> Result<Option<(Revision, Snapshot)>, PersistenceError> {
        let load = self.store.load(Version::ZERO).aggregate(id).backward();
        let mut events = load.timeout(self.timeout).stream();
        while let Some(recorded) = events.next().await {
            let recorded = recorded.map_err(failed)?;
            if let (_, Some(snapshot)) = read::<A>(&recorded)? {
                return Ok(Some((recorded.revision, snapshot)));
            }
        }
        Ok(None)
    }

    /// What the aggregate is once these events have happened to it. If it has others meanwhile, that is wrong, but then these
    /// are not appended.
    async fn state_with<A: Aggregate>(&self, id: &str, events: &[SerializedEvent]) -> Result<Value, PersistenceError> {
        let (since, mut aggregate) = match self.newest_snapshot::<A>(id).await? {
            Some((revision, snapshot)) => (revision, serde_json::from_value(snapshot.state)?),
            None => (Revision::ZERO, A::default()),
        };
        let load = self.store.load(Version::ZERO).aggregate(id).since_revision(since).timeout(self.timeout);
        for recorded in &load.await.map_err(failed)? {
            aggregate.apply(serde_json::from_value(read::<A>(recorded)?.0.payload)?);
        }
        for event in events {
            aggregate.apply(serde_json::from_value(event.payload.clone())?);
        }
        Ok(serde_json::to_value(aggregate)?)
    }

    async fn load<A: Aggregate>(&self, id: &str, since: usize) -> Result<Vec<SerializedEvent>, PersistenceError> {
        let since = Revision::new(since as u64);
        let load = self.store.load(Version::ZERO).aggregate(key::<A>(id)?).since_revision(since);
        let events = load.timeout(self.timeout).await.map_err(failed)?;
        events.iter().map(|recorded| read::<A>(recorded).map(|(event, _)| event)).collect()
    }
}

impl PersistedEventRepository for StoreRepository {
    async fn get_events<A: Aggregate>(&self, aggregate_id: &str) -> Result<Vec<SerializedEvent>, PersistenceError> {
        self.load::<A>(aggregate_id, 0).await
    }

    async fn get_last_events<A: Aggregate>(
        &self,
        aggregate_id: &str,
        last_sequence: usize,
    ) -> Result<Vec<SerializedEvent>, PersistenceError> {
        self.load::<A>(aggregate_id, last_sequence).await
    }

    async fn get_snapshot<A: Aggregate>(
        &self,
        aggregate_id: &str,
    ) -> Result<Option<SerializedSnapshot>, PersistenceError> {
        let newest = self.newest_snapshot::<A>(&key::<A>(aggregate_id)?).await?;
        Ok(newest.map(|(revision, snapshot)| SerializedSnapshot {
            aggregate_id: aggregate_id.to_owned(),
            aggregate: snapshot.state,
            current_sequence: revision.get() as usize,
            current_snapshot: snapshot.number,
        }))
    }

    async fn persist<A: Aggregate>(
        &self,
        events: &[SerializedEvent],
        snapshot_update: Option<(String, Value, usize)>,
    ) -> Result<(), PersistenceError> {
        let Some(first) = events.first() else { return Ok(()) };
        let id = key::<A>(&first.aggregate_id)?;
        let is_next = |(event, sequence): (&SerializedEvent, usize)| event.sequence == sequence;
        if !events.iter().zip(first.sequence.max(1)..).all(is_next) {
            return Err(PersistenceError::OptimisticLockError);
        }
        let snapshot = match snapshot_update {
            None => None,
            Some((_, _, number)) => match self.state_with::<A>(&id, events).await {
                Ok(state) => Some(Snapshot { number, state }),
                Err(error) => {
                    tracing::warn!(aggregate_id = id, %error, "a snapshot was left out");
                    None
                }
            },
        };
        let mut stored = events.iter().map(|event| write(&id, event, None)).collect::<Result<Vec<_>, _>>()?;
        if let (Some(snapshot), Some((event, last))) = (snapshot, events.last().zip(stored.last_mut())) {
            match write(&id, event, Some(snapshot)) {
                Ok(with_snapshot) => *last = with_snapshot,
                Err(error) => tracing::warn!(aggregate_id = id, %error, "a snapshot was left out"),
            }
        }
        let expected = Expected::Revision(Revision::new(first.sequence as u64 - 1));
        let append = self.store.append(stored).expected(expected).until_known().timeout(self.timeout);
        append.await.map(drop).map_err(failed)
    }

    async fn stream_events<A: Aggregate>(&self, aggregate_id: &str) -> Result<ReplayStream, PersistenceError> {
        Ok(replay::<A>(self.store.load(Version::ZERO).aggregate(key::<A>(aggregate_id)?).stream()))
    }

    async fn stream_all_events<A: Aggregate>(&self) -> Result<ReplayStream, PersistenceError> {
        Ok(replay::<A>(self.store.load(Version::ZERO).aggregate_prefix(prefix::<A>()?).stream()))
    }
}

/// What the ids of the aggregates of a type begin with. The first `/` ends the type, so no two types share one.
fn prefix<A: Aggregate>() -> Result<String, PersistenceError> {
    if A::TYPE.is_empty() || A::TYPE.contains('/') {
        let reason = format!("the aggregate type {:?} is empty or has a '/' in it; give it another name", A::TYPE);
        return Err(PersistenceError::UnknownError(reason.into()));
    }
    Ok(format!("{}/", A::TYPE))
}

fn key<A: Aggregate>(id: &str) -> Result<String, PersistenceError> {
    let key = prefix::<A>()? + id;
    if key.len() > limits::MAX_AGGREGATE_ID_LEN {
        let most = limits::MAX_AGGREGATE_ID_LEN - A::TYPE.len() - 1;
        let reason = format!("the aggregate id has {} bytes; of a {} it has at most {most}", id.len(), A::TYPE);
        return Err(PersistenceError::UnknownError(reason.into()));
    }
    Ok(key)
}

/// An event as the store keeps it.
fn write(id: &str, event: &SerializedEvent, snapshot: Option<Snapshot>) -> Result<Event, PersistenceError> {
    let Value::Object(mut metadata) = event.metadata.clone() else {
        return Err(PersistenceError::UnknownError("the metadata are no JSON object".into()));
    };
    if metadata.contains_key(OURS) {
        let reason = format!("the metadata have a member {OURS:?}, which is taken; give yours another name");
        return Err(PersistenceError::UnknownError(reason.into()));
    }
    let ours = Ours { version: event.event_version.clone(), snapshot };
    metadata.insert(OURS.to_owned(), serde_json::to_value(ours)?);
    let builder = Event::builder(event.event_type.as_str(), id).json(&event.payload).metadata(&metadata);
    builder.build().map_err(failed)
}

/// The reverse of [`write`].
fn read<A: Aggregate>(recorded: &RecordedEvent) -> Result<(SerializedEvent, Option<Snapshot>), PersistenceError> {
    let event = &recorded.event;
    let mut metadata: Map<String, Value> = event.metadata_as().map_err(failed)?;
    let Some(ours) = metadata.remove(OURS) else {
        let reason = format!("the event at version {} was not written by cqrs-es", recorded.version);
        return Err(PersistenceError::DeserializationError(reason.into()));
    };
    let Ours { version, snapshot } = serde_json::from_value(ours)?;
    let id = event.aggregate_id();
    let serialized = SerializedEvent {
        aggregate_id: id.split_once('/').map_or(id, |(_, id)| id).to_owned(),
        sequence: recorded.revision.get() as usize,
        aggregate_type: A::TYPE.to_owned(),
        event_type: event.event_type().to_owned(),
        event_version: version,
        payload: event.json().map_err(failed)?,
        metadata: Value::Object(metadata),
    };
    Ok((serialized, snapshot))
}

fn replay<A: Aggregate>(mut events: EventStream) -> ReplayStream {
    let (mut feed, stream) = ReplayStream::new(AHEAD);
    tokio::spawn(async move {
        while let Some(recorded) = events.next().await {
            let event = recorded.map_err(failed).and_then(|recorded| read::<A>(&recorded).map(|(event, _)| event));
            if feed.push(event).await.is_err() {
                break; // nobody takes them any more
            }
        }
    });
    stream
}

/// The error of the store is in the box, and can be looked at with `downcast_ref::<eventstore::Error>()`.
fn failed(error: Error) -> PersistenceError {
    match error {
        Error::VersionConflict { .. } => PersistenceError::OptimisticLockError,
        Error::Decode { .. } => PersistenceError::DeserializationError(error.into()),
        Error::InvalidEvent { .. } => PersistenceError::UnknownError(error.into()),
        error => PersistenceError::ConnectionError(error.into()),
    }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! What any event repository of cqrs-es has to do, and what a store adds to that.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cqrs_es::event_sink::EventSink;
use cqrs_es::persist::{
    PersistedEventRepository, PersistedEventStore, PersistenceError, QueryReplay, ReplayStream,
    SemanticVersionEventUpcaster, SerializedEvent,
};
use cqrs_es::test::TestFramework;
use cqrs_es::{Aggregate, AggregateError, CqrsFramework, DomainEvent, EventEnvelope, EventStore, Query};
use eventstore::testing::{Fault, faulty};
use eventstore::{Error, Event, Store, Version};
use eventstore_cqrs::StoreRepository;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Adds up, so that an event that is taken up twice or not at all shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    total: u64,
    events: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum SumEvent {
    Added { number: u64 },
}

impl DomainEvent for SumEvent {
    fn event_type(&self) -> String {
        "Added".to_owned()
    }

    fn event_version(&self) -> String {
        "1.0.0".to_owned()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("that is too much")]
struct TooMuch;

impl Aggregate for Sum {
    const TYPE: &'static str = "Sum";
    type Command = Vec<u64>;
    type Event = SumEvent;
    type Error = TooMuch;
    type Services = ();

    async fn handle(&mut self, numbers: Vec<u64>, (): &(), sink: &EventSink<Self>) -> Result<(), TooMuch> {
        for number in numbers {
            if number > 1000 {
                return Err(TooMuch);
            }
            sink.write(SumEvent::Added { number }, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, SumEvent::Added { number }: SumEvent) {
        self.total += number;
        self.events += 1;
    }
}

/// Another type, which may have the same ids.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Other;

impl Aggregate for Other {
    const TYPE: &'static str = "Su";
    type Command = ();
    type Event = SumEvent;
    type Error = TooMuch;
    type Services = ();

    async fn handle(&mut self, (): (), (): &(), sink: &EventSink<Self>) -> Result<(), TooMuch> {
        sink.write(SumEvent::Added { number: 0 }, self).await;
        Ok(())
    }

    fn apply(&mut self, _: SumEvent) {}
}

async fn memory() -> Store {
    eventstore::open("memory:").await.unwrap()
}

fn serialized(id: &str, sequence: usize, number: u64) -> SerializedEvent {
    let event = EventEnvelope::<Sum> {
        aggregate_id: id.to_owned(),
        sequence,
        payload: SumEvent::Added { number },
        metadata: HashMap::from([("by".to_owned(), "a test".to_owned())]),
    };
    SerializedEvent::try_from(&event).unwrap()
}

async fn numbers<A: Aggregate>(mut stream: ReplayStream) -> Vec<usize> {
    let mut sequences = Vec::new();
    while let Some(event) = stream.next::<A>(&[]).await {
        sequences.push(event.unwrap().sequence);
    }
    sequences
}

#[tokio::test]
async fn events_come_back_as_they_were_given() {
    let repository = StoreRepository::new(memory().await);
    assert!(repository.get_events::<Sum>("a").await.unwrap().is_empty());
    let events = [serialized("a", 1, 5), serialized("a", 2, 6)];
    repository.persist::<Sum>(&events, None).await.unwrap();
    assert_eq!(repository.get_events::<Sum>("a").await.unwrap(), events);
    assert_eq!(repository.get_last_events::<Sum>("a", 1).await.unwrap(), events[1..]);
    assert!(repository.get_last_events::<Sum>("a", 2).await.unwrap().is_empty());
    assert!(repository.get_events::<Sum>("b").await.unwrap().is_empty());
}

#[tokio::test]
async fn events_are_written_in_their_sequence_and_all_or_none() {
    let repository = StoreRepository::new(memory().await);
    repository.persist::<Sum>(&[serialized("a", 1, 5), serialized("a", 2, 6)], None).await.unwrap();
    let wrong = [
        vec![serialized("a", 2, 7)],
        vec![serialized("a", 4, 7)],
        vec![serialized("a", 3, 7), serialized("a", 2, 8)],
        vec![serialized("a", 3, 7), serialized("a", 5, 8)],
        vec![serialized("a", 0, 7)],
        vec![serialized("b", 2, 7)],
    ];
    for events in wrong {
        let refused = repository.persist::<Sum>(&events, None).await;
        assert!(matches!(refused, Err(PersistenceError::OptimisticLockError)), "{events:?}: {refused:?}");
    }
    repository.persist::<Sum>(&[], None).await.unwrap();
    assert_eq!(repository.get_events::<Sum>("a").await.unwrap().len(), 2);
    repository.persist::<Sum>(&[serialized("a", 3, 7)], None).await.unwrap();
}

#[tokio::test]
async fn replays_have_the_events_of_one_aggregate_or_of_one_type() {
    let repository = StoreRepository::new(memory().await);
    // More than wait to be taken.
    let many: Vec<_> = (1..=700).map(|sequence| serialized("a", sequence, 1)).collect();
    repository.persist::<Sum>(&many, None).await.unwrap();
    repository.persist::<Sum>(&[serialized("b", 1, 1)], None).await.unwrap();
    repository.persist::<Other>(&[serialized("a", 1, 1)], None).await.unwrap();
    let of_one = repository.stream_events::<Sum>("a").await.unwrap();
    assert_eq!(numbers::<Sum>(of_one).await, (1..=700).collect::<Vec<_>>());
    assert_eq!(numbers::<Sum>(repository.stream_all_events::<Sum>().await.unwrap()).await.len(), 701);
    assert_eq!(numbers::<Other>(repository.stream_all_events::<Other>().await.unwrap()).await, [1]);
    assert_eq!(repository.get_events::<Other>("a").await.unwrap().len(), 1);
    // A replay that nobody reads to its end.
    drop(repository.stream_all_events::<Sum>().await.unwrap());
}

type Events = PersistedEventStore<StoreRepository, Sum>;

/// Each way in which cqrs-es keeps aggregates.
fn kinds(store: &Store) -> [(&'static str, Events); 4] {
    let repository = || StoreRepository::new(store.clone());
    [
        ("events", PersistedEventStore::new_event_store(repository())),
        ("snapshots", PersistedEventStore::new_snapshot_store(repository(), 2)),
        ("rare snapshots", PersistedEventStore::new_snapshot_store(repository(), 100)),
        ("aggregates", PersistedEventStore::new_aggregate_store(repository())),
    ]
}

#[tokio::test]
async fn aggregates_are_what_their_events_make_of_them_however_they_are_kept() {
    for kind in 0..4 {
        let store = memory().await;
        let open = || {
            let (name, events) = kinds(&store).into_iter().nth(kind).unwrap();
            (name, CqrsFramework::new(events, vec![], ()))
        };
        let mut wanted = Sum::default();
        for numbers in [vec![1], vec![2, 3], vec![4, 5, 6, 7, 8], vec![], vec![9], vec![10, 11, 12]] {
            wanted.total += numbers.iter().sum::<u64>();
            wanted.events += numbers.len() as u64;
            let (name, cqrs) = open();
            cqrs.execute("a", numbers).await.unwrap();
            let (_, events) = kinds(&store).into_iter().nth(kind).unwrap();
            let context = events.load_aggregate("a").await.unwrap();
            assert_eq!((&context.aggregate, context.current_sequence as u64), (&wanted, wanted.events), "{name}");
        }
        let (name, cqrs) = open();
        let refused = cqrs.execute("a", vec![1, 2000]).await;
        assert!(matches!(refused, Err(AggregateError::UserError(TooMuch))), "{name}: {refused:?}");
        assert_eq!(store.latest_version().await.unwrap().get(), wanted.events);
    }
}

#[tokio::test]
async fn snapshots_are_there_when_they_are_due() {
    let store = memory().await;
    let repository = StoreRepository::new(store.clone());
    assert!(repository.get_snapshot::<Sum>("a").await.unwrap().is_none());
    let cqrs = CqrsFramework::new(Events::new_snapshot_store(repository.clone(), 3), vec![], ());
    let mut found = Vec::new();
    for number in 1..=8 {
        cqrs.execute("a", vec![number]).await.unwrap();
        let snapshot = repository.get_snapshot::<Sum>("a").await.unwrap();
        found.push(snapshot.map(|snapshot| (snapshot.current_sequence, snapshot.current_snapshot, snapshot.aggregate)));
    }
    let at = |sequence, number, total| Some((sequence, number, json!({ "total": total, "events": sequence })));
    let (third, sixth) = (at(3, 1, 6), at(6, 2, 21));
    assert_eq!(found, [None, None, third.clone(), third.clone(), third, sixth.clone(), sixth.clone(), sixth]);
    assert!(repository.get_snapshot::<Other>("a").await.unwrap().is_none());
    // Who was overtaken writes neither events nor a snapshot.
    let late = repository.persist::<Sum>(&[serialized("a", 8, 1)], Some(("a".into(), json!({}), 3))).await;
    assert!(matches!(late, Err(PersistenceError::OptimisticLockError)));
    assert_eq!(repository.get_snapshot::<Sum>("a").await.unwrap().unwrap().current_sequence, 6);
}

#[tokio::test]
async fn a_snapshot_of_another_structure_is_made_again_of_the_events() {
    let store = memory().await;
    let repository = StoreRepository::new(store.clone());
    let ours = json!({ "cqrs-es": { "version": "1.0.0", "snapshot": { "number": 1, "state": { "sum": 7 } } } });
    let event = Event::builder("Added", "Sum/a").json(&json!({ "Added": { "number": 7 } })).metadata(&ours);
    store.append(event.build().unwrap()).await.unwrap();
    for (name, events) in kinds(&store) {
        let context = events.load_aggregate("a").await.unwrap();
        assert_eq!((context.aggregate.total, context.current_sequence), (7, 1), "{name}");
    }
    let cqrs = CqrsFramework::new(Events::new_snapshot_store(repository, 2), vec![], ());
    cqrs.execute("a", vec![1]).await.expect("without a snapshot, since the one before cannot be read");
}

#[tokio::test]
async fn old_events_are_led_to_new_shapes() {
    let store = memory().await;
    let ours = json!({ "cqrs-es": { "version": "0.9.0" } });
    let old = Event::builder("Added", "Sum/a").json(&json!({ "Added": { "amount": 4 } })).metadata(&ours);
    store.append(old.build().unwrap()).await.unwrap();
    let renamed = |mut payload: Value| {
        let amount = payload["Added"]["amount"].take();
        payload["Added"] = json!({ "number": amount });
        payload
    };
    for (name, events) in kinds(&store).into_iter().take(3) {
        let refused = events.load_aggregate("a").await.err();
        assert!(matches!(refused, Some(AggregateError::DeserializationError(_))), "{name}: {refused:?}");
        let upcaster = SemanticVersionEventUpcaster::new("Added", "1.0.0", Box::new(renamed));
        let events = events.with_upcasters(vec![Box::new(upcaster)]);
        assert_eq!(events.load_aggregate("a").await.unwrap().aggregate.total, 4, "{name}");
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<EventEnvelope<Sum>>>>);

#[async_trait]
impl Query<Sum> for Seen {
    async fn dispatch(&self, _: &str, events: &[EventEnvelope<Sum>]) {
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

impl Seen {
    fn sequences(&self) -> Vec<usize> {
        self.0.lock().unwrap().iter().map(|event| event.sequence).collect()
    }
}

#[tokio::test]
async fn queries_get_the_events_and_a_replay_gives_them_again() {
    let repository = StoreRepository::new(memory().await);
    let seen = Seen::default();
    let cqrs = CqrsFramework::new(Events::new_event_store(repository.clone()), vec![Box::new(seen.clone())], ());
    let metadata = HashMap::from([("correlation_id".to_owned(), "request-7".to_owned())]);
    cqrs.execute_with_metadata("a", vec![1, 2], metadata.clone()).await.unwrap();
    cqrs.execute("b", vec![3]).await.unwrap();
    assert_eq!(seen.sequences(), [1, 2, 1]);
    let again = Seen::default();
    let replay = QueryReplay::new(repository, again.clone());
    replay.replay("a").await.unwrap();
    assert_eq!(again.sequences(), [1, 2]);
    assert_eq!(again.0.lock().unwrap()[0].metadata, metadata);
    replay.replay_all().await.unwrap();
    assert_eq!(again.sequences(), [1, 2, 1, 2, 1]);
}

#[test]
fn the_test_framework_takes_the_aggregate_as_it_is() {
    let added = |number| SumEvent::Added { number };
    let framework = || TestFramework::<Sum>::with(());
    framework().given(vec![added(1)]).when(vec![2, 3]).then_expect_events(vec![added(2), added(3)]);
    framework().given_no_previous_events().when(vec![2000]).then_expect_error_message("that is too much");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_commands_conflict_and_none_is_lost() {
    for kind in 0..4 {
        let store = memory().await;
        let commands = (0..8).map(|_| {
            let cqrs = CqrsFramework::new(kinds(&store).into_iter().nth(kind).unwrap().1, vec![], ());
            tokio::spawn(async move {
                let mut conflicts = 0;
                for _ in 0..10 {
                    while let Err(error) = cqrs.execute("a", vec![1]).await {
                        assert!(matches!(error, AggregateError::AggregateConflict), "{error:?}");
                        conflicts += 1;
                    }
                }
                conflicts
            })
        });
        for command in commands.collect::<Vec<_>>() {
            command.await.unwrap();
        }
        let (name, events) = kinds(&store).into_iter().nth(kind).unwrap();
        assert_eq!(events.load_aggregate("a").await.unwrap().aggregate, Sum { total: 80, events: 80 }, "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again() {
    let (store, faults) = faulty(memory().await);
    let cqrs = CqrsFramework::new(Events::new_event_store(StoreRepository::new(store.clone())), vec![], ());
    faults.next_append(Fault::LoseAnswer);
    faults.next_append(Fault::LoseRequest);
    cqrs.execute("a", vec![1]).await.unwrap();
    assert_eq!(store.latest_version().await.unwrap(), Version::new(1));
    // What the store says can be looked at.
    faults.fence("a sync failed");
    match cqrs.execute("a", vec![1]).await {
        Err(AggregateError::DatabaseConnectionError(error)) => {
            assert!(matches!(error.downcast_ref(), Some(Error::Fenced { .. })), "{error:?}");
        }
        other => panic!("expected the store's error, got {other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_kept_as_it_was_given_is_refused() {
    #[derive(Debug, Default, Serialize, Deserialize)]
    struct Slash;
    impl Aggregate for Slash {
        const TYPE: &'static str = "Sum/a";
        type Command = ();
        type Event = SumEvent;
        type Error = TooMuch;
        type Services = ();
        async fn handle(&mut self, (): (), (): &(), _: &EventSink<Self>) -> Result<(), TooMuch> {
            Ok(())
        }
        fn apply(&mut self, _: SumEvent) {}
    }
    let repository = StoreRepository::new(memory().await);
    let refused = |result: Result<(), PersistenceError>| match result {
        Err(PersistenceError::UnknownError(reason)) => reason.to_string(),
        other => panic!("expected UnknownError, got {other:?}"),
    };
    assert!(refused(repository.persist::<Slash>(&[serialized("b", 1, 1)], None).await).contains("'/'"));
    let long = "x".repeat(477);
    assert!(refused(repository.persist::<Sum>(&[serialized(&long, 1, 1)], None).await).contains("at most 476"));
    let mut event = serialized("a", 1, 1);
    event.metadata = json!({ "cqrs-es": "mine" });
    assert!(refused(repository.persist::<Sum>(&[event], None).await).contains("is taken"));
    let slashes = "a/b/../\u{0}c";
    repository.persist::<Sum>(&[serialized(slashes, 1, 1)], None).await.unwrap();
    assert_eq!(repository.get_events::<Sum>(slashes).await.unwrap()[0].aggregate_id, slashes);
}

#[tokio::test]
async fn everything_is_there_when_the_store_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("lmdb:{}", directory.path().join("store").display());
    for opened in 1..=3 {
        let store = eventstore::open(&url).await.unwrap();
        let events = Events::new_snapshot_store(StoreRepository::new(store.clone()), 2);
        CqrsFramework::new(events, vec![], ()).execute("a", vec![opened, opened]).await.unwrap();
        let events = Events::new_snapshot_store(StoreRepository::new(store.clone()), 2);
        let context = events.load_aggregate("a").await.unwrap();
        assert_eq!((context.aggregate.events, context.current_snapshot), (2 * opened, Some(opened as usize)));
        let recorded = store.load(Version::ZERO).limit(1).await.unwrap().remove(0);
        let envelope = StoreRepository::envelope::<Sum>(&recorded).unwrap().expect("of this type");
        assert_eq!((envelope.aggregate_id.as_str(), envelope.payload), ("a", SumEvent::Added { number: 1 }));
        assert!(StoreRepository::envelope::<Other>(&recorded).unwrap().is_none());
        store.close().await.unwrap();
    }
}

//! Writers that record the answers to their appends, and a check of the store against them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod several;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backend_postgres::{Options, PostgresStore, open};
use eventstore_api::{
    Batch, CancellationToken, Context, Digest, Durability, Error, Event, EventStore, Expected, LoadOptions, PageSize,
    RecordedEvent, Revision, StoreOutcome, Stored, Version,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A test that waits longer than this hangs.
pub(crate) const LONG: Duration = Duration::from_secs(120);

pub(crate) fn ctx() -> Context {
    Context::background().with_timeout(LONG)
}

pub(crate) fn event(id: &str, aggregate: &str) -> Event {
    Event::builder("T", aggregate).id(id).data("12").build().expect("valid")
}

/// The options of a URL. Only a test that says so gives up early.
pub(crate) fn options(url: &str) -> Options {
    let mut options = Options::from_url(url).expect("valid");
    options.connect_timeout = LONG;
    options.retry_for = LONG;
    options
}

pub(crate) async fn store(url: &str, change: impl FnOnce(&mut Options)) -> PostgresStore {
    let mut options = options(url);
    change(&mut options);
    open(options).await.expect("opened")
}

/// The number of incidents that a test waits for.
pub(crate) fn incidents(usually: u64) -> u64 {
    let wanted = std::env::var("EVENTSTORE_POSTGRES_INCIDENTS").ok();
    wanted.map_or(usually, |text| text.parse().expect("EVENTSTORE_POSTGRES_INCIDENTS is a number"))
}

/// All events of a store. They must be complete.
pub(crate) async fn all(store: &impl EventStore) -> Vec<RecordedEvent> {
    let (mut events, mut next) = (Vec::new(), Some(LoadOptions::all()));
    while let Some(options) = next {
        let page = store.load_page(&ctx(), &options, PageSize::new(10_000, 16 << 20)).await.expect("a page");
        events.extend(page.events);
        next = page.next;
    }
    events
}

/// An attempted append and its answer.
#[derive(Debug)]
struct Attempt {
    events: Vec<Event>,
    /// `None` if the outcome is unknown.
    answer: Option<Answer>,
}

#[derive(Debug)]
enum Answer {
    Stored(Vec<Stored>),
    Refused,
}

/// Tasks that append until they are stopped.
pub(crate) struct Writers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Vec<Attempt>>>,
    /// For each writer, the number of successful appends.
    progress: Vec<watch::Receiver<u64>>,
}

impl Writers {
    /// Starts this many tasks on each of these stores.
    pub(crate) fn start(stores: &[PostgresStore], of_each: u64, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let (mut tasks, mut progress) = (Vec::new(), Vec::new());
        for (nth, store) in stores.iter().enumerate() {
            for task in 0..of_each {
                let (told, hears) = watch::channel(0);
                progress.push(hears);
                let name = format!("{seed}-{nth}-{task}");
                tasks.push(tokio::spawn(write(store.clone(), name, stop.clone(), told)));
            }
        }
        Writers { stop, tasks, progress }
    }

    /// Waits until each has completed an append that it began after this call or shortly before.
    pub(crate) async fn go_on(&mut self) {
        for progress in &mut self.progress {
            let before = *progress.borrow_and_update();
            let goes_on = progress.wait_for(|now| *now >= before + 2);
            tokio::time::timeout(LONG, goes_on).await.expect("appends go on").expect("no panic");
        }
    }

    /// Stops them, and checks the store against all answers.
    pub(crate) async fn check(self, store: &PostgresStore) -> u64 {
        self.stop.cancel();
        let mut attempts = Vec::new();
        for task in self.tasks {
            attempts.extend(task.await.expect("no panic"));
        }
        // The server may still be at work on an append whose connection is lost. It holds the lock that this one needs.
        let events = vec![event("the last", "shared")];
        let answer = Some(Answer::Stored(append_surely(store, Batch::new(events.clone())).await));
        attempts.push(Attempt { events, answer });
        audit(store, &attempts).await
    }
}

/// Appends batches of one to four events: to an aggregate of its own with a condition on its revision, or to one that
/// all share. An append with an unknown outcome is retried, or left as it is.
async fn write(store: PostgresStore, name: String, stop: CancellationToken, told: watch::Sender<u64>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut revision = Some(Revision::ZERO);
    let mut random = fastrand::Rng::with_seed(name.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte)));
    for number in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let is_own = random.bool();
        let aggregate = if is_own { name.as_str() } else { "shared" };
        let events: Vec<Event> = (0..random.u64(1..=4))
            .map(|place| {
                let id = format!("{name}-{number}-{place}");
                let data = vec![random.u8(..); random.usize(..600)];
                Event::builder("T", aggregate).id(id).data(data).build().expect("valid")
            })
            .collect();
        let mut batch = Batch::new(events.clone());
        batch = match (is_own, revision) {
            (true, Some(revision)) => batch.expected(Expected::Revision(revision)),
            _ => batch,
        };
        let answer = loop {
            match store.store_batch(&ctx(), batch.clone()).await {
                Ok(places) => break Some(Answer::Stored(places)),
                Err(Error::VersionConflict { .. }) => break Some(Answer::Refused),
                // Nothing was written. What may have been written is determined by another attempt.
                Err(Error::Unavailable { .. } | Error::Full { .. }) => tokio::task::yield_now().await,
                Err(Error::OutcomeUnknown { .. }) if random.u8(..4) > 0 => {}
                Err(Error::OutcomeUnknown { .. }) => break None,
                Err(other) => panic!("{other}: {other:?}"),
            }
        };
        if is_own {
            revision = match &answer {
                Some(Answer::Stored(places)) => places.last().map(|last| last.revision),
                // Ask the store.
                Some(Answer::Refused) | None => store.aggregate_revision(&ctx(), &name).await.ok(),
            };
        }
        let is_stored = matches!(answer, Some(Answer::Stored(_)));
        attempts.push(Attempt { events, answer });
        if is_stored {
            told.send_modify(|told| *told += 1);
        }
    }
    attempts
}

/// Checks a store against the answers. Returns its number of events.
async fn audit(store: &PostgresStore, attempts: &[Attempt]) -> u64 {
    let events = all(store).await;
    let mut revisions: HashMap<&str, u64> = HashMap::new();
    let mut places: HashMap<&str, &RecordedEvent> = HashMap::new();
    let mut digest = Digest::EMPTY;
    for (event, version) in events.iter().zip(1..) {
        assert_eq!(event.version.get(), version, "versions have no gap");
        let revision = revisions.entry(event.event.aggregate_id()).or_default();
        *revision += 1;
        assert_eq!(event.revision.get(), *revision, "revisions have no gap: {event:?}");
        assert!(places.insert(event.event.id(), event).is_none(), "each event is there once: {event:?}");
        digest = digest.chain(event);
    }
    let mut known = HashSet::new();
    for attempt in attempts {
        let found: Vec<_> = attempt.events.iter().map(|event| places.get(event.id()).copied()).collect();
        let here = found.iter().flatten().count();
        match &attempt.answer {
            Some(Answer::Stored(answered)) => {
                for (place, found) in answered.iter().zip(&found) {
                    let found = found.expect("what was acknowledged is there");
                    assert_eq!((found.version, found.revision), (place.version, place.revision));
                }
            }
            Some(Answer::Refused) => assert_eq!(here, 0, "what was refused is not there: {attempt:?}"),
            None => assert!(here == 0 || here == attempt.events.len(), "no batch is there in part: {attempt:?}"),
        }
        for (event, found) in attempt.events.iter().zip(&found) {
            assert!(found.is_none_or(|found| found.event == *event), "events are as they were appended");
            known.insert(event.id());
        }
        let versions: Vec<_> = found.iter().flatten().map(|found| found.version).collect();
        assert!(versions.windows(2).all(|pair| pair[1] == pair[0].next()), "a batch is in one piece: {versions:?}");
    }
    assert!(places.keys().all(|id| known.contains(id)), "nothing is there that nobody appended");
    assert_eq!(store.digest(&ctx(), Version::new(u64::MAX)).await.expect("a digest"), digest);
    let report = store.verify(&ctx()).await.expect("verified");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.events, events.len() as u64);
    events.len() as u64
}

/// Appends until the outcome is known.
pub(crate) async fn append_surely(store: &impl EventStore, batch: Batch) -> Vec<Stored> {
    loop {
        match store.store_batch(&ctx(), batch.clone()).await {
            Ok(places) => return places,
            Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. }) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}: {other:?}"),
        }
    }
}

pub(crate) fn buffered(event: Event) -> Batch {
    Batch::from(event).durability(Durability::Buffered)
}

pub(crate) fn is_written(places: &[Stored]) -> bool {
    places.iter().all(|place| place.outcome == StoreOutcome::Written)
}

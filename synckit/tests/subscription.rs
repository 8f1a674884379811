//! Compares the notices of a subscription with a load, through random histories.

use std::collections::BTreeMap;

use eventstore::{Cursor, Event, Expected};
use fastrand::Rng;
use synckit::core::{EventPlace, Number};
use synckit::{Answer, Conflict, Entry, Notice, Options, Replica, Resolution, Resolver, Subscribe, SyncOptions};

fn event(id: &str, aggregate_id: &str) -> Event {
    Event::builder("Happened", aggregate_id).id(id).data(id.to_owned()).build().expect("valid")
}

/// The knowledge of somebody who only listens.
struct Listener {
    notices: Subscribe,
    aggregate: Option<&'static str>,
    confirmed: Vec<String>,
    pending: BTreeMap<Number, Vec<(u32, String)>>,
    last: u64,
}

impl Listener {
    fn new(replica: &Replica, aggregate: Option<&'static str>) -> Self {
        let notices = replica.subscribe(Cursor::START);
        let notices = match aggregate {
            Some(aggregate) => notices.aggregate(aggregate),
            None => notices,
        };
        Listener { notices, aggregate, confirmed: Vec::new(), pending: BTreeMap::new(), last: 0 }
    }

    async fn listen(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(notice) = self.notices.try_next().await.expect("a notice") else { return true };
            match notice {
                Notice::Confirmed { event, was } => {
                    let id = event.event.id().to_owned();
                    assert!(event.version.get() > self.last, "{id}: versions ascend");
                    self.last = event.version.get();
                    let places = self.pending.iter().flat_map(|(batch, events)| {
                        events
                            .iter()
                            .filter(|(_, other)| *other == id)
                            .map(|(index, _)| EventPlace::Pending(*batch, *index))
                    });
                    assert_eq!(places.collect::<Vec<_>>(), was.into_iter().collect::<Vec<_>>(), "{id}: where it was");
                    if let Some(EventPlace::Pending(batch, index)) = was {
                        let events = self.pending.get_mut(&batch).expect("it was told");
                        events.retain(|(other, _)| *other != index);
                        if events.is_empty() {
                            self.pending.remove(&batch);
                        }
                    }
                    self.confirmed.push(id);
                }
                Notice::Pending(pending) => {
                    self.pending.entry(pending.batch).or_default().push((pending.index, pending.event.id().to_owned()));
                }
                Notice::Rejected { batch, .. } | Notice::Dropped { batch } | Notice::Replaced { batch } => {
                    assert!(self.pending.remove(&batch).is_some(), "batch {batch} was told");
                }
                other => panic!("{other:?}"),
            }
        }
        false
    }

    async fn compare(&mut self, replica: &Replica, seed: u64) {
        while !self.listen(1000).await {}
        let load = match self.aggregate {
            Some(aggregate) => replica.load().aggregate(aggregate),
            None => replica.load(),
        };
        let (mut confirmed, mut pending) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
        for entry in load.await.expect("a load").entries {
            match entry {
                Entry::Confirmed(event) => confirmed.push(event.event.id().to_owned()),
                Entry::Pending(event) => {
                    pending.entry(event.batch).or_default().push((event.index, event.event.id().to_owned()));
                }
            }
        }
        assert_eq!((&self.confirmed, &self.pending), (&confirmed, &pending), "seed {seed}");
    }
}

#[derive(Debug)]
struct AtRandom(std::sync::Mutex<Rng>);

#[synckit::async_trait]
impl Resolver for AtRandom {
    async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
        let mut random = self.0.lock().expect("not poisoned");
        let mut one = |events: &[Event]| match random.u8(..6) {
            0 => Resolution::Wait,
            3 => Resolution::Drop,
            1 => Resolution::Reject("no".to_owned()),
            2 => Resolution::AppendInstead(
                events
                    .iter()
                    .take(1)
                    .map(|event| self::event(&format!("r{}", random.u64(..)), event.aggregate_id()))
                    .collect(),
            ),
            _ if conflict.why == synckit::core::Why::Duplicate => Resolution::Reject("taken".to_owned()),
            _ => Resolution::AppendAnyway,
        };
        let mut answer = Answer::from(one(&conflict.events));
        for (batch, events) in conflict.on_top.iter().take(2) {
            answer = answer.on_top(*batch, one(events));
        }
        Ok(answer)
    }
}

#[tokio::test]
async fn whoever_listens_knows_what_a_load_gives() {
    for seed in 0..40 {
        let mut random = Rng::with_seed(seed);
        let hub = eventstore::open("memory:").await.expect("memory");
        let directory = tempfile::tempdir().expect("a directory");
        let a = Options::new(directory.path().join("a")).hub_store(hub.clone()).open().await.expect("a replica");
        let mut listeners = [None, Some("x"), Some("y")].map(|aggregate| Listener::new(&a, aggregate));
        let mut used: Vec<(String, &str)> = Vec::new();
        for step in 0..80 {
            let aggregate = ["x", "y", "z"][random.usize(..3)];
            match random.u8(..16) {
                0..=3 => {
                    let mut events: Vec<_> =
                        (0..random.usize(1..4)).map(|at| event(&format!("{step}-{at}"), aggregate)).collect();
                    used.extend(events.iter().map(|event| (event.id().to_owned(), aggregate)));
                    if random.bool() {
                        let (id, of) = used[random.usize(..used.len())].clone();
                        events.push(event(&id, of));
                    }
                    let basis = a.load().aggregate(aggregate).await.expect("a load").basis;
                    let append = a.append(events.clone());
                    let is_one = events.iter().all(|event| event.aggregate_id() == aggregate);
                    // Some are refused, which is fine.
                    let _ = match random.u8(..5) {
                        0..3 if is_one => append.basis(&basis).await,
                        3 if is_one => append.expected(Expected::Exists).await,
                        _ => append.await,
                    };
                }
                4 | 5 => {
                    // Others append as well, including events that this one has.
                    let id = match random.bool() {
                        true => (format!("h{step}"), aggregate),
                        false => used.get(random.usize(..used.len().max(1))).cloned().unwrap_or(("h".to_owned(), "x")),
                    };
                    let _ = hub.append(event(&id.0, id.1)).await;
                }
                6 | 7 => {
                    let resolver = AtRandom(std::sync::Mutex::new(Rng::with_seed(random.u64(..))));
                    let options = SyncOptions::new().resolver(resolver);
                    let options = if random.bool() { options.skip_waiting() } else { options };
                    a.sync_once(&options).await.expect("a sync");
                }
                8 => {
                    if let Some(rejected) = a.rejected().first() {
                        a.delete_rejected(rejected.number).await.expect("deleted");
                    }
                }
                _ => {
                    let listener = &mut listeners[random.usize(..3)];
                    match random.bool() {
                        true => _ = listener.listen(random.usize(..5)).await,
                        false => listener.compare(&a, seed).await,
                    }
                }
            }
        }
        for listener in &mut listeners {
            listener.compare(&a, seed).await;
        }
        // A new subscription leads to the same knowledge.
        for aggregate in [None, Some("x"), Some("z")] {
            Listener::new(&a, aggregate).compare(&a, seed).await;
        }
        a.close().await.expect("closed");
    }
}

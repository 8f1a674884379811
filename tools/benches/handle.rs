//! What the handle costs beside the trait: a decision beside the same loop written by hand, and a load. On a store in memory, so
//! that nothing else is measured.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use eventstore::backend::{Context, EventStore, EventStoreExt, LoadOptions, PageSize};
use eventstore::{Aggregate, Batch, Error, Event, Expected, Revision, Store, Version};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

const AGGREGATES: usize = 1_000;
const EVENTS: usize = 10;

#[derive(Default)]
struct Account {
    balance: u64,
}

#[derive(Serialize, Deserialize)]
enum AccountEvent {
    Deposited { cents: u64 },
}

impl Aggregate for Account {
    type Event = AccountEvent;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: AccountEvent) {
        let AccountEvent::Deposited { cents } = event;
        self.balance += cents;
    }
}

fn decide(account: &Account) -> Vec<AccountEvent> {
    vec![AccountEvent::Deposited { cents: account.balance % 7 + 1 }]
}

/// What everybody would write.
async fn by_hand(store: &Arc<dyn EventStore>, aggregate_id: &str) -> Result<u64, Error> {
    let ctx = Context::background();
    loop {
        let (mut account, mut revision) = (Account::default(), Revision::ZERO);
        let (mut next, mut size) = (Some(LoadOptions::all().aggregate(aggregate_id)), PageSize::FIRST);
        while let Some(options) = next {
            let page = store.load_page(&ctx, &options, size).await?;
            for recorded in &page.events {
                account.apply(recorded.decode()?);
                revision = recorded.revision;
            }
            (next, size) = (page.next, size.grown());
        }
        let decided = decide(&account);
        let events = decided.iter().map(|event| Event::of(aggregate_id, event)).collect::<Result<Vec<_>, _>>()?;
        match store.store_batch(&ctx, Batch::new(events).expected(Expected::Revision(revision))).await {
            Ok(_) => {
                decided.into_iter().for_each(|event| account.apply(event));
                return Ok(account.balance);
            }
            Err(Error::VersionConflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

async fn filled() -> Store {
    let store = eventstore::open("memory:").await.expect("opened");
    for nth in 0..AGGREGATES {
        let event = || Event::of(format!("account-{nth}"), &AccountEvent::Deposited { cents: 1 }).expect("valid");
        store.append((0..EVENTS).map(|_| event()).collect::<Vec<_>>()).await.expect("appended");
    }
    store
}

fn decisions(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("decision on ten events");
    let next = AtomicUsize::new(0);
    let aggregate = || format!("account-{}", next.fetch_add(1, Ordering::Relaxed) % AGGREGATES);
    // The aggregates grow, so each batch of a hundred has a store of its own.
    let setup = || runtime.block_on(filled());
    group.bench_function("by hand, 100", |bencher| {
        bencher.iter_batched(
            setup,
            |store| {
                runtime.block_on(async {
                    for _ in 0..100 {
                        black_box(by_hand(store.backend(), &aggregate()).await.expect("decided"));
                    }
                });
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("decide, 100", |bencher| {
        bencher.iter_batched(
            setup,
            |store| {
                runtime.block_on(async {
                    for _ in 0..100 {
                        let done = store.decide::<Account>(aggregate(), |account| Ok(decide(account))).await;
                        black_box(done.expect("decided").state.balance);
                    }
                });
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn loads(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let store = runtime.block_on(filled());
    let mut group = criterion.benchmark_group("load");
    let aggregate = "account-7";
    group.bench_function("an aggregate, by the trait", |bencher| {
        bencher.iter(|| {
            let events = store.backend().load_by_aggregate(&Context::background(), aggregate, Version::ZERO);
            runtime.block_on(events.into_vec()).expect("loaded")
        });
    });
    group.bench_function("an aggregate, by the handle", |bencher| {
        bencher
            .iter(|| runtime.block_on(async { store.load(Version::ZERO).aggregate(aggregate).await.expect("loaded") }));
    });
    group.bench_function("everything, by the trait", |bencher| {
        bencher.iter(|| {
            let events = store.backend().load(&Context::background(), Version::ZERO);
            runtime.block_on(events.into_vec()).expect("loaded")
        });
    });
    group.bench_function("everything, by the handle", |bencher| {
        bencher.iter(|| runtime.block_on(async { store.load(Version::ZERO).await.expect("loaded") }));
    });
    group.finish();
}

criterion_group!(benches, decisions, loads);
criterion_main!(benches);

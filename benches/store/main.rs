//! Every compiled-in backend under the same workloads, beside the raw engine doing the same puts and reads.
//!
//! ```text
//! cargo bench --bench store                  # all of it
//! cargo bench --bench store -- scan          # one workload
//! cargo bench --bench store -- --test        # each once, results asserted, nothing timed
//! ```
//!
//! Ids are `workload/size/backend`. Events have 300 bytes of data and time-ordered ids; they belong to 3,000 aggregates.
//! Every append is durable (`Sync`). The files lie below the target directory, which should be on a real disk: a RAM
//! disk flatters every sync.

mod raw_lmdb;
mod workload;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use eventstore::{Batch, Context, EventStore, EventStoreExt, Version};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use raw_lmdb::RawLmdb;
use workload::{AGGREGATES, EVENTS, aggregate_id, event, events};

const BACKENDS: [&str; 2] = ["memory", "lmdb"];

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory below target")
}

/// A store on a backend, and the directory it lies in.
struct Bench {
    store: Arc<dyn EventStore>,
    runtime: Runtime,
    _directory: TempDir,
}

impl Bench {
    fn open(backend: &str) -> Self {
        let directory = directory();
        let runtime = Runtime::new().expect("a runtime");
        let url = match backend {
            "memory" => "memory:".to_owned(),
            _ => format!("{backend}:{}", directory.path().display()),
        };
        let store = runtime.block_on(eventstore::open(&url)).expect("opened");
        Bench { store, runtime, _directory: directory }
    }

    fn filled(backend: &str) -> Self {
        let bench = Bench::open(backend);
        bench.runtime.block_on(async {
            for batch in events(0..EVENTS).chunks(1000) {
                let batch = Batch::new(batch.to_vec());
                bench.store.store_batch(&Context::background(), batch).await.expect("stored");
            }
        });
        bench
    }

    /// `appenders` tasks at once, each appending `rounds` batches of `batch` events, one after the other.
    fn append(&self, appenders: usize, batch: usize, rounds: u64) -> Duration {
        let prepared: Vec<Vec<Batch>> = (0..appenders)
            .map(|_| (0..rounds).map(|_| Batch::new((0..batch).map(|n| event(n as u64)).collect())).collect())
            .collect();
        self.runtime.block_on(async {
            let began = Instant::now();
            let tasks: Vec<_> = prepared
                .into_iter()
                .map(|batches| {
                    let store = self.store.clone();
                    tokio::spawn(async move {
                        for batch in batches {
                            let stored = store.store_batch(&Context::background(), batch).await.expect("stored");
                            assert!(stored[0].version > Version::ZERO);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
            began.elapsed()
        })
    }
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (appenders, batch) in [(1, 1), (8, 1), (64, 1), (1, 100), (1, 1000)] {
        let size = format!("{appenders}x{batch}");
        group.throughput(Throughput::Elements((appenders * batch) as u64));
        for backend in BACKENDS {
            let bench = Bench::open(backend);
            group.bench_function(BenchmarkId::new(&size, backend), |b| {
                b.iter_custom(|rounds| bench.append(appenders, batch, rounds));
            });
        }
        if appenders == 1 {
            let directory = directory();
            let raw = RawLmdb::open(directory.path());
            group.bench_function(BenchmarkId::new(&size, "raw-lmdb"), |b| {
                b.iter_custom(|rounds| {
                    let batches: Vec<_> =
                        (0..rounds).map(|_| (0..batch).map(|n| event(n as u64)).collect::<Vec<_>>()).collect();
                    let began = Instant::now();
                    batches.iter().for_each(|batch| raw.append(batch));
                    began.elapsed()
                });
            });
        }
    }
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let directory = directory();
    let raw = RawLmdb::open(directory.path());
    events(0..EVENTS).chunks(1000).for_each(|batch| raw.append(batch));
    let stores: Vec<_> = BACKENDS.into_iter().map(|backend| (backend, Bench::filled(backend))).collect();

    let mut group = criterion.benchmark_group("scan");
    group.sample_size(10).throughput(Throughput::Elements(EVENTS));
    for (backend, bench) in &stores {
        bench_scan(&mut group, backend, bench);
    }
    group.bench_function(BenchmarkId::new("pages", "raw-lmdb"), |b| {
        b.iter(|| assert_eq!(raw.scan(), EVENTS));
    });
    group.bench_function(BenchmarkId::new("pages", "raw-lmdb-one-buffer"), |b| {
        b.iter(|| assert_eq!(raw.scan_into_one_buffer(), EVENTS));
    });
    group.finish();

    let mut group = criterion.benchmark_group("aggregate");
    let per_aggregate = EVENTS / AGGREGATES;
    let size = per_aggregate.to_string();
    group.throughput(Throughput::Elements(per_aggregate));
    for (backend, bench) in &stores {
        group.bench_function(BenchmarkId::new(&size, backend), |b| {
            let mut next = aggregates();
            b.to_async(&bench.runtime).iter(|| {
                let (store, id) = (bench.store.clone(), next());
                async move {
                    let events = store.load_by_aggregate(&Context::background(), id, Version::ZERO);
                    assert_eq!(events.into_vec().await.expect("loaded").len() as u64, per_aggregate);
                }
            });
        });
    }
    group.bench_function(BenchmarkId::new(&size, "raw-lmdb"), |b| {
        let mut next = aggregates();
        b.iter(|| assert_eq!(raw.load_aggregate(&next()), per_aggregate));
    });
    group.finish();

    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    for (backend, bench) in &stores {
        let ids = some_ids(bench);
        group.bench_function(BenchmarkId::new("id", backend), |b| {
            let mut next = ids.iter().cycle();
            b.to_async(&bench.runtime).iter(|| {
                let (store, id) = (&bench.store, next.next().expect("endless"));
                async move { black_box(store.get(&Context::background(), id).await.expect("found")) }
            });
        });
    }
    let ids = raw.some_ids();
    group.bench_function(BenchmarkId::new("id", "raw-lmdb"), |b| {
        let mut next = ids.iter().cycle();
        b.iter(|| black_box(raw.get(next.next().expect("endless"))));
    });
    group.finish();
}

/// The ids of every 97th event of a store.
fn some_ids(bench: &Bench) -> Vec<String> {
    bench.runtime.block_on(async {
        let events = bench.store.load(&Context::background(), Version::ZERO).into_vec().await.expect("loaded");
        events.iter().step_by(97).map(|event| event.event.id().to_owned()).collect()
    })
}

fn bench_scan(group: &mut BenchmarkGroup<'_, WallTime>, backend: &str, bench: &Bench) {
    group.bench_function(BenchmarkId::new("pages", backend), |b| {
        b.to_async(&bench.runtime).iter(|| async {
            let mut pages = bench.store.load(&Context::background(), Version::ZERO);
            let mut count = 0;
            while let Some(page) = pages.next_page().await {
                count += black_box(page.expect("loaded")).len() as u64;
            }
            assert_eq!(count, EVENTS);
        });
    });
    group.bench_function(BenchmarkId::new("stream", backend), |b| {
        b.to_async(&bench.runtime).iter(|| async {
            let mut events = bench.store.load(&Context::background(), Version::ZERO);
            let mut count = 0;
            while let Some(event) = events.next().await {
                black_box(event.expect("loaded"));
                count += 1;
            }
            assert_eq!(count, EVENTS);
        });
    });
}

/// Aggregate ids in an order that jumps through the store.
fn aggregates() -> impl FnMut() -> String {
    let mut n = 0;
    move || {
        n += 7919;
        aggregate_id(n % AGGREGATES)
    }
}

criterion_group!(benches, append, reads);
criterion_main!(benches);

//! Every compiled-in backend under the same workloads, beside the raw engine doing the same puts and reads.
//!
//! ```text
//! cargo bench --bench store                  # all of it
//! cargo bench --bench store -- scan          # one workload
//! cargo bench --bench store -- --test        # each once, results asserted, nothing timed
//! ```
//!
//! Ids are `workload/size/backend`. Events have 300 bytes of data, and time-ordered ids where nothing else is said; they
//! belong to 3,000 aggregates. Appends go to a store that has 102,000 events already.
//! Every append is durable (`Sync`). The files lie below the target directory, which should be on a real disk: a RAM
//! disk flatters every sync.

mod raw;
#[cfg(feature = "lmdb")]
mod raw_lmdb;
#[cfg(feature = "rocksdb")]
mod raw_rocksdb;
#[cfg(feature = "sled")]
mod raw_sled;
mod workload;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use eventstore::backend::{Batch, Context, Event, EventStore, EventStoreExt, Version};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use raw::Raw;
use workload::{AGGREGATES, EVENTS, Ids, aggregate_id, event, events};

const BACKENDS: &[&str] = &[
    "memory",
    #[cfg(feature = "lmdb")]
    "lmdb",
    #[cfg(feature = "rocksdb")]
    "rocksdb",
    #[cfg(feature = "fjall")]
    "fjall",
    #[cfg(feature = "sled")]
    "sled",
];

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
        let store = runtime.block_on(eventstore::backend::open(&url)).expect("opened");
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
    fn append(&self, appenders: usize, batch: usize, ids: Ids, rounds: u64) -> Duration {
        let prepared: Vec<Vec<Batch>> =
            (0..appenders).map(|_| batches(batch, ids, rounds).into_iter().map(Batch::new).collect()).collect();
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

/// Batches of one appender. Their aggregates are those that a filled store has.
fn batches(events: usize, ids: Ids, rounds: u64) -> Vec<Vec<Event>> {
    (0..rounds).map(|round| (0..events as u64).map(|n| event(round * 7919 + n, ids)).collect()).collect()
}

/// One store for all sizes, which begins with the events that the reads have.
fn append(criterion: &mut Criterion) {
    for (name, ids) in [("append", Ids::TimeOrdered), ("append-random-ids", Ids::Random)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(5));
        for backend in BACKENDS {
            let bench = Bench::filled(backend);
            for (appenders, batch) in [(1, 1), (8, 1), (64, 1), (1, 100), (1, 1000)] {
                if ids == Ids::Random && appenders > 1 {
                    continue;
                }
                group.throughput(Throughput::Elements((appenders * batch) as u64));
                group.bench_function(BenchmarkId::new(format!("{appenders}x{batch}"), backend), |b| {
                    b.iter_custom(|rounds| bench.append(appenders, batch, ids, rounds));
                });
            }
            drop(bench);
            let directory = directory();
            let Some(raw) = raw_filled(backend, &directory) else { continue };
            for batch in [1, 100, 1000] {
                group.throughput(Throughput::Elements(batch as u64));
                group.bench_function(BenchmarkId::new(format!("1x{batch}"), format!("raw-{backend}")), |b| {
                    b.iter_custom(|rounds| {
                        let batches = batches(batch, ids, rounds);
                        let began = Instant::now();
                        batches.iter().for_each(|batch| raw.append(batch));
                        began.elapsed()
                    });
                });
            }
        }
        group.finish();
    }
}

/// The raw engine of a backend with the same events as [`Bench::filled`]; `None` if it has none.
fn raw_filled(backend: &str, directory: &TempDir) -> Option<Box<dyn Raw>> {
    let raw = raw::open(backend, directory.path())?;
    events(0..EVENTS).chunks(1000).for_each(|batch| raw.append(batch));
    Some(raw)
}

fn reads(criterion: &mut Criterion) {
    let stores: Vec<_> = BACKENDS.iter().map(|backend| (*backend, Bench::filled(backend))).collect();
    let directories: Vec<_> = BACKENDS.iter().map(|backend| (*backend, directory())).collect();
    let raws: Vec<_> = directories
        .iter()
        .filter_map(|(backend, directory)| Some((format!("raw-{backend}"), raw_filled(backend, directory)?)))
        .collect();

    let mut group = criterion.benchmark_group("scan");
    group.sample_size(10).throughput(Throughput::Elements(EVENTS));
    for (backend, bench) in &stores {
        bench_scan(&mut group, backend, bench);
    }
    for (name, raw) in &raws {
        group.bench_function(BenchmarkId::new("pages", name), |b| b.iter(|| assert_eq!(raw.scan(), EVENTS)));
        group.bench_function(BenchmarkId::new("pages", format!("{name}-one-buffer")), |b| {
            b.iter(|| assert_eq!(raw.scan_into_one_buffer(), EVENTS));
        });
    }
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
    for (name, raw) in &raws {
        group.bench_function(BenchmarkId::new(&size, name), |b| {
            let mut next = aggregates();
            b.iter(|| assert_eq!(raw.load_aggregate(&next()), per_aggregate));
        });
    }
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
    for (name, raw) in &raws {
        let ids = raw.some_ids();
        group.bench_function(BenchmarkId::new("id", name), |b| {
            let mut next = ids.iter().cycle();
            b.iter(|| black_box(raw.get(next.next().expect("endless"))));
        });
    }
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

//! Backup, restore, copy, verification and garbage collection on every backend of this build.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use eventstore::backend::{
    Batch, CancellationToken, Context, Digest, Error, Event, EventStore, EventStoreExt, Expected, Gc, GcReport,
    LoadOptions, Page, PageSize, Progress, RecordedEvent, Result, Revision, Stats, Stored, Version, async_trait,
};
use tempfile::TempDir;

use common::BACKENDS;

type Store = Arc<dyn EventStore>;

fn ctx() -> Context {
    Context::background()
}

async fn open(backend: &str, path: &Path) -> Store {
    eventstore::backend::open(&url(backend, path)).await.unwrap_or_else(|error| panic!("{backend}: {error}"))
}

fn url(backend: &str, path: &Path) -> String {
    format!("{backend}:{}", path.display())
}

fn event(n: u64) -> Event {
    let data = format!("payload {n:06} {}", uuid::Uuid::new_v4());
    Event::builder("Tested", format!("aggregate-{}", n % 50)).data(data).build().unwrap()
}

async fn fill(store: &Store, batches: u64) {
    for batch in 0..batches {
        let events = (0..100).map(|n| event(batch * 100 + n)).collect();
        store.store_batch(&ctx(), Batch::new(events)).await.unwrap();
    }
}

async fn assert_clean(store: &Store) {
    let report = store.verify(&ctx()).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.events, store.latest_version(&ctx()).await.unwrap().get());
    assert_eq!(report.aggregates, store.stats(&ctx()).await.unwrap().aggregates);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_while_events_are_appended_has_the_digest_of_its_version() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let store = open(backend, &directory.path().join("store")).await;
        fill(&store, 20).await;
        let appending = tokio::spawn({
            let store = store.clone();
            async move { fill(&store, 60).await }
        });
        store.wait_for_events(&ctx(), Version::new(2500)).await.unwrap();
        let before = store.latest_version(&ctx()).await.unwrap();
        let target = directory.path().join("backup");
        let report = store.backup(&ctx(), &target).await.unwrap();
        appending.await.unwrap();
        assert!(report.latest_version >= before, "{backend}: what was acknowledged before is in it");
        assert_eq!(report.latest_version.get() % 100, 0, "{backend}: no batch in part");

        let backup = open(backend, &target).await;
        assert_eq!(backup.latest_version(&ctx()).await.unwrap(), report.latest_version);
        assert_clean(&backup).await;
        let digest = eventstore::backend::digest(&backup, &ctx()).await.unwrap();
        assert_eq!(
            eventstore::backend::digest_until(&store, &ctx(), report.latest_version).await.unwrap(),
            digest,
            "{backend}"
        );
        backup.close().await.unwrap();

        let restored = directory.path().join("restored");
        eventstore::backend::restore(&ctx(), &target, &url(backend, &restored)).await.unwrap();
        let restored = open(backend, &restored).await;
        assert_eq!(eventstore::backend::digest(&restored, &ctx()).await.unwrap(), digest, "{backend}");
        assert_clean(&restored).await;
    }
}

#[tokio::test]
async fn backups_and_restores_refuse_what_is_in_the_way() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let store = open(backend, &path).await;
        fill(&store, 1).await;
        let mine = directory.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("thesis.txt"), "irreplaceable").unwrap();
        for below in [path.join("backup"), path.join("log/deep/backup"), path.join("../store/index")] {
            let error = store.backup(&ctx(), &below).await.unwrap_err();
            assert!(
                matches!(&error, Error::Open { reason, .. } if reason.contains("is inside it")),
                "{backend}: {error}"
            );
            assert!(below.ends_with("index") || !below.exists(), "{backend}: {}", below.display());
        }
        for target in [&mine, &path] {
            let error = store.backup(&ctx(), target).await.unwrap_err();
            assert!(matches!(error, Error::Open { .. }), "{backend}: {error}");
            let error = eventstore::backend::restore(&ctx(), &path, &url(backend, target)).await.unwrap_err();
            assert!(matches!(error, Error::Open { .. } | Error::Locked { .. }), "{backend}: {error}");
        }
        assert_eq!(fs::read_to_string(mine.join("thesis.txt")).unwrap(), "irreplaceable");
        assert_eq!(fs::read_dir(&mine).unwrap().count(), 1);

        let stop = CancellationToken::new();
        let at_once = stop.clone();
        let progress = Progress::new(move |_, _| at_once.cancel());
        let target = directory.path().join("cancelled");
        let stopping = ctx().with_cancellation(stop).with_progress(progress);
        match store.backup(&stopping, &target).await {
            Err(Error::Cancelled) => assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{backend}"),
            other => panic!("{backend}: {other:?}"),
        }
        store.backup(&ctx(), &target).await.expect("the target is free again");
        store.close().await.unwrap();
        let other = format!("memory:{}", directory.path().join("other").display());
        let error = eventstore::backend::restore(&ctx(), &target, &other).await.unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what } if what.contains("copy")), "{error}");
    }
}

#[tokio::test]
async fn a_restore_into_the_backup_is_refused_and_wrong_options_make_nothing() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let backup = directory.path().join("backup");
        let store = open(backend, &backup).await;
        fill(&store, 1).await;
        store.close().await.unwrap();
        let files = fs::read_dir(&backup).unwrap().count();
        for target in [backup.join("sub"), backup.join("not/there/yet"), backup.join("../backup/sub")] {
            let error = eventstore::backend::restore(&ctx(), &backup, &url(backend, &target)).await.unwrap_err();
            assert!(matches!(&error, Error::Open { reason, .. } if reason.contains("outside")), "{backend}: {error}");
        }
        assert_eq!(fs::read_dir(&backup).unwrap().count(), files, "{backend}");
        let new = directory.path().join("new");
        let error =
            eventstore::backend::restore(&ctx(), &backup, &(url(backend, &new) + "?queue_bytes=1")).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { option, .. } if option == "queue_bytes"), "{backend}: {error}");
        assert!(!new.exists(), "{backend}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn who_may_read_the_events_stays_the_same() {
    use std::os::unix::fs::PermissionsExt;
    /// The mode of the largest file below a directory, and its length.
    fn largest(path: &Path) -> (u64, u32) {
        let mode_of = |entry: fs::DirEntry| {
            let metadata = entry.metadata().ok()?; // an engine has just removed it
            Some(match metadata.is_dir() {
                true => largest(&entry.path()),
                false => (metadata.len(), metadata.permissions().mode() & 0o777),
            })
        };
        fs::read_dir(path).unwrap().filter_map(|entry| mode_of(entry.unwrap())).max().unwrap_or_default()
    }
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let store = open(backend, &path).await;
        fill(&store, 5).await;
        let data_mode = |path: &Path| largest(path).1;
        let before = data_mode(&path);
        let backup = directory.path().join("backup");
        store.backup(&ctx(), &backup).await.unwrap();
        let _ = store.run_gc(&ctx(), Gc::Full).await;
        assert_eq!(data_mode(&path), before, "{backend}: after a full collection");
        assert_eq!(data_mode(&backup), before, "{backend}: of the backup");
        let restored = directory.path().join("restored");
        eventstore::backend::restore(&ctx(), &backup, &url(backend, &restored)).await.unwrap();
        assert_eq!(data_mode(&restored), before, "{backend}: restored");
    }
}

#[tokio::test]
async fn copies_from_engine_to_engine_are_the_same_to_the_microsecond() {
    let directory = TempDir::new().unwrap();
    let first = eventstore::backend::open("memory:").await.unwrap();
    fill(&first, 12).await;
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_micros(1_234_567_890_123_456);
    let old = Batch::new(vec![event(1), event(2)]).recorded_at(vec![long_ago, long_ago + Duration::from_micros(1)]);
    first.store_batch(&ctx(), old).await.unwrap();
    let events = first.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
    let digest = eventstore::backend::digest(&first, &ctx()).await.unwrap();
    let mut source = first;
    for (nth, backend) in BACKENDS.iter().chain(BACKENDS.first()).enumerate() {
        let target = open(backend, &directory.path().join(nth.to_string())).await;
        let report = eventstore::backend::copy(&source, &target, &ctx()).await.unwrap();
        assert_eq!((report.copied, report.already_there, report.digest), (1202, 0, digest), "{backend}");
        assert_eq!(target.load(&ctx(), Version::ZERO).into_vec().await.unwrap(), events, "{backend}");
        assert_clean(&target).await;
        source = target;
    }
}

#[tokio::test]
async fn an_interrupted_copy_goes_on_and_a_wrong_target_is_refused() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let source = eventstore::backend::open("memory:").await.unwrap();
        fill(&source, 150).await;
        let target = open(backend, &directory.path().join("target")).await;
        let stop = CancellationToken::new();
        let cancel = stop.clone();
        let progress = Progress::new(move |done, total| {
            assert_eq!(total, 30_000);
            if done > 2_000 {
                cancel.cancel();
            }
        });
        let stopping = ctx().with_cancellation(stop).with_progress(progress);
        let error = eventstore::backend::copy(&source, &target, &stopping).await.unwrap_err();
        assert!(matches!(error, Error::Cancelled | Error::OutcomeUnknown { .. }), "{backend}: {error}");
        let there = target.latest_version(&ctx()).await.unwrap().get();
        assert!((1..15_000).contains(&there), "{backend}: {there}");
        let report = eventstore::backend::copy(&source, &target, &ctx()).await.unwrap();
        assert!(report.already_there >= there && report.copied + report.already_there == 15_000, "{report:?}");
        assert_eq!(report.digest, eventstore::backend::digest(&target, &ctx()).await.unwrap());

        target.store(&ctx(), event(1), Expected::Any).await.unwrap();
        let error = eventstore::backend::copy(&source, &target, &ctx()).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "it has more: {error}");
        fill(&source, 1).await;
        let error = eventstore::backend::copy(&source, &target, &ctx()).await.unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what } if what.contains("version 15001")), "{error}");
    }
}

/// A store that counts the events loaded from it.
#[derive(Debug)]
struct Counted {
    store: Store,
    loaded: AtomicU64,
}

impl Counted {
    async fn in_memory() -> Arc<Self> {
        let store = eventstore::backend::open("memory:").await.unwrap();
        Arc::new(Counted { store, loaded: AtomicU64::new(0) })
    }

    /// The number of events loaded since the last call.
    fn loaded(&self) -> u64 {
        self.loaded.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl EventStore for Counted {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.store.store_batch(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        let page = self.store.load_page(ctx, options, size).await?;
        self.loaded.fetch_add(page.events.len() as u64, Ordering::Relaxed);
        Ok(page)
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.store.get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.store.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.store.aggregate_revision(ctx, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.store.wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.store.run_gc(ctx, gc).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.store.digest(ctx, until).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.store.stats(ctx).await
    }

    async fn close(&self) -> Result<()> {
        self.store.close().await
    }
}

#[tokio::test]
async fn a_copy_reads_what_is_new_and_compares_the_rest_by_its_digest() {
    let (source, target) = (Counted::in_memory().await, Counted::in_memory().await);
    fill(&source.store, 30).await;
    for new in [3_000, 100, 0] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        let progress = Progress::new(move |done, total| listener.lock().unwrap().push((done, total)));
        let report = eventstore::backend::copy(&source, &target, &ctx().with_progress(progress)).await.unwrap();
        assert_eq!(report.copied, new);
        // The target loads one event: the newest, to append it again for the sync.
        assert_eq!((source.loaded(), target.loaded()), (new, 1), "{new} new ones");
        let told = told.lock().unwrap().clone();
        assert!(told.is_sorted(), "{told:?}");
        let both = report.version.get() * 2;
        assert_eq!(told.last(), Some(&(both, both)));
        if new == 3_000 {
            fill(&source.store, 1).await;
        }
    }
    let events = source.store.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
    for place in [0, 1, 1_023, 1_024, 2_222, 3_099] {
        let different = Counted::in_memory().await;
        let mut events: Vec<_> = events.iter().map(|recorded| recorded.event.clone()).collect();
        events[place] = event(place as u64);
        different.store.store_batch(&ctx(), Batch::new(events)).await.unwrap();
        let error = eventstore::backend::copy(&source, &different, &ctx()).await.unwrap_err();
        let Error::Unsupported { what } = error else { panic!("{error}") };
        assert!(what.ends_with(&format!("different events at version {}", place + 1)), "{what}");
        assert_eq!((source.loaded(), different.loaded()), (0, 0), "found by digests");
    }
}

/// Flips the bytes of a text wherever it occurs in the files below a directory. Returns whether it was found.
fn damage(path: &Path, text: &[u8]) -> bool {
    let mut found = false;
    let entries: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    for entry in entries {
        if entry.is_dir() {
            found |= damage(&entry, text);
            continue;
        }
        let mut bytes = fs::read(&entry).unwrap();
        let windows = bytes.windows(text.len()).enumerate();
        let places: Vec<_> = windows.filter(|(_, window)| *window == text).map(|(place, _)| place).collect();
        if !places.is_empty() {
            places.iter().for_each(|&place| bytes[place] ^= 1);
            fs::write(&entry, bytes).unwrap();
            found = true;
        }
    }
    found
}

#[tokio::test]
async fn a_flipped_byte_is_found_and_named_on_every_engine() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let url = match *backend {
            // Without compression, the payload is in the file as it is.
            "rocksdb" => url(backend, &path) + "?table_compression=none",
            _ => url(backend, &path),
        };
        let store = eventstore::backend::open(&url).await.unwrap();
        fill(&store, 100).await;
        // Moves it out of what an engine replays on opening, where damage would be damage to the whole store.
        store.run_gc(&ctx(), Gc::Quick).await.unwrap();
        store.close().await.unwrap();
        let store = eventstore::backend::open(&url).await.unwrap();
        let damaged = store.load(&ctx(), Version::new(149)).next().await.unwrap().unwrap();
        let data = damaged.event.data().to_vec();
        store.close().await.unwrap();
        assert!(damage(&path, &data[data.len() - 20..]), "{backend}: the payload lies in some file");

        let store = eventstore::backend::open(&url).await.unwrap_or_else(|error| panic!("{backend}: {error}"));
        let report = store.verify(&ctx()).await.unwrap();
        let named = |version: u64| report.findings.iter().any(|found| found.version == Some(Version::new(version)));
        assert!(named(150), "{backend}: {:?}", report.findings);
        let error = store.load(&ctx(), Version::new(149)).into_vec().await.unwrap_err();
        let is_150 = |at: Option<Version>| at == Some(Version::new(150));
        assert!(matches!(&error, Error::Corrupt { version, .. } if is_150(*version)), "{backend}: {error}");
        let error = store.get(&ctx(), damaged.event.id()).await.unwrap_err();
        assert!(matches!(&error, Error::Corrupt { version, .. } if is_150(*version)), "{backend}: {error}");
        let first = store.load(&ctx(), Version::ZERO).next().await.unwrap();
        assert!(matches!(&first, Ok(_) | Err(Error::Corrupt { version: Some(_), .. })), "{backend}: {first:?}");
    }
}

#[tokio::test]
async fn periodic_collection_ends_with_its_context_and_with_the_store() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let store = open(backend, directory.path()).await;
        fill(&store, 1).await;
        let (stop, rounds) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let count = |stop: &CancellationToken| {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move |result: Result<eventstore::backend::GcReport, Error>| {
                assert!(result.is_ok(), "{result:?}");
                if rounds.fetch_add(1, Ordering::Relaxed) == 2 {
                    stop.cancel();
                }
            }
        };
        let period = Duration::from_micros(1);
        store.run_gc_every(&ctx().with_cancellation(stop.clone()), period, Gc::Quick, count(&stop)).await;
        assert_eq!(rounds.load(Ordering::Relaxed), 3, "{backend}");
        store.close().await.unwrap();
        store.run_gc_every(&ctx(), period, Gc::Quick, count(&stop)).await;
    }
}

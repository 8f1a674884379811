//! Backup, full collection and verification, on the files and while others work.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backend_lmdb::{LmdbStore, Options, open};
use eventstore_api::{
    Batch, CancellationToken, Context, Durability, Error, Event, EventStore, EventStoreExt, Expected, Gc, Progress,
    RecordedEvent, Version,
};
use support::{ctx, event, get, indexed, put, small, store, versions};

const COMPACT_FILE: &str = "data.mdb.compact";

async fn all(store: &LmdbStore) -> Vec<RecordedEvent> {
    store.load(&ctx(), Version::ZERO).into_vec().await.unwrap()
}

async fn findings(store: &LmdbStore) -> Vec<String> {
    store.verify(&ctx()).await.unwrap().findings.iter().map(ToString::to_string).collect()
}

/// Opens a store that must be sound, and gives its events.
async fn sound(directory: &Path) -> Vec<RecordedEvent> {
    let opened = open(Options::new(directory)).await.unwrap();
    assert_eq!(findings(&opened).await, [""; 0]);
    all(&opened).await
}

fn data_len(directory: &Path) -> u64 {
    fs::metadata(directory.join("data.mdb")).unwrap().len()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a listener was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(u64, u64)>>>);

impl Told {
    /// Work with this context takes so long each time it tells something.
    fn context(&self, each: Duration) -> Context {
        let told = self.clone();
        ctx().with_progress(Progress::new(move |done, total| {
            told.0.lock().unwrap().push((done, total));
            std::thread::sleep(each);
        }))
    }

    /// Work with this context waits each time it tells something for so many appends, until it has begun again twice. It
    /// goes on when no append comes: that may be because of it.
    fn paced(&self, appended: &Arc<AtomicU64>, each: u64) -> Context {
        let (told, appended) = (self.clone(), appended.clone());
        ctx().with_progress(Progress::new(move |done, total| {
            told.0.lock().unwrap().push((done, total));
            let enough = appended.load(Ordering::SeqCst) + each;
            let (mut seen, mut since) = (0, Instant::now());
            while told.restarts() < 2 && seen < enough && since.elapsed() < Duration::from_millis(500) {
                std::thread::sleep(Duration::from_millis(1));
                if appended.load(Ordering::SeqCst) > seen {
                    (seen, since) = (appended.load(Ordering::SeqCst), Instant::now());
                }
            }
        }))
    }

    fn is_told(&self) -> bool {
        !self.0.lock().unwrap().is_empty()
    }

    /// How often it began again.
    fn restarts(&self) -> usize {
        self.0.lock().unwrap().windows(2).filter(|pair| pair[1].0 < pair[0].0).count()
    }

    /// Waits until something was told.
    async fn wait(&self) {
        while !self.is_told() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A context that is cancelled when so many bytes are done.
fn cancelled_at(bytes: u64) -> Context {
    let token = CancellationToken::new();
    let ctx = ctx().with_cancellation(token.clone());
    ctx.with_progress(Progress::new(move |done, _| {
        if done >= bytes {
            token.cancel();
        }
    }))
}

async fn fill(store: &LmdbStore, prefix: &str, events: usize, bytes: usize) {
    for number in 0..events {
        self::store(store, &format!("{prefix}-{number}"), vec![7; bytes]).await.unwrap();
    }
}

/// Makes a closed store's file larger by pages that are not in use.
fn waste(directory: &Path) {
    put(directory, "meta", b"waste", Some(&vec![7; 8 << 20]));
    put(directory, "meta", b"waste", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_while_writers_write_and_the_map_grows_are_prefixes() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(small(&directory.path().join("store"), 1 << 30)).await.unwrap();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let source = source.clone();
            tokio::spawn(async move {
                for batch in 0..60 {
                    let events = (0..4).map(|n| event(&format!("{writer}-{batch}-{n}"), vec![batch; 60_000])).collect();
                    source.store_batch(&ctx(), Batch::new(events)).await.unwrap();
                }
            })
        })
        .collect();
    let told = Told::default();
    let mut backups = Vec::new();
    while backups.len() < 3 || writers.iter().any(|writer| !writer.is_finished()) {
        let path = directory.path().join(format!("backup-{}", backups.len()));
        let acknowledged = source.latest_version(&ctx()).await.unwrap();
        let report = source.backup(&told.context(Duration::from_millis(1)), &path).await.unwrap();
        assert!(report.latest_version >= acknowledged, "{} of {acknowledged}", report.latest_version);
        assert_eq!(report.latest_version.get() % 4, 0, "a batch in part");
        assert!(report.bytes_on_disk >= data_len(&path));
        backups.push((path, report.latest_version));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(told.restarts() > 0, "no copy was in the way of the growing map");
    let events = all(&source).await;
    assert_eq!(events.len(), 3 * 60 * 4);
    for (path, latest) in backups {
        assert_eq!(sound(&path).await, events[..latest.get() as usize]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_backup_does_not_hold_up_the_growing_map() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(small(&directory.path().join("store"), 1 << 30)).await.unwrap();
    fill(&source, "before", 20, 500_000).await;
    let (told, appended) = (Told::default(), Arc::new(AtomicU64::new(0)));
    let backup = tokio::spawn({
        let (source, ctx) = (source.clone(), told.paced(&appended, 1));
        let path = directory.path().join("backup");
        async move { source.backup(&ctx, &path).await }
    });
    told.wait().await;
    while told.restarts() < 2 {
        assert!(!backup.is_finished(), "it ended before the map grew");
        store(&source, &format!("meanwhile-{}", appended.load(Ordering::SeqCst)), vec![7; 500_000]).await.unwrap();
        appended.fetch_add(1, Ordering::SeqCst);
    }
    let report = backup.await.unwrap().unwrap();
    assert!(report.latest_version.get() > 20, "it began again after the growth");
    assert_eq!(sound(&directory.path().join("backup")).await.len() as u64, report.latest_version.get());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_does_not_make_a_store_full() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(small(&directory.path().join("store"), 8 << 20)).await.unwrap();
    fill(&source, "before", 50, 100_000).await;
    let (told, appended) = (Told::default(), Arc::new(AtomicU64::new(0)));
    let backup = tokio::spawn({
        let (source, ctx) = (source.clone(), told.paced(&appended, 15));
        let path = directory.path().join("backup");
        async move { source.backup(&ctx, &path).await }
    });
    told.wait().await;
    // Each writes some pages anew, and the copy keeps the old ones from being used again.
    while told.restarts() < 2 {
        assert!(!backup.is_finished(), "it was in nobody's way");
        store(&source, &format!("small-{}", appended.load(Ordering::SeqCst)), "x").await.unwrap();
        appended.fetch_add(1, Ordering::SeqCst);
    }
    backup.await.unwrap().unwrap();
    assert!(sound(&directory.path().join("backup")).await.len() >= 50);
    assert_eq!(versions(&source).await.len() as u64, 50 + appended.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_takes_no_readers_place_and_several_wait_for_one_another() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path().join("store"));
    options.max_readers = 1;
    let source = open(options).await.unwrap();
    fill(&source, "before", 20, 100_000).await;
    let told = Told::default();
    let copies: Vec<_> = (0..3)
        .map(|number| {
            let (source, ctx) = (source.clone(), told.context(Duration::from_millis(100)));
            let path = directory.path().join(format!("backup-{number}"));
            tokio::spawn(async move { source.backup(&ctx, &path).await })
        })
        .collect();
    told.wait().await;
    for number in 0..5 {
        store(&source, &format!("meanwhile-{number}"), "x").await.unwrap();
        assert_eq!(versions(&source).await.len(), 21 + number);
    }
    assert!(copies.iter().any(|copy| !copy.is_finished()), "nobody waited for them");
    // One that waits for the others ends when it must.
    let expired = source.run_gc(&ctx().with_timeout(Duration::from_millis(20)), Gc::Full).await;
    assert!(matches!(expired, Err(Error::DeadlineExceeded)), "{expired:?}");
    for (number, copy) in copies.into_iter().enumerate() {
        let report = copy.await.unwrap().unwrap();
        let path = directory.path().join(format!("backup-{number}"));
        assert_eq!(sound(&path).await.len() as u64, report.latest_version.get());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_stopped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(Options::new(directory.path().join("store"))).await.unwrap();
    fill(&source, "before", 20, 1 << 20).await;
    let target = directory.path().join("backup");
    for bytes in [0, 1, 3 << 20, 15 << 20] {
        let began = Instant::now();
        let error = source.backup(&cancelled_at(bytes), &target).await.unwrap_err();
        assert!(matches!(error, Error::Cancelled), "at {bytes} bytes: {error}");
        assert!(began.elapsed() < Duration::from_secs(5), "the copy went on");
        assert_eq!(names(&target), [""; 0]);
    }
    let late = Told::default().context(Duration::from_millis(5)).with_timeout(Duration::from_millis(30));
    let error = source.backup(&late, &target).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    assert_eq!(names(&target), [""; 0]);

    let told = Told::default();
    let slow = told.context(Duration::from_millis(20));
    tokio::select! {
        _ = source.backup(&slow, &target) => panic!("it was too fast"),
        () = told.wait() => {}
    }
    while !names(&target).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    store(&source, "after", "x").await.unwrap();
    assert_eq!(source.backup(&ctx(), &target).await.unwrap().latest_version, Version::new(21));
    assert_eq!(sound(&target).await, all(&source).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_a_backup_and_a_collection() {
    for full in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let closed = open(Options::new(&path)).await.unwrap();
        fill(&closed, "before", 20, 1 << 20).await;
        closed.close().await.unwrap();
        waste(&path);
        let closed = open(Options::new(&path)).await.unwrap();
        let (told, target) = (Told::default(), directory.path().join("backup"));
        let task = tokio::spawn({
            let (closed, ctx, target) = (closed.clone(), told.context(Duration::from_millis(50)), target.clone());
            async move {
                match full {
                    true => closed.run_gc(&ctx, Gc::Full).await.map(drop),
                    false => closed.backup(&ctx, &target).await.map(drop),
                }
            }
        });
        told.wait().await;
        let began = Instant::now();
        closed.close().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "it waited for the whole copy");
        assert!(matches!(task.await.unwrap(), Err(Error::Closed)));
        assert!(full || names(&target).is_empty());
        assert_eq!(names(&path), ["data.mdb", "eventstore.head", "eventstore.json", "eventstore.lock", "lock.mdb"]);
        assert_eq!(sound(&path).await.len(), 20);
    }
}

#[tokio::test]
async fn a_backup_into_a_directory_that_is_not_empty_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let source = open(Options::new(&path)).await.unwrap();
    store(&source, "one", "x").await.unwrap();
    let (stranger, other) = (directory.path().join("stranger"), directory.path().join("other"));
    fs::create_dir(&stranger).unwrap();
    fs::write(stranger.join("mine"), "mine").unwrap();
    let others = open(Options::new(&other)).await.unwrap();
    store(&others, "other", "x").await.unwrap();
    others.close().await.unwrap();
    let before = fs::read(other.join("data.mdb")).unwrap();
    for target in [&stranger, &other, &path, &stranger.join("mine")] {
        let error = source.backup(&ctx(), target).await.unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{}: {error}", target.display());
    }
    assert_eq!(names(&stranger), ["mine"]);
    assert_eq!(fs::read(stranger.join("mine")).unwrap(), b"mine");
    assert_eq!(fs::read(other.join("data.mdb")).unwrap(), before);
    assert_eq!(sound(&other).await.len(), 1);
    assert_eq!(versions(&source).await, [1]);
}

#[tokio::test]
async fn a_backup_is_no_larger_than_its_content_and_opens_with_smaller_options() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let source = open(Options::new(&path)).await.unwrap();
    fill(&source, "before", 5, 1 << 20).await;
    source.close().await.unwrap();
    waste(&path);
    let source = open(Options::new(&path)).await.unwrap();
    let backup = directory.path().join("backup");
    source.backup(&ctx(), &backup).await.unwrap();
    assert!(data_len(&path) > 13 << 20 && data_len(&backup) < 6 << 20);
    let opened = open(small(&backup, 1 << 30)).await.unwrap();
    store(&opened, "more", vec![7; 4 << 20]).await.unwrap();
    assert_eq!(versions(&opened).await.len(), 6);
    assert_eq!(versions(&source).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_collection_beside_readers_and_writers_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(small(directory.path(), 1 << 30)).await.unwrap();
    fill(&first, "before", 100, 10_000).await;
    first.close().await.unwrap();
    waste(directory.path());
    let before = data_len(directory.path());
    let collected = open(small(directory.path(), 1 << 30)).await.unwrap();
    let going_on = Arc::new(AtomicBool::new(true));
    let scans = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (collected, going_on, scans) = (collected.clone(), going_on.clone(), scans.clone());
            tokio::spawn(async move {
                while going_on.load(Ordering::Relaxed) {
                    let versions = versions(&collected).await;
                    assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>());
                    collected.get(&ctx(), "before-50").await.unwrap();
                    collected.stats(&ctx()).await.unwrap();
                    scans.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (collected, going_on) = (collected.clone(), going_on.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while going_on.load(Ordering::Relaxed) {
                    let durability = if written % 2 == 0 { Durability::Sync } else { Durability::Buffered };
                    let batch = Batch::from(event(&format!("{writer}-{written}"), "x")).durability(durability);
                    collected.store_batch(&ctx(), batch).await.unwrap();
                    written += 1;
                }
                written
            })
        })
        .collect();
    let mut compacted = 0;
    for _ in 0..10 {
        let seen = scans.load(Ordering::Relaxed);
        let report = collected.run_gc(&ctx(), Gc::Full).await.unwrap();
        compacted += usize::from(report.actions.iter().any(|action| action.starts_with("compacted")));
        while scans.load(Ordering::Relaxed) < seen + 2 {
            assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader found something wrong");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(compacted > 0);
    assert!(data_len(directory.path()) < before - (7 << 20));
    going_on.store(false, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let events = all(&collected).await;
    assert_eq!(events.len(), 100 + written);
    assert_eq!(findings(&collected).await, [""; 0]);
    collected.close().await.unwrap();
    assert_eq!(sound(directory.path()).await, events);
    assert!(!directory.path().join(COMPACT_FILE).exists());
}

#[tokio::test]
async fn a_full_collection_with_nothing_to_gain_does_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let collected = open(Options::new(directory.path())).await.unwrap();
    fill(&collected, "before", 50, 10_000).await;
    let quick = collected.run_gc(&ctx(), Gc::Quick).await.unwrap();
    assert_eq!(quick.actions.len(), 1);
    let report = collected.run_gc(&ctx(), Gc::Full).await.unwrap();
    assert!(report.bytes_after <= report.bytes_before);
    let len = data_len(directory.path());
    let report = collected.run_gc(&ctx(), Gc::Full).await.unwrap();
    assert!(report.actions.iter().any(|action| action.contains("nothing to compact")), "{:?}", report.actions);
    assert_eq!(data_len(directory.path()), len);
    store(&collected, "after", "x").await.unwrap();
    assert_eq!(findings(&collected).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_collection_that_is_stopped_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(Options::new(directory.path())).await.unwrap();
    fill(&first, "before", 20, 1 << 20).await;
    first.close().await.unwrap();
    waste(directory.path());
    let before = data_len(directory.path());
    let collected = open(Options::new(directory.path())).await.unwrap();
    for bytes in [0, 1, 3 << 20, 15 << 20] {
        let error = collected.run_gc(&cancelled_at(bytes), Gc::Full).await.unwrap_err();
        assert!(matches!(error, Error::Cancelled), "at {bytes} bytes: {error}");
        assert!(!directory.path().join(COMPACT_FILE).exists());
        assert_eq!(data_len(directory.path()), before);
        store(&collected, &format!("after-{bytes}"), "x").await.unwrap();
    }
    let told = Told::default();
    let late = told.context(Duration::from_millis(5)).with_timeout(Duration::from_millis(50));
    let (ended, stored) = tokio::join!(collected.run_gc(&late, Gc::Full), async {
        told.wait().await;
        store(&collected, "meanwhile", "x").await
    });
    assert!(matches!(ended, Err(Error::DeadlineExceeded)), "{ended:?}");
    assert_eq!(stored.unwrap(), Version::new(25), "it waited and was then written");
    assert_eq!(findings(&collected).await, [""; 0]);
    collected.run_gc(&ctx(), Gc::Full).await.unwrap();
    assert!(data_len(directory.path()) < before);
    assert_eq!(versions(&collected).await.len(), 25);
}

#[tokio::test]
async fn what_a_killed_process_left_of_a_collection_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(Options::new(directory.path())).await.unwrap();
    store(&first, "one", "x").await.unwrap();
    first.close().await.unwrap();
    fs::write(directory.path().join(COMPACT_FILE), vec![7; 100_000]).unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    assert!(!directory.path().join(COMPACT_FILE).exists());
    assert_eq!(versions(&opened).await, [1]);
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_again_is_fenced_and_its_files_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(Options::new(directory.path())).await.unwrap();
    fill(&first, "before", 5, 1000).await;
    first.close().await.unwrap();
    waste(directory.path());
    let fenced = open(Options::new(directory.path())).await.unwrap();
    let lock = directory.path().join("lock.mdb");
    let in_the_way = ctx().with_progress(Progress::new({
        let lock = lock.clone();
        move |_, _| {
            // LMDB has its handle; it will look for the name when it opens the file again.
            if lock.is_file() {
                fs::remove_file(&lock).unwrap();
                fs::create_dir(&lock).unwrap();
            }
        }
    }));
    let error = fenced.run_gc(&in_the_way, Gc::Full).await.unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error}");
    let reason = |error: Error| matches!(error, Error::Fenced { reason } if reason.contains("compacted"));
    assert!(reason(store(&fenced, "after", "x").await.unwrap_err()));
    assert!(reason(fenced.load(&ctx(), Version::ZERO).into_vec().await.unwrap_err()));
    assert!(reason(fenced.get(&ctx(), "before-1").await.unwrap_err()));
    assert!(reason(fenced.stats(&ctx()).await.unwrap_err()));
    assert!(reason(fenced.run_gc(&ctx(), Gc::Full).await.unwrap_err()));
    assert!(reason(fenced.backup(&ctx(), &directory.path().join("backup")).await.unwrap_err()));
    let _ = fenced.close().await; // it cannot sync, and says so
    fs::remove_dir(&lock).unwrap();
    fs::remove_dir_all(directory.path().join("backup")).unwrap();
    assert_eq!(sound(directory.path()).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_panics_stops_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let first = open(Options::new(&path)).await.unwrap();
    fill(&first, "before", 10, 1 << 20).await;
    first.close().await.unwrap();
    waste(&path);
    let followed = open(Options::new(&path)).await.unwrap();
    let panics = ctx().with_progress(Progress::new(|done, _| assert!(done < 3 << 20, "in a test")));
    let target = directory.path().join("backup");
    assert!(followed.backup(&panics, &target).await.is_err());
    assert_eq!(names(&target), [""; 0]);
    assert!(followed.run_gc(&panics, Gc::Full).await.is_err());
    store(&followed, "after", "x").await.unwrap();
    followed.backup(&ctx(), &target).await.unwrap();
    followed.run_gc(&ctx(), Gc::Full).await.unwrap();
    assert_eq!(sound(&target).await, all(&followed).await);
    followed.close().await.unwrap();
    assert_eq!(names(&path), ["data.mdb", "eventstore.head", "eventstore.json", "eventstore.lock", "lock.mdb"]);
}

#[tokio::test]
async fn a_page_that_is_neither_in_use_nor_free_is_told_and_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let first = open(Options::new(&path)).await.unwrap();
    fill(&first, "before", 10, 1 << 20).await;
    first.close().await.unwrap();
    // A page more than the trees have, as far as the two pages tell that make commits visible.
    let mut bytes = fs::read(path.join("data.mdb")).unwrap();
    let magic = 0xbeef_c0de_u32.to_ne_bytes();
    let metas: Vec<_> = (0..bytes.len()).step_by(8).filter(|&at| bytes[at..].starts_with(&magic)).take(2).collect();
    let last_page_in = |meta: usize| u64::from_ne_bytes(*bytes[meta + 120..].first_chunk().unwrap());
    let last_page = metas.iter().copied().map(last_page_in).max().unwrap();
    for &meta in &metas {
        let field: &mut [u8; 8] = bytes[meta + 120..].first_chunk_mut().unwrap();
        if u64::from_ne_bytes(*field) == last_page {
            *field = (last_page + 1).to_ne_bytes();
        }
    }
    bytes.resize(bytes.len() + metas[1] - metas[0], 0);
    fs::write(path.join("data.mdb"), bytes).unwrap();

    let leaky = open(Options::new(&path)).await.unwrap();
    let target = directory.path().join("backup");
    let error = leaky.backup(&ctx(), &target).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { reason, .. } if reason.contains("are in use or free")), "{error}");
    assert_eq!(names(&target), [""; 0]);
    let error = leaky.run_gc(&ctx(), Gc::Full).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { reason, .. } if reason.contains("are in use or free")), "{error}");
    store(&leaky, "after", "x").await.unwrap();
    let findings = findings(&leaky).await;
    assert!(findings.len() == 1 && findings[0].contains("are in use or free"), "{findings:?}");
    assert_eq!(all(&leaky).await.len(), 11);
    leaky.close().await.unwrap();
    assert_eq!(names(&path), ["data.mdb", "eventstore.head", "eventstore.json", "eventstore.lock", "lock.mdb"]);
}

#[tokio::test]
async fn copies_tell_how_far_they_have_come() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let first = open(Options::new(&path)).await.unwrap();
    fill(&first, "before", 10, 1 << 20).await;
    first.close().await.unwrap();
    waste(&path);
    let followed = open(Options::new(&path)).await.unwrap();
    let (backup, gc) = (Told::default(), Told::default());
    followed.backup(&backup.context(Duration::ZERO), &directory.path().join("backup")).await.unwrap();
    followed.run_gc(&gc.context(Duration::ZERO), Gc::Full).await.unwrap();
    for Told(told) in [backup, gc] {
        let told = told.lock().unwrap();
        assert!(told.len() > 10 && told.is_sorted(), "{told:?}");
        let (done, total) = *told.last().unwrap();
        assert_eq!((done, total), (data_len(&path), data_len(&path)));
        assert!(told.iter().all(|told| told.1 == total), "{told:?}");
    }
}

#[tokio::test]
async fn without_read_ahead_everything_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = small(&directory.path().join("store"), 1 << 30);
    options.read_ahead = false;
    let store = open(options).await.unwrap();
    fill(&store, "before", 20, 100_000).await; // and it grows
    if cfg!(target_os = "linux") {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let path = directory.path().join("store/data.mdb");
        let of_this = maps.split_once(path.to_str().unwrap()).unwrap().1;
        let flags = of_this.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "rr"), "{flags}");
    }
    store.run_gc(&ctx(), Gc::Full).await.unwrap();
    assert_eq!(findings(&store).await, [""; 0]);
}

/// A closed store with events of these aggregates: `id-1`, `id-2` and so on.
async fn store_with(directory: &Path, aggregates: [&str; 6]) {
    let store = open(indexed(directory)).await.unwrap();
    for (number, aggregate) in (1..).zip(aggregates) {
        let event = Event::builder("Tested", aggregate).id(format!("id-{number}")).data("{}").build().unwrap();
        store.store(&ctx(), event, Expected::Any).await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn verification_finds_every_kind_of_damage() {
    /// Of the first store; the second has the same ids, and one aggregate.
    type Damage = fn(&Path, &Path);
    fn version(version: u64) -> [u8; 8] {
        version.to_be_bytes()
    }
    fn of_a(revision: u64) -> Vec<u8> {
        [b"a\xff".as_slice(), &revision.to_be_bytes()].concat()
    }
    let kinds: &[(&str, Damage, &[&str])] = &[
        ("none", |_, _| {}, &[]),
        (
            "a flipped byte",
            |path, _| {
                let mut record = get(path, "events", &version(3));
                *record.last_mut().unwrap() ^= 1;
                put(path, "events", &version(3), Some(&record));
            },
            &["version 3: its checksum does not match"],
        ),
        (
            "a missing record",
            |path, _| put(path, "events", &version(3), None),
            &["version 3: it is missing from the log"],
        ),
        (
            "a record at a wrong place",
            |path, _| put(path, "events", &version(3), Some(&get(path, "events", &version(4)))),
            &["version 3: its checksum does not match"],
        ),
        (
            "a missing id",
            |path, _| put(path, "ids", b"\x02id-3", None),
            &["version 3: the id index has no entry for its id \"id-3\""],
        ),
        (
            "a missing aggregate",
            |path, _| put(path, "aggregates", &of_a(4), None),
            &["version 5: the aggregate index has no entry for its aggregate \"a\", revision 4"],
        ),
        (
            "a wrong entry",
            |path, _| put(path, "ids", b"\x02id-3", Some(&version(4))),
            &["version 3: the id index leads from its id \"id-3\" to version 4", "to another event, version 4"],
        ),
        (
            "an entry too many",
            |path, _| put(path, "ids", b"\x02ghost", Some(&version(4))),
            &["id index leads from id \"ghost\" to another event, version 4"],
        ),
        (
            "an entry beyond the newest",
            |path, _| put(path, "aggregates", &of_a(5), Some(&version(7))),
            &["aggregate \"a\", revision 5 to version 7, which is no event's"],
        ),
        (
            "an entry of a wrong size",
            |path, _| put(path, "ids", b"\x02ghost", Some(b"four")),
            &["the id index has a damaged entry: id \"ghost\""],
        ),
        (
            "a gap in the revisions",
            |path, other| {
                // The fourth event as it is where there was another one of its aggregate before it.
                put(path, "events", &version(4), Some(&get(other, "events", &version(4))));
                put(path, "events", &version(5), None);
                put(path, "ids", b"\x02id-5", None);
                put(path, "aggregates", &of_a(3), None);
                put(path, "aggregates", &of_a(4), Some(&version(4)));
            },
            &["version 4: the aggregate \"a\" has revision 4 after 2"],
        ),
    ];
    for (kind, damage, expected) in kinds {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("store"), directory.path().join("other"));
        store_with(&path, ["a", "a", "b", "a", "a", "last"]).await;
        store_with(&other, ["a"; 6]).await;
        damage(&path, &other);
        fs::remove_file(path.join("eventstore.head")).unwrap(); // or a lost end would be found at opening
        let damaged = open(Options::new(&path)).await.unwrap();
        let found = findings(&damaged).await;
        assert_eq!(found.is_empty(), expected.is_empty(), "{kind}: {found:?}");
        for expected in *expected {
            assert!(found.iter().any(|found| found.contains(expected)), "{kind}: {found:?}");
        }
        // A backup is a copy of the pages, so it shows the same.
        let backup = directory.path().join("backup");
        damaged.backup(&ctx(), &backup).await.unwrap();
        assert_eq!(findings(&open(Options::new(&backup)).await.unwrap()).await, found, "{kind}");
    }
}

//! The store's files: damaged, lost, cut short, written by somebody else; and what is kept in them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use backend_sled::{NAME, Options, SledEngine, SledStore, open, repair};
use eventstore_api::{
    Batch, CancellationToken, Context, Direction, Durability, Error, Event, EventStore, EventStoreExt, Expected, Gc,
    LoadOptions, Progress, Version, limits,
};
use eventstore_kv::{Engine, KeyRange, Snapshot, Table, WriteBatch};
use tempfile::TempDir;

fn ctx() -> Context {
    Context::background()
}

fn event(id: &str, data: impl Into<Vec<u8>>) -> Event {
    Event::builder("Tested", "aggregate").id(id).data(data.into()).build().unwrap()
}

async fn store(store: &SledStore, id: &str, data: impl Into<Vec<u8>>) -> Result<Version, Error> {
    store.store(&ctx(), event(id, data), Expected::Any).await.map(|stored| stored.version)
}

/// An event whose content follows from its number.
fn numbered(n: u64, len: usize) -> Event {
    let data = vec![n as u8; len];
    Event::builder("Tested", format!("aggregate-{}", n % 7)).id(format!("id-{n}")).data(data).build().unwrap()
}

/// Appends numbered events until there are `until`.
async fn fill(store: &SledStore, until: u64, len: usize) {
    let mut next = store.latest_version(&ctx()).await.unwrap().get() + 1;
    while next <= until {
        let end = (next + 20).min(until + 1);
        let events = (next..end).map(|n| numbered(n, len)).collect();
        store.store_batch(&ctx(), Batch::new(events)).await.unwrap();
        next = end;
    }
}

/// Loads all events, each of which has to be the one of its number, and returns how many there are.
async fn count(store: &SledStore, len: usize) -> Result<u64, Error> {
    let mut events = store.load(&ctx(), Version::ZERO);
    let mut count = 0;
    while let Some(recorded) = events.next().await.transpose()? {
        count += 1;
        assert_eq!(recorded.version.get(), count);
        assert_eq!(recorded.event, numbered(count, len), "a wrong event");
    }
    Ok(count)
}

async fn assert_clean(store: &SledStore) {
    let report = store.verify(&ctx()).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// Opens sled's tree behind the store's back, once sled has let go of it: its threads end a little after the store.
fn raw(directory: &Path) -> sled::Db {
    loop {
        match sled::Config::new().path(directory.join("sled")).open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("acquire lock") => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

fn event_key(version: u64) -> Vec<u8> {
    [&[1][..], &version.to_be_bytes()].concat()
}

fn db_file(directory: &Path) -> PathBuf {
    directory.join("sled/db")
}

fn snapshot_of(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory.join("sled")).unwrap().map(|entry| entry.unwrap().path());
    let mut snapshots = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."));
    let snapshot = snapshots.next().expect("a snapshot");
    assert_eq!(snapshots.next(), None);
    snapshot
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}

/// A closed store with so many events, and a snapshot of the first half of them.
async fn closed_store(events: u64, len: usize) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for until in [events / 2, events] {
        let store = open(Options::new(directory.path())).await.unwrap();
        fill(&store, until, len).await;
        store.close().await.unwrap();
    }
    directory
}

#[tokio::test]
async fn the_same_files_open_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    for n in 1..=30 {
        let opened = open(Options::new(directory.path())).await.unwrap();
        assert_eq!(store(&opened, &n.to_string(), "x").await.unwrap(), Version::new(n));
        let second = open(Options::new(directory.path())).await;
        assert!(matches!(second, Err(Error::Locked { .. })));
        if n % 2 == 0 {
            opened.close().await.unwrap();
        } // otherwise dropping it has to do
    }
}

#[tokio::test]
async fn files_that_sled_has_open_elsewhere_are_locked() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    let other = raw(directory.path());
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(other);
    open(Options::new(directory.path())).await.unwrap();
}

#[tokio::test]
async fn a_creation_that_was_cut_short_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("sled")).unwrap();
    fs::write(directory.path().join("eventstore.json.new"), r#"{"engine":"sled"}"#).unwrap();
    fs::write(directory.path().join("sled/conf"), "segment_size: 51").unwrap();
    fs::write(db_file(directory.path()), vec![7; 5000]).unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(store(&opened, "first", "x").await.unwrap(), Version::new(1));
}

#[tokio::test]
async fn values_of_every_length_are_kept() {
    const PART: usize = 6144;
    let directory = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(&Options::new(directory.path())).unwrap();
    let lens = [0, 1, PART - 1, PART, PART + 1, 2 * PART - 1, 2 * PART, 5 * PART, 20 * PART + 7];
    let value = |n: usize| (0..lens[n]).map(|at| (at * 31 + n) as u8).collect::<Vec<_>>();
    let key = |n: usize| vec![b'k'; n + 1]; // each one begins with the one before
    for table in Table::ALL {
        let mut batch = WriteBatch::new();
        (0..lens.len()).for_each(|n| batch.put(table, &key(n), &value(n)));
        engine.commit(&batch, Durability::Buffered).unwrap();
    }
    let snapshot = engine.snapshot().unwrap();
    for table in Table::ALL {
        for (n, len) in lens.into_iter().enumerate() {
            let mut out = b"before".to_vec();
            assert!(snapshot.get(table, &key(n), &mut out).unwrap());
            assert!(out.strip_prefix(b"before").unwrap() == value(n), "{len} bytes");
        }
        let mut out = Vec::new();
        assert!(!snapshot.get(table, b"other", &mut out).unwrap() && out.is_empty());
        for direction in [Direction::Forward, Direction::Backward] {
            let mut seen = Vec::new();
            let range = KeyRange { first: &key(1), last: &key(lens.len() - 2) };
            let visit = |key: &[u8], found: &[u8]| {
                assert!(found == value(key.len() - 1));
                seen.push(key.len() - 1);
                ControlFlow::Continue(())
            };
            snapshot.scan(table, range, direction, visit).unwrap();
            if direction == Direction::Backward {
                seen.reverse();
            }
            assert!(seen.into_iter().eq(1..lens.len() - 1), "and nothing of another table or a part");
        }
    }
}

#[tokio::test]
async fn large_events_and_long_ids_stay_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    let batch = (0..4).map(|n| event(&format!("large-{n}"), vec![n; 12 << 20])).collect();
    assert_eq!(opened.store_batch(&ctx(), Batch::new(batch)).await.unwrap().len(), 4);
    let overhead = 1 << 10;
    let batch = (0..4).map(|n| event(&format!("limit-{n}"), vec![n; limits::MAX_DATA_LEN - overhead])).collect();
    assert_eq!(opened.store_batch(&ctx(), Batch::new(batch)).await.unwrap().len(), 4, "64 MiB in one batch");
    // Long keys that differ at their ends make the largest inner pages.
    for batch in 0..20 {
        let long = |n: u64, len: usize| format!("{:0>len$}", batch * 300 + n);
        let events = (0..300).map(|n| {
            let event = Event::builder("Tested", long(n, limits::MAX_AGGREGATE_ID_LEN)).id(long(n, limits::MAX_ID_LEN));
            event.data("x").build().unwrap()
        });
        opened.store_batch(&ctx(), Batch::new(events.collect())).await.unwrap();
    }
    opened.close().await.unwrap();
    let blobs = fs::read_dir(directory.path().join("sled/blobs")).unwrap();
    assert_eq!(blobs.count(), 0, "sled never syncs these");
    let reopened = open(Options::new(directory.path())).await.unwrap();
    for n in 0..4 {
        let large = reopened.get(&ctx(), &format!("large-{n}")).await.unwrap();
        assert!(large.event.data().len() == 12 << 20 && large.event.data().iter().all(|&byte| byte == n));
    }
    assert_clean(&reopened).await;
}

#[tokio::test]
async fn a_damaged_record_is_named_and_nothing_else_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(Options::new(directory.path())).await.unwrap();
    for n in 1..=5 {
        store(&sound, &format!("id-{n}"), format!("payload number {n}")).await.unwrap();
    }
    sound.close().await.unwrap();
    let tree = raw(directory.path());
    let mut record = tree.get(event_key(3)).unwrap().unwrap().to_vec();
    *record.last_mut().unwrap() ^= 1;
    tree.insert(event_key(3), record).unwrap();
    drop(tree);

    let damaged = open(Options::new(directory.path())).await.unwrap();
    let is_corrupt = |error: Error| matches!(error, Error::Corrupt { version: Some(at), .. } if at == Version::new(3));
    let mut events = damaged.load(&ctx(), Version::ZERO);
    for version in 1..=2 {
        assert_eq!(events.next().await.unwrap().unwrap().version, Version::new(version));
    }
    assert!(is_corrupt(events.next().await.unwrap().unwrap_err()));
    assert!(events.next().await.is_none());
    assert!(is_corrupt(damaged.get(&ctx(), "id-3").await.unwrap_err()));
    let report = damaged.verify(&ctx()).await.unwrap();
    assert!(report.findings.iter().any(|finding| finding.version == Some(Version::new(3))), "{:?}", report.findings);
    let after = damaged.load(&ctx(), Version::new(3)).into_vec().await.unwrap();
    assert_eq!(after.len(), 2, "what comes after it can be loaded");
    let newest = damaged.load(&ctx(), LoadOptions::all().backward().limit(2)).into_vec().await.unwrap();
    assert_eq!(newest.len(), 2);
    assert_eq!(store(&damaged, "id-6", "more").await.unwrap(), Version::new(6));
    let retry = store(&damaged, "id-3", "payload number 3").await;
    assert!(is_corrupt(retry.unwrap_err()), "whether it is the same event cannot be told");
}

#[tokio::test]
async fn a_missing_record_or_part_is_damage() {
    let part_key = [&[0x11, 0, 8][..], &3_u64.to_be_bytes(), &3_u32.to_be_bytes()].concat();
    for missing in [event_key(3), part_key] {
        let directory = tempfile::tempdir().unwrap();
        let sound = open(Options::new(directory.path())).await.unwrap();
        fill(&sound, 5, 20_000).await;
        sound.close().await.unwrap();
        let tree = raw(directory.path());
        tree.remove(&missing).unwrap().expect("it was there");
        drop(tree);
        let damaged = open(Options::new(directory.path())).await.unwrap();
        assert_eq!(count(&damaged, 20_000).await.unwrap_err().code(), "corrupt");
        assert!(!damaged.verify(&ctx()).await.unwrap().is_clean());
        assert_eq!(damaged.load(&ctx(), Version::new(3)).into_vec().await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_anywhere_in_sleds_file_is_found_or_harmless() {
    const EVENTS: u64 = 400;
    const LEN: usize = 9_000;
    let sound = closed_store(EVENTS, LEN).await;
    let whole = fs::read(db_file(sound.path())).unwrap();
    let (mut refused, mut found, mut harmless, mut again_refused) = (0, 0, 0, 0);
    for place in (0..60).map(|n| n * whole.len() / 60 + 777) {
        let directory = tempfile::tempdir().unwrap();
        copy_tree(sound.path(), directory.path());
        let mut bytes = whole.clone();
        bytes[place] ^= 4;
        fs::write(db_file(directory.path()), bytes).unwrap();
        let damaged = match open(Options::new(directory.path())).await {
            Err(error) => {
                assert_eq!(error.code(), "corrupt", "byte {place}: {error}");
                refused += 1;
                continue;
            }
            Ok(damaged) => damaged,
        };
        let loaded = count(&damaged, LEN).await;
        let is_clean = damaged.verify(&ctx()).await.is_ok_and(|report| report.is_clean());
        match loaded {
            Ok(count) => assert_eq!(count, EVENTS, "byte {place}: lost without a word"),
            Err(error) => assert_eq!(error.code(), "corrupt", "byte {place}: {error}"),
        }
        if is_clean {
            harmless += 1; // it lies in what sled has written anew elsewhere
            assert!(loaded_all(&damaged, EVENTS).await);
        } else {
            found += 1;
        }
        // A batch that cannot be written leaves nothing.
        let events = (0..200).map(|n| event(&format!("new-{n}"), "x")).collect();
        let appended = damaged.store_batch(&ctx(), Batch::new(events)).await;
        let expected = if appended.is_ok() { EVENTS + 200 } else { EVENTS };
        assert_eq!(damaged.latest_version(&ctx()).await.unwrap().get(), expected, "byte {place}");
        drop(damaged);
        match open(Options::new(directory.path())).await {
            Ok(again) => assert_eq!(again.latest_version(&ctx()).await.unwrap().get(), expected, "byte {place}"),
            // sled has met the damage when it moved pages on closing, and now misses what it moved.
            Err(error) => {
                assert!(!is_clean && error.code() == "corrupt", "byte {place}: {error}");
                again_refused += 1;
            }
        }
    }
    assert!(again_refused <= 2, "{again_refused} of {found} did not open again");
    assert!(
        refused > 0 && found > 0 && harmless > 0,
        "{refused} refused, {found} found when read, {harmless} harmless"
    );
}

#[tokio::test]
async fn a_batch_that_meets_a_damaged_page_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(Options::new(directory.path())).await.unwrap();
    fill(&sound, 40, 9000).await;
    fill(&sound, 4000, 100).await;
    sound.close().await.unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap(); // now all of it is in a snapshot
    // The page with the last event's second part, which is where the next one belongs.
    let mut bytes = fs::read(db_file(directory.path())).unwrap();
    let places: Vec<_> =
        bytes.windows(1000).enumerate().filter(|(_, run)| run.iter().all(|&byte| byte == 40)).collect();
    let places: Vec<_> = places.into_iter().map(|(place, _)| place).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|place| bytes[place] = 41);
    fs::write(db_file(directory.path()), bytes).unwrap();

    let damaged = open(Options::new(directory.path())).await.unwrap();
    let events = (0..30).map(|n| event(&format!("new-{n}"), vec![1; if n == 15 { 9000 } else { 10 }])).collect();
    let error = damaged.store_batch(&ctx(), Batch::new(events)).await.unwrap_err();
    assert_eq!(error.code(), "corrupt", "{error}");
    assert_eq!(store(&damaged, "small", "x").await.unwrap(), Version::new(4001), "the store goes on");
    damaged.close().await.unwrap();
    let again = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(again.latest_version(&ctx()).await.unwrap(), Version::new(4001));
    assert_eq!(again.get(&ctx(), "new-3").await.unwrap_err().code(), "event_not_found");
}

async fn loaded_all(store: &SledStore, events: u64) -> bool {
    store.load(&ctx(), Version::ZERO).into_vec().await.is_ok_and(|loaded| loaded.len() as u64 == events)
}

#[tokio::test]
async fn the_end_of_the_log_is_never_lost_without_a_word() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let sound = tempfile::tempdir().unwrap();
        let opened = open(Options::new(sound.path())).await.unwrap();
        for n in 1..=40 {
            let batch = Batch::new(vec![numbered(n, 100)]).durability(durability);
            opened.store_batch(&ctx(), batch).await.unwrap();
        }
        opened.close().await.unwrap();
        let whole = fs::read(db_file(sound.path())).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        // The end of the file is what leads to the events: closing wrote it, and it can be made again.
        let cut = tempfile::tempdir().unwrap();
        copy_tree(sound.path(), cut.path());
        fs::write(db_file(cut.path()), &whole[..whole.len() - 1]).unwrap();
        assert_eq!(count(&open(Options::new(cut.path())).await.unwrap(), 100).await.unwrap(), 40);
        for damaged in [&flipped[..], &whole[..whole.len() / 2], &whole[..100], &[0x42; 9000]] {
            let directory = tempfile::tempdir().unwrap();
            copy_tree(sound.path(), directory.path());
            fs::write(db_file(directory.path()), damaged).unwrap();
            for _ in 0..2 {
                let error = open(Options::new(directory.path())).await.unwrap_err();
                assert_eq!(error.code(), "corrupt", "{durability:?} {}: {error}", damaged.len());
            }
            let error = repair(directory.path()).unwrap_err();
            assert_eq!(error.code(), "corrupt", "{error}");
        }
        // Who accepts the loss opens what is left.
        fs::write(db_file(sound.path()), flipped).unwrap();
        let error = open(Options::new(sound.path())).await.unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { version: Some(_), reason } if reason.contains("eventstore.head")),
            "{error}"
        );
        fs::remove_file(sound.path().join("eventstore.head")).unwrap();
        let rest = open(Options::new(sound.path())).await.unwrap();
        let left = count(&rest, 100).await.unwrap();
        assert!(left < 40 && left > 0, "{left}");
    }
}

#[tokio::test]
async fn a_lost_file_is_refused() {
    let directory = closed_store(20, 100).await;
    let whole = fs::read(db_file(directory.path())).unwrap();
    let refused = async || {
        let error = open(Options::new(directory.path())).await.unwrap_err();
        assert!(matches!(&error, Error::Open { reason, .. } if reason.contains("missing or empty")), "{error}");
    };
    fs::write(db_file(directory.path()), "").unwrap();
    refused().await;
    fs::remove_file(db_file(directory.path())).unwrap();
    refused().await;
    fs::rename(directory.path().join("sled"), directory.path().join("elsewhere")).unwrap();
    refused().await;
    fs::rename(directory.path().join("elsewhere"), directory.path().join("sled")).unwrap();
    fs::write(db_file(directory.path()), whole).unwrap();
    let restored = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(count(&restored, 100).await.unwrap(), 20);
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_repaired() {
    const EVENTS: u64 = 600;
    let sound = closed_store(EVENTS, 3000).await;
    let whole = fs::read(snapshot_of(sound.path())).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], &[]] {
        let directory = tempfile::tempdir().unwrap();
        copy_tree(sound.path(), directory.path());
        let snapshot = snapshot_of(directory.path());
        let name = snapshot.file_name().unwrap().to_string_lossy().into_owned();
        fs::write(&snapshot, damaged).unwrap();
        let error = open(Options::new(directory.path())).await.unwrap_err();
        assert!(matches!(&error, Error::Corrupt { reason, .. } if reason.contains("eventstore repair")), "{error}");
        assert!(snapshot.exists(), "opening moves nothing");

        let report = repair(directory.path()).unwrap();
        assert!(report[0].contains(&name) && report[0].contains("aside-1"), "{report:?}");
        assert!(report.last().unwrap().contains(&format!("the newest version is {EVENTS}")), "{report:?}");
        assert_eq!(fs::read(directory.path().join("aside-1").join(&name)).unwrap(), damaged, "nothing is deleted");
        let repaired = open(Options::new(directory.path())).await.unwrap();
        assert_eq!(count(&repaired, 3000).await.unwrap(), EVENTS);
        assert_clean(&repaired).await;
        repaired.close().await.unwrap();

        assert_eq!(repair(directory.path()).unwrap(), [""; 0], "there is nothing to do");
        assert!(!directory.path().join("aside-2").exists());
        fs::write(snapshot_of(directory.path()), "damaged again").unwrap();
        assert!(repair(directory.path()).unwrap()[0].contains("aside-2"));
    }
}

#[tokio::test]
async fn damaged_settings_are_repaired() {
    let directory = closed_store(50, 3000).await;
    fs::write(directory.path().join("sled/conf"), "segment_size: 5242something").unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert_eq!(error.code(), "corrupt", "{error}");
    assert!(repair(directory.path()).unwrap().iter().any(|action| action.contains("moved sled/conf")));
    let repaired = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(count(&repaired, 3000).await.unwrap(), 50);
}

#[tokio::test]
async fn a_snapshot_that_a_killed_process_was_writing_does_no_harm() {
    let directory = closed_store(600, 3000).await;
    let unfinished = directory.path().join("sled/snap.00000000FFFFFFFF.generating");
    fs::write(&unfinished, "half").unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(count(&opened, 3000).await.unwrap(), 600);
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn repair_wants_a_closed_store() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(repair(directory.path()).unwrap_err().code(), "cannot_open");
    let opened = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(repair(directory.path()).unwrap_err().code(), "locked");
    drop(opened);
    assert_eq!(repair(directory.path()).unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_store_of_a_newer_format_or_another_engine_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    let tree = raw(directory.path());
    tree.insert(b"\0format", &3_u32.to_be_bytes()).unwrap().expect("it was there");
    drop(tree);
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("format 3")), "{error}");
    fs::write(directory.path().join("eventstore.json"), r#"{"engine":"lmdb"}"#).unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("lmdb:")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_beside_a_writer_is_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options::new(directory.path().join("store"))).await.unwrap();
    fill(&store, 2000, 500).await;
    let appending = tokio::spawn({
        let store = store.clone();
        async move { fill(&store, 6000, 500).await }
    });
    store.wait_for_events(&ctx(), Version::new(2500)).await.unwrap();
    let target = directory.path().join("backup");
    let marked = target.join("eventstore.json");
    let progress = Progress::new(move |_, _| assert!(!marked.exists(), "it is no store before it is whole"));
    let report = store.backup(&ctx().with_progress(progress), &target).await.unwrap();
    appending.await.unwrap();
    assert!(report.latest_version >= Version::new(2500));
    assert_eq!(report.latest_version.get() % 20, 0, "no batch in part");
    let backup = open(Options::new(&target)).await.unwrap();
    assert_eq!(count(&backup, 500).await.unwrap(), report.latest_version.get());
    assert_clean(&backup).await;
}

#[tokio::test]
async fn a_backup_goes_into_an_empty_directory_or_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options::new(directory.path().join("store"))).await.unwrap();
    fill(&store, 200, 100_000).await;
    let mine = directory.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("thesis.txt"), "irreplaceable").unwrap();
    assert_eq!(store.backup(&ctx(), &mine).await.unwrap_err().code(), "cannot_open");
    assert_eq!(fs::read_dir(&mine).unwrap().count(), 1);

    let stop = CancellationToken::new();
    let at_once = stop.clone();
    let progress = Progress::new(move |done, _| {
        if done > 0 {
            at_once.cancel()
        }
    });
    let target = directory.path().join("cancelled");
    let cancelled = store.backup(&ctx().with_cancellation(stop).with_progress(progress), &target).await;
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    assert_eq!(open(existing(&target)).await.unwrap_err().code(), "cannot_open");
    store.backup(&ctx(), &target).await.expect("the target is free again");
    assert_eq!(count(&open(existing(&target)).await.unwrap(), 100_000).await.unwrap(), 200);
}

fn existing(path: &Path) -> Options {
    let mut options = Options::new(path);
    options.create_if_missing = false;
    options
}

#[tokio::test]
async fn collecting_garbage_says_what_sled_can_do() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options::new(directory.path())).await.unwrap();
    fill(&store, 100, 100).await;
    assert_eq!(store.run_gc(&ctx(), Gc::Quick).await.unwrap().actions.len(), 1);
    let error = store.run_gc(&ctx(), Gc::Full).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("copy --to")), "{error}");
    assert_eq!(count(&store, 100).await.unwrap(), 100);
    let stats = store.stats(&ctx()).await.unwrap();
    assert_eq!(stats.backend, NAME);
    assert!(stats.properties.contains(&("was_recovered", "false".to_owned())), "{:?}", stats.properties);
}

#[tokio::test]
async fn options_out_of_range_are_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut options = Options::new(&path);
    options.cache_capacity = 1000;
    let error = open(options).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option, .. } if option == "cache_capacity"), "{error}");
    assert_eq!(open(existing(&path)).await.unwrap_err().code(), "cannot_open");
    assert!(!path.exists());
}

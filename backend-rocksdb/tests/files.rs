//! The store's files: damaged, lost, cut, copied, written by somebody else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backend_rocksdb::{Compression, Options, RocksDbStore, WalRecovery, open, repair};
use eventstore_api::{
    Batch, CancellationToken, Context, Durability, Error, Event, EventStore, EventStoreExt, Expected, Gc, LoadOptions,
    Progress, Result, Version,
};
use rocksdb::DB;
use tempfile::TempDir;

fn ctx() -> Context {
    Context::background()
}

fn event(id: &str, data: impl Into<Vec<u8>>) -> Event {
    Event::builder("Tested", "aggregate").id(id).data(data.into()).build().unwrap()
}

async fn store(store: &RocksDbStore, id: &str, data: impl Into<Vec<u8>>) -> Result<Version> {
    store.store(&ctx(), event(id, data), Expected::Any).await.map(|stored| stored.version)
}

async fn versions(store: &RocksDbStore) -> Vec<u64> {
    let events = store.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
    events.iter().map(|event| event.version.get()).collect()
}

async fn assert_clean(store: &RocksDbStore, events: u64) {
    let report = store.verify(&ctx()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.events, events);
    assert_eq!(versions(store).await, (1..=events).collect::<Vec<_>>());
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The paths of RocksDB's files whose names end like this, the oldest first.
fn files(store: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.join("rocksdb")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    files
}

/// The file of the log that is written to.
fn log_of(store: &Path) -> PathBuf {
    files(store, ".log").pop().unwrap()
}

fn copy_dir(from: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = into.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}

/// The files of an open store, as they would be if its process were killed now.
fn killed(store: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(store, copy.path());
    copy
}

/// A directory as `count` events, one a commit, leave it when their process is killed. Event n has the id `id-n`.
async fn killed_with(count: u64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    for n in 1..=count {
        store(&opened, &format!("id-{n}"), format!("payload number {n}")).await.unwrap();
    }
    killed(directory.path())
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x80;
    fs::write(file, bytes).unwrap();
}

fn position_of(file: &Path, needle: &[u8]) -> Option<usize> {
    fs::read(file).unwrap().windows(needle.len()).position(|bytes| bytes == needle)
}

fn is_damaged_log(error: &Error) -> bool {
    matches!(error, Error::Corrupt { version: None, reason }
        if reason.contains("write-ahead log") && reason.contains("eventstore repair"))
}

fn names_in(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_same_files_open_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    for n in 1..=20 {
        let opened = open(Options::new(directory.path())).await.unwrap();
        assert_eq!(store(&opened, &n.to_string(), "x").await.unwrap(), Version::new(n));
        let second = open(Options::new(directory.path())).await;
        assert!(matches!(second, Err(Error::Locked { .. })));
        if n % 2 == 0 {
            opened.close().await.unwrap();
        } // otherwise dropping it has to do
    }
    assert_eq!(names_in(directory.path()), ["eventstore.head", "eventstore.json", "eventstore.lock", "rocksdb"]);
    assert!(files(directory.path(), "LOG").is_empty(), "messages go to tracing");
}

#[tokio::test]
async fn what_was_not_flushed_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    for (n, durability) in [Durability::Sync, Durability::Buffered].into_iter().cycle().take(10).enumerate() {
        let batch = Batch::new(vec![event(&n.to_string(), "x")]).durability(durability);
        opened.store_batch(&ctx(), batch).await.unwrap();
    }
    let copy = killed(directory.path());
    assert_clean(&open(Options::new(copy.path())).await.unwrap(), 10).await;
}

#[tokio::test]
async fn a_closed_store_has_nothing_to_replay() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    for n in 0..10 {
        store(&opened, &n.to_string(), vec![1; 10_000]).await.unwrap();
    }
    assert!(log_of(directory.path()).metadata().unwrap().len() > 100_000);
    opened.close().await.unwrap();
    assert!(log_of(directory.path()).metadata().unwrap().len() < 1000);
}

#[tokio::test]
async fn files_that_somebody_else_has_open_are_locked() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    let other = open_raw(directory.path());
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(other);

    let this_test = std::env::current_exe().unwrap();
    let mut process = Command::new(this_test)
        .args(["--exact", "another_process_that_holds_the_files", "--nocapture"])
        .env(HELD_BY_ANOTHER, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("held")), "it has opened the files");
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(process.stdin.take()); // ends it
    assert!(process.wait().unwrap().success());
    open(Options::new(directory.path())).await.unwrap();
}

const HELD_BY_ANOTHER: &str = "EVENTSTORE_TEST_HELD_BY_ANOTHER";

/// Does nothing, unless the test above runs it as a process of its own.
#[test]
fn another_process_that_holds_the_files() {
    let Some(directory) = std::env::var_os(HELD_BY_ANOTHER) else { return };
    let _held = open_raw(directory.as_ref());
    std::io::stdout().write_all(b"held\n").unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn open_raw(store: &Path) -> DB {
    let tables = ["default", "events", "ids", "aggregates"];
    DB::open_cf(&rocksdb::Options::default(), store.join("rocksdb"), tables).unwrap()
}

/// Puts a value into a table behind the store's back.
fn put(store: &Path, table: &str, key: &[u8], value: &[u8]) {
    let db = open_raw(store);
    db.put_cf(db.cf_handle(table).unwrap(), key, value).unwrap();
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    put(directory.path(), "default", b"format", &3_u32.to_be_bytes());
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("format 3")), "{error}");
}

#[tokio::test]
async fn indexes_with_impossible_entries_are_damage() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(Options::new(directory.path())).await.unwrap();
    store(&sound, "id-1", "x").await.unwrap();
    sound.close().await.unwrap();
    let key = [b"aggregate".as_slice(), &[0xff], &u64::MAX.to_be_bytes()].concat();
    put(directory.path(), "aggregates", &key, &1_u64.to_be_bytes());
    put(directory.path(), "ids", b"\x02id-1", &99_u64.to_be_bytes());
    let damaged = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(damaged.aggregate_revision(&ctx(), "aggregate").await.unwrap_err().code(), "corrupt");
    assert_eq!(damaged.get(&ctx(), "id-1").await.unwrap_err().code(), "corrupt");
}

#[tokio::test]
async fn a_large_batch_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    let events = (0..4).map(|n| event(&n.to_string(), vec![7; 12 << 20])).collect();
    assert_eq!(opened.store_batch(&ctx(), Batch::new(events)).await.unwrap().len(), 4);
    let copy = killed(directory.path());
    assert_clean(&open(Options::new(copy.path())).await.unwrap(), 4).await;
}

#[tokio::test]
async fn a_change_of_the_manifest_that_was_lost_in_a_file_that_kept_its_length_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    store(&opened, "synced", "x").await.unwrap();
    opened.close().await.unwrap();
    let rocksdb = directory.path().join("rocksdb");
    let manifest = rocksdb.join(fs::read_to_string(rocksdb.join("CURRENT")).unwrap().trim_end());
    let mut bytes = fs::read(&manifest).unwrap();
    let sound = bytes.len();
    bytes.extend([[1, 2, 3, 4, 0, 4, 1].as_slice(), &[5; 1024]].concat()); // a header with a length of 1,024, and that
    bytes[(sound + 7).next_multiple_of(512)..].fill(0);
    fs::write(&manifest, &bytes).unwrap();
    assert_clean(&open(Options::new(directory.path())).await.unwrap(), 1).await;
}

#[tokio::test]
async fn a_buffered_write_that_was_lost_in_a_file_that_kept_its_length_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    store(&opened, "synced", "x").await.unwrap();
    let buffered = Batch::new(vec![event("buffered", vec![7; 5000])]).durability(Durability::Buffered);
    opened.store_batch(&ctx(), buffered).await.unwrap();
    let copy = killed(directory.path());
    let log = files(copy.path(), ".log").pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let lost = (bytes.len() - 3000).next_multiple_of(512);
    bytes[lost..].fill(0);
    fs::write(&log, bytes).unwrap();
    assert_clean(&open(Options::new(copy.path())).await.unwrap(), 1).await;
}

#[tokio::test]
async fn a_damaged_block_is_named_and_nothing_else_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    options.compression = Compression::None; // so that the data are found in the file
    let sound = open(options.clone()).await.unwrap();
    for n in 1..=100 {
        store(&sound, &format!("id-{n}"), [noise(n, 2000), format!("payload number {n}.").into()].concat())
            .await
            .unwrap();
    }
    sound.close().await.unwrap();
    let (file, at) = files(directory.path(), ".sst")
        .into_iter()
        .find_map(|file| position_of(&file, b"payload number 50.").map(|at| (file, at)))
        .unwrap();
    flip(&file, at);

    let damaged = open(options).await.unwrap();
    let mut events = damaged.load(&ctx(), Version::ZERO);
    let mut before = 0;
    let first_damaged = loop {
        match events.next().await.unwrap() {
            Ok(event) => {
                before += 1;
                assert_eq!(event.version, Version::new(before));
            }
            Err(error) => break corrupt_version(error),
        }
    };
    assert_eq!(first_damaged, before + 1);
    assert!((35..=50).contains(&first_damaged), "a block of 16 KiB holds about eight: {first_damaged}");
    assert!(events.next().await.is_none());
    for n in first_damaged..=50 {
        let error = damaged.load(&ctx(), Version::new(n - 1)).into_vec().await.unwrap_err();
        assert_eq!(corrupt_version(error), n);
        assert_eq!(corrupt_version(damaged.get(&ctx(), &format!("id-{n}")).await.unwrap_err()), n);
    }
    let found = damaged.verify(&ctx()).await.unwrap().findings;
    let named: Vec<_> = found.iter().filter_map(|finding| finding.version).map(Version::get).collect();
    let last_damaged = *named.last().unwrap();
    assert_eq!(named, (first_damaged..=last_damaged).collect::<Vec<_>>());
    assert!(named.contains(&50) && named.len() < 16, "{named:?}");
    let after = damaged.load(&ctx(), Version::new(last_damaged)).into_vec().await.unwrap();
    assert_eq!(after.len() as u64, 100 - last_damaged, "what comes after it can be loaded");
    // Going backward, RocksDB reads one entry ahead, so the last one before the damage is out of reach.
    let backward =
        damaged.load(&ctx(), LoadOptions::all().backward().limit(99 - last_damaged)).into_vec().await.unwrap();
    assert_eq!(backward, after.into_iter().skip(1).rev().collect::<Vec<_>>());
    assert_eq!(store(&damaged, "id-101", "more").await.unwrap(), Version::new(101));
    assert_eq!(corrupt_version(store(&damaged, "id-50", "other").await.unwrap_err()), 50);

    let error = damaged.run_gc(&ctx(), Gc::Full).await.unwrap_err();
    assert!(error.to_string().contains("merge tables"), "{error}");
    drop(damaged);
    let error = repair(directory.path()).unwrap_or_else(|error| vec![error.to_string()]).join(" ");
    assert!(error.contains("left as it is"), "a store that opens is not touched: {error}");
}

fn corrupt_version(error: Error) -> u64 {
    match error {
        Error::Corrupt { version: Some(version), .. } => version.get(),
        other => panic!("expected Corrupt with a version, got {other}"),
    }
}

#[tokio::test]
async fn no_flipped_bit_of_the_log_loses_an_event_in_silence() {
    let killed = killed_with(8).await;
    let log = log_of(killed.path());
    let sound = fs::read(&log).unwrap();
    let (mut refused, mut whole) = (0, 0);
    for at in (0..sound.len()).step_by(13).chain([4, 5]) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(killed.path(), copy.path());
        flip(&log_of(copy.path()), at);
        match open(Options::new(copy.path())).await {
            Ok(opened) => {
                assert_eq!(versions(&opened).await.len(), 8, "byte {at}");
                whole += 1;
            }
            Err(error) => {
                assert!(is_damaged_log(&error), "byte {at}: {error}");
                assert_eq!(fs::read(log_of(copy.path())).unwrap().len(), sound.len(), "and left as it is");
                refused += 1;
            }
        }
    }
    assert!(refused > 50 && whole == 0, "{refused} refused, {whole} whole");
}

#[tokio::test]
async fn a_damaged_log_is_repaired_up_to_the_damage() {
    let killed = killed_with(8).await;
    let path = killed.path();
    let log = log_of(path);
    flip(&log, position_of(&log, b"payload number 5").unwrap());
    let damaged = fs::read(&log).unwrap();
    for _ in 0..2 {
        let error = open(Options::new(path)).await.unwrap_err();
        assert!(is_damaged_log(&error), "{error}");
        assert!(error.to_string().contains(log.file_name().unwrap().to_str().unwrap()), "{error}");
    }
    fs::create_dir(path.join("aside-1")).unwrap(); // of an earlier repair

    let actions = repair(path).unwrap();
    assert!(actions.iter().any(|action| action.contains("version 4")), "{actions:?}");
    assert!(actions.iter().any(|action| action.contains("aside-2")), "{actions:?}");
    assert_eq!(fs::read(path.join("aside-2").join(log.file_name().unwrap())).unwrap(), damaged);
    let aside = names_in(&path.join("aside-2"));
    assert!(aside.iter().any(|name| name == "CURRENT") && aside.iter().any(|name| name.starts_with("MANIFEST")));
    assert!(names_in(&path.join("aside-1")).is_empty());

    let repaired = open(Options::new(path)).await.unwrap();
    assert_clean(&repaired, 4).await;
    assert_eq!(store(&repaired, "id-5", "again").await.unwrap(), Version::new(5));
    repaired.close().await.unwrap();

    let actions = repair(path).unwrap();
    assert!(actions.len() == 1 && actions[0].contains("left as it is"), "{actions:?}");
    assert!(!path.join("aside-3").exists());
}

#[tokio::test]
async fn repair_keeps_all_tables_together() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    options.memtable_size = 64 << 10;
    let opened = open(options.clone()).await.unwrap();
    for n in 1..=200 {
        store(&opened, &format!("id-{n}"), noise(n, 2000)).await.unwrap();
    }
    assert!(files(directory.path(), ".sst").len() > 3, "tables were written on the way");
    let killed = killed(directory.path());
    // In the oldest file, which may be older than some of the tables.
    let log = files(killed.path(), ".log").remove(0);
    flip(&log, fs::read(&log).unwrap().len() / 2);
    options.path = killed.path().to_owned();
    assert!(is_damaged_log(&open(options.clone()).await.unwrap_err()));
    repair(killed.path()).unwrap();
    let repaired = open(options).await.unwrap();
    let newest = repaired.latest_version(&ctx()).await.unwrap().get();
    assert!((1..200).contains(&newest), "{newest}");
    assert_clean(&repaired, newest).await;
}

#[tokio::test]
async fn repair_leaves_what_it_cannot_mend() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    store(&opened, "in a table", "x").await.unwrap();
    opened.run_gc(&ctx(), Gc::Quick).await.unwrap();
    store(&opened, "in the log", "payload").await.unwrap();
    let killed = killed(directory.path());
    let log = log_of(killed.path());
    flip(&log, position_of(&log, b"payload").unwrap());
    fs::remove_file(files(killed.path(), ".sst").pop().unwrap()).unwrap();
    let (names, bytes) = (names_in(&killed.path().join("rocksdb")), fs::read(&log).unwrap());
    let error = repair(killed.path()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { reason, .. } if !reason.contains("eventstore repair")), "{error}");
    assert_eq!(names_in(killed.path()), ["eventstore.head", "eventstore.json", "eventstore.lock", "rocksdb"]);
    assert_eq!((names_in(&killed.path().join("rocksdb")), fs::read(&log).unwrap()), (names, bytes));
}

#[tokio::test]
async fn point_in_time_recovery_can_be_chosen() {
    let killed = killed_with(8).await;
    let log = log_of(killed.path());
    flip(&log, position_of(&log, b"payload number 5").unwrap());
    let mut options = Options::new(killed.path());
    options.wal_recovery = WalRecovery::PointInTime;
    assert_clean(&open(options).await.unwrap(), 4).await;
    assert_clean(&open(Options::new(killed.path())).await.unwrap(), 4).await;
}

#[tokio::test]
async fn a_log_that_lost_its_synced_end_opens_once_that_is_accepted() {
    let killed = killed_with(8).await;
    let log = log_of(killed.path());
    let whole = fs::read(&log).unwrap();
    let last = whole.windows(16).rposition(|bytes| bytes == b"payload number 8").unwrap();
    for cut in [whole.len() - 1, last + 5, last] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(killed.path(), copy.path());
        fs::write(log_of(copy.path()), &whole[..cut]).unwrap();
        // The end had been synced, and somebody knows.
        for _ in 0..2 {
            let error = open(Options::new(copy.path())).await.unwrap_err();
            assert!(matches!(error, Error::Corrupt { version: Some(lost), .. } if lost.get() == 8), "{error}");
        }
        let actions = repair(copy.path()).unwrap();
        assert!(actions.len() == 1 && actions[0].contains("version 8"), "{actions:?}");
        let opened = open(Options::new(copy.path())).await.unwrap();
        assert_clean(&opened, 7).await;
        assert_eq!(store(&opened, "id-8", "again").await.unwrap(), Version::new(8));
    }
}

#[tokio::test]
async fn a_large_batch_that_was_cut_short_is_not_there_in_part() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    store(&opened, "whole", "x").await.unwrap();
    let events = (0..100).map(|n| event(&n.to_string(), noise(n, 3000))).collect();
    opened.store_batch(&ctx(), Batch::new(events)).await.unwrap();
    let killed = killed(directory.path());
    let whole = fs::read(log_of(killed.path())).unwrap();
    for cut in [1, 10_000, 100_000, 250_000] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(killed.path(), copy.path());
        fs::write(log_of(copy.path()), &whole[..whole.len() - cut]).unwrap();
        fs::remove_file(copy.path().join("eventstore.head")).unwrap(); // the end had not been synced
        assert_clean(&open(Options::new(copy.path())).await.unwrap(), 1).await;
    }
}

#[tokio::test]
async fn lost_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(Options::new(directory.path())).await.unwrap();
    for n in 0..50 {
        store(&sound, &n.to_string(), noise(n, 1000)).await.unwrap();
    }
    sound.close().await.unwrap();
    let lost = [files(directory.path(), ".sst").pop().unwrap(), files(directory.path(), "CURRENT").pop().unwrap()];
    let manifest = names_in(&directory.path().join("rocksdb")).into_iter().find(|name| name.starts_with("MANIFEST-"));
    let manifest = directory.path().join("rocksdb").join(manifest.unwrap());
    for file in lost.into_iter().chain([manifest, log_of(directory.path())]) {
        let copy = killed(directory.path());
        fs::remove_file(copy.path().join("rocksdb").join(file.file_name().unwrap())).unwrap();
        let before = names_in(&copy.path().join("rocksdb"));
        let error = open(Options::new(copy.path())).await.unwrap_err();
        assert!(matches!(error.code(), "cannot_open" | "corrupt"), "{file:?}: {error}");
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".log") {
            assert!(is_damaged_log(&error), "{error}");
            repair(copy.path()).unwrap();
            assert_clean(&open(Options::new(copy.path())).await.unwrap(), 50).await;
        } else {
            let text = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(text.contains(name), "{name}: {text}");
            assert_eq!(names_in(&copy.path().join("rocksdb")), before, "nothing was begun anew");
            let refused = repair(copy.path()).unwrap_err();
            assert_eq!(refused.code(), error.code(), "{refused}");
            assert!(refused.to_string().contains("restore"), "{refused}");
            assert!(!copy.path().join("aside-1").exists());
        }
    }
}

#[tokio::test]
async fn files_that_are_not_rocksdbs_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    fs::write(directory.path().join("rocksdb/CURRENT"), "something else").unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { version: None, .. }), "{error}");
    fs::write(directory.path().join("eventstore.json"), r#"{"engine":"sled"}"#).unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("sled:")), "{error}");
    let strange = tempfile::tempdir().unwrap();
    fs::write(strange.path().join("letter.txt"), "mine").unwrap();
    assert!(matches!(open(Options::new(strange.path())).await, Err(Error::Open { .. })));
    assert!(matches!(repair(strange.path()), Err(Error::Open { .. })));
    assert_eq!(names_in(strange.path()), ["letter.txt"]);
}

#[tokio::test]
async fn what_was_cut_short_is_tidied_up() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("eventstore.json.new"), "{}").unwrap();
    fs::create_dir(directory.path().join("rocksdb")).unwrap();
    fs::write(directory.path().join("rocksdb/000004.log"), "half a creation").unwrap();
    fs::create_dir(directory.path().join("backup-in-progress-7.tmp")).unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    store(&opened, "1", "x").await.unwrap();
    opened.close().await.unwrap();
    fs::create_dir(directory.path().join("backup-in-progress-8")).unwrap();
    fs::write(directory.path().join("backup-in-progress-8/000009.sst"), "left by a killed backup").unwrap();
    let opened = open(Options::new(directory.path())).await.unwrap();
    assert_clean(&opened, 1).await;
    assert_eq!(names_in(directory.path()), ["eventstore.head", "eventstore.json", "eventstore.lock", "rocksdb"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_a_prefix_with_everything_acknowledged_and_independent() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    options.memtable_size = 256 << 10; // so that tables are written meanwhile
    options.compression = Compression::None;
    let source = open(options).await.unwrap();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let stop = CancellationToken::new();
    let writer = tokio::spawn({
        let (source, acknowledged, stop) = (source.clone(), acknowledged.clone(), stop.clone());
        async move {
            let mut batch = 0;
            while !stop.is_cancelled() {
                let events = (0..7).map(|n| event(&format!("{batch}-{n}"), noise(batch * 7 + n, 1500))).collect();
                let stored = source.store_batch(&ctx(), Batch::new(events)).await.unwrap();
                acknowledged.store(stored[6].version.get(), Ordering::SeqCst);
                batch += 1;
            }
        }
    });
    let targets = tempfile::tempdir().unwrap();
    for n in 0..10 {
        while acknowledged.load(Ordering::SeqCst) < n * 200 + 7 {
            tokio::task::yield_now().await;
        }
        let before = acknowledged.load(Ordering::SeqCst);
        let target = targets.path().join(n.to_string());
        let report = source.backup(&ctx(), &target).await.unwrap();
        let newest = report.latest_version.get();
        assert!(newest >= before && newest.is_multiple_of(7), "{before} then, {newest} in the backup");
        let copy = open(Options::new(&target)).await.unwrap();
        assert_clean(&copy, newest).await;
    }
    stop.cancel();
    writer.await.unwrap();
    assert_eq!(names_in(directory.path()), ["eventstore.head", "eventstore.json", "eventstore.lock", "rocksdb"]);

    // Damage in the source does not show in it.
    let target = targets.path().join("last");
    let newest = source.backup(&ctx(), &target).await.unwrap().latest_version.get();
    drop(source);
    for file in files(directory.path(), ".sst") {
        let middle = fs::metadata(&file).unwrap().len() / 2;
        flip_in_place(&file, middle);
    }
    assert_clean(&open(Options::new(&target)).await.unwrap(), newest).await;
    let damaged = open(Options::new(directory.path())).await;
    assert!(damaged.is_err() || !damaged.unwrap().verify(&ctx()).await.unwrap().is_clean());
}

/// Writes to the file itself: a hard link would show it.
fn flip_in_place(file: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x80], at).unwrap();
}

#[tokio::test]
async fn a_backup_of_a_flushed_and_of_an_empty_store_opens() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(Options::new(directory.path())).await.unwrap();
    let targets = tempfile::tempdir().unwrap();
    source.backup(&ctx(), &targets.path().join("empty")).await.unwrap();
    store(&source, "1", "x").await.unwrap();
    source.run_gc(&ctx(), Gc::Quick).await.unwrap();
    source.backup(&ctx(), &targets.path().join("flushed")).await.unwrap();
    assert_clean(&open(Options::new(targets.path().join("empty"))).await.unwrap(), 0).await;
    assert_clean(&open(Options::new(targets.path().join("flushed"))).await.unwrap(), 1).await;
}

#[tokio::test]
async fn a_backup_is_refused_or_cancelled_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(Options::new(directory.path())).await.unwrap();
    for n in 0..40 {
        store(&source, &n.to_string(), noise(n, 100_000)).await.unwrap();
    }
    let targets = tempfile::tempdir().unwrap();
    let taken = targets.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("letter.txt"), "mine").unwrap();
    assert!(matches!(source.backup(&ctx(), &taken).await, Err(Error::Open { .. })));
    assert_eq!(names_in(&taken), ["letter.txt"]);

    let cancellation = CancellationToken::new();
    let stop = cancellation.clone();
    let progress = Progress::new(move |done, total| {
        if done * 2 > total {
            stop.cancel();
        }
    });
    let until = ctx().with_cancellation(cancellation).with_progress(progress);
    let target = targets.path().join("cancelled");
    assert!(matches!(source.backup(&until, &target).await, Err(Error::Cancelled)));
    assert!(names_in(&target).is_empty(), "{:?}", names_in(&target));
    assert_eq!(names_in(directory.path()), ["eventstore.head", "eventstore.json", "eventstore.lock", "rocksdb"]);
    source.backup(&ctx(), &target).await.unwrap();
    assert_clean(&open(Options::new(&target)).await.unwrap(), 40).await;
}

#[tokio::test]
async fn collection_changes_nothing_and_reports() {
    for blob_threshold in [0, 1000] {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::new(directory.path());
        options.blob_threshold = blob_threshold;
        options.memtable_size = 64 << 10;
        options.table_size = 64 << 10;
        options.level_base_size = 128 << 10;
        options.blob_file_size = 64 << 10;
        let opened = open(options.clone()).await.unwrap();
        for n in 1..=300 {
            store(&opened, &format!("id-{n}"), noise(n, if n % 2 == 0 { 100 } else { 3000 })).await.unwrap();
        }
        let before = opened.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
        for gc in [Gc::Quick, Gc::Full] {
            let report = opened.run_gc(&ctx(), gc).await.unwrap();
            assert!(report.actions.iter().any(|action| action.contains("flushed")), "{:?}", report.actions);
            let rewrote = report.actions.iter().any(|action| action.contains("rewrote"));
            let blobs = report.actions.iter().any(|action| action.contains("blob"));
            assert_eq!(
                (rewrote, blobs),
                (gc == Gc::Full, gc == Gc::Full && blob_threshold > 0),
                "{:?}",
                report.actions
            );
            assert_eq!(opened.load(&ctx(), Version::ZERO).into_vec().await.unwrap(), before);
            assert_eq!(property(&opened, "level0_tables").await, 0, "all is merged");
            assert_eq!(property(&opened, "background_errors").await, 0);
        }
        assert_clean(&opened, 300).await;
        let cancelled = CancellationToken::new();
        let stop = cancelled.clone();
        let progress = Progress::new(move |_, _| stop.cancel());
        let until = ctx().with_cancellation(cancelled).with_progress(progress);
        assert!(matches!(opened.run_gc(&until, Gc::Full).await, Err(Error::Cancelled)));
        store(&opened, "more", "x").await.unwrap();
        assert_clean(&opened, 301).await;
    }
}

async fn property(store: &RocksDbStore, name: &str) -> u64 {
    let stats = store.stats(&ctx()).await.unwrap();
    stats.properties.iter().find(|(found, _)| *found == name).unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn large_events_go_into_blob_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    let opened = open(options.clone()).await.unwrap();
    store(&opened, "in a table", noise(1, 50_000)).await.unwrap();
    opened.close().await.unwrap();
    assert!(files(directory.path(), ".blob").is_empty(), "off by default");

    options.blob_threshold = 10_000;
    let opened = open(options.clone()).await.unwrap();
    store(&opened, "large", noise(2, 40_000)).await.unwrap();
    store(&opened, "small", noise(3, 5_000)).await.unwrap();
    opened.run_gc(&ctx(), Gc::Quick).await.unwrap();
    let in_blobs: u64 = files(directory.path(), ".blob").iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!((40_000..45_000).contains(&in_blobs), "{in_blobs}");
    assert_eq!(property(&opened, "blob_bytes").await, in_blobs);
    let before = files(directory.path(), ".blob");
    opened.run_gc(&ctx(), Gc::Full).await.unwrap();
    assert!(before.iter().all(|file| !file.exists()), "every blob file was rewritten");
    let in_blobs: u64 = files(directory.path(), ".blob").iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!((90_000..95_000).contains(&in_blobs), "rewriting moves the old one as well: {in_blobs}");
    opened.close().await.unwrap();

    let opened = open(Options::new(directory.path())).await.unwrap();
    assert_clean(&opened, 3).await;
    let target = tempfile::tempdir().unwrap();
    opened.backup(&ctx(), target.path()).await.unwrap();
    drop(opened);
    let blob = files(directory.path(), ".blob").pop().unwrap();
    flip(&blob, position_of(&blob, &noise(2, 40_000)[..100]).unwrap());
    let damaged = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(corrupt_version(damaged.get(&ctx(), "large").await.unwrap_err()), 2);
    let found = damaged.verify(&ctx()).await.unwrap().findings;
    assert_eq!(found.iter().map(|finding| finding.version).collect::<Vec<_>>(), [Some(Version::new(2))]);
    assert_clean(&open(Options::new(target.path())).await.unwrap(), 3).await;
}

#[tokio::test]
async fn options_out_of_range_are_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut options = Options::new(&path);
    options.level0_stall = 3;
    let error = open(options).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option, .. } if option == "level0_stall"), "{error}");
    let mut options = Options::new(&path);
    options.create_if_missing = false;
    assert!(matches!(open(options).await, Err(Error::Open { .. })));
    assert!(!path.exists());
}

#[tokio::test]
async fn every_option_can_change_between_openings() {
    let directory = tempfile::tempdir().unwrap();
    let others = [
        "",
        "compression=zstd&bloom_bits=0&open_files=0",
        "compression=none&blob_threshold=1KiB&blob_compression=lz4&memtables=2&memtable_size=64KiB",
        "level0_tables=1&level0_stall=1&background_jobs=1&wal_size=64KiB&block_cache=1MiB",
        "table_size=64KiB&level_base_size=64KiB&level_size_multiplier=2&wal_recovery=point_in_time&log_level=debug",
    ];
    for (round, options) in others.into_iter().enumerate() {
        let url = format!("rocksdb:{}?{options}", directory.path().display());
        let opened = open(Options::from_url(&url.parse().unwrap()).unwrap()).await.unwrap();
        for n in 0..50 {
            store(&opened, &format!("{round}-{n}"), noise(n, 2000)).await.unwrap();
        }
        assert_clean(&opened, (round as u64 + 1) * 50).await;
        opened.close().await.unwrap();
    }
}

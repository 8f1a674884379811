//! Changes RocksDB's small files in every way that a disk may change them: opening terminates, every event is there,
//! and damaged files are moved aside unchanged.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use backend_rocksdb::{Options, open_blocking};
use eventstore_api::{Batch, Context, Digest, Event, EventStore, Result, Version};
use tempfile::TempDir;

/// Longer than opening takes on any machine; RocksDB has hung on a manifest.
const LIMIT: Duration = Duration::from_secs(60);

const EVENTS: u64 = 40;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A store that was opened often enough to have merged tables.
fn original() -> (TempDir, Digest) {
    let directory = tempfile::tempdir().unwrap();
    let mut digest = Digest::EMPTY;
    for round in 0..EVENTS / 4 {
        let store = open_blocking(&Options::new(directory.path().join("store"))).unwrap();
        let event = |n| Event::builder("Tested", format!("a{}", n % 7)).id(format!("id-{n}")).build().unwrap();
        digest = block_on(async {
            let events = (round * 4..round * 4 + 4).map(event).collect();
            store.store_batch(&Context::background(), Batch::new(events)).await.unwrap();
            let digest = store.digest(&Context::background(), Version::new(u64::MAX)).await.unwrap();
            store.close().await.unwrap();
            digest
        });
    }
    (directory, digest)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => fs::copy(entry.path(), to).map(drop).unwrap(),
        }
    }
}

/// The files of an index by name. RocksDB creates `LOCK` each time.
fn index(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let files = files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()));
    files.filter(|(name, _)| name != "LOCK").collect()
}

/// The content of a store: the number of events, their digest, and the number of findings.
fn whole(store: &impl EventStore) -> Result<(u64, Digest, usize)> {
    block_on(async {
        let ctx = Context::background();
        let report = store.verify(&ctx).await?;
        let digest = store.digest(&ctx, Version::new(u64::MAX)).await?;
        store.get(&ctx, "id-7").await?;
        store.close().await?;
        Ok((report.events, digest, report.findings.len()))
    })
}

/// The number of changes tried, and of those after which the index was rebuilt.
#[derive(Default, Debug)]
struct Counts {
    tried: u32,
    made_again: u32,
}

/// Changes a file of a copy, and opens the copy.
fn check(original: &Path, digest: Digest, file: &str, what: &str, bytes: &[u8], counts: &mut Counts) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    copy(&original.join("store"), &path);
    fs::write(path.join("index").join(file), bytes).unwrap();
    let before = index(&path.join("index"));
    let (done, outcome) = mpsc::channel();
    let options = Options::new(&path);
    thread::spawn(move || drop(done.send(open_blocking(&options).and_then(|store| whole(&store)))));
    let outcome = outcome.recv_timeout(LIMIT);
    assert!(matches!(outcome, Ok(Ok(found)) if found == (EVENTS, digest, 0)), "{file} {what}: {outcome:?}");
    counts.tried += 1;
    let aside = path.join("index.damaged");
    if aside.exists() {
        counts.made_again += 1;
        let found = index(&aside);
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&before), "{file} {what}: what was damaged was changed");
        assert!(found == before, "{file} {what}: what was damaged was changed");
    }
}

/// The offsets of the bytes with the type of the following record.
fn kinds(manifest: &[u8]) -> Vec<usize> {
    let mut kinds = Vec::new();
    let mut at = 0;
    while at + 7 <= manifest.len() {
        kinds.push(at + 6);
        at += 7 + usize::from(u16::from_le_bytes([manifest[at + 4], manifest[at + 5]]));
    }
    kinds
}

fn small_files(index: &Path) -> Vec<(String, Vec<u8>)> {
    let is_small =
        |name: &str| ["MANIFEST-", "CURRENT", "OPTIONS-", "IDENTITY"].iter().any(|small| name.starts_with(small));
    self::index(index).into_iter().filter(|(name, _)| is_small(name)).collect()
}

#[test]
fn a_flipped_bit_of_a_small_file_ends_no_opening_and_loses_nothing() {
    let (original, digest) = original();
    let mut counts = BTreeMap::<String, Counts>::new();
    // The number of bits to flip in each file. To flip every bit, set it to the number of bits.
    let most: usize = std::env::var("EVENTSTORE_TEST_BITS").map_or(80, |most| most.parse().unwrap());
    for (file, bytes) in small_files(&original.path().join("store/index")) {
        let counts = counts.entry(file.split('-').next().unwrap().to_owned()).or_default();
        let mut bits: Vec<_> = (0..bytes.len() * 8).step_by((bytes.len() * 8 / most).max(1) | 1).collect();
        if file.starts_with("MANIFEST") {
            bits.extend(kinds(&bytes).into_iter().flat_map(|at| at * 8..at * 8 + 8));
        }
        for bit in bits {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            check(original.path(), digest, &file, &format!("with bit {bit} flipped"), &damaged, counts);
        }
    }
    assert_eq!(counts.len(), 4, "{counts:?}");
    assert!(counts["MANIFEST"].made_again > counts["MANIFEST"].tried / 2, "{counts:?}");
}

#[test]
fn what_stands_behind_the_end_of_a_small_file_ends_no_opening_and_loses_nothing() {
    let (original, digest) = original();
    let mut counts = Counts::default();
    for (file, bytes) in small_files(&original.path().join("store/index")) {
        let all_kinds: Vec<u8> = (0..=255).collect();
        for garbage in [
            &[0][..],
            b"\n",
            b"MANIFEST-000001\n",
            &[7; 6],
            &[1; 7],
            &[1; 100],
            &[3; 1000],
            &[0xff; 50_000],
            &[0; 50_000],
            &all_kinds,
        ] {
            let what = format!("with {} bytes {:?} behind its end", garbage.len(), garbage[0]);
            check(original.path(), digest, &file, &what, &[&bytes[..], garbage].concat(), &mut counts);
        }
        // Its own bytes twice, as after a repeated write.
        check(original.path(), digest, &file, "twice", &bytes.repeat(2), &mut counts);
        let last = bytes.len() - bytes.len().min(40);
        check(
            original.path(),
            digest,
            &file,
            "with its end twice",
            &[&bytes[..], &bytes[last..]].concat(),
            &mut counts,
        );
    }
    assert!(counts.made_again > 0, "{counts:?}");
}

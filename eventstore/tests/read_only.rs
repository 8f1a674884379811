//! Read-only stores: nothing is written, others may read as well, and nobody may write meanwhile.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use eventstore::backend::{
    Batch, Context, Error, Event, EventStore, EventStoreExt, Expected, Gc, LoadOptions, Version,
};

use common::{BACKENDS, below, copy, copy_open};

type Store = Arc<dyn EventStore>;

fn ctx() -> Context {
    Context::background()
}

fn url(backend: &str, path: &Path) -> String {
    format!("{backend}:{}?segment_size=64KiB&index_events=100", path.display())
}

fn events(numbers: std::ops::Range<u64>) -> Vec<Event> {
    let of =
        |n| Event::builder("Tested", format!("aggregate-{}", n % 20)).id(format!("id-{n}")).data(vec![7; 300]).build();
    numbers.map(|n| of(n).unwrap()).collect()
}

async fn filled(backend: &str, path: &Path) -> Store {
    let store = eventstore::backend::open(&url(backend, path)).await.unwrap();
    for batch in 0..10 {
        store.store_batch(&ctx(), Batch::new(events(batch * 100..(batch + 1) * 100))).await.unwrap();
    }
    store
}

/// Everything below a directory: the bytes of files, and when each was changed.
fn content(directory: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let content = |path: &Path| {
        let bytes = if path.is_dir() { Vec::new() } else { fs::read(path).unwrap() };
        (fs::metadata(path).unwrap().modified().unwrap(), bytes)
    };
    below(directory).into_iter().map(|path| (path.clone(), content(&path))).collect()
}

async fn check(store: &Store, expected: &[Event]) {
    assert_eq!(store.latest_version(&ctx()).await.unwrap().get(), expected.len() as u64);
    let all = store.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
    assert!(all.iter().map(|recorded| &recorded.event).eq(expected));
    for recorded in all.iter().step_by(37) {
        assert_eq!(&store.get(&ctx(), recorded.event.id()).await.unwrap(), recorded);
    }
    let of_one = store.load_by_aggregate(&ctx(), "aggregate-3", Version::ZERO).into_vec().await.unwrap();
    assert!(
        of_one
            .iter()
            .map(|recorded| recorded.event.id())
            .eq(expected.iter().filter(|event| event.aggregate_id() == "aggregate-3").map(Event::id))
    );
    let newest = store.load(&ctx(), LoadOptions::all().backward().limit(3)).into_vec().await.unwrap();
    assert_eq!(newest.len(), 3);
    assert_eq!(store.stats(&ctx()).await.unwrap().aggregates, 20);
}

#[tokio::test]
async fn a_store_that_is_only_read_stays_as_it_is() {
    for backend in BACKENDS {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("store");
        let all = events(0..1000);
        let store = filled(backend, &path).await;
        let digest = eventstore::backend::digest(&store, &ctx()).await.unwrap();
        let locked = eventstore::backend::open_read_only(&url(backend, &path)).await;
        assert!(matches!(locked, Err(Error::Locked { .. })), "{backend}: it is open to be written");
        store.close().await.unwrap();
        drop(store);
        let before = content(&path);
        let [one, other] = [
            eventstore::backend::open_read_only(&url(backend, &path)).await.unwrap(),
            eventstore::backend::open_read_only(&url(backend, &path)).await.unwrap(),
        ];
        for store in [&one, &other] {
            check(store, &all).await;
            assert_eq!(eventstore::backend::digest(store, &ctx()).await.unwrap(), digest, "{backend}");
            assert!(store.verify(&ctx()).await.unwrap().is_clean(), "{backend}");
            for appended in [all[0].clone(), events(2000..2001).remove(0)] {
                let refused = store.store(&ctx(), appended, Expected::Any).await;
                assert!(matches!(refused, Err(Error::Unsupported { .. })), "{backend}: {refused:?}");
            }
            assert!(matches!(store.run_gc(&ctx(), Gc::Full).await, Err(Error::Unsupported { .. })), "{backend}");
        }
        let locked = eventstore::backend::open(&url(backend, &path)).await;
        assert!(matches!(locked, Err(Error::Locked { .. })), "{backend}: it is being read");
        one.backup(&ctx(), &temporary.path().join("backup")).await.unwrap();
        one.close().await.unwrap();
        other.close().await.unwrap();
        assert!(content(&path) == before, "{backend}: nothing was written");
        let backup =
            eventstore::backend::open_read_only(&url(backend, &temporary.path().join("backup"))).await.unwrap();
        check(&backup, &all).await;
        let missing = eventstore::backend::open_read_only(&url(backend, &temporary.path().join("none"))).await;
        assert!(matches!(missing, Err(Error::Open { .. })), "{backend}");
        assert!(!temporary.path().join("none").exists());
        eventstore::backend::open(&url(backend, &path)).await.unwrap().close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_not_closed_or_is_damaged_is_read_without_being_mended() {
    for backend in BACKENDS {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("store");
        let all = events(0..1000);
        let store = filled(backend, &path).await;
        // As a kill leaves it: the files of an open store, without its lock.
        let killed = temporary.path().join("killed");
        copy_open(&path, &killed);
        store.close().await.unwrap();
        for harm in ["", "index", "damaged index", "torn"] {
            let harmed = temporary.path().join(format!("harmed-{harm}"));
            copy(&killed, &harmed);
            match harm {
                "index" => fs::remove_dir_all(harmed.join("index")).unwrap(),
                "damaged index" => damage(&harmed.join("index")),
                "torn" => {
                    // A group that was not written completely.
                    let newest = newest_segment(&harmed);
                    let mut bytes = fs::read(&newest).unwrap();
                    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
                    let end = end.next_multiple_of(8);
                    bytes.resize(bytes.len().max(end + 100), 0);
                    bytes[end..end + 40].fill(0x5a);
                    fs::write(newest, bytes).unwrap();
                }
                _ => {}
            }
            let before = content(&harmed);
            let store = eventstore::backend::open_read_only(&url(backend, &harmed)).await.unwrap();
            check(&store, &all).await;
            let report = store.verify(&ctx()).await.unwrap();
            let is_told = report.findings.iter().any(|finding| finding.to_string().contains("the index is damaged"));
            // sled's files are not used after a kill, whatever they contain.
            let expects = harm == "damaged index" && *backend != "sled";
            assert_eq!(is_told, expects, "{backend}, {harm}: {:?}", report.findings);
            store.close().await.unwrap();
            assert!(content(&harmed) == before, "{backend}, {harm}: nothing was mended");
            // Opening for writing does write.
            let store = eventstore::backend::open(&url(backend, &harmed)).await.unwrap();
            check(&store, &all).await;
            store.close().await.unwrap();
        }
    }
}

/// Flips bits at the beginning of every file.
fn damage(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        for byte in bytes.iter_mut().take(8192).skip(16).step_by(7) {
            *byte ^= 0x55;
        }
        fs::write(path, bytes).unwrap();
    }
}

fn newest_segment(store: &Path) -> PathBuf {
    let names = fs::read_dir(store.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let used = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "seg")
            && fs::read(path).unwrap().iter().any(|byte| *byte != 0)
    };
    names.filter(used).max().unwrap()
}

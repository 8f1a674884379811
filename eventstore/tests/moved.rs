//! A store whose directory is moved, deleted or replaced while it is open reports that, and touches nothing else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventstore::backend::{Context, Error, Event, EventStore, EventStoreExt, Expected, Gc, Version};

use common::{BACKENDS, below};

fn ctx() -> Context {
    Context::background()
}

async fn open(backend: &str, path: &Path) -> Arc<dyn EventStore> {
    eventstore::backend::open(&format!("{backend}:{}?index_events=50", path.display())).await.unwrap()
}

/// Appends until the store refuses, and returns how many events are stored: the last append may have been caught by the
/// move, so that its outcome is unknown.
async fn append_until_refused(store: &Arc<dyn EventStore>, backend: &str) -> RangeInclusive<u64> {
    let until = Instant::now() + Duration::from_secs(60);
    let mut stored = store.latest_version(&ctx()).await.unwrap().get();
    let mut unknown = 0;
    loop {
        let event = Event::builder("Tested", "a").data("x").build().unwrap();
        match store.store(&ctx(), event, Expected::Any).await {
            Ok(_) => stored += 1,
            Err(Error::Fenced { reason }) => {
                assert!(reason.contains("moved, deleted or replaced"), "{backend}: {reason}");
                return stored..=stored + unknown;
            }
            Err(Error::OutcomeUnknown { .. }) if unknown == 0 => unknown = 1,
            Err(other) => panic!("{backend}: {other}"),
        }
        assert!(Instant::now() < until, "{backend}: it was not noticed");
    }
}

/// Every file below a directory, with its bytes.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = below(directory).into_iter().filter(|path| !path.is_dir());
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn a_store_that_is_moved_says_so_and_opens_where_it_is() {
    for backend in BACKENDS {
        let temporary = tempfile::tempdir().unwrap();
        let (path, moved) = (temporary.path().join("store"), temporary.path().join("moved"));
        let store = open(backend, &path).await;
        store.store(&ctx(), Event::builder("Tested", "a").build().unwrap(), Expected::Any).await.unwrap();
        fs::rename(&path, &moved).unwrap();
        let stored = append_until_refused(&store, backend).await;
        for said in [
            store.run_gc(&ctx(), Gc::Full).await.map(drop),
            store.verify(&ctx()).await.map(drop),
            store.stats(&ctx()).await.map(drop),
            store.backup(&ctx(), &temporary.path().join("backup")).await.map(drop),
        ] {
            assert!(
                matches!(&said, Err(Error::Open { reason, .. }) if reason.contains("moved")),
                "{backend}: {said:?}"
            );
        }
        let _ = store.close().await;
        assert!(!path.exists(), "{backend}: nothing is made where it was");
        let store = open(backend, &moved).await;
        let there = store.latest_version(&ctx()).await.unwrap().get();
        assert!(stored.contains(&there), "{backend}: {there} of {stored:?}");
        assert!(store.verify(&ctx()).await.unwrap().is_clean(), "{backend}");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_is_deleted_says_so() {
    for backend in BACKENDS {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("store");
        let store = open(backend, &path).await;
        store.store(&ctx(), Event::builder("Tested", "a").build().unwrap(), Expected::Any).await.unwrap();
        fs::remove_dir_all(&path).unwrap();
        append_until_refused(&store, backend).await;
        let _ = store.close().await;
        assert!(!path.exists(), "{backend}: nothing is made where it was");
    }
}

#[tokio::test]
async fn another_store_in_its_place_is_not_touched() {
    for backend in BACKENDS {
        let temporary = tempfile::tempdir().unwrap();
        let (path, other) = (temporary.path().join("store"), temporary.path().join("other"));
        let second = open(backend, &other).await;
        second.store(&ctx(), Event::builder("Tested", "b").build().unwrap(), Expected::Any).await.unwrap();
        second.close().await.unwrap();
        let store = open(backend, &path).await;
        store.store(&ctx(), Event::builder("Tested", "a").build().unwrap(), Expected::Any).await.unwrap();
        fs::rename(&path, temporary.path().join("moved")).unwrap();
        fs::rename(&other, &path).unwrap();
        let before = content(&path);
        append_until_refused(&store, backend).await;
        let _ = store.close().await;
        let after = content(&path);
        let changed: Vec<_> =
            after.iter().filter(|(path, bytes)| before.get(*path) != Some(*bytes)).map(|(path, _)| path).collect();
        assert!(after == before, "{backend}: it is not as it was: {changed:?} of {} files", before.len());
        // RocksDB's files stay open, and keep its own lock of this path.
        fs::rename(&path, &other).unwrap();
        let second = open(backend, &other).await;
        assert_eq!(second.latest_version(&ctx()).await.unwrap(), Version::new(1), "{backend}");
        second.close().await.unwrap();
    }
}

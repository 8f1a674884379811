//! A child process of a program with an open store inherits neither its files nor its lock.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::process::Command;

use eventstore::backend::{Batch, Context, Event, EventStore, EventStoreExt, Version};
use tempfile::TempDir;

use common::BACKENDS;

/// The files below a directory that this process has open.
fn own_handles(directory: &str) -> Vec<String> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let files = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    files.map(|file| file.display().to_string()).filter(|file| file.starts_with(directory)).collect()
}

/// The files below a directory that a child process inherits.
fn inherited_handles(directory: &str) -> Vec<String> {
    let listed = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("/proc/"), "it lists its own: {listed}");
    listed.lines().filter(|line| line.contains(directory)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_child_process_inherits_nothing_of_a_store() {
    let ctx = Context::background();
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let path = directory.path().display().to_string();
        let url = format!("{backend}:{path}/store?segment_size=64KiB&index_events=100");
        let backup = directory.path().join("backup");
        let copies = format!("{backend}:{path}/copy");
        for _ in 0..2 {
            let store = eventstore::backend::open(&url).await.unwrap();
            for batch in 0..30 {
                let event = |n| Event::builder("Tested", format!("a{n}")).data(vec![b'x'; 300]).build().unwrap();
                store.store_batch(&ctx, Batch::new((0..50).map(event).collect())).await.unwrap();
                if batch % 10 == 0 {
                    assert_eq!(inherited_handles(&path), [""; 0], "{backend}");
                }
            }
            // Each of these calls opens more files.
            store.load(&ctx, Version::ZERO).into_vec().await.unwrap();
            store.load_by_aggregate(&ctx, "a7", Version::ZERO).into_vec().await.unwrap();
            store.verify(&ctx).await.unwrap();
            store.backup(&ctx, &backup).await.unwrap();
            let copy = eventstore::backend::open(&copies).await.unwrap();
            eventstore::backend::copy(&store, &copy, &ctx).await.unwrap();
            let open = own_handles(&path);
            for name in ["store/eventstore.lock", "store/log/", "store/index/", "copy/eventstore.lock"] {
                assert!(open.iter().any(|file| file.contains(name)), "{backend}: {name} is open: {open:?}");
            }
            assert_eq!(inherited_handles(&path), [""; 0], "{backend}");
            copy.close().await.unwrap();
            store.close().await.unwrap();
        }
    }
}

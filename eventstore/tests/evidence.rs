//! Damaged files are moved aside unchanged, as the only evidence of the cause.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use eventstore::backend::{Batch, Context, Event, EventStore, Version};

use common::{BACKENDS, below, copy};

/// The files below a directory, without lock files, which are created each time.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_lock = |path: &PathBuf| ["LOCK", "lock.mdb"].iter().any(|name| path.ends_with(name));
    let files = below(directory).into_iter().filter(|path| path.is_file() && !is_lock(path));
    files.map(|path| (path.strip_prefix(directory).unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

#[tokio::test]
async fn a_damaged_index_is_put_aside_as_it_was_found() {
    let ctx = Context::background();
    for backend in BACKENDS {
        let directory = tempfile::tempdir().unwrap();
        let original = directory.path().join("original");
        for round in 0..3 {
            let store = eventstore::backend::open(&format!("{backend}:{}", original.display())).await.unwrap();
            let event = |n| Event::builder("Tested", format!("a{}", n % 7)).id(format!("id-{n}")).build().unwrap();
            let batch = Batch::new((round * 100..round * 100 + 100).map(event).collect());
            store.store_batch(&ctx, batch).await.unwrap();
            store.close().await.unwrap();
        }
        let sound = files(&original.join("index"));
        let (mut tried, mut put_aside) = (0, 0);
        for (file, bytes) in &sound {
            // Damages a piece at the beginning, at the end and in between.
            for part in 0..=8 {
                let at = (bytes.len() * part / 8).min(bytes.len().saturating_sub(4));
                let path = directory.path().join(format!("{backend}-{tried}"));
                copy(&original, &path);
                let mut damaged = bytes.clone();
                damaged[at..(at + 4).min(bytes.len())].iter_mut().for_each(|byte| *byte ^= 0x5a);
                fs::write(path.join("index").join(file), damaged).unwrap();
                tried += 1;

                let before = files(&path.join("index"));
                let store = eventstore::backend::open(&format!("{backend}:{}", path.display())).await.unwrap();
                assert_eq!(store.latest_version(&ctx).await.unwrap(), Version::new(300));
                let aside = path.join("index.damaged");
                if aside.exists() {
                    put_aside += 1;
                    let after = files(&aside);
                    let place = format!("{backend}: {} at byte {at} of {}", file.display(), bytes.len());
                    assert!(
                        after.get(file) == before.get(file),
                        "{place}: what was damaged is not there as it was found"
                    );
                    // Opening the engine may create new files and remove files it no longer needs. RocksDB names its
                    // new manifest in `CURRENT`.
                    let mut others = before.iter().filter(|(name, _)| name.as_path() != Path::new("CURRENT"));
                    let changed = others.find(|(name, bytes)| after.get(*name).is_some_and(|found| found != *bytes));
                    assert!(changed.is_none(), "{place}: {:?} has changed", changed.map(|(name, _)| name));
                }
                store.close().await.unwrap();
                fs::remove_dir_all(path).unwrap();
            }
        }
        assert!(put_aside > 0, "{backend}: {put_aside} of {tried}");
    }
}

//! Symbolic links: a store's directory may be one, its parts may not.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventstore::backend::{Context, Error, Event, EventStore, EventStoreExt, Expected, Gc, Version};
use tempfile::TempDir;

use common::{BACKENDS, below};

fn ctx() -> Context {
    Context::background()
}

fn url(backend: &str, path: &Path) -> String {
    format!("{backend}:{}", path.display())
}

async fn append(store: &Arc<dyn EventStore>, id: &str) {
    let event = Event::builder("Tested", "a").id(id).build().unwrap();
    store.store(&ctx(), event, Expected::Any).await.unwrap();
}

/// All files below a directory with their content, and the targets of links.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let content = |path: &Path| match path.is_symlink() {
        true => fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(),
        false => fs::read(path).unwrap(),
    };
    let files = below(directory).into_iter().filter(|path| path.is_symlink() || !path.is_dir());
    files.map(|path| (path.clone(), content(&path))).collect()
}

#[tokio::test]
async fn a_part_of_a_store_that_is_a_link_is_refused_and_nothing_is_changed() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let (path, elsewhere) = (directory.path().join("store"), directory.path().join("elsewhere"));
        let url = url(backend, &path);
        let store = eventstore::backend::open(&url).await.unwrap();
        append(&store, "1").await;
        store.close().await.unwrap();
        let mut parts = vec![path.join("log"), path.join("index")];
        for part in parts.clone() {
            parts.extend(fs::read_dir(part).unwrap().map(|entry| entry.unwrap().path()));
        }
        assert!(parts.len() > 3, "{parts:?}");
        for part in parts {
            fs::rename(&part, &elsewhere).unwrap();
            symlink(&elsewhere, &part).unwrap();
            let before = content(directory.path());
            let name = part.strip_prefix(&path).unwrap().display().to_string();
            let refused = |error: Error| {
                let expected = format!("{name} is a symbolic link");
                assert!(
                    matches!(&error, Error::Open { reason, .. } if reason.contains(&expected)),
                    "{backend}: {error}"
                );
            };
            refused(eventstore::backend::open(&url).await.unwrap_err());
            refused(eventstore::backend::open_existing(&url).await.unwrap_err());
            refused(eventstore::backend::repair(&ctx(), &url).await.unwrap_err());
            let target = format!("{backend}:{}", directory.path().join("restored").display());
            refused(eventstore::backend::restore(&ctx(), &path, &target).await.unwrap_err());
            let _ = fs::remove_dir_all(directory.path().join("restored"));
            assert!(content(directory.path()) == before, "{backend}: {name} changed something");
            // Follows the advice of the error text: moves the link's target to its place.
            fs::remove_file(&part).unwrap();
            fs::rename(&elsewhere, &part).unwrap();
        }
        let store = eventstore::backend::open(&url).await.unwrap();
        assert_eq!(store.latest_version(&ctx()).await.unwrap(), Version::new(1), "{backend}");
    }
}

#[tokio::test]
async fn the_whole_directory_may_be_a_link() {
    for backend in BACKENDS {
        let directory = TempDir::new().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let store = eventstore::backend::open(&url(backend, &link)).await.unwrap();
        append(&store, "1").await;
        let error = eventstore::backend::open(&url(backend, &real)).await.unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{backend}: {error}");
        store.run_gc(&ctx(), Gc::Full).await.unwrap();
        append(&store, "2").await;
        let backup = directory.path().join("backup");
        store.backup(&ctx(), &backup).await.unwrap();
        store.close().await.unwrap();
        eventstore::backend::repair(&ctx(), &url(backend, &link)).await.unwrap();
        for path in [&real, &link, &backup] {
            let store = eventstore::backend::open_existing(&url(backend, path)).await.unwrap();
            let report = store.verify(&ctx()).await.unwrap();
            assert!(report.is_clean() && report.events == 2, "{backend}: {report:?}");
            store.close().await.unwrap();
        }
        assert!(link.is_symlink() && real.join("log").is_dir(), "{backend}");
    }
}

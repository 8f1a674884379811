//! Compresses sealed log segments in the background, with the lowest priority.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use eventstore_api::{Error, Result};

use crate::Task;
use crate::engine::Engine;
use crate::error::log_error;
use crate::shared::{Shared, with_causes};
use crate::sync::{Ordering, background};

/// Starts compression in the background, unless it is running. The next checkpoint calls this again, so nothing is
/// missed.
pub(crate) fn start<E: Engine>(shared: &Arc<Shared<E>>) {
    let is_wanted = shared.log.compresses() && !shared.is_closing() && shared.fence_reason().is_none();
    if !is_wanted || shared.is_compressing.swap(true, Ordering::AcqRel) {
        return;
    }
    let shared = shared.clone();
    let _ = background::spawn_low("eventstore-compress", move || {
        // Closing waits for it, since it holds the directory's lock.
        let compress = || shared.keep_parts(|_| shared.log.compress(&mut || !shared.is_closing()).map_err(log_error));
        match catch_unwind(AssertUnwindSafe(compress)) {
            Ok(Ok(_) | Err(Error::Closed)) => {}
            Ok(Err(error)) => tell!(warn, error = with_causes(&error), "the log could not be compressed"),
            Err(_) => tell!(error, "compressing the log panicked"),
        }
        shared.is_compressing.store(false, Ordering::Release);
    });
}

/// Compresses everything that is due. Returns a description if anything was compressed.
pub(crate) fn run<E: Engine>(shared: &Shared<E>, task: &Task<'_>) -> Result<Option<String>> {
    if shared.fence_reason().is_some() {
        return Ok(None); // nothing more is written
    }
    let mut ended = None;
    let shrunk = shared.log.compress(&mut || {
        ended = task.check().err();
        ended.is_none()
    });
    let shrunk = shrunk.map_err(log_error)?;
    match ended {
        Some(error) => Err(error),
        None if shrunk.segments == 0 => Ok(None),
        None => Ok(Some(format!(
            "compressed {} segments of the log: {} bytes became {}",
            shrunk.segments, shrunk.bytes_before, shrunk.bytes_after
        ))),
    }
}

#[cfg(all(test, feature = "zstd"))]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use eventstore_api::{Event, EventStore, Gc, Version};

    use crate::files::open::tests::{Closed, FileStore, append, check, ctx, events, options};
    use crate::{Compression, StoreOptions};

    /// The index is written often, so that segments are sealed.
    fn compressing() -> StoreOptions {
        StoreOptions { compression: Compression::Zstd, index_events: 16, ..options() }
    }

    fn segments(log: &Path, generation: u32) -> Vec<String> {
        let names = fs::read_dir(log).expect("listed").map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.display().to_string());
        let mut names: Vec<_> = names.filter(|name| name.ends_with(&format!("-{generation}.seg"))).collect();
        names.sort();
        names
    }

    fn check_generations(log: &Path) {
        let numbers =
            |generation| segments(log, generation).iter().map(|name| name[..10].to_owned()).collect::<Vec<_>>();
        let plain = numbers(0);
        assert!(numbers(1).iter().all(|number| !plain.contains(number)));
    }

    async fn wait_for(is_so: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < until, "it takes too long");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn compressed(all: &[Event]) -> (Closed, FileStore) {
        let closed = Closed::new(&[]).await;
        let store = closed.open_with(compressing()).expect("opened");
        append(&store, all).await;
        let log = closed.path().join("log");
        wait_for(|| segments(&log, 1).len() > 2).await;
        (closed, store)
    }

    #[tokio::test]
    async fn what_is_sealed_is_compressed_in_the_background() {
        let all = events(1..=250, 2000);
        let (closed, store) = compressed(&all).await;
        check(&store, &all).await;
        store.close().await.expect("closed");
        check_generations(&closed.path().join("log"));
        // It is readable with any value of the option.
        for options in [options(), compressing()] {
            let store = closed.open_with(options).expect("opened");
            check(&store, &all).await;
            store.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn collecting_compresses_what_is_left_and_says_so() {
        let all = events(1..=200, 2000);
        let closed = Closed::new(&all).await;
        let log = closed.path().join("log");
        assert!(segments(&log, 1).is_empty());
        let store = closed.open_with(compressing()).expect("opened");
        for gc in [Gc::Quick, Gc::Quick] {
            let before = segments(&log, 1).len();
            let report = store.run_gc(&ctx(), gc).await.expect("collected");
            let (from, to) = (report.bytes_before.expect("files"), report.bytes_after.expect("files"));
            if before == 0 {
                assert!(report.actions[0].starts_with("compressed"), "{report:?}");
                assert!(to < from / 2, "{report:?}");
            } else {
                assert!(report.actions[0].starts_with("nothing to do") && to == from, "{report:?}");
            }
        }
        assert!(segments(&log, 1).len() > 2);
        check(&store, &all).await;
        // Without the option, nothing is compressed.
        let closed = Closed::new(&all).await;
        let store = closed.open().expect("opened");
        store.run_gc(&ctx(), Gc::Quick).await.expect("collected");
        assert!(segments(&closed.path().join("log"), 1).is_empty());
    }

    #[tokio::test]
    async fn backups_go_on_after_compression() {
        let all = events(1..=300, 2000);
        let closed = Closed::new(&all[..100]).await;
        let (earlier, target) = (closed.temporary.path().join("backup"), closed.temporary.path().join("full"));
        let store = closed.open().expect("opened");
        store.backup(&ctx(), &earlier).await.expect("backed up");
        store.close().await.expect("closed");
        let store = closed.open_with(compressing()).expect("opened");
        append(&store, &all[100..]).await;
        store.run_gc(&ctx(), Gc::Full).await.expect("collected");
        assert!(segments(&closed.path().join("log"), 1).len() > 2);
        for target in [&earlier, &target, &earlier] {
            let report = store.backup(&ctx(), target).await.expect("backed up");
            assert_eq!(report.latest_version, Version::new(300));
            check_generations(&target.join("log"));
            let backup = FileStore::open(target, false, (), options()).expect("opened");
            check(&backup, &all).await;
            backup.close().await.expect("closed");
        }
        assert!(!segments(&target.join("log"), 1).is_empty(), "it travels compressed");
        assert!(!segments(&earlier.join("log"), 0).is_empty(), "what was there is good enough");
        check(&store, &all).await;
    }

    #[tokio::test]
    async fn verifying_finds_damage_in_what_is_compressed() {
        let all = events(1..=250, 2000);
        let (closed, store) = compressed(&all).await;
        store.close().await.expect("closed");
        let name = closed.path().join("log").join("0000000002-1.seg");
        let len = fs::metadata(&name).expect("there").len() as usize;
        closed.flip(&name, len / 3);
        let store = closed.open().expect("opened");
        let report = store.verify(&ctx()).await.expect("verified");
        assert!(!report.is_clean());
        assert!(
            report.findings.iter().any(|finding| format!("{finding:?}").contains("0000000002-1.seg")),
            "{report:?}"
        );
    }

    #[tokio::test]
    async fn closing_does_not_wait_for_all_of_it() {
        let all = events(1..=150, 2000);
        for _ in 0..5 {
            let closed = Closed::new(&[]).await;
            let store = closed.open_with(compressing()).expect("opened");
            append(&store, &all).await;
            store.close().await.expect("closed");
            check_generations(&closed.path().join("log"));
            // The lock is free, and nobody changes the files any more.
            let store = closed.open().expect("opened");
            check(&store, &all).await;
            check_generations(&closed.path().join("log"));
        }
    }
}

//! Backups: a copy of the log, and a separate index that is built from it.

use std::path::Path;
use std::sync::Arc;

use eventstore_api::{BackupReport, Error, Result, Version};
use eventstore_log::DiskDirectory;

use crate::engine::Engine;
use crate::error::log_error;
use crate::files::directory::StoreDirectory;
use crate::files::open::{LOG, Ready, open_directory};
use crate::files::transfer::is_below;
use crate::index::indexer::checkpoint;
use crate::memory::no_files;
use crate::options::Compression;
use crate::shared::{Parts, Shared, with_causes};
use crate::{StoreOptions, Task};

/// Copies the log into a directory that is missing, empty, or has an earlier backup of this store; then only new data
/// is copied. The copy is opened once to build its index, so a backup that does not open is never reported as done.
pub(crate) fn backup<E: Engine>(
    shared: &Arc<Shared<E>>,
    parts: &Parts<E>,
    target: &Path,
    engine: &E::Options,
    options: &StoreOptions,
    task: &Task<'_>,
) -> Result<BackupReport> {
    let Some(source) = &parts.directory else { return Err(no_files()) };
    // Full segments are sealed before they are copied. Otherwise the copy would give them another footer, and they
    // would be copied again.
    let seal = || shared.log.sync().map_err(log_error).and_then(|()| checkpoint(shared, shared.log.position()));
    let sealed = if shared.is_read_only() { Ok(()) } else { seal() };
    if let Err(error) = sealed {
        tell!(warn, error = with_causes(&error), "full log segments could not be sealed before a backup");
    }
    if is_below(target, source.path()) {
        return Err(refused(target, "it is the store's own directory, or is inside it"));
    }
    let directory = match StoreDirectory::is_store(target) {
        true => earlier_backup::<E>(shared, target)?,
        false => StoreDirectory::begin_backup(target, E::NAME, shared.id)?,
    };
    let log = directory.path().join(LOG);
    std::fs::create_dir_all(&log).map_err(|error| Error::engine("make the backup's directory", error))?;
    let (mut ended, mut bytes) = (None, 0);
    let copied = shared.log.copy_to(&DiskDirectory::new(&log), &mut |done, total| {
        bytes = total;
        task.report(done, 2 * total); // and as much again for the index
        ended = task.check().err();
        ended.is_none()
    });
    let copied = copied.map_err(|error| match error {
        eventstore_log::Error::Full { reason } => full(target, &reason),
        eventstore_log::Error::Unsupported { what } => refused(target, &what),
        other => log_error(other),
    })?;
    if copied.is_none() {
        return Err(ended.unwrap_or(Error::Cancelled));
    }
    // Compressed segments were copied as such. The copy is not changed any further.
    let options = StoreOptions { compression: Compression::None, ..options.clone() };
    let Ready { opened, committer, .. } =
        task.in_second_half(bytes, |task| open_directory::<E>(directory, engine, &options, task))?;
    let copy = Arc::new(Shared::new(opened));
    // The next opening has nothing left to read.
    copy.indexer.settle(&copy)?;
    checkpoint(&copy, copy.log.position())?;
    if let Some(committer) = committer {
        committer.close();
    }
    task.check()?;
    copy.with_parts(|parts| parts.directory.as_ref().map_or(Ok(()), StoreDirectory::mark))?;
    task.report(2 * bytes, 2 * bytes);
    let mut report = BackupReport::default();
    report.latest_version = Version::new(copy.log.last());
    report.bytes_on_disk =
        copy.with_parts(|parts| parts.directory.as_ref().map_or(Ok(0), StoreDirectory::len_bytes))?;
    copy.finish_closing(None);
    copy.closing_result()?;
    Ok(report)
}

fn refused(target: &Path, reason: &str) -> Error {
    Error::Open {
        path: target.display().to_string(),
        reason: format!("{reason}; choose a missing or empty directory, or an earlier backup of this store"),
        source: None,
    }
}

/// The disk of the backup is full, which is not that of the store.
fn full(target: &Path, reason: &str) -> Error {
    let advice = "make room on its disk, or choose a directory on another";
    Error::engine("back up", format!("there is no room in {}: {reason}; {advice}", target.display()))
}

/// The directory of an earlier backup of this same store.
fn earlier_backup<E: Engine>(shared: &Shared<E>, target: &Path) -> Result<StoreDirectory> {
    let refused = |reason| refused(target, reason);
    if StoreDirectory::engine_of(target)? != E::NAME {
        return Err(refused("it holds a store of another engine"));
    }
    let directory = StoreDirectory::open_existing(target, E::NAME)?;
    if directory.id() != shared.id {
        return Err(refused("it holds another store"));
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use eventstore_api::{Batch, CancellationToken, Context, Event, EventStore, EventStoreExt, Progress};

    use super::*;
    use crate::files::open::tests::{Closed, FileEngine, FileStore, append, check, copy_all, ctx, events, options};
    use crate::{KvStore, restore};

    async fn backup(store: &FileStore, target: &Path) -> BackupReport {
        store.backup(&ctx(), target).await.expect("backed up")
    }

    async fn check_backup(target: &Path, events: &[Event]) {
        let store = open(target);
        check(&store, events).await;
        store.close().await.expect("closed");
    }

    fn open(path: &Path) -> FileStore {
        KvStore::open(path, false, (), options()).expect("opened")
    }

    /// Every file with its bytes, except the lock.
    fn content(path: &Path) -> BTreeMap<String, Vec<u8>> {
        fn add(path: &Path, name: &str, content: &mut BTreeMap<String, Vec<u8>>) {
            if !path.is_dir() {
                content.insert(name.to_owned(), fs::read(path).expect("read"));
                return;
            }
            for entry in fs::read_dir(path).expect("listed") {
                let entry = entry.expect("an entry");
                add(&entry.path(), &format!("{name}/{}", entry.file_name().display()), content);
            }
        }
        let mut content = BTreeMap::new();
        if path.exists() {
            add(path, "", &mut content);
        }
        content.remove("/eventstore.lock");
        content
    }

    #[tokio::test]
    async fn a_backup_is_a_store_with_all_events() {
        let all = events(1..=60, 2000);
        let closed = Closed::new(&all[..50]).await;
        let store = closed.open().expect("opened");
        append(&store, &all[50..]).await;
        let target = closed.temporary.path().join("backup");
        let report = backup(&store, &target).await;
        assert_eq!(report.latest_version.get(), 60);
        assert!(report.bytes_on_disk > 60 * 2000, "{report:?}");
        check_backup(&target, &all).await;
        check(&store, &all).await;
        // Its index was built with it.
        let directory = StoreDirectory::open_existing(&target, FileEngine::NAME).expect("opened");
        let ctx = ctx();
        let ready =
            open_directory::<FileEngine>(directory, &(), &options(), &Task::new(&ctx, &|| Ok(()))).expect("opened");
        assert!(target.join("log/tail").exists(), "opening goes on from there");
        assert!(ready.actions.is_empty() && ready.opened.index.newer().len() == 0, "{:?}", ready.actions);
    }

    async fn id_of<E: Engine>(store: &KvStore<E>) -> String {
        store.stats(&ctx()).await.expect("read").store_id.expect("it has one")
    }

    #[tokio::test]
    async fn the_id_of_a_store_stays_and_its_backups_have_it() {
        let closed = Closed::new(&events(1..=5, 20)).await;
        let store = closed.open().expect("opened");
        let id = id_of(&store).await;
        let is_hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        assert!(id.len() == 32 && id.bytes().all(is_hexadecimal), "{id}");
        let target = closed.temporary.path().join("backup");
        backup(&store, &target).await;
        store.close().await.expect("closed");
        assert_eq!(id_of(&closed.open().expect("reopened")).await, id);
        let restored = closed.temporary.path().join("restored");
        restore(&ctx(), &target, &restored).expect("restored");
        for path in [&target, &restored] {
            assert_eq!(id_of(&open(path)).await, id, "{}", path.display());
            let read = FileStore::open_read_only(path, (), options()).expect("opened");
            assert_eq!(id_of(&read).await, id, "{}", path.display());
        }
        let another = Closed::new(&[]).await;
        assert_ne!(id_of(&another.open().expect("opened")).await, id);
    }

    #[tokio::test]
    async fn each_store_in_memory_has_an_id() {
        let store = crate::memory::open(options()).expect("opened");
        let id = id_of(&store).await;
        assert_eq!(id_of(&store.clone()).await, id);
        assert_ne!(id_of(&crate::memory::open(options()).expect("opened")).await, id);
    }

    #[tokio::test]
    async fn what_is_damaged_does_not_travel() {
        let all = events(1..=120, 2000);
        let closed = Closed::new(&all[..60]).await;
        let (first, into) = (closed.temporary.path().join("first"), closed.temporary.path().join("into"));
        let store = closed.open().expect("opened");
        backup(&store, &into).await;
        append(&store, &all[60..]).await;
        store.close().await.expect("closed");
        let segments = fs::read_dir(closed.path().join(LOG)).expect("listed").count();
        let damaged = closed.segment(segments as u64 - 3);
        let len = fs::metadata(&damaged).expect("there").len();
        closed.flip(&damaged, len as usize / 2);
        let store = closed.open().expect("opened");
        let before = content(&into);
        for target in [&first, &into] {
            let refused = store.backup(&ctx(), target).await;
            assert!(matches!(refused, Err(Error::Corrupt { version: Some(_), .. })), "{refused:?}");
        }
        assert!(content(&first).is_empty() && content(&into) == before, "as they were");
        check_backup(&into, &all[..60]).await;
    }

    #[tokio::test]
    async fn a_backup_of_an_empty_store_is_an_empty_store() {
        let closed = Closed::new(&[]).await;
        let (target, store) = (closed.temporary.path().join("backup"), closed.open().expect("opened"));
        assert_eq!(backup(&store, &target).await.latest_version, Version::ZERO);
        assert_eq!(open(&target).latest_version(&ctx()).await.expect("read"), Version::ZERO);
        let all = events(1..=10, 20);
        append(&store, &all).await;
        backup(&store, &target).await;
        check_backup(&target, &all).await;
    }

    /// The number of files that changed, and their size in bytes.
    #[cfg(unix)]
    fn replaced(before: &BTreeMap<String, u64>, log: &Path) -> (usize, u64) {
        let others = files(log).into_iter().filter(|(name, file)| before.get(name) != Some(file));
        others.fold((0, 0), |(count, bytes), (name, _)| {
            (count + 1, bytes + fs::metadata(log.join(name)).expect("there").len())
        })
    }

    #[cfg(unix)]
    fn files(log: &Path) -> BTreeMap<String, u64> {
        use std::os::unix::fs::MetadataExt;
        let segments = fs::read_dir(log).expect("listed").map(|entry| entry.expect("an entry"));
        let segments =
            segments.map(|entry| (entry.file_name().display().to_string(), entry.metadata().expect("there").ino()));
        segments.filter(|(name, _)| name.ends_with(".seg")).collect()
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn into_an_earlier_backup_only_travels_what_is_new() {
        for is_reopened in [false, true] {
            check_what_travels(is_reopened).await;
        }
    }

    #[cfg(unix)]
    async fn check_what_travels(is_reopened: bool) {
        let all = events(1..=250, 2000);
        let closed = Closed::new(&all[..150]).await;
        let target = closed.temporary.path().join("backup");
        let mut done = 150;
        let mut store = closed.open().expect("opened");
        backup(&store, &target).await;
        for more in [1, 0, 4, 80, 0, 15] {
            append(&store, &all[done..done + more / 2]).await;
            if is_reopened {
                store.close().await.expect("closed"); // closing adds a mark of the digest that the copy does not have
                store = closed.open().expect("opened");
            }
            append(&store, &all[done + more / 2..done + more]).await;
            done += more;
            let log = target.join(LOG);
            let before = files(&log);
            let told = Arc::new(Mutex::new((0, 0)));
            let listener = told.clone();
            let progress = Progress::new(move |done, total| *listener.lock().expect("no panic") = (done, total));
            let report = store.backup(&ctx().with_progress(progress), &target).await.expect("backed up");
            assert_eq!(report.latest_version.get(), done as u64);
            let (count, bytes) = replaced(&before, &log);
            // The newest segment grows, and each one may have been the newest.
            let most = if more == 0 { 0 } else { 1 + (more * 2200).div_ceil(64 << 10) };
            assert!(count <= most, "{count} files for {more} events");
            assert!(bytes <= (most as u64) * (66 << 10), "{bytes} bytes for {more} events");
            let told = *told.lock().expect("no panic");
            assert_eq!(told.0, told.1);
            assert!(told.0 <= 2 * bytes, "{told:?}");
            check_backup(&target, &all[..done]).await;
            if is_reopened {
                store.close().await.expect("closed"); // closing seals what is full
                store = closed.open().expect("opened");
            }
        }
        assert!(files(&target.join(LOG)).len() > 5);
        check(&store, &all[..done]).await;
    }

    #[tokio::test]
    async fn a_backup_into_an_earlier_one_that_was_opened_meanwhile_goes_on() {
        let all = events(1..=90, 2000);
        let closed = Closed::new(&[]).await;
        let (target, store) = (closed.temporary.path().join("backup"), closed.open().expect("opened"));
        for done in [30, 60, 90] {
            append(&store, &all[done - 30..done]).await;
            assert_eq!(backup(&store, &target).await.latest_version.get(), done as u64);
            check_backup(&target, &all[..done]).await;
        }
        // What is restored from it is complete, too.
        let restored = closed.temporary.path().join("restored");
        restore(&ctx(), &target, &restored).expect("restored");
        check_backup(&restored, &all).await;
    }

    #[tokio::test]
    async fn damage_to_an_earlier_backup_is_found_by_who_verifies_it() {
        let all = events(1..=120, 2000);
        let closed = Closed::new(&[]).await;
        let target = |name: &str| closed.temporary.path().join(name);
        let store = closed.open().expect("opened");
        append(&store, &all[..90]).await;
        backup(&store, &target("damaged")).await;
        closed.flip(&target("damaged").join(LOG).join("0000000001-0.seg"), 5000);
        append(&store, &all[90..]).await;
        for (name, is_sound) in [("damaged", false), ("new", true)] {
            // Only new data is copied: what is there is not read.
            assert_eq!(backup(&store, &target(name)).await.latest_version.get(), 120, "{name}");
            let own = open(&target(name));
            let report = own.verify(&ctx()).await.expect("verified");
            assert_eq!(report.is_clean(), is_sound, "{name}: {:?}", report.findings);
            own.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn what_is_no_earlier_backup_of_this_store_is_refused_and_not_touched() {
        let all = events(1..=60, 200);
        let closed = Closed::new(&all[..20]).await;
        let target = |name: &str| closed.temporary.path().join(name);
        let store = closed.open().expect("opened");
        backup(&store, &target("shorter")).await;
        backup(&store, &target("equal")).await;
        append(&store, &all[20..40]).await;
        backup(&store, &target("ahead")).await;
        for (name, more) in [("shorter", 5), ("equal", 20), ("ahead", 1)] {
            let own = open(&target(name));
            append(&own, &events(101..=100 + more, 200)).await;
            own.close().await.expect("closed");
        }
        let other = Closed::new(&all[..10]).await;
        copy_all(&other.path(), &target("another store's"));
        copy_all(&Closed::new(&[]).await.path(), &target("another empty store's"));
        let engine = StoreDirectory::open(&target("another engine's"), "other").expect("opened");
        engine.mark().expect("marked");
        drop(engine);
        fs::create_dir(target("something else")).expect("created");
        fs::write(target("something else").join("mine"), "mine").expect("written");
        fs::write(target("a file"), "mine").expect("written");

        for name in [
            "shorter",
            "equal",
            "ahead",
            "another store's",
            "another empty store's",
            "another engine's",
            "something else",
            "a file",
        ] {
            let before = content(&target(name));
            let refused = store.backup(&ctx(), &target(name)).await;
            assert!(matches!(refused, Err(Error::Open { .. } | Error::Unsupported { .. })), "{name}: {refused:?}");
            assert_eq!(content(&target(name)), before, "{name}");
        }
        let itself = store.backup(&ctx(), &closed.path()).await;
        assert!(matches!(itself, Err(Error::Open { .. })), "{itself:?}");
        let open = open(&target("ahead"));
        assert!(matches!(store.backup(&ctx(), &target("ahead")).await, Err(Error::Locked { .. })));
        drop(open);
        check(&store, &all[..40]).await;
    }

    #[tokio::test]
    async fn a_store_that_was_restored_from_yesterday_is_not_backed_up_over_todays() {
        let all = events(1..=60, 200);
        let closed = Closed::new(&all[..20]).await;
        let yesterday = closed.copied();
        closed.append(&all[20..]).await;
        let target = closed.temporary.path().join("backup");
        let store = closed.open().expect("opened");
        backup(&store, &target).await;
        let before = content(&target);
        let yesterdays = yesterday.open().expect("opened");
        assert!(yesterdays.backup(&ctx(), &target).await.is_err());
        assert_eq!(content(&target), before);
        check_backup(&target, &all).await;
    }

    /// Cancels after this many reports.
    fn ending_after(reports: u64) -> (Context, Arc<AtomicBool>) {
        let token = CancellationToken::new();
        let ctx = ctx().with_cancellation(token.clone());
        let ended = Arc::new(AtomicBool::new(false));
        let (count, has_ended) = (Mutex::new(0), ended.clone());
        let progress = Progress::new(move |_, _| {
            let mut count = count.lock().expect("no panic");
            if *count == reports {
                has_ended.store(true, Ordering::Relaxed);
                token.cancel();
            }
            *count += 1;
        });
        (ctx.with_progress(progress), ended)
    }

    #[tokio::test]
    async fn a_backup_that_is_cancelled_leaves_what_was_there() {
        let all = events(1..=100, 2000);
        let closed = Closed::new(&all[..40]).await;
        let earlier = closed.temporary.path().join("earlier");
        let store = closed.open().expect("opened");
        backup(&store, &earlier).await;
        append(&store, &all[40..]).await;
        let mut was_cancelled = 0;
        for reports in 0.. {
            let (new, into) = (closed.temporary.path().join("new"), closed.temporary.path().join("into"));
            copy_all(&earlier, &into);
            let (to_new, new_ended) = ending_after(reports);
            let made = store.backup(&to_new, &new).await;
            match made {
                Err(error) => {
                    assert!(matches!(error, Error::Cancelled), "{error:?}");
                    assert_eq!(content(&new), BTreeMap::new(), "after {reports}");
                    was_cancelled += 1;
                }
                Ok(_) => check_backup(&new, &all).await,
            }
            let (to_earlier, earlier_ended) = ending_after(reports);
            let before = content(&into);
            match store.backup(&to_earlier, &into).await {
                Err(error) => {
                    assert!(matches!(error, Error::Cancelled), "{error:?}");
                    let backup = open(&into);
                    let head = backup.latest_version(&ctx()).await.expect("read").get() as usize;
                    assert!([40, 100].contains(&head), "{head}");
                    check(&backup, &all[..head]).await;
                    drop(backup);
                    assert!(head == 100 || before.keys().all(|name| content(&into).contains_key(name)));
                    was_cancelled += 1;
                }
                Ok(_) => check_backup(&into, &all).await,
            }
            // It continues from whatever is there.
            backup(&store, &into).await;
            check_backup(&into, &all).await;
            fs::remove_dir_all(&into).expect("removed");
            let _ = fs::remove_dir_all(&new);
            if !new_ended.load(Ordering::Relaxed) && !earlier_ended.load(Ordering::Relaxed) {
                break;
            }
        }
        assert!(was_cancelled >= 4, "{was_cancelled}");
        check(&store, &all).await;
    }

    #[tokio::test]
    async fn a_backup_while_others_append_has_the_first_events_and_no_batch_in_part() {
        let closed = Closed::new(&[]).await;
        let store = closed.open().expect("opened");
        let is_done = Arc::new(AtomicBool::new(false));
        let (writer, is_over) = (store.clone(), is_done.clone());
        let writing = tokio::spawn(async move {
            let mut written = Vec::new();
            for batch in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let batch = events(batch * 3 + 1..=batch * 3 + 3, 1000);
                writer.store_batch(&ctx(), Batch::new(batch.clone())).await.expect("stored");
                written.extend(batch);
            }
            written
        });
        store.wait_for_events(&ctx(), Version::ZERO).await.expect("the first");
        let incremental = closed.temporary.path().join("incremental");
        let mut heads = Vec::new();
        for nth in 0..4 {
            let full = closed.temporary.path().join(format!("full-{nth}"));
            for target in [&full, &incremental] {
                heads.push((target.clone(), backup(&store, target).await.latest_version.get()));
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        is_done.store(true, Ordering::Relaxed);
        let all = writing.await.expect("no panic");
        heads.reverse();
        assert!(heads[0].1 > 0);
        let mut is_checked = false;
        for (target, head) in heads {
            if target == incremental && std::mem::replace(&mut is_checked, true) {
                continue; // it was completed meanwhile
            }
            assert!(head.is_multiple_of(3), "{head}");
            check_backup(&target, &all[..head as usize]).await;
        }
    }

    #[tokio::test]
    async fn a_damaged_log_is_not_backed_up_and_an_earlier_backup_stays() {
        let all = events(1..=40, 200);
        let closed = Closed::new(&all[..20]).await;
        let (earlier, new) = (closed.temporary.path().join("earlier"), closed.temporary.path().join("new"));
        let store = closed.open().expect("opened");
        backup(&store, &earlier).await;
        append(&store, &all[20..]).await;
        store.close().await.expect("closed");
        let segment = closed.path().join(LOG).join("0000000001-0.seg");
        let mut bytes = fs::read(&segment).expect("read");
        let middle = bytes.len() / 4;
        bytes[middle] ^= 1;
        fs::write(&segment, bytes).expect("written");
        fs::remove_file(closed.path().join("log/tail")).expect("removed");
        let store = closed.open().expect("opened for reading");
        for target in [&earlier, &new] {
            let refused = store.backup(&ctx(), target).await;
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
        }
        check_backup(&earlier, &all[..20]).await;
        assert_eq!(content(&new), BTreeMap::new());
        let events = store.load(&ctx(), Version::new(20)).into_vec().await.expect("read");
        assert_eq!(events.len(), 20, "and what is sound is read");
    }

    #[tokio::test]
    async fn a_store_without_files_has_no_backups() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let store = crate::memory::open(options()).expect("opened");
        let refused = store.backup(&ctx(), &temporary.path().join("backup")).await;
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        assert!(!temporary.path().join("backup").exists());
    }
}

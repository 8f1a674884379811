//! The behaviour of a replica when its directory, its hub, its resolver or its program misbehaves.

mod common;

use std::future::IntoFuture as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eventstore::backend::EventStore;
use eventstore::{CancellationToken, Cursor, Event, Expected, RecordedEvent, Revision, Store, Version};
use eventstore_api::{Batch, Context, Gc, GcReport, LoadOptions, Page, PageSize, Place, Pulled, Pushed, Stats, Stored};
use synckit::{
    Answer, Conflict, Error, Notice, Options, RejectConflicts, Replica, Resolution, Resolver, SyncOptions, SyncState,
};

use common::{Hub, event, ids};

/// A hang counts as a failure.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it ends")
}

fn names(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}

// The directory.

/// The lock file is a pipe: an opening blocks on it until somebody reads from it.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_made_while_another_opening_began_is_not_made_anew() {
    let hub = Hub::new().await;
    let made = hub.replica("made").await;
    made.append(event("1", "x")).await.expect("appended");
    made.close().await.expect("closed");
    let path = hub.path("a");
    std::fs::create_dir(&path).expect("made");
    let made_pipe = std::process::Command::new("mkfifo").arg(path.join("lock")).status().expect("mkfifo runs");
    assert!(made_pipe.success());
    let opening = tokio::spawn(hub.options("a").open());
    // It has already checked for a replica when it waits for the lock. Now there is one.
    let is_waiting = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
        let waits = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
        tasks.flatten().any(|task| waits(task).contains("wait_for_partner"))
    };
    let began = std::time::Instant::now();
    while !is_waiting() && began.elapsed() < Duration::from_secs(2) {
        tokio::task::yield_now().await;
    }
    for name in names(&hub.path("made")) {
        if name != "lock" {
            std::fs::rename(hub.path("made").join(&name), path.join(&name)).expect("moved");
        }
    }
    let reader = std::fs::File::open(path.join("lock")).expect("the other end");
    let opened = soon(opening).await.expect("it ends").expect("it is a replica");
    assert_eq!(ids(&opened).await, ["1"]);
    drop(reader);
}

#[tokio::test]
async fn a_replica_without_its_settings_is_not_made_anew() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("1", "x")).await.expect("appended");
    a.close().await.expect("closed");
    let (settings, away) = (hub.path("a").join("replica.json"), hub.path("away"));
    std::fs::rename(&settings, &away).expect("moved");
    let refused = hub.options("a").open().await;
    assert!(matches!(refused, Err(Error::NotAReplica { .. })), "{refused:?}");
    std::fs::rename(&away, &settings).expect("moved");
    assert_eq!(ids(&hub.replica("a").await).await, ["1"]);
}

#[tokio::test]
async fn a_replica_that_was_not_finished_is_made_anew() {
    let hub = Hub::new().await;
    hub.replica("a").await.close().await.expect("closed");
    // Everything except the last step was done.
    std::fs::remove_file(hub.path("a").join("replica.json")).expect("removed");
    std::fs::write(hub.path("a").join("unfinished"), "").expect("written");
    let a = hub.replica("a").await;
    a.append(event("1", "x")).await.expect("appended");
    a.close().await.expect("closed");
    assert!(!names(&hub.path("a")).contains(&"unfinished".to_owned()));
    // The last step was done, but the note still exists. The sync of that step may have failed, so it is done again.
    let settings = std::fs::File::open(hub.path("a").join("replica.json")).expect("opened");
    std::fs::write(hub.path("a").join("unfinished"), "").expect("written");
    let a = hub.replica("a").await;
    assert_eq!(ids(&a).await, ["1"]);
    assert!(!names(&hub.path("a")).contains(&"unfinished".to_owned()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let now = std::fs::metadata(hub.path("a").join("replica.json")).expect("there");
        assert_ne!(now.ino(), settings.metadata().expect("open").ino(), "the settings are written again");
    }
    drop(settings);
}

/// The sync behind the renaming of a new journal may have failed, and a later one may succeed although that name never becomes
/// durable. Another name does.
#[tokio::test]
async fn a_new_journal_beside_an_older_one_gets_another_name() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("1", "x")).await.expect("appended");
    a.close().await.expect("closed");
    let journals = || names(&hub.path("a")).into_iter().filter(|name| name.starts_with("journal-")).collect::<Vec<_>>();
    assert_eq!(journals(), ["journal-1"]);
    std::fs::create_dir(hub.path("a").join("journal-2")).expect("made");
    for name in names(&hub.path("a").join("journal-1")) {
        let [from, to] = ["journal-1", "journal-2"].map(|journal| hub.path("a").join(journal).join(&name));
        std::fs::copy(from, to).expect("copied");
    }
    let a = hub.replica("a").await;
    assert_eq!(journals(), ["journal-3"]);
    assert_eq!(ids(&a).await, ["1"]);
    a.append(event("2", "x")).await.expect("appended");
    a.close().await.expect("closed");
    let a = hub.replica("a").await;
    assert_eq!(journals(), ["journal-3"]);
    assert_eq!(ids(&a).await, ["1", "2"]);
}

#[tokio::test]
async fn a_replica_without_its_journal_is_damaged_and_keeps_the_rest() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    hub.store.append(event("1", "x")).await.expect("appended");
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    a.close().await.expect("closed");
    let restored = eventstore::open("memory:").await.expect("memory");
    let options = || Options::new(hub.path("a")).hub_store(restored.clone());
    let a = options().open().await.expect("a replica");
    a.sync_once(&SyncOptions::new().accept_history()).await.expect("a sync");
    a.close().await.expect("closed");
    let journal = names(&hub.path("a")).into_iter().find(|name| name.starts_with("journal-")).expect("a journal");
    std::fs::rename(hub.path("a").join(&journal), hub.path("away")).expect("moved");
    let before = names(&hub.path("a"));
    assert!(before.contains(&"confirmed-2".to_owned()), "{before:?}");
    let refused = options().open().await;
    assert!(matches!(refused, Err(Error::Store(eventstore::Error::Corrupt { .. }))), "{refused:?}");
    assert_eq!(names(&hub.path("a")), before);
    std::fs::rename(hub.path("away"), hub.path("a").join(&journal)).expect("moved");
    options().open().await.expect("a replica");
}

#[tokio::test]
async fn the_format_of_the_settings_is_looked_at_before_all_else() {
    let hub = Hub::new().await;
    hub.replica("a").await.close().await.expect("closed");
    std::fs::write(hub.path("a").join("replica.json"), r#"{"format":2,"all":"else"}"#).expect("written");
    let refused = hub.options("a").open().await;
    assert!(matches!(refused, Err(Error::Store(eventstore::Error::Unsupported { .. }))), "{refused:?}");
}

#[tokio::test]
async fn journals_of_many_short_processes_are_written_anew() {
    let hub = Hub::new().await;
    let mut number = 0;
    for _ in 0..6 {
        let a = hub.replica("a").await;
        for _ in 0..4 {
            let appends: Vec<_> = (0..100)
                .map(|_| {
                    number += 1;
                    let (a, event) = (a.clone(), event(&number.to_string(), "x"));
                    tokio::spawn(async move { a.append(event).await })
                })
                .collect();
            for append in appends {
                append.await.expect("it ends").expect("appended");
            }
        }
        a.sync_once(&SyncOptions::new()).await.expect("a sync");
        a.close().await.expect("closed");
    }
    let journals: Vec<_> = names(&hub.path("a")).into_iter().filter(|name| name.starts_with("journal-")).collect();
    assert_eq!(journals, ["journal-2"], "after the third process, with 1,200 records");
    let a = hub.replica("a").await;
    assert_eq!((a.pending().len(), ids(&a).await.len()), (0, 2400));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_closed_replica_can_be_opened_at_once() {
    let hub = Hub::new().await;
    for number in 0..100 {
        let a = hub.replica("a").await;
        a.append(event(&number.to_string(), "x")).await.expect("appended");
        a.close().await.expect("closed");
    }
}

/// After the runtime has ended, nobody writes any more; otherwise nobody else could open the replica.
#[test]
fn a_runtime_that_ends_leaves_no_writer_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let store = runtime().block_on(eventstore::open("memory:")).expect("memory");
    let options = || Options::new(directory.path().join("a")).hub_store(store.clone());
    let mut acknowledged = Vec::new();
    for round in 0..40 {
        let ending = runtime();
        let opened = loop {
            match ending.block_on(options().open()) {
                Err(Error::Store(eventstore::Error::Locked { .. })) => std::thread::yield_now(),
                opened => break opened.expect("a replica"),
            }
        };
        let have = ending.block_on(ids(&opened));
        for id in &acknowledged {
            assert!(have.contains(id), "{id} is lost");
        }
        let (sender, done) = std::sync::mpsc::channel();
        for task in 0..8 {
            let (replica, sender) = (opened.clone(), sender.clone());
            ending.spawn(async move {
                for number in 0.. {
                    let id = format!("{round}-{task}-{number}");
                    if replica.append(event(&id, "x")).await.is_err() || sender.send(id).is_err() {
                        break;
                    }
                }
            });
        }
        drop((opened, sender));
        acknowledged.push(done.recv().expect("an append"));
        ending.shutdown_background();
        acknowledged.extend(done);
    }
}

// The program.

#[tokio::test]
async fn whoever_waits_on_a_closed_replica_is_told() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let mut notices = a.subscribe(Cursor::START);
    let confirmed = a.confirmed();
    let (stop, live) = (CancellationToken::new(), a.clone());
    let run = tokio::spawn(async move { live.run(&SyncOptions::new().stop(stop)).await });
    let mut sync = a.watch_sync();
    soon(sync.wait_for(|state| *state == synckit::SyncState::Live)).await.expect("it is live");
    let next = tokio::spawn(async move { notices.next().await });
    let wait = tokio::spawn(async move { confirmed.wait_for_events(Version::ZERO).await });
    tokio::task::yield_now().await;
    a.close().await.expect("closed");
    let next = soon(next).await.expect("it ends");
    assert!(matches!(next, Err(Error::Store(eventstore::Error::Closed))), "{next:?}");
    let wait = soon(wait).await.expect("it ends");
    assert!(matches!(wait, Err(eventstore::Error::Closed)), "{wait:?}");
    let run = tokio::time::timeout(Duration::from_secs(20), run).await.expect("at once").expect("it ends");
    assert!(matches!(run, Err(Error::Store(eventstore::Error::Closed))), "{run:?}");
}

/// The same event in two batches.
#[tokio::test]
async fn an_event_that_goes_from_a_rejected_batch_to_the_next_is_told() {
    #[derive(Debug)]
    struct Half(AtomicBool);

    #[synckit::async_trait]
    impl Resolver for Half {
        async fn resolve(&self, _: &Conflict) -> synckit::Result<Answer> {
            let is_first = !self.0.swap(true, Ordering::SeqCst);
            Ok(if is_first { Resolution::Reject("no".to_owned()) } else { Resolution::Wait }.into())
        }
    }
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("1", "x")).expected(Expected::NoEvents).await.expect("appended");
    a.append([event("1", "x"), event("2", "x")]).await.expect("appended");
    let mut notices = a.subscribe(Cursor::START);
    let mut told = Vec::new();
    while let Some(Notice::Pending(pending)) = soon(notices.try_next()).await.expect("a notice") {
        told.push((pending.batch.0, pending.event.id().to_owned()));
    }
    assert_eq!(told, [(1, "1".to_owned()), (2, "2".to_owned())]);
    hub.store.append(event("h", "x")).await.expect("appended");
    a.sync_once(&SyncOptions::new().resolver(Half(AtomicBool::new(false)))).await.expect("a sync");
    let (mut told, stop) = (Vec::new(), std::time::Instant::now());
    let told = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        while let Some(notice) = runtime.block_on(notices.try_next()).expect("a notice") {
            told.push(match notice {
                Notice::Confirmed { event, .. } => format!("confirmed {}", event.event.id()),
                Notice::Pending(pending) => format!("pending {}.{}", pending.batch, pending.event.id()),
                Notice::Rejected { batch, .. } => format!("rejected {batch}"),
                Notice::Replaced { batch } => format!("replaced {batch}"),
                other => format!("{other:?}"),
            });
        }
        told
    });
    while !told.is_finished() {
        assert!(stop.elapsed() < Duration::from_secs(60), "it goes round and round");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let told = told.join().expect("it ends");
    assert_eq!(told, ["confirmed h", "rejected 1", "replaced 2", "pending 2.1", "pending 2.2"]);
}

// Resolvers.

async fn conflicting() -> (Hub, Replica) {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("1", "x")).expected(Expected::NoEvents).await.expect("appended");
    let basis = a.load().aggregate("x").await.expect("a load").basis;
    a.append(event("2", "x")).basis(&basis).await.expect("appended");
    a.append(event("beside", "y")).await.expect("appended");
    hub.store.append(event("h", "x")).await.expect("appended");
    (hub, a)
}

#[tokio::test]
async fn an_answer_for_a_batch_twice_or_for_one_that_was_not_shown_is_an_error() {
    let twice = |conflict: &Conflict| {
        let (on_top, _) = conflict.on_top[0];
        let reject = || Resolution::Reject("no".to_owned());
        Answer::from(reject()).on_top(on_top, reject()).on_top(on_top, reject())
    };
    let itself =
        |conflict: &Conflict| Answer::from(Resolution::AppendAnyway).on_top(conflict.batch, Resolution::AppendAnyway);
    let beside = |_: &Conflict| {
        Answer::from(Resolution::AppendAnyway).on_top(synckit::core::Number(3), Resolution::Reject("no".to_owned()))
    };
    let none = |_: &Conflict| {
        Answer::from(Resolution::AppendAnyway).on_top(synckit::core::Number(77), Resolution::AppendAnyway)
    };
    type Decide = Box<dyn Fn(&Conflict) -> Answer + Send + Sync>;
    let all: [Decide; 4] = [Box::new(twice), Box::new(itself), Box::new(beside), Box::new(none)];
    struct Named(Decide, AtomicUsize);
    impl std::fmt::Debug for Named {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Named")
        }
    }
    #[synckit::async_trait]
    impl Resolver for Named {
        async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
            assert!(self.1.fetch_add(1, Ordering::SeqCst) < 10, "asked again and again");
            Ok((self.0)(conflict))
        }
    }
    for decide in all {
        let (hub, a) = conflicting().await;
        let resolver = Named(decide, AtomicUsize::new(0));
        let refused = soon(a.sync_once(&SyncOptions::new().resolver(resolver))).await;
        assert!(matches!(refused, Err(Error::Answer { .. })), "{refused:?}");
        assert_eq!(a.rejected().len(), 0);
        a.sync_once(&SyncOptions::new().resolver(RejectConflicts)).await.expect("a sync");
        assert_eq!(ids(&a).await, ["h", "beside"]);
        drop(hub);
    }
}

#[tokio::test]
async fn a_replacement_that_no_hub_would_take_is_an_error() {
    let (hub, a) = conflicting().await;
    let many = |_: &synckit::Conflict| {
        Resolution::AppendInstead((0..10_001).map(|number| event(&format!("r{number}"), "x")).collect())
    };
    let refused = a.sync_once(&SyncOptions::new().resolver(many)).await;
    assert!(matches!(refused, Err(Error::Answer { .. })), "{refused:?}");
    assert_eq!(a.pending()[0].events, [event("1", "x")], "it is not taken");
    drop(hub);
}

#[tokio::test]
async fn a_resolver_that_panics_or_is_not_waited_for_leaves_the_replica_as_it_was() {
    #[derive(Debug)]
    struct Panics;
    #[synckit::async_trait]
    impl Resolver for Panics {
        async fn resolve(&self, _: &Conflict) -> synckit::Result<Answer> {
            panic!("as told")
        }
    }
    #[derive(Debug)]
    struct Never(Arc<tokio::sync::Notify>);
    #[synckit::async_trait]
    impl Resolver for Never {
        async fn resolve(&self, _: &Conflict) -> synckit::Result<Answer> {
            self.0.notify_one();
            std::future::pending().await
        }
    }
    let (_hub, a) = conflicting().await;
    let panics = a.clone();
    let ended = tokio::spawn(async move { panics.sync_once(&SyncOptions::new().resolver(Panics)).await }).await;
    assert!(ended.is_err_and(|ended| ended.is_panic()));
    let asked = Arc::new(tokio::sync::Notify::new());
    let never = SyncOptions::new().resolver(Never(asked.clone()));
    tokio::select! {
        _ = a.sync_once(&never) => panic!("it never ends"),
        () = asked.notified() => {}
    }
    soon(a.sync_once(&SyncOptions::new().resolver(RejectConflicts))).await.expect("a sync");
    assert_eq!(ids(&a).await, ["h", "beside"]);
}

#[tokio::test]
async fn a_resolver_may_append_and_delete() {
    #[derive(Debug)]
    struct Busy(Replica, AtomicUsize);
    #[synckit::async_trait]
    impl Resolver for Busy {
        async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
            let number = self.1.fetch_add(1, Ordering::SeqCst);
            self.0.append(event(&format!("of resolver {number}"), "z")).await?;
            for rejected in self.0.rejected() {
                self.0.delete_rejected(rejected.number).await?;
            }
            RejectConflicts.resolve(conflict).await
        }
    }
    let (_hub, a) = conflicting().await;
    let busy = Busy(a.clone(), AtomicUsize::new(0));
    soon(a.sync_once(&SyncOptions::new().resolver(busy))).await.expect("a sync");
    assert_eq!(ids(&a).await, ["h", "beside", "of resolver 0", "of resolver 1"]);
    assert_eq!(a.rejected().len(), 1);
}

/// The sync that asks the resolver waits for its answer.
#[tokio::test]
async fn a_resolver_that_syncs_its_own_replica_is_told_at_once_that_it_cannot() {
    #[derive(Debug)]
    struct Syncs {
        replicas: Vec<Replica>,
        told: Arc<std::sync::Mutex<Vec<synckit::Result<()>>>>,
    }
    #[synckit::async_trait]
    impl Resolver for Syncs {
        async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
            for replica in &self.replicas {
                let stop = CancellationToken::new();
                stop.cancel();
                let once = replica.sync_once(&SyncOptions::new().resolver(RejectConflicts)).await.map(drop);
                let run = replica.run(&SyncOptions::new().stop(stop)).await;
                self.told.lock().expect("no panic").extend([once, run]);
            }
            RejectConflicts.resolve(conflict).await
        }
    }
    let (hub, a) = conflicting().await;
    let b = hub.replica("b").await;
    let told = Arc::default();
    let syncs = Syncs { replicas: vec![a.clone(), b.clone()], told: Arc::clone(&told) };
    soon(a.sync_once(&SyncOptions::new().resolver(syncs))).await.expect("a sync");
    let told = std::mem::take(&mut *told.lock().expect("no panic"));
    // For two batches, one after the other.
    for told in told.chunks(4) {
        let [Err(Error::Deciding), Err(Error::Deciding), Ok(()), Ok(())] = told else { panic!("{told:?}") };
    }
    assert_eq!(a.rejected().len(), 2, "and its answers count");
    assert_eq!(a.sync_state(), SyncState::Live);
    // A resolver that passes the error on ends the sync with it.
    let (_hub, a) = conflicting().await;
    #[derive(Debug)]
    struct Ends(Replica);
    #[synckit::async_trait]
    impl Resolver for Ends {
        async fn resolve(&self, _: &Conflict) -> synckit::Result<Answer> {
            self.0.sync_once(&SyncOptions::new()).await.map(|_| Resolution::Wait.into())
        }
    }
    let ended = soon(a.run(&SyncOptions::new().resolver(Ends(a.clone())))).await;
    assert!(matches!(ended, Err(Error::Deciding)), "{ended:?}");
    assert!(matches!(a.sync_state(), SyncState::Failed(_)), "{}", a.sync_state());
}

/// The state tells a user interface whom to ask: the network, the hub's owner, or this machine's.
#[tokio::test]
async fn the_state_tells_what_is_the_hubs_from_what_is_the_replicas() {
    let hub = Hub::new().await;
    // There is no such store, so retrying does not help.
    let a = Options::new(hub.path("a")).hub(format!("lmdb:{}", hub.path("none").display())).open().await;
    let a = a.expect("it works without a hub");
    let refused = soon(a.run(&SyncOptions::new())).await.expect_err("there is none");
    assert!(!refused.is_offline(), "{refused}");
    assert_eq!(a.sync_state(), SyncState::Refused(refused.to_string()));
    a.close().await.expect("closed");
    let closed = a.sync_once(&SyncOptions::new()).await.expect_err("it is closed");
    assert_eq!(a.sync_state(), SyncState::Refused(closed.to_string()), "the hub is asked first");
    let a = hub.replica("a").await;
    a.close().await.expect("closed");
    hub.store.append(event("1", "x")).await.expect("appended");
    let closed = a.sync_once(&SyncOptions::new()).await.expect_err("it is closed");
    assert_eq!(a.sync_state(), SyncState::Failed(closed.to_string()));
}

/// Dropped calls and closing, at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn calls_that_end_early_lose_and_double_nothing() {
    let hub = Hub::new().await;
    let mut acknowledged = Vec::new();
    for round in 0..25 {
        let a = hub.replica("a").await;
        let have = ids(&a).await;
        for id in &acknowledged {
            assert_eq!(have.iter().filter(|other| *other == id).count(), 1, "{id} in {have:?}");
        }
        let mut appends = Vec::new();
        for task in 0..4 {
            let a = a.clone();
            appends.push(tokio::spawn(async move {
                let mut done = Vec::new();
                for number in 0..20 {
                    let id = format!("{round}-{task}-{number}");
                    let append = a.append([event(&id, "x"), event(&format!("{id} too"), "y")]).into_future();
                    let most = Duration::from_micros(fastrand::u64(..3_000));
                    match tokio::time::timeout(most, append).await {
                        Ok(Ok(_)) => done.push(id),
                        Ok(Err(Error::Store(eventstore::Error::Closed))) => break,
                        Ok(Err(error)) => panic!("{error}"),
                        Err(_) => {}
                    }
                }
                done
            }));
        }
        let syncs = [1_000, 5_000].map(|most| {
            let a = a.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let most = Duration::from_micros(fastrand::u64(..most));
                    let _ = tokio::time::timeout(most, a.sync_once(&SyncOptions::new())).await;
                    let mut notices = a.subscribe(Cursor::START);
                    let _ = tokio::time::timeout(most, notices.next()).await;
                }
            })
        });
        if round % 2 == 0 {
            let most = Duration::from_micros(fastrand::u64(..20_000));
            let _ = tokio::time::timeout(most, a.sync_once(&SyncOptions::new())).await;
            // It closes even if nobody waits for it.
            drop(tokio::time::timeout(Duration::from_micros(10), a.close()).await);
            soon(a.close()).await.expect("closed");
        }
        for append in appends {
            acknowledged.extend(soon(append).await.expect("it ends"));
        }
        for sync in syncs {
            soon(sync).await.expect("it ends");
        }
        soon(a.close()).await.expect("closed");
    }
    let a = hub.replica("a").await;
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    let all = hub.store.load(Version::ZERO).await.expect("a load");
    let of_hub: Vec<_> = all.iter().map(|event| event.event.id().to_owned()).collect();
    assert_eq!(ids(&a).await, of_hub);
    assert!(of_hub.chunks(2).all(|pair| pair[1] == format!("{} too", pair[0])), "no batch is torn");
    assert!(acknowledged.iter().all(|id| of_hub.contains(id)));
}

// Hubs.

/// A fault of the hub.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// It omits an event.
    Gap,
    /// It returns events in another order.
    Order,
    /// It returns wrong revisions.
    Revisions,
    /// It returns the same event twice.
    Twice,
    /// It reports events as stored that are not.
    NotStored,
    /// Its pulls always report another history.
    NoHistory,
    /// Its head is ahead of its events.
    Head,
    /// It cannot wait.
    NoWait,
    /// It confirms that it has a history, but returns none of it.
    Mute,
}

#[derive(Debug)]
struct Liar {
    inner: Arc<dyn EventStore>,
    lie: Lie,
    pulls: Arc<AtomicUsize>,
}

impl Liar {
    fn store(inner: &Store, lie: Lie) -> (Store, Arc<AtomicUsize>) {
        let pulls = Arc::new(AtomicUsize::new(0));
        (Store::new(Liar { inner: inner.backend().clone(), lie, pulls: pulls.clone() }), pulls)
    }
}

#[synckit::async_trait]
impl EventStore for Liar {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> eventstore::Result<Vec<Stored>> {
        self.inner.store_batch(ctx, batch).await
    }
    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> eventstore::Result<Page> {
        self.inner.load_page(ctx, options, size).await
    }
    async fn get(&self, ctx: &Context, id: &str) -> eventstore::Result<RecordedEvent> {
        self.inner.get(ctx, id).await
    }
    async fn latest_version(&self, ctx: &Context) -> eventstore::Result<Version> {
        self.inner.latest_version(ctx).await
    }
    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> eventstore::Result<Revision> {
        self.inner.aggregate_revision(ctx, aggregate_id).await
    }
    async fn wait_for_events(&self, ctx: &Context, after: Version) -> eventstore::Result<Version> {
        match self.lie {
            Lie::NoWait => Err(eventstore::Error::Unsupported { what: "waiting".to_owned() }),
            _ => self.inner.wait_for_events(ctx, after).await,
        }
    }
    async fn run_gc(&self, ctx: &Context, gc: Gc) -> eventstore::Result<GcReport> {
        self.inner.run_gc(ctx, gc).await
    }
    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> eventstore::Result<Pulled> {
        assert!(self.pulls.fetch_add(1, Ordering::SeqCst) < 1000, "pulled again and again");
        let Pulled { mut events, head, .. } = self.inner.pull(ctx, since, size).await?;
        let is_long = events.len() > 2;
        match self.lie {
            Lie::Gap if is_long => drop(events.remove(1)),
            Lie::Order if is_long => events.swap(0, 1),
            Lie::Revisions if is_long => events[1].revision = Revision::new(7),
            Lie::Twice if is_long => events[1].event = events[0].event.clone(),
            Lie::Mute if size.events > 1 => {
                let (url, reason) = ("hub".to_owned(), "it is busy".to_owned());
                return Err(eventstore::Error::Unavailable { url, reason, source: None });
            }
            Lie::Head => return Ok(Pulled::new(events, head.next())),
            Lie::NoHistory => {
                let (cursor, found) = (since.cursor(), Cursor::START);
                return Err(eventstore::Error::HistoryDiverged { cursor, found });
            }
            _ => {}
        }
        Ok(Pulled::new(events, head))
    }
    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> eventstore::Result<Pushed> {
        match self.lie {
            Lie::NotStored => Ok(Pushed::new(vec![Vec::new(); batches.len()], None, at.version)),
            _ => self.inner.push(ctx, at, batches).await,
        }
    }
    async fn stats(&self, ctx: &Context) -> eventstore::Result<Stats> {
        self.inner.stats(ctx).await
    }
    async fn close(&self) -> eventstore::Result<()> {
        self.inner.close().await
    }
}

#[tokio::test]
async fn nothing_of_a_page_is_shown_that_is_not_as_pages_are() {
    for lie in [Lie::Gap, Lie::Order, Lie::Revisions, Lie::Twice] {
        let hub = Hub::new().await;
        hub.store.append([event("0", "x")]).await.expect("appended");
        let a = hub.replica("a").await;
        a.append(event("own", "y")).await.expect("appended");
        a.sync_once(&SyncOptions::new()).await.expect("a sync");
        a.close().await.expect("closed");
        hub.store.append([event("1", "x"), event("2", "y"), event("3", "x")]).await.expect("appended");
        let (liar, _) = Liar::store(&hub.store, lie);
        let a = Options::new(hub.path("a")).hub_store(liar).open().await.expect("a replica");
        for _ in 0..2 {
            let refused = soon(a.sync_once(&SyncOptions::new())).await;
            assert!(refused.is_err(), "{lie:?}");
            assert_eq!(ids(&a).await, ["0", "own"], "{lie:?}");
        }
        a.close().await.expect("closed");
        let a = hub.replica("a").await;
        assert_eq!(ids(&a).await, ["0", "own"], "{lie:?}, after reopening");
        a.append(event("later", "y")).await.expect("appended");
        // The replica may have to give up its confirmed events, but nothing else.
        soon(a.sync_once(&SyncOptions::new().accept_history())).await.expect("a sync");
        assert_eq!(ids(&a).await, ["0", "own", "1", "2", "3", "later"], "{lie:?}, healed");
        assert_eq!(a.cursor().await.expect("a cursor"), hub.store.cursor().await.expect("a cursor"));
    }
}

#[tokio::test]
async fn a_hub_that_says_what_is_not_so_is_an_error_and_no_loop() {
    for lie in [Lie::NotStored, Lie::NoHistory, Lie::Head] {
        let hub = Hub::new().await;
        hub.store.append(event("0", "x")).await.expect("appended");
        let (liar, _) = Liar::store(&hub.store, lie);
        let a = Options::new(hub.path("a")).hub_store(liar).open().await.expect("a replica");
        a.append(event("own", "y")).await.expect("appended");
        let refused = soon(a.sync_once(&SyncOptions::new().accept_history())).await;
        assert!(matches!(refused, Err(Error::Hub { .. })), "{lie:?}: {refused:?}");
        assert!(ids(&a).await.contains(&"own".to_owned()));
        a.close().await.expect("closed");
        let a = hub.replica("a").await;
        a.sync_once(&SyncOptions::new()).await.expect("a sync");
        assert_eq!(ids(&a).await, ["0", "own"], "{lie:?}");
    }
}

#[tokio::test]
async fn a_hub_that_cannot_wait_is_not_asked_without_pauses() {
    let hub = Hub::new().await;
    let (liar, pulls) = Liar::store(&hub.store, Lie::NoWait);
    let a = Options::new(hub.path("a")).hub_store(liar).open().await.expect("a replica");
    let stop = CancellationToken::new();
    let options = SyncOptions::new().stop(stop.clone());
    let began = Instant::now();
    let live = tokio::spawn({
        let a = a.clone();
        async move { a.run(&options).await }
    });
    // The first pause is 50 ms, and each is at least twice as long as the one before.
    while pulls.load(Ordering::SeqCst) < 7 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    stop.cancel();
    live.await.expect("it ends").expect("it was stopped");
    assert!(took > Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn a_hub_that_is_closed_is_an_error() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    a.append(event("1", "x")).await.expect("appended");
    hub.store.close().await.expect("closed");
    let refused = soon(a.sync_once(&SyncOptions::new())).await;
    assert!(matches!(refused, Err(Error::Hub { .. })), "{refused:?}");
    assert_eq!(ids(&a).await, ["1"]);
}

// Histories.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn loads_go_on_while_another_history_is_accepted() {
    let hub = Hub::new().await;
    let hubs = [hub.store.clone(), eventstore::open("memory:").await.expect("memory")];
    for (number, store) in hubs.iter().enumerate() {
        for at in 0..40 {
            store.append(event(&format!("{number}-{at}"), "x")).await.expect("appended");
        }
    }
    let mut replica = hub.replica("a").await;
    replica.append(event("own", "y")).await.expect("appended");
    replica.sync_once(&SyncOptions::new()).await.expect("a sync");
    for round in 1..12 {
        replica.close().await.expect("closed");
        let store = hubs[round % 2].clone();
        replica = Options::new(hub.path("a")).hub_store(store).open().await.expect("a replica");
        let stop = CancellationToken::new();
        let loads: Vec<_> = (0..3)
            .map(|_| {
                let (a, stop) = (replica.clone(), stop.clone());
                tokio::spawn(async move {
                    while !stop.is_cancelled() {
                        let ids = ids(&a).await;
                        let of = |hub: &str| ids.iter().filter(|id| id.starts_with(hub)).count();
                        assert_eq!(ids.iter().filter(|id| *id == "own").count(), 1, "{ids:?}");
                        assert!(of("0-") == 0 || of("1-") == 0, "{ids:?}");
                    }
                })
            })
            .collect();
        let mut notices = replica.subscribe(Cursor::START);
        let told = tokio::spawn(async move {
            let mut versions = Vec::new();
            let ended = loop {
                match notices.next().await {
                    Ok(Notice::Confirmed { event, .. }) => versions.push((event.version, event.event.id().to_owned())),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            let of = |hub: &str| versions.iter().filter(|(_, id)| id.starts_with(hub)).count();
            assert!(of("0-") == 0 || of("1-") == 0, "{versions:?}");
            ended
        });
        let synced = replica.sync_once(&SyncOptions::new().accept_history()).await;
        synced.expect("a sync");
        stop.cancel();
        for load in loads {
            load.await.expect("they go on");
        }
        replica.close().await.expect("closed");
        let ended = soon(told).await.expect("it ends");
        assert!(
            matches!(ended, Error::Store(eventstore::Error::HistoryDiverged { .. } | eventstore::Error::Closed)),
            "{ended}"
        );
    }
}

#[tokio::test]
async fn a_subscription_in_the_middle_of_a_history_does_not_go_on_in_another() {
    let hub = Hub::new().await;
    let other = eventstore::open("memory:").await.expect("memory");
    for (name, store) in [("old", &hub.store), ("new", &other)] {
        for at in 0..2 {
            let events = (0..1_000).map(|number| event(&format!("{name} {at} {number}"), "x"));
            store
                .append(events.collect::<Vec<_>>())
                .durability(eventstore::Durability::Buffered)
                .await
                .expect("appended");
        }
    }
    let a = hub.replica("a").await;
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    a.close().await.expect("closed");
    let a = Options::new(hub.path("a")).hub_store(other).open().await.expect("a replica");
    let mut notices = a.subscribe(Cursor::START);
    notices.next().await.expect("the first");
    a.sync_once(&SyncOptions::new().accept_history()).await.expect("a sync");
    let ended = loop {
        match notices.next().await {
            Ok(Notice::Confirmed { event, .. }) => assert!(event.event.id().starts_with("old"), "{event:?}"),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, Error::Store(eventstore::Error::HistoryDiverged { .. })), "{ended}");
}

/// The common part of both histories may end inside a batch.
#[tokio::test]
async fn no_batch_is_seen_in_part_when_another_history_is_accepted() {
    let hub = Hub::new().await;
    hub.store.append([event("1", "x"), event("2", "x"), event("3", "x")]).await.expect("appended");
    let a = hub.replica("a").await;
    a.append(event("own", "y")).await.expect("appended");
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    a.close().await.expect("closed");
    let other = eventstore::open("memory:").await.expect("memory");
    other.append([event("1", "x"), event("2", "x"), event("other", "x")]).await.expect("appended");
    let (liar, _) = Liar::store(&other, Lie::Mute);
    let a = Options::new(hub.path("a")).hub_store(liar).open().await.expect("a replica");
    let before = ids(&a).await;
    let mut notices = a.subscribe(a.cursor().await.expect("a cursor"));
    // The second attempt finds what the first one left.
    for _ in 0..2 {
        let mute = soon(a.sync_once(&SyncOptions::new().accept_history())).await;
        assert!(matches!(&mute, Err(error) if error.is_offline()), "{mute:?}");
        assert_eq!(ids(&a).await, before, "nothing new, as long as the rest is not there");
        assert_eq!(notices.try_next().await.expect("the same history"), None);
    }
    a.append(event("meanwhile", "z")).await.expect("appended");
    a.close().await.expect("closed");
    let a = Options::new(hub.path("a")).hub_store(other.clone()).open().await.expect("a replica");
    a.sync_once(&SyncOptions::new().accept_history()).await.expect("a sync");
    assert_eq!(ids(&a).await, ["1", "2", "other", "own", "meanwhile"]);
    assert_eq!(a.cursor().await.expect("a cursor"), other.cursor().await.expect("a cursor"));
}

// Large numbers.

/// Each decision leaves a mark on which later batches may depend.
#[tokio::test]
async fn many_conflicts_are_decided_in_a_time_to_wait_for() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let append = |number: usize| {
        let (a, event) = (a.clone(), event(&format!("{number}"), &format!("a{number}")));
        tokio::spawn(async move { a.append(event).expected(Expected::NoEvents).await })
    };
    for append in (0..3_000).map(append).collect::<Vec<_>>() {
        append.await.expect("it ends").expect("appended");
    }
    for number in 0..1_000 {
        hub.store.append(event(&format!("h{number}"), &format!("a{number}"))).await.expect("appended");
    }
    a.sync_once(&SyncOptions::new().resolver(RejectConflicts)).await.expect("a sync");
    assert_eq!(a.rejected().len(), 1_000);
    assert_eq!(hub.store.latest_version().await.expect("a version"), Version::new(3_000));
}

// The states after kills.

fn copy_of(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_of(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[tokio::test]
async fn another_history_is_accepted_whole_or_not_at_all() {
    let hub = Hub::new().await;
    hub.store.append([event("1", "x"), event("2", "x")]).await.expect("appended");
    let a = hub.replica("a").await;
    a.append(event("own", "y")).await.expect("appended");
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    a.append(event("pending", "z")).await.expect("appended");
    a.close().await.expect("closed");
    let (before, after) = (hub.path("before"), hub.path("after"));
    copy_of(&hub.path("a"), &before);
    // Its pushes are refused by the closed store, so that only the recovery is written.
    let other = eventstore::open("memory:").await.expect("memory");
    other.append([event("1", "x"), event("other", "x")]).await.expect("appended");
    let a = Options::new(hub.path("a")).hub_store(other.clone()).open().await.expect("a replica");
    a.sync_once(&SyncOptions::new().accept_history()).await.expect("a sync");
    a.close().await.expect("closed");
    copy_of(&hub.path("a"), &after);
    type Step<'a> = (&'a str, &'a Path, &'a [(&'a Path, &'a str, &'a str)]);
    let steps: [Step<'_>; 5] = [
        ("the confirmed events are copied", &before, &[(&after, "confirmed-2", "confirmed-2")]),
        (
            "the journal is written",
            &before,
            &[(&after, "confirmed-2", "confirmed-2"), (&after, "journal-2", "journal-2.new")],
        ),
        (
            "the journal has its name",
            &before,
            &[(&after, "confirmed-2", "confirmed-2"), (&after, "journal-2", "journal-2")],
        ),
        ("the old journal is removed", &after, &[(&before, "confirmed-1", "confirmed-1")]),
        ("all is done", &after, &[]),
    ];
    for (at, (what, base, more)) in steps.into_iter().enumerate() {
        let path = hub.path(&format!("step {at}"));
        copy_of(base, &path);
        if at == 3 {
            std::fs::remove_dir_all(path.join("aside/1")).expect("removed");
        }
        for (from, name, to) in more {
            copy_of(&from.join(name), &path.join(to));
        }
        let a = Options::new(&path).hub_store(other.clone()).open().await.expect(what);
        let have = ids(&a).await;
        assert!(have.contains(&"own".to_owned()) && have.contains(&"pending".to_owned()), "{what}: {have:?}");
        a.sync_once(&SyncOptions::new().accept_history().resolver(synckit::KeepBoth)).await.expect(what);
        assert_eq!(a.cursor().await.expect("a cursor"), other.cursor().await.expect("a cursor"), "{what}");
        let (mut have, mut all) = (ids(&a).await, vec!["1", "other", "own", "pending"]);
        have.sort();
        all.sort();
        assert_eq!(have, all, "{what}");
        assert!(path.join("aside/1").is_dir() && !path.join("confirmed-1").exists(), "{what}");
        a.close().await.expect("closed");
    }
}

/// The first segment of a journal, and the end of its records.
fn segment(directory: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let mut files: Vec<_> = std::fs::read_dir(directory.join("journal-1"))
        .expect("a journal")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| std::fs::read(path).is_ok_and(|bytes| bytes.windows(4).any(|window| window == b"id 1")))
        .collect();
    let path = files.pop().expect("a segment");
    let bytes = std::fs::read(&path).expect("read");
    (path, bytes)
}

#[tokio::test]
async fn a_torn_or_damaged_journal_gives_whole_batches_from_its_beginning_or_an_error() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    for number in 1..=3 {
        let id = format!("id {number}");
        a.append([event(&id, "x"), event(&format!("{id} too"), "y")]).await.expect("appended");
    }
    a.close().await.expect("closed");
    let (path, bytes) = segment(&hub.path("a"));
    let len = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty") + 1;
    let all: Vec<String> = (1..=3).flat_map(|number| [format!("id {number}"), format!("id {number} too")]).collect();
    let (mut torn, mut refused) = (0, 0);
    for at in (0..len).step_by(3) {
        for is_cut in [true, false] {
            let mut damaged = bytes.clone();
            if is_cut {
                damaged.truncate(at);
            } else {
                damaged[at] ^= 0x10;
            }
            std::fs::write(&path, &damaged).expect("written");
            match hub.options("a").existing().open().await {
                Ok(a) => {
                    let have = ids(&a).await;
                    assert!(have.len() % 2 == 0 && all.starts_with(&have), "at {at}, cut: {is_cut}: {have:?}");
                    torn += usize::from(have.len() < all.len());
                    a.close().await.expect("closed");
                }
                Err(Error::Store(eventstore::Error::Corrupt { .. } | eventstore::Error::Unsupported { .. })) => {
                    refused += 1;
                }
                Err(error) => panic!("at {at}, cut: {is_cut}: {error:?}"),
            }
        }
    }
    assert!(torn > 10 && refused > 10, "{torn} torn, {refused} refused");
    std::fs::write(&path, &bytes).expect("written");
    assert_eq!(ids(&hub.replica("a").await).await, all);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_anew_goes_on() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    // Something is in the way of the next journal.
    std::fs::write(hub.path("a").join("journal-2.new"), "mine").expect("written");
    let append = |first: usize, count: usize| {
        let appends: Vec<_> = (first..first + count)
            .map(|number| {
                let (a, event) = (a.clone(), event(&number.to_string(), "x"));
                tokio::spawn(async move { a.append(event).await })
            })
            .collect();
        async move {
            for append in appends {
                append.await.expect("it ends").expect("appended");
            }
        }
    };
    append(0, 1_200).await;
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    append(1_200, 100).await;
    a.close().await.expect("closed");
    std::fs::remove_file(hub.path("a").join("journal-2.new")).expect("removed");
    let a = hub.replica("a").await;
    assert_eq!((a.pending().len(), ids(&a).await.len()), (100, 1_300));
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    assert!(hub.path("a").join("journal-2").is_dir());
}

#[tokio::test]
async fn the_largest_batches_are_appended_together_and_pushed() {
    let hub = Hub::new().await;
    let a = hub.replica("a").await;
    let large = |batch: usize| {
        let event = |at: usize| {
            let data = vec![b'a' + at as u8; eventstore_api::limits::MAX_DATA_LEN];
            let id = format!("{batch}\u{1f}é/\\\"-{at}");
            Event::builder("Large", "x").id(id).data(data).build().expect("valid")
        };
        let mut events: Vec<_> = (0..3).map(event).collect();
        events.push(Event::builder("Empty", "x").id(format!("{batch} empty")).data("").build().expect("valid"));
        events
    };
    let appends: Vec<_> = (0..4)
        .map(|batch| {
            let (a, events) = (a.clone(), large(batch));
            tokio::spawn(async move { a.append(events).await })
        })
        .collect();
    for append in appends {
        append.await.expect("it ends").expect("appended");
    }
    a.close().await.expect("closed");
    let a = hub.replica("a").await;
    assert_eq!(a.pending().len(), 4);
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    assert_eq!(a.cursor().await.expect("a cursor"), hub.store.cursor().await.expect("a cursor"));
    let loaded = a.load().await.expect("a load").entries;
    let expected: Vec<_> = (0..4).flat_map(large).collect();
    assert!(loaded.iter().map(synckit::Entry::event).eq(&expected));
}

//! Servers are killed, connections are cut at any byte, disks are full: nothing acknowledged is lost.

#![allow(clippy::print_stderr, reason = "what is left out is told")]

mod common;

use std::path::Path;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use backend_postgres::PostgresStore;
use common::{Writers, all, append_surely, ctx, event, incidents, is_written, options, store};
use cutting_proxy::{Fate, Proxy};
use eventstore_api::{
    Batch, Context, Error, Event, EventStore, EventStoreExt as _, Expected, Gc, LoadOptions, PageSize, Version,
};
use futures_util::TryStreamExt as _;
use postgres_cluster::Cluster;

fn signal(name: &str, process: u32) {
    let _ = Command::new("kill").args([name, &process.to_string()]).status(); // fails if it has ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_of_the_server_and_its_processes() {
    let Some(cluster) = Cluster::start_if_installed(&["restart_after_crash = on"]) else { return };
    let stores = [store(&cluster.url(), |_| {}).await, store(&cluster.url(), |_| {}).await];
    let mut writers = Writers::start(&stores, 3, 1);
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..incidents(12) {
        writers.go_on().await;
        tokio::time::sleep(Duration::from_micros(random.u64(..3000))).await; // at a random moment
        let backends = cluster.backends().unwrap_or_default();
        match random.u8(..4) {
            0 | 1 if !backends.is_empty() => {
                // One connection is closed in an orderly way.
                signal("-TERM", backends[random.usize(..backends.len())]);
            }
            2 if !backends.is_empty() => {
                // The server closes all connections and recovers.
                signal("-KILL", backends[random.usize(..backends.len())]);
            }
            _ => {
                cluster.kill().expect("killed");
                cluster.restart().expect("restarted");
            }
        }
    }
    writers.go_on().await;
    writers.check(&stores[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_may_be_cut_at_any_byte() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let direct = store(&cluster.url(), |_| {}).await;
    let proxy = Proxy::start(&format!("127.0.0.1:{}", cluster.port())).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let stores = [store(&url, |_| {}).await, store(&url, |_| {}).await];
    proxy.cut_all().await;
    let mut writers = Writers::start(&stores, 3, 2);
    let mut random = fastrand::Rng::with_seed(22);
    let mut left = incidents(60);
    while left > 0 {
        // The first bytes of a connection are the handshake and the prepared statements, which are cut as well.
        let fates: Vec<_> = (0..left.min(4))
            .map(|_| {
                let at = if random.u8(..4) == 0 { random.u64(..4_000) } else { random.u64(4_000..40_000) };
                if random.bool() { Fate::CutRequest(at) } else { Fate::CutAnswer(at) }
            })
            .collect();
        left -= fates.len() as u64;
        let before = proxy.connections().len();
        proxy.next(fates.iter().copied());
        proxy.cut_all().await;
        while proxy.connections().len() < before + fates.len() {
            writers.go_on().await;
        }
    }
    proxy.next([]);
    writers.go_on().await;
    writers.check(&direct).await;
}

/// A small file system. Dropping it removes it.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().expect("made");
        let size = format!("size={megabytes}m,mode=777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(directory)),
            _ => {
                eprintln!("left out: no file system can be mounted here");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills the file system except for this many bytes.
    fn fill(&self) {
        let _ = Command::new("dd")
            .args(["if=/dev/zero", "bs=4k"])
            .arg(format!("of={}/filler", self.path().display()))
            .output();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_loses_nothing() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let Some(disk) = SmallDisk::mount(24) else { return };
    let place = disk.path().join("tables");
    std::fs::create_dir(&place).expect("made");
    cluster.own(&place).expect("given away");
    cluster.sql(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display())).expect("created");
    let url = format!("{}?options=-c%20default_tablespace%3Dsmall", cluster.url());
    let store = store(&url, |_| {}).await;
    let large = |number: u64| {
        // The data is incompressible.
        let mut random = fastrand::Rng::with_seed(number);
        let data: Vec<u8> = (0..100_000).map(|_| random.u8(..)).collect();
        Event::builder("T", "a").id(format!("large-{number}")).data(data).build().expect("valid")
    };
    let mut stored = 0;
    let full = loop {
        match store.store_batch(&ctx(), large(stored).into()).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        if stored == 20 {
            disk.fill();
        }
    };
    assert!(matches!(full, Error::Full { .. }), "{full:?}");
    assert!(full.to_string().contains("make room"), "{full}");
    assert_eq!(all(&store).await.len() as u64, stored, "what was acknowledged is there, and nothing else");
    disk.make_room();
    let places = store.store_batch(&ctx(), large(stored).into()).await.expect("stored");
    assert!(is_written(&places) && places[0].version.get() == stored + 1, "no version is left out");
    assert!(store.verify(&ctx()).await.expect("verified").is_clean());
    store.close().await.expect("closed");
    drop(cluster); // before its disk
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_room_stops_the_server_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount(150) else { return };
    let settings = ["max_wal_size = 48MB", "min_wal_size = 32MB"];
    let cluster = match Cluster::start_below(disk.path(), &settings) {
        Ok(cluster) => cluster,
        Err(postgres_cluster::Error::NotInstalled) => return,
        Err(error) => panic!("{error}"),
    };
    let store = store(&cluster.url(), |options| options.retry_for = Duration::from_secs(1)).await;
    let mut stored = 0;
    disk.fill();
    let failed = loop {
        let event = Event::builder("T", "a").id(format!("{stored}")).data(vec![7; 500_000]).build().expect("valid");
        match store.store_batch(&ctx(), event.into()).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    let is_told = matches!(failed, Error::Full { .. } | Error::Unavailable { .. } | Error::OutcomeUnknown { .. });
    assert!(is_told, "{failed:?}");
    disk.make_room();
    let _ = cluster.kill(); // it may have ended by itself
    cluster.restart().expect("restarted");
    append_surely(&store, event("after", "a").into()).await;
    let events = all(&store).await;
    assert!(events.len() as u64 - 1 == stored || events.len() as u64 - 2 == stored, "{} of {stored}", events.len());
    assert!(store.verify(&ctx()).await.expect("verified").is_clean());
    store.close().await.expect("closed");
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_unavailable_and_then_there_again() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let store = store(&cluster.url(), |options| options.retry_for = Duration::from_millis(50)).await;
    store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    cluster.stop("fast").expect("stopped");
    let refused = store.store_batch(&ctx(), event("second", "a").into()).await;
    assert!(matches!(&refused, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. })), "{refused:?}");
    for _ in 0..2 {
        let refused = store.store_batch(&ctx(), event("third", "a").into()).await;
        assert!(
            matches!(&refused, Err(Error::Unavailable { url, .. }) if url.starts_with("postgres://127.0.0.1")),
            "{refused:?}"
        );
        let refused = store.latest_version(&ctx()).await;
        assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    }
    // Who waits, and hears nothing, is told why at the end, as soon as that is known; and not any more when it is over.
    let ended = async || {
        let soon = Context::background().with_timeout(Duration::from_millis(50));
        store.wait_for_events(&soon, Version::new(1)).await.expect_err("nothing comes")
    };
    let until_told = async {
        loop {
            let told = ended().await;
            if !matches!(told, Error::DeadlineExceeded) {
                return told;
            }
        }
    };
    let told = tokio::time::timeout(common::LONG, until_told).await.expect("it is told");
    assert!(matches!(told, Error::Unavailable { .. }), "{told:?}");
    cluster.restart().expect("restarted");
    let until_over = async { while !matches!(ended().await, Error::DeadlineExceeded) {} };
    tokio::time::timeout(common::LONG, until_over).await.expect("it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_when_the_server_has_been_away_for_retry_for() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let hasty = store(&cluster.url(), |options| options.retry_for = Duration::from_millis(50)).await;
    let patient = store(&cluster.url(), |_| {}).await;
    let first = hasty.store_batch(&ctx(), event("first", "a").into()).await.expect("stored")[0].version;
    let wait = |store: &PostgresStore| {
        let store = store.clone();
        tokio::spawn(async move { store.wait_for_events(&Context::background(), first).await })
    };
    let (waiting, goes_on) = (wait(&hasty), wait(&patient));
    let mut events = hasty.subscribe(&Context::background(), LoadOptions::all());
    events.try_next().await.expect("read").expect("an event");
    let following = tokio::spawn(async move { events.try_next().await });
    cluster.stop("fast").expect("stopped");
    let is_told = |error: Error| {
        let is_it = matches!(&error, Error::Unavailable { url, .. } if url.starts_with("postgres://127.0.0.1"));
        assert!(is_it, "{error:?}");
    };
    let told = tokio::time::timeout(common::LONG, waiting).await.expect("it ends");
    is_told(told.expect("no panic").expect_err("nothing came"));
    let told = tokio::time::timeout(common::LONG, following).await.expect("it ends");
    is_told(told.expect("no panic").expect_err("nothing came"));
    // Whoever begins to wait only now, too.
    let told = tokio::time::timeout(common::LONG, wait(&hasty)).await.expect("it ends");
    is_told(told.expect("no panic").expect_err("nothing came"));
    assert!(!goes_on.is_finished(), "its time has not passed");
    cluster.restart().expect("restarted");
    let waiting = wait(&hasty);
    append_surely(&patient, event("second", "a").into()).await;
    for waiting in [goes_on, waiting] {
        let woken = tokio::time::timeout(common::LONG, waiting).await.expect("it ends").expect("no panic");
        assert_eq!(woken.expect("something came"), first.next());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_does_not_notice_a_connection_that_is_lost_while_the_server_is_there() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let store = store(&cluster.url(), |options| options.retry_for = Duration::ZERO).await;
    #[allow(clippy::async_yields_async, reason = "it returns when the task waits, and not when it has ended")]
    let wait = async |after: u64| {
        let store = store.clone();
        let mut waiting = Box::pin(async move { store.wait_for_events(&ctx(), Version::new(after)).await });
        let polled = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await;
        assert!(polled.is_pending(), "nothing has come");
        tokio::spawn(waiting)
    };
    let other = common::store(&cluster.url(), |_| {}).await;
    for number in 0..5 {
        let waiting = wait(number).await;
        // Since it was woken before, it has a connection.
        if number > 0 {
            let connections = cluster.backends().expect("told");
            connections.iter().for_each(|process| signal("-TERM", *process));
            while cluster.backends().expect("told").iter().any(|process| connections.contains(process)) {
                tokio::task::yield_now().await;
            }
        }
        append_surely(&other, event(&number.to_string(), "a").into()).await;
        assert_eq!(waiting.await.expect("no panic").expect("woken"), Version::new(number + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_told_and_a_deadline_ends_the_statement_on_the_server() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let owner = store(&cluster.url(), |_| {}).await;
    owner.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    cluster.sql("CREATE ROLE nobody LOGIN").expect("created");
    let url = cluster.url().replace("postgres@", "nobody@");
    let refused = backend_postgres::open(options(&url)).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let refused = backend_postgres::open(options(&format!("{}?schema=other", url))).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "it may not create a schema: {refused:?}");
    let refused = backend_postgres::open(options(&format!("{}?dbname=missing", cluster.url()))).await;
    assert!(matches!(refused, Err(Error::Open { .. })), "{refused:?}");
    let refused = backend_postgres::open_existing(options(&format!("{}?schema=other", cluster.url()))).await;
    let is_told = matches!(&refused, Err(Error::Open { reason, .. }) if reason.starts_with("there is no store") && reason.contains("`schema=`"));
    assert!(is_told, "{refused:?}");

    cluster
        .sql("GRANT USAGE ON SCHEMA eventstore TO nobody; GRANT SELECT ON ALL TABLES IN SCHEMA eventstore TO nobody")
        .expect("granted");
    let reader = backend_postgres::open_read_only(options(&url)).await.expect("opened");
    assert_eq!(reader.latest_version(&ctx()).await.expect("read"), Version::new(1));
    let refused = reader.store_batch(&ctx(), event("second", "a").into()).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");

    // Somebody holds a lock that a read needs. The read has a connection.
    assert_eq!(all(&owner).await.len(), 1);
    let lock = cluster.hold("LOCK TABLE eventstore.events IN ACCESS EXCLUSIVE MODE").expect("locked");
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'eventstore'";
    let reading = {
        let owner = owner.clone();
        let ctx = Context::background().with_timeout(Duration::from_millis(300));
        tokio::spawn(async move { owner.load_page(&ctx, &LoadOptions::all(), PageSize::FIRST).await })
    };
    while cluster.sql(waiting).expect("asked") == "0" && !reading.is_finished() {
        tokio::task::yield_now().await;
    }
    let ended = reading.await.expect("no panic");
    assert!(matches!(ended, Err(Error::DeadlineExceeded)), "{ended:?}");
    while cluster.sql(waiting).expect("asked") != "0" {
        tokio::task::yield_now().await; // until the server has cancelled it
    }
    drop(lock);
    assert_eq!(all(&owner).await.len(), 1);

    // An append that waits for another process's lock is certainly not written when its deadline passes.
    let lock = cluster.hold("SELECT * FROM eventstore.head FOR UPDATE").expect("locked");
    let ctx_of_append = Context::background().with_timeout(Duration::from_millis(100));
    let ended = owner.store_batch(&ctx_of_append, event("late", "a").into()).await;
    assert!(matches!(ended, Err(Error::DeadlineExceeded)), "{ended:?}");
    drop(lock);
    owner.store_batch(&ctx(), event("second", "a").into()).await.expect("stored");
    let found = owner.get(&ctx(), "late").await;
    assert!(matches!(found, Err(Error::EventNotFound { .. })), "{found:?}");
    let statement = cluster.url() + "?options=-c%20statement_timeout%3D2s";
    let hasty = store(&statement, |_| {}).await;
    let lock = cluster.hold("LOCK TABLE eventstore.events IN ACCESS EXCLUSIVE MODE").expect("locked");
    let ended =
        hasty.load_page(&ctx(), &LoadOptions::all(), PageSize::FIRST).await.expect_err("it may take two seconds");
    assert!(ended.to_string().contains("statement_timeout"), "{ended}");
    drop(lock);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_is_for_the_owner() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let owner = store(&cluster.url(), |_| {}).await;
    let grants = "CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA eventstore TO writer; \
                  GRANT SELECT, INSERT ON eventstore.events TO writer; GRANT SELECT, UPDATE ON eventstore.head TO writer";
    cluster.sql(grants).expect("granted");
    let writer = store(&cluster.url().replace("postgres@", "writer@"), |_| {}).await;
    writer.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    for (gc, done) in [(Gc::Quick, "vacuumed the table events"), (Gc::Full, "rewrote the table events")] {
        // The server leaves the tables out, and says so in a warning only.
        let refused = writer.run_gc(&ctx(), gc).await;
        let is_told = matches!(&refused, Err(Error::Forbidden { what }) if what.contains("as the owner of the table"));
        assert!(is_told, "{refused:?}");
        let report = owner.run_gc(&ctx(), gc).await.expect("collected");
        assert!(report.actions[0].starts_with(done), "{report:?}");
    }
    // The owner of the database may as well, and whoever has the owner's role.
    cluster.sql("ALTER DATABASE postgres OWNER TO writer").expect("altered");
    writer.run_gc(&ctx(), Gc::Full).await.expect("collected");
    assert!(owner.verify(&ctx()).await.expect("verified").is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_waits_for_what_a_process_that_is_gone_had_begun_to_commit() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    store(&cluster.url(), |_| {}).await.close().await.expect("closed");
    let begun = cluster.hold("SELECT * FROM eventstore.head FOR UPDATE").expect("locked");
    let opening = {
        let url = cluster.url();
        tokio::spawn(async move { store(&url, |_| {}).await })
    };
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'eventstore'";
    while cluster.sql(waiting).expect("asked") == "0" {
        assert!(!opening.is_finished(), "it has to wait");
        tokio::task::yield_now().await;
    }
    drop(begun);
    let opened = opening.await.expect("no panic");
    assert_eq!(opened.latest_version(&ctx()).await.expect("read"), Version::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_would_lose_is_refused() {
    let Some(cluster) = Cluster::start_if_installed(&["synchronous_commit = off"]) else { return };
    let refused = backend_postgres::open(options(&cluster.url())).await.expect_err("it may lose what it confirmed");
    assert!(matches!(&refused, Error::InvalidOption { option, .. } if option == "synchronous_commit"), "{refused:?}");
    let url = format!("{}?synchronous_commit=on", cluster.url());
    let store = store(&url, |_| {}).await;
    store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    let stats = store.stats(&ctx()).await.expect("told");
    let property = |name: &str| stats.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    assert_eq!(property("synchronous_commit").as_deref(), Some("on"));
    // Reading needs no such setting, and tells what it is.
    for (url, setting) in [(cluster.url(), "off"), (url.clone(), "on")] {
        let reader = backend_postgres::open_read_only(options(&url)).await.expect("opened");
        let stats = reader.stats(&ctx()).await.expect("told");
        let is_told =
            |(name, value): &(std::borrow::Cow<str>, String)| name == "synchronous_commit" && value == setting;
        assert!(stats.properties.iter().any(is_told), "{stats:?}");
    }
    // Buffered events are synced by a later append, and by an explicit sync.
    store.store_batch(&ctx(), common::buffered(event("second", "a"))).await.expect("stored");
    assert_eq!(cluster.sql("SELECT version, synced FROM eventstore.head").expect("asked"), "2|1");
    assert_eq!(store.sync(&ctx()).await.expect("synced"), Version::new(2));
    assert_eq!(cluster.sql("SELECT version, synced FROM eventstore.head").expect("asked"), "2|2");
    store.store_batch(&ctx(), common::buffered(event("third", "a"))).await.expect("stored");
    let again = store.store_batch(&ctx(), Batch::from(event("third", "a"))).await.expect("stored");
    assert!(!is_written(&again));
    assert_eq!(cluster.sql("SELECT version, synced FROM eventstore.head").expect("asked"), "3|3");
    cluster.configure(&["fsync = off"]).expect("configured");
    cluster.stop("fast").expect("stopped");
    cluster.restart().expect("restarted");
    let refused = backend_postgres::open(options(&url)).await.expect_err("it may lose everything");
    assert!(refused.to_string().contains("fsync"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_by_hand_is_found() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    cluster.sql("CREATE EXTENSION amcheck").expect("created");
    let findings = async |change: &str, schema: &str| {
        let store = store(&cluster.url(), |options| options.schema = schema.to_owned()).await;
        for number in 0..30 {
            store.store_batch(&ctx(), event(&number.to_string(), ["a", "b"][number % 2]).into()).await.expect("stored");
        }
        assert!(store.verify(&ctx()).await.expect("verified").is_clean());
        cluster.sql(&change.replace("{}", schema)).expect(change);
        let report = store.verify(&ctx()).await.expect("verified");
        assert!(!report.is_clean(), "{change}");
        report.findings
    };
    for (nth, (change, version)) in [
        ("UPDATE {}.events SET data = 'x' WHERE version = 7", Some(7)),
        ("UPDATE {}.events SET type = 'x' WHERE version = 7", Some(7)),
        ("UPDATE {}.events SET digest = decode(repeat('11', 32), 'hex') WHERE version = 30", Some(30)),
        ("DELETE FROM {}.events WHERE version = 7", Some(7)),
        ("DELETE FROM {}.events WHERE version = 30", Some(30)),
        ("UPDATE {}.events SET revision = 100 WHERE version = 29", Some(29)),
        ("UPDATE {}.events SET id = '\\xff' WHERE version = 7", Some(7)),
        ("UPDATE {}.head SET aggregates = 3", None),
        ("UPDATE {}.head SET digest = decode(repeat('11', 32), 'hex')", None),
        ("UPDATE {}.head SET synced = 99", None),
        ("UPDATE {}.head SET largest = 1", None),
        ("UPDATE {}.head SET version = 31", Some(31)),
    ]
    .into_iter()
    .enumerate()
    {
        let found = findings(change, &format!("s{nth}")).await;
        assert_eq!(found[0].version, version.map(Version::new), "{change}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repetitions_get_the_first_places_whatever_they_are_among() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let store = store(&cluster.url(), |_| {}).await;
    let batch = |ids: &[&str]| Batch::new(ids.iter().map(|id| event(id, "a")).collect());
    let places = async |batch: Batch| {
        let stored = store.store_batch(&ctx(), batch).await.expect("stored");
        stored.iter().map(|place| place.version.get()).collect::<Vec<_>>()
    };
    assert_eq!(places(batch(&["1", "2"])).await, [1, 2]);
    // The index of ids rejects the first attempt.
    assert_eq!(places(batch(&["3", "1"])).await, [3, 1]);
    assert_eq!(places(batch(&["4"])).await, [4]);
    assert_eq!(places(batch(&["5"])).await, [5]);
    // The condition no longer holds, and need not.
    let first = batch(&["1", "2"]).expected(Expected::NoEvents);
    assert_eq!(places(first).await, [1, 2]);
    let again = batch(&["5"]).expected(Expected::LatestVersion(Version::new(4)));
    assert_eq!(places(again).await, [5]);
    let refused = store.store_batch(&ctx(), batch(&["6"]).expected(Expected::NoEvents)).await;
    assert!(matches!(refused, Err(Error::VersionConflict { .. })), "{refused:?}");
    let other = Event::builder("T", "a").id("1").data("other").build().expect("valid");
    for expected in [Expected::Any, Expected::NoEvents] {
        let refused = store.store_batch(&ctx(), Batch::from(other.clone()).expected(expected)).await;
        assert!(matches!(&refused, Err(Error::DuplicateEvent { version: Some(_), .. })), "{refused:?}");
    }
    assert_eq!(all(&store).await.len(), 5);
}

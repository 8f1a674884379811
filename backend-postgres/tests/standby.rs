//! A primary with a synchronous standby: reads from the standby, and failover without loss.

mod common;

use common::{Writers, all, ctx, event, incidents, options, store};
use eventstore_api::{EventStore, LoadOptions, PageSize, Version};
use postgres_cluster::Cluster;

/// The settings of a primary that confirms only what its standby has on disk.
const SYNCHRONOUS: [&str; 3] = ["synchronous_standby_names = '*'", "max_wal_senders = 10", "hot_standby = on"];

/// A URL with both servers.
fn both(one: &Cluster, other: &Cluster) -> String {
    format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", one.port(), other.port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_nothing_that_was_acknowledged() {
    let Some(one) = Cluster::start_if_installed(&SYNCHRONOUS) else { return };
    let other = one.standby("other").expect("a standby");
    let url = both(&one, &other);
    let stores = [store(&url, |_| {}).await, store(&url, |_| {}).await];
    let mut writers = Writers::start(&stores, 3, 3);
    let (mut primary, mut standby) = (&one, &other);
    for _ in 0..incidents(3) {
        writers.go_on().await;
        primary.kill().expect("killed");
        standby.promote().expect("promoted");
        // It has the same settings, so it confirms nothing until it has a standby of its own.
        (primary, standby) = (standby, primary);
        standby.become_standby(primary, "again").expect("a standby");
    }
    writers.go_on().await;
    writers.check(&stores[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_a_standby_never_miss_what_this_store_has_seen() {
    let Some(primary) = Cluster::start_if_installed(&[]) else { return };
    let standby = primary.standby("standby").expect("a standby");
    let url = both(&primary, &standby);
    let writer = store(&primary.url(), |_| {}).await;
    let reader = store(&format!("{url}?reads=standby"), |_| {}).await;
    let read = async || reader.load_page(&ctx(), &LoadOptions::all(), PageSize::FIRST).await.expect("a page").head;
    writer.store_batch(&ctx(), event("1", "a").into()).await.expect("stored");
    // The standby is asked first, and the primary if the standby lags behind.
    let applied = "SELECT count(*) FROM eventstore.events";
    while standby.sql(applied).unwrap_or_default() != "1" {
        tokio::task::yield_now().await;
    }
    assert_eq!(read().await, Version::new(1));
    let reads = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'eventstore'";
    assert_ne!(standby.sql(reads).expect("asked"), "0", "the standby was read from");

    standby.sql("SELECT pg_wal_replay_pause()").expect("paused");
    while standby.sql("SELECT pg_get_wal_replay_pause_state()").expect("asked") != "paused" {
        tokio::task::yield_now().await;
    }
    writer.store_batch(&ctx(), event("2", "a").into()).await.expect("stored");
    assert_eq!(read().await, Version::new(1), "what another has appended may be missing");
    reader.store_batch(&ctx(), event("3", "a").into()).await.expect("stored");
    assert_eq!(read().await, Version::new(3), "what it has appended itself may not");
    assert_eq!(reader.latest_version(&ctx()).await.expect("read"), Version::new(3));
    standby.sql("SELECT pg_wal_replay_resume()").expect("resumed");

    // Without the standby, and on the standby alone.
    let only = options(&format!("{}?target_session_attrs=standby", standby.url()));
    let only = backend_postgres::open_read_only(only).await.expect("opened");
    while only.latest_version(&ctx()).await.expect("read") < Version::new(3) {
        tokio::task::yield_now().await;
    }
    assert_eq!(all(&only).await.len(), 3);
    let waiting = tokio::spawn({
        let only = only.clone();
        async move { only.wait_for_events(&ctx(), Version::new(3)).await }
    });
    writer.store_batch(&ctx(), event("4", "a").into()).await.expect("stored");
    assert_eq!(waiting.await.expect("no panic").expect("told"), Version::new(4), "a standby is polled");
    standby.kill().expect("killed");
    assert_eq!(read().await, Version::new(4));
    standby.restart().expect("restarted");
    let mut options = options(&standby.url());
    options.retry_for = std::time::Duration::from_millis(200);
    let refused = backend_postgres::open(options).await.expect_err("it takes no writes");
    assert!(refused.to_string().contains("not allow writes"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_standby_may_not_have_is_not_acknowledged_when_it_is_repeated() {
    let Some(primary) = Cluster::start_if_installed(&SYNCHRONOUS) else { return };
    let standby = primary.standby("standby").expect("a standby");
    let store = store(&primary.url(), |_| {}).await;
    store.store_batch(&ctx(), event("1", "a").into()).await.expect("stored");
    standby.kill().expect("killed");
    let append = || {
        let store = store.clone();
        tokio::spawn(async move { store.store_batch(&ctx(), event("2", "a").into()).await })
    };
    let sync = || {
        let store = store.clone();
        tokio::spawn(async move { store.sync(&ctx()).await })
    };
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let first = append();
    while primary.sql(waits).expect("asked") != "1" {
        assert!(!first.is_finished(), "its standby is not there");
        tokio::task::yield_now().await;
    }
    // It is committed here, but may not be on the standby.
    primary.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").expect("ended");
    let unknown = first.await.expect("no panic");
    assert!(matches!(unknown, Err(eventstore_api::Error::OutcomeUnknown { .. })), "{unknown:?}");
    let (again, synced) = (append(), sync());
    while primary.sql(waits).expect("asked") != "1" {
        assert!(!again.is_finished() && !synced.is_finished(), "the standby does not have it");
        tokio::task::yield_now().await;
    }
    assert!(!again.is_finished() && !synced.is_finished(), "the standby does not have it");
    standby.restart().expect("restarted");
    let places = again.await.expect("no panic").expect("stored");
    assert_eq!(places[0].version, Version::new(2));
    assert_eq!(synced.await.expect("no panic").expect("synced"), Version::new(2));
    // It is on the standby's disk, and is applied a little later.
    while standby.sql("SELECT count(*) FROM eventstore.events").expect("asked") != "2" {
        tokio::task::yield_now().await;
    }
}

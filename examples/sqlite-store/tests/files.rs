//! What a hand on the files of a store does to it.

use std::fs;
use std::path::Path;

use eventstore_api::{Context, Error, Event, EventStore, EventStoreExt, LoadOptions, Version};
use rusqlite::Connection;
use sqlite_store::SqliteStore;

fn background() -> Context {
    Context::background()
}

async fn with_events(path: &Path, count: usize) {
    let store = SqliteStore::open(path).await.expect("opened");
    let event = |number| Event::builder("Tested", format!("aggregate-{}", number % 2)).id(format!("event-{number}"));
    let events: Vec<_> = (1..=count).map(|number| event(number).data("some data").build().expect("valid")).collect();
    store.store_batch(&background(), events.into()).await.expect("written");
    store.close().await.expect("closed");
}

async fn damaged_by(sql: &str) -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().expect("a directory");
    with_events(directory.path(), 5).await;
    let db = Connection::open(directory.path().join("events.db")).expect("a database");
    db.execute_batch(sql).expect("damaged");
    db.close().expect("closed");
    let store = SqliteStore::open(directory.path()).await.expect("opened");
    (directory, store)
}

/// Damage to the third of five events is named, never read as another event, and does not hide the others.
#[tokio::test]
async fn damage_is_named_and_passed_over() {
    for sql in [
        "UPDATE events SET data = CAST('some date' AS BLOB) WHERE version = 3",
        "UPDATE events SET id = CAST('event-9' AS BLOB) WHERE version = 3",
        "UPDATE events SET aggregate_id = CAST('aggregate-0' AS BLOB) WHERE version = 3",
        "UPDATE events SET event_type = CAST('TestedT' AS BLOB), metadata = CAST('' AS BLOB) WHERE version = 3",
        "UPDATE events SET revision = 7 WHERE version = 3",
        "UPDATE events SET recorded_at = recorded_at + 1 WHERE version = 3",
        "UPDATE events SET recorded_at = -1 WHERE version = 3",
        "UPDATE events SET checksum = checksum + 1 WHERE version = 3",
        "DELETE FROM events WHERE version = 3",
    ] {
        let (_directory, store) = damaged_by(sql).await;
        let three = Some(Version::new(3));
        let mut events = store.load(&background(), Version::ZERO);
        for version in [1, 2] {
            assert_eq!(events.next().await.expect(sql).expect(sql).version, Version::new(version), "{sql}");
        }
        let damage = events.next().await.expect(sql);
        assert!(matches!(damage, Err(Error::Corrupt { version, .. }) if version == three), "{sql}: {damage:?}");
        let behind = store.load(&background(), Version::new(3)).into_vec().await.expect(sql);
        assert_eq!(behind.len(), 2, "{sql}");
        let backward = LoadOptions::all().backward().before(Version::new(4));
        let damage = store.load(&background(), backward).into_vec().await;
        assert!(matches!(damage, Err(Error::Corrupt { version, .. }) if version == three), "{sql}: {damage:?}");
        let found = store.verify(&background()).await.expect(sql).findings;
        assert!(found.iter().any(|finding| finding.version == three), "{sql}: {found:?}");
    }
}

/// Nothing is appended on the ground of a damaged event.
#[tokio::test]
async fn a_damaged_revision_is_not_counted_on() {
    let (_directory, store) = damaged_by("UPDATE events SET revision = 7 WHERE version = 5").await;
    let revision = store.aggregate_revision(&background(), "aggregate-1").await;
    assert!(matches!(revision, Err(Error::Corrupt { .. })), "{revision:?}");
    let event = |aggregate: &str| Event::builder("Tested", aggregate).build().expect("valid");
    let refused = store.store_batch(&background(), event("aggregate-1").into()).await;
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    store.store_batch(&background(), event("aggregate-0").into()).await.expect("another aggregate is sound");
}

#[tokio::test]
async fn an_index_that_does_not_agree_with_its_table_is_found() {
    // The table is written to while SQLite believes that it has no such index.
    let (_directory, store) = damaged_by(
        "PRAGMA writable_schema = ON;
         CREATE TABLE kept AS SELECT * FROM sqlite_schema WHERE name = 'events_by_aggregate';
         DELETE FROM sqlite_schema WHERE name = 'events_by_aggregate';
         PRAGMA writable_schema = RESET;
         INSERT INTO events SELECT 6, 4, recorded_at, checksum, X'36', event_type, aggregate_id, metadata, data FROM events
             WHERE version = 5;
         PRAGMA writable_schema = ON;
         INSERT INTO sqlite_schema SELECT * FROM kept;
         DROP TABLE kept;
         PRAGMA writable_schema = RESET;",
    )
    .await;
    let found = store.verify(&background()).await.expect("verified").findings;
    assert!(found.iter().any(|finding| finding.what.contains("events_by_aggregate")), "{found:?}");
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_not_touched() {
    let refused = |path: &Path| {
        let path = path.to_owned();
        async move {
            let before: Vec<_> =
                fs::read_dir(&path).expect("listed").map(|entry| entry.expect("listed").path()).collect();
            let opened = SqliteStore::open(&path).await;
            assert!(matches!(opened, Err(Error::Open { .. } | Error::Corrupt { .. })), "{before:?}: {opened:?}");
        }
    };
    let somebodys = tempfile::tempdir().expect("a directory");
    fs::write(somebodys.path().join("letter.txt"), "Dear").expect("written");
    refused(somebodys.path()).await;
    assert_eq!(fs::read_dir(somebodys.path()).expect("listed").count(), 1, "what is in somebody's directory");

    for content in ["", "no database"] {
        let other = tempfile::tempdir().expect("a directory");
        fs::write(other.path().join("events.db"), content).expect("written");
        refused(other.path()).await;
    }
    let other = tempfile::tempdir().expect("a directory");
    let db = Connection::open(other.path().join("events.db")).expect("a database");
    db.execute_batch("CREATE TABLE events (version INTEGER)").expect("a table");
    db.close().expect("closed");
    refused(other.path()).await;

    // A database that is gone is not begun anew.
    let lost = tempfile::tempdir().expect("a directory");
    with_events(lost.path(), 1).await;
    fs::write(lost.path().join("events.db-wal"), "").expect("written");
    fs::remove_file(lost.path().join("events.db")).expect("removed");
    refused(lost.path()).await;

    // A backup that a kill has cut short.
    let cut_short = tempfile::tempdir().expect("a directory");
    fs::write(cut_short.path().join("events.db.partial"), "half").expect("written");
    refused(cut_short.path()).await;
}

#[tokio::test]
async fn a_creation_that_was_cut_short_is_begun_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    for rest in ["store.lock", "events.db.new", "events.db.new-journal"] {
        fs::write(directory.path().join(rest), "").expect("written");
    }
    with_events(directory.path(), 1).await;
}

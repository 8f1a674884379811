//! The store's files: growing, full, damaged, written by somebody else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backend_lmdb::{Options, open};
use eventstore_api::{Batch, Error, Event, EventStore, EventStoreExt, Expected, LoadOptions, Version};
use support::{ctx, event, indexed, put, small, store, versions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_map_grows_while_readers_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(small(directory.path(), 256 << 20)).await.unwrap();
    let writing = Arc::new(AtomicBool::new(true));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (store, writing) = (store.clone(), writing.clone());
            tokio::spawn(async move {
                let mut scans = 0;
                while writing.load(Ordering::Relaxed) || scans == 0 {
                    let events = store.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
                    let expected = (1..=events.len() as u64).collect::<Vec<_>>();
                    assert_eq!(events.iter().map(|event| event.version.get()).collect::<Vec<_>>(), expected);
                    assert!(events.iter().all(|event| event.event.data().len() == 20_000));
                    scans += 1;
                }
            })
        })
        .collect();
    for batch in 0..40 {
        let events = (0..25).map(|n| event(&format!("{batch}-{n}"), vec![batch; 20_000])).collect();
        store.store_batch(&ctx(), Batch::new(events)).await.unwrap();
    }
    writing.store(false, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    let stats = store.stats(&ctx()).await.unwrap();
    let (_, map_size) = stats.properties.iter().find(|(name, _)| *name == "map_size").unwrap();
    assert!(map_size.parse::<u64>().unwrap() > 20 << 20, "20 MB are in a map that began with 1 MiB");
    assert_eq!(versions(&store).await.len(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_map_grows_while_somebody_asks_for_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(small(directory.path(), 1 << 30)).await.unwrap();
    let writing = Arc::new(AtomicBool::new(true));
    let asking: Vec<_> = (0..2)
        .map(|_| {
            let (store, writing, runtime) = (store.clone(), writing.clone(), tokio::runtime::Handle::current());
            std::thread::spawn(move || {
                while writing.load(Ordering::Relaxed) {
                    runtime.block_on(store.stats(&ctx())).unwrap();
                }
            })
        })
        .collect();
    for n in 0..40 {
        self::store(&store, &n.to_string(), vec![1; 1 << 20]).await.unwrap();
    }
    writing.store(false, Ordering::Relaxed);
    asking.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_readers_than_allowed_wait_and_stop_no_append() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    options.max_readers = 1;
    let store = open(options).await.unwrap();
    let reading = tokio::spawn({
        let store = store.clone();
        async move {
            for _ in 0..2000 {
                store.load(&ctx(), Version::ZERO).into_vec().await.unwrap();
            }
        }
    });
    for n in 0..100 {
        self::store(&store, &n.to_string(), "x").await.unwrap();
    }
    reading.await.unwrap();
}

#[tokio::test]
async fn lost_and_cut_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(Options::new(directory.path())).await.unwrap();
    for n in 0..50 {
        store(&sound, &n.to_string(), vec![1; 10_000]).await.unwrap();
    }
    sound.close().await.unwrap();
    let file = directory.path().join("data.mdb");
    let whole = fs::read(&file).unwrap();
    for len in [whole.len() - 1, whole.len() / 2, 8192] {
        fs::write(&file, &whole[..len]).unwrap();
        let error = open(Options::new(directory.path())).await.unwrap_err();
        assert!(matches!(&error, Error::Corrupt { reason, .. } if reason.contains("cut short")), "{len}: {error}");
    }
    fs::write(&file, "").unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Open { reason, .. } if reason.contains("missing or empty")), "{error}");
    fs::remove_file(&file).unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Open { reason, .. } if reason.contains("missing or empty")), "{error}");
    fs::write(&file, whole).unwrap();
    let restored = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(versions(&restored).await.len(), 50);
}

#[tokio::test]
async fn a_file_that_went_back_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data.mdb");
    let opened = open(Options::new(directory.path())).await.unwrap();
    store(&opened, "one", "x").await.unwrap();
    let older = fs::read(&file).unwrap();
    store(&opened, "two", "x").await.unwrap();
    store(&opened, "three", "x").await.unwrap();
    opened.close().await.unwrap();
    fs::write(&file, older).unwrap();
    for _ in 0..2 {
        let error = open(Options::new(directory.path())).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt { version: Some(lost), .. } if lost.get() == 2), "{error}");
    }
    fs::remove_file(directory.path().join("eventstore.head")).unwrap();
    assert_eq!(versions(&open(Options::new(directory.path())).await.unwrap()).await, [1]);
}

#[tokio::test]
async fn a_creation_that_was_cut_short_is_begun_anew() {
    for left in [0, 100, 4913, 8192] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("eventstore.json.new"), r#"{"engine":"lmdb"}"#).unwrap();
        fs::write(directory.path().join("data.mdb"), vec![7; left]).unwrap();
        let opened = open(Options::new(directory.path())).await.unwrap();
        store(&opened, "first", "x").await.unwrap();
        opened.close().await.unwrap();
        assert_eq!(versions(&open(Options::new(directory.path())).await.unwrap()).await, [1], "{left} bytes");
    }
}

#[tokio::test]
async fn indexes_with_impossible_entries_are_damage() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(indexed(directory.path())).await.unwrap();
    store(&sound, "id-1", "x").await.unwrap();
    let other = Event::builder("Tested", "other").id("other").build().unwrap();
    sound.store(&ctx(), other, Expected::Any).await.unwrap();
    sound.close().await.unwrap();
    let key = [b"aggregate".as_slice(), &[0xff], &u64::MAX.to_be_bytes()].concat();
    put(directory.path(), "aggregates", &key, Some(&1_u64.to_be_bytes()));
    put(directory.path(), "ids", b"\x02id-1", Some(&99_u64.to_be_bytes()));
    let damaged = open(Options::new(directory.path())).await.unwrap();
    assert_eq!(damaged.aggregate_revision(&ctx(), "aggregate").await.unwrap_err().code(), "corrupt");
    assert_eq!(damaged.get(&ctx(), "id-1").await.unwrap_err().code(), "corrupt");
}

#[tokio::test]
async fn one_batch_larger_than_the_map_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(small(directory.path(), 256 << 20)).await.unwrap();
    let events = (0..4).map(|n| event(&n.to_string(), vec![7; 12 << 20])).collect();
    assert_eq!(store.store_batch(&ctx(), Batch::new(events)).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_full_map_is_a_clear_error_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let full = open(small(directory.path(), 4 << 20)).await.unwrap();
    let mut stored = 0;
    let error = loop {
        match store(&full, &stored.to_string(), vec![1; 100_000]).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Full { reason } if reason.contains("max_map_size")), "{error}");
    assert!(stored > 10);
    assert!(full.stats(&ctx()).await.unwrap().fenced.is_none(), "nothing was written, so nothing is in doubt");
    assert_eq!(versions(&full).await.len(), stored);
    store(&full, "small", "fits").await.expect("a small event still fits");
    full.close().await.unwrap();

    let larger = open(small(directory.path(), 64 << 20)).await.unwrap();
    assert_eq!(versions(&larger).await.len(), stored + 1);
    store(&larger, "large", vec![1; 100_000]).await.expect("there is room now");
}

#[tokio::test]
async fn a_damaged_record_is_named_and_nothing_else_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(indexed(directory.path())).await.unwrap();
    for n in 1..=6 {
        store(&sound, &format!("id-{n}"), format!("payload number {n}")).await.unwrap();
    }
    sound.close().await.unwrap();

    let file = directory.path().join("data.mdb");
    let mut bytes = fs::read(&file).unwrap();
    // Earlier copies of the page may lie in the file as well.
    let places: Vec<_> = bytes.windows(16).enumerate().filter(|(_, bytes)| bytes == b"payload number 3").collect();
    let places: Vec<_> = places.into_iter().map(|(place, _)| place).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|place| bytes[place] ^= 1);
    fs::write(&file, bytes).unwrap();

    let damaged = open(Options::new(directory.path())).await.unwrap();
    let is_corrupt = |error: Error| matches!(error, Error::Corrupt { version: Some(at), .. } if at == Version::new(3));
    let mut events = damaged.load(&ctx(), Version::ZERO);
    for version in 1..=2 {
        assert_eq!(events.next().await.unwrap().unwrap().version, Version::new(version));
    }
    assert!(is_corrupt(events.next().await.unwrap().unwrap_err()));
    assert!(events.next().await.is_none());
    assert!(is_corrupt(damaged.get(&ctx(), "id-3").await.unwrap_err()));
    assert!(is_corrupt(damaged.load_by_aggregate(&ctx(), "aggregate", Version::new(2)).into_vec().await.unwrap_err()));
    let after = damaged.load(&ctx(), Version::new(3)).into_vec().await.unwrap();
    assert_eq!(after.len(), 3, "what comes after it can be loaded");
    let newest = damaged.load(&ctx(), LoadOptions::all().backward().limit(2)).into_vec().await.unwrap();
    assert_eq!(newest.len(), 2);
    assert_eq!(store(&damaged, "id-7", "more").await.unwrap(), Version::new(7));
    let retry = store(&damaged, "id-3", "payload number 3").await;
    assert!(is_corrupt(retry.unwrap_err()), "whether it is the same event cannot be told");
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    put(directory.path(), "meta", b"format", Some(&3_u32.to_be_bytes()));
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("format 3")), "{error}");
}

#[tokio::test]
async fn a_gap_in_the_log_is_never_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(Options::new(directory.path())).await.unwrap();
    for n in 1..=4 {
        store(&sound, &format!("id-{n}"), "x").await.unwrap();
    }
    sound.close().await.unwrap();
    put(directory.path(), "events", &2_u64.to_be_bytes(), None);
    let damaged = open(Options::new(directory.path())).await.unwrap();
    for options in [LoadOptions::all(), LoadOptions::all().aggregate("aggregate")] {
        let mut events = damaged.load(&ctx(), options);
        assert_eq!(events.next().await.unwrap().unwrap().version, Version::new(1));
        let error = events.next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Corrupt { version: Some(at), .. } if at == Version::new(2)), "{error}");
    }
    let mut backward = damaged.load(&ctx(), LoadOptions::all().backward());
    assert_eq!(backward.next().await.unwrap().unwrap().version, Version::new(4));
    assert_eq!(backward.next().await.unwrap().unwrap().version, Version::new(3));
    assert!(backward.next().await.unwrap().is_err());
}

#[tokio::test]
async fn an_index_entry_that_leads_to_another_aggregate_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(indexed(directory.path())).await.unwrap();
    for (id, aggregate_id) in [("other", "other"), ("mine", "aggregate"), ("last", "last")] {
        let event = Event::builder("Tested", aggregate_id).id(id).build().unwrap();
        sound.store(&ctx(), event, Expected::Any).await.unwrap();
    }
    sound.close().await.unwrap();
    let key = [b"aggregate".as_slice(), &[0xff], &1_u64.to_be_bytes()].concat();
    put(directory.path(), "aggregates", &key, Some(&1_u64.to_be_bytes()));
    let damaged = open(Options::new(directory.path())).await.unwrap();
    let error = damaged.load_by_aggregate(&ctx(), "aggregate", Version::ZERO).into_vec().await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { version: Some(at), .. } if at == Version::new(1)), "{error}");
}

#[tokio::test]
async fn files_that_are_not_lmdbs_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(Options::new(directory.path())).await.unwrap().close().await.unwrap();
    fs::write(directory.path().join("data.mdb"), vec![0x42; 8192]).unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { version: None, .. }), "{error}");
    fs::write(directory.path().join("eventstore.json"), r#"{"engine":"sled"}"#).unwrap();
    let error = open(Options::new(directory.path())).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("sled:")), "{error}");
}

#[tokio::test]
async fn the_same_files_open_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    for n in 1..=20 {
        let opened = open(Options::new(directory.path())).await.unwrap();
        assert_eq!(store(&opened, &n.to_string(), "x").await.unwrap(), Version::new(n));
        let second = open(Options::new(directory.path())).await;
        assert!(matches!(second, Err(Error::Locked { .. })));
        if n % 2 == 0 {
            opened.close().await.unwrap();
        } // otherwise dropping it has to do
    }
}

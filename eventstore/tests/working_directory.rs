//! A program may change its working directory while a store with a relative path is open, or lose it before.
//!
//! A separate test binary, because all threads share the working directory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::env;
use std::fs;

use eventstore::backend::{Batch, Context, Error, Event, EventStore, Gc, Version};

use common::BACKENDS;

fn events(count: u64) -> Batch {
    let event = |n| Event::builder("Tested", "a").data(vec![7; 500 + n as usize]).build().unwrap();
    Batch::new((0..count).map(event).collect())
}

#[tokio::test]
async fn maintenance_stays_with_the_store_that_was_opened() {
    let ctx = Context::background();
    for backend in BACKENDS {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("{backend}:./data");
        for (name, count) in [("two", 600), ("one", 5)] {
            fs::create_dir(directory.path().join(name)).unwrap();
            env::set_current_dir(directory.path().join(name)).unwrap();
            let store = eventstore::backend::open(&url).await.unwrap();
            store.store_batch(&ctx, events(count)).await.unwrap();
            store.close().await.unwrap();
        }
        let one = eventstore::backend::open(&url).await.unwrap();
        env::set_current_dir(directory.path().join("two")).unwrap();
        one.store_batch(&ctx, events(300)).await.unwrap();
        one.run_gc(&ctx, Gc::Quick).await.unwrap();
        let _ = one.run_gc(&ctx, Gc::Full).await; // sled has none
        one.store_batch(&ctx, events(1)).await.unwrap();
        one.stats(&ctx).await.unwrap();
        one.close().await.unwrap();
        for (name, count) in [("two", 600), ("one", 306)] {
            env::set_current_dir(directory.path().join(name)).unwrap();
            let store = eventstore::backend::open(&url).await.unwrap();
            assert_eq!(store.latest_version(&ctx).await.unwrap(), Version::new(count), "{backend} {name}");
            assert!(store.verify(&ctx).await.unwrap().is_clean(), "{backend} {name}");
            store.close().await.unwrap();
        }
        let deleted = directory.path().join("deleted");
        fs::create_dir(&deleted).unwrap();
        env::set_current_dir(&deleted).unwrap();
        fs::remove_dir(&deleted).unwrap();
        let refused = eventstore::backend::open(&format!("{backend}:./some/where")).await;
        assert!(matches!(refused, Err(Error::Open { .. })), "{backend}: {:?}", refused.map(drop));
        env::set_current_dir("/").unwrap();
    }
}

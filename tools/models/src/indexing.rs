//! The jobs that write the index, beside appends, readers and the end.

use std::sync::Arc;

use eventstore_api::{Batch, Context, Durability, Error, EventStore, Result, Stored};
use libtest_mimic::Trial;
use shuttle::future::block_on;

use crate::check::some_orders;
use crate::disk::{
    Fate, IndexFate, Store, append, append_batch, event, ids, join, open_indexing, open_pipelined_and_indexing, spawn,
};
use crate::engine::{Engine, Entries};
use crate::index::recent::Recent;
use crate::index::view::{Index, Listed};
use crate::memory::MemoryEngine;
use crate::sync::{AtomicU64, Ordering, thread};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        some_orders("indexing::what_was_published_is_found_while_its_index_moves", moves),
        some_orders("indexing::an_aggregate_is_whole_while_its_index_moves", aggregate_moves),
        some_orders("indexing::the_index_is_not_ahead_of_the_log_that_is_synced", not_ahead),
        some_orders("indexing::the_index_of_a_group_without_room_is_not_written", without_room),
        some_orders("indexing::an_index_that_fails_stops_nobody_and_loses_nothing", || fails(IndexFate::Fails)),
        some_orders("indexing::an_index_that_panics_stops_nobody_and_loses_nothing", || fails(IndexFate::Panics)),
        some_orders("indexing::closing_waits_for_the_index_and_writes_the_rest", close_and_index),
        some_orders("indexing::closing_with_an_index_that_fails_returns_as_well", close_and_fail),
        some_orders("indexing::after_a_failed_commit_no_index_is_written_of_it", || failed_commit(Fate::Lost)),
        some_orders("indexing::after_a_panic_in_a_commit_no_index_is_written_of_it", || failed_commit(Fate::Panics)),
    ]
}

const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Fails if what is set aside is taken from memory before the tables have it, and if a reader looks into memory twice.
fn moves() {
    let (store, _) = open_indexing(&[], &[]);
    let appending = store.clone();
    let appender = spawn(move || async move {
        for id in IDS {
            append(&appending, &Context::background(), id).await.expect("stored");
        }
    });
    let reader = spawn(move || async move {
        for _ in 0..3 {
            assert_found(&store).await;
        }
    });
    join(appender);
    join(reader);
}

/// The index alone. Fails if what is kept of an aggregate is not what the tables have: if it was read before they changed, or
/// while they do; or if what is written is not added.
fn aggregate_moves() {
    let (engine, index) = (Arc::new(MemoryEngine::default()), Arc::new(Index::new(Recent::new(1), None, 1 << 20)));
    let published = Arc::new(AtomicU64::new(0));
    let readers = [(); 2].map(|()| {
        let (engine, index, published) = (engine.clone(), index.clone(), published.clone());
        thread::spawn(move || {
            for _ in 0..3 {
                let head = published.load(Ordering::SeqCst);
                let found = index.view(&*engine).first_versions("a", u64::MAX, 9).expect("read");
                let len = found.0.len() as u64;
                assert!(head <= len && found == ((1..=len).collect(), Listed::All), "{found:?} at {head}");
            }
        })
    });
    for version in 1..=3 {
        index.newer().push(&[2, version as u8], "a", version);
        published.store(version, Ordering::SeqCst);
        drop(index.freeze());
        let mut entries = Entries::new();
        index.unwritten().expect("frozen").put_all(&mut entries);
        engine.write(&entries).expect("written");
        index.written();
    }
    readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
}

/// What was published is found, and what is behind it may be.
async fn assert_found(store: &Store) {
    let ctx = Context::background();
    let head = store.latest_version(&ctx).await.expect("open").get();
    for (id, version) in IDS.into_iter().zip(1..=head) {
        assert_eq!(store.get(&ctx, id).await.expect("rule O6: not found").version.get(), version);
        assert_eq!(store.aggregate_revision(&ctx, id).await.expect("open").get(), 1, "rule O8: {id}");
    }
    // One that may be on its way.
    if let Some(id) = IDS.get(head as usize) {
        let found = store.get(&ctx, id).await;
        assert!(matches!(found, Ok(_) | Err(Error::EventNotFound { .. })), "{id}: {found:?}");
    }
}

/// Fails if the log is not synced before the index is written, and if a job begins for what is not committed: the engine
/// looks at each write.
fn not_ahead() {
    let (store, journal) = open_pipelined_and_indexing(&[], &[]);
    let appenders = [["a", "b"], ["c", "d"]].map(|mine| {
        let store = store.clone();
        spawn(move || async move {
            for id in mine {
                let batch = Batch::new(vec![event(id)]).durability(Durability::Buffered);
                append_batch(&store, &Context::background(), batch).await.expect("stored");
            }
        })
    });
    appenders.into_iter().for_each(join);
    block_on(store.close()).expect("closed");
    let happened = journal.look();
    assert!(!happened.index_was_ahead, "the index was ahead of the log that is synced");
    assert_eq!((happened.indexed, happened.done), (4, 4), "closing leaves nothing behind");
}

/// Fails if what leads to events that found no room stays in memory.
fn without_room() {
    let (store, journal) = open_pipelined_and_indexing(&[Fate::Done, Fate::Full, Fate::Done, Fate::Full], &[]);
    let appenders = ["a", "b", "c", "d"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    let results = appenders.map(join);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Error::Full { .. }))), "{results:?}");
    let stored = results.iter().flatten().count() as u64;
    let again = block_on(append(&store, &Context::background(), "e")).or_else(|error| match error {
        Error::Full { .. } => block_on(append(&store, &Context::background(), "e")),
        other => Err(other),
    });
    assert_eq!(again.expect("there is room").version.get(), stored + 1);
    let there = block_on(ids(&store)).expect("read");
    for (id, version) in there.iter().zip(1..) {
        assert_eq!(block_on(store.get(&Context::background(), id)).expect("found").version.get(), version);
    }
    block_on(store.close()).expect("closed");
    assert_eq!(journal.left(), there);
    assert_eq!(journal.look().indexed, stored + 1);
}

/// Fails if a failing index fences, if it is not tried again, if appends wait for what nobody writes, and if events leave
/// memory without being in the tables.
fn fails(fate: IndexFate) {
    let (store, journal) = open_indexing(&[], &[fate, fate, IndexFate::Done, fate]);
    let appending = store.clone();
    let appender = spawn(move || async move {
        let mut refused = 0;
        for id in IDS {
            loop {
                match append(&appending, &Context::background(), id).await {
                    Ok(_) => break,
                    Err(Error::Full { reason }) => {
                        assert!(reason.contains("the index is"), "{reason}");
                        refused += 1;
                        assert!(refused <= 3, "it was tried again, and worked");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    });
    let reader = {
        let store = store.clone();
        spawn(move || async move {
            for _ in 0..2 {
                assert_found(&store).await;
            }
        })
    };
    join(appender);
    join(reader);
    block_on(assert_found(&store));
    let stats = block_on(store.stats(&Context::background())).expect("counted");
    assert_eq!(stats.fenced, None);
    block_on(store.close()).expect("nothing is lost");
    assert!(journal.look().is_dropped);
    assert_eq!(journal.left(), IDS);
}

/// Fails if closing does not wait for the job, or writes beside it, or leaves what came behind it.
fn close_and_index() {
    let (store, journal) = open_indexing(&[], &[]);
    let appenders = [["a", "b"], ["c", "d"]].map(|mine| {
        let store = store.clone();
        spawn(move || async move {
            let mut results: Vec<Result<Stored>> = Vec::new();
            for id in mine {
                results.push(append(&store, &Context::background(), id).await);
            }
            results
        })
    });
    block_on(store.close()).expect("closed");
    let (done, indexed) = {
        let happened = journal.look();
        assert!(happened.is_dropped, "rule L1: the store cannot be opened again yet");
        (happened.done, happened.indexed)
    };
    assert_eq!(indexed, done, "the index is behind");
    let results: Vec<_> = appenders.into_iter().flat_map(join).collect();
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Error::Closed))), "{results:?}");
    assert_eq!(results.iter().flatten().count() as u64, done);
    assert_eq!(journal.look().indexed, indexed, "something was written after the end");
}

/// Fails if closing takes an index that is behind for a failure, and if nobody wakes it.
fn close_and_fail() {
    let (store, journal) = open_indexing(&[], &[IndexFate::Fails, IndexFate::Panics, IndexFate::Fails]);
    let other = store.clone();
    let appender = spawn(move || async move {
        let first = append(&other, &Context::background(), "a").await;
        let second = append(&other, &Context::background(), "b").await;
        [first, second]
    });
    block_on(store.close()).expect("nothing is lost");
    let results = join(appender);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Error::Closed))), "{results:?}");
    let stored = results.iter().flatten().count();
    assert!(journal.look().is_dropped);
    assert_eq!(journal.left().len(), stored);
}

/// Fails if those who wait for the index or for the end are not told that a commit has failed.
fn failed_commit(fate: Fate) {
    let (store, journal) = open_pipelined_and_indexing(&[Fate::Done, Fate::Done, fate], &[]);
    let appenders = ["a", "b", "c", "d"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    let results = appenders.map(join);
    block_on(store.close()).expect("nothing is owed");
    let happened = journal.look();
    assert!(happened.indexed <= happened.done, "the index has what was not committed");
    assert!(!happened.called_after_failure, "rule F1: the disk was asked again after a failed commit");
    assert_eq!(results.iter().flatten().count() as u64, happened.done);
    assert!(happened.is_dropped);
}

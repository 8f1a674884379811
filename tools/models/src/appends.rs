//! Appends, their callers, the writer, and who commits beside it.

use std::collections::BTreeMap;

use eventstore_api::{Actual, Batch, Context, Durability, Error, EventStore, Expected, Result, StoreOutcome, Stored};
use libtest_mimic::Trial;
use shuttle::future::block_on;

use crate::check::some_orders;
use crate::disk::{
    Fate, Happened, Journal, Store, append, append_batch, cancelled_at_some_time, event, event_of, ids, join, open,
    open_narrow, open_pipelined, spawn,
};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        some_orders("appends::the_answer_to_a_cancelled_append_is_what_happened", cancelled),
        some_orders("appends::a_dropped_append_is_written_wholly_or_not_at_all_and_stops_nobody", dropped),
        some_orders("appends::after_a_failed_write_nothing_is_acknowledged_and_readers_go_on", || {
            failed(open, Fate::Unwritten)
        }),
        some_orders("appends::after_a_failed_sync_nothing_is_acknowledged_and_readers_go_on", || {
            failed(open, Fate::Lost)
        }),
        some_orders("appends::after_a_torn_commit_nothing_is_acknowledged_and_readers_go_on", || {
            failed(open, Fate::Torn)
        }),
        some_orders("appends::after_a_panic_in_a_commit_nothing_is_acknowledged_and_readers_go_on", || {
            failed(open, Fate::Panics)
        }),
        some_orders("appends::the_same_while_the_next_group_is_staged", || failed(open_pipelined, Fate::Lost)),
        some_orders("appends::the_same_while_the_next_group_is_staged_behind_a_panic", || {
            failed(open_pipelined, Fate::Panics)
        }),
        some_orders("appends::a_commit_without_room_takes_no_other_with_it", || full(open)),
        some_orders("appends::a_group_without_room_takes_none_behind_it_with_it", || full(open_pipelined)),
        some_orders("appends::groups_that_are_staged_behind_another_are_all_committed", pipelined),
        some_orders("appends::what_rests_on_a_group_is_answered_when_that_is_synced", rests),
        some_orders("appends::when_a_group_is_lost_nothing_that_is_refused_comes_back", || first_fails(Fate::Lost)),
        some_orders("appends::when_a_group_is_torn_nothing_that_is_refused_comes_back", || first_fails(Fate::Torn)),
    ]
}

/// Fails if the writer does not ask the ticket, and if the caller does not.
fn cancelled() {
    let (store, _) = open_narrow(&[]);
    let (ctx, canceller) = cancelled_at_some_time();
    let (leaving, staying) = (store.clone(), store.clone());
    let left = spawn(move || async move { append(&leaving, &ctx, "left").await });
    let stayed = spawn(move || async move { append(&staying, &Context::background(), "stayed").await });
    let (left, stayed) = (join(left), join(stayed));
    join(canceller);
    let (stayed, last) = block_on(async {
        // All that was staged before is committed with it or before it.
        (stayed.expect("nobody cancels it"), append(&store, &Context::background(), "last").await.expect("stored"))
    });
    let there = block_on(ids(&store)).expect("read");
    assert_eq!(there[stayed.version.get() as usize - 1], "stayed");
    assert_eq!(there[last.version.get() as usize - 1], "last");
    match left {
        Ok(stored) => assert_eq!(there[stored.version.get() as usize - 1], "left"),
        Err(Error::Cancelled) => assert!(!there.contains(&"left".to_owned()), "rule C2: it was written"),
        Err(Error::OutcomeUnknown { .. }) => assert_eq!(there.len(), 3, "rule C3: it was staged, so it is written"),
        Err(other) => panic!("{other}"),
    }
    assert_no_place_is_taken(&store);
}

/// Fails if a place is not given back.
fn dropped() {
    let (store, _) = open_narrow(&[]);
    let (until, canceller) = cancelled_at_some_time();
    let (leaving, staying) = (store.clone(), store.clone());
    let left = spawn(move || async move {
        let ctx = Context::background();
        until.run(append(&leaving, &ctx, "left")).await
    });
    let stayed = spawn(move || async move { append(&staying, &Context::background(), "stayed").await });
    let (left, stayed) = (join(left), join(stayed));
    join(canceller);
    stayed.expect("nobody drops it");
    block_on(append(&store, &Context::background(), "last")).expect("stored");
    let there = block_on(ids(&store)).expect("read");
    let is_there = there.contains(&"left".to_owned());
    assert_eq!(there.len(), 2 + usize::from(is_there));
    if let Ok(finished) = left {
        finished.expect("it was not dropped");
        assert!(is_there, "it was acknowledged");
    }
    assert_no_place_is_taken(&store);
}

/// Fails if a failed commit does not fence, if the writer does not look at the fence, if the head is published without
/// looking at how the commit ended, and if a panic ends the writer, or whoever commits beside it.
fn failed(open: fn(&[Fate]) -> (Store, Journal), fate: Fate) {
    let (store, journal) = open(&[Fate::Done, fate]);
    let appenders = [["a1", "a2"], ["b1", "b2"]].map(|mine| {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            let mut results: Vec<Result<Stored>> = Vec::new();
            for id in mine {
                let had_failed = results.iter().any(Result::is_err);
                let result = append(&store, &Context::background(), id).await;
                if let Ok(stored) = &result {
                    assert!(stored.version.get() <= journal.look().done, "it was acknowledged before it was synced");
                    assert!(!had_failed, "rule F1: acknowledged after a failed commit");
                }
                results.push(result);
            }
            results
        })
    });
    let reader = {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            let ids = ids(&store).await.expect("reads go on");
            assert!(ids.len() as u64 <= journal.look().done, "events of a commit that is not done");
        })
    };
    let results: Vec<Result<Stored>> = appenders.into_iter().flat_map(join).collect();
    join(reader);
    for result in &results {
        assert!(matches!(result, Ok(_) | Err(Error::OutcomeUnknown { .. } | Error::Fenced { .. })), "{result:?}");
    }
    let unknown = results.iter().any(|result| matches!(result, Err(Error::OutcomeUnknown { .. })));
    assert_eq!(unknown, journal.look().failed, "who was in that commit is told");
    let stats = block_on(store.stats(&Context::background())).expect("counted");
    assert_eq!(stats.fenced.is_some(), unknown, "rule F1: it is known that nothing more is accepted");
    let there = block_on(ids(&store)).expect("reads go on");
    assert_eq!(there.len(), results.iter().filter(|result| result.is_ok()).count(), "what was acknowledged is there");
    assert_eq!(there.len() as u64, journal.look().done);
    block_on(store.close()).expect("nothing is owed");
    assert!(!journal.look().called_after_failure, "rule F1: the disk was asked again after a failed commit");
}

/// Fails if a group that finds no room is refused as a whole, or the one behind it with it.
fn full(open: fn(&[Fate]) -> (Store, Journal)) {
    // Where the first commit is not of one append alone, each is tried again, and finds room.
    let (store, journal) = open(&[Fate::Full, Fate::Done]);
    let appenders = ["a", "b", "c"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    let results = appenders.map(join);
    let refused = results.iter().filter(|result| matches!(result, Err(Error::Full { .. }))).count();
    let stored = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(refused + stored, 3, "{results:?}");
    assert!(refused <= 1, "one takes the others with it");
    assert_eq!(journal.look().done, stored as u64);
    let there = block_on(ids(&store)).expect("read");
    assert_eq!(there.len(), stored);
    for result in results.into_iter().flatten() {
        assert!(result.version.get() <= stored as u64, "it has a place that there is not");
    }
    assert_eq!(journal.left(), there);
}

/// Fails if nobody looks after a group that is handed over, if whoever commits leaves while one comes, and if the writer is
/// not woken, or does not commit what it has staged meanwhile.
fn pipelined() {
    let (store, journal) = open_pipelined(&[]);
    let appenders = [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]].map(|mine| {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            for id in mine {
                let stored = append(&store, &Context::background(), id).await.expect("stored");
                assert!(stored.version.get() <= journal.look().done, "it was acknowledged before it was synced");
            }
        })
    });
    let watcher = {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            let mut seen = 0;
            while seen < 6 {
                let after = eventstore_api::Version::new(seen);
                let head = store.wait_for_events(&Context::background(), after).await.expect("open").get();
                assert!(head > seen, "rule O7: it went back");
                assert!(head <= journal.look().done, "a head that is not synced");
                seen = head;
            }
        })
    };
    appenders.into_iter().for_each(join);
    join(watcher);
    let there = block_on(ids(&store)).expect("read");
    assert_eq!(journal.left(), there);
    for mine in ["a", "b", "c"] {
        assert!(there.iter().filter(|id| id.starts_with(mine)).is_sorted(), "rule O3: {there:?}");
    }
    assert_no_place_is_taken(&store);
}

/// Fails if a conflict, a duplicate or a repetition is answered before that on which it rests is synced.
fn rests() {
    let (store, journal) = open_pipelined(&[]);
    let batches = [
        Batch::new(vec![event_of("one", "a")]),
        // The same event, without a sync of its own.
        Batch::new(vec![event_of("one", "a")]).durability(Durability::Buffered),
        Batch::new(vec![event_of("another", "a")]).durability(Durability::Buffered),
        Batch::new(vec![event_of("one", "b")]).expected(Expected::NoEvents),
    ];
    let appenders = batches.map(|batch| {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            let is_sync = batch.durability.is_none();
            let result = append_batch(&store, &Context::background(), batch).await;
            // What was buffered itself is written, and what rests on others is synced if those asked for it.
            let Happened { done, written, .. } = *journal.look();
            match &result {
                Ok(stored) if is_sync => assert!(stored.version.get() <= done, "{stored:?}"),
                Ok(stored) => assert!(stored.version.get() <= written, "{stored:?}"),
                Err(Error::DuplicateEvent { version: Some(version), .. }) => assert!(version.get() <= written),
                Err(Error::VersionConflict { actual: Actual::Aggregate { revision, .. }, .. }) => {
                    assert!(revision.get() <= written)
                }
                Err(other) => panic!("{other}"),
            }
            let head = store.latest_version(&Context::background()).await.expect("open").get();
            let rests_on = match &result {
                Ok(stored) => stored.version.get(),
                Err(Error::DuplicateEvent { version: Some(version), .. }) => version.get(),
                Err(_) => 1,
            };
            assert!(rests_on <= head, "it was answered before that was published");
            result
        })
    });
    let results = appenders.map(join);
    let written = results.iter().flatten().filter(|stored| stored.outcome == StoreOutcome::Written).count();
    assert_eq!(written as u64, journal.look().written);
    assert_eq!(block_on(ids(&store)).expect("read").len(), written);
    block_on(store.close()).expect("closed");
    assert_eq!(journal.left().len(), written);
}

/// Fails if what is staged behind a group that fails is answered as if it had been written.
fn first_fails(fate: Fate) {
    let (store, journal) = open_pipelined(&[fate]);
    let batches = [
        Batch::new(vec![event("a")]),
        Batch::new(vec![event("a")]),
        Batch::new(vec![event_of("another", "a")]),
        Batch::new(vec![event("b")]).durability(Durability::Buffered),
    ];
    let appenders = batches.map(|batch| {
        let store = store.clone();
        let id = batch.events[0].id().to_owned();
        let appender = spawn(move || async move { append_batch(&store, &Context::background(), batch).await });
        (id, appender)
    });
    let results = appenders.map(|(id, appender)| (id, join(appender)));
    block_on(store.close()).map_or_else(|error| assert_eq!(error.code(), "fenced", "{error}"), drop);
    let left = journal.left();
    let mut may_be_there: BTreeMap<&str, bool> = BTreeMap::new();
    let has_failed = journal.look().failed;
    for (id, result) in &results {
        let may = may_be_there.entry(id).or_default();
        match result {
            Ok(_) | Err(Error::OutcomeUnknown { .. } | Error::DuplicateEvent { .. }) => *may = true,
            Err(Error::Fenced { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(left.iter().all(|id| may_be_there[id.as_str()]), "{left:?} is there: {results:?}");
    if has_failed {
        assert_eq!(left.len(), usize::from(fate == Fate::Torn), "{results:?}");
        assert!(results.iter().all(|(_, result)| result.is_err()), "it was the first: {results:?}");
        assert!(results.iter().any(|(_, result)| matches!(result, Err(Error::OutcomeUnknown { .. }))));
    }
    assert!(!journal.look().called_after_failure, "rule F1: the disk was asked again after a failed commit");
}

fn assert_no_place_is_taken(store: &Store) {
    let stats = block_on(store.stats(&Context::background())).expect("counted");
    assert_eq!((stats.queued_requests, stats.queued_bytes), (0, 0), "a place in the queue is lost");
}

//! Appends, their callers and the writer.

use eventstore_api::{Context, Error, EventStore, Result, Stored};
use libtest_mimic::Trial;
use shuttle::future::block_on;

use crate::check::some_orders;
use crate::disk::{Fate, append, cancelled_at_some_time, ids, join, open, open_narrow, spawn};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        some_orders("appends::the_answer_to_a_cancelled_append_is_what_happened", cancelled),
        some_orders("appends::a_dropped_append_is_written_wholly_or_not_at_all_and_stops_nobody", dropped),
        some_orders("appends::after_a_failed_commit_nothing_is_acknowledged_and_readers_go_on", || failed(Fate::Lost)),
        some_orders("appends::after_a_torn_commit_nothing_is_acknowledged_and_readers_go_on", || failed(Fate::Torn)),
        some_orders("appends::after_a_panic_in_a_commit_nothing_is_acknowledged_and_readers_go_on", || {
            failed(Fate::Panics)
        }),
        some_orders("appends::a_commit_without_room_takes_no_other_with_it", full),
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
/// looking at how the commit ended, and if a panic ends the writer.
fn failed(fate: Fate) {
    let (store, log) = open(&[Fate::Done, fate]);
    let appenders = [["a1", "a2"], ["b1", "b2"]].map(|mine| {
        let (store, log) = (store.clone(), log.clone());
        spawn(move || async move {
            let mut results: Vec<Result<Stored>> = Vec::new();
            for id in mine {
                let had_failed = results.iter().any(Result::is_err);
                let result = append(&store, &Context::background(), id).await;
                if let Ok(stored) = &result {
                    assert!(stored.version.get() <= log.look().done, "it was acknowledged before it was committed");
                    assert!(!had_failed, "rule F1: acknowledged after a failed commit");
                }
                results.push(result);
            }
            results
        })
    });
    let reader = {
        let (store, log) = (store.clone(), log.clone());
        spawn(move || async move {
            let ids = ids(&store).await.expect("reads go on");
            assert!(ids.len() as u64 <= log.look().done, "events of a commit that is not done");
        })
    };
    let results: Vec<Result<Stored>> = appenders.into_iter().flat_map(join).collect();
    join(reader);
    for result in &results {
        assert!(matches!(result, Ok(_) | Err(Error::OutcomeUnknown { .. } | Error::Fenced { .. })), "{result:?}");
    }
    let unknown = results.iter().any(|result| matches!(result, Err(Error::OutcomeUnknown { .. })));
    assert_eq!(unknown, log.look().failed, "who was in that commit is told");
    let there = block_on(ids(&store)).expect("reads go on");
    assert_eq!(there.len(), results.iter().filter(|result| result.is_ok()).count(), "what was acknowledged is there");
    assert_eq!(there.len() as u64, log.look().done);
    let _ = block_on(store.close());
    assert!(!log.look().called_after_failure, "rule F1: the engine was asked again after a failed commit");
}

/// Fails if a group that finds no room is refused as a whole.
fn full() {
    // Whether or not the first commit is of a group, one append finds no room.
    let (store, log) = open(&[Fate::Full, Fate::Done]);
    let appenders = ["a", "b"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    let results = appenders.map(join);
    let refused = results.iter().filter(|result| matches!(result, Err(Error::Full { .. }))).count();
    let stored = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(refused + stored, 2, "{results:?}");
    assert!(stored >= 1, "one takes the other with it");
    assert_eq!(log.look().done, stored as u64);
    assert_eq!(block_on(ids(&store)).expect("read").len(), stored);
}

fn assert_no_place_is_taken(store: &crate::disk::Store) {
    let stats = block_on(store.stats(&Context::background())).expect("counted");
    assert_eq!((stats.queued_requests, stats.queued_bytes), (0, 0), "a place in the queue is lost");
}

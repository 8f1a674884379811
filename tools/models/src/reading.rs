//! What is published, who sees it, and who waits for it.

use eventstore_api::{Context, Error, EventStore, Version};
use libtest_mimic::Trial;
use shuttle::future::block_on;

use crate::check::some_orders;
use crate::disk::{
    Fate, Journal, Store, append, cancelled_at_some_time, ids, join, open, open_pipelined, spawn, version,
};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        some_orders("reading::nobody_sees_a_head_whose_commit_is_not_done", || head_is_committed(open)),
        some_orders("reading::nobody_sees_one_while_the_next_group_is_staged", || head_is_committed(open_pipelined)),
        some_orders("reading::nobody_who_waits_misses_a_head", waiters_are_woken),
        some_orders("reading::a_cancelled_waiter_leaves_and_the_others_stay", cancelled_waiter),
        some_orders("reading::stats_count_events_and_aggregates_of_one_moment", stats_agree),
    ]
}

/// Fails if the head is published before the commit, or after the answer.
fn head_is_committed(open: fn(&[Fate]) -> (Store, Journal)) {
    let (store, journal) = open(&[]);
    let appenders = ["a", "b"].map(|id| {
        let store = store.clone();
        spawn(move || async move {
            let stored = append(&store, &Context::background(), id).await.expect("stored");
            let ctx = Context::background();
            assert!(store.latest_version(&ctx).await.expect("open") >= stored.version, "rule O6: not seen");
            assert_eq!(store.get(&ctx, id).await.expect("rule O6: not found").version, stored.version);
        })
    });
    let reader = {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            let mut before = Version::ZERO;
            for _ in 0..3 {
                let head = store.latest_version(&Context::background()).await.expect("open");
                assert!(head.get() <= journal.look().done, "a head whose commit is not done");
                assert!(head >= before, "rule O7: it went back");
                before = head;
                let there = ids(&store).await.expect("read");
                assert!(there.len() as u64 <= journal.look().done, "events of a commit that is not done");
                assert!(there.len() as u64 >= head.get(), "less than the head that was shown");
            }
        })
    };
    appenders.into_iter().for_each(join);
    join(reader);
}

/// Fails if the head is changed without waking, or after waking, and if a waiter looks before he listens and not after.
fn waiters_are_woken() {
    let (store, journal) = open(&[]);
    let waiters = [0, 1].map(|_| {
        let (store, journal) = (store.clone(), journal.clone());
        spawn(move || async move {
            let mut seen = Version::ZERO;
            while seen < version(2) {
                let head = store.wait_for_events(&Context::background(), seen).await.expect("open");
                assert!(head > seen, "woken for nothing");
                assert!(head.get() <= journal.look().done, "a head whose commit is not done");
                seen = head;
            }
        })
    });
    let appenders = ["a", "b"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await.expect("stored") })
    });
    let stored = appenders.map(join);
    assert_ne!(stored[0].version, stored[1].version);
    waiters.into_iter().for_each(join);
}

/// Fails if a waiter does not look at his context.
fn cancelled_waiter() {
    let (store, _) = open(&[]);
    let (ctx, canceller) = cancelled_at_some_time();
    let (leaving, staying, appending) = (store.clone(), store.clone(), store.clone());
    let left = spawn(move || async move { leaving.wait_for_events(&ctx, version(1)).await });
    let stayed = spawn(move || async move { staying.wait_for_events(&Context::background(), Version::ZERO).await });
    let stored = spawn(move || async move { append(&appending, &Context::background(), "a").await });
    assert!(matches!(join(left), Err(Error::Cancelled)), "there is no second event");
    assert_eq!(join(stayed).expect("open"), version(1));
    join(stored).expect("stored");
    join(canceller);
}

/// Fails if the two are counted one after the other: each event here is the first of its aggregate.
fn stats_agree() {
    let (store, _) = open(&[]);
    let appender = {
        let store = store.clone();
        spawn(move || async move {
            for (count, id) in (1..).zip(["a", "b"]) {
                append(&store, &Context::background(), id).await.expect("stored");
                let stats = store.stats(&Context::background()).await.expect("counted");
                assert_eq!((stats.latest_version, stats.aggregates), (version(count), count), "after an append");
            }
        })
    };
    for _ in 0..2 {
        let stats = block_on(store.stats(&Context::background())).expect("counted");
        assert_eq!(stats.aggregates, stats.latest_version.get(), "not of one moment");
    }
    join(appender);
}

//! Closing and dropping a store while it is used.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Wake, Waker};

use eventstore_api::{Batch, Context, Durability, Error, EventStore, Result, Stored, Version};
use libtest_mimic::Trial;
use shuttle::future::block_on;

use crate::check::some_orders;
use crate::disk::{
    Fate, Journal, Store, append, cancelled_at_some_time, event, ids, join, open, open_narrow, open_pipelined, spawn,
    version,
};
use crate::sync::thread;

pub(crate) fn models() -> Vec<Trial> {
    vec![
        some_orders("closing::after_close_nothing_is_accepted_and_all_that_was_is_answered", || close_and_append(open)),
        some_orders("closing::the_same_while_a_group_is_staged_behind_another", || close_and_append(open_pipelined)),
        some_orders("closing::closing_a_full_queue_answers_those_inside_and_refuses_those_outside", close_full_queue),
        some_orders("closing::two_closers_return_the_same", two_closers),
        some_orders("closing::a_closer_and_one_who_drops_both_return", closer_and_dropper),
        some_orders("closing::dropping_the_last_handle_closes_the_store", drop_all_handles),
        some_orders("closing::a_closer_who_leaves_has_closed_the_store", closer_leaves),
        some_orders("closing::closing_wakes_who_waits_for_events", close_and_wait),
        some_orders("closing::closing_waits_for_reads_and_refuses_new_ones", close_and_read),
        some_orders("closing::closing_ends_maintenance", close_and_verify),
        some_orders("closing::closing_after_a_failure_returns_as_well", || close_after_failure(open, Fate::Panics)),
        some_orders("closing::closing_after_a_failure_behind_which_a_group_is_staged_returns_as_well", || {
            close_after_failure(open_pipelined, Fate::Panics)
        }),
        some_orders("closing::closing_when_there_was_no_room_for_a_group_returns_as_well", || {
            close_after_failure(open_pipelined, Fate::Full)
        }),
        some_orders(
            "closing::the_last_handle_may_be_dropped_where_the_writer_wakes_its_task",
            dropped_on_writers_thread,
        ),
        some_orders(
            "closing::the_last_handle_may_be_dropped_where_a_commit_beside_the_writer_wakes_its_task",
            dropped_on_committing_thread,
        ),
    ]
}

/// Fails if the writer is not woken, or before it can see that the store is closing, if it does not close its queue, or
/// leaves without emptying it, and if the end is announced before the engine is dropped.
fn close_and_append(open: fn(&[Fate]) -> (Store, Journal)) {
    let (store, journal) = open(&[]);
    let appenders = ["a", "b", "d"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    block_on(store.close()).expect("closed");
    let done = {
        let journal = journal.look();
        assert!(journal.is_dropped, "rule L1: the store cannot be opened again yet");
        journal.done
    };
    let after = block_on(append(&store, &Context::background(), "c"));
    assert!(matches!(after, Err(Error::Closed)), "rule L1: {after:?}");
    assert_accepted(&appenders.map(join), done);
    assert_eq!(journal.look().done, done, "something was written after the end");
}

/// The same with a queue that has room for one, so that some are still outside.
fn close_full_queue() {
    let (store, journal) = open_narrow(&[]);
    let appenders = ["a", "b", "c"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    block_on(store.close()).expect("closed");
    let done = journal.look().done;
    assert_accepted(&appenders.map(join), done);
    assert_eq!(journal.look().done, done, "something was written after the end");
}

fn assert_accepted(results: &[Result<Stored>], done: u64) {
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Error::Closed))), "{results:?}");
    assert_eq!(results.iter().filter(|result| result.is_ok()).count() as u64, done, "what was refused is not written");
}

/// Fails if the error goes to the first who asks, and if the end is announced without waking.
fn two_closers() {
    let (store, journal) = open(&[Fate::Done, Fate::Lost]);
    let buffered = Batch::new(vec![event("kept")]).durability(Durability::Buffered);
    block_on(store.store_batch(&Context::background(), buffered)).expect("stored");
    block_on(append(&store, &Context::background(), "lost")).expect_err("as planned");
    // What was buffered is owed a sync, which the failed commit forbids: closing fails, and says so to everybody.
    let other = store.clone();
    let closer = spawn(move || async move { other.close().await.map_err(|error| error.to_string()) });
    let mine = block_on(store.close()).map_err(|error| error.to_string());
    assert!(journal.look().is_dropped);
    assert!(mine.is_err());
    assert_eq!(join(closer), mine);
    assert_eq!(block_on(store.close()).map_err(|error| error.to_string()), mine, "and whoever comes later");
}

/// Fails if dropping does not wait for the writer.
fn drop_all_handles() {
    let (store, journal) = open(&[]);
    let droppers = ["a", "b"].map(|id| {
        let store = store.clone();
        spawn(move || async move {
            append(&store, &Context::background(), id).await.expect("stored");
        })
    });
    drop(store);
    droppers.into_iter().for_each(join);
    let journal = journal.look();
    assert!(journal.is_dropped, "rule L1: the last handle is dropped, and the store cannot be opened again yet");
    assert_eq!(journal.done, 2);
}

/// Fails if the writer is not woken by whoever comes first, or not waited for by each.
fn closer_and_dropper() {
    let (store, journal) = open(&[]);
    let other = store.clone();
    let dropper = spawn(move || async move {
        let result = append(&other, &Context::background(), "a").await;
        drop(other);
        result
    });
    let closer = spawn(move || async move {
        store.close().await.expect("closed");
        drop(store);
    });
    join(closer);
    let result = join(dropper);
    let journal = journal.look();
    assert!(journal.is_dropped);
    assert_accepted(&[result], journal.done);
}

/// Fails if closing begins only when its future is waited for, or goes on only then.
fn closer_leaves() {
    let (store, journal) = open(&[]);
    let (until, canceller) = cancelled_at_some_time();
    let other = store.clone();
    let leaving = spawn(move || async move { until.run(other.close()).await });
    if let Ok(closed) = join(leaving) {
        closed.expect("closed");
    }
    join(canceller);
    let late = block_on(append(&store, &Context::background(), "late"));
    assert!(matches!(late, Err(Error::Closed)), "{late:?}");
    while !journal.look().is_dropped {
        thread::yield_now(); // nobody waits for it, and it comes
    }
}

/// Fails if a waiter looks only at the head.
fn close_and_wait() {
    let (store, _) = open(&[]);
    let waiters = [0, 1].map(|_| {
        let store = store.clone();
        spawn(move || async move { store.wait_for_events(&Context::background(), Version::ZERO).await })
    });
    let other = store.clone();
    let appender = spawn(move || async move { append(&other, &Context::background(), "a").await });
    block_on(store.close()).expect("closed");
    for waiter in waiters {
        let woken = join(waiter);
        assert!(
            woken.as_ref().map_or_else(|error| matches!(error, Error::Closed), |head| *head == version(1)),
            "{woken:?}"
        );
    }
    let _ = join(appender);
}

/// Fails if a read takes for granted that the engine is there.
fn close_and_read() {
    let (store, journal) = open(&[]);
    block_on(append(&store, &Context::background(), "a")).expect("stored");
    let readers = [0, 1].map(|_| {
        let store = store.clone();
        spawn(move || async move { ids(&store).await })
    });
    block_on(store.close()).expect("closed");
    assert!(journal.look().is_dropped);
    for reader in readers {
        match join(reader) {
            Ok(ids) => assert_eq!(ids, ["a"]),
            Err(error) => assert!(matches!(error, Error::Closed), "{error}"),
        }
    }
    assert!(matches!(block_on(ids(&store)), Err(Error::Closed)));
}

/// Fails if maintenance is told anything but that the store is closed.
fn close_and_verify() {
    let (store, journal) = open(&[]);
    block_on(append(&store, &Context::background(), "a")).expect("stored");
    let other = store.clone();
    let verifying = spawn(move || async move { other.verify(&Context::background()).await });
    block_on(store.close()).expect("closed");
    assert!(journal.look().is_dropped);
    match join(verifying) {
        Ok(report) => assert!(report.is_clean()),
        Err(error) => assert!(matches!(error, Error::Closed), "{error}"),
    }
}

/// Fails if a panic ends the writer or whoever commits beside it, and if the writer leaves what it has staged.
fn close_after_failure(open: fn(&[Fate]) -> (Store, Journal), fate: Fate) {
    let (store, journal) = open(&[fate]);
    let appenders = ["a", "b", "c"].map(|id| {
        let store = store.clone();
        spawn(move || async move { append(&store, &Context::background(), id).await })
    });
    block_on(store.close()).expect("nothing is owed");
    let results = appenders.map(join);
    for result in &results {
        match (fate, result) {
            (_, Err(Error::Closed)) => {}
            (Fate::Full, Ok(_) | Err(Error::Full { .. })) => {}
            (Fate::Panics, Err(Error::OutcomeUnknown { .. } | Error::Fenced { .. })) => {}
            _ => panic!("{results:?}"),
        }
    }
    assert!(journal.look().is_dropped);
    assert_eq!(journal.left().len(), results.iter().flatten().count());
}

/// Fails if dropping waits for the writer on the writer's own thread.
fn dropped_on_writers_thread() {
    let (store, _) = open(&[]);
    InPlace::run(async move {
        append(&store, &Context::background(), "a").await.expect("stored");
        drop(store);
    });
    // The model ends when its threads have, the writer among them.
}

/// Fails if dropping waits for the writer on a thread for which the writer waits.
fn dropped_on_committing_thread() {
    let (store, _) = open_pipelined(&[]);
    let (until, canceller) = cancelled_at_some_time();
    let other = store.clone();
    // While he waits, the commit of the other is left to another thread.
    let leaving = spawn(move || async move {
        let ctx = Context::background();
        let _ = until.run(append(&other, &ctx, "b")).await;
    });
    InPlace::run(async move {
        append(&store, &Context::background(), "a").await.expect("stored");
        drop(store);
    });
    join(leaving);
    join(canceller);
}

/// An executor without a thread: whoever wakes its task also polls it.
struct InPlace(Mutex<State>);

enum State {
    Waits(Pin<Box<dyn Future<Output = ()> + Send>>),
    IsPolled { woken: bool },
    Done,
}

impl InPlace {
    fn run(task: impl Future<Output = ()> + Send + 'static) {
        Arc::new(InPlace(Mutex::new(State::Waits(Box::pin(task))))).wake();
    }

    fn set(&self, state: State) -> State {
        std::mem::replace(&mut *self.0.lock().expect("nobody panics in between"), state)
    }
}

impl Wake for InPlace {
    fn wake(self: Arc<Self>) {
        let mut state = self.set(State::IsPolled { woken: true });
        let waker = Waker::from(self.clone());
        while let State::Waits(mut task) = state {
            self.set(State::IsPolled { woken: false });
            let polled = task.as_mut().poll(&mut TaskContext::from_waker(&waker));
            if polled.is_ready() {
                drop(task);
                self.set(State::Done);
                return;
            }
            // Who has woken it meanwhile has left it to us.
            state = match self.set(State::Done) {
                State::IsPolled { woken: true } => State::Waits(task),
                _ => {
                    self.set(State::Waits(task));
                    return;
                }
            };
        }
        if matches!(state, State::Done) {
            self.set(State::Done);
        }
    }
}

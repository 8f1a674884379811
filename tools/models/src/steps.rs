//! That every order of steps is tried, and that the stand-ins in `sync` do what they stand for: a model is worth no more
//! than these.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use libtest_mimic::Trial;
use shuttle::future::block_on;

use crate::check::{all_orders, all_outcomes};
use crate::disk::{join, spawn};
use crate::sync::{AtomicU64, OnceLock, Ordering, Semaphore, mpsc, oneshot, thread, watch};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        all_outcomes("steps::an_atomic", atomic, &["1", "2"]),
        all_outcomes(
            "steps::a_semaphore",
            semaphore,
            &["[false, false]", "[false, true]", "[true, false]", "[true, true]"],
        ),
        all_outcomes("steps::a_channel", channel, &["[1, 2]", "[1]", "[]"]),
        all_outcomes("steps::an_answer", answer, &["not taken", "refused", "taken"]),
        all_orders("steps::an_answer_that_is_not_given", no_answer),
        all_outcomes("steps::a_watch", watching, &["0", "1"]),
        all_outcomes("steps::a_value_that_is_set_once", set_once, &["None, 1", "None, 2", "Some(1), 1", "Some(2), 2"]),
    ]
}

/// Two who add by reading and writing: now and then one addition is lost.
fn atomic() -> String {
    let count = Arc::new(AtomicU64::new(0));
    let other = count.clone();
    let add = |count: &AtomicU64| count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let adding = thread::spawn(move || add(&other));
    add(&count);
    join(adding);
    count.load(Ordering::Relaxed).to_string()
}

/// One permit for two, while somebody closes: each of them may be refused.
fn semaphore() -> String {
    let semaphore = Arc::new(Semaphore::new(1));
    let takers = [0, 1].map(|_| {
        let semaphore = semaphore.clone();
        spawn(move || async move { semaphore.acquire_owned().await.is_ok() })
    });
    semaphore.close();
    let had = takers.map(join);
    assert_eq!(semaphore.available_permits(), 1, "a permit is lost");
    format!("{had:?}")
}

/// What was sent before the channel was closed is received, and nothing else.
fn channel() -> String {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let sending = thread::spawn(move || [1, 2].map(|message| sender.send(message).is_ok()));
    let mut received: Vec<i32> = receiver.try_recv().into_iter().collect();
    receiver.close();
    received.extend(std::iter::from_fn(|| receiver.blocking_recv()));
    let sent = join(sending).into_iter().filter(|&sent| sent).count();
    assert_eq!(received.len(), sent);
    format!("{received:?}")
}

/// An answer that its receiver looks for once.
fn answer() -> String {
    let (sender, mut receiver) = oneshot::channel();
    let answering = thread::spawn(move || sender.send(1).is_ok());
    let looked = block_on(poll_fn(|cx| Poll::Ready(Pin::new(&mut receiver).poll(cx))));
    drop(receiver);
    let outcome = match (looked, join(answering)) {
        (Poll::Ready(Ok(1)), true) => "taken",
        (Poll::Pending, true) => "not taken",
        (Poll::Pending, false) => "refused",
        other => panic!("{other:?}"),
    };
    outcome.to_owned()
}

/// Nobody answers, and who waits for it is told.
fn no_answer() {
    let (sender, receiver) = oneshot::channel::<()>();
    let dropping = thread::spawn(move || drop(sender));
    assert!(block_on(receiver).is_err());
    join(dropping);
}

/// Whoever waits for a value gets it, whatever he saw before.
fn watching() -> String {
    let sender = Arc::new(watch::Sender::new(0));
    let (mut receiver, other) = (sender.subscribe(), sender.clone());
    let sending = thread::spawn(move || other.send_modify(|value| *value = 1));
    let before = *sender.borrow();
    assert_eq!(block_on(async { *receiver.wait_for(|&value| value == 1).await.expect("the sender lives") }), 1);
    join(sending);
    before.to_string()
}

fn set_once() -> String {
    let value = Arc::new(OnceLock::new());
    let setters = [1, 2].map(|mine| {
        let value = value.clone();
        thread::spawn(move || value.set(mine).is_ok())
    });
    let before = value.get().copied();
    let first = setters.map(join);
    assert_ne!(first[0], first[1], "one of them sets it");
    format!("{before:?}, {}", value.get().copied().unwrap_or_default())
}

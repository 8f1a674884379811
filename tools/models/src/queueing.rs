//! The queue's parts by themselves: tickets and room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eventstore_api::{Context, Error};
use libtest_mimic::Trial;

use crate::check::{all_outcomes, some_orders};
use crate::disk::{cancelled_at_some_time, join, spawn};
use crate::sync::{step, thread};
use crate::write::queue::{Room, Ticket, WithdrawOnDrop};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        all_outcomes(
            "queueing::a_request_is_staged_or_withdrawn_and_never_both",
            staged_or_withdrawn,
            &["staged: false, withdrawn: true", "staged: true, withdrawn: false"],
        ),
        all_outcomes(
            "queueing::an_append_that_is_dropped_is_staged_or_withdrawn",
            staged_or_dropped,
            &["staged: false, withdrawn: true", "staged: true, withdrawn: true"],
        ),
        some_orders("queueing::room_in_the_queue_is_given_back_exactly_once", room_is_given_back),
        some_orders("queueing::closing_the_queue_refuses_all_who_wait_for_room", closing_refuses),
    ]
}

/// Fails if the ticket looks before it writes instead of exchanging.
fn staged_or_withdrawn() -> String {
    race(|ticket| ticket.withdraw())
}

/// Fails if dropping does not withdraw.
fn staged_or_dropped() -> String {
    race(|ticket| {
        drop(WithdrawOnDrop(ticket.clone()));
        true
    })
}

fn race(withdraw: impl Fn(&Arc<Ticket>) -> bool) -> String {
    let ticket = Arc::new(Ticket::default());
    let writer = ticket.clone();
    let staged = thread::spawn(move || writer.stage());
    let withdrawn = withdraw(&ticket);
    let staged = join(staged);
    assert!(!ticket.stage() && !ticket.withdraw(), "it is decided, and stays so");
    format!("staged: {staged}, withdrawn: {withdrawn}")
}

/// Fails if a place has only one of its permits, and if one is forgotten instead of dropped.
fn room_is_given_back() {
    const REQUESTS: usize = 2;
    const BYTES: usize = 10;
    let room = Arc::new(Room::new(REQUESTS, BYTES));
    let inside = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let (ctx, canceller) = cancelled_at_some_time();
    // The third is larger than the queue; the fourth leaves at some time.
    let takers = [(2, None), (3, None), (1_000, None), (4, Some(ctx))].map(|(bytes, ctx)| {
        let (room, inside) = (room.clone(), inside.clone());
        spawn(move || async move {
            let ctx = ctx.unwrap_or_default();
            let Ok(place) = ctx.run(room.take(bytes)).await else { return };
            let place = place.expect("nobody closes it");
            let taken = bytes.min(BYTES);
            assert!(inside.0.fetch_add(1, Ordering::SeqCst) < REQUESTS, "more requests than there is room for");
            assert!(inside.1.fetch_add(taken, Ordering::SeqCst) + taken <= BYTES, "more bytes than there is room for");
            step();
            inside.0.fetch_sub(1, Ordering::SeqCst);
            inside.1.fetch_sub(taken, Ordering::SeqCst);
            drop(place);
        })
    });
    takers.into_iter().for_each(join);
    join(canceller);
    assert_eq!(room.taken(), (0, 0));
}

/// Fails if one of the two semaphores is not closed.
fn closing_refuses() {
    let room = Arc::new(Room::new(1, 10));
    let takers = [10, 3, 3].map(|bytes| {
        let room = room.clone();
        // Who has a place keeps it until all others are done, as a request that is being committed does.
        spawn(move || async move { Context::background().run(room.take(bytes)).await.expect("it does not end") })
    });
    room.close();
    let places = takers.map(join);
    let had_place = places.iter().filter(|place| place.is_ok()).count();
    assert!(had_place <= 1, "there is room for one request");
    assert!(places.iter().all(|place| matches!(place, Ok(_) | Err(Error::Closed))));
    drop(places);
    assert_eq!(room.taken(), (0, 0));
}

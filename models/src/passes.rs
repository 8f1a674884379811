//! The gate around LMDB's map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::Trial;

use crate::check::some_orders;
use crate::disk::join;
use crate::gate::{Gate, Pass};
use crate::sync::{step, thread};

pub(crate) fn models() -> Vec<Trial> {
    vec![
        some_orders("passes::nobody_is_inside_while_the_map_moves", nobody_inside),
        some_orders("passes::no_more_readers_are_inside_than_there_are_slots", no_more_than_slots),
        some_orders("passes::a_copy_in_the_way_makes_way_and_nobody_waits_for_ever", copy_makes_way),
        some_orders("passes::after_a_failed_move_everybody_is_refused_and_nobody_waits", failed_move),
    ]
}

/// A gate with a count of who is inside in it, and a place for each move.
struct Map {
    gate: Gate<u32>,
    inside: AtomicU32,
}

impl Map {
    fn new(max_readers: u32) -> Arc<Self> {
        Arc::new(Map { gate: Gate::new(0, max_readers), inside: AtomicU32::new(0) })
    }

    fn stay(&self, pass: Pass<'_, u32>) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let moves = *pass;
        step();
        assert_eq!(*pass, moves);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        drop(pass);
    }

    fn move_it(&self) {
        let moved = self.gate.alone(|moves| {
            assert_eq!(self.inside.load(Ordering::SeqCst), 0, "somebody is inside");
            step();
            assert_eq!(self.inside.load(Ordering::SeqCst), 0, "somebody came in");
            (Some(moves + 1), ())
        });
        moved.expect("not broken");
    }

    fn spawn(self: &Arc<Self>, work: impl FnOnce(&Map) + Send + 'static) -> thread::JoinHandle<()> {
        let map = self.clone();
        thread::spawn(move || work(&map))
    }
}

/// Fails if the passes of one kind are not waited for, and if the lock is given back before the change.
fn nobody_inside() {
    let map = Map::new(2);
    let threads = [
        map.spawn(|map| map.stay(map.gate.enter().expect("not broken"))),
        map.spawn(|map| map.stay(map.gate.enter_as_reader().expect("not broken"))),
        map.spawn(|map| map.stay(map.gate.enter_for_long().expect("not broken"))),
        map.spawn(Map::move_it),
    ];
    map.move_it();
    threads.into_iter().for_each(join);
    assert_eq!(*map.gate.enter().expect("not broken"), 2);
}

/// Fails if readers are not counted, and if one who leaves wakes nobody.
fn no_more_than_slots() {
    let map = Map::new(1);
    let reader = |map: &Map| {
        for _ in 0..2 {
            let pass = map.gate.enter_as_reader().expect("not broken");
            assert_eq!(map.inside.load(Ordering::SeqCst), 0, "two readers in one slot");
            map.stay(pass);
        }
    };
    let readers = [map.spawn(reader), map.spawn(reader), map.spawn(reader)];
    readers.into_iter().for_each(join);
}

/// Fails if a copy is not told to leave, if it gets in again before the map has moved, and if leaving wakes nobody.
fn copy_makes_way() {
    let map = Map::new(1);
    let copy = map.spawn(|map| {
        // As a copy, which begins again each time; and one that is never done before the map has moved twice.
        loop {
            let pass = map.gate.enter_for_long().expect("not broken");
            while *pass < 2 && !pass.is_in_the_way() {
                thread::yield_now();
            }
            if *pass == 2 {
                return map.stay(pass);
            }
        }
    });
    let reader = map.spawn(|map| map.stay(map.gate.enter_as_reader().expect("not broken")));
    let other = map.spawn(Map::move_it);
    map.move_it();
    [copy, reader, other].into_iter().for_each(join);
}

/// Fails if those who wait are not woken before the change.
fn failed_move() {
    let map = Map::new(1);
    let threads = [
        map.spawn(|map| drop(map.gate.enter())),
        map.spawn(|map| drop(map.gate.enter_as_reader())),
        map.spawn(|map| drop(map.gate.enter_for_long())),
        map.spawn(|map| drop(map.gate.alone(|moves| (Some(moves), ())))),
    ];
    map.gate.alone(|_| (None, ())).expect("nobody was before");
    assert!(map.gate.enter().is_err());
    threads.into_iter().for_each(join);
}

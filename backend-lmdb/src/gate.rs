use std::ops::Deref;

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Keeps something that many use at once and that must now and then be changed while nobody does: here the environment,
/// whose map moves when it grows, and which is closed and opened again when its file is replaced.
///
/// It is reached only through a [`Pass`], so that the compiler sees to it that nobody uses it without one. A thread that
/// holds a pass must not ask for another, nor to be [alone](Gate::alone).
#[derive(Debug)]
pub(crate) struct Gate<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    max_readers: u32,
}

#[derive(Debug)]
struct State<T> {
    /// `None` once a change has failed.
    inside: Option<T>,
    passes: u32,
    /// How many of the passes are readers'.
    readers: u32,
    /// How many of them may take long to come back.
    long: u32,
    /// Threads that want to be alone.
    want_to_be_alone: u32,
    /// How many of those let nobody in any more.
    closed_by: u32,
    /// Threads that wait for anything.
    waiting: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Short,
    Reader,
    Long,
}

/// A change has failed, and what was inside is gone.
#[derive(Debug)]
pub(crate) struct Broken;

impl<T: Clone> Gate<T> {
    pub(crate) fn new(inside: T, max_readers: u32) -> Self {
        let state = State {
            inside: Some(inside),
            passes: 0,
            readers: 0,
            long: 0,
            want_to_be_alone: 0,
            closed_by: 0,
            waiting: 0,
        };
        Gate { state: Mutex::new(state), changed: Condvar::new(), max_readers }
    }

    /// Waits until nobody is alone.
    pub(crate) fn enter(&self) -> Result<Pass<'_, T>, Broken> {
        self.admit(Kind::Short, |state| state.closed_by > 0)
    }

    /// Waits until nobody is alone and there is a place among the readers. Both take a moment: readers stay for one page.
    pub(crate) fn enter_as_reader(&self) -> Result<Pass<'_, T>, Broken> {
        self.admit(Kind::Reader, |state| state.closed_by > 0 || state.readers >= self.max_readers)
    }

    /// Waits until nobody wants to be alone, and may stay until somebody does: see [`Pass::is_in_the_way`].
    pub(crate) fn enter_for_long(&self) -> Result<Pass<'_, T>, Broken> {
        self.admit(Kind::Long, |state| state.want_to_be_alone > 0)
    }

    fn admit(&self, kind: Kind, blocked: impl Fn(&State<T>) -> bool) -> Result<Pass<'_, T>, Broken> {
        let mut state = self.wait_while(self.lock(), blocked);
        let inside = state.inside.clone().ok_or(Broken)?;
        state.passes += 1;
        state.readers += u32::from(kind == Kind::Reader);
        state.long += u32::from(kind == Kind::Long);
        Ok(Pass { inside, place: Place { gate: self, kind } })
    }

    /// Waits until those have left who may take long, then lets nobody in and waits for the others, and changes what is
    /// inside. A change that gives nothing back has failed: nobody gets in ever again.
    pub(crate) fn alone<R>(&self, change: impl FnOnce(T) -> (Option<T>, R)) -> Result<R, Broken> {
        let mut state = self.lock();
        state.want_to_be_alone += 1;
        let mut state = self.wait_while(state, |state| state.long > 0);
        state.closed_by += 1;
        let mut state = self.wait_while(state, |state| state.passes > 0);
        // Nobody gets in before the lock is given back, nor stays waiting should the change panic.
        state.want_to_be_alone -= 1;
        state.closed_by -= 1;
        self.changed.notify_all();
        let (inside, result) = change(state.inside.take().ok_or(Broken)?);
        state.inside = inside;
        Ok(result)
    }
}

impl<T> Gate<T> {
    fn wait_while<'a>(
        &self,
        mut state: MutexGuard<'a, State<T>>,
        blocked: impl Fn(&State<T>) -> bool,
    ) -> MutexGuard<'a, State<T>> {
        while blocked(&state) {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permission to use what is inside a [`Gate`], until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a, T, U = T> {
    // Dropped before the place is given back.
    inside: U,
    place: Place<'a, T>,
}

impl<'a, T, U> Pass<'a, T, U> {
    /// Turns what is inside into something that uses it.
    pub(crate) fn try_map<V, E>(self, map: impl FnOnce(U) -> Result<V, E>) -> Result<Pass<'a, T, V>, E> {
        let Pass { inside, place } = self;
        Ok(Pass { inside: map(inside)?, place })
    }

    /// Whether somebody wants to be alone: whoever stays for long should leave, and may come back.
    pub(crate) fn is_in_the_way(&self) -> bool {
        self.place.gate.lock().want_to_be_alone > 0
    }
}

impl<T, U> Deref for Pass<'_, T, U> {
    type Target = U;

    fn deref(&self) -> &U {
        &self.inside
    }
}

#[derive(Debug)]
struct Place<'a, T> {
    gate: &'a Gate<T>,
    kind: Kind,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.passes -= 1;
        state.readers -= u32::from(self.kind == Kind::Reader);
        state.long -= u32::from(self.kind == Kind::Long);
        let somebody_waits = state.waiting > 0;
        drop(state);
        if somebody_waits {
            self.gate.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_readers_than_allowed_are_inside_and_nobody_during_a_change() {
        let gate = Gate::new(0, 2);
        let (readers, others) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _pass = gate.enter_as_reader().expect("not broken");
                        assert!(readers.fetch_add(1, Ordering::SeqCst) < 2);
                        thread::yield_now();
                        readers.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for is_long in [false, true] {
                let (gate, others) = (&gate, &others);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let pass = if is_long { gate.enter_for_long() } else { gate.enter() };
                        let _pass = pass.expect("not broken");
                        others.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        others.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let changed = gate.alone(|count| {
                            assert_eq!(readers.load(Ordering::SeqCst) + others.load(Ordering::SeqCst), 0);
                            (Some(count + 1), ())
                        });
                        changed.expect("not broken");
                    }
                });
            }
        });
        assert_eq!(*gate.enter().expect("not broken"), 200);
    }

    #[test]
    fn nobody_enters_after_a_failed_change() {
        let gate = Gate::new((), 1);
        drop(gate.enter().expect("not broken"));
        assert_eq!(gate.alone(|()| (None, "gone")).expect("it was there"), "gone");
        assert!(gate.enter().is_err() && gate.enter_as_reader().is_err());
        assert!(gate.alone(|()| (Some(()), ())).is_err());
        let gate = Gate::new((), 1);
        catch_unwind(AssertUnwindSafe(|| gate.alone(|()| -> (Option<()>, ()) { panic!("in a test") })))
            .expect_err("panicked");
        assert!(gate.enter().is_err(), "and nobody waits for ever");
    }

    #[test]
    fn who_stays_is_told_to_leave_and_keeps_no_reader_out() {
        let gate = Gate::new(Arc::new(()), 1);
        let stays = gate.enter_for_long().expect("not broken");
        let stays = stays.try_map(|inside| Ok::<_, Broken>([inside])).expect("mapped");
        assert!(!stays.is_in_the_way());
        thread::scope(|scope| {
            let alone = scope.spawn(|| gate.alone(|inside| (Some(inside.clone()), Arc::strong_count(&inside))));
            while !stays.is_in_the_way() {
                thread::yield_now();
            }
            drop(gate.enter_as_reader().expect("nobody is alone yet"));
            drop(gate.enter().expect("nobody is alone yet"));
            let comes_back = scope.spawn(|| gate.enter_for_long().map(drop));
            thread::sleep(std::time::Duration::from_millis(10));
            assert!(!alone.is_finished() && !comes_back.is_finished());
            drop(stays);
            let count = alone.join().expect("no panic").expect("not broken");
            assert_eq!(count, 2, "what is inside and its clone; what a pass has is dropped before it is given back");
            comes_back.join().expect("no panic").expect("not broken");
        });
    }
}

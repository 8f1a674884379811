use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Lets a bounded number of readers look into the map, and nobody while it is being moved.
///
/// Every call that may touch the mapped memory, of whatever kind, happens inside a [`Pass`], or on the writer thread,
/// which is the only one that moves the map.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    max_readers: u32,
}

#[derive(Debug, Default)]
struct State {
    readers: u32,
    /// Threads that wait for a reader to leave or for the moving to end.
    waiting: u32,
    is_moving: bool,
    /// The map could not be moved and is gone: nobody may look into it again.
    is_broken: bool,
}

/// The map is gone.
#[derive(Debug)]
pub(crate) struct Broken;

impl Gate {
    pub(crate) fn new(max_readers: u32) -> Self {
        Gate { state: Mutex::default(), changed: Condvar::new(), max_readers }
    }

    /// Waits until the map stands still and fewer than `max_readers` look into it. Both take a moment: readers stay for
    /// one page.
    pub(crate) fn enter(&self) -> Result<Pass<'_>, Broken> {
        let mut state = self.wait_while(self.lock(), |state| state.is_moving || state.readers >= self.max_readers);
        if state.is_broken {
            return Err(Broken);
        }
        state.readers += 1;
        Ok(Pass(self))
    }

    /// Moves the map once nobody looks into it. If that fails, nobody ever will again.
    pub(crate) fn move_map<E>(&self, move_map: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut state = self.lock();
        state.is_moving = true;
        let mut state = self.wait_while(state, |state| state.readers > 0);
        let moved = move_map();
        state.is_moving = false;
        state.is_broken |= moved.is_err();
        self.changed.notify_all();
        moved
    }

    fn wait_while<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        blocked: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        while blocked(&state) {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permission to look into the map, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.readers -= 1;
        let somebody_waits = state.waiting > 0;
        drop(state);
        if somebody_waits {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_readers_than_allowed_are_inside_and_none_while_the_map_moves() {
        let gate = Gate::new(2);
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _pass = gate.enter().expect("not broken");
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..200 {
                let moved = gate.move_map(|| {
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                    Ok::<_, ()>(())
                });
                moved.expect("moved");
            }
        });
    }

    #[test]
    fn nobody_enters_after_a_failed_move() {
        let gate = Gate::new(1);
        drop(gate.enter().expect("not broken"));
        gate.move_map(|| Err(())).expect_err("failed");
        assert!(gate.enter().is_err());
    }
}

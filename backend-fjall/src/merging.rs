//! Threads of the engine merge tables, so that their number stays small.
//!
//! `lsm-tree` has its own leveled strategy. For ten million random keys, it rewrote each entry seven times; a strategy
//! composed of its single steps, as here, rewrote each entry twice. Levels 1, 3 and 5 have one run of tables that do
//! not overlap; levels 0, 2, 4 and 6 have several runs. When a level has many runs, they are merged into the one run of
//! the next level. What is already there first moves down one level unchanged. In the last level, all runs are merged
//! into one.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use eventstore_api::{Error, Result};
use eventstore_kv::{give_way, tell};
use lsm_tree::compaction::filter::Context;
use lsm_tree::compaction::{CompactionFilter, CompactionStrategy, Factory, ItemAccessor, MoveDown, PullDown, Verdict};
use lsm_tree::{AbstractTree, AnyTree, SequenceNumberCounter};

use crate::error::guard_writing;
use crate::files;

/// The number of runs of each tree that are merged into one. A look-up of an id skips most runs because of their
/// filters; a scan of an aggregate reads all runs.
const MERGED_RUNS: [usize; TREES] = [8, 4];

/// With this many tables in level 0, a checkpoint waits for merging.
const MOST_TABLES: usize = 24;

/// With this many runs in another level, a checkpoint waits. The limit of a tree is 255.
const MOST_RUNS: usize = 100;

/// Tables with a smaller mean size count as small.
const SMALL_TABLE: u64 = 1 << 20;

/// One for event ids, one for aggregates.
const TREES: usize = 2;

const LAST_LEVEL: u8 = 6;

/// The levels that each thread merges: new tables do not wait for the merging of old ones.
const LEVELS: [&[u8]; 2] = [&[0], &[2, 4, LAST_LEVEL]];

const MOMENT: Duration = Duration::from_millis(100);

/// The merging threads. They end when this is dropped.
pub(crate) struct Merging {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    trees: [AnyTree; TREES],
    seqno: SequenceNumberCounter,
    end: End,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of changes so far.
    changes: u64,
    /// For each thread, the last change that it has handled.
    done: [u64; LEVELS.len()],
    /// Why merging has stopped, until it is reported.
    failure: Option<Error>,
}

/// Whether merging must stop. As a compaction filter, it stops a merge at once.
#[derive(Clone, Default)]
pub(crate) struct End(Arc<AtomicBool>);

impl End {
    fn is_near(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Factory for End {
    fn name(&self) -> &str {
        "end"
    }

    fn make_filter(&self, _context: &Context) -> Box<dyn CompactionFilter> {
        Box::new(self.clone())
    }
}

impl CompactionFilter for End {
    fn filter_item(&mut self, _item: ItemAccessor<'_>, _context: &Context) -> lsm_tree::Result<Verdict> {
        match self.is_near() {
            true => Err(io::Error::from(io::ErrorKind::Interrupted).into()),
            false => Ok(Verdict::Keep),
        }
    }
}

impl Merging {
    /// Starts threads for trees with this filter.
    pub(crate) fn start(trees: [AnyTree; TREES], seqno: SequenceNumberCounter, end: End) -> Result<Self> {
        let state = Mutex::new(State { changes: 1, ..State::default() });
        let shared = Arc::new(Shared { trees, seqno, end, state, changed: Condvar::new() });
        let mut merging = Merging { shared, threads: Vec::new() };
        for place in 0..LEVELS.len() {
            let shared = Arc::clone(&merging.shared);
            let merge = move || {
                give_way();
                shared.run(place);
            };
            let thread = thread::Builder::new().name("fjall-merging".to_owned()).spawn(merge);
            merging.threads.push(thread.map_err(|error| Error::engine("start a compaction thread", error))?);
        }
        Ok(merging)
    }

    /// Notifies the threads of new tables.
    pub(crate) fn wake(&self) {
        self.shared.change(|state| state.changes += 1);
    }

    /// Waits until there are not too many tables, or returns why they could not be merged.
    pub(crate) fn wait_for_room(&self) -> Result<()> {
        let has_room = |tree: &AnyTree| {
            tables_of(tree, 0) < MOST_TABLES && (1..=LAST_LEVEL).all(|level| runs_of(tree, level) < MOST_RUNS)
        };
        while !self.wait(|trees| trees.iter().all(has_room))? {}
        Ok(())
    }

    /// Waits briefly for the threads. Returns whether all their work is done.
    pub(crate) fn wait_for_end(&self) -> Result<bool> {
        self.wait(|_| false)
    }

    /// Waits briefly. Returns whether it is enough or all work is done.
    fn wait(&self, is_enough: impl Fn(&[AnyTree]) -> bool) -> Result<bool> {
        let is_over = |state: &State| {
            let is_done = state.done.iter().all(|&done| done == state.changes);
            state.failure.is_some() || is_done || is_enough(&self.shared.trees)
        };
        let waiting = self.shared.changed.wait_timeout_while(self.shared.lock(), MOMENT, |state| !is_over(state));
        let (mut state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        match state.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(is_over(&state)),
        }
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        self.shared.end.0.store(true, Ordering::Relaxed);
        self.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tell!(error, "a thread that merges fjall's tables has panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn run(&self, place: usize) {
        while !self.end.is_near() {
            let is_idle = |state: &mut State| state.done[place] == state.changes && !self.end.is_near();
            let state = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
            let changes = state.changes;
            drop(state);
            let failure = LEVELS[place].iter().try_for_each(|&level| self.merge(level)).err();
            self.change(|state| {
                state.done[place] = changes;
                state.failure = failure.filter(|_| !self.end.is_near()).or(state.failure.take());
            });
        }
    }

    /// Merges a level until it has few runs.
    fn merge(&self, level: u8) -> Result<()> {
        for (tree, merged_runs) in self.trees.iter().zip(MERGED_RUNS) {
            while !self.end.is_near() && guard_writing("merge tables", || self.step(tree, level, merged_runs))? {
                self.change(|state| state.changes += 1);
            }
        }
        Ok(())
    }

    /// Moves or merges tables. Returns whether it did.
    fn step(&self, tree: &AnyTree, level: u8, merged_runs: usize) -> lsm_tree::Result<bool> {
        // Tables that do not overlap count as one run, however many and small they are.
        let is_counted = level <= 2 || are_small(tree, level);
        let runs = if is_counted { tables_of(tree, level) } else { runs_of(tree, level) };
        if runs < merged_runs {
            return Ok(false);
        }
        let strategy: Arc<dyn CompactionStrategy> = match level {
            LAST_LEVEL => Arc::new(PullDown(LAST_LEVEL, LAST_LEVEL)),
            _ if tables_of(tree, level + 1) > 0 => Arc::new(MoveDown(level + 1, level + 2)),
            _ => Arc::new(PullDown(level, level + 1)),
        };
        let before = tree.current_version().id();
        // Old entries are never read: all entries of a key are the same.
        tree.compact(strategy, self.seqno.get())?;
        files::share(&tree.tree_config().path)?;
        Ok(tree.current_version().id() != before)
    }
}

fn tables_of(tree: &AnyTree, level: u8) -> usize {
    tree.level_table_count(level.into()).unwrap_or_default()
}

/// Whether the tables of a level are so small that they are merged although they do not overlap. Otherwise, ascending
/// keys with a few entries at each opening would create more and more of them. Merging rewrites a level of small tables
/// only.
fn are_small(tree: &AnyTree, level: u8) -> bool {
    let size = tree.current_version().level(level.into()).map_or(0, |level| level.size());
    size < SMALL_TABLE * tables_of(tree, level) as u64
}

fn runs_of(tree: &AnyTree, level: u8) -> usize {
    tree.current_version().level(level.into()).map_or(0, |level| level.run_count())
}

//! Model checks: the store's own sources, run in many orders of their threads and tasks.
//!
//! `eventstore-kv` takes everything in which threads meet from its module `sync`. Here the same source files are compiled
//! once more over another `sync`, in which [`shuttle`] decides at each step who goes on. A model is a small program over
//! these sources; it is run with thousands of schedules, and where it is small enough with all of them. A schedule in which
//! everybody waits is a failure like any other, so a lost wake-up cannot hide.
//!
//! ```console
//! $ cargo test -p models                              # every model, as a test of its name
//! $ EVENTSTORE_MODEL_RUNS=100000 cargo test -p models # for longer
//! ```
//!
//! A failure prints its schedule. `EVENTSTORE_MODEL_SCHEDULE=… cargo test -p models -- --exact NAME` runs it again.
//!
//! # What is modelled
//!
//! The queue with its room and its tickets, the writer with its groups, the thread that commits beside it, the jobs that
//! write the index, what they share with handles and readers, and the append, reading, waiting, closing and dropping of
//! `KvStore`. A step is one use of a lock, an atomic, a channel, a semaphore or a thread, and the beginning and end of a
//! write and of a sync of the log, and of a write to the index. Locks, atomics and threads are shuttle's, and each job in
//! the background has a thread of its own. Tokio's channels and semaphore are the real ones with a step in front: what
//! happens inside them is Tokio's to check, and it does. Clocks do not run: whether an instant has passed is drawn anew
//! each time.
//!
//! # What is not
//!
//! Weak memory: each step is seen by all others at once. The atomics of the store do not depend on more: a ticket decides
//! by one exchange and publishes nothing else, and the counters of [`Stats`](eventstore_api::Stats) are only added to.
//! Deadlines and blocking threads of a Tokio runtime: a model has none, so a page is read where its caller runs. The log:
//! it is the real one, over a disk in memory that does at its writes and syncs what the model plans. Its own locks are taken
//! in one step, but for that of a sync, for which others wait outside. Engines: the one here keeps its tables in memory, and
//! fails as planned.

#![forbid(unsafe_code)]
// The sources are used in part, and what is public there is not here.
#![allow(dead_code, unreachable_pub)]

#[macro_use(tell)]
extern crate real_log;

use std::process::ExitCode;

use libtest_mimic::Arguments;

mod appends;
mod check;
mod closing;
mod disk;
mod indexing;
mod log;
mod queueing;
mod reading;
mod steps;
mod sync;

#[path = "../../../eventstore-kv/src/engine.rs"]
mod engine;
#[path = "../../../eventstore-kv/src/error.rs"]
mod error;
#[path = "../../../eventstore-kv/src/files/mod.rs"]
mod files;
#[path = "../../../eventstore-kv/src/format/mod.rs"]
mod format;
#[path = "../../../eventstore-kv/src/index/mod.rs"]
mod index;
#[path = "../../../eventstore-kv/src/memory.rs"]
mod memory;
#[path = "../../../eventstore-kv/src/observe.rs"]
mod observe;
#[path = "../../../eventstore-kv/src/options.rs"]
mod options;
#[path = "../../../eventstore-kv/src/read/mod.rs"]
mod read;
#[path = "../../../eventstore-kv/src/shared.rs"]
mod shared;
#[path = "../../../eventstore-kv/src/store.rs"]
mod store;
#[path = "../../../eventstore-kv/src/task.rs"]
mod task;
#[path = "../../../eventstore-kv/src/url.rs"]
mod url;
#[path = "../../../eventstore-kv/src/write/mod.rs"]
mod write;

// What those sources expect in the root of their crate.
use files::directory::StoreDirectory;
use options::StoreOptions;
use store::KvStore;
use task::Task;

// And in that of the log's.
extern crate self as eventstore_log;
pub(crate) use log::*;

/// Runs the models that the command line names, or all of them.
#[must_use]
pub fn run() -> ExitCode {
    let models = [
        steps::models(),
        queueing::models(),
        appends::models(),
        reading::models(),
        closing::models(),
        indexing::models(),
    ];
    libtest_mimic::run(&Arguments::from_args(), models.into_iter().flatten().collect()).exit_code()
}

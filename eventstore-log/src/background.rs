//! The process's threads for work that no caller waits for.
//!
//! They are started as work comes, and end when there has been none for a second: a process with a thousand idle logs has
//! no thread for any of them.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(1);

static POOL: Pool =
    Pool { queue: Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 }), wake: Condvar::new() };

struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

struct Job {
    name: &'static str,
    work: Box<dyn FnOnce() + Send>,
    done: Arc<Done>,
}

#[derive(Default)]
struct Done {
    is_done: Mutex<bool>,
    wake: Condvar,
}

/// A job. Dropping it leaves the job alone.
pub struct Handle(Arc<Done>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("is_finished", &self.is_finished()).finish()
    }
}

impl Handle {
    /// Waits for the end of the job, even if that is a panic.
    pub fn wait(self) {
        let mut is_done = lock(&self.0.is_done);
        while !*is_done {
            is_done = self.0.wake.wait(is_done).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the job has ended.
    pub fn is_finished(&self) -> bool {
        *lock(&self.0.is_done)
    }
}

/// Lets a job run on another thread, soon. Its name is for what is logged about it.
pub fn spawn(name: &'static str, job: impl FnOnce() + Send + 'static) -> Handle {
    let done = Arc::<Done>::default();
    let mut queue = lock(&POOL.queue);
    queue.jobs.push_back(Job { name, work: Box::new(job), done: Arc::clone(&done) });
    if queue.idle >= queue.jobs.len() {
        POOL.wake.notify_one();
    } else {
        // Without a limit: a commit may wait for the space that another job makes.
        start_thread(queue);
    }
    Handle(done)
}

fn start_thread(mut queue: MutexGuard<'_, Queue>) {
    queue.threads += 1;
    drop(queue);
    if let Err(error) = thread::Builder::new().name("eventstore-work".to_owned()).spawn(run) {
        tracing::warn!(%error, "no thread could be started; work is done by those there are");
        let mut queue = lock(&POOL.queue);
        queue.threads -= 1;
        let is_alone = queue.threads == 0;
        let job = if is_alone { queue.jobs.pop_front() } else { None };
        drop(queue);
        job.into_iter().for_each(Job::run);
    }
}

fn run() {
    let mut queue = lock(&POOL.queue);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job.run();
            queue = lock(&POOL.queue);
            continue;
        }
        queue.idle += 1;
        let (woken, timeout) = POOL.wake.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
        queue = woken;
        queue.idle -= 1;
        if timeout.timed_out() && queue.jobs.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}

impl Job {
    fn run(self) {
        if catch_unwind(AssertUnwindSafe(self.work)).is_err() {
            tracing::error!(name = self.name, "work in the background panicked");
        }
        *lock(&self.done.is_done) = true;
        self.done.wake.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let (to_first, first) = mpsc::channel();
        let (to_second, second) = mpsc::channel();
        let waits = spawn("first", move || to_second.send(first.recv().expect("sent")).expect("sent"));
        spawn("second", move || to_first.send(7).expect("sent")).wait();
        waits.wait();
        assert_eq!(second.recv(), Ok(7));
    }

    #[test]
    fn a_panic_is_an_end() {
        let handle = spawn("panics", || panic!("on purpose"));
        let Handle(done) = &handle;
        let same = Handle(Arc::clone(done));
        handle.wait();
        assert!(same.is_finished());
    }
}

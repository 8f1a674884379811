//! The process's threads for background work, which no caller waits for.
//!
//! Threads start on demand and end after one second without work: a process with a thousand idle logs has no thread for
//! any of them. Low-priority work has its own threads, which on Linux yield to all others, so that it does not delay
//! appends.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(1);

static NORMAL: Pool = Pool::new("eventstore-work", false);
static LOW: Pool = Pool::new("eventstore-low", true);

/// Next to a thread of normal priority, one of low priority gets about a third of the processor.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 4;

struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The name of its threads.
    name: &'static str,
    gives_way: bool,
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

/// A handle to a job. Dropping it does not stop the job.
pub struct Handle(Arc<Done>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("is_finished", &self.is_finished()).finish()
    }
}

impl Handle {
    /// Waits until the job ends, even by a panic.
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

/// Runs a job on another thread, soon. Its name is used in logs.
pub fn spawn(name: &'static str, job: impl FnOnce() + Send + 'static) -> Handle {
    NORMAL.spawn(name, job)
}

/// Like [`spawn`], for a job that yields to all other work of the machine.
pub fn spawn_low(name: &'static str, job: impl FnOnce() + Send + 'static) -> Handle {
    LOW.spawn(name, job)
}

/// Spins for a moment, for a thread that expects work soon: a wake-up takes about as long as a sync of a fast disk. It does not
/// yield if there is another processor: a thread of low priority could then occupy this one for milliseconds.
pub fn linger() {
    static HAS_OTHERS: LazyLock<bool> =
        LazyLock::new(|| thread::available_parallelism().is_ok_and(|all| all.get() > 1));
    if *HAS_OTHERS { std::hint::spin_loop() } else { thread::yield_now() }
}

impl Pool {
    const fn new(name: &'static str, gives_way: bool) -> Self {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 });
        Pool { queue, wake: Condvar::new(), name, gives_way }
    }

    fn spawn(&'static self, name: &'static str, job: impl FnOnce() + Send + 'static) -> Handle {
        let done = Arc::<Done>::default();
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(Job { name, work: Box::new(job), done: Arc::clone(&done) });
        if queue.idle >= queue.jobs.len() {
            self.wake.notify_one();
        } else {
            // The number of threads is not limited: a commit may wait for space that another job makes.
            self.start_thread(queue);
        }
        Handle(done)
    }

    fn start_thread(&'static self, mut queue: MutexGuard<'_, Queue>) {
        queue.threads += 1;
        drop(queue);
        if let Err(error) = thread::Builder::new().name(self.name.to_owned()).spawn(|| self.run()) {
            tell!(warn, %error, "no thread could be started; work is done by those there are");
            let mut queue = lock(&self.queue);
            queue.threads -= 1;
            let is_alone = queue.threads == 0;
            let job = if is_alone { queue.jobs.pop_front() } else { None };
            drop(queue);
            job.into_iter().for_each(Job::run);
        }
    }

    fn run(&self) {
        if self.gives_way {
            give_way();
        }
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = lock(&self.queue);
                continue;
            }
            queue.idle += 1;
            let (woken, timeout) = self.wake.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

/// Lowers the priority of this thread to that of [`spawn_low`] for good, where the system has priorities for threads.
pub fn give_way() {
    #[cfg(target_os = "linux")]
    {
        // The kernel sets the priority of a single thread by its id. On failure, the thread keeps its priority.
        let thread = Some(rustix::thread::gettid());
        let is = rustix::process::getpriority_process(thread).unwrap_or(0);
        let _ = rustix::process::setpriority_process(thread, is + NICENESS);
    }
}

impl Job {
    fn run(self) {
        if catch_unwind(AssertUnwindSafe(self.work)).is_err() {
            tell!(error, name = self.name, "work in the background panicked");
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

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_of_low_priority_give_way_and_others_do_not() {
        let niceness = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).expect("it is there");
        let (send, receive) = mpsc::channel();
        let (also_send, here) = (send.clone(), niceness());
        spawn("normal", move || send.send(niceness()).expect("waited for")).wait();
        assert_eq!(receive.recv(), Ok(here));
        spawn_low("low", move || also_send.send(niceness()).expect("waited for")).wait();
        assert_eq!(receive.recv(), Ok((here + NICENESS).min(19)));
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

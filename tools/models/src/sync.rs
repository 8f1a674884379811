//! What the sources take from their `sync`, with a step in front of every use: [`shuttle`] then decides who goes on.
//!
//! What tokio has is tokio's own: each stand-in hands on to it. A step comes before the use, and before what dropping
//! something does to others. One more comes after a future that is not ready, because whoever polls it may look at
//! something else next.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync as real;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::rand::Rng;
use tokio::sync as tokio_sync;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub(crate) use shuttle::sync::mpsc::{Receiver, SyncSender, sync_channel};
pub(crate) use shuttle::sync::{
    Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
pub(crate) use shuttle::thread;

/// Others may go on here.
pub(crate) fn step() {
    // Not while a panic unwinds the stack: its thread is not to be left then.
    if !real_panicking() {
        thread::sleep(Duration::ZERO); // to shuttle, whose clocks do not run, a step and nothing more
    }
}

fn real_panicking() -> bool {
    std::thread::panicking()
}

/// As `eventstore_log::background`, as far as it is used: each job has a thread of its own, which ends with it.
pub(crate) mod background {
    use super::thread;

    pub(crate) fn spawn(_: &'static str, job: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
        thread::spawn(job)
    }

    pub(crate) fn spawn_low(name: &'static str, job: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
        spawn(name, job)
    }
}

/// Whether the clock has come to this instant: nobody can know.
pub(crate) fn is_past(_: Instant) -> bool {
    shuttle::rand::thread_rng().r#gen()
}

/// Lets others go on.
pub(crate) fn linger() {
    thread::yield_now();
}

/// A field that is dropped before those behind it, with a step.
#[derive(Debug)]
struct StepOnDrop;

impl Drop for StepOnDrop {
    fn drop(&mut self) {
        step();
    }
}

/// A step before each look at the future, and after one in vain.
async fn stepwise<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| poll_stepwise(future.as_mut(), cx)).await
}

fn poll_stepwise<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    step();
    let polled = future.poll(cx);
    if polled.is_pending() {
        step();
    }
    polled
}

/// As `std::sync::OnceLock`, as far as it is used.
pub(crate) struct OnceLock<T>(real::OnceLock<T>);

impl<T> OnceLock<T> {
    pub(crate) const fn new() -> Self {
        OnceLock(real::OnceLock::new())
    }

    pub(crate) fn get(&self) -> Option<&T> {
        step();
        self.0.get()
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        step();
        self.0.set(value)
    }

    /// In `make` nobody may step.
    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        step();
        self.0.get_or_init(make)
    }
}

/// As tokio's, as far as it is used.
pub(crate) struct Semaphore(real::Arc<tokio_sync::Semaphore>);

/// As tokio's.
#[derive(Debug)]
pub(crate) struct OwnedSemaphorePermit {
    _step: StepOnDrop,
    _permit: tokio_sync::OwnedSemaphorePermit,
}

impl Semaphore {
    pub(crate) fn new(permits: usize) -> Self {
        Semaphore(real::Arc::new(tokio_sync::Semaphore::new(permits)))
    }

    pub(crate) async fn acquire_owned(self: real::Arc<Self>) -> Result<OwnedSemaphorePermit, tokio_sync::AcquireError> {
        self.acquire_many_owned(1).await
    }

    pub(crate) async fn acquire_many_owned(
        self: real::Arc<Self>,
        permits: u32,
    ) -> Result<OwnedSemaphorePermit, tokio_sync::AcquireError> {
        let permit = stepwise(self.0.clone().acquire_many_owned(permits)).await?;
        Ok(OwnedSemaphorePermit { _step: StepOnDrop, _permit: permit })
    }

    pub(crate) fn close(&self) {
        step();
        self.0.close();
    }

    pub(crate) fn available_permits(&self) -> usize {
        step();
        self.0.available_permits()
    }
}

/// As `tokio::sync::mpsc`, as far as it is used.
pub(crate) mod mpsc {
    use super::{StepOnDrop, block_on, step, tokio_sync};
    use tokio_sync::mpsc;

    pub(crate) fn unbounded_channel<T>() -> (UnboundedSender<T>, UnboundedReceiver<T>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (UnboundedSender { _step: StepOnDrop, sender }, UnboundedReceiver { _step: StepOnDrop, receiver })
    }

    pub(crate) struct UnboundedSender<T> {
        _step: StepOnDrop,
        sender: mpsc::UnboundedSender<T>,
    }

    impl<T> Clone for UnboundedSender<T> {
        fn clone(&self) -> Self {
            UnboundedSender { _step: StepOnDrop, sender: self.sender.clone() }
        }
    }

    impl<T> UnboundedSender<T> {
        pub(crate) fn send(&self, message: T) -> Result<(), mpsc::error::SendError<T>> {
            step();
            self.sender.send(message)
        }
    }

    pub(crate) struct UnboundedReceiver<T> {
        _step: StepOnDrop,
        receiver: mpsc::UnboundedReceiver<T>,
    }

    impl<T> UnboundedReceiver<T> {
        pub(crate) fn try_recv(&mut self) -> Result<T, mpsc::error::TryRecvError> {
            step();
            self.receiver.try_recv()
        }

        pub(crate) fn blocking_recv(&mut self) -> Option<T> {
            step();
            block_on(self.receiver.recv())
        }

        pub(crate) fn close(&mut self) {
            step();
            self.receiver.close();
        }

        pub(crate) fn len(&self) -> usize {
            step();
            self.receiver.len()
        }
    }
}

/// As `tokio::sync::oneshot`, as far as it is used.
pub(crate) mod oneshot {
    use super::{Context, Future, Pin, Poll, StepOnDrop, poll_stepwise, tokio_sync};
    use tokio_sync::oneshot;

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Sender { step: StepOnDrop, sender }, Receiver { _step: StepOnDrop, receiver })
    }

    pub(crate) struct Sender<T> {
        step: StepOnDrop,
        sender: oneshot::Sender<T>,
    }

    impl<T> Sender<T> {
        pub(crate) fn send(self, value: T) -> Result<(), T> {
            let Sender { step, sender } = self;
            drop(step);
            sender.send(value)
        }
    }

    pub(crate) struct Receiver<T> {
        _step: StepOnDrop,
        receiver: oneshot::Receiver<T>,
    }

    impl<T> Future for Receiver<T> {
        type Output = Result<T, oneshot::error::RecvError>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            poll_stepwise(Pin::new(&mut self.receiver), cx)
        }
    }
}

/// As `tokio::sync::watch`, as far as it is used. Whoever takes a step with a `Ref` in hand keeps the sender from going on:
/// the model stands still then, as the store would.
pub(crate) mod watch {
    use super::{step, stepwise, tokio_sync};
    use tokio_sync::watch;

    pub(crate) struct Sender<T>(watch::Sender<T>);

    impl<T> Sender<T> {
        pub(crate) fn new(value: T) -> Self {
            Sender(watch::Sender::new(value))
        }

        pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
            step();
            self.0.borrow()
        }

        pub(crate) fn subscribe(&self) -> Receiver<T> {
            step();
            Receiver(self.0.subscribe())
        }

        pub(crate) fn send_modify(&self, modify: impl FnOnce(&mut T)) {
            step();
            self.0.send_modify(modify);
        }

        pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            step();
            self.0.send_if_modified(modify)
        }
    }

    pub(crate) struct Receiver<T>(watch::Receiver<T>);

    impl<T> Receiver<T> {
        pub(crate) async fn wait_for(
            &mut self,
            condition: impl FnMut(&T) -> bool,
        ) -> Result<watch::Ref<'_, T>, watch::error::RecvError> {
            stepwise(self.0.wait_for(condition)).await
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! Running things at the same time, without sleeping.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use tokio::task::JoinHandle;

use crate::failure::{Checked, Failure};

/// Runs all of them at the same time, each as a task, and waits for all.
pub(crate) async fn at_once<F>(futures: impl IntoIterator<Item = F>) -> Checked<Vec<F::Output>>
where
    F: Future<Output: Send> + Send + 'static,
{
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut outputs = Vec::with_capacity(tasks.len());
    for task in tasks {
        outputs.push(joined(task).await?);
    }
    Ok(outputs)
}

/// The same for parts of a check, of which none may fail.
pub(crate) async fn all_at_once<F, T>(futures: impl IntoIterator<Item = F>) -> Checked<Vec<T>>
where
    F: Future<Output = Checked<T>> + Send + 'static,
    T: Send + 'static,
{
    Background::start(futures).finish().await
}

pub(crate) async fn joined<T>(task: JoinHandle<T>) -> Checked<T> {
    task.await.map_err(|error| Failure::elsewhere(format!("a task of the check did not end well: {error}")))
}

/// Parts of a check that go on while the check does something else.
pub(crate) struct Background<T>(Vec<JoinHandle<Checked<T>>>);

impl<T: Send + 'static> Background<T> {
    /// Starts all of them, each as a task.
    pub(crate) fn start<F>(futures: impl IntoIterator<Item = F>) -> Self
    where
        F: Future<Output = Checked<T>> + Send + 'static,
    {
        Background(futures.into_iter().map(tokio::spawn).collect())
    }

    /// Whether one of them has still something to do.
    pub(crate) fn is_running(&self) -> bool {
        self.0.iter().any(|task| !task.is_finished())
    }

    /// Waits for all, of which none may have failed.
    pub(crate) async fn finish(self) -> Checked<Vec<T>> {
        let mut outputs = Vec::with_capacity(self.0.len());
        for task in self.0 {
            outputs.push(joined(task).await??);
        }
        Ok(outputs)
    }
}

/// Polls a future this many times, then drops it. `None` if it was not finished.
///
/// Other tasks get their turn between the polls.
pub(crate) async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..times {
        let polled = std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        });
        if let Some(output) = polled.await {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Polls a future this many times, then does something, then waits for it to finish.
pub(crate) async fn interrupted<F: Future>(times: usize, future: F, interrupt: impl FnOnce()) -> F::Output {
    let mut future = pin!(future);
    if let Some(output) = polled(times, future.as_mut()).await {
        return output;
    }
    interrupt();
    future.await
}

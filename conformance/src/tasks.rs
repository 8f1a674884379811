//! Runs things concurrently, without sleeping.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use eventstore_api::{CancellationToken, Context, Error};
use tokio::task::JoinHandle;

use crate::failure::{Checked, Failure};

/// Runs all of them concurrently, each as a task, and waits for all.
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

/// The same for parts of a check, none of which may fail.
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

/// Parts of a check that run while the check does something else.
pub(crate) struct Background<T>(Vec<JoinHandle<Checked<T>>>);

impl<T: Send + 'static> Background<T> {
    /// Starts all of them, each as a task.
    pub(crate) fn start<F>(futures: impl IntoIterator<Item = F>) -> Self
    where
        F: Future<Output = Checked<T>> + Send + 'static,
    {
        Background(futures.into_iter().map(tokio::spawn).collect())
    }

    /// Whether any of them is still running.
    pub(crate) fn is_running(&self) -> bool {
        self.0.iter().any(|task| !task.is_finished())
    }

    /// Waits for all of them. None may have failed.
    pub(crate) async fn finish(self) -> Checked<Vec<T>> {
        let mut outputs = Vec::with_capacity(self.0.len());
        for task in self.0 {
            outputs.push(joined(task).await??);
        }
        Ok(outputs)
    }
}

/// Polls a future this many times, then drops it. `None` if it did not finish.
///
/// Other tasks run between the polls.
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

/// How a call is ended before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Dropped,
    Cancelled,
    Expired,
}

/// A point in the execution of a future.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// How often it was polled without finishing.
    polls: usize,
    /// Whether it has been woken since then: it may already hold what it waited for.
    woken: bool,
}

/// No call has more await points, unless it polls itself forever.
const MOST_POLLS: usize = 10_000;

/// Repeats a call, ending it at another point each time: in each of the three ways, at each poll that finds it
/// unfinished, and when it was woken after that. Stops when the call finishes before it can be ended.
///
/// `call` makes the call with this number. `each` gets its result: `None` if its future was dropped.
pub(crate) async fn end_everywhere<T, F>(
    mut call: impl FnMut(usize, Context) -> F,
    mut each: impl AsyncFnMut(usize, Ending, Option<Result<T, Error>>) -> Checked,
) -> Checked
where
    F: Future<Output = Result<T, Error>>,
{
    let mut number = 0;
    for ending in [Ending::Dropped, Ending::Cancelled, Ending::Expired] {
        let mut patience = Duration::from_millis(5);
        let (mut polls, mut woken) = (0, false);
        loop {
            ensure!(polls < MOST_POLLS, "a call is not done after {polls} polls, each of them after it was woken");
            let token = CancellationToken::new();
            let deadline = Instant::now() + patience;
            let ctx = match ending {
                Ending::Dropped => Context::background(),
                Ending::Cancelled => Context::background().with_cancellation(token.clone()),
                Ending::Expired => Context::background().with_deadline(deadline),
            };
            let mut future = Box::pin(call(number, ctx));
            let done = until(future.as_mut(), Moment { polls, woken }).await;
            let is_done = done.is_some();
            let outcome = match (done, ending) {
                (Some(outcome), _) => Some(outcome),
                (None, Ending::Dropped) => {
                    drop(future);
                    None
                }
                (None, Ending::Cancelled) => {
                    token.cancel();
                    Some(future.await)
                }
                (None, Ending::Expired) => {
                    tokio::time::sleep_until(deadline.into()).await;
                    Some(future.await)
                }
            };
            let too_early =
                is_done && matches!(outcome, Some(Err(Error::DeadlineExceeded | Error::OutcomeUnknown { .. })));
            each(number, ending, outcome).await?;
            number += 1;
            match (is_done, woken) {
                // The same point again, with enough time to reach it.
                (true, _) if too_early && ending == Ending::Expired => patience *= 2,
                (true, _) => break,
                (false, false) => woken = true,
                (false, true) => (polls, woken) = (polls + 1, false),
            }
        }
    }
    Ok(())
}

/// Drives a future to this point; `None` if it got there without finishing. It is polled only after it was woken, so
/// that each poll makes progress.
async fn until<F: Future>(mut future: Pin<&mut F>, moment: Moment) -> Option<F::Output> {
    let mut polls = 0;
    std::future::poll_fn(|cx| {
        if polls == moment.polls {
            return Poll::Ready(None);
        }
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                polls += 1;
                if polls == moment.polls && !moment.woken { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    })
    .await
}

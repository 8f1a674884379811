use std::future::{Future, pending};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::{Error, Progress, Result};

/// How long a call may take, who may stop it, and who is told how far it has come: a deadline, a cancellation token and
/// a [`Progress`], all optional.
///
/// Every operation takes one. What a deadline or a cancellation means for an append depends on how far the append has
/// come, and the error tells: [`Error::Cancelled`] and [`Error::DeadlineExceeded`] say that certainly nothing was
/// written, [`Error::OutcomeUnknown`] says that it may have been (rules C1 to C3). No minimum of time left is demanded
/// (rule C6).
///
/// A context with a deadline needs a Tokio runtime with its timer enabled; one without works on any executor.
///
/// # Clone
///
/// Cheap. Clones share the cancellation token and the progress, and have the same deadline.
///
/// ```
/// use std::time::Duration;
/// use eventstore_api::{CancellationToken, Context};
///
/// let stop = CancellationToken::new();
/// let ctx = Context::background().with_timeout(Duration::from_millis(500)).with_cancellation(stop.clone());
/// assert!(ctx.check().is_ok());
/// stop.cancel();
/// assert!(ctx.check().is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Context {
    deadline: Option<Instant>,
    cancellation: Option<CancellationToken>,
    progress: Progress,
}

impl Context {
    /// A context without a deadline that nobody cancels.
    #[must_use]
    pub const fn background() -> Self {
        Context { deadline: None, cancellation: None, progress: Progress::none() }
    }

    /// Ends `timeout` from now. An earlier deadline that is already set stays, so begin a new attempt with a context that
    /// has not ended.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.with_deadline(deadline),
            None => self, // further away than the clock can say: never
        }
    }

    /// Ends at this instant. An earlier deadline that is already set stays.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        self
    }

    /// Ends when this token is cancelled. It takes the place of a token set before; to obey both, see [`child`](Context::child).
    #[must_use]
    pub fn with_cancellation(mut self, token: CancellationToken) -> Self {
        self.cancellation = Some(token);
        self
    }

    /// A context that ends with this one, and can be ended before: with an earlier deadline, or by the token that comes with it.
    /// Whoever cancels that token does not end this context.
    ///
    /// ```
    /// use std::time::Duration;
    /// use eventstore_api::{CancellationToken, Context};
    ///
    /// let stop = CancellationToken::new();
    /// let service = Context::background().with_cancellation(stop.clone());
    /// let (request, cancel) = service.child();
    /// let request = request.with_timeout(Duration::from_secs(5));
    /// cancel.cancel();
    /// assert!(request.check().is_err() && service.check().is_ok());
    /// let (request, _) = service.child();
    /// stop.cancel();
    /// assert!(request.check().is_err());
    /// ```
    #[must_use]
    pub fn child(&self) -> (Self, CancellationToken) {
        let token = self.cancellation.as_ref().map_or_else(CancellationToken::new, CancellationToken::child_token);
        (self.clone().with_cancellation(token.clone()), token)
    }

    /// Tells this one how far long work has come: a backup, a verification, a garbage collection.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Who is told how far the call has come.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The instant at which this context ends by itself.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// [`Error::Cancelled`] or [`Error::DeadlineExceeded`] if this context has ended. Cancellation comes first.
    pub fn check(&self) -> Result<()> {
        if self.cancellation.as_ref().is_some_and(CancellationToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded);
        }
        Ok(())
    }

    /// Waits until this context ends and returns why; for ever if it never does.
    ///
    /// # Cancellation
    ///
    /// Dropping the future has no effect.
    pub async fn done(&self) -> Error {
        let cancelled = async {
            match &self.cancellation {
                Some(token) => token.cancelled().await,
                None => pending().await,
            }
        };
        let expired = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        let (mut cancelled, mut expired) = (pin!(cancelled), pin!(expired));
        std::future::poll_fn(|cx| {
            if cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Error::Cancelled);
            }
            expired.as_mut().poll(cx).map(|()| Error::DeadlineExceeded)
        })
        .await
    }

    /// Runs `work` until it is finished or this context ends, whichever is first; then `work` is dropped.
    ///
    /// What is finished wins when both are. Only use it for work that may be dropped at any await point.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        let mut work = pin!(work);
        if self.deadline.is_none() && self.cancellation.is_none() {
            return Ok(work.await);
        }
        let mut done = pin!(self.done());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            done.as_mut().poll(cx).map(Err)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_stays() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        assert_eq!(Context::background().with_deadline(soon).with_deadline(late).deadline(), Some(soon));
        assert_eq!(Context::background().with_deadline(late).with_deadline(soon).deadline(), Some(soon));
        assert_eq!(Context::background().with_timeout(Duration::MAX).deadline(), None);
    }

    #[tokio::test]
    async fn ended_contexts_say_why() {
        let token = CancellationToken::new();
        let both = Context::background().with_timeout(Duration::ZERO).with_cancellation(token.clone());
        assert!(matches!(both.check(), Err(Error::DeadlineExceeded)));
        assert!(matches!(both.done().await, Error::DeadlineExceeded));
        token.cancel();
        assert!(matches!(both.check(), Err(Error::Cancelled)));
        assert!(matches!(both.done().await, Error::Cancelled));
        assert!(matches!(both.run(pending::<()>()).await, Err(Error::Cancelled)));
        assert!(matches!(both.run(async { 7 }).await, Ok(7)), "what is finished wins");
    }
}

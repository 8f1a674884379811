use std::future::{Future, pending};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::{Error, Progress, Result};

/// A deadline, a cancellation token and a [`Progress`] for a call, all optional.
///
/// Every operation takes a context. The effect of a deadline or a cancellation on an append depends on how far the
/// append has come, and the error tells which: after [`Error::Cancelled`] and [`Error::DeadlineExceeded`], certainly
/// nothing was written; after [`Error::OutcomeUnknown`], the append may have been written (rules C1 to C3). A deadline
/// may be as short as you like (rule C6).
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
    /// A context without a deadline, which nobody cancels.
    #[must_use]
    pub const fn background() -> Self {
        Context { deadline: None, cancellation: None, progress: Progress::none() }
    }

    /// Sets the deadline to `timeout` from now. An earlier deadline stays in force, so start a new attempt with a fresh
    /// context.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.with_deadline(deadline),
            None => self, // beyond the range of the clock: never
        }
    }

    /// Sets the deadline to this instant. An earlier deadline stays in force.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        self
    }

    /// Ends the context when this token is cancelled. Replaces a token set before; to obey both, see
    /// [`child`](Context::child).
    #[must_use]
    pub fn with_cancellation(mut self, token: CancellationToken) -> Self {
        self.cancellation = Some(token);
        self
    }

    /// A context that ends with this one at the latest. It can end earlier: by an earlier deadline, or by the returned
    /// token. Cancelling that token does not end this context.
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

    /// Reports the progress of long operations, such as backups, verifications and garbage collections, to this
    /// listener.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// The listener for the progress of the call.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The deadline of this context, if it has one.
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

    /// Waits until this context ends and returns the reason. Waits forever if it never ends.
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

    /// Runs `work` until it finishes or this context ends, whichever is first. If the context ends first, `work` is
    /// dropped.
    ///
    /// If both happen at once, the result of `work` wins. Only use it for work that may be dropped at any await point.
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

//! The common parts of the calls of a [`Store`](crate::Store).

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;

use eventstore_api::{Context, Progress, Result};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Implements the options of every call for a type with a field `ctx`.
macro_rules! call_options {
    ($($call:tt)*) => {
        $($call)* {
            /// Ends the call after this time from now, with [`DeadlineExceeded`](crate::Error::DeadlineExceeded). An
            /// earlier deadline stays in force. The default is no deadline.
            pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
                self.ctx = self.ctx.with_timeout(timeout);
                self
            }

            /// Ends the call at this instant, like [`timeout`](Self::timeout).
            pub fn deadline(mut self, deadline: std::time::Instant) -> Self {
                self.ctx = self.ctx.with_deadline(deadline);
                self
            }

            /// Ends the call when this token is cancelled, with [`Cancelled`](crate::Error::Cancelled).
            pub fn cancel_on(mut self, token: &crate::CancellationToken) -> Self {
                self.ctx = self.ctx.with_cancellation(token.clone());
                self
            }

            /// Uses this context, instead of a deadline and a token that were set before.
            pub fn context(mut self, ctx: &crate::backend::Context) -> Self {
                self.ctx = ctx.clone();
                self
            }
        }
    };
}
pub(crate) use call_options;

/// A call of a [`Store`](crate::Store). It starts when it is awaited.
///
/// Dropping the future ends the call. See [`EventStore`](crate::backend::EventStore) for the effect.
#[must_use = "a call begins when it is awaited"]
pub struct Call<'a, T> {
    ctx: Context,
    work: Box<dyn FnOnce(Context) -> BoxFuture<'a, Result<T>> + Send + 'a>,
}

impl<'a, T> Call<'a, T> {
    pub(crate) fn new<F>(work: impl FnOnce(Context) -> F + Send + 'a) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Call { ctx: Context::background(), work: Box::new(move |ctx| Box::pin(work(ctx))) }
    }

    /// Reports the progress of a long call to `listener`: what is done and the total, in the unit that the call names.
    /// See [`Progress::new`] for what the listener may do.
    pub fn on_progress(mut self, listener: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.ctx = self.ctx.with_progress(Progress::new(listener));
        self
    }
}

call_options!(impl<T> Call<'_, T>);

impl<'a, T> IntoFuture for Call<'a, T> {
    type Output = Result<T>;
    type IntoFuture = BoxFuture<'a, Result<T>>;

    fn into_future(self) -> Self::IntoFuture {
        (self.work)(self.ctx)
    }
}

impl<T> fmt::Debug for Call<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

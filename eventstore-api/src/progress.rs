use std::fmt;
use std::sync::Arc;

/// A listener for the progress of a long operation. Part of a [`Context`](crate::Context).
///
/// ```
/// use eventstore_api::{Context, Progress};
///
/// let ctx = Context::background().with_progress(Progress::new(|done, total| eprintln!("{done} of {total}")));
/// ctx.progress().report(3, 10);
/// ```
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Listener>>);

type Listener = dyn Fn(u64, u64) + Send + Sync;

impl Progress {
    /// No listener.
    #[must_use]
    pub const fn none() -> Self {
        Progress(None)
    }

    /// Calls `listener` with what is done and the total, in the unit that the operation names. The total may grow. The
    /// listener runs on the thread that does the work and blocks it, so it should return soon. It may wait for other
    /// reads and appends, but not for the store to close, which in turn waits for the work.
    #[must_use]
    pub fn new(listener: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Progress(Some(Arc::new(listener)))
    }

    /// For stores: reports that `done` of `total` is done.
    pub fn report(&self, done: u64, total: u64) {
        if let Some(listener) = &self.0 {
            listener(done, total);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(listened to)" } else { "Progress(none)" })
    }
}

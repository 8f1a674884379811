use std::fmt;
use std::sync::Arc;

/// Who is told how far long work has come. Part of a [`Context`](crate::Context).
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
    /// Nobody.
    #[must_use]
    pub const fn none() -> Self {
        Progress(None)
    }

    /// Calls `listener` with what is done and the total, in the unit that the operation names; the total may grow. It is
    /// called on whatever thread does the work, which waits for it: it should return soon. It may wait for what others read and
    /// append, and must not wait for the store to be closed, which waits for the work.
    #[must_use]
    pub fn new(listener: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Progress(Some(Arc::new(listener)))
    }

    /// For those who do the work: tells that `done` of `total` is done.
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

use std::fmt;

use eventstore_api::{Context, Progress, Result};

/// Long work for a caller, who may end it and is told how far it has come.
pub struct Task<'a> {
    ctx: &'a Context,
    is_wanted: &'a (dyn Fn() -> Result<()> + Sync),
}

impl<'a> Task<'a> {
    /// Work that ends when the context does, or when `is_wanted` fails.
    #[must_use]
    pub fn new(ctx: &'a Context, is_wanted: &'a (dyn Fn() -> Result<()> + Sync)) -> Self {
        Task { ctx, is_wanted }
    }

    /// Whether to go on. Asked at least a few times a second: closing the store waits for the work to end.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded` or `Closed`, to be returned as it is.
    pub fn check(&self) -> Result<()> {
        self.ctx.check()?;
        (self.is_wanted)()
    }

    /// Does work whose progress goes from the half of twice `half` to the end of it.
    pub(crate) fn in_second_half<T>(&self, half: u64, work: impl FnOnce(&Task<'_>) -> T) -> T {
        let progress = self.ctx.progress().clone();
        let scaled = Progress::new(move |done, total| {
            let part = u128::from(half) * u128::from(done) / u128::from(total.max(1));
            progress.report(half + part as u64, 2 * half);
        });
        work(&Task { ctx: &self.ctx.clone().with_progress(scaled), is_wanted: self.is_wanted })
    }

    /// Tells the caller that `done` of `total` is done, in whatever unit the work has.
    pub fn report(&self, done: u64, total: u64) {
        self.ctx.progress().report(done, total);
    }
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("ctx", self.ctx).finish_non_exhaustive()
    }
}

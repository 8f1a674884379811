use std::fmt;

use eventstore_api::{Context, Progress, Result};

/// The caller's side of long work: cancellation and progress.
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

    /// Checks whether to continue. Call it at least a few times a second: closing the store waits for the work to end.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded` or `Closed`. Return it unchanged.
    pub fn check(&self) -> Result<()> {
        self.ctx.check()?;
        (self.is_wanted)()
    }

    /// Runs work whose progress is reported as the second half of twice `half`.
    pub(crate) fn in_second_half<T>(&self, half: u64, work: impl FnOnce(&Task<'_>) -> T) -> T {
        let progress = self.ctx.progress().clone();
        let scaled = Progress::new(move |done, total| {
            let part = u128::from(half) * u128::from(done) / u128::from(total.max(1));
            progress.report(half + part as u64, 2 * half);
        });
        work(&Task { ctx: &self.ctx.clone().with_progress(scaled), is_wanted: self.is_wanted })
    }

    /// Reports that `done` of `total` is done, in the unit of the work.
    pub fn report(&self, done: u64, total: u64) {
        self.ctx.progress().report(done, total);
    }
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("ctx", self.ctx).finish_non_exhaustive()
    }
}

use std::fmt;

use eventstore_api::{Context, Result};

/// Long work for a caller, who may end it and is told how far it has come.
pub struct Task<'a> {
    ctx: &'a Context,
    is_wanted: &'a (dyn Fn() -> Result<()> + Sync),
}

impl<'a> Task<'a> {
    /// Work that ends when the context does, or when `is_wanted` fails.
    pub(crate) fn new(ctx: &'a Context, is_wanted: &'a (dyn Fn() -> Result<()> + Sync)) -> Self {
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

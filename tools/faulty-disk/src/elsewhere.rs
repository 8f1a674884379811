//! Where no calls can be watched.

use std::path::Path;

use crate::{Call, Fault, Surviving, Trigger};

/// Does nothing here.
pub fn watch(_: &Path) {}

/// Does nothing here.
pub fn arm(_: Trigger, _: Fault) {}

/// Does nothing here.
pub fn disarm() {}

/// Does nothing here.
pub fn set_clock(_: &[i64]) {}

/// Never true here.
#[must_use]
pub fn fired() -> bool {
    false
}

/// Always 0 here.
#[must_use]
pub fn count(_: Call) -> u64 {
    0
}

/// Ends the process without any clean-up.
pub fn kill() -> ! {
    std::process::abort()
}

/// As [`kill`]: nothing is taken back here.
pub fn cut_power(_: Surviving) -> ! {
    kill()
}

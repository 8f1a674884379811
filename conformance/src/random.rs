use std::hash::{BuildHasher, Hasher, RandomState};

use crate::failure::{Checked, Failure};

const SEED: &str = "EVENTSTORE_CONFORMANCE_SEED";
const CASES: &str = "EVENTSTORE_CONFORMANCE_CASES";

/// The seed of this run: the environment's, or a new one.
pub(crate) fn seed() -> u64 {
    number(SEED).ok().flatten().unwrap_or_else(|| RandomState::new().build_hasher().finish())
}

/// How to run with this seed again.
pub(crate) fn replay(seed: u64) -> String {
    format!("{seed}; {SEED}={seed} runs it again")
}

/// How many random programs to run.
pub(crate) fn cases() -> Checked<u32> {
    let cases = number(CASES)?.unwrap_or(64);
    u32::try_from(cases).map_err(|_| Failure::new(format!("{CASES} is too large: {cases}")))
}

/// A mistyped variable must not quietly become another run.
pub(crate) fn check_environment() -> Checked {
    number(SEED)?;
    cases().map(drop)
}

fn number(variable: &str) -> Checked<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Failure::new(format!("{variable} is not a number: {text:?}"))),
        },
        Err(_) => Ok(None),
    }
}

/// SplitMix64: small, and the same everywhere for the same seed.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, but not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

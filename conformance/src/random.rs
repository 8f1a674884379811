use std::hash::{BuildHasher, Hasher, RandomState};

use crate::Profile;
use crate::failure::{Checked, Failure};

const SEED: &str = "EVENTSTORE_CONFORMANCE_SEED";
const CASES: &str = "EVENTSTORE_CONFORMANCE_CASES";

/// The seed of this run: from the environment, or a new one.
pub(crate) fn seed() -> u64 {
    number(SEED).ok().flatten().unwrap_or_else(|| RandomState::new().build_hasher().finish())
}

/// The seed of the program with this number, in a run with this seed. The first program has the seed of the run, so a
/// run with the seed of a program begins with that program.
pub(crate) fn nth_seed(seed: u64, number: u64) -> u64 {
    seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// How to repeat a run with this seed.
pub(crate) fn replay(seed: u64) -> String {
    format!("{seed}; {SEED}={seed} runs it again")
}

/// The number of random programs to run; `u64::MAX` for an endless run.
///
/// The default takes some seconds: a store that survives closing syncs in every program, a store in memory does not.
pub(crate) fn cases(profile: &Profile) -> Checked<u64> {
    Ok(wanted_cases()?.unwrap_or(if profile.survives_closing() { 200 } else { 2_000 }))
}

fn wanted_cases() -> Checked<Option<u64>> {
    match std::env::var(CASES) {
        Ok(text) if text == "unbounded" => Ok(Some(u64::MAX)),
        Ok(_) => number(CASES).map_err(|failure| failure.note("or", "`unbounded`")),
        Err(_) => Ok(None),
    }
}

/// A mistyped variable must not silently cause another run.
pub(crate) fn check_environment() -> Checked {
    number(SEED)?;
    wanted_cases().map(drop)
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

/// SplitMix64: small, and portable for the same seed.
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

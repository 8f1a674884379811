//! The command's own modules, as they are, and what fuzzers do with them.

#![forbid(unsafe_code)]
#![allow(dead_code, unreachable_pub, reason = "the rest of the command is not here")]

#[path = "../../src/compression.rs"]
mod compression;
#[path = "../../src/failure.rs"]
mod failure;
#[path = "../../src/fuzzing.rs"]
mod fuzzing;
#[path = "../../src/input.rs"]
mod input;
#[path = "../../src/json.rs"]
mod json;
#[path = "../../src/records.rs"]
mod records;
#[path = "../../src/times.rs"]
mod times;

/// A store's address with its options, and other texts that are options.
pub fn url(input: &[u8]) {
    fuzzing::url(input);
}

/// A line of JSON, and the parts of an event.
pub fn line(input: &[u8]) {
    fuzzing::line(input);
}

/// A whole input, compressed or not.
pub fn input(input: &[u8]) {
    fuzzing::input(input);
}

//! Converts errors of `lsm-tree` to those of the contract.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use eventstore_api::{Error, Result};
use eventstore_kv::damaged_index;

/// Like [`guard`], for a call that writes tables. A table has its creation time, which must not be before 1970.
pub(crate) fn guard_writing<T>(operation: &'static str, call: impl FnOnce() -> lsm_tree::Result<T>) -> Result<T> {
    if SystemTime::now() < UNIX_EPOCH { Err(no_clock(operation)) } else { guard(operation, call) }
}

/// Calls `lsm-tree` to do `operation`. In places, it asserts the content of its files instead of checking it, so panics
/// are caught.
pub(crate) fn guard<T>(operation: &'static str, call: impl FnOnce() -> lsm_tree::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| engine_error(operation, error)),
        Err(panic) => match message_of(&*panic) {
            // The clock was set back just now.
            message if message.starts_with("time went backwards") => Err(no_clock(operation)),
            message => Err(damage(operation, &message)),
        },
    }
}

fn no_clock(operation: &'static str) -> Error {
    Error::engine(operation, "the system clock is before 1970, and fjall cannot write then; set the clock")
}

fn engine_error(operation: &'static str, error: lsm_tree::Error) -> Error {
    match error {
        lsm_tree::Error::Io(error) => io_error(operation, error),
        damaged => damage(operation, &damaged),
    }
}

/// An error of reading or writing a file of the index. The index is damaged if the file is missing or too short.
pub(crate) fn io_error(operation: &'static str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => damage(operation, &error),
        _ => Error::engine(operation, error),
    }
}

fn damage(operation: &'static str, what: &dyn std::fmt::Display) -> Error {
    damaged_index(format!("fjall found damage when it tried to {operation}: {what}"))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("for an unknown reason").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_error_has_a_meaning() {
        let code = |error| engine_error("read", error).code();
        assert_eq!(code(lsm_tree::Error::Unrecoverable), "corrupt");
        assert_eq!(code(lsm_tree::Error::InvalidTrailer), "corrupt");
        assert_eq!(code(lsm_tree::Error::Io(io::ErrorKind::UnexpectedEof.into())), "corrupt");
        assert_eq!(code(lsm_tree::Error::Io(io::ErrorKind::NotFound.into())), "corrupt");
        assert_eq!(code(lsm_tree::Error::Io(io::ErrorKind::StorageFull.into())), "engine");
    }

    #[test]
    fn a_panic_is_damage() {
        let error =
            guard("read", || -> lsm_tree::Result<()> { panic!("assertion {}", "failed") }).expect_err("panicked");
        assert!(matches!(&error, Error::Corrupt { reason, .. } if reason.contains("assertion failed")), "{error}");
    }
}

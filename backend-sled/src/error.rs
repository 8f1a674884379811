//! Converts errors of sled to those of the contract.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use eventstore_api::{Error, Result};
use eventstore_kv::damaged_index;

/// An error or a panic of sled.
#[derive(Debug)]
pub(crate) enum Failure {
    Error(sled::Error),
    /// In places, sled asserts the content of its files instead of checking it.
    Panic(String),
}

/// Calls sled and catches its panics.
pub(crate) fn guard<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(panic) => Err(Failure::Panic(message_of(&*panic))),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("for an unknown reason").to_owned()
}

/// A failure while sled opened its files in this directory.
pub(crate) fn open_error(directory: &Path, failure: Failure) -> Error {
    match failure {
        // sled has no dedicated error for this.
        Failure::Error(sled::Error::Io(error)) if error.to_string().starts_with("could not acquire lock") => {
            Error::Locked { path: directory.display().to_string() }
        }
        Failure::Error(sled::Error::Io(error)) => cannot_open(directory, error),
        failure => engine_error("open", failure),
    }
}

/// The error if the directory or a file in it cannot be read or written.
pub(crate) fn cannot_open(directory: &Path, error: io::Error) -> Error {
    Error::Open {
        path: directory.display().to_string(),
        reason: "sled's files cannot be read or written".to_owned(),
        source: Some(error.into()),
    }
}

/// The error of a failure during `operation`. Everything that is not an I/O error counts as damage.
pub(crate) fn engine_error(operation: &'static str, failure: Failure) -> Error {
    let found = match failure {
        Failure::Error(sled::Error::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Error::engine(operation, error);
        }
        Failure::Error(sled::Error::Corruption { .. }) => "a damaged page".to_owned(),
        Failure::Error(error) => error.to_string(),
        Failure::Panic(message) => format!("an inconsistency ({message})"),
    };
    damaged_index(format!("sled found {found} when it tried to {operation}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_error_has_a_meaning() {
        let damage = || sled::Error::Corruption { at: None, bt: () };
        let code = |error| engine_error("read", Failure::Error(error)).code();
        assert_eq!(code(damage()), "corrupt");
        assert_eq!(code(sled::Error::ReportableBug("x".to_owned())), "corrupt");
        assert_eq!(code(sled::Error::Io(io::ErrorKind::UnexpectedEof.into())), "corrupt");
        assert_eq!(code(sled::Error::Io(io::ErrorKind::StorageFull.into())), "engine");
        let open_code = |error| open_error("d".as_ref(), Failure::Error(error)).code();
        assert_eq!(open_code(damage()), "corrupt");
        assert_eq!(open_code(sled::Error::Io(io::ErrorKind::PermissionDenied.into())), "cannot_open");
    }

    #[test]
    fn a_panic_is_damage() {
        let failure = guard(|| -> sled::Result<()> { panic!("assertion {}", "failed") }).expect_err("panicked");
        let error = engine_error("read", failure);
        assert!(matches!(&error, Error::Corrupt { reason, .. } if reason.contains("assertion failed")), "{error}");
    }

    #[test]
    fn sleds_own_lock_is_recognized() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let _first = sled::open(directory.path()).expect("opened");
        let second = guard(|| sled::open(directory.path())).expect_err("locked");
        assert_eq!(open_error(directory.path(), second).code(), "locked");
    }
}

//! What sled's errors mean for a caller.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use eventstore_api::{Error, Result};

/// An error or a panic of sled's.
#[derive(Debug)]
pub(crate) enum Failure {
    Error(sled::Error),
    /// sled asserts what its files say in places, instead of checking it.
    Panic(String),
}

/// Runs a call into sled.
pub(crate) fn guard<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(panic) => Err(Failure::Panic(message_of(&*panic))),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it did not say why").to_owned()
}

/// A failure while sled opened the store in this directory.
pub(crate) fn open_error(path: &Path, failure: Failure) -> Error {
    let path = path.display().to_string();
    let damaged = |how: String| Error::Corrupt {
        version: None,
        reason: format!(
            "sled cannot open {path}: {how}; eventstore repair moves a damaged snapshot aside, and lets sled make it again \
             from its log"
        ),
    };
    match failure {
        Failure::Error(error) if is_lock_error(&error) => Error::Locked { path },
        Failure::Error(sled::Error::Corruption { .. }) => damaged("its files are damaged".to_owned()),
        Failure::Panic(message) => damaged(format!("its files are damaged ({message})")),
        Failure::Error(error) => {
            Error::Open { path, reason: "sled cannot open it".to_owned(), source: Some(error.into()) }
        }
    }
}

/// Whether somebody else has sled's file open. sled has no error of its own for it.
pub(crate) fn is_lock_error(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// A failure of an open store, while doing `operation`.
pub(crate) fn engine_error(operation: &'static str, failure: Failure) -> Error {
    match failure {
        Failure::Error(sled::Error::Corruption { .. }) => {
            Error::Corrupt { version: None, reason: format!("sled found a damaged page while it was to {operation}") }
        }
        Failure::Panic(message) => Error::Corrupt {
            version: None,
            reason: format!("sled found what it thought impossible while it was to {operation}: {message}"),
        },
        Failure::Error(error) => Error::engine(operation, error),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn corruption() -> sled::Error {
        sled::Error::Corruption { at: None, bt: () }
    }

    #[test]
    fn each_engine_error_has_a_meaning() {
        let code = |error| engine_error("read", Failure::Error(error)).code();
        assert_eq!(code(corruption()), "corrupt");
        assert_eq!(code(sled::Error::ReportableBug("x".to_owned())), "engine");
        assert_eq!(code(sled::Error::Unsupported("x".to_owned())), "engine");
        assert_eq!(code(sled::Error::Io(io::ErrorKind::StorageFull.into())), "engine");
        let open_code = |error| open_error("d".as_ref(), Failure::Error(error)).code();
        assert_eq!(open_code(corruption()), "corrupt");
        assert_eq!(open_code(sled::Error::Io(io::ErrorKind::PermissionDenied.into())), "cannot_open");
        assert_eq!(open_code(sled::Error::Unsupported("x".to_owned())), "cannot_open");
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

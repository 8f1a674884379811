//! Converts errors of RocksDB to those of the contract.

use std::path::Path;

use eventstore_api::Error;
use eventstore_kv::damaged_index;
use rocksdb::ErrorKind;

/// An error of opening the index in this directory.
pub(crate) fn open_error(directory: &Path, error: rocksdb::Error) -> Error {
    let message: &str = error.as_ref();
    let path = directory.display().to_string();
    if message.contains("lock hold by current process") || message.contains("While lock file") {
        return Error::Locked { path };
    }
    // RocksDB reports a missing file as an I/O error, and an incomplete manifest as an invalid argument. An index of
    // another version of RocksDB is rebuilt as well.
    let is_missing = error.kind() == ErrorKind::IOError && message.contains("No such file");
    let is_damage = matches!(
        error.kind(),
        ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotSupported | ErrorKind::NotFound
    );
    match is_missing || is_damage {
        true => damaged_index(format!("RocksDB cannot open its files: {error}")),
        false => Error::Open { path, reason: "RocksDB cannot open its files".to_owned(), source: Some(error.into()) },
    }
}

/// An error of an open index during `operation`.
pub(crate) fn engine_error(operation: &'static str, error: rocksdb::Error) -> Error {
    let message: &str = error.as_ref();
    let is_missing = error.kind() == ErrorKind::IOError && message.contains("No such file");
    match error.kind() == ErrorKind::Corruption || is_missing {
        true => damaged_index(format!("RocksDB found damage while trying to {operation}: {error}")),
        false => Error::engine(operation, error),
    }
}

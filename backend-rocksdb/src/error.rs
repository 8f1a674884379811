//! What RocksDB's errors mean for a caller.

use std::path::Path;

use eventstore_api::Error;
use rocksdb::ErrorKind;

/// An error while a store was opened.
pub(crate) fn open_error(path: &Path, error: rocksdb::Error) -> Error {
    let message: &str = error.as_ref();
    let path = path.display().to_string();
    if message.contains("lock hold by current process") || message.contains("While lock file") {
        return Error::Locked { path };
    }
    // RocksDB has no kind of its own for it.
    let is_newer = ["unsupported format_version", "Unknown Footer version", "newer version"];
    if error.kind() == ErrorKind::NotSupported || is_newer.iter().any(|text| message.contains(text)) {
        return Error::Unsupported {
            what: format!(
                "{path} was written by another version of RocksDB ({error}); open it with the eventstore that \
                           wrote it"
            ),
        };
    }
    match error.kind() {
        ErrorKind::Corruption => engine_error("open", error),
        _ => Error::Open {
            path,
            reason: "RocksDB cannot open it; if a file is missing, restore a backup".to_owned(),
            source: Some(Box::new(error)),
        },
    }
}

/// An error of an open store, while doing `operation`.
pub(crate) fn engine_error(operation: &'static str, error: rocksdb::Error) -> Error {
    match error.kind() {
        ErrorKind::Corruption => Error::Corrupt {
            version: None,
            reason: format!("RocksDB found damage while it was to {operation}: {}", without_kind(error.as_ref())),
        },
        _ => Error::engine(operation, error),
    }
}

/// A message without the name of its kind.
fn without_kind(message: &str) -> &str {
    message.split_once(": ").map_or(message, |(_, rest)| rest)
}

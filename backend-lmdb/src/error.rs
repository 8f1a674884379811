//! What LMDB's errors mean for a caller.

use eventstore_api::Error;
use heed::MdbError;

/// An error while a store was opened.
pub(crate) fn open_error(path: &std::path::Path, error: heed::Error) -> Error {
    let path = path.display().to_string();
    match error {
        heed::Error::EnvAlreadyOpened => Error::Locked { path },
        heed::Error::Mdb(MdbError::VersionMismatch) => Error::Unsupported {
            what: format!("{path} was written by another version of LMDB; open it with the eventstore that wrote it"),
        },
        heed::Error::Mdb(MdbError::Invalid) => {
            Error::Corrupt { version: None, reason: format!("{path}/data.mdb is not an LMDB file") }
        }
        other => match engine_error("open", other) {
            Error::Engine { source, .. } => {
                Error::Open { path, reason: "LMDB cannot open it".to_owned(), source: Some(source) }
            }
            corrupt => corrupt,
        },
    }
}

/// An error of an open store, while doing `operation`.
pub(crate) fn engine_error(operation: &'static str, error: heed::Error) -> Error {
    match error {
        heed::Error::Mdb(MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid) => {
            Error::Corrupt { version: None, reason: format!("LMDB found a damaged page while it was to {operation}") }
        }
        // Its meta page could not be written: LMDB refuses everything, reads as well, until it is opened again.
        heed::Error::Mdb(MdbError::Panic) => {
            Error::Fenced { reason: format!("LMDB could not finish a commit and does not {operation} any more") }
        }
        // LMDB has no other word for a write that the disk had no room for.
        heed::Error::Io(error) if error.raw_os_error() == Some(libc::EIO) => {
            Error::engine(operation, format!("{error}; it may be that the disk is full"))
        }
        other => Error::engine(operation, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_error_has_a_meaning() {
        let code = |error| engine_error("read", error).code();
        assert_eq!(code(heed::Error::Mdb(MdbError::Corrupted)), "corrupt");
        assert_eq!(code(heed::Error::Mdb(MdbError::PageNotFound)), "corrupt");
        assert_eq!(code(heed::Error::Mdb(MdbError::Panic)), "fenced");
        assert_eq!(code(heed::Error::Mdb(MdbError::ReadersFull)), "engine");
        assert_eq!(code(heed::Error::Io(std::io::ErrorKind::StorageFull.into())), "engine");
        let open_code = |error| open_error("d".as_ref(), error).code();
        assert_eq!(open_code(heed::Error::EnvAlreadyOpened), "locked");
        assert_eq!(open_code(heed::Error::Mdb(MdbError::VersionMismatch)), "unsupported");
        assert_eq!(open_code(heed::Error::Mdb(MdbError::Invalid)), "corrupt");
        assert_eq!(open_code(heed::Error::Io(std::io::ErrorKind::PermissionDenied.into())), "cannot_open");
    }
}

//! Converts errors of LMDB to those of the contract.

use std::path::Path;

use eventstore_api::Error;
use eventstore_kv::damaged_index;
use heed::MdbError;

/// An error of opening the environment in this directory.
pub(crate) fn open_error(directory: &Path, error: heed::Error) -> Error {
    let path = directory.display().to_string();
    match error {
        heed::Error::EnvAlreadyOpened => Error::Locked { path },
        heed::Error::Mdb(MdbError::VersionMismatch) => damaged_index("another version of LMDB has written it"),
        other => match engine_error("open", other) {
            Error::Engine { source, .. } => {
                Error::Open { path, reason: "LMDB cannot open it".to_owned(), source: Some(source) }
            }
            damage => damage,
        },
    }
}

/// An error of an open environment during `operation`.
pub(crate) fn engine_error(operation: &'static str, error: heed::Error) -> Error {
    use MdbError::{Corrupted, CursorFull, Incompatible, Invalid, PageFull, PageNotFound};
    match error {
        heed::Error::Mdb(Corrupted | PageNotFound | Invalid | CursorFull | PageFull | Incompatible) => {
            damaged_index(format!("LMDB found a damaged page while trying to {operation}"))
        }
        // LMDB also reports this when the disk has no room for a write.
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
        assert_eq!(code(heed::Error::Mdb(MdbError::Panic)), "engine");
        assert_eq!(code(heed::Error::Mdb(MdbError::ReadersFull)), "engine");
        assert_eq!(code(heed::Error::Io(std::io::ErrorKind::StorageFull.into())), "engine");
        let open_code = |error| open_error("d".as_ref(), error).code();
        assert_eq!(open_code(heed::Error::EnvAlreadyOpened), "locked");
        assert_eq!(open_code(heed::Error::Mdb(MdbError::VersionMismatch)), "corrupt");
        assert_eq!(open_code(heed::Error::Mdb(MdbError::Invalid)), "corrupt");
        assert_eq!(open_code(heed::Error::Io(std::io::ErrorKind::PermissionDenied.into())), "cannot_open");
    }
}

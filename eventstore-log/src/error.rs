use std::io;

/// The result of a call on a log.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system returned an error.
    #[error("cannot {operation} {name:?}")]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file.
        name: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Something is damaged, missing, or belongs to another log.
    #[error("damaged{}: {reason}", of_record(*record))]
    Corrupt {
        /// The damaged record, or the first of several.
        record: Option<u64>,
        /// What is wrong, and where.
        reason: String,
    },
    /// The disk is full, or a quota is exceeded.
    #[error("no room: {reason}")]
    Full {
        /// What there was no space for.
        reason: String,
    },
    /// It was written by a newer version, or is not supported.
    #[error("not supported: {what}")]
    Unsupported {
        /// What is not supported.
        what: String,
    },
    /// An earlier write or sync failed. The log guarantees nothing more until it is reopened.
    #[error("{reason}; reopen the log")]
    Fenced {
        /// What failed.
        reason: String,
    },
}

/// How a commit failed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing of the group is in the log, now or after reopening.
    #[error("nothing was written")]
    NotWritten(#[source] Error),
    /// The group may be in the log when it is opened again, completely or not at all.
    #[error("it is unknown whether it was written")]
    Unknown(#[source] Error),
}

impl Error {
    /// Whether a shortage of space, file descriptors or memory prevented the operation. Nothing was done; it may
    /// succeed later.
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Error::Full { .. } => true,
            #[cfg(unix)]
            Error::Io { source, .. } => {
                use rustix::io::Errno;
                let error = Errno::from_io_error(source);
                error.is_some_and(|error| [Errno::MFILE, Errno::NFILE, Errno::NOMEM].contains(&error))
            }
            _ => false,
        }
    }

    /// The error for a log without a segment to write to.
    pub(crate) fn without_segment() -> Self {
        Error::Fenced { reason: "the log has no segment to write to".to_owned() }
    }

    pub(crate) fn io(operation: &'static str, name: &str, source: io::Error) -> Self {
        if is_full(&source) {
            return Error::Full { reason: format!("cannot {operation} {name:?}: {source}") };
        }
        Error::Io { operation, name: name.to_owned(), source }
    }

    pub(crate) fn corrupt(record: u64, reason: impl Into<String>) -> Self {
        Error::Corrupt { record: Some(record), reason: reason.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into() }
    }
}

/// Whether the disk was full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn of_record(record: Option<u64>) -> String {
    record.map(|record| format!(" from record {record} on")).unwrap_or_default()
}

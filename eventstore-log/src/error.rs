use std::io;

/// What a call on a log gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {operation} {name:?}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something is damaged, missing, or not of this log.
    #[error("damaged{}: {reason}", of_record(*record))]
    Corrupt {
        /// The record that is damaged, or the first of those that are.
        record: Option<u64>,
        /// What is wrong, and where.
        reason: String,
    },
    /// The disk is full, or a quota is used up.
    #[error("no room: {reason}")]
    Full {
        /// What there was no room for.
        reason: String,
    },
    /// A newer version wrote it, or it cannot be done.
    #[error("not supported: {what}")]
    Unsupported {
        /// What is not supported.
        what: String,
    },
    /// An earlier write or sync failed, so that nothing more may be promised until the log is opened again.
    #[error("{reason}; reopen the log")]
    Fenced {
        /// What failed.
        reason: String,
    },
}

/// How a commit failed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing of the group is in the log, and nothing will be.
    #[error("nothing was written")]
    NotWritten(#[source] Error),
    /// The group may be in the log when it is opened again. Whole or not at all.
    #[error("it is unknown whether it was written")]
    Unknown(#[source] Error),
}

impl Error {
    /// There is no room, no file descriptor left, or no memory, so that nothing was done. There may be some later.
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

    /// The log has no segment that could be written.
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

/// Whether there was no room for it.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn of_record(record: Option<u64>) -> String {
    record.map(|record| format!(" from record {record} on")).unwrap_or_default()
}

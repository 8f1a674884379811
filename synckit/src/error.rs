//! Errors of a replica.

use std::fmt;

use eventstore_api::Cursor;

use crate::core::{EventPlace, Number};

/// A result of a replica.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call on a replica failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The replica's own files failed, or it is closed.
    Store(eventstore_api::Error),

    /// The hub failed or cannot be reached.
    Hub {
        /// The hub.
        hub: String,
        /// Its error.
        source: eventstore_api::Error,
    },

    /// The condition of an append does not hold: its scope has something that its decision had not seen. Nothing was
    /// written.
    Conflict,

    /// The condition names a revision or version, but the aggregate or store has pending own events, which have neither
    /// yet. Nothing was written.
    PendingInScope,

    /// An id belongs to a rejected or replaced batch that is not deleted. Nothing was written.
    Rejected {
        /// The id.
        id: String,
        /// The batch.
        batch: Number,
    },

    /// An id is in use with other content. Nothing was written.
    Duplicate {
        /// The id.
        id: String,
        /// Where the event with this id is; `None` if it is in the same batch.
        place: Option<EventPlace>,
    },

    /// The hub has another history than this replica.
    AnotherHistory {
        /// The hub.
        hub: String,
        /// The position of this replica.
        confirmed: Cursor,
        /// The position of the hub, up to the replica's version.
        found: Cursor,
    },

    /// The hub's address leads to another store.
    AnotherHub {
        /// The hub.
        hub: String,
        /// The id of the store to which the replica belongs.
        expected: String,
        /// The id of the store at the address.
        found: String,
    },

    /// The answer of a resolver is invalid.
    Answer {
        /// The batch.
        batch: Number,
        /// Why.
        reason: String,
    },

    /// A resolver called sync on the replica that it decides for. That would deadlock, since the sync waits for the
    /// resolver.
    Deciding,

    /// The directory is not a replica.
    NotAReplica {
        /// The directory.
        path: String,
        /// The reason; after a semicolon, the advice, if it is not to check the path or to create a new one.
        reason: String,
    },

    /// The replica is read-only: it only follows its hub.
    ReadOnly,
}

impl Error {
    /// A short name of the error; for a store's error, its code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::Store(error) | Error::Hub { source: error, .. } => error.code(),
            Error::Conflict => "conflict",
            Error::PendingInScope => "pending_in_scope",
            Error::Rejected { .. } => "rejected",
            Error::Duplicate { .. } => "duplicate_event",
            Error::AnotherHistory { .. } => "another_history",
            Error::AnotherHub { .. } => "another_hub",
            Error::Answer { .. } => "wrong_answer",
            Error::Deciding => "deciding",
            Error::NotAReplica { .. } => "not_a_replica",
            Error::ReadOnly => "read_only",
        }
    }

    /// The store's error, if it is one.
    #[must_use]
    pub fn as_store(&self) -> Option<&eventstore_api::Error> {
        match self {
            Error::Store(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the hub cannot be used now but may be later. False for permanent errors: it requires another token, it
    /// has no such store, its data is damaged.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        use eventstore_api::Error as Store;
        let Error::Hub { source, .. } = self else { return false };
        !matches!(
            source,
            Store::Forbidden { .. }
                | Store::Unsupported { .. }
                | Store::InvalidOption { .. }
                | Store::Corrupt { .. }
                | Store::Open { .. }
        )
    }
}

impl From<eventstore_api::Error> for Error {
    fn from(error: eventstore_api::Error) -> Self {
        Error::Store(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The advice to open the URL of a server does not apply to a replica.
            Error::Store(eventstore_api::Error::Locked { path }) => {
                write!(f, "{path} is locked: another handle or process has it open; close it there, or share its handle")
            }
            Error::Store(error) => error.fmt(f),
            Error::Hub { hub, source } => {
                let said = source.to_string();
                // Some errors name the address themselves, without its options.
                let address = hub.split('?').next().unwrap_or_default().trim_end_matches('/');
                let is_named = matches!(source, eventstore_api::Error::Unavailable { .. }) || said.contains(address);
                if is_named { f.write_str(&said) } else { write!(f, "{hub}: {said}") }
            }
            Error::Conflict => {
                f.write_str("conflict: there are events that this decision had not seen; load again and decide again")
            }
            Error::PendingInScope => f.write_str(
                "own events are pending here, which have no revision or version yet; use the basis of a load as the condition",
            ),
            Error::Rejected { id, batch } => write!(
                f,
                "the event id {id:?} is that of batch {batch}, which was rejected or replaced; delete that batch, or give the \
                 event a new id"
            ),
            Error::Duplicate { id, place } => {
                let place = match place {
                    Some(EventPlace::Confirmed(version)) => format!("is confirmed as version {version}"),
                    Some(EventPlace::Pending(batch, at)) => format!("is pending as {batch}.{at}"),
                    None => "is in the same batch".to_owned(),
                };
                write!(f, "the event id {id:?} {place} with other content; give the new event its own id")
            }
            Error::AnotherHistory { hub, confirmed, found } => write!(
                f,
                "{hub} has another history: this replica is at {confirmed}, and the hub at {found}; accept its history (nothing \
                 is lost: own events become pending again, and what was confirmed is kept aside), or restore the hub"
            ),
            Error::AnotherHub { hub, expected, found } => write!(
                f,
                "{hub} is another store (id {found}) than the one this replica belongs to (id {expected}); check the address"
            ),
            Error::Answer { batch, reason } => write!(f, "the answer for batch {batch} cannot be taken: {reason}"),
            Error::Deciding => f.write_str(
                "a resolver cannot sync the replica that it decides for: that sync waits for its answer; decide on what the conflict \
                 shows, or answer to wait and sync afterwards",
            ),
            Error::NotAReplica { path, reason } => {
                write!(f, "{path} is not a replica: {reason}")?;
                match reason.contains(';') {
                    true => Ok(()), // it says what to do
                    false => f.write_str("; check the path, or create a new one"),
                }
            }
            Error::ReadOnly => f.write_str("this replica only follows its hub; make one that is not read-only to append"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Store(error) | Error::Hub { source: error, .. } => std::error::Error::source(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_is_named_once() {
        use eventstore_api::Error as Store;
        let url = "http://127.0.0.1:7080/stores/notes";
        let told = |source: Store| Error::Hub { hub: format!("{url}?token_file=token"), source }.to_string();
        let forbidden = told(Store::Forbidden { what: format!("{url}: the token may only read") });
        assert_eq!(forbidden, format!("forbidden: {url}: the token may only read"));
        let missing = Store::Open { path: url.to_owned(), reason: "there is no store".to_owned(), source: None };
        assert_eq!(told(missing), format!("cannot open {url}: there is no store"));
        let closed = told(Store::Closed);
        assert!(closed.starts_with(url) && closed.ends_with("the store is closed; open it again"), "{closed}");
    }
}

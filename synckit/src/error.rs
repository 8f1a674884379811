//! What goes wrong with a replica.

use std::fmt;

use eventstore_api::Cursor;

use crate::core::{EventPlace, Number};

/// A result of a replica.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done with a replica.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The replica's own files failed, or it is closed.
    Store(eventstore_api::Error),

    /// The hub failed, or cannot be reached.
    Hub {
        /// The hub.
        hub: String,
        /// What it said.
        source: eventstore_api::Error,
    },

    /// The condition of an append does not hold: there is something in its scope that its decision had not seen. Nothing was
    /// written.
    Conflict,

    /// A condition on a revision or version of an aggregate or store of which own events are pending: they have neither yet.
    /// Nothing was written.
    PendingInScope,

    /// An id is that of a rejected or replaced batch, which is not deleted. Nothing was written.
    Rejected {
        /// The id.
        id: String,
        /// The batch.
        batch: Number,
    },

    /// An id is there with other content. Nothing was written.
    Duplicate {
        /// The id.
        id: String,
        /// Where it is; `None` for the batch itself.
        place: Option<EventPlace>,
    },

    /// The hub has another history than this replica.
    AnotherHistory {
        /// The hub.
        hub: String,
        /// Where this replica is.
        confirmed: Cursor,
        /// Where the hub is, up to the replica's version.
        found: Cursor,
    },

    /// There is another store at the hub's address.
    AnotherHub {
        /// The hub.
        hub: String,
        /// The id of the store that the replica belongs to.
        expected: String,
        /// The id of the store that is there.
        found: String,
    },

    /// The answer of a resolver cannot be taken.
    Answer {
        /// The batch.
        batch: Number,
        /// Why.
        reason: String,
    },

    /// A resolver syncs the replica that it decides for: the sync that asks it would wait for itself.
    Deciding,

    /// The directory is no replica.
    NotAReplica {
        /// The directory.
        path: String,
        /// Why; and behind a semicolon what to do, if that is not to check the path or to make a new one.
        reason: String,
    },

    /// The replica only follows its hub.
    ReadOnly,
}

impl Error {
    /// A short name for it: that of the store's error, if it is one.
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

    /// The error of a store that it is, if it is one.
    #[must_use]
    pub fn as_store(&self) -> Option<&eventstore_api::Error> {
        match self {
            Error::Store(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the hub cannot be used now, and may be later. Not so if it answers what stays so: it wants another token, there is
    /// no such store, what it has is damaged.
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
            // Nobody serves a replica.
            Error::Store(eventstore_api::Error::Locked { path }) => {
                write!(f, "{path} is locked: another handle or process has it open; close it there, or share its handle")
            }
            Error::Store(error) => error.fmt(f),
            // It names the address.
            Error::Hub { source: source @ eventstore_api::Error::Unavailable { .. }, .. } => source.fmt(f),
            Error::Hub { hub, source } => write!(f, "{hub}: {source}"),
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
                write!(f, "{path} is no replica: {reason}")?;
                match reason.contains(';') {
                    true => Ok(()), // it says what to do
                    false => f.write_str("; check the path, or make a new one"),
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

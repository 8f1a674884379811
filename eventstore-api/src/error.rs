use crate::{Expected, Version};

/// The result of an event store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error, kept as [`source`](std::error::Error::source).
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong, and for each kind what the caller must do.
///
/// The kinds follow from what a caller can do about them, not from where they happen. An engine's own error never
/// shows as a type of its own; it is the `source` of one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The condition of an append was not met, and nothing was written (rule W3).
    ///
    /// Load what is new, decide again, and append with a new expectation.
    #[error("version conflict: expected {expected} but {}; load what is new and decide again", describe_actual(.aggregate_id.as_deref(), *.actual))]
    VersionConflict {
        /// The aggregate that the condition was about; `None` when it was about the whole store.
        aggregate_id: Option<String>,
        /// The condition that was asked for.
        expected: Expected,
        /// What was found: the aggregate's revision (0: it has no events), or the store's latest version.
        actual: u64,
    },

    /// An event with this id and other content is in the store, or twice in the batch; nothing was written (rule W2).
    ///
    /// Give the new event an id of its own.
    #[error("an event with the id {id:?} and other content {}; give the new event its own id", describe_duplicate(*.version))]
    DuplicateEvent {
        /// The id that is taken.
        id: String,
        /// The version of the event that has it; `None` when the batch itself holds two different ones.
        version: Option<Version>,
    },

    /// No event has this id.
    ///
    /// Check the id; an event is visible to `get` as soon as its append has returned.
    #[error("no event has the id {id:?}; check the id")]
    EventNotFound {
        /// The id that was looked up.
        id: String,
    },

    /// An event, a batch or a condition breaks a rule of the contract; nothing was queued (rule W5).
    ///
    /// Mend the input. The limits are in [`limits`](crate::limits).
    #[error("invalid {field}: {reason}")]
    InvalidEvent {
        /// What is wrong: `id`, `type`, `aggregate_id`, `data`, `metadata`, `batch`, `recorded_at` or
        /// `expected`.
        field: &'static str,
        /// Why, and what would be right.
        reason: String,
    },

    /// A text is not a version.
    ///
    /// Mend the input: a version is a decimal number from 0 to `u64::MAX`.
    #[error("invalid version {text:?}: {reason}")]
    InvalidVersion {
        /// The text that was read.
        text: String,
        /// Why it is not a version.
        reason: String,
    },

    /// The context was cancelled before anything was staged: certainly nothing was written (rules C1, C2).
    #[error("cancelled; nothing was written")]
    Cancelled,

    /// The deadline passed before anything was staged: certainly nothing was written (rules C1, C2).
    ///
    /// Try again with more time.
    #[error("deadline exceeded, and nothing was written; try again with more time")]
    DeadlineExceeded,

    /// The append may or may not be in the store (rules C3, F1).
    ///
    /// Append the same events again, the same [`Event`](crate::Event) values with the same ids: by rule W2 that returns
    /// the first result if they are there and writes them if they are not. Use a context that has not ended. A store that
    /// is fenced by the failure can only say so again, with [`Error::Fenced`] as the source: reopen it first.
    #[error("the outcome is unknown: {reason}; append the same events again to learn it")]
    OutcomeUnknown {
        /// What interrupted the append.
        reason: String,
        /// The error of the engine, if it was the engine that failed.
        source: Option<BoxError>,
    },

    /// The store was closed, here or by another handle to it.
    ///
    /// Open it again.
    #[error("the store is closed; open it again")]
    Closed,

    /// Another handle or process has the store open (rule L2). Nothing was touched.
    ///
    /// Close the other one, or share its handle.
    #[error("{path} is locked: another handle or process has it open; close that one or share its handle")]
    Locked {
        /// The directory of the store.
        path: String,
    },

    /// An earlier commit failed, so the writer accepts nothing more. Nothing of this append was written, nor was it by an
    /// earlier attempt (rule F1).
    ///
    /// Mend the cause, then close and reopen the store. Reads go on until then.
    #[error("the writer is fenced ({reason}); mend the cause, then close and reopen the store")]
    Fenced {
        /// What failed.
        reason: String,
    },

    /// What is stored is damaged (rule F3). No wrong event is ever returned in its place.
    ///
    /// Restore a backup. Events before and after the damaged one can still be loaded.
    #[error("{} corrupt: {reason}; restore a backup, or load what comes before and after it", describe_damage(*.version))]
    Corrupt {
        /// The version of the damaged event, when it is one event.
        version: Option<Version>,
        /// What does not fit.
        reason: String,
    },

    /// There is no room: the disk, or the store's own size limit, is full. Certainly nothing of this append was written.
    ///
    /// Make room, or raise the limit, and try again.
    #[error("the store is full: {reason}; nothing of this append was written")]
    Full {
        /// What is full, how large it is, and how to raise it.
        reason: String,
    },

    /// The store or its engine cannot do this, or this build cannot.
    ///
    /// The text names what would have to be enabled or chosen instead.
    #[error("unsupported: {what}")]
    Unsupported {
        /// What is not supported, and what to do.
        what: String,
    },

    /// An option is unknown, or its value is out of range.
    #[error("invalid option {option}: {reason}")]
    InvalidOption {
        /// The option's name.
        option: String,
        /// Why it is refused, and what would be right.
        reason: String,
    },

    /// The store could not be opened; nothing was damaged.
    #[error("cannot open {path}: {reason}")]
    Open {
        /// What was to be opened.
        path: String,
        /// Why not, and what to do.
        reason: String,
        /// The error of the engine or the operating system.
        source: Option<BoxError>,
    },

    /// The engine failed while reading or maintaining the store.
    ///
    /// The source tells; the store itself is as it was.
    #[error("the engine failed to {operation}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// The engine's error.
        source: BoxError,
    },
}

impl Error {
    /// The stable name of this kind of error, for logs, metrics and the command's `error[code]` lines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::VersionConflict { .. } => "version_conflict",
            Error::DuplicateEvent { .. } => "duplicate_event",
            Error::EventNotFound { .. } => "event_not_found",
            Error::InvalidEvent { .. } => "invalid_event",
            Error::InvalidVersion { .. } => "invalid_version",
            Error::Cancelled => "cancelled",
            Error::DeadlineExceeded => "deadline_exceeded",
            Error::OutcomeUnknown { .. } => "outcome_unknown",
            Error::Closed => "closed",
            Error::Locked { .. } => "locked",
            Error::Fenced { .. } => "fenced",
            Error::Corrupt { .. } => "corrupt",
            Error::Full { .. } => "full",
            Error::Unsupported { .. } => "unsupported",
            Error::InvalidOption { .. } => "invalid_option",
            Error::Open { .. } => "cannot_open",
            Error::Engine { .. } => "engine",
        }
    }

    /// Whether the *same call with the same events*, and a context that has time left, may succeed later although
    /// nobody mends or changes anything, and can do no harm.
    ///
    /// | retryable | not retryable |
    /// |---|---|
    /// | `DeadlineExceeded`, `Locked`, `OutcomeUnknown` unless its source is `Fenced` | everything else |
    ///
    /// `VersionConflict` is not: the same expectation fails again, the caller has to decide anew. `Cancelled` is not:
    /// somebody wanted the call to end. `Fenced`, `Full` and `Closed` need a hand first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        let is_fenced = |source: &BoxError| matches!(source.downcast_ref(), Some(Error::Fenced { .. }));
        match self {
            Error::OutcomeUnknown { source, .. } => !source.as_ref().is_some_and(is_fenced),
            _ => matches!(self, Error::DeadlineExceeded | Error::Locked { .. }),
        }
    }

    /// An [`Error::InvalidEvent`] with this field and reason.
    pub fn invalid_event(field: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidEvent { field, reason: reason.into() }
    }

    /// An [`Error::Engine`] with this operation, a verb phrase such as `"read a page"`, and its cause.
    pub fn engine(operation: &'static str, source: impl Into<BoxError>) -> Self {
        Error::Engine { operation, source: source.into() }
    }
}

fn describe_actual(aggregate_id: Option<&str>, actual: u64) -> String {
    match (aggregate_id, actual) {
        (Some(id), 0) => format!("aggregate {id:?} has no events"),
        (Some(id), revision) => format!("aggregate {id:?} is at revision {revision}"),
        (None, version) => format!("the store is at version {version}"),
    }
}

fn describe_duplicate(version: Option<Version>) -> String {
    match version {
        Some(version) => format!("is already stored as version {version}"),
        None => "is in the same batch".to_owned(),
    }
}

fn describe_damage(version: Option<Version>) -> String {
    match version {
        Some(version) => format!("the event at version {version} is"),
        None => "the store is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Error> {
        let text = String::new;
        vec![
            Error::VersionConflict { aggregate_id: None, expected: Expected::Any, actual: 0 },
            Error::DuplicateEvent { id: text(), version: None },
            Error::EventNotFound { id: text() },
            Error::invalid_event("id", ""),
            Error::InvalidVersion { text: text(), reason: text() },
            Error::Cancelled,
            Error::DeadlineExceeded,
            Error::OutcomeUnknown { reason: text(), source: None },
            Error::Closed,
            Error::Locked { path: text() },
            Error::Fenced { reason: text() },
            Error::Corrupt { version: None, reason: text() },
            Error::Full { reason: text() },
            Error::Unsupported { what: text() },
            Error::InvalidOption { option: text(), reason: text() },
            Error::Open { path: text(), reason: text(), source: None },
            Error::engine("read", "broken"),
        ]
    }

    #[test]
    fn the_codes_are_stable_and_distinct() {
        let codes: Vec<_> = one_of_each().iter().map(Error::code).collect();
        assert_eq!(
            codes,
            [
                "version_conflict",
                "duplicate_event",
                "event_not_found",
                "invalid_event",
                "invalid_version",
                "cancelled",
                "deadline_exceeded",
                "outcome_unknown",
                "closed",
                "locked",
                "fenced",
                "corrupt",
                "full",
                "unsupported",
                "invalid_option",
                "cannot_open",
                "engine",
            ]
        );
    }

    #[test]
    fn only_what_may_succeed_unchanged_is_retryable() {
        let retryable: Vec<_> = one_of_each().iter().filter(|e| e.is_retryable()).map(Error::code).collect();
        assert_eq!(retryable, ["deadline_exceeded", "outcome_unknown", "locked"]);
    }

    #[test]
    fn a_conflict_says_what_was_expected_and_what_is_there() {
        let error = Error::VersionConflict {
            aggregate_id: Some("order-42".into()),
            expected: Expected::Revision(3),
            actual: 4,
        };
        assert_eq!(
            error.to_string(),
            "version conflict: expected revision=3 but aggregate \"order-42\" is at revision 4; \
             load what is new and decide again"
        );
    }
}

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::{Cursor, Expected, Revision, Version};

/// The result of an event store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error that can become the [`Source`] of an [`Error`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The cause of an error, from an engine, the operating system or a parser. [`source`](std::error::Error::source)
/// returns it.
///
/// # Clone
///
/// Cheap: clones share the error.
#[derive(Clone)]
pub struct Source(Arc<dyn std::error::Error + Send + Sync + 'static>);

impl<E: Into<BoxError>> From<E> for Source {
    fn from(error: E) -> Self {
        Source(Arc::from(error.into()))
    }
}

impl Deref for Source {
    type Target = dyn std::error::Error + Send + Sync + 'static;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The state that violated the condition of an append.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Actual {
    /// The condition's aggregate is at this revision; [`Revision::ZERO`] if it has no events.
    Aggregate {
        /// Its id.
        id: String,
        /// Its newest revision.
        revision: Revision,
    },
    /// The store is at this version.
    Store {
        /// The latest version.
        latest: Version,
    },
}

impl Actual {
    /// For stores: the state of the aggregate or of the store that violated `expected`.
    #[must_use]
    pub fn of(expected: Expected, aggregate_id: &str, revision: Revision, latest: Version) -> Self {
        match expected.is_about_aggregate() {
            true => Actual::Aggregate { id: aggregate_id.to_owned(), revision },
            false => Actual::Store { latest },
        }
    }
}

impl fmt::Display for Actual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actual::Aggregate { id, revision: Revision::ZERO } => write!(f, "aggregate {id:?} has no events"),
            Actual::Aggregate { id, revision } => write!(f, "aggregate {id:?} is at revision {revision}"),
            Actual::Store { latest } => write!(f, "the store is at version {latest}"),
        }
    }
}

/// Whether a failed append wrote something. See [`Error::written`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// Certainly nothing.
    Nothing,
    /// All of it or nothing: retry the same append to find out.
    Unknown,
}

/// What went wrong, and what the caller can do about it.
///
/// Variants differ in what the caller must do, not in where the error happened. The error of an engine is the `source`
/// of a variant.
///
/// # Clone
///
/// Cheap: clones share their source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The condition of an append did not hold. Nothing was written (rule W3).
    ///
    /// Load the new events, decide again, and append with a new condition.
    VersionConflict {
        /// The condition of the append.
        expected: Expected,
        /// What was found.
        actual: Actual,
    },

    /// The store, or the same batch, has an event with this id and other content. Nothing was written (rule W2). The
    /// batch's [`Idempotency`](crate::Idempotency) says which content is compared.
    ///
    /// Give the new event an id of its own.
    DuplicateEvent {
        /// The id that is taken.
        id: String,
        /// The version of the event that has this id; `None` if the batch itself has two different events with it.
        version: Option<Version>,
    },

    /// No event has this id.
    ///
    /// Check the id; an event is visible to `get` as soon as its append has returned.
    EventNotFound {
        /// The id that was looked up.
        id: String,
    },

    /// An event, a batch or a condition violates a rule of the contract. Nothing was queued (rule W5).
    ///
    /// Correct the input. The limits are in [`limits`](crate::limits).
    InvalidEvent {
        /// The invalid part: `id`, `type`, `aggregate_id`, `data`, `metadata`, `batch`, `recorded_at` or `expected`.
        field: &'static str,
        /// Why it is refused, and what is allowed.
        reason: String,
    },

    /// The text is not a version.
    ///
    /// Correct the input: a version is a decimal number from 0 to `u64::MAX`.
    InvalidVersion {
        /// The text that was read.
        text: String,
        /// Why it is not a version.
        reason: String,
    },

    /// The context was cancelled before the append was staged. Certainly nothing was written (rules C1, C2).
    Cancelled,

    /// The deadline passed before the append was staged. Certainly nothing was written (rules C1, C2).
    ///
    /// Retry with a longer deadline.
    DeadlineExceeded,

    /// The append may or may not be in the store (rules C3, F1).
    ///
    /// Retry with the same [`Event`](crate::Event) values and ids: by rule W2, the retry returns the first result if
    /// the events are stored, and writes them if they are not. Use a context that has not ended. If the failure fenced
    /// the store, the source is [`Error::Fenced`]; reopen the store before the retry.
    OutcomeUnknown {
        /// What interrupted the append.
        reason: String,
        /// The error of the engine, if the engine failed.
        source: Option<Source>,
    },

    /// The store was closed, here or by another handle to it.
    ///
    /// Open it again.
    Closed,

    /// Another handle or process has the store open (rule L2). Nothing was changed.
    ///
    /// Close the other one, or share its handle.
    Locked {
        /// The directory of the store.
        path: String,
    },

    /// An earlier commit failed, so the writer accepts no more appends. Nothing of this append was written, nor by an
    /// earlier attempt (rule F1).
    ///
    /// Fix the cause, then close and reopen the store. Until then, reads still work.
    Fenced {
        /// What failed.
        reason: String,
    },

    /// Stored data is damaged (rule F3). The store never returns a wrong event in its place.
    ///
    /// Restore a backup. Events before and after the damaged one can still be loaded.
    Corrupt {
        /// The version of the damaged event, if a single event is damaged.
        version: Option<Version>,
        /// What is wrong. If the remedy is not to restore a backup or to load around the damage, it follows after a
        /// semicolon.
        reason: String,
    },

    /// The reader does not know the type of a stored event, or its data does not have the expected shape.
    ///
    /// The stored event is intact. Add its type and shape to the reader, or skip it.
    Decode {
        /// The version of the event; `None` if it was not read from a store.
        version: Option<Version>,
        /// The event's type.
        event_type: String,
        /// The error of the parser.
        source: Source,
    },

    /// The cursor belongs to another history: the events read up to it differ from those of this store.
    ///
    /// A backup was restored, or events appended with [`Durability::Buffered`](crate::Durability::Buffered) were lost
    /// in a power cut and other events took their versions. Start again from a cursor of this history: rebuild the
    /// projection from the first event, or restore its state at a version that both histories share.
    HistoryDiverged {
        /// The cursor to resume from.
        cursor: Cursor,
        /// The position of this store: at the cursor's version, or at its newest event if it ends before that.
        found: Cursor,
    },

    /// The disk is full, or the store has reached its own size limit. Certainly nothing of this append was written.
    ///
    /// Free space, or raise the limit, and retry.
    Full {
        /// What is full, its size, and how to raise the limit.
        reason: String,
    },

    /// The store, its engine or this build does not support this.
    ///
    /// The text names what to enable or to use instead.
    Unsupported {
        /// What is not supported, and what to do.
        what: String,
    },

    /// An option is unknown, or its value is out of range.
    InvalidOption {
        /// The option's name.
        option: String,
        /// Why it is refused, and what is allowed.
        reason: String,
    },

    /// The store could not be opened. Nothing was damaged.
    Open {
        /// The path or address of the store.
        path: String,
        /// Why not, and what to do.
        reason: String,
        /// The error of the engine or the operating system.
        source: Option<Source>,
    },

    /// The server of the store cannot be reached, or cannot take the request now. Certainly nothing of this append was
    /// written.
    ///
    /// Retry later, or start the server.
    Unavailable {
        /// The server's address.
        url: String,
        /// What failed.
        reason: String,
        /// The error of the connection.
        source: Option<Source>,
    },

    /// The caller is not allowed to do this: the server requires a token, or another one. Nothing was done.
    Forbidden {
        /// What is not allowed, and what to do.
        what: String,
    },

    /// The engine failed while reading or maintaining the store.
    ///
    /// The source has the cause. The store is unchanged.
    Engine {
        /// What was being done: a verb phrase, such as `read a page`.
        operation: Cow<'static, str>,
        /// The engine's error.
        source: Source,
    },
}

impl Error {
    /// The stable name of this kind of error, for logs, metrics and the `error[code]` lines of the command.
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
            Error::Decode { .. } => "decode",
            Error::HistoryDiverged { .. } => "history_diverged",
            Error::Full { .. } => "full",
            Error::Unsupported { .. } => "unsupported",
            Error::InvalidOption { .. } => "invalid_option",
            Error::Open { .. } => "cannot_open",
            Error::Unavailable { .. } => "unavailable",
            Error::Forbidden { .. } => "forbidden",
            Error::Engine { .. } => "engine",
        }
    }

    /// Whether it is safe to repeat the *same call with the same events* and a new deadline, and the repetition may
    /// succeed without any other change.
    ///
    /// | retryable | not retryable |
    /// |---|---|
    /// | `DeadlineExceeded`, `Locked`, `Unavailable`, `OutcomeUnknown` unless its source is `Fenced` | everything else |
    ///
    /// `VersionConflict` is not: the same condition fails again, so the caller must decide again. `Cancelled` is not:
    /// somebody asked for the call to end. `Fenced`, `Full` and `Closed` need an operator first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        let is_fenced = |source: &Source| matches!(source.downcast_ref(), Some(Error::Fenced { .. }));
        match self {
            Error::OutcomeUnknown { source, .. } => !source.as_ref().is_some_and(is_fenced),
            _ => matches!(self, Error::DeadlineExceeded | Error::Locked { .. } | Error::Unavailable { .. }),
        }
    }

    /// The HTTP status for a service that answers a request with this error.
    ///
    /// `OutcomeUnknown` and `DeadlineExceeded` are both 504; [`written`](Self::written) tells them apart. If the
    /// cursor, the condition or the option is part of the request, 400, 410 or 412 may suit better.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            Error::InvalidVersion { .. } => 400,
            Error::Forbidden { .. } => 403,
            Error::EventNotFound { .. } => 404,
            Error::VersionConflict { .. } | Error::DuplicateEvent { .. } => 409,
            Error::HistoryDiverged { .. } => 410,
            Error::InvalidEvent { .. } => 422,
            Error::Corrupt { .. } | Error::Decode { .. } | Error::InvalidOption { .. } | Error::Engine { .. } => 500,
            Error::Unsupported { .. } => 501,
            Error::Cancelled
            | Error::Closed
            | Error::Fenced { .. }
            | Error::Locked { .. }
            | Error::Open { .. }
            | Error::Unavailable { .. } => 503,
            Error::DeadlineExceeded | Error::OutcomeUnknown { .. } => 504,
            Error::Full { .. } => 507,
        }
    }

    /// Whether the append that failed with this error wrote anything.
    ///
    /// After every error but [`Error::OutcomeUnknown`], certainly nothing was written.
    #[must_use]
    pub fn written(&self) -> Written {
        match self {
            Error::OutcomeUnknown { .. } => Written::Unknown,
            _ => Written::Nothing,
        }
    }

    /// An [`Error::InvalidEvent`] with this field and reason.
    pub fn invalid_event(field: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidEvent { field, reason: reason.into() }
    }

    /// An [`Error::Engine`] with this operation, a verb phrase such as `"read a page"`, and its cause.
    pub fn engine(operation: impl Into<Cow<'static, str>>, source: impl Into<Source>) -> Self {
        Error::Engine { operation: operation.into(), source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VersionConflict { expected, actual } => {
                write!(f, "version conflict: expected {expected}, but {actual}; load the new events and decide again")
            }
            Error::DuplicateEvent { id, version } => {
                let place = describe_duplicate(*version);
                write!(f, "the event id {id:?} {place} with other content; give the new event its own id")
            }
            Error::EventNotFound { id } => write!(f, "no event has the id {id:?}; check the id"),
            Error::InvalidEvent { field, reason } => write!(f, "invalid {field}: {reason}"),
            Error::InvalidVersion { text, reason } => write!(f, "invalid version {text:?}: {reason}"),
            Error::Cancelled => f.write_str("cancelled; nothing was written"),
            Error::DeadlineExceeded => {
                f.write_str("deadline exceeded; nothing was written; retry with a longer deadline")
            }
            Error::OutcomeUnknown { reason, .. } => {
                write!(f, "outcome unknown: {reason}; retry with the same event ids")
            }
            Error::Closed => f.write_str("the store is closed; open it again"),
            Error::Locked { path } => {
                write!(
                    f,
                    "{path} is locked: another handle or process has it open; close it there, share its handle, or open \
                     the URL under which it is served"
                )
            }
            Error::Fenced { reason } => {
                write!(f, "the writer is fenced ({reason}); fix the cause, then close and reopen the store")
            }
            Error::Corrupt { version, reason } => {
                let (what, advice) = (describe_damage(*version), what_to_do(*version, reason));
                write!(f, "{what} corrupt: {reason}{advice}")
            }
            Error::Decode { version, event_type, source } => {
                let place = version.map_or_else(String::new, |version| format!(" at version {version}"));
                write!(
                    f,
                    "the event{place} of type {event_type:?} cannot be decoded: {source}; add its shape to the reader, or \
                     skip it"
                )
            }
            Error::HistoryDiverged { cursor, found } => write!(
                f,
                "the cursor {cursor} belongs to another history: this store is at {found}; start again from a cursor of this \
                 history"
            ),
            Error::Full { reason } => write!(f, "the store is full: {reason}; nothing of this append was written"),
            Error::Unsupported { what } => write!(f, "unsupported: {what}"),
            Error::InvalidOption { option, reason } => write!(f, "invalid option {option}: {reason}"),
            Error::Open { path, reason, .. } => write!(f, "cannot open {path}: {reason}"),
            Error::Unavailable { url, reason, .. } => {
                write!(f, "{url} is not available: {reason}; nothing was written; retry later")
            }
            Error::Forbidden { what } => write!(f, "forbidden: {what}"),
            Error::Engine { operation, .. } => write!(f, "the engine failed to {operation}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::OutcomeUnknown { source, .. } | Error::Open { source, .. } | Error::Unavailable { source, .. } => {
                source.as_ref().map(|source| -> &(dyn std::error::Error + 'static) { &**source })
            }
            Error::Decode { source, .. } | Error::Engine { source, .. } => Some(&**source),
            _ => None,
        }
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

/// The remedy for damage whose reason names none.
fn what_to_do(version: Option<Version>, reason: &str) -> &'static str {
    match version {
        _ if reason.contains("; ") => "",
        Some(_) => "; restore a backup, or load the events before and after it",
        None => "; restore a backup",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Error> {
        let text = String::new;
        vec![
            Error::VersionConflict { expected: Expected::Any, actual: Actual::Store { latest: Version::ZERO } },
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
            Error::Decode { version: None, event_type: text(), source: "broken".into() },
            Error::HistoryDiverged { cursor: Cursor::START, found: Cursor::START },
            Error::Full { reason: text() },
            Error::Unsupported { what: text() },
            Error::InvalidOption { option: text(), reason: text() },
            Error::Open { path: text(), reason: text(), source: None },
            Error::Unavailable { url: text(), reason: text(), source: None },
            Error::Forbidden { what: text() },
            Error::engine("read", "broken"),
        ]
    }

    #[test]
    fn damage_says_once_what_to_do() {
        let text = |version: Option<u64>, reason: &str| {
            Error::Corrupt { version: version.map(Version::new), reason: reason.to_owned() }.to_string()
        };
        assert_eq!(
            text(Some(7), "its checksum is wrong"),
            "the event at version 7 is corrupt: its checksum is wrong; restore a backup, or load the events before and after it"
        );
        assert_eq!(text(None, "a page is torn"), "the store is corrupt: a page is torn; restore a backup");
        assert_eq!(text(None, "a page is torn; mend it"), "the store is corrupt: a page is torn; mend it");
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
                "decode",
                "history_diverged",
                "full",
                "unsupported",
                "invalid_option",
                "cannot_open",
                "unavailable",
                "forbidden",
                "engine",
            ]
        );
    }

    #[test]
    fn only_what_may_succeed_unchanged_is_retryable() {
        let retryable: Vec<_> = one_of_each().iter().filter(|e| e.is_retryable()).map(Error::code).collect();
        assert_eq!(retryable, ["deadline_exceeded", "outcome_unknown", "locked", "unavailable"]);
    }

    #[test]
    fn each_kind_has_an_http_status() {
        let status = |error: &Error| (error.http_status(), error.code());
        for error in one_of_each() {
            let (status, code) = status(&error);
            assert!((400..600).contains(&status), "{code}");
            // If a retry may succeed without a change, the client did nothing wrong.
            assert!(!error.is_retryable() || status >= 500, "{code}");
        }
    }

    #[test]
    fn a_conflict_says_what_was_expected_and_what_is_there() {
        let conflict = |expected, revision, latest| {
            let actual = Actual::of(expected, "order-42", Revision::new(revision), Version::new(latest));
            Error::VersionConflict { expected, actual }.to_string()
        };
        assert_eq!(
            conflict(Expected::Revision(Revision::new(3)), 4, 9),
            "version conflict: expected revision=3, but aggregate \"order-42\" is at revision 4; \
             load the new events and decide again"
        );
        assert!(conflict(Expected::Exists, 0, 9).contains("aggregate \"order-42\" has no events"));
        let latest = Expected::LatestVersion(Version::new(8));
        assert!(conflict(latest, 4, 9).contains("expected latest=8, but the store is at version 9"));
    }

    #[test]
    fn clones_share_their_source_which_can_still_be_looked_at() {
        let fenced = Error::Fenced { reason: "sync failed".into() };
        let error = Error::OutcomeUnknown { reason: "sync failed".into(), source: Some(fenced.into()) };
        let source = std::error::Error::source(&error).expect("it has one").downcast_ref();
        assert!(matches!(source, Some(Error::Fenced { .. })));
        let clone = error.clone();
        let source_of = |error| std::error::Error::source(error).map(|source| std::ptr::from_ref(source).cast::<()>());
        assert_eq!(source_of(&error), source_of(&clone));
        assert_eq!((error.written(), Error::Cancelled.written()), (Written::Unknown, Written::Nothing));
    }
}

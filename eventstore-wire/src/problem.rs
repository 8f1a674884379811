//! Errors as `application/problem+json` (RFC 9457).

use std::fmt;

use eventstore_api::{Actual, Cursor, Error, Expected, Revision, Source, Version, Written};
use serde::{Deserialize, Serialize};

/// An error in JSON form: the members of RFC 9457, and our own for programs.
///
/// `code` is that of [`Error::code`], or one of the server's own: `malformed`, `unauthorized`, `forbidden`,
/// `not_found`, `method_not_allowed`, `too_large`, `too_many`. Members that do not belong to the code are absent.
/// Readers ignore unknown members, and interpret an unknown code by its status and by `written`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// Always `about:blank`: `code` has the kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What kind of error it is.
    pub code: String,
    /// A sentence for people: what happened, to what, and what to do.
    pub detail: String,
    /// For an append: `nothing` if certainly nothing was written, `unknown` if all or nothing was.
    pub written: String,
    /// Whether the same request may succeed later without any other change.
    pub retryable: bool,
    /// For `version_conflict`: the condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
    /// For `version_conflict`: the state that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<ActualForm>,
    /// For `duplicate_event` and `event_not_found`: the event's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// For `duplicate_event`, `corrupt` and `decode`: the event's version, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// For `invalid_event`: the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// For `invalid_option`: the parameter or option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
    /// For `invalid_version`: the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// For `decode`: the event's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// For `history_diverged`: the cursor of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
    /// For `history_diverged`: the position of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Cursor>,
    /// For `engine`: what failed, as a verb phrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// For errors with a reason: that text, without the context that `detail` adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The causes, the direct cause first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// For `outcome_unknown`: whether the store is fenced, so that a retry helps only after it was reopened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
}

/// The state that violated a condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ActualForm {
    /// The aggregate is at this revision.
    Aggregate {
        /// Its id.
        aggregate_id: String,
        /// Its revision.
        revision: Revision,
    },
    /// The store is at this version.
    Store {
        /// Its latest version.
        latest_version: Version,
    },
}

/// A cause reported by the server.
#[derive(Debug)]
struct Told(String, Option<Box<Told>>);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_deref().map(|cause| -> &(dyn std::error::Error + 'static) { cause })
    }
}

impl Problem {
    /// A problem with a code that no [`Error`] has. Certainly nothing was written.
    #[must_use]
    pub fn new(status: u16, code: &str, detail: impl Into<String>) -> Self {
        Problem {
            kind: "about:blank".to_owned(),
            title: code.replace('_', " "),
            status,
            code: code.to_owned(),
            detail: detail.into(),
            written: "nothing".to_owned(),
            ..Problem::default()
        }
    }

    /// Its JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Serializing texts and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The error for a client of the server at `url`.
    #[must_use]
    pub fn into_error(self, url: &str) -> Error {
        let cause = self.cause();
        let reason = self.reason.clone().unwrap_or_else(|| self.detail.clone());
        let path = || url.to_owned();
        match self.code.as_str() {
            "version_conflict" => match (self.expected, self.actual) {
                (Some(expected), Some(ActualForm::Aggregate { aggregate_id: id, revision })) => {
                    Error::VersionConflict { expected, actual: Actual::Aggregate { id, revision } }
                }
                (Some(expected), Some(ActualForm::Store { latest_version: latest })) => {
                    Error::VersionConflict { expected, actual: Actual::Store { latest } }
                }
                _ => incomplete(&self.detail),
            },
            "duplicate_event" => Error::DuplicateEvent { id: self.id.unwrap_or_default(), version: self.version },
            "event_not_found" => Error::EventNotFound { id: self.id.unwrap_or_default() },
            "invalid_event" => Error::InvalidEvent { field: known_field(self.field.as_deref()), reason },
            "invalid_version" => Error::InvalidVersion { text: self.text.unwrap_or_default(), reason },
            "cancelled" => Error::Cancelled,
            "deadline_exceeded" => Error::DeadlineExceeded,
            "outcome_unknown" => {
                let fenced = || Source::from(Error::Fenced { reason: reason.clone() });
                let source = if self.fenced { Some(fenced()) } else { cause };
                Error::OutcomeUnknown { reason, source }
            }
            "fenced" => Error::Fenced { reason },
            "corrupt" => Error::Corrupt { version: self.version, reason },
            "decode" => Error::Decode {
                version: self.version,
                event_type: self.event_type.unwrap_or_default(),
                source: cause.unwrap_or_else(|| Source::from(self.detail)),
            },
            "history_diverged" => match (self.cursor, self.found) {
                (Some(cursor), Some(found)) => Error::HistoryDiverged { cursor, found },
                _ => incomplete(&self.detail),
            },
            "full" => Error::Full { reason },
            "unsupported" => Error::Unsupported { what: reason },
            "invalid_option" => Error::InvalidOption { option: self.option.unwrap_or_default(), reason },
            "locked" | "cannot_open" | "not_found" => Error::Open { path: path(), reason: self.detail, source: cause },
            // The server's store is closed, but the client is not: the store may be reopened.
            "closed" | "unavailable" | "too_many" => Error::Unavailable { url: path(), reason, source: cause },
            "unauthorized" => Error::Forbidden {
                what: format!(
                    "{url} requires a valid token ({reason}); set EVENTSTORE_TOKEN, or name a file with ?token_file=PATH"
                ),
            },
            "forbidden" => Error::Forbidden { what: format!("{url}: {reason}") },
            // For example, the name of a store.
            "malformed" => Error::InvalidOption { option: "store".to_owned(), reason },
            "engine" => Error::Engine {
                operation: self.operation.unwrap_or_else(|| "answer".to_owned()).into(),
                source: cause.unwrap_or_else(|| Source::from(self.detail)),
            },
            _ if self.written == "unknown" => Error::OutcomeUnknown { reason: self.detail, source: cause },
            _ => incomplete(&self.detail),
        }
    }

    fn cause(&self) -> Option<Source> {
        let told = self.causes.iter().rev().fold(None, |cause, text| Some(Box::new(Told(text.clone(), cause))));
        told.map(|told| Source::from(*told))
    }
}

/// An answer from a newer server, or from something else.
fn incomplete(detail: &str) -> Error {
    Error::engine("do what was asked over HTTP", detail.to_owned())
}

/// The fields of `InvalidEvent`, as literals of this program.
fn known_field(field: Option<&str>) -> &'static str {
    const FIELDS: [&str; 8] = ["id", "type", "aggregate_id", "data", "metadata", "batch", "recorded_at", "expected"];
    FIELDS.into_iter().find(|known| Some(*known) == field).unwrap_or("event")
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        // What comes from the request is the client's fault.
        let status = match error {
            Error::InvalidOption { .. } => 400,
            _ => error.http_status(),
        };
        let mut problem = Problem::new(status, error.code(), error.to_string());
        problem.retryable = error.is_retryable();
        problem.written = match error.written() {
            Written::Nothing => "nothing".to_owned(),
            Written::Unknown => "unknown".to_owned(),
        };
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            problem.causes.push(error.to_string());
            cause = error.source();
        }
        match error.clone() {
            Error::VersionConflict { expected, actual } => {
                problem.expected = Some(expected);
                problem.actual = match actual {
                    Actual::Aggregate { id, revision } => Some(ActualForm::Aggregate { aggregate_id: id, revision }),
                    Actual::Store { latest } => Some(ActualForm::Store { latest_version: latest }),
                    _ => None,
                };
            }
            Error::DuplicateEvent { id, version } => (problem.id, problem.version) = (Some(id), version),
            Error::EventNotFound { id } => problem.id = Some(id),
            Error::InvalidEvent { field, reason } => {
                (problem.field, problem.reason) = (Some(field.to_owned()), Some(reason));
            }
            Error::InvalidVersion { text, reason } => (problem.text, problem.reason) = (Some(text), Some(reason)),
            Error::OutcomeUnknown { reason, source } => {
                problem.reason = Some(reason);
                let is_fenced = |source: &Source| matches!(source.downcast_ref(), Some(Error::Fenced { .. }));
                problem.fenced = source.as_ref().is_some_and(is_fenced);
            }
            Error::Fenced { reason } | Error::Full { reason } | Error::Unavailable { reason, .. } => {
                problem.reason = Some(reason);
            }
            Error::Corrupt { version, reason } => (problem.version, problem.reason) = (version, Some(reason)),
            Error::Decode { version, event_type, .. } => {
                (problem.version, problem.event_type) = (version, Some(event_type));
            }
            Error::HistoryDiverged { cursor, found } => (problem.cursor, problem.found) = (Some(cursor), Some(found)),
            Error::Unsupported { what } | Error::Forbidden { what } => problem.reason = Some(what),
            Error::InvalidOption { option, reason } => {
                (problem.option, problem.reason) = (Some(option), Some(reason));
            }
            Error::Engine { operation, .. } => problem.operation = Some(operation.into_owned()),
            _ => {}
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_back() {
        let text = |text: &str| text.to_owned();
        let aggregate = Actual::Aggregate { id: text("a"), revision: Revision::new(3) };
        let conflict = |actual| Error::VersionConflict { expected: Expected::Revision(Revision::new(2)), actual };
        let cursor: Cursor = "7-0123abcd".parse().expect("a cursor");
        for error in [
            conflict(aggregate),
            conflict(Actual::Store { latest: Version::new(9) }),
            Error::DuplicateEvent { id: text("i"), version: Some(Version::new(4)) },
            Error::DuplicateEvent { id: text("i"), version: None },
            Error::EventNotFound { id: text("i") },
            Error::invalid_event("aggregate_id", "it is empty"),
            Error::InvalidVersion { text: text("x"), reason: text("no number") },
            Error::Cancelled,
            Error::DeadlineExceeded,
            Error::OutcomeUnknown { reason: text("EIO"), source: Some("EIO".into()) },
            Error::OutcomeUnknown { reason: text("EIO"), source: None },
            Error::Fenced { reason: text("EIO") },
            Error::Corrupt { version: Some(Version::new(3)), reason: text("its checksum") },
            Error::Decode { version: None, event_type: text("T"), source: "no field".into() },
            Error::HistoryDiverged { cursor, found: Cursor::START },
            Error::Full { reason: text("1 MiB") },
            Error::Unsupported { what: text("backups") },
            Error::InvalidOption { option: text("since"), reason: text("no number") },
            Error::engine("read a page", "EIO"),
        ] {
            let json = Problem::from(&error).to_json();
            let problem: Problem = serde_json::from_str(&json).expect("JSON");
            assert_eq!(problem.status, if problem.code == "invalid_option" { 400 } else { error.http_status() });
            let back = problem.into_error("http://host");
            assert_eq!((back.to_string(), back.code()), (error.to_string(), error.code()));
            assert_eq!((back.written(), back.is_retryable()), (error.written(), error.is_retryable()), "{error:?}");
            let cause = |error: &Error| std::error::Error::source(error).map(ToString::to_string);
            assert_eq!(cause(&back), cause(&error));
        }
    }

    #[test]
    fn a_fenced_unknown_outcome_is_not_retryable_on_the_other_side() {
        let source = Error::Fenced { reason: "EIO".to_owned() }.into();
        let error = Error::OutcomeUnknown { reason: "EIO".to_owned(), source: Some(source) };
        let back = Problem::from(&error).into_error("http://host");
        assert!(!back.is_retryable() && back.written() == Written::Unknown);
    }

    #[test]
    fn what_a_later_server_says_is_an_error_with_its_text() {
        let mut problem = Problem::new(418, "teapot", "short and stout");
        let error = problem.clone().into_error("http://host");
        assert!(matches!(error, Error::Engine { .. }));
        assert_eq!(std::error::Error::source(&error).expect("a cause").to_string(), "short and stout");
        problem.written = "unknown".to_owned();
        assert!(matches!(problem.into_error("http://host"), Error::OutcomeUnknown { .. }));
        let read: Problem = serde_json::from_str(
            r#"{"type":"x","title":"","status":503,"code":"closed","detail":"","written":"nothing","retryable":false,"new":1}"#,
        )
        .expect("unknown members are ignored");
        assert!(matches!(read.into_error("http://host"), Error::Unavailable { .. }));
    }
}

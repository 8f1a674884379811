//! Converts errors of the server to those of the contract.

use std::fmt;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use eventstore_api::{Error, Result, Source};
use tokio_postgres::error::{Severity, SqlState};

pub(crate) type PgError = tokio_postgres::Error;

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// It was refused or lost, or the server rejected it.
    Refused(PgError),
    /// The server accepted it but did not answer for this time.
    Silent(Duration),
}

impl From<PgError> for ConnectError {
    fn from(error: PgError) -> Self {
        ConnectError::Refused(error)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Refused(error) => f.write_str(&reason(error)),
            ConnectError::Silent(limit) => write!(f, "the server did not answer within {limit:?}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// The error as a source with the text of [`reason`], so that nobody prints it twice.
pub(crate) fn cause(error: PgError) -> Source {
    ConnectError::Refused(error).into()
}

/// Why a store that must exist cannot be opened.
pub(crate) const NO_STORE: &str =
    "there is no store in this schema; check `schema=` in the URL; appending, importing or copying to it creates it";

/// Why an operation failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// A retry may succeed: the server was away, or busy with somebody else.
    Passing { reason: String, source: Source, is_lost: bool },
    /// A retry would fail again.
    Final(Error),
}

impl Failed {
    /// The error of a call that is not retried.
    pub(crate) fn into_error(self, url: &str) -> Error {
        match self {
            Failed::Final(error) => error,
            Failed::Passing { reason, source, .. } => {
                Error::Unavailable { url: url.to_owned(), reason, source: Some(source) }
            }
        }
    }

    /// Converts an error of `operation` on the server at `url`.
    pub(crate) fn of(error: impl Into<ConnectError>, url: &str, operation: &'static str) -> Self {
        let error = match error.into() {
            ConnectError::Refused(error) => error,
            silent @ ConnectError::Silent(_) => {
                return Failed::Passing { reason: silent.to_string(), source: silent.into(), is_lost: true };
            }
        };
        let reason = reason(&error);
        let Some(code) = error.code() else {
            if reason.ends_with("password missing") {
                let what = format!(
                    "{url}: the server asks for a password; set PGPASSWORD, or name a password_file in the URL"
                );
                return Failed::Final(Error::Forbidden { what });
            }
            if reason.ends_with("server does not support TLS") {
                let reason = format!("{reason}; set ssl = on there, or write sslmode=disable if the network is safe");
                return Failed::Final(Error::Open { path: url.to_owned(), reason, source: Some(cause(error)) });
            }
            // Not an answer of the server: a lost or refused connection, or something that cannot be read.
            return match can_connect_later(&error) {
                true => Failed::Passing { reason, source: cause(error), is_lost: true },
                false => Failed::Final(Error::Open { path: url.to_owned(), reason, source: Some(cause(error)) }),
            };
        };
        let text = code.code();
        let is_over = error
            .as_db_error()
            .is_some_and(|error| matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)));
        let path = || url.to_owned();
        match (code, &text[..2]) {
            (&SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED, _) => {
                Failed::Passing { reason, source: cause(error), is_lost: false }
            }
            // Somebody else holds a lock for too long.
            (&SqlState::LOCK_NOT_AVAILABLE, _) => Failed::Passing { reason, source: cause(error), is_lost: false },
            // A server that was the primary or will become one; another one may be it by now.
            (&SqlState::READ_ONLY_SQL_TRANSACTION, _) => {
                Failed::Passing { reason: "it takes no writes".to_owned(), source: cause(error), is_lost: true }
            }
            (&SqlState::QUERY_CANCELED, _) => Failed::Final(Error::engine(
                format!("{operation}: the server ended it ({reason}); raise its statement_timeout for this user"),
                cause(error),
            )),
            (&SqlState::DISK_FULL, _) => Failed::Final(Error::Full {
                reason: format!("{url} has no room ({reason}); make room on the server's disk"),
            }),
            (&SqlState::INSUFFICIENT_PRIVILEGE, _) => Failed::Final(Error::Forbidden {
                what: format!("{reason}; grant it to this user, or open the store as another"),
            }),
            (&SqlState::INVALID_CATALOG_NAME, _) => Failed::Final(Error::Open {
                path: path(),
                reason: format!("{reason}; create the database first"),
                source: Some(cause(error)),
            }),
            (&SqlState::INVALID_SCHEMA_NAME | &SqlState::UNDEFINED_TABLE, _) => {
                Failed::Final(Error::Open { path: path(), reason: NO_STORE.to_owned(), source: Some(cause(error)) })
            }
            (&SqlState::INVALID_PASSWORD, _) => Failed::Final(Error::Forbidden {
                what: format!("{url}: {reason}; check PGPASSWORD, the password_file, or the password in the URL"),
            }),
            (_, "28") => Failed::Final(Error::Forbidden {
                what: format!("{url}: {reason}; check the user in the URL, and pg_hba.conf on the server"),
            }),
            (_, "08" | "57" | "53") => Failed::Passing { reason, source: cause(error), is_lost: true },
            (_, "XX") if text != "XX000" => Failed::Final(Error::Corrupt {
                version: None,
                reason: format!("{reason}; restore a backup of the database"),
            }),
            // The URL has settings that the server rejects.
            (_, "22" | "42") if is_over => {
                Failed::Final(Error::Open { path: path(), reason, source: Some(cause(error)) })
            }
            _ if is_over => Failed::Passing { reason, source: cause(error), is_lost: true },
            _ => Failed::Final(Error::engine(format!("{operation}: {reason}"), cause(error))),
        }
    }
}

/// The server's message, or why there is none.
pub(crate) fn reason(error: &PgError) -> String {
    if let Some(error) = error.as_db_error() {
        return match error.detail() {
            Some(detail) => format!("{} ({detail})", error.message()),
            None => error.message().to_owned(),
        };
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Whether a later attempt may connect. False if the cause is what the program requests.
fn can_connect_later(error: &PgError) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return false;
        }
        // rustls passes its errors on as read errors.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && inner.is::<rustls::Error>()
        {
            return false;
        }
        cause = error.source();
    }
    true
}

/// The attempts of one call, within its time limit for retries.
pub(crate) struct Retries {
    began: Instant,
    limit: Duration,
    pauses: ExponentialBackoff,
}

impl Retries {
    pub(crate) fn new(limit: Duration) -> Self {
        Retries { began: Instant::now(), limit, pauses: pauses() }
    }

    /// The pause before the next attempt, and its reason; the error if there is no further attempt.
    pub(crate) fn after(&mut self, failed: Failed, url: &str) -> Result<(Duration, String)> {
        let (reason, source) = match failed {
            Failed::Final(error) => return Err(error),
            Failed::Passing { reason, source, .. } => (reason, source),
        };
        let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        match self.began.elapsed() + pause > self.limit {
            true => Err(Error::Unavailable { url: url.to_owned(), reason, source: Some(source) }),
            false => Ok((pause, reason)),
        }
    }
}

pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pauses between attempts: random, each up to twice as long as the one before.
pub(crate) fn pauses() -> ExponentialBackoff {
    let pauses = ExponentialBuilder::new().with_min_delay(Duration::from_millis(5)).with_max_delay(LONGEST_PAUSE);
    pauses.with_factor(2.0).with_jitter().without_max_times().build()
}

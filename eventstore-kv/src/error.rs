//! Converts errors of the log to those of the contract.

use eventstore_api::{Error, Version};
use eventstore_log as log;

pub(crate) fn log_error(error: log::Error) -> Error {
    match error {
        log::Error::Corrupt { record, reason } => Error::Corrupt { version: record.map(Version::new), reason },
        log::Error::Full { reason } => Error::Full { reason },
        log::Error::Unsupported { what } => Error::Unsupported { what },
        log::Error::Fenced { reason } => Error::Fenced { reason },
        other => Error::engine("use the log", other),
    }
}

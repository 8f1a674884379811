//! Converts errors of the log to those of the contract.

use eventstore_api::{Error, Version};
use eventstore_log as log;

pub(crate) fn log_error(error: log::Error) -> Error {
    match error {
        log::Error::Corrupt { record, reason } => Error::Corrupt { version: record.map(Version::new), reason },
        // The disk, a quota, or a limit on the size of files.
        log::Error::Full { reason } => {
            Error::Full { reason: format!("{reason}; make room on the store's disk, or raise its limit") }
        }
        log::Error::Unsupported { what } => Error::Unsupported { what },
        log::Error::Fenced { reason } => Error::Fenced { reason },
        other => Error::engine("use the log", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_helps() {
        let error = log_error(log::Error::Full { reason: "cannot write x: no space".to_owned() });
        let told = error.to_string();
        assert!(told.contains("cannot write x: no space; make room on the store's disk, or raise its limit"), "{told}");
    }
}

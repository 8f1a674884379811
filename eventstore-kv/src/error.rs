//! Converts errors of the log to those of the contract.

use std::path::Path;

use eventstore_api::{Error, Version};
use eventstore_log as log;

pub(crate) fn log_error(error: log::Error) -> Error {
    match error {
        log::Error::Corrupt { record, reason } => Error::Corrupt { version: record.map(Version::new), reason },
        log::Error::Full { reason } => full(&reason, "the store's disk"),
        log::Error::Unsupported { what } => Error::Unsupported { what },
        log::Error::Fenced { reason } => Error::Fenced { reason },
        other => Error::engine("use the log", other),
    }
}

/// The same for an append to the store in this directory, if it has one.
pub(crate) fn append_error(error: log::Error, directory: Option<&Path>) -> Error {
    match (error, directory) {
        (log::Error::Full { reason }, Some(path)) => full(&reason, &format!("the disk of {}", path.display())),
        (error, _) => log_error(error),
    }
}

/// What is full may be the disk, a quota, or a limit on the size of files.
fn full(reason: &str, disk: &str) -> Error {
    Error::Full { reason: format!("{reason}; make room on {disk}, or raise its limit") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_helps() {
        for (directory, disk) in [(None, "the store's disk"), (Some(Path::new("/data/shop")), "the disk of /data/shop")]
        {
            let error = append_error(log::Error::Full { reason: "cannot write x: no space".to_owned() }, directory);
            let told = error.to_string();
            assert!(told.contains(&format!("x: no space; make room on {disk}, or raise its limit")), "{told}");
        }
    }
}

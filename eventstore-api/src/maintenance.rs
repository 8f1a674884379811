use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, Version};

/// How much a garbage collection may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gc {
    /// What can run beside reads and appends; suited to a periodic task.
    #[default]
    Quick,
    /// Everything that makes the files smaller, including rewriting them. It may take as long as reading and writing
    /// the whole store, temporarily need as much space again, and delay appends.
    Full,
}

impl fmt::Display for Gc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gc::Quick => "quick",
            Gc::Full => "full",
        })
    }
}

impl FromStr for Gc {
    type Err = Error;

    /// Reads `quick` or `full`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "quick" => Ok(Gc::Quick),
            "full" => Ok(Gc::Full),
            _ => Err(Error::InvalidOption {
                option: "gc".to_owned(),
                reason: format!("{text:?} is not one of quick, full"),
            }),
        }
    }
}

/// What a garbage collection did.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct GcReport {
    /// Bytes on disk before; `None` for a store in memory.
    pub bytes_before: Option<u64>,
    /// Bytes on disk after; `None` for a store in memory.
    pub bytes_after: Option<u64>,
    /// What was done, a few words for each step.
    pub actions: Vec<String>,
}

/// The result of a backup.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct BackupReport {
    /// The newest version in the backup, which has every event up to it.
    pub latest_version: Version,
    /// Bytes that its files take on disk.
    pub bytes_on_disk: u64,
}

/// The result of a verification.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct VerifyReport {
    /// Events that were checked: the latest version when the verification began.
    pub events: u64,
    /// The number of aggregates that these events belong to.
    pub aggregates: u64,
    /// What is wrong, at most [`VerifyReport::MOST_FINDINGS`] entries.
    pub findings: Vec<Finding>,
    /// Whether the verification stopped early because of too many findings.
    pub is_cut_short: bool,
}

impl VerifyReport {
    /// A verification stops after this many findings.
    pub const MOST_FINDINGS: usize = 100;

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Finding {
    /// The version of the event concerned, if there is one.
    pub version: Option<Version>,
    /// What is wrong.
    pub what: String,
}

impl Finding {
    /// For stores: a finding, with the version of the event concerned if there is one.
    #[must_use]
    pub fn new(version: Option<Version>, what: impl Into<String>) -> Self {
        Finding { version, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "version {version}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

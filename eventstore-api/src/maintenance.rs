use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, Version};

/// How much a garbage collection may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gc {
    /// What can be done beside reads and appends; right for a periodic task.
    #[default]
    Quick,
    /// Everything that makes the files smaller, up to writing them anew. It may take as long as reading and writing the
    /// whole store, need as much space again meanwhile, and hold up appends.
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
    /// What was done, in a few words each.
    pub actions: Vec<String>,
}

/// What a backup holds.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct BackupReport {
    /// The newest version in the backup: it has every event up to it.
    pub latest_version: Version,
    /// Bytes that its files take on disk.
    pub bytes_on_disk: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct VerifyReport {
    /// Events that were checked: the latest version when the verification began.
    pub events: u64,
    /// Aggregates that they belong to.
    pub aggregates: u64,
    /// What is wrong, at most [`VerifyReport::MOST_FINDINGS`]: more would tell no more.
    pub findings: Vec<Finding>,
    /// Whether it ended early because there was too much to report.
    pub is_cut_short: bool,
}

impl VerifyReport {
    /// A verification ends after this many findings.
    pub const MOST_FINDINGS: usize = 100;

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Finding {
    /// The version of the event that it is about, if it is about one.
    pub version: Option<Version>,
    /// What is wrong.
    pub what: String,
}

impl Finding {
    /// For stores: something is wrong, with the event at this version if it is about one.
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

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A position in the whole store: the first event has version 1, and there are no gaps (rule O1).
///
/// [`Version::ZERO`] is before every event, so `load(.., Version::ZERO)` loads all of them. The text form is the plain
/// decimal number.
///
/// ```
/// use eventstore_api::Version;
///
/// let version: Version = "42".parse()?;
/// assert_eq!(version, Version::new(42));
/// assert_eq!(version.to_string(), "42");
/// assert!("-1".parse::<Version>().is_err());
/// # Ok::<(), eventstore_api::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Version(u64);

impl Version {
    /// Before every event. It is also the latest version of an empty store.
    pub const ZERO: Version = Version(0);

    /// The version with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Version(number)
    }

    /// The number of this version.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The version after this one. The largest version stays as it is.
    #[must_use]
    pub const fn next(self) -> Self {
        Version(self.0.saturating_add(1))
    }
}

impl From<u64> for Version {
    fn from(number: u64) -> Self {
        Version(number)
    }
}

impl From<Version> for u64 {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a decimal number of ASCII digits: no sign, no fraction, no spaces, at most `u64::MAX`.
impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |reason: &str| Error::InvalidVersion { text: text.to_owned(), reason: reason.to_owned() };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid("a version is a whole decimal number without a sign"));
        }
        text.parse().map(Version).map_err(|_| invalid("it is larger than 18446744073709551615"))
    }
}

/// A position in one aggregate: the first event of an aggregate has revision 1, and there are no gaps (rule O3).
///
/// [`Revision::ZERO`] is the revision of an aggregate without events, so an aggregate's revision is also its number of
/// events. The text form is the plain decimal number.
///
/// ```
/// use eventstore_api::{Expected, Revision};
///
/// let seen = Revision::new(3);
/// assert_eq!(Expected::Revision(seen).to_string(), "revision=3");
/// assert_eq!(seen.next(), Revision::new(4));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Revision(u64);

impl Revision {
    /// The revision of an aggregate without events.
    pub const ZERO: Revision = Revision(0);

    /// The revision with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Revision(number)
    }

    /// The number of this revision.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision after this one. The largest revision stays as it is.
    #[must_use]
    pub const fn next(self) -> Self {
        Revision(self.0.saturating_add(1))
    }
}

impl From<u64> for Revision {
    fn from(number: u64) -> Self {
        Revision(number)
    }
}

impl From<Revision> for u64 {
    fn from(revision: Revision) -> Self {
        revision.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a decimal number, like [`Version`].
impl FromStr for Revision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(|version: Version| Revision(version.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_decimal_number_and_nothing_else() {
        for (text, number) in [("0", 0), ("1", 1), ("007", 7), ("18446744073709551615", u64::MAX)] {
            assert_eq!(text.parse::<Version>().ok(), Some(Version::new(number)), "{text}");
        }
        for text in ["", "-1", "+1", "1.0", "1e3", " 1", "1 ", "0x1", "v1", "18446744073709551616", "\u{0661}"] {
            assert!(matches!(text.parse::<Version>(), Err(Error::InvalidVersion { .. })), "{text:?}");
        }
    }
}

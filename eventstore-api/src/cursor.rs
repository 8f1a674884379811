use std::fmt;
use std::str::FromStr;

use crate::{Digest, Error, Result, Version};

/// A position in one history: a version, and the beginning of the [`Digest`] at that version.
///
/// A plain version says how far somebody has read, but not in which history. After a backup was restored, or after
/// buffered events were lost in a power cut, other events may have the same versions. Resuming from a cursor of another
/// history fails with [`Error::HistoryDiverged`] instead of silently skipping events.
///
/// The text form is the version and eight hexadecimal digits, such as `1987-9f86d081`. Two different histories have the
/// same digits with a probability of one in four thousand million (2^32).
///
/// ```
/// use eventstore_api::{Cursor, Version};
///
/// let cursor: Cursor = "1987-9f86d081".parse()?;
/// assert_eq!(cursor.version(), Version::new(1987));
/// assert_eq!(cursor.to_string(), "1987-9f86d081");
/// assert_eq!(Cursor::START.to_string(), "0-00000000");
/// # Ok::<(), eventstore_api::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    version: Version,
    check: u32,
}

impl Cursor {
    /// Before the first event: the same position in every history.
    pub const START: Cursor = Cursor { version: Version::ZERO, check: 0 };

    /// The position after the event with this version, where the store has this digest.
    #[must_use]
    pub fn new(version: Version, digest: Digest) -> Self {
        let [a, b, c, d, ..] = *digest.as_bytes();
        Cursor { version, check: u32::from_be_bytes([a, b, c, d]) }
    }

    /// The version of the last event before the position; [`Version::ZERO`] at the start.
    #[must_use]
    pub const fn version(self) -> Version {
        self.version
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Cursor::START
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.version, self.check)
    }
}

/// Reads a version, a hyphen and eight hexadecimal digits.
impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidVersion {
            text: text.to_owned(),
            reason: "a cursor is a version, a hyphen and eight hexadecimal digits, such as 1987-9f86d081".to_owned(),
        };
        let (version, check) = text.split_once('-').ok_or_else(invalid)?;
        if check.len() != 8 || !check.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let version = version.parse().map_err(|_| invalid())?;
        let check = u32::from_str_radix(check, 16).map_err(|_| invalid())?;
        Ok(Cursor { version, check })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_read_back_and_nothing_else_is() {
        let digest: Digest = format!("9f86d081{}", "0".repeat(56)).parse().expect("a digest");
        let cursor = Cursor::new(Version::new(1987), digest);
        assert_eq!(cursor.to_string(), "1987-9f86d081");
        assert_eq!(cursor.to_string().to_uppercase().parse::<Cursor>().ok(), Some(cursor));
        assert_eq!(Cursor::new(Version::ZERO, Digest::EMPTY), Cursor::START);
        for wrong in ["", "1987", "1987-", "-9f86d081", "1987-9f86d08", "1987-9f86d0811", "1987-+f86d081", "x-9f86d081"]
        {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong:?}");
        }
    }
}

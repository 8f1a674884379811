//! The file that records how far the log was synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use eventstore_api::{Result, Version};

use crate::StoreDirectory;
use crate::files::directory::cannot_open;
use crate::files::place::Place;

/// The file's name in the store's directory.
pub(crate) const HEAD_FILE: &str = "eventstore.head";

const LEN: usize = 2 * size_of::<u64>();

/// Writes the version up to which the log is synced.
///
/// A log whose end is damaged or lost looks as it does after a power cut: the log itself does not show that the end had
/// been synced. This file does.
///
/// The file is written after each sync and not synced itself. It may be too low, but never too high.
#[derive(Debug)]
pub(crate) struct HeadFile {
    path: PathBuf,
    place: Place,
    /// Opened when the first version is written.
    file: Option<File>,
    has_failed: bool,
}

impl HeadFile {
    pub(crate) fn new(directory: &StoreDirectory) -> Self {
        let (path, place) = (path_in(directory.path()), directory.place().clone());
        HeadFile { path, place, file: None, has_failed: false }
    }

    /// The log is synced up to this version.
    pub(crate) fn write(&mut self, version: Version) {
        // If this fails, a later loss may go unnoticed, but the store must remain usable.
        if let Err(error) = self.try_write(version)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            let path = self.path.display();
            tell!(warn, %path, %error, "it could not be written; if the log loses its end, that may go unnoticed");
        }
    }

    fn try_write(&mut self, version: Version) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                self.place.check().map_err(io::Error::other)?;
                none.insert(OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?)
            }
        };
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&bytes_of(version))
    }
}

impl StoreDirectory {
    /// The version up to which the log was synced, or an earlier one.
    ///
    /// # Errors
    ///
    /// `Open` if the file cannot be read.
    pub(crate) fn synced_head(&self) -> Result<Version> {
        let path = path_in(self.path());
        match fs::read(&path) {
            Ok(bytes) => Ok(version_in(&bytes).unwrap_or(Version::ZERO)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Version::ZERO),
            Err(error) => Err(cannot_open(&path, "it cannot be read", error)),
        }
    }

    /// Accepts that the log ends earlier. Returns a description if there was a file that said how far it was synced.
    ///
    /// # Errors
    ///
    /// `Open` if the file cannot be moved.
    pub(crate) fn forget_synced_head(&self) -> Result<Option<String>> {
        let synced = self.synced_head()?;
        let path = path_in(self.path());
        match fs::rename(&path, path.with_extension("head.old")) {
            Ok(()) => Ok(Some(format!(
                "forgot that the log was synced up to version {synced}: the end of the log is accepted as it is"
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot_open(&path, "it cannot be moved", error)),
        }
    }
}

fn path_in(directory: &Path) -> PathBuf {
    directory.join(HEAD_FILE)
}

/// The version and its complement, so that a half-written or damaged file is detected.
fn bytes_of(version: Version) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let (plain, complement) = bytes.split_at_mut(LEN / 2);
    plain.copy_from_slice(&version.get().to_be_bytes());
    complement.copy_from_slice(&(!version.get()).to_be_bytes());
    bytes
}

fn version_in(bytes: &[u8]) -> Option<Version> {
    let (plain, _) = bytes.split_first_chunk()?;
    let version = Version::new(u64::from_be_bytes(*plain));
    (bytes == bytes_of(version)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(temporary: &Path) -> StoreDirectory {
        StoreDirectory::open(temporary, "test").expect("opened")
    }

    #[test]
    fn it_tells_what_was_written_last_until_that_is_forgotten() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = directory(temporary.path());
        let synced = || directory.synced_head().expect("read").get();
        assert_eq!(synced(), 0, "nothing is known yet");
        let mut head = HeadFile::new(&directory);
        for version in [7, 300, 299] {
            head.write(Version::new(version));
            assert_eq!(synced(), version);
        }
        assert!(directory.forget_synced_head().expect("moved").is_some());
        assert_eq!(synced(), 0);
        assert!(directory.forget_synced_head().expect("there is nothing to forget").is_none());
    }

    #[test]
    fn a_damaged_file_is_not_believed() {
        let sound = bytes_of(Version::new(0x0102_0304));
        assert_eq!(version_in(&sound), Some(Version::new(0x0102_0304)));
        for bit in 0..LEN * 8 {
            let mut damaged = sound;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(version_in(&damaged), None, "bit {bit}");
        }
        for len in 0..LEN {
            assert_eq!(version_in(&sound[..len]), None, "{len} bytes");
        }
    }
}

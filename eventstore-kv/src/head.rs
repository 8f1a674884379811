//! How far the log was synced, told by a file beside the engine's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use eventstore_api::{Error, Result, Version};

use crate::StoreDirectory;
use crate::directory::cannot_open;

/// The file's name, in the store's directory.
pub(crate) const HEAD_FILE: &str = "eventstore.head";

const LEN: usize = 2 * size_of::<u64>();

/// Writes the version up to which the log is synced.
///
/// An engine that finds the end of its log damaged or gone takes that for the traces of a power cut, and drops it without a
/// word: it cannot know that the end had been synced. Here it stands.
///
/// The file is written after each sync, and not synced itself: what it says may be old, and is never too much.
#[derive(Debug)]
pub(crate) struct HeadFile {
    path: PathBuf,
    /// Opened with the first version.
    file: Option<File>,
    has_failed: bool,
}

impl HeadFile {
    pub(crate) fn new(directory: &StoreDirectory) -> Self {
        HeadFile { path: path_in(directory.path()), file: None, has_failed: false }
    }

    /// The log is synced up to this version.
    pub(crate) fn write(&mut self, version: Version) {
        // What is not written here is only not noticed later. So it must not keep the store from going on.
        if let Err(error) = self.try_write(version)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "it could not be written; events that the engine loses may go unnoticed");
        }
    }

    fn try_write(&mut self, version: Version) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?),
        };
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&bytes_of(version))
    }
}

impl StoreDirectory {
    /// Fails if the log was synced further than to `newest`, the newest version that the engine has now.
    ///
    /// # Errors
    ///
    /// `Corrupt` with the first version that is lost; `Open` if the file that tells cannot be read.
    pub fn check_synced_head(&self, newest: Version) -> Result<()> {
        let path = path_in(self.path());
        let synced = match fs::read(&path) {
            Ok(bytes) => version_in(&bytes).unwrap_or(Version::ZERO),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Version::ZERO,
            Err(error) => return Err(cannot_open(&path, "it cannot be read", error)),
        };
        if synced <= newest {
            return Ok(());
        }
        Err(Error::Corrupt {
            version: Some(newest.next()),
            reason: format!(
                "it and all behind it are lost, though the log was synced up to {synced}: the engine found its end damaged \
                 or missing, and dropped it; what is left opens without the file {HEAD_FILE}"
            ),
        })
    }

    /// Accepts what [`check_synced_head`](Self::check_synced_head) refuses, from now on.
    ///
    /// # Errors
    ///
    /// `Open` if the file cannot be deleted.
    pub fn forget_synced_head(&self) -> Result<()> {
        let path = path_in(self.path());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(cannot_open(&path, "it cannot be deleted", error))
            }
            _ => Ok(()),
        }
    }
}

fn path_in(directory: &Path) -> PathBuf {
    directory.join(HEAD_FILE)
}

/// The version and its complement, so that a half-written or damaged one is not believed.
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
    fn a_log_that_ends_before_its_synced_end_is_corrupt_until_that_is_accepted() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = directory(temporary.path());
        directory.check_synced_head(Version::ZERO).expect("nothing is known yet");
        let mut head = HeadFile::new(&directory);
        for version in [7, 300, 299] {
            head.write(Version::new(version));
        }
        directory.check_synced_head(Version::new(299)).expect("all is there");
        directory.check_synced_head(Version::new(1000)).expect("what was not synced may be there");
        let lost = directory.check_synced_head(Version::new(298));
        assert!(matches!(lost, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 299), "{lost:?}");
        directory.forget_synced_head().expect("forgotten");
        directory.check_synced_head(Version::new(298)).expect("accepted");
        directory.forget_synced_head().expect("there is nothing to forget");
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

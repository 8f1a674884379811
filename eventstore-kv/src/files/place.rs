//! Checks that the path of an open store still refers to it. If the directory was moved, deleted or replaced, files
//! created by path would get lost or end up in another store.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventstore_api::{Error, Result};
use eventstore_log::{Directory, DiskDirectory, File as LogFile};

/// The path and identity of a file. The file stays open as long as the store, so that no other file gets its number.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// `None` if there is no such file.
    identity: Option<Identity>,
}

#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = ();

#[cfg(unix)]
fn identity(metadata: &fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

// On other systems an open file cannot be moved or deleted.
#[cfg(not(unix))]
fn identity(_: &fs::Metadata) -> Identity {}

impl Place {
    /// The place of an open file.
    ///
    /// # Errors
    ///
    /// Those of the operating system.
    pub(crate) fn of(file: &File, path: PathBuf) -> io::Result<Self> {
        Ok(Place { path, identity: Some(identity(&file.metadata()?)) })
    }

    /// A place that cannot be checked.
    pub(crate) fn unknown(path: PathBuf) -> Self {
        Place { path, identity: None }
    }

    /// The directory of the file. Absolute if the file's path is.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Whether the file is still there.
    ///
    /// # Errors
    ///
    /// If that cannot be determined.
    pub(crate) fn is_kept(&self) -> io::Result<bool> {
        let Some(expected) = self.identity else { return Ok(true) };
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(identity(&metadata) == expected),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    ///
    /// `Open` if the file is certainly not there.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_kept() {
            Ok(false) => {
                Err(Error::Open { path: self.directory().display().to_string(), reason: LEFT.to_owned(), source: None })
            }
            Ok(true) | Err(_) => Ok(()),
        }
    }
}

const LEFT: &str =
    "it was moved, deleted or replaced while the store was open; close the store, and open it where it is now";

/// The files of a log in a directory that may be moved, deleted or replaced. In that case, nothing is created or
/// removed.
#[derive(Debug)]
pub(crate) struct KeptDirectory {
    files: DiskDirectory,
    place: Place,
}

impl KeptDirectory {
    pub(crate) fn new(path: &Path, place: Place) -> Self {
        KeptDirectory { files: DiskDirectory::new(path), place }
    }

    fn check(&self) -> io::Result<()> {
        self.place.check().map_err(io::Error::other)
    }

    /// Does something if the directory is in place. A failure is told as what it comes from if the directory has left
    /// meanwhile.
    fn keep<T>(&self, work: impl FnOnce(&DiskDirectory) -> io::Result<T>) -> io::Result<T> {
        self.check()?;
        work(&self.files).map_err(|error| self.check().err().unwrap_or(error))
    }
}

impl Directory for KeptDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        self.keep(|files| files.open(name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        self.keep(|files| files.create(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.keep(|files| files.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.keep(|files| files.remove(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.keep(Directory::sync)
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.keep(|files| files.subdirectory(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_deleted_or_replaced_is_not_kept() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("file");
        let old = File::create(&path).expect("created");
        let place = Place::of(&old, path.clone()).expect("looked at");
        assert!(place.is_kept().expect("looked at"));
        fs::remove_file(&path).expect("deleted");
        assert!(!place.is_kept().expect("looked at"));
        let _new = File::create(&path).expect("created");
        assert!(!place.is_kept().expect("looked at"));
        assert!(matches!(place.check(), Err(Error::Open { .. })));
    }
}

//! The file system interface of a log.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// A directory with the files of a log.
///
/// Names are created, changed and removed at once for everyone, but durably only after [`sync`](Self::sync).
pub trait Directory: Debug + Send + Sync {
    /// The names of the files and subdirectories, in any order.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    ///
    /// `NotFound` if it does not exist.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Creates a new, empty file.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if it exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Renames a file, replacing a file that has the new name.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. Open handles to the file remain usable.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes earlier changes of names durable: creations, renames and removals.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn sync(&self) -> io::Result<()>;

    /// A subdirectory. It is created if it is missing.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>>;

    /// Whether changes last longer than this value. If not, nothing is tidied up for the next opening.
    fn keeps_changes(&self) -> bool {
        true
    }

    /// Whether everything is in memory, so that caching and preallocation are pointless.
    fn is_memory(&self) -> bool {
        false
    }
}

/// An open file. Any number of threads may use it at the same time.
pub trait File: Debug + Send + Sync {
    /// The length in bytes.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    ///
    /// # Errors
    ///
    /// Those of [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Appends `len` bytes of the file, starting at this offset, to `out`, and returns their number. There are fewer
    /// only at the end of the file.
    ///
    /// # Errors
    ///
    /// The error of the operating system; then `out` is unchanged.
    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize>;

    /// Writes all of these bytes. The file grows if necessary.
    ///
    /// # Errors
    ///
    /// The error of the operating system. Some of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Truncates the file, or extends it by zeros.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Syncs the bytes, and the metadata needed to read them, to stable storage.
    ///
    /// # Errors
    ///
    /// The error of the operating system. Then unsynced data may be lost for good, and the next call may succeed
    /// nevertheless: an error is reported only once to each open handle.
    fn sync_data(&self) -> io::Result<()>;

    /// Syncs everything about the file to stable storage.
    ///
    /// # Errors
    ///
    /// Those of [`sync_data`](Self::sync_data).
    fn sync_all(&self) -> io::Result<()>;
}

/// Creates a file in place of what an earlier attempt left.
pub(crate) fn create_anew(directory: &dyn Directory, name: &str) -> io::Result<Arc<dyn File>> {
    match directory.create(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            directory.remove(name).and_then(|()| directory.create(name))
        }
        created => created,
    }
}

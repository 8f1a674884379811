//! What a log needs of the place where its files are.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// A directory with the files of a log.
///
/// Names are made, changed and removed at once for everyone who looks; they are durable only after [`sync`](Self::sync).
pub trait Directory: Debug + Send + Sync {
    /// The names of the files and subdirectories, in any order.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A file, for reading and writing.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none of this name.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// A new, empty file.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if there is one of this name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name, in place of a file that may have it.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. Who has the file open may use it further.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: whatever was made, renamed or removed before.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn sync(&self) -> io::Result<()>;

    /// A directory in this one. It is made if it is missing.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>>;

    /// Whether it all is in memory, so that a cache or space made ahead would be a waste.
    fn is_memory(&self) -> bool {
        false
    }
}

/// An open file. Any number of threads use it at the same time.
pub trait File: Debug + Send + Sync {
    /// How many bytes it has.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    ///
    /// As of [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Appends `len` bytes of the file, from this offset on, to `out`, and tells how many. They are fewer only at the
    /// file's end.
    ///
    /// # Errors
    ///
    /// What the operating system says; `out` has no more bytes than before then.
    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize>;

    /// Writes all of these bytes. The file grows if it has to.
    ///
    /// # Errors
    ///
    /// What the operating system says. Some of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Cuts the file, or lets it grow by zeros.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Brings the bytes, and what is needed to read them again, to stable storage.
    ///
    /// # Errors
    ///
    /// What the operating system says. What was not synced may be lost for good then, and the next call may succeed
    /// nevertheless: an error is reported once, to each who had the file open.
    fn sync_data(&self) -> io::Result<()>;

    /// Brings everything about the file to stable storage.
    ///
    /// # Errors
    ///
    /// As of [`sync_data`](Self::sync_data).
    fn sync_all(&self) -> io::Result<()>;
}

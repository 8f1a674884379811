use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Directory, File};

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct DiskDirectory {
    path: PathBuf,
}

impl DiskDirectory {
    /// The directory at this path. It must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DiskDirectory { path: path.into() }
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Directory for DiskDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        // A name that is not UTF-8 does not belong to the log.
        names.filter_map(Result::transpose).collect()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        sync_dir(&self.path)
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Arc::new(DiskDirectory { path })),
        }
    }
}

/// Makes the entries of a directory durable: the names of files that were created, renamed or deleted in it.
///
/// # Errors
///
/// Those of the operating system.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    // On other systems a directory cannot be synced, and need not be.
    if cfg!(unix) { fs::File::open(path)?.sync_all() } else { Ok(()) }
}

/// The directory in which a path has its entry.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a directory and its missing parents, and makes each new entry durable. Only the owner may access the
/// directory, and the group if the umask allows it. If it exists already, nothing is done: whoever created it may have
/// been killed before its entry was durable.
///
/// # Errors
///
/// `NotADirectory` if there is a file; those of the operating system.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    let mut private = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o770);
    create_dir(path, &private)
}

fn create_dir(path: &Path, builder: &fs::DirBuilder) -> io::Result<()> {
    match create_one_dir(path, builder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Err(error) };
            // Nothing can be created in some existing places, such as below /proc.
            if !parent.is_dir() {
                create_dir(parent, &fs::DirBuilder::new())?;
            }
            create_one_dir(path, builder) // somebody else may be creating it
        }
        created => created,
    }
}

/// Creates a directory in an existing parent. It may exist already.
fn create_one_dir(path: &Path, builder: &fs::DirBuilder) -> io::Result<()> {
    match builder.create(path) {
        Ok(()) => {
            let parent = parent_of(path);
            sync_dir(parent).inspect_err(|_| {
                // A later sync may succeed and not make this entry durable. So the next attempt makes a new one.
                let _ = fs::remove_dir(path);
            })?;
            // Whoever created the parent may have been killed before its entry was durable. Those above it may be of
            // others, and unreadable.
            match sync_dir(parent_of(parent)) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                synced => synced,
            }
        }
        Err(_) if path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(io::ErrorKind::NotADirectory, "it is a file, not a directory"))
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct DiskFile(fs::File);

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let start = out.len();
        let result = read_all_at(&self.0, out, at, len);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        platform::write_all_at(&self.0, bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

pub(crate) fn read_all_at(file: &fs::File, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
    let mut done = 0;
    out.reserve(len);
    while done < len {
        match platform::read_at(file, out, at + done as u64, len - done) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(unix)]
mod platform {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    use rustix::buffer::spare_capacity;

    /// Reads directly into the spare capacity of the vector, which is at least `len`. Returns the number of bytes.
    pub(super) fn read_at(file: &File, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let room = out.capacity() - out.len();
        // Reading slightly more than needed is faster than zeroing memory first; reading much more is not.
        if room <= len + len / 8 {
            let count = rustix::io::pread(file, spare_capacity(out), at)?;
            let surplus = count.saturating_sub(len);
            out.truncate(out.len() - surplus);
            return Ok(count - surplus);
        }
        let start = out.len();
        out.resize(start + len, 0);
        let result = file.read_at(&mut out[start..], at);
        out.truncate(start + result.as_ref().map_or(0, |count| *count));
        result
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }
}

#[cfg(windows)]
mod platform {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub(super) fn read_at(file: &File, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let start = out.len();
        out.resize(start + len, 0);
        let result = file.seek_read(&mut out[start..], at);
        out.truncate(start + result.as_ref().map_or(0, |count| *count));
        result
    }

    pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match file.seek_write(bytes, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(not(any(unix, windows)))]
mod platform {
    use std::fs::File;
    use std::io::{self, Read, Seek, SeekFrom, Write};
    use std::sync::{Mutex, PoisonError};

    /// A file has a single position here, so concurrent reads and writes must not interleave.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    pub(super) fn read_at(mut file: &File, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(at))?;
        file.take(len as u64).read_to_end(out)
    }

    pub(super) fn write_all_at(mut file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_where_they_were_written() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = DiskDirectory::new(temporary.path());
        let file = directory.create("a").expect("created");
        assert!(directory.create("a").is_err());
        file.write_at(b"0123456789", 5).expect("written");
        assert_eq!(file.len().expect("its length"), 15);
        for capacity in [0, 4, 5, 100] {
            let mut out = Vec::with_capacity(capacity);
            assert_eq!(file.read_at(&mut out, 6, 4).expect("read"), 4);
            assert_eq!(out, b"1234");
            assert_eq!(file.read_at(&mut out, 13, 4).expect("read"), 2);
            assert_eq!(out, b"123489");
        }
        directory.rename("a", "b").expect("renamed");
        directory.subdirectory("c").expect("made").create("d").expect("created");
        directory.subdirectory("c").expect("there").open("d").expect("opened");
        directory.sync().expect("synced");
        let mut names = directory.list().expect("listed");
        names.sort();
        assert_eq!(names, ["b", "c"]);
        directory.remove("b").expect("removed");
        assert!(directory.open("b").is_err());
    }
}

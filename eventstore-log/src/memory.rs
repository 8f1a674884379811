use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Directory, File};

/// A directory in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDirectory(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    files: BTreeMap<String, Arc<MemoryFile>>,
    directories: BTreeMap<String, MemoryDirectory>,
}

impl MemoryDirectory {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory for MemoryDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = self.entries();
        Ok(entries.files.keys().chain(entries.directories.keys()).cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.entries().files.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut entries = self.entries();
        if entries.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::<MemoryFile>::default();
        entries.files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut entries = self.entries();
        let file = entries.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        entries.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.entries().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        Ok(Arc::new(self.entries().directories.entry(name.to_owned()).or_default().clone()))
    }

    fn is_memory(&self) -> bool {
        true
    }
}

#[derive(Debug, Default)]
struct MemoryFile(RwLock<Vec<u8>>);

impl MemoryFile {
    fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let bytes = self.bytes();
        let start = in_memory(at)?.min(bytes.len());
        let end = start.saturating_add(len).min(bytes.len());
        out.extend_from_slice(&bytes[start..end]);
        Ok(end - start)
    }

    fn write_at(&self, new: &[u8], at: u64) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let start = in_memory(at)?;
        // An empty write does not extend a file.
        if bytes.len() < start && !new.is_empty() {
            bytes.resize(start, 0);
        }
        let start = start.min(bytes.len());
        let overwritten = new.len().min(bytes.len() - start);
        bytes[start..start + overwritten].copy_from_slice(&new[..overwritten]);
        bytes.extend_from_slice(&new[overwritten..]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes_mut().resize(in_memory(len)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

fn in_memory(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_files_and_writes_make_them_grow() {
        let directory = MemoryDirectory::default();
        let file = directory.create("a").expect("created");
        file.write_at(b"abc", 2).expect("written");
        file.write_at(b"xyz", 4).expect("written");
        let mut out = b">".to_vec();
        let shared = directory.clone().open("a").expect("opened");
        assert_eq!(shared.read_at(&mut out, 1, 10).expect("read"), 6);
        assert_eq!(out, b">\0abxyz");
        shared.set_len(3).expect("cut");
        assert_eq!(file.len().expect("its length"), 3);
        assert_eq!(file.read_at(&mut out, 9, 10).expect("read"), 0);
        directory.subdirectory("s").expect("made").create("b").expect("created");
        assert_eq!(directory.subdirectory("s").expect("there").list().expect("listed"), ["b"]);
    }
}

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The file's name, in sled's directory.
pub(crate) const HEAD_FILE: &str = "head";

/// How far the log has been synced, in a file beside sled's.
///
/// When sled opens and finds damage near the end of its log, it takes that for the traces of a power cut and drops
/// everything behind it without a word. Here stands what was there for certain.
///
/// The file is written after each sync, and not synced itself: what it says may be old, and is never too much.
#[derive(Debug)]
pub(crate) struct Head {
    file: File,
    /// The log's newest key, until it has been written.
    newest: Mutex<Option<Vec<u8>>>,
}

impl Head {
    /// Opens the file, and returns the newest key that it knows of.
    pub(crate) fn open(directory: &Path) -> io::Result<(Self, Option<Vec<u8>>)> {
        let path = directory.join(HEAD_FILE);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok((Head { file, newest: Mutex::default() }, read(&text)))
    }

    /// Remembers the newest key of the log, which is not synced yet.
    pub(crate) fn note(&self, key: &[u8]) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.to_vec());
    }

    /// Writes the newest key, now that it is synced.
    pub(crate) fn write(&self) {
        let Some(key) = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let write = || {
            (&self.file).seek(SeekFrom::Start(0))?;
            (&self.file).write_all(&text_of(&key))
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "{HEAD_FILE} could not be written; events that sled loses later may go unnoticed");
        }
    }
}

/// The key and its complement, so that a half-written or damaged one is not believed.
fn text_of(key: &[u8]) -> Vec<u8> {
    key.iter().copied().chain(key.iter().map(|byte| !byte)).collect()
}

fn read(text: &[u8]) -> Option<Vec<u8>> {
    let (key, _) = text.split_at(text.len() / 2);
    (!key.is_empty() && text == text_of(key)).then(|| key.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_read() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (head, known) = Head::open(directory.path()).expect("opened");
        assert_eq!(known, None);
        head.write();
        for key in [1_u64, 2, 500] {
            head.note(&key.to_be_bytes());
            head.write();
        }
        head.note(&501_u64.to_be_bytes()); // not synced
        let (_, known) = Head::open(directory.path()).expect("opened");
        assert_eq!(known, Some(500_u64.to_be_bytes().to_vec()));
    }

    #[test]
    fn a_damaged_one_is_not_believed() {
        let text = text_of(&7_u64.to_be_bytes());
        assert!(read(&text).is_some());
        for place in 0..text.len() {
            let mut damaged = text.clone();
            damaged[place] ^= 1;
            assert_eq!(read(&damaged), None);
            assert_eq!(read(&text[..place]), None);
        }
    }
}

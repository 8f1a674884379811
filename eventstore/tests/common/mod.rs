//! Helpers for tests of stores on disk.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The backends of this build that have files.
pub(crate) const BACKENDS: &[&str] = &[
    #[cfg(feature = "lmdb")]
    "lmdb",
    #[cfg(feature = "rocksdb")]
    "rocksdb",
    #[cfg(feature = "fjall")]
    "fjall",
    #[cfg(feature = "sled")]
    "sled",
];

/// Everything below a directory: files, directories and links. Links are not followed.
pub(crate) fn below(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all.extend(below(&entry.path()));
        }
        all.push(entry.path());
    }
    all
}

/// Copies an open store as a kill leaves it: its files at one moment, without its lock. It must soon be at rest: the files
/// of two moments are no store.
pub(crate) fn copy_open(from: &Path, into: &Path) {
    let read = || -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
        let files = below(from).into_iter().filter(|path| path.is_file() && !path.ends_with("eventstore.lock"));
        files.map(|path| Ok((path.clone(), fs::read(path)?))).collect()
    };
    let mut before = None;
    let files = loop {
        // A file may be renamed or removed meanwhile.
        match read() {
            Ok(files) if before.as_ref() == Some(&files) => break files,
            files => before = files.ok(),
        }
    };
    for (path, bytes) in files {
        let target = into.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

/// Copies a store, without its lock.
pub(crate) fn copy(from: &Path, into: &Path) {
    fs::create_dir(into).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = into.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false if path.ends_with("eventstore.lock") => {}
            false => drop(fs::copy(&path, target).unwrap()),
        }
    }
}

//! Helpers for tests of stores on disk.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::fs;
use std::path::{Path, PathBuf};

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

/// Copies a store, open or closed, without its lock.
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

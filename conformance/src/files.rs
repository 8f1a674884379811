//! The files of a store, seen from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::failure::{Checked, Failure};

/// Everything at or below a path: modification times, and for files the content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content(Vec<(PathBuf, SystemTime, Vec<u8>)>);

impl Content {
    /// Reads it. Empty if the store keeps its files elsewhere.
    pub(crate) fn of(path: &Path) -> Checked<Self> {
        let mut all = Vec::new();
        if path.exists() {
            add(path, &mut all)?;
        }
        all.sort();
        Ok(Content(all))
    }

    /// Fails if anything has changed since, and says what.
    #[track_caller]
    pub(crate) fn is_still(&self, path: &Path, what: &str) -> Checked {
        let now = Content::of(path)?;
        if now == *self {
            return Ok(());
        }
        let is_other = |entry: &&(PathBuf, SystemTime, Vec<u8>), others: &Content| !others.0.contains(entry);
        let changed = now.0.iter().find(|entry| is_other(entry, self));
        let changed = changed.or_else(|| self.0.iter().find(|entry| is_other(entry, &now)));
        let changed = changed.map_or(path, |(changed, ..)| changed).display();
        Err(Failure::new(format!("{what} was changed: {changed}, or when it was changed, is not as it was")))
    }
}

fn add(path: &Path, all: &mut Vec<(PathBuf, SystemTime, Vec<u8>)>) -> Checked {
    let changed = fs::metadata(path)?.modified()?;
    if !path.is_dir() {
        all.push((path.to_owned(), changed, fs::read(path)?));
        return Ok(());
    }
    all.push((path.to_owned(), changed, Vec::new()));
    for entry in fs::read_dir(path)? {
        add(&entry?.path(), all)?;
    }
    Ok(())
}

//! Copies the files of one store to another.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use eventstore_api::{Context, Error, Result};
use eventstore_log::sync_dir;

use crate::files::open::{INDEX, LOG};
use crate::{StoreDirectory, Task};

/// Creates a new store from a backup, file by file, and returns the name of its engine. The backup is not changed.
///
/// The target must be missing or empty. Everything is on stable storage when this returns; nothing is left if it fails.
/// Blocks the thread.
///
/// # Errors
///
/// `Open` if the backup is unfinished or the target cannot be used; `Locked` if the backup is open; `Cancelled`,
/// `DeadlineExceeded`, `Engine`.
pub fn restore(ctx: &Context, backup: &Path, target: &Path) -> Result<String> {
    let engine = StoreDirectory::engine_of(backup)?;
    let from = StoreDirectory::open_existing(backup, &engine)?;
    if is_below(target, backup) {
        return Err(Error::Open {
            path: target.display().to_string(),
            reason: "it is inside the backup; choose a directory outside of it".to_owned(),
            source: None,
        });
    }
    let files = [LOG, INDEX].map(|name| from.path().join(name));
    let into = StoreDirectory::begin_backup(target, &engine, from.id())?;
    copy_files(files, into.path(), from.len_bytes()?, &Task::new(ctx, &|| Ok(())))?;
    into.mark()?;
    Ok(engine)
}

/// Whether a path is a directory or below it. The end of the path need not exist.
pub(crate) fn is_below(path: &Path, directory: &Path) -> bool {
    let Ok((path, directory)) = std::path::absolute(path).and_then(|path| Ok((path, directory.canonicalize()?))) else {
        return false; // a later step fails
    };
    let there = path.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
    there.is_some_and(|there| there.starts_with(&directory))
}

/// A new file that nobody else may read yet.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create(true).truncate(true).open(path)
}

/// Copies files and directories recursively into a directory, with their permissions; missing ones are skipped. Reports
/// the bytes of `total` to the task, and checks it at least once for each MiB. Everything is synced.
fn copy_files(paths: impl IntoIterator<Item = PathBuf>, into: &Path, total: u64, task: &Task<'_>) -> Result<()> {
    let mut copy = Copy { task, done: 0, total, is_for_good: true, buffer: vec![0; 1 << 20] };
    paths.into_iter().filter(|path| path.exists()).try_for_each(|path| copy.copy(&path, into))
}

/// Copies a directory into another one for temporary use: this user may write to it, and nothing is synced.
pub(crate) fn copy_for_a_while(directory: &Path, into: &Path, task: &Task<'_>) -> Result<()> {
    Copy { task, done: 0, total: 0, is_for_good: false, buffer: vec![0; 1 << 20] }.copy(directory, into)
}

struct Copy<'a> {
    task: &'a Task<'a>,
    /// With permissions and syncs.
    is_for_good: bool,
    done: u64,
    total: u64,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    /// Copies a file or a directory into a directory.
    fn copy(&mut self, path: &Path, into: &Path) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let target = into.join(name);
        let failed = |error: io::Error| {
            Error::engine("copy a file", format!("{} to {}: {error}", path.display(), target.display()))
        };
        if path.is_dir() {
            fs::create_dir(&target).map_err(failed)?;
            for entry in fs::read_dir(path).map_err(failed)? {
                self.copy(&entry.map_err(failed)?.path(), &target)?;
            }
            return if self.is_for_good { sync_dir(&target).map_err(failed) } else { Ok(()) };
        }
        let (mut from, mut into) = (File::open(path).map_err(failed)?, private_file(&target).map_err(failed)?);
        loop {
            self.task.report(self.done, self.total.max(self.done));
            self.task.check()?;
            let read = from.read(&mut self.buffer).map_err(failed)?;
            if read == 0 && !self.is_for_good {
                return Ok(());
            }
            if read == 0 {
                // The same users may read the events.
                let permissions = from.metadata().map_err(failed)?.permissions();
                return into.set_permissions(permissions).and_then(|()| into.sync_all()).map_err(failed);
            }
            into.write_all(&self.buffer[..read]).map_err(failed)?;
            self.done += read as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use eventstore_api::{CancellationToken, Progress};

    use super::*;

    /// A finished backup of an engine that has files and directories.
    fn backup(path: &Path) {
        let begun = StoreDirectory::begin_backup(path, "one", [7; 16]).expect("begun");
        fs::create_dir_all(path.join("log")).expect("created");
        fs::create_dir_all(path.join("index/deep")).expect("created");
        fs::write(path.join("log/empty"), "").expect("written");
        fs::write(path.join("log/one"), vec![7; 3 << 20]).expect("written");
        fs::write(path.join("index/deep/two"), "two").expect("written");
        begun.mark().expect("marked");
    }

    #[test]
    fn a_restored_store_has_the_same_bytes() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let (from, into) = (temporary.path().join("backup"), temporary.path().join("store"));
        backup(&from);
        assert_eq!(restore(&Context::background(), &from, &into).expect("restored"), "one");
        for file in ["log/empty", "log/one", "index/deep/two", "eventstore.json"] {
            assert_eq!(fs::read(into.join(file)).expect(file), fs::read(from.join(file)).expect(file), "{file}");
        }
        assert!(StoreDirectory::open_existing(&into, "one").expect("a store").is_marked());
        assert!(StoreDirectory::open_existing(&from, "one").expect("as it was").is_marked());
    }

    #[test]
    fn what_is_open_or_no_backup_is_not_restored_and_what_is_used_not_overwritten() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let (from, into) = (temporary.path().join("backup"), temporary.path().join("store"));
        backup(&from);
        let ctx = Context::background();
        let open = StoreDirectory::open_existing(&from, "one").expect("opened");
        assert!(matches!(restore(&ctx, &from, &into), Err(Error::Locked { .. })));
        assert!(matches!(restore(&ctx, &from, &from), Err(Error::Locked { .. } | Error::Open { .. })));
        drop(open);
        assert!(matches!(restore(&ctx, &temporary.path().join("missing"), &into), Err(Error::Open { .. })));
        assert!(matches!(restore(&ctx, temporary.path(), &into), Err(Error::Open { .. })), "not a store");
        assert!(!into.exists());
        assert!(matches!(restore(&ctx, &from, &from), Err(Error::Open { .. })));
        fs::create_dir(&into).expect("created");
        fs::write(into.join("mine"), "mine").expect("written");
        assert!(matches!(restore(&ctx, &from, &into), Err(Error::Open { .. })));
        assert_eq!(fs::read(into.join("mine")).expect("kept"), b"mine");
        assert_eq!(fs::read_dir(&into).expect("read").count(), 1);
    }

    #[test]
    fn a_restoring_that_is_cancelled_leaves_nothing() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let (from, into) = (temporary.path().join("backup"), temporary.path().join("store"));
        backup(&from);
        for after in [0, 1 << 20] {
            let token = CancellationToken::new();
            let ctx = Context::background().with_cancellation(token.clone());
            let ctx = ctx.with_progress(Progress::new(move |done, _| {
                if done >= after {
                    token.cancel();
                }
            }));
            assert!(matches!(restore(&ctx, &from, &into), Err(Error::Cancelled)));
            assert_eq!(fs::read_dir(&into).expect("read").count(), 0);
        }
        restore(&Context::background(), &from, &into).expect("restored");
    }
}

//! From one store's files or engine to another's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use eventstore_api::{Context, Direction, Durability, Error, Event, Result};

use crate::engine::{Engine, KeyRange, Snapshot, Table, WriteBatch};
use crate::{StoreDirectory, Task, keys, reader, record};

/// Bytes of records that are copied with one commit.
const COMMIT_BYTES: usize = 4 << 20;

/// Copies the events of one engine into an empty one, with new indexes: the backup of an engine that cannot copy its own
/// files. Each record's checksum is verified on the way. All of it is on stable storage when it returns.
///
/// # Errors
///
/// What [`Task::check`] returned; `Corrupt` for a damaged record; `Full`, `Engine`.
pub fn copy_events<From: Engine, Into: Engine>(from: &From, into: &Into, task: &Task<'_>) -> Result<()> {
    let mut batch = WriteBatch::new();
    let mut value = Vec::new();
    if from.snapshot()?.get(Table::Meta, keys::META_FORMAT, &mut value)? {
        batch.put(Table::Meta, keys::META_FORMAT, &value);
    }
    let head = reader::newest_version(&from.snapshot()?)?;
    let (mut next, mut key) = (1, Vec::new());
    loop {
        task.report(next - 1, head);
        task.check()?;
        if next <= head {
            next = copy_some(from, &mut batch, next, head, &mut key)?;
        }
        if next > head {
            batch.put(Table::Meta, keys::META_INDEXED, &keys::version_bytes(head));
        }
        batch.sort(Table::Ids);
        batch.sort(Table::Aggregates);
        into.commit(&batch, Durability::Buffered)?;
        batch.clear();
        if next > head {
            return into.sync();
        }
    }
}

/// Puts events from `next` on into the batch, and returns the version behind them.
fn copy_some<E: Engine>(from: &E, batch: &mut WriteBatch, next: u64, head: u64, key: &mut Vec<u8>) -> Result<u64> {
    let (first, last) = (keys::version_bytes(next), keys::version_bytes(head));
    let mut records = Vec::new();
    let mut bytes = 0;
    from.snapshot()?.scan(Table::Events, KeyRange { first: &first, last: &last }, Direction::Forward, |_, value| {
        bytes += value.len();
        records.push(value.to_vec());
        if bytes >= COMMIT_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if records.is_empty() {
        return Err(record::corrupt(next, "it is missing from the log"));
    }
    let mut version = next;
    for bytes in records {
        batch.put(Table::Events, &keys::version_bytes(version), &bytes);
        let len = bytes.len();
        // A record behind a gap is found here as well: its checksum covers its version.
        let recorded = record::decode(version, &bytes.into(), 0..len)?;
        put_indexes(batch, key, &recorded.event, version, recorded.revision);
        version += 1;
    }
    Ok(version)
}

/// Puts the entries of the two index tables for an event at its place.
pub(crate) fn put_indexes(batch: &mut WriteBatch, key: &mut Vec<u8>, event: &Event, version: u64, revision: u64) {
    let version = keys::version_bytes(version);
    keys::write_aggregate(key, event.aggregate_id(), revision);
    batch.put(Table::Aggregates, key, &version);
    keys::write_id(key, event.id());
    batch.put(Table::Ids, key, &version);
}

/// Makes a new store of a backup, file by file, and returns the name of its engine. The backup stays as it is.
///
/// The target has to be missing or empty. All of it is on stable storage when this returns, and nothing of it is left if it
/// fails. It blocks.
///
/// # Errors
///
/// `Open` if the backup is no finished one, or the target cannot be used; `Locked` if the backup is open;
/// `Cancelled`, `DeadlineExceeded`, `Engine`.
pub fn restore(ctx: &Context, backup: &Path, target: &Path) -> Result<String> {
    let engine = StoreDirectory::engine_of(backup)?;
    let from = StoreDirectory::open_existing(backup, &engine)?;
    if is_below(target, backup) {
        return Err(Error::Open {
            path: target.display().to_string(),
            reason: "it lies in the backup; choose a directory outside of it".to_owned(),
            source: None,
        });
    }
    let files = from.engine_files()?;
    let mut into = StoreDirectory::begin_backup(target, &engine)?;
    copy_files(&files, into.path(), from.len_bytes()?, &Task::new(ctx, &|| Ok(())))?;
    into.mark()?;
    Ok(engine)
}

/// Whether a path, of which the end may not be there yet, leads below a directory.
fn is_below(path: &Path, directory: &Path) -> bool {
    let Ok((path, directory)) = std::path::absolute(path).and_then(|path| Ok((path, directory.canonicalize()?))) else {
        return false; // what comes next fails
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

/// Copies files, and directories with all that is in them, into a directory, with their permissions. The task is told the
/// bytes of `total`, and asked at least once for each MiB. Nothing is synced.
///
/// # Errors
///
/// What [`Task::check`] returned; [`Error::Engine`] with the file.
pub fn copy_files(paths: &[PathBuf], into: &Path, total: u64, task: &Task<'_>) -> Result<()> {
    let mut copy = Copy { task, done: 0, total, buffer: vec![0; 1 << 20] };
    paths.iter().try_for_each(|path| copy.copy(path, into))
}

struct Copy<'a> {
    task: &'a Task<'a>,
    done: u64,
    total: u64,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    /// Copies a file or a directory into a directory.
    fn copy(&mut self, path: &Path, into: &Path) -> Result<()> {
        let failed = |error: io::Error| Error::engine("copy a file", format!("{}: {error}", path.display()));
        let Some(name) = path.file_name() else { return Ok(()) };
        let target = into.join(name);
        if path.is_dir() {
            fs::create_dir(&target).map_err(failed)?;
            for entry in fs::read_dir(path).map_err(failed)? {
                self.copy(&entry.map_err(failed)?.path(), &target)?;
            }
            return Ok(());
        }
        let (mut from, mut into) = (File::open(path).map_err(failed)?, private_file(&target).map_err(failed)?);
        loop {
            self.task.report(self.done, self.total.max(self.done));
            self.task.check()?;
            let read = from.read(&mut self.buffer).map_err(failed)?;
            if read == 0 {
                // Who may read the events stays the same.
                let permissions = from.metadata().map_err(failed)?.permissions();
                return into.set_permissions(permissions).map_err(failed);
            }
            into.write_all(&self.buffer[..read]).map_err(failed)?;
            self.done += read as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use eventstore_api::{CancellationToken, Event, Progress};

    use super::*;
    use crate::MemoryEngine;
    use crate::record::Micros;

    /// A finished backup of an engine that has files and directories.
    fn backup(path: &Path) {
        let mut begun = StoreDirectory::begin_backup(path, "one").expect("begun");
        fs::write(path.join("empty"), "").expect("written");
        fs::create_dir_all(path.join("parts/deep")).expect("created");
        fs::write(path.join("parts/one"), vec![7; 3 << 20]).expect("written");
        fs::write(path.join("parts/deep/two"), "two").expect("written");
        begun.mark().expect("marked");
    }

    #[test]
    fn a_restored_store_has_the_same_bytes() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let (from, into) = (temporary.path().join("backup"), temporary.path().join("store"));
        backup(&from);
        assert_eq!(restore(&Context::background(), &from, &into).expect("restored"), "one");
        for file in ["empty", "parts/one", "parts/deep/two", "eventstore.json"] {
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

    fn engine_with(events: u64) -> MemoryEngine {
        let engine = MemoryEngine::default();
        let mut batch = WriteBatch::new();
        batch.put(Table::Meta, keys::META_FORMAT, &crate::FORMAT.to_be_bytes());
        batch.put(Table::Meta, keys::META_INDEXED, &keys::version_bytes(events));
        for version in 1..=events {
            let event = Event::builder("Tested", if version % 2 == 0 { "even" } else { "odd" })
                .id(format!("id-{version}"))
                .data(vec![7; 1 << 20])
                .build()
                .expect("valid");
            let revision = version.div_ceil(2);
            let header = record::header(&event, version, revision, Micros::now());
            batch.put_parts(Table::Events, &keys::version_bytes(version), &[&header, event.bytes()]);
            put_indexes(&mut batch, &mut Vec::new(), &event, version, revision);
        }
        engine.commit(&batch, Durability::Sync).expect("committed");
        engine
    }

    fn content(engine: &MemoryEngine) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut content = Vec::new();
        for table in Table::ALL {
            let range = KeyRange { first: &[0], last: &[0xff; 489] };
            let scanned = engine.snapshot().expect("snapshot").scan(table, range, Direction::Forward, |key, value| {
                content.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            });
            scanned.expect("scanned");
        }
        content
    }

    fn copied(from: &MemoryEngine, ctx: &Context) -> Result<MemoryEngine> {
        let into = MemoryEngine::default();
        copy_events(from, &into, &Task::new(ctx, &|| Ok(())))?;
        Ok(into)
    }

    #[test]
    fn copied_events_have_the_same_entries() {
        // None, what is copied with one commit, and more.
        for events in [0, 1, 4, 11] {
            let from = engine_with(events);
            let into = copied(&from, &Context::background()).expect("copied");
            assert!(content(&into) == content(&from), "{events} events");
        }
    }

    #[test]
    fn a_copy_ends_at_damage_and_when_it_must() {
        let put = |engine: &MemoryEngine, version: u64, value: &[u8]| {
            let mut batch = WriteBatch::new();
            batch.put(Table::Events, &keys::version_bytes(version), value);
            engine.commit(&batch, Durability::Sync).expect("committed");
        };
        let at = |result: Result<MemoryEngine>| match result {
            Err(Error::Corrupt { version, .. }) => version.map(|version| version.get()),
            other => panic!("expected Corrupt, got {other:?}"),
        };
        let damaged = engine_with(11);
        put(&damaged, 7, b"damaged");
        assert_eq!(at(copied(&damaged, &Context::background())), Some(7));
        let with_a_gap = engine_with(3);
        put(&with_a_gap, 9, b"behind a gap");
        assert_eq!(at(copied(&with_a_gap, &Context::background())), Some(4));
        let token = CancellationToken::new();
        let ctx = Context::background().with_cancellation(token.clone());
        let ctx = ctx.with_progress(Progress::new(move |done, total| {
            assert_eq!(total, 11);
            if done > 3 {
                token.cancel();
            }
        }));
        assert!(matches!(copied(&engine_with(11), &ctx), Err(Error::Cancelled)));
    }
}

//! From one store's files or engine to another's.

use std::fs;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use eventstore_api::{Context, Direction, Durability, Error, Result};

use crate::engine::{CommitError, Engine, KeyRange, Snapshot, Table, WriteBatch};
use crate::staging::put_indexes;
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
        task.check()?;
        task.report(next - 1, head);
        if next <= head {
            next = copy_some(from, &mut batch, next, head, &mut key)?;
        }
        batch.sort(Table::Ids);
        batch.sort(Table::Aggregates);
        into.commit(&batch, Durability::Buffered).map_err(|failure| match failure {
            CommitError::NotWritten(error) | CommitError::Unknown(error) => error,
        })?;
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
    let mut into = StoreDirectory::begin_backup(target, &engine)?;
    let total = from.len_bytes()?;
    let mut copy = Copy { ctx, done: 0, total, buffer: vec![0; 1 << 20] };
    for path in from.engine_files()? {
        copy.copy(&path, into.path())?;
    }
    into.mark()?;
    Ok(engine)
}

struct Copy<'a> {
    ctx: &'a Context,
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
        let (mut from, mut into) = (fs::File::open(path).map_err(failed)?, fs::File::create(target).map_err(failed)?);
        loop {
            self.ctx.check()?;
            self.ctx.progress().report(self.done, self.total.max(self.done));
            let read = from.read(&mut self.buffer).map_err(failed)?;
            if read == 0 {
                return Ok(());
            }
            into.write_all(&self.buffer[..read]).map_err(failed)?;
            self.done += read as u64;
        }
    }
}

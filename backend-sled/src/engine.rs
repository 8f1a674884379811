use std::fmt;
use std::fs::File;
use std::ops::{Bound, ControlFlow};

use eventstore_api::{Direction, Durability, Error, Gc, Result};
use eventstore_kv::{CommitError, Engine, KeyRange, Snapshot, StoreDirectory, Table, Task, WriteBatch, copy_events};
use sled::{Batch, Db, IVec};

use crate::Options;
use crate::error::{engine_error, guard};
use crate::files::Files;
use crate::keys::{Key, PART_LEN, parts_of};
use crate::watch::Flusher;

/// sled as the engine of a store: one tree with the rows of all tables.
pub struct SledEngine {
    // Fields drop in this order: sled is closed before the directory is unlocked.
    flusher: Flusher,
    db: Db,
    file: File,
    options: Options,
    directory: StoreDirectory,
}

impl SledEngine {
    /// Opens or creates the store in the options' directory. It blocks while sled reads its page table and the newest
    /// part of its log.
    ///
    /// # Errors
    ///
    /// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
    pub fn open(options: &Options) -> Result<Self> {
        options.validate()?;
        let directory = match options.create_if_missing {
            true => StoreDirectory::open(&options.path, crate::NAME)?,
            false => StoreDirectory::open_existing(&options.path, crate::NAME)?,
        };
        let mut engine = Self::open_unmarked(directory, options)?;
        engine.directory.mark()?;
        Ok(engine)
    }

    fn open_unmarked(directory: StoreDirectory, options: &Options) -> Result<Self> {
        let Files { db, file } = Files::open(&directory, options)?;
        Ok(SledEngine { flusher: Flusher::new(&db)?, db, file, options: options.clone(), directory })
    }

    /// Hands everything to the disk, and with `Sync` has it keep it.
    fn flush(&self, durability: Durability) -> Result<()> {
        // sled writes its log and waits until the disk has it (sync_file_range), but lets the disk keep it in its cache,
        // and leaves out the file's length.
        self.flusher.flush(&self.db).map_err(|failure| engine_error("flush", failure))?;
        if durability != Durability::Buffered {
            self.file.sync_data().map_err(|error| Error::engine("sync", error))?;
        }
        Ok(())
    }

    /// Reads every page that the batch will change, so that a damaged one is found before anything is written. Returns
    /// the rows that are there already: the mark of the index, which moves on.
    fn read_pages(&self, batch: &WriteBatch) -> Result<Vec<(Key, IVec)>> {
        let read = |key: &Key| guard(|| self.db.get(key)).map_err(|failure| engine_error("commit", failure));
        let mut replaced = Vec::new();
        for table in Table::ALL {
            for (row, value) in batch.puts(table) {
                let key = Key::row(table, row);
                if let Some(earlier) = read(&key)? {
                    replaced.push((key, earlier));
                }
                if value.len() >= PART_LEN {
                    read(&Key::part(table, row, 1))?; // and the others are put beside it
                }
            }
        }
        Ok(replaced)
    }

    /// Takes back what sled applied of a batch before it failed, or it would keep that part. The rows were new, but for
    /// those that were `replaced`.
    ///
    /// sled fails in the middle if it moves other pages on the way, to use their space again, and one is damaged. It does
    /// not try the same page again, so a few attempts do.
    fn undo(&self, batch: &WriteBatch, replaced: &[(Key, IVec)]) {
        for _ in 0..UNDO_ATTEMPTS {
            let mut earlier = Batch::default();
            rows_of(batch).for_each(|(key, _)| earlier.remove(key.as_ref()));
            replaced.iter().for_each(|(key, value)| earlier.insert(key.as_ref(), value)); // the last word on a key counts
            let undone = guard(|| self.db.apply_batch(earlier));
            if undone.and_then(|()| self.flusher.flush(&self.db)).is_ok() {
                break;
            }
        }
    }
}

const UNDO_ATTEMPTS: usize = 20;

impl fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sled's own would print all rows.
        f.debug_struct("SledEngine")
            .field("options", &self.options)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// The rows of a batch in sled's tree.
fn rows_of(batch: &WriteBatch) -> impl Iterator<Item = (Key, &[u8])> {
    Table::ALL.into_iter().flat_map(move |table| {
        let puts = batch.puts(table);
        puts.flat_map(move |(key, value)| {
            parts_of(value).map(move |(number, part)| (Key::part(table, key, number), part))
        })
    })
}

impl Engine for SledEngine {
    type Snapshot<'a> = SledSnapshot<'a>;

    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(SledSnapshot(&self.db))
    }

    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError> {
        let replaced = self.read_pages(batch).map_err(CommitError::NotWritten)?;
        let mut rows = Batch::default();
        rows_of(batch).for_each(|(key, part)| rows.insert(key.as_ref(), part));
        if let Err(failure) = guard(|| self.db.apply_batch(rows)) {
            self.undo(batch, &replaced);
            return Err(CommitError::Unknown(engine_error("commit", failure)));
        }
        self.flush(durability).map_err(CommitError::Unknown)
    }

    fn sync(&self) -> Result<()> {
        self.flush(Durability::Sync)
    }

    fn directory(&self) -> Option<&StoreDirectory> {
        Some(&self.directory)
    }

    fn run_gc(&self, gc: Gc, task: &Task<'_>) -> Result<Vec<String>> {
        task.check()?;
        if gc == Gc::Full {
            return Err(Error::Unsupported {
                what: "sled cannot compact its file; copy the store into a new one: eventstore copy --to".to_owned(),
            });
        }
        self.flusher.flush(&self.db).map_err(|failure| engine_error("flush", failure))?;
        Ok(vec!["flushed; sled uses space again by itself as it writes, and cannot be asked to".to_owned()])
    }

    fn backup(&self, target: StoreDirectory, task: &Task<'_>) -> Result<Self> {
        let mut options = self.options.clone();
        options.path = target.path().to_owned();
        let mut copy = Self::open_unmarked(target, &options)?;
        copy_events(self, &copy, task)?;
        copy.directory.mark()?;
        Ok(copy)
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let size = guard(|| self.db.size_on_disk()).map_err(|failure| engine_error("measure its files", failure))?;
        Ok(vec![
            ("size", size.to_string()),
            ("was_recovered", self.db.was_recovered().to_string()),
            ("cache_capacity", self.options.cache_capacity.to_string()),
        ])
    }
}

/// A read of sled's tree as it is at each moment.
pub struct SledSnapshot<'a>(&'a Db);

impl fmt::Debug for SledSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledSnapshot").finish_non_exhaustive()
    }
}

impl SledSnapshot<'_> {
    /// Appends the parts behind the first one to `out`.
    fn read_rest(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let last = Key::part(table, key, u32::MAX);
        let mut parts = self.0.range(Key::part(table, key, 1)..=last);
        for number in 1.. {
            let Some((place, part)) = read_row(|| parts.next())? else { break };
            if place != Key::part(table, key, number).as_ref() {
                break;
            }
            out.extend_from_slice(&part);
            if part.len() < PART_LEN {
                return Ok(());
            }
        }
        Err(Error::Corrupt { version: None, reason: format!("a part of a value in {} is missing", table.name()) })
    }
}

fn read_row(next: impl FnOnce() -> Option<sled::Result<(IVec, IVec)>>) -> Result<Option<(IVec, IVec)>> {
    guard(|| next().transpose()).map_err(|failure| engine_error("read", failure))
}

impl Snapshot for SledSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let found = guard(|| self.0.get(Key::row(table, key))).map_err(|failure| engine_error("read", failure))?;
        let Some(first) = found else { return Ok(false) };
        out.extend_from_slice(&first);
        if first.len() == PART_LEN {
            self.read_rest(table, key, out)?;
        }
        Ok(true)
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        let (first, last) = (Key::row(table, range.first), Key::row(table, range.last));
        let mut rows = self.0.range::<&[u8], _>((Bound::Included(first.as_ref()), Bound::Included(last.as_ref())));
        let mut whole = Vec::new();
        loop {
            let row = read_row(|| match direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.next_back(),
            })?;
            let Some((key, value)) = row else { return Ok(()) };
            let key = &key[1..];
            let visited = if value.len() < PART_LEN {
                visit(key, &value)
            } else {
                whole.clear();
                whole.extend_from_slice(&value);
                self.read_rest(table, key, &mut whole)?;
                visit(key, &whole)
            };
            if visited.is_break() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(engine: &SledEngine, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = Vec::new();
        let snapshot = engine.snapshot().expect("snapshot");
        snapshot.get(table, key, &mut value).expect("read").then_some(value)
    }

    #[test]
    fn what_a_failed_batch_has_replaced_is_put_back() {
        let directory = tempfile::tempdir().expect("directory");
        let engine = SledEngine::open(&Options::new(directory.path())).expect("opened");
        let mut first = WriteBatch::new();
        first.put(Table::Meta, b"mark", b"1");
        engine.commit(&first, Durability::Sync).expect("committed");

        let mut failed = WriteBatch::new();
        failed.put(Table::Meta, b"mark", b"2");
        failed.put(Table::Events, b"new", &[7; 3 * PART_LEN]);
        let replaced = engine.read_pages(&failed).expect("sound");
        engine.commit(&failed, Durability::Sync).expect("committed");
        engine.undo(&failed, &replaced);
        assert_eq!(get(&engine, Table::Meta, b"mark").as_deref(), Some(&b"1"[..]));
        assert_eq!(get(&engine, Table::Events, b"new"), None);
        assert_eq!(engine.db.len(), 1, "no part of it is left");
    }
}

//! What the store needs of a key-value engine.

use std::fmt;
use std::ops::{ControlFlow, Range};

use eventstore_api::{Direction, Durability, Error, Gc, Result};

use crate::{StoreDirectory, Task};

/// The four ordered tables of a store. An engine keeps each as it likes: a database, a column family, a key prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Name → value: what the store knows about itself.
    Meta,
    /// Version → record: the log. Keys are only ever put in ascending order.
    Events,
    /// Event id → version.
    Ids,
    /// Aggregate id and revision → version.
    Aggregates,
}

impl Table {
    /// Every table.
    pub const ALL: [Table; 4] = [Table::Meta, Table::Events, Table::Ids, Table::Aggregates];

    /// The table's name, for engines that name theirs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Events => "events",
            Table::Ids => "ids",
            Table::Aggregates => "aggregates",
        }
    }

    /// The table's place in [`Table::ALL`], for engines that keep an array.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// An ordered key-value engine with atomic batches. Keys compare as bytes and are at most 489 bytes long.
///
/// An engine knows nothing of events: no order, no conditions, no duplicates. It is called from one writer thread for
/// [`commit`](Engine::commit) and [`sync`](Engine::sync), and from any number of threads for everything else. Dropping
/// it releases its files.
///
/// Its calls block, so they are never made where an async task would wait long.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// A view for one short read.
    type Snapshot<'a>: Snapshot
    where
        Self: 'a;

    /// The backend's name, such as `lmdb`.
    fn name(&self) -> &'static str;

    /// Begins a short read. It is dropped before the next [`commit`](Engine::commit) of the same thread.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`].
    fn snapshot(&self) -> Result<Self::Snapshot<'_>>;

    /// Writes all of the batch or nothing, and with [`Durability::Sync`] returns only when it, and everything committed
    /// before it, is on stable storage. With [`Durability::Buffered`] it survives the end of the process.
    ///
    /// # Errors
    ///
    /// [`CommitError::NotWritten`] only if certainly nothing of the batch is or will become visible, and the engine can
    /// take the next batch. Everything else is [`CommitError::Unknown`], after which neither this nor
    /// [`sync`](Engine::sync) is called again.
    fn commit(&self, batch: &WriteBatch, durability: Durability) -> Result<(), CommitError>;

    /// Returns when everything committed before is on stable storage.
    ///
    /// # Errors
    ///
    /// After an error it is never called again: a second sync may succeed without having written anything.
    fn sync(&self) -> Result<()>;

    /// The directory with its files, which it keeps locked; `None` if it has none.
    fn directory(&self) -> Option<&StoreDirectory>;

    /// Reads the engine's own files without trusting them, so that afterwards they can be read as usual: for an engine that
    /// otherwise takes what they say for true. One that checks whatever it reads has nothing to do here.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with what is wrong, [`Error::Engine`], or what [`Task::check`] returned.
    fn check_files(&self, _task: &Task<'_>) -> Result<()> {
        Ok(())
    }

    /// Gives space back where the engine can, as much as `gc` allows, and says what was done. It may run beside everything
    /// else, but not beside another of its kind.
    ///
    /// # Errors
    ///
    /// What [`Task::check`] returned, or [`Error::Engine`]; the store goes on. [`Error::Unsupported`] for a full one that it
    /// does not have.
    fn run_gc(&self, gc: Gc, task: &Task<'_>) -> Result<Vec<String>>;

    /// Copies everything that is committed into an empty directory, beside reads and commits, and opens the copy as an
    /// engine of its own, which shows that it can be opened. What is committed meanwhile may be in it, each batch wholly or
    /// not at all. The engine marks the directory as it does when it is opened.
    ///
    /// # Errors
    ///
    /// What [`Task::check`] returned, [`Error::Engine`], [`Error::Corrupt`], or those of opening.
    fn backup(&self, target: StoreDirectory, task: &Task<'_>) -> Result<Self>
    where
        Self: Sized;

    /// What the engine tells about itself, for [`Stats::properties`](eventstore_api::Stats::properties).
    ///
    /// # Errors
    ///
    /// [`Error::Engine`].
    fn properties(&self) -> Result<Vec<(&'static str, String)>>;
}

/// A view of all tables, alive for one short read. Everything that was committed before it began is there; what is
/// committed later may show or not. More is not needed: readers stop at the published head, and nothing before it changes.
pub trait Snapshot {
    /// Appends the value of `key` to `out` and returns true, or returns false if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`].
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool>;

    /// Visits those of the keys that are there, by their place in `keys` and with their value, until the visitor breaks.
    /// They are visited in the order of `keys`, which ascends or descends and names each once.
    ///
    /// An engine that can look up many keys faster than one by one does it here.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`] of the first key that cannot be looked up; those before it were visited.
    fn get_many<F>(&self, table: Table, keys: &[&[u8]], mut visit: F) -> Result<()>
    where
        F: FnMut(usize, &[u8]) -> ControlFlow<()>,
    {
        let mut value = Vec::new();
        for (place, key) in keys.iter().enumerate() {
            value.clear();
            if self.get(table, key, &mut value)? && visit(place, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Visits the entries from `range.first` to `range.last`, both included, in key order or against it, until the
    /// visitor breaks.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`].
    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>;
}

/// The keys from `first` to `last`, both included.
#[derive(Clone, Copy, Debug)]
pub struct KeyRange<'a> {
    /// The smallest key of the range.
    pub first: &'a [u8],
    /// The largest key of the range.
    pub last: &'a [u8],
}

/// How a commit failed.
#[derive(Debug)]
pub enum CommitError {
    /// Certainly nothing was written, and the engine can go on. The error goes to the callers as it is.
    NotWritten(Error),
    /// All or nothing of it was written. The writer is fenced.
    Unknown(Error),
}

impl From<CommitError> for Error {
    fn from(failure: CommitError) -> Self {
        match failure {
            CommitError::NotWritten(error) | CommitError::Unknown(error) => error,
        }
    }
}

/// The puts of one commit, by table, in one buffer that is used again for the next.
#[derive(Debug, Default)]
pub struct WriteBatch {
    buffer: Vec<u8>,
    puts: [Vec<Put>; Table::ALL.len()],
}

#[derive(Debug)]
struct Put {
    key: Range<usize>,
    value: Range<usize>,
}

impl WriteBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        WriteBatch::default()
    }

    /// Adds a put. Each key is put once in a batch; keys of [`Table::Events`] ascend.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put_parts(table, key, &[value]);
    }

    /// Adds a put whose value is these parts, one behind the other.
    pub fn put_parts(&mut self, table: Table, key: &[u8], value_parts: &[&[u8]]) {
        self.put_all_parts(table, &[key], value_parts);
    }

    /// Adds a put whose key and value are these parts, one behind the other.
    pub(crate) fn put_all_parts(&mut self, table: Table, key_parts: &[&[u8]], value_parts: &[&[u8]]) {
        let key_start = self.buffer.len();
        for part in key_parts {
            self.buffer.extend_from_slice(part);
        }
        let value_start = self.buffer.len();
        for part in value_parts {
            self.buffer.extend_from_slice(part);
        }
        let put = Put { key: key_start..value_start, value: value_start..self.buffer.len() };
        self.puts[table.index()].push(put);
    }

    /// The puts of one table as key and value, in the order they were added.
    pub fn puts(&self, table: Table) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.puts[table.index()].iter().map(|put| (&self.buffer[put.key.clone()], &self.buffer[put.value.clone()]))
    }

    /// Sorts the puts of one table by key. B-tree engines insert neighbours faster one after the other.
    pub fn sort(&mut self, table: Table) {
        let buffer = &self.buffer;
        self.puts[table.index()].sort_unstable_by(|a, b| buffer[a.key.clone()].cmp(&buffer[b.key.clone()]));
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.puts.iter().all(Vec::is_empty)
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Empties the batch. A buffer that one large batch blew up is given back.
    pub fn clear(&mut self) {
        const KEPT: usize = 8 << 20;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
        self.puts.iter_mut().for_each(Vec::clear);
    }
}

//! What the store needs from a key-value engine: a place for the index into the log.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use eventstore_api::{Direction, Error, Result};

use crate::Task;

/// The three ordered tables of an index. An engine keeps each as it likes: a database, a column family, a key prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Name → value: how far the index reaches.
    Meta,
    /// Event id → version.
    Ids,
    /// Aggregate id and revision → versions.
    Aggregates,
}

impl Table {
    /// Every table.
    pub const ALL: [Table; 3] = [Table::Meta, Table::Ids, Table::Aggregates];

    /// The table's name, for engines that name theirs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
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

/// An ordered key-value engine that keeps an index. Keys compare as bytes and are at most 489 bytes long; values are at
/// most 2 KiB.
///
/// The log is the truth, so an engine may lose everything: the store makes its entries again. It must not give a value
/// under a key that it was not put under. It knows nothing of events, and is asked for little: batches of sorted entries
/// that are durable when [`write`](Engine::write) returns, and reads beside them. Entries are added and never changed, but
/// for those of [`Table::Meta`].
///
/// [`write`](Engine::write) is called from one thread at a time, everything else from any number of threads. Its calls
/// block. Dropping it releases its files.
pub trait Engine: fmt::Debug + Send + Sync + Sized + 'static {
    /// The backend's name: the scheme of its URLs and the mark in its directories, such as `lmdb`.
    const NAME: &'static str;

    /// How to open it.
    type Options: Clone + fmt::Debug + Send + Sync + 'static;

    /// A view for one short read.
    type Snapshot<'a>: Snapshot
    where
        Self: 'a;

    /// Opens the engine whose files are in this directory, or begins a new one if the directory is empty. The directory is
    /// there, and nobody else uses it.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if its files are damaged, in part missing, or cannot be trusted after the end that they had: the
    /// store then puts them aside and makes the index anew. Other errors keep the store from being opened.
    fn open(directory: &Path, options: &Self::Options) -> Result<Self>;

    /// Opens the engine whose files are in this directory, without writing to it or to them: others may read them as well, and
    /// they may lie on a medium that cannot be written. [`write`](Engine::write) is not called then.
    ///
    /// An engine that cannot do that gives `None`, as this does: a copy of its files is opened in a temporary directory then.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Engine::open).
    fn open_read_only(_directory: &Path, _options: &Self::Options) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Begins a short read. It is dropped before the next [`write`](Engine::write) of the same thread.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`].
    fn snapshot(&self) -> Result<Self::Snapshot<'_>>;

    /// Adds the entries, and returns when they are on stable storage. Those of [`Table::Meta`] get there last, or together
    /// with all others: after a power cut they are there only if the others are.
    ///
    /// # Errors
    ///
    /// After an error some of the entries may be there, durable or not. The store writes them again, or opens the engine anew.
    fn write(&self, entries: &Entries) -> Result<()>;

    /// Gives the engine up whose directory is not there any more, or is another's now: nothing is made or deleted by path. This
    /// leaves its files open until the process ends.
    fn abandon(self) {
        std::mem::forget(self);
    }

    /// Reads the engine's own files without trusting them, so that afterwards they can be read as usual: for an engine that
    /// otherwise takes what they say for true. One that checks whatever it reads has nothing to do here.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with what is wrong, [`Error::Engine`], or what [`Task::check`] returned.
    fn check_files(&self, _task: &Task<'_>) -> Result<()> {
        Ok(())
    }

    /// Gives space back where the engine can, and says in a sentence each what was done or why nothing was. It may run
    /// beside everything else, but not beside another of its kind.
    ///
    /// # Errors
    ///
    /// What [`Task::check`] returned, or [`Error::Engine`]; the store goes on.
    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>>;

    /// What the engine tells about itself, for [`Stats::properties`](eventstore_api::Stats::properties).
    ///
    /// # Errors
    ///
    /// [`Error::Engine`].
    fn properties(&self) -> Result<Vec<(&'static str, String)>>;
}

/// A view of all tables, alive for one short read. Everything that was written before it began is there; what is written
/// later may show or not.
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

/// Entries for an index, by table, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Entries {
    buffer: Vec<u8>,
    entries: [Vec<Entry>; Table::ALL.len()],
}

#[derive(Debug)]
struct Entry {
    key: Range<usize>,
    value: Range<usize>,
}

impl Entries {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Entries::default()
    }

    /// Adds an entry. The keys of a table are added in ascending order, each once.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put_parts(table, &[key], &[value]);
    }

    /// Adds an entry whose key and value are these parts, one behind the other.
    pub(crate) fn put_parts(&mut self, table: Table, key_parts: &[&[u8]], value_parts: &[&[u8]]) {
        let key_start = self.buffer.len();
        key_parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        let value_start = self.buffer.len();
        value_parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        self.entries[table.index()].push(Entry { key: key_start..value_start, value: value_start..self.buffer.len() });
    }

    /// The entries of one table as key and value, in ascending order of their keys.
    pub fn of(&self, table: Table) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.entries[table.index()]
            .iter()
            .map(|entry| (&self.buffer[entry.key.clone()], &self.buffer[entry.value.clone()]))
    }

    /// How many there are, in all tables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Takes all of them away. A buffer that many blew up is given back.
    pub fn clear(&mut self) {
        const KEPT: usize = 8 << 20;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
        self.entries.iter_mut().for_each(Vec::clear);
    }
}

/// Why an engine does not use files that are not known to be damaged.
pub(crate) const NOT_CLOSED: &str = "it was not closed cleanly, and this engine's files are not used then";

/// As [`damaged_index`], of an engine that uses its files only if it was closed, and was not: no damage to be told of.
#[must_use]
pub fn unclosed_index() -> Error {
    damaged_index(NOT_CLOSED)
}

/// What to do about damage to an index that was found when it was read or written.
pub(crate) fn index_advice(reason: &str) -> String {
    format!("{reason}; close the store, and make its index anew with `eventstore repair`")
}

/// An error of an engine about its own files, which the store answers by making the index again.
#[must_use]
pub fn damaged_index(reason: impl Into<String>) -> Error {
    Error::Corrupt { version: None, reason: reason.into() }
}

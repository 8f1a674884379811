//! The interface to a key-value engine, which stores the index into the log.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use eventstore_api::{Direction, Error, Result};

use crate::Task;

/// The three ordered tables of an index. The engine chooses how to store each: as a database, a column family, a key
/// prefix.
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

    /// The table's name, for engines with named tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Ids => "ids",
            Table::Aggregates => "aggregates",
        }
    }

    /// The table's position in [`Table::ALL`], for engines that keep an array.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// An ordered key-value engine that stores an index. Keys compare as bytes and have at most 489 bytes; values have at
/// most 2 KiB.
///
/// The log is the source of truth, so an engine may lose everything: the store rebuilds its entries. But it must never
/// return a value under a key that it was not stored under. It knows nothing of events, and little is required: batches
/// of sorted entries that are durable when [`write`](Engine::write) returns, and concurrent reads. Entries are added
/// and never changed, except those of [`Table::Meta`].
///
/// [`write`](Engine::write) is called from one thread at a time, everything else from any number of threads. All calls
/// may block. Dropping the engine releases its files.
pub trait Engine: fmt::Debug + Send + Sync + Sized + 'static {
    /// The backend's name, such as `lmdb`: the scheme of its URLs, and the mark in its directories.
    const NAME: &'static str;

    /// How to open it.
    type Options: Clone + fmt::Debug + Send + Sync + 'static;

    /// A view for one short read.
    type Snapshot<'a>: Snapshot
    where
        Self: 'a;

    /// Opens the engine whose files are in this directory, or creates a new one if the directory is empty. The
    /// directory exists, and nobody else uses it.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if its files are damaged, partly missing, or cannot be trusted after an unclean end. The
    /// store then moves them aside and rebuilds the index. Other errors prevent the store from opening.
    fn open(directory: &Path, options: &Self::Options) -> Result<Self>;

    /// Opens the engine whose files are in this directory without writing to the directory or the files. Others may
    /// read them at the same time, and they may be on read-only media. [`write`](Engine::write) is not called on this
    /// engine.
    ///
    /// An engine that cannot do that returns `None`, which is the default. Then a copy of its files is opened in a
    /// temporary directory.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Engine::open).
    fn open_read_only(_directory: &Path, _options: &Self::Options) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Begins a short read. The snapshot is dropped before the next [`write`](Engine::write) of the same thread.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`].
    fn snapshot(&self) -> Result<Self::Snapshot<'_>>;

    /// Adds the entries, and returns when they are on stable storage. Those of [`Table::Meta`] must become durable
    /// last, or together with all others: after a power cut they are there only if the others are.
    ///
    /// # Errors
    ///
    /// After an error, some of the entries may be there, durable or not. The store writes them again, or reopens the
    /// engine.
    fn write(&self, entries: &Entries) -> Result<()>;

    /// Abandons the engine after its directory was removed or replaced: nothing may be created or deleted by path. The
    /// default leaves its files open until the process ends.
    fn abandon(self) {
        std::mem::forget(self);
    }

    /// Checks the engine's own files before they are read as usual. For an engine that otherwise trusts what they
    /// contain. One that checks whatever it reads has nothing to do here.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the damage, [`Error::Engine`], or the error of [`Task::check`].
    fn check_files(&self, _task: &Task<'_>) -> Result<()> {
        Ok(())
    }

    /// Frees space where the engine can. Returns one sentence for each step: what was done, or why nothing was. It may
    /// run beside everything else, but not twice at the same time.
    ///
    /// # Errors
    ///
    /// The error of [`Task::check`], or [`Error::Engine`]; the store remains usable.
    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>>;

    /// Properties of the engine, for [`Stats::properties`](eventstore_api::Stats::properties).
    ///
    /// # Errors
    ///
    /// [`Error::Engine`].
    fn properties(&self) -> Result<Vec<(&'static str, String)>>;
}

/// A view of all tables for one short read. It has everything that was written before it began; later writes may or may
/// not be visible.
pub trait Snapshot {
    /// Appends the value of `key` to `out` and returns true, or returns false if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`].
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool>;

    /// Visits the existing ones of these keys, each by its position in `keys` and with its value, until the visitor
    /// breaks. `keys` are distinct and sorted, ascending or descending; they are visited in this order.
    ///
    /// An engine that can look up many keys faster than one by one overrides this.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] or [`Error::Corrupt`] for the first key that cannot be looked up; those before it were
    /// visited.
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

    /// Visits the entries from `range.first` to `range.last`, both included, in ascending or descending key order,
    /// until the visitor breaks.
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

/// Entries for an index, by table, in one reusable buffer.
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
    /// No entries.
    #[must_use]
    pub fn new() -> Self {
        Entries::default()
    }

    /// Adds an entry. The keys of a table must be added in ascending order, each once.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put_parts(table, &[key], &[value]);
    }

    /// Adds an entry whose key and value are the concatenations of these parts.
    pub(crate) fn put_parts(&mut self, table: Table, key_parts: &[&[u8]], value_parts: &[&[u8]]) {
        let key_start = self.buffer.len();
        key_parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        let value_start = self.buffer.len();
        value_parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        self.entries[table.index()].push(Entry { key: key_start..value_start, value: value_start..self.buffer.len() });
    }

    /// The entries of one table as key and value, in ascending order of keys.
    pub fn of(&self, table: Table) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.entries[table.index()]
            .iter()
            .map(|entry| (&self.buffer[entry.key.clone()], &self.buffer[entry.value.clone()]))
    }

    /// The number of entries in all tables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of all keys and values, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Removes all entries. A buffer that has grown very large is freed.
    pub fn clear(&mut self) {
        const KEPT: usize = 8 << 20;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
        self.entries.iter_mut().for_each(Vec::clear);
    }
}

/// Why an engine rejects files that are not known to be damaged.
pub(crate) const NOT_CLOSED: &str = "it was not closed cleanly, so this engine's files are not used";

/// Like [`damaged_index`], for an engine that uses its files only after a clean close. There is no damage to report.
#[must_use]
pub fn unclosed_index() -> Error {
    damaged_index(NOT_CLOSED)
}

/// Adds what to do about damage to an index that was found while it was read or written.
pub(crate) fn index_advice(reason: &str) -> String {
    format!("{reason}; close the store and rebuild its index with `eventstore repair`")
}

/// An engine's error about its own files. The store answers it by rebuilding the index.
#[must_use]
pub fn damaged_index(reason: impl Into<String>) -> Error {
    Error::Corrupt { version: None, reason: reason.into() }
}

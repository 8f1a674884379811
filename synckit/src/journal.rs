//! The journal of a replica: a log with the records of the state machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventstore_api::{Error, Result};
use eventstore_log::{Appender, CommitError, DiskDirectory, Group, Known, Log, Options, create_private_dir, sync_dir};

use crate::core::{BeginRecord, Record};

/// Journals are small: usually, a journal is replaced before its segment is full.
fn options() -> Options {
    Options { segment_size: 16 << 20, space_ahead: 1 << 20, ..Options::default() }
}

/// A journal that is open for writing.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    id: [u8; 16],
    number: u64,
    log: Log,
    appender: Appender,
    group: Group,
    next: u64,
    /// The number of records that are needed, according to the last count.
    kept: u64,
}

const PREFIX: &str = "journal-";
const UNFINISHED: &str = ".new";

/// The most records and bytes of one write.
const GROUP_RECORDS: usize = 1000;
pub(crate) const GROUP_BYTES: usize = 16 << 20;

impl Journal {
    /// Creates the first journal of a replica.
    pub(crate) fn begin(directory: &Path, id: [u8; 16]) -> Result<(Self, Vec<Record>)> {
        let begin = BeginRecord { format: BeginRecord::FORMAT, generation: 1, last: Default::default() };
        let records = vec![Record::Begin(begin)];
        Ok((Self::write(directory, id, 1, &records)?, records))
    }

    /// Opens the newest journal in the replica's directory. Removes what an interrupted compaction left.
    pub(crate) fn open(directory: &Path, id: [u8; 16]) -> Result<(Self, Vec<Record>)> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(|error| io("list the replica's directory", error))? {
            let entry = entry.map_err(|error| io("list the replica's directory", error))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            match name.parse::<u64>() {
                Ok(number) => numbers.push(number),
                Err(_) if name.ends_with(UNFINISHED) => remove(&entry.path())?,
                Err(_) => {}
            }
        }
        numbers.sort_unstable();
        let newest = numbers.pop().ok_or_else(|| Error::Corrupt {
            version: None,
            reason: format!(
                "{} has no journal, which contains own events; restore it, or create a new replica elsewhere",
                directory.display()
            ),
        })?;
        let newest = if numbers.is_empty() { newest } else { rename_to_next(directory, newest)? };
        let opened = Self::read(directory, id, newest)?;
        // A newer journal is complete.
        numbers.iter().try_for_each(|number| remove(&path_of(directory, *number)))?;
        Ok(opened)
    }

    fn read(directory: &Path, id: [u8; 16], number: u64) -> Result<(Self, Vec<Record>)> {
        let path = path_of(directory, number);
        let (mut records, mut damage) = (Vec::new(), None);
        let files = Arc::new(DiskDirectory::new(&path));
        let opened =
            Log::open(
                files,
                id,
                &options(),
                Known { synced: 0 },
                0,
                &mut |record, bytes| match postcard::from_bytes::<Record>(bytes) {
                    Ok(record) => records.push(record),
                    Err(error) => _ = damage.get_or_insert_with(|| format!("record {record} of the journal: {error}")),
                },
            );
        let opened = opened.map_err(|error| log_error("open the journal", error))?;
        if let Some(found) = &opened.damage {
            damage.get_or_insert_with(|| format!("record {} of the journal: {}", found.record, found.reason));
        }
        let format = match records.first() {
            Some(Record::Begin(begin)) => begin.format,
            _ => 0,
        };
        if format > BeginRecord::FORMAT {
            return Err(Error::Unsupported {
                what: format!("the journal in {} has the format {format}, of a newer version", path.display()),
            });
        }
        if format == 0 {
            damage.get_or_insert_with(|| "the first record of the journal is missing".to_owned());
        }
        if let Some(reason) = damage {
            return Err(Error::Corrupt { version: None, reason: format!("{}: {reason}", path.display()) });
        }
        let appender = opened.appender.ok_or_else(|| Error::Corrupt {
            version: None,
            reason: format!("{}: nothing can be appended to the journal", path.display()),
        })?;
        let kept = records.len() as u64;
        let journal = Journal {
            directory: directory.to_owned(),
            id,
            number,
            next: opened.log.last() + 1,
            log: opened.log,
            appender,
            group: Group::default(),
            kept,
        };
        Ok((journal, records))
    }

    /// Writes a journal with these records. It takes effect when it is complete.
    fn write(directory: &Path, id: [u8; 16], number: u64, records: &[Record]) -> Result<Self> {
        let unfinished = directory.join(format!("{PREFIX}{number}{UNFINISHED}"));
        Self::prepare(&unfinished, id, records)?;
        Self::finish(directory, &unfinished, id, number)
    }

    fn finish(directory: &Path, unfinished: &Path, id: [u8; 16], number: u64) -> Result<Self> {
        let path = path_of(directory, number);
        std::fs::rename(unfinished, path).map_err(|error| io("rename the new journal", error))?;
        sync_directory(directory)?;
        Ok(Self::read(directory, id, number)?.0)
    }

    /// Writes these records to a new directory.
    fn prepare(unfinished: &Path, id: [u8; 16], records: &[Record]) -> Result<()> {
        remove(unfinished)?;
        create_private_dir(unfinished).map_err(|error| io("make a directory for the journal", error))?;
        let opened =
            Log::open(Arc::new(DiskDirectory::new(unfinished)), id, &options(), Known { synced: 0 }, 0, &mut |_, _| {});
        let opened = opened.map_err(|error| log_error("begin a journal", error))?;
        let mut appender = opened.appender.ok_or_else(|| Error::engine("begin a journal", "it is damaged"))?;
        let (mut next, mut group) = (1, Group::default());
        let mut rest = records;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(first_group(rest));
            next = commit(&mut appender, &mut group, next, now)?;
            rest = later;
        }
        appender.close();
        drop(opened.log);
        sync_directory(unfinished)
    }

    /// Appends records, all or none, and returns when they are on stable storage.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<()> {
        self.next = commit(&mut self.appender, &mut self.group, self.next, records)?;
        Ok(())
    }

    /// Replaces this journal by one with these records. Returns the journal in effect, if that is certain.
    pub(crate) fn replace(self, records: &[Record]) -> (Option<Self>, Result<()>) {
        let number = self.number + 1;
        let unfinished = self.directory.join(format!("{PREFIX}{number}{UNFINISHED}"));
        let prepared = Self::prepare(&unfinished, self.id, records);
        let finished = prepared.and_then(|()| Self::finish(&self.directory, &unfinished, self.id, number));
        match finished {
            Ok(new) => {
                let Journal { directory, number, log, appender, .. } = self;
                appender.close();
                drop(log);
                // If that fails, the next opening does it.
                let _ = remove(&path_of(&directory, number));
                (Some(new), Ok(()))
            }
            Err(error) => {
                // The new journal takes effect as soon as it has its name.
                let is_old = matches!(path_of(&self.directory, number).try_exists(), Ok(false));
                if is_old {
                    let _ = remove(&unfinished);
                }
                (is_old.then_some(self), Err(error))
            }
        }
    }

    /// The number of records that are no longer needed, at most, and of those that are.
    pub(crate) fn lens(&self) -> (u64, u64) {
        ((self.next - 1).saturating_sub(self.kept), self.kept)
    }

    /// Sets the number of needed records.
    pub(crate) fn set_kept(&mut self, kept: u64) {
        self.kept = kept.min(self.next - 1);
    }

    /// Defers the next compaction, until as much was appended again.
    pub(crate) fn put_off(&mut self) {
        self.kept = self.next - 1;
    }
}

/// Gives a journal the next number, durably. The sync behind its renaming may have failed, and then a later one may succeed
/// although the name never becomes durable. It must before the older journal is removed and anything is appended.
fn rename_to_next(directory: &Path, number: u64) -> Result<u64> {
    let next = number + 1;
    std::fs::rename(path_of(directory, number), path_of(directory, next))
        .map_err(|error| io("rename the newest journal", error))?;
    sync_directory(directory)?;
    Ok(next)
}

/// The number of these records to write together: as many as fit, but at least one.
fn first_group(records: &[Record]) -> usize {
    let mut bytes = 0;
    let fits = |record: &&Record| {
        bytes += record.len_bytes();
        bytes <= GROUP_BYTES
    };
    records.iter().take(GROUP_RECORDS).take_while(fits).count().max(1)
}

fn commit(appender: &mut Appender, group: &mut Group, first: u64, records: &[Record]) -> Result<u64> {
    group.begin(first);
    for record in records {
        let bytes =
            postcard::to_stdvec(record).map_err(|error| Error::engine("encode a record of the journal", error))?;
        group.push(&[&bytes]);
    }
    match appender.commit(group, true) {
        Ok(_) => Ok(first + records.len() as u64),
        Err(CommitError::NotWritten(eventstore_log::Error::Full { reason, .. })) => {
            Err(Error::Full { reason: format!("{reason}; make room on the replica's disk, or raise its limit") })
        }
        Err(CommitError::NotWritten(error)) => Err(log_error("write to the journal", error)),
        Err(CommitError::Unknown(error)) => Err(Error::OutcomeUnknown {
            reason: "the journal could not be written or synced; open the replica again".to_owned(),
            source: Some(error.into()),
        }),
    }
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{number}"))
}

fn log_error(what: &'static str, error: eventstore_log::Error) -> Error {
    match error {
        eventstore_log::Error::Corrupt { .. } => Error::Corrupt { version: None, reason: error.to_string() },
        error => Error::engine(what, error),
    }
}

pub(crate) fn io(what: &'static str, error: std::io::Error) -> Error {
    Error::engine(what, error)
}

/// Removes a directory, if it exists.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove a directory that is not used any more", error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    sync_dir(path).map_err(|error| io("sync a directory", error))
}

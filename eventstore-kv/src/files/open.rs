//! Opening: first the log, which is the source of truth, then the index, which is rebuilt if it does not belong to the log.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventstore_api::{Context, Digest, Direction, Error, Result, Version};
use eventstore_log::{Appender, Directory, Known, Log, OverlayDirectory, Page, parent_of, sync_dir};
use tempfile::TempDir;

use crate::engine::{Engine, Entries, KeyRange, NOT_CLOSED, Snapshot, Table};
use crate::error::log_error;
use crate::files::directory::{StoreDirectory, cannot_open};
use crate::files::place::KeptDirectory;
use crate::files::transfer::copy_for_a_while;
use crate::format::keys;
use crate::format::mark::Mark;
use crate::format::record::Leads;
use crate::index::filters;
use crate::index::indexer::{Indexer, MOST_RUNS};
use crate::index::recent::Recent;
use crate::index::view::{Incomplete, Index};
use crate::options::Compression;
use crate::read::digests::Digests;
use crate::shared::{Opened, Parts, reason};
use crate::write::commit::Committer;
use crate::{StoreOptions, Task};

/// The directory of the log's segments, in the store's directory.
pub(crate) const LOG: &str = "log";

/// The newest checkpoint of the log, among its segments, and one that was discarded.
const CHECKPOINT: &str = "tail";
const OLD_CHECKPOINT: &str = "tail.old";

/// The directory of the engine's files, in the store's directory.
pub(crate) const INDEX: &str = "index";

/// The previous index, which was damaged and rebuilt.
const DAMAGED_INDEX: &str = "index.damaged";

/// Exists while the engine creates its first files: what a kill leaves of them is recreated and does not count as
/// damage.
const UNFINISHED_INDEX: &str = "index.new";

/// The parameters for opening a store.
pub(crate) struct Opening<'a, E: Engine> {
    pub(crate) files: Arc<dyn Directory>,
    /// The id of the store and of every copy of it. All zeros if it has none.
    pub(crate) id: [u8; 16],
    /// `None` for a store without files.
    pub(crate) directory: Option<StoreDirectory>,
    pub(crate) engine: &'a E::Options,
    pub(crate) options: &'a StoreOptions,
    /// Reports progress while an index is rebuilt, which takes long.
    pub(crate) task: &'a Task<'a>,
}

/// An opened store, and its writer; `None` if its log is damaged.
pub(crate) struct Ready<E: Engine> {
    pub(crate) opened: Opened<E>,
    pub(crate) committer: Option<Committer>,
    /// What was done, for the log.
    pub(crate) actions: Vec<String>,
}

/// Opens the store in a directory.
pub(crate) fn open_directory<E: Engine>(
    directory: StoreDirectory,
    engine: &E::Options,
    options: &StoreOptions,
    task: &Task<'_>,
) -> Result<Ready<E>> {
    directory.delete_unfinished(LOG)?;
    directory.delete_unfinished(INDEX)?;
    let log = directory.path().join(LOG);
    if directory.is_marked() && !log.is_dir() {
        return Err(lost_log(&log));
    }
    for name in [LOG, INDEX] {
        let path = directory.path().join(name);
        fs::create_dir_all(&path).map_err(|error| cannot_open(&path, "it cannot be created", error))?;
    }
    // Also the names that a killed process left in the cache only, such as the mark.
    sync_dir(directory.path()).map_err(|error| cannot_open(directory.path(), "it cannot be synced", error))?;
    let is_new = !directory.is_marked();
    let files: Arc<dyn Directory> = Arc::new(KeptDirectory::new(&log, directory.place().clone()));
    if !directory.is_unfinished_backup() {
        directory.mark()?;
    }
    tell!(debug, is_new, path = %directory.path().display(), "opening a store");
    open(Opening { files, id: directory.id(), directory: Some(directory), engine, options, task })
}

/// Opens a store over the files of its log.
pub(crate) fn open<E: Engine>(opening: Opening<'_, E>) -> Result<Ready<E>> {
    let Opening { files, id, directory, engine, options, task } = opening;
    options.validate()?;
    let mut actions = Vec::new();
    let mut index = IndexFiles::of(directory.as_ref());
    let mut found = index.open::<E>(engine, id, task)?;
    let synced = match &directory {
        Some(directory) => directory.synced_head()?.get(),
        None => 0,
    };
    let reaches = found.mark.map_or(0, |mark| mark.version);
    // The log is synced before its index is written, so the index's mark counts as well. A damaged log still is the
    // source of truth.
    let known = Known { synced: synced.max(reaches) };
    let mut behind = Behind::new(reaches, options);
    // The index of nothing is rebuilt from the log, which is read then.
    let visit_behind = if reaches > 0 { reaches } else { u64::MAX };
    let log = Log::open(files, id, &options.log(), known, visit_behind, &mut |version, content| {
        behind.take(version, content)
    });
    let log = log.map_err(|error| log_open_error(directory.as_ref(), error));
    let eventstore_log::Opened { log, appender, tail, damage, recovery } = log?;
    if let Some(damage) = &damage
        && damage.record > log.last()
    {
        return Err(Error::Corrupt { version: Some(Version::new(damage.record)), reason: lost_end(&damage.reason) });
    }
    let is_read_only = directory.as_ref().is_some_and(StoreDirectory::is_read_only);
    if let Some(aside) = recovery.aside.as_ref().filter(|_| !is_read_only) {
        tell!(warn, aside, bytes = recovery.torn_bytes, "a torn write was removed from the end of the log");
        actions.push(format!("removed a torn write from the end of the log; a copy is in {aside}"));
    }
    let digests = Digests::open(log.clone(), tail.as_ref().map(|tail| tail.blob.as_slice()));
    // An index of another history points to other events.
    if let Some(mark) = found.mark
        && (mark.version > log.last() || digests.at(mark.version).is_ok_and(|digest| digest != mark.digest))
    {
        found.disagrees = Some("it is the index of another history of this store".to_owned());
    }
    let mut unused_index = None;
    let mut made = match found {
        Found { engine: Some(made), disagrees: None, .. } => made,
        Found { engine: opened, disagrees, .. } => {
            drop(opened);
            actions.extend(index.begin_again(disagrees.as_deref())?);
            unused_index = disagrees.filter(|reason| is_read_only && reason != NOT_CLOSED);
            behind = Behind::new(0, options);
            index.make(engine, id)?
        }
    };
    if behind.mark == 0 && log.last() > 0 || behind.is_too_much {
        if !index.is_writable() {
            drop(made);
            index.begin_again(None)?;
            behind = Behind::new(0, options);
            made = index.make(engine, id)?;
        }
        let reached = make_index(&made, index.own(), &log, id, &digests, behind.mark, task)?;
        actions.push(format!("rebuilt the index of {} events from the log", reached - behind.mark));
        behind = Behind::new(reached, options);
    }
    behind.rest(&log, log.last())?;
    behind.end(&log, damage.map(|damage| (damage.record, damage.reason)));
    let Behind { mark, recent, bytes, incomplete, .. } = behind;
    let recent_aggregates = recent.new_aggregates();
    let committer = appender
        .filter(|_| incomplete.is_none() && !is_read_only)
        .map(|appender: Appender| Committer::new(appender, directory.as_ref()));
    let opened = Opened {
        parts: Parts::new(made, directory, index.into_temporary()),
        unused_index,
        engine_options: engine.clone(),
        id,
        index: Index::new(recent, incomplete, options.aggregate_cache),
        indexer: Indexer::new(options, bytes),
        digests,
        log,
        mark: Version::new(mark),
        recent_aggregates,
    };
    Ok(Ready { opened, committer, actions })
}

fn lost_log(log: &Path) -> Error {
    Error::Corrupt {
        version: Some(Version::new(1)),
        reason: format!("it and all other events are lost: the directory {} is missing", log.display()),
    }
}

/// The error for a log that cannot be opened, with the path of the file concerned.
fn log_open_error(directory: Option<&StoreDirectory>, error: eventstore_log::Error) -> Error {
    match (error, directory) {
        (eventstore_log::Error::Io { operation, name, source }, Some(directory)) => {
            let path = directory.path().join(LOG).join(name);
            let reason =
                format!("the system refused to {operation} it; check its permissions and those of its directory");
            cannot_open(&path, &reason, source)
        }
        // If the log does not open, events cannot be loaded either.
        (eventstore_log::Error::Corrupt { record, reason }, _) => {
            Error::Corrupt { version: record.map(Version::new), reason: format!("{reason}; restore a backup") }
        }
        (error, _) => log_error(error),
    }
}

fn lost_end(reason: &str) -> String {
    format!(
        "it and all later events are lost, though they were synced ({reason}); to accept the loss, run `eventstore repair`"
    )
}

/// Opens the store in a directory for reading. Nothing is written there.
pub(crate) fn open_read_only<E: Engine>(
    directory: StoreDirectory,
    engine: &E::Options,
    options: &StoreOptions,
    task: &Task<'_>,
) -> Result<Ready<E>> {
    let log = directory.path().join(LOG);
    if !log.is_dir() {
        return Err(lost_log(&log));
    }
    let files: Arc<dyn Directory> = Arc::new(OverlayDirectory::new(&log));
    let options = StoreOptions { space_ahead: 0, compression: Compression::None, ..options.clone() };
    open(Opening { files, id: directory.id(), directory: Some(directory), engine, options: &options, task })
}

/// The location of the engine's files.
enum IndexFiles {
    /// In the store's directory; `None` if it has no files.
    Own(Option<PathBuf>),
    /// In the store's directory, where nothing may be written.
    ReadOnly {
        own: PathBuf,
        /// A copy of them, or what was built in their place.
        temporary: Option<(TempDir, PathBuf)>,
    },
}

impl IndexFiles {
    fn of(directory: Option<&StoreDirectory>) -> Self {
        let own = directory.map(|directory| directory.path().join(INDEX));
        match own {
            Some(own) if directory.is_some_and(StoreDirectory::is_read_only) => {
                IndexFiles::ReadOnly { own, temporary: None }
            }
            own => IndexFiles::Own(own),
        }
    }

    /// The directory of the store's own files, if they are used and may be written.
    fn own(&self) -> Option<&Path> {
        match self {
            IndexFiles::Own(own) => own.as_deref(),
            IndexFiles::ReadOnly { .. } => None,
        }
    }

    fn path(&self) -> &Path {
        match self {
            IndexFiles::Own(own) => own.as_deref().unwrap_or(Path::new("")),
            IndexFiles::ReadOnly { temporary: Some((_, path)), .. } => path,
            IndexFiles::ReadOnly { own, temporary: None } => own,
        }
    }

    fn is_writable(&self) -> bool {
        !matches!(self, IndexFiles::ReadOnly { temporary: None, .. })
    }

    fn open<E: Engine>(&mut self, options: &E::Options, id: [u8; 16], task: &Task<'_>) -> Result<Found<E>> {
        let IndexFiles::ReadOnly { own, temporary } = self else {
            return look_into(open_or_make(self.own(), options, id), id);
        };
        if !own.is_dir() || own.with_file_name(UNFINISHED_INDEX).exists() {
            return Ok(Found { engine: None, mark: None, disagrees: None });
        }
        match E::open_read_only(own, options).transpose() {
            Some(opened) => look_into(opened, id),
            None => {
                let made = temporary_directory()?;
                copy_for_a_while(own, made.path(), task)?;
                let path = made.path().join(INDEX);
                let opened = E::open(&path, options);
                *temporary = Some((made, path));
                look_into(opened, id)
            }
        }
    }

    /// Makes room for a new index. Returns a description if there is anything to report.
    fn begin_again(&mut self, disagrees: Option<&str>) -> Result<Option<String>> {
        match self {
            IndexFiles::Own(own) => disagrees.map(|reason| put_aside(own.as_deref(), reason)).transpose(),
            IndexFiles::ReadOnly { temporary, .. } => {
                let made = temporary_directory()?;
                let path = made.path().join(INDEX);
                fs::create_dir(&path).map_err(|error| cannot_open(&path, "it cannot be created", error))?;
                *temporary = Some((made, path));
                Ok(disagrees.map(|reason| format!("built a temporary index: {reason}")))
            }
        }
    }

    /// Creates an engine where there is none.
    fn make<E: Engine>(&self, options: &E::Options, id: [u8; 16]) -> Result<E> {
        match self.own() {
            Some(own) => make_engine(own, options, id),
            None => E::open(self.path(), options),
        }
    }

    fn into_temporary(self) -> Option<TempDir> {
        match self {
            IndexFiles::ReadOnly { temporary, .. } => temporary.map(|(directory, _)| directory),
            IndexFiles::Own(_) => None,
        }
    }
}

fn temporary_directory() -> Result<TempDir> {
    tempfile::tempdir().map_err(|error| {
        let reason = "cannot create a temporary directory for the index; set TMPDIR";
        cannot_open(&std::env::temp_dir(), reason, error)
    })
}

/// Opens the engine in this directory, or creates it if nothing is there or only the remains of an interrupted
/// creation.
fn open_or_make<E: Engine>(index: Option<&Path>, options: &E::Options, id: [u8; 16]) -> Result<E> {
    let Some(index) = index else { return E::open(Path::new(""), options) };
    let failed = |error| Error::engine("look into the directory of the index", error);
    let is_unfinished = index.with_file_name(UNFINISHED_INDEX).exists();
    if !is_unfinished && fs::read_dir(index).map_err(failed)?.next().is_some() {
        return E::open(index, options);
    }
    make_engine(index, options, id)
}

/// Creates the engine's files in this directory, which is emptied first. They get a mark at once: entries without a
/// mark are damage, not the remains of an interrupted first write.
fn make_engine<E: Engine>(index: &Path, options: &E::Options, id: [u8; 16]) -> Result<E> {
    let (unfinished, directory) = (index.with_file_name(UNFINISHED_INDEX), parent_of(index));
    let failed = |error: io::Error| Error::engine("make the directory of the index", error);
    let begin = || -> io::Result<()> {
        fs::File::create(&unfinished)?;
        fs::remove_dir_all(index)?;
        fs::create_dir(index)?;
        sync_dir(directory)
    };
    begin().map_err(failed)?;
    let engine = E::open(index, options)?;
    let mut entries = Entries::new();
    entries.put(Table::Meta, keys::META_MARK, &Mark { store: id, version: 0, digest: Digest::EMPTY }.to_bytes());
    engine.write(&entries)?;
    fs::remove_file(&unfinished).map_err(failed)?;
    Ok(engine)
}

/// An engine and the state of its index.
struct Found<E> {
    /// `None` if it could not be opened.
    engine: Option<E>,
    /// The mark of the index, if it belongs to this store.
    mark: Option<Mark>,
    /// Why it has to be rebuilt, if it is not simply new.
    disagrees: Option<String>,
}

/// Inspects an opened engine.
fn look_into<E: Engine>(opened: Result<E>, id: [u8; 16]) -> Result<Found<E>> {
    let engine = match opened {
        Ok(engine) => engine,
        Err(Error::Corrupt { reason, .. }) => {
            return Ok(Found { engine: None, mark: None, disagrees: Some(reason) });
        }
        Err(other) => return Err(other),
    };
    let mut value = Vec::new();
    let (mark, disagrees) =
        match engine.snapshot().and_then(|snapshot| snapshot.get(Table::Meta, keys::META_MARK, &mut value)) {
            Ok(false) => (None, None),
            Ok(true) => match Mark::from_bytes(&value) {
                Some(mark) if mark.store == id => (Some(mark), None),
                Some(_) => (None, Some("it is the index of another store".to_owned())),
                None => (None, Some("its mark is damaged or of another format".to_owned())),
            },
            Err(Error::Corrupt { reason, .. }) => (None, Some(reason)),
            Err(other) => return Err(other),
        };
    let disagrees = match (mark, disagrees) {
        (None, None) => match has_entries(&engine) {
            Ok(true) => Some("it does not say how far it reaches".to_owned()),
            Ok(false) => None,
            Err(Error::Corrupt { reason, .. }) => Some(reason),
            Err(other) => return Err(other),
        },
        (_, disagrees) => disagrees,
    };
    Ok(Found { engine: Some(engine), mark, disagrees })
}

fn has_entries<E: Engine>(engine: &E) -> Result<bool> {
    let mut found = false;
    let range = KeyRange { first: keys::FIRST_KEY, last: keys::LAST_KEY };
    let snapshot = engine.snapshot()?;
    for table in [Table::Ids, Table::Aggregates] {
        snapshot.scan(table, range, Direction::Forward, |_, _| {
            found = true;
            ControlFlow::Break(())
        })?;
    }
    Ok(found)
}

/// Opens an engine again after its writes have failed. Rebuilds its index if it does not have every event up to
/// `reaches`.
pub(crate) fn open_again<E: Engine>(
    index: Option<&Path>,
    options: &E::Options,
    id: [u8; 16],
    log: &Log,
    digests: &Digests,
    reaches: u64,
) -> Result<E> {
    let path = index.unwrap_or(Path::new(""));
    let found = look_into(E::open(path, options), id)?;
    let mark = found.mark.map_or(0, |mark| mark.version);
    let reason = match found {
        Found { engine: Some(engine), disagrees: None, .. } if mark >= reaches => return Ok(engine),
        Found { disagrees, .. } => disagrees.unwrap_or_else(|| "a failed write removed entries from it".to_owned()),
    };
    put_aside(index, &reason)?;
    let engine: E = match index {
        Some(index) => make_engine(index, options, id)?,
        None => E::open(path, options)?,
    };
    let ctx = Context::background();
    let reached = make_index(&engine, index, log, id, digests, 0, &Task::new(&ctx, &|| Ok(())))?;
    if reached < reaches {
        return Err(Error::Corrupt { version: Some(Version::new(reached + 1)), reason: MISSING.to_owned() });
    }
    Ok(engine)
}

/// Moves the engine's files aside. Returns a description.
fn put_aside(index: Option<&Path>, reason: &str) -> Result<String> {
    let Some(index) = index else { return Ok(String::new()) };
    let aside = index.with_file_name(DAMAGED_INDEX);
    let moved = || -> io::Result<()> {
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(index, &aside)?;
        fs::create_dir(index)?;
        sync_dir(parent_of(index))
    };
    moved().map_err(|error| Error::engine("move the index aside", error))?;
    tell!(warn, aside = %aside.display(), reason, "the index is rebuilt from the log");
    Ok(format!("moved the index aside as {DAMAGED_INDEX}: {reason}"))
}

/// The number of events whose entries are sorted together when an index is built.
const EVENTS_AT_ONCE: usize = 500_000;

/// Builds the index of all events after `mark`, up to the first damage. Returns the last version in it.
fn make_index<E: Engine>(
    engine: &E,
    index: Option<&Path>,
    log: &Log,
    id: [u8; 16],
    digests: &Digests,
    mark: u64,
    task: &Task<'_>,
) -> Result<u64> {
    let last = log.last();
    if log.synced() < last {
        log.sync().map_err(log_error)?;
    }
    if let Some(directory) = index.and_then(Path::parent)
        && mark == 0
    {
        filters::forget(directory).map_err(|error| Error::engine("remove the filter", error))?;
    }
    let mut reached = mark;
    let mut entries = Entries::new();
    while reached < last {
        let mut behind = Behind { most_events: u64::MAX, ..Behind::new(reached, &StoreOptions::default()) };
        while behind.recent.len() < EVENTS_AT_ONCE && behind.recent.end() <= last {
            task.check()?;
            if !behind.read(log, last)? {
                break;
            }
            task.report(behind.recent.end() - 1, last);
        }
        let end = behind.recent.end() - 1;
        if end == reached {
            break; // damage: nothing is known about what follows
        }
        reached = end;
        behind.recent.put_all(&mut entries);
        let mark = Mark { store: id, version: reached, digest: digests.at(reached)? };
        entries.put(Table::Meta, keys::META_MARK, &mark.to_bytes());
        engine.write(&entries)?;
        entries.clear();
        tell!(info, events = reached, of = last, "building the index from the log");
    }
    Ok(reached)
}

/// The events after the mark, as opening reads them.
struct Behind {
    mark: u64,
    recent: Recent,
    bytes: u64,
    most_events: u64,
    /// There are more of them than a store ever keeps in memory.
    is_too_much: bool,
    incomplete: Option<Incomplete>,
    key: Vec<u8>,
}

impl Behind {
    fn new(mark: u64, options: &StoreOptions) -> Self {
        Behind {
            mark,
            recent: Recent::new(mark + 1),
            bytes: 0,
            most_events: (MOST_RUNS + 1) * options.index_events as u64 + options.group_events as u64,
            is_too_much: false,
            incomplete: None,
            key: Vec::new(),
        }
    }

    /// The next record.
    fn take(&mut self, version: u64, content: &[u8]) {
        if self.incomplete.is_some() || self.is_too_much || version < self.recent.end() {
            return;
        }
        if self.recent.len() as u64 >= self.most_events {
            self.is_too_much = true;
            return;
        }
        let damage = match Leads::read(version, content) {
            _ if version > self.recent.end() => MISSING.to_owned(),
            Ok(leads) => {
                keys::write_id(&mut self.key, leads.id);
                self.recent.push(&self.key, leads.aggregate_id, leads.revision);
                self.bytes += content.len() as u64;
                return;
            }
            Err(error) => reason(&error),
        };
        self.incomplete = Some(Incomplete { version: self.recent.end(), reason: damage });
    }

    /// Reads some more of the log. Returns false if it is damaged.
    fn read(&mut self, log: &Log, last: u64) -> Result<bool> {
        let before = self.recent.end();
        let mut page = Page::default();
        match log.read(before..last + 1, 1 << 20, usize::MAX, &mut page) {
            Ok(()) => {}
            Err(eventstore_log::Error::Corrupt { reason, .. }) => {
                self.incomplete = Some(Incomplete { version: before, reason });
                return Ok(false);
            }
            Err(other) => return Err(log_error(other)),
        }
        for (version, range) in &page.records {
            self.take(*version, &page.bytes[range.clone()]);
        }
        Ok(self.recent.end() > before && self.incomplete.is_none())
    }

    /// Reads the rest of the log.
    fn rest(&mut self, log: &Log, last: u64) -> Result<()> {
        while self.incomplete.is_none() && self.recent.end() <= last && self.read(log, last)? {}
        Ok(())
    }

    /// Everything was read. If the end is missing or damage was found, the index is incomplete.
    fn end(&mut self, log: &Log, damage: Option<(u64, String)>) {
        if self.incomplete.is_some() {
            return;
        }
        if let Some((version, reason)) = damage {
            // Index entries after the damage are known if the tables have them.
            let unknown = if version > self.mark { version } else { self.recent.end() };
            let reason = format!("the log is damaged at version {version}: {reason}");
            self.incomplete = Some(Incomplete { version: unknown, reason });
        } else if self.recent.end() <= log.last() {
            self.incomplete = Some(Incomplete { version: self.recent.end(), reason: MISSING.to_owned() });
        }
    }
}

const MISSING: &str = "it is damaged or missing in the log";

/// Repairs a closed store and returns what was done. The index is rebuilt from the log. A log that has lost its end is
/// accepted. Damaged footers of the log are rebuilt. Blocks the thread.
///
/// What is replaced is first moved aside, in the store's directory. If the log is damaged before its end, the previous
/// index is restored: it has the events after the damage, which a rebuilt index would not have.
///
/// # Errors
///
/// `Open` if there is no store; `Locked`; `Corrupt` if the log is damaged: restore a backup then. Those of the context.
/// says.
pub fn repair<E: Engine>(
    ctx: &Context,
    path: &Path,
    engine: &E::Options,
    options: &StoreOptions,
) -> Result<Vec<String>> {
    let directory = StoreDirectory::open_existing(path, E::NAME)?;
    let task = Task::new(ctx, &|| Ok(()));
    let index: PathBuf = directory.path().join(INDEX);
    let mut actions = Vec::new();
    let had_index = index.is_dir();
    if had_index {
        actions.push(put_aside(Some(&index), "a repair was requested")?);
    }
    let mut has_accepted_loss = false;
    let mut ready = open_directory::<E>(directory, engine, options, &task);
    // Evidence that the log was synced further is discarded only if it is in the way.
    for forget in [StoreDirectory::forget_synced_head as Forget, forget_checkpoint] {
        if !matches!(ready, Err(Error::Corrupt { .. })) {
            break;
        }
        let directory = StoreDirectory::open_existing(path, E::NAME)?;
        let forgotten = forget(&directory)?;
        has_accepted_loss |= forgotten.is_some();
        actions.extend(forgotten);
        ready = open_directory::<E>(directory, engine, options, &task);
    }
    let (error, puts_back) = match ready {
        Ok(ready) => match ready.opened.index.incomplete().map(Incomplete::error) {
            None => {
                actions.extend(ready.actions.into_iter().filter(|action| !action.is_empty()));
                actions.extend(mend_footers(&ready.opened, &task)?);
                actions.push(format!("the store opens; its newest version is {}", ready.opened.log.last()));
                if let Some(committer) = ready.committer {
                    committer.close();
                }
                return Ok(actions);
            }
            // The previous index has entries for the end whose loss was accepted.
            Some(damage) => (damage, !has_accepted_loss),
        },
        // Such as a full disk.
        Err(error) => (error, true),
    };
    if had_index && puts_back {
        put_back(&StoreDirectory::open_existing(path, E::NAME)?)?;
    }
    Err(error)
}

/// Rebuilds damaged parts of the log that can be derived from the rest.
fn mend_footers<E: Engine>(opened: &Opened<E>, task: &Task<'_>) -> Result<Option<String>> {
    let of_segment = &mut |versions| opened.digests.of_segment(versions).unwrap_or_default();
    let mended = opened.log.mend_footers(of_segment, &mut || task.check().is_ok()).map_err(log_error)?;
    task.check()?;
    let is_some = !mended.is_empty();
    Ok(is_some.then(|| format!("rebuilt damaged footers of log segments: {}", mended.join(", "))))
}

/// Restores the index that was moved aside, replacing the one that was built since.
fn put_back(directory: &StoreDirectory) -> Result<()> {
    let index = directory.path().join(INDEX);
    let moved = fs::remove_dir_all(&index)
        .and_then(|()| fs::rename(index.with_file_name(DAMAGED_INDEX), &index))
        .and_then(|()| sync_dir(directory.path()));
    moved.map_err(|error| Error::engine("move the index back", error))
}

type Forget = fn(&StoreDirectory) -> Result<Option<String>>;

/// Accepts that the log ends before its newest checkpoint, which also says how far it was synced. Returns a description
/// if there is one.
fn forget_checkpoint(directory: &StoreDirectory) -> Result<Option<String>> {
    let log = directory.path().join(LOG);
    match fs::rename(log.join(CHECKPOINT), log.join(OLD_CHECKPOINT)) {
        Ok(()) => Ok(Some(format!(
            "moved the log's checkpoint aside as {OLD_CHECKPOINT}: the end of the log is accepted as it is"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::engine("move the log's checkpoint aside", error)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use eventstore_api::{Batch, Event, EventStore, EventStoreExt, Expected, Gc, RecordedEvent, StoreOutcome};
    use eventstore_log::MemoryDirectory;
    use tempfile::TempDir;

    use super::*;
    use crate::memory::{MemoryEngine, MemorySnapshot};
    use crate::read::digests::tests::event;
    use crate::{KvStore, memory};

    /// An engine with a single file, with a checksum in front, which is rewritten each time.
    #[derive(Debug)]
    pub(crate) struct FileEngine {
        memory: MemoryEngine,
        file: PathBuf,
    }

    const FILE: &str = "entries";

    /// While the store's directory has this file, every write fails.
    const FULL_DISK: &str = "full";

    impl Engine for FileEngine {
        const NAME: &'static str = "file";
        type Options = ();
        type Snapshot<'a> = MemorySnapshot<'a>;

        fn open(directory: &Path, options: &()) -> Result<Self> {
            let engine = FileEngine { memory: MemoryEngine::open(directory, options)?, file: directory.join(FILE) };
            match fs::read(&engine.file) {
                Ok(bytes) => {
                    let entries = read_entries(&bytes).ok_or_else(|| crate::damaged_index("its file is damaged"))?;
                    engine.memory.write(&entries)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let mut rest = fs::read_dir(directory).map_err(|error| Error::engine("list", error))?;
                    if rest.next().is_some() {
                        return Err(crate::damaged_index("its file is missing"));
                    }
                }
                Err(error) => return Err(Error::engine("read", error)),
            }
            Ok(engine)
        }

        fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
            self.memory.snapshot()
        }

        fn write(&self, entries: &Entries) -> Result<()> {
            for table in Table::ALL {
                let keys: Vec<_> = entries.of(table).map(|(key, _)| key).collect();
                assert!(keys.is_sorted_by(|one, next| one < next), "engines get each key once");
            }
            if self.file.ancestors().nth(2).is_some_and(|store| store.join(FULL_DISK).exists()) {
                return Err(Error::Full { reason: "a test says so".to_owned() });
            }
            self.memory.write(entries)?;
            let bytes = write_entries(&self.memory.snapshot()?)?;
            fs::write(&self.file, bytes).map_err(|error| Error::engine("write", error))
        }

        fn compact(&self, _: &Task<'_>) -> Result<Vec<String>> {
            Ok(Vec::new())
        }

        fn properties(&self) -> Result<Vec<(&'static str, String)>> {
            Ok(Vec::new())
        }
    }

    fn write_entries(snapshot: &MemorySnapshot<'_>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 4];
        for table in Table::ALL {
            let range = KeyRange { first: &[], last: &[0xff; 489] };
            snapshot.scan(table, range, Direction::Forward, |key, value| {
                bytes.push(table.index() as u8);
                for part in [key, value] {
                    bytes.extend_from_slice(&(part.len() as u16).to_le_bytes());
                    bytes.extend_from_slice(part);
                }
                ControlFlow::Continue(())
            })?;
        }
        let checksum = crc32fast::hash(&bytes[4..]).to_le_bytes();
        bytes[..4].copy_from_slice(&checksum);
        Ok(bytes)
    }

    fn read_entries(bytes: &[u8]) -> Option<Entries> {
        fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
            let (len, behind) = rest.split_first_chunk()?;
            let (part, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            *rest = behind;
            Some(part)
        }
        let (checksum, mut rest) = bytes.split_first_chunk()?;
        if crc32fast::hash(rest) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let mut entries = Entries::new();
        while let Some((table, behind)) = rest.split_first() {
            rest = behind;
            let (key, value) = (part(&mut rest)?, part(&mut rest)?);
            entries.put(*Table::ALL.get(usize::from(*table))?, key, value);
        }
        Some(entries)
    }

    pub(crate) type FileStore = KvStore<FileEngine>;

    pub(crate) fn options() -> StoreOptions {
        let mut options = StoreOptions::default();
        (options.segment_size, options.space_ahead) = (64 << 10, 0);
        options
    }

    pub(crate) fn ctx() -> Context {
        Context::background()
    }

    /// The events `id-{first}` to `id-{last}` of some aggregates. Those of another history have other data.
    pub(crate) fn events(numbers: std::ops::RangeInclusive<u64>, data_len: usize) -> Vec<Event> {
        numbers.map(|number| event(number, &format!("aggregate-{}", number % 3), data_len)).collect()
    }

    /// Appends each event as a group.
    pub(crate) async fn append(store: &FileStore, events: &[Event]) {
        for event in events {
            store.store_batch(&ctx(), Batch::new(vec![event.clone()])).await.expect("stored");
        }
    }

    /// Checks that the store has exactly these events, in every way of reading.
    pub(crate) async fn check(store: &FileStore, events: &[Event]) {
        let head = Version::new(events.len() as u64);
        assert_eq!(store.latest_version(&ctx()).await.expect("read"), head);
        let all = store.load(&ctx(), Version::ZERO).into_vec().await.expect("read");
        assert!(all.iter().map(|recorded| &recorded.event).eq(events));
        let mut aggregates: BTreeMap<&str, Vec<&RecordedEvent>> = BTreeMap::new();
        for recorded in &all {
            assert_eq!(&store.get(&ctx(), recorded.event.id()).await.expect("found"), recorded);
            aggregates.entry(recorded.event.aggregate_id()).or_default().push(recorded);
        }
        assert!(matches!(store.get(&ctx(), "nobody's").await, Err(Error::EventNotFound { .. })));
        for (id, expected) in &aggregates {
            assert_eq!(store.aggregate_revision(&ctx(), id).await.expect("read").get(), expected.len() as u64);
            let found = store.load_by_aggregate(&ctx(), *id, Version::ZERO).into_vec().await.expect("read");
            assert!(found.iter().eq(expected.iter().copied()));
        }
        let report = store.verify(&ctx()).await.expect("verified");
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!(store.stats(&ctx()).await.expect("counted").aggregates, aggregates.len() as u64);
    }

    /// Checks that the store remains usable: an existing id is not stored again, and a new one is, at the next
    /// revision.
    async fn check_goes_on(store: &FileStore, mut events: Vec<Event>) {
        for (event, version) in events.iter().zip(1..) {
            let again = store.store_batch(&ctx(), Batch::new(vec![event.clone()])).await.expect("stored");
            assert_eq!((again[0].version.get(), again[0].outcome), (version, StoreOutcome::AlreadyStored));
        }
        let aggregate = events[0].aggregate_id().to_owned();
        let revision = events.iter().filter(|event| event.aggregate_id() == aggregate).count() as u64;
        let new = event(1_000_000, &aggregate, 5);
        let batch = Batch::new(vec![new.clone()]).expected(Expected::Revision(revision.into()));
        let stored = store.store_batch(&ctx(), batch).await.expect("stored");
        assert_eq!((stored[0].version.get(), stored[0].revision.get()), (events.len() as u64 + 1, revision + 1));
        events.push(new);
        check(store, &events).await;
    }

    /// The directory of a closed store.
    pub(crate) struct Closed {
        pub(crate) temporary: TempDir,
    }

    impl Closed {
        pub(crate) async fn new(events: &[Event]) -> Self {
            let closed = Closed { temporary: tempfile::tempdir().expect("a temporary directory") };
            closed.append(events).await;
            closed
        }

        pub(crate) async fn append(&self, events: &[Event]) {
            let store = self.open().expect("opened");
            append(&store, events).await;
            store.close().await.expect("closed");
        }

        pub(crate) fn path(&self) -> PathBuf {
            self.temporary.path().join("store")
        }

        pub(crate) fn open(&self) -> Result<FileStore> {
            self.open_with(options())
        }

        pub(crate) fn open_with(&self, options: StoreOptions) -> Result<FileStore> {
            KvStore::open(&self.path(), true, (), options)
        }

        fn repair(&self) -> Result<Vec<String>> {
            repair::<FileEngine>(&ctx(), &self.path(), &(), &options())
        }

        /// A copy of everything, as a file manager makes it.
        pub(crate) fn copied(&self) -> Self {
            let copy = Closed { temporary: tempfile::tempdir().expect("a temporary directory") };
            copy_all(&self.path(), &copy.path());
            copy
        }

        /// Replaces a file or directory by that of another store.
        fn take(&self, name: &str, from: &Closed) {
            self.remove(name);
            copy_all(&from.path().join(name), &self.path().join(name));
        }

        fn remove(&self, name: &str) {
            let path = self.path().join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                .expect(name);
        }

        fn engine(&self) -> FileEngine {
            FileEngine::open(&self.path().join(INDEX), &()).expect("opened")
        }

        fn mark(&self) -> Option<Mark> {
            let mut value = Vec::new();
            self.engine().snapshot().expect("a snapshot").get(Table::Meta, keys::META_MARK, &mut value).expect("read");
            Mark::from_bytes(&value)
        }

        fn put(&self, entries: &Entries) {
            self.engine().write(entries).expect("written");
        }

        /// Removes an id, as a damaged page of an engine without checksums does.
        fn hide_id(&self, id: &str) {
            let file = self.path().join(INDEX).join(FILE);
            let (mut hidden, mut kept) = (Vec::new(), Entries::new());
            keys::write_id(&mut hidden, id);
            let entries = read_entries(&fs::read(&file).expect("read")).expect("sound");
            for table in Table::ALL {
                let rest = entries.of(table).filter(|(key, _)| *key != hidden.as_slice());
                rest.for_each(|(key, value)| kept.put(table, key, value));
            }
            let engine = MemoryEngine::default();
            engine.write(&kept).expect("written");
            fs::write(file, write_entries(&engine.snapshot().expect("read")).expect("read")).expect("written");
        }

        pub(crate) fn segment(&self, number: u64) -> PathBuf {
            self.path().join(LOG).join(format!("{number:010}-0.seg"))
        }

        pub(crate) fn flip(&self, file: &Path, at: usize) {
            let mut bytes = fs::read(file).expect("read");
            bytes[at] ^= 0x40;
            fs::write(file, bytes).expect("written");
        }

        /// Checks that it opens with all of these events and remains usable, and whether the index was moved aside.
        async fn check_opens(&self, events: &[Event], is_index_new: bool) {
            assert!(!self.path().join(DAMAGED_INDEX).exists());
            let store = self.open().expect("opened");
            check(&store, events).await;
            assert_eq!(self.path().join(DAMAGED_INDEX).exists(), is_index_new);
            check_goes_on(&store, events.to_vec()).await;
            store.close().await.expect("closed");
            assert_eq!(self.mark().expect("a mark").version, events.len() as u64 + 1);
            let store = self.open().expect("opened again");
            store.close().await.expect("closed");
        }
    }

    pub(crate) fn copy_all(from: &Path, into: &Path) {
        if !from.is_dir() {
            fs::copy(from, into).expect("copied");
            return;
        }
        fs::create_dir_all(into).expect("created");
        for entry in fs::read_dir(from).expect("listed") {
            let name = entry.expect("an entry").file_name();
            copy_all(&from.join(&name), &into.join(&name));
        }
    }

    fn refused(opened: Result<FileStore>) -> (Option<u64>, String) {
        match opened {
            Err(Error::Corrupt { version, reason }) => (version.map(Version::get), reason),
            other => panic!("expected Corrupt, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_store_that_was_closed_opens_with_all_of_it() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        assert_eq!(closed.mark().expect("a mark").version, 30);
        closed.check_opens(&events, false).await;
        Closed::new(&[]).await.check_opens_empty().await;
    }

    impl Closed {
        async fn check_opens_empty(&self) {
            let store = self.open().expect("opened");
            assert_eq!(store.latest_version(&ctx()).await.expect("read"), Version::ZERO);
            assert!(store.verify(&ctx()).await.expect("verified").is_clean());
            store.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn what_is_left_of_the_making_of_an_index_is_no_damage() {
        for count in [0, 30] {
            let events = events(1..=count, 20);
            let closed = Closed::new(&events).await;
            assert!(!closed.path().join(UNFINISHED_INDEX).exists());
            fs::write(closed.path().join(UNFINISHED_INDEX), "").expect("written");
            fs::write(closed.path().join(INDEX).join(FILE), "half of it").expect("written");
            let reader = FileStore::open_read_only(&closed.path(), (), options()).expect("opened");
            let report = reader.verify(&ctx()).await.expect("verified");
            assert!(report.is_clean() && report.events == count, "{report:?}");
            reader.close().await.expect("closed");
            assert!(closed.path().join(UNFINISHED_INDEX).exists(), "nothing was written");
            let store = closed.open().expect("opened");
            check(&store, &events).await;
            store.close().await.expect("closed");
            for name in [UNFINISHED_INDEX, DAMAGED_INDEX] {
                assert!(!closed.path().join(name).exists(), "{name}");
            }
        }
    }

    #[tokio::test]
    async fn a_first_write_of_the_index_that_was_cut_short_is_no_damage() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        let store = closed.mark().expect("a mark").store;
        // Entries are written before the mark.
        let written = read_entries(&fs::read(closed.path().join(INDEX).join(FILE)).expect("read")).expect("sound");
        closed.remove(INDEX);
        fs::create_dir(closed.path().join(INDEX)).expect("created");
        drop(make_engine::<FileEngine>(&closed.path().join(INDEX), &(), store).expect("made"));
        let mut first = Entries::new();
        written.of(Table::Ids).for_each(|(key, value)| first.put(Table::Ids, key, value));
        closed.put(&first);
        let reader = FileStore::open_read_only(&closed.path(), (), options()).expect("opened");
        let report = reader.verify(&ctx()).await.expect("verified");
        assert!(report.is_clean() && report.events == 30, "{report:?}");
        reader.close().await.expect("closed");
        closed.check_opens(&events, false).await;
    }

    #[tokio::test]
    async fn an_index_that_is_missing_is_made_again() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        closed.remove(INDEX);
        closed.check_opens(&events, false).await;
        closed.remove(&format!("{INDEX}/{FILE}"));
        let store = closed.open().expect("opened");
        assert_eq!(store.latest_version(&ctx()).await.expect("read").get(), 31);
        assert!(store.verify(&ctx()).await.expect("verified").is_clean());
    }

    #[tokio::test]
    async fn a_damaged_index_is_put_aside_and_made_again() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        let file = closed.path().join(INDEX).join(FILE);
        let len = fs::metadata(&file).expect("there").len() as usize;
        for at in [0, 5, len / 2, len - 1] {
            let copy = closed.copied();
            copy.flip(&copy.path().join(INDEX).join(FILE), at);
            copy.check_opens(&events, true).await;
        }
        // Another one is moved aside later.
        let copy = closed.copied();
        copy.flip(&copy.path().join(INDEX).join(FILE), 9);
        copy.open().expect("opened").close().await.expect("closed");
        copy.flip(&copy.path().join(INDEX).join(FILE), 7);
        check(&copy.open().expect("opened"), &events).await;
        // Its file is gone, but not all of them.
        let copy = closed.copied();
        fs::write(copy.path().join(INDEX).join("other"), "").expect("written");
        copy.remove(&format!("{INDEX}/{FILE}"));
        copy.check_opens(&events, true).await;
    }

    #[tokio::test]
    async fn an_index_whose_mark_is_damaged_or_missing_is_not_believed() {
        let events = events(1..=30, 20);
        let mut leads_astray = Entries::new();
        let mut key = Vec::new();
        keys::write_id(&mut key, "id-7");
        leads_astray.put(Table::Ids, &key, &keys::version_bytes(8));
        let mut strange_aggregate = Entries::new();
        keys::write_aggregate(&mut key, "aggregate-1", 99);
        strange_aggregate.put(Table::Aggregates, &key, &[5]);
        for entries in [leads_astray, strange_aggregate] {
            let closed = Closed::new(&events).await;
            closed.remove(INDEX);
            fs::create_dir(closed.path().join(INDEX)).expect("created");
            closed.put(&entries);
            closed.check_opens(&events, true).await;
        }
        let closed = Closed::new(&events).await;
        let mut damaged = closed.mark().expect("a mark").to_bytes();
        damaged[20] ^= 1;
        let mut entries = Entries::new();
        entries.put(Table::Meta, keys::META_MARK, &damaged);
        closed.put(&entries);
        closed.check_opens(&events, true).await;
    }

    #[tokio::test]
    async fn the_index_of_another_store_is_not_believed() {
        let events = events(1..=30, 20);
        let other = Closed::new(&self::events(5..=80, 30)).await;
        let closed = Closed::new(&events).await;
        closed.take(INDEX, &other);
        closed.check_opens(&events, true).await;
    }

    #[tokio::test]
    async fn the_index_of_a_copy_that_went_its_own_way_is_not_believed() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events[..20]).await;
        let copy = closed.copied();
        closed.append(&events[20..]).await;
        for own in [3, 10] {
            let copy = copy.copied();
            copy.append(&self::events(101..=100 + own, 20)).await;
            let closed = closed.copied();
            closed.take(INDEX, &copy);
            closed.take(crate::index::filters::FILTER_FILE, &copy);
            closed.check_opens(&events, true).await;
        }
    }

    #[tokio::test]
    async fn the_checkpoint_of_a_copy_that_went_its_own_way_costs_no_event() {
        let events = events(1..=60, 20);
        let closed = Closed::new(&events[..20]).await;
        let copy = closed.copied();
        closed.append(&events[20..]).await;
        for (own, data_len) in [(3, 20), (3, 21), (10, 20), (10, 300), (40, 20), (40, 10), (50, 20)] {
            let copy = copy.copied();
            copy.append(&self::events(101..=100 + own, data_len)).await;
            let closed = closed.copied();
            closed.take("log/tail", &copy);
            if own > 40 {
                assert_eq!(refused(closed.open()).0, Some(61), "it knows of more");
                continue;
            }
            closed.check_opens(&events, false).await;
        }
    }

    #[tokio::test]
    async fn an_index_that_is_older_than_the_log_goes_on() {
        let events = events(1..=60, 20);
        let closed = Closed::new(&events[..10]).await;
        let older = closed.copied();
        closed.append(&events[10..]).await;
        closed.take(INDEX, &older);
        assert_eq!(closed.mark().expect("a mark").version, 10);
        let store = closed.open().expect("opened");
        check(&store, &events).await;
        drop(store);
        closed.take(INDEX, &older);
        closed.check_opens(&events, false).await;
    }

    #[tokio::test]
    async fn an_index_that_is_too_far_behind_is_written_at_opening() {
        let events = events(1..=60, 20);
        let closed = Closed::new(&events[..10]).await;
        let older = closed.copied();
        closed.append(&events[10..]).await;
        closed.take(INDEX, &older);
        let mut few = options();
        (few.index_events, few.group_events) = (4, 2);
        for options in [few, options()] {
            let is_too_far = options.index_events == 4;
            let directory = StoreDirectory::open(&closed.path(), FileEngine::NAME).expect("opened");
            let ctx = ctx();
            let ready =
                open_directory::<FileEngine>(directory, &(), &options, &Task::new(&ctx, &|| Ok(()))).expect("opened");
            let expected = "rebuilt the index of 50 events from the log";
            assert_eq!(ready.actions.contains(&expected.to_owned()), is_too_far, "{:?}", ready.actions);
            let in_memory = if is_too_far { 0 } else { 50 };
            assert_eq!(ready.opened.index.newer().len(), in_memory);
            drop(ready);
            assert_eq!(closed.mark().expect("a mark").version, 60 - in_memory as u64);
            check(&closed.open().expect("opened"), &events).await;
            closed.take(INDEX, &older);
        }
    }

    #[tokio::test]
    async fn making_the_index_tells_how_far_it_is_and_ends_when_it_must() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        closed.remove(INDEX);
        let directory = StoreDirectory::open(&closed.path(), FileEngine::NAME).expect("opened");
        let ctx = ctx();
        let ended =
            open_directory::<FileEngine>(directory, &(), &options(), &Task::new(&ctx, &|| Err(Error::Cancelled)));
        assert!(matches!(ended.map(drop), Err(Error::Cancelled)));
        closed.check_opens(&events, false).await;
    }

    #[tokio::test]
    async fn a_log_that_is_older_than_what_knows_of_it_is_told_and_accepted_by_a_repair() {
        let events = events(1..=60, 20);
        let yesterday = Closed::new(&events[..20]).await;
        let today = yesterday.copied();
        today.append(&events[20..]).await;
        // What still has today's state: the index, the file beside the log, the log's checkpoint, or all of them.
        for knows in [&[INDEX][..], &["eventstore.head"], &["log/tail"], &[INDEX, "eventstore.head", "log/tail"]] {
            let closed = yesterday.copied();
            for name in knows {
                closed.take(name, &today);
            }
            let (version, reason) = refused(closed.open());
            assert_eq!(version, Some(21), "{knows:?}: {reason}");
            assert!(reason.contains("eventstore repair"), "{knows:?}: {reason}");
            assert_eq!(refused(closed.open()).0, Some(21), "still");
            let actions = closed.repair().expect("repaired");
            assert!(actions.iter().any(|action| action.contains("newest version is 20")), "{actions:?}");
            assert_eq!(
                actions.iter().any(|action| action.contains("checkpoint")),
                knows.contains(&"log/tail"),
                "{actions:?}"
            );
            closed.remove(DAMAGED_INDEX);
            closed.check_opens(&events[..20], false).await;
        }
    }

    #[tokio::test]
    async fn a_repair_of_a_sound_store_changes_nothing_of_its_events() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        let actions = closed.repair().expect("repaired");
        assert!(actions.iter().any(|action| action.contains("rebuilt the index of 30 events")), "{actions:?}");
        for name in ["log/tail", "eventstore.head"] {
            assert!(closed.path().join(name).exists(), "{name} is given up for a lost end");
        }
        closed.remove(DAMAGED_INDEX);
        closed.check_opens(&events, false).await;
        assert!(matches!(
            repair::<FileEngine>(&ctx(), &closed.path().join("none"), &(), &options()),
            Err(Error::Open { .. })
        ));
    }

    /// The offset of each event's data in the first segment.
    fn places(closed: &Closed, events: &[Event]) -> Vec<usize> {
        let segment = fs::read(closed.segment(1)).expect("read");
        let place = |event: &Event| segment.windows(event.bytes().len()).position(|bytes| bytes == &event.bytes()[..]);
        events.iter().map(|event| place(event).expect("it is there")).collect()
    }

    #[tokio::test]
    async fn a_log_that_is_damaged_behind_the_mark_opens_for_reading() {
        let events = events(1..=60, 20);
        let closed = Closed::new(&events[..10]).await;
        let older = closed.copied();
        closed.append(&events[10..]).await;
        closed.take(INDEX, &older);
        closed.remove("log/tail");
        closed.flip(&closed.segment(1), places(&closed, &events)[29]);
        let store = closed.open().expect("opened for reading");
        assert_eq!(store.latest_version(&ctx()).await.expect("read").get(), 60);
        let fenced = store.store_batch(&ctx(), Batch::new(self::events(99..=99, 5))).await;
        assert!(matches!(&fenced, Err(Error::Fenced { reason }) if reason.contains("30")), "{fenced:?}");
        for (nth, event) in events.iter().enumerate() {
            match store.get(&ctx(), event.id()).await {
                Ok(found) => assert_eq!(&found.event, event),
                Err(Error::Corrupt { version, .. }) => assert!(nth >= 29 && version == Some(Version::new(30)), "{nth}"),
                Err(other) => panic!("{nth}: {other}"),
            }
        }
        assert!(
            matches!(store.get(&ctx(), "nobody's").await, Err(Error::Corrupt { .. })),
            "it may lie behind the damage"
        );
        let loaded = store.load(&ctx(), Version::new(30)).into_vec().await.expect("what is behind it is there");
        assert!(loaded.iter().map(|recorded| &recorded.event).eq(&events[30..]));
        let loaded = store.load(&ctx(), Version::ZERO).into_vec().await;
        assert!(matches!(loaded, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 30));
        assert!(matches!(store.aggregate_revision(&ctx(), "aggregate-1").await, Err(Error::Corrupt { .. })));
        let found = store.verify(&ctx()).await.expect("verified").findings;
        assert!(found.iter().any(|found| found.version == Some(Version::new(30))), "{found:?}");
        store.close().await.expect("closed");
        let repaired = closed.repair();
        assert!(matches!(repaired, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 30), "{repaired:?}");
        // Whatever was tried, all that the log has is there, and the index is unchanged.
        assert_eq!(closed.mark().expect("a mark").version, 10);
        let store = closed.open().expect("opened for reading");
        let loaded = store.load(&ctx(), Version::new(30)).into_vec().await.expect("read");
        assert!(loaded.iter().map(|recorded| &recorded.event).eq(&events[30..]));
    }

    #[tokio::test]
    async fn of_a_log_that_is_damaged_before_the_mark_all_other_events_are_found() {
        let events = events(1..=60, 20);
        let closed = Closed::new(&events[..40]).await;
        let older = closed.copied();
        closed.append(&events[40..]).await;
        closed.remove("log/tail");
        closed.flip(&closed.segment(1), places(&closed, &events)[29]);
        for (has_some_in_memory, is_repaired) in [(false, false), (false, true), (true, false)] {
            if has_some_in_memory {
                closed.take(INDEX, &older);
            }
            if is_repaired {
                let repaired = closed.repair();
                assert!(
                    matches!(repaired, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 30),
                    "{repaired:?}"
                );
                assert!(!closed.path().join(DAMAGED_INDEX).exists(), "it is the index again");
            }
            let store = closed.open().expect("opened for reading");
            for event in &events {
                match store.get(&ctx(), event.id()).await {
                    Ok(found) => assert_eq!(&found.event, event),
                    Err(error) => assert!(matches!(error, Error::Corrupt { .. }) && event.id() == "id-30", "{error}"),
                }
            }
            assert!(
                matches!(store.get(&ctx(), "nobody's").await, Err(Error::EventNotFound { .. })),
                "all ids are known"
            );
            assert_eq!(store.aggregate_revision(&ctx(), "aggregate-1").await.expect("read").get(), 20);
            let fenced = store.store_batch(&ctx(), Batch::new(self::events(99..=99, 5))).await;
            assert!(
                matches!(&fenced, Err(Error::Fenced { reason }) if reason.contains("damaged at version 30")),
                "{fenced:?}"
            );
            store.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn a_repair_that_cannot_help_leaves_the_index() {
        let events = events(1..=60, 2000);
        let closed = Closed::new(&events).await;
        let (missing, at_read) = (closed.copied(), closed.copied());
        // Without its beginning, the log does not open.
        fs::rename(missing.segment(1), missing.path().join("moved")).expect("moved");
        let repaired = missing.repair();
        assert!(matches!(repaired, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 1), "{repaired:?}");
        fs::rename(missing.path().join("moved"), missing.segment(1)).expect("moved back");
        missing.check_opens(&events, false).await;
        // Damage in a sealed segment is found when the index is built.
        assert!(at_read.segment(2).exists());
        at_read.flip(&at_read.segment(1), places(&at_read, &events[..10])[9]);
        let repaired = at_read.repair();
        assert!(matches!(repaired, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == 10), "{repaired:?}");
        assert!(!at_read.path().join(DAMAGED_INDEX).exists());
        assert_eq!(at_read.mark().expect("a mark").version, 60);
    }

    #[tokio::test]
    async fn a_log_that_has_lost_its_end_is_told_and_accepted_by_a_repair() {
        let events = events(1..=60, 20);
        let closed = Closed::new(&events).await;
        let place = places(&closed, &events)[40];
        let file = fs::File::options().write(true).open(closed.segment(1)).expect("opened");
        file.set_len(place as u64).expect("cut");
        assert_eq!(refused(closed.open()).0, Some(41));
        let actions = closed.repair().expect("repaired");
        assert!(actions.iter().any(|action| action.contains("newest version is 40")), "{actions:?}");
        closed.remove(DAMAGED_INDEX);
        closed.check_opens(&events[..40], false).await;
    }

    #[tokio::test]
    async fn a_log_that_is_gone_is_told() {
        let events = events(1..=30, 20);
        let closed = Closed::new(&events).await;
        let (empty, gone) = (closed.copied(), closed);
        for entry in fs::read_dir(empty.path().join(LOG)).expect("listed") {
            fs::remove_file(entry.expect("an entry").path()).expect("removed");
        }
        assert_eq!(refused(empty.open()).0, Some(1), "the index and the file beside the log know of it");
        gone.remove(LOG);
        let (version, reason) = refused(gone.open());
        assert!(version == Some(1) && reason.contains("are lost"), "{reason}");
        assert!(matches!(gone.repair(), Err(Error::Corrupt { .. })), "there is nothing to mend");
        assert!(!gone.path().join(LOG).exists(), "an empty one would look like a new store");
    }

    #[tokio::test]
    async fn whatever_byte_of_the_log_is_damaged_no_event_is_wrong_or_missing_without_a_word() {
        let events = events(1..=12, 20);
        let closed = Closed::new(&events).await;
        let segment = fs::read(closed.segment(1)).expect("read");
        let (mut refused, mut read) = (0, 0);
        for at in (0..segment.len()).step_by(11) {
            for has_tail in [true, false] {
                fs::write(closed.segment(1), &segment).expect("written");
                closed.flip(&closed.segment(1), at);
                let copy = closed.copied();
                if !has_tail {
                    copy.remove("log/tail");
                }
                let Ok(store) = copy.open() else {
                    refused += 1;
                    continue;
                };
                let head = store.latest_version(&ctx()).await.expect("read").get();
                let mut is_told = false;
                for (event, version) in events.iter().zip(1..) {
                    match store.get(&ctx(), event.id()).await {
                        Ok(found) => assert_eq!((&found.event, found.version.get()), (event, version)),
                        Err(Error::Corrupt { .. }) => is_told = true,
                        Err(other) => panic!("byte {at}, event {version}: {other}"),
                    }
                    read += 1;
                }
                let found = store.verify(&ctx()).await.expect("verified").findings;
                assert!(is_told || !found.is_empty() || is_padding(&segment, at), "byte {at}, head {head}");
                store.close().await.expect("closed");
            }
        }
        assert!(refused > 0 && read > 1000, "{refused} {read}");
    }

    /// Zeros between frames do not matter.
    fn is_padding(segment: &[u8], at: usize) -> bool {
        segment[at] == 0
            && segment.get(at & !7..).is_some_and(|rest| rest[at & 7..8.min(rest.len())].iter().all(|byte| *byte == 0))
    }

    #[tokio::test]
    async fn a_store_over_files_makes_its_index_each_time() {
        let files = MemoryDirectory::default();
        let events = events(1..=30, 20);
        for opening in 0..3 {
            let store: memory::MemoryStore = KvStore::over(Arc::new(files.clone()), (), options()).expect("opened");
            for event in &events {
                let stored = store.store_batch(&ctx(), Batch::new(vec![event.clone()])).await.expect("stored");
                let expected = if opening == 0 { StoreOutcome::Written } else { StoreOutcome::AlreadyStored };
                assert_eq!(stored[0].outcome, expected);
            }
            assert!(store.verify(&ctx()).await.expect("verified").is_clean());
            store.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn a_store_opens_that_has_an_id_twice() {
        let mut events = events(1..=40, 20);
        let closed = Closed::new(&events).await;
        closed.remove(filters::FILTER_FILE);
        closed.hide_id("id-7");
        let again = [events[6].clone()];
        closed.append(&again).await; // no other file knows it
        events.extend(again);
        for is_repaired in [false, true] {
            if is_repaired {
                closed.repair().expect("the index is made");
            } else {
                closed.remove(INDEX);
            }
            let store = closed.open().expect("opened");
            let all = store.load(&ctx(), Version::ZERO).into_vec().await.expect("read");
            assert!(all.iter().map(|recorded| &recorded.event).eq(&events));
            assert_eq!(store.get(&ctx(), "id-7").await.expect("found").version.get(), 7);
            let report = store.verify(&ctx()).await.expect("verified");
            let named: Vec<_> = report.findings.iter().map(|finding| finding.version.map(Version::get)).collect();
            assert_eq!(named, [Some(41)], "{:?}", report.findings);
            let stored = store.store_batch(&ctx(), vec![events[6].clone()].into()).await.expect("it is there");
            assert_eq!((stored[0].version.get(), stored[0].outcome), (7, StoreOutcome::AlreadyStored));
            store.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn the_filter_has_ids_that_the_index_has_hidden() {
        let events = events(1..=40, 20);
        let closed = Closed::new(&events).await;
        let file = closed.path().join(INDEX).join(FILE);
        let sound = fs::read(&file).expect("read");
        closed.hide_id("id-7");
        closed.remove(filters::FILTER_FILE);
        // It is saved if it was built before the last append.
        for number in 1000.. {
            closed.append(&[event(number, "other", 5)]).await;
            if closed.path().join(filters::FILTER_FILE).exists() {
                break;
            }
        }
        fs::write(file, sound).expect("written");
        let store = closed.open().expect("opened");
        for _ in 0..100 {
            let again = store.store_batch(&ctx(), vec![events[6].clone()].into()).await.expect("it is there");
            assert_eq!(again[0].outcome, StoreOutcome::AlreadyStored);
        }
        store.close().await.expect("closed");
        closed.repair().expect("the index is made");
        assert!(!closed.path().join(filters::FILTER_FILE).exists(), "a filter goes with the index it was made beside");
    }

    #[tokio::test]
    async fn what_the_log_has_twice_is_mended_by_a_repair() {
        let events = events(1..=400, 500);
        for is_compressed in [false, cfg!(feature = "zstd")] {
            let closed = Closed::new(&events[..300]).await;
            let mut options = options();
            options.compression = if is_compressed { Compression::Zstd } else { Compression::None };
            let store = closed.open_with(options).expect("opened");
            append(&store, &events[300..]).await;
            store.run_gc(&ctx(), Gc::Quick).await.expect("collected");
            let digest = store.digest(&ctx(), Version::new(150)).await.expect("made");
            store.close().await.expect("closed");
            let segment =
                closed.path().join(LOG).join(if is_compressed { "0000000002-1.seg" } else { "0000000002-0.seg" });
            let len = fs::metadata(&segment).expect("it is there").len() as usize;
            // The blob, and the summary that describes it.
            for at in [len - 96 - 20, len - 10] {
                let harmed = closed.copied();
                let segment = harmed.path().join(LOG).join(segment.file_name().expect("a name"));
                harmed.flip(&segment, at);
                let store = harmed.open().expect("opened");
                assert_eq!(store.digest(&ctx(), Version::new(150)).await.expect("made from an earlier mark"), digest);
                let was_clean = store.verify(&ctx()).await.expect("verified").is_clean();
                store.close().await.expect("closed");
                let actions = harmed.repair().expect("repaired");
                let is_told = actions.iter().any(|action| action.contains("0000000002-"));
                assert_eq!(is_told, !was_clean, "{is_compressed}, {at}: {actions:?}");
                assert!(is_told || !is_compressed && at == len - 10, "a footer that is none is made when it is closed");
                harmed.remove(DAMAGED_INDEX);
                harmed.check_opens(&events, false).await;
            }
        }
    }

    #[tokio::test]
    async fn a_repair_that_finds_no_room_changes_nothing() {
        let events = events(1..=40, 20);
        let closed = Closed::new(&events).await;
        fs::write(closed.path().join(FULL_DISK), "").expect("written");
        assert!(matches!(closed.repair(), Err(Error::Full { .. })));
        closed.remove(FULL_DISK);
        closed.check_opens(&events, false).await;
    }
}

//! The files of a store: creating them, locking them, connections to them; and SQLite's errors in terms of the contract.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use eventstore_api::{Error, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// The database. Beside it SQLite keeps its write-ahead log and an index of that.
pub(crate) const DATABASE: &str = "events.db";

/// Locked while the store is open; the operating system unlocks it when the process ends.
const LOCK: &str = "store.lock";

/// A database that is being created. It takes its name when it is whole, so that there is never half a store.
const NEW: &str = "events.db.new";

/// A backup that is being written, for the same reason. Nothing opens a directory that has only this.
pub(crate) const PARTIAL: &str = "events.db.partial";

/// Marks the database as ours, in the place that SQLite has for that.
const APPLICATION_ID: i32 = 0x6576_7374;
const FORMAT: i32 = 1;

/// All texts are blobs: they compare byte by byte, and may hold any character.
///
/// The index by aggregate has the row's version in it, as every index of SQLite does, so it serves `WHERE aggregate_id = ?
/// AND version > ? ORDER BY version`. The partial index is small, and counts the aggregates.
const SCHEMA: &str = "
    CREATE TABLE events (
        version INTEGER PRIMARY KEY,
        revision INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        id BLOB NOT NULL UNIQUE,
        event_type BLOB NOT NULL,
        aggregate_id BLOB NOT NULL,
        metadata BLOB NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE INDEX events_by_aggregate ON events (aggregate_id);
    CREATE INDEX first_events ON events (version) WHERE revision = 1;
    CREATE TABLE syncs (done INTEGER NOT NULL) STRICT;
    INSERT INTO syncs VALUES (0);
";

/// The directory of an open store.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    /// `None` once the store is closed.
    lock: Mutex<Option<File>>,
}

/// Opens the store in a directory, or creates it. The connection is the writer's.
pub(crate) fn open(path: &Path) -> Result<(Files, Connection)> {
    let failed = |error| cannot_open(path, "the directory cannot be used", error);
    create_directory(path).map_err(failed)?;
    let directory = fs::canonicalize(path).map_err(failed)?; // the store stays where it is when the process moves
    let lock = lock(&directory)?;
    if !directory.join(DATABASE).exists() {
        create(&directory)?;
    }
    let db = connect(&directory.join(DATABASE), OpenFlags::SQLITE_OPEN_READ_WRITE)
        .and_then(|db| {
            // Synced to the disk's surface also where that is more than fsync does.
            db.execute_batch("PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON")?;
            let marks = db.query_row("SELECT * FROM pragma_application_id, pragma_user_version", [], |row| {
                Ok((row.get::<_, i32>(0)?, row.get::<_, i32>(1)?))
            })?;
            Ok((db, marks))
        })
        .map_err(|error| opening(&directory, error))?;
    match db {
        (db, (APPLICATION_ID, FORMAT)) => {
            use_write_ahead_log(&db).map_err(|error| opening(&directory, error))?;
            Ok((Files { directory, lock: Mutex::new(Some(lock)) }, db))
        }
        (_, (APPLICATION_ID, format)) => Err(Error::Unsupported {
            what: format!("the store has format {format}, and this version reads format {FORMAT}; use a newer one"),
        }),
        _ => Err(refused(&directory, format!("{DATABASE} is no event store; move it away, or restore a backup"))),
    }
}

impl Files {
    pub(crate) fn connect_to_read(&self) -> Result<Connection> {
        // Who reads a write-ahead log takes part in its index, and so needs to write to that.
        let db = connect(&self.directory.join(DATABASE), OpenFlags::SQLITE_OPEN_READ_WRITE);
        db.and_then(|db| {
            db.execute_batch("PRAGMA query_only = ON")?;
            Ok(db)
        })
        .map_err(failed_to("open a connection"))
    }

    pub(crate) fn unlock(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Bytes of all files. They are only asked for their length: to open the database here, and to close it again, would
    /// undo the locks that SQLite has on it in this process.
    pub(crate) fn len_bytes(&self) -> Result<u64> {
        len_bytes(&self.directory).map_err(|error| Error::engine("measure the files", error))
    }
}

pub(crate) fn len_bytes(directory: &Path) -> io::Result<u64> {
    let lengths = fs::read_dir(directory)?.map(|entry| match entry?.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0), // SQLite has just removed it
        Err(error) => Err(error),
    });
    lengths.sum()
}

pub(crate) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Duration::from_secs(10))?;
    // The last connection would write the log back when it is closed, and after a failed sync nothing may do that.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.execute_batch("PRAGMA cell_size_check = ON")?;
    Ok(db)
}

fn use_write_ahead_log(db: &Connection) -> rusqlite::Result<()> {
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::InvalidParameterName(format!("the file system allows only the mode {mode}")));
    }
    Ok(())
}

/// Locks the directory, which may hold nothing, or a store.
fn lock(directory: &Path) -> Result<File> {
    let check = |may_begin: &dyn Fn(&OsString) -> bool| {
        let names = names(directory).map_err(|error| cannot_open(directory, "it cannot be read", error))?;
        match names.iter().find(|name| !may_begin(name)) {
            Some(other) if !names.iter().any(|name| name == DATABASE) => {
                Err(refused(directory, format!("it holds {} and no store; give an empty one", other.display())))
            }
            _ => Ok(()),
        }
    };
    // Nothing is put into a directory that is somebody else's.
    let is_ours = |name: &OsString| name == LOCK || name.to_string_lossy().starts_with(NEW);
    check(&is_ours)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK));
    let file = file.map_err(|error| cannot_open(directory, "the lock file cannot be opened", error))?;
    match file.try_lock() {
        Ok(()) => check(&is_ours).map(|()| file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: directory.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(cannot_open(directory, "the lock file cannot be locked", error)),
    }
}

fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Creates the database under another name, whole and synced, and then names it.
fn create(directory: &Path) -> Result<()> {
    let new = directory.join(NEW);
    for rest in [new.clone(), directory.join(format!("{NEW}-journal"))] {
        if let Err(error) = fs::remove_file(rest)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(cannot_open(directory, "what an earlier creation left cannot be removed", error));
        }
    }
    connect(&new, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
        .and_then(|db| {
            db.execute_batch("PRAGMA synchronous = EXTRA; PRAGMA fullfsync = ON")?;
            db.execute_batch(&format!(
                "BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {SCHEMA} COMMIT"
            ))?;
            db.close().map_err(|(_, error)| error)
        })
        .map_err(|error| opening(directory, error))?;
    put_in_place(directory, NEW).map_err(|error| cannot_open(directory, "the database cannot be created", error))
}

/// Syncs a database that nobody has open, gives it its name, and syncs that.
pub(crate) fn put_in_place(directory: &Path, name: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(directory.join(name))?.sync_all()?;
    fs::rename(directory.join(name), directory.join(DATABASE))?;
    sync_directory(directory)
}

/// Takes a directory for a backup: one that is missing or empty, but for the lock file that an earlier try may have left.
/// The lock keeps out who would begin a store there meanwhile.
pub(crate) fn begin_backup(target: &Path) -> Result<(PathBuf, File)> {
    let unusable = |error| cannot_open(target, "a backup cannot be written there", error);
    create_directory(target).map_err(unusable)?;
    let directory = fs::canonicalize(target).map_err(unusable)?;
    let check = || match names(&directory).map_err(unusable)?.iter().find(|name| *name != LOCK) {
        Some(other) => Err(refused(target, format!("it holds {}; give an empty directory", other.display()))),
        None => Ok(()),
    };
    check()?;
    let lock = lock(&directory)?;
    check()?;
    Ok((directory, lock))
}

/// Creates a directory and those above it, and syncs the entry of each.
fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_directory(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => sync_directory(parent),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    // Elsewhere directories cannot be opened, and need not be.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn refused(path: &Path, reason: String) -> Error {
    Error::Open { path: path.display().to_string(), reason, source: None }
}

pub(crate) fn cannot_open(path: &Path, reason: &str, error: io::Error) -> Error {
    Error::Open { path: path.display().to_string(), reason: format!("{reason}: {error}"), source: Some(error.into()) }
}

fn opening(path: &Path, error: rusqlite::Error) -> Error {
    match failed_to("open the database")(error) {
        Error::Engine { source, .. } => {
            Error::Open { path: path.display().to_string(), reason: source.to_string(), source: Some(source) }
        }
        other => other,
    }
}

/// What an error of SQLite means for the caller; everything else is the engine's own.
pub(crate) fn failed_to(operation: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |error| match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            Error::Full { reason: format!("the disk is, while trying to {operation}; make room") }
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Corrupt { version: None, reason: format!("SQLite says: {error}") }
        }
        _ => Error::engine(operation, error),
    }
}

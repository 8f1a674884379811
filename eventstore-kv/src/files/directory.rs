use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{Error, Result, Source};
use eventstore_log::{create_private_dir, parent_of, sync_dir};
use serde::{Deserialize, Serialize};
use uuid::{NoContext, Timestamp, Uuid};

use crate::files::head::HEAD_FILE;
use crate::files::open::{INDEX, LOG};
use crate::files::place::Place;
use crate::index::filters::FILTER_FILE;

const LOCK_FILE: &str = "eventstore.lock";
const MARK_FILE: &str = "eventstore.json";
const NEW_MARK_FILE: &str = "eventstore.json.new";
const BACKUP_MARK_FILE: &str = "eventstore.json.backup";
/// Of a replica's directory, which is no store but has one in it.
const REPLICA_FILE: &str = "replica.json";

/// The directory of a store on disk: created if it is missing, locked against a second opening, and marked with its
/// engine once the engine's files exist.
///
/// The operating system releases the lock when the process ends, however it ends. Drop the directory after the engine.
#[derive(Debug)]
pub struct StoreDirectory {
    id: [u8; 16],
    /// Open while the directory is locked; `None` if there is nothing to lock.
    lock: Option<File>,
    place: Place,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A new store that is being created.
    New,
    /// A backup that is being written.
    Backup,
    /// A store.
    Marked,
    /// A store in which nothing is created, changed or deleted.
    ReadOnly,
}

/// The content of the mark file. Unknown fields are ignored, so that later versions can add some.
#[derive(Serialize, Deserialize)]
struct Mark {
    engine: String,
    /// The id of the store and of every copy of its files.
    id: Uuid,
}

impl StoreDirectory {
    /// Opens the directory of a store of this engine, if there is one. Creates nothing.
    ///
    /// # Errors
    ///
    /// `Open` if there is none, and those of [`open`](StoreDirectory::open).
    pub fn open_existing(path: &Path, engine: &str) -> Result<Self> {
        refuse_empty(path, engine)?;
        if !Self::is_store(path) {
            Self::engine_of(path)?; // the error says what is there instead
        }
        Self::open(path, engine)
    }

    /// Whether there is a store in a directory.
    pub(crate) fn is_store(path: &Path) -> bool {
        path.join(MARK_FILE).exists() || has_lost_its_mark(path)
    }

    /// The engine of the store in a directory.
    ///
    /// # Errors
    ///
    /// `Open` if there is no store.
    pub fn engine_of(path: &Path) -> Result<String> {
        match read_mark(path)? {
            Some(mark) => Ok(mark.engine),
            None if path.is_dir() => refuse_strangers(path, "check the path").and(Err(no_store(path))),
            None => Err(no_store(path)),
        }
    }

    /// Opens the directory of a store of this engine. Creates it if it is missing.
    ///
    /// # Errors
    ///
    /// `Locked` if another handle or process has it open; `Unsupported` if it has another engine's store; `Open` if it
    /// is not a directory, not writable, or has something else than a store.
    pub fn open(path: &Path, engine: &str) -> Result<Self> {
        let failed = |reason: &str, source: io::Error| cannot_open(path, reason, source);
        refuse_empty(path, engine)?;
        create_private_dir(path)
            .map_err(|error| failed("its directory cannot be created; check the path and its permissions", error))?;
        // Checked before anything is created in it, and again under the lock.
        refuse_strangers(path, CHOOSE_ANOTHER)?;
        let (lock, place) = lock(path)?;
        refuse_links(path)?;
        let (state, id) = check_mark(path, engine)?;
        Ok(StoreDirectory { id: id.into_bytes(), lock: Some(lock), place, state: Mutex::new(state) })
    }

    /// Opens the directory of a store of this engine for reading. Nothing is created or changed in it. Others may read
    /// it at the same time, but nobody may write to it. Without a lock file, such as on read-only media, the user must
    /// ensure that.
    ///
    /// # Errors
    ///
    /// `Open` if there is no store or it cannot be read; `Locked` if somebody writes to it; `Unsupported` if it belongs
    /// to another engine.
    pub fn open_read_only(path: &Path, engine: &str) -> Result<Self> {
        refuse_empty(path, engine)?;
        Self::engine_of(path)?;
        let (lock, place) = lock_shared(path)?;
        refuse_links(path)?;
        let mark = read_mark(path)?.ok_or_else(|| no_store(path))?;
        check_engine(path, engine, &mark)?;
        Ok(StoreDirectory { id: mark.id.into_bytes(), lock, place, state: Mutex::new(State::ReadOnly) })
    }

    /// Begins a backup of a store in a directory that is missing or empty. Until it is [marked](Self::mark), it does
    /// not open as a store. If it is dropped before that, everything in it is deleted.
    ///
    /// # Errors
    ///
    /// `Open` if the directory is not empty, or cannot be created or written; `Locked` if another backup is being
    /// written to it.
    pub fn begin_backup(path: &Path, engine: &str, id: [u8; 16]) -> Result<Self> {
        let failed = |error| cannot_open(path, "it cannot be written", error);
        let not_empty = |reason: &str| Error::Open {
            path: path.display().to_string(),
            reason: format!("{reason}; choose a missing or empty directory"),
            source: None,
        };
        if Self::is_store(path) {
            return Err(not_empty("it already holds a store"));
        }
        let mut directory = Self::open(path, engine)?;
        if directory.state() != State::New || !content_of(path).map_err(failed)?.is_empty() {
            return Err(not_empty("it is not empty"));
        }
        write_mark(path, BACKUP_MARK_FILE, engine, Uuid::from_bytes(id)).map_err(failed)?;
        fs::remove_file(path.join(NEW_MARK_FILE)).map_err(failed)?;
        directory.set_state(State::Backup);
        directory.id = id;
        Ok(directory)
    }

    /// The id of the store and of every copy of its files.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.id
    }

    /// The absolute path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.place.directory()
    }

    /// The place of the directory when it was locked.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether an earlier opening created all of the engine's files. If they are missing now, they were lost.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.state() == State::Marked
    }

    /// Whether nothing may be created, changed or deleted in it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.state() == State::ReadOnly
    }

    /// Whether it is a backup that is being written.
    pub(crate) fn is_unfinished_backup(&self) -> bool {
        self.state() == State::Backup
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Deletes a file or directory of the engine if it is left of an interrupted creation, before anything was stored.
    /// In a marked store it is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`].
    pub fn delete_unfinished(&self, name: &str) -> Result<()> {
        let path = self.path().join(name);
        if self.state() != State::New || !path.exists() {
            return Ok(());
        }
        let deleted = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        deleted.map_err(|error| Error::engine("delete what is left of a creation", error))
    }

    /// Marks the store as created. Called once the engine's files exist. So an interrupted creation is restarted, but
    /// lost files are not created again.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn mark(&self) -> Result<()> {
        let unmarked = match self.state() {
            State::Marked | State::ReadOnly => return Ok(()),
            State::New => NEW_MARK_FILE,
            State::Backup => BACKUP_MARK_FILE,
        };
        let finish = || -> io::Result<()> {
            sync_dir(self.path())?;
            // Whoever created the directory may have been killed before its entry was durable. Nobody looks at that any
            // more once the mark is there.
            sync_dir(parent_of(self.path()))?;
            fs::rename(self.path().join(unmarked), self.path().join(MARK_FILE))?;
            sync_dir(self.path())
        };
        finish().map_err(|error| cannot_open(self.path(), "it cannot be written", error))?;
        self.set_state(State::Marked);
        Ok(())
    }

    /// The total length of the files in the directory, in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`].
    pub fn len_bytes(&self) -> Result<u64> {
        len_of_files(self.path()).map_err(|error| Error::engine("measure the store's files", error))
    }
}

impl StoreDirectory {
    fn delete_unfinished_backup(&self) -> io::Result<()> {
        // It may have its mark already, if that could not be made durable.
        self.delete_file(MARK_FILE)?;
        for entry in content_of(self.path())? {
            if entry.is_dir() { fs::remove_dir_all(entry)? } else { fs::remove_file(entry)? }
        }
        self.delete_file(BACKUP_MARK_FILE)?;
        self.delete_file(LOCK_FILE)
    }

    fn delete_file(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path().join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for StoreDirectory {
    /// Deletes an unfinished backup, and releases the lock.
    fn drop(&mut self) {
        if self.state() == State::Backup
            && let Err(error) = self.delete_unfinished_backup()
        {
            let path = self.path().display();
            tell!(warn, %path, %error, "a backup that was not finished could not be deleted; delete its directory");
        }
        // Closing the file is not enough: a child process that is being started holds it as well, until it executes its
        // program.
        if let Some(Err(error)) = self.lock.as_ref().map(File::unlock) {
            let path = self.path().display();
            tell!(warn, %path, %error, "the lock of a store was not released");
        }
    }
}

/// Locks a directory by its lock file, which is created if it is missing.
fn lock(path: &Path) -> Result<(File, Place)> {
    let failed = |reason: &str, source: io::Error| cannot_open(path, reason, source);
    let unwritable = "its lock file cannot be written; give this user write access, which is needed even for reading";
    // A program may change its working directory; the locked directory stays the same.
    let absolute = std::path::absolute(path).map_err(|error| failed("its path cannot be made absolute", error))?;
    let lock_path = absolute.join(LOCK_FILE);
    loop {
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|error| failed(unwritable, error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked { path: path.display().to_string() },
            TryLockError::Error(error) => failed("its lock file cannot be locked", error),
        })?;
        // Whoever had the lock before may have deleted an unfinished backup meanwhile.
        let place = Place::of(&lock, lock_path.clone()).map_err(|error| failed(unwritable, error))?;
        if place.is_kept().map_err(|error| failed(unwritable, error))? {
            return Ok((lock, place));
        }
    }
}

/// Takes a shared lock of a directory, against writers, if it has a lock file.
fn lock_shared(path: &Path) -> Result<(Option<File>, Place)> {
    let failed = |reason: &str, source: io::Error| cannot_open(path, reason, source);
    let absolute = std::path::absolute(path).map_err(|error| failed("its path cannot be made absolute", error))?;
    let lock_path = absolute.join(LOCK_FILE);
    let lock = match File::open(&lock_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, Place::unknown(lock_path))),
        opened => opened.map_err(|error| failed("its lock file cannot be read; check its permissions", error))?,
    };
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.display().to_string() }),
        // Some read-only file systems do not support locks either.
        Err(TryLockError::Error(_)) => Ok((None, Place::unknown(lock_path))),
        Ok(()) => {
            let place =
                Place::of(&lock, lock_path).map_err(|error| failed("its lock file cannot be accessed", error))?;
            Ok((Some(lock), place))
        }
    }
}

/// The content of a store's directory, apart from the files that all stores have.
fn content_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let ours = [LOCK_FILE, MARK_FILE, NEW_MARK_FILE, BACKUP_MARK_FILE, HEAD_FILE, FILTER_FILE];
    let mut content = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if ours.iter().all(|name| entry.file_name() != *name) {
            content.push(entry.path());
        }
    }
    Ok(content)
}

/// Otherwise it would be the working directory.
fn refuse_empty(path: &Path, engine: &str) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::InvalidOption {
            option: "path".to_owned(),
            reason: format!("it is empty; name the store's directory, such as {engine}:./data"),
        });
    }
    Ok(())
}

fn no_store(path: &Path) -> Error {
    Error::Open {
        path: path.display().to_string(),
        reason: format!("there is no store (no {MARK_FILE}); check the path"),
        source: None,
    }
}

/// The state of the directory, which must belong to this engine, and the id of its store. An empty directory gets a
/// preliminary mark.
fn check_mark(path: &Path, engine: &str) -> Result<(State, Uuid)> {
    let failed = |error| cannot_open(path, "it cannot be written", error);
    let Some(mark) = read_mark(path)? else {
        refuse_strangers(path, CHOOSE_ANOTHER)?;
        let id = new_id();
        write_mark(path, NEW_MARK_FILE, engine, id).map_err(failed)?;
        return Ok((State::New, id));
    };
    check_engine(path, engine, &mark)?;
    if !path.join(MARK_FILE).exists() {
        let marked = fs::rename(path.join(NEW_MARK_FILE), path.join(MARK_FILE)).and_then(|()| sync_dir(path));
        marked.map_err(failed)?;
        tell!(warn, path = %path.display(), "the mark of a store had been lost, and is there again");
    }
    Ok((State::Marked, mark.id))
}

/// Whether there is a store that has only its preliminary mark. A log begins when the mark has its name, durably. But a
/// sync that has failed may be followed by one that succeeds and makes nothing durable that was changed before.
fn has_lost_its_mark(path: &Path) -> bool {
    !path.join(MARK_FILE).exists() && path.join(NEW_MARK_FILE).exists() && holds_a_log(path)
}

/// The id of a new store.
pub(crate) fn new_id() -> Uuid {
    id_at(SystemTime::now())
}

/// A new id. `Uuid::now_v7` panics before 1970.
fn id_at(now: SystemTime) -> Uuid {
    let since = clamp_recorded_at(now).duration_since(UNIX_EPOCH).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos()))
}

fn check_engine(path: &Path, engine: &str, mark: &Mark) -> Result<()> {
    if mark.engine == engine {
        return Ok(());
    }
    let (path, engine) = (path.display(), &mark.engine);
    Err(Error::Unsupported { what: format!("{path} holds a store of the {engine} engine; open it as {engine}:{path}") })
}

/// The mark of a store, if there is one.
fn read_mark(path: &Path) -> Result<Option<Mark>> {
    let name = if has_lost_its_mark(path) { NEW_MARK_FILE } else { MARK_FILE };
    match fs::read(path.join(name)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            cannot_open(path, &format!("{name} is damaged; restore {MARK_FILE} from a backup"), error)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(_) if path.is_file() => {
            let reason = "it is a file, not the directory of a store; check the path".to_owned();
            Err(Error::Open { path: path.display().to_string(), reason, source: None })
        }
        Err(error) => Err(cannot_open(path, &format!("{name} cannot be read"), error)),
    }
}

fn write_mark(path: &Path, name: &str, engine: &str, id: Uuid) -> io::Result<()> {
    let mut text = serde_json::to_vec(&Mark { engine: engine.to_owned(), id })?;
    text.push(b'\n');
    let mut file = File::create(path.join(name))?;
    file.write_all(&text)?;
    file.sync_all()?;
    // A power cut must not leave the engine's files without it: the directory would not be recognised as a store.
    sync_dir(path)
}

/// The advice to somebody who may be creating a store.
const CHOOSE_ANOTHER: &str = "choose an empty directory";

/// Rejects a directory that is neither a store, nor the beginning of one, nor empty. The error says what is there, and
/// ends with the advice.
fn refuse_strangers(path: &Path, advice: &str) -> Result<()> {
    let is_store = || [MARK_FILE, NEW_MARK_FILE].iter().any(|mark| path.join(mark).exists());
    if is_store() {
        return Ok(());
    }
    if path.join(BACKUP_MARK_FILE).exists() {
        return Err(Error::Open {
            path: path.display().to_string(),
            reason: "it holds an unfinished backup; delete the directory and take the backup again".to_owned(),
            source: None,
        });
    }
    let failed = |error| cannot_open(path, "it cannot be read", error);
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != LOCK_FILE {
            if is_store() {
                return Ok(()); // somebody has just created one
            }
            let reason = match holds_a_log(path) {
                true => format!("its {MARK_FILE} is missing; put that of a backup of this store there"),
                false if path.join(REPLICA_FILE).exists() => {
                    let path = path.display();
                    format!("it is a replica, not a store; open it as replica:{path}, or {advice}")
                }
                false => format!(
                    "it is not a store (there is no {MARK_FILE}) and not empty (there is {}); {advice}",
                    name.display()
                ),
            };
            return Err(Error::Open { path: path.display().to_string(), reason, source: None });
        }
    }
    Ok(())
}

/// Whether there are segments of a log. If so, it was a store.
fn holds_a_log(path: &Path) -> bool {
    let is_segment = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| Path::new(&entry.file_name()).extension().is_some_and(|extension| extension == "seg"))
    };
    fs::read_dir(path.join(LOG)).is_ok_and(|mut entries| entries.any(is_segment))
}

/// Rejects a store with a part that is a symbolic link. Another store may share that part, such as a copy of this
/// directory, and their locks would not exclude each other. The directory itself may be a link, since the lock is
/// inside.
fn refuse_links(path: &Path) -> Result<()> {
    for part in [LOG, INDEX].map(|name| path.join(name)) {
        let link = link_in(&part).map_err(|error| cannot_open(path, "it cannot be read", error))?;
        if let Some(link) = link {
            return Err(Error::Open {
                path: path.display().to_string(),
                reason: format!(
                    "{} is a symbolic link, but the lock of a store covers only its own directory; move the link's \
                     target to this place. To keep a store elsewhere, link its whole directory, or mount its parts",
                    link.strip_prefix(path).unwrap_or(&link).display()
                ),
                source: None,
            });
        }
    }
    Ok(())
}

/// The directory if it is a symbolic link, or the first link in it.
fn link_in(directory: &Path) -> io::Result<Option<PathBuf>> {
    match directory.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => return Ok(Some(directory.to_owned())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(metadata) if metadata.is_dir() => {}
        _ => return Ok(None),
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The total length of all files in a directory and below. Files that are deleted meanwhile do not count.
fn len_of_files(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let len = entry.metadata().and_then(|metadata| match metadata.is_dir() {
            true => len_of_files(&entry.path()),
            false => Ok(metadata.len()),
        });
        bytes += match len {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            len => len?,
        };
    }
    Ok(bytes)
}

pub(crate) fn cannot_open(path: &Path, reason: &str, source: impl Into<Source>) -> Error {
    let source = source.into();
    let reason = match (lacks_descriptors(&source), reason.split_once("; ")) {
        // No other advice helps in this case.
        (true, what) => {
            let what = what.map_or(reason, |(what, _)| what);
            format!("{what}; close files, or raise the limit of how many may be open (ulimit -n)")
        }
        (false, _) => reason.to_owned(),
    };
    Error::Open { path: path.display().to_string(), reason, source: Some(source) }
}

/// Whether the process or the system has too many open files.
fn lacks_descriptors(source: &Source) -> bool {
    let number = source.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    cfg!(unix) && matches!(number, Some(EMFILE | ENFILE))
}

/// The value is the same on every Unix.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [7; 16];

    #[test]
    fn what_is_no_store_is_named_with_what_helps() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("store");
        let open = |path: &Path| {
            let opened = [
                StoreDirectory::open_existing(path, "memory").err(),
                StoreDirectory::open_read_only(path, "memory").err(),
            ];
            opened.map(|error| error.expect("there is no store").to_string())
        };
        assert!(open(Path::new("")).iter().all(|text| text.contains("name the store's directory")));
        fs::write(&path, "a file").expect("written");
        assert!(open(&path).iter().all(|text| text.contains("it is a file")), "{:?}", open(&path));
        fs::remove_file(&path).expect("removed");
        fs::create_dir_all(path.join(LOG)).expect("made");
        assert!(open(&path).iter().all(|text| text.ends_with("; check the path")), "{:?}", open(&path));
        let created = StoreDirectory::open(&path, "memory").expect_err("it is not empty").to_string();
        assert!(created.ends_with("; choose an empty directory"), "{created}");
        fs::write(path.join(REPLICA_FILE), "").expect("written");
        let replica = format!("open it as replica:{}", path.display());
        assert!(open(&path).iter().all(|text| text.contains(&replica)), "{:?}", open(&path));
        fs::write(path.join(LOG).join("0000000001-0.seg"), "").expect("written");
        let of_a_store = |text: &String| text.contains("put that of a backup of this store there");
        assert!(open(&path).iter().all(of_a_store), "{:?}", open(&path));
        assert!(StoreDirectory::open(&path, "memory").is_err_and(|error| of_a_store(&error.to_string())));
    }

    #[cfg(unix)]
    #[test]
    fn who_has_too_few_descriptors_is_not_sent_to_look_at_permissions() {
        let text = |number| {
            let error = io::Error::from_raw_os_error(number);
            cannot_open(Path::new("store"), "it cannot be read; check its permissions", error).to_string()
        };
        assert!(text(13).contains("check its permissions"), "{}", text(13));
        for number in [EMFILE, ENFILE] {
            assert!(text(number).contains("ulimit -n") && !text(number).contains("permissions"), "{}", text(number));
        }
    }

    #[test]
    fn a_missing_store_is_created_only_if_that_is_wanted() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("store");
        let refused = StoreDirectory::open_existing(&path, "one");
        assert!(matches!(refused, Err(Error::Open { reason, .. }) if reason.contains("no store")));
        assert!(!path.exists(), "no trace");
        StoreDirectory::open(&path, "one").expect("created").mark().expect("marked");
        StoreDirectory::open_existing(&path, "one").expect("there is one now");
    }

    #[test]
    fn a_directory_is_created_marked_and_locked_once() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("a/b/store");
        let first = StoreDirectory::open(&path, "one").expect("new");
        first.mark().expect("marked");
        assert!(matches!(StoreDirectory::open(&path, "one"), Err(Error::Locked { .. })));
        drop(first);
        StoreDirectory::open(&path, "one").expect("unlocked again");
        let other = StoreDirectory::open(&path, "two");
        assert!(matches!(other, Err(Error::Unsupported { what }) if what.contains("one:")));
    }

    #[test]
    fn what_is_not_a_store_is_left_alone() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let file = temporary.path().join("file");
        fs::write(&file, "mine").expect("written");
        assert!(matches!(StoreDirectory::open(&file, "one"), Err(Error::Open { .. })));
        assert!(matches!(StoreDirectory::open(&file.join("below"), "one"), Err(Error::Open { .. })));
        assert!(matches!(StoreDirectory::open(temporary.path(), "one"), Err(Error::Open { .. })), "not empty");
        assert!(matches!(StoreDirectory::open(Path::new(""), "one"), Err(Error::InvalidOption { .. })));
        assert_eq!(fs::read_to_string(&file).expect("read"), "mine");
        assert_eq!(fs::read_dir(temporary.path()).expect("read").count(), 1, "nothing was put into it");
        let damaged = temporary.path().join("damaged");
        fs::create_dir(&damaged).expect("created");
        fs::write(damaged.join(MARK_FILE), "{").expect("written");
        assert!(matches!(StoreDirectory::open(&damaged, "one"), Err(Error::Open { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn where_nothing_can_be_created_nothing_is_opened() {
        for path in ["/proc/x", "/proc/x/y/z", "/proc/self/fd/x", "/dev/fd/x/y", "/sys/x", "/dev/null/x"] {
            let path = Path::new(path);
            assert!(matches!(StoreDirectory::open(path, "one"), Err(Error::Open { .. })), "{path:?}");
            assert!(matches!(StoreDirectory::begin_backup(path, "one", ID), Err(Error::Open { .. })), "{path:?}");
        }
    }

    #[test]
    fn directories_are_created_with_those_above_them() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("a/b/../c/./d");
        drop(StoreDirectory::open(&path, "one").expect("created"));
        assert!(temporary.path().join("a/c/d").join(LOCK_FILE).exists());
    }

    #[test]
    fn a_creation_that_was_cut_short_is_taken_up_again() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        fs::write(temporary.path().join(LOCK_FILE), "").expect("written");
        fs::write(temporary.path().join(NEW_MARK_FILE), "{\"eng").expect("written");
        fs::write(temporary.path().join("half.made"), "").expect("written");
        let begun = StoreDirectory::open(temporary.path(), "one").expect("opened");
        assert!(!begun.is_marked());
        begun.mark().expect("marked");
        drop(begun);
        assert!(StoreDirectory::open(temporary.path(), "one").expect("opened").is_marked());
    }

    /// A child process that is being started has a copy of every open file until it executes its program.
    #[test]
    fn a_lock_is_released_at_once_though_its_file_is_open_elsewhere() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let first = StoreDirectory::open(temporary.path(), "one").expect("new");
        first.mark().expect("marked");
        let copy = first.lock.as_ref().expect("locked").try_clone().expect("copied");
        drop(first);
        StoreDirectory::open(temporary.path(), "one").expect("unlocked");
        let reader = StoreDirectory::open_read_only(temporary.path(), "one").expect("opened");
        let other = reader.lock.as_ref().expect("locked").try_clone().expect("copied");
        drop(reader);
        StoreDirectory::open(temporary.path(), "one").expect("unlocked");
        drop((copy, other));
    }

    /// The sync after the mark got its name had failed, a later one succeeded, and the power was cut.
    #[test]
    fn a_store_that_has_lost_its_mark_is_not_made_anew() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path();
        let first = StoreDirectory::open(path, "one").expect("new");
        first.mark().expect("marked");
        let id = first.id();
        drop(first);
        let lose = || fs::rename(path.join(MARK_FILE), path.join(NEW_MARK_FILE)).expect("lost");
        fs::create_dir(path.join(LOG)).expect("created");
        fs::write(path.join(LOG).join("0000000001-0.seg"), "events").expect("written");
        lose();
        assert_eq!(StoreDirectory::engine_of(path).expect("a store"), "one");
        assert!(matches!(StoreDirectory::begin_backup(path, "one", ID), Err(Error::Open { .. })));
        assert!(StoreDirectory::open_read_only(path, "one").expect("a store").is_read_only());
        assert!(path.join(NEW_MARK_FILE).exists(), "nothing was changed");
        for open in [StoreDirectory::open, StoreDirectory::open_existing] {
            let opened = open(path, "one").expect("a store");
            assert!(opened.is_marked() && opened.id() == id);
            opened.delete_unfinished(LOG).expect("nothing is");
            assert!(path.join(MARK_FILE).exists() && !path.join(NEW_MARK_FILE).exists());
            assert!(holds_a_log(path));
            lose();
        }
    }

    #[test]
    fn a_backup_whose_mark_could_not_be_made_durable_is_deleted() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let begun = StoreDirectory::begin_backup(temporary.path(), "one", ID).expect("begun");
        fs::write(begun.path().join("data"), "whole").expect("written");
        fs::rename(begun.path().join(BACKUP_MARK_FILE), begun.path().join(MARK_FILE)).expect("renamed");
        drop(begun);
        assert_eq!(names(temporary.path()), [""; 0]);
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .expect("read")
            .map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_that_is_dropped_is_deleted_and_its_directory_can_be_used_again() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("a/backup");
        for _ in 0..2 {
            let begun = StoreDirectory::begin_backup(&path, "one", ID).expect("begun");
            assert!(!begun.is_marked());
            fs::write(begun.path().join("data"), "half").expect("written");
            fs::create_dir(begun.path().join("parts")).expect("created");
            fs::write(begun.path().join("parts/data"), "half").expect("written");
            drop(begun);
            assert_eq!(names(&path), [""; 0]);
        }
        StoreDirectory::open(&path, "two").expect("it is as if nothing had been there");
    }

    #[test]
    fn a_backup_that_is_marked_stays_and_is_a_store() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let begun = StoreDirectory::begin_backup(temporary.path(), "one", ID).expect("an empty directory");
        fs::create_dir(begun.path().join("parts")).expect("created");
        fs::write(begun.path().join("parts/data"), "whole").expect("written");
        begun.mark().expect("marked");
        begun.mark().expect("marked before");
        assert!(begun.is_marked());
        assert!(matches!(StoreDirectory::open(temporary.path(), "one"), Err(Error::Locked { .. })));
        drop(begun);
        assert_eq!(names(temporary.path()), [MARK_FILE, LOCK_FILE, "parts"]);
        let opened = StoreDirectory::open_existing(temporary.path(), "one").expect("a store");
        assert!(opened.is_marked());
        assert_eq!(StoreDirectory::engine_of(temporary.path()).expect("marked"), "one");
    }

    #[test]
    fn a_backup_that_a_killed_process_left_is_no_store() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        fs::write(temporary.path().join(LOCK_FILE), "").expect("written");
        fs::write(
            temporary.path().join(BACKUP_MARK_FILE),
            r#"{"engine":"one","id":"00000000-0000-0000-0000-000000000000"}"#,
        )
        .expect("written");
        fs::write(temporary.path().join("data"), "half").expect("written");
        let refused = |result: Result<StoreDirectory>| {
            assert!(matches!(result, Err(Error::Open { reason, .. }) if reason.contains("unfinished")));
        };
        refused(StoreDirectory::open(temporary.path(), "one"));
        refused(StoreDirectory::begin_backup(temporary.path(), "one", ID));
        assert!(matches!(StoreDirectory::open_existing(temporary.path(), "one"), Err(Error::Open { .. })));
        assert!(matches!(StoreDirectory::engine_of(temporary.path()), Err(Error::Open { .. })));
        assert_eq!(names(temporary.path()), ["data", BACKUP_MARK_FILE, LOCK_FILE]);
    }

    #[test]
    fn a_backup_needs_a_directory_that_is_missing_or_empty() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let (store, stranger) = (temporary.path().join("store"), temporary.path().join("stranger"));
        StoreDirectory::open(&store, "one").expect("created").mark().expect("marked");
        fs::create_dir(&stranger).expect("created");
        fs::write(stranger.join("mine"), "mine").expect("written");
        for (path, before) in [(&store, names(&store)), (&stranger, names(&stranger))] {
            assert!(matches!(StoreDirectory::begin_backup(path, "one", ID), Err(Error::Open { .. })));
            assert_eq!(names(path), before);
        }
        assert!(matches!(StoreDirectory::begin_backup(&stranger.join("mine"), "one", ID), Err(Error::Open { .. })));
        let begun = StoreDirectory::begin_backup(&temporary.path().join("new"), "one", ID).expect("begun");
        assert!(StoreDirectory::begin_backup(begun.path(), "one", ID).is_err(), "one at a time");
    }

    #[test]
    fn of_openings_at_once_one_succeeds_and_the_others_are_locked() {
        for _ in 0..50 {
            let temporary = tempfile::tempdir().expect("temporary directory");
            std::thread::scope(|scope| {
                let open = || {
                    let opened = StoreDirectory::open(temporary.path(), "one").inspect(|directory| {
                        fs::write(directory.path().join("data"), "").expect("written");
                        directory.mark().expect("marked");
                    });
                    assert!(matches!(opened, Ok(_) | Err(Error::Locked { .. })), "{opened:?}");
                    opened
                };
                let opened: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                let opened: Vec<_> = opened.into_iter().map(|thread| thread.join().expect("no panic")).collect();
                assert_eq!(opened.iter().filter(|opened| opened.is_ok()).count(), 1);
            });
        }
    }
}

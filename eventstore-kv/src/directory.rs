use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use eventstore_api::{BoxError, Error, Result};
use serde::{Deserialize, Serialize};

const LOCK_FILE: &str = "eventstore.lock";
const MARK_FILE: &str = "eventstore.json";
const NEW_MARK_FILE: &str = "eventstore.json.new";

/// The directory of a store on disk: created if it is missing, locked against a second opening, and marked with the
/// engine whose files it holds.
///
/// The operating system gives the lock back when the process ends, however it ends. Drop the directory after the
/// engine.
#[derive(Debug)]
pub struct StoreDirectory {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// What to do if there is no store yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// Create one.
    #[default]
    Create,
    /// Refuse with [`Error::Open`], and leave no trace.
    Refuse,
}

/// In a URL: `create_if_missing=true` or `false`.
impl FromStr for Missing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "true" => Ok(Missing::Create),
            "false" => Ok(Missing::Refuse),
            _ => Err(Error::InvalidOption {
                option: "create_if_missing".to_owned(),
                reason: format!("{text:?} is not one of true, false"),
            }),
        }
    }
}

/// What the mark says. Unknown fields are left alone, so that later versions can add some.
#[derive(Serialize, Deserialize)]
struct Mark {
    engine: String,
}

impl StoreDirectory {
    /// Opens the directory of a store of this engine; creates it if it is missing and `missing` says so.
    ///
    /// # Errors
    ///
    /// `Locked` if another handle or process has it; `Unsupported` if it holds another engine's store; `Open` if it is
    /// missing, not a directory, not writable, or holds something else than a store.
    pub fn open(path: &Path, engine: &str, missing: Missing) -> Result<Self> {
        let failed = |reason: &str, source: io::Error| cannot_open(path, reason, source);
        if path.as_os_str().is_empty() {
            return Err(Error::InvalidOption {
                option: "path".to_owned(),
                reason: format!("it is empty; name the store's directory, such as {engine}:./data"),
            });
        }
        if missing == Missing::Refuse && !path.join(MARK_FILE).exists() {
            return Err(Error::Open {
                path: path.display().to_string(),
                reason: format!("there is no store (no {MARK_FILE}); check the path, or append to it to create one"),
                source: None,
            });
        }
        create_dir(path).map_err(|error| failed("its directory cannot be created", error))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(|error| failed("its lock file cannot be written", error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked { path: path.display().to_string() },
            TryLockError::Error(error) => failed("its lock file cannot be locked", error),
        })?;
        let directory = StoreDirectory { path: path.to_owned(), _lock: lock };
        directory.check_mark(engine)?;
        Ok(directory)
    }

    /// The directory's path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory's entries durable; called once the engine has made its files.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn sync(&self) -> Result<()> {
        sync_dir(&self.path).map_err(|error| cannot_open(&self.path, "its directory cannot be synced", error))
    }

    /// Bytes that the files in the directory take on disk, by their length.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`].
    pub fn len_bytes(&self) -> Result<u64> {
        let sum = || -> io::Result<u64> {
            let mut bytes = 0;
            for entry in fs::read_dir(&self.path)? {
                bytes += entry?.metadata()?.len();
            }
            Ok(bytes)
        };
        sum().map_err(|error| Error::engine("measure the store's files", error))
    }

    fn check_mark(&self, engine: &str) -> Result<()> {
        let path = &self.path;
        let text = match fs::read(path.join(MARK_FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.write_mark(engine),
            Err(error) => return Err(cannot_open(path, &format!("{MARK_FILE} cannot be read"), error)),
        };
        let mark: Mark = serde_json::from_slice(&text)
            .map_err(|error| cannot_open(path, &format!("{MARK_FILE} is damaged; restore it from a backup"), error))?;
        if mark.engine == engine {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: format!(
                "{} holds a store of the {} engine; open it as {}:{}",
                path.display(),
                mark.engine,
                mark.engine,
                path.display()
            ),
        })
    }

    /// Marks a new store. A directory with files of somebody else is left alone.
    fn write_mark(&self, engine: &str) -> Result<()> {
        let path = &self.path;
        let failed = |error| cannot_open(path, "it cannot be written", error);
        for entry in fs::read_dir(path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name != LOCK_FILE && name != NEW_MARK_FILE {
                return Err(Error::Open {
                    path: path.display().to_string(),
                    reason: format!(
                        "it is not a store (there is no {MARK_FILE}) and not empty (there is {}); choose an empty directory",
                        name.display()
                    ),
                    source: None,
                });
            }
        }
        let mark = Mark { engine: engine.to_owned() };
        let write = || -> io::Result<()> {
            let new = path.join(NEW_MARK_FILE);
            let mut file = File::create(&new)?;
            serde_json::to_writer(&file, &mark)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, path.join(MARK_FILE))?;
            sync_dir(path)
        };
        write().map_err(failed)
    }
}

/// Creates a directory and what is missing above it, and makes each new entry durable.
fn create_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => sync_dir(parent_of(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dir(parent_of(path))?;
            fs::create_dir(path)?;
            sync_dir(parent_of(path))
        }
        Err(_) if path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(io::ErrorKind::NotADirectory, "it is a file, not a directory"))
        }
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the entries of a directory durable.
fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn cannot_open(path: &Path, reason: &str, source: impl Into<BoxError>) -> Error {
    Error::Open { path: path.display().to_string(), reason: reason.to_owned(), source: Some(source.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, engine: &str) -> Result<StoreDirectory> {
        StoreDirectory::open(path, engine, Missing::Create)
    }

    #[test]
    fn a_missing_store_is_created_only_if_that_is_wanted() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("store");
        let refused = StoreDirectory::open(&path, "one", Missing::Refuse);
        assert!(matches!(refused, Err(Error::Open { reason, .. }) if reason.contains("no store")));
        assert!(!path.exists(), "no trace");
        drop(open(&path, "one").expect("created"));
        StoreDirectory::open(&path, "one", Missing::Refuse).expect("there is one now");
    }

    #[test]
    fn a_directory_is_created_marked_and_locked_once() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("a/b/store");
        let first = open(&path, "one").expect("new");
        assert!(matches!(open(&path, "one"), Err(Error::Locked { .. })));
        drop(first);
        open(&path, "one").expect("unlocked again");
        let other = open(&path, "two");
        assert!(matches!(other, Err(Error::Unsupported { what }) if what.contains("one:")));
    }

    #[test]
    fn what_is_not_a_store_is_left_alone() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let file = temporary.path().join("file");
        fs::write(&file, "mine").expect("written");
        assert!(matches!(open(&file, "one"), Err(Error::Open { .. })));
        assert!(matches!(open(&file.join("below"), "one"), Err(Error::Open { .. })));
        assert!(matches!(open(temporary.path(), "one"), Err(Error::Open { .. })), "not empty");
        assert!(matches!(open(Path::new(""), "one"), Err(Error::InvalidOption { .. })));
        assert_eq!(fs::read_to_string(&file).expect("read"), "mine");
        let damaged = temporary.path().join("damaged");
        fs::create_dir(&damaged).expect("created");
        fs::write(damaged.join(MARK_FILE), "{").expect("written");
        assert!(matches!(open(&damaged, "one"), Err(Error::Open { .. })));
    }

    #[test]
    fn a_creation_that_was_cut_short_is_taken_up_again() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        fs::write(temporary.path().join(LOCK_FILE), "").expect("written");
        fs::write(temporary.path().join(NEW_MARK_FILE), "{\"eng").expect("written");
        open(temporary.path(), "one").expect("opened");
    }
}

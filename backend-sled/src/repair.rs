use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use eventstore_api::{Error, Result};
use eventstore_kv::{StoreDirectory, sync_dir};

use crate::Options;
use crate::files::{Files, SETTINGS_FILE, SLED_DIR, snapshots_in};

/// Mends a store that sled cannot open because the snapshot of its page table, or the file with its settings, is damaged.
/// It tells what was done: nothing, if the store opens as it is.
///
/// They are moved into a new directory `aside-1` (`-2`, …) in the store's, and sled makes new ones: the settings are
/// always the same, and the page table follows from the log. Nothing is deleted. It blocks, and reads the whole log.
///
/// The log itself may be damaged as well; `verify` finds that.
///
/// # Errors
///
/// Those of opening. If the store does not open afterwards either, the error says where the moved files are.
pub fn repair(path: &Path) -> Result<Vec<String>> {
    let directory = StoreDirectory::open_existing(path, crate::NAME)?;
    let options = Options::new(path);
    let damage = match Files::open(&directory, &options) {
        // Where events are lost, sled can open its files, and a page table made anew would not find more.
        Ok(files) => return directory.check_synced_head(files.newest_version()?).map(|()| Vec::new()),
        Err(error @ Error::Corrupt { version: None, .. }) => error,
        Err(error) => return Err(error),
    };
    let to_move = derived_files(path).map_err(|error| Error::engine("list the files", error))?;
    if to_move.is_empty() {
        return Err(damage);
    }
    let (aside, moved) = move_aside(path, &to_move).map_err(|error| Error::engine("move files aside", error))?;
    let place = aside.display();
    let files = Files::open(&directory, &options).map_err(|error| still_broken(path, &aside, error))?;
    let mut report: Vec<_> = moved.iter().map(|name| format!("moved {SLED_DIR}/{name} to {place}")).collect();
    let newest = files.newest_version()?;
    directory.check_synced_head(newest).map_err(|error| still_broken(path, &aside, error))?;
    report.push(format!("sled made its page table again from its log; the newest version is {newest}"));
    Ok(report)
}

/// sled's files that it can make again.
fn derived_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let sled = path.join(SLED_DIR);
    let mut files = snapshots_in(&sled)?;
    files.extend(Some(sled.join(SETTINGS_FILE)).filter(|settings| settings.exists()));
    Ok(files)
}

/// Moves files of sled's into a new directory, and returns it and their names.
fn move_aside(path: &Path, files: &[PathBuf]) -> io::Result<(PathBuf, Vec<String>)> {
    let mut number = 1;
    let aside = loop {
        let aside = path.join(format!("aside-{number}"));
        match fs::create_dir(&aside) {
            Ok(()) => break aside,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    };
    let mut names = Vec::new();
    for file in files {
        let Some(name) = file.file_name() else { continue };
        fs::rename(file, aside.join(name))?;
        names.push(name.to_string_lossy().into_owned());
    }
    for changed in [&aside, path, &path.join(SLED_DIR)] {
        sync_dir(changed)?;
    }
    Ok((aside, names))
}

fn still_broken(path: &Path, aside: &Path, error: Error) -> Error {
    let moved = format!("its snapshots and settings were moved to {}", aside.display());
    match error {
        Error::Corrupt { version, reason } => Error::Corrupt { version, reason: format!("{reason}; {moved}") },
        error => Error::Open {
            path: path.display().to_string(),
            reason: format!("{moved}, and it does not open all the same"),
            source: Some(error.into()),
        },
    }
}

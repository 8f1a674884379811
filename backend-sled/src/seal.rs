//! The seal: a file that exists while sled's files are complete and closed, and that describes them.
//!
//! sled trusts its files too much: it takes a damaged end of its log for a torn one, skips damaged segments on the way,
//! and panics or hangs on others. So it is only given files that it closed itself, byte for byte. After any other end,
//! the index is rebuilt. In rare cases it loses entries even then, so the seal has their number.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::Path;

use eventstore_api::Result;
use eventstore_kv::{damaged_index, unclosed_index};

use crate::error::cannot_open;

/// The name of the file.
pub(crate) const SEAL_FILE: &str = "clean";

/// The directory in which sled would keep values much larger than those of an index.
const BLOBS: &str = "blobs";

/// Checks that the directory is empty, or its files are as they were when they were sealed. Removes the seal. Returns
/// the number of entries that must be there.
pub(crate) fn open(directory: &Path) -> Result<u64> {
    let failed = |error| cannot_open(directory, error);
    if fs::read_dir(directory).map_err(failed)?.next().is_none() {
        return Ok(0);
    }
    let sealed = match fs::read(directory.join(SEAL_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unclosed_index());
        }
        read => read.map_err(failed)?,
    };
    let changed = || damaged_index("sled's files are not as they were when it was closed");
    let entries = std::str::from_utf8(&sealed).ok().and_then(|sealed| sealed.lines().next()?.parse().ok());
    let entries = entries.ok_or_else(changed)?;
    if describe(directory, entries).map_err(failed)?.as_bytes() != sealed {
        return Err(changed());
    }
    fs::remove_file(directory.join(SEAL_FILE)).and_then(|()| sync_directory(directory)).map_err(failed)?;
    Ok(entries)
}

/// Makes the files durable, which have this many entries, and then the seal. sled must have closed them.
pub(crate) fn seal(directory: &Path, entries: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::options().write(true).open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(directory)?;
    let content = describe(directory, entries)?;
    let mut file = File::create_new(directory.join(SEAL_FILE))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    sync_directory(directory)
}

/// The number of entries, and the name, length and checksum of each of sled's files.
fn describe(directory: &Path, entries: u64) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == BLOBS && fs::read_dir(directory.join(BLOBS))?.next().is_none() {
            continue;
        }
        if name != SEAL_FILE {
            names.push(name);
        }
    }
    names.sort_unstable();
    let mut description = format!("{entries}\n");
    let mut buffer = vec![0; 1 << 20];
    for name in names {
        let mut file = File::open(directory.join(&name))?;
        let (mut len, mut checksum) = (0, crc32fast::Hasher::new());
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    checksum.update(&buffer[..read]);
                    len += read;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let _ = writeln!(description, "{name} {len} {:08x}", checksum.finalize()); // writing into a string does not fail
    }
    Ok(description)
}

/// Makes the names in a directory durable, where the system supports that.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_for_these_very_files_and_once() {
        let made = tempfile::tempdir().expect("directory");
        let directory = made.path();
        assert_eq!(open(directory).expect("an empty one is new"), 0);
        fs::write(directory.join("db"), [7; 3000]).expect("written");
        let reason = |opened: Result<u64>| opened.expect_err("not sealed").to_string();
        assert!(reason(open(directory)).contains("not closed cleanly"));
        seal(directory, 12).expect("sealed");
        assert_eq!(open(directory).expect("sealed"), 12);
        assert!(reason(open(directory)).contains("not closed cleanly"), "it was opened before");
        let damages: [fn(&Path); 5] = [
            |directory| fs::write(directory.join("db"), [7; 2999]).expect("written"),
            |directory| fs::write(directory.join("snap"), []).expect("written"),
            |directory| fs::remove_file(directory.join("db")).expect("removed"),
            |directory| fs::write(directory.join(SEAL_FILE), "db").expect("written"),
            |directory| {
                let sealed = fs::read_to_string(directory.join(SEAL_FILE)).expect("read");
                fs::write(directory.join(SEAL_FILE), sealed.replacen("12", "012", 1)).expect("written");
            },
        ];
        for damage in damages {
            seal(directory, 12).expect("sealed");
            damage(directory);
            assert!(reason(open(directory)).contains("not as they were"));
            fs::remove_file(directory.join(SEAL_FILE)).expect("removed");
        }
    }
}

//! The files of an index: the mark, and checks of `lsm-tree`'s files before it reads them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32c::crc32c;
use eventstore_api::{Error, Result};
use eventstore_kv::{damaged_index, tell};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::io_error;

/// The entries of [`Table::Meta`](eventstore_kv::Table::Meta).
pub(crate) type Mark = BTreeMap<Vec<u8>, Vec<u8>>;

const MARK: &str = "mark";
const NEW_MARK: &str = "mark-new";

/// The file of a tree that names its version and has the checksum of it.
const CURRENT: &str = "current";

/// The directory of a tree's tables.
const TABLES: &str = "tables";

/// The prefix of the names of tables that were moved out of their directory.
const ASIDE: &str = "unsound-";

/// The size of the end of a table: a magic number, a version, the kind of the checksum, the checksum of the table of
/// contents, its offset and its length.
const TRAILER: usize = 4 + 1 + 1 + 16 + 8 + 8;

/// More than the size of any table of contents.
const MOST_CONTENTS: u64 = 64 << 10;

/// Whether a directory is empty.
pub(crate) fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(directory).map_err(|error| Error::engine("list the index's files", error))?;
    Ok(entries.next().is_none())
}

pub(crate) fn read_mark(directory: &Path) -> Result<Mark> {
    let bytes = read(&directory.join(MARK))?;
    decode_mark(&bytes).ok_or_else(|| damaged_index("the file mark of fjall's index is damaged"))
}

/// Replaces the mark atomically: after a power cut, either the old or the new one is there.
pub(crate) fn write_mark(directory: &Path, mark: &Mark) -> Result<()> {
    let write = || -> io::Result<()> {
        let new = directory.join(NEW_MARK);
        let mut file = File::create(&new)?;
        file.write_all(&encode_mark(mark))?;
        file.sync_all()?;
        fs::rename(&new, directory.join(MARK))?;
        sync_directory(directory)
    };
    write().map_err(|error| Error::engine("write the mark", error))
}

/// Gives the file that names the version of a tree the permissions of the index's other files. `lsm-tree` creates it
/// with access for its owner only.
#[cfg(unix)]
pub(crate) fn share(tree: &Path) -> io::Result<()> {
    let mark = tree.with_file_name(MARK);
    match fs::metadata(mark).and_then(|mark| fs::set_permissions(tree.join(CURRENT), mark.permissions())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
pub(crate) fn share(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// The keys and values, each preceded by its length, and a checksum of everything.
fn encode_mark(mark: &Mark) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in mark.iter().flat_map(|(key, value)| [key, value]) {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
    bytes
}

fn decode_mark(bytes: &[u8]) -> Option<Mark> {
    let (mut rest, checksum) = bytes.split_last_chunk()?;
    if crc32c(rest) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let mut mark = Mark::new();
    while !rest.is_empty() {
        let mut part = || -> Option<Vec<u8>> {
            let (len, behind) = rest.split_first_chunk()?;
            let (part, behind) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            rest = behind;
            Some(part.to_vec())
        };
        mark.insert(part()?, part()?);
    }
    Some(mark)
}

/// Checks the list of tables, which `lsm-tree` trusts when it opens a tree. Nothing is changed.
pub(crate) fn check_version(tree: &Path) -> Result<()> {
    let current = read(&tree.join(CURRENT))?;
    let is_sound = |current: &[u8]| -> Option<Result<bool>> {
        let (id, rest) = current.split_first_chunk()?;
        let (checksum, kind) = rest.split_first_chunk()?;
        let version = read(&tree.join(format!("v{}", u64::from_le_bytes(*id))));
        Some(version.map(|version| kind == [0] && xxh3_128(&version) == u128::from_le_bytes(*checksum)))
    };
    match is_sound(&current).unwrap_or(Ok(false))? {
        true => Ok(()),
        false => Err(damaged_index(format!("the list of tables of {} is damaged", tree.display()))),
    }
}

/// Tables with an invalid table of contents, which `lsm-tree` trusts when it opens a tree. It checks everything else
/// itself. Either no version names these tables yet, or `lsm-tree` reports them as missing, and they are moved back
/// unchanged.
pub(crate) struct Unsound {
    /// The original path of each, and its temporary path.
    tables: Vec<(PathBuf, PathBuf)>,
}

impl Unsound {
    /// Moves the invalid tables out of these trees.
    pub(crate) fn take_out<'a>(trees: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let mut unsound = Unsound { tables: Vec::new() };
        for tree in trees {
            put_all_back(tree).map_err(|error| io_error("look at its tables", error))?;
            unsound.take_out_of(tree).map_err(|error| io_error("look at its tables", error))?;
            delete_leftovers(tree).map_err(|error| io_error("delete temporary files", error))?;
        }
        Ok(unsound)
    }

    fn take_out_of(&mut self, tree: &Path) -> io::Result<()> {
        for entry in fs::read_dir(tree.join(TABLES))? {
            let entry = entry?;
            let path = entry.path();
            if !has_sound_end(&path)? {
                let aside = tree.join(format!("{ASIDE}{}", entry.file_name().display()));
                fs::rename(&path, &aside)?;
                self.tables.push((path, aside));
            }
        }
        Ok(())
    }

    /// Deletes them, after the trees were opened without them.
    pub(crate) fn delete(mut self) -> Result<()> {
        for (path, aside) in std::mem::take(&mut self.tables) {
            tell!(warn, path = %path.display(), "an incomplete table is deleted");
            fs::remove_file(&aside).map_err(|error| io_error("delete a table", error))?;
        }
        Ok(())
    }
}

impl Drop for Unsound {
    fn drop(&mut self) {
        for (path, aside) in &self.tables {
            if let Err(error) = fs::rename(aside, path) {
                tell!(warn, path = %aside.display(), %error, "a damaged table could not be put back");
            }
        }
    }
}

/// Moves back tables that were left outside by a kill.
fn put_all_back(tree: &Path) -> io::Result<()> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(table) = name.to_str().and_then(|name| name.strip_prefix(ASIDE)) {
            fs::rename(entry.path(), tree.join(TABLES).join(table))?;
        }
    }
    Ok(())
}

/// Deletes temporary files that were left by a kill.
fn delete_leftovers(tree: &Path) -> io::Result<()> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".tmp") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether the table of contents at the end of a table is valid. `lsm-tree` would allocate as much memory as its length
/// field says before it checks the checksum.
fn has_sound_end(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let Some(end) = file.metadata()?.len().checked_sub(TRAILER as u64) else { return Ok(false) };
    let mut trailer = [0; TRAILER];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut trailer)?;
    let (Some((_, checksum)), Some((_, place))) = (trailer[..22].split_last_chunk(), trailer[..30].split_last_chunk())
    else {
        return Ok(false);
    };
    let place = u64::from_le_bytes(*place);
    if place > end || end - place > MOST_CONTENTS {
        return Ok(false);
    }
    let mut contents = Vec::new();
    file.seek(SeekFrom::Start(place))?;
    file.take(end - place).read_to_end(&mut contents)?;
    Ok(xxh3_128(&contents) == u128::from_le_bytes(*checksum))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged_index(format!("{} is missing", path.display())),
        _ => Error::engine("read the index's files", error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        let entries = [("head", "1234"), ("empty", ""), ("id", "0123456789abcdef")];
        entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn the_mark_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read_mark(directory.path()).expect_err("missing").code(), "corrupt");
        for mark in [Mark::new(), mark()] {
            write_mark(directory.path(), &mark).expect("written");
            assert_eq!(read_mark(directory.path()).expect("read"), mark);
        }
    }

    #[test]
    fn tables_that_are_not_sound_are_out_of_the_way_and_come_back() {
        let tree = tempfile::tempdir().expect("temporary directory");
        let tables = tree.path().join(TABLES);
        fs::create_dir(&tables).expect("made");
        let table = tables.join("7");
        fs::write(&table, b"torn").expect("written");
        let unsound = Unsound::take_out([tree.path()]).expect("taken out");
        assert!(!table.exists());
        drop(unsound); // as if the tree did not open without it
        assert_eq!(fs::read(&table).expect("as it was"), b"torn");
        std::mem::forget(Unsound::take_out([tree.path()]).expect("taken out")); // as after a kill
        let unsound = Unsound::take_out([tree.path()]).expect("taken out again");
        assert_eq!(unsound.tables.len(), 1);
        unsound.delete().expect("deleted");
        assert_eq!(fs::read_dir(tree.path()).expect("read").count(), 1, "only the directory of tables");
        assert_eq!(fs::read_dir(&tables).expect("read").count(), 0);
    }

    #[test]
    fn damage_of_the_mark_is_found_at_any_place() {
        let sound = encode_mark(&mark());
        assert_eq!(decode_mark(&sound), Some(mark()));
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_mark(&damaged), None, "bit {bit}");
        }
        for len in 0..sound.len() {
            assert_eq!(decode_mark(&sound[..len]), None, "{len} bytes");
        }
    }
}

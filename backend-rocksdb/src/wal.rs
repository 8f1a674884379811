//! A look at the files of RocksDB's write-ahead log before RocksDB replays them.
//!
//! RocksDB takes any record that does not fit into the rest of the last block for one that was being written when the
//! process was killed, and leaves it out without a word, with everything behind it. But a record with a damaged length
//! looks the same, and it was acknowledged. Here the two are told apart: the checksum does not cover the length, so a
//! whole record still has the right one at some length; and behind a torn record nothing follows.
//!
//! A write can also be lost in a file that keeps its length: its sync failed, or the power went, and a later one reached the
//! disk. Then whole sectors of it are zeros. RocksDB takes what is left of such a record for damage, so it is cut off before.
//! Whether it had been synced, `eventstore.head` knows, and then the store does not open. The manifest is a log of the same format,
//! and the same can happen to its end.
//!
//! The format: blocks of 32 KiB; in each, records of checksum (4 bytes), length (2), type (1) and content; less than a
//! header at the end of a block is left empty.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::slice;

use crc32c::{crc32c, crc32c_append};

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;

/// Where a file of the log is damaged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) file: PathBuf,
    pub(crate) at: u64,
}

/// A disk writes so many bytes wholly or not at all.
const SECTOR: usize = 512;

/// How much of each file to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The last block, if it is not full: the only one whose damage RocksDB does not find itself.
    LastBlock,
    /// All of it.
    Whole,
}

/// The first damage in the files of the log in a directory.
pub(crate) fn find_damage(directory: &Path, extent: Extent) -> io::Result<Option<Damage>> {
    for file in files(directory)? {
        if let Some(at) = check(&file, extent)? {
            return Ok(Some(Damage { file, at }));
        }
    }
    Ok(None)
}

/// Cuts off what is left of a write that was lost at the end of one of these files.
pub(crate) fn cut_lost_writes(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
    for path in paths {
        let file = File::options().read(true).write(true).open(&path)?;
        if let Some(at) = find_lost_write(&file)? {
            tracing::warn!(path = %path.display(), at, "a write at the end of the file was lost; what is left is cut off");
            file.set_len(at)?;
            file.sync_all()?;
        }
    }
    Ok(())
}

/// Where the record begins that was lost: it is not whole, has a sector of zeros, and nothing whole comes behind it.
fn find_lost_write(mut file: &File) -> io::Result<Option<u64>> {
    let len = file.metadata()?.len();
    // The last blocks: a lost record may have begun in the one before those that are zeros.
    let mut at = len - len % BLOCK as u64;
    loop {
        let mut rest = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.read_to_end(&mut rest)?;
        match lost_in(&rest, at == 0) {
            Lost::At(place) => return Ok(Some(at + place as u64)),
            Lost::Before => at -= BLOCK as u64,
            Lost::Nothing => return Ok(None),
        }
    }
}

/// What was lost at the end of a file.
#[derive(Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    At(usize),
    /// All of this is zeros: look at the block before.
    Before,
}

/// Looks at the end of a file from the begin of a block on.
fn lost_in(rest: &[u8], is_first: bool) -> Lost {
    if !is_first && rest.iter().all(|&byte| byte == 0) {
        return Lost::Before;
    }
    let block = &rest[..rest.len().min(BLOCK)];
    match first_not_whole(block) {
        Some(at) if has_zero_sector(rest, at) && !is_followed(&block[at..]) => Lost::At(at),
        Some(_) => Lost::Nothing,
        None if rest.len() > BLOCK => Lost::At(BLOCK), // the blocks behind this one are zeros
        None => Lost::Nothing,
    }
}

/// Whether one of the sectors from a place on is zeros.
fn has_zero_sector(rest: &[u8], from: usize) -> bool {
    let first = from.next_multiple_of(SECTOR).min(rest.len());
    rest[first..].chunks(SECTOR).any(|sector| sector.iter().all(|&byte| byte == 0))
}

/// The manifest that RocksDB will read, if there is one.
pub(crate) fn manifest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let name = fs::read(directory.join("CURRENT"))?;
    let name = String::from_utf8_lossy(&name);
    let path = directory.join(name.trim_end());
    Ok((name.starts_with("MANIFEST-") && path.is_file()).then_some(path)) // or RocksDB says what is wrong
}

/// The files of the log, the oldest first.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "log")) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn check(path: &Path, extent: Extent) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut at = match extent {
        Extent::LastBlock => len - len % BLOCK as u64,
        Extent::Whole => 0,
    };
    file.seek(SeekFrom::Start(at))?;
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        file.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if let Some(damaged) = damage_in(&block, at + block.len() as u64 >= len) {
            return Ok(Some(at + damaged as u64));
        }
        if block.len() < BLOCK {
            return Ok(None);
        }
        at += BLOCK as u64;
    }
}

/// Where a block is damaged. Only in the last one may a record be torn.
fn damage_in(block: &[u8], is_last: bool) -> Option<usize> {
    first_not_whole(block).filter(|&at| !is_last || !is_torn(&block[at..]))
}

/// Where the first record of a block begins that is not whole.
fn first_not_whole(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(record) = block.get(at..).filter(|rest| rest.len() >= HEADER) {
        match whole_len(record) {
            Some(len) => at += len,
            None => return Some(at),
        }
    }
    None
}

/// The length of a record that is whole, with its header.
fn whole_len(record: &[u8]) -> Option<usize> {
    let len = HEADER + usize::from(u16::from_le_bytes([*record.get(4)?, *record.get(5)?]));
    let covered = record.get(HEADER - 1..len)?;
    (stored_checksum(record)? == mask(crc32c(covered))).then_some(len)
}

/// Whether this is a record whose end was never written: it does not fit, it is whole at no other length, and nothing that
/// is whole follows.
fn is_torn(record: &[u8]) -> bool {
    let fits = HEADER + usize::from(u16::from_le_bytes([record[4], record[5]])) <= record.len();
    let stored = stored_checksum(record);
    let mut checksum = 0;
    let is_whole = record[HEADER - 1..].iter().any(|byte| {
        checksum = crc32c_append(checksum, slice::from_ref(byte));
        Some(mask(checksum)) == stored
    });
    !fits && !is_whole && !is_followed(record)
}

/// Whether a whole record begins behind the begin of this one.
fn is_followed(record: &[u8]) -> bool {
    // The types of records that have content are 1 to 4.
    let may_follow = |rest: &[u8]| rest.get(HEADER - 1).is_some_and(|kind| (1..=4).contains(kind));
    (1..record.len()).any(|at| may_follow(&record[at..]) && whole_len(&record[at..]).is_some())
}

fn stored_checksum(record: &[u8]) -> Option<u32> {
    record.first_chunk().copied().map(u32::from_le_bytes)
}

/// As RocksDB stores a checksum, so that one of something that contains checksums is a good one.
fn mask(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: &[u8]) -> Vec<u8> {
        let covered = [&[1], content].concat();
        let checksum = mask(crc32c(&covered));
        let len = u16::try_from(content.len()).expect("short");
        [&checksum.to_le_bytes()[..], &len.to_le_bytes(), &covered].concat()
    }

    fn block() -> Vec<u8> {
        [&b"one"[..], &[7; 300], b"three"].iter().flat_map(|content| record(content)).collect()
    }

    #[test]
    fn any_cut_is_a_torn_record() {
        let block = block();
        for len in 0..=block.len() {
            assert_eq!(damage_in(&block[..len], true), None, "{len}");
        }
    }

    #[test]
    fn a_lost_write_is_found_wherever_it_begins_and_whatever_is_left_of_it() {
        let lost = record(&[9; 5000]);
        for before in [0, 1, 300, 505, 506, 2000] {
            let sound = record(&vec![7; before]);
            let start = sound.len();
            let whole = [sound.clone(), lost.clone()].concat();
            assert_eq!(lost_in(&whole, true), Lost::Nothing);
            let sectors: Vec<_> = (start / SECTOR..whole.len().div_ceil(SECTOR)).collect();
            for kept in 0..1_u32 << sectors.len() {
                let mut left = whole.clone();
                let mut has_lost_one = false;
                for (nth, sector) in sectors.iter().enumerate() {
                    // What was synced before stays.
                    let range = (sector * SECTOR).max(start)..((sector + 1) * SECTOR).min(whole.len());
                    if kept >> nth & 1 == 0 && (nth > 0 || range.start % SECTOR == 0) {
                        left[range].fill(0);
                        has_lost_one = true;
                    }
                }
                let found = lost_in(&left, true);
                assert_eq!(found, if has_lost_one { Lost::At(start) } else { Lost::Nothing }, "{before}, {kept:b}");
            }
            let followed = [sound, vec![0; 2000], record(b"behind")].concat();
            assert_eq!(lost_in(&followed, true), Lost::Nothing, "one behind it is whole: this is damage");
            assert!(damage_in(&followed, true).is_some());
        }
    }

    #[test]
    fn what_is_left_of_a_lost_write_is_cut_off() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("000007.log");
        let cut = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            cut_lost_writes([path.clone()]).expect("read");
            fs::read(&path).expect("read").len()
        };
        let sound = record(&[1; 3000]);
        let zeros = vec![0; 3 * BLOCK];
        assert_eq!(cut(&sound), sound.len());
        assert_eq!(cut(&[&sound[..], &zeros].concat()), sound.len());
        assert_eq!(cut(&[&sound[..], &record(&[2; 20_000])[..9000], &zeros].concat()), sound.len());
        let full = record(&[1; BLOCK - HEADER]);
        assert_eq!(cut(&[&full[..], &full, &zeros].concat()), 2 * BLOCK);
        assert_eq!(cut(&zeros), 0);
        let mut damaged = sound.clone();
        damaged[100] ^= 1;
        assert_eq!(cut(&damaged), sound.len(), "damage is left as it is");
    }

    #[test]
    fn any_flipped_bit_is_damage() {
        let sound = block();
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(damage_in(&damaged, true).is_some(), "bit {bit}");
        }
    }

    #[test]
    fn damage_is_found_in_any_block_and_by_its_place() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let full = record(&[1; BLOCK - HEADER]);
        let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("written");
        write("000007.log", &[full.clone(), full.clone(), record(b"last")].concat());
        write("LOG", b"no log of this kind");
        write("x.log", b"nor this");
        assert_eq!(find_damage(directory.path(), Extent::Whole).expect("read"), None);
        let mut damaged = [full.clone(), full, record(b"last")].concat();
        damaged[BLOCK + 99] ^= 1;
        write("000012.log", &damaged);
        let found = find_damage(directory.path(), Extent::Whole).expect("read").expect("damage");
        assert_eq!((found.file, found.at), (directory.path().join("000012.log"), BLOCK as u64));
        assert_eq!(find_damage(directory.path(), Extent::LastBlock).expect("read"), None, "RocksDB finds it");
        damaged[2 * BLOCK + 5] ^= 1;
        write("000012.log", &damaged);
        let found = find_damage(directory.path(), Extent::LastBlock).expect("read").expect("damage");
        assert_eq!(found.at, 2 * BLOCK as u64);
    }
}

//! Checks RocksDB's manifest before RocksDB reads it.
//!
//! RocksDB hangs when it opens a database whose manifest has a record of an unexpected type. Each record has a checksum
//! of its type and content, so such damage is found here.

use std::fs;
use std::io;
use std::path::Path;

use crc32c::crc32c;
use eventstore_api::{Error, Result};
use eventstore_kv::damaged_index;

const BLOCK: usize = 32 << 10;

/// Checksum, length and type.
const HEADER: usize = 4 + 2 + 1;

/// Checks everything that RocksDB will read of the manifest.
pub(crate) fn check(directory: &Path) -> Result<()> {
    let name = read(&directory.join("CURRENT"))?;
    let name = str::from_utf8(&name).ok().and_then(|name| name.strip_suffix('\n'));
    let name = name.filter(|name| name.starts_with("MANIFEST-") && !name.contains('/'));
    let name = name.ok_or_else(|| damaged_index("RocksDB's file CURRENT names no manifest"))?;
    match damage_in(&read(&directory.join(name))?) {
        Some(at) => Err(damaged_index(format!("RocksDB's file {name} is damaged at byte {at}"))),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged_index(format!("RocksDB's file {} is missing", path.display())),
        _ => Error::engine("read RocksDB's manifest", error),
    })
}

/// The offset of the first damaged record. An incomplete last record, or zeros in its place, is left by a power cut and
/// is not damage: RocksDB skips it.
fn damage_in(manifest: &[u8]) -> Option<usize> {
    for (number, block) in manifest.chunks(BLOCK).enumerate() {
        let mut at = 0;
        while let Some(record) = block.get(at..).filter(|rest| rest.len() >= HEADER) {
            let end = HEADER + usize::from(u16::from_le_bytes([record[4], record[5]]));
            let is_torn = end > record.len() && block.len() < BLOCK && is_kind(record[6]);
            let is_lost = || manifest[number * BLOCK + at..].iter().all(|&byte| byte == 0);
            if is_torn || (record[HEADER - 1] == 0 && is_lost()) {
                return None;
            }
            if !is_whole(record, end) {
                return Some(number * BLOCK + at);
            }
            at += end;
        }
    }
    None
}

fn is_whole(record: &[u8], end: usize) -> bool {
    let stored = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    record.get(HEADER - 1..end).is_some_and(|covered| is_kind(covered[0]) && stored == masked(crc32c(covered)))
}

/// The types of a record: a whole change, or the first, a middle or the last part of one.
fn is_kind(byte: u8) -> bool {
    (1..=4).contains(&byte)
}

/// A checksum as stored by RocksDB. The mask avoids checksums of data that contain their own checksums.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: &[u8]) -> Vec<u8> {
        let covered = [&[1], content].concat();
        let len = u16::try_from(content.len()).expect("short");
        [&masked(crc32c(&covered)).to_le_bytes()[..], &len.to_le_bytes(), &covered].concat()
    }

    #[test]
    fn a_last_record_that_was_not_written_to_its_end_is_no_damage() {
        let whole = [record(b"one"), record(&[7; 300])].concat();
        for len in 0..=whole.len() {
            assert_eq!(damage_in(&whole[..len]), None, "{len}");
        }
        for zeros in [1, HEADER, 300, 2 * BLOCK] {
            assert_eq!(damage_in(&[&whole[..], &vec![0; zeros]].concat()), None, "{zeros} zeros");
        }
        let followed = [&whole[..], &[0; 300], &record(b"two")].concat();
        assert_eq!(damage_in(&followed), Some(whole.len()));
    }

    #[test]
    fn a_flipped_bit_is_damage_in_any_block_and_at_any_place_but_a_length() {
        let full = record(&[1; BLOCK - HEADER - 3]);
        let sound = [&full[..], &[0; 3], &record(b"second"), &record(b"third")].concat();
        assert_eq!(damage_in(&sound), None);
        for bit in (0..600).chain((BLOCK - 64) * 8..sound.len() * 8) {
            let at = bit / 8;
            if (BLOCK - 3..BLOCK).contains(&at) {
                continue; // the padding of a block has no meaning
            }
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << (bit % 8);
            // A record of the last block may extend beyond the end now, like one that was not written completely.
            let may_be_torn = at >= BLOCK && matches!((at - BLOCK) % (HEADER + 6), 4 | 5);
            assert!(damage_in(&damaged).is_some() || may_be_torn, "bit {bit}");
        }
    }

    #[test]
    fn a_manifest_that_is_not_there_is_damage() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let code = || check(directory.path()).expect_err("damaged").code();
        assert_eq!(code(), "corrupt");
        for name in ["MANIFEST-000005", "no name\n", "MANIFEST-../x\n", "\u{fffd}\n"] {
            fs::write(directory.path().join("CURRENT"), name).expect("written");
            assert_eq!(code(), "corrupt", "{name}");
        }
        fs::write(directory.path().join("CURRENT"), "MANIFEST-000005\n").expect("written");
        assert_eq!(code(), "corrupt");
        fs::write(directory.path().join("MANIFEST-000005"), record(b"one")).expect("written");
        check(directory.path()).expect("sound");
    }
}

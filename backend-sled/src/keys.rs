//! Where the four tables lie in sled's one tree: each key begins with a byte that names its table.
//!
//! A value is cut into parts. The first one lies under the key itself, the others in a place of their own, which no scan
//! of a table sees. A part that is shorter than [`PART_LEN`] is the last one.
//!
//! sled would keep a page of more than 128 KiB in a file of its own, which it never syncs, which it can lose from the
//! middle of a batch, and after which it hangs if the disk is full. With at most 17 rows in a page, and rows of this
//! length, there is no such page.

use eventstore_kv::Table;

/// Bytes of every part of a value but the last.
pub(crate) const PART_LEN: usize = 6 << 10;

/// Begins the keys of the parts behind the first; the table's own byte is added.
const PARTS: u8 = 0x10;

/// What an engine's keys are at most, the length and the number of a part, and the table.
const MOST_LEN: usize = 1 + 2 + 489 + 4;

/// A key in sled's tree.
#[derive(Clone)]
pub(crate) struct Key {
    bytes: [u8; MOST_LEN],
    len: usize,
}

impl Key {
    /// The key of a table's row.
    pub(crate) fn row(table: Table, key: &[u8]) -> Self {
        Self::of(&[&[table_byte(table)], key])
    }

    /// The key of a part of the row's value; the first part, which is number 0, is the row itself.
    pub(crate) fn part(table: Table, key: &[u8], number: u32) -> Self {
        if number == 0 {
            return Self::row(table, key);
        }
        // With the length in front, the parts of one key never lie between those of another.
        Self::of(&[&[PARTS | table_byte(table)], &(key.len() as u16).to_be_bytes(), key, &number.to_be_bytes()])
    }

    fn of(pieces: &[&[u8]]) -> Self {
        let mut key = Key { bytes: [0; MOST_LEN], len: 0 };
        for piece in pieces {
            key.bytes[key.len..key.len + piece.len()].copy_from_slice(piece);
            key.len += piece.len();
        }
        key
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Begins the keys of a table's rows.
pub(crate) fn table_byte(table: Table) -> u8 {
    table.index() as u8
}

/// The parts of a value; at least one.
pub(crate) fn parts_of(value: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    (0..).zip(0..=value.len() / PART_LEN).map(|(number, part)| {
        let begin = part * PART_LEN;
        (number, &value[begin..value.len().min(begin + PART_LEN)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_these_bytes() {
        assert_eq!(Key::row(Table::Meta, b"format").as_ref(), b"\x00format");
        assert_eq!(Key::row(Table::Events, &[1]).as_ref(), [1, 1]);
        assert_eq!(Key::part(Table::Events, &[7], 0).as_ref(), [1, 7]);
        assert_eq!(Key::part(Table::Events, &[7], 258).as_ref(), [0x11, 0, 1, 7, 0, 0, 1, 2]);
        assert_eq!(Key::part(Table::Aggregates, &[7; 489], 1).as_ref().len(), MOST_LEN);
    }

    #[test]
    fn the_parts_of_a_key_lie_together() {
        let (one, other): (&[u8], &[u8]) = (b"a", b"a\0\0\0\x01");
        let (first, last) = (Key::part(Table::Ids, one, 1), Key::part(Table::Ids, one, u32::MAX));
        for number in [1, 2, u32::MAX] {
            let of_other = Key::part(Table::Ids, other, number);
            assert!(of_other.as_ref() < first.as_ref() || of_other.as_ref() > last.as_ref());
        }
    }

    #[test]
    fn the_last_part_is_always_shorter() {
        for len in [0, 1, PART_LEN - 1, PART_LEN, PART_LEN + 1, 3 * PART_LEN] {
            let value: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let parts: Vec<_> = parts_of(&value).collect();
            let (last, others) = parts.split_last().expect("a part");
            assert!(last.1.len() < PART_LEN && others.iter().all(|(_, part)| part.len() == PART_LEN), "{len}");
            assert!(parts.iter().map(|(number, _)| *number).eq(0..parts.len() as u32));
            assert_eq!(parts.iter().flat_map(|(_, part)| part.iter().copied()).collect::<Vec<_>>(), value);
        }
    }
}

use std::ops::Range;

use crate::format::{self, FRAME_HEADER, LAST_FLAG, MOST_CONTENT, RECORD_HEADER};

/// Walks from record to record over bytes of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// The offset of the bytes in the segment.
    base: u64,
    /// The offset of the next record in the bytes.
    at: usize,
    /// The number of the next record.
    number: u64,
}

/// The next step of a walk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record with this number and content.
    Record { number: u64, content: Range<usize>, is_intact: bool },
    /// More bytes are needed: this many in all.
    Short(usize),
    /// Not a record.
    Broken,
}

impl Walk {
    /// Starts at the record with this number, at this offset of the segment: the first of the bytes.
    pub(crate) fn new(number: u64, base: u64) -> Self {
        Walk { base, at: 0, number }
    }

    /// The number of the next record.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next record. Checksums of records from `verify_from` on are verified; earlier ones count as intact.
    pub(crate) fn step(&mut self, bytes: &[u8], verify_from: u64) -> Step {
        let start = self.at + RECORD_HEADER;
        let Some(flags_len) = format::u32_at(bytes, self.at + 4) else { return Step::Short(start) };
        let Some(len) = content_len(flags_len) else { return Step::Broken };
        let end = start + len;
        let Some(content) = bytes.get(start..end) else { return Step::Short(end) };
        let number = self.number;
        let is_intact = number < verify_from
            || format::u32_at(bytes, self.at) == Some(format::record_crc(number, flags_len, content));
        self.at = end;
        if flags_len & LAST_FLAG != 0 {
            let offset = self.base + end as u64;
            self.at += (format::align(offset) - offset) as usize + FRAME_HEADER;
        }
        self.number += 1;
        Step::Record { number, content: start..end, is_intact }
    }
}

/// The length of a record's content, or `None` if the field is invalid.
pub(crate) fn content_len(flags_len: u32) -> Option<usize> {
    let len = (flags_len & !LAST_FLAG) as usize;
    (len <= MOST_CONTENT).then_some(len)
}

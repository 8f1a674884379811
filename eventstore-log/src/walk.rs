use std::ops::Range;

use crate::format::{self, FRAME_HEADER, LAST_FLAG, MOST_CONTENT, RECORD_HEADER};

/// Goes from record to record over bytes of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// Where the bytes begin in the segment.
    base: u64,
    /// Where the next record begins in the bytes.
    at: usize,
    /// The number of the next record.
    number: u64,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record with this number and content.
    Record { number: u64, content: Range<usize>, is_intact: bool },
    /// More bytes are needed, so many in all.
    Short(usize),
    /// No record.
    Broken,
}

impl Walk {
    /// Begins at the record with this number, which is at this offset of the segment: the first of the bytes.
    pub(crate) fn new(number: u64, base: u64) -> Self {
        Walk { base, at: 0, number }
    }

    /// The number of the record that comes next.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next record. Checksums are verified of records from `verify_from` on; those before count as intact.
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

/// The length of a record's content, unless no version wrote it.
pub(crate) fn content_len(flags_len: u32) -> Option<usize> {
    let len = (flags_len & !LAST_FLAG) as usize;
    (len <= MOST_CONTENT).then_some(len)
}

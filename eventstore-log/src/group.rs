use std::fmt;

use crc32fast::Hasher;

use crate::format::{self, FRAME_HEADER, FrameHeader, LAST_FLAG, MOST_CONTENT, RECORD_HEADER, SEGMENT_HEADER};

/// Room for the headers in front of the records, so that everything is one write.
const HEADERS: usize = SEGMENT_HEADER + FRAME_HEADER;

/// A group to be written to the log, in a reusable buffer: a frame whose header is not filled in yet.
pub struct Group {
    first: u64,
    /// Room for the headers, then the records.
    bytes: Vec<u8>,
    /// The offset of each record.
    starts: Vec<u32>,
    /// The hash of the checksums of all records but the last.
    body: Hasher,
    /// Why it can never be committed, if so.
    refused: Option<&'static str>,
}

impl Default for Group {
    fn default() -> Self {
        Group { first: 0, bytes: Vec::new(), starts: Vec::new(), body: Hasher::new(), refused: None }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("first", &self.first).field("records", &self.starts.len()).finish_non_exhaustive()
    }
}

impl Group {
    /// Empties the group. The first record pushed will have this number.
    pub fn begin(&mut self, first: u64) {
        self.first = first;
        self.bytes.clear();
        self.bytes.resize(HEADERS, 0);
        self.starts.clear();
        self.body = Hasher::new();
        self.refused = None;
    }

    /// Adds a record. Its content is the concatenation of the parts.
    ///
    /// If a record has 128 MiB or more, or makes the group larger than a segment can be, the commit fails.
    pub fn push(&mut self, parts: &[&[u8]]) {
        if self.bytes.is_empty() {
            self.begin(self.first);
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > MOST_CONTENT {
            self.refused = Some("a record of 128 MiB or more");
            return;
        }
        if self.bytes.len() + RECORD_HEADER + len > u32::MAX as usize - 8 {
            self.refused = Some("a group of 4 GiB or more");
            return;
        }
        // A record's checksum covers whether it is the last one of the frame, so it is computed only when that is
        // known.
        if let Some(crc) = self.seal_newest(false) {
            self.body.update(&crc);
        }
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&(len as u32).to_le_bytes());
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    fn seal_newest(&mut self, is_last: bool) -> Option<[u8; 4]> {
        let start = *self.starts.last()? as usize;
        let content = start + RECORD_HEADER;
        let number = self.first + self.starts.len() as u64 - 1;
        let len = (self.bytes.len() - content) as u32;
        let flags_len = if is_last { len | LAST_FLAG } else { len };
        let crc = format::record_crc(number, flags_len, &self.bytes[content..]).to_le_bytes();
        self.bytes[start..start + 4].copy_from_slice(&crc);
        self.bytes[start + 4..content].copy_from_slice(&flags_len.to_le_bytes());
        Some(crc)
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The size of its records with their headers, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len().saturating_sub(HEADERS)
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The number of the next record.
    pub fn next(&self) -> u64 {
        self.first + self.starts.len() as u64
    }

    /// The content of one of its records.
    pub fn content(&self, record: u64) -> Option<&[u8]> {
        let index = usize::try_from(record.checked_sub(self.first)?).ok()?;
        let start = *self.starts.get(index)? as usize + RECORD_HEADER;
        let end = self.starts.get(index + 1).map_or(self.bytes.len(), |end| *end as usize);
        self.bytes.get(start..end)
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn refused(&self) -> Option<&'static str> {
        self.refused
    }

    /// The size of the frame in a segment, in bytes.
    pub(crate) fn frame_len(&self) -> u64 {
        format::align((FRAME_HEADER + self.bytes()) as u64)
    }

    /// The offset of each record, relative to the start of the frame.
    pub(crate) fn record_offsets(&self) -> impl Iterator<Item = u64> {
        self.starts.iter().map(|start| u64::from(*start) - SEGMENT_HEADER as u64)
    }

    /// Passes on the whole frame, which must not be empty, preceded by the segment's header if given, and the frame's
    /// checksum.
    pub(crate) fn with_frame<T>(
        &mut self,
        (salt, synced, chain): (u64, u64, u32),
        segment_header: Option<&[u8; SEGMENT_HEADER]>,
        write: impl FnOnce(&[u8]) -> T,
    ) -> (T, u32) {
        let mut body = self.body.clone();
        self.seal_newest(true).iter().for_each(|crc| body.update(crc));
        let (count, len) = (self.starts.len() as u32, self.bytes() as u32);
        let header = FrameHeader { first: self.first, synced, count, len, chain, body: body.finalize(), crc: 0 };
        let (header, crc) = header.encode(salt);
        self.bytes[SEGMENT_HEADER..HEADERS].copy_from_slice(&header);
        if let Some(segment_header) = segment_header {
            self.bytes[..SEGMENT_HEADER].copy_from_slice(segment_header);
        }
        let end = self.bytes.len();
        self.bytes.resize(SEGMENT_HEADER + self.frame_len() as usize, 0);
        let start = if segment_header.is_some() { 0 } else { SEGMENT_HEADER };
        let written = write(&self.bytes[start..]);
        self.bytes.truncate(end);
        (written, crc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(group: &mut Group) -> Vec<u8> {
        group.with_frame((9, 5, 7), None, <[u8]>::to_vec).0
    }

    #[test]
    fn a_group_gives_its_contents_and_counts() {
        let mut group = Group::default();
        group.begin(10);
        assert!(group.is_empty());
        group.push(&[b"ab", b"", b"c"]);
        group.push(&[]);
        group.push(&[b"d"]);
        assert_eq!((group.len(), group.next(), group.bytes()), (3, 13, 28));
        let contents: Vec<_> = (9..14).map(|record| group.content(record)).collect();
        assert_eq!(contents, [None, Some(b"abc".as_slice()), Some(b""), Some(b"d"), None]);
    }

    #[test]
    fn what_is_pushed_behind_a_finished_frame_is_part_of_the_next() {
        let mut group = Group::default();
        group.begin(1);
        group.push(&[b"a"]);
        let one = frame(&mut group);
        group.push(&[b"b"]);
        let two = frame(&mut group);
        let mut again = Group::default();
        again.begin(1);
        again.push(&[b"a"]);
        assert_eq!(frame(&mut again), one);
        again.push(&[b"b"]);
        assert_eq!(frame(&mut again), two);
        assert_eq!((one.len() % 8, two.len() % 8), (0, 0));
    }
}

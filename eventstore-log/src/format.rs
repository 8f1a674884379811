//! The format of all files. Integers are little-endian.
//!
//! ```text
//!  segment: header (64) │ frame │ frame │ … │ footer, once the log has moved on: anchors │ blob │ summary │ trailer
//!  frame, on a multiple of 8: header (40) │ record │ record │ … │ zeros
//!  record: checksum u32 │ flags and length u32 │ content
//!
//!  compressed: header (64) │ block │ block │ … │ table │ anchors │ blob │ summary │ trailer
//!  block: checksum u32 │ flag and length u32 │ up to 64 KiB of frames, compressed
//! ```

use crc32fast::Hasher;

use crate::anchors::{self, Anchor};
use crate::blocks;

pub(crate) const SEGMENT_HEADER: usize = 64;
pub(crate) const FRAME_HEADER: usize = 40;
pub(crate) const RECORD_HEADER: usize = 8;
/// Size of the end of a footer: its summary and its trailer.
pub(crate) const FOOTER_END: usize = 96;

/// Flag in the length of a record: it is the last one of its frame.
pub(crate) const LAST_FLAG: u32 = 1 << 31;
/// The longest content of a record.
pub(crate) const MOST_CONTENT: usize = (1 << 27) - 1;

pub(crate) const FORMAT: u8 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"EVSLOG\0\x01";
pub(crate) const FRAME_MAGIC: [u8; 4] = *b"evsF";
const FOOTER_MAGIC: [u8; 8] = *b"EVSFOOT\x01";
const TAIL_MAGIC: [u8; 8] = *b"EVSTAIL\x01";
/// Flags that an older version must not ignore.
const BINDING_FLAGS: u32 = 0xffff_0000;
/// One of them: the frames are in compressed blocks.
const COMPRESSED_FLAG: u32 = 1 << 16;

/// The next multiple of 8.
pub(crate) fn align(offset: u64) -> u64 {
    offset.next_multiple_of(8)
}

/// The checksum of a record. It covers the record's number.
pub(crate) fn record_crc(number: u64, flags_len: u32, content: &[u8]) -> u32 {
    let mut prefix = [0; 12];
    prefix[..8].copy_from_slice(&number.to_le_bytes());
    prefix[8..].copy_from_slice(&flags_len.to_le_bytes());
    let mut hasher = Hasher::new();
    hasher.update(&prefix);
    hasher.update(content);
    hasher.finalize()
}

/// Takes fields from the front of a byte slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// A `u32` in a record's header.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Fields(bytes.get(at..)?).u32()
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: [u8; 16],
    pub(crate) number: u64,
    pub(crate) first: u64,
    pub(crate) salt: u64,
    pub(crate) generation: u32,
    pub(crate) chain: u32,
    pub(crate) is_compressed: bool,
}

/// The result of decoding the start of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Valid(SegmentHeader),
    Zeros,
    Newer,
    Damaged,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&self.id);
        for field in [self.number, self.first, self.salt] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.generation, self.chain, flags(self.is_compressed)] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let mut header = [0; SEGMENT_HEADER];
        header.copy_from_slice(&bytes);
        header
    }

    /// Whether both have the same frames, in any generation.
    pub(crate) fn is_alike(&self, other: &SegmentHeader) -> bool {
        let of = |header: &SegmentHeader| (header.id, header.number, header.first, header.salt, header.chain);
        of(self) == of(other)
    }
}

fn flags(is_compressed: bool) -> u32 {
    if is_compressed { COMPRESSED_FLAG } else { 0 }
}

impl Head {
    /// Decodes the start of a segment, which may be shorter than a header.
    pub(crate) fn decode(bytes: &[u8]) -> Head {
        let bytes = &bytes[..bytes.len().min(SEGMENT_HEADER)];
        if bytes.iter().all(|byte| *byte == 0) {
            return Head::Zeros;
        }
        Self::decode_fields(bytes).unwrap_or(Head::Damaged)
    }

    fn decode_fields(bytes: &[u8]) -> Option<Head> {
        let (covered, crc) = bytes.split_last_chunk()?;
        let mut fields = Fields(covered);
        let magic: [u8; 8] = fields.take()?;
        if magic[..7] != SEGMENT_MAGIC[..7] || crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return None;
        }
        let id = fields.take()?;
        let (number, first, salt) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (generation, chain, flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if magic[7] != FORMAT || flags & BINDING_FLAGS & !COMPRESSED_FLAG != 0 {
            return Some(Head::Newer);
        }
        let is_compressed = flags & COMPRESSED_FLAG != 0;
        Some(Head::Valid(SegmentHeader { id, number, first, salt, generation, chain, is_compressed }))
    }
}

/// The header of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) first: u64,
    pub(crate) synced: u64,
    pub(crate) count: u32,
    pub(crate) len: u32,
    pub(crate) chain: u32,
    pub(crate) body: u32,
    pub(crate) crc: u32,
}

impl FrameHeader {
    /// The encoded header and its checksum. The checksum field of `self` is ignored.
    pub(crate) fn encode(&self, salt: u64) -> ([u8; FRAME_HEADER], u32) {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.synced.to_le_bytes());
        for (index, field) in [self.count, self.len, self.chain, self.body].into_iter().enumerate() {
            bytes[24 + 4 * index..][..4].copy_from_slice(&field.to_le_bytes());
        }
        let crc = frame_crc(salt, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// The header at the start of the bytes, if there is one that belongs to this segment.
    pub(crate) fn decode(bytes: &[u8], salt: u64) -> Option<FrameHeader> {
        let bytes = bytes.get(..FRAME_HEADER)?;
        let mut fields = Fields(bytes);
        if fields.take()? != FRAME_MAGIC {
            return None;
        }
        let crc = fields.u32()?;
        if crc != frame_crc(salt, fields.0) {
            return None;
        }
        let (first, synced) = (fields.u64()?, fields.u64()?);
        let (count, len, chain, body) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let is_possible = count > 0
            && u64::from(len) >= u64::from(count) * RECORD_HEADER as u64
            && first > 0
            && first.checked_add(u64::from(count)).is_some();
        is_possible.then_some(FrameHeader { first, synced, count, len, chain, body, crc })
    }

    /// The number after its last record.
    pub(crate) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// The size of the frame in bytes.
    pub(crate) fn frame_len(&self) -> u64 {
        align(FRAME_HEADER as u64 + u64::from(self.len))
    }
}

fn frame_crc(salt: u64, fields: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(fields);
    hasher.finalize()
}

/// The summary of a segment in its footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) number: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The end of the content. In an uncompressed segment, the footer begins there.
    pub(crate) end: u64,
    pub(crate) salt: u64,
    pub(crate) anchors: u32,
    pub(crate) blob: u32,
    pub(crate) chain: u32,
    pub(crate) generation: u32,
    pub(crate) anchors_crc: u32,
    pub(crate) blob_crc: u32,
    /// The number of blocks; 0 if the segment is not compressed.
    pub(crate) blocks: u32,
    /// The checksum of the table of the blocks.
    pub(crate) table_crc: u32,
}

impl Summary {
    /// A complete footer for an uncompressed segment. The counts and checksums of its parts are filled in.
    pub(crate) fn encode(mut self, anchors: &[Anchor], blob: &[u8]) -> (Summary, Vec<u8>) {
        let mut bytes = anchors::encode(anchors);
        (self.anchors, self.anchors_crc) = (anchors.len() as u32, crc32fast::hash(&bytes));
        (self.blob, self.blob_crc) = (blob.len() as u32, crc32fast::hash(blob));
        bytes.extend_from_slice(blob);
        bytes.extend_from_slice(&self.encode_end());
        (self, bytes)
    }

    /// The last bytes of the footer.
    pub(crate) fn encode_end(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_END);
        for field in [self.first, self.last, self.end, self.salt] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.anchors, self.blob, self.chain, self.generation, self.anchors_crc, self.blob_crc] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.blocks, self.table_crc] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&FOOTER_MAGIC);
        bytes.extend_from_slice(&self.len().to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&flags(self.blocks > 0).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// The summary in the last [`FOOTER_END`] bytes of a file of this length.
    pub(crate) fn decode(bytes: &[u8], file_len: u64) -> Option<Summary> {
        let (covered, crc) = bytes.split_last_chunk()?;
        if bytes.len() != FOOTER_END || crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut fields = Fields(covered);
        let (first, last, end, salt) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let (anchors, blob, chain, generation) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let (anchors_crc, blob_crc) = (fields.u32()?, fields.u32()?);
        let (blocks, table_crc) = (fields.u32()?, fields.u32()?);
        let (magic, len, number) = (fields.take()?, fields.u64()?, fields.u64()?);
        let flags = fields.u32()? & BINDING_FLAGS;
        let summary = Summary {
            number,
            first,
            last,
            end,
            salt,
            anchors,
            blob,
            chain,
            generation,
            anchors_crc,
            blob_crc,
            blocks,
            table_crc,
        };
        let is_right_long = match flags {
            0 => blocks == 0 && end.checked_add(len) == Some(file_len),
            COMPRESSED_FLAG => {
                end <= u64::from(u32::MAX)
                    && u64::from(blocks) == blocks::count(end)
                    && summary.table_len() + len + SEGMENT_HEADER as u64 <= file_len
            }
            _ => false,
        };
        let is_possible = magic == FOOTER_MAGIC
            && summary.len() == len
            && is_right_long
            && end >= (SEGMENT_HEADER + FRAME_HEADER) as u64
            && end.is_multiple_of(8)
            && (1..=last).contains(&first)
            && last < u64::MAX;
        is_possible.then_some(summary)
    }

    /// Whether it belongs to the segment with this header.
    pub(crate) fn is_of(&self, header: &SegmentHeader) -> bool {
        (self.number, self.generation, self.salt, self.first, self.blocks > 0)
            == (header.number, header.generation, header.salt, header.first, header.is_compressed)
    }

    /// Whether both describe the same frames and have the same blob, in any generation.
    pub(crate) fn is_alike(&self, other: &Summary) -> bool {
        let plain = |summary: &Summary| Summary { generation: 0, blocks: 0, table_crc: 0, ..summary.clone() };
        plain(self) == plain(other)
    }

    /// The size of the block table, which precedes the footer, in bytes.
    pub(crate) fn table_len(&self) -> u64 {
        if self.blocks == 0 { 0 } else { (u64::from(self.blocks) + 1) * 4 }
    }

    /// The size of the footer without the block table, in bytes.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.anchors) * anchors::LEN as u64 + u64::from(self.blob) + FOOTER_END as u64
    }

    /// The offset of its blob.
    pub(crate) fn blob_at(&self) -> u64 {
        self.end + u64::from(self.anchors) * anchors::LEN as u64
    }
}

/// The newest checkpoint: the position up to which everything is synced and known, and the data that the layer above
/// stores with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TailFile {
    pub(crate) id: [u8; 16],
    /// 0 for a log without records.
    pub(crate) segment: u64,
    pub(crate) salt: u64,
    pub(crate) offset: u64,
    /// The start of the frame before it, whose header ties it to the history. 0 if the segment has none, or if it is
    /// unknown because the segment has a footer.
    pub(crate) frame: u64,
    pub(crate) next: u64,
    pub(crate) synced: u64,
    pub(crate) generation: u32,
    pub(crate) chain: u32,
    /// The anchors before the offset, in a segment without a footer.
    pub(crate) anchors: Vec<Anchor>,
    pub(crate) blob: Vec<u8>,
}

impl TailFile {
    /// The last record that is synced, according to the checkpoint.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.max(self.next - 1)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&TAIL_MAGIC);
        bytes.extend_from_slice(&self.id);
        for field in [self.segment, self.salt, self.offset, self.frame, self.next, self.synced] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.generation, self.chain, self.anchors.len() as u32, self.blob.len() as u32] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&anchors::encode(&self.anchors));
        bytes.extend_from_slice(&self.blob);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<TailFile> {
        let (covered, crc) = bytes.split_last_chunk()?;
        let mut fields = Fields(covered);
        if fields.take()? != TAIL_MAGIC || crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return None;
        }
        let id = fields.take()?;
        let (segment, salt, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (frame, next, synced) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (generation, chain) = (fields.u32()?, fields.u32()?);
        let (count, blob) = (fields.u32()? as usize, fields.u32()? as usize);
        let (anchors, rest) = fields.0.split_at_checked(count.checked_mul(anchors::LEN)?)?;
        let anchors = anchors::decode(anchors);
        (rest.len() == blob && next > 0).then(|| TailFile {
            id,
            segment,
            salt,
            offset,
            frame,
            next,
            synced,
            generation,
            chain,
            anchors,
            blob: rest.to_vec(),
        })
    }
}

/// The file name of a segment.
pub(crate) fn segment_name(number: u64, generation: u32) -> String {
    format!("{number:010}-{generation}.seg")
}

/// The number and generation in a segment's file name.
pub(crate) fn parse_segment_name(name: &str) -> Option<(u64, u32)> {
    let (number, generation) = name.strip_suffix(".seg")?.split_once('-')?;
    let (number, generation) = (number.parse().ok()?, generation.parse().ok()?);
    (number > 0 && segment_name(number, generation) == name).then_some((number, generation))
}

#[cfg(test)]
mod tests;

//! Compressed segments: the frames of a plain segment in blocks, each compressed on its own.
//!
//! Readers see the plain bytes, at the offsets they have without compression: [`PlainFile`] is a file like any other.
//! The bytes of a damaged block read as `ff`. No record or frame header consists of these, and no record has a valid
//! checksum with them unless they are the original bytes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crc32fast::Hasher;

use crate::codec::Decoder;
use crate::format::{self, SEGMENT_HEADER, SegmentHeader, Summary};
use crate::log::lock;
use crate::recover::read_footer;
use crate::{Directory, Error, File, Result};

/// Plain bytes in each block but the last.
pub(crate) const BLOCK: u64 = 64 << 10;
/// Size of the header of a block.
const HEADER: usize = 8;
/// Flag in the length of a block: its bytes are not compressed.
const STORED_FLAG: u32 = 1 << 31;
/// The number of blocks read at once.
const RUN: u64 = 16;

/// The number of blocks of a segment whose plain content ends here.
pub(crate) fn count(end: u64) -> u64 {
    end.saturating_sub(SEGMENT_HEADER as u64).div_ceil(BLOCK)
}

/// The plain bytes of a segment, whether it is compressed or not.
pub(crate) fn open(files: &dyn Directory, name: &str, header: &SegmentHeader) -> Result<Arc<dyn File>> {
    match header.is_compressed {
        true => Ok(Arc::new(PlainFile::open(files, name, header)?)),
        false => files.open(name).map_err(|error| Error::io("open", name, error)),
    }
}

/// Encodes a block: with the compressed bytes, or with the plain ones if there are none.
pub(crate) fn encode(salt: u64, number: u64, plain: &[u8], compressed: Option<&[u8]>, out: &mut Vec<u8>) {
    let (bytes, flag) = compressed.map_or((plain, STORED_FLAG), |compressed| (compressed, 0));
    let flag_len = flag | bytes.len() as u32;
    out.extend_from_slice(&crc(salt, number, flag_len, bytes).to_le_bytes());
    out.extend_from_slice(&flag_len.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn crc(salt: u64, number: u64, flag_len: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&flag_len.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// The table of blocks (where each begins, and where the last one ends) and its checksum.
pub(crate) fn encode_table(salt: u64, offsets: &[u32]) -> (Vec<u8>, u32) {
    let bytes: Vec<_> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    let crc = table_crc(salt, &bytes);
    (bytes, crc)
}

fn table_crc(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// What is needed to read a block. Reused, since it is expensive to create.
#[derive(Default)]
struct Scratch {
    raw: Vec<u8>,
    decoder: Decoder,
}

static SCRATCH: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());
/// At most this many are kept, for the whole process.
const MOST_SCRATCH: usize = 8;

fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = lock(&SCRATCH).pop().unwrap_or_default();
    let result = work(&mut scratch);
    let mut kept = lock(&SCRATCH);
    if kept.len() < MOST_SCRATCH {
        kept.push(scratch);
    }
    result
}

/// The plain bytes of a block, if it is valid.
fn decode<'a>(salt: u64, number: u64, block: &'a [u8], decoder: &'a mut Decoder) -> Option<&'a [u8]> {
    let (crc_field, flag_len) = (format::u32_at(block, 0)?, format::u32_at(block, 4)?);
    let bytes = block.get(HEADER..)?;
    if bytes.len() != (flag_len & !STORED_FLAG) as usize || crc(salt, number, flag_len, bytes) != crc_field {
        return None;
    }
    if flag_len & STORED_FLAG != 0 { Some(bytes) } else { decoder.decode(bytes, BLOCK as usize) }
}

/// The plain bytes of a compressed segment.
#[derive(Debug)]
pub(crate) struct PlainFile {
    file: Arc<dyn File>,
    salt: u64,
    /// The offset of each block in the file, and the end of the last one.
    offsets: Vec<u32>,
    has_table: bool,
    /// The end of the plain content.
    end: u64,
    /// The offset and the length of the footer in the file.
    footer: Option<(u64, u64)>,
    is_damaged: AtomicBool,
}

impl PlainFile {
    pub(crate) fn open(files: &dyn Directory, name: &str, header: &SegmentHeader) -> Result<Self> {
        crate::codec::check()?;
        let file = files.open(name).map_err(|error| Error::io("open", name, error))?;
        let failed = |error| Error::io("read", name, error);
        let len = file.len().map_err(failed)?;
        let footer = read_footer(&*file, name, len)?.filter(|footer| footer.is_of(header));
        let salt = header.salt;
        let known = footer.as_ref().map(|footer| (len - footer.len() - footer.table_len(), footer));
        let table = known.map(|(at, footer)| read_table(&*file, salt, at, footer)).transpose().map_err(failed)?;
        let has_table = table.as_ref().is_some_and(Option::is_some);
        let (offsets, end) = match (table.flatten(), known) {
            (Some(offsets), Some((_, footer))) => (offsets, footer.end),
            (_, known) => {
                tell!(warn, name, "the block table is damaged; the blocks are located by their lengths");
                walk(&*file, salt, known.map_or(len, |(at, _)| at), known.map(|(_, footer)| footer)).map_err(failed)?
            }
        };
        let footer = footer.map(|footer| (len - footer.len(), footer.len()));
        Ok(PlainFile { file, salt, offsets, has_table, end, footer, is_damaged: AtomicBool::new(false) })
    }

    /// Whether the table of blocks is valid.
    pub(crate) fn has_table(&self) -> bool {
        self.has_table
    }

    /// The number of plain bytes, including the footer.
    pub(crate) fn plain_len(&self) -> u64 {
        self.end + self.footer.map_or(0, |(_, len)| len)
    }

    /// What is wrong with the blocks, after everything was read. `is_sound`: whether the records were valid.
    pub(crate) fn fault(&self, is_sound: bool) -> Option<&'static str> {
        if self.is_damaged.load(Ordering::Relaxed) && is_sound {
            return Some("a block is damaged, but no record in it");
        }
        (!self.has_table).then_some("the table of blocks is damaged")
    }

    /// The number of plain bytes in a block.
    fn block_len(&self, number: u64) -> u64 {
        BLOCK.min(self.end - (SEGMENT_HEADER as u64 + number * BLOCK))
    }

    fn offset(&self, number: u64) -> u64 {
        self.offsets.get(number as usize).copied().map_or(0, u64::from)
    }

    /// Appends the plain content from offset `at` to offset `to`.
    fn read_content(&self, out: &mut Vec<u8>, at: u64, to: u64) -> io::Result<()> {
        let base = SEGMENT_HEADER as u64;
        let (mut number, last) = ((at - base) / BLOCK, (to - 1 - base) / BLOCK);
        with_scratch(|scratch| {
            while number <= last {
                let behind = (number + RUN).min(last + 1);
                let from = self.offset(number);
                scratch.raw.clear();
                self.file.read_at(&mut scratch.raw, from, (self.offset(behind) - from) as usize)?;
                for number in number..behind {
                    let start = base + number * BLOCK;
                    let wanted = at.max(start) - start..to.min(start + BLOCK) - start;
                    let place = (self.offset(number) - from) as usize..(self.offset(number + 1) - from) as usize;
                    let block = scratch.raw.get(place).unwrap_or_default();
                    let plain = decode(self.salt, number, block, &mut scratch.decoder);
                    match plain.filter(|plain| plain.len() as u64 == self.block_len(number)) {
                        Some(plain) => out.extend_from_slice(&plain[wanted.start as usize..wanted.end as usize]),
                        None => {
                            self.is_damaged.store(true, Ordering::Relaxed);
                            out.resize(out.len() + (wanted.end - wanted.start) as usize, 0xff);
                        }
                    }
                }
                number = behind;
            }
            Ok(())
        })
    }

    fn read_parts(&self, out: &mut Vec<u8>, at: u64, end: u64) -> io::Result<()> {
        let header = SEGMENT_HEADER as u64;
        if at < header {
            let len = (end.min(header) - at) as usize;
            if self.file.read_at(out, at, len)? < len {
                return Ok(());
            }
        }
        let (from, to) = (at.max(header), end.min(self.end));
        if from < to {
            self.read_content(out, from, to)?;
        }
        if let Some((start, _)) = self.footer.filter(|_| end > self.end) {
            let from = at.max(self.end);
            self.file.read_at(out, start + (from - self.end), (end - from) as usize)?;
        }
        Ok(())
    }
}

/// The table of blocks, if it is valid.
fn read_table(file: &dyn File, salt: u64, at: u64, footer: &Summary) -> io::Result<Option<Vec<u32>>> {
    let mut bytes = Vec::new();
    let len = footer.table_len() as usize;
    file.read_at(&mut bytes, at, len)?;
    let (fields, _) = bytes.as_chunks();
    let offsets: Vec<_> = fields.iter().map(|field| u32::from_le_bytes(*field)).collect();
    let is_block = |pair: &[u32]| {
        let len = pair[1].checked_sub(pair[0]).map(u64::from);
        len.is_some_and(|len| len > HEADER as u64 && len <= HEADER as u64 + BLOCK)
    };
    let is_sound = bytes.len() == len
        && table_crc(salt, &bytes) == footer.table_crc
        && offsets.first() == Some(&(SEGMENT_HEADER as u32))
        && offsets.last().map(|last| u64::from(*last)) == Some(at)
        && offsets.windows(2).all(is_block);
    Ok(is_sound.then_some(offsets))
}

/// Locates the blocks by their lengths, as far as these can be followed. Returns their offsets and the end of the plain
/// content. The footer, if given, has the number of blocks.
fn walk(file: &dyn File, salt: u64, limit: u64, footer: Option<&Summary>) -> io::Result<(Vec<u32>, u64)> {
    let mut offsets = vec![SEGMENT_HEADER as u32];
    let (mut at, mut decoder, mut last_len) = (SEGMENT_HEADER as u64, Decoder::default(), BLOCK);
    let most = footer.map_or(u64::from(u32::MAX), |footer| u64::from(footer.blocks));
    while (offsets.len() as u64) <= most {
        let number = offsets.len() as u64 - 1;
        let Some(block) = read_block(file, at, limit)? else { break };
        let next = at + block.len() as u64;
        match decode(salt, number, &block, &mut decoder) {
            Some(plain) => last_len = plain.len() as u64,
            None => {
                // Its length is right if another block follows it.
                let behind = read_block(file, next, limit)?;
                if behind.is_none_or(|behind| decode(salt, number + 1, &behind, &mut decoder).is_none()) {
                    break;
                }
            }
        }
        let Ok(offset) = u32::try_from(next) else { break };
        (at, _) = (next, offsets.push(offset));
    }
    let walked = offsets.len() as u64 - 1;
    let Some(footer) = footer else {
        let end = if walked == 0 { 0 } else { (walked - 1) * BLOCK + last_len };
        return Ok((offsets, SEGMENT_HEADER as u64 + end));
    };
    // The other blocks cannot be located.
    offsets.resize(footer.blocks as usize + 1, at as u32);
    Ok((offsets, footer.end))
}

fn read_block(file: &dyn File, at: u64, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut block = Vec::new();
    file.read_at(&mut block, at, HEADER)?;
    let Some(len) = format::u32_at(&block, 4).map(|flag_len| u64::from(flag_len & !STORED_FLAG)) else {
        return Ok(None);
    };
    if !(1..=BLOCK).contains(&len) || at + HEADER as u64 + len > limit {
        return Ok(None);
    }
    file.read_at(&mut block, at + HEADER as u64, len as usize)?;
    Ok(Some(block).filter(|block| (block.len() - HEADER) as u64 == len))
}

impl File for PlainFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.plain_len())
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let start = out.len();
        let end = at.saturating_add(len as u64).min(self.plain_len());
        if at >= end {
            return Ok(0);
        }
        out.reserve((end - at) as usize);
        let result = self.read_parts(out, at, end);
        if result.is_err() {
            out.truncate(start);
        }
        result.map(|()| out.len() - start)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 0x1122_3344_5566_7788;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_block_has_these_bytes() {
        let mut stored = Vec::new();
        encode(SALT, 3, b"plain", None, &mut stored);
        assert_eq!(hex(&stored), "e9e3b7c405000080706c61696e");
        let mut decoder = Decoder::default();
        assert_eq!(decode(SALT, 3, &stored, &mut decoder), Some(b"plain".as_slice()));
        assert_eq!(decode(SALT, 4, &stored, &mut decoder), None, "it is another block");
        assert_eq!(decode(SALT + 1, 3, &stored, &mut decoder), None, "it is of another segment");
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(SALT, 3, &damaged, &mut decoder), None, "bit {bit}");
        }
        let (table, crc) = encode_table(SALT, &[64, 200, 0x0102_0304]);
        assert_eq!((hex(&table).as_str(), crc), ("40000000c800000004030201", 0xaf3a_6129));
    }

    /// A new version of the codec may compress differently, but must read what this one wrote.
    #[cfg(feature = "zstd")]
    #[test]
    fn a_compressed_block_is_read() {
        let written = [
            &[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x68, 0x00, 0xcd, 0x00, 0x00, 0x90],
            b"one or the other, ".as_slice(),
            &[0x01, 0x00, 0xa6, 0x4a, 0x9d, 0x61],
        ]
        .concat();
        let mut block = Vec::new();
        encode(SALT, 0, &[], Some(&written), &mut block);
        let plain = b"one or the other, ".repeat(20);
        assert_eq!(decode(SALT, 0, &block, &mut Decoder::default()), Some(plain.as_slice()));
        let mut encoder = crate::codec::Encoder::new().expect("there is memory");
        let mut again = Vec::new();
        encode(SALT, 0, &plain, encoder.encode(&plain), &mut again);
        assert_eq!(decode(SALT, 0, &again, &mut Decoder::default()), Some(plain.as_slice()));
        assert!(again.len() < 60);
        assert_eq!(encoder.encode(b"short"), None);
        // At most one block is decompressed, whatever the block claims.
        let long = vec![7; BLOCK as usize + 1];
        let compressed = encoder.encode(&long).expect("it is smaller").to_vec();
        let mut block = Vec::new();
        encode(SALT, 0, &[], Some(&compressed), &mut block);
        assert_eq!(decode(SALT, 0, &block, &mut Decoder::default()), None);
    }

    /// The file has no compressed data, so that it is the same with every codec.
    #[cfg(feature = "zstd")]
    #[test]
    fn a_compressed_segment_has_these_bytes() {
        use crate::MemoryDirectory;
        use crate::format::{FOOTER_END, FRAME_HEADER};
        let header = SegmentHeader {
            id: *b"0123456789abcdef",
            number: 3,
            first: 7,
            salt: SALT,
            generation: 1,
            chain: 5,
            is_compressed: true,
        };
        let end = (SEGMENT_HEADER + FRAME_HEADER + 8) as u64;
        let plain = [9; FRAME_HEADER + 8];
        let mut bytes = header.encode().to_vec();
        encode(SALT, 0, &plain, None, &mut bytes);
        let (table, table_crc) = encode_table(SALT, &[64, bytes.len() as u32]);
        let summary = Summary {
            number: 3,
            first: 7,
            last: 9,
            end,
            salt: SALT,
            anchors: 0,
            blob: 4,
            chain: 6,
            generation: 1,
            anchors_crc: 0,
            blob_crc: crc32fast::hash(b"blob"),
            blocks: 1,
            table_crc,
        };
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(b"blob");
        bytes.extend_from_slice(&summary.encode_end());
        assert_eq!(
            hex(&bytes[..64]),
            "4556534c4f470001303132333435363738396162636465660300000000000000070000000000000088776655\
             443322110100000005000000000001007c183b04"
        );
        assert_eq!(
            hex(&bytes[bytes.len() - FOOTER_END..]),
            "0700000000000000090000000000000070000000000000008877665544332211000000000400000006000000\
             0100000000000000cca57fb00100000076c25acb455653464f4f540164000000000000000300000000000000\
             000001007aaf8bb0"
        );
        let files = MemoryDirectory::default();
        files.create("a").and_then(|file| file.write_at(&bytes, 0)).expect("there is room");
        let file = PlainFile::open(&files, "a", &header).expect("opened");
        assert!(file.has_table() && file.fault(true).is_none());
        assert_eq!(file.plain_len(), end + 4 + FOOTER_END as u64);
        let mut all = Vec::new();
        file.read_at(&mut all, 0, usize::MAX).expect("read");
        assert_eq!(all, [&header.encode(), plain.as_slice(), b"blob", &summary.encode_end()].concat());
        for (at, len) in (0..all.len()).flat_map(|at| [1, 7, 60, 1000].map(|len| (at, len))) {
            let mut part = b"before".to_vec();
            let count = file.read_at(&mut part, at as u64, len).expect("read");
            assert_eq!(part[6..], all[at..(at + len).min(all.len())]);
            assert_eq!(count, part.len() - 6);
        }
    }
}

//! Detects what a file is by its first bytes: text, compressed text, or something that cannot contain readable events.

use std::io::{self, BufReader, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// The size of the pieces in which compressed data is read.
const BUFFER: usize = 128 << 10;
/// The memory limit for decompressing a file, in KiB. The strongest setting of `xz` needs an eighth of it.
const XZ_MEMORY: u32 = 512 << 10;

/// The uncompressed content of a source.
pub(crate) struct Content {
    pub(crate) source: Box<dyn Read + Send>,
    pub(crate) is_compressed: bool,
}

/// A compression format. In all of them, concatenated parts are one text.
#[derive(Clone, Copy)]
enum Compression {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

#[derive(Clone, Copy)]
enum Kind {
    Compressed(Compression),
    Unreadable(&'static str),
}

const ARCHIVE: &str = "unpack it, and give the files that are in it";
const TABLE: &str = "export it as CSV or as JSON lines";
const PACKED: &str = "unpack it, or compress it with gzip, zstd, xz or bzip2";

/// Matches any byte in a magic number.
const ANY: u8 = b'?';

/// Magic numbers and what they stand for. No JSON and no titles of a CSV file begin like this.
#[rustfmt::skip]
const KINDS: &[(&[u8], Kind, &str)] = &[
    (b"\x1f\x8b", Kind::Compressed(Compression::Gzip), ""),
    (b"\x28\xb5\x2f\xfd", Kind::Compressed(Compression::Zstd), ""),
    (b"\xfd7zXZ\0", Kind::Compressed(Compression::Xz), ""),
    // With the size of its blocks, and the beginning of the first block or of the end marker.
    (b"BZh?1AY&SY", Kind::Compressed(Compression::Bzip2), ""),
    (b"BZh?\x17rE8P\x90", Kind::Compressed(Compression::Bzip2), ""),
    (b"PK\x03\x04", Kind::Unreadable("a zip archive or an Excel workbook"), "unpack it, or save the workbook as CSV"),
    (b"PK\x05\x06", Kind::Unreadable("an empty zip archive"), ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", Kind::Unreadable("a 7z archive"), ARCHIVE),
    (b"Rar!\x1a\x07", Kind::Unreadable("a rar archive"), ARCHIVE),
    (b"\x04\x22\x4d\x18", Kind::Unreadable("compressed with lz4"), PACKED),
    (b"LZIP", Kind::Unreadable("compressed with lzip"), PACKED),
    (b"PAR1\x15", Kind::Unreadable("a Parquet file"), TABLE),
    (b"Obj\x01", Kind::Unreadable("an Avro file"), TABLE),
    (b"ARROW1\0\0", Kind::Unreadable("an Arrow file"), TABLE),
    (b"SQLite format 3\0", Kind::Unreadable("a SQLite database"), TABLE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind::Unreadable("an old Excel workbook"), "save it as CSV"),
    (b"\xff\xfe", Kind::Unreadable("text in UTF-16"), "convert it to UTF-8"),
    (b"\xfe\xff", Kind::Unreadable("text in UTF-16"), "convert it to UTF-8"),
];

/// The offset and the bytes of a tar archive's magic number, in the uncompressed data.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// Detects what a source is by its first bytes. Reads no more bytes once they match nothing known.
///
/// # Errors
///
/// Read errors of the source. The inner error means that it is not readable as text, and says what it is and what to
/// do.
pub(crate) fn open(mut source: Box<dyn Read + Send>) -> io::Result<Result<Content, String>> {
    let mut head = Vec::new();
    while KINDS.iter().any(|(magic, ..)| magic.len() > head.len() && begins_as(magic, &head)) {
        if source.by_ref().take(1).read_to_end(&mut head)? == 0 {
            break;
        }
    }
    let kind = KINDS.iter().find(|(magic, ..)| magic.len() == head.len() && begins_as(magic, &head));
    let source = Cursor::new(head).chain(source);
    let compression = match kind {
        None => return Ok(Ok(Content { source: Box::new(source), is_compressed: false })),
        Some((_, Kind::Unreadable(what), advice)) => return Ok(Err(unreadable(what, advice))),
        Some((_, Kind::Compressed(compression), _)) => compression,
    };
    let source = BufReader::with_capacity(BUFFER, source);
    let source: Box<dyn Read + Send> = match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(source)?),
        Compression::Xz => Box::new(XzReader::new_mem_limit(source, true, XZ_MEMORY)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(source)),
    };
    Ok(Ok(Content { source, is_compressed: true }))
}

/// Describes an archive that begins with these bytes, if it is one.
pub(crate) fn recognize_archive(head: &[u8]) -> Option<String> {
    let (start, magic) = TAR_MAGIC;
    (head.get(start..start + magic.len()) == Some(magic)).then(|| unreadable("a tar archive", ARCHIVE))
}

fn unreadable(what: &str, advice: &str) -> String {
    format!("it is {what}, which is not supported; {advice}")
}

/// Whether the bytes match the magic number, as far as there are any.
fn begins_as(magic: &[u8], head: &[u8]) -> bool {
    magic.iter().zip(head).all(|(&magic, &byte)| magic == byte || magic == ANY)
}

/// Whether the bytes are read unchanged: they match nothing known.
#[cfg(any(test, fuzzing))]
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    recognize_archive(bytes).is_none()
        && !KINDS.iter().any(|(magic, ..)| bytes.len() >= magic.len() && begins_as(magic, bytes))
}

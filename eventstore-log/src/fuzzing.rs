//! Checks that arbitrary bytes cannot break a log. The target in `fuzz/` feeds these functions; the tests here feed
//! them the inputs in `fuzz/corpus`, and some random ones. Compiled only for fuzzers and tests.

use std::sync::Arc;

#[cfg(feature = "zstd")]
use crate::blocks;
use crate::format::{self, SegmentHeader};
use crate::{Directory, Error, Group, Known, Log, MemoryDirectory, Opened, Options, Page};

const ID: [u8; 16] = [1; 16];
const SALT: u64 = 2;

/// Arbitrary bytes as the files of a log. They are read or rejected, and every way of reading gives the same.
///
/// The first byte says how many of the rest are a checkpoint, in units of 8; whether a segment's header is put in front
/// of the others, since no fuzzer guesses a checksum; and whether the checksums of frames are corrected.
/// of the others, since no fuzzer guesses a checksum; and whether checksums of frames are put right.
pub fn log(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let tail_len = usize::from(kind >> 2) * 8;
    let (tail, segment) = rest.split_at(tail_len.min(rest.len()));
    let mut bytes = if kind & 1 == 0 { Vec::new() } else { header().to_vec() };
    bytes.extend_from_slice(segment);
    if kind & 2 != 0 {
        put_right(&mut bytes);
    }
    for synced in [0, 3, u64::MAX - 1] {
        check(&bytes, tail, synced);
    }
}

/// Arbitrary bytes as a compressed segment. The first byte says whether the others are blocks and footer as they are,
/// or the plain bytes of frames, which are put into a block with a matching footer.
#[cfg(feature = "zstd")]
pub fn compressed(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let header =
        SegmentHeader { id: ID, number: 1, first: 1, salt: SALT, generation: 1, chain: 0, is_compressed: true };
    let mut bytes = header.encode().to_vec();
    let rest = &rest[..rest.len().min(blocks::BLOCK as usize) / 8 * 8];
    if kind & 1 == 0 || rest.len() < format::FRAME_HEADER {
        bytes.extend_from_slice(rest);
    } else {
        blocks::encode(SALT, 0, rest, None, &mut bytes);
        let (table, table_crc) = blocks::encode_table(SALT, &[format::SEGMENT_HEADER as u32, bytes.len() as u32]);
        let summary = format::Summary {
            number: 1,
            first: 1,
            last: u64::from(kind >> 1) + 1,
            end: (format::SEGMENT_HEADER + rest.len()) as u64,
            salt: SALT,
            anchors: 0,
            blob: 0,
            chain: 0,
            generation: 1,
            anchors_crc: 0,
            blob_crc: 0,
            blocks: 1,
            table_crc,
        };
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(&summary.encode_end());
    }
    let directory = MemoryDirectory::default();
    let file = directory.create(&format::segment_name(1, 1));
    file.and_then(|file| file.write_at(&bytes, 0)).expect("there is room");
    let mut visited = Vec::new();
    let opened = open(&directory, 0, &mut |number, content| visited.push((number, content.to_vec())));
    match opened {
        Ok(opened) => {
            let log = &opened.log;
            (1..=log.last().min(300)).for_each(|number| check_record(log, number, &visited));
            log.check_segment(1, &mut |_, _| {}, &mut |_, _| {}, &mut |_| true).expect("checked");
        }
        Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
}

fn header() -> [u8; format::SEGMENT_HEADER] {
    SegmentHeader { id: ID, number: 1, first: 1, salt: SALT, generation: 0, chain: 0, is_compressed: false }.encode()
}

/// Corrects the checksums of everything that looks like a frame header, and sets its magic.
fn put_right(bytes: &mut [u8]) {
    let Some(frames) = bytes.get_mut(format::SEGMENT_HEADER..) else { return };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&SALT.to_le_bytes());
    if let Some(frame) = frames.get_mut(..format::FRAME_HEADER) {
        frame[..4].copy_from_slice(&format::FRAME_MAGIC);
        hasher.update(&frame[8..]);
        frame[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

fn check(segment: &[u8], tail: &[u8], synced: u64) {
    let directory = MemoryDirectory::default();
    let write = |name: &str, bytes: &[u8]| {
        directory.create(name).and_then(|file| file.write_at(bytes, 0)).expect("there is room");
    };
    write(&format::segment_name(1, 0), segment);
    write("tail", tail);
    let mut visited = Vec::new();
    let opened = open(&directory, synced, &mut |number, content| visited.push((number, content.to_vec())));
    match opened {
        Ok(opened) => check_opened(opened, &visited, &directory),
        Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
}

fn open(directory: &MemoryDirectory, synced: u64, visit: &mut dyn FnMut(u64, &[u8])) -> Result<Opened, Error> {
    let options = Options { cache_size: 0, ..Options::default() };
    Log::open(Arc::new(directory.clone()), ID, &options, Known { synced }, 0, visit)
}

fn check_opened(opened: Opened, visited: &[(u64, Vec<u8>)], directory: &MemoryDirectory) {
    let log = &opened.log;
    assert!(visited.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(opened.damage.is_some(), opened.appender.is_none());
    // A frame may claim billions of records.
    let last = log.last().min(1000);
    for number in 1..=last {
        check_record(log, number, visited);
    }
    for segment in log.segments() {
        log.check_segment(segment.number, &mut |_, _| {}, &mut |_, _| {}, &mut |_| true).expect("checked");
    }
    if let Some(mut appender) = opened.appender {
        let mut group = Group::default();
        group.begin(log.last() + 1);
        group.push(&[b"more"]);
        appender.commit(&mut group, true).expect("committed");
        let count = visited.len() + 1;
        appender.close();
        let mut again = 0;
        open(directory, 0, &mut |_, _| again += 1).expect("what was sound is");
        assert_eq!(again, count);
    }
}

/// Every way to read a record returns what was scanned, or nothing.
fn check_record(log: &Log, number: u64, visited: &[(u64, Vec<u8>)]) {
    let mut pages = [(); 4].map(|()| Page::default());
    let [forward, backward, one, many] = &mut pages;
    let read = [
        log.read(number..number + 1, 0, 1, forward),
        log.read_backward(number..number + 1, 0, 1, backward),
        log.read_one(number, one),
        log.read_many(&[number], 0, many),
    ];
    for (read, page) in read.iter().zip(&pages) {
        match read {
            Ok(()) => assert_eq!(page.records.len(), 1),
            Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error:?}"),
        }
        if let Ok(index) = visited.binary_search_by_key(&number, |visited| visited.0) {
            assert!(page.contents().eq([(number, visited[index].1.as_slice())]));
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

    #[test]
    fn logs_of_the_corpus_are_read_or_refused() {
        replay::replay(ROOT, "log", log);
    }

    /// A valid log of two groups, and its checkpoint.
    fn sound() -> (Vec<u8>, Vec<u8>) {
        let mut bytes = header().to_vec();
        let (mut chain, mut last_frame, mut group) = (0, 0, Group::default());
        for contents in [[b"one".as_slice(), b"two"], [b"three", b""]] {
            group.begin(group.next().max(1));
            contents.iter().for_each(|content| group.push(&[content]));
            let (frame, crc) = group.with_frame((SALT, 0, chain), None, <[u8]>::to_vec);
            last_frame = bytes.len() as u64;
            bytes.extend_from_slice(&frame);
            chain = crc;
        }
        let tail = format::TailFile {
            id: ID,
            segment: 1,
            salt: SALT,
            offset: bytes.len() as u64,
            frame: last_frame,
            next: 5,
            synced: 4,
            generation: 0,
            chain,
            anchors: vec![crate::anchors::Anchor { number: 0, offset: 104 }],
            blob: b"blob".to_vec(),
        };
        (bytes, tail.encode())
    }

    fn input(kind: u8, tail: &[u8], segment: &[u8]) -> Vec<u8> {
        let mut padded = tail.to_vec();
        padded.resize(usize::from(kind >> 2) * 8, 0);
        [&[kind], padded.as_slice(), segment].concat()
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let (segment, tail) = sound();
        check(&segment, &tail, 4);
        check(&segment, &tail, 9);
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for round in 0..3000 {
            let (mut segment, mut tail) = (segment.clone(), tail.clone());
            for _ in 0..random(4) {
                let at = random(segment.len());
                segment[at] = random(256) as u8;
            }
            segment.truncate(segment.len() - random(4) / 3 * random(100));
            let extra = random(300);
            segment.extend((0..extra).map(|_| random(256) as u8));
            let at = random(tail.len());
            tail[at] ^= (random(3) / 2) as u8;
            check(&segment, &tail, random(6) as u64);
            #[cfg(feature = "zstd")]
            compressed(&[&[round as u8], &segment[64..]].concat());
            log(&input(round as u8, &tail, &segment[round % 2 * 64..]));
        }
        log(&[]);
    }
}

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::anchors::{self, Anchor};
use crate::format::{self, LAST_FLAG, RECORD_HEADER};
use crate::log::Shared;
use crate::read::Unit;
use crate::segment::Segment;
use crate::{Error, Log, Page, Result, cache, walk};

/// The number of records that are located together.
const AT_ONCE: usize = 32;

/// The size of a cache line.
const LINE: usize = 64;

/// At most this many cache lines of a record are touched; the processor prefetches the rest.
const MOST_LINES: usize = 8;

impl Log {
    /// Appends records to the page, in the given order, which may be any, until `bytes` bytes were appended, but at
    /// least one record. Like [`read_one`](Self::read_one) of each, but faster.
    ///
    /// It stops before the first that does not exist.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the first is damaged. If another one is, only those before it are appended.
    pub fn read_many(&self, records: &[u64], bytes: usize, page: &mut Page) -> Result<()> {
        let begin = page.records.len();
        let most = page.bytes.len().saturating_add(bytes);
        let mut finder = Finder { log: self, segment: None, block: None };
        for some in records.chunks(AT_ONCE) {
            let mut near: [Option<Near>; AT_ONCE] = [const { None }; AT_ONCE];
            for (near, &record) in near.iter_mut().zip(some) {
                *near = finder.find(record)?;
            }
            let near = &near[..some.len()];
            touch(near.iter().flatten().map(|near| (&near.block, near.at)));
            let mut found: [Option<Found<'_>>; AT_ONCE] = [const { None }; AT_ONCE];
            for ((found, near), &record) in found.iter_mut().zip(near).zip(some) {
                *found = near.as_ref().and_then(|near| near.go_to(record));
            }
            touch(found.iter().flatten().flat_map(Found::lines));
            let len: usize = found.iter().flatten().map(Found::len).sum();
            page.bytes.reserve(len.min(bytes));
            page.records.reserve(some.len());
            for (found, &record) in found.iter().zip(some) {
                if page.bytes.len() >= most && page.records.len() > begin {
                    return Ok(());
                }
                if let Some(content) = found.as_ref().and_then(|found| found.content(record)) {
                    let start = page.bytes.len();
                    page.bytes.extend_from_slice(content);
                    page.records.push((record, start..page.bytes.len()));
                    continue;
                }
                let before = page.records.len();
                match self.read_one(record, page) {
                    Ok(()) if page.records.len() > before => {}
                    Err(error) if before == begin => return Err(error),
                    Err(Error::Corrupt { .. }) | Ok(()) => return Ok(()),
                    Err(other) => return Err(other),
                }
            }
        }
        Ok(())
    }
}

/// Touches a byte of each of these places. Cache misses are then served in parallel, not one after the other when the
/// bytes are needed.
fn touch<'a>(places: impl Iterator<Item = (&'a Bytes, usize)>) {
    let bytes = places.map(|(block, at)| block.get(at).copied().unwrap_or_default());
    std::hint::black_box(bytes.fold(0_u8, u8::wrapping_add));
}

/// Finds records in cached blocks.
struct Finder<'a> {
    log: &'a Log,
    /// The segment of the previous record.
    segment: Option<InSegment>,
    /// The last block used.
    block: Option<(u64, Bytes)>,
}

/// A segment, as it was when first used.
struct InSegment {
    segment: Arc<Segment>,
    records: Range<u64>,
    /// The end of the last whole block.
    end: u64,
    unit: Unit,
    /// Its anchors, if they are cached.
    anchors: Option<Arc<Vec<Anchor>>>,
}

/// A block that has a record, and the start of that record or of one before it.
struct Near {
    block: Bytes,
    /// The offset of the block in the segment.
    base: u64,
    at: usize,
    number: u64,
}

/// A record in a block that has all of it.
struct Found<'a> {
    block: &'a Bytes,
    /// The offset of the content in the block.
    start: usize,
    flags_len: u32,
    crc: u32,
}

impl Found<'_> {
    fn len(&self) -> usize {
        walk::content_len(self.flags_len).unwrap_or_default()
    }

    /// A place in each of the first cache lines of the content.
    fn lines(&self) -> impl Iterator<Item = (&Bytes, usize)> {
        (self.start..self.start + self.len().min(MOST_LINES * LINE)).step_by(LINE).map(|at| (self.block, at))
    }

    /// The content, if it is valid.
    fn content(&self, record: u64) -> Option<&[u8]> {
        let len = walk::content_len(self.flags_len)?;
        let content = self.block.get(self.start..self.start + len)?;
        (self.crc == format::record_crc(record, self.flags_len, content)).then_some(content)
    }
}

impl Finder<'_> {
    /// `None` if it is not in a whole cached block.
    fn find(&mut self, record: u64) -> Result<Option<Near>> {
        let log = &self.log.0;
        if log.is_memory || record == 0 || record > log.last() {
            return Ok(None);
        }
        if !self.segment.as_ref().is_some_and(|segment| segment.records.contains(&record)) {
            (self.segment, self.block) = (log.segment_of(record).map(|segment| InSegment::new(log, segment)), None);
        }
        let Some(InSegment { segment, records, end, unit, anchors }) = &self.segment else { return Ok(None) };
        let place = record - records.start;
        let anchor = match anchors {
            Some(anchors) => anchors::at_or_before(anchors, place),
            None => segment.with_anchors(log, |anchors| anchors::at_or_before(anchors, place))?,
        };
        let Some(anchor) = anchor else { return Ok(None) };
        let number = unit.block(u64::from(anchor.offset));
        if !segment.header.is_compressed && unit.start(number + 1) > *end {
            return Ok(None);
        }
        let block = match self.block.take().filter(|(held, _)| *held == number) {
            Some((_, block)) => block,
            None => match cache::block(segment.key(log), number) {
                Some(block) => block,
                None => return Ok(None), // cached when it is read on its own
            },
        };
        self.block = Some((number, block.clone()));
        let base = unit.start(number);
        let at = (u64::from(anchor.offset) - base) as usize;
        Ok(Some(Near { block, base, at, number: records.start + u64::from(anchor.number) }))
    }
}

impl InSegment {
    fn new(log: &Shared, segment: Arc<Segment>) -> Self {
        let (next, end) = {
            let state = segment.state();
            (state.next, state.end)
        };
        let records = segment.header.first..next;
        let anchors = cache::anchors(segment.key(log));
        InSegment { unit: Unit::of(&segment), segment, records, end, anchors }
    }
}

impl Near {
    /// Walks to a record. `None` if it is not completely in this block.
    fn go_to(&self, record: u64) -> Option<Found<'_>> {
        let Near { block, base, .. } = self;
        let (mut at, mut number) = (self.at, self.number);
        loop {
            let (crc, flags_len) = (format::u32_at(block, at)?, format::u32_at(block, at + 4)?);
            let start = at + RECORD_HEADER;
            if number == record {
                return Some(Found { block, start, flags_len, crc });
            }
            at = start + walk::content_len(flags_len)?;
            if flags_len & LAST_FLAG != 0 {
                at = (format::align(base + at as u64) - base) as usize + format::FRAME_HEADER;
            }
            number += 1;
        }
    }
}

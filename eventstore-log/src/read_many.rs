use std::sync::Arc;

use bytes::Bytes;

use crate::format::{self, LAST_FLAG, RECORD_HEADER};
use crate::read::Unit;
use crate::segment::Segment;
use crate::{Error, Log, Page, Result, anchors, cache, walk};

/// So many records are found before their contents are copied: the processor waits for several of them at once.
const AT_ONCE: usize = 32;

impl Log {
    /// Appends records to the page, in the order of their numbers here, which may be any: as [`read_one`](Self::read_one) of
    /// each, but faster.
    ///
    /// It ends before the first that is not there.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the first is damaged. If another one is, those before it are appended.
    pub fn read_many(&self, records: &[u64], page: &mut Page) -> Result<()> {
        let begin = page.records.len();
        let mut finder = Finder { log: self, segment: None, block: None };
        for some in records.chunks(AT_ONCE) {
            let mut found: [Option<Found>; AT_ONCE] = [const { None }; AT_ONCE];
            for (found, &record) in found.iter_mut().zip(some) {
                *found = finder.find(record)?;
            }
            for (found, &record) in found.iter().zip(some) {
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

/// Looks for records in blocks of the cache.
struct Finder<'a> {
    log: &'a Log,
    /// That of the record before.
    segment: Option<Arc<Segment>>,
    /// The block that was used last.
    block: Option<(u64, Bytes)>,
}

/// A record in a block that has all of it.
struct Found {
    block: Bytes,
    /// Where the content begins in it.
    start: usize,
    flags_len: u32,
    crc: u32,
}

impl Found {
    /// The content, if it is sound.
    fn content(&self, record: u64) -> Option<&[u8]> {
        let len = walk::content_len(self.flags_len)?;
        let content = self.block.get(self.start..self.start + len)?;
        (self.crc == format::record_crc(record, self.flags_len, content)).then_some(content)
    }
}

impl Finder<'_> {
    /// `None` if it is not in a whole block, or does not lie in one alone.
    fn find(&mut self, record: u64) -> Result<Option<Found>> {
        let log = &self.log.0;
        if log.is_memory || record == 0 || record > log.last() {
            return Ok(None);
        }
        let is_in = |segment: &Arc<Segment>| segment.header.first <= record && record < segment.state().next;
        if !self.segment.as_ref().is_some_and(is_in) {
            (self.segment, self.block) = (log.segment_of(record), None);
        }
        let Some(segment) = &self.segment else { return Ok(None) };
        let first = segment.header.first;
        let end = segment.state().end;
        let anchor = segment.with_anchors(log, |anchors| anchors::at_or_before(anchors, record - first))?;
        let Some(anchor) = anchor else { return Ok(None) };
        let unit = Unit::of(segment);
        let number = unit.block(u64::from(anchor.offset));
        if !segment.header.is_compressed && unit.start(number + 1) > end {
            return Ok(None); // it is not whole yet
        }
        let block = match self.block.take().filter(|(held, _)| *held == number) {
            Some((_, block)) => block,
            None => match cache::block(segment.key(log), number) {
                Some(block) => block,
                None => return Ok(None), // read and kept when it is read alone
            },
        };
        let base = unit.start(number);
        let at = (u64::from(anchor.offset) - base) as usize;
        let found = in_block(&block, at, first + u64::from(anchor.number), record, base);
        self.block = Some((number, block));
        Ok(found)
    }
}

/// Goes from the record with this number to another one. All of them are in the block, which begins at `base`.
fn in_block(block: &Bytes, mut at: usize, mut number: u64, record: u64, base: u64) -> Option<Found> {
    loop {
        let (crc, flags_len) = (format::u32_at(block, at)?, format::u32_at(block, at + 4)?);
        let start = at + RECORD_HEADER;
        if number == record {
            return Some(Found { block: block.clone(), start, flags_len, crc });
        }
        at = start + walk::content_len(flags_len)?;
        if flags_len & LAST_FLAG != 0 {
            at = (format::align(base + at as u64) - base) as usize + format::FRAME_HEADER;
        }
        number += 1;
    }
}

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::anchors::BLOCK;
use crate::format::{self, FRAME_HEADER, LAST_FLAG, RECORD_HEADER, SEGMENT_HEADER};
use crate::log::Shared;
use crate::segment::{Place, Segment};
use crate::walk::{self, Step, Walk};
use crate::{Error, Log, Result, anchors, blocks, cache};

/// Records that were read, in a reusable buffer.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Bytes of the log.
    pub bytes: Vec<u8>,
    /// The number of each record, and where its content is in the bytes.
    pub records: Vec<(u64, Range<usize>)>,
}

impl Page {
    /// The contents, in the order of the records.
    pub fn contents(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.records.iter().map(|(number, range)| (*number, &self.bytes[range.clone()]))
    }

    /// Empties it and keeps its capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }
}

/// Longer records are not read by blocks.
const MOST_BY_BLOCKS: usize = 128 << 10;

impl Log {
    /// Reads records of a range in ascending order and appends them to the page. Stops at about `bytes` bytes or
    /// `records` records, but after at least one if there is one.
    ///
    /// It may stop earlier, at the end of a segment. Every appended record was verified.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the first record is damaged. If a later one is, only the records before it are appended.
    pub fn read(&self, range: Range<u64>, bytes: usize, records: usize, page: &mut Page) -> Result<()> {
        let Some((range, segment)) = self.first_segment(range) else { return Ok(()) };
        let end = range.end.min(range.start.saturating_add(records as u64)).min(segment.state().next);
        if range.start >= end {
            return Ok(());
        }
        let place = segment.place(&self.0, range.start, end)?;
        Reading { segment: &segment, place, page }.read_ascending(range.start..end, bytes)
    }

    /// Like [`read`](Self::read), in descending order.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn read_backward(&self, range: Range<u64>, bytes: usize, records: usize, page: &mut Page) -> Result<()> {
        let start = range.start.max(1);
        let end = range.end.min(self.last() + 1);
        if start >= end || records == 0 {
            return Ok(());
        }
        let newest = end - 1;
        let Some(segment) = self.0.segment_of(newest) else { return Ok(()) };
        let start = start.max(segment.header.first).max(end.saturating_sub(records as u64));
        let (mut from, near) = self.first_that_fits(&segment, start..end, bytes)?;
        loop {
            let mut place = segment.place(&self.0, from, end)?;
            place.end = place.end.min(near);
            let reading = Reading { segment: &segment, place, page };
            let Err(damaged) = reading.read_descending(from..end)? else { return Ok(()) };
            // The records after the damage may be readable from the next anchor on.
            match self.anchor_behind(&segment, damaged)?.filter(|next| *next <= newest) {
                Some(next) => from = next,
                None => return Err(Error::corrupt(newest, damage_in(&segment))),
            }
        }
    }

    /// Appends one record to the page.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is damaged. If there is no record with this number, nothing is appended; that is not an error.
    pub fn read_one(&self, record: u64, page: &mut Page) -> Result<()> {
        let Some((range, segment)) = self.first_segment(record..record.saturating_add(1)) else { return Ok(()) };
        if !range.contains(&record) {
            return Ok(());
        }
        if !self.0.is_memory && self.read_by_blocks(&segment, record, page)? {
            return Ok(());
        }
        let (start, index) = (page.bytes.len(), page.records.len());
        self.read(range, 0, 1, page)?;
        // Keep only the content of what was read.
        if let Some((_, content)) = page.records.get_mut(index) {
            page.bytes.copy_within(content.clone(), start);
            *content = start..start + content.len();
            page.bytes.truncate(content.end);
        }
        Ok(())
    }

    /// The existing part of a range, and the segment in which it begins.
    fn first_segment(&self, range: Range<u64>) -> Option<(Range<u64>, Arc<Segment>)> {
        let range = range.start.max(1)..range.end.min(self.last() + 1);
        if range.is_empty() {
            return None;
        }
        let segment = self.0.segment_of(range.start)?;
        Some((range, segment))
    }

    /// The first record of a range from which all following ones fit into this many bytes; the last one in any case.
    /// And an upper bound for the start of the last one.
    fn first_that_fits(&self, segment: &Segment, range: Range<u64>, bytes: usize) -> Result<(u64, u64)> {
        let first = segment.header.first;
        let content_end = segment.state().end;
        segment.with_anchors(&self.0, |anchors| {
            let newest = range.end - 1;
            let own = anchors::at_or_before(anchors, newest - first).map_or(0, |anchor| u64::from(anchor.offset));
            let behind = anchors::at_or_behind(anchors, range.end - first).map_or(content_end, |a| u64::from(a.offset));
            // Nothing after the newest record is read: it lies within a block from its anchor on, or is large.
            let end = behind.min(own + BLOCK);
            let least = end.saturating_sub((bytes as u64).max(BLOCK));
            let index = anchors.partition_point(|anchor| u64::from(anchor.offset) < least);
            let fits = anchors.get(index).map_or(newest, |anchor| first + u64::from(anchor.number));
            (fits.min(newest).max(range.start), end)
        })
    }

    fn anchor_behind(&self, segment: &Segment, record: u64) -> Result<Option<u64>> {
        let first = segment.header.first;
        segment.with_anchors(&self.0, |anchors| {
            anchors::at_or_behind(anchors, record + 1 - first).map(|anchor| first + u64::from(anchor.number))
        })
    }

    /// Reads a record through the cache. `false` if it is too long or too new for that, or seems to be damaged.
    fn read_by_blocks(&self, segment: &Segment, record: u64, page: &mut Page) -> Result<bool> {
        let place = segment.place(&self.0, record, record + 1)?;
        let unit = Unit::of(segment);
        let end = segment.state().end;
        let end = if segment.header.is_compressed { end } else { end / unit.size * unit.size };
        let mut blocks = Blocks { log: &self.0, segment, place: &place, unit, end, held: None };
        let start = page.bytes.len();
        if blocks.find(place.number, place.start, record, &mut page.bytes)? {
            page.records.push((record, start..page.bytes.len()));
            return Ok(true);
        }
        page.bytes.truncate(start);
        Ok(false)
    }
}

/// One read of records of a segment.
struct Reading<'a> {
    segment: &'a Segment,
    place: Place,
    page: &'a mut Page,
}

impl Reading<'_> {
    fn read_ascending(mut self, range: Range<u64>, bytes: usize) -> Result<()> {
        let (base, index) = (self.page.bytes.len(), self.page.records.len());
        let mut end = base;
        let mut walk = self.begin(bytes)?;
        while walk.number() < range.end {
            let step = walk.step(&self.page.bytes[base..], range.start);
            match step {
                Step::Record { number, .. } if number < range.start => {}
                Step::Record { number, content, is_intact: true } => {
                    end = base + content.end;
                    self.page.records.push((number, base + content.start..end));
                }
                Step::Short(len) if self.page.records.len() == index && self.read_up_to(base, len)? => {}
                Step::Short(_) if self.page.records.len() > index => break,
                _ => {
                    self.page.bytes.truncate(end);
                    let is_empty = self.page.records.len() == index;
                    let damaged = Error::corrupt(range.start, damage_in(self.segment));
                    return if is_empty { Err(damaged) } else { Ok(()) };
                }
            }
        }
        self.page.bytes.truncate(end);
        Ok(())
    }

    /// Reads the records of the range that are readable without a gap before its end. If the last one cannot be
    /// reached, the error is the first number at which the walk failed.
    fn read_descending(mut self, range: Range<u64>) -> Result<Result<(), u64>> {
        let (base, index) = (self.page.bytes.len(), self.page.records.len());
        let newest = range.end - 1;
        let mut walk = self.begin(usize::MAX)?;
        let mut damaged = None;
        while walk.number() < range.end {
            let at = walk.number();
            let step = walk.step(&self.page.bytes[base..], range.start);
            match step {
                Step::Record { number, .. } if number < range.start => {}
                Step::Record { number, content, is_intact: true } => {
                    self.page.records.push((number, base + content.start..base + content.end));
                }
                Step::Record { number, .. } => {
                    damaged.get_or_insert(number);
                    self.page.records.truncate(index);
                }
                Step::Short(len) if self.read_up_to(base, len)? => {}
                _ => {
                    damaged.get_or_insert(at);
                    break;
                }
            }
        }
        if self.page.records[index..].last().is_some_and(|(number, _)| *number == newest) {
            self.page.records[index..].reverse();
            return Ok(Ok(()));
        }
        self.page.records.truncate(index);
        self.page.bytes.truncate(base);
        Ok(Err(damaged.unwrap_or(newest)))
    }

    /// Reads this many bytes if they exist, and possibly some before them.
    fn begin(&mut self, bytes: usize) -> Result<Walk> {
        let there = self.place.end.saturating_sub(self.place.start);
        let wanted = (bytes as u64).saturating_add(BLOCK);
        self.fetch(self.place.start, wanted.min(there) as usize)?;
        Ok(Walk::new(self.place.number, self.place.start))
    }

    /// Reads on, up to this many bytes in all, unless the content ends before.
    fn read_up_to(&mut self, base: usize, len: usize) -> Result<bool> {
        let here = self.page.bytes.len() - base;
        let at = self.place.start + here as u64;
        if self.place.start + len as u64 > self.segment.state().end {
            return Ok(false);
        }
        self.fetch(at, len - here)?;
        Ok(self.page.bytes.len() - base == len)
    }

    fn fetch(&mut self, at: u64, len: usize) -> Result<()> {
        let result = self.place.file.read_at(&mut self.page.bytes, at, len);
        result.map(drop).map_err(|error| Error::io("read", &self.segment.name, error))
    }
}

fn damage_in(segment: &Segment) -> String {
    format!("it is damaged, or cannot be found, in {:?}", segment.name)
}

/// How a segment is divided into cached blocks: the offset of the first, and their size.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    base: u64,
    size: u64,
}

impl Unit {
    /// The cached blocks of a compressed segment are its compressed blocks.
    pub(crate) fn of(segment: &Segment) -> Self {
        match segment.header.is_compressed {
            true => Unit { base: SEGMENT_HEADER as u64, size: blocks::BLOCK },
            false => Unit { base: 0, size: cache::BLOCK },
        }
    }

    pub(crate) fn block(self, at: u64) -> u64 {
        at.saturating_sub(self.base) / self.size
    }

    pub(crate) fn start(self, block: u64) -> u64 {
        self.base + block * self.size
    }
}

/// Reads a segment in whole blocks.
struct Blocks<'a> {
    log: &'a Shared,
    segment: &'a Segment,
    place: &'a Place,
    unit: Unit,
    /// The end of the last whole block.
    end: u64,
    /// The last block read.
    held: Option<(u64, Bytes)>,
}

impl Blocks<'_> {
    /// Appends the content of a record, walking from this one on.
    fn find(&mut self, mut number: u64, mut at: u64, record: u64, out: &mut Vec<u8>) -> Result<bool> {
        let start = out.len();
        loop {
            if !self.copy(at, RECORD_HEADER, out)? {
                return Ok(false);
            }
            let (crc, flags_len) = (format::u32_at(out, start), format::u32_at(out, start + 4));
            out.truncate(start);
            let Some(flags_len) = flags_len else { return Ok(false) };
            let Some(len) = walk::content_len(flags_len) else { return Ok(false) };
            at += RECORD_HEADER as u64;
            if number == record {
                return self.copy_content(at, len, (number, flags_len, crc), out);
            }
            at += len as u64;
            if flags_len & LAST_FLAG != 0 {
                at = format::align(at) + FRAME_HEADER as u64;
            }
            number += 1;
        }
    }

    fn copy_content(
        &mut self,
        at: u64,
        len: usize,
        (number, flags_len, crc): (u64, u32, Option<u32>),
        out: &mut Vec<u8>,
    ) -> Result<bool> {
        let start = out.len();
        if len > MOST_BY_BLOCKS || !self.copy(at, len, out)? {
            return Ok(false);
        }
        if crc == Some(format::record_crc(number, flags_len, &out[start..])) {
            return Ok(true);
        }
        // The cached blocks may be the result of a bad read. Only the file counts.
        for block in self.unit.block(self.place.start)..=self.unit.block(at + len as u64) {
            cache::forget_block(self.segment.key(self.log), block);
        }
        Ok(false)
    }

    /// Appends bytes of the segment, if all of them are in whole blocks.
    fn copy(&mut self, mut at: u64, mut len: usize, out: &mut Vec<u8>) -> Result<bool> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.end) {
            return Ok(false);
        }
        while len > 0 {
            let number = self.unit.block(at);
            let within = (at - self.unit.start(number)) as usize;
            let Some(block) = self.block(number)? else { return Ok(false) };
            let part = &block[within..][..len.min(block.len() - within)];
            out.extend_from_slice(part);
            at += part.len() as u64;
            len -= part.len();
        }
        Ok(true)
    }

    fn block(&mut self, number: u64) -> Result<Option<Bytes>> {
        if let Some((held, block)) = &self.held
            && *held == number
        {
            return Ok(Some(block.clone()));
        }
        let key = self.segment.key(self.log);
        let block = match cache::block(key, number) {
            Some(block) => block,
            None => {
                let start = self.unit.start(number);
                let len = self.unit.size.min(self.end - start) as usize;
                let mut bytes = Vec::with_capacity(len);
                let count = self.place.file.read_at(&mut bytes, start, len);
                count.map_err(|error| Error::io("read", &self.segment.name, error))?;
                if bytes.len() != len {
                    return Ok(None);
                }
                let block = Bytes::from(bytes);
                cache::put_block(key, number, block.clone());
                block
            }
        };
        self.held = Some((number, block.clone()));
        Ok(Some(block))
    }
}

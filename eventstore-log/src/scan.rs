//! Reads a segment frame by frame and trusts nothing in it.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crc32fast::Hasher;

use crate::anchors::{Anchor, Placer};
use crate::format::{
    self, FRAME_HEADER, FRAME_MAGIC, FrameHeader, LAST_FLAG, RECORD_HEADER, SEGMENT_HEADER, SegmentHeader, TailFile,
};
use crate::{Error, File, Result, walk};

/// The number of bytes read at once, unless a frame has more.
pub(crate) const CHUNK: usize = 1 << 20;

/// A window that moves over a file.
pub(crate) struct Window {
    file: Arc<dyn File>,
    name: String,
    len: u64,
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    /// A window over the first `len` bytes of a file.
    pub(crate) fn new(file: Arc<dyn File>, name: &str, len: u64) -> Self {
        Window { file, name: name.to_owned(), len, bytes: Vec::new(), start: 0 }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The bytes from this offset on. There are fewer only at the end.
    pub(crate) fn get(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        let end = at.saturating_add(len as u64).min(self.len);
        if at >= end {
            return Ok(&[]);
        }
        let here = self.start..self.start + self.bytes.len() as u64;
        if at < here.start || end > here.end {
            self.slide(at, (end - at) as usize, here)?;
        }
        let start = (at - self.start) as usize;
        let end = ((end - self.start) as usize).min(self.bytes.len());
        Ok(self.bytes.get(start..end).unwrap_or_default())
    }

    fn slide(&mut self, at: u64, len: usize, here: Range<u64>) -> Result<()> {
        if here.contains(&at) {
            self.bytes.drain(..(at - here.start) as usize);
        } else {
            self.bytes.clear();
        }
        self.start = at;
        let from = at + self.bytes.len() as u64;
        let wanted = len.max(CHUNK).min((self.len - at) as usize) - self.bytes.len();
        let read = self.file.read_at(&mut self.bytes, from, wanted);
        read.map(drop).map_err(|error| self.cannot_read(error))
    }

    fn cannot_read(&self, error: io::Error) -> Error {
        Error::io("read", &self.name, error)
    }

    /// The offset after the last nonzero byte in `from..to`, if there is one.
    pub(crate) fn nonzero_end(&mut self, from: u64, to: u64) -> Result<Option<u64>> {
        let (mut at, mut end) = (from, None);
        while at < to {
            let bytes = self.get(at, CHUNK.min((to - at) as usize))?;
            if bytes.is_empty() {
                break;
            }
            // Comparing with zeros is much faster than searching for the last nonzero byte, which is rare.
            if bytes.iter().any(|byte| *byte != 0) {
                end = bytes.iter().rposition(|byte| *byte != 0).map(|index| at + index as u64 + 1);
            }
            at += bytes.len() as u64;
        }
        Ok(end)
    }
}

/// Scans the frames of a segment.
pub(crate) struct Scanner {
    pub(crate) window: Window,
    salt: u64,
    /// The first record of the segment.
    first: u64,
    /// The end of what was scanned: the offset of the next frame.
    pub(crate) at: u64,
    /// The start of the previous frame; 0 if the segment has none.
    pub(crate) frame_at: u64,
    /// The number of the next record.
    pub(crate) next: u64,
    /// The checksum of the header of the previous frame.
    pub(crate) chain: u32,
    /// All records of the segment have smaller numbers.
    pub(crate) limit: u64,
    placer: Placer,
    pub(crate) anchors: Vec<Anchor>,
}

/// A scanned frame.
pub(crate) struct Scanned {
    pub(crate) at: u64,
    pub(crate) header: FrameHeader,
}

/// Called with the first lost record and what is wrong.
pub(crate) type Lost<'a> = &'a mut dyn FnMut(u64, String);
/// Called with an intact record and its content.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// A record of a frame, before verification.
struct Raw {
    number: u64,
    /// The offset in the frame.
    at: usize,
    content: Range<usize>,
    is_intact: bool,
    is_last: bool,
}

impl Scanner {
    /// A scanner that starts at the first frame of the segment.
    pub(crate) fn new(file: Arc<dyn File>, name: &str, header: &SegmentHeader, len: u64) -> Self {
        Scanner {
            window: Window::new(file, name, len),
            salt: header.salt,
            first: header.first,
            at: SEGMENT_HEADER as u64,
            frame_at: 0,
            next: header.first,
            chain: header.chain,
            limit: u64::MAX,
            placer: Placer::default(),
            anchors: Vec::new(),
        }
    }

    /// Continues at a checkpoint.
    pub(crate) fn go_to(&mut self, tail: &TailFile) {
        (self.at, self.frame_at, self.next, self.chain) = (tail.offset, tail.frame, tail.next, tail.chain);
        self.placer = Placer::behind(&tail.anchors);
        self.anchors.clone_from(&tail.anchors);
    }

    fn header_at(&mut self, at: u64) -> Result<Option<FrameHeader>> {
        let (salt, len) = (self.salt, self.window.len);
        let header = FrameHeader::decode(self.window.get(at, FRAME_HEADER)?, salt);
        Ok(header.filter(|header| at + (FRAME_HEADER as u64) + u64::from(header.len) <= len))
    }

    /// The next frame, if it is completely valid. Visits its records.
    pub(crate) fn frame(&mut self, visit: Visit<'_>) -> Result<Option<Scanned>> {
        let at = self.at;
        let Some(header) = self.header_at(at)?.filter(|header| self.follows(header)) else { return Ok(None) };
        let len = FRAME_HEADER + header.len as usize;
        let frame = self.window.get(at, len)?;
        if frame.len() < len || !is_sound(frame, &header) {
            return Ok(None);
        }
        for record in records(frame, &header, false) {
            visit(record.number, &frame[record.content]);
            self.anchors.extend(self.placer.place(record.number - self.first, at + record.at as u64));
        }
        self.pass(&header);
        Ok(Some(Scanned { at, header }))
    }

    fn follows(&self, header: &FrameHeader) -> bool {
        header.first == self.next && header.chain == self.chain
    }

    fn pass(&mut self, header: &FrameHeader) {
        self.frame_at = self.at;
        self.at += header.frame_len();
        self.next = header.next();
        self.chain = header.crc;
    }

    /// Continues where [`frame`](Self::frame) stopped, over the damage, to the end of a frame whose header is intact.
    /// There may be none. `go_on` is called during the search; `false` ends it as if there were none.
    pub(crate) fn damaged(
        &mut self,
        visit: Visit<'_>,
        lost: Lost<'_>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool> {
        let limit = self.limit;
        let here = self.header_at(self.at)?.filter(|header| self.follows(header) && header.next() <= limit);
        let header = match here {
            Some(header) => header,
            None => {
                // After a gap, the checksum of the previous frame is unknown.
                let next = self.next;
                let fits = |header: &FrameHeader| header.first >= next && header.next() <= limit;
                let Some((at, header)) = self.find_header(self.at + 8, &fits, go_on)? else { return Ok(false) };
                self.at = at;
                self.placer.force_next();
                lost(next, "its frame is missing or damaged".to_owned());
                header
            }
        };
        self.damaged_frame(&header, visit, lost)?;
        Ok(true)
    }

    /// Scans to the end, over any damage.
    pub(crate) fn rest(&mut self, visit: Visit<'_>, lost: Lost<'_>) -> Result<()> {
        loop {
            while self.frame(visit)?.is_some() {}
            if !self.damaged(visit, lost, &mut |_| true)? {
                return Ok(());
            }
        }
    }

    /// Visits the intact records of a frame whose header is intact.
    fn damaged_frame(&mut self, header: &FrameHeader, visit: Visit<'_>, lost: Lost<'_>) -> Result<()> {
        let len = FRAME_HEADER + header.len as usize;
        let (at, first) = (self.at, self.first);
        let frame = self.window.get(at, len)?;
        let mut end = header.first;
        let mut lost = |record, reason: &str| lost(record, reason.to_owned());
        let mut is_whole = true;
        for record in records(frame, header, true) {
            end = record.number + 1;
            if record.is_intact && record.is_last == (end == header.next()) {
                visit(record.number, &frame[record.content]);
                self.anchors.extend(self.placer.place(record.number - first, at + record.at as u64));
            } else {
                lost(record.number, "its checksum is wrong");
                is_whole = false;
                self.placer.force_next();
            }
        }
        if end < header.next() {
            lost(end, "it is cut off by damage before it");
            is_whole = false;
            self.placer.force_next();
        }
        if is_whole && !is_sound(frame, header) {
            lost(header.first, "its frame is damaged");
        }
        self.pass(header);
        Ok(())
    }

    fn find_header(
        &mut self,
        from: u64,
        fits: &dyn Fn(&FrameHeader) -> bool,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<(u64, FrameHeader)>> {
        let (mut found, len) = (None, self.window.len);
        self.headers_from(from, go_on, &mut |at, header| {
            if fits(header) && at + (FRAME_HEADER as u64) + u64::from(header.len) <= len {
                found = Some((at, header.clone()));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The highest record that was synced according to the frames from here on.
    pub(crate) fn synced_from(&mut self, from: u64) -> Result<u64> {
        let mut synced = 0;
        self.headers_from(from, &mut |_| true, &mut |_, header| {
            synced = synced.max(header.synced);
            ControlFlow::Continue(())
        })?;
        Ok(synced)
    }

    /// Finds valid frame headers of this segment, wherever they are from here on. `go_on` is called for each MiB.
    fn headers_from(
        &mut self,
        from: u64,
        go_on: &mut dyn FnMut(u64) -> bool,
        found: &mut dyn FnMut(u64, &FrameHeader) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut at = format::align(from);
        loop {
            let salt = self.salt;
            let bytes = self.window.get(at, CHUNK)?;
            if bytes.len() < FRAME_HEADER {
                return Ok(());
            }
            for (index, start) in bytes.chunks(8).enumerate() {
                if !start.starts_with(&FRAME_MAGIC) {
                    continue;
                }
                if let Some(header) = FrameHeader::decode(&bytes[8 * index..], salt)
                    && found(at + 8 * index as u64, &header).is_break()
                {
                    return Ok(());
                }
            }
            // A header may cross the end of these bytes.
            at += ((bytes.len() - FRAME_HEADER) / 8 + 1) as u64 * 8;
            if !go_on(at) {
                return Ok(());
            }
        }
    }
}

/// Whether the records of a frame match its header.
fn is_sound(frame: &[u8], header: &FrameHeader) -> bool {
    let (mut body, mut next, mut end, mut is_closed) = (Hasher::new(), header.first, FRAME_HEADER, false);
    for record in records(frame, header, true) {
        if !record.is_intact || is_closed {
            return false;
        }
        body.update(&frame[record.at..record.at + 4]);
        (next, end, is_closed) = (record.number + 1, record.content.end, record.is_last);
    }
    is_closed && next == header.next() && end == frame.len() && body.finalize() == header.body
}

/// The records of a frame, as far as their lengths can be followed. Without `verify`, all count as intact.
fn records(frame: &[u8], header: &FrameHeader, verify: bool) -> impl Iterator<Item = Raw> {
    let (mut at, mut number, end) = (FRAME_HEADER, header.first, header.next());
    std::iter::from_fn(move || {
        let flags_len = format::u32_at(frame, at + 4).filter(|_| number < end)?;
        let content = at + RECORD_HEADER..at + RECORD_HEADER + walk::content_len(flags_len)?;
        let bytes = frame.get(content.clone())?;
        let is_intact = !verify || format::u32_at(frame, at) == Some(format::record_crc(number, flags_len, bytes));
        let record = Raw { number, at, content: content.clone(), is_intact, is_last: flags_len & LAST_FLAG != 0 };
        (at, number) = (content.end, number + 1);
        Some(record)
    })
}

/// The anchors of a segment whose content ends here.
pub(crate) fn anchors_of(file: Arc<dyn File>, name: &str, header: &SegmentHeader, end: u64) -> Result<Vec<Anchor>> {
    let mut scanner = Scanner::new(file, name, header, end);
    scanner.rest(&mut |_, _| {}, &mut |_, _| {})?;
    Ok(scanner.anchors)
}

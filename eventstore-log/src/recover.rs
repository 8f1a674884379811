//! Opening a log: finds its end and removes what is after it.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::append::Tip;
use crate::blocks::{self, PlainFile};
use crate::checkpoint::read_tail;
use crate::copy::NEW;
use crate::cut::{self, Piece};
use crate::format::{
    self, FOOTER_END, FRAME_HEADER, FrameHeader, Head, SEGMENT_HEADER, SegmentHeader, Summary, TailFile,
};
use crate::log::Shared;
use crate::scan::{self, Scanned, Scanner, Visit, Window};
use crate::segment::{Segment, State};
use crate::{Appender, Directory, Error, File, Log, Options, Page, Result, anchors, codec};

/// What is known from other sources about how far the log was synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The log was synced at least up to this record; 0 if nothing is known.
    pub synced: u64,
}

/// An opened log.
#[derive(Debug)]
pub struct Opened {
    /// For reading and syncing.
    pub log: Log,
    /// For appending. `None` if there is damage.
    pub appender: Option<Appender>,
    /// The newest checkpoint, if there is one.
    pub tail: Option<Tail>,
    /// Synced data that is lost. If there is any, nothing may be appended.
    pub damage: Option<Damage>,
    /// What opening did.
    pub recovery: Recovery,
}

/// Synced data that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The first record that is lost.
    pub record: u64,
    /// What is wrong, and where.
    pub reason: String,
}

/// The content of the newest checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The last record before it.
    pub record: u64,
    /// The data that the layer above stored in it.
    pub blob: Vec<u8>,
}

/// What opening did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The bytes after the end, left by an incomplete group.
    pub torn_bytes: u64,
    /// The subdirectory into which they were copied.
    pub aside: Option<String>,
    /// The bytes that were rewritten, since it was unknown whether they had been synced.
    pub rewritten_bytes: u64,
    /// The number of records scanned.
    pub scanned_records: u64,
}

impl Log {
    /// Opens the log in a directory, or creates one in an empty directory.
    ///
    /// `visit` is called, in order, for each intact record with a number above `visit_behind`.
    ///
    /// # Errors
    ///
    /// `Corrupt` if a segment is missing, belongs to another log, or is at the wrong place; `Unsupported` if a newer
    /// version wrote it; errors of reading, writing and syncing. Damage to records is not an error: see
    /// [`Opened::damage`].
    pub fn open(
        files: Arc<dyn Directory>,
        id: [u8; 16],
        options: &Options,
        known: Known,
        visit_behind: u64,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<Opened> {
        options.validate()?;
        let tail = read_tail(&*files, id);
        let found = find_segments(&*files)?;
        let shared = Arc::new(Shared::new(files, id, options));
        let mut opening = Opening::new(shared, tail, known);
        opening.take(found)?;
        opening.run(&mut Visitor { behind: visit_behind, visit, scanned: 0 })
    }
}

/// A segment that was found. Its file was closed again: there may be thousands.
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) generation: u32,
    pub(crate) name: String,
    pub(crate) len: u64,
    /// Its length without compression.
    pub(crate) plain_len: u64,
    pub(crate) head: Head,
    /// Other generations of it: replaced by this one, or incomplete.
    pub(crate) others: Vec<String>,
    /// The footer at its end, of whatever segment.
    footer: Option<Summary>,
}

impl Found {
    /// Its footer, if it belongs to a segment with this header.
    pub(crate) fn footer(&self, header: &SegmentHeader) -> Option<Summary> {
        self.footer.clone().filter(|footer| footer.is_of(header))
    }

    /// Its plain bytes.
    pub(crate) fn open(&self, files: &dyn Directory) -> Result<Arc<dyn File>> {
        match &self.head {
            Head::Valid(header) => blocks::open(files, &self.name, header),
            _ => open(files, &self.name),
        }
    }

    /// Whether it is as it was when it was sealed, as far as can be told without reading records.
    fn is_complete(&self, files: &dyn Directory) -> Result<bool> {
        let Head::Valid(header) = &self.head else { return Ok(false) };
        let is_named = (header.number, header.generation) == (self.number, self.generation);
        if !is_named || self.footer(header).is_none() {
            return Ok(false);
        }
        Ok(!header.is_compressed || PlainFile::open(files, &self.name, header)?.has_table())
    }
}

/// A segment of the log to open.
struct Part {
    name: String,
    len: u64,
    plain_len: u64,
    header: SegmentHeader,
    footer: Option<Summary>,
}

impl Part {
    fn open(&self, files: &dyn Directory) -> Result<Arc<dyn File>> {
        blocks::open(files, &self.name, &self.header)
    }

    fn scanner(&self, file: Arc<dyn File>) -> Scanner {
        Scanner::new(file, &self.name, &self.header, self.plain_len)
    }
}

/// The newest complete generation of each segment, in order.
pub(crate) fn find_segments(files: &dyn Directory) -> Result<Vec<Found>> {
    let names = files.list().map_err(|error| Error::io("list", "the directory", error))?;
    let mut segments: Vec<_> = names.iter().filter_map(|name| format::parse_segment_name(name)).collect();
    segments.sort_unstable_by_key(|(number, generation)| (*number, Reverse(*generation)));
    segments.chunk_by(|a, b| a.0 == b.0).map(|generations| find_generation(files, generations)).collect()
}

/// The newest complete generation. If there is none, the oldest one is as it was before the others.
fn find_generation(files: &dyn Directory, generations: &[(u64, u32)]) -> Result<Found> {
    let mut found: Vec<_> = generations
        .iter()
        .map(|(number, generation)| find_segment(files, *number, *generation))
        .collect::<Result<_>>()?;
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    let are_complete: Vec<_> = found.iter().map(|found| found.is_complete(files)).collect::<Result<_>>()?;
    let Some(index) = are_complete.iter().position(|is_complete| *is_complete) else {
        return Ok(found.remove(generations.len() - 1));
    };
    let mut chosen = found.remove(index);
    chosen.others = found.into_iter().map(|other| other.name).collect();
    Ok(chosen)
}

fn find_segment(files: &dyn Directory, number: u64, generation: u32) -> Result<Found> {
    let name = format::segment_name(number, generation);
    let file = open(files, &name)?;
    let mut head = Vec::new();
    let read = file.len().and_then(|len| file.read_at(&mut head, 0, SEGMENT_HEADER).map(|_| len));
    let len = read.map_err(|error| Error::io("read", &name, error))?;
    let footer = read_footer(&*file, &name, len)?;
    let head = Head::decode(&head);
    let plain_len = match &head {
        Head::Valid(header) if header.is_compressed => {
            codec::check()?;
            match footer.as_ref().filter(|footer| footer.is_of(header)) {
                Some(footer) => footer.end + footer.len(),
                None => PlainFile::open(files, &name, header)?.plain_len(),
            }
        }
        _ => len,
    };
    Ok(Found { number, generation, name, len, plain_len, head, others: Vec::new(), footer })
}

fn open(files: &dyn Directory, name: &str) -> Result<Arc<dyn File>> {
    files.open(name).map_err(|error| Error::io("open", name, error))
}

/// The footer at the end of a segment's file, if there is one.
pub(crate) fn read_footer(file: &dyn File, name: &str, len: u64) -> Result<Option<Summary>> {
    let Some(at) = len.checked_sub(FOOTER_END as u64) else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_at(&mut bytes, at, FOOTER_END).map_err(|error| Error::io("read", name, error))?;
    Ok(Summary::decode(&bytes, len))
}

/// Passes on the requested records.
struct Visitor<'a> {
    behind: u64,
    visit: &'a mut dyn FnMut(u64, &[u8]),
    scanned: u64,
}

impl Visitor<'_> {
    fn scanned(&mut self, number: u64, content: &[u8]) {
        self.scanned += 1;
        if number > self.behind {
            (self.visit)(number, content);
        }
    }
}

struct Opening {
    shared: Arc<Shared>,
    /// The checkpoint, if it certainly belongs to this history of the log.
    tail: Option<TailFile>,
    /// The checkpoint, if that is unknown because the frame it is tied to is missing or damaged.
    doubtful: Option<TailFile>,
    parts: Vec<Part>,
    /// The file of the last part.
    newest: Option<Arc<dyn File>>,
    /// Segments at the end that consist of zeros.
    unused: Vec<Found>,
    /// Segments at the end without a header but with data after it.
    torn: Vec<Found>,
    /// Generations of segments that were replaced or are incomplete.
    replaced: Vec<String>,
    /// Generations beside which there are such.
    replacing: Vec<String>,
    /// The last record that was synced, according to all sources.
    synced: u64,
    damage: Option<Damage>,
    recovery: Recovery,
}

/// Which history of the log a checkpoint belongs to: diverged copies of a log have the same id, and the same salt in
/// the segment in which they diverged.
enum Origin {
    This,
    Other,
    Unknown,
}

/// The start of the scan: at a checkpoint inside a part, or at its first frame.
struct Start {
    part: usize,
    tail: Option<TailFile>,
}

/// The end of a scanned part.
struct End {
    scanner: Scanner,
    /// The last record and the offset of each frame that may not be synced.
    unsynced: VecDeque<(u64, u64)>,
}

impl Opening {
    fn new(shared: Arc<Shared>, tail: Option<TailFile>, known: Known) -> Self {
        Opening {
            shared,
            tail,
            doubtful: None,
            parts: Vec::new(),
            newest: None,
            unused: Vec::new(),
            torn: Vec::new(),
            replaced: Vec::new(),
            replacing: Vec::new(),
            synced: known.synced,
            damage: None,
            recovery: Recovery::default(),
        }
    }

    /// Checks that the segments belong to one log and follow each other.
    fn take(&mut self, mut found: Vec<Found>) -> Result<()> {
        // A generation that replaces a segment was complete before it got its name, so it is never a torn end.
        while let Some(newest) = found.last().filter(|newest| newest.generation == 0) {
            let file = newest.open(&*self.shared.files)?;
            let mut window = Window::new(file, &newest.name, newest.len);
            let end = match newest.head {
                Head::Zeros | Head::Damaged => window.nonzero_end(0, newest.len)?,
                _ => break,
            };
            // A header fits into one sector and is written from its start: it may be cut off, but otherwise it is
            // damaged.
            if newest.head == Head::Damaged && end > Some(SEGMENT_HEADER as u64) {
                break;
            }
            let segments = if end.is_none() { &mut self.unused } else { &mut self.torn };
            segments.extend(found.pop());
        }
        found.into_iter().zip(1..).try_for_each(|(found, number)| self.take_one(number, found))
    }

    fn take_one(&mut self, number: u64, found: Found) -> Result<()> {
        if found.number != number {
            return Err(self.corrupt(number, "is missing"));
        }
        let footer = found.footer.clone();
        let Found { number, generation, name, len, plain_len, head, others, .. } = found;
        let header = match head {
            Head::Valid(header) => header,
            Head::Newer => return Err(Error::unsupported(format!("the format of {name:?}, which is newer"))),
            Head::Zeros => return Err(self.corrupt(number, "begins with zeros")),
            Head::Damaged => return Err(self.corrupt(number, "has a damaged header")),
        };
        if header.id != self.shared.id {
            return Err(self.corrupt(number, "belongs to another log"));
        }
        if (header.number, header.generation) != (number, generation) {
            return Err(self.corrupt(number, &format!("was segment {}-{}", header.number, header.generation)));
        }
        let follows = match self.parts.last() {
            Some(before) => header.first > before.header.first,
            None => (header.first, header.chain) == (1, 0),
        };
        if !follows {
            return Err(self.corrupt(number, "does not follow the one before it"));
        }
        let footer = footer.filter(|footer| footer.is_of(&header));
        self.replacing.extend((!others.is_empty()).then(|| name.clone()));
        self.replaced.extend(others);
        self.parts.push(Part { name, len, plain_len, header, footer });
        Ok(())
    }

    /// A whole segment is wrong, so everything after the previous one is lost.
    fn corrupt(&self, number: u64, what: &str) -> Error {
        match self.parts.last().map_or(Ok(1), |part| self.next_of(part)) {
            Ok(record) => Error::corrupt(record, format!("segment {number} {what}")),
            Err(error) => error,
        }
    }

    /// The number after the last record of a segment, as far as it can be told.
    fn next_of(&self, part: &Part) -> Result<u64> {
        if let Some(footer) = &part.footer {
            return Ok(footer.last + 1);
        }
        let mut scanner = part.scanner(part.open(&*self.shared.files)?);
        while scanner.frame(&mut |_, _| {})?.is_some() {}
        Ok(scanner.next)
    }

    fn newest(&self) -> Result<Arc<dyn File>> {
        self.newest.clone().ok_or_else(Error::without_segment)
    }

    fn run(mut self, visitor: &mut Visitor<'_>) -> Result<Opened> {
        self.drop_torn_footer()?;
        self.judge_tail()?;
        self.look_for_synced();
        self.drop_begun()?;
        self.newest = self.parts.last().map(|part| part.open(&*self.shared.files)).transpose()?;
        let start = self.find_start();
        for index in 0..start.part {
            self.take_known(index)?;
        }
        if let Some(tail) = &start.tail {
            self.take_before(tail, start.part);
        }
        self.visit_known(visitor)?;
        let mut end = None;
        for index in start.part..self.parts.len() {
            let tail = start.tail.as_ref().filter(|_| index == start.part);
            end = Some(self.scan(index, tail, &mut |number, content| visitor.scanned(number, content))?);
        }
        self.recovery.scanned_records = visitor.scanned;
        self.check_end()?;
        self.finish(end)
    }

    /// Scanning begins at the checkpoint or after the last segment with a footer, whichever is later.
    fn find_start(&self) -> Start {
        let sealed = self.parts.iter().rposition(|part| part.footer.is_some()).map_or(0, |index| index + 1);
        let at_segment = Start { part: sealed, tail: None };
        let Some(tail) = &self.tail else { return at_segment };
        let Some(index) = self.parts.iter().position(|part| part.header.number == tail.segment) else {
            return at_segment;
        };
        let is_usable = index >= sealed && is_within(tail, &self.parts[index]);
        if is_usable { Start { part: index, tail: Some(tail.clone()) } } else { at_segment }
    }

    /// A footer is synced before the next one is written, so the newest may be written only in part: the end that
    /// identifies it, but not what precedes that. Then the segment counts as one without a footer and gets a new one.
    fn drop_torn_footer(&mut self) -> Result<()> {
        let Some(part) = self.parts.iter_mut().rev().find(|part| part.footer.is_some()) else { return Ok(()) };
        let Some(footer) = part.footer.as_ref().filter(|_| !part.header.is_compressed) else { return Ok(()) };
        let file = part.open(&*self.shared.files)?;
        let is_whole = |at: u64, len: usize, crc: u32| {
            let mut bytes = Vec::new();
            let read = file.read_at(&mut bytes, at, len);
            read.map_err(|error| Error::io("read", &part.name, error))?;
            Ok::<_, Error>(bytes.len() == len && crc32fast::hash(&bytes) == crc)
        };
        let anchors = is_whole(footer.end, footer.anchors as usize * anchors::LEN, footer.anchors_crc)?;
        if !anchors || !is_whole(footer.blob_at(), footer.blob as usize, footer.blob_crc)? {
            tell!(warn, name = part.name, "the footer was written only in part and is rebuilt");
            part.footer = None;
        }
        Ok(())
    }

    /// Ignores a checkpoint of another history of the log.
    fn judge_tail(&mut self) -> Result<()> {
        let Some(tail) = self.tail.take() else { return Ok(()) };
        match self.origin(&tail)? {
            Origin::This => self.tail = Some(tail),
            Origin::Other => {
                tell!(warn, record = tail.next - 1, "the checkpoint belongs to another history of the log");
            }
            Origin::Unknown => {
                tell!(warn, record = tail.next - 1, "the frame before the checkpoint is missing or damaged");
                self.doubtful = Some(tail);
            }
        }
        Ok(())
    }

    fn origin(&self, tail: &TailFile) -> Result<Origin> {
        let this_if = |is_this| if is_this { Origin::This } else { Origin::Other };
        if tail.segment == 0 {
            return Ok(this_if((tail.offset, tail.next, tail.chain) == (0, 1, 0)));
        }
        let Some(part) = self.parts.iter().find(|part| part.header.number == tail.segment) else {
            return Ok(Origin::Unknown);
        };
        let header = &part.header;
        // Every generation has the same salt and offsets.
        if header.salt != tail.salt {
            return Ok(Origin::Other);
        }
        if tail.offset == SEGMENT_HEADER as u64 {
            return Ok(this_if((tail.next, tail.chain) == (header.first, header.chain)));
        }
        if let Some(footer) = part.footer.as_ref().filter(|footer| footer.end == tail.offset) {
            return Ok(this_if((tail.next, tail.chain) == (footer.last + 1, footer.chain)));
        }
        if tail.frame < SEGMENT_HEADER as u64 {
            return Ok(Origin::Unknown);
        }
        // The header of a frame covers the one before, and so on to the first: two histories never have the same one.
        let mut bytes = Vec::new();
        let read = part.open(&*self.shared.files)?.read_at(&mut bytes, tail.frame, FRAME_HEADER);
        read.map_err(|error| Error::io("read", &part.name, error))?;
        let Some(frame) = FrameHeader::decode(&bytes, header.salt) else { return Ok(Origin::Unknown) };
        let end = tail.frame.checked_add(frame.frame_len());
        Ok(this_if((frame.crc, frame.next(), end) == (tail.chain, tail.next, Some(tail.offset))))
    }

    /// What a doubtful checkpoint says is synced, if its position is after the last valid frame, which ends here. If
    /// that frame goes further, the checkpoint belongs to another history.
    fn synced_behind(&self, segment: u64, at: u64) -> u64 {
        let is_behind = |tail: &&TailFile| {
            let place = if tail.frame == 0 { tail.offset } else { tail.frame + 1 };
            (segment, at) < (tail.segment, place)
        };
        self.doubtful.as_ref().filter(is_behind).map_or(0, TailFile::synced)
    }

    /// Removes the newest segment if its first group is incomplete.
    fn drop_begun(&mut self) -> Result<()> {
        let Some(part) = self.parts.last() else { return Ok(()) };
        let has_checkpoint = self.tail.as_ref().is_some_and(|tail| tail.segment == part.header.number);
        if has_checkpoint || part.footer.is_some() || part.header.is_compressed {
            return Ok(());
        }
        let mut scanner = part.scanner(part.open(&*self.shared.files)?);
        let is_begun = scanner.frame(&mut |_, _| {})?.is_some();
        let claimed = self.synced_behind(part.header.number, scanner.at);
        if is_begun || self.synced.max(scanner.synced_from(scanner.at)?).max(claimed) >= part.header.first {
            return Ok(());
        }
        if let Some(Part { name, len, plain_len, header, footer }) = self.parts.pop() {
            let SegmentHeader { number, generation, .. } = header;
            let (head, others) = (Head::Valid(header), Vec::new());
            self.torn.push(Found { number, generation, name, len, plain_len, head, others, footer });
        }
        Ok(())
    }

    fn look_for_synced(&mut self) {
        let tail = self.tail.as_ref().map_or(0, TailFile::synced);
        // A checkpoint in a missing segment proves that the end is lost.
        let newest = self.parts.last().map_or(0, |part| part.header.number);
        let claimed = self.synced_behind(newest, u64::MAX);
        // A segment begins only after everything before it is synced, and gets a footer only after it is synced itself.
        let begun = self.parts.last().map_or(0, |part| part.header.first - 1);
        let sealed = self.parts.iter().filter_map(|part| part.footer.as_ref()).map(|footer| footer.last).max();
        self.synced = self.synced.max(tail).max(claimed).max(begun).max(sealed.unwrap_or(0));
    }

    /// Adds a segment as its footer describes it. Without one it is scanned, and its records are read later.
    fn take_known(&mut self, index: usize) -> Result<()> {
        let part = &self.parts[index];
        let Some(footer) = part.footer.clone() else {
            return self.scan(index, None, &mut |_, _| {}).map(drop);
        };
        let next = footer.last + 1;
        if let Some(behind) = self.parts.get(index + 1)
            && (behind.header.first, behind.header.chain) != (next, footer.chain)
        {
            return Err(self.not_following(next, behind));
        }
        let (end, chain, len) = (footer.end, footer.chain, part.len);
        let footer = Some(footer);
        self.add(index, State { next, end, frame: 0, chain, len, file: None, footer, anchors: None });
        Ok(())
    }

    fn not_following(&self, record: u64, behind: &Part) -> Error {
        Error::corrupt(record, format!("segment {:?} does not follow the one before it", behind.name))
    }

    /// Adds a segment up to the checkpoint, so that it can be read like any other.
    fn take_before(&mut self, tail: &TailFile, index: usize) {
        let part = &self.parts[index];
        let state = State {
            next: tail.next,
            end: tail.offset,
            frame: tail.frame,
            chain: tail.chain,
            len: part.len,
            file: None,
            footer: None,
            anchors: Some(tail.anchors.clone()),
        };
        self.add(index, state);
    }

    /// Adds a segment, or the scanned rest of one that is there up to the checkpoint.
    fn add(&mut self, index: usize, state: State) {
        self.shared.publish(state.next - 1);
        let known = self.shared.segments().get(index).cloned();
        match known {
            Some(segment) => *segment.state_mut() = state,
            None => self.shared.add_segment(Arc::new(Segment::new(self.parts[index].header.clone(), state))),
        }
    }

    /// Reads the requested records that are not scanned.
    fn visit_known(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        let log = Log(Arc::clone(&self.shared));
        let (mut next, end) = (visitor.behind.saturating_add(1), log.last() + 1);
        let mut page = Page::default();
        while next < end {
            page.clear();
            match log.read(next..end, scan::CHUNK, usize::MAX, &mut page) {
                Ok(()) => page.contents().for_each(|(number, content)| (visitor.visit)(number, content)),
                Err(Error::Corrupt { record, reason }) => self.note_damage(record.unwrap_or(next), reason),
                Err(error) => return Err(error),
            }
            next = page.records.last().map_or(next, |(number, _)| *number) + 1;
        }
        Ok(())
    }

    fn note_damage(&mut self, record: u64, reason: String) {
        if self.damage.as_ref().is_none_or(|damage| record < damage.record) {
            self.damage = Some(Damage { record, reason });
        }
    }

    /// Scans a segment to its end, from the checkpoint on if it is given.
    fn scan(&mut self, index: usize, tail: Option<&TailFile>, visit: Visit<'_>) -> Result<End> {
        let part = &self.parts[index];
        let behind = self.parts.get(index + 1);
        let file = match behind {
            Some(_) => part.open(&*self.shared.files)?,
            None => self.newest()?,
        };
        let mut scanner = part.scanner(file);
        scanner.limit = behind.map_or(u64::MAX, |behind| behind.header.first);
        if let Some(tail) = tail {
            scanner.go_to(tail);
        }
        let mut unsynced = VecDeque::new();
        while let Some(Scanned { at, header }) = scanner.frame(visit)? {
            self.synced = self.synced.max(header.synced);
            unsynced.push_back((header.next() - 1, at));
            forget_synced(&mut unsynced, self.synced);
        }
        if let Some(behind) = behind {
            let (first, chain) = (behind.header.first, behind.header.chain);
            if scanner.next > first || (scanner.next == first && scanner.chain != chain) {
                return Err(self.not_following(first, behind));
            }
            if scanner.next < first {
                let name = part.name.clone();
                self.scan_damaged(&mut scanner, visit)?;
                if scanner.next < first {
                    self.note_damage(scanner.next, format!("its frame is damaged or missing, in {name:?}"));
                }
                scanner.next = first;
            }
            scanner.chain = chain;
        } else {
            // Data after the end may prove that it is not the end.
            let claimed = self.synced_behind(part.header.number, scanner.at);
            self.synced = self.synced.max(scanner.synced_from(scanner.at)?).max(claimed);
            let (name, is_compressed) = (part.name.clone(), part.header.is_compressed);
            if self.synced >= scanner.next || is_compressed {
                self.scan_damaged(&mut scanner, visit)?;
            }
            if is_compressed {
                // It had a footer, and nothing else says where it ends.
                self.note_damage(
                    scanner.next,
                    format!("the footer of {name:?} is damaged, so it may have had more records"),
                );
            }
        }
        self.add_scanned(index, &mut scanner);
        Ok(End { scanner, unsynced })
    }

    /// Scans what follows damage and records what is lost before it.
    fn scan_damaged(&mut self, scanner: &mut Scanner, visit: Visit<'_>) -> Result<()> {
        let name = scanner.window.name().to_owned();
        scanner.rest(visit, &mut |record, reason| self.note_damage(record, format!("{reason}, in {name:?}")))
    }

    fn add_scanned(&mut self, index: usize, scanner: &mut Scanner) {
        let part = &self.parts[index];
        let is_newest = index + 1 == self.parts.len();
        let state = State {
            next: scanner.next,
            end: scanner.at,
            frame: scanner.frame_at,
            chain: scanner.chain,
            len: part.len,
            file: self.newest.clone().filter(|_| is_newest),
            footer: None,
            anchors: Some(std::mem::take(&mut scanner.anchors)),
        };
        self.add(index, state);
    }

    /// Checks that no synced data is missing at the end.
    fn check_end(&mut self) -> Result<()> {
        let last = self.shared.last();
        if self.synced <= last || self.damage.is_some() {
            return Ok(());
        }
        let synced = self.synced;
        if let Some(segment) = self.unused.iter().chain(&self.torn).min_by_key(|segment| segment.number) {
            let reason = format!("{:?} has no header, though the log was synced up to record {synced}", segment.name);
            return Err(Error::corrupt(last + 1, reason));
        }
        let reason = format!("the end of the log is missing, though it was synced up to record {synced}");
        self.note_damage(last + 1, reason);
        Ok(())
    }

    fn finish(mut self, end: Option<End>) -> Result<Opened> {
        let log = Log(Arc::clone(&self.shared));
        let last = self.shared.last();
        let mut appender = None;
        if let Some(damage) = &self.damage {
            let _ = self.shared.damage.set(damage.clone());
            tell!(error, record = damage.record, reason = damage.reason, "damaged; the log is opened for reading");
        } else {
            let tip = self.clear_end(end)?;
            if self.shared.files.keeps_changes() {
                remove_replaced(&*self.shared.files, &self.replaced, &self.replacing);
            }
            appender = Some(Appender::new(log.clone(), tip));
        }
        self.shared.set_written(last, self.newest.as_ref());
        self.shared.set_synced(last);
        let tail = self.tail.map(|tail| Tail { record: tail.next - 1, blob: tail.blob });
        Ok(Opened { log, appender, tail, damage: self.damage, recovery: self.recovery })
    }

    /// Removes everything after the end, and rewrites everything before it that may not be synced. All of that, and what
    /// a killed process had changed before without syncing it, is durable afterwards: an append must not rest on what
    /// only the cache says.
    fn clear_end(&mut self, end: Option<End>) -> Result<Tip> {
        let mut is_cut = false;
        if let Some(mut end) = end {
            is_cut = self.cut(&mut end)?;
            self.rewrite(end)?;
            let name = self.parts.last().map_or("", |part| &part.name);
            self.newest()?.sync_all().map_err(|error| Error::io("sync", name, error))?;
        } else {
            self.remove_segments(None)?;
        }
        let position = Log(Arc::clone(&self.shared)).position();
        let segments = self.shared.segments();
        // Preallocation grows with what is appended from now on: a single append should not wait for much of it.
        let log_len: u64 = segments.iter().map(|segment| segment.state().end).sum();
        let log_len = log_len.min(1 << 20);
        let last = self.parts.last().zip(self.newest.as_ref());
        let newest = segments.last().zip(last).map(|(segment, (part, file))| {
            let filled = if is_cut { position.offset } else { part.len.max(position.offset) };
            if !part.header.is_compressed {
                self.shared.space.begin((position.segment, &part.name), file, filled);
            }
            // Nothing is appended after a footer.
            let grows = segment.state().footer.is_none();
            let capacity = if grows { self.shared.options.capacity(position.segment) } else { 0 };
            let mut state = segment.state_mut();
            state.file = Some(Arc::clone(file));
            state.len = if is_cut { position.offset } else { part.len };
            (Arc::clone(segment), Arc::clone(file), capacity.max(position.offset))
        });
        Ok(Tip { position, newest, log_len })
    }

    /// Removes what is after the end of the newest segment, and the segments after it.
    fn cut(&mut self, end: &mut End) -> Result<bool> {
        let (Some(part), file) = (self.parts.last(), self.newest()?) else { return Ok(false) };
        let at = end.scanner.at;
        let torn = end.scanner.window.nonzero_end(at, part.len)?.map(|to| at..to);
        let piece = torn.map(|range| Piece { name: part.name.clone(), file, range });
        let is_cut = piece.is_some();
        self.remove_segments(piece)?;
        Ok(is_cut)
    }

    /// Removes what is after the end. The removal of segments is durable before the one before them is cut: they prove
    /// that it was synced.
    fn remove_segments(&mut self, piece: Option<Piece>) -> Result<()> {
        let files = &*self.shared.files;
        let mut pieces: Vec<_> = piece.iter().cloned().collect();
        for found in &self.torn {
            pieces.push(Piece { name: found.name.clone(), file: found.open(files)?, range: 0..found.len });
        }
        if !pieces.is_empty() {
            let (aside, bytes) = cut::set_aside(files, &pieces)?;
            tell!(warn, aside, bytes, "an incomplete group is removed from the end of the log");
            (self.recovery.aside, self.recovery.torn_bytes) = (Some(aside), bytes);
        }
        for found in self.torn.iter().chain(&self.unused) {
            let erased = files.open(&found.name).and_then(|file| cut::erase(&*file));
            let removed = erased.and_then(|()| files.remove(&found.name));
            removed.map_err(|error| Error::io("remove", &found.name, error))?;
        }
        files.sync().map_err(|error| Error::io("sync", "the directory", error))?;
        piece.map_or(Ok(()), |piece| cut::cut(&piece))
    }

    /// Rewrites unsynced data. A failed sync may have left it in memory only, and reported that once.
    fn rewrite(&mut self, mut end: End) -> Result<()> {
        forget_synced(&mut end.unsynced, self.synced);
        let (Some((_, at)), Some(part)) = (end.unsynced.front(), self.parts.last()) else { return Ok(()) };
        let is_first = *at == SEGMENT_HEADER as u64;
        let range = if is_first { 0 } else { *at }..end.scanner.at;
        self.recovery.rewritten_bytes = range.end - range.start;
        cut::rewrite(&Piece { name: part.name.clone(), file: self.newest()?, range })
    }
}

/// Removes generations of segments that are no longer used, and remains of incomplete ones. If that fails, the next
/// opening does it.
fn remove_replaced(files: &dyn Directory, replaced: &[String], replacing: &[String]) {
    let is_left = |name: &String| name.strip_suffix(NEW).is_some_and(|name| format::parse_segment_name(name).is_some());
    let left = files.list().map(|names| names.into_iter().filter(is_left).collect::<Vec<_>>()).unwrap_or_default();
    if replaced.is_empty() && left.is_empty() {
        return;
    }
    let remove = |names: &[String]| cut::remove(files, names.iter().map(String::as_str));
    let removed = remove(&left)
        .and_then(|()| replacing.iter().try_for_each(|name| renew(files, name)))
        .and_then(|()| remove(replaced));
    if let Err(error) = removed {
        tell!(warn, %error, "replaced segments could not be deleted from the log");
    }
}

/// Replaces a segment by a copy of itself, durably. Its name may be only in the cache, and if the sync behind its renaming
/// has failed, a later one may succeed and not make it durable.
fn renew(files: &dyn Directory, name: &str) -> Result<()> {
    let new_name = format!("{name}{NEW}");
    let failed = |operation| move |error| Error::io(operation, name, error);
    let file = open(files, name)?;
    let len = file.len().map_err(failed("measure"))?;
    let copy = files.create(&new_name).map_err(failed("copy"))?;
    cut::copy(&Piece { name: name.to_owned(), file, range: 0..len }, &*copy)?;
    if copy.len().map_err(failed("measure"))? != len {
        return Err(failed("read all of")(std::io::ErrorKind::UnexpectedEof.into()));
    }
    copy.sync_all().map_err(failed("sync a copy of"))?;
    files.rename(&new_name, name).and_then(|()| files.sync()).map_err(failed("rename"))
}

fn forget_synced(unsynced: &mut VecDeque<(u64, u64)>, synced: u64) {
    while unsynced.front().is_some_and(|(last, _)| *last <= synced) {
        unsynced.pop_front();
    }
}

/// Whether a segment without footer can be scanned from this checkpoint on.
fn is_within(tail: &TailFile, part: &Part) -> bool {
    let records = tail.next.checked_sub(part.header.first);
    let has_anchors = records.is_some_and(|records| {
        anchors::are_possible(&tail.anchors, records, tail.offset) && (records == 0 || !tail.anchors.is_empty())
    });
    (SEGMENT_HEADER as u64..=part.plain_len).contains(&tail.offset) && tail.offset.is_multiple_of(8) && has_anchors
}

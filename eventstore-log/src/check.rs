use std::sync::Arc;

use crate::blocks::PlainFile;
use crate::format::{Head, SEGMENT_HEADER, Summary};
use crate::log::Shared;
use crate::recover::read_footer;
use crate::scan::{CHUNK, Lost, Scanner, Visit};
use crate::segment::Segment;
use crate::{Error, File, Log, Result, anchors};

impl Log {
    /// Reads a whole segment, up to its end at the time of the call. Trusts nothing in it except its header, as it was
    /// when the log was opened.
    ///
    /// `visit` is called with each intact record, in order. `found` is called with each fault and the first record that
    /// is lost by it. A damaged footer loses no record and is reported with the segment's first. `go_on` is called for
    /// each MiB with the number of bytes read so far; `false` stops the check.
    ///
    /// # Errors
    ///
    /// `Unsupported` if there is no such segment; read errors. Damage is not an error.
    ///
    /// `Unsupported` if there is no such segment; what reading says. Damage is no error.
    pub fn check_segment(
        &self,
        number: u64,
        visit: &mut dyn FnMut(u64, &[u8]),
        found: &mut dyn FnMut(u64, String),
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let segments = self.0.segments();
        let segment = segments.iter().find(|segment| segment.header.number == number);
        let segment = segment.ok_or_else(|| Error::unsupported(format!("segment {number}, which is not there")))?;
        Check::new(&self.0, segment)?.run(visit, found, go_on)
    }
}

struct Check<'a> {
    segment: &'a Segment,
    file: Arc<dyn File>,
    /// The same file, if it is compressed.
    blocks: Option<Arc<PlainFile>>,
    /// As known to the log.
    next: u64,
    end: u64,
    chain: u32,
    len: u64,
    footer: Option<Summary>,
}

impl<'a> Check<'a> {
    fn new(log: &Shared, segment: &'a Segment) -> Result<Self> {
        let (file, blocks) = match segment.header.is_compressed {
            true => {
                // A separate instance, which tracks whether there was damage.
                let blocks = Arc::new(PlainFile::open(&*log.files, &segment.name, &segment.header)?);
                (Arc::clone(&blocks) as Arc<dyn File>, Some(blocks))
            }
            false => (segment.file(log)?, None),
        };
        let plain_len = blocks.as_ref().map(|blocks| blocks.plain_len());
        let state = segment.state();
        let (next, end, chain, len) = (state.next, state.end, state.chain, plain_len.unwrap_or(state.len));
        let footer = state.footer.clone();
        Ok(Check { segment, file, blocks, next, end, chain, len, footer })
    }

    fn run(self, visit: Visit<'_>, found: Lost<'_>, go_on: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let header = &self.segment.header;
        if self.read_head()? != Head::Valid(header.clone()) {
            found(header.first, format!("the header of {:?} is damaged", self.segment.name));
        }
        let mut scanner = Scanner::new(Arc::clone(&self.file), &self.segment.name, header, self.end);
        scanner.limit = self.next;
        let Some(is_sound) = self.scan(&mut scanner, visit, found, go_on)? else { return Ok(()) };
        let hint = |is_mended: bool| match is_sound && is_mended {
            true => "; no record is lost, and a repair rebuilds it",
            false => "",
        };
        if let Some(blocks) = &self.blocks
            && let Some(fault) = blocks.fault(is_sound)
        {
            found(header.first, format!("{fault}, in {:?}{}", self.segment.name, hint(!blocks.has_table())));
        }
        if let Some(footer) = &self.footer
            && let Some(fault) = self.fault_of_footer(footer, is_sound.then_some(&scanner))?
        {
            found(header.first, format!("{fault}, in {:?}{}", self.segment.name, hint(true)));
        }
        Ok(())
    }

    fn read_head(&self) -> Result<Head> {
        let mut head = Vec::new();
        self.read(&mut head, 0, SEGMENT_HEADER)?;
        Ok(Head::decode(&head))
    }

    fn read(&self, out: &mut Vec<u8>, at: u64, len: usize) -> Result<()> {
        let read = self.file.read_at(out, at, len);
        read.map(drop).map_err(|error| Error::io("read", &self.segment.name, error))
    }

    /// Whether everything is valid; `None` if the check was stopped.
    fn scan(
        &self,
        scanner: &mut Scanner,
        visit: Visit<'_>,
        found: Lost<'_>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<bool>> {
        let (mut is_sound, mut asked_at, mut is_ended) = (true, 0, false);
        let mut ask = |at| {
            // A search advances by a little less than a MiB.
            if at >= asked_at + CHUNK as u64 / 2 {
                (asked_at, is_ended) = (at, !go_on(at));
            }
            !is_ended
        };
        let mut lost = |record, reason: String| {
            is_sound = false;
            found(record, format!("{reason}, in {:?}", self.segment.name));
        };
        loop {
            if !ask(scanner.at) {
                return Ok(None);
            }
            let is_at_end = scanner.at >= self.end;
            if scanner.frame(visit)?.is_none() && (is_at_end || !scanner.damaged(visit, &mut lost, &mut ask)?) {
                break;
            }
        }
        if is_ended {
            return Ok(None);
        }
        if scanner.next != self.next {
            lost(scanner.next, "it is missing or damaged, and so is everything after it".to_owned());
        } else if (scanner.at, scanner.chain) != (self.end, self.chain) {
            lost(self.next - 1, "the end is not where it was".to_owned());
        }
        Ok(Some(is_sound))
    }

    /// What is wrong with a footer. It must agree with the scanned records.
    fn fault_of_footer(&self, known: &Summary, scanned: Option<&Scanner>) -> Result<Option<&'static str>> {
        let footer = read_footer(&*self.file, &self.segment.name, self.len)?;
        if footer.as_ref() != Some(known) {
            return Ok(Some("the footer is damaged"));
        }
        let (mut anchors, mut blob) = (Vec::new(), Vec::new());
        self.read(&mut anchors, known.end, known.anchors as usize * anchors::LEN)?;
        self.read(&mut blob, known.blob_at(), known.blob as usize)?;
        if crc32fast::hash(&anchors) != known.anchors_crc {
            return Ok(Some("the anchors are damaged"));
        }
        if crc32fast::hash(&blob) != known.blob_crc {
            return Ok(Some("the blob of the footer is damaged"));
        }
        let agree = scanned.is_none_or(|scanner| anchors::decode(&anchors) == scanner.anchors);
        Ok((!agree).then_some("the anchors do not agree with the records"))
    }
}

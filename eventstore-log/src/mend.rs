//! Rebuilds damaged footers. The frames have all their information.

use std::ops::Range;
use std::sync::Arc;

use crate::blocks::PlainFile;
use crate::checkpoint::{seal, summary_of};
use crate::compress::{Compressing, Outcome, read_kept};
use crate::format::FOOTER_END;
use crate::log::{Shared, lock};
use crate::scan::{CHUNK, Scanner};
use crate::segment::Segment;
use crate::{Error, Log, Result, anchors};

impl Log {
    /// Rebuilds damaged footers and block tables of segments whose records are all valid, and returns the names of
    /// those segments. A compressed segment is rewritten as its next generation. The newest segment has no footer yet.
    ///
    /// `segment_blob` returns what a footer stores about its records, where that is lost. `go_on` is called for each
    /// MiB; `false` stops, and the other segments stay as they are.
    ///
    /// # Errors
    ///
    /// Errors of reading, writing and syncing. No record is lost.
    ///
    /// What reading, writing and syncing say; of the records nothing is lost.
    pub fn mend_footers(
        &self,
        segment_blob: &mut dyn FnMut(Range<u64>) -> Vec<u8>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<String>> {
        let shared = &self.0;
        let _ones = (lock(&shared.checkpointing), lock(&shared.compressing));
        if let Some(damage) = shared.damage.get() {
            return Err(Error::corrupt(damage.record, damage.reason.clone()));
        }
        shared.check_poison()?;
        let (segments, mut mended) = (shared.segments(), Vec::new());
        for segment in &segments[..segments.len().saturating_sub(1)] {
            if !go_on() {
                break;
            }
            if !is_whole(shared, segment)? && mend(shared, segment, segment_blob, go_on)? {
                mended.push(segment.name.clone());
            }
        }
        Ok(mended)
    }
}

/// Whether the whole footer is valid. An uncompressed segment without a footer gets one with the next checkpoint.
fn is_whole(shared: &Shared, segment: &Segment) -> Result<bool> {
    let Some(footer) = segment.state().footer.clone() else { return Ok(!segment.header.is_compressed) };
    let has_table =
        !segment.header.is_compressed || PlainFile::open(&*shared.files, &segment.name, &segment.header)?.has_table();
    Ok(has_table && read_kept(&*segment.file(shared)?, &segment.name, &footer)?.is_some())
}

fn mend(
    shared: &Shared,
    segment: &Arc<Segment>,
    segment_blob: &mut dyn FnMut(Range<u64>) -> Vec<u8>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<bool> {
    let (file, end) = (segment.file(shared)?, segment.end());
    let mut scanner = Scanner::new(Arc::clone(&file), &segment.name, &segment.header, end.offset);
    scanner.limit = end.next;
    let mut asked_at = 0;
    while scanner.frame(&mut |_, _| {})?.is_some() {
        if scanner.at >= asked_at + CHUNK as u64 {
            asked_at = scanner.at;
            if !go_on() {
                return Ok(false);
            }
        }
    }
    if (scanner.at, scanner.next, scanner.chain) != (end.offset, end.next, end.chain) {
        return Ok(false); // what is lost is not in a footer
    }
    let footer = segment.state().footer.clone();
    let blob = match footer {
        Some(footer) => {
            let mut blob = Vec::new();
            let read = file.read_at(&mut blob, footer.blob_at(), footer.blob as usize);
            read.map_err(|error| Error::io("read", &segment.name, error))?;
            Some(blob).filter(|blob| blob.len() == footer.blob as usize && crc32fast::hash(blob) == footer.blob_crc)
        }
        None => None,
    };
    let blob = blob.unwrap_or_else(|| segment_blob(segment.header.first..end.next));
    if !segment.header.is_compressed {
        // The cached ones may be those of the damaged footer.
        segment.state_mut().anchors = Some(std::mem::take(&mut scanner.anchors));
        return seal(shared, segment, &mut |_| blob.clone()).map(|()| true);
    }
    let (summary, mut footer) = summary_of(segment).encode(&scanner.anchors, &blob);
    footer.truncate(footer.len() - FOOTER_END);
    debug_assert_eq!(footer.len(), scanner.anchors.len() * anchors::LEN + blob.len());
    let outcome = Compressing::again(shared, segment, summary, footer)?.run(go_on)?;
    Ok(matches!(outcome, Outcome::Shrunk { .. }))
}

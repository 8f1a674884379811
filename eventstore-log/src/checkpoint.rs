use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::format::{SegmentHeader, Summary, TailFile};
use crate::log::{Shared, lock};
use crate::segment::Segment;
use crate::{Directory, Error, File, Log, Position, Result, cache, files};

/// The name of the checkpoint, and of a new one while it is written.
pub(crate) const TAIL: &str = "tail";
const TAIL_NEW: &str = "tail.new";

impl Log {
    /// Writes a checkpoint from which the next opening begins: writes the footers of the segments that end at or before
    /// `at`, and stores `blob`.
    ///
    /// Everything before `at` is synced first. `segment_blob` returns what a footer stores about its records.
    ///
    /// # Errors
    ///
    /// The error of a write or sync; the previous checkpoint remains. If a segment cannot be synced, the log accepts
    /// nothing more.
    pub fn checkpoint(
        &self,
        at: Position,
        blob: &[u8],
        segment_blob: &mut dyn FnMut(Range<u64>) -> Vec<u8>,
    ) -> Result<()> {
        let shared = &self.0;
        let _one = lock(&shared.checkpointing);
        if let Some(damage) = shared.damage.get() {
            return Err(Error::corrupt(damage.record, damage.reason.clone()));
        }
        shared.check_poison()?;
        if at.record() > shared.last() {
            return Err(Error::unsupported(format!("a checkpoint at record {}, which is not there", at.record())));
        }
        shared.sync_to(at.record())?;
        let segments = shared.segments();
        let full = segments.len().saturating_sub(1);
        for segment in segments[..full].iter().filter(|segment| segment.state().next <= at.next) {
            if segment.state().footer.is_none() && !segment.header.is_compressed {
                seal(shared, segment, segment_blob)?;
            }
        }
        write_tail(shared, &tail(shared, &segments, at, blob)?)?;
        tell!(trace, name: "checkpointed", record = at.record(), "checkpointed");
        Ok(())
    }

    /// The blob that the layer above stored in the footer of the segment with this record. `None` if the segment has no
    /// footer or does not exist.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is damaged; read errors.
    pub fn segment_blob(&self, record: u64) -> Result<Option<Vec<u8>>> {
        if record == 0 || record > self.last() {
            return Ok(None);
        }
        let Some(segment) = self.0.segment_of(record) else { return Ok(None) };
        let Some(footer) = segment.state().footer.clone() else { return Ok(None) };
        let file = segment.file(&self.0)?;
        let mut blob = Vec::new();
        let read = file.read_at(&mut blob, footer.blob_at(), footer.blob as usize);
        read.map_err(|error| Error::io("read", &segment.name, error))?;
        if blob.len() != footer.blob as usize || crc32fast::hash(&blob) != footer.blob_crc {
            return Err(Error::Corrupt {
                record: None,
                reason: format!("the footer of {:?} is damaged", segment.name),
            });
        }
        Ok(Some(blob))
    }
}

/// The summary for a segment that has no footer, or whose footer is rebuilt.
pub(crate) fn summary_of(segment: &Segment) -> Summary {
    let SegmentHeader { number, first, salt, generation, .. } = segment.header;
    let end = segment.end();
    Summary {
        number,
        first,
        last: end.record(),
        end: end.offset,
        salt,
        generation,
        chain: end.chain,
        anchors: 0,
        blob: 0,
        anchors_crc: 0,
        blob_crc: 0,
        blocks: 0,
        table_crc: 0,
    }
}

pub(crate) fn seal(
    shared: &Shared,
    segment: &Segment,
    segment_blob: &mut dyn FnMut(Range<u64>) -> Vec<u8>,
) -> Result<()> {
    let (number, end) = (segment.header.number, segment.end());
    let (summary, blob) = (summary_of(segment), segment_blob(segment.header.first..end.next));
    let (summary, footer) = segment.with_anchors(shared, |anchors| summary.encode(anchors, &blob))?;
    let file = segment.file(shared)?;
    if let Err(error) = write_footer(&*file, end.offset, &footer) {
        return Err(shared.not_filled(&*file, end.offset, error));
    }
    shared.sync_file(|| file.sync_all(), &segment.name)?;
    let mut state = segment.state_mut();
    state.len = end.offset + footer.len() as u64;
    state.footer = Some(summary);
    let anchors = if shared.is_memory { None } else { state.anchors.take() };
    drop(state);
    if let Some(anchors) = anchors {
        cache::put_anchors(segment.key(shared), Arc::new(anchors));
    }
    tell!(trace, name: "sealed", segment = number, "sealed");
    Ok(())
}

fn write_footer(file: &dyn File, end: u64, footer: &[u8]) -> io::Result<()> {
    file.set_len(end)?;
    file.write_at(footer, end)
}

fn tail(shared: &Shared, segments: &[Arc<Segment>], at: Position, blob: &[u8]) -> Result<TailFile> {
    let segment = segments.iter().find(|segment| segment.header.number == at.segment);
    let mut tail = TailFile {
        id: shared.id,
        segment: at.segment,
        salt: 0,
        offset: at.offset,
        frame: at.frame,
        next: at.next,
        synced: shared.synced().max(at.record()),
        generation: 0,
        chain: at.chain,
        anchors: Vec::new(),
        blob: blob.to_vec(),
    };
    if let Some(segment) = segment {
        (tail.salt, tail.generation) = (segment.header.salt, segment.header.generation);
        if segment.state().footer.is_none() {
            let before = |anchor: &&crate::anchors::Anchor| u64::from(anchor.offset) < at.offset;
            tail.anchors =
                segment.with_anchors(shared, |anchors| anchors.iter().take_while(before).copied().collect())?;
        }
    }
    Ok(tail)
}

/// The old checkpoint remains until the new one is durable.
fn write_tail(shared: &Shared, tail: &TailFile) -> Result<()> {
    let files = &*shared.files;
    let failed = |error| Error::io("write", TAIL, error);
    let file = files::create_anew(files, TAIL_NEW).map_err(failed)?;
    file.write_at(&tail.encode(), 0).and_then(|()| file.sync_all()).map_err(failed)?;
    shared.change_names(|files| files.rename(TAIL_NEW, TAIL)).map_err(failed)
}

/// The newest checkpoint. It only saves time: an unreadable one is ignored.
pub(crate) fn read_tail(files: &dyn Directory, id: [u8; 16]) -> Option<TailFile> {
    let read = || {
        let file = files.open(TAIL)?;
        let mut bytes = Vec::new();
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        file.read_at(&mut bytes, 0, len)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let tail = TailFile::decode(&bytes).filter(|tail| tail.id == id);
            if tail.is_none() {
                tell!(warn, "the checkpoint is damaged or of another log");
            }
            tail
        }
        Err(error) => {
            if io::Error::kind(&error) != io::ErrorKind::NotFound {
                tell!(warn, %error, "the checkpoint cannot be read");
            }
            None
        }
    }
}

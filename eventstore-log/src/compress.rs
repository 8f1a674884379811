use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::blocks::{self, BLOCK, PlainFile};
use crate::codec::Encoder;
use crate::copy::NEW;
use crate::files::create_anew;
use crate::format::{SEGMENT_HEADER, SegmentHeader, Summary, segment_name};
use crate::log::{Shared, lock};
use crate::scan::{CHUNK, Scanner, Window};
use crate::segment::{Segment, State};
use crate::{Compression, Error, File, Log, Result, anchors};

/// The result of a compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// The number of compressed segments.
    pub segments: u64,
    /// The size of their files before, in bytes.
    pub bytes_before: u64,
    /// The size of their files now, in bytes.
    pub bytes_after: u64,
}

impl Log {
    /// Whether the options enable compression.
    pub fn compresses(&self) -> bool {
        self.0.options.compression != Compression::None
    }

    /// Compresses segments that have a footer and are followed by another segment, as configured by the options: one
    /// after the other, each completely or not at all. A segment that would not shrink by an eighth is left as it is,
    /// and so is a damaged one. Neither is tried again until the log is reopened.
    ///
    /// Appends and reads continue meanwhile. `go_on` is called for each MiB; `false` stops the compression, and the
    /// current segment stays as it was.
    ///
    /// # Errors
    ///
    /// Errors of reading, writing and syncing, such as `Full`. Nothing is lost, and the log remains usable.
    pub fn compress(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Shrunk> {
        let mut shrunk = Shrunk::default();
        if !self.compresses() {
            return Ok(shrunk);
        }
        self.0.close_replaced();
        let mut behind = 0;
        loop {
            let _one = lock(&self.0.compressing);
            self.0.check_poison()?;
            if let Some(damage) = self.0.damage.get() {
                return Err(Error::corrupt(damage.record, damage.reason.clone()));
            }
            let segments = self.0.segments();
            let full = &segments[..segments.len().saturating_sub(1)];
            let Some(segment) = full.iter().find(|segment| segment.header.number > behind && is_due(segment)) else {
                return Ok(shrunk);
            };
            behind = segment.header.number;
            match Compressing::new(&self.0, segment)?.run(go_on)? {
                Outcome::Shrunk { before, after } => {
                    shrunk.segments += 1;
                    shrunk.bytes_before += before;
                    shrunk.bytes_after += after;
                }
                Outcome::NotWorthIt => segment.is_incompressible.store(true, Ordering::Relaxed),
                Outcome::Ended => return Ok(shrunk),
            }
        }
    }
}

fn is_due(segment: &Segment) -> bool {
    let is_sealed = segment.state().footer.is_some();
    is_sealed && !segment.header.is_compressed && !segment.is_incompressible.load(Ordering::Relaxed)
}

pub(crate) enum Outcome {
    Shrunk { before: u64, after: u64 },
    NotWorthIt,
    Ended,
}

/// A segment that is being compressed. It may be compressed already.
pub(crate) struct Compressing<'a> {
    shared: &'a Shared,
    old: &'a Arc<Segment>,
    old_file: Arc<dyn File>,
    old_len: u64,
    /// The largest size that is worth it, in bytes.
    most: u64,
    old_footer: Summary,
    /// The anchors and the blob, if they differ from those of the old footer.
    kept: Option<Vec<u8>>,
    header: SegmentHeader,
    name: String,
    new_name: String,
}

impl<'a> Compressing<'a> {
    fn new(shared: &'a Shared, old: &'a Arc<Segment>) -> Result<Self> {
        let (old_len, footer) = (old.state().len, old.state().footer.clone());
        let old_footer = footer.ok_or_else(|| Error::unsupported("compression of a segment without a footer"))?;
        Self::with(shared, old, old_footer, None, old_len - old_len / 8)
    }

    /// Compresses the segment again, with this footer and these anchors and blob.
    pub(crate) fn again(shared: &'a Shared, old: &'a Arc<Segment>, footer: Summary, kept: Vec<u8>) -> Result<Self> {
        Self::with(shared, old, footer, Some(kept), u64::MAX)
    }

    fn with(
        shared: &'a Shared,
        old: &'a Arc<Segment>,
        old_footer: Summary,
        kept: Option<Vec<u8>>,
        most: u64,
    ) -> Result<Self> {
        let (old_file, old_len) = (old.file(shared)?, old.state().len);
        let generation = old.header.generation.checked_add(1);
        let generation = generation.ok_or_else(|| Error::unsupported("so many generations of a segment"))?;
        let header = SegmentHeader { generation, is_compressed: true, ..old.header.clone() };
        let name = segment_name(header.number, generation);
        let new_name = format!("{name}{NEW}");
        Ok(Compressing { shared, old, old_file, old_len, most, old_footer, kept, header, name, new_name })
    }

    pub(crate) fn run(self, go_on: &mut dyn FnMut() -> bool) -> Result<Outcome> {
        let kept = match &self.kept {
            Some(kept) => Some(kept.clone()),
            None => read_kept(&*self.old_file, &self.old.name, &self.old_footer)?,
        };
        let Some(kept) = kept else { return Ok(Outcome::NotWorthIt) };
        let written = self.write(&kept, go_on).and_then(|written| match written {
            Written::All(footer) => Ok(match self.is_right(&footer, &kept, go_on)? {
                Some(true) => Written::All(footer),
                Some(false) => Written::TooMuch,
                None => Written::Ended,
            }),
            other => Ok(other),
        });
        let footer = match written {
            Ok(Written::All(footer)) => footer,
            other => {
                // Anything left is removed when the log is opened again.
                let _ = self.shared.files.remove(&self.new_name);
                return match other? {
                    Written::Ended => Ok(Outcome::Ended),
                    _ => Ok(Outcome::NotWorthIt),
                };
            }
        };
        self.replace(footer)
    }

    fn failed(&self, operation: &'static str) -> impl Fn(io::Error) -> Error {
        move |error| Error::io(operation, &self.new_name, error)
    }

    /// Writes the new generation under a temporary name and syncs it.
    fn write(&self, kept: &[u8], go_on: &mut dyn FnMut() -> bool) -> Result<Written> {
        let files = &self.shared.files;
        let file = create_anew(&**files, &self.new_name).map_err(self.failed("create"))?;
        let (salt, end) = (self.header.salt, self.old_footer.end);
        let mut window = Window::new(Arc::clone(&self.old_file), &self.old.name, end);
        let mut encoder = Encoder::new()?;
        let mut out = self.header.encode().to_vec();
        let (mut done, mut offsets) = (0, vec![SEGMENT_HEADER as u32]);
        for number in 0..blocks::count(end) {
            let at = SEGMENT_HEADER as u64 + number * BLOCK;
            let len = BLOCK.min(end - at);
            if (number * BLOCK).is_multiple_of(CHUNK as u64) && !go_on() {
                return Ok(Written::Ended);
            }
            let plain = window.get(at, len as usize)?;
            if plain.len() as u64 != len {
                return Ok(Written::TooMuch);
            }
            blocks::encode(salt, number, plain, encoder.encode(plain), &mut out);
            if done + out.len() as u64 > self.most {
                return Ok(Written::TooMuch);
            }
            offsets.push((done + out.len() as u64) as u32);
            if out.len() >= CHUNK {
                file.write_at(&out, done).map_err(self.failed("write"))?;
                done += out.len() as u64;
                out.clear();
            }
        }
        let (table, table_crc) = blocks::encode_table(salt, &offsets);
        let blocks = offsets.len() as u32 - 1;
        let summary = Summary { generation: self.header.generation, blocks, table_crc, ..self.old_footer.clone() };
        out.extend_from_slice(&table);
        out.extend_from_slice(kept);
        out.extend_from_slice(&summary.encode_end());
        if done + out.len() as u64 > self.most {
            return Ok(Written::TooMuch);
        }
        file.write_at(&out, done).map_err(self.failed("write"))?;
        file.sync_all().map_err(self.failed("sync"))?;
        tell!(trace, name: "compressed", segment = self.header.number, "compressed");
        Ok(Written::All(summary))
    }

    /// Whether the new file reads the same as the old one, and the old one is unchanged since it was sealed. `None` if
    /// the compression was stopped.
    fn is_right(&self, footer: &Summary, kept: &[u8], go_on: &mut dyn FnMut() -> bool) -> Result<Option<bool>> {
        let new = Arc::new(PlainFile::open(&*self.shared.files, &self.new_name, &self.header)?);
        let (len, file) = (footer.end, Arc::clone(&new) as Arc<dyn File>);
        if read_kept(&*file, &self.new_name, footer)?.as_deref() != Some(kept) {
            return Ok(Some(false));
        }
        let mut ours = Window::new(Arc::clone(&file), &self.new_name, len);
        let mut theirs = Window::new(Arc::clone(&self.old_file), &self.old.name, len);
        let mut at = SEGMENT_HEADER as u64;
        while at < len {
            if !go_on() {
                return Ok(None);
            }
            let wanted = CHUNK.min((len - at) as usize);
            let ours = ours.get(at, wanted)?;
            if ours.len() != wanted || ours != theirs.get(at, wanted)? {
                return Ok(Some(false));
            }
            at += wanted as u64;
        }
        let mut scanner = Scanner::new(file, &self.new_name, &self.header, footer.end);
        let mut asked_at = 0;
        while scanner.frame(&mut |_, _| {})?.is_some() {
            if scanner.at >= asked_at + CHUNK as u64 {
                asked_at = scanner.at;
                if !go_on() {
                    return Ok(None);
                }
            }
        }
        let is_sound = (scanner.at, scanner.next, scanner.chain) == (footer.end, footer.last + 1, footer.chain);
        if !is_sound {
            tell!(warn, name = self.old.name, "a segment is damaged, and is not compressed");
        }
        Ok(Some(is_sound && new.has_table() && new.fault(true).is_none()))
    }

    /// Replaces the old generation by the new one. The old one is removed once the new one is durable.
    fn replace(self, footer: Summary) -> Result<Outcome> {
        let files = &self.shared.files;
        let after = files.open(&self.new_name).and_then(|file| file.len()).map_err(self.failed("open"))?;
        let renamed = self.shared.change_names(|files| files.rename(&self.new_name, &self.name));
        if let Err(error) = renamed {
            // After a crash, either may exist. The old one is not known to be damaged, so it stays in use.
            self.old.is_incompressible.store(true, Ordering::Relaxed);
            return Err(self.failed("rename")(error));
        }
        tell!(trace, name: "renamed", segment = self.header.number, "a new generation of a segment");
        // Readers that still use the old generation find its file open.
        self.old.state_mut().file = Some(Arc::clone(&self.old_file));
        let state = {
            let old = self.old.state();
            let (next, end, chain, frame) = (old.next, old.end, old.chain, old.frame);
            State { next, end, chain, frame, len: after, file: None, footer: Some(footer), anchors: None }
        };
        let new = Arc::new(Segment::new(self.header.clone(), state));
        self.shared.replace_segment(self.old, new);
        if let Err(error) = self.shared.change_names(|files| files.remove(&self.old.name)) {
            tell!(warn, %error, name = self.old.name, "a replaced segment could not be removed; the next opening removes it");
        }
        tell!(trace, name: "replaced", segment = self.header.number, "the old generation is removed");
        Ok(Outcome::Shrunk { before: self.old_len, after })
    }
}

/// The anchors and the blob of a footer, if they are valid.
pub(crate) fn read_kept(file: &dyn File, name: &str, footer: &Summary) -> Result<Option<Vec<u8>>> {
    let anchors_len = footer.anchors as usize * anchors::LEN;
    let len = anchors_len + footer.blob as usize;
    let mut bytes = Vec::new();
    file.read_at(&mut bytes, footer.end, len).map_err(|error| Error::io("read", name, error))?;
    let is_sound = bytes.len() == len
        && crc32fast::hash(&bytes[..anchors_len]) == footer.anchors_crc
        && crc32fast::hash(&bytes[anchors_len..]) == footer.blob_crc;
    Ok(is_sound.then_some(bytes))
}

enum Written {
    All(Summary),
    /// It does not save enough, or something is wrong.
    TooMuch,
    Ended,
}

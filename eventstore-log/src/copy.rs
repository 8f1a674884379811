use std::io;
use std::sync::Arc;

use crate::files::create_anew;
use crate::format::{Head, SEGMENT_HEADER, SegmentHeader, Summary};
use crate::log::Shared;
use crate::recover::{Found, find_segments};
use crate::scan::{CHUNK, Scanner, Window};
use crate::segment::Segment;
use crate::{Directory, Error, File, Log, Result, cut};

/// The result of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The last record in the copy.
    pub record: u64,
    /// The number of bytes copied.
    pub bytes: u64,
}

/// The suffix of incomplete files.
pub(crate) const NEW: &str = ".new";

/// A file of the target with the names of segments, one a line, while they get these names. If it is there when a copy
/// begins, the sync behind their renaming may have failed. A later one may succeed and not make the names durable, so
/// these segments are copied again.
const RENAMING: &str = "renaming";

impl Log {
    /// Copies the log up to its end at the time of the call, which is synced first, to another directory. The directory
    /// is empty or has an earlier copy; then only new or grown segments are copied. These are checked first; segments
    /// that are already there are not.
    ///
    /// `go_on` is called for each MiB with the bytes copied so far and the total; `false` stops the copy. Whatever
    /// interrupts the copy, the target has a prefix of the log, which is no shorter than before.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the target is not a prefix of this log, `Corrupt` if a segment to copy is damaged; in both
    /// cases nothing was changed. Errors of reading, writing and syncing.
    pub fn copy_to(&self, target: &dyn Directory, go_on: &mut dyn FnMut(u64, u64) -> bool) -> Result<Option<Copied>> {
        if let Some(damage) = self.0.damage.get() {
            return Err(Error::corrupt(damage.record, damage.reason.clone()));
        }
        let sources = self.sources();
        self.0.sync_to(sources.last().map_or(0, |source| source.next - 1))?;
        let there = find_segments(target)?;
        check_target(&sources, &there)?;
        let doubtful = doubtful_names(target)?;
        let mut new = Vec::new();
        for source in &sources {
            let there = there.iter().find(|there| is_used(there) && there.number == source.segment.header.number);
            let is_doubtful = there.is_some_and(|there| doubtful.lines().any(|name| name == there.name));
            match there.map_or(Ok(true), |there| source.has_more_than(&self.0, target, there)) {
                Ok(has_more) if has_more || is_doubtful => new.push(source),
                Ok(_) => {}
                Err(refusal) => {
                    // The damage may be in this log, not in the target.
                    self.check_source(source, &mut |_| true)?;
                    return Err(refusal);
                }
            }
        }
        let is_new = |name: &String| new.iter().any(|source| source.segment.name == *name);
        let others: Vec<_> = there.iter().flat_map(|there| &there.others).filter(|name| !is_new(name)).collect();
        let replaced = new.iter().map(|source| replaced_by(source, &there)).collect();
        let total = new.iter().map(|source| source.len).sum();
        for source in &new {
            if !self.check_source(source, &mut |_| go_on(0, total))? {
                return Ok(None);
            }
        }
        let mut copy = Copy { log: &self.0, target, done: 0, total, go_on };
        if !copy.run(&new, replaced)? {
            return Ok(None);
        }
        cut::remove(target, others.into_iter().map(String::as_str))?;
        let record = sources.last().map_or(0, |source| source.next - 1);
        Ok(Some(Copied { record, bytes: copy.done }))
    }

    /// Fails if a record of a segment is damaged. `false` if the copy was stopped.
    fn check_source(&self, source: &Source, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        let (mut damage, mut is_ended) = (None, false);
        let mut records = 0;
        self.check_segment(
            source.segment.header.number,
            &mut |record, _| records += u64::from(record < source.next),
            &mut |record, reason| {
                damage.get_or_insert((record, reason));
            },
            &mut |at| {
                is_ended = !go_on(at);
                !is_ended
            },
        )?;
        match damage {
            // A damaged footer alone is no loss: the segment is read without it.
            Some((record, reason)) if !is_ended && records < source.next - source.segment.header.first => {
                Err(Error::corrupt(record, reason))
            }
            _ => Ok(!is_ended),
        }
    }

    /// What to copy of each segment.
    fn sources(&self) -> Vec<Source> {
        let last = self.last();
        let segments = self.0.segments();
        let begun = segments.iter().filter(|segment| segment.header.first <= last);
        begun.map(Source::new).collect()
    }
}

/// A segment as it is when the copy begins.
struct Source {
    segment: Arc<Segment>,
    next: u64,
    /// The end of the content.
    end: u64,
    /// The number of bytes of the file to copy.
    len: u64,
    footer: Option<Summary>,
}

impl Source {
    fn new(segment: &Arc<Segment>) -> Self {
        let state = segment.state();
        let is_whole = state.footer.is_some() || segment.header.is_compressed;
        let len = if is_whole { state.len } else { state.end };
        let (next, end, footer) = (state.next, state.end, state.footer.clone());
        drop(state);
        Source { segment: Arc::clone(segment), next, end, len, footer }
    }

    /// The file as stored, compressed or not.
    fn file(&self, log: &Shared) -> Result<Arc<dyn File>> {
        match self.segment.header.is_compressed {
            true => log.files.open(&self.segment.name).map_err(|error| Error::io("open", &self.segment.name, error)),
            false => self.segment.file(log),
        }
    }

    /// Whether it must be copied over the existing file, which must be a prefix of it.
    fn has_more_than(&self, log: &Shared, target: &dyn Directory, there: &Found) -> Result<bool> {
        let header = match &there.head {
            Head::Valid(header) if header.is_alike(&self.segment.header) => header,
            _ => return Err(not_ours(&there.name)),
        };
        let is_named = (header.number, header.generation) == (there.number, there.generation);
        let footer = there.footer(header).filter(|_| is_named);
        let is_equal = match (&footer, &self.footer) {
            (Some(theirs), Some(ours)) => theirs.is_alike(ours),
            _ => false,
        };
        if is_equal {
            return Ok(false);
        }
        let theirs = there.open(target)?;
        let end = match &footer {
            Some(footer) => footer.end,
            None => end_of(&theirs, there, header)?,
        };
        if end > self.end || !self.begins_with(log, theirs, end)? {
            return Err(not_ours(&there.name));
        }
        if there.generation > self.segment.header.generation && footer.is_some() {
            // The existing file would hide it. It has the same records with another blob.
            return if end == self.end { Ok(false) } else { Err(not_ours(&there.name)) };
        }
        Ok(end < self.end || (self.footer.is_some() && !is_equal))
    }

    fn begins_with(&self, log: &Shared, theirs: Arc<dyn File>, end: u64) -> Result<bool> {
        let mut ours = Window::new(self.segment.file(log)?, &self.segment.name, end);
        let mut theirs = Window::new(theirs, &self.segment.name, end);
        // The headers were compared already: they differ between generations.
        let mut at = SEGMENT_HEADER as u64;
        while at < end {
            let len = CHUNK.min((end - at) as usize);
            let ours = ours.get(at, len)?;
            if ours.len() < len || ours != theirs.get(at, len)? {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }
}

/// The end of the content of a segment without footer. Nothing may follow it.
fn end_of(file: &Arc<dyn File>, there: &Found, header: &SegmentHeader) -> Result<u64> {
    let mut scanner = Scanner::new(Arc::clone(file), &there.name, header, there.plain_len);
    while scanner.frame(&mut |_, _| {})?.is_some() {}
    match scanner.window.nonzero_end(scanner.at, there.plain_len)? {
        None => Ok(scanner.at),
        Some(_) => {
            Err(Error::unsupported(format!("a copy into a log with a torn or damaged end, in {:?}", there.name)))
        }
    }
}

/// The names of segments that may not be durable, one a line.
fn doubtful_names(target: &dyn Directory) -> Result<String> {
    let read = || -> io::Result<String> {
        let file = target.open(RENAMING)?;
        let mut bytes = Vec::new();
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        file.read_at(&mut bytes, 0, len)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(Copy::failed("read", RENAMING)),
    }
}

/// Whether a segment of the target has content, or was only preallocated.
fn is_used(there: &Found) -> bool {
    there.head != Head::Zeros
}

/// The file of the target that is replaced under another name.
fn replaced_by(source: &Source, there: &[Found]) -> Option<String> {
    let there = there.iter().find(|there| there.number == source.segment.header.number)?;
    (there.name != source.segment.name).then(|| there.name.clone())
}

fn not_ours(name: &str) -> Error {
    Error::unsupported(format!("a copy into a directory whose {name:?} is not a prefix of this log's"))
}

/// Checks that the segments of the target are the first ones of this log.
fn check_target(sources: &[Source], there: &[Found]) -> Result<()> {
    let used = there.iter().filter(|there| is_used(there));
    for (there, number) in used.zip(1..) {
        if there.number != number || sources.len() < number as usize {
            return Err(not_ours(&there.name));
        }
    }
    Ok(())
}

struct Copy<'a> {
    log: &'a Shared,
    target: &'a dyn Directory,
    done: u64,
    total: u64,
    go_on: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl Copy<'_> {
    /// `false` if the copy was stopped and nothing has changed.
    fn run(&mut self, sources: &[&Source], replaced: Vec<Option<String>>) -> Result<bool> {
        if sources.is_empty() {
            let _ = self.target.remove(RENAMING);
            // An earlier copy may have been interrupted just before this.
            return self.target.sync().map(|()| true).map_err(Self::failed("sync", "the directory"));
        }
        let copied = self
            .remove_new()
            .and_then(|()| self.write_all(sources))
            .and_then(|is_all| is_all.then(|| self.note_names(sources)).transpose().map(|noted| noted.is_some()));
        if !matches!(copied, Ok(true)) {
            // Anything left does no harm and is removed when the next copy begins.
            let _ = self.remove_new();
            return copied;
        }
        self.rename_all(sources, replaced)?;
        // If it stays, the next copy copies more than it has to.
        let _ = self.target.remove(RENAMING).and_then(|()| self.target.sync());
        Ok(true)
    }

    /// Not durably: after a power cut, names that are there are durable.
    fn note_names(&self, sources: &[&Source]) -> Result<()> {
        let names: String = sources.iter().map(|source| format!("{}\n", source.segment.name)).collect();
        let new_name = format!("{RENAMING}{NEW}");
        let noted = create_anew(self.target, &new_name).and_then(|file| file.write_at(names.as_bytes(), 0));
        noted.and_then(|()| self.target.rename(&new_name, RENAMING)).map_err(Self::failed("write", RENAMING))
    }

    fn failed(operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::io(operation, &format!("{name} of the copy"), error)
    }

    fn remove_new(&self) -> Result<()> {
        let names = self.target.list().map_err(Self::failed("list", "the directory"))?;
        for name in names.iter().filter(|name| name.ends_with(".seg.new")) {
            self.target.remove(name).map_err(Self::failed("remove", name))?;
        }
        Ok(())
    }

    fn write_all(&mut self, sources: &[&Source]) -> Result<bool> {
        for source in sources {
            if !self.write(source)? {
                return Ok(false);
            }
        }
        self.target.sync().map_err(Self::failed("sync", "the directory"))?;
        Ok(true)
    }

    fn write(&mut self, source: &Source) -> Result<bool> {
        let name = format!("{}{NEW}", source.segment.name);
        let copy = self.target.create(&name).map_err(Self::failed("create", &name))?;
        let mut window = Window::new(source.file(self.log)?, &source.segment.name, source.len);
        let mut at = 0;
        while at < source.len {
            if !(self.go_on)(self.done, self.total) {
                return Ok(false);
            }
            let bytes = window.get(at, CHUNK.min((source.len - at) as usize))?;
            if bytes.is_empty() {
                return Err(Error::corrupt(
                    source.segment.header.first,
                    format!("{:?} is cut off", source.segment.name),
                ));
            }
            let len = bytes.len() as u64;
            copy.write_at(bytes, at).map_err(Self::failed("write", &name))?;
            at += len;
            self.done += len;
        }
        copy.sync_all().map_err(Self::failed("sync", &name))?;
        Ok(true)
    }

    /// In order, so that the target is a prefix of the log at any time.
    fn rename_all(&self, sources: &[&Source], replaced: Vec<Option<String>>) -> Result<()> {
        for (source, replaced) in sources.iter().zip(replaced) {
            let name = &source.segment.name;
            let renamed = self.target.rename(&format!("{name}{NEW}"), name);
            renamed.and_then(|()| self.target.sync()).map_err(Self::failed("rename", name))?;
            // The name of the new generation must be durable before that of the old one is removed.
            cut::remove(self.target, replaced.as_deref().into_iter())?;
        }
        Ok(())
    }
}

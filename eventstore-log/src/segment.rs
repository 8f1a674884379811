use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::anchors::{self, Anchor};
use crate::cache::SegmentKey;
use crate::format::{self, SEGMENT_HEADER, SegmentHeader, Summary};
use crate::log::Shared;
use crate::{Error, File, Position, Result, blocks, cache, scan};

/// A segment that has records.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) name: String,
    state: RwLock<State>,
    /// Whether compression was tried without success.
    pub(crate) is_incompressible: AtomicBool,
}

/// The mutable state of a segment.
#[derive(Debug)]
pub(crate) struct State {
    /// The number after its last record.
    pub(crate) next: u64,
    /// The end of its content.
    pub(crate) end: u64,
    /// The start of its last frame. 0 if there is none, or if it is unknown because the segment has a footer.
    pub(crate) frame: u64,
    /// The checksum of its last frame's header.
    pub(crate) chain: u32,
    /// The size of the file. All other offsets are those of plain bytes.
    pub(crate) len: u64,
    /// Its file while it is written, or, after it was replaced by another generation, for its remaining readers.
    pub(crate) file: Option<Arc<dyn File>>,
    /// Its footer, if it has one.
    pub(crate) footer: Option<Summary>,
    /// The anchors of a segment without a footer.
    pub(crate) anchors: Option<Vec<Anchor>>,
}

impl State {
    /// The state of a segment that has only its header.
    pub(crate) fn new(header: &SegmentHeader) -> Self {
        State {
            next: header.first,
            end: SEGMENT_HEADER as u64,
            frame: 0,
            chain: header.chain,
            len: 0,
            file: None,
            footer: None,
            anchors: Some(Vec::new()),
        }
    }
}

/// Where to read some records.
pub(crate) struct Place {
    pub(crate) file: Arc<dyn File>,
    /// The number of the record at `start`.
    pub(crate) number: u64,
    pub(crate) start: u64,
    /// All of the records end before this offset.
    pub(crate) end: u64,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader, state: State) -> Self {
        let name = format::segment_name(header.number, header.generation);
        Segment { header, name, state: RwLock::new(state), is_incompressible: AtomicBool::new(false) }
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self, log: &Shared) -> SegmentKey {
        SegmentKey { log: log.instance, number: self.header.number, generation: self.header.generation }
    }

    /// The position after its last record.
    pub(crate) fn end(&self) -> Position {
        let state = self.state();
        let State { next, end: offset, frame, chain, .. } = *state;
        Position { segment: self.header.number, offset, frame, next, chain }
    }

    /// Its plain bytes: the file being written, or one that is opened for reading and cached.
    pub(crate) fn file(&self, log: &Shared) -> Result<Arc<dyn File>> {
        if let Some(file) = &self.state().file {
            return Ok(Arc::clone(file));
        }
        let key = self.key(log);
        if let Some(file) = cache::file(key) {
            return Ok(file);
        }
        let file = match blocks::open(&*log.files, &self.name, &self.header) {
            Ok(file) => file,
            // Another generation may have just replaced it.
            Err(error) => return self.state().file.clone().ok_or(error),
        };
        cache::put_file(key, Arc::clone(&file));
        Ok(file)
    }

    /// Calls `look_up` with the anchors.
    pub(crate) fn with_anchors<T>(&self, log: &Shared, look_up: impl FnOnce(&[Anchor]) -> T) -> Result<T> {
        let footer = {
            let state = self.state();
            match (&state.anchors, &state.footer) {
                (Some(anchors), _) => return Ok(look_up(anchors)),
                (None, Some(footer)) => footer.clone(),
                (None, None) => return Ok(look_up(&[])),
            }
        };
        if let Some(anchors) = cache::anchors(self.key(log)) {
            return Ok(look_up(&anchors));
        }
        let anchors = self.load_anchors(log, &footer)?;
        let result = look_up(&anchors);
        if log.is_memory {
            self.state_mut().anchors = Some(anchors);
        } else {
            cache::put_anchors(self.key(log), Arc::new(anchors));
        }
        Ok(result)
    }

    fn load_anchors(&self, log: &Shared, footer: &Summary) -> Result<Vec<Anchor>> {
        let file = self.file(log)?;
        let mut bytes = Vec::new();
        let len = footer.anchors as usize * anchors::LEN;
        file.read_at(&mut bytes, footer.end, len).map_err(|error| Error::io("read", &self.name, error))?;
        let anchors = anchors::decode(&bytes);
        let is_sound = bytes.len() == len
            && crc32fast::hash(&bytes) == footer.anchors_crc
            && anchors::are_possible(&anchors, footer.last + 1 - footer.first, footer.end);
        if is_sound {
            return Ok(anchors);
        }
        tell!(warn, name = self.name, "the footer is damaged; the segment is scanned");
        scan::anchors_of(file, &self.name, &self.header, footer.end)
    }

    /// Where the records from `from` to before `to` are. The first of them exists.
    pub(crate) fn place(&self, log: &Shared, from: u64, to: u64) -> Result<Place> {
        let (file, end) = (self.file(log)?, self.state().end);
        let first = self.header.first;
        let (start, behind) = self.with_anchors(log, |anchors| {
            (anchors::at_or_before(anchors, from - first), anchors::at_or_behind(anchors, to - first))
        })?;
        let start = start.ok_or_else(|| Error::corrupt(from, format!("it is missing in {:?}", self.name)))?;
        let end = behind.map_or(end, |anchor| u64::from(anchor.offset).min(end));
        Ok(Place { file, number: first + u64::from(start.number), start: u64::from(start.offset), end })
    }
}

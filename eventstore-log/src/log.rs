use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::cache::SegmentKey;
use crate::segment::Segment;
use crate::space::Space;
use crate::{Damage, Directory, Error, File, Options, Result, cache};

/// A place between two records of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// 0: before the first record.
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// Where the frame before it begins. 0: there is none in the segment, or nobody knows since it has a footer.
    pub(crate) frame: u64,
    /// The number of the record behind it.
    pub(crate) next: u64,
    /// The checksum of the header of the frame before it.
    pub(crate) chain: u32,
}

impl Position {
    /// Before the first record.
    pub(crate) const START: Position = Position { segment: 0, offset: 0, frame: 0, next: 1, chain: 0 };

    /// The last record before it. 0: none.
    pub fn record(&self) -> u64 {
        self.next - 1
    }
}

/// A log, for reading and syncing. Clones share it, and any number of threads use it.
#[derive(Clone)]
pub struct Log(pub(crate) Arc<Shared>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("last", &self.last()).field("synced", &self.synced()).finish_non_exhaustive()
    }
}

/// A segment of a log, as it was when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Segments are numbered from 1.
    pub number: u64,
    /// How often it was replaced.
    pub generation: u32,
    /// The records in it.
    pub records: Range<u64>,
    /// How long its file is: less than its records if it is compressed.
    pub bytes: u64,
    /// Whether it has its footer, and never changes any more.
    pub is_sealed: bool,
}

/// What all who use a log share.
pub(crate) struct Shared {
    pub(crate) files: Arc<dyn Directory>,
    pub(crate) id: [u8; 16],
    pub(crate) options: Options,
    /// Tells it from other logs of the process.
    pub(crate) instance: u64,
    pub(crate) is_memory: bool,
    segments: RwLock<Arc<Vec<Arc<Segment>>>>,
    /// The last record that readers see.
    last: AtomicU64,
    /// The last record that is in its file. The group that is on its way may be there already.
    written: AtomicU64,
    synced: AtomicU64,
    /// What failed, so that the log takes nothing more.
    poison: OnceLock<String>,
    /// The file that has all records that are not synced.
    active: Mutex<Option<Arc<dyn File>>>,
    /// One sync at a time: who waits for it is often synced by the one before.
    pub(crate) syncing: Mutex<()>,
    pub(crate) space: Space,
    pub(crate) checkpointing: Mutex<()>,
    /// Held while one segment is compressed.
    pub(crate) compressing: Mutex<()>,
    /// Segments that others have taken the place of.
    replaced: Mutex<Vec<SegmentKey>>,
    pub(crate) damage: OnceLock<Damage>,
}

impl Shared {
    pub(crate) fn new(files: Arc<dyn Directory>, id: [u8; 16], options: &Options) -> Self {
        cache::grow(options.cache_size);
        Shared {
            is_memory: files.is_memory(),
            files,
            id,
            options: options.clone(),
            instance: cache::next_log(),
            segments: RwLock::default(),
            last: AtomicU64::new(0),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            poison: OnceLock::new(),
            active: Mutex::new(None),
            syncing: Mutex::new(()),
            space: Space::default(),
            checkpointing: Mutex::new(()),
            compressing: Mutex::new(()),
            replaced: Mutex::default(),
            damage: OnceLock::new(),
        }
    }

    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        Arc::clone(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds the segment that comes next.
    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut segments).push(segment);
    }

    /// Lets another generation take the place of a segment. Who has the old one may read it further.
    pub(crate) fn replace_segment(&self, old: &Segment, new: Arc<Segment>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        for segment in Arc::make_mut(&mut segments) {
            if segment.header == old.header {
                *segment = Arc::clone(&new);
            }
        }
        drop(segments);
        cache::close_file(old.key(self));
        lock(&self.replaced).push(old.key(self));
    }

    /// A reader who was about to open the file of a segment that was replaced may have put it into the cache behind that.
    pub(crate) fn close_replaced(&self) {
        lock(&self.replaced).drain(..).for_each(cache::close_file);
    }

    /// The segment that has a record, which is not behind the last.
    pub(crate) fn segment_of(&self, record: u64) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let index = segments.partition_point(|segment| segment.header.first <= record);
        segments[..index].last().cloned()
    }

    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Lets readers see the records up to this one.
    pub(crate) fn publish(&self, last: u64) {
        self.last.store(last, Ordering::Release);
    }

    /// Everything up to this record is in its file; what is not synced is in this one.
    pub(crate) fn set_written(&self, written: u64, file: Option<&Arc<dyn File>>) {
        if let Some(file) = file {
            *lock(&self.active) = Some(Arc::clone(file));
        }
        // Behind the file: who syncs takes the number first.
        self.written.store(written, Ordering::Release);
    }

    pub(crate) fn set_synced(&self, synced: u64) {
        self.synced.store(synced, Ordering::Release);
    }

    /// No commit and no sync succeeds any more.
    pub(crate) fn poison(&self, why: &Error) {
        if self.poison.set(with_cause(why)).is_ok() {
            tell!(error, error = why as &dyn std::error::Error, "the log accepts nothing more until it is reopened");
        }
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |reason| Err(Error::Fenced { reason: reason.clone() }))
    }

    /// Syncs at least up to this record, which is written. This is the one place where records are synced.
    pub(crate) fn sync_to(&self, record: u64) -> Result<()> {
        if self.synced() >= record {
            // What is synced stays so, but nobody shall build on a log that has failed.
            return self.check_poison();
        }
        let _one = lock(&self.syncing);
        self.check_poison()?;
        if self.synced() >= record {
            return Ok(());
        }
        let written = self.written.load(Ordering::Acquire);
        let file = lock(&self.active).clone();
        if let Some(file) = file {
            self.sync_file(|| file.sync_data(), "the newest segment")?;
        }
        self.synced.store(written, Ordering::Release);
        Ok(())
    }

    /// Syncs something of which the log's promises depend: if it fails, the log takes nothing more.
    pub(crate) fn sync_file(&self, sync: impl FnOnce() -> std::io::Result<()>, name: &str) -> Result<()> {
        sync().map_err(|source| {
            // Not `Full`, whatever the reason: the log does not go on.
            let error = Error::Io { operation: "sync", name: name.to_owned(), source };
            self.poison(&error);
            error
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for segment in self.segments().iter() {
            cache::close_file(segment.key(self));
        }
        self.close_replaced();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// The last record that is committed. 0: none.
    pub fn last(&self) -> u64 {
        self.0.last()
    }

    /// The last committed record that is known to be on stable storage. 0: none.
    pub fn synced(&self) -> u64 {
        self.0.synced().min(self.last())
    }

    /// The place behind the last record.
    pub fn position(&self) -> Position {
        self.0.segments().last().map_or(Position::START, |segment| segment.end())
    }

    /// Brings everything that was committed before to stable storage.
    ///
    /// # Errors
    ///
    /// What the sync says: it is not known what is on stable storage then, and everything after that is
    /// [`Fenced`](Error::Fenced).
    pub fn sync(&self) -> Result<()> {
        self.0.sync_to(self.last())
    }

    /// Its segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let info = |segment: &Arc<Segment>| {
            let state = segment.state();
            SegmentInfo {
                number: segment.header.number,
                generation: segment.header.generation,
                records: segment.header.first..state.next,
                bytes: state.len,
                is_sealed: state.footer.is_some(),
            }
        };
        self.0.segments().iter().map(info).collect()
    }

    /// How many bytes its files have.
    pub fn len_bytes(&self) -> u64 {
        let segments: u64 = self.segments().iter().map(|segment| segment.bytes).sum();
        segments + self.0.space.next_len()
    }
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

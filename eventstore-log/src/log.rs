use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::cache::SegmentKey;
use crate::segment::Segment;
use crate::space::Space;
use crate::{Damage, Directory, Error, File, Options, Result, cache};

/// A position between two records of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// 0 if it is before the first record.
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// The start of the frame before it. 0 if the segment has none, or if it is unknown because the segment has a
    /// footer.
    pub(crate) frame: u64,
    /// The number of the next record.
    pub(crate) next: u64,
    /// The checksum of the header of the frame before it.
    pub(crate) chain: u32,
}

impl Position {
    /// Before the first record.
    pub(crate) const START: Position = Position { segment: 0, offset: 0, frame: 0, next: 1, chain: 0 };

    /// The last record before it; 0 if there is none.
    pub fn record(&self) -> u64 {
        self.next - 1
    }
}

/// A log, for reading and syncing. Clones share it, and any number of threads may use it.
#[derive(Clone)]
pub struct Log(pub(crate) Arc<Shared>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("last", &self.last()).field("synced", &self.synced()).finish_non_exhaustive()
    }
}

/// A segment of a log at the time of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Segments are numbered from 1.
    pub number: u64,
    /// The number of times it was replaced.
    pub generation: u32,
    /// The records in it.
    pub records: Range<u64>,
    /// The size of its file. Smaller than its records if it is compressed.
    pub bytes: u64,
    /// Whether it has its footer and never changes again.
    pub is_sealed: bool,
}

/// The shared state of a log.
pub(crate) struct Shared {
    pub(crate) files: Arc<dyn Directory>,
    pub(crate) id: [u8; 16],
    pub(crate) options: Options,
    /// Identifies the log in the process.
    pub(crate) instance: u64,
    pub(crate) is_memory: bool,
    segments: RwLock<Arc<Vec<Arc<Segment>>>>,
    /// The last record visible to readers.
    last: AtomicU64,
    /// The last record in its file. The group that is being written may be there already.
    written: AtomicU64,
    synced: AtomicU64,
    /// The failure after which the log accepts nothing more.
    poison: OnceLock<String>,
    /// The file with all records that are not synced.
    active: Mutex<Option<Arc<dyn File>>>,
    /// Allows one sync at a time: whoever waits is often covered by the one before.
    pub(crate) syncing: Mutex<()>,
    pub(crate) space: Space,
    /// Held from a change of names in the directory to the end of its sync. If a sync fails, a later one may succeed and not
    /// make durable what the first one should have, so it must not concern what somebody else does.
    pub(crate) naming: Mutex<()>,
    pub(crate) checkpointing: Mutex<()>,
    /// Held while a segment is compressed.
    pub(crate) compressing: Mutex<()>,
    /// Segments that were replaced by another generation.
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
            naming: Mutex::new(()),
            checkpointing: Mutex::new(()),
            compressing: Mutex::new(()),
            replaced: Mutex::default(),
            damage: OnceLock::new(),
        }
    }

    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        Arc::clone(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds the next segment.
    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut segments).push(segment);
    }

    /// Replaces a segment by another generation. Readers of the old one may continue.
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

    /// A reader that was about to open the file of a replaced segment may have put it into the cache afterwards.
    pub(crate) fn close_replaced(&self) {
        lock(&self.replaced).drain(..).for_each(cache::close_file);
    }

    /// The segment with this record, which is not after the last one.
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

    /// Makes the records up to this one visible to readers.
    pub(crate) fn publish(&self, last: u64) {
        self.last.store(last, Ordering::Release);
    }

    /// Everything up to this record is in its file, and everything unsynced is in this file.
    pub(crate) fn set_written(&self, written: u64, file: Option<&Arc<dyn File>>) {
        if let Some(file) = file {
            *lock(&self.active) = Some(Arc::clone(file));
        }
        // After the file: a sync reads the number first.
        self.written.store(written, Ordering::Release);
    }

    pub(crate) fn set_synced(&self, synced: u64) {
        self.synced.store(synced, Ordering::Release);
    }

    /// From now on, every commit and sync fails.
    pub(crate) fn poison(&self, why: &Error) {
        if self.poison.set(with_cause(why)).is_ok() {
            tell!(error, error = why as &dyn std::error::Error, "the log accepts nothing more until it is reopened");
        }
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |reason| Err(Error::Fenced { reason: reason.clone() }))
    }

    /// Syncs at least up to this record, which is written. Records are synced nowhere else.
    pub(crate) fn sync_to(&self, record: u64) -> Result<()> {
        if self.synced() >= record {
            // What is synced stays synced, but nothing may rely on a log that has failed.
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

    /// Changes names in the directory, durably.
    pub(crate) fn change_names(
        &self,
        change: impl FnOnce(&dyn Directory) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let _alone = lock(&self.naming);
        change(&*self.files).and_then(|()| self.files.sync())
    }

    /// Syncs something that the log's guarantees depend on. If it fails, the log accepts nothing more.
    pub(crate) fn sync_file(&self, sync: impl FnOnce() -> std::io::Result<()>, name: &str) -> Result<()> {
        sync().map_err(|source| {
            // Not `Full`, whatever the reason: the log does not recover.
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
    /// The last committed record; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.0.last()
    }

    /// The last committed record that is known to be on stable storage; 0 if there is none.
    pub fn synced(&self) -> u64 {
        self.0.synced().min(self.last())
    }

    /// The position after the last record.
    pub fn position(&self) -> Position {
        self.0.segments().last().map_or(Position::START, |segment| segment.end())
    }

    /// Syncs everything that was committed before the call to stable storage.
    ///
    /// # Errors
    ///
    /// The error of the sync. Then it is unknown what is on stable storage, and everything after it is
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

    /// The size of its files in bytes.
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

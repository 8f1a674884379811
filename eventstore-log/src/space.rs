//! Preallocation: zeros after the end, and the next segment.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::background::{self, Handle};
use crate::error::is_full;
use crate::format;
use crate::log::{Shared, lock};
use crate::{Error, File, Result};

/// The number of zeros written at once.
const CHUNK: usize = 256 << 10;
/// The number of bytes between syncs: an append that needs more space waits for at most this much.
const PIECE: usize = 1 << 20;
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// Space is preallocated in units of this many bytes.
const UNIT: u64 = 4096;

/// The preallocated space after the end of the log.
#[derive(Default)]
pub(crate) struct Space {
    /// Everything appended lies before this offset of the newest segment. Also in `fill`.
    filled: AtomicU64,
    fill: Mutex<Fill>,
    job: Mutex<Option<Handle>>,
    /// After a lack of space: the end of the content at which to try again.
    retry_at: AtomicU64,
}

#[derive(Default)]
struct Fill {
    /// The newest segment, and its file.
    segment: u64,
    name: String,
    file: Option<Arc<dyn File>>,
    filled: u64,
    next: Option<Made>,
}

/// A preallocated segment of zeros.
pub(crate) struct Made {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) file: Arc<dyn File>,
    pub(crate) len: u64,
}

/// The newest segment, as reported to the background.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newest {
    pub(crate) segment: u64,
    pub(crate) end: u64,
    pub(crate) capacity: u64,
    /// The size of the whole log.
    pub(crate) log_len: u64,
}

impl Newest {
    /// The most to preallocate: never more than the log already has.
    fn ahead(&self, space_ahead: u64) -> u64 {
        space_ahead.min(self.log_len)
    }

    fn target(&self, space_ahead: u64) -> u64 {
        (self.end + self.ahead(space_ahead)).next_multiple_of(UNIT).min(self.capacity)
    }

    fn wants_more(&self, filled: u64, space_ahead: u64) -> bool {
        let target = self.target(space_ahead);
        filled < target && filled.saturating_sub(self.end) <= (target - self.end) / 2
    }

    fn wants_next(&self, filled: u64, space_ahead: u64) -> bool {
        filled >= self.capacity && self.capacity.saturating_sub(self.end) <= self.ahead(space_ahead) / 2
    }
}

impl Space {
    /// The length of the preallocated segment.
    pub(crate) fn next_len(&self) -> u64 {
        lock(&self.fill).next.as_ref().map_or(0, |made| made.len)
    }

    /// How far the newest segment is filled.
    pub(crate) fn filled(&self) -> u64 {
        self.filled.load(Ordering::Acquire)
    }

    /// Switches to this newest segment.
    pub(crate) fn begin(&self, (segment, name): (u64, &str), file: &Arc<dyn File>, filled: u64) {
        let mut fill = lock(&self.fill);
        (fill.segment, fill.name, fill.file) = (segment, name.to_owned(), Some(Arc::clone(file)));
        self.set_filled(&mut fill, filled);
        self.retry_at.store(0, Ordering::Relaxed);
    }

    fn set_filled(&self, fill: &mut Fill, filled: u64) {
        fill.filled = filled;
        self.filled.store(filled, Ordering::Release);
    }

    /// Waits for background work for this log.
    pub(crate) fn wait(&self) {
        let job = lock(&self.job).take();
        if let Some(job) = job {
            job.wait();
        }
    }

    pub(crate) fn take_next(&self, number: u64) -> Option<Made> {
        lock(&self.fill).next.take_if(|made| made.number == number)
    }

    pub(crate) fn put_next(&self, made: Made) {
        lock(&self.fill).next = Some(made);
    }
}

impl Shared {
    /// Fills the newest segment with zeros up to `end`. On failure it is as before.
    pub(crate) fn make_room(&self, end: u64, capacity: u64) -> Result<()> {
        if self.is_memory || end <= self.space.filled() {
            return Ok(());
        }
        let mut fill = lock(&self.space.fill);
        let Some(file) = fill.file.clone() else { return Ok(()) };
        let before = fill.filled;
        let end = if self.options.space_ahead > 0 { end.next_multiple_of(UNIT).min(capacity.max(end)) } else { end };
        match fill_zeros(&*file, before, end) {
            Ok(()) => {
                self.space.set_filled(&mut fill, end);
                Ok(())
            }
            Err(error) => Err(self.not_filled(&*file, before, error)),
        }
    }

    /// Undoes a failed fill. If it failed for another reason than a full disk, nothing more may be appended.
    pub(crate) fn not_filled(&self, file: &dyn File, before: u64, error: io::Error) -> Error {
        let is_full = is_full(&error);
        let error = Error::io("make room in", "the newest segment", error);
        if is_full {
            // Any remaining zeros do no harm.
            let _ = file.set_len(before);
        } else {
            self.poison(&error);
        }
        error
    }

    /// Removes everything after the end of the newest segment, durably: a part of a group may be there.
    pub(crate) fn cut_to(&self, end: u64) -> Result<()> {
        let mut fill = lock(&self.space.fill);
        let Some(file) = fill.file.clone() else { return Ok(()) };
        self.space.set_filled(&mut fill, end);
        self.sync_file(|| file.set_len(end).and_then(|()| file.sync_all()), "the newest segment")
    }

    /// Starts preallocation in the background, if it is due.
    pub(crate) fn make_ahead(self: &Arc<Self>, newest: Newest) {
        let (filled, ahead) = (self.space.filled(), self.options.space_ahead);
        let is_wanted = newest.wants_more(filled, ahead) || newest.wants_next(filled, ahead);
        if self.is_memory || !is_wanted || ahead == 0 || newest.end < self.space.retry_at.load(Ordering::Relaxed) {
            return;
        }
        let mut job = lock(&self.space.job);
        if job.as_ref().is_some_and(|job| !job.is_finished()) || self.check_poison().is_err() {
            return;
        }
        if newest.wants_more(filled, ahead) || lock(&self.space.fill).next.is_none() {
            let shared = Arc::clone(self);
            *job = Some(background::spawn("space", move || shared.make_space(newest)));
        }
    }

    fn make_space(&self, newest: Newest) {
        let (filled, ahead) = (self.space.filled(), self.options.space_ahead);
        let made = if newest.wants_next(filled, ahead) { self.make_next(&newest) } else { self.fill_ahead(&newest) };
        match made {
            Ok(()) => tell!(trace, name: "space", segment = newest.segment, "space made"),
            Err(error) if error.is_shortage() => {
                tell!(warn, error = &error as &dyn std::error::Error, "space could not be preallocated for the log");
                self.space.retry_at.store(newest.end + (1 << 20), Ordering::Relaxed);
            }
            Err(error) => self.poison(&error),
        }
    }

    fn fill_ahead(&self, newest: &Newest) -> Result<()> {
        let target = newest.target(self.options.space_ahead);
        let mut synced = true;
        loop {
            let mut fill = lock(&self.space.fill);
            // The log may have moved on, or filled it itself.
            let Some(file) = fill.file.clone().filter(|_| fill.segment == newest.segment) else { return Ok(()) };
            let (from, to) = (fill.filled, target.min(fill.filled + PIECE as u64));
            // In pieces: the next group also syncs what is not synced yet, and must not wait for long.
            if !std::mem::replace(&mut synced, true) || from >= to {
                let name = fill.name.clone();
                drop(fill);
                self.sync_ahead(&name)?;
                if from >= to {
                    return Ok(());
                }
                continue;
            }
            synced = false;
            if let Err(error) = fill_zeros(&*file, from, to) {
                return Err(self.not_filled(&*file, from, error));
            }
            self.space.set_filled(&mut fill, to);
        }
    }

    /// Syncs zeros that were written after the end.
    ///
    /// If it fails, appended data may be lost as well. The next sync must report that, although an error is reported
    /// only once per open file. So this opens the file separately: on Linux, each open file gets the error. On other
    /// systems nobody else syncs meanwhile.
    fn sync_ahead(&self, name: &str) -> Result<()> {
        let file = self.files.open(name).map_err(|error| Error::io("open", name, error))?;
        let _alone = (!cfg!(target_os = "linux")).then(|| lock(&self.syncing));
        self.sync_file(|| file.sync_all(), name)
    }

    fn make_next(&self, newest: &Newest) -> Result<()> {
        let number = newest.segment + 1;
        let len = newest.ahead(self.options.space_ahead).max(UNIT).min(self.options.capacity(number));
        let made = self.new_segment(number, len)?;
        self.space.put_next(made);
        Ok(())
    }

    /// Creates a segment of zeros that survives a power cut. If there is no room for it, it is not created.
    pub(crate) fn new_segment(&self, number: u64, len: u64) -> Result<Made> {
        let name = format::segment_name(number, 0);
        let file = {
            let _alone = lock(&self.naming);
            let file = self.files.create(&name).map_err(|error| {
                let error = Error::io("create", &name, error);
                if !error.is_shortage() {
                    self.poison(&error);
                }
                error
            })?;
            self.sync_file(|| self.files.sync(), "the directory")?;
            file
        };
        if self.is_memory {
            return Ok(Made { number, name, file, len: 0 });
        }
        // In pieces, since the syncs of groups wait for the disk to finish these.
        for from in (0..len).step_by(PIECE) {
            if let Err(error) = fill_zeros(&*file, from, len.min(from + PIECE as u64)) {
                let error = self.not_filled(&*file, 0, error);
                let _ = self.files.remove(&name);
                return Err(error);
            }
            self.sync_file(|| file.sync_all(), &name)?;
        }
        Ok(Made { number, name, file, len })
    }

    /// Frees all unused space. Not durably: at worst, zeros remain.
    pub(crate) fn release_space(&self, end: u64) {
        self.space.wait();
        if self.is_memory || self.check_poison().is_err() {
            return;
        }
        let mut fill = lock(&self.space.fill);
        if let Some(next) = fill.next.take()
            && let Err(error) = self.files.remove(&next.name)
        {
            tell!(warn, %error, name = next.name, "a preallocated segment could not be removed");
        }
        if let Some(file) = fill.file.take().filter(|_| fill.filled > end) {
            match file.set_len(end) {
                Ok(()) => self.space.set_filled(&mut fill, end),
                Err(error) => tell!(warn, %error, "preallocated space of the log could not be freed"),
            }
        }
    }
}

/// Writes zeros, so that later writes there find room.
pub(crate) fn fill_zeros(file: &dyn File, mut from: u64, to: u64) -> io::Result<()> {
    while from < to {
        let len = (to - from).min(CHUNK as u64);
        file.write_at(&ZEROS[..len as usize], from)?;
        from += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_grows_with_the_log_and_stays_in_its_segment() {
        let newest = |end, capacity, log_len| Newest { segment: 1, end, capacity, log_len };
        let ahead = 16 << 20;
        assert_eq!(newest(200, 65536, 200).target(ahead), 4096);
        assert_eq!(newest(5000, 65536, 5000).target(ahead), 12288);
        assert_eq!(newest(60_000, 65536, 60_000).target(ahead), 65536);
        assert_eq!(newest(0, 1 << 30, 1 << 30).target(ahead), ahead);
        assert!(newest(5000, 65536, 5000).wants_more(8192, ahead));
        assert!(!newest(5000, 65536, 5000).wants_more(12288, ahead));
        assert!(newest(60_000, 65536, 60_000).wants_next(65536, ahead));
        assert!(!newest(20_000, 65536, 20_000).wants_next(65536, ahead));
        assert!(!newest(60_000, 65536, 60_000).wants_next(61440, ahead));
    }
}

//! What was written and not synced, so that it can be taken back.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use crate::Surviving;
use crate::calls;
use crate::names::{Handle, NameLog, Place};

const SECTOR: u64 = 512;

/// The device and the number of a file's inode.
pub(crate) type Inode = (u64, u64);

/// The changes of watched files, and of their names, that a power cut would take back.
pub(crate) struct UndoLog {
    files: Option<HashMap<Inode, Changed>>,
    names: NameLog,
    /// Numbers the changes.
    next: u64,
}

/// A changed file. It is held open for as long as the process lives: that keeps its inode from being used again, and closing
/// any handle would give back the locks that the program has on the file.
struct Changed {
    file: File,
    changes: Vec<Change>,
}

struct Change {
    number: u64,
    kind: Kind,
    /// The length of the file before.
    old_len: u64,
    /// A sync that was to make it safe has failed.
    is_lost: bool,
}

enum Kind {
    Write { offset: u64, old: Vec<u8>, new: Vec<u8> },
    Resize { len: u64, cut_off: Vec<u8> },
}

impl UndoLog {
    pub(crate) const fn new() -> Self {
        UndoLog { files: None, names: NameLog::new(), next: 0 }
    }

    /// Takes everything that was written for safe.
    pub(crate) fn forget(&mut self) {
        for changed in self.files.iter_mut().flatten().map(|(_, changed)| changed) {
            changed.changes.clear();
        }
        self.names.forget();
    }

    /// The number of the newest change.
    pub(crate) fn newest(&self) -> u64 {
        self.next
    }

    /// A write is about to be made at this offset, or where the file's handle stands. What is kept is what [`wrote`] gets.
    ///
    /// [`wrote`]: UndoLog::wrote
    pub(crate) fn before_write(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, bytes: Vec<u8>) -> Option<Pending> {
        let (inode, old_len) = self.file_of(fd)?;
        let offset = calls::place(fd, offset)?;
        let end = (offset + bytes.len() as u64).min(old_len);
        let mut old = vec![0; end.saturating_sub(offset) as usize];
        let file = &self.files.as_ref()?.get(&inode)?.file;
        file.read_exact_at(&mut old, offset).ok()?;
        let is_synced = calls::flags(fd) & (libc::O_SYNC | libc::O_DSYNC) != 0;
        Some(Pending { inode, old_len, offset, old, new: bytes, is_synced })
    }

    /// The write was made, so far.
    pub(crate) fn wrote(&mut self, pending: Pending, written: usize) {
        let Pending { inode, old_len, offset, mut old, mut new, is_synced } = pending;
        new.truncate(written);
        old.truncate(written);
        let kind = Kind::Write { offset, old, new };
        let number = self.number();
        let Some(changed) = self.files.as_mut().and_then(|files| files.get_mut(&inode)) else { return };
        changed.changes.push(Change { number, kind, old_len, is_lost: false });
        if is_synced {
            changed.make_safe(|change| change.number == number);
        }
    }

    /// The file is about to get this length.
    pub(crate) fn before_resize(&mut self, fd: BorrowedFd<'_>, len: u64) -> Option<PendingResize> {
        let (inode, old_len) = self.file_of(fd)?;
        let mut cut_off = vec![0; old_len.saturating_sub(len) as usize];
        self.files.as_ref()?.get(&inode)?.file.read_exact_at(&mut cut_off, len).ok()?;
        Some(PendingResize { inode, old_len, len, cut_off })
    }

    pub(crate) fn resized(&mut self, pending: PendingResize) {
        let PendingResize { inode, old_len, len, cut_off } = pending;
        let number = self.number();
        if let Some(changed) = self.files.as_mut().and_then(|files| files.get_mut(&inode)) {
            changed.changes.push(Change { number, kind: Kind::Resize { len, cut_off }, old_len, is_lost: false });
        }
    }

    /// Something new has this name: a file, a link to one, or a directory.
    pub(crate) fn made(&mut self, place: Place) {
        let number = self.number();
        self.names.made(number, place);
    }

    /// What is told had this name.
    pub(crate) fn deleted(&mut self, place: Place, was: Handle) {
        let number = self.number();
        self.names.deleted(number, place, was);
    }

    /// A file or directory has another name, and what had that before has none.
    pub(crate) fn renamed(&mut self, from: Place, to: Place, replaced: Option<Handle>) {
        let number = self.number();
        self.names.renamed(number, from, to, replaced);
    }

    /// Two have changed their names.
    pub(crate) fn exchanged(&mut self, from: Place, to: Place) {
        let number = self.number();
        self.names.exchanged(number, from, to);
    }

    /// A sync of the file or directory, begun when this was the newest change, has come to its end.
    pub(crate) fn synced(&mut self, fd: BorrowedFd<'_>, newest: u64, succeeded: bool) {
        let Some((inode, metadata)) = metadata_of(fd) else { return };
        if metadata.is_dir() {
            self.names.synced(inode, newest, succeeded);
        }
        let Some(changed) = self.files.as_mut().and_then(|files| files.get_mut(&inode)) else { return };
        if succeeded {
            changed.make_safe(|change| change.number <= newest && !change.is_lost);
        } else {
            changed
                .changes
                .iter_mut()
                .filter(|change| change.number <= newest)
                .for_each(|change| change.is_lost = true);
        }
    }

    /// Takes back what was not synced, but for what survives.
    pub(crate) fn undo(&mut self, surviving: Surviving) {
        let mut numbers = match surviving {
            Surviving::None | Surviving::Names => Numbers(0),
            Surviving::First(seed) | Surviving::Some(seed) | Surviving::Holes(seed) => Numbers(seed),
        };
        let mut files: Vec<_> = self.files.take().into_iter().flatten().collect();
        files.sort_by_key(|(inode, _)| *inode); // the same seed, the same outcome
        for (_, changed) in files.iter().filter(|(_, changed)| !changed.changes.is_empty()) {
            // Nobody is left to tell of an error to.
            let _ = changed.undo(surviving, &mut numbers);
        }
        self.names.undo(surviving, &mut numbers);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The file behind a descriptor and its length; `None` if it is not a regular file or cannot be opened.
    fn file_of(&mut self, fd: BorrowedFd<'_>) -> Option<(Inode, u64)> {
        let (inode, len) = identify(fd)?;
        let files = self.files.get_or_insert_default();
        if let std::collections::hash_map::Entry::Vacant(vacant) = files.entry(inode) {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path).ok()?;
            vacant.insert(Changed { file, changes: Vec::new() });
        }
        Some((inode, len))
    }
}

/// A write that is being made.
pub(crate) struct Pending {
    inode: Inode,
    old_len: u64,
    offset: u64,
    old: Vec<u8>,
    new: Vec<u8>,
    is_synced: bool,
}

/// A change of length that is being made.
pub(crate) struct PendingResize {
    inode: Inode,
    old_len: u64,
    len: u64,
    cut_off: Vec<u8>,
}

impl Changed {
    /// Forgets the changes that are safe now. Where an older one is not, taking that back has to leave these as they are.
    fn make_safe(&mut self, is_safe: impl Fn(&Change) -> bool) {
        for at in (0..self.changes.len()).rev() {
            if !is_safe(&self.changes[at]) {
                continue;
            }
            let safe = self.changes.remove(at);
            for older in &mut self.changes[..at] {
                older.keep(&safe);
            }
        }
    }

    fn undo(&self, surviving: Surviving, numbers: &mut Numbers) -> std::io::Result<()> {
        for change in self.changes.iter().rev() {
            change.revert(&self.file)?;
        }
        match surviving {
            Surviving::None | Surviving::Names => {}
            Surviving::First(_) => {
                let whole = numbers.below(self.changes.len() as u64 + 1) as usize;
                for change in &self.changes[..whole] {
                    change.apply(&self.file, u64::MAX)?;
                }
                if let Some(torn) = self.changes.get(whole) {
                    torn.apply(&self.file, torn.cut(numbers.below(torn.len() + 1)))?;
                }
            }
            Surviving::Some(_) => self.mix(false, numbers)?,
            Surviving::Holes(_) => self.mix(true, numbers)?,
        }
        Ok(())
    }

    /// Gives the file, of which all is taken back, the length that it had after some of the changes, and each sector the
    /// content that it had after some of them.
    ///
    /// Where the file was cut off, none of what was there before is mixed with what came there later: the system writes
    /// that elsewhere. What is behind the end that the file had all the time is as new as the length, or, if there may be
    /// holes, zeros.
    fn mix(&self, has_holes: bool, numbers: &mut Numbers) -> std::io::Result<()> {
        let all = self.changes.len();
        let until = if numbers.below(2) == 0 { all } else { numbers.below(all as u64 + 1) as usize };
        let (mut len, mut kept) = (self.file.metadata()?.len(), u64::MAX);
        let (mut cuts, mut sectors) = (Vec::new(), BTreeMap::<u64, Vec<usize>>::new());
        let old_len = len;
        for (at, change) in self.changes.iter().enumerate() {
            kept = if at <= until { kept.min(len) } else { kept };
            match &change.kind {
                Kind::Write { offset, new, .. } if !new.is_empty() => {
                    let end = offset + new.len() as u64;
                    len = if at < until { len.max(end) } else { len };
                    (offset / SECTOR..end.div_ceil(SECTOR)).for_each(|it| sectors.entry(it).or_default().push(at));
                }
                Kind::Write { .. } => {}
                Kind::Resize { len: new_len, .. } => {
                    len = if at < until { *new_len } else { len };
                    cuts.push((at, *new_len));
                }
            }
        }
        let kept = kept.min(len);
        let odds = numbers.odds();
        let mut contents = Vec::new();
        for (sector, writes) in sectors {
            let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
            let cuts_here = cuts.iter().filter(|(_, cut)| *cut < end);
            let mut oldest = cuts_here.clone().filter(|(at, _)| *at < until).map(|(at, _)| at + 1).max().unwrap_or(0);
            let newest = cuts_here.clone().find(|(at, _)| *at >= until).map_or(all, |(at, _)| *at);
            if !has_holes && len > kept && end > kept {
                oldest = oldest.max(until);
            }
            let later = writes.iter().map(|at| at + 1).filter(|after| (oldest + 1..=newest).contains(after));
            let moments: Vec<_> = std::iter::once(oldest).chain(later).collect();
            let moment = match numbers.chance(odds) {
                true => moments[moments.len() - 1],
                false => moments[numbers.below(moments.len() as u64) as usize],
            };
            let mut content = [0; SECTOR as usize];
            let inside = old_len.saturating_sub(start).min(SECTOR) as usize;
            self.file.read_exact_at(&mut content[..inside], start)?;
            for change in &self.changes[..moment] {
                change.apply_to_sector(&mut content, start);
            }
            contents.push((start, content));
        }
        // To any byte; seldom where it is the length that survives.
        let is_torn = len > kept && numbers.chance(if has_holes { 1 } else { 4 });
        let len = if is_torn { kept + numbers.below(len - kept + 1) } else { len };
        calls::set_len(&self.file, kept)?;
        calls::set_len(&self.file, len)?;
        for (start, content) in contents {
            let inside = len.saturating_sub(start).min(SECTOR) as usize;
            calls::write_all_at(&self.file, &content[..inside], start)?;
        }
        Ok(())
    }
}

impl Change {
    /// Bytes that it wrote.
    fn len(&self) -> u64 {
        match &self.kind {
            Kind::Write { new, .. } => new.len() as u64,
            Kind::Resize { .. } => 0,
        }
    }

    /// Where a write that was cut behind this many bytes ends: inside the file at a sector's end, behind it anywhere.
    fn cut(&self, bytes: u64) -> u64 {
        let Kind::Write { offset, .. } = &self.kind else { return bytes };
        let end = offset + bytes;
        if end >= self.old_len { bytes } else { (end - end % SECTOR).saturating_sub(*offset) }
    }

    /// A newer change is safe: taking this one back has to leave that. Where the file is longer for it, what this one wrote
    /// was never on the disk, and reads as zeros.
    fn keep(&mut self, newer: &Change) {
        let (safe_offset, safe) = match &newer.kind {
            Kind::Resize { len, .. } => {
                self.old_len = *len;
                return;
            }
            Kind::Write { offset, new, .. } => (*offset, new),
        };
        let safe_end = safe_offset + safe.len() as u64;
        self.old_len = self.old_len.max(safe_end);
        let (offset, old, new) = match &mut self.kind {
            Kind::Write { offset, old, new } => (offset, old, new),
            // Whether it is taken back or made again, the file does not end before what is safe.
            Kind::Resize { len, cut_off } => {
                let longer = safe_end.saturating_sub(*len);
                cut_off.drain(..cut_off.len().min(longer as usize));
                *len += longer;
                return;
            }
        };
        let inside = self.old_len.saturating_sub(*offset).min(new.len() as u64) as usize;
        old.resize(old.len().max(inside), 0);
        let (first, end) = ((*offset).max(safe_offset), (*offset + new.len() as u64).min(safe_end));
        if first < end {
            let here = (first - *offset) as usize..(end - *offset) as usize;
            let there = (first - safe_offset) as usize..(end - safe_offset) as usize;
            old[here.clone()].copy_from_slice(&safe[there.clone()]);
            new[here].copy_from_slice(&safe[there]);
        }
    }

    fn revert(&self, file: &File) -> std::io::Result<()> {
        match &self.kind {
            Kind::Write { offset, old, .. } => {
                calls::write_all_at(file, old, *offset)?;
            }
            Kind::Resize { len, cut_off } => calls::write_all_at(file, cut_off, *len)?,
        }
        calls::set_len(file, self.old_len)
    }

    /// Makes the change again, the first so many bytes of it.
    fn apply(&self, file: &File, bytes: u64) -> std::io::Result<()> {
        match &self.kind {
            Kind::Write { offset, new, .. } => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(new.len());
                if *offset <= file.metadata()?.len() {
                    calls::write_all_at(file, &new[..bytes], *offset)?;
                }
                Ok(())
            }
            Kind::Resize { len, .. } => calls::set_len(file, *len),
        }
    }

    /// Makes the change to the sector that begins here.
    fn apply_to_sector(&self, content: &mut [u8; SECTOR as usize], start: u64) {
        let inside = |at: u64| at.saturating_sub(start).min(SECTOR) as usize;
        match &self.kind {
            Kind::Write { offset, new, .. } => {
                let (first, end) = (inside(*offset), inside(offset + new.len() as u64));
                if first < end {
                    let from = (start + first as u64 - offset) as usize;
                    content[first..end].copy_from_slice(&new[from..][..end - first]);
                }
            }
            Kind::Resize { len, .. } => content[inside(*len)..].fill(0),
        }
    }
}

/// The inode and the length of a regular file.
fn identify(fd: BorrowedFd<'_>) -> Option<(Inode, u64)> {
    let (inode, metadata) = metadata_of(fd)?;
    metadata.is_file().then_some((inode, metadata.len()))
}

fn metadata_of(fd: BorrowedFd<'_>) -> Option<(Inode, std::fs::Metadata)> {
    // A `File` would close the descriptor.
    let file = std::mem::ManuallyDrop::new(calls::borrow(fd));
    let metadata = file.metadata().ok()?;
    Some(((metadata.dev(), metadata.ino()), metadata))
}

/// SplitMix64.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    /// How many of eight things are to happen, so that also few or nearly all do.
    pub(crate) fn odds(&mut self) -> u64 {
        [1, 4, 7][self.below(3) as usize]
    }

    pub(crate) fn chance(&mut self, of_eight: u64) -> bool {
        self.below(8) < of_eight
    }
}

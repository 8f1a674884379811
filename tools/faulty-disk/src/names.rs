//! Names that were made, changed or deleted and whose directory was not synced, so that they can be taken back.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::Surviving;
use crate::calls::{self, kernel};
use crate::undo::{Inode, Numbers};

/// The changes of names that a power cut would take back, the oldest first.
pub(crate) struct NameLog {
    changes: Vec<Change>,
}

struct Change {
    number: u64,
    kind: Kind,
    /// A sync that was to make it safe has failed.
    is_lost: bool,
}

enum Kind {
    /// A file or a link to one, or a directory, has its name.
    Made { place: Place, directory: Option<Handle> },
    /// What is told has lost its name.
    Deleted { place: Place, was: Handle },
    /// What had one name has the other, in place of what had that.
    Renamed { from: Place, to: Place, replaced: Option<Handle> },
    /// Two have changed their names.
    Exchanged { from: Place, to: Place },
}

/// A file or a directory that is kept alive. It is open as a place only: that needs no permission, and closing it gives back
/// no locks that the program has on the file.
#[derive(Clone)]
pub(crate) struct Handle {
    fd: Arc<OwnedFd>,
    inode: Inode,
    mode: libc::mode_t,
    pub(crate) len: u64,
}

/// A name in a directory.
#[derive(Clone)]
pub(crate) struct Place {
    directory: Handle,
    name: CString,
}

impl NameLog {
    pub(crate) const fn new() -> Self {
        NameLog { changes: Vec::new() }
    }

    pub(crate) fn forget(&mut self) {
        self.changes.clear();
    }

    pub(crate) fn made(&mut self, number: u64, place: Place) {
        let directory = place.look().filter(Handle::is_directory);
        self.push(number, Kind::Made { place, directory });
    }

    pub(crate) fn deleted(&mut self, number: u64, place: Place, was: Handle) {
        self.push(number, Kind::Deleted { place, was });
    }

    pub(crate) fn renamed(&mut self, number: u64, from: Place, to: Place, replaced: Option<Handle>) {
        self.push(number, Kind::Renamed { from, to, replaced });
    }

    pub(crate) fn exchanged(&mut self, number: u64, from: Place, to: Place) {
        self.push(number, Kind::Exchanged { from, to });
    }

    fn push(&mut self, number: u64, kind: Kind) {
        self.changes.push(Change { number, kind, is_lost: false });
    }

    /// A sync of the directory, begun when this was the newest change, has come to its end.
    pub(crate) fn synced(&mut self, directory: Inode, newest: u64, succeeded: bool) {
        let is_meant = |change: &Change| change.number <= newest && change.is_decided_by(directory);
        if !succeeded {
            self.changes.iter_mut().filter(|change| is_meant(change)).for_each(|change| change.is_lost = true);
            return;
        }
        // What was done to a name is safe with what was done to it later.
        let mut safe: Vec<bool> = self.changes.iter().map(|change| is_meant(change) && !change.is_lost).collect();
        for at in (0..self.changes.len()).rev() {
            for earlier in 0..at {
                safe[earlier] |= safe[at] && self.changes[at].shares_a_name(&self.changes[earlier]);
            }
        }
        let mut safe = safe.into_iter();
        self.changes.retain(|_| !safe.next().unwrap_or_default());
    }

    /// Takes back what was not synced, but for what survives. Called once the files have their content.
    pub(crate) fn undo(&mut self, surviving: Surviving, numbers: &mut Numbers) {
        let changes = std::mem::take(&mut self.changes);
        let survive = survivors(&changes, surviving, numbers);
        let mut remade = HashMap::new();
        // Whoever comes later and had to do with the same names was lost as well, and is taken back by now.
        for (change, _) in changes.iter().zip(survive).rev().filter(|(_, survives)| !survives) {
            // Nobody is left to tell of an error to.
            let _ = change.kind.undo(&mut remade);
        }
    }
}

/// Which of the changes are there after the cut. None is without those that it was made upon.
fn survivors(changes: &[Change], surviving: Surviving, numbers: &mut Numbers) -> Vec<bool> {
    let first = match surviving {
        Surviving::None => 0,
        Surviving::Names => changes.len(),
        Surviving::First(_) => numbers.below(changes.len() as u64 + 1) as usize,
        Surviving::Some(_) | Surviving::Holes(_) => {
            let odds = numbers.odds();
            let mut survive: Vec<bool> = Vec::with_capacity(changes.len());
            for (at, change) in changes.iter().enumerate() {
                let is_chosen = numbers.chance(odds);
                let is_founded = |earlier: usize| survive[earlier] || !change.needs(&changes[earlier]);
                survive.push(is_chosen && (0..at).all(is_founded));
            }
            return survive;
        }
    };
    (0..changes.len()).map(|at| at < first).collect()
}

impl Change {
    fn places(&self) -> impl Iterator<Item = &Place> {
        let (one, other) = match &self.kind {
            Kind::Made { place, .. } | Kind::Deleted { place, .. } => (place, None),
            Kind::Renamed { from, to, .. } | Kind::Exchanged { from, to } => (to, Some(from)),
        };
        std::iter::once(one).chain(other)
    }

    /// Whether a sync of this directory makes it safe: for what was renamed, that of the directory it is in now.
    fn is_decided_by(&self, directory: Inode) -> bool {
        self.places().next().is_some_and(|place| place.directory.inode == directory)
    }

    fn shares_a_name(&self, other: &Change) -> bool {
        self.places().any(|place| other.places().any(|it| it == place))
    }

    /// Whether it could not have been made without this one before, for the sake of a name or of the directory it is in.
    /// What was in a directory that was deleted needs no care: it cannot be put back where nothing is.
    fn needs(&self, earlier: &Change) -> bool {
        let made = match &earlier.kind {
            Kind::Made { directory: Some(directory), .. } => Some(directory.inode),
            _ => None,
        };
        self.shares_a_name(earlier) || self.places().any(|place| Some(place.directory.inode) == made)
    }
}

/// Directories that were deleted and made again.
type Remade = HashMap<Inode, Handle>;

impl Kind {
    fn undo(&self, remade: &mut Remade) -> io::Result<()> {
        match self {
            Kind::Made { place, directory } => {
                let place = place.now(remade);
                if directory.is_some() { place.delete_tree() } else { place.unlink(0) }
            }
            Kind::Deleted { place, was } => place.now(remade).restore(was, remade),
            Kind::Renamed { from, to, replaced } => {
                let (from, to) = (from.now(remade), to.now(remade));
                to.rename(&from, 0)?;
                replaced.as_ref().map_or(Ok(()), |it| to.restore(it, remade))
            }
            Kind::Exchanged { from, to } => to.now(remade).rename(&from.now(remade), libc::RENAME_EXCHANGE),
        }
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        self.directory.inode == other.directory.inode && self.name == other.name
    }
}

impl Place {
    /// The place that a path means, seen from a directory; `None` if there is no such directory.
    ///
    /// # Safety
    ///
    /// The path is null or terminated.
    pub(crate) unsafe fn of(directory: c_int, path: *const c_char) -> Option<Self> {
        if path.is_null() {
            return None;
        }
        // SAFETY: As the caller says.
        let path = unsafe { CStr::from_ptr(path) }.to_bytes();
        let path = &path[..path.iter().rposition(|byte| *byte != b'/')? + 1];
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => path.split_at(slash + 1),
            None => (&b"."[..], path),
        };
        if name == b"." || name == b".." {
            return None;
        }
        let parent = CString::new(parent).ok()?;
        let directory = Handle::open(directory, &parent, libc::O_DIRECTORY)?;
        Some(Place { directory, name: CString::new(name).ok()? })
    }

    /// A descriptor of its directory.
    pub(crate) fn directory(&self) -> c_int {
        self.directory.fd.as_raw_fd()
    }

    /// What is there.
    pub(crate) fn look(&self) -> Option<Handle> {
        Handle::open(self.directory(), &self.name, libc::O_NOFOLLOW)
    }

    /// The same place, also if its directory is another by now.
    fn now(&self, remade: &Remade) -> Place {
        let directory = remade.get(&self.directory.inode).unwrap_or(&self.directory).clone();
        Place { directory, name: self.name.clone() }
    }

    fn unlink(&self, flags: c_int) -> io::Result<()> {
        done(kernel!(SYS_unlinkat, self.directory(), self.name.as_ptr(), flags))
    }

    fn rename(&self, to: &Place, flags: libc::c_uint) -> io::Result<()> {
        let (from_name, to_name) = (self.name.as_ptr(), to.name.as_ptr());
        done(kernel!(SYS_renameat2, self.directory(), from_name, to.directory(), to_name, flags))
    }

    /// Deletes a directory and all that is in it.
    fn delete_tree(&self) -> io::Result<()> {
        let Some(directory) = self.look() else { return Ok(()) };
        for entry in std::fs::read_dir(directory.path())? {
            let name = CString::new(std::os::unix::ffi::OsStringExt::into_vec(entry?.file_name()))?;
            let place = Place { directory: directory.clone(), name };
            match place.look() {
                Some(it) if it.is_directory() => place.delete_tree()?,
                _ => place.unlink(0)?,
            }
        }
        self.unlink(libc::AT_REMOVEDIR)
    }

    /// Puts a file or a directory back that was here.
    fn restore(&self, was: &Handle, remade: &mut Remade) -> io::Result<()> {
        if was.is_directory() {
            done(kernel!(SYS_mkdirat, self.directory(), self.name.as_ptr(), was.mode & 0o7777))?;
            remade.extend(self.look().map(|it| (was.inode, it)));
            return Ok(());
        }
        let file = CString::new(was.path())?;
        let flags = libc::AT_SYMLINK_FOLLOW;
        match kernel!(SYS_linkat, libc::AT_FDCWD, file.as_ptr(), self.directory(), self.name.as_ptr(), flags) {
            0 => Ok(()),
            _ => self.copy(was), // it has no other name, and the kernel gives none to such a file
        }
    }

    fn copy(&self, was: &Handle) -> io::Result<()> {
        let mut from = File::open(was.path())?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let fd = kernel!(SYS_openat, self.directory(), self.name.as_ptr(), flags, was.mode & 0o7777);
        done(fd.min(0))?;
        // SAFETY: Just opened, and nobody else's.
        let to = unsafe { File::from_raw_fd(fd as c_int) };
        let (mut block, mut at) = ([0; 4096], 0);
        loop {
            let read = from.read(&mut block)?;
            if read == 0 {
                return calls::set_len(&to, at);
            }
            if block[..read].iter().any(|byte| *byte != 0) {
                calls::write_all_at(&to, &block[..read], at)?;
            }
            at += read as u64;
        }
    }
}

impl Handle {
    fn open(directory: c_int, path: &CStr, flags: c_int) -> Option<Self> {
        let flags = flags | libc::O_PATH | libc::O_CLOEXEC;
        let fd = kernel!(SYS_openat, directory, path.as_ptr(), flags);
        if fd < 0 {
            return None;
        }
        // SAFETY: Just opened, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as c_int) };
        let metadata = File::from(fd.try_clone().ok()?).metadata().ok()?;
        use std::os::unix::fs::MetadataExt;
        Some(Handle {
            fd: Arc::new(fd),
            inode: (metadata.dev(), metadata.ino()),
            mode: metadata.mode(),
            len: metadata.len(),
        })
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    pub(crate) fn is_same(&self, other: &Handle) -> bool {
        self.inode == other.inode
    }

    /// A path by which it can be opened, also if it has no name.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! What is to happen, and when.

use std::fmt;

/// A kind of system call that changes a file or makes a change safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// `write`, `pwrite`, `writev`, `pwritev`.
    Write,
    /// `fsync`, `fdatasync`.
    Sync,
    /// `ftruncate`, `fallocate`, and `open` where it empties a file.
    Resize,
    /// `rename`, `link`, `unlink`, `mkdir`, `rmdir`, and `open` where it makes a file.
    Name,
}

/// Some kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls(u8);

impl Calls {
    /// Every kind.
    pub const ALL: Calls = Calls(0b1111);
    /// Those that take room on the disk.
    pub const ROOM: Calls = Calls(Calls::of(Call::Write).0 | Calls::of(Call::Resize).0);

    /// The syncs of directories, which make names safe. They are also some of [`Call::Sync`].
    pub const NAME_SYNCS: Calls = Calls(1 << 4);

    /// One kind.
    #[must_use]
    pub const fn of(call: Call) -> Self {
        Calls(1 << call as u8)
    }

    /// Whether this kind is one of them.
    #[must_use]
    pub const fn contains(self, call: Call) -> bool {
        self.meets(Calls::of(call))
    }

    /// Whether a call of these kinds is one of them.
    pub(crate) const fn meets(self, kinds: Calls) -> bool {
        self.0 & kinds.0 != 0
    }

    /// The kinds of a sync.
    pub(crate) const fn of_sync(is_of_directory: bool) -> Self {
        let more = if is_of_directory { Calls::NAME_SYNCS.0 } else { 0 };
        Calls(Calls::of(Call::Sync).0 | more)
    }
}

/// When something is to happen: at the `nth` of these calls from now on, the first being 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The kinds that count.
    pub calls: Calls,
    /// Which of them.
    pub nth: u64,
}

/// What is to happen then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed in front of the call.
    KillBefore,
    /// The process is killed behind the call.
    KillAfter,
    /// Half of a write is done, in whole pages of the file, and the process is killed. Other calls: as `KillBefore`.
    KillAmid,
    /// The power is cut in front of the call.
    CutPower(Surviving),
    /// This and all later calls of these kinds fail with this error number, until [`disarm`](crate::disarm).
    Fail(i32),
    /// This one call fails with this error number.
    FailOnce(i32),
    /// This one write writes half of what it should, and says so. Other calls: nothing.
    WriteShort,
    /// This and all later calls, of whatever kind, fail and do nothing, until [`disarm`](crate::disarm). What was using the
    /// disk is as if it had been killed in front of the call: a part of the process, which is dropped. The next one that
    /// uses it finds what was written and not synced, can make that safe, and may lose it by a power cut.
    Stop,
}

/// What is there after a power cut of the writes that were not synced, and of the names whose directory was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surviving {
    /// Nothing.
    None,
    /// Every name, and no write: files are there that have nothing in them.
    Names,
    /// Of each file the first of its writes, up to a place that the seed decides, and the first changes of names.
    First(u64),
    /// Of each file whatever the seed decides, sector by sector, with no holes behind its synced end; and of the names
    /// whatever it decides.
    Some(u64),
    /// The same, but where a file has become longer, sectors behind its synced end may be zeros: its new length is there, and
    /// what was written is not.
    Holes(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::KillBefore => f.write_str("killed before a call"),
            Fault::KillAfter => f.write_str("killed after a call"),
            Fault::KillAmid => f.write_str("killed amid a write"),
            Fault::CutPower(Surviving::None) => f.write_str("power cut, unsynced writes and names lost"),
            Fault::CutPower(Surviving::Names) => f.write_str("power cut, unsynced writes lost"),
            Fault::CutPower(Surviving::First(_)) => f.write_str("power cut, unsynced writes torn"),
            Fault::CutPower(Surviving::Some(_)) => f.write_str("power cut, unsynced writes mixed"),
            Fault::CutPower(Surviving::Holes(_)) => f.write_str("power cut, unsynced writes mixed, with holes"),
            Fault::Fail(number) => write!(f, "calls fail with error {number}"),
            Fault::FailOnce(number) => write!(f, "a call fails with error {number}"),
            Fault::WriteShort => f.write_str("a write is cut short"),
            Fault::Stop => f.write_str("stopped before a call"),
        }
    }
}

//! A disk that fails when a test says so: the system calls by which *this process* writes, names and deletes files below one
//! directory are counted, and at a given one the process is killed, the call fails or is cut short, or the power is cut.
//!
//! The crate defines `write`, `pwrite`, `fdatasync`, `open`, `rename` and their like, and so takes the place of the C library's functions in
//! every program that links it, for Rust code as for C and C++ that is linked into the program. Until [`watch`] is called,
//! and for every file that is not below the watched directory, they do what they always do. It is meant for the child
//! processes of a crash test, and for nothing else.
//!
//! # What a power cut is
//!
//! From [`watch`] on, all that was written and not synced is remembered, and so are the names that were made, changed or
//! deleted. A power cut stops every thread at its next call, takes back what was not synced, in one of several ways
//! ([`Surviving`]), and kills the process. So data that a process acknowledged without a sync are gone, which a kill alone
//! never shows, because the kernel keeps them.
//!
//! What is in a file:
//!
//! * A write is safe once a `fsync` or `fdatasync` of its file, begun after it, has succeeded, or if the file was opened
//!   with `O_SYNC` or `O_DSYNC`. `sync_file_range` makes nothing safe.
//! * After a sync of a file has failed, what it was to make safe never is, whatever a later sync says: the kernel may have
//!   dropped it. If more of the file was synced behind it, it reads as zeros. Each other descriptor of the file that is open
//!   then is told once, by its next sync, as Linux does it; one that is opened later is not.
//! * Inside a file each sector of 512 bytes survives by itself, in any order: it has the content that it was synced with, or
//!   one that it had after a later write, and never a part of that ([`Surviving::Some`], [`Surviving::Holes`]). That is so
//!   also where the file was made ahead and synced as zeros. Or the first of the file's writes survive, and of the next
//!   one some sectors from its beginning on ([`Surviving::First`]).
//! * What lies behind the synced end of a file survives from its beginning on, to any byte, as on file systems that write
//!   data before the length (ext4 in its default mode, XFS, btrfs). With [`Surviving::Holes`] the length may survive and
//!   what was written not: then each sector has its new content or zeros.
//! * What was there before a file was cut off is never mixed with what was written behind that end later: file systems put
//!   that elsewhere.
//!
//! Names:
//!
//! * A name that was made, changed or deleted is safe once a `fsync` or `fdatasync` of its directory, begun after it, has
//!   succeeded. A sync of the file itself makes its name *not* safe, and a sync of a directory not the directory's own name:
//!   both are stricter than what ext4 and XFS do, and no more than what POSIX says.
//! * What was renamed has the one name or the other, never both and never none, and what it replaced is back if it has the
//!   old one. If it went to another directory, the sync of that one makes it safe.
//! * Other names survive or not whatever becomes of the rest. But no change survives without those that it was made upon:
//!   earlier changes of the same name, the making of its directory, and, for a directory that was deleted, the deleting of
//!   what was in it.
//! * What is in a directory whose name did not survive is gone with it, however well it was synced. A deleted file that
//!   comes back has the content that survives of it.
//! * A sync of a directory that fails makes the names never safe that it was to make safe, unless a later change of the
//!   same name is.
//!
//! Not seen, and so taken for safe at once: writes through a memory map, what the C library's own streams write and open
//! (`fopen`), symbolic links, and what is renamed out of the watched directory. `syncfs` and `sync` make nothing safe.
//!
//! # The clock
//!
//! [`set_clock`] lets this process see a clock that is wrong, stands still or jumps, in `clock_gettime`.
//!
//! # Platforms
//!
//! Linux with the GNU C library. Elsewhere [`IS_SUPPORTED`] is false and nothing is ever counted.

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod calls;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod clock;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod disk;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod name_calls;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod names;
mod plan;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod undo;

pub use plan::{Call, Calls, Fault, Surviving, Trigger};

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
pub use clock::set_clock;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
pub use disk::{arm, count, cut_power, disarm, fired, kill, watch};

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
mod elsewhere;
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
pub use elsewhere::{arm, count, cut_power, disarm, fired, kill, set_clock, watch};

/// Whether calls are watched on this platform.
pub const IS_SUPPORTED: bool = cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"));

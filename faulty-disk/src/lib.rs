//! A disk that fails when a test says so: the system calls by which *this process* writes files below one directory are
//! counted, and at a given one the process is killed, the call fails or is cut short, or the power is cut.
//!
//! The crate defines `write`, `pwrite`, `fdatasync` and their like, and so takes the place of the C library's functions in
//! every program that links it, for Rust code as for C and C++ that is linked into the program. Until [`watch`] is called,
//! and for every file that is not below the watched directory, they do what they always do. It is meant for the child
//! processes of a crash test, and for nothing else.
//!
//! # What a power cut is
//!
//! From [`watch`] on, all that was written and not synced is remembered. A power cut stops every thread at its next call,
//! takes back what was not synced, in one of several ways ([`Surviving`]), and kills the process. So data that a process
//! acknowledged without a sync are gone, which a kill alone never shows, because the kernel keeps them.
//!
//! * A write is safe once a `fsync` or `fdatasync` of its file, begun after it, has succeeded, or if the file was opened
//!   with `O_SYNC` or `O_DSYNC`. `sync_file_range` makes nothing safe.
//! * After a sync of a file has failed, what it was to make safe never is, whatever a later sync says: the kernel may have
//!   dropped it. If more of the file was synced behind it, it reads as zeros.
//! * What lies behind the synced end of a file survives from its beginning on, to any byte: files have no holes after a cut,
//!   as on file systems that write data before the length (ext4 in its default mode, XFS, btrfs). Inside a file each
//!   sector of 512 bytes survives as a whole or not.
//! * Creating, renaming and deleting files is taken for safe at once, and so are writes through a memory map: neither is
//!   seen here.
//!
//! # Platforms
//!
//! Linux with the GNU C library. Elsewhere [`IS_SUPPORTED`] is false and nothing is ever counted.

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod calls;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod disk;
mod plan;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod undo;

pub use plan::{Call, Calls, Fault, Surviving, Trigger};

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
pub use disk::{arm, count, cut_power, disarm, fired, kill, watch};

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
mod elsewhere;
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
pub use elsewhere::{arm, count, cut_power, disarm, fired, kill, watch};

/// Whether calls are watched on this platform.
pub const IS_SUPPORTED: bool = cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"));

//! An append-only log of numbered records in segment files.
//!
//! The log numbers its records, and does not interpret their content. [`Log::open`] recovers it, the [`Appender`]
//! writes one [`Group`] of records after the other, and a [`Log`] reads pages of records, from any number of threads.
//!
//! # Guarantees
//!
//! 1. After any crash, a group is in the log completely or not at all.
//! 2. Acknowledged commits and syncs stay, at their positions. Of unacknowledged commits, a prefix stays.
//! 3. Reading a damaged record fails with `Corrupt`. Synced records are never silently lost, as far as it is [`Known`]
//!    what was synced; damage to the very last groups can look as if they had never been written.
//! 4. After a failed write or sync, the log accepts nothing more until it is reopened. Opening rewrites what may have
//!    been lost.
//!
//! It assumes that after a power cut, a synced sector has the synced bytes or newer ones, and that a synced file name
//! stays.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use eventstore_log::{Group, Known, Log, MemoryDirectory, Options, Page};
//!
//! let files = Arc::new(MemoryDirectory::default());
//! let opened = Log::open(files, [7; 16], &Options::default(), Known { synced: 0 }, 0, &mut |_, _| {})?;
//! let mut appender = opened.appender.expect("nothing is damaged");
//! let mut group = Group::default();
//! group.begin(1);
//! group.push(&[b"hello"]);
//! group.push(&[b"wor", b"ld"]);
//! appender.commit(&mut group, true)?;
//!
//! let mut page = Page::default();
//! opened.log.read(1..u64::MAX, 4096, 100, &mut page)?;
//! assert!(page.contents().eq([(1, b"hello".as_slice()), (2, b"world")]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

/// Logs a message: `tell!(warn, …)` is `tracing::warn!(…)`, but catches a panic of a subscriber.
#[doc(hidden)]
#[macro_export]
macro_rules! tell {
    ($level:ident, $($what:tt)*) => {{
        let tell = || tracing::$level!($($what)*);
        let _ = ::std::panic::catch_unwind(::std::panic::AssertUnwindSafe(tell));
    }};
}

mod anchors;
mod append;
pub mod background;
mod blocks;
mod cache;
mod check;
mod checkpoint;
mod codec;
mod compress;
mod copy;
mod cut;
mod disk;
mod error;
mod files;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod log;
mod memory;
mod mend;
mod options;
mod overlay;
mod read;
mod read_many;
mod recover;
mod scan;
mod segment;
mod space;
mod walk;

pub use append::Appender;
pub use compress::Shrunk;
pub use copy::Copied;
pub use disk::{DiskDirectory, create_private_dir, parent_of, sync_dir};
pub use error::{CommitError, Error, Result};
pub use files::{Directory, File};
pub use group::Group;
pub use log::{Log, Position, SegmentInfo as Segment};
pub use memory::MemoryDirectory;
pub use options::{Compression, Options};
pub use overlay::OverlayDirectory;
pub use read::Page;
pub use recover::{Damage, Known, Opened, Recovery, Tail};

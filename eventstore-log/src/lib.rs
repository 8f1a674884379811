//! An append-only log of numbered records in segment files.
//!
//! The log knows records with a number, and nothing of what is in them. [`Log::open`] recovers it, the [`Appender`] writes
//! one [`Group`] of records after the other, and a [`Log`] reads pages of records, from any number of threads.
//!
//! # Promises
//!
//! 1. A group is in the log as a whole or not at all, after any crash.
//! 2. What a commit or sync has answered for stays, in its place. What it has not is a beginning of what was committed.
//! 3. A record that was damaged is never read: it is `Corrupt`. Nothing that was synced goes missing without a word, as
//!    far as it is [`Known`] what was synced; damage to the very last groups can look as if they never had been.
//! 4. Once a write or sync has failed nothing more is taken, until the log is opened again: that writes again whatever may
//!    have been lost in between.
//!
//! It rests on this: a sector that holds synced bytes has those or newer ones after a power cut, and a name that was
//! synced stays.
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

/// Tells whoever listens to logs: `tell!(warn, …)` is `tracing::warn!(…)`, of which a panic harms nobody.
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
pub use disk::DiskDirectory;
pub use error::{CommitError, Error, Result};
pub use files::{Directory, File};
pub use group::Group;
pub use log::{Log, Position, SegmentInfo as Segment};
pub use memory::MemoryDirectory;
pub use options::{Compression, Options};
pub use overlay::OverlayDirectory;
pub use read::Page;
pub use recover::{Damage, Known, Opened, Recovery, Tail};

//! The log as the sources see it: the real one, whose steps are those of its disk.
//!
//! Its locks are not known to shuttle, so nobody may take a step while another waits for one of them. There is one such
//! place: a sync, which is under way while others go on. Whoever wants one as well waits before the lock.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

use crate::sync::thread;

pub(crate) use real_log::{
    Appender, CommitError, Compression, Damage, Directory, DiskDirectory, Error, File, Group, Known, MemoryDirectory,
    Options, OverlayDirectory, Page, Position, Recovery, Result, Segment, Tail, create_private_dir, parent_of,
    sync_dir,
};

thread_local! {
    /// All threads of a model are one to the operating system.
    static IS_SYNCING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a sync of the disk.
pub(crate) fn syncing<T>(sync: impl FnOnce() -> T) -> T {
    /// Also if it panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            IS_SYNCING.set(false);
        }
    }
    assert!(!IS_SYNCING.replace(true), "two syncs at once");
    let _end = End;
    sync()
}

/// Waits until nobody syncs.
pub(crate) fn wait_for_sync() {
    while IS_SYNCING.get() {
        thread::yield_now();
    }
}

/// A new model begins.
pub(crate) fn begin() {
    IS_SYNCING.set(false);
}

/// The real one, into whose lock nobody runs.
#[derive(Clone, Debug)]
pub(crate) struct Log(real_log::Log);

/// As `real_log::Opened`.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) log: Log,
    pub(crate) appender: Option<Appender>,
    pub(crate) tail: Option<Tail>,
    pub(crate) damage: Option<Damage>,
    pub(crate) recovery: Recovery,
}

impl Log {
    pub(crate) fn open(
        files: Arc<dyn Directory>,
        id: [u8; 16],
        options: &Options,
        known: Known,
        visit_behind: u64,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<Opened> {
        let opened = real_log::Log::open(files, id, options, known, visit_behind, visit)?;
        let real_log::Opened { log, appender, tail, damage, recovery } = opened;
        Ok(Opened { log: Log(log), appender, tail, damage, recovery })
    }

    pub(crate) fn sync(&self) -> Result<()> {
        wait_for_sync();
        self.0.sync()
    }
}

impl Deref for Log {
    type Target = real_log::Log;

    fn deref(&self) -> &real_log::Log {
        &self.0
    }
}

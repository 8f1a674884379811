//! What faults do to the reference store from outside.

use std::path::Path;

use eventstore_api::{Event, Version};

use crate::reference_store::{DISK, Reference, lock, place};

impl Reference {
    /// Writes its first `events` to the disk, over anything that is there.
    pub(crate) fn write_copy(&self, target: &Path, events: u64) {
        let mut log = lock(&self.0.log).clone();
        log.truncate(Version::new(events));
        lock(&DISK).logs.insert(place(target), log);
    }

    /// Closes it. If it was not closed before, everything after this version is lost.
    pub(crate) fn lose_after(&self, version: Version) {
        if self.0.head.borrow().is_some() {
            self.0.close();
            self.write_copy(&self.0.path, version.get());
        }
    }

    /// Replaces the event with the same id by this one.
    pub(crate) fn overwrite(&self, event: &Event) {
        let mut log = lock(&self.0.log);
        if let Some(there) = log.events.iter_mut().find(|there| there.event.id() == event.id()) {
            there.event = event.clone();
        }
    }
}

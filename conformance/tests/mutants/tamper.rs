//! What faults do to the reference store behind its back.

use std::path::Path;

use eventstore_api::{Event, Version};

use crate::reference_store::{DISK, Reference, lock, place};

impl Reference {
    /// Writes the first `events` of it to the disk, over whatever is there.
    pub(crate) fn write_copy(&self, target: &Path, events: u64) {
        let mut log = lock(&self.0.log).clone();
        log.truncate(Version::new(events));
        lock(&DISK).logs.insert(place(target), log);
    }

    /// Closes it; if it was not closed before, what is behind this version is lost.
    pub(crate) fn lose_after(&self, version: Version) {
        if self.0.head.borrow().is_some() {
            self.0.close();
            self.write_copy(&self.0.path, version.get());
        }
    }

    /// Puts this event in the place of the one that has its id.
    pub(crate) fn overwrite(&self, event: &Event) {
        let mut log = lock(&self.0.log);
        if let Some(there) = log.events.iter_mut().find(|there| there.event.id() == event.id()) {
            there.event = event.clone();
        }
    }
}

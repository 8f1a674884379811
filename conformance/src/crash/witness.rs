//! The attempts of a child and their answers, as reported to its parent line by line: the witness of what must be in
//! the store.
//!
//! A line has reached the parent when the child's call of `write` returns, so it survives whatever ends the child.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::plan::{Kinds, Phase};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Line {
    /// A phase has begun.
    Began(Phase),
    /// The store was opened, read and found correct. `digest` is that of the first `latest` events.
    Audited { latest: u64, digest: u64 },
    /// A batch is about to be appended.
    Tried { batch: u64 },
    /// It was answered with these versions and revisions.
    Stored { batch: u64, sync: bool, places: Vec<(u64, u64)> },
    /// It was refused, and nothing of it was written.
    Refused { batch: u64 },
    /// The outcome is unknown.
    Unknown { batch: u64 },
    /// A backup to this place was started, when everything up to this version was acknowledged.
    BackupBegan { place: String, acknowledged: u64 },
    /// The backup has finished.
    BackedUp { place: String, latest: u64 },
    /// The backup at this place was checked and deleted.
    BackupAudited { place: String },
    /// A phase has ended, with this many calls of each kind.
    Counted { phase: Phase, calls: Vec<(Kinds, u64)> },
    /// How often each point was passed.
    Passed { points: BTreeMap<String, u64> },
    /// `close` has returned, without an error.
    Closed,
    /// The armed incident has happened, and the child continues.
    Fired,
    /// How damage to the files was reported, by an opening or a read.
    Damage { told: String },
    /// The child is at work, though it has nothing else to say.
    GoesOn,
    /// A rule was broken.
    Violation { text: String },
    /// The child is about to end by itself.
    Done,
}

/// The knowledge about a store from all its children so far.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// Every attempted batch, with its acknowledged positions.
    pub(crate) batches: BTreeMap<u64, Batch>,
    /// Everything up to this version survives anything: it was acknowledged with `Sync`, or the store was closed.
    pub(crate) safe: u64,
    /// Everything up to this version survives a kill: it was acknowledged, or seen.
    pub(crate) seen: u64,
    /// The newest audit: the number of events and their digest.
    pub(crate) audited: Option<(u64, u64)>,
    /// Backups that were started and not checked yet, with the acknowledged version before and, for finished ones,
    /// their own.
    pub(crate) backups: BTreeMap<String, (u64, Option<u64>)>,
    /// Acknowledged events.
    pub(crate) acknowledged: BTreeSet<(u64, u64)>,
}

/// The knowledge about a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    /// The positions of its events, once they were acknowledged.
    pub(crate) places: Option<Vec<(u64, u64)>>,
    /// According to the latest answer, nothing of it was written.
    pub(crate) is_refused: bool,
}

impl Witness {
    pub(crate) fn take(&mut self, line: &Line) {
        match line {
            Line::Tried { batch } => {
                let batch = self.batches.entry(*batch).or_default();
                batch.is_refused = false;
            }
            Line::Stored { batch, sync, places } => {
                let last = places.iter().map(|(version, _)| *version).max().unwrap_or_default();
                self.seen = self.seen.max(last);
                if *sync {
                    self.safe = self.safe.max(last);
                }
                self.batches.entry(*batch).or_default().places = Some(places.clone());
                self.acknowledged.extend(places);
            }
            Line::Refused { batch } => self.batches.entry(*batch).or_default().is_refused = true,
            Line::Audited { latest, digest } => {
                self.audited = Some((*latest, *digest));
                self.seen = *latest;
            }
            Line::BackupBegan { place, acknowledged } => {
                self.backups.insert(place.clone(), (*acknowledged, None));
            }
            Line::BackedUp { place, latest } => {
                if let Some(backup) = self.backups.get_mut(place) {
                    backup.1 = Some(*latest);
                }
            }
            Line::BackupAudited { place } => {
                self.backups.remove(place);
            }
            Line::Closed => self.safe = self.seen,
            _ => {}
        }
    }

    /// The power was cut: events acknowledged without a sync may be lost.
    pub(crate) fn power_was_cut(&mut self) {
        self.seen = self.safe;
        self.forget_behind(self.safe);
    }

    /// Acknowledged events after this version may or may not be there.
    fn forget_behind(&mut self, latest: u64) {
        for batch in self.batches.values_mut() {
            if batch.places.as_ref().is_some_and(|places| places.iter().any(|(version, _)| *version > latest)) {
                batch.places = None;
            }
        }
    }
}

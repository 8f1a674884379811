//! What a child tried and what it was answered, as told to its parent line by line: the witness of what must be there.
//!
//! A line is in the parent's hands when the child's call of `write` returns, and so survives whatever ends the child.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::plan::{Kinds, Phase};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Line {
    /// A phase has begun.
    Began(Phase),
    /// The store was opened, read and found to keep everything. `digest` is of the first `latest` events.
    Audited { latest: u64, digest: u64 },
    /// A batch is about to be appended.
    Tried { batch: u64 },
    /// It was answered with these versions and revisions.
    Stored { batch: u64, sync: bool, places: Vec<(u64, u64)> },
    /// It was refused, with nothing of it written.
    Refused { batch: u64 },
    /// The outcome is unknown.
    Unknown { batch: u64 },
    /// A backup to this place was begun, when this version had been acknowledged.
    BackupBegan { place: String, acknowledged: u64 },
    /// It was told to be done.
    BackedUp { place: String, latest: u64 },
    /// The backup at this place was looked at, and is gone.
    BackupAudited { place: String },
    /// A phase has ended, with so many calls of each kind in it.
    Counted { phase: Phase, calls: Vec<(Kinds, u64)> },
    /// How often each point was passed.
    Passed { points: BTreeMap<String, u64> },
    /// `close` has returned, without an error.
    Closed,
    /// What was armed has happened, and the child goes on.
    Fired,
    /// How an opening or a read of damaged files told so.
    Damage { told: String },
    /// A rule was broken.
    Violation { text: String },
    /// The child is about to end by itself.
    Done,
}

/// What is known of a store from all its children so far.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// Every batch that was tried, with the places that were acknowledged.
    pub(crate) batches: BTreeMap<u64, Batch>,
    /// Everything up to this version survives whatever happens: it was acknowledged with `Sync`, or the store was closed.
    pub(crate) safe: u64,
    /// Everything up to this version survives a kill: it was acknowledged, or seen.
    pub(crate) seen: u64,
    /// The newest audit: how many events there were, and their digest.
    pub(crate) audited: Option<(u64, u64)>,
    /// Backups that were begun and not looked at, with what was acknowledged before and what they have if they are done.
    pub(crate) backups: BTreeMap<String, (u64, Option<u64>)>,
    /// Events that were acknowledged.
    pub(crate) acknowledged: BTreeSet<(u64, u64)>,
}

/// What is known of a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    /// Where its events are, once that was acknowledged.
    pub(crate) places: Option<Vec<(u64, u64)>>,
    /// The last that was heard of it is that nothing of it was written.
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

    /// The power was cut: what was acknowledged without a sync may be gone.
    pub(crate) fn power_was_cut(&mut self) {
        self.seen = self.safe;
        self.forget_behind(self.safe);
    }

    /// What was acknowledged behind this version may be there or not.
    fn forget_behind(&mut self, latest: u64) {
        for batch in self.batches.values_mut() {
            if batch.places.as_ref().is_some_and(|places| places.iter().any(|(version, _)| *version > latest)) {
                batch.places = None;
            }
        }
    }
}

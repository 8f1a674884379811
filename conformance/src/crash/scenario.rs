//! The kinds of incidents, each of which is a check.

use std::collections::BTreeMap;

use super::plan::{End, Incident, Kinds, Phase, Unsynced, What};
use crate::Profile;
use crate::random::Random;

/// A kind of incident as a check.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    /// How often a long run chooses it, relative to the others. Damage ends a life and is chosen separately.
    pub(crate) weight: u64,
    pub(crate) rule: &'static str,
}

/// A kind of incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    KillAtAnyMoment,
    KillAtAPoint,
    KillAtACall(Phase),
    CutAtAPoint,
    CutAtACall(Phase),
    CutBehind(Phase),
    FailingSync,
    FailingWrite,
    FullDisk,
    ShortWrite,
    FailingOpening,
    StopThenCut,
    FlippedBit,
    CutFile,
}

const fn scenario(kind: Kind, weight: u64, name: &'static str, rule: &'static str) -> Scenario {
    Scenario { kind, name, weight, rule }
}

/// Every scenario.
pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        Kind::KillAtAnyMoment,
        12,
        "crash::f2_a_kill_at_any_moment_loses_nothing",
        "F2: After a kill at any moment, every acknowledged event is there, there are only whole batches, and the indexes agree with the log.",
    ),
    scenario(
        Kind::KillAtAPoint,
        16,
        "crash::f2_a_kill_at_each_point_that_the_store_names_loses_nothing",
        "F2: The same after a kill at each named point of an append, such as before and after staging, and between commit and answer.",
    ),
    scenario(
        Kind::KillAtACall(Phase::Opening),
        6,
        "crash::f2_a_kill_while_opening_loses_nothing",
        "F2: The same after a kill at any system call of an opening, including one after a kill.",
    ),
    scenario(
        Kind::KillAtACall(Phase::Appending),
        10,
        "crash::f2_a_kill_amid_an_append_loses_nothing",
        "F2: The same after a kill before, after or during any system call of appends.",
    ),
    scenario(
        Kind::KillAtACall(Phase::Collecting),
        5,
        "crash::f2_a_kill_amid_a_collection_loses_nothing",
        "F2, M4: The same after a kill during a garbage collection.",
    ),
    scenario(
        Kind::KillAtACall(Phase::BackingUp),
        5,
        "crash::f2_a_kill_amid_a_backup_loses_nothing",
        "F2, M2: The same after a kill during a backup, of which nothing that opens is left, or all of it.",
    ),
    scenario(
        Kind::KillAtACall(Phase::Closing),
        4,
        "crash::f2_a_kill_while_closing_loses_nothing",
        "F2: The same after a kill at any system call of closing.",
    ),
    scenario(
        Kind::CutAtAPoint,
        6,
        "crash::w4_a_power_cut_at_each_point_that_the_store_names_takes_nothing_synced",
        "W4: After a power cut at each step of an append, every event acknowledged with `Sync` is there, and so are all before it.",
    ),
    scenario(
        Kind::CutAtACall(Phase::Opening),
        3,
        "crash::w4_a_power_cut_while_opening_takes_nothing_synced",
        "W4: The same after a power cut while the store is opened.",
    ),
    scenario(
        Kind::CutAtACall(Phase::Appending),
        10,
        "crash::w4_a_power_cut_amid_an_append_takes_nothing_synced",
        "W4: The same after a power cut at any system call of appends.",
    ),
    scenario(
        Kind::CutAtACall(Phase::Collecting),
        3,
        "crash::w4_a_power_cut_amid_a_collection_takes_nothing_synced",
        "W4, M4: The same after a power cut during a garbage collection.",
    ),
    scenario(
        Kind::CutAtACall(Phase::BackingUp),
        3,
        "crash::w4_a_power_cut_amid_a_backup_takes_nothing_synced",
        "W4, M2: The same after a power cut during a backup.",
    ),
    scenario(
        Kind::CutAtACall(Phase::Closing),
        2,
        "crash::w4_a_power_cut_while_closing_takes_nothing_synced",
        "W4: The same after a power cut while the store is closed.",
    ),
    scenario(
        Kind::CutBehind(Phase::Appending),
        4,
        "crash::w4_a_power_cut_right_after_the_answers_takes_nothing_synced",
        "W4: The same after a power cut right after appends are answered.",
    ),
    scenario(
        Kind::CutBehind(Phase::Closing),
        2,
        "crash::l1_a_power_cut_after_close_takes_nothing",
        "L1: `close` finishes accepted appends: after a power cut following it, events of either durability are there.",
    ),
    scenario(
        Kind::CutBehind(Phase::BackingUp),
        3,
        "crash::m1_a_backup_is_synced_when_the_call_returns",
        "M1: A backup is synced when the call returns: after a power cut following it, it opens and has its events.",
    ),
    scenario(
        Kind::FailingSync,
        6,
        "crash::f1_a_failed_sync_fences_and_acknowledges_nothing_false",
        "F1: After a failed sync, the outcome is unknown and the writer is fenced, even if later syncs would succeed; nothing acknowledged is lost, not even in a power cut.",
    ),
    scenario(
        Kind::FailingWrite,
        4,
        "crash::f1_a_failed_write_acknowledges_nothing_false",
        "F1: After a failed write, nothing is falsely acknowledged, and the store opens again.",
    ),
    scenario(
        Kind::FullDisk,
        4,
        "crash::f4_a_full_disk_loses_nothing_and_opens_again",
        "F4: If the disk is full, there is a clear error, nothing acknowledged is lost, and the store remains usable or opens again when there is space.",
    ),
    scenario(Kind::ShortWrite, 2, "crash::f4_a_write_cut_short_loses_nothing", "F4: A short write loses nothing."),
    scenario(
        Kind::FailingOpening,
        2,
        "crash::f1_an_opening_with_a_failing_disk_harms_nothing",
        "F1: An opening while the disk fails returns an error or succeeds, and does no harm.",
    ),
    scenario(
        Kind::StopThenCut,
        6,
        "crash::w4_a_power_cut_after_a_kill_takes_nothing_synced",
        "W4: The same after a kill at any system call, an opening of what that left in the cache, and a power cut after further appends.",
    ),
    scenario(
        Kind::FlippedBit,
        0,
        "crash::f3_a_flipped_bit_is_told_and_never_a_wrong_event",
        "F3: A flipped bit anywhere in the files is harmless, or reported by opening, by reading or by `verify`; it never causes a wrong event or a crash.",
    ),
    scenario(
        Kind::CutFile,
        0,
        "crash::f3_a_file_cut_short_is_told_and_never_a_wrong_event",
        "F3: The same for a file that has lost its end.",
    ),
];

/// The number of calls of each kind in each phase, and the existing points: where incidents are possible.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learned {
    pub(crate) calls: BTreeMap<(Phase, Kinds), u64>,
    pub(crate) points: BTreeMap<String, u64>,
}

impl Learned {
    /// Whether no child has reported anything yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

impl Kind {
    /// Why it does not run for a store with this profile on this system.
    pub(crate) fn missing(self, profile: &Profile) -> Option<&'static str> {
        let needs_calls =
            !matches!(self, Kind::KillAtAnyMoment | Kind::KillAtAPoint | Kind::FlippedBit | Kind::CutFile);
        if needs_calls && !faulty_disk::IS_SUPPORTED {
            return Some("needs Linux with the GNU C library, where system calls can be watched");
        }
        let needs_backup = matches!(
            self,
            Kind::KillAtACall(Phase::BackingUp)
                | Kind::CutAtACall(Phase::BackingUp)
                | Kind::CutBehind(Phase::BackingUp)
        );
        (needs_backup && !profile.takes_backups()).then_some("needs a store that takes backups")
    }

    /// Whether the files are damaged after the child has ended, instead of an incident during it.
    pub(crate) fn is_damage(self) -> bool {
        matches!(self, Kind::FlippedBit | Kind::CutFile)
    }

    /// A random incident of this kind; `None` if it does not apply to the store.
    pub(crate) fn incident(self, random: &mut Random, learned: &Learned) -> Option<Incident> {
        let at_point = |random: &mut Random, end| {
            let point = random.below(learned.points.len().max(1) as u64) as usize;
            let (point, &count) = learned.points.iter().nth(point)?;
            Some(Incident::AtPoint { point: point.clone(), nth: 1 + random.below(count), end })
        };
        let at_call = |random: &mut Random, phase, calls, what| {
            let count = learned.calls.get(&(phase, calls)).copied().filter(|count| *count > 0)?;
            // An existing store makes fewer calls than one that is being created.
            let most = if random.below(2) == 0 { count.min(4) } else { count };
            Some(Incident::AtCall { phase, calls, nth: 1 + random.below(most), what })
        };
        match self {
            Kind::KillAtAnyMoment => Some(Incident::Kill { answers: random.below(30), micros: random.below(3000) }),
            Kind::KillAtAPoint => at_point(random, End::Kill),
            Kind::CutAtAPoint => {
                let end = End::CutPower(unsynced(random));
                at_point(random, end)
            }
            Kind::KillAtACall(phase) => {
                let what = [What::KillBefore, What::KillAfter, What::KillAmid][random.below(3) as usize];
                at_call(random, phase, Kinds::All, what)
            }
            Kind::CutAtACall(phase) => {
                let what = What::CutPower(unsynced(random));
                at_call(random, phase, Kinds::All, what)
            }
            Kind::CutBehind(phase) => Some(Incident::Behind { phase, unsynced: unsynced(random) }),
            Kind::FailingSync => {
                let (phase, what) = (working(random), fail(random, EIO));
                at_call(random, phase, Kinds::Syncs, what)
            }
            Kind::FailingWrite => {
                let (phase, what) = (working(random), fail(random, EIO));
                at_call(random, phase, Kinds::Writes, what)
            }
            Kind::FullDisk => {
                let then = end(random);
                let phase = if random.below(4) == 0 { Phase::Opening } else { working(random) };
                at_call(random, phase, Kinds::Room, What::Fail { error: ENOSPC, lasts: true, then })
            }
            Kind::ShortWrite => {
                let phase = if random.below(4) == 0 { Phase::Opening } else { working(random) };
                at_call(random, phase, Kinds::Writes, What::Short)
            }
            Kind::FailingOpening => {
                let what = fail(random, EIO);
                at_call(random, Phase::Opening, Kinds::All, what)
            }
            Kind::StopThenCut => {
                let phases = [Phase::Opening, Phase::Appending, Phase::Collecting, Phase::BackingUp, Phase::Closing];
                let phase = phases[random.below(phases.len() as u64) as usize];
                // Before a sync the most is unsynced.
                let calls = if random.below(2) == 0 { Kinds::Syncs } else { Kinds::All };
                let what = What::StopThenCut(unsynced(random));
                at_call(random, phase, calls, what)
            }
            Kind::FlippedBit | Kind::CutFile => Some(Incident::None),
        }
    }
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn unsynced(random: &mut Random) -> Unsynced {
    let seed = random.below(u64::MAX);
    let ways =
        [Unsynced::Lost, Unsynced::Empty, Unsynced::Torn(seed), Unsynced::Mixed(seed), Unsynced::WithHoles(seed)];
    ways[random.below(ways.len() as u64) as usize]
}

/// Usually appends.
fn working(random: &mut Random) -> Phase {
    match random.below(8) {
        0 => Phase::Closing,
        1 => Phase::Collecting,
        2 => Phase::BackingUp,
        _ => Phase::Appending,
    }
}

fn fail(random: &mut Random, error: i32) -> What {
    What::Fail { error, lasts: random.below(3) == 0, then: end(random) }
}

fn end(random: &mut Random) -> Option<End> {
    match random.below(4) {
        0 => None,
        1 => Some(End::Kill),
        _ => Some(End::CutPower(unsynced(random))),
    }
}

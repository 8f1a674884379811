//! Disks that fail, kills at a call, and power cuts, inside of the process that they happen to.

use faulty_disk::{Call, Calls, Fault, Surviving, Trigger};
use serde::{Deserialize, Serialize};

/// What happens at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    KillBefore,
    KillAfter,
    KillAmid,
    /// The power is cut; the number says what survives.
    CutPower(u64),
    /// The disk is full.
    Full,
    /// Syncs fail from then on.
    SyncsFail,
    /// One sync fails.
    SyncFails,
    /// One sync of a directory fails.
    NameSyncFails,
    /// Writes fail from then on.
    WritesFail,
    /// A write is cut short.
    WriteShort,
    /// The replica is stopped as by a kill, and the process goes on: it opens the replica again, appends and syncs, and then the
    /// power is cut.
    Stop(Kind),
}

/// The calls that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    All,
    Syncs,
    Names,
    NameSyncs,
}

/// A failure of the disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct DiskFault {
    /// Whether calls are counted before the store is opened; otherwise from behind that.
    pub(crate) is_early: bool,
    /// At which call.
    pub(crate) nth: u64,
    pub(crate) what: What,
    /// How long calls fail, in milliseconds.
    pub(crate) lasts: u64,
    /// If a replica goes on, with calls that failed: whether the power is cut when it has done its work, and what survives.
    pub(crate) cut: Option<u64>,
}

impl DiskFault {
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        let what = match random.u32(..100) {
            0..10 => What::KillBefore,
            10..20 => What::KillAfter,
            20..30 => What::KillAmid,
            30..60 => What::CutPower(random.u64(..)),
            60..78 => What::Full,
            78..84 => What::SyncsFail,
            84..90 => What::SyncFails,
            90..95 => What::WritesFail,
            _ => What::WriteShort,
        };
        let is_early = random.u8(..4) == 0;
        // Early calls are as likely as late ones, of which there are many more.
        let bits = match (is_early, what) {
            (true, _) => 6,
            (false, What::SyncsFail | What::SyncFails) => 7,
            (false, _) => 9,
        };
        let most = 1_u64 << random.u32(1..=bits);
        DiskFault { is_early, nth: random.u64(1..=most), what, lasts: random.u64(1..60), cut: None }
    }

    /// A disk that fails for a while, and a power cut when the replica has gone on: what a failed sync was to make safe never is.
    pub(crate) fn random_failure(random: &mut fastrand::Rng, is_new: bool) -> Self {
        let what = match random.u8(..10) {
            0..2 => What::SyncFails,
            2..5 => What::NameSyncFails,
            5..7 => What::SyncsFail,
            7 => What::Full,
            8 => What::WritesFail,
            _ => What::WriteShort,
        };
        let is_early = random.u8(..4) == 0 || is_new;
        let most = 1_u64 << random.u32(0..=if is_early { 5 } else { 7 });
        let (nth, lasts) = (random.u64(1..=most), random.u64(1..60));
        DiskFault { is_early, nth, what, lasts, cut: Some(random.u64(..)) }
    }

    /// A stop, as only replicas have it.
    pub(crate) fn random_stop(random: &mut fastrand::Rng, is_new: bool) -> Self {
        // The most is unsynced before a sync.
        let calls = [Kind::All, Kind::Syncs, Kind::Names, Kind::NameSyncs, Kind::NameSyncs][random.usize(..5)];
        let is_early = random.u8(..4) == 0 || is_new;
        let bits = match (is_early, calls) {
            (true, Kind::All) => 7,
            (true, _) | (false, Kind::Names | Kind::NameSyncs) => 5,
            (false, Kind::Syncs) => 7,
            (false, Kind::All) => 9,
        };
        let what = What::Stop(calls);
        let most = 1_u64 << random.u32(0..=bits);
        DiskFault { is_early, nth: random.u64(1..=most), what, lasts: 0, cut: Some(random.u64(..)) }
    }

    /// Whether the process goes on, with calls that failed.
    pub(crate) fn is_survived(self) -> bool {
        !matches!(self.what, What::KillBefore | What::KillAfter | What::KillAmid | What::CutPower(_))
    }

    /// Whether the replica is stopped, as by a kill.
    pub(crate) fn stops(self) -> bool {
        matches!(self.what, What::Stop(_))
    }

    /// Makes it happen, at a call that is counted from now on.
    pub(crate) fn arm(self) {
        let (calls, fault) = match self.what {
            What::KillBefore => (Calls::ALL, Fault::KillBefore),
            What::KillAfter => (Calls::ALL, Fault::KillAfter),
            What::KillAmid => (Calls::of(Call::Write), Fault::KillAmid),
            What::CutPower(seed) => (Calls::ALL, Fault::CutPower(surviving(seed))),
            What::Full => (Calls::ROOM, Fault::Fail(libc::ENOSPC)),
            What::SyncsFail => (Calls::of(Call::Sync), Fault::Fail(libc::EIO)),
            What::SyncFails => (Calls::of(Call::Sync), Fault::FailOnce(libc::EIO)),
            What::NameSyncFails => (Calls::NAME_SYNCS, Fault::FailOnce(libc::EIO)),
            What::WritesFail => (Calls::of(Call::Write), Fault::Fail(libc::EIO)),
            What::WriteShort => (Calls::of(Call::Write), Fault::WriteShort),
            What::Stop(Kind::All) => (Calls::ALL, Fault::Stop),
            What::Stop(Kind::Syncs) => (Calls::of(Call::Sync), Fault::Stop),
            What::Stop(Kind::NameSyncs) => (Calls::NAME_SYNCS, Fault::Stop),
            What::Stop(Kind::Names) => (Calls::of(Call::Name), Fault::Stop),
        };
        faulty_disk::arm(Trigger { calls, nth: self.nth }, fault);
    }
}

/// What survives a power cut.
pub(crate) fn surviving(seed: u64) -> Surviving {
    match seed % 5 {
        0 => Surviving::None,
        1 => Surviving::Names,
        2 => Surviving::First(seed),
        3 => Surviving::Some(seed),
        _ => Surviving::Holes(seed),
    }
}

//! What is to happen to one child process, and when.

use std::fmt;

use faulty_disk::{Call, Calls, Fault, Surviving, Trigger};
use serde::{Deserialize, Serialize};

use crate::Profile;

/// What the child is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Phase {
    Opening,
    Appending,
    Collecting,
    BackingUp,
    Closing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Opening => "opening",
            Phase::Appending => "appending",
            Phase::Collecting => "collecting garbage",
            Phase::BackingUp => "backing up",
            Phase::Closing => "closing",
        })
    }
}

/// The orders of a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Of everything random in the child.
    pub(crate) seed: u64,
    /// The seed of the events, the same for all children that work on a store.
    pub(crate) events_seed: u64,
    /// The number of the child's first batch.
    pub(crate) first_batch: u64,
    pub(crate) role: Role,
    pub(crate) incident: Incident,
}

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// It audits the store and works on it.
    Work,
    /// The files were damaged, and it looks what becomes of that.
    LookAtDamage,
    /// It opens the store and keeps it open until its input ends.
    Hold,
    /// It opens the store while another has it open.
    OpenSecond,
    /// As `Work`, with a clock that is wrong.
    WorkWithWrongClock(WrongClock),
    /// It opens and reads the store with few file descriptors, which must not make it call a sound store damaged.
    RunOutOfFiles,
    /// As `Work`, after some work during which a recorder of metrics and a subscriber of logs panicked.
    PanicWhenTold,
}

/// What is wrong with a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WrongClock {
    Before1970,
    After9999,
    /// It goes back and forth, and through all of that.
    Jumps,
}

impl WrongClock {
    pub(crate) const ALL: [WrongClock; 3] = [WrongClock::Before1970, WrongClock::After9999, WrongClock::Jumps];

    /// What it shows, in seconds since 1970.
    pub(crate) fn shows(self, profile: &Profile) -> &'static [i64] {
        const YEAR: i64 = 365 * 24 * 60 * 60;
        match self {
            WrongClock::Before1970 => &[-10 * YEAR],
            WrongClock::After9999 => &[10_000 * YEAR],
            WrongClock::Jumps if profile.works_before_1970() => {
                &[50 * YEAR, 10_000 * YEAR, 0, -10 * YEAR, 8_000 * YEAR, 1]
            }
            WrongClock::Jumps => &[50 * YEAR, 10_000 * YEAR, 0, 8_000 * YEAR, 1],
        }
    }
}

/// What happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Incident {
    /// Nothing: the child does all its work and closes the store.
    None,
    /// The parent kills the child after this many answers and a while.
    Kill { answers: u64, micros: u64 },
    /// Something happens where the store passes a point that it names, for the nth time.
    AtPoint { point: String, nth: u64, end: End },
    /// Something happens at the nth call of a kind on a watched file, in a phase.
    AtCall { phase: Phase, calls: Kinds, nth: u64, what: What },
    /// The power is cut as soon as a phase has come to its end.
    Behind { phase: Phase, unsynced: Unsynced },
}

/// How a process ends that does not end by itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum End {
    Kill,
    CutPower(Unsynced),
}

/// What becomes of unsynced writes and names when the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Unsynced {
    Lost,
    /// The names are there, and the writes are lost.
    Empty,
    Torn(u64),
    Mixed(u64),
    /// Mixed, and zeros behind the synced ends of files.
    WithHoles(u64),
}

impl From<Unsynced> for Surviving {
    fn from(unsynced: Unsynced) -> Self {
        match unsynced {
            Unsynced::Lost => Surviving::None,
            Unsynced::Empty => Surviving::Names,
            Unsynced::Torn(seed) => Surviving::First(seed),
            Unsynced::Mixed(seed) => Surviving::Some(seed),
            Unsynced::WithHoles(seed) => Surviving::Holes(seed),
        }
    }
}

/// The kinds of calls that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Kinds {
    All,
    Writes,
    Syncs,
    /// Those that take room on the disk.
    Room,
}

impl Kinds {
    pub(crate) const ALL: [Kinds; 4] = [Kinds::All, Kinds::Writes, Kinds::Syncs, Kinds::Room];

    pub(crate) fn calls(self) -> Calls {
        match self {
            Kinds::All => Calls::ALL,
            Kinds::Writes => Calls::of(Call::Write),
            Kinds::Syncs => Calls::of(Call::Sync),
            Kinds::Room => Calls::ROOM,
        }
    }

    /// How many calls of these kinds the disk has seen.
    pub(crate) fn seen(self) -> u64 {
        let all = [Call::Write, Call::Sync, Call::Resize, Call::Name];
        all.into_iter().filter(|call| self.calls().contains(*call)).map(faulty_disk::count).sum()
    }
}

/// What happens at a call.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum What {
    KillBefore,
    KillAfter,
    KillAmid,
    CutPower(Unsynced),
    /// The call fails. `lasts`: and all others of its kind, until the disk is whole again. Afterwards, the process ends
    /// like that, or closes the store if it is `None`.
    Fail {
        error: i32,
        lasts: bool,
        then: Option<End>,
    },
    /// Half of a write is done, and the process goes on.
    Short,
}

impl What {
    pub(crate) fn fault(self) -> Fault {
        match self {
            What::KillBefore => Fault::KillBefore,
            What::KillAfter => Fault::KillAfter,
            What::KillAmid => Fault::KillAmid,
            What::CutPower(unsynced) => Fault::CutPower(unsynced.into()),
            What::Fail { error, lasts: true, .. } => Fault::Fail(error),
            What::Fail { error, lasts: false, .. } => Fault::FailOnce(error),
            What::Short => Fault::WriteShort,
        }
    }

    /// Whether the process goes on, with calls that failed.
    pub(crate) fn is_survived(self) -> bool {
        matches!(self, What::Fail { .. } | What::Short)
    }
}

impl Incident {
    /// Arms the disk for a phase that begins.
    pub(crate) fn arm(&self, now: Phase) {
        if let Incident::AtCall { phase, calls, nth, what } = self
            && *phase == now
        {
            faulty_disk::arm(Trigger { calls: calls.calls(), nth: *nth }, what.fault());
        }
    }

    /// Whether calls fail in this child, and it goes on.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(self, Incident::AtCall { what, .. } if what.is_survived())
    }

    /// Whether it takes back what was not synced.
    pub(crate) fn cuts_power(&self) -> bool {
        match self {
            Incident::AtPoint { end, .. } => matches!(end, End::CutPower(_)),
            Incident::AtCall { what, .. } => {
                matches!(what, What::CutPower(_) | What::Fail { then: Some(End::CutPower(_)), .. })
            }
            Incident::Behind { .. } => true,
            Incident::None | Incident::Kill { .. } => false,
        }
    }
}

impl End {
    /// Ends this process.
    pub(crate) fn end(self) -> ! {
        match self {
            End::Kill => faulty_disk::kill(),
            End::CutPower(unsynced) => faulty_disk::cut_power(unsynced.into()),
        }
    }
}

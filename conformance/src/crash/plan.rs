//! The planned incident of one child process.

use std::fmt;

use faulty_disk::{Call, Calls, Fault, Surviving, Trigger};
use serde::{Deserialize, Serialize};

use crate::Profile;

/// The phase of a child's work.
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

/// The instructions for a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The seed of all random choices in the child.
    pub(crate) seed: u64,
    /// The seed of the events, the same for all children that work on a store.
    pub(crate) events_seed: u64,
    /// The number of the child's first batch.
    pub(crate) first_batch: u64,
    pub(crate) role: Role,
    pub(crate) incident: Incident,
}

/// The purpose of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// It audits the store and works on it.
    Work,
    /// The files were damaged, and it checks the consequences.
    LookAtDamage,
    /// It opens the store and keeps it open until stdin is closed.
    Hold,
    /// It opens the store while another process has it open.
    OpenSecond,
    /// Like `Work`, with a wrong clock.
    WorkWithWrongClock(WrongClock),
    /// It opens and reads the store with few file descriptors. An intact store must not be reported as damaged.
    RunOutOfFiles,
    /// Like `Work`, after some work during which a metrics recorder and a log subscriber panicked.
    PanicWhenTold,
}

/// The fault of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WrongClock {
    Before1970,
    After9999,
    /// It jumps back and forth between all of these.
    Jumps,
}

impl WrongClock {
    pub(crate) const ALL: [WrongClock; 3] = [WrongClock::Before1970, WrongClock::After9999, WrongClock::Jumps];

    /// The times that it shows, in seconds since 1970.
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

/// What happens to a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Incident {
    /// Nothing: the child finishes its work and closes the store.
    None,
    /// The parent kills the child after this many answers and a delay.
    Kill { answers: u64, micros: u64 },
    /// The process ends when the store passes a named point for the nth time.
    AtPoint { point: String, nth: u64, end: End },
    /// Something happens at the nth call of a kind on a watched file, in a phase.
    AtCall { phase: Phase, calls: Kinds, nth: u64, what: What },
    /// The power is cut when a phase has ended.
    Behind { phase: Phase, unsynced: Unsynced },
}

/// How a process is ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum End {
    Kill,
    CutPower(Unsynced),
}

/// What happens with unsynced writes and names when the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Unsynced {
    Lost,
    /// The names are kept, and the writes are lost.
    Empty,
    Torn(u64),
    Mixed(u64),
    /// Mixed, with zeros after the synced ends of files.
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

/// The kinds of calls to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Kinds {
    All,
    Writes,
    Syncs,
    /// Those that allocate disk space.
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

    /// The number of calls of these kinds so far.
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
    /// The call fails. `lasts`: all later calls of its kind fail as well, until the disk works again. Afterwards the
    /// process ends in this way, or closes the store if `None`.
    Fail {
        error: i32,
        lasts: bool,
        then: Option<End>,
    },
    /// Half of a write is done, and the process continues.
    Short,
    /// The store is stopped as by a kill, but in a process that continues: it opens the store again, appends, and then the
    /// power is cut. So what a killed store had changed and not synced can still be lost.
    StopThenCut(Unsynced),
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
            What::StopThenCut(_) => Fault::Stop,
        }
    }

    /// Whether the process continues, with failed calls.
    pub(crate) fn is_survived(self) -> bool {
        matches!(self, What::Fail { .. } | What::Short | What::StopThenCut(_))
    }
}

impl Incident {
    /// Arms the simulated disk at the beginning of a phase.
    pub(crate) fn arm(&self, now: Phase) {
        if let Incident::AtCall { phase, calls, nth, what } = self
            && *phase == now
        {
            faulty_disk::arm(Trigger { calls: calls.calls(), nth: *nth }, what.fault());
        }
    }

    /// Whether calls fail in this child, and it continues.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(self, Incident::AtCall { what, .. } if what.is_survived())
    }

    /// Whether it reverts unsynced data.
    pub(crate) fn cuts_power(&self) -> bool {
        match self {
            Incident::AtPoint { end, .. } => matches!(end, End::CutPower(_)),
            Incident::AtCall { what, .. } => {
                matches!(
                    what,
                    What::CutPower(_) | What::Fail { then: Some(End::CutPower(_)), .. } | What::StopThenCut(_)
                )
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

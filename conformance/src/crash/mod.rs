//! The crash kit: child processes work on a store and are killed, lose power, or have a failing disk. The next one
//! reopens the store and checks it against everything that was acknowledged. For any store that can be reopened.
//!
//! ```no_run
//! use std::process::ExitCode;
//! # use std::sync::Arc;
//! # use eventstore_api::{Error, EventStore};
//! # async fn open(_: std::path::PathBuf) -> Result<Arc<dyn EventStore>, Error> { Err(Error::Closed) }
//! use conformance::crash::Kit;
//!
//! // A test target with `harness = false`. The children are this program, started again.
//! fn main() -> ExitCode {
//!     Kit::new("mine", conformance::Profile::persistent(), |directory| async { open(directory).await }).run()
//! }
//! ```
//!
//! # How it works
//!
//! A *life* is a store and the children that work on it in sequence. Each child opens the store, audits it, appends
//! from several tasks, collects garbage, takes a backup, and closes it; at some point its *incident* happens. The child
//! reports every attempt and every answer to its parent, line by line: the *witness*, which survives whatever ends the
//! child. The next child's audit compares the store with the witness: everything acknowledged is there, at its position
//! and with its content; no batch is there in part; nothing is there that was refused or never appended; all ways of
//! reading agree; `verify` finds nothing; finished backups open and are complete.
//!
//! # Incidents
//!
//! * **Kills**, as by `kill -9`: at any moment; before, after or during any system call; at any named point of the
//!   store. A point is a `tracing` event with an explicit name, such as `tracing::trace!(name: "staged", "…")`; the kit
//!   discovers points by itself.
//! * **Power cuts**: like kills, but unsynced data is lost completely, torn, or lost sector by sector, with zeros where
//!   a file had grown. Files that were created, renamed or deleted have no name, their old one, or are back, unless
//!   their directory was synced. See the crate `faulty-disk` for the model. A store that answers before its sync
//!   survives any number of kills and fails at the first power cut. Some come after a kill, when the store was opened
//!   again and appended to: a store must not rely on what the killed process left in the cache.
//! * **A failing disk**: syncs and writes that fail once or from then on, a full disk, short writes.
//! * **Damage**: a flipped bit or a lost end of a file, in a store that was closed or killed before.
//!
//! Other checks that need a separate process are here as well: a second opening, a wrong clock, a lack of file
//! descriptors, and panics of metrics recorders and log subscribers.
//!
//! A check that does not apply to a store, such as a kill during a backup of a store without backups, shows as ignored.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `EVENTSTORE_CRASH_CYCLES` | the number of incidents per check; 10 by default |
//! | `EVENTSTORE_CONFORMANCE_SEED` | the seed of all random choices except the interleaving of threads and the time |

mod audit;
mod child;
mod life;
mod listeners;
mod plan;
mod points;
mod scenario;
mod shortage;
mod torture;
mod witness;
mod workload;

use std::cell::Cell;
use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use eventstore_api::{Error, EventStore};
use libtest_mimic::{Arguments, Trial};

pub use torture::{Summary, Torture};

use self::life::{Cycle, Life};
use self::plan::{Incident, Plan, Role, WrongClock};
use self::scenario::{Learned, SCENARIOS, Scenario};
use crate::env::Factory;
use crate::failure::{Checked, Failure};
use crate::random::{self, Random};
use crate::{CheckInfo, CheckReport, Outcome, Profile, parallel};

/// The directory of a child. If it is set, this process is a child.
const CHILD: &str = "EVENTSTORE_CRASH_CHILD";

/// The plan of a child.
const PLAN: &str = "EVENTSTORE_CRASH_PLAN";

/// The line of a witness about a power cut.
const POWER_CUT: &str = "power cut";

/// The number of incidents in a life. Faults in the creation of a store show only in those of its first child.
const CYCLES_OF_A_LIFE: [u64; 3] = [2, 6, 24];

/// A check that needs other processes but no crash.
struct Other {
    name: &'static str,
    rule: &'static str,
    /// Why it does not run for a store with this profile on this system.
    missing: fn(&Profile) -> Option<&'static str>,
    run: fn(&mut Life) -> Checked,
}

/// Every such check.
const OTHERS: [Other; 4] = [
    Other {
        name: "crash::l2_an_opening_from_another_process_is_locked",
        rule: "L2: A second opening from another process is `Locked`, and after the first is closed, the store opens.",
        missing: |profile| (!profile.locks()).then_some("needs a store that locks"),
        run: Life::open_twice,
    },
    Other {
        name: "crash::w7_no_clock_keeps_anybody_from_appending",
        rule: "W7: While the clock is before 1970, after 9999, or goes back, opening, appends, garbage collections, backups and closing work, and the recorded events can be copied.",
        missing: |_| {
            (!faulty_disk::IS_SUPPORTED).then_some("needs Linux with the GNU C library, where a clock can be set")
        },
        run: |life| WrongClock::ALL.iter().try_for_each(|clock| life.visit(1, Role::WorkWithWrongClock(*clock))),
    },
    Other {
        name: "crash::m3_a_store_is_not_called_damaged_for_want_of_files",
        rule: "M3: If `verify`, an opening or a read lacks file descriptors, that is an error and not a finding: nothing is reported as `Corrupt` or missing.",
        missing: |_| (!cfg!(unix)).then_some("needs a Unix system, whose file descriptors can be used up"),
        // So that there are several files of each kind.
        run: |life| life.visit(6, Role::RunOutOfFiles),
    },
    Other {
        name: "crash::f5_recorders_and_subscribers_that_panic_stop_nobody",
        rule: "F5: A metrics recorder and a log subscriber that panic end at most the calls that they observe: nothing is fenced or lost, and everything works again when they stop panicking.",
        missing: |_| None,
        run: |life| life.visit(1, Role::PanicWhenTold),
    },
];

/// The result of a life in which no rule was broken.
enum Lived {
    Whole,
    /// The store does nothing during which the incident could happen.
    NoPlace,
}

/// The number of incidents per check from the environment.
fn cycles_wanted() -> Checked<Option<u64>> {
    const CYCLES: &str = "EVENTSTORE_CRASH_CYCLES";
    let Ok(text) = std::env::var(CYCLES) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Failure::new(format!("{CYCLES} is not a number: {text:?}")))
}

/// Runs the crash tests of one store.
#[derive(Clone)]
pub struct Kit {
    name: String,
    profile: Profile,
    factory: Factory,
    env: Vec<(String, String)>,
    cycles: u64,
    /// The names of the checks.
    names: Vec<&'static str>,
}

impl std::fmt::Debug for Kit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kit").field("name", &self.name).field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Kit {
    /// The kit for the store that `factory` opens in a directory, as in [`run`](crate::run).
    ///
    /// # Panics
    ///
    /// If the profile says that nothing survives closing.
    pub fn new<F, Fut>(name: &str, profile: Profile, factory: F) -> Self
    where
        F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn EventStore>, Error>> + Send + 'static,
    {
        assert!(profile.survives_closing(), "what is lost on closing cannot survive a crash");
        let factory: Factory = Arc::new(move |directory| Box::pin(factory(directory)));
        let names =
            SCENARIOS.iter().map(|scenario| scenario.name).chain(OTHERS.iter().map(|other| other.name)).collect();
        Kit { name: name.to_owned(), profile, factory, env: Vec::new(), cycles: 10, names }
    }

    /// Adds a variable to the environment of the children. A `main` with several stores can use it to tell them apart.
    #[must_use]
    pub fn env(mut self, variable: &str, value: &str) -> Self {
        self.env.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Sets the number of incidents per check, unless the environment sets it; 10 by default.
    #[must_use]
    pub fn cycles(mut self, cycles: u64) -> Self {
        self.cycles = cycles;
        self
    }

    /// Restricts the kit to checks with wanted names.
    #[must_use]
    pub fn only(mut self, is_wanted: impl Fn(&str) -> bool) -> Self {
        self.names.retain(|name| is_wanted(name));
        self
    }

    /// Runs every check, as the `main` of a test target with `harness = false`, and reports on the terminal.
    ///
    /// In a child process, it runs the child. The child must reach this call in the same way, so nothing may be printed
    /// to standard output before.
    #[must_use]
    pub fn run(self) -> ExitCode {
        if let Some(place) = std::env::var_os(CHILD) {
            return self.be_child(place);
        }
        if let Err(failure) = random::check_environment().and(cycles_wanted().map(drop)) {
            let _ = writeln!(std::io::stderr(), "crash tests of {}: {failure}", self.name);
            return ExitCode::FAILURE;
        }
        let trial = |check: CheckInfo| {
            let (kit, name) = (self.clone(), check.name.clone());
            Trial::ignorable_test(name, move || kit.outcome(check).into_completion()).with_kind(self.name.clone())
        };
        let trials = self.checks().map(trial).collect();
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    /// Whether this process is a child, which must call [`run`](Kit::run).
    #[must_use]
    pub fn is_child(&self) -> bool {
        std::env::var_os(CHILD).is_some()
    }

    /// Describes all checks, including those that are ignored for this store. All names begin with `crash::`.
    pub fn checks(&self) -> impl Iterator<Item = CheckInfo> {
        let of_scenario = |scenario: &Scenario| (scenario.name, scenario.rule, scenario.kind.missing(&self.profile));
        let of_other = |other: &Other| (other.name, other.rule, (other.missing)(&self.profile));
        let checks = SCENARIOS.iter().map(of_scenario).chain(OTHERS.iter().map(of_other));
        let wanted = checks.filter(|(name, ..)| self.names.contains(name));
        wanted.map(|(name, rule, missing)| CheckInfo {
            ignored: missing.map(str::to_owned),
            ..CheckInfo::new(name, rule)
        })
    }

    /// Runs the check with this name; `None` if there is none. Not for child processes, which must call
    /// [`run`](Kit::run).
    #[must_use]
    pub fn run_check(&self, name: &str) -> Option<Outcome> {
        let check = self.checks().find(|check| check.name == name)?;
        Some(self.outcome(check))
    }

    fn outcome(&self, check: CheckInfo) -> Outcome {
        if let Some(reason) = check.ignored {
            return Outcome::Ignored(reason);
        }
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == check.name);
        let other = OTHERS.iter().find(|other| other.name == check.name);
        let outcome = match (scenario, other) {
            (Some(scenario), _) => self.wait_for_incidents(scenario),
            (None, Some(other)) => self.without_incident(other).map(|()| true),
            (None, None) => Ok(false),
        };
        match outcome {
            Ok(true) => Outcome::Passed,
            Ok(false) => Outcome::Ignored("this store does nothing in which it could happen".to_owned()),
            Err(failure) => Outcome::Failed(failure.note("rule", check.text)),
        }
    }

    /// Runs all checks on this many `threads`, and calls `ended` after each. Not for child processes, which must call
    /// [`run`](Kit::run).
    pub fn run_all(&self, threads: NonZeroUsize, ended: impl Fn(&CheckReport) + Sync) -> Vec<CheckReport> {
        let checks: Vec<_> = self.checks().collect();
        parallel::map(threads, &checks, |check| {
            let report = CheckReport::of(check.clone(), || self.outcome(check.clone()));
            ended(&report);
            report
        })
    }

    /// Runs lives with incidents of one kind until there were enough; false if the incident does not apply to the
    /// store.
    fn wait_for_incidents(&self, scenario: &Scenario) -> Checked<bool> {
        let (seed, wanted) = (random::seed(), cycles_wanted()?.unwrap_or(self.cycles));
        let root = tempfile::Builder::new().prefix("eventstore-crash-").tempdir()?;
        let mut random = Random::new(seed ^ scenario.name.len() as u64);
        let mut learned = Learned::default();
        let (hits, misses) = (Cell::new(0), Cell::new(0));
        for number in 0_u64.. {
            let life = Life::begin(self, root.path().join(format!("life-{number}")), random.below(u64::MAX))?;
            let mut next = |_: &mut Random| (hits.get() < wanted).then_some(scenario);
            let mut tell = |planned: Option<_>, cycle: Cycle| {
                let count = if cycle.hit { &hits } else { &misses };
                count.set(count.get() + u64::from(planned.is_some()));
            };
            match self.live(life, &mut learned, &mut random, &mut next, &mut tell) {
                Ok(Lived::Whole) => {}
                Ok(Lived::NoPlace) => return Ok(false),
                Err(failure) => {
                    let kept = root.keep();
                    let failure = failure.note("files", format!("kept in {}", kept.display()));
                    return Err(failure.note("seed", random::replay(seed)));
                }
            }
            if hits.get() >= wanted {
                break;
            }
            let (hits, misses) = (hits.get(), misses.get());
            ensure!(misses < 20 * (wanted + 5), "what was planned happened in {hits} of {} children", hits + misses);
        }
        Ok(true)
    }

    /// Runs children on a store, each with an incident of the kind that `next` chooses, and reports each. The first
    /// child may have none, so that the kit learns where incidents are possible. The last one has none and checks what
    /// the previous one left.
    fn live<'s>(
        &self,
        mut life: Life,
        learned: &mut Learned,
        random: &mut Random,
        next: &mut dyn FnMut(&mut Random) -> Option<&'s Scenario>,
        tell: &mut dyn FnMut(Option<&'s Scenario>, Cycle),
    ) -> Checked<Lived> {
        if learned.is_empty() || random.below(3) > 0 {
            tell(None, life.cycle(None, Incident::None, learned, random)?);
        }
        let mut lived = Lived::Whole;
        let cycles = CYCLES_OF_A_LIFE[random.below(CYCLES_OF_A_LIFE.len() as u64) as usize];
        for _ in 0..cycles {
            let Some(scenario) = next(random) else { break };
            if scenario.kind.is_damage() && !life.can_be_damaged() {
                tell(None, life.cycle(None, Incident::None, learned, random)?);
            }
            let Some(incident) = (0..32).find_map(|_| scenario.kind.incident(random, learned)) else {
                lived = Lived::NoPlace;
                break;
            };
            tell(Some(scenario), life.cycle(Some(scenario.kind), incident, learned, random)?);
            if scenario.kind.is_damage() {
                return Ok(Lived::Whole); // nothing more can be checked
            }
        }
        tell(None, life.cycle(None, Incident::None, learned, random)?);
        Ok(lived)
    }

    fn without_incident(&self, other: &Other) -> Checked {
        let root = tempfile::Builder::new().prefix("eventstore-crash-").tempdir()?;
        (other.run)(&mut Life::begin(self, root.path().join("life"), random::seed())?).map_err(|failure| {
            let kept = root.keep();
            failure.note("files", format!("kept in {}", kept.display()))
        })
    }

    fn be_child(&self, place: OsString) -> ExitCode {
        let plan = std::env::var(PLAN).ok().and_then(|plan| serde_json::from_str::<Plan>(&plan).ok());
        match plan {
            Some(plan) => child::run(&self.profile, &self.factory, Path::new(&place), &plan),
            None => ExitCode::FAILURE,
        }
    }
}

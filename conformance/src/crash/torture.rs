//! Long runs: many lives, all kinds of incidents, and a summary.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::life::{Cycle, Life};
use super::scenario::{Learned, SCENARIOS, Scenario};
use super::{Kit, Lived};
use crate::Failure;
use crate::failure::Checked;
use crate::random::{self, Random};

/// The settings of a long run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Torture {
    /// It ends after this many incidents. Children without an incident do not count.
    pub cycles: u64,
    /// The number of concurrent lives.
    pub jobs: usize,
    /// The seed of all random choices except the interleaving of threads and the time.
    pub seed: u64,
    /// The directory of the stores, which must be empty or missing. A store that broke a rule is kept there.
    pub directory: PathBuf,
}

impl Torture {
    /// This many incidents, in two concurrent lives below `directory`.
    pub fn new(cycles: u64, directory: impl Into<PathBuf>) -> Self {
        Torture { cycles, jobs: 2, seed: random::seed(), directory: directory.into() }
    }
}

/// The result of a long run. `Display` formats it with tables, in Markdown.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// The number of incidents.
    pub cycles: u64,
    /// The number of child processes, including those without an incident.
    pub children: u64,
    /// The number of stores.
    pub lives: u64,
    /// The number of acknowledged events, each counted once. All of them were checked after each incident.
    pub acknowledged: u64,
    /// Incidents by check.
    pub by_check: BTreeMap<&'static str, u64>,
    /// Kills and power cuts by place.
    pub by_place: BTreeMap<String, u64>,
    /// Damaged stores by how the damage was reported.
    pub damaged: BTreeMap<String, u64>,
    /// Broken rules, each with how to reproduce it.
    pub failures: Vec<Failure>,
    /// The duration of the run.
    pub took: Duration,
}

impl Kit {
    /// Runs all kinds of incidents, in proportion to their weights, until there were enough or a rule was broken.
    /// `tell` is called after each child. Not for child processes, which must call [`run`](Kit::run).
    pub fn torture(&self, torture: &Torture, tell: &(dyn Fn(&Summary) + Sync)) -> Summary {
        let run = Run { kit: self, torture, tell, began: Instant::now(), summary: Mutex::default() };
        thread::scope(|scope| {
            for job in 0..torture.jobs.max(1) {
                let run = &run;
                scope.spawn(move || run.job(job as u64));
            }
        });
        let mut summary = run.summary.into_inner().unwrap_or_else(PoisonError::into_inner);
        summary.took = run.began.elapsed();
        summary
    }
}

struct Run<'a> {
    kit: &'a Kit,
    torture: &'a Torture,
    tell: &'a (dyn Fn(&Summary) + Sync),
    began: Instant,
    summary: Mutex<Summary>,
}

impl Run<'_> {
    /// Runs one life after the other.
    fn job(&self, job: u64) {
        let mut random = Random::new(self.torture.seed ^ (job + 1).wrapping_mul(0x9e6c_63d0_876a_68ee));
        let mut learned = Learned::default();
        for number in 0.. {
            if self.is_done() {
                return;
            }
            let place = self.torture.directory.join(format!("life-{job}-{number}"));
            match self.life(place.clone(), &mut learned, &mut random) {
                Ok(()) => drop(std::fs::remove_dir_all(&place)),
                Err(failure) => {
                    let failure = failure.note("files", format!("kept in {}", place.display()));
                    let failure = failure.note("seed", self.torture.seed.to_string());
                    self.update(|summary| summary.failures.push(failure));
                    return;
                }
            }
        }
    }

    fn life(&self, place: PathBuf, learned: &mut Learned, random: &mut Random) -> Checked {
        let life = Life::begin(self.kit, place, random.below(u64::MAX))?;
        self.update(|summary| summary.lives += 1);
        let possible: Vec<_> =
            SCENARIOS.iter().filter(|scenario| scenario.kind.missing(&self.kit.profile).is_none()).collect();
        let damage: Vec<_> = possible.iter().filter(|scenario| scenario.kind.is_damage()).copied().collect();
        let mut turns = 8 + random.below(16);
        let mut next = |random: &mut Random| {
            turns = turns.saturating_sub(1);
            match turns {
                _ if self.is_done() => None,
                0 => Some(damage[random.below(damage.len() as u64) as usize]),
                _ => Some(choose(&possible, random)),
            }
        };
        let mut tell = |scenario: Option<&Scenario>, cycle: Cycle| self.update(|summary| summary.add(scenario, cycle));
        match self.kit.live(life, learned, random, &mut next, &mut tell)? {
            Lived::Whole | Lived::NoPlace => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        let summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.cycles >= self.torture.cycles || !summary.failures.is_empty()
    }

    fn update(&self, change: impl FnOnce(&mut Summary)) {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut summary);
        summary.took = self.began.elapsed();
        (self.tell)(&summary);
    }
}

fn choose<'s>(scenarios: &[&'s Scenario], random: &mut Random) -> &'s Scenario {
    let all: u64 = scenarios.iter().map(|scenario| scenario.weight).sum();
    let mut at = random.below(all);
    for scenario in scenarios {
        if at < scenario.weight {
            return scenario;
        }
        at -= scenario.weight;
    }
    scenarios[0]
}

impl Summary {
    fn add(&mut self, scenario: Option<&Scenario>, cycle: Cycle) {
        self.children += 1;
        self.acknowledged += cycle.acknowledged;
        let Some(scenario) = scenario.filter(|_| cycle.hit) else { return };
        if scenario.kind.is_damage() {
            *self.damaged.entry(cycle.told.unwrap_or_else(|| "harmless".to_owned())).or_default() += 1;
            *self.by_check.entry(scenario.name).or_default() += 1;
            return;
        }
        self.cycles += 1;
        *self.by_check.entry(scenario.name).or_default() += 1;
        if let Some(place) = cycle.place {
            *self.by_place.entry(place).or_default() += 1;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = if self.failures.is_empty() { "0" } else { "see below" };
        writeln!(f, "| | |\n|---|---|")?;
        writeln!(f, "| incidents | {} |", self.cycles)?;
        writeln!(f, "| child processes | {} |", self.children)?;
        writeln!(f, "| stores | {} |", self.lives)?;
        writeln!(f, "| events acknowledged | {} |", self.acknowledged)?;
        writeln!(f, "| acknowledged events lost | {lost} |")?;
        writeln!(f, "| rules broken | {} |", self.failures.len())?;
        writeln!(f, "| minutes | {:.1} |", self.took.as_secs_f64() / 60.0)?;
        table(f, "check", self.by_check.iter())?;
        table(f, "where", self.by_place.iter())?;
        table(f, "damaged stores, and what told of it first", self.damaged.iter())?;
        for failure in &self.failures {
            writeln!(f, "\n{failure}")?;
        }
        Ok(())
    }
}

fn table<'a, K: fmt::Display + 'a>(
    f: &mut fmt::Formatter<'_>,
    heading: &str,
    rows: impl Iterator<Item = (&'a K, &'a u64)>,
) -> fmt::Result {
    writeln!(f, "\n| {heading} | times |\n|---|---|")?;
    rows.into_iter().try_for_each(|(what, count)| writeln!(f, "| {what} | {count} |"))
}

//! What was found, as Markdown and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::Serialize;

use crate::contestants::{Contestant, Lacks};
use crate::machine::Machine;
use crate::workloads::{Group, Scale, Unit, Workload};

/// The contestant that all are compared with.
const RIVAL: &str = "tephra";

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    scale: Scale,
    rounds: u32,
    contestants: Vec<Contestant>,
    /// Median times of `fdatasync` after an append of 400 bytes, in microseconds: one for each turn.
    syncs: Vec<Sync>,
    figures: Vec<Figure>,
    failures: Vec<Failure>,
}

#[derive(Serialize)]
struct Sync {
    round: u32,
    contestant: &'static str,
    microseconds: f64,
}

#[derive(Serialize)]
struct Figure {
    round: u32,
    contestant: &'static str,
    group: Group,
    column: &'static str,
    unit: Unit,
    value: f64,
}

#[derive(Serialize)]
struct Failure {
    round: u32,
    contestant: &'static str,
    workload: String,
    reason: String,
    /// It is nothing that the contestant offers.
    lacks: bool,
}

impl Report {
    pub(crate) fn new(machine: Machine, scale: Scale, rounds: u32, contestants: Vec<Contestant>) -> Self {
        Report { machine, scale, rounds, contestants, syncs: Vec::new(), figures: Vec::new(), failures: Vec::new() }
    }

    pub(crate) fn add_sync(&mut self, round: u32, contestant: &'static str, mut times: Vec<Duration>) {
        times.sort_unstable();
        if let Some(median) = times.get(times.len() / 2) {
            self.syncs.push(Sync { round, contestant, microseconds: median.as_secs_f64() * 1e6 });
        }
    }

    pub(crate) fn add(
        &mut self,
        round: u32,
        contestant: &'static str,
        workload: &Workload,
        found: anyhow::Result<Vec<f64>>,
    ) {
        match found {
            Ok(values) => self.figures.extend(workload.columns.iter().zip(values).map(|(column, value)| Figure {
                round,
                contestant,
                group: workload.group,
                column: column.title,
                unit: column.unit,
                value,
            })),
            Err(error) => self.failures.push(Failure {
                round,
                contestant,
                workload: workload.path(),
                reason: format!("{error:#}"),
                lacks: error.is::<Lacks>(),
            }),
        }
    }

    /// Whether a contestant failed in something that it offers.
    pub(crate) fn has_failures(&self) -> bool {
        self.failures.iter().any(|failure| !failure.lacks)
    }

    /// The median over the rounds.
    fn value(&self, contestant: &str, group: Group, column: &str) -> Option<f64> {
        let of_cell =
            |figure: &&Figure| figure.contestant == contestant && figure.group == group && figure.column == column;
        median(self.figures.iter().filter(of_cell).map(|figure| figure.value).collect())
    }

    fn cell(&self, contestant: &Contestant, group: Group, column: &str, unit: Unit) -> String {
        let Some(value) = self.value(contestant.name, group, column) else { return "–".to_owned() };
        let ratio = |of: &str, name: &str| {
            let base = self.value(of, group, column).filter(|base| *base > 0.0)?;
            Some(format!("{:.2} {name}", value / base))
        };
        let to_floor = contestant.floor.and_then(|floor| ratio(floor, "raw"));
        let to_rival = (contestant.name != RIVAL).then(|| ratio(RIVAL, RIVAL)).flatten();
        let ratios: Vec<_> = to_floor.into_iter().chain(to_rival).collect();
        let value = unit.show(value);
        if ratios.is_empty() { value } else { format!("{value} ({})", ratios.join(", ")) }
    }

    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cores, memory_gib, system, kernel, file_system } = &self.machine;
        writeln!(
            f,
            "{cpu}, {cores} cores, {memory_gib:.0} GiB; {system}, kernel {kernel}; {file_system}. fdatasync after an \
             append of 400 bytes: {}.\n",
            self.sync()
        )?;
        writeln!(
            f,
            "Rounds: {}. Each contestant has its turn in each, in another order; figures are medians over them. Stores are filled with {} \
             events or a few more; data of {} bytes that do not compress. In brackets: times its raw engine, times {RIVAL}.\n",
            self.rounds,
            grouped(self.scale.events as f64),
            crate::events::DATA
        )
    }

    fn sync(&self) -> String {
        let times: Vec<_> = self.syncs.iter().map(|sync| sync.microseconds).collect();
        let lowest = times.iter().copied().reduce(f64::min).unwrap_or_default();
        let highest = times.iter().copied().reduce(f64::max).unwrap_or_default();
        let median = median(times).unwrap_or_default();
        format!("{median:.0} us (from {lowest:.0} to {highest:.0} us between the turns)")
    }

    fn table(&self, f: &mut Formatter<'_>, group: Group) -> fmt::Result {
        let mut columns: Vec<(&str, Unit)> = Vec::new();
        for figure in self.figures.iter().filter(|figure| figure.group == group) {
            if columns.iter().all(|(title, _)| *title != figure.column) {
                columns.push((figure.column, figure.unit));
            }
        }
        if columns.is_empty() {
            return Ok(());
        }
        writeln!(f, "## {}\n", group.title())?;
        let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
        writeln!(f, "| | {} |\n|---{}|", titles.join(" | "), "|---:".repeat(columns.len()))?;
        let has_figures = |contestant: &&Contestant| {
            self.figures.iter().any(|figure| figure.group == group && figure.contestant == contestant.name)
        };
        for contestant in self.contestants.iter().filter(has_figures) {
            let cells: Vec<_> =
                columns.iter().map(|(title, unit)| self.cell(contestant, group, title, *unit)).collect();
            writeln!(f, "| {} | {} |", contestant.name, cells.join(" | "))?;
        }
        writeln!(f)
    }

    fn failed(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Each reason once, whatever number of contestants and rounds it is of.
        let mut reasons = BTreeMap::<_, BTreeSet<_>>::new();
        for failure in &self.failures {
            reasons.entry((failure.lacks, &failure.workload, &failure.reason)).or_default().insert(failure.contestant);
        }
        if reasons.is_empty() {
            return Ok(());
        }
        writeln!(f, "## Without a figure\n")?;
        for ((lacks, workload, reason), contestants) in reasons {
            let contestants = contestants.into_iter().collect::<Vec<_>>().join(", ");
            let kind = if lacks { "not offered by" } else { "FAILED:" };
            writeln!(f, "- {workload}, {kind} {contestants}: {reason}")?;
        }
        writeln!(f)
    }

    /// Whose turns the disk was slow in.
    fn syncs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "## fdatasync right before the turns of each, us\n")?;
        writeln!(f, "| | median | of each round |\n|---|---:|---|")?;
        for Contestant { name, .. } in &self.contestants {
            let times: Vec<_> =
                self.syncs.iter().filter(|sync| sync.contestant == *name).map(|sync| sync.microseconds).collect();
            let rounds = times.iter().map(|time| format!("{time:.0}")).collect::<Vec<_>>().join(", ");
            writeln!(f, "| {name} | {:.0} | {rounds} |", median(times).unwrap_or_default())?;
        }
        writeln!(f)
    }

    fn contestants(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Contestants\n")?;
        writeln!(f, "| | guarantees | does not keep | settings |\n|---|---|---|---|")?;
        for Contestant { name, guarantees, lacks, settings, .. } in &self.contestants {
            writeln!(f, "| {name} | {guarantees} | {lacks} | {settings} |")?;
        }
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        Group::ALL.into_iter().try_for_each(|group| self.table(f, group))?;
        self.failed(f)?;
        self.syncs(f)?;
        self.contestants(f)
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::EventsPerSecond | Unit::BytesPerEvent => grouped(value),
            Unit::Milliseconds => format!("{value:.2}"),
            Unit::Microseconds => format!("{value:.1}"),
        }
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// An integer with a comma before each three digits.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0.4), "0");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1_000.0), "1,000");
        assert_eq!(grouped(1_234_567.8), "1,234,568");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }
}

//! What was found, as Markdown and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::Serialize;

use crate::contestants::{Contestant, Lacks};
use crate::machine::Machine;
use crate::workloads::{Group, Scale, Unit, Workload};

/// What all are compared with: the better of those contestants whose names begin with it.
const RIVAL: &str = "tephra";

/// Where `fdatasync` took so much more or less than in the median of the run, the disk was another one.
const TOLERATED: f64 = 0.25;

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    scale: Scale,
    rounds: u32,
    contestants: Vec<Contestant>,
    /// Median times of a write of 400 bytes with its `fdatasync`, in microseconds: one for each turn.
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

/// The median over the rounds.
#[derive(Clone, Copy)]
struct Cell {
    value: f64,
    /// The disk was another one in all of them.
    off: bool,
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

    /// Whether the disk was another one before this turn than in the rest of the run.
    fn is_off(&self, round: u32, contestant: &str) -> bool {
        let median = self.median_sync();
        let of_turn = |sync: &&Sync| sync.round == round && sync.contestant == contestant;
        self.syncs.iter().filter(of_turn).any(|sync| (sync.microseconds - median).abs() > TOLERATED * median)
    }

    fn median_sync(&self) -> f64 {
        median(self.syncs.iter().map(|sync| sync.microseconds).collect()).unwrap_or_default()
    }

    /// Over the rounds in which the disk was as in the rest of the run, or over all if there is none.
    fn value(&self, contestant: &str, group: Group, column: &str) -> Option<Cell> {
        let of_cell =
            |figure: &&Figure| figure.contestant == contestant && figure.group == group && figure.column == column;
        let figures: Vec<_> = self.figures.iter().filter(of_cell).collect();
        let counted = figures.iter().filter(|figure| !self.is_off(figure.round, contestant));
        let counted = median(counted.map(|figure| figure.value).collect()).map(|value| Cell { value, off: false });
        counted.or_else(|| {
            median(figures.iter().map(|figure| figure.value).collect()).map(|value| Cell { value, off: true })
        })
    }

    /// The best of the contestants that all are compared with.
    fn rival(&self, group: Group, column: &str, unit: Unit) -> Option<f64> {
        let names = self.contestants.iter().map(|contestant| contestant.name).filter(|name| is_rival(name));
        let values = names.filter_map(|name| Some(self.value(name, group, column)?.value));
        values.reduce(if unit.more_is_better() { f64::max } else { f64::min })
    }

    fn cell(&self, contestant: &Contestant, group: Group, column: &str, unit: Unit) -> String {
        let Some(Cell { value, off }) = self.value(contestant.name, group, column) else { return NOTHING.to_owned() };
        format!("{}{}", unit.show(value), if off { "*" } else { "" })
    }

    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cores, memory_gib, system, kernel, file_system } = &self.machine;
        writeln!(
            f,
            "{cpu}, {cores} cores, {memory_gib:.0} GiB; {system}, kernel {kernel}; {file_system}. Writing 400 bytes over zeros \
             and fdatasync: {}.\n",
            self.sync()
        )?;
        writeln!(
            f,
            "Rounds: {}. In each round, each contestant has one turn, in a varying order; figures are medians over the rounds. \
             Unless stated otherwise, stores are filled with {} events or a few more, with {} bytes of incompressible data each.\n",
            self.rounds,
            grouped(self.scale.events as f64),
            crate::events::DATA
        )?;
        writeln!(f, "{}\n", self.thrown_away())
    }

    fn sync(&self) -> String {
        let times = || self.syncs.iter().map(|sync| sync.microseconds);
        let lowest = times().reduce(f64::min).unwrap_or_default();
        let highest = times().reduce(f64::max).unwrap_or_default();
        format!("{:.0} us ({lowest:.0} to {highest:.0} us between the turns)", self.median_sync())
    }

    fn thrown_away(&self) -> String {
        let off = self.syncs.iter().filter(|sync| self.is_off(sync.round, sync.contestant));
        let off: Vec<_> = off
            .map(|sync| format!("{} in round {} ({:.0} us)", sync.contestant, sync.round + 1, sync.microseconds))
            .collect();
        if off.is_empty() {
            return "No turn was discarded: fdatasync never differed by more than a quarter from the median of the run.".to_owned();
        }
        format!(
            "{} of {} turns were discarded, because fdatasync before them differed by more than a quarter from the median of the \
             run: {}. A figure marked with * has only discarded turns.",
            off.len(),
            self.syncs.len(),
            off.join(", ")
        )
    }

    /// The figures that there are in a group, in the order in which they came.
    fn columns(&self, group: Group) -> Vec<(&'static str, Unit)> {
        let mut columns: Vec<(&str, Unit)> = Vec::new();
        for figure in self.figures.iter().filter(|figure| figure.group == group) {
            if columns.iter().all(|(title, _)| *title != figure.column) {
                columns.push((figure.column, figure.unit));
            }
        }
        columns
    }

    fn to_rival(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let compared: Vec<_> = self.contestants.iter().filter(|contestant| !is_rival(contestant.name)).collect();
        let title = format!("Ratio to {RIVAL}, the better of its forms that took part");
        self.ratios(f, &title, &compared, |_, group, column, unit| self.rival(group, column, unit))
    }

    fn to_raw(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let compared: Vec<_> = self.contestants.iter().filter(|contestant| contestant.floor.is_some()).collect();
        self.ratios(f, "Ratio to the raw engine", &compared, |contestant, group, column, _| {
            Some(self.value(contestant.floor?, group, column)?.value)
        })
    }

    /// A row for each figure that somebody can be compared in, a column for each contestant.
    fn ratios(
        &self,
        f: &mut Formatter<'_>,
        title: &str,
        compared: &[&Contestant],
        base: impl Fn(&Contestant, Group, &str, Unit) -> Option<f64>,
    ) -> fmt::Result {
        let ratio = |contestant: &Contestant, group, column, unit| {
            let base = base(contestant, group, column, unit).filter(|base| *base > 0.0)?;
            Some(format!("{:.2}", self.value(contestant.name, group, column)?.value / base))
        };
        let mut rows = Vec::new();
        for group in Group::ALL {
            for (column, unit) in self.columns(group).into_iter().filter(|(_, unit)| !matches!(unit, Unit::Ratio)) {
                let cells: Vec<_> = compared.iter().map(|contestant| ratio(contestant, group, column, unit)).collect();
                if cells.iter().any(Option::is_some) {
                    let cells: Vec<_> =
                        cells.iter().map(|cell| cell.as_deref().unwrap_or(NOTHING).to_owned()).collect();
                    let less = if unit.more_is_better() { "" } else { " (less is better)" };
                    rows.push((format!("{}: {column}{less}", group.name()), cells));
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = compared.iter().map(|contestant| contestant.name).collect();
        write_table(f, title, &names, &rows)
    }

    fn table(&self, f: &mut Formatter<'_>, group: Group) -> fmt::Result {
        let columns = self.columns(group);
        if columns.is_empty() {
            return Ok(());
        }
        let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
        let has_figures = |contestant: &&Contestant| {
            self.figures.iter().any(|figure| figure.group == group && figure.contestant == contestant.name)
        };
        let row = |contestant: &Contestant| {
            let cell = |(title, unit): &(&str, Unit)| self.cell(contestant, group, title, *unit);
            (contestant.name.to_owned(), columns.iter().map(cell).collect())
        };
        let rows: Vec<_> = self.contestants.iter().filter(has_figures).map(row).collect();
        write_table(f, &group.title(&self.scale), &titles, &rows)
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
        writeln!(f, "## Write and fdatasync right before the turns of each, us\n")?;
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
        self.to_rival(f)?;
        self.to_raw(f)?;
        Group::ALL.into_iter().try_for_each(|group| self.table(f, group))?;
        self.failed(f)?;
        self.syncs(f)?;
        self.contestants(f)
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::EventsPerSecond | Unit::Bytes | Unit::Count => grouped(value),
            Unit::Milliseconds | Unit::Ratio => format!("{value:.2}"),
            Unit::Microseconds | Unit::Mebibytes => format!("{value:.1}"),
        }
    }
}

/// Stands where there is no figure.
const NOTHING: &str = "–";

fn is_rival(contestant: &str) -> bool {
    contestant.starts_with(RIVAL)
}

fn write_table(f: &mut Formatter<'_>, title: &str, columns: &[&str], rows: &[(String, Vec<String>)]) -> fmt::Result {
    writeln!(f, "## {title}\n")?;
    writeln!(f, "| | {} |\n|---{}|", columns.join(" | "), "|---:".repeat(columns.len()))?;
    rows.iter().try_for_each(|(name, cells)| writeln!(f, "| {name} | {} |", cells.join(" | ")))?;
    writeln!(f)
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// An integer with a comma before each three digits.
pub(crate) fn grouped(value: f64) -> String {
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

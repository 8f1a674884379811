//! Everything that was measured and under which settings, as it stands in `results.json`.

use std::collections::BTreeMap;

use indicatif::HumanCount;
use serde::Serialize;

use super::machine::{Disk, Machine, SYNCED_BYTES};
use super::measure::{Measurement, PERCENTILES, Unit};
use super::workloads::{DISK_APPENDED, DISK_FILLED, Workload};

/// The results of one run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Results {
    pub(super) warnings: Vec<String>,
    pub(super) date: String,
    pub(super) program: Program,
    pub(super) settings: Settings,
    pub(super) machine: Machine,
    pub(super) stores: Vec<Measured>,
    /// The most memory that the process has had, with all stores in it.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Program {
    pub(super) version: &'static str,
    pub(super) profile: &'static str,
    /// The backends that it was built with.
    pub(super) backends: Vec<&'static str>,
}

impl Program {
    pub(super) const IS_DEBUG_BUILD: bool = cfg!(debug_assertions);

    pub(super) fn this() -> Self {
        let backends = [
            ("memory", true),
            ("lmdb", cfg!(feature = "lmdb")),
            ("rocksdb", cfg!(feature = "rocksdb")),
            ("fjall", cfg!(feature = "fjall")),
            ("sled", cfg!(feature = "sled")),
            ("postgres", cfg!(feature = "postgres")),
        ];
        Program {
            version: env!("CARGO_PKG_VERSION"),
            profile: if Self::IS_DEBUG_BUILD { "debug" } else { "release" },
            backends: backends.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect(),
        }
    }
}

/// How it was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Settings {
    /// Of each measurement, for each store.
    pub(super) seconds: f64,
    /// The parts of a measurement, in which the stores take turns.
    pub(super) slices: u32,
    /// In a store when it is read from, and before anything is appended.
    pub(super) events: u64,
    /// An append measurement ends early after so many.
    pub(super) most_appended: u64,
    pub(super) data_bytes: usize,
    pub(super) aggregates_of_each_length: u64,
    pub(super) aggregate_lengths: [u64; 2],
    pub(super) seed: u64,
    pub(super) quick: bool,
    /// Threads of the runtime that the appenders and followers run on.
    pub(super) worker_threads: usize,
}

/// One store.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    /// The URL, with a number if it was given before.
    pub(super) title: String,
    pub(super) url: String,
    pub(super) backend: String,
    /// Those of the URL; others have their defaults.
    pub(super) options: BTreeMap<String, String>,
    /// What the engine tells about itself after filling.
    pub(super) properties: BTreeMap<String, String>,
    /// `None` in memory.
    pub(super) disk: Option<Disk>,
    pub(super) measurements: Vec<Named>,
}

/// A measurement with its name.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) title: String,
    #[serde(flatten)]
    pub(super) measurement: Measurement,
}

impl Measured {
    pub(super) fn get(&self, name: &str) -> Option<&Measurement> {
        self.measurements.iter().find(|named| named.name == name).map(|named| &named.measurement)
    }
}

/// A line of the results for people.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) title: String,
    pub(super) unit: &'static str,
    /// One for each store.
    pub(super) cells: Vec<Option<Cell>>,
}

/// A value, and the least and greatest of its slices.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) value: f64,
    pub(super) range: Option<(f64, f64)>,
}

impl Cell {
    fn alone(value: f64) -> Self {
        Cell { value, range: None }
    }

    fn of(measurement: &Measurement) -> Self {
        let least = measurement.slices.iter().copied().reduce(f64::min);
        let greatest = measurement.slices.iter().copied().reduce(f64::max);
        let range = least.zip(greatest).filter(|(least, greatest)| least < greatest);
        Cell { value: measurement.value, range }
    }
}

impl Results {
    /// The results as a table: what was measured, and a cell for each store.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for workload in Workload::all() {
            let (name, title) = (workload.name(), workload.title());
            let unit = match workload {
                Workload::Open | Workload::Wake => Unit::Microseconds,
                _ => Unit::EventsPerSecond,
            };
            let title = if unit == Unit::Microseconds { format!("{title}, median") } else { title };
            rows.push(self.row(title, unit_name(unit), |store| store.get(&name).map(Cell::of)));
            if !workload.has_latencies() {
                continue;
            }
            // The median of a time has a line already.
            let shown = PERCENTILES.iter().enumerate().skip(usize::from(unit == Unit::Microseconds));
            for (at, (_, percentile)) in shown {
                rows.push(self.row(format!("    latency {percentile}"), unit_name(Unit::Microseconds), |store| {
                    store.get(&name)?.latency_us.map(|latency| Cell::alone(latency.all()[at]))
                }));
            }
        }
        for (name, title) in [DISK_FILLED, DISK_APPENDED] {
            rows.push(self.row(title.to_owned(), unit_name(Unit::Bytes), |store| store.get(name).map(Cell::of)));
        }
        let title = format!("the disk: append of {SYNCED_BYTES} bytes and fdatasync, median");
        rows.push(self.row(title, unit_name(Unit::Microseconds), |store| {
            store.disk.as_ref()?.fdatasync_us.map(|times| Cell::alone(times.p50))
        }));
        rows
    }

    fn row(&self, title: String, unit: &'static str, cell: impl Fn(&Measured) -> Option<Cell>) -> Row {
        Row { title, unit, cells: self.stores.iter().map(cell).collect() }
    }
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::EventsPerSecond => "events/s",
        Unit::Microseconds => "µs",
        Unit::Bytes => "bytes/event",
    }
}

/// A number for people: at least two digits of it, and all that are in front of the point.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 99.95 => HumanCount(value.round() as u64).to_string(),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_exact_as_they_are_read() {
        let shown = [0.0, 0.123, 9.99, 9.999, 99.9, 99.96, 1234.5, 3_812_345.0].map(number);
        assert_eq!(shown, ["0.00", "0.12", "9.99", "10.0", "99.9", "100", "1,235", "3,812,345"]);
    }
}

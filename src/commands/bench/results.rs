//! All results and settings, as in `results.json`.

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
    /// The peak memory of the process, with all stores in it.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// The measured program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Program {
    pub(super) version: &'static str,
    pub(super) profile: &'static str,
    /// The backends of this build.
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

/// The settings of the measurements.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Settings {
    /// The duration of each measurement for each store.
    pub(super) seconds: f64,
    /// The number of parts of a measurement, in which the stores take turns.
    pub(super) slices: u32,
    /// The number of events in a store for reads and before the first append.
    pub(super) events: u64,
    /// The number of events after which an append measurement ends early.
    pub(super) most_appended: u64,
    pub(super) data_bytes: usize,
    pub(super) aggregates_of_each_length: u64,
    pub(super) aggregate_lengths: [u64; 2],
    pub(super) seed: u64,
    pub(super) quick: bool,
    /// The threads of the runtime for appenders and followers.
    pub(super) worker_threads: usize,
}

/// One store.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    /// The URL, with a number if it was given before.
    pub(super) title: String,
    pub(super) url: String,
    pub(super) backend: String,
    /// The options in the URL; others have their defaults.
    pub(super) options: BTreeMap<String, String>,
    /// The properties reported by the engine after filling.
    pub(super) properties: BTreeMap<String, String>,
    /// `None` for a store in memory.
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

/// A row of the results for people.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) title: String,
    pub(super) unit: &'static str,
    /// One for each store.
    pub(super) cells: Vec<Option<Cell>>,
}

/// A value, and the smallest and greatest value of its slices.
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
    /// The results as a table: a title and a cell for each store.
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
            // The median of a time already has a row.
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

/// A number for people: at least two significant digits, and all digits before the point.
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

//! What is measured, and how much of it.

use std::time::Duration;

use serde::Serialize;

use crate::contestants::Scan;
use crate::events::{Ids, LONG, SHORT};
use crate::report::grouped;

/// One thing that every contestant does in its turn.
pub(crate) struct Workload {
    pub(crate) group: Group,
    pub(crate) name: &'static str,
    /// Of the events that its store is filled with, and that it appends.
    pub(crate) ids: Ids,
    pub(crate) kind: Kind,
    /// The figures that come of it.
    pub(crate) columns: &'static [Column],
}

impl Workload {
    /// What `--workload` looks in.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.group.name(), self.name)
    }

    /// Whether it runs when nobody asks for it.
    pub(crate) fn by_default(&self) -> bool {
        !matches!(self.kind, Kind::LargeAppend | Kind::LargeStore | Kind::LargeMemory)
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Scan(Scan),
    /// Aggregates of this number of events.
    Aggregates(u64),
    Get,
    Append {
        appenders: usize,
        batch: usize,
    },
    Sustained {
        appenders: usize,
    },
    Follow,
    /// A process fills a store and is killed; the store is opened again.
    Killed,
    /// A store is filled and closed, and loses its index.
    Closed,
    /// A store gets one event, and nothing more.
    Idle,
    /// One appender appends for a long time.
    LargeAppend,
    /// As [`Kind::Killed`] with a small store and a large one, which is then closed and loses its index.
    LargeStore,
    /// A process fills a large store with small caches.
    LargeMemory,
}

impl Kind {
    /// Whether it finds the filled store of the turn; otherwise it makes its own.
    pub(crate) fn shares_store(self) -> bool {
        use Kind::{Aggregates, Append, Follow, Get, Scan, Sustained};
        matches!(self, Scan(_) | Aggregates(_) | Get | Append { .. } | Sustained { .. } | Follow)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    EventsPerSecond,
    Milliseconds,
    Microseconds,
    Bytes,
    Mebibytes,
    Count,
    /// Of two figures of the same turn.
    Ratio,
}

impl Unit {
    /// Whether the larger of two figures is the better one.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Unit::EventsPerSecond | Unit::Ratio)
    }
}

/// Workloads that share a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    Append,
    AppendRandomIds,
    Sustained,
    Read,
    Closed,
    Idle,
    Follow,
    Killed,
    LargeAppend,
    LargeStore,
    LargeMemory,
}

impl Group {
    pub(crate) const ALL: [Group; 11] = [
        Group::Append,
        Group::AppendRandomIds,
        Group::Sustained,
        Group::Read,
        Group::Closed,
        Group::Idle,
        Group::Follow,
        Group::Killed,
        Group::LargeAppend,
        Group::LargeStore,
        Group::LargeMemory,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Append => "append",
            Group::AppendRandomIds => "append-random-ids",
            Group::Sustained => "sustained",
            Group::Read => "read",
            Group::Closed => "closed",
            Group::Idle => "idle",
            Group::Follow => "follow",
            Group::Killed => "killed",
            Group::LargeAppend => "large-append",
            Group::LargeStore => "large-store",
            Group::LargeMemory => "large-memory",
        }
    }

    /// What the table is headed with.
    pub(crate) fn title(self, scale: &Scale) -> String {
        let large = grouped(scale.large_events as f64);
        match self {
            Group::Append => "Appending, time-ordered ids: events/s".to_owned(),
            Group::AppendRandomIds => "Appending, random ids: events/s".to_owned(),
            Group::Sustained => "64 appenders, one event at a time each, for some seconds".to_owned(),
            Group::Read => "Reading: events/s".to_owned(),
            Group::Closed => "A store that was filled in batches of 1,000 and closed".to_owned(),
            Group::Idle => "A new store that got one event and lies idle".to_owned(),
            Group::Follow => "From append acknowledged to subscriber woken".to_owned(),
            Group::Killed => {
                "A store filled in batches of 1,000 by a process that is killed, then opened again".to_owned()
            }
            Group::LargeAppend => {
                format!("Appending {} events, time-ordered ids", grouped(scale.long_append() as f64))
            }
            Group::LargeStore => {
                let small = grouped(scale.events as f64);
                format!("{large} events against {small}, in batches of 1,000 by a process that is killed")
            }
            Group::LargeMemory => format!("Anonymous memory with {large} events and small caches, MiB"),
        }
    }
}

const fn rate(title: &'static str) -> Column {
    Column { title, unit: Unit::EventsPerSecond }
}

const fn milliseconds(title: &'static str) -> Column {
    Column { title, unit: Unit::Milliseconds }
}

const fn column(title: &'static str, unit: Unit) -> Column {
    Column { title, unit }
}

const fn append(name: &'static str, appenders: usize, batch: usize, columns: &'static [Column]) -> Workload {
    let kind = Kind::Append { appenders, batch };
    Workload { group: Group::Append, name, ids: Ids::TimeOrdered, kind, columns }
}

const fn random(workload: Workload) -> Workload {
    Workload { group: Group::AppendRandomIds, ids: Ids::Random, ..workload }
}

const fn read(name: &'static str, ids: Ids, kind: Kind, columns: &'static [Column]) -> Workload {
    Workload { group: Group::Read, name, ids, kind, columns }
}

/// A workload with a store of its own.
const fn own(group: Group, name: &'static str, ids: Ids, kind: Kind, columns: &'static [Column]) -> Workload {
    Workload { group, name, ids, kind, columns }
}

/// In the order in which a turn does them: reads find the store as it was filled.
pub(crate) static WORKLOADS: &[Workload] = &[
    read("scan-pages", Ids::TimeOrdered, Kind::Scan(Scan::Pages), &[rate("scan, by page")]),
    read("scan-stream", Ids::TimeOrdered, Kind::Scan(Scan::Stream), &[rate("scan, event by event")]),
    read("aggregate-13", Ids::TimeOrdered, Kind::Aggregates(SHORT), &[rate("aggregates of 13")]),
    read("aggregate-34", Ids::TimeOrdered, Kind::Aggregates(LONG), &[rate("aggregates of 34")]),
    read("get", Ids::TimeOrdered, Kind::Get, &[rate("by id, time-ordered")]),
    append("1x1", 1, 1, &[rate("1 appender x 1")]),
    append("8x1", 8, 1, &[rate("8 appenders x 1")]),
    append("64x1", 64, 1, &[rate("64 appenders x 1")]),
    append("1x100", 1, 100, &[rate("1 x 100")]),
    append("1x1000", 1, 1000, &[rate("1 x 1,000")]),
    Workload {
        group: Group::Sustained,
        name: "64x1",
        ids: Ids::TimeOrdered,
        kind: Kind::Sustained { appenders: 64 },
        columns: &[
            rate("events/s"),
            milliseconds("p50, ms"),
            milliseconds("p99, ms"),
            milliseconds("p99.9, ms"),
            milliseconds("max, ms"),
        ],
    },
    Workload {
        group: Group::Follow,
        name: "idle",
        ids: Ids::TimeOrdered,
        kind: Kind::Follow,
        columns: &[column("median, us", Unit::Microseconds)],
    },
    read("get-random-ids", Ids::Random, Kind::Get, &[rate("by id, random")]),
    random(append("1x1", 1, 1, &[rate("1 appender x 1")])),
    random(append("1x100", 1, 100, &[rate("1 x 100")])),
    random(append("1x1000", 1, 1000, &[rate("1 x 1,000")])),
    own(
        Group::Killed,
        "time-ordered",
        Ids::TimeOrdered,
        Kind::Killed,
        &[rate("append, all, events/s"), rate("append, last tenth, events/s"), milliseconds("opening, ms")],
    ),
    own(
        Group::Closed,
        "time-ordered",
        Ids::TimeOrdered,
        Kind::Closed,
        &[
            column("time-ordered ids: bytes an event", Unit::Bytes),
            rate("time-ordered ids: lost index rebuilt, events/s"),
        ],
    ),
    own(
        Group::Closed,
        "random",
        Ids::Random,
        Kind::Closed,
        &[column("random ids: bytes an event", Unit::Bytes), rate("random ids: lost index rebuilt, events/s")],
    ),
    own(
        Group::Idle,
        "one-event",
        Ids::TimeOrdered,
        Kind::Idle,
        &[
            column("open: bytes on disk", Unit::Bytes),
            column("open: descriptors", Unit::Count),
            column("closed: bytes on disk", Unit::Bytes),
        ],
    ),
    own(
        Group::LargeAppend,
        "1x1000",
        Ids::TimeOrdered,
        Kind::LargeAppend,
        &[rate("1 x 1,000, all, events/s"), rate("1 x 1,000, last tenth, events/s")],
    ),
    own(
        Group::LargeStore,
        "time-ordered",
        Ids::TimeOrdered,
        Kind::LargeStore,
        &[
            rate("small: append, last tenth, events/s"),
            rate("large: append, last tenth, events/s"),
            column("large to small", Unit::Ratio),
            milliseconds("opening after kill -9, ms"),
            milliseconds("opening when closed, ms"),
            column("closed: bytes an event", Unit::Bytes),
            rate("lost index rebuilt, events/s"),
        ],
    ),
    own(
        Group::LargeMemory,
        "time-ordered",
        Ids::TimeOrdered,
        Kind::LargeMemory,
        &[column("after the appends", Unit::Mebibytes), column("the most during them", Unit::Mebibytes)],
    ),
];

/// How much of everything.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Scale {
    /// Events of a filled store, at least.
    pub(crate) events: u64,
    /// Divides the number of appends.
    pub(crate) thinned: usize,
    pub(crate) sustained: Duration,
    /// Times that a scan is repeated.
    pub(crate) scans: u32,
    /// Aggregates of each length that are loaded.
    pub(crate) aggregates: u64,
    /// Events that are followed.
    pub(crate) followed: u64,
    pub(crate) syncs: usize,
    /// Events of a large store, at least.
    pub(crate) large_events: u64,
    /// How long a store is left alone before it counts as idle.
    pub(crate) idle: Duration,
}

impl Scale {
    pub(crate) fn full(events: u64, large_events: u64, sustained: Duration) -> Self {
        Scale {
            events,
            thinned: 1,
            sustained,
            scans: 5,
            aggregates: 2_000,
            followed: 500,
            syncs: 500,
            large_events,
            idle: Duration::from_secs(2),
        }
    }

    pub(crate) fn quick(events: u64, large_events: u64) -> Self {
        Scale {
            events,
            thinned: 50,
            sustained: Duration::from_millis(200),
            scans: 1,
            aggregates: 20,
            followed: 20,
            syncs: 20,
            large_events,
            idle: Duration::from_millis(100),
        }
    }

    /// Events that are appended for a long time.
    pub(crate) fn long_append(&self) -> u64 {
        self.large_events.div_ceil(2)
    }

    /// Appends of each appender, so that every contestant takes some hundred milliseconds at least.
    pub(crate) fn appends(&self, appenders: usize, batch: usize) -> usize {
        let full = match (appenders, batch) {
            (1, 1) => 3_000,
            (1, batch) => 100_000 / batch,
            (appenders, _) => (32_000 / appenders).min(1_500),
        };
        (full / self.thinned).max(2)
    }
}

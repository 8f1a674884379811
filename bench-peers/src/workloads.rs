//! What is measured, and how much of it.

use std::time::Duration;

use serde::Serialize;

use crate::contestants::Scan;
use crate::events::{Ids, LONG, SHORT};

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
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Scan(Scan),
    /// Aggregates of this number of events.
    Aggregates(u64),
    Get,
    Size,
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
    BytesPerEvent,
}

/// Workloads that share a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    Append,
    AppendRandomIds,
    Sustained,
    Read,
    Size,
    Follow,
    Killed,
}

impl Group {
    pub(crate) const ALL: [Group; 7] = [
        Group::Append,
        Group::AppendRandomIds,
        Group::Sustained,
        Group::Read,
        Group::Size,
        Group::Follow,
        Group::Killed,
    ];

    fn name(self) -> &'static str {
        match self {
            Group::Append => "append",
            Group::AppendRandomIds => "append-random-ids",
            Group::Sustained => "sustained",
            Group::Read => "read",
            Group::Size => "size",
            Group::Follow => "follow",
            Group::Killed => "killed",
        }
    }

    /// What the table is headed with.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Group::Append => "Appending, time-ordered ids: events/s",
            Group::AppendRandomIds => "Appending, random ids: events/s",
            Group::Sustained => "64 appenders, one event at a time each, for some seconds",
            Group::Read => "Reading: events/s",
            Group::Size => "Bytes on disk an event, with what is allocated ahead, after the store was filled and read",
            Group::Follow => "From append acknowledged to subscriber woken",
            Group::Killed => "A store filled in batches of 1,000 by a process that is killed, then opened again",
        }
    }
}

const fn rate(title: &'static str) -> Column {
    Column { title, unit: Unit::EventsPerSecond }
}

const fn milliseconds(title: &'static str) -> Column {
    Column { title, unit: Unit::Milliseconds }
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

const fn size(name: &'static str, ids: Ids, columns: &'static [Column]) -> Workload {
    Workload { group: Group::Size, name, ids, kind: Kind::Size, columns }
}

/// In the order in which a turn does them: reads find the store as it was filled.
pub(crate) static WORKLOADS: &[Workload] = &[
    read("scan-pages", Ids::TimeOrdered, Kind::Scan(Scan::Pages), &[rate("scan, by page")]),
    read("scan-stream", Ids::TimeOrdered, Kind::Scan(Scan::Stream), &[rate("scan, event by event")]),
    read("aggregate-13", Ids::TimeOrdered, Kind::Aggregates(SHORT), &[rate("aggregates of 13")]),
    read("aggregate-34", Ids::TimeOrdered, Kind::Aggregates(LONG), &[rate("aggregates of 34")]),
    read("get", Ids::TimeOrdered, Kind::Get, &[rate("by id, time-ordered")]),
    size("time-ordered", Ids::TimeOrdered, &[Column { title: "time-ordered ids", unit: Unit::BytesPerEvent }]),
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
        columns: &[Column { title: "median, us", unit: Unit::Microseconds }],
    },
    read("get-random-ids", Ids::Random, Kind::Get, &[rate("by id, random")]),
    size("random", Ids::Random, &[Column { title: "random ids", unit: Unit::BytesPerEvent }]),
    random(append("1x1", 1, 1, &[rate("1 appender x 1")])),
    random(append("1x100", 1, 100, &[rate("1 x 100")])),
    random(append("1x1000", 1, 1000, &[rate("1 x 1,000")])),
    Workload {
        group: Group::Killed,
        name: "time-ordered",
        ids: Ids::TimeOrdered,
        kind: Kind::Killed,
        columns: &[rate("append, all, events/s"), rate("append, last tenth, events/s"), milliseconds("opening, ms")],
    },
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
}

impl Scale {
    pub(crate) fn full(events: u64, sustained: Duration) -> Self {
        Scale { events, thinned: 1, sustained, scans: 5, aggregates: 2_000, followed: 500, syncs: 200 }
    }

    pub(crate) fn quick(events: u64) -> Self {
        let sustained = Duration::from_millis(200);
        Scale { events, thinned: 50, sustained, scans: 1, aggregates: 20, followed: 20, syncs: 20 }
    }

    /// Appends of each appender, so that every contestant takes some hundred milliseconds at least.
    pub(crate) fn appends(&self, appenders: usize, batch: usize) -> usize {
        let full = match (appenders, batch) {
            (1, 1) => 1_000,
            (1, batch) => 40_000 / batch,
            (appenders, _) => (16_000 / appenders).min(500),
        };
        (full / self.thinned).max(2)
    }
}

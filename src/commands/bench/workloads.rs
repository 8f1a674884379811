//! The measurements, in order, and their names.

use eventstore::backend::Durability;

use super::events::{Ids, LONG, SHORT};

/// Concurrent appenders, one event per append.
pub(super) const CONCURRENCIES: [usize; 3] = [1, 8, 64];
/// Events per append, by a single appender.
pub(super) const BATCHES: [usize; 3] = [1, 100, 1000];

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// All events, a page at a time.
    ScanPages,
    /// All events, one at a time.
    ScanStream,
    /// Aggregates with this many events, in sequence.
    Aggregate(u64),
    /// Events by id, in sequence.
    Get,
    /// Opening a store after a clean close.
    Open,
    /// Appends.
    Append(Appends),
    /// From the answer to an append until a follower has the event.
    Wake,
}

/// How events are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Appends {
    /// Each waits for its answer before it appends again.
    pub(super) appenders: usize,
    pub(super) batch: usize,
    pub(super) ids: Ids,
    pub(super) durability: Durability,
}

impl Appends {
    /// One event at a time.
    pub(super) const fn concurrent(appenders: usize) -> Self {
        Appends { appenders, batch: 1, ids: Ids::TimeOrdered, durability: Durability::Sync }
    }

    /// Many at a time, by one appender.
    pub(super) const fn batches(batch: usize, ids: Ids) -> Self {
        Appends { appenders: 1, batch, ids, durability: Durability::Sync }
    }

    const BUFFERED: Appends = Appends { durability: Durability::Buffered, ..Appends::concurrent(1) };
}

impl Workload {
    /// All measurements in order: reads come first, while all stores have the same content.
    pub(super) fn all() -> Vec<Workload> {
        let mut all = vec![
            Workload::ScanPages,
            Workload::ScanStream,
            Workload::Aggregate(SHORT),
            Workload::Aggregate(LONG),
            Workload::Get,
            Workload::Open,
        ];
        all.extend(CONCURRENCIES.map(|appenders| Workload::Append(Appends::concurrent(appenders))));
        // One event at a time is already among the concurrencies.
        all.extend(BATCHES[1..].iter().map(|&batch| Workload::Append(Appends::batches(batch, Ids::TimeOrdered))));
        all.extend(BATCHES.map(|batch| Workload::Append(Appends::batches(batch, Ids::Random))));
        all.extend([Workload::Append(Appends::BUFFERED), Workload::Wake]);
        all
    }

    /// Its name in the results, as in the repository's benchmarks.
    pub(super) fn name(self) -> String {
        match self {
            Workload::ScanPages => "scan/pages".to_owned(),
            Workload::ScanStream => "scan/stream".to_owned(),
            Workload::Aggregate(length) => format!("aggregate/{length}"),
            Workload::Get => "get/id".to_owned(),
            Workload::Open => "open".to_owned(),
            Workload::Wake => "wake".to_owned(),
            Workload::Append(Appends { appenders, batch, ids, durability }) => {
                let ids = if ids == Ids::Random { "-random-ids" } else { "" };
                let durability = if durability == Durability::Buffered { "-buffered" } else { "" };
                format!("append{ids}{durability}/{appenders}x{batch}")
            }
        }
    }

    /// Its name for people.
    pub(super) fn title(self) -> String {
        match self {
            Workload::ScanPages => "full scan, by page".to_owned(),
            Workload::ScanStream => "full scan, event by event".to_owned(),
            Workload::Aggregate(length) => format!("aggregates of {length} events"),
            Workload::Get => "events by id".to_owned(),
            Workload::Open => "opening".to_owned(),
            Workload::Wake => "answered append to follower".to_owned(),
            Workload::Append(Appends { appenders, batch, ids, durability }) => {
                let ids = if ids == Ids::Random { ", random ids" } else { "" };
                let durability = if durability == Durability::Buffered { ", buffered" } else { "" };
                let what = match (appenders, batch) {
                    (1, 1) => "1 appender, 1 event at a time".to_owned(),
                    (1, batch) => format!("batches of {batch}"),
                    (appenders, _) => format!("{appenders} appenders, 1 event at a time each"),
                };
                format!("{what}{ids}{durability}")
            }
        }
    }

    /// Whether the latencies of single calls are worth showing, in addition to the rate.
    pub(super) fn has_latencies(self) -> bool {
        matches!(self, Workload::Append(appends) if appends.batch == 1 && appends.ids == Ids::TimeOrdered)
            || self == Workload::Wake
    }
}

/// The size of the files per event after filling.
pub(super) const DISK_FILLED: (&str, &str) = ("disk/filled", "on disk, after filling in batches of 1000");
/// The size of the files after all appends.
pub(super) const DISK_APPENDED: (&str, &str) = ("disk/appended", "on disk, after all appends");

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_titles_are_unique() {
        let all = Workload::all();
        assert_eq!(all.iter().map(|workload| workload.name()).collect::<HashSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(|workload| workload.title()).collect::<HashSet<_>>().len(), all.len());
        assert!(all.iter().any(|workload| workload.name() == "append-random-ids/1x1000"));
        assert!(all.iter().any(|workload| workload.title() == "1 appender, 1 event at a time, buffered"));
    }
}

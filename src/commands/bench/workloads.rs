//! What is measured, in its order, and how it is called.

use eventstore::backend::Durability;

use super::events::{Ids, LONG, SHORT};

/// Appends at the same time, one event each.
pub(super) const CONCURRENCIES: [usize; 3] = [1, 8, 64];
/// Events of one append, by a single appender.
pub(super) const BATCHES: [usize; 3] = [1, 100, 1000];

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// All events, a page at a time.
    ScanPages,
    /// All events, one at a time.
    ScanStream,
    /// Aggregates with this many events, one after the other.
    Aggregate(u64),
    /// Events by their ids, one after the other.
    Get,
    /// A store that was closed in good order is opened.
    Open,
    /// Appends.
    Append(Appends),
    /// From the answer to an append to the moment at which a follower has the event.
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
    /// Everything, in its order: what only reads comes first, while all stores have the same content.
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
        // One event at a time is among the concurrencies.
        all.extend(BATCHES[1..].iter().map(|&batch| Workload::Append(Appends::batches(batch, Ids::TimeOrdered))));
        all.extend(BATCHES.map(|batch| Workload::Append(Appends::batches(batch, Ids::Random))));
        all.extend([Workload::Append(Appends::BUFFERED), Workload::Wake]);
        all
    }

    /// Its name in the results, as those of the repository's benchmarks.
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

    /// Whether the single calls of it are worth showing, and not only how many there are in a second.
    pub(super) fn has_latencies(self) -> bool {
        matches!(self, Workload::Append(appends) if appends.batch == 1 && appends.ids == Ids::TimeOrdered)
            || self == Workload::Wake
    }
}

/// What the files take after filling, for each event.
pub(super) const DISK_FILLED: (&str, &str) = ("disk/filled", "on disk, after filling in batches of 1000");
/// What they take after all appends.
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

//! Reads stores back, and checks what must hold for everything that is read.

use std::collections::{BTreeMap, HashSet};

use eventstore_api::limits::MAX_BATCH_BYTES;
use eventstore_api::{
    AggregateInfo, AggregateOptions, Digest, Direction, EventStore, EventStoreExt, LoadOptions, PageSize,
    RecordedEvent, VerifyReport, Version,
};
use sha2::{Digest as _, Sha256};

use crate::env::Store;
use crate::events::background;
use crate::failure::{Checked, Failure};

/// Pages of this many events, with a generous size in bytes.
pub(crate) fn pages_of(events: usize) -> PageSize {
    PageSize::new(events, MAX_BATCH_BYTES)
}

/// Loads through the stream.
pub(crate) async fn load(store: &Store, options: impl Into<LoadOptions>) -> Checked<Vec<RecordedEvent>> {
    let options = options.into();
    let mut stream = store.load(&background(), options.clone());
    let mut events = Vec::new();
    while let Some(page) = stream.next_page().await {
        add_page(&mut events, page?, options.direction)?;
    }
    Ok(events)
}

/// Loads page by page, following [`Page::next`](eventstore_api::Page::next).
pub(crate) async fn load_pages(store: &Store, options: LoadOptions, size: PageSize) -> Checked<Vec<RecordedEvent>> {
    let mut events = Vec::new();
    let direction = options.direction;
    let mut next = Some(options);
    while let Some(options) = next {
        let page = store.load_page(&background(), &options, size).await?;
        let count = page.events.len();
        ensure!(count <= size.events.max(1), "a page of at most {} events has {count} (O9)", size.events);
        ensure!(count > 0 || page.next.is_none(), "a page without events is not the last (O9): {options:?}");
        if let Some(event) = page.events.iter().find(|event| event.version > page.head) {
            return Err(Failure::new(format!("a page read at head {} has version {}", page.head, event.version)));
        }
        add_page(&mut events, page.events, direction)?;
        next = page.next;
    }
    Ok(events)
}

/// Adds the next page, which must continue in the same direction: a load that repeats events might never end.
pub(crate) fn add_page(events: &mut Vec<RecordedEvent>, page: Vec<RecordedEvent>, direction: Direction) -> Checked {
    for event in page {
        if let Some(last) = events.last().map(|event| event.version) {
            let goes_on = match direction {
                Direction::Forward => event.version > last,
                Direction::Backward => event.version < last,
            };
            ensure!(goes_on, "a load gives version {} after version {last} (O4, O9)", event.version);
        }
        events.push(event);
    }
    Ok(())
}

/// The expected result of a load with these options, from a store with exactly these events.
pub(crate) fn select(all: &[RecordedEvent], options: &LoadOptions) -> Vec<RecordedEvent> {
    let matches = |event: &&RecordedEvent| {
        event.version > options.since
            && options.before.is_none_or(|before| event.version < before)
            && options.aggregate_id.as_deref().is_none_or(|id| id == event.event.aggregate_id())
            && event.revision > options.since_revision
            && (options.types.is_empty() || options.types.iter().any(|wanted| wanted == event.event.event_type()))
            && options.aggregate_prefix.as_deref().is_none_or(|begin| event.event.aggregate_id().starts_with(begin))
            && options.recorded_since.is_none_or(|since| event.recorded_at >= since)
            && options.recorded_before.is_none_or(|before| event.recorded_at < before)
    };
    let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let matching = all.iter().filter(matches);
    match options.direction {
        Direction::Forward => matching.take(limit).cloned().collect(),
        Direction::Backward => matching.rev().take(limit).cloned().collect(),
    }
}

/// Lists aggregates page by page, following [`AggregatePage::next`](eventstore_api::AggregatePage::next).
pub(crate) async fn list(store: &Store, options: AggregateOptions, most: usize) -> Checked<Vec<AggregateInfo>> {
    let (mut listed, mut next) = (Vec::<AggregateInfo>::new(), Some(options));
    while let Some(options) = next {
        let page = store.list_aggregates(&background(), &options, most).await?;
        let count = page.aggregates.len();
        ensure!(count <= most.max(1), "a page of at most {most} aggregates has {count} (O8)");
        ensure!(count > 0 || page.next.is_none(), "a page without aggregates is not the last (O8): {options:?}");
        for aggregate in page.aggregates {
            if let Some(last) = listed.last().filter(|last| last.aggregate_id >= aggregate.aggregate_id) {
                let (id, last) = (&aggregate.aggregate_id, &last.aggregate_id);
                return Err(Failure::new(format!("the list of aggregates gives {id:?} after {last:?} (O8)")));
            }
            listed.push(aggregate);
        }
        next = page.next;
    }
    Ok(listed)
}

/// The expected list of aggregates with these options, from a store with exactly these events.
pub(crate) fn select_aggregates(all: &[RecordedEvent], options: &AggregateOptions) -> Vec<AggregateInfo> {
    let mut aggregates: BTreeMap<&str, AggregateInfo> = BTreeMap::new();
    for event in all.iter().filter(|event| options.before.is_none_or(|before| event.version < before)) {
        let id = event.event.aggregate_id();
        if id.starts_with(&options.prefix) && id.as_bytes() > options.after.as_bytes() {
            aggregates.insert(id, AggregateInfo::new(id.to_owned(), event.revision, event.version));
        }
    }
    aggregates.into_values().collect()
}

/// The first `count` events, or all if a wrong store has fewer.
pub(crate) fn first_of(events: &[RecordedEvent], count: usize) -> &[RecordedEvent] {
    events.get(..count).unwrap_or(events)
}

/// The events after the first `count`; a wrong store may have none.
pub(crate) fn behind(events: &[RecordedEvent], count: usize) -> &[RecordedEvent] {
    events.get(count..).unwrap_or_default()
}

/// Fails with the first event that differs, instead of all of them.
#[track_caller]
pub(crate) fn same_events(got: &[RecordedEvent], expected: &[RecordedEvent], what: &str) -> Checked {
    let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
    let Some(at) = differs.or_else(|| (got.len() != expected.len()).then(|| got.len().min(expected.len()))) else {
        return Ok(());
    };
    let describe = |events: &[RecordedEvent]| match events.get(at) {
        Some(event) => format!("{} events, at index {at} {event:?}", events.len()),
        None => format!("{} events", events.len()),
    };
    Err(Failure::difference(format_args!("{what}"), &describe(expected), &describe(got)))
}

/// Fails unless these events are 1, 2, 3, … without a gap, with revisions that count each aggregate, and unique ids:
/// rules O1, O3 and W2 for a prefix of a store.
#[track_caller]
pub(crate) fn is_prefix(events: &[RecordedEvent]) -> Checked {
    let mut revisions: BTreeMap<&str, u64> = BTreeMap::new();
    let mut ids = HashSet::new();
    for (event, version) in events.iter().zip(1_u64..) {
        expect_eq!(
            event.version.get(),
            version,
            "versions are 1, 2, 3, … without a gap (O1): id {:?}",
            event.event.id()
        );
        let revision = revisions.entry(event.event.aggregate_id()).or_default();
        *revision += 1;
        let aggregate_id = event.event.aggregate_id();
        expect_eq!(event.revision.get(), *revision, "the revision in {aggregate_id:?} of version {version} (O3)");
        ensure!(ids.insert(event.event.id()), "the id {:?} is stored twice (W2)", event.event.id());
    }
    Ok(())
}

/// Beyond every event, for the digest of all.
pub(crate) const NEWEST: Version = Version::new(u64::MAX);

/// The digests of the events up to each version, from version 0 on: an independent implementation of the definition.
pub(crate) fn digests_of(events: &[RecordedEvent]) -> Vec<Digest> {
    let number = |number: usize| (number as u64).to_be_bytes();
    let mut digests = vec![Digest::from_bytes([0; 32])];
    let mut before = [0; 32];
    for RecordedEvent { version, revision, event, .. } in events {
        let (data, metadata) = (event.data(), event.metadata().as_bytes());
        let mut bytes = [&before[..], &version.get().to_be_bytes(), &revision.get().to_be_bytes()].concat();
        for part in [event.id(), event.event_type(), event.aggregate_id()].map(str::as_bytes) {
            bytes.extend(number(part.len()));
            bytes.extend(part);
        }
        bytes.extend(Sha256::digest([&number(metadata.len()), metadata, data].concat()));
        before = Sha256::digest(&bytes).into();
        digests.push(Digest::from_bytes(before));
    }
    digests
}

/// Reads an idle store in every way and fails unless all results agree. Returns its events.
pub(crate) async fn audit(store: &Store) -> Checked<Vec<RecordedEvent>> {
    let all = load(store, LoadOptions::all()).await?;
    is_prefix(&all)?;
    let latest = store.latest_version(&background()).await?;
    expect_eq!(latest.get(), all.len() as u64, "the latest version is the number of events (O7)");
    let backward = load(store, LoadOptions::all().backward()).await?;
    same_events(&backward, &select(&all, &LoadOptions::all().backward()), "backward is forward reversed (O9)")?;

    let aggregates: HashSet<_> = all.iter().map(|event| event.event.aggregate_id()).collect();
    for aggregate_id in aggregates {
        let loaded = load(store, LoadOptions::all().aggregate(aggregate_id)).await?;
        let expected = select(&all, &LoadOptions::all().aggregate(aggregate_id));
        same_events(&loaded, &expected, &format!("the events of {aggregate_id:?} are those of the log (O8)"))?;
        let revision = store.aggregate_revision(&background(), aggregate_id).await?.get();
        expect_eq!(revision, expected.len() as u64, "the revision of {aggregate_id:?} counts its events (O3)");
    }
    let every = AggregateOptions::all();
    let listed = list(store, every.clone(), 1000).await?;
    expect_eq!(listed, select_aggregates(&all, &every), "the list of aggregates is that of the events (O8)");
    let digest = store.digest(&background(), NEWEST).await?;
    expect_eq!(Some(&digest), digests_of(&all).last(), "the digest is that of the events (M6)");
    // For a long history, only some.
    for event in all.iter().step_by(all.len().div_ceil(500).max(1)) {
        let got = store.get(&background(), event.event.id()).await?;
        expect_eq!(got, *event, "`get` gives the event of the log");
    }
    Ok(all)
}

/// Fails unless everything was read and nothing was found.
#[track_caller]
pub(crate) fn is_sound(report: &VerifyReport, all: &[RecordedEvent]) -> Checked {
    expect_eq!(report.findings, [], "what was found in a sound store");
    ensure!(!report.is_cut_short && report.is_clean(), "a verification without findings was cut short");
    expect_eq!(report.events, all.len() as u64, "the number of events that were verified");
    let aggregates: HashSet<_> = all.iter().map(|event| event.event.aggregate_id()).collect();
    expect_eq!(report.aggregates, aggregates.len() as u64, "the number of aggregates that were verified");
    Ok(())
}

/// The ids, to compare the relevant part of a history.
pub(crate) fn ids(events: &[RecordedEvent]) -> Vec<&str> {
    events.iter().map(|event| event.event.id()).collect()
}

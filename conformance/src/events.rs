//! The events that checks append.

use eventstore_api::{Actual, Batch, Bytes, Context, Event, EventStore, Expected, Stored};

use crate::env::Store;
use crate::failure::Checked;

/// A context that never ends.
pub(crate) fn background() -> Context {
    Context::background()
}

/// An event with this id. Its data distinguish it from others.
pub(crate) fn event(id: impl Into<String>, aggregate_id: &str) -> Event {
    let id = id.into();
    let data = format!("{{\"of\":{id:?}}}");
    Event::builder("Happened", aggregate_id).id(id).data(data).build().expect("the suite's own events are valid")
}

/// This many events of one aggregate, with this id prefix.
pub(crate) fn events(prefix: &str, aggregate_id: &str, count: usize) -> Vec<Event> {
    (1..=count).map(|number| event(format!("{prefix}-{number}"), aggregate_id)).collect()
}

/// Appends events that must be accepted.
#[track_caller]
pub(crate) fn append<B: Into<Batch>>(
    store: &Store,
    batch: B,
) -> impl Future<Output = Checked<Vec<Stored>>> + Send + use<B> {
    let (store, batch, at) = (store.clone(), batch.into(), std::panic::Location::caller());
    async move {
        let count = batch.events.len();
        let stored = match store.store_batch(&background(), batch).await {
            Ok(stored) => stored,
            Err(error) => {
                let what = format!("the append at {}:{} had to be accepted", at.file(), at.line());
                return Err(crate::Failure::difference(format_args!("{what}"), "Ok", &format!("Err({error:?})")));
            }
        };
        expect_eq!(stored.len(), count, "an append at {}:{} returns one place for each event", at.file(), at.line());
        Ok(stored)
    }
}

/// Appends one event that must be accepted.
#[track_caller]
pub(crate) fn append_one(store: &Store, event: Event) -> impl Future<Output = Checked<Stored>> + Send + use<> {
    let appended = append(store, event);
    async move { Ok(appended.await?[0]) }
}

/// A small history: single events and batches, of three aggregates in turn.
pub(crate) async fn append_history(store: &Store, count: usize) -> Checked<Vec<Event>> {
    let aggregates = ["a", "b", "a", "c", "a", "b"];
    let all: Vec<_> =
        (0..count).map(|number| event(format!("history-{}", number + 1), aggregates[number % 6])).collect();
    let mut rest = all.as_slice();
    for size in [1, 3, 2, 5].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(size.min(rest.len()));
        append(store, now.to_vec()).await?;
        rest = later;
    }
    Ok(all)
}

/// The revision or version that a conflict reports.
pub(crate) fn found_in(actual: &Actual) -> u64 {
    match actual {
        Actual::Aggregate { revision, .. } => revision.get(),
        Actual::Store { latest } => latest.get(),
        _ => u64::MAX,
    }
}

/// Appends enough that reading it takes a moment.
pub(crate) async fn append_large(store: &Store) -> Checked {
    let data = Bytes::from(vec![7; 16 << 10]);
    let large = |number| Event::builder("Large", "large").id(format!("large-{number}")).data(data.clone()).build();
    append(store, (0..300).map(large).collect::<Result<Vec<_>, _>>()?).await?;
    append_history(store, 30).await?;
    Ok(())
}

/// Every kind of condition for an aggregate at this revision in a store at this version, and whether it holds.
pub(crate) fn conditions(revision: u64, latest: u64) -> Vec<(Expected, bool)> {
    vec![
        (Expected::Any, true),
        (Expected::NoEvents, revision == 0),
        (Expected::Exists, revision > 0),
        (Expected::Revision(revision.into()), true),
        (Expected::Revision((revision + 1).into()), false),
        (Expected::Revision(revision.wrapping_sub(1).into()), false),
        (Expected::Revision((u64::MAX).into()), false),
        (Expected::LatestVersion(latest.into()), true),
        (Expected::LatestVersion((latest + 1).into()), false),
        (Expected::LatestVersion(latest.wrapping_sub(1).into()), false),
        (Expected::LatestVersion(u64::MAX.into()), false),
    ]
}

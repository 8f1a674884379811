//! Appending and following, for a limited time.

use std::ops::Range;
use std::time::{Duration, Instant};

use eventstore::backend::{Batch, Context, Durability, EventStore, EventStoreExt, StoreOutcome, Stored, Version};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::candidate::Candidate;
use super::events::{Events, Ids};
use super::measure::{Limit, Slice, Times};
use super::workloads::Appends;
use crate::commands::Store;
use crate::failure::Failure;

/// The approximate duration of a burst of appends. The next events are generated between bursts, which does not count.
const BURST: Duration = Duration::from_millis(200);
/// The number of events in a burst, which are in memory.
const BURST_EVENTS: u64 = 50_000;

/// Appends until the limit.
pub(super) async fn append(candidate: &mut Candidate, appends: Appends, limit: &Limit) -> Result<Slice, Failure> {
    let events_a_round = (appends.appenders * appends.batch) as u64;
    let most_rounds = (BURST_EVENTS / events_a_round).max(1);
    let mut slice = Slice::default();
    // The first burst is a warm-up that does not count. It also measures the duration of a round.
    let mut a_round = burst(candidate, appends, 1).await?.elapsed;
    while limit.is_open(&slice)? {
        let time = BURST.min(limit.time - slice.elapsed);
        let rounds = (time.as_secs_f64() / a_round.as_secs_f64().max(1e-9)).ceil() as u64;
        let rounds = rounds.min((limit.events - slice.events).div_ceil(events_a_round)).clamp(1, most_rounds);
        let burst = burst(candidate, appends, rounds).await?;
        a_round = burst.elapsed / u32::try_from(rounds).unwrap_or(u32::MAX);
        slice.events += burst.events;
        slice.elapsed += burst.elapsed;
        slice.times.append(burst.times);
    }
    Ok(slice)
}

/// Every appender appends `rounds` batches in sequence.
async fn burst(candidate: &mut Candidate, appends: Appends, rounds: u64) -> Result<Slice, Failure> {
    let (store, events) = (candidate.store()?, candidate.events);
    let (appenders, batch) = (appends.appenders as u64, appends.batch as u64);
    let first = candidate.next;
    candidate.next += rounds * appenders * batch;
    let mut prepared = Vec::with_capacity(appends.appenders);
    for appender in 0..appenders {
        // The appenders take the numbers in turn, so that time-ordered ids arrive roughly in order.
        let begins = (0..rounds).map(|round| first + (round * appenders + appender) * batch);
        let batches = begins.map(|begin| make(events, begin..begin + batch, appends.ids, appends.durability));
        prepared.push(batches.collect::<Result<Vec<_>, _>>()?);
    }
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for batches in prepared {
        tasks.spawn(append_all(store.clone(), batches));
    }
    let mut times = Times::default();
    while let Some(ended) = tasks.join_next().await {
        times.append(ended.map_err(|error| eventstore::backend::Error::engine("append", error))??);
    }
    Ok(Slice { events: rounds * appenders * batch, elapsed: began.elapsed(), times })
}

fn make(events: Events, numbers: Range<u64>, ids: Ids, durability: Durability) -> Result<Batch, Failure> {
    let events = numbers.map(|number| events.event(number, ids)).collect::<Result<_, _>>()?;
    Ok(Batch::new(events).durability(durability))
}

async fn append_all(store: Store, batches: Vec<Batch>) -> Result<Times, Failure> {
    let mut times = Times::default();
    for batch in batches {
        let len = batch.events.len();
        let began = Instant::now();
        let stored = store.store_batch(&Context::background(), batch).await?;
        times.add(began.elapsed());
        check(&stored, len)?;
    }
    Ok(times)
}

/// Checks that all were written, at consecutive versions.
fn check(stored: &[Stored], len: usize) -> Result<(), Failure> {
    let are_written = stored.iter().all(|stored| stored.outcome == StoreOutcome::Written);
    let are_in_order = stored.windows(2).all(|two| two[1].version.get() == two[0].version.get() + 1);
    match stored.len() == len && are_written && are_in_order {
        true => Ok(()),
        false => Err(Failure::wrong_result(format!("an append of {len} events was answered with {stored:?}"))),
    }
}

/// Appends single events while a separate task follows the store, until the limit. Measures the time from the answer
/// until the follower has the event; zero if the follower was first.
pub(super) async fn wake(candidate: &mut Candidate, limit: &Limit) -> Result<Slice, Failure> {
    let (store, events) = (candidate.store()?, candidate.events);
    let (send, mut received) = mpsc::unbounded_channel();
    let mut following = store.subscribe(&Context::background(), Version::new(candidate.next));
    let mut follower = JoinSet::new();
    follower.spawn(async move {
        while let Some(recorded) = following.next().await {
            let now = Instant::now();
            if send.send((now, recorded)).is_err() {
                break;
            }
        }
    });
    let mut slice = Slice::default();
    let began = Instant::now();
    while limit.is_open(&slice)? {
        let number = candidate.next;
        let batch = make(events, number..number + 1, Ids::TimeOrdered, Durability::Sync)?;
        candidate.next += 1;
        let stored = store.store_batch(&Context::background(), batch).await?;
        let answered = Instant::now();
        check(&stored, 1)?;
        let Some((woken, recorded)) = received.recv().await else {
            return Err(eventstore::backend::Error::Closed.into());
        };
        let recorded = recorded?;
        if events.number_of(&recorded)? != number {
            return Err(Failure::wrong_result(format!(
                "the follower received version {}, not the new one",
                recorded.version
            )));
        }
        slice.times.add(woken.saturating_duration_since(answered));
        slice.events += 1;
        slice.elapsed = began.elapsed();
    }
    Ok(slice)
}

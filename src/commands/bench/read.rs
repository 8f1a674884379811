//! Reading and opening, for a limited time.

use std::hint::black_box;
use std::time::Instant;

use eventstore::backend::{Context, EventStore, EventStoreExt, EventStream, LoadOptions, Version};

use super::candidate::Candidate;
use super::events::Ids;
use super::measure::{Limit, Slice};
use crate::failure::Failure;

/// The number of reads whose ids are generated in advance, so that this does not count.
const READS: u64 = 256;
/// The number of times a store is opened in one part of the measurement.
const OPENINGS: usize = 3;

/// Reads all events repeatedly, a page at a time.
pub(super) async fn scan_pages(candidate: &Candidate, limit: &Limit) -> Result<Slice, Failure> {
    scan(candidate, limit, async |mut pages: EventStream| {
        let mut count = 0;
        while let Some(page) = pages.next_page().await {
            count += black_box(page?).len() as u64;
        }
        Ok(count)
    })
    .await
}

/// Reads all events repeatedly, one at a time.
pub(super) async fn scan_stream(candidate: &Candidate, limit: &Limit) -> Result<Slice, Failure> {
    scan(candidate, limit, async |mut events: EventStream| {
        let mut count = 0;
        while let Some(event) = events.next().await {
            black_box(event?);
            count += 1;
        }
        Ok(count)
    })
    .await
}

/// Reads all events repeatedly, and checks that each scan is complete.
async fn scan(
    candidate: &Candidate,
    limit: &Limit,
    read_all: impl AsyncFn(EventStream) -> Result<u64, Failure>,
) -> Result<Slice, Failure> {
    let store = candidate.store()?;
    let mut slice = Slice::default();
    while limit.is_open(&slice)? {
        let began = Instant::now();
        let count = read_all(store.load(&Context::background(), Version::ZERO)).await?;
        slice.elapsed += began.elapsed();
        slice.events += count;
        if count != candidate.next {
            return Err(Failure::wrong_result(format!("a scan gave {count} events of {}", candidate.next)));
        }
    }
    Ok(slice)
}

/// Loads aggregates of this length, in an order that jumps across the store.
pub(super) async fn aggregates(candidate: &Candidate, length: u64, limit: &Limit) -> Result<Slice, Failure> {
    let (store, events, ctx) = (candidate.store()?, candidate.events, Context::background());
    let mut slice = Slice::default();
    let mut turn = 0;
    while limit.is_open(&slice)? {
        let reads = turn..turn + READS;
        turn += READS;
        let ids: Vec<_> = reads.map(|read| events.aggregate(length, events.random(read) % events.pairs())).collect();
        let began = Instant::now();
        for id in ids {
            let loaded = store.load_by_aggregate(&ctx, id.as_str(), LoadOptions::all()).into_vec().await?;
            let last = loaded.last().map(|last| (last.revision.get(), last.event.aggregate_id()));
            if loaded.len() as u64 != length || last != Some((length, id.as_str())) {
                let found = loaded.len();
                return Err(Failure::wrong_result(format!("{id} has {found} events instead of {length}, or others")));
            }
            slice.events += length;
        }
        slice.elapsed += began.elapsed();
    }
    Ok(slice)
}

/// Reads events by id, in an order that jumps across the store.
pub(super) async fn get(candidate: &Candidate, limit: &Limit) -> Result<Slice, Failure> {
    let (store, events, ctx) = (candidate.store()?, candidate.events, Context::background());
    let mut slice = Slice::default();
    let mut turn = 0;
    while limit.is_open(&slice)? {
        let reads = turn..turn + READS;
        turn += READS;
        let numbers = reads.map(|read| events.random(read) % events.len());
        let ids: Vec<_> = numbers.map(|number| (number, events.id(number, Ids::TimeOrdered))).collect();
        let began = Instant::now();
        for (number, id) in ids {
            let recorded = black_box(store.get(&ctx, &id).await?);
            if recorded.version.get() != number + 1 || recorded.event.id() != id {
                return Err(Failure::wrong_result(format!("{id} gave version {}", recorded.version)));
            }
            slice.events += 1;
        }
        slice.elapsed += began.elapsed();
    }
    Ok(slice)
}

/// Closes and opens the store a few times. A store in memory, which cannot be reopened, is skipped.
pub(super) async fn open(candidate: &mut Candidate) -> Result<Slice, Failure> {
    let mut slice = Slice::default();
    if !candidate.is_kept() {
        return Ok(slice);
    }
    for _ in 0..OPENINGS {
        candidate.close().await?;
        let began = Instant::now();
        candidate.open().await?;
        let elapsed = began.elapsed();
        slice.times.add(elapsed);
        slice.elapsed += elapsed;
        let latest = candidate.store()?.latest_version(&Context::background()).await?;
        if latest.get() != candidate.next {
            return Err(Failure::wrong_result(format!("it opened with {latest} events of {}", candidate.next)));
        }
    }
    Ok(slice)
}

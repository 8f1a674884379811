//! The events that every workload uses.

use std::ops::Range;

use eventstore::backend::Event;
use uuid::Uuid;

/// Events in a store that is read from.
pub(crate) const EVENTS: u64 = 102_000;

/// Aggregates they belong to, in turn, so that each has 34 that lie far apart.
pub(crate) const AGGREGATES: u64 = 3_000;

pub(crate) fn aggregate_id(n: u64) -> String {
    format!("aggregate-{:06}", n % AGGREGATES)
}

/// How ids follow one another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// UUIDv7, the default of the builder.
    TimeOrdered,
    /// UUIDv4: each lies anywhere in the index.
    Random,
}

pub(crate) fn event(n: u64, ids: Ids) -> Event {
    // Bytes that do not compress, the same in every run.
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(304);
    while data.len() < 300 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(300);
    let event = Event::builder("Measured", aggregate_id(n)).data(data);
    match ids {
        Ids::TimeOrdered => event,
        Ids::Random => event.id(Uuid::new_v4().to_string()),
    }
    .build()
    .expect("valid")
}

pub(crate) fn events(range: Range<u64>) -> Vec<Event> {
    range.map(|n| event(n, Ids::TimeOrdered)).collect()
}

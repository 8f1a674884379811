//! The events that every contestant gets.

use eventstore::backend::Event;
use serde::Serialize;
use uuid::Uuid;

/// Events of a short aggregate in a filled store.
pub(crate) const SHORT: u64 = 13;
/// Events of a long one.
pub(crate) const LONG: u64 = 34;
/// A short aggregate and a long one.
const PAIR: u64 = SHORT + LONG;

/// Bytes of data in an event.
pub(crate) const DATA: usize = 300;

/// How ids follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ids {
    /// UUIDv7, the default of eventstore's builder.
    TimeOrdered,
    /// UUIDv4: each lies anywhere in the index.
    Random,
}

/// An event to be found by its id.
pub(crate) struct Sample {
    pub(crate) id: String,
    pub(crate) uuid: Uuid,
    pub(crate) data: Vec<u8>,
}

impl Sample {
    /// Fails unless what was found ends with the event's data.
    pub(crate) fn check(&self, found: &[u8]) -> anyhow::Result<()> {
        anyhow::ensure!(found.ends_with(&self.data), "the id {} led to another event", self.id);
        Ok(())
    }
}

/// The events of a filled store, and those that are appended to it after.
///
/// Half of the aggregates get [`SHORT`] events and half get [`LONG`]. Each round through the aggregates gives one event to
/// each, so the events of an aggregate lie far apart.
#[derive(Clone, Copy)]
pub(crate) struct Corpus {
    pairs: u64,
    ids: Ids,
}

impl Corpus {
    /// At least this number of events: as many as fill the last pair of aggregates.
    pub(crate) fn new(events: u64, ids: Ids) -> Self {
        Corpus { pairs: events.div_ceil(PAIR).max(1), ids }
    }

    /// Events of the filled store.
    pub(crate) fn events(self) -> u64 {
        self.pairs * PAIR
    }

    /// Event number `n`, with a new id. The first [`Corpus::events`] fill a store; those after belong to any of its
    /// aggregates.
    pub(crate) fn event(self, n: u64) -> Event {
        let event = Event::builder("Measured", self.aggregate_of(n)).data(data(n));
        match self.ids {
            Ids::TimeOrdered => event,
            Ids::Random => event.id(Uuid::new_v4().to_string()),
        }
        .build()
        .expect("within the limits")
    }

    /// The event, kept to be looked for.
    pub(crate) fn sample(event: &Event) -> Sample {
        let uuid = Uuid::try_parse(event.id()).expect("made as one");
        Sample { id: event.id().to_owned(), uuid, data: event.data().to_vec() }
    }

    /// Up to `count` aggregates of [`SHORT`] or [`LONG`] events, in an order that jumps through the store.
    pub(crate) fn aggregates(self, length: u64, count: u64) -> Vec<String> {
        let name = if length == SHORT { short } else { long };
        (0..count.min(self.pairs)).map(|n| name(scattered(n) % self.pairs)).collect()
    }

    fn aggregate_of(self, n: u64) -> String {
        if n >= self.events() {
            let n = scattered(n) % (2 * self.pairs);
            return if n < self.pairs { short(n) } else { long(n - self.pairs) };
        }
        let (round, aggregate) = (n / self.pairs, n % self.pairs);
        // A permutation of the rounds, as 47 is a prime: those of the short aggregates are spread over the store.
        if round * 20 % PAIR < SHORT { short(aggregate) } else { long(aggregate) }
    }
}

fn short(n: u64) -> String {
    format!("short-{n:07}")
}

fn long(n: u64) -> String {
    format!("long-{n:07}")
}

fn scattered(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

/// Bytes that do not compress, the same for the same event in every run.
fn data(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(DATA + size_of::<u64>());
    while data.len() < DATA {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(DATA);
    data
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn aggregates_have_the_events_they_should() {
        let corpus = Corpus::new(1_000, Ids::TimeOrdered);
        let mut counts = HashMap::<_, u64>::new();
        for n in 0..corpus.events() {
            *counts.entry(corpus.aggregate_of(n)).or_default() += 1;
        }
        for length in [SHORT, LONG] {
            let aggregates = corpus.aggregates(length, 100);
            assert!(!aggregates.is_empty());
            assert!(aggregates.iter().all(|aggregate| counts[aggregate] == length));
        }
        assert!((corpus.events()..corpus.events() + 1_000).all(|n| counts.contains_key(&corpus.aggregate_of(n))));
    }

    #[test]
    fn data_are_the_same_again_and_differ_between_events() {
        assert_eq!(data(5), data(5));
        assert_ne!(data(5), data(6));
        assert_eq!(data(5).len(), DATA);
    }
}

//! The events used for measurements. Each follows from the seed and its number, so that the content of a store can be
//! checked without remembering it.

use eventstore::backend::{Event, RecordedEvent};

use crate::failure::Failure;

/// The numbers of events in the aggregates that are loaded.
pub(super) const SHORT: u64 = 13;
pub(super) const LONG: u64 = 34;
/// Events are generated for pairs of aggregates, a short one and a long one.
pub(super) const PAIR: u64 = SHORT + LONG;

/// The size of an event's data in bytes. The data is incompressible.
pub(super) const DATA_LEN: usize = 300;
const EVENT_TYPE: &str = "Measured";
/// 2025-01-01, the start time of time-ordered ids, in milliseconds since 1970.
const FIRST_MILLISECOND: u64 = 1_735_689_600_000;

/// The order of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// UUIDv7, as made by the builder: each is greater than those before.
    TimeOrdered,
    /// UUIDv4: each is anywhere in the index.
    Random,
}

/// The events of one seed, by their numbers 0, 1, 2, …
///
/// The first [`len`](Events::len) events fill a store. They belong to the aggregates in turn, so that the events of
/// each are far apart. Later ones are appended during measurements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    seed: u64,
    pairs: u64,
}

impl Events {
    /// Fills stores with about `len` events.
    pub(super) fn new(seed: u64, len: u64) -> Self {
        Events { seed, pairs: ((len + PAIR / 2) / PAIR).max(1) }
    }

    /// The number of events that fill a store.
    pub(super) fn len(self) -> u64 {
        self.pairs * PAIR
    }

    /// The number of aggregates of each length.
    pub(super) fn pairs(self) -> u64 {
        self.pairs
    }

    /// The `index`th aggregate of this length, [`SHORT`] or [`LONG`].
    pub(super) fn aggregate(self, length: u64, index: u64) -> String {
        format!("aggregate-{:07}", if length == LONG { index } else { self.pairs + index })
    }

    fn aggregate_of(self, number: u64) -> String {
        // All aggregates in turn until the short ones are complete, then only the long ones. Later events go to any of
        // them.
        let turns_of_all = 2 * self.pairs * SHORT;
        let among = if (turns_of_all..self.len()).contains(&number) { self.pairs } else { 2 * self.pairs };
        format!("aggregate-{:07}", number % among)
    }

    /// The id of an event.
    pub(super) fn id(self, number: u64, ids: Ids) -> String {
        let (high, low) = (self.random(2 * number), self.random(2 * number + 1));
        let tail = low & 0xffff_ffff_ffff;
        let variant = 0x8000 | (low >> 48) & 0x3fff;
        match ids {
            Ids::TimeOrdered => {
                // 64 per millisecond, ordered by the bits after it.
                let (milliseconds, rest) = (FIRST_MILLISECOND + number / 64, (number % 64) << 6);
                let (first, second) = (milliseconds >> 16, milliseconds & 0xffff);
                format!("{first:08x}-{second:04x}-7{rest:03x}-{variant:04x}-{tail:012x}")
            }
            Ids::Random => {
                let (first, second, third) = (high >> 32, (high >> 16) & 0xffff, high & 0xfff);
                format!("{first:08x}-{second:04x}-4{third:03x}-{variant:04x}-{tail:012x}")
            }
        }
    }

    /// An event. It is the same each time.
    pub(super) fn event(self, number: u64, ids: Ids) -> Result<Event, Failure> {
        let event = Event::builder(EVENT_TYPE, self.aggregate_of(number)).id(self.id(number, ids));
        Ok(event.data(self.data(number)).build()?)
    }

    /// The number of a recorded event, if it is what was appended, byte for byte.
    pub(super) fn number_of(self, recorded: &RecordedEvent) -> Result<u64, Failure> {
        let event = &recorded.event;
        let number = event.data().first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        let ids = if event.id().as_bytes().get(14) == Some(&b'7') { Ids::TimeOrdered } else { Ids::Random };
        if number < u64::MAX && *event == self.event(number, ids)? {
            return Ok(number);
        }
        Err(Failure::wrong_result(format!("version {} is not the event that was appended", recorded.version)))
    }

    /// The number, and pseudo-random bytes.
    fn data(self, number: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(DATA_LEN + 8);
        data.extend_from_slice(&number.to_le_bytes());
        let mut state = self.random(number) | 1;
        while data.len() < DATA_LEN {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend_from_slice(&state.to_le_bytes());
        }
        data.truncate(DATA_LEN);
        data
    }

    /// A pseudo-random number that depends only on `of`.
    pub(super) fn random(self, of: u64) -> u64 {
        mix(mix(self.seed).wrapping_add(of))
    }
}

/// The finalizer of SplitMix64, which is a bijection.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::SystemTime;

    use eventstore::backend::{Revision, Version};

    use super::*;

    #[test]
    fn a_store_is_filled_with_aggregates_of_both_lengths() {
        let events = Events::new(1, 500);
        assert_eq!((events.len(), events.pairs()), (517, 11));
        let mut lengths = HashMap::new();
        for number in 0..events.len() {
            *lengths.entry(events.aggregate_of(number)).or_insert(0) += 1;
        }
        for index in 0..events.pairs() {
            assert_eq!(lengths[&events.aggregate(SHORT, index)], SHORT);
            assert_eq!(lengths[&events.aggregate(LONG, index)], LONG);
        }
        assert_eq!(lengths.len(), 22);
        assert!(lengths.contains_key(&events.aggregate_of(events.len() + 5)), "later ones join them");
    }

    #[test]
    fn time_ordered_ids_ascend_and_random_ones_do_not() {
        let events = Events::new(1, 47);
        let ids = |kind| (0..1000).map(|number| events.id(number, kind)).collect::<Vec<_>>();
        assert!(ids(Ids::TimeOrdered).is_sorted());
        assert!(!ids(Ids::Random).is_sorted());
        assert!(ids(Ids::TimeOrdered).iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'7'));
        assert!(ids(Ids::Random).iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'4'));
        assert_ne!(events.id(7, Ids::Random), Events::new(2, 47).id(7, Ids::Random));
    }

    #[test]
    fn an_event_is_known_again_and_a_changed_one_is_not() {
        let events = Events::new(1, 47);
        let recorded = |event| RecordedEvent::new(Version::new(1), Revision::new(1), SystemTime::UNIX_EPOCH, event);
        for ids in [Ids::TimeOrdered, Ids::Random] {
            let event = events.event(1234, ids).expect("valid");
            assert_eq!(events.number_of(&recorded(event)).expect("known"), 1234);
        }
        let event = events.event(1234, Ids::Random).expect("valid");
        for at in [0, 8, DATA_LEN - 1] {
            let mut data = event.data().to_vec();
            data[at] ^= 1;
            let changed = Event::builder(EVENT_TYPE, event.aggregate_id()).id(event.id()).data(data);
            let failure = events.number_of(&recorded(changed.build().expect("valid"))).expect_err("changed");
            assert_eq!(failure.code(), "wrong_result");
        }
    }
}

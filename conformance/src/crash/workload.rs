//! The events that children append. They are derived from a seed and a number, so that any process can reconstruct
//! them.

use eventstore_api::{Batch, Durability, Event};

use crate::random::Random;

/// The batch of this number.
pub(crate) fn batch(events_seed: u64, number: u64) -> Batch {
    let mut random = Random::new(events_seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let size = [1, 1, 1, 2, 3, 5, 12][random.below(7) as usize];
    let one_aggregate = (random.below(5) > 0).then(|| random.below(AGGREGATES));
    let durability = if random.below(4) == 0 { Durability::Buffered } else { Durability::Sync };
    let events = (0..size).map(|nth| event(&mut random, number, nth, one_aggregate)).collect::<Vec<_>>();
    Batch::new(events).durability(durability)
}

const AGGREGATES: u64 = 9;

fn event(random: &mut Random, number: u64, nth: u64, aggregate: Option<u64>) -> Event {
    let id = match random.below(3) {
        0 => format!("{number}-{nth}"),
        // In time order and in random order, as canonical UUIDs.
        1 => uuid(number << 8 | nth, random.below(1 << 62)),
        _ => uuid(random.below(1 << 62), number << 8 | nth),
    };
    let len = match random.below(40) {
        0 => random.below(60_000),
        1..4 => random.below(5_000),
        _ => random.below(300),
    };
    let data: Vec<u8> = (0..len).map(|at| (at ^ len ^ number) as u8).collect();
    let aggregate = aggregate.unwrap_or_else(|| random.below(AGGREGATES));
    let mut builder = Event::builder("Appended", format!("aggregate-{aggregate}")).id(id).data(data);
    if random.below(3) == 0 {
        builder = builder.metadata_json(format!("{{\"batch\":{number},\"nth\":{nth}}}"));
    }
    builder.build().expect("the suite's own events are valid")
}

fn uuid(high: u64, low: u64) -> String {
    let (time, version) = (high >> 16, high & 0xffff);
    format!(
        "{:08x}-{:04x}-{version:04x}-{:04x}-{:012x}",
        time >> 16 & 0xffff_ffff,
        time & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_batch_is_the_same_each_time_and_its_ids_are_its_own() {
        let mut ids = HashSet::new();
        for number in 0..2000 {
            let made = batch(7, number);
            assert_eq!(made.events, batch(7, number).events);
            assert!(made.validate().is_ok());
            for event in made.events {
                assert!(ids.insert(event.id().to_owned()), "{} twice", event.id());
            }
        }
    }
}

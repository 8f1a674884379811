//! Measured values: rates, times and their percentiles.

use std::time::Duration;

use eventstore::backend::{CancellationToken, Error};
use serde::Serialize;

use crate::failure::Failure;

/// Percentiles as fractions, with their names. The last one is the maximum.
pub(super) const PERCENTILES: [(f64, &str); 5] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")];

/// All measured times, so that percentiles are exact.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn append(&mut self, mut more: Times) {
        self.0.append(&mut more.0);
    }

    /// The percentiles, or `None` if there are no times.
    pub(super) fn percentiles(&self) -> Option<Percentiles> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        // The nearest rank: the smallest time that is not exceeded by this fraction of all times.
        let at = |part: f64| {
            let rank = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().map(microseconds)
        };
        let [p50, p90, p99, p99_9, max] = PERCENTILES.map(|(part, _)| at(part));
        Some(Percentiles { p50: p50?, p90: p90?, p99: p99?, p99_9: p99_9?, max: max?, samples: sorted.len() })
    }
}

/// Percentiles of times, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    max: f64,
    samples: usize,
}

impl Percentiles {
    /// In the order of [`PERCENTILES`].
    pub(super) fn all(&self) -> [f64; 5] {
        [self.p50, self.p90, self.p99, self.p99_9, self.max]
    }
}

/// A part of a measurement without interruptions.
#[derive(Clone, Debug, Default)]
pub(super) struct Slice {
    pub(super) events: u64,
    pub(super) elapsed: Duration,
    /// Empty if single calls are not timed.
    pub(super) times: Times,
}

impl Slice {
    fn rate(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// The limit of a part of a measurement.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub(super) time: Duration,
    pub(super) events: u64,
    pub(super) interrupted: CancellationToken,
}

impl Limit {
    /// Whether to continue after what was measured so far; `Cancelled` if the user interrupted.
    pub(super) fn is_open(&self, slice: &Slice) -> Result<bool, Failure> {
        match self.interrupted.is_cancelled() {
            true => Err(Error::Cancelled.into()),
            false => Ok(slice.elapsed < self.time && slice.events < self.events),
        }
    }
}

/// The unit of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    #[serde(rename = "events/s")]
    EventsPerSecond,
    #[serde(rename = "µs")]
    Microseconds,
    #[serde(rename = "bytes")]
    Bytes,
}

/// One measurement of one store.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measurement {
    pub(super) unit: Unit,
    /// The value over all slices; for times, their median.
    pub(super) value: f64,
    /// The value of each slice, to show how much it varies.
    pub(super) slices: Vec<f64>,
    /// The total number of appended or read events.
    pub(super) events: u64,
    /// The latency of single calls, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_us: Option<Percentiles>,
}

impl Measurement {
    /// The number of events per second.
    pub(super) fn rate(slices: Vec<Slice>) -> Self {
        let all = together(&slices);
        let rates = slices.iter().map(Slice::rate).collect();
        Measurement {
            unit: Unit::EventsPerSecond,
            value: all.rate(),
            slices: rates,
            events: all.events,
            latency_us: all.times.percentiles(),
        }
    }

    /// The duration of an operation; `None` if it was never done.
    pub(super) fn time(slices: Vec<Slice>) -> Option<Self> {
        let all = together(&slices);
        let percentiles = all.times.percentiles()?;
        let medians = slices.iter().filter_map(|slice| slice.times.percentiles()).map(|times| times.p50).collect();
        Some(Measurement {
            unit: Unit::Microseconds,
            value: percentiles.p50,
            slices: medians,
            events: all.events,
            latency_us: Some(percentiles),
        })
    }

    /// The number of bytes per event.
    pub(super) fn bytes(bytes: u64, events: u64) -> Self {
        let value = bytes as f64 / events.max(1) as f64;
        Measurement { unit: Unit::Bytes, value, slices: vec![value], events, latency_us: None }
    }
}

fn together(slices: &[Slice]) -> Slice {
    let mut all = Slice::default();
    for slice in slices {
        all.events += slice.events;
        all.elapsed += slice.elapsed;
        all.times.append(slice.times.clone());
    }
    all
}

pub(super) fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(microseconds: impl IntoIterator<Item = u64>) -> Times {
        Times(microseconds.into_iter().map(Duration::from_micros).collect())
    }

    #[test]
    fn percentiles_are_the_nearest_rank_whatever_the_order() {
        let percentiles = times((1..=1000).rev()).percentiles().expect("some");
        assert_eq!(percentiles.all(), [500.0, 900.0, 990.0, 999.0, 1000.0]);
        assert_eq!(percentiles.samples, 1000);
    }

    #[test]
    fn percentiles_of_few_times_are_among_them() {
        assert_eq!(times([]).percentiles(), None);
        assert_eq!(times([7]).percentiles().expect("one").all(), [7.0; 5]);
        assert_eq!(times([3, 1]).percentiles().expect("two").all(), [1.0, 3.0, 3.0, 3.0, 3.0]);
        assert_eq!(times([5, 1, 3]).percentiles().expect("three").all(), [3.0, 5.0, 5.0, 5.0, 5.0]);
    }

    #[test]
    fn one_slow_call_of_many_shows_in_the_maximum_alone() {
        let percentiles = times((0..10_000).map(|n| if n == 17 { 9_000 } else { 10 })).percentiles().expect("some");
        assert_eq!(percentiles.all(), [10.0, 10.0, 10.0, 10.0, 9_000.0]);
    }

    #[test]
    fn a_rate_is_that_of_all_slices_together() {
        let slice = |events, seconds| Slice { events, elapsed: Duration::from_secs(seconds), times: Times::default() };
        let measurement = Measurement::rate(vec![slice(100, 1), slice(50, 2)]);
        assert_eq!((measurement.value, measurement.events), (50.0, 150));
        assert_eq!(measurement.slices, [100.0, 25.0]);
        assert_eq!(measurement.latency_us, None);
    }

    #[test]
    fn a_time_is_the_median_of_all() {
        let slice = |microseconds: &[u64]| Slice { times: times(microseconds.iter().copied()), ..Slice::default() };
        let measurement = Measurement::time(vec![slice(&[1, 2, 3]), slice(&[10, 20])]).expect("some");
        assert_eq!((measurement.value, measurement.slices), (3.0, vec![2.0, 10.0]));
        assert!(Measurement::time(vec![Slice::default()]).is_none());
    }
}

//! The size limits of every store. They are the same for all engines, so that events can move from one to another.
//!
//! All lengths are in bytes of UTF-8 or of data, not in characters. Exceeding a limit is
//! [`Error::InvalidEvent`](crate::Error::InvalidEvent), returned before anything is queued (rule W5).

use std::time::{Duration, SystemTime};

/// The longest event id: 255 bytes. An id has at least one byte.
pub const MAX_ID_LEN: usize = 255;

/// The longest event type: 255 bytes. A type has at least one byte.
pub const MAX_TYPE_LEN: usize = 255;

/// The longest aggregate id: 480 bytes. An aggregate id has at least one byte.
pub const MAX_AGGREGATE_ID_LEN: usize = 480;

/// The longest metadata of one event: 1 MiB of JSON text.
pub const MAX_METADATA_LEN: usize = 1 << 20;

/// The largest data of one event: 16 MiB.
pub const MAX_DATA_LEN: usize = 16 << 20;

/// The most events in one batch: 10,000.
pub const MAX_BATCH_EVENTS: usize = 10_000;

/// The most bytes in one batch, texts and data of all its events together: 64 MiB.
pub const MAX_BATCH_BYTES: usize = 64 << 20;

/// The end of the range of explicit recording times, as the time since 1970: the end of the year 9999.
pub const RECORDED_AT_END: Duration = Duration::from_secs(253_402_300_800);

/// The nearest time in the years 1970 to 9999: what a store records if the clock is wrong (rule W7).
#[must_use]
pub fn clamp_recorded_at(time: SystemTime) -> SystemTime {
    let last = RECORDED_AT_END - Duration::from_micros(1);
    time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_be_recorded_become_the_nearest_ones() {
        let at = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        let end = SystemTime::UNIX_EPOCH + RECORDED_AT_END;
        let last = at(253_402_300_799_999_999);
        for (time, expected) in [
            (SystemTime::UNIX_EPOCH - Duration::from_secs(1), at(0)),
            (SystemTime::UNIX_EPOCH, at(0)),
            (at(7) + Duration::from_nanos(999), at(7) + Duration::from_nanos(999)),
            (last, last),
            (end, last),
            (end + RECORDED_AT_END, last),
        ] {
            assert_eq!(clamp_recorded_at(time), expected, "{time:?}");
        }
    }
}

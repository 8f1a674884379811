//! The stored form of an event: a header of 40 bytes, then the event's own bytes. `docs/format.md` has the table.
//!
//! The version is not in the record but in its key; since the checksum covers it, a record at a wrong place is found.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crc32fast::Hasher;
use eventstore_api::{Bytes, Error, Event, Layout, RecordedEvent, Result, Version};

use crate::keys;

const FORMAT: u8 = 1;
pub(crate) const CHECKSUM_LEN: usize = 4;
pub(crate) const HEADER_LEN: usize = 40;
const MUST_UNDERSTAND: u8 = 0xf0;

/// A time as records keep it: microseconds since 1970; times before that are 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Micros(u64);

impl Micros {
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Micros {
    fn from(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Micros(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }
}

/// The header that makes a record of this event at its place. The event's bytes follow it.
pub(crate) fn header(event: &Event, version: u64, revision: u64, recorded_at: Micros) -> [u8; HEADER_LEN] {
    let layout = event.layout();
    let mut header = [0; HEADER_LEN];
    header[4] = FORMAT;
    header[6..8].copy_from_slice(&(HEADER_LEN as u16).to_le_bytes());
    header[8..16].copy_from_slice(&revision.to_le_bytes());
    header[16..24].copy_from_slice(&recorded_at.0.to_le_bytes());
    header[24..26].copy_from_slice(&layout.id_len.to_le_bytes());
    header[26..28].copy_from_slice(&layout.type_len.to_le_bytes());
    header[28..30].copy_from_slice(&layout.aggregate_id_len.to_le_bytes());
    header[32..36].copy_from_slice(&layout.metadata_len.to_le_bytes());
    header[36..40].copy_from_slice(&(event.data().len() as u32).to_le_bytes());
    let checksum = checksum(version, &[&header[CHECKSUM_LEN..], event.bytes()]);
    header[..CHECKSUM_LEN].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Reads the record that was stored under `version` and lies at `range` of `page`. The event is a slice of the page.
///
/// # Errors
///
/// `Corrupt` if anything does not fit, `Unsupported` if it is sound but was written by a newer version.
pub(crate) fn decode(version: u64, page: &Bytes, range: Range<usize>) -> Result<RecordedEvent> {
    let corrupt = |reason| corrupt(version, reason);
    let record = &page[range.clone()];
    let Some((header, _)) = record.split_first_chunk::<HEADER_LEN>() else {
        return Err(corrupt("its record is cut short"));
    };
    let mut fields = Fields(header);
    if fields.u32() != checksum(version, &[&record[CHECKSUM_LEN..]]) {
        return Err(corrupt("its checksum does not match its content"));
    }
    // From here on the record is what some version of this library wrote.
    let (format, flags, header_len) = (fields.u8(), fields.u8(), usize::from(fields.u16()));
    if format != FORMAT || flags & MUST_UNDERSTAND != 0 {
        return Err(Error::Unsupported {
            what: format!(
                "the event at version {version} was written by a newer version (record format {format}, flags \
                 {flags:#04x}; this one reads format {FORMAT}); upgrade eventstore"
            ),
        });
    }
    let (revision, micros) = (fields.u64(), fields.u64());
    let (id_len, type_len, aggregate_id_len) = (fields.u16(), fields.u16(), fields.u16());
    let event_start = header_len + usize::from(fields.u16());
    let layout = Layout { id_len, type_len, aggregate_id_len, metadata_len: fields.u32() };
    let data_len = fields.u32() as usize;
    if header_len < HEADER_LEN || event_start + layout.data_start() + data_len != record.len() {
        return Err(corrupt("the lengths in its header do not add up"));
    }
    let event = Event::from_stored(page.slice(range.start + event_start..range.end), layout)
        .ok_or_else(|| corrupt("its text is not UTF-8, or the lengths in its header do not fit it"))?;
    // Some systems' clocks end before the last time that fits the header, which nobody writes.
    let recorded_at = UNIX_EPOCH
        .checked_add(Duration::from_micros(micros))
        .ok_or_else(|| corrupt("its time of recording is beyond this system's clock"))?;
    Ok(RecordedEvent::new(Version::new(version), revision, recorded_at, event))
}

/// The event at this version is damaged.
pub(crate) fn corrupt(version: u64, reason: &str) -> Error {
    Error::Corrupt { version: Some(Version::new(version)), reason: reason.to_owned() }
}

/// Of the version and of everything in the record behind the checksum.
pub(crate) fn checksum(version: u64, parts: &[&[u8]]) -> u32 {
    let mut checksum = Hasher::new();
    checksum.update(&keys::version_bytes(version));
    parts.iter().for_each(|part| checksum.update(part));
    checksum.finalize()
}

/// Reads header fields one behind the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> Event {
        Event::builder("OrderPlaced", "order-42")
            .id("evt-1")
            .data("{\"total\":12}")
            .metadata_json("{\"source\":\"web\"}")
            .build()
            .expect("valid")
    }

    fn encode(event: &Event, version: u64, revision: u64, micros: u64) -> Vec<u8> {
        [&header(event, version, revision, Micros(micros)), event.bytes().as_ref()].concat()
    }

    fn decode(version: u64, record: &[u8]) -> Result<RecordedEvent> {
        super::decode(version, &Bytes::copy_from_slice(record), 0..record.len())
    }

    /// Makes the checksum of a changed record right again.
    fn resealed(mut record: Vec<u8>, version: u64) -> Vec<u8> {
        let checksum = checksum(version, &[&record[CHECKSUM_LEN..]]);
        record[..CHECKSUM_LEN].copy_from_slice(&checksum.to_le_bytes());
        record
    }

    /// Stores on disk have these bytes. If this fails, the change breaks them: it needs a new format number.
    #[test]
    fn the_format_is_these_bytes() {
        let golden: &[&[u8]] = &[
            &[0x91, 0x9b, 0x80, 0xed],
            &[1, 0, 40, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[0x40, 0x42, 0x0f, 0, 0, 0, 0, 0],
            &[5, 0, 11, 0, 8, 0, 0, 0, 16, 0, 0, 0, 12, 0, 0, 0],
            b"evt-1OrderPlacedorder-42{\"source\":\"web\"}{\"total\":12}",
        ];
        assert_eq!(encode(&event(), 7, 3, 1_000_000), golden.concat());
    }

    #[test]
    fn what_was_written_is_read() {
        let read = decode(7, &encode(&event(), 7, 3, 1_000_000)).expect("sound");
        assert_eq!(read.version, Version::new(7));
        assert_eq!(read.revision, 3);
        assert_eq!(read.recorded_at, UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!(read.event, event());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let record = encode(&event(), 7, 3, 1_000_000);
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let result = decode(7, &damaged);
            let seven = Version::new(7);
            assert!(matches!(result, Err(Error::Corrupt { version: Some(at), .. }) if at == seven), "bit {bit}");
        }
    }

    #[test]
    fn a_record_cut_anywhere_or_at_a_wrong_place_is_found() {
        let record = encode(&event(), 7, 3, 1_000_000);
        for len in 0..record.len() {
            assert!(matches!(decode(7, &record[..len]), Err(Error::Corrupt { .. })), "{len} bytes");
        }
        assert!(matches!(decode(8, &record), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_newer_record_is_refused_unless_it_may_be_ignored() {
        let newer = |at: usize, value: u8| {
            let mut record = encode(&event(), 7, 3, 1_000_000);
            record[at] = value;
            decode(7, &resealed(record, 7))
        };
        assert!(matches!(newer(4, 2), Err(Error::Unsupported { .. })));
        assert!(matches!(newer(5, 0x10), Err(Error::Unsupported { .. })));
        assert_eq!(newer(5, 0x01).expect("an ignorable flag").event, event());
    }

    #[test]
    fn a_longer_header_and_extensions_are_skipped() {
        let mut record = encode(&event(), 7, 3, 1_000_000);
        record[6] = 44;
        record[30] = 3;
        record.splice(HEADER_LEN..HEADER_LEN, *b"newrext");
        assert_eq!(decode(7, &resealed(record, 7)).expect("sound").event, event());
    }

    #[test]
    fn sound_checksums_do_not_excuse_wrong_lengths() {
        let with = |at: usize, value: u8| {
            let mut record = encode(&event(), 7, 3, 1_000_000);
            record[at] = value;
            decode(7, &resealed(record, 7))
        };
        for at in [6, 24, 26, 28, 30, 32, 36] {
            assert!(matches!(with(at, 0xee), Err(Error::Corrupt { .. })), "length at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_event_comes_back(
            id in "\\PC{1,60}", event_type in "\\PC{1,60}", aggregate_id in "\\PC{1,100}",
            data: Vec<u8>, version: u64, revision: u64, micros in 0..u64::MAX / 2,
        ) {
            let event = Event::builder(event_type, aggregate_id).id(id).data(data).build().expect("valid");
            let read = decode(version, &encode(&event, version, revision, micros)).expect("sound");
            prop_assert_eq!(&read.event, &event);
            prop_assert_eq!((read.version.get(), read.revision), (version, revision));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, version: u64) {
            prop_assert!(decode(version, &bytes).is_err());
        }
    }
}

//! The stored form of an event, the content of one record of the log: a header of 32 bytes, then the event's own bytes.
//! `docs/format.md` has the table.
//!
//! The log stores the version, the length and a checksum over everything, so the header has none of these.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{Bytes, Error, Event, Layout, LoadOptions, RecordedEvent, Result, Revision, Version};

const FORMAT: u8 = 1;
pub(crate) const HEADER_LEN: usize = 32;
const MUST_UNDERSTAND: u8 = 0xf0;

/// A time as stored in records: microseconds since 1970, up to the year 9999. Other times become the nearest allowed
/// one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Micros(u64);

impl Micros {
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Micros {
    fn from(time: SystemTime) -> Self {
        let since_epoch = clamp_recorded_at(time).duration_since(UNIX_EPOCH).unwrap_or_default();
        Micros(u64::try_from(since_epoch.as_micros()).unwrap_or_default())
    }
}

/// The header for a record of this event at this revision. The event's bytes follow it.
pub(crate) fn header(event: &Event, revision: u64, recorded_at: Micros) -> [u8; HEADER_LEN] {
    let layout = event.layout();
    let mut header = [0; HEADER_LEN];
    header[0] = FORMAT;
    header[2..4].copy_from_slice(&(HEADER_LEN as u16).to_le_bytes());
    header[4..6].copy_from_slice(&layout.id_len.to_le_bytes());
    header[6..8].copy_from_slice(&layout.type_len.to_le_bytes());
    header[8..10].copy_from_slice(&layout.aggregate_id_len.to_le_bytes());
    header[12..16].copy_from_slice(&layout.metadata_len.to_le_bytes());
    header[16..24].copy_from_slice(&revision.to_le_bytes());
    header[24..32].copy_from_slice(&recorded_at.0.to_le_bytes());
    header
}

/// The fields of a record's header.
struct Header {
    revision: u64,
    recorded_at: SystemTime,
    layout: Layout,
    /// The offset of the event's bytes.
    event_start: usize,
}

impl Header {
    /// Reads the header of a record with a valid checksum.
    fn read(version: u64, record: &[u8]) -> Result<Self> {
        let corrupt = |reason| corrupt(version, reason);
        let Some((header, _)) = record.split_first_chunk::<HEADER_LEN>() else {
            return Err(corrupt("its record is cut short"));
        };
        let mut fields = Fields(header);
        let (format, flags, header_len) = (fields.u8(), fields.u8(), usize::from(fields.u16()));
        if format != FORMAT || flags & MUST_UNDERSTAND != 0 {
            return Err(Error::Unsupported {
                what: format!(
                    "the event at version {version} was written by a newer version (record format {format}, flags \
                     {flags:#04x}; this one reads format {FORMAT}); upgrade eventstore"
                ),
            });
        }
        let (id_len, type_len, aggregate_id_len) = (fields.u16(), fields.u16(), fields.u16());
        let event_start = header_len + usize::from(fields.u16());
        let layout = Layout { id_len, type_len, aggregate_id_len, metadata_len: fields.u32() };
        let (revision, micros) = (fields.u64(), fields.u64());
        if header_len < HEADER_LEN || event_start + layout.data_start() > record.len() {
            return Err(corrupt("the lengths in its header do not add up"));
        }
        // The clocks of some systems end before the last time that fits the header, which is never written.
        let recorded_at = UNIX_EPOCH
            .checked_add(Duration::from_micros(micros))
            .ok_or_else(|| corrupt("its recording time is out of the range of this system's clock"))?;
        Ok(Header { revision, recorded_at, layout, event_start })
    }
}

/// Reads the record of a version in `range` of `page`. Its checksum is valid. The event is a slice of the page.
///
/// # Errors
///
/// `Corrupt` if anything is inconsistent; `Unsupported` if it is valid but was written by a newer version.
pub(crate) fn decode(version: u64, page: &Bytes, range: Range<usize>) -> Result<RecordedEvent> {
    let Header { revision, recorded_at, layout, event_start } = Header::read(version, &page[range.clone()])?;
    let event =
        Event::from_stored(page.slice(range.start + event_start..range.end), layout).ok_or_else(|| no_text(version))?;
    Ok(RecordedEvent::new(Version::new(version), Revision::new(revision), recorded_at, event))
}

/// The conditions of a load apart from positions. They are evaluated on the beginning of a record, which has everything
/// except metadata and data.
#[derive(Debug)]
pub(crate) struct Filter {
    since_revision: u64,
    /// Sorted.
    types: Vec<String>,
    aggregate_prefix: String,
    recorded_since: Option<SystemTime>,
    recorded_before: Option<SystemTime>,
}

impl Filter {
    /// The filter of these options; `None` if the index answers all of them.
    pub(crate) fn of(options: &LoadOptions) -> Option<Self> {
        // For an aggregate, the index has the revisions and the id.
        let has_aggregate = options.aggregate_id.is_some();
        let since_revision = if has_aggregate { 0 } else { options.since_revision.get() };
        let aggregate_prefix = options.aggregate_prefix.as_deref().filter(|_| !has_aggregate).unwrap_or_default();
        let LoadOptions { types, recorded_since, recorded_before, .. } = options;
        let asks_nothing = since_revision == 0
            && types.is_empty()
            && aggregate_prefix.is_empty()
            && recorded_since.is_none()
            && recorded_before.is_none();
        if asks_nothing {
            return None;
        }
        let mut types = types.clone();
        types.sort_unstable();
        let (recorded_since, recorded_before) = (*recorded_since, *recorded_before);
        let aggregate_prefix = aggregate_prefix.to_owned();
        Some(Filter { since_revision, types, aggregate_prefix, recorded_since, recorded_before })
    }

    /// Whether the record of a version, with a valid checksum, may match. True for a record that cannot be parsed:
    /// reading it reports what is wrong.
    pub(crate) fn accepts(&self, version: u64, record: &[u8]) -> bool {
        let Ok(Header { revision, recorded_at, layout, event_start }) = Header::read(version, record) else {
            return true;
        };
        let (_, rest) = record[event_start..].split_at(usize::from(layout.id_len));
        let (event_type, rest) = rest.split_at(usize::from(layout.type_len));
        let aggregate_id = &rest[..usize::from(layout.aggregate_id_len)];
        revision > self.since_revision
            && (self.types.is_empty() || self.has_type(event_type))
            && aggregate_id.starts_with(self.aggregate_prefix.as_bytes())
            && self.recorded_since.is_none_or(|since| recorded_at >= since)
            && self.recorded_before.is_none_or(|before| recorded_at < before)
    }

    fn has_type(&self, event_type: &[u8]) -> bool {
        self.types.binary_search_by(|wanted| wanted.as_bytes().cmp(event_type)).is_ok()
    }
}

/// Whether the record of a version, with a valid checksum, has this revision of this aggregate. False if it cannot be
/// parsed.
pub(crate) fn is_at(version: u64, record: &[u8], aggregate_id: &str, revision: u64) -> bool {
    let Ok(Header { revision: found, layout, event_start, .. }) = Header::read(version, record) else { return false };
    let start = event_start + usize::from(layout.id_len) + usize::from(layout.type_len);
    found == revision && record[start..start + usize::from(layout.aggregate_id_len)] == *aggregate_id.as_bytes()
}

/// The index keys of a record's event.
pub(crate) struct Leads<'a> {
    pub(crate) id: &'a str,
    pub(crate) aggregate_id: &'a str,
    pub(crate) revision: u64,
}

impl<'a> Leads<'a> {
    /// Reads them from the record of a version with a valid checksum.
    ///
    /// # Errors
    ///
    /// Those of [`decode`].
    pub(crate) fn read(version: u64, record: &'a [u8]) -> Result<Self> {
        let Header { revision, layout, event_start, .. } = Header::read(version, record)?;
        let (id, rest) = record[event_start..].split_at(usize::from(layout.id_len));
        let aggregate_id = rest.get(usize::from(layout.type_len)..).unwrap_or_default();
        let aggregate_id = aggregate_id.get(..usize::from(layout.aggregate_id_len)).unwrap_or_default();
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| no_text(version));
        Ok(Leads { id: text(id)?, aggregate_id: text(aggregate_id)?, revision })
    }
}

fn no_text(version: u64) -> Error {
    corrupt(version, "its text is not UTF-8, or the lengths in its header do not fit it")
}

/// The error for a damaged event at this version.
pub(crate) fn corrupt(version: u64, reason: &str) -> Error {
    Error::Corrupt { version: Some(Version::new(version)), reason: reason.to_owned() }
}

/// Reads header fields one after the other.
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
    use eventstore_api::Batch;
    use eventstore_api::limits::RECORDED_AT_END;
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

    fn encode(event: &Event, revision: u64, micros: u64) -> Vec<u8> {
        [&header(event, revision, Micros(micros)), event.bytes().as_ref()].concat()
    }

    fn decode(version: u64, record: &[u8]) -> Result<RecordedEvent> {
        super::decode(version, &Bytes::copy_from_slice(record), 0..record.len())
    }

    fn changed(at: usize, value: u8) -> Result<RecordedEvent> {
        let mut record = encode(&event(), 3, 1_000_000);
        record[at] = value;
        decode(7, &record)
    }

    /// Stores on disk have these bytes. If this fails, the change breaks them and needs a new format number.
    #[test]
    fn the_format_is_these_bytes() {
        let golden: &[&[u8]] = &[
            &[1, 0, 32, 0],
            &[5, 0, 11, 0, 8, 0, 0, 0, 16, 0, 0, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[0x40, 0x42, 0x0f, 0, 0, 0, 0, 0],
            b"evt-1OrderPlacedorder-42{\"source\":\"web\"}{\"total\":12}",
        ];
        assert_eq!(encode(&event(), 3, 1_000_000), golden.concat());
    }

    #[test]
    fn whatever_the_clock_says_it_can_be_copied() {
        let end = UNIX_EPOCH + RECORDED_AT_END;
        for (clock, recorded_at) in [
            (UNIX_EPOCH - Duration::from_secs(1), UNIX_EPOCH),
            (end, end - Duration::from_micros(1)),
            (end + RECORDED_AT_END, end - Duration::from_micros(1)),
        ] {
            let record = [&header(&event(), 1, clock.into())[..], event().bytes()].concat();
            let read = decode(1, &record).expect("sound");
            assert_eq!(read.recorded_at, recorded_at);
            Batch::copy_of(&[read]).validate().expect("a copy may name its time");
        }
        // As earlier versions may have written it.
        let read = decode(7, &encode(&event(), 3, (RECORDED_AT_END.as_micros() + 1) as u64)).expect("sound");
        Batch::copy_of(&[read]).validate().expect("a copy may name its time");
    }

    #[test]
    fn what_was_written_is_read() {
        let record = encode(&event(), 3, 1_000_000);
        let read = decode(7, &record).expect("sound");
        assert_eq!(read.version, Version::new(7));
        assert_eq!(read.revision.get(), 3);
        assert_eq!(read.recorded_at, UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!(read.event, event());
        let leads = Leads::read(7, &record).expect("sound");
        assert_eq!((leads.id, leads.aggregate_id, leads.revision), ("evt-1", "order-42", 3));
    }

    #[test]
    fn a_record_that_cannot_be_read_passes_every_filter() {
        let filter = Filter::of(&LoadOptions::all().types(["Nothing"])).expect("it asks for something");
        let mut record = encode(&event(), 3, 1_000_000);
        assert!(!filter.accepts(7, &record));
        assert!(filter.accepts(7, &record[..HEADER_LEN]) && filter.accepts(7, &[]));
        record[0] = FORMAT + 1;
        assert!(filter.accepts(7, &record));
        assert!(!is_at(7, &record, "order-42", 3));
    }

    #[test]
    fn a_record_knows_its_place() {
        let record = encode(&event(), 3, 1_000_000);
        assert!(is_at(7, &record, "order-42", 3));
        for (aggregate_id, revision) in [("order-42", 2), ("order-42", 4), ("order-4", 3), ("order-421", 3), ("", 3)] {
            assert!(!is_at(7, &record, aggregate_id, revision), "{aggregate_id} {revision}");
        }
    }

    #[test]
    fn a_filter_asks_nothing_that_the_index_answers() {
        let every = LoadOptions::since(7.into()).before(9.into()).backward().limit(1);
        assert!(Filter::of(&every).is_none());
        assert!(Filter::of(&every.clone().aggregate("a").since_revision(7.into()).aggregate_prefix("a")).is_none());
        assert!(Filter::of(&every.clone().aggregate_prefix("").types([""; 0])).is_none());
        assert!(Filter::of(&every.clone().since_revision(1.into())).is_some());
        assert!(Filter::of(&every.aggregate("a").types(["T"])).is_some());
    }

    #[test]
    fn a_record_that_is_too_short_is_damaged() {
        let record = encode(&event(), 3, 1_000_000);
        for len in 0..record.len() - event().data().len() {
            assert!(matches!(decode(7, &record[..len]), Err(Error::Corrupt { .. })), "{len} bytes");
            assert!(Leads::read(7, &record[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_newer_record_is_refused_unless_it_may_be_ignored() {
        assert!(matches!(changed(0, 2), Err(Error::Unsupported { .. })));
        assert!(matches!(changed(1, 0x10), Err(Error::Unsupported { .. })));
        assert_eq!(changed(1, 0x01).expect("an ignorable flag").event, event());
    }

    #[test]
    fn a_longer_header_and_extensions_are_skipped() {
        let mut record = encode(&event(), 3, 1_000_000);
        record[2] = 36;
        record[10] = 3;
        record.splice(HEADER_LEN..HEADER_LEN, *b"newrext");
        assert_eq!(decode(7, &record).expect("sound").event, event());
    }

    #[test]
    fn sound_checksums_do_not_excuse_wrong_lengths() {
        for at in [2, 4, 6, 8, 10, 12] {
            assert!(matches!(changed(at, 0xee), Err(Error::Corrupt { .. })), "length at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_event_comes_back(
            id in "\\PC{1,60}", event_type in "\\PC{1,60}", aggregate_id in "\\PC{1,100}",
            data: Vec<u8>, version: u64, revision: u64, micros in 0..u64::MAX / 2,
        ) {
            let event = Event::builder(event_type, aggregate_id).id(id).data(data).build().expect("valid");
            let record = encode(&event, revision, micros);
            let read = decode(version, &record).expect("sound");
            prop_assert_eq!(&read.event, &event);
            prop_assert_eq!((read.version.get(), read.revision.get()), (version, revision));
            let leads = Leads::read(version, &record).expect("sound");
            prop_assert_eq!((leads.id, leads.aggregate_id), (event.id(), event.aggregate_id()));
        }

        #[test]
        fn a_filter_accepts_what_the_options_match(
            revision in 1..5_u64, since_revision in 0..5_u64, micros in 0..6_u64,
            since in proptest::option::of(0..6_u64), before in proptest::option::of(0..6_u64),
            event_type in "[ab]{1,2}", types in proptest::collection::vec("[ab]{0,2}", 0..4),
            aggregate_id in "[ab]{1,3}", prefix in proptest::option::of("[ab]{0,3}"),
        ) {
            // Also between two microseconds, which no record can be.
            let time = |half: u64| UNIX_EPOCH + Duration::from_nanos(half * 500);
            let mut options = LoadOptions::all().since_revision(since_revision.into()).types(types);
            options.aggregate_prefix = prefix;
            options.recorded_since = since.map(time);
            options.recorded_before = before.map(time);
            let event = Event::builder(event_type, aggregate_id).build().expect("valid");
            let record = encode(&event, revision, micros);
            let expected = options.matches(&decode(7, &record).expect("sound"));
            prop_assert_eq!(Filter::of(&options).is_none_or(|filter| filter.accepts(7, &record)), expected);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, version: u64) {
            let _ = Filter::of(&LoadOptions::all().types(["T"])).map(|filter| filter.accepts(version, &bytes));
            let _ = is_at(version, &bytes, "a", 1);
            let _ = decode(version, &bytes);
            let _ = Leads::read(version, &bytes);
        }
    }
}

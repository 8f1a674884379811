//! Encodes pages and batches as bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{
    Batch, Durability, Error, Event, Expected, Idempotency, Layout, LoadOptions, Page, RecordedEvent, Revision, Version,
};

use crate::binary::{Malformed, Reader, message, put_number, put_step};

/// The approximate overhead of an event in bytes.
const AROUND: usize = 24;

/// The minimum size of an event in bytes.
const LEAST: usize = 8;

/// The most events in a message, and the most batches or frames: each takes a multiple of its minimum encoded size in
/// memory.
pub(crate) const MOST: usize = 100_000;

/// A page as bytes: the head, whether there may be a next page, and the events.
#[must_use]
pub fn encode_page(page: &Page) -> Vec<u8> {
    let len = page.events.iter().map(|recorded| recorded.event.len_bytes() + AROUND).sum();
    message(len, |out| {
        put_number(out, page.head.get());
        out.push(u8::from(page.next.is_some()));
        put_number(out, page.events.len() as u64);
        let (mut version, mut time) = (0, 0);
        for recorded in &page.events {
            let (next_version, next_time) = (recorded.version.get(), micros(recorded.recorded_at));
            put_step(out, version, next_version);
            put_number(out, recorded.revision.get());
            put_step(out, time, next_time);
            put_event(out, &recorded.event);
            (version, time) = (next_version, next_time);
        }
    })
}

/// The page that answers `options`. The server knew only what was in its query. The events share the bytes.
///
/// # Errors
///
/// [`Malformed`] if the bytes do not come from [`encode_page`].
pub fn decode_page(bytes: Bytes, options: &LoadOptions) -> Result<Page, Malformed> {
    let mut reader = Reader::new(bytes)?;
    let head = Version::new(reader.number()?);
    let has_next = flag(&mut reader)?;
    let count = reader.count(LEAST, MOST)?;
    let mut events = Vec::with_capacity(count);
    let (mut version, mut time) = (0, 0);
    for _ in 0..count {
        version = reader.step(version)?;
        let revision = Revision::new(reader.number()?);
        time = reader.step(time)?;
        let (bytes, layout) = take_event(&mut reader)?;
        let event = Event::from_stored(bytes, layout).ok_or(Malformed("an event has no id, or is not UTF-8"))?;
        events.push(RecordedEvent::new(Version::new(version), revision, from_micros(time)?, event));
    }
    reader.end()?;
    Ok(Page::new(options, events, head, !has_next))
}

/// Encodes values of a later contract that this form lacks. Readers refuse the batch.
const UNKNOWN: u8 = u8::MAX;

/// Encodes a batch.
#[must_use]
pub fn encode_batch(batch: &Batch) -> Vec<u8> {
    message(len(batch), |out| put_batch(out, batch))
}

/// Decodes a batch that [`encode_batch`] wrote.
///
/// # Errors
///
/// [`Malformed`] if the bytes are invalid. The inner error is `InvalidEvent` if an event exceeds a limit of the contract.
pub fn decode_batch(bytes: Bytes) -> Result<Result<Batch, Error>, Malformed> {
    let mut reader = Reader::new(bytes)?;
    let batch = take_batch(&mut reader, &mut MOST.clone())?;
    reader.end()?;
    Ok(batch)
}

/// Encodes several batches, for a push.
#[must_use]
pub fn encode_batches(batches: &[Batch]) -> Vec<u8> {
    message(batches.iter().map(len).sum(), |out| {
        put_number(out, batches.len() as u64);
        batches.iter().for_each(|batch| put_batch(out, batch));
    })
}

/// Decodes the batches that [`encode_batches`] wrote.
///
/// # Errors
///
/// Those of [`decode_batch`], for each batch.
pub fn decode_batches(bytes: Bytes) -> Result<Vec<Result<Batch, Error>>, Malformed> {
    let mut reader = Reader::new(bytes)?;
    let count = reader.count(5, MOST)?;
    let mut room = MOST;
    let batches = (0..count).map(|_| take_batch(&mut reader, &mut room)).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(batches)
}

/// The approximate size of an encoded batch in bytes.
pub(crate) fn len(batch: &Batch) -> usize {
    batch.len_bytes() + batch.events.len() * AROUND + AROUND
}

pub(crate) fn put_batch(out: &mut Vec<u8>, batch: &Batch) {
    let (kind, number) = match batch.expected {
        Expected::NoEvents => (1, 0),
        Expected::Exists => (2, 0),
        Expected::Revision(revision) => (3, revision.get()),
        Expected::LatestVersion(version) => (4, version.get()),
        Expected::Any => (0, 0),
        _ => (UNKNOWN, 0),
    };
    out.push(kind);
    put_number(out, number);
    out.push(match batch.durability {
        None => 0,
        Some(Durability::Sync) => 1,
        Some(Durability::Buffered) => 2,
        Some(_) => UNKNOWN,
    });
    out.push(match batch.idempotency {
        Idempotency::Content => 0,
        Idempotency::Data => 1,
        Idempotency::Id => 2,
        _ => UNKNOWN,
    });
    put_number(out, batch.recorded_at.as_ref().map_or(0, |times| times.len() as u64 + 1));
    let mut last = 0;
    for time in batch.recorded_at.iter().flatten() {
        let time = micros(*time);
        put_step(out, last, time);
        last = time;
    }
    put_number(out, batch.events.len() as u64);
    batch.events.iter().for_each(|event| put_event(out, event));
}

/// A batch of at most `room` events, which are subtracted from `room`.
pub(crate) fn take_batch(reader: &mut Reader, room: &mut usize) -> Result<Result<Batch, Error>, Malformed> {
    let (kind, number) = (reader.byte()?, reader.number()?);
    let expected = match kind {
        0 => Expected::Any,
        1 => Expected::NoEvents,
        2 => Expected::Exists,
        3 => Expected::Revision(Revision::new(number)),
        4 => Expected::LatestVersion(Version::new(number)),
        _ => return Err(Malformed("a condition is unknown")),
    };
    let durability = match reader.byte()? {
        0 => None,
        1 => Some(Durability::Sync),
        2 => Some(Durability::Buffered),
        _ => return Err(Malformed("a durability is unknown")),
    };
    let idempotency = match reader.byte()? {
        0 => Idempotency::Content,
        1 => Idempotency::Data,
        2 => Idempotency::Id,
        _ => return Err(Malformed("an idempotency is unknown")),
    };
    let times = match reader.count(1, *room + 1)? {
        0 => None,
        more => {
            *room -= more - 1;
            let mut last = 0;
            let mut time = || -> Result<SystemTime, Malformed> {
                last = reader.step(last)?;
                from_micros(last)
            };
            Some((1..more).map(|_| time()).collect::<Result<Vec<_>, _>>()?)
        }
    };
    let count = reader.count(LEAST, *room)?;
    *room -= count;
    let mut events = Vec::with_capacity(count);
    let mut refused = None;
    for _ in 0..count {
        let (bytes, layout) = take_event(reader)?;
        match Event::from_parts(bytes, layout) {
            Ok(event) => events.push(event),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let mut batch = Batch::new(events).expected(expected).idempotency(idempotency);
    (batch.durability, batch.recorded_at) = (durability, times);
    Ok(refused.map_or(Ok(batch), Err))
}

/// A boolean.
pub(crate) fn flag(reader: &mut Reader) -> Result<bool, Malformed> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag is neither 0 nor 1")),
    }
}

fn put_event(out: &mut Vec<u8>, event: &Event) {
    let layout = event.layout();
    for len in [layout.id_len, layout.type_len, layout.aggregate_id_len] {
        put_number(out, u64::from(len));
    }
    put_number(out, u64::from(layout.metadata_len));
    put_number(out, (event.len_bytes() - layout.data_start()) as u64);
    out.extend_from_slice(event.bytes());
}

fn take_event(reader: &mut Reader) -> Result<(Bytes, Layout), Malformed> {
    const TOO_LONG: Malformed = Malformed("an event is too long");
    let mut short = || u16::try_from(reader.number()?).map_err(|_| TOO_LONG);
    let (id_len, type_len, aggregate_id_len) = (short()?, short()?, short()?);
    let metadata_len = u32::try_from(reader.number()?).map_err(|_| TOO_LONG)?;
    let data_len = u32::try_from(reader.number()?).map_err(|_| TOO_LONG)?;
    let layout = Layout { id_len, type_len, aggregate_id_len, metadata_len };
    let len = layout.data_start().checked_add(data_len as usize).ok_or(TOO_LONG)?;
    Ok((reader.bytes(len)?, layout))
}

fn micros(time: SystemTime) -> u64 {
    let since_1970 = clamp_recorded_at(time).duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_micros() as u64 // below the year 10000
}

fn from_micros(micros: u64) -> Result<SystemTime, Malformed> {
    let time = UNIX_EPOCH.checked_add(Duration::from_micros(micros));
    time.filter(|time| clamp_recorded_at(*time) == *time).ok_or(Malformed("a time is not in the years 1970 to 9999"))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        ("[a-zé]{1,40}", "[A-Z]{1,9}", "[a-z0-9-]{1,300}", vec(any::<u8>(), 0..400), any::<bool>()).prop_map(
            |(id, event_type, aggregate_id, data, metadata)| {
                let builder = Event::builder(event_type, aggregate_id).id(id).data(data);
                let builder = if metadata { builder.metadata_json("{\"a\": 1}") } else { builder };
                builder.build().expect("valid")
            },
        )
    }

    fn time() -> impl Strategy<Value = SystemTime> {
        (0..253_402_300_800_000_000_u64).prop_map(|micros| UNIX_EPOCH + Duration::from_micros(micros))
    }

    fn batch() -> impl Strategy<Value = Batch> {
        let expected = prop_oneof![
            Just(Expected::Any),
            Just(Expected::NoEvents),
            Just(Expected::Exists),
            any::<u64>().prop_map(|revision| Expected::Revision(Revision::new(revision))),
            any::<u64>().prop_map(|version| Expected::LatestVersion(Version::new(version))),
        ];
        let durability = prop_oneof![Just(None), Just(Some(Durability::Sync)), Just(Some(Durability::Buffered))];
        let idempotency = prop_oneof![Just(Idempotency::Content), Just(Idempotency::Data), Just(Idempotency::Id)];
        (vec(event(), 0..20), expected, durability, idempotency, proptest::option::of(vec(time(), 0..20))).prop_map(
            |(events, expected, durability, idempotency, times)| {
                let mut batch = Batch::new(events).expected(expected).idempotency(idempotency);
                (batch.durability, batch.recorded_at) = (durability, times);
                batch
            },
        )
    }

    proptest! {
        #[test]
        fn pages_come_back(
            events in vec((any::<u64>(), any::<u64>(), time(), event()), 0..20), head: u64, has_next: bool, limit in 1..40_u64
        ) {
            let events: Vec<_> = events
                .into_iter()
                .map(|(version, revision, time, event)| {
                    RecordedEvent::new(Version::new(version), Revision::new(revision), time, event)
                })
                .collect();
            let options = LoadOptions::all().aggregate_prefix("a").limit(limit).backward();
            let page = Page::new(&options, events, Version::new(head), !has_next);
            let read = decode_page(encode_page(&page).into(), &options).expect("whole");
            prop_assert_eq!(read.events, page.events);
            prop_assert_eq!((read.next, read.head), (page.next, page.head));
        }

        #[test]
        fn batches_come_back(batches in vec(batch(), 0..4)) {
            let read = decode_batches(encode_batches(&batches).into()).expect("whole");
            let read: Vec<_> = read.into_iter().map(|batch| batch.expect("valid")).collect();
            prop_assert_eq!(format!("{read:?}"), format!("{batches:?}"));
            for batch in &batches {
                let read = decode_batch(encode_batch(batch).into()).expect("whole").expect("valid");
                prop_assert_eq!(format!("{read:?}"), format!("{batch:?}"));
            }
        }

        #[test]
        fn whatever_the_bytes_reading_them_ends(bytes: Vec<u8>) {
            let sealed: Bytes = message(0, |out| *out = bytes).into();
            let _ = decode_page(sealed.clone(), &LoadOptions::all());
            let _ = decode_batch(sealed.clone());
            let _ = decode_batches(sealed);
        }
    }

    #[test]
    fn a_page_is_compact() {
        let event =
            Event::builder("OrderPlaced", "order-42").id("0192f0c4-7b6e-7000-8000-000000000001").data(vec![7; 245]);
        let event = event.build().expect("valid");
        let recorded = |n| {
            RecordedEvent::new(Version::new(n), Revision::new(n), UNIX_EPOCH + Duration::from_millis(n), event.clone())
        };
        let page = Page::new(&LoadOptions::all(), (1..=100).map(recorded).collect(), Version::new(100), true);
        let around = encode_page(&page).len() - 100 * event.len_bytes();
        assert!(around < 100 * 12, "{around}");
    }

    #[test]
    fn an_event_that_breaks_a_limit_is_invalid_and_no_damage() {
        let event = Event::builder("T", "a").id("i").data("12").build().expect("valid");
        let mut layout = event.layout();
        let with = |bytes: &'static [u8], layout| {
            let event = Event::from_stored(Bytes::from_static(bytes), layout).expect("fits");
            decode_batch(encode_batch(&event.into()).into()).expect("whole")
        };
        layout.metadata_len = 2;
        assert!(matches!(with(b"iTa[]12", layout), Err(Error::InvalidEvent { field: "metadata", .. })));
        assert!(with(b"iTa{}12", layout).is_ok());
    }
}

//! Checks of keys and records with arbitrary bytes. The targets in `fuzz/` feed these functions; the tests here feed
//! them the inputs in `fuzz/corpus`. Compiled only for fuzzers and tests.

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{Bytes, Error, RecordedEvent, Result};

use crate::format::keys;
use crate::format::record::{self, HEADER_LEN, Leads, Micros};
use crate::index::view::Block;

/// Terminates a text in an input. UTF-8 never contains this byte.
const TEXT_END: u8 = 0xfe;

/// A version, big-endian, followed by the bytes of a record, whose checksum counts as valid.
pub fn record(input: &[u8]) {
    let Some((version, record)) = input.split_first_chunk() else { return };
    let version = u64::from_be_bytes(*version);
    let leads = Leads::read(version, record);
    match decode(version, record) {
        Ok(recorded) => {
            let leads = leads.expect("what leads to an event that is read");
            let event = &recorded.event;
            assert_eq!((leads.id, leads.aggregate_id), (event.id(), event.aggregate_id()));
            assert_eq!(leads.revision, recorded.revision.get());
            check_event(&recorded, version, record);
        }
        Err(Error::Unsupported { what }) => {
            assert!(!what.is_empty());
            assert!(matches!(leads, Err(Error::Unsupported { .. })));
        }
        Err(error) => {
            assert!(is_corrupt(&error, version), "{error:?}");
            assert!(leads.err().is_none_or(|error| is_corrupt(&error, version)));
        }
    }
}

/// Reads a record that is surrounded by other bytes, as in a page.
fn decode(version: u64, record: &[u8]) -> Result<RecordedEvent> {
    let (before, behind) = ([TEXT_END; 3], [TEXT_END; 5]);
    let page = Bytes::from([&before, record, &behind].concat());
    record::decode(version, &page, before.len()..before.len() + record.len())
}

/// A decoded record consists of a header and the event's own bytes. If it has nothing that this version would not
/// write, it is encoded to the same bytes. Otherwise, only ignorable parts are dropped.
fn check_event(recorded: &RecordedEvent, version: u64, record: &[u8]) {
    let event = &recorded.event;
    assert_eq!(recorded.version.get(), version);
    assert!(record.ends_with(event.bytes()), "the event is the end of its record");
    let texts = [event.id(), event.event_type(), event.aggregate_id(), event.metadata()];
    assert_eq!([texts.concat().as_bytes(), event.data()].concat(), event.bytes().as_ref(), "every byte is in one part");

    // Earlier versions wrote times that cannot be copied.
    let recorded_at = clamp_recorded_at(recorded.recorded_at);
    let header = record::header(event, recorded.revision.get(), Micros::from(recorded_at));
    let written = [&header, event.bytes().as_ref()].concat();
    let mut expected = recorded.clone();
    expected.recorded_at = recorded_at;
    assert_eq!(decode(version, &written).expect("what was written is read"), expected);

    let u16_at = |at: usize| usize::from(u16::from_le_bytes([record[at], record[at + 1]]));
    let (flags, ignored_header, extensions) = (record[1], u16_at(2) - HEADER_LEN, u16_at(10));
    assert_eq!(written.len() + ignored_header + extensions, record.len());
    if (flags, ignored_header, extensions, recorded_at) == (0, 0, 0, recorded.recorded_at) {
        assert_eq!(written, record);
    }
    let newer = as_a_newer_version(written);
    assert_eq!(decode(version, &newer).expect("what may be ignored is"), expected);
}

/// The record with flags, a longer header and extensions, all of which this version must ignore. Their number is
/// derived from a checksum of the record, as a pseudo-random choice.
fn as_a_newer_version(mut record: Vec<u8>) -> Vec<u8> {
    let [flags, in_header, extensions, _] = crc32fast::hash(&record).to_le_bytes().map(|byte| byte & 0x0f);
    record[1] = flags;
    record[2] += in_header;
    record[10] = extensions;
    let ignored = vec![TEXT_END; usize::from(in_header + extensions)];
    record.splice(HEADER_LEN..HEADER_LEN, ignored);
    record
}

fn is_corrupt(error: &Error, version: u64) -> bool {
    matches!(error, Error::Corrupt { version: Some(at), .. } if at.get() == version)
}

/// The bytes of a key and of an entry's value; and at the same time two numbers, big-endian, and two texts separated by
/// `fe`, to build keys from.
pub fn key(input: &[u8]) {
    check_any_key(input);
    check_any_value(input);
    let Some((one, rest)) = input.split_first_chunk() else { return };
    let Some((other, rest)) = rest.split_first_chunk() else { return };
    let numbers = [one, other].map(|number| u64::from_be_bytes(*number));
    let mut texts = rest.splitn(2, |&byte| byte == TEXT_END).map(String::from_utf8_lossy);
    let texts = [(); 2].map(|()| texts.next().unwrap_or_default());
    check_versions(numbers);
    if let [one, other] = &texts
        && !one.is_empty()
        && !other.is_empty()
    {
        check_ids([one, other]);
        check_aggregates([one, other], numbers);
    }
}

/// Whatever is read as a key is written as the same key.
fn check_any_key(key: &[u8]) {
    if let Some(id) = keys::read_id(key) {
        assert_eq!(id_key(&id), key);
    }
    if let Some((aggregate_id, revision)) = keys::read_aggregate(key) {
        assert_eq!(aggregate_key(aggregate_id, revision), key);
        assert_eq!(keys::read_revision(key), Some(revision));
    }
    if let Some(version) = keys::read_version(key) {
        assert_eq!(keys::version_bytes(version), key);
    }
    let mut behind = Vec::new();
    keys::write_behind_aggregate(&mut behind, key);
    assert!(
        behind.as_slice() > key || key.first().is_none_or(|&byte| byte == 0xff),
        "{behind:?} is not behind {key:?}"
    );
}

/// Decoded versions are ascending, take no more bytes when encoded, and decode again. A block has as many revisions as
/// versions.
fn check_any_value(value: &[u8]) {
    let (mut versions, mut again, mut written) = (Vec::new(), Vec::new(), Vec::new());
    let is_sound = keys::read_versions(value, &mut versions);
    if is_sound {
        assert!(versions.first().is_some_and(|first| *first > 0) && versions.is_sorted_by(|one, next| one < next));
        keys::write_versions(&mut written, versions.iter().copied());
        assert!(written.len() <= value.len());
        assert!(keys::read_versions(&written, &mut again) && again == versions);
    }
    let last = value.first().map_or(0, |&byte| u64::from(byte));
    again.clear();
    let block = Block::read(&aggregate_key("a", last), value, &mut again);
    assert_eq!(block.is_some(), is_sound && versions.len() as u64 <= last);
    if let Some(block) = block {
        assert_eq!((block.last, block.last + 1 - block.first), (last, versions.len() as u64));
        assert_eq!(block.versions, versions);
    }
}

fn check_versions([one, other]: [u64; 2]) {
    assert_eq!(keys::version_bytes(one).cmp(&keys::version_bytes(other)), one.cmp(&other));
    assert_eq!(keys::read_version(&keys::version_bytes(one)), Some(one));
}

/// No two ids have the same key, and ids of a kind keep their order.
fn check_ids(ids: [&str; 2]) {
    let written = ids.map(id_key);
    for (id, key) in ids.iter().zip(&written) {
        assert_eq!(keys::read_id(key).as_deref(), Some(*id));
        assert_eq!(keys::ID_KIND_BYTES[keys::id_kind(key)], key[0]);
        assert!(keys::FIRST_KEY < key.as_slice() && key.as_slice() < keys::LAST_KEY);
    }
    assert_eq!(written[0] == written[1], ids[0] == ids[1]);
    if written[0][0] == written[1][0] {
        assert_eq!(written[0].cmp(&written[1]), ids[0].cmp(ids[1]));
    }
}

/// Revisions of an aggregate keep their order, no other aggregate is among them, and the end of an aggregate is where
/// the next one begins.
fn check_aggregates(ids: [&str; 2], revisions: [u64; 2]) {
    let [one, other] = ids;
    let keys_of_one = revisions.map(|revision| aggregate_key(one, revision));
    assert_eq!(keys_of_one[0].cmp(&keys_of_one[1]), revisions[0].cmp(&revisions[1]));
    for (key, revision) in keys_of_one.iter().zip(revisions) {
        assert_eq!(keys::read_aggregate(key), Some((one, revision)));
        assert!(keys::FIRST_KEY < key.as_slice() && key.as_slice() < keys::LAST_KEY);
    }
    let (first, last) = (aggregate_key(one, 0), aggregate_key(one, u64::MAX));
    let mut behind = Vec::new();
    keys::write_behind_aggregate(&mut behind, &keys_of_one[0]);
    assert!(last < behind);
    for revision in [0, revisions[1], u64::MAX] {
        let key = aggregate_key(other, revision);
        let is_among_them = first <= key && key <= behind;
        assert_eq!(is_among_them, one == other, "{one:?} {other:?} {revision}");
    }
}

fn id_key(id: &str) -> Vec<u8> {
    let mut key = Vec::new();
    keys::write_id(&mut key, id);
    key
}

fn aggregate_key(aggregate_id: &str, revision: u64) -> Vec<u8> {
    let mut key = Vec::new();
    keys::write_aggregate(&mut key, aggregate_id, revision);
    key
}

#[cfg(test)]
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

    #[test]
    fn records_of_the_corpus_are_read_or_refused() {
        replay(ROOT, "record", super::record);
    }

    #[test]
    fn keys_of_the_corpus_keep_their_order() {
        replay(ROOT, "key", super::key);
    }
}

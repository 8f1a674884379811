//! The keys of the tables. Integers are big-endian and of fixed width, so that keys sort like the numbers.

use uuid::Uuid;

/// Terminates the aggregate id in a key. UTF-8 never contains this byte, so the keys of different aggregates never
/// interleave.
const AGGREGATE_END: u8 = 0xff;

/// First byte of the key of an id that is a canonical UUID, which is stored as its 16 bytes.
const UUID_ID: u8 = 1;

/// First byte of the key of any other id, which is stored as text.
const TEXT_ID: u8 = 2;

/// Key of [`Table::Meta`](crate::Table::Meta) for how far the index reaches, a [`Mark`](crate::format::mark::Mark).
pub(crate) const META_MARK: &[u8] = b"mark";

/// Smaller than every key of the index tables.
pub(crate) const FIRST_KEY: &[u8] = &[0];

/// Greater than every key of the index tables: ids begin with 1 or 2, aggregates with UTF-8.
pub(crate) const LAST_KEY: &[u8] = &[AGGREGATE_END];

/// The version as the value of an id.
pub(crate) fn version_bytes(version: u64) -> [u8; 8] {
    version.to_be_bytes()
}

/// Reads what [`version_bytes`] wrote; `None` if it is damaged.
pub(crate) fn read_version(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// The most events in one entry of an aggregate.
pub(crate) const MOST_VERSIONS: usize = 128;

/// Writes the value of an aggregate's entry: its versions, in ascending order, each as the difference from the previous
/// one, seven bits per byte.
pub(crate) fn write_versions(value: &mut Vec<u8>, versions: impl Iterator<Item = u64>) {
    value.clear();
    let mut before = 0;
    for version in versions {
        let mut distance = version - before;
        while distance >= 0x80 {
            value.push(distance as u8 | 0x80);
            distance >>= 7;
        }
        value.push(distance as u8);
        before = version;
    }
}

/// Reads what [`write_versions`] wrote and appends it to `versions`. Returns false if it is damaged.
pub(crate) fn read_versions(value: &[u8], versions: &mut Vec<u64>) -> bool {
    let (mut before, mut distance, mut shift) = (0u64, 0u64, 0);
    for &byte in value {
        let bits = u64::from(byte & 0x7f);
        if shift > 63 || (bits << shift) >> shift != bits {
            return false;
        }
        distance |= bits << shift;
        if byte & 0x80 != 0 {
            shift += 7;
            continue;
        }
        let Some(version) = before.checked_add(distance).filter(|_| distance > 0) else { return false };
        versions.push(version);
        (before, distance, shift) = (version, 0, 0);
    }
    shift == 0 && !value.is_empty()
}

/// Writes the key of an event id into `key`.
///
/// Only the canonical text of a UUID (lower case, with hyphens) is stored as 16 bytes: any other spelling would not be
/// restored exactly, and is another id.
pub(crate) fn write_id(key: &mut Vec<u8>, id: &str) {
    key.clear();
    match canonical_uuid(id) {
        Some(uuid) => {
            key.push(UUID_ID);
            key.extend_from_slice(uuid.as_bytes());
        }
        None => {
            key.push(TEXT_ID);
            key.extend_from_slice(id.as_bytes());
        }
    }
}

/// The number of kinds of keys in the id index.
pub(crate) const ID_KINDS: usize = 2;

/// The kind of a key of the id index. Keys of a kind have the same first byte.
pub(crate) fn id_kind(key: &[u8]) -> usize {
    usize::from(key.first() == Some(&TEXT_ID))
}

/// The first byte of the keys of each kind.
pub(crate) const ID_KIND_BYTES: [u8; ID_KINDS] = [UUID_ID, TEXT_ID];

fn canonical_uuid(id: &str) -> Option<Uuid> {
    if id.len() != uuid::fmt::Hyphenated::LENGTH {
        return None;
    }
    let uuid = Uuid::try_parse(id).ok()?;
    let mut canonical = Uuid::encode_buffer();
    (uuid.hyphenated().encode_lower(&mut canonical) == id).then_some(uuid)
}

/// Writes the key of an aggregate's entry into `key`. It has the newest revision in the entry.
pub(crate) fn write_aggregate(key: &mut Vec<u8>, aggregate_id: &str, revision: u64) {
    key.clear();
    key.extend_from_slice(aggregate_id.as_bytes());
    end_aggregate(key);
    key.extend_from_slice(&revision.to_be_bytes());
}

/// Terminates an aggregate id in a key.
pub(crate) fn end_aggregate(id: &mut Vec<u8>) {
    id.push(AGGREGATE_END);
}

/// Reads the revision at the end of an aggregate's key; `None` if it is damaged.
pub(crate) fn read_revision(key: &[u8]) -> Option<u64> {
    key.last_chunk().copied().map(u64::from_be_bytes)
}

/// Reads what [`write_aggregate`] wrote; `None` if it is damaged.
pub(crate) fn read_aggregate(key: &[u8]) -> Option<(&str, u64)> {
    let (aggregate, revision) = key.split_last_chunk()?;
    let (&AGGREGATE_END, id) = aggregate.split_last()? else { return None };
    Some((std::str::from_utf8(id).ok()?, u64::from_be_bytes(*revision)))
}

/// Writes a key into `behind` that is greater than this key and all others of its aggregate, and smaller than those of
/// the next aggregate.
pub(crate) fn write_behind_aggregate(behind: &mut Vec<u8>, key: &[u8]) {
    behind.clear();
    let id = key.split(|&byte| byte == AGGREGATE_END).next().unwrap_or(key);
    behind.extend_from_slice(id);
    // Longer than the key, even if that is damaged: a walk from one aggregate to the next must always advance.
    let longest = key.len().max(id.len() + 1 + size_of::<u64>());
    behind.resize(longest + 1, AGGREGATE_END);
}

/// Writes into `last` an upper bound of the keys of all aggregates whose ids begin with `start`. All other greater keys
/// are above it.
///
/// The keys of an aggregate come after those of all aggregates whose ids extend its own: `ab` comes before `a`.
pub(crate) fn write_last_beginning_with(last: &mut Vec<u8>, start: &[u8]) {
    last.clear();
    last.extend_from_slice(start);
    last.resize(start.len() + 1 + size_of::<u64>(), AGGREGATE_END);
}

/// Reads what [`write_id`] wrote; `None` if it is damaged.
pub(crate) fn read_id(key: &[u8]) -> Option<String> {
    match key.split_first()? {
        (&UUID_ID, uuid) => Some(Uuid::from_slice(uuid).ok()?.hyphenated().to_string()),
        // A canonical UUID as text is not a valid key: such an id has the other kind of key.
        (&TEXT_ID, text) => std::str::from_utf8(text).ok().filter(|id| canonical_uuid(id).is_none()).map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_key(id: &str) -> Vec<u8> {
        let mut key = Vec::new();
        write_id(&mut key, id);
        key
    }

    fn aggregate_key(id: &str, revision: u64) -> Vec<u8> {
        let mut key = Vec::new();
        write_aggregate(&mut key, id, revision);
        key
    }

    #[test]
    fn keys_are_these_bytes() {
        assert_eq!(version_bytes(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        let mut value = Vec::new();
        write_versions(&mut value, [1, 2, 300].into_iter());
        assert_eq!(value, [1, 1, 0xaa, 2]);
        assert_eq!(id_key("evt-1"), b"\x02evt-1");
        assert_eq!(
            id_key("0190a2b4-0000-7000-8000-0000000000ff"),
            b"\x01\x01\x90\xa2\xb4\x00\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\xff"
        );
        assert_eq!(aggregate_key("a\0b", 3), b"a\0b\xff\x00\x00\x00\x00\x00\x00\x00\x03");
    }

    #[test]
    fn versions_are_read_as_they_were_written_and_damage_is_told() {
        let (mut value, mut read) = (Vec::new(), Vec::new());
        for versions in [vec![1], vec![u64::MAX], vec![7, 8, 9, 1000, 1 << 40, u64::MAX]] {
            write_versions(&mut value, versions.iter().copied());
            read.clear();
            assert!(read_versions(&value, &mut read));
            assert_eq!(read, versions);
        }
        let longest: Vec<u64> = (1..=MOST_VERSIONS as u64).map(|nth| nth << 50).collect();
        write_versions(&mut value, longest.into_iter());
        assert!(value.len() <= 2048, "the longest value fits every engine");
        for damaged in [
            &[][..],
            &[0],
            &[1, 0],
            &[0x80],
            &[1, 0x81],
            &[0xff; 11],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ] {
            assert!(!read_versions(damaged, &mut Vec::new()), "{damaged:?}");
        }
    }

    #[test]
    fn only_the_canonical_spelling_is_a_uuid() {
        let canonical = "0190a2b4-0000-7000-8000-00000000abcd";
        assert_eq!(id_key(canonical).len(), 17);
        for other in [
            "0190A2B4-0000-7000-8000-00000000ABCD",
            "0190a2b4000070008000000000000abcd",
            "{0190a2b4-0000-7000-8000-00000000abcd}",
            "urn:uuid:0190a2b4-0000-7000-8000-00000000abcd",
            "0190a2b4-0000-7000-8000-00000000abcg",
        ] {
            assert_eq!(id_key(other)[0], TEXT_ID, "{other}");
        }
        let sixteen_bytes = std::str::from_utf8(&[7; 16]).expect("ascii");
        assert_ne!(id_key(sixteen_bytes), id_key("07070707-0707-0707-0707-070707070707"));
    }

    #[test]
    fn aggregates_never_interleave() {
        for (one, other) in [("a", "ab"), ("a", "a\0"), ("a", "a\u{10ffff}"), ("a", "é")] {
            let mut keys: Vec<_> = (1..4).flat_map(|n| [aggregate_key(one, n), aggregate_key(other, n)]).collect();
            keys.sort();
            let changes = keys.windows(2).filter(|pair| pair[0].len() != pair[1].len()).count();
            assert_eq!(changes, 1, "{one:?} {other:?}");
        }
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        for id in ["0190a2b4-0000-7000-8000-00000000abcd", "0190A2B4-0000-7000-8000-00000000ABCD", "é"] {
            assert_eq!(read_id(&id_key(id)).as_deref(), Some(id));
        }
        assert_eq!(read_aggregate(&aggregate_key("a\0b", 3)), Some(("a\0b", 3)));
        for damaged in [&b""[..], b"\x03x", b"\x01short", b"\x02\xff"] {
            assert_eq!(read_id(damaged), None);
            assert_eq!(read_aggregate(damaged), None);
        }
        assert_eq!(read_id(b"\x020190a2b4-0000-7000-8000-00000000abcd"), None, "no id has this key");
    }

    #[test]
    fn behind_an_aggregate_comes_the_next_one() {
        let mut behind = Vec::new();
        write_behind_aggregate(&mut behind, &aggregate_key("a", 1));
        assert!(behind > aggregate_key("a", u64::MAX));
        assert!(behind > aggregate_key("a\u{10ffff}", u64::MAX), "one that sorts before `a` with its end");
        assert!(behind < aggregate_key("b", 0));
        for damaged in [[b"a".as_slice(), &[AGGREGATE_END; 12]].concat(), b"a".to_vec(), vec![AGGREGATE_END; 12]] {
            write_behind_aggregate(&mut behind, &damaged);
            assert!(behind > damaged);
        }
        assert!(FIRST_KEY < aggregate_key("\0", 0).as_slice() && LAST_KEY > aggregate_key("\u{10ffff}", 0).as_slice());
    }

    #[test]
    fn what_begins_alike_lies_together() {
        let mut last = Vec::new();
        for (start, id, is_in) in [
            ("a", "a", true),
            ("a", "ab", true),
            ("a", "a\u{10ffff}", true),
            ("ab", "a", false),
            ("a", "b", false),
            ("", "\u{10ffff}", true),
        ] {
            write_last_beginning_with(&mut last, start.as_bytes());
            for revision in [1, u64::MAX] {
                let key = aggregate_key(id, revision);
                assert_eq!(key.as_slice() >= start.as_bytes() && key <= last, is_in, "{id:?} begins with {start:?}");
            }
        }
        assert!(aggregate_key("ab", u64::MAX) < aggregate_key("a", 0));
    }

    #[test]
    fn the_longest_keys_fit_every_engine() {
        use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, MAX_ID_LEN};
        assert!(id_key(&"x".repeat(MAX_ID_LEN)).len() <= 489);
        assert!(aggregate_key(&"x".repeat(MAX_AGGREGATE_ID_LEN), u64::MAX).len() <= 489);
        let mut last = Vec::new();
        write_last_beginning_with(&mut last, &[b'x'; MAX_AGGREGATE_ID_LEN]);
        assert!(last.len() <= 489);
    }
}

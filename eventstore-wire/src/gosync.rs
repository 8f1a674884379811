//! The JSON of Go Sync Kit, and which texts its programs cannot tell apart.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use eventstore_api::{Error, Event, Version};
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::AtMost;

/// The most events in one body.
const MOST_SENT: usize = 100_000;

/// Go reads JSON that is nested up to 10,000 deep. An event's data are inside up to four levels.
const DEEPEST: usize = 10_000 - 4;

/// An event as it was sent.
#[derive(Debug)]
pub struct Sent {
    /// Its number in the sender's database, if it has one.
    pub number: Option<u64>,
    /// The event to store, or why it cannot be stored.
    pub event: Result<Event, Error>,
    /// Its id, as it was sent.
    pub id: String,
}

/// Text as Go reads it: invalid UTF-8 is replaced.
fn text(body: &[u8]) -> Result<Cow<'_, str>, String> {
    if body.trim_ascii().is_empty() {
        return Err("the body is empty; send JSON".to_owned());
    }
    Ok(String::from_utf8_lossy(body))
}

/// Reads the events of a push, or of the answer to a pull.
///
/// # Errors
///
/// Why the body is invalid.
pub fn read_events(body: &[u8]) -> Result<Vec<Sent>, String> {
    events(&text(body)?)
}

/// Reads the events of the answer to a [request for a page](page_request).
///
/// # Errors
///
/// Why the body is invalid.
pub fn read_page(body: &[u8]) -> Result<Vec<Sent>, String> {
    let text = text(body)?;
    let page: &RawValue = serde_json::from_str(&text).map_err(|error| format!("the body is not JSON: {error}"))?;
    let [all] = members(page, ["events"])?;
    all.map_or_else(|| Err("it has no events".to_owned()), |all| events(all.get()))
}

fn events(json: &str) -> Result<Vec<Sent>, String> {
    let not_events = |error| format!("the body is not an array of events: {error}");
    let all: Option<AtMost<&RawValue, MOST_SENT>> = serde_json::from_str(json).map_err(not_events)?;
    let all = all.map(|all| all.0).unwrap_or_default();
    let read = |(index, element): (usize, &&RawValue)| {
        sent(element).map_err(|reason| format!("event {} of the body: {reason}", index + 1))
    };
    all.iter().enumerate().map(read).collect()
}

fn sent(element: &RawValue) -> Result<Sent, String> {
    let [event, version] = members(element, ["event", "version"])?;
    let version: String = value("version", version)?;
    let [id, event_type, aggregate_id, data, metadata] = match event {
        Some(event) => members(event, ["id", "type", "aggregate_id", "data", "metadata"])?,
        None => [None; 5],
    };
    let id: String = value("id", id)?;
    let event_type: String = value("type", event_type)?;
    let aggregate_id: String = value("aggregate_id", aggregate_id)?;
    let data = data.map_or("null", RawValue::get);
    // An event without metadata is stored with `{}`, which the kit represents as `null`.
    let metadata = match metadata.map_or("null", RawValue::get) {
        "null" => "{}",
        "{}" => "{ }",
        object if object.starts_with('{') => object,
        _ => return Err("metadata is not an object".to_owned()),
    };
    for (name, json) in [("data", data), ("metadata", metadata)] {
        if !is_readable(json) {
            return Err(format!("{name} is nested deeper than {DEEPEST}, or has a number that no float64 holds"));
        }
    }
    let event = Event::builder(stored_text(&event_type), stored_text(&aggregate_id))
        .id(id.as_str())
        .data(data.as_bytes().to_vec())
        .metadata_json(metadata)
        .build();
    let number = version.parse().ok().filter(|number| *number > 0);
    Ok(Sent { number, event, id })
}

/// The members of an object with these names, ignoring case; of several, the last one. `null` has none.
fn members<'a, const N: usize>(
    object: &'a RawValue,
    names: [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], String> {
    struct Members<const N: usize>([&'static str; N]);

    impl<'de, const N: usize> Visitor<'de> for Members<N> {
        type Value = [Option<&'de RawValue>; N];

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "an object with {}", self.0.join(", "))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok([None; N])
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = [None; N];
            while let Some(key) = map.next_key::<String>()? {
                match self.0.iter().position(|name| name.eq_ignore_ascii_case(&key)) {
                    Some(index) => found[index] = Some(map.next_value()?),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(found)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(object.get());
    deserializer.deserialize_any(Members(names)).map_err(|error| error.to_string())
}

/// A member's value; the default if it is absent or `null`.
fn value<T: DeserializeOwned + Default>(name: &str, member: Option<&RawValue>) -> Result<T, String> {
    let Some(member) = member else { return Ok(T::default()) };
    let value: Option<T> = serde_json::from_str(member.get()).map_err(|error| format!("{name}: {error}"))?;
    Ok(value.unwrap_or_default())
}

/// Stands for an empty text, which no stored event may have.
const NONE: &str = "(none)";

fn is_none(text: &str) -> bool {
    text.as_bytes().chunks(NONE.len()).all(|chunk| chunk == NONE.as_bytes())
}

/// A type or an aggregate id as it is stored: unchanged, except that the empty text becomes `(none)`, and texts that
/// would be mistaken for that are escaped.
fn stored_text(text: &str) -> Cow<'_, str> {
    if is_none(text) { format!("{text}{NONE}").into() } else { text.into() }
}

/// The original of a stored text.
fn told_text(stored: &str) -> &str {
    if is_none(stored) { stored.strip_prefix(NONE).unwrap_or(stored) } else { stored }
}

/// Whether Go reads this JSON: its nesting is not too deep, and a float64 can hold its numbers.
fn is_readable(json: &str) -> bool {
    has_only(json, |number| {
        let may_be_large = number.len() > 300 || number.contains(['e', 'E']);
        !may_be_large || number.parse::<f64>().is_ok_and(f64::is_finite)
    })
}

/// Whether the nesting of this JSON is within Go's limit, and all its numbers satisfy the condition.
fn has_only(json: &str, is_good: impl Fn(&str) -> bool) -> bool {
    let mut depth = 0;
    let mut rest = json.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        match byte {
            b'"' => rest = behind_string(rest),
            b'[' | b'{' => {
                depth += 1;
                if depth > DEEPEST {
                    return false;
                }
            }
            b']' | b'}' => depth -= 1,
            b'-' | b'0'..=b'9' => {
                let len = number_len(rest);
                let number = &json[json.len() - rest.len() - 1..][..len + 1];
                rest = &rest[len..];
                if !is_good(number) {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

/// The bytes after the string whose opening quote was read.
fn behind_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        let len = if rest[at] == b'"' { 1 } else { 2 };
        rest = rest.get(at + len..).unwrap_or_default();
        if len == 1 {
            break;
        }
    }
    rest
}

/// How many of the next bytes belong to the current number.
fn number_len(rest: &[u8]) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
    rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len())
}

/// Data or metadata as sent to the kit: JSON that Go can read is sent unchanged, everything else as an object with Base64.
fn told_json(stored: &[u8]) -> Cow<'_, [u8]> {
    if stored.is_empty() || stored == b"{}" {
        return Cow::Borrowed(if stored.is_empty() { b"null" } else { stored });
    }
    let json = std::str::from_utf8(stored).ok();
    match json.filter(|json| serde_json::from_str::<&RawValue>(json).is_ok() && is_readable(json)) {
        Some(json) => Cow::Borrowed(json.as_bytes()),
        None => Cow::Owned(format!("{{\"data_base64\":\"{}\"}}", BASE64.encode(stored)).into_bytes()),
    }
}

/// Metadata as sent to the kit: `null` if the event has none.
fn told_metadata(metadata: &str) -> Cow<'_, [u8]> {
    if metadata == "{}" { Cow::Borrowed(b"null") } else { told_json(metadata.as_bytes()) }
}

/// Writes an event with its version.
pub fn write_event(out: &mut Vec<u8>, event: &Event, version: Version) {
    out.extend_from_slice(b"{\"event\":{");
    for (name, text) in
        [("id", event.id()), ("type", told_text(event.event_type())), ("aggregate_id", told_text(event.aggregate_id()))]
    {
        write_name(out, name);
        // Writing a text cannot fail.
        let _ = serde_json::to_writer(&mut *out, text);
        out.push(b',');
    }
    write_name(out, "data");
    out.extend_from_slice(&told_json(event.data()));
    out.push(b',');
    write_name(out, "metadata");
    out.extend_from_slice(&told_metadata(event.metadata()));
    out.extend_from_slice(format!("}},\"version\":\"{version}\"}}").as_bytes());
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// A cursor in the kit's form.
pub fn cursor(version: Version) -> String {
    format!("{{\"kind\":\"integer\",\"data\":{version}}}")
}

/// Checks that the kit's server returns this event with the same content, apart from the formatting of JSON: the order
/// of keys, white space, escapes, and `null` for empty data.
///
/// # Errors
///
/// `InvalidEvent`, with what it would alter.
pub fn check_survives(event: &Event) -> Result<(), Error> {
    let altered = |field, reason: &str| Err(Error::invalid_event(field, format!("a server of Go Sync Kit {reason}")));
    let json = |bytes| std::str::from_utf8(bytes).ok().filter(|json| serde_json::from_str::<&RawValue>(json).is_ok());
    for (field, bytes) in [("data", event.data()), ("metadata", event.metadata().as_bytes())] {
        if bytes.is_empty() {
            continue;
        }
        let Some(json) = json(bytes) else {
            return altered(field, "keeps only JSON; write other data as a JSON string");
        };
        if !is_readable(json) {
            return altered(field, "does not read JSON that is nested so deeply, or numbers that are so large");
        }
        if !has_only(json, is_exact) {
            return altered(field, "keeps whole numbers exactly up to 2^53 only; write larger ones as strings");
        }
    }
    Ok(())
}

/// Whether a float64 holds an integer exactly. Fractions are not expected to be exact.
fn is_exact(number: &str) -> bool {
    let is_whole = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    !is_whole || number == "-0" || number.parse::<f64>().is_ok_and(|float| format!("{float:.0}") == number)
}

/// A request for a page: at most this many events after a version.
#[must_use]
pub fn page_request(since: Version, limit: usize) -> String {
    format!("{{\"since\":{},\"limit\":{limit}}}", cursor(since))
}

/// The version and the number of events in a request for a page.
pub fn read_page_request(body: &[u8]) -> Result<(Version, usize), String> {
    const LIMIT: usize = 200;
    const MOST: i64 = 1000;
    let text = text(body)?;
    let request: &RawValue = serde_json::from_str(&text).map_err(|error| format!("the body is not JSON: {error}"))?;
    let [since, limit] = members(request, ["since", "limit"])?;
    let limit: i64 = value("limit", limit)?;
    let since = match since.filter(|since| since.get() != "null") {
        Some(since) => read_cursor(since)?,
        None => Version::ZERO,
    };
    let limit = usize::try_from(limit).ok().filter(|limit| (1..=MOST as usize).contains(limit));
    Ok((since, limit.unwrap_or(LIMIT)))
}

/// Reads a cursor: `{"kind":"integer","data":7}`.
pub fn read_cursor(cursor: &RawValue) -> Result<Version, String> {
    let bad = |reason: String| format!("bad cursor: {reason}");
    let [kind, data] = members(cursor, ["kind", "data"]).map_err(bad)?;
    let kind: String = value("kind", kind).map_err(bad)?;
    match kind.as_str() {
        "integer" => {
            let data = data.ok_or_else(|| bad("its data are missing".to_owned()))?;
            let version: u64 = value("data", Some(data)).map_err(bad)?;
            Ok(Version::new(version))
        }
        // The beginning, in any kind of cursor.
        "vector" if data.is_some_and(|data| data.get() == "{}") => Ok(Version::ZERO),
        "vector" => Err(bad("this store has cursors of the kind \"integer\", not \"vector\"".to_owned())),
        other => Err(bad(format!("{other:?} is no kind of cursor; this store has \"integer\""))),
    }
}

/// The version in a replica's parameter `since`.
pub fn read_version(text: &str) -> Result<Version, String> {
    let number: i64 = match text {
        "" => 0,
        text => text.parse().unwrap_or(-1),
    };
    let number = u64::try_from(number)
        .map_err(|_| format!("invalid 'since' version: {text:?} is no number of 0 to {}", i64::MAX))?;
    Ok(Version::new(number))
}

/// Whether a client of the kit would consider both the same event: it sorts the keys of objects, converts numbers to
/// float64, and rewrites all JSON.
pub fn is_same(stored: &Event, pushed: &Event) -> bool {
    let same_json = |a: &[u8], b: &[u8]| a == b || canonical(a) == canonical(b);
    // In Go, an empty map and a missing one are easily confused.
    let metadata = |event: &Event| match told_metadata(event.metadata()).into_owned() {
        null if null == b"null" => b"{}".to_vec(),
        other => other,
    };
    stored == pushed
        || (stored.id() == pushed.id()
            && stored.event_type() == pushed.event_type()
            && stored.aggregate_id() == pushed.aggregate_id()
            && same_json(&told_json(stored.data()), &told_json(pushed.data()))
            && same_json(&metadata(stored), &metadata(pushed)))
}

/// An array or object while it is read.
enum Open {
    Array(Sha256),
    Object { members: Vec<(String, [u8; 32])>, key: Option<String> },
}

/// A hash of this JSON as Go reads it. The JSON must be valid. It does not recurse and copies nothing twice, however
/// deep the nesting.
fn canonical(json: &[u8]) -> [u8; 32] {
    let hash = |kind: u8, content: &[u8]| -> [u8; 32] {
        Sha256::new().chain_update([kind]).chain_update(content).finalize().into()
    };
    let mut open: Vec<Open> = Vec::new();
    let mut rest = json;
    while let Some((&byte, behind)) = rest.split_first() {
        let here = rest;
        rest = behind;
        let read: [u8; 32] = match byte {
            b'[' => {
                open.push(Open::Array(Sha256::new().chain_update(b"a")));
                continue;
            }
            b'{' => {
                open.push(Open::Object { members: Vec::new(), key: None });
                continue;
            }
            b']' | b'}' => match open.pop() {
                Some(Open::Array(hash)) => hash.finalize().into(),
                Some(Open::Object { members, .. }) => hash_object(members),
                None => continue,
            },
            b'"' => {
                rest = behind_string(behind);
                let text = decode_string(&behind[..(behind.len() - rest.len()).saturating_sub(1)]);
                match open.last_mut() {
                    Some(Open::Object { key: key @ None, .. }) => {
                        *key = Some(text);
                        continue;
                    }
                    _ => hash(b's', text.as_bytes()),
                }
            }
            b'-' | b'0'..=b'9' => {
                let len = number_len(behind);
                rest = &behind[len..];
                let number = std::str::from_utf8(&here[..len + 1]).ok().and_then(|text| text.parse::<f64>().ok());
                // Adding 0.0 turns -0.0 into 0.0.
                hash(b'n', &(number.unwrap_or_default() + 0.0).to_bits().to_be_bytes())
            }
            b't' | b'f' | b'n' => {
                rest = &behind[behind.iter().take_while(|byte| byte.is_ascii_alphabetic()).count()..];
                hash(b'l', &[byte])
            }
            _ => continue,
        };
        match open.last_mut() {
            Some(Open::Array(all)) => all.update(read),
            Some(Open::Object { members, key }) => members.push((key.take().unwrap_or_default(), read)),
            None => return read,
        }
    }
    hash(b'?', json)
}

/// Sorts by key; of several members with the same key, the last one counts.
fn hash_object(mut members: Vec<(String, [u8; 32])>) -> [u8; 32] {
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut hash = Sha256::new().chain_update(b"o");
    let mut members = members.into_iter().peekable();
    while let Some((key, value)) = members.next() {
        if members.peek().is_some_and(|(next, _)| *next == key) {
            continue;
        }
        hash.update((key.len() as u64).to_be_bytes());
        hash.update(&key);
        hash.update(value);
    }
    hash.finalize().into()
}

/// The text between the quotes. Unpaired surrogates become U+FFFD, as in Go.
fn decode_string(json: &[u8]) -> String {
    let mut units: Vec<u16> = Vec::new();
    let mut text = String::new();
    let mut rest = json;
    let unit = |rest: &[u8]| {
        let digits = rest.get(..4).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or(0xFFFD)
    };
    loop {
        // Characters escaped as surrogate pairs: the halves must be adjacent.
        while let Some(behind) = rest.strip_prefix(b"\\u") {
            units.push(unit(behind));
            rest = behind.get(4..).unwrap_or_default();
        }
        text.extend(char::decode_utf16(units.drain(..)).map(|read| read.unwrap_or(char::REPLACEMENT_CHARACTER)));
        let Some((&byte, behind)) = rest.split_first() else { return text };
        if byte == b'\\' {
            let (&escaped, behind) = behind.split_first().unwrap_or((&b'\\', &[]));
            text.push(match escaped {
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                other => char::from(other),
            });
            rest = behind;
            continue;
        }
        let len = rest.iter().position(|byte| *byte == b'\\').unwrap_or(rest.len());
        text.push_str(&String::from_utf8_lossy(&rest[..len]));
        rest = &rest[len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_type: &str, data: &str, metadata: &str) -> Event {
        let builder = Event::builder(event_type, "a").id("e").data(data.to_owned());
        builder.metadata_json(metadata).build().expect("valid")
    }

    fn same(a: &str, b: &str) -> bool {
        let is_same = is_same(&event("T", a, "{}"), &event("T", b, "{}"));
        assert_eq!(is_same, is_same_reversed(a, b), "{a} {b}");
        is_same
    }

    fn is_same_reversed(a: &str, b: &str) -> bool {
        is_same(&event("T", b, "{}"), &event("T", a, "{}"))
    }

    #[test]
    fn what_go_writes_anew_is_the_same() {
        for (a, b) in [
            (r#"{"b":1, "a":[ 1,2 ]}"#, r#"{"a":[1,2],"b":1}"#),
            ("9007199254740993", "9007199254740992"),
            ("18446744073709551615", "18446744073709552000"),
            ("1e3", "1000"),
            ("-0.0", "0"),
            ("0.10", "0.1"),
            (r#""\u003cA\u003e \u0026""#, r#""<A> &""#),
            (r#""\ud83d\ude00""#, "\"\u{1F600}\""),
            (r#""\ud800x\udc00\ud800""#, "\"\u{FFFD}x\u{FFFD}\u{FFFD}\""),
            (r#""\/\b\f\n\r\t\\\"""#, r#""/\u0008\u000c\u000a\u000d\u0009\u005c\u0022""#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"\u0061":null}"#, r#"{"a":null}"#),
            ("", "null"),
            ("\u{0}\u{1}", r#"{"data_base64":"AAE="}"#),
            ("1e400", r#"{"data_base64":"MWU0MDA="}"#),
            (" [ ]\n", "[]"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        let deep = |open: &str, close: &str, n| format!("{}1{}", open.repeat(n), close.repeat(n));
        assert!(same(&deep("[", "]", 9000), &deep("[ ", " ]", 9000)));
        assert!(same(&deep(r#"{"b":0,"a":"#, "}", 9000), &deep(r#"{"a":0,"b":0,"a":"#, "}", 9000)));
    }

    #[test]
    fn what_go_tells_apart_is_not_the_same() {
        let all = [
            "null",
            "true",
            "false",
            "0",
            "1",
            "\"\"",
            "\"1\"",
            "\"null\"",
            "[]",
            "[[]]",
            "[null]",
            "[1]",
            "[1,2]",
            "[2,1]",
            "[[1],2]",
            "[[1,2]]",
            "{}",
            "{\"a\":1}",
            "{\"a\":\"1\"}",
            "{\"b\":1}",
            "{\"a\":1,\"b\":1}",
            "{\"a\":{\"b\":1}}",
            "{\"\":1}",
            "[{}]",
            "\"\\u0000\"",
            "\"\u{FFFD}\"",
            "1e-300",
            "not JSON",
            "[1",
            "{\"a\":[]}",
            "\"a\\\\\"",
            "\"a\"",
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(same(a, b), i == j, "{a} {b}");
            }
        }
        assert!(!is_same(&event("T", "1", "{}"), &event("U", "1", "{}")));
        assert!(!is_same(&event("T", "1", "{}"), &event("T", "1", r#"{"a":1}"#)));
        assert!(is_same(&event("T", "1", "{}"), &event("T", "1", "{ }")));
    }

    #[test]
    fn texts_without_characters_come_back() {
        for text in ["", "(none)", "(none)(none)", "(none) ", "T", "(non", "(none)(non"] {
            let stored = stored_text(text);
            assert!(!stored.is_empty());
            assert_eq!(told_text(&stored), text);
        }
        for stored in ["(none)", "(none)(none)", "T", "x(none)"] {
            assert_eq!(stored_text(told_text(stored)), stored);
        }
    }

    #[test]
    fn json_that_go_does_not_read_is_told_apart() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        for json in ["1", "-0.0", "1e308", "1e-999", r#""1e400 [[[ \" \\""#, &nested(DEEPEST), r#"{"e":1}"#] {
            assert!(is_readable(json), "{json}");
            assert_eq!(&*told_json(json.as_bytes()), json.as_bytes());
        }
        for json in ["1e400", "[-1E+309]", &"9".repeat(400), &nested(DEEPEST + 1), r#"{"a":"\\","b":1e400}"#] {
            assert!(!is_readable(json), "{json}");
            assert!(told_json(json.as_bytes()).starts_with(b"{\"data_base64\":"));
        }
    }
}

//! The JSON form of events, one line each, for reading and writing.
//!
//! Data and metadata are copied as text, not parsed into values: numbers keep their digits, objects the order of their
//! keys.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use eventstore::backend::limits::RECORDED_AT_END;
use eventstore::backend::{AggregateInfo, Error, Event, RecordedEvent, Stored};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::times;

/// The fields of a line. Unknown fields are refused, because they would be lost.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    id: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    aggregate_id: Option<String>,
    #[serde(default, borrow, deserialize_with = "null_is_a_value")]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    metadata_base64: Option<String>,
    /// The three fields that `load` adds.
    #[serde(borrow)]
    version: Option<&'a RawValue>,
    #[serde(borrow)]
    revision: Option<&'a RawValue>,
    #[serde(borrow)]
    recorded_at: Option<&'a RawValue>,
}

/// An event, and the position and recording time in its line. These are parsed only on request, so otherwise any value
/// is accepted.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) event: Event,
    version: Option<&'a RawValue>,
    revision: Option<&'a RawValue>,
    recorded_at: Option<&'a RawValue>,
}

impl Entry<'_> {
    pub(crate) fn version(&self) -> Result<Option<u64>, Failure> {
        number("version", self.version)
    }

    pub(crate) fn revision(&self) -> Result<Option<u64>, Failure> {
        number("revision", self.revision)
    }

    pub(crate) fn has_time(&self) -> bool {
        self.recorded_at.is_some()
    }

    pub(crate) fn recorded_at(&self) -> Result<Option<SystemTime>, Failure> {
        let Some(json) = self.recorded_at else { return Ok(None) };
        let text: String = serde_json::from_str(json.get())
            .map_err(|_| Error::invalid_event("recorded_at", format!("{} is not a text with a time", json.get())))?;
        time(&text).map(Some)
    }
}

fn number(field: &'static str, json: Option<&RawValue>) -> Result<Option<u64>, Failure> {
    let Some(json) = json else { return Ok(None) };
    let number = serde_json::from_str(json.get())
        .map_err(|_| Failure::malformed(format!("the {field} {} is not a whole number", json.get())))?;
    Ok(Some(number))
}

/// Parses a recording time.
pub(crate) fn time(text: &str) -> Result<SystemTime, Failure> {
    Ok(times::parse(text).map_err(|reason| Error::invalid_event("recorded_at", reason))?)
}

/// `"data":null` is data, the JSON `null`; only a missing field means no data.
fn null_is_a_value<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Parses an event from one line.
pub(crate) fn parse(line: &[u8]) -> Result<Entry<'_>, Failure> {
    let text = object(line)?;
    let line: Line<'_> = serde_json::from_str(text).map_err(|error| Failure::malformed(describe(&error)))?;

    let id = required("id", line.id)?;
    let event = Event::builder(required("type", line.event_type)?, required("aggregate_id", line.aggregate_id)?).id(id);
    let event = match (line.data, line.data_base64) {
        (Some(_), Some(_)) => return Err(both("data")),
        (Some(json), None) => event.data(json.get().as_bytes().to_vec()),
        (None, Some(base64)) => event.data(decode("data_base64", &base64)?),
        (None, None) => event,
    };
    let event = match (line.metadata, line.metadata_base64) {
        (Some(_), Some(_)) => return Err(both("metadata")),
        (Some(json), None) => event.metadata_json(json.get()),
        (None, Some(base64)) => {
            let bytes = decode("metadata_base64", &base64)?;
            event.metadata_json(
                String::from_utf8(bytes).map_err(|_| Failure::malformed("metadata_base64 is not UTF-8"))?,
            )
        }
        (None, None) => event,
    };
    Ok(Entry { event: event.build()?, version: line.version, revision: line.revision, recorded_at: line.recorded_at })
}

/// The text of a line that may be a JSON object: it begins like one.
pub(crate) fn object(line: &[u8]) -> Result<&str, Failure> {
    let text = std::str::from_utf8(line)
        .map_err(|error| Failure::malformed(format!("not UTF-8 from byte {} on", error.valid_up_to() + 1)))?;
    if text.starts_with('\u{feff}') {
        return Err(Failure::malformed("it begins with a byte order mark; remove it"));
    }
    // serde would also accept an array with the fields in order.
    if !text.trim_start().starts_with('{') {
        return Err(Failure::malformed("not a JSON object; write one event per line, as `load` prints them"));
    }
    Ok(text)
}

fn required(field: &'static str, value: Option<String>) -> Result<String, Failure> {
    Ok(value.ok_or_else(|| Error::invalid_event(field, "it is missing; every event needs one"))?)
}

fn both(field: &str) -> Failure {
    Failure::malformed(format!("both {field} and {field}_base64 are present; keep one"))
}

pub(crate) fn decode(field: &str, base64: &str) -> Result<Vec<u8>, Failure> {
    BASE64.decode(base64).map_err(|error| Failure::malformed(format!("{field} is not padded standard base64: {error}")))
}

/// The error without serde_json's own line number, which is 1 for every line.
pub(crate) fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => text,
    }
}

/// Writes an event on one line, without the line break.
pub(crate) fn write(out: &mut Vec<u8>, recorded: &RecordedEvent) -> io::Result<()> {
    write_fields(out, &recorded.event)?;
    write!(out, ",\"version\":{},\"revision\":{}", recorded.version, recorded.revision.get())?;
    write!(out, ",\"recorded_at\":\"{}\"}}", rfc3339(recorded.recorded_at))
}

/// Writes an event without a position, with its recording time if known, without the line break.
pub(crate) fn write_new(out: &mut Vec<u8>, event: &Event, recorded_at: Option<SystemTime>) -> io::Result<()> {
    write_fields(out, event)?;
    match recorded_at {
        Some(time) => write!(out, ",\"recorded_at\":\"{}\"}}", rfc3339(time)),
        None => out.write_all(b"}"),
    }
}

/// Writes an event of a replica, with its place if it is pending, or the place that it had while it was pending,
/// without the line break.
#[cfg(feature = "sync")]
pub(crate) fn write_entry(
    out: &mut Vec<u8>,
    event: &Event,
    recorded: Option<&RecordedEvent>,
    pending: Option<(&str, &dyn std::fmt::Display)>,
) -> io::Result<()> {
    match recorded {
        Some(recorded) => {
            write(out, recorded)?;
            out.pop();
        }
        None => write_fields(out, event)?,
    }
    if let Some((name, place)) = pending {
        write!(out, ",\"{name}\":\"{place}\"")?;
    }
    out.write_all(b"}")
}

/// The beginning of a line, up to the metadata.
fn write_fields(out: &mut Vec<u8>, event: &Event) -> io::Result<()> {
    out.extend_from_slice(b"{\"id\":");
    serde_json::to_writer(&mut *out, event.id())?;
    out.extend_from_slice(b",\"type\":");
    serde_json::to_writer(&mut *out, event.event_type())?;
    out.extend_from_slice(b",\"aggregate_id\":");
    serde_json::to_writer(&mut *out, event.aggregate_id())?;
    if !event.data().is_empty() {
        write_value(out, "data", event.data());
    }
    write_value(out, "metadata", event.metadata().as_bytes());
    Ok(())
}

/// Writes the position of an event on one line, without the line break.
pub(crate) fn write_place(out: &mut Vec<u8>, id: &str, stored: &Stored) -> io::Result<()> {
    out.extend_from_slice(b"{\"id\":");
    serde_json::to_writer(&mut *out, id)?;
    write!(out, ",\"version\":{},\"revision\":{}}}", stored.version, stored.revision.get())
}

/// Writes the revision and newest version of an aggregate on one line, without the line break.
pub(crate) fn write_aggregate(out: &mut Vec<u8>, aggregate: &AggregateInfo) -> io::Result<()> {
    let AggregateInfo { aggregate_id, revision, version, .. } = aggregate;
    out.extend_from_slice(b"{\"aggregate_id\":");
    serde_json::to_writer(&mut *out, aggregate_id)?;
    write!(out, ",\"revision\":{revision},\"version\":{version}}}")
}

/// A time in RFC 3339 with microseconds. Times outside the years 1970 to 9999 become the nearest end.
pub(crate) fn rfc3339(time: SystemTime) -> humantime::Rfc3339Timestamp {
    const LAST: Duration = RECORDED_AT_END.saturating_sub(Duration::from_micros(1));
    let time = time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST);
    humantime::format_rfc3339_micros(time)
}

fn write_value(out: &mut Vec<u8>, field: &str, value: &[u8]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(field.as_bytes());
    if fits_a_line(value) {
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value);
    } else {
        out.extend_from_slice(b"_base64\":\"");
        out.extend_from_slice(BASE64.encode(value).as_bytes());
        out.push(b'"');
    }
}

/// Whether these bytes survive being written into a line: JSON without line breaks between its tokens and without
/// surrounding white space.
fn fits_a_line(value: &[u8]) -> bool {
    let has_space_around = |text: &str| text.trim_matches([' ', '\t']).len() != text.len();
    !value.iter().any(|byte| matches!(byte, b'\n' | b'\r'))
        && std::str::from_utf8(value)
            .is_ok_and(|text| !has_space_around(text) && serde_json::from_str::<&RawValue>(text).is_ok())
}

#[cfg(test)]
mod tests {
    use eventstore::backend::{Revision, Version};

    use super::*;

    fn parsed(line: &str) -> Event {
        parse(line.as_bytes()).unwrap_or_else(|failure| panic!("{line}: {failure:?}")).event
    }

    fn refused(line: impl AsRef<[u8]>) -> String {
        let failure = parse(line.as_ref()).expect_err("refused");
        format!("{}: {}", failure.code(), failure.message())
    }

    fn written(event: &Event) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let mut out = Vec::new();
        write(&mut out, &RecordedEvent::new(Version::new(7), Revision::new(3), at, event.clone())).expect("in memory");
        String::from_utf8(out).expect("UTF-8")
    }

    const ADDED: &str = ",\"version\":7,\"revision\":3,\"recorded_at\":\"2023-11-14T22:13:20.000001Z\"}";

    #[test]
    fn json_passes_through_byte_for_byte() {
        for (data, metadata) in [
            (r#"{"z":1.500,"a":123456789012345678901234567890}"#, r#"{"b":1e400,"a":null}"#),
            (r#"{ "a" : [ 1 ,	2 ] , "a" : 3 }"#, "{}"),
            (r#""\ud800\u00e9\/é🦀""#, r#"{"k":"\u0000"}"#),
            ("null", "{}"),
            ("-0.0", "{ }"),
        ] {
            let line = format!(r#"{{"id":"i","type":"T","aggregate_id":"a","data":{data},"metadata":{metadata}"#);
            let event = parsed(&format!("{line}}}"));
            assert_eq!(event.data(), data.as_bytes());
            assert_eq!(event.metadata(), metadata);
            assert_eq!(written(&event), format!("{line}{ADDED}"));
        }
    }

    #[test]
    fn what_a_line_cannot_carry_travels_as_base64() {
        let valid = || Event::builder("T", "a").id("i");
        for data in [
            &b"text"[..],
            b"\xff",
            b"\"\xff\"",
            b"{\n}",
            b"{\r}",
            b" {}",
            b"{}\t",
            b"{} {}",
            b"{",
            b"1 ",
            b"\0",
            b"nul",
        ] {
            let event = valid().data(data.to_vec()).build().expect("valid");
            let line = written(&event);
            assert!(line.contains(r#""data_base64":""#) && !line.contains(r#""data":"#), "{line}");
            assert_eq!(parsed(&line), event);
        }
        for metadata in [" {}", "{}\n", "{\r\n\"a\":1}"] {
            let event = valid().metadata_json(metadata).build().expect("valid");
            let line = written(&event);
            assert!(line.contains(r#""metadata_base64":""#) && !line.contains('\n'), "{line}");
            assert_eq!(parsed(&line), event);
        }
    }

    #[test]
    fn texts_of_any_characters_come_back() {
        for text in [" ", "a b/ü\\\"", "🦀", "\0x", "line\nbreak\r", "\u{1b}\u{7f}\u{2028}"] {
            let event = Event::builder(text, text).id(text).build().expect("valid");
            let line = written(&event);
            assert_eq!(line.lines().count(), 1);
            assert_eq!(parsed(&line), event);
        }
    }

    #[test]
    fn what_is_absent_is_empty() {
        let event = parsed(r#" { "metadata" : null , "type":"T" , "aggregate_id":"a","id":"i"} "#);
        assert!(event.data().is_empty());
        assert_eq!(event.metadata(), "{}");
        assert_eq!(written(&event), format!(r#"{{"id":"i","type":"T","aggregate_id":"a","metadata":{{}}{ADDED}"#));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |more: &str| refused(format!(r#"{{"id":"i","type":"T","aggregate_id":"a",{more}}}"#));
        assert!(with(r#""extra":1"#).starts_with("malformed_input: unknown field `extra`"));
        assert!(with(r#""id":"j""#).starts_with("malformed_input: duplicate field `id`"));
        assert!(with(r#""data":1,"data_base64":"AA==""#).contains("both data and data_base64"));
        assert!(with(r#""data":null,"data_base64":"AA==""#).contains("both data and data_base64"));
        assert!(with(r#""metadata":{},"metadata_base64":"e30=""#).contains("both metadata and metadata_base64"));
        assert!(with(r#""data_base64":"A""#).starts_with("malformed_input: data_base64 is not padded standard base64"));
        assert!(with(r#""metadata_base64":"/w==""#).contains("not UTF-8"));
        assert!(with(r#""metadata":[]"#).starts_with("invalid_event: invalid metadata"));
        assert!(with(r#""data":{"a":01}"#).starts_with("malformed_input: "));
        assert!(refused(r#"{"id":"i","type":"T"}"#).starts_with("invalid_event: invalid aggregate_id: it is missing"));
        assert!(refused(r#"{"id":"","type":"T","aggregate_id":"a"}"#).starts_with("invalid_event: invalid id"));
        assert!(refused(r#"{"id":5,"type":"T","aggregate_id":"a"}"#).starts_with("malformed_input: invalid type"));
        assert!(refused(r#"["i","T","a"]"#).contains("not a JSON object"));
        assert!(refused(r#"{"id":"i"} {}"#).contains("trailing characters (column 12)"));
        assert!(refused(b"{\"id\":\"\xff\"}").contains("not UTF-8 from byte 8 on"));
    }

    #[test]
    fn places_and_times_are_looked_at_when_they_are_asked_for() {
        let with = |more: &str| format!(r#"{{"id":"i","type":"T","aggregate_id":"a"{more}}}"#);
        let line = with(&ADDED[..ADDED.len() - 1]);
        let entry = parse(line.as_bytes()).expect("valid");
        assert_eq!((entry.version().expect("a number"), entry.revision().expect("a number")), (Some(7), Some(3)));
        let time = entry.recorded_at().expect("a time").expect("there");
        assert_eq!(time, SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001));
        for nothing in ["", r#","version":null,"revision":null,"recorded_at":null"#] {
            let line = with(nothing);
            let entry = parse(line.as_bytes()).expect("valid");
            assert_eq!((entry.version().expect("none"), entry.revision().expect("none")), (None, None));
            assert!(!entry.has_time() && entry.recorded_at().expect("none").is_none());
        }
        let line = with(r#","version":1.5,"revision":"3","recorded_at":1700000000"#);
        let entry = parse(line.as_bytes()).expect("nobody has asked");
        assert!(entry.version().is_err() && entry.revision().is_err());
        let failure = entry.recorded_at().expect_err("a number");
        assert_eq!(failure.message(), "invalid recorded_at: 1700000000 is not a text with a time");
    }

    #[test]
    fn times_out_of_range_are_shown_as_the_nearest() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(rfc3339(before).to_string(), "1970-01-01T00:00:00.000000Z");
        let end = SystemTime::UNIX_EPOCH + RECORDED_AT_END;
        assert_eq!(rfc3339(end).to_string(), "9999-12-31T23:59:59.999999Z");
    }
}

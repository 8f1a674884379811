//! The JSON forms of the feature `serde`. An event has the form of the lines that the command `eventstore` prints and
//! reads.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeStruct, Serializer};
use serde_json::value::RawValue;

use crate::limits::{RECORDED_AT_END, clamp_recorded_at};
use crate::{
    Cursor, Digest, Direction, Durability, Event, Expected, Gc, Idempotency, RecordedEvent, Revision, StoreOutcome,
    Version,
};

/// Serializes types by their text form.
macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )+};
}

as_text!(Cursor, Digest, Direction, Durability, Expected, Gc, Idempotency, StoreOutcome);

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Event", 5)?;
        write_event(self, &mut fields)?;
        fields.end()
    }
}

impl Serialize for RecordedEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RecordedEvent", 8)?;
        write_event(&self.event, &mut fields)?;
        fields.serialize_field("version", &self.version)?;
        fields.serialize_field("revision", &self.revision)?;
        let time = humantime::format_rfc3339_micros(clamp_recorded_at(self.recorded_at));
        fields.serialize_field("recorded_at", &format_args!("{time}"))?;
        fields.end()
    }
}

/// Data and metadata are copied as text, not parsed into values: numbers keep their digits, and objects the order of
/// their keys. What would not survive as JSON is encoded as Base64.
fn write_event<F: SerializeStruct>(event: &Event, fields: &mut F) -> Result<(), F::Error> {
    fields.serialize_field("id", event.id())?;
    fields.serialize_field("type", event.event_type())?;
    fields.serialize_field("aggregate_id", event.aggregate_id())?;
    match event.data() {
        [] => fields.skip_field("data")?,
        data => write_value(fields, ["data", "data_base64"], data)?,
    }
    write_value(fields, ["metadata", "metadata_base64"], event.metadata().as_bytes())
}

fn write_value<F: SerializeStruct>(
    fields: &mut F,
    [plain, base64]: [&'static str; 2],
    value: &[u8],
) -> Result<(), F::Error> {
    match fits_a_line(value).then(|| serde_json::from_slice::<&RawValue>(value)) {
        Some(raw) => fields.serialize_field(plain, raw.map_err(F::Error::custom)?),
        None => fields.serialize_field(base64, &BASE64.encode(value)),
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

#[derive(serde::Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    aggregate_id: Cow<'a, str>,
    #[serde(default, deserialize_with = "null_is_a_value")]
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
    metadata: Option<Box<RawValue>>,
    metadata_base64: Option<String>,
    version: Option<Version>,
    revision: Option<Revision>,
    recorded_at: Option<String>,
}

/// `"data":null` is data, the JSON `null`. Only a missing field means no data.
fn null_is_a_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl Fields<'_> {
    fn event<E: serde::de::Error>(&mut self) -> Result<Event, E> {
        let builder = Event::builder(&*self.event_type, &*self.aggregate_id).id(&*self.id);
        let data = value(["data", "data_base64"], self.data.take(), self.data_base64.take())?;
        let metadata = value(["metadata", "metadata_base64"], self.metadata.take(), self.metadata_base64.take())?;
        let metadata = String::from_utf8(metadata).map_err(|_| E::custom("metadata_base64 is not UTF-8"))?;
        builder.data(data).metadata_json(metadata).build().map_err(E::custom)
    }
}

/// The bytes of a field that has two forms; empty if neither is present.
fn value<E: serde::de::Error>(
    [plain, base64]: [&str; 2],
    json: Option<Box<RawValue>>,
    text: Option<String>,
) -> Result<Vec<u8>, E> {
    match (json, text) {
        (Some(_), Some(_)) => Err(E::custom(format!("both {plain} and {base64} are present; keep one"))),
        (Some(json), None) => Ok(Box::<str>::from(json).into_string().into_bytes()),
        (None, Some(text)) => {
            BASE64.decode(text).map_err(|error| E::custom(format!("{base64} is not padded standard base64: {error}")))
        }
        (None, None) => Ok(Vec::new()),
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Fields::deserialize(deserializer)?.event()
    }
}

impl<'de> Deserialize<'de> for RecordedEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Fields::deserialize(deserializer)?;
        let event = fields.event()?;
        let version = fields.version.ok_or_else(|| D::Error::missing_field("version"))?;
        let revision = fields.revision.ok_or_else(|| D::Error::missing_field("revision"))?;
        let time = fields.recorded_at.ok_or_else(|| D::Error::missing_field("recorded_at"))?;
        Ok(RecordedEvent::new(version, revision, parsed(&time).map_err(D::Error::custom)?, event))
    }
}

fn parsed(text: &str) -> Result<SystemTime, String> {
    let time =
        humantime::parse_rfc3339(text).map_err(|error| format!("recorded_at is not an RFC 3339 time: {error}"))?;
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since_1970) if since_1970 < RECORDED_AT_END => Ok(time),
        _ => Err(format!("recorded_at is not in the years 1970 to 9999: {text}")),
    }
}

/// The properties of `Stats`, as an object. Engines report everything as text; numbers are written as JSON numbers.
pub(crate) mod properties {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        properties: &[(Cow<'static, str>, String)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(properties.len()))?;
        for (name, value) in properties {
            match value.parse::<u64>() {
                Ok(number) if number.to_string() == *value => map.serialize_entry(name, &number)?,
                _ => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }

    /// In their original order, which serde_json's map would not keep.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Cow<'static, str>, String)>, D::Error> {
        struct Properties;

        impl<'de> Visitor<'de> for Properties {
            type Value = Vec<(Cow<'static, str>, String)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts and numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                #[derive(serde::Deserialize)]
                #[serde(untagged)]
                enum Property {
                    Number(u64),
                    Text(String),
                }
                let mut properties = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Property>()? {
                    let value = match value {
                        Property::Number(number) => number.to_string(),
                        Property::Text(text) => text,
                    };
                    properties.push((Cow::Owned(name), value));
                }
                Ok(properties)
            }
        }

        deserializer.deserialize_map(Properties)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::time::{Duration, UNIX_EPOCH};

    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;
    use crate::{AggregateInfo, BackupReport, Finding, GcReport, Stats, Stored, VerifyReport};

    /// The value is written as `text`, and read back from text, from bytes and from a value.
    #[track_caller]
    fn pinned<T: Serialize + DeserializeOwned + Debug>(value: &T, text: &str) {
        assert_eq!(serde_json::to_string(value).expect("written"), text);
        let debug = format!("{value:?}");
        let from_value = serde_json::from_value::<T>(serde_json::from_str(text).expect("JSON")).expect("read");
        let [from_text, from_bytes] =
            [serde_json::from_str::<T>(text), serde_json::from_reader(text.as_bytes())].map(|read| read.expect("read"));
        assert_eq!([from_text, from_bytes, from_value].map(|read| format!("{read:?}")), [debug.as_str(); 3]);
    }

    #[track_caller]
    fn refused<T: DeserializeOwned + Debug>(text: &str) -> String {
        serde_json::from_str::<T>(text).expect_err(text).to_string()
    }

    fn recorded(builder: crate::EventBuilder) -> RecordedEvent {
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        RecordedEvent::new(Version::new(7), Revision::new(3), at, builder.id("o-1").build().expect("valid"))
    }

    #[test]
    fn small_values_are_numbers_and_texts() {
        pinned(&Version::new(u64::MAX), "18446744073709551615");
        pinned(&Revision::new(3), "3");
        let digest = Digest::from_bytes([0x9f; 32]);
        pinned(&digest, &format!("\"{}\"", "9f".repeat(32)));
        pinned(&Cursor::new(Version::new(1987), digest), "\"1987-9f9f9f9f\"");
        for expected in ["any", "none", "exists", "revision=3", "latest=7"] {
            pinned(&expected.parse::<Expected>().expect("one of them"), &format!("{expected:?}"));
        }
        pinned(&[Durability::Sync, Durability::Buffered], r#"["sync","buffered"]"#);
        pinned(&[Idempotency::Content, Idempotency::Data, Idempotency::Id], r#"["content","data","id"]"#);
        pinned(&[StoreOutcome::Written, StoreOutcome::AlreadyStored], r#"["written","already_stored"]"#);
        pinned(&[Direction::Forward, Direction::Backward], r#"["forward","backward"]"#);
        pinned(&[Gc::Quick, Gc::Full], r#"["quick","full"]"#);
        assert!(refused::<Expected>("\"revision=x\"").contains("revision=N"));
        assert!(refused::<Cursor>("\"1987\"").contains("1987-9f86d081"));
        assert!(refused::<Version>("-1").contains("-1"));
    }

    #[test]
    fn places_and_reports_have_the_names_of_their_fields() {
        let stored = Stored::new(Version::new(7), Revision::new(3), StoreOutcome::Written);
        pinned(&stored, r#"{"version":7,"revision":3,"outcome":"written"}"#);
        let info = AggregateInfo::new("order-42".to_owned(), Revision::new(3), Version::new(7));
        pinned(&info, r#"{"aggregate_id":"order-42","revision":3,"version":7}"#);
        let gc = GcReport { bytes_before: Some(2), bytes_after: None, actions: vec!["compacted".to_owned()] };
        pinned(&gc, r#"{"bytes_before":2,"bytes_after":null,"actions":["compacted"]}"#);
        let backup = BackupReport { latest_version: Version::new(7), bytes_on_disk: 9 };
        pinned(&backup, r#"{"latest_version":7,"bytes_on_disk":9}"#);
        let findings = vec![Finding::new(Some(Version::new(2)), "damaged"), Finding::new(None, "lost")];
        let report = VerifyReport { events: 7, aggregates: 2, findings, is_cut_short: false };
        let findings = r#"[{"version":2,"what":"damaged"},{"version":null,"what":"lost"}]"#;
        pinned(&report, &format!(r#"{{"events":7,"aggregates":2,"findings":{findings},"is_cut_short":false}}"#));
    }

    #[test]
    fn stats_are_written_with_the_names_of_the_command() {
        let mut stats =
            Stats { backend: "lmdb".into(), latest_version: Version::new(7), aggregates: 2, ..Stats::default() };
        stats.properties = vec![("lmdb.map".into(), "1024".to_owned()), ("lmdb.mode".into(), "fast".to_owned())];
        let written = serde_json::to_value(&stats).expect("written");
        let expected = json!({
            "backend": "lmdb", "store_id": null, "latest_version": 7, "aggregates": 2, "bytes_on_disk": null,
            "queued_requests": 0, "queued_bytes": 0, "commits": 0, "events_written": 0, "largest_group": 0, "fenced": null,
            "engine": { "lmdb.map": 1024, "lmdb.mode": "fast" },
        });
        assert_eq!(written, expected);
    }

    #[test]
    fn a_recorded_event_is_the_line_of_the_command() {
        let place = r#""version":7,"revision":3,"recorded_at":"2023-11-14T22:13:20.000001Z""#;
        let names = r#""id":"o-1","type":"OrderPlaced","aggregate_id":"order-42""#;
        let builder = || Event::builder("OrderPlaced", "order-42");
        for (builder, content) in [
            (builder(), r#""metadata":{}"#),
            (builder().data("null"), r#""data":null,"metadata":{}"#),
            (
                builder().data(r#"{"total": 12}"#).metadata_json(r#"{"by":"me"}"#),
                r#""data":{"total": 12},"metadata":{"by":"me"}"#,
            ),
            (builder().data(vec![0xff]), r#""data_base64":"/w==","metadata":{}"#),
            (builder().data(" 1"), r#""data_base64":"IDE=","metadata":{}"#),
            (builder().data("[1,\n2]").metadata_json(" {}"), r#""data_base64":"WzEsCjJd","metadata_base64":"IHt9""#),
        ] {
            let recorded = recorded(builder);
            let line = format!("{{{names},{content},{place}}}");
            assert_eq!(serde_json::to_string(&recorded).expect("written"), line);
            assert_eq!(serde_json::from_str::<RecordedEvent>(&line).expect("read"), recorded);
            let event = format!("{{{names},{content}}}");
            assert_eq!(serde_json::to_string(&recorded.event).expect("written"), event);
            assert_eq!(serde_json::from_str::<Event>(&event).expect("read"), recorded.event);
        }
        // Digits and the order of keys are preserved.
        let line = format!(r#"{{{names},"data":{{"b":1.50,"a":1e400}},"metadata":{{}},{place}}}"#);
        let read: RecordedEvent = serde_json::from_str(&line).expect("read");
        assert_eq!(read.event.data(), br#"{"b":1.50,"a":1e400}"#);
        assert_eq!(serde_json::to_string(&read).expect("written"), line);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let with = |more: &str| format!(r#"{{"id":"i","type":"T","aggregate_id":"a"{more}}}"#);
        assert!(serde_json::from_str::<Event>(&with("")).is_ok());
        assert!(refused::<Event>(&with(r#","data":1,"data_base64":"AA==""#)).contains("both data and data_base64"));
        assert!(refused::<Event>(&with(r#","data_base64":"?""#)).contains("base64"));
        assert!(refused::<Event>(&with(r#","metadata":[]"#)).contains("not a JSON object"));
        assert!(refused::<Event>(r#"{"id":"","type":"T","aggregate_id":"a"}"#).contains("empty"));
        assert!(refused::<Event>(r#"{"type":"T","aggregate_id":"a"}"#).contains("`id`"));
        assert!(refused::<RecordedEvent>(&with(r#","version":1,"revision":1"#)).contains("recorded_at"));
        let at = |time: &str| with(&format!(r#","version":1,"revision":1,"recorded_at":"{time}""#));
        assert!(serde_json::from_str::<RecordedEvent>(&at("2023-11-14T22:13:20Z")).is_ok());
        assert!(refused::<RecordedEvent>(&at("yesterday")).contains("RFC 3339"));
    }
}

//! Events received as JSON.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::SystemTime;

use eventstore_api::limits::MAX_BATCH_EVENTS;
use eventstore_api::{Batch, Durability, Error, Event, Expected, Idempotency, Result};
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::page::MOST;

/// An event as it was sent.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The event. If it was sent without an id, it has a new one.
    pub event: Event,
    /// Its recording time, if one was sent.
    pub recorded_at: Option<SystemTime>,
}

/// Reads events: an object, an array of objects, or a sequence of objects, such as lines.
///
/// # Errors
///
/// `InvalidEvent` with what is wrong, and the number of the event if there are several.
pub fn read_events(text: &[u8]) -> Result<Vec<Incoming>> {
    let malformed = |error: serde_json::Error| Error::invalid_event("event", format!("it is not JSON: {error}"));
    let is_array = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let objects: Vec<&RawValue> = match is_array {
        true => serde_json::from_slice::<AtMost<_, MAX_BATCH_EVENTS>>(text).map_err(malformed)?.0,
        false => {
            let objects = serde_json::Deserializer::from_slice(text).into_iter();
            objects.take(MAX_BATCH_EVENTS + 1).collect::<Result<_, _>>().map_err(malformed)?
        }
    };
    if objects.len() > MAX_BATCH_EVENTS {
        return Err(Error::invalid_event("batch", too_many(MAX_BATCH_EVENTS)));
    }
    let is_alone = objects.len() == 1;
    let read = |(index, object): (usize, &&RawValue)| {
        read_event(object.get()).map_err(|error| match error {
            Error::InvalidEvent { field, reason } if !is_alone => {
                Error::InvalidEvent { field, reason: format!("event {} of the batch: {reason}", index + 1) }
            }
            error => error,
        })
    };
    objects.iter().enumerate().map(read).collect()
}

/// Reads the batches of a push: an array of objects with `events`, and `expected`, `durability` and `idempotency` if
/// they differ from the defaults.
///
/// # Errors
///
/// `InvalidEvent` if it is not such an array. Errors of a single batch are inside.
pub fn read_batches(text: &[u8]) -> Result<Vec<Result<Batch>>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Form<'a> {
        #[serde(borrow)]
        events: &'a RawValue,
        #[serde(default)]
        expected: Expected,
        #[serde(default)]
        durability: Option<Durability>,
        #[serde(default)]
        idempotency: Idempotency,
    }
    let malformed = |error: serde_json::Error| Error::invalid_event("batch", format!("it is not valid: {error}"));
    let forms: AtMost<Form<'_>, MOST_BATCHES> = serde_json::from_slice(text).map_err(malformed)?;
    let mut room = MOST;
    let mut read = |form: Form<'_>| {
        let events: Vec<_> =
            read_events(form.events.get().as_bytes())?.into_iter().map(|incoming| incoming.event).collect();
        room = room.checked_sub(events.len()).ok_or_else(|| Error::invalid_event("batch", too_many(MOST)))?;
        let mut batch = Batch::new(events).expected(form.expected).idempotency(form.idempotency);
        batch.durability = form.durability;
        Ok(batch)
    };
    Ok(forms.0.into_iter().map(&mut read).collect())
}

/// The most batches of a push.
const MOST_BATCHES: usize = 10_000;

fn too_many(most: usize) -> String {
    format!("it has more than {most} events; send them in parts")
}

/// A list with at most this many elements: a larger number of small elements would take a lot of memory.
#[derive(Clone, Debug)]
pub struct AtMost<T, const MOST: usize>(
    /// The elements.
    pub Vec<T>,
);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MOST} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(element) = elements.next_element()? {
                    if all.len() == MOST {
                        return Err(A::Error::custom(format_args!(
                            "it has more than {MOST} elements; send them in parts"
                        )));
                    }
                    all.push(element);
                }
                Ok(all)
            }
        }

        deserializer.deserialize_seq(Elements::<T, MOST>(PhantomData)).map(AtMost)
    }
}

/// The members of an event in JSON.
const MEMBERS: [&str; 10] = [
    "id",
    "type",
    "aggregate_id",
    "data",
    "data_base64",
    "metadata",
    "metadata_base64",
    "version",
    "revision",
    "recorded_at",
];

fn read_event(text: &str) -> Result<Incoming> {
    let malformed = |error: serde_json::Error| Error::invalid_event("event", error.to_string());
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(text).map_err(malformed)?;
    if let Some(unknown) = members.keys().find(|name| !MEMBERS.contains(&name.as_ref())) {
        let known = MEMBERS.join(", ");
        return Err(Error::invalid_event("event", format!("an event has no {unknown:?}; it has {known}")));
    }
    let event = match members.contains_key("id") {
        true => serde_json::from_str(text).map_err(malformed)?,
        false => {
            // The object ends with a brace, as the first pass has verified.
            let rest = text.trim_end().strip_suffix('}').unwrap_or_default();
            let comma = if members.is_empty() { "" } else { "," };
            serde_json::from_str(&format!("{rest}{comma}\"id\":\"{}\"}}", Event::new_id())).map_err(|error| {
                // The location refers to a text that the sender did not send.
                let error = error.to_string();
                Error::invalid_event("event", error.split(" at line ").next().unwrap_or_default())
            })?
        }
    };
    let recorded_at: Option<String> = match members.get("recorded_at") {
        Some(time) => serde_json::from_str(time.get()).map_err(malformed)?,
        None => None,
    };
    let parse = |text: String| {
        humantime::parse_rfc3339(&text)
            .map_err(|error| Error::invalid_event("recorded_at", format!("{text:?} is not an RFC 3339 time: {error}")))
    };
    Ok(Incoming { event, recorded_at: recorded_at.map(parse).transpose()? })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn events_are_read_in_every_form() {
        let (one, two) = (
            r#"{"id":"a","type":"T","aggregate_id":"x","data":{"b": 1.0}}"#,
            r#"{"id":"b","type":"T","aggregate_id":"x"}"#,
        );
        for text in [
            format!("[{one},{two}]"),
            format!("{one}\n{two}\n"),
            format!(" {one} {two}"),
            format!("\n[ {one} ,\n{two}]\n"),
        ] {
            let events = read_events(text.as_bytes()).expect(&text);
            assert_eq!(events.iter().map(|incoming| incoming.event.id()).collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(events[0].event.data(), br#"{"b": 1.0}"#, "byte for byte");
        }
        assert!(read_events(b"[]").expect("none").is_empty() && read_events(b"").expect("none").is_empty());
    }

    #[test]
    fn an_event_without_an_id_gets_a_new_one() {
        let text = r#" {"type":"T","aggregate_id":"x"}"#;
        let id = || read_events(text.as_bytes()).expect("valid")[0].event.id().to_owned();
        assert_ne!(id(), id());
        assert!(read_events(b"{}").is_err());
    }

    #[test]
    fn too_many_are_refused_before_they_take_memory() {
        let many = |count: usize, element: &str| format!("[{}]", vec![element; count].join(","));
        for text in [many(MAX_BATCH_EVENTS + 1, "0"), "{}".repeat(MAX_BATCH_EVENTS + 1)] {
            let error = read_events(text.as_bytes()).expect_err("too many").to_string();
            assert!(error.contains("more than 10000"), "{error}");
        }
        assert!(read_batches(many(MOST_BATCHES + 1, "{\"events\":[]}").as_bytes()).is_err());
        assert_eq!(
            read_batches(many(MOST_BATCHES, "{\"events\":[]}").as_bytes()).expect("so many").len(),
            MOST_BATCHES
        );
    }

    #[test]
    fn times_come_along() {
        let text = r#"{"type":"T","aggregate_id":"x","recorded_at":"1970-01-01T00:00:02Z"}"#;
        assert_eq!(
            read_events(text.as_bytes()).expect("valid")[0].recorded_at,
            Some(UNIX_EPOCH + Duration::from_secs(2))
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_the_number_of_the_event() {
        let reason = |text: &str| match read_events(text.as_bytes()) {
            Err(Error::InvalidEvent { reason, .. }) => reason,
            other => panic!("{text}: {other:?}"),
        };
        let good = r#"{"type":"T","aggregate_id":"x"}"#;
        assert!(reason(&format!(r#"[{good},{{"type":"","aggregate_id":"x"}}]"#)).contains("event 2"));
        for text in
            ["[", "{", "nonsense", "[1]", r#"{"type":"T"}"#, r#"{"type":"T","aggregate_id":"x","recorded_at":"now"}"#]
        {
            reason(text);
        }
    }
}

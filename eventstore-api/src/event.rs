use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::limits::{MAX_AGGREGATE_ID_LEN, MAX_DATA_LEN, MAX_ID_LEN, MAX_METADATA_LEN, MAX_TYPE_LEN};
use crate::{Error, Result, Version};

/// Something that happened: the unit that is appended, and never changed after.
///
/// An event has an id that is unique in the store, a type, the id of the aggregate it belongs to, data (any bytes; JSON
/// by convention) and metadata (a JSON object, `{}` when none is given). Data and metadata come back byte for byte
/// (rule W6). An `Event` always keeps the [`limits`](crate::limits): whoever builds one breaks a limit or has an event,
/// not both.
///
/// ```
/// use eventstore_api::Event;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Placed { total: u32 }
///
/// let event = Event::builder("OrderPlaced", "order-42").json(&Placed { total: 12 }).build()?;
/// assert_eq!(event.data(), br#"{"total":12}"#.as_slice());
/// assert_eq!(event.json::<Placed>()?.total, 12);
/// # Ok::<(), eventstore_api::Error>(())
/// ```
///
/// # Clone
///
/// Cheap: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// Id, type, aggregate id and metadata, one behind the other: read from a store, all of them are slices of one
    /// buffer, so that reading an event costs no allocation per field.
    text: ByteString,
    lengths: TextLengths,
    data: Bytes,
}

/// Where the parts of [`Event::text`] end; the metadata is the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextLengths {
    /// Bytes of the event id.
    pub id: u16,
    /// Bytes of the event type.
    pub event_type: u16,
    /// Bytes of the aggregate id.
    pub aggregate_id: u16,
}

impl TextLengths {
    const fn id_end(self) -> usize {
        self.id as usize
    }

    const fn type_end(self) -> usize {
        self.id_end() + self.event_type as usize
    }

    const fn aggregate_id_end(self) -> usize {
        self.type_end() + self.aggregate_id as usize
    }
}

impl Event {
    /// Starts an event of this type for this aggregate; see [`EventBuilder`].
    pub fn builder(event_type: impl Into<String>, aggregate_id: impl Into<String>) -> EventBuilder {
        EventBuilder {
            id: None,
            event_type: event_type.into(),
            aggregate_id: aggregate_id.into(),
            data: Ok(Bytes::new()),
            metadata: Ok(String::new()),
        }
    }

    /// The id, unique in the store.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.text[..self.lengths.id_end()]
    }

    /// The type: what kind of thing happened.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.text[self.lengths.id_end()..self.lengths.type_end()]
    }

    /// The id of the aggregate this event belongs to.
    #[must_use]
    pub fn aggregate_id(&self) -> &str {
        &self.text[self.lengths.type_end()..self.lengths.aggregate_id_end()]
    }

    /// The metadata: a JSON object as text, exactly as it was given.
    #[must_use]
    pub fn metadata(&self) -> &str {
        &self.text[self.lengths.aggregate_id_end()..]
    }

    /// The data, exactly as it was given. Cloning the `Bytes` shares them.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Reads the data as JSON. Fails with [`Error::InvalidEvent`] if it is not what `T` expects.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.data).map_err(|e| Error::invalid_event("data", format!("not readable: {e}")))
    }

    /// The bytes that count towards [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES): text and data.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.text.len() + self.data.len()
    }

    /// For stores: id, type, aggregate id and metadata in one piece. [`Event::from_stored`] takes it back.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// For stores: where the parts of [`Event::text`] end.
    #[must_use]
    pub fn text_lengths(&self) -> TextLengths {
        self.lengths
    }

    /// For stores: an event from what [`Event::text`], [`Event::text_lengths`] and [`Event::data`] gave, without
    /// copying. `None` if the lengths do not fit the text or a part is empty, which means that it was damaged.
    #[must_use]
    pub fn from_stored(text: ByteString, lengths: TextLengths, data: Bytes) -> Option<Self> {
        let ends = [lengths.id_end(), lengths.type_end(), lengths.aggregate_id_end()];
        let fits = lengths.id > 0
            && lengths.event_type > 0
            && lengths.aggregate_id > 0
            && ends.iter().all(|&end| text.is_char_boundary(end));
        fits.then_some(Event { text, lengths, data })
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id())
            .field("event_type", &self.event_type())
            .field("aggregate_id", &self.aggregate_id())
            .field("data", &self.data)
            .field("metadata", &self.metadata())
            .finish()
    }
}

/// Builds an [`Event`]; everything is checked in [`build`](EventBuilder::build).
#[derive(Debug)]
#[must_use = "nothing is built until `build` is called"]
pub struct EventBuilder {
    id: Option<String>,
    event_type: String,
    aggregate_id: String,
    data: Result<Bytes>,
    metadata: Result<String>,
}

impl EventBuilder {
    /// The event's id. Without one it is a new UUIDv7, whose order in time keeps the id index compact and fast; give
    /// your own when the same event may be built twice and must be stored once (rule W2).
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The data as raw bytes.
    pub fn data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = Ok(data.into());
        self
    }

    /// The data as the JSON of `value`. What cannot be written as JSON is an error of `build`.
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.data = serde_json::to_vec(value).map(Bytes::from).map_err(|e| not_json("data", &e));
        self
    }

    /// The metadata as the JSON of `value`, which must be an object.
    pub fn metadata<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.metadata = serde_json::to_string(value).map_err(|e| not_json("metadata", &e));
        self
    }

    /// The metadata as JSON text, which must be an object and is kept byte for byte.
    pub fn metadata_json(mut self, text: impl Into<String>) -> Self {
        self.metadata = Ok(text.into());
        self
    }

    /// Checks everything and makes the event.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidEvent`] names the field that is empty, too long or not JSON.
    pub fn build(self) -> Result<Event> {
        let id = self.id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        let data = self.data?;
        let mut metadata = self.metadata?;
        if metadata.is_empty() {
            metadata.push_str("{}");
        } else {
            check_metadata(&metadata)?;
        }
        let lengths = TextLengths {
            id: checked_len("id", &id, MAX_ID_LEN)?,
            event_type: checked_len("type", &self.event_type, MAX_TYPE_LEN)?,
            aggregate_id: checked_len("aggregate_id", &self.aggregate_id, MAX_AGGREGATE_ID_LEN)?,
        };
        if data.len() > MAX_DATA_LEN {
            let reason = format!("{} bytes is over the limit of {MAX_DATA_LEN} bytes", data.len());
            return Err(Error::invalid_event("data", reason));
        }
        let text = [id.as_str(), &self.event_type, &self.aggregate_id, &metadata].concat();
        Ok(Event { text: text.into(), lengths, data })
    }
}

fn checked_len(field: &'static str, text: &str, limit: usize) -> Result<u16> {
    match u16::try_from(text.len()) {
        Ok(0) => Err(Error::invalid_event(field, "it is empty; give it at least one character")),
        Ok(len) if text.len() <= limit => Ok(len),
        _ => Err(Error::invalid_event(field, format!("{} bytes is over the limit of {limit} bytes", text.len()))),
    }
}

fn check_metadata(text: &str) -> Result<()> {
    if text.len() > MAX_METADATA_LEN {
        let reason = format!("{} bytes is over the limit of {MAX_METADATA_LEN} bytes", text.len());
        return Err(Error::invalid_event("metadata", reason));
    }
    if !text.trim_start().starts_with('{') {
        return Err(Error::invalid_event(
            "metadata",
            "it is not a JSON object; write one such as {\"source\":\"web\"}",
        ));
    }
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|e| not_json("metadata", &e))
}

fn not_json(field: &'static str, error: &serde_json::Error) -> Error {
    Error::invalid_event(field, format!("it is not JSON: {error}"))
}

/// An event as it stands in the store: with its place in the store, its place in its aggregate, and when it came.
///
/// # Clone
///
/// Cheap: the bytes are shared. A recorded event keeps the buffer of the whole page it was read with alive; clone the
/// parts into owned strings if you keep a few events of many for long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedEvent {
    /// Its position in the whole store: 1, 2, 3, … without gaps (rule O1).
    pub version: Version,
    /// Its position in its aggregate: 1, 2, 3, … without gaps (rule O3).
    pub revision: u64,
    /// When the writer took it, by the system's clock, to the microsecond. Clocks step back: order by version.
    pub recorded_at: SystemTime,
    /// The event itself.
    pub event: Event,
}

impl RecordedEvent {
    /// For stores: an event with its place.
    #[must_use]
    pub fn new(version: Version, revision: u64, recorded_at: SystemTime, event: Event) -> Self {
        RecordedEvent { version, revision, recorded_at, event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(builder: EventBuilder) -> &'static str {
        match builder.build() {
            Err(Error::InvalidEvent { field, .. }) => field,
            other => panic!("expected InvalidEvent, got {other:?}"),
        }
    }

    #[test]
    fn the_parts_come_back_as_given() {
        let event = Event::builder("Größe/\0", "ag 🦀 /x")
            .id("id\0\u{10ffff}")
            .data(vec![0, 255, 10])
            .metadata_json("{ \"b\" : 1.50,\n\"a\":2}")
            .build()
            .expect("valid");
        assert_eq!(event.id(), "id\0\u{10ffff}");
        assert_eq!(event.event_type(), "Größe/\0");
        assert_eq!(event.aggregate_id(), "ag 🦀 /x");
        assert_eq!(event.data().as_ref(), [0, 255, 10]);
        assert_eq!(event.metadata(), "{ \"b\" : 1.50,\n\"a\":2}");
        let again = Event::from_stored(event.text().into(), event.text_lengths(), event.data().clone());
        assert_eq!(again, Some(event));
    }

    #[test]
    fn defaults_are_a_new_time_ordered_id_and_empty_metadata() {
        let build = || Event::builder("T", "a").build().expect("valid");
        let (first, second) = (build(), build());
        assert!(first.id() < second.id(), "UUIDv7 of one process rises");
        assert_eq!(first.id().len(), 36);
        assert_eq!(first.metadata(), "{}");
        assert!(first.data().is_empty());
    }

    #[test]
    fn what_breaks_a_limit_is_named() {
        let valid = || Event::builder("T", "a").id("i");
        assert_eq!(refused(valid().id("")), "id");
        assert_eq!(refused(valid().id("x".repeat(MAX_ID_LEN + 1))), "id");
        assert_eq!(refused(valid().id("x".repeat(70_000))), "id");
        assert_eq!(refused(Event::builder("", "a")), "type");
        assert_eq!(refused(Event::builder("x".repeat(MAX_TYPE_LEN + 1), "a")), "type");
        assert_eq!(refused(Event::builder("T", "")), "aggregate_id");
        assert_eq!(refused(Event::builder("T", "x".repeat(MAX_AGGREGATE_ID_LEN + 1))), "aggregate_id");
        assert_eq!(refused(valid().data(vec![0; MAX_DATA_LEN + 1])), "data");
        for metadata in ["[]", "1", "{", "{} {}", "null", "{\"a\":}", " "] {
            assert_eq!(refused(valid().metadata_json(metadata)), "metadata", "{metadata}");
        }
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_METADATA_LEN));
        assert_eq!(refused(valid().metadata_json(long)), "metadata");
        let at_the_limits = Event::builder("t".repeat(MAX_TYPE_LEN), "a".repeat(MAX_AGGREGATE_ID_LEN))
            .id("i".repeat(MAX_ID_LEN))
            .data(vec![0; MAX_DATA_LEN]);
        assert!(at_the_limits.build().is_ok());
    }

    #[test]
    fn lengths_that_do_not_fit_are_damage() {
        let lengths = |id, event_type, aggregate_id| TextLengths { id, event_type, aggregate_id };
        let stored = |lengths| Event::from_stored("aé{}".into(), lengths, Bytes::new());
        assert!(stored(lengths(1, 2, 1)).is_some());
        assert!(stored(lengths(1, 1, 1)).is_none(), "inside a character");
        assert!(stored(lengths(1, 2, 3)).is_none(), "beyond the text");
        assert!(stored(lengths(0, 1, 2)).is_none(), "empty id");
    }
}

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use uuid::{ContextV7, Timestamp, Uuid};

use crate::limits::{
    MAX_AGGREGATE_ID_LEN, MAX_DATA_LEN, MAX_ID_LEN, MAX_METADATA_LEN, MAX_TYPE_LEN, clamp_recorded_at,
};
use crate::{Error, Result, Revision, Version};

/// Something that happened: the unit of an append, which never changes afterwards.
///
/// An event has an id that is unique in the store, a type, the id of the aggregate it belongs to, data (any bytes; JSON
/// by convention) and metadata (a JSON object, `{}` by default). Data and metadata are returned byte for byte (rule
/// W6). An `Event` always meets the [`limits`](crate::limits): building one that does not is an error.
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
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// Id, type, aggregate id, metadata and data, one after the other. An event read from a store is a slice of the
    /// bytes of its whole page, so reading an event does not allocate.
    bytes: Bytes,
    layout: Layout,
}

/// For stores: the lengths of the texts at the beginning of [`Event::bytes`]. The rest is the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Bytes of the event id.
    pub id_len: u16,
    /// Bytes of the event type.
    pub type_len: u16,
    /// Bytes of the aggregate id.
    pub aggregate_id_len: u16,
    /// Bytes of the metadata.
    pub metadata_len: u32,
}

impl Layout {
    const fn type_start(self) -> usize {
        self.id_len as usize
    }

    const fn aggregate_id_start(self) -> usize {
        self.type_start() + self.type_len as usize
    }

    const fn metadata_start(self) -> usize {
        self.aggregate_id_start() + self.aggregate_id_len as usize
    }

    /// The offset of the data.
    #[must_use]
    pub const fn data_start(self) -> usize {
        self.metadata_start() + self.metadata_len as usize
    }
}

impl Event {
    /// Starts an event of this type for this aggregate. See [`EventBuilder`].
    pub fn builder(event_type: impl Into<String>, aggregate_id: impl Into<String>) -> EventBuilder {
        EventBuilder {
            id: None,
            event_type: event_type.into(),
            aggregate_id: aggregate_id.into(),
            data: Ok(Bytes::new()),
            metadata: Ok(String::new()),
            correlation_id: None,
            causation_id: None,
        }
    }

    /// A new id: a UUIDv7, greater than all ids made before by this process. Events built without an id get such an id.
    #[must_use]
    pub fn new_id() -> String {
        id_at(SystemTime::now()).to_string()
    }

    /// The id, unique in the store.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text(0..self.layout.type_start())
    }

    /// The type: what kind of thing happened.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.text(self.layout.type_start()..self.layout.aggregate_id_start())
    }

    /// The id of the aggregate this event belongs to.
    #[must_use]
    pub fn aggregate_id(&self) -> &str {
        self.text(self.layout.aggregate_id_start()..self.layout.metadata_start())
    }

    /// The metadata: a JSON object as text, exactly as given.
    #[must_use]
    pub fn metadata(&self) -> &str {
        self.text(self.layout.metadata_start()..self.layout.data_start())
    }

    /// The data, exactly as given.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.layout.data_start()..]
    }

    /// The data as shared bytes, without copying them.
    #[must_use]
    pub fn data_bytes(&self) -> Bytes {
        self.bytes.slice(self.layout.data_start()..)
    }

    /// The size that counts towards [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES), in bytes: texts and data.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// For stores: id, type, aggregate id, metadata and data in one buffer. [`Event::from_stored`] is the reverse.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// For stores: the layout of [`Event::bytes`].
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// For stores: an event from the values of [`Event::bytes`] and [`Event::layout`], without copying.
    ///
    /// `None` if the layout does not fit the bytes, a text is not UTF-8, or an id, type or aggregate id is empty. Each
    /// of these means that the bytes are damaged.
    #[must_use]
    pub fn from_stored(bytes: Bytes, layout: Layout) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..layout.data_start())?).ok()?;
        let starts = [layout.type_start(), layout.aggregate_id_start(), layout.metadata_start()];
        let fits = layout.id_len > 0
            && layout.type_len > 0
            && layout.aggregate_id_len > 0
            && starts.iter().all(|&start| text.is_char_boundary(start));
        fits.then_some(Event { bytes, layout })
    }

    /// An event from [`Event::bytes`] and [`Event::layout`] of an untrusted source, without copying. Everything is
    /// checked, as by [`EventBuilder::build`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidEvent`] names the field that is empty, too long, not UTF-8 or not JSON. The field is `event` if
    /// the layout does not fit the bytes.
    pub fn from_parts(bytes: Bytes, layout: Layout) -> Result<Self> {
        let event = Event::from_stored(bytes, layout).ok_or_else(|| {
            Error::invalid_event("event", "its id, type and aggregate id must be UTF-8 and have at least one character")
        })?;
        checked_len("id", event.id(), MAX_ID_LEN)?;
        checked_len("type", event.event_type(), MAX_TYPE_LEN)?;
        checked_len("aggregate_id", event.aggregate_id(), MAX_AGGREGATE_ID_LEN)?;
        // Skip the default, which nearly every event has.
        if event.metadata() != "{}" {
            check_metadata(event.metadata())?;
        }
        check_data(event.data())?;
        Ok(event)
    }

    fn text(&self, range: Range<usize>) -> &str {
        // The text was UTF-8 when the event was made. Without unsafe code, it has to be checked again.
        std::str::from_utf8(&self.bytes[range]).unwrap_or_default()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id())
            .field("event_type", &self.event_type())
            .field("aggregate_id", &self.aggregate_id())
            .field("data", &Shortened(self.data()))
            .field("metadata", &self.metadata())
            .finish()
    }
}

/// The first bytes of the data, for logs. Escaped once, like the other fields.
struct Shortened<'a>(&'a [u8]);

impl fmt::Debug for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        match self.0.get(..SHOWN) {
            Some(start) if self.0.len() > SHOWN => {
                write!(f, "\"{}\"… ({} bytes)", start.escape_ascii(), self.0.len())
            }
            _ => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}

/// Builds an [`Event`]. [`build`](EventBuilder::build) checks everything.
#[derive(Debug)]
#[must_use = "nothing is built until `build` is called"]
pub struct EventBuilder {
    id: Option<String>,
    event_type: String,
    aggregate_id: String,
    data: Result<Bytes>,
    metadata: Result<String>,
    correlation_id: Option<String>,
    causation_id: Option<String>,
}

impl EventBuilder {
    /// The builder of a typed event.
    pub(crate) fn encoded(aggregate_id: String, encoded: Result<(&'static str, Vec<u8>)>) -> Self {
        match encoded {
            Ok((event_type, data)) => Event::builder(event_type, aggregate_id).data(data),
            Err(error) => EventBuilder { data: Err(error), ..Event::builder("", aggregate_id) },
        }
    }

    /// Sets the id. The default is a new UUIDv7, whose time order keeps the id index compact and fast. Set your own id
    /// if the same event may be built twice and must be stored once (rule W2).
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the data as raw bytes.
    pub fn data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = Ok(data.into());
        self
    }

    /// Sets the data to the JSON of `value`. If `value` cannot be written as JSON, `build` returns an error.
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.data = serde_json::to_vec(value).map(Bytes::from).map_err(|e| not_json("data", &e));
        self
    }

    /// Sets the metadata to the JSON of `value`, which must be an object.
    pub fn metadata<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.metadata = serde_json::to_string(value).map_err(|e| not_json("metadata", &e));
        self
    }

    /// Sets the metadata as JSON text, which must be an object. It is stored byte for byte.
    pub fn metadata_json(mut self, text: impl Into<String>) -> Self {
        self.metadata = Ok(text.into());
        self
    }

    /// Sets `correlation_id` in the metadata: the id of what the event belongs to, such as a request or a business
    /// process.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Sets `causation_id` in the metadata: the id of the event or command that caused this event.
    pub fn causation_id(mut self, id: impl Into<String>) -> Self {
        self.causation_id = Some(id.into());
        self
    }

    /// Marks `cause` as the cause of this event. Its id becomes the causation id. Its correlation id is passed on; if
    /// it has none, its id is the correlation id.
    pub fn caused_by(self, cause: &Event) -> Self {
        let correlation_id = cause.correlation_id().unwrap_or_else(|| cause.id().to_owned());
        self.correlation_id(correlation_id).causation_id(cause.id())
    }

    /// Checks everything and builds the event.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidEvent`] names the field that is empty, too long or not JSON.
    pub fn build(self) -> Result<Event> {
        let id = self.id.unwrap_or_else(Event::new_id);
        let data = self.data?;
        let mut metadata = self.metadata?;
        if metadata.is_empty() {
            metadata.push_str("{}");
        } else {
            check_metadata(&metadata)?;
        }
        let ids = [("correlation_id", self.correlation_id), ("causation_id", self.causation_id)];
        for (key, id) in ids.iter().filter_map(|(key, id)| Some((key, id.as_ref()?))) {
            metadata = with_member(&metadata, key, id).map_err(|e| not_json("metadata", &e))?;
            check_metadata(&metadata)?; // its length
        }
        let layout = Layout {
            id_len: checked_len("id", &id, MAX_ID_LEN)?,
            type_len: checked_len("type", &self.event_type, MAX_TYPE_LEN)?,
            aggregate_id_len: checked_len("aggregate_id", &self.aggregate_id, MAX_AGGREGATE_ID_LEN)?,
            metadata_len: metadata.len() as u32, // within its limit, as checked above
        };
        check_data(&data)?;
        let texts = [&id, &self.event_type, &self.aggregate_id, &metadata];
        let [id, event_type, aggregate_id, metadata] = texts.map(|text| text.as_bytes());
        let bytes = [id, event_type, aggregate_id, metadata, &data].concat();
        Ok(Event { bytes: bytes.into(), layout })
    }
}

/// The next id of this process, greater than all before it. Like `Uuid::now_v7`, which panics if the clock is before 1970.
fn id_at(now: SystemTime) -> Uuid {
    static IDS: Mutex<ContextV7> = Mutex::new(ContextV7::new());
    let since = clamp_recorded_at(now).duration_since(UNIX_EPOCH).unwrap_or_default();
    let ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    Uuid::new_v7(Timestamp::from_unix(&*ids, since.as_secs(), since.subsec_nanos()))
}

fn checked_len(field: &'static str, text: &str, limit: usize) -> Result<u16> {
    match u16::try_from(text.len()) {
        Ok(0) => Err(Error::invalid_event(field, "it is empty; give it at least one character")),
        Ok(len) if text.len() <= limit => Ok(len),
        _ => Err(Error::invalid_event(field, format!("{} bytes is over the limit of {limit} bytes", text.len()))),
    }
}

fn check_data(data: &[u8]) -> Result<()> {
    if data.len() > MAX_DATA_LEN {
        let reason = format!("{} bytes is over the limit of {MAX_DATA_LEN} bytes", data.len());
        return Err(Error::invalid_event("data", reason));
    }
    Ok(())
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

/// The JSON object with this member added, or replaced if it has the key. The rest of the text stays as it is.
fn with_member(object: &str, key: &str, value: &str) -> serde_json::Result<String> {
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(object)?;
    let member = format!("{}:{}", serde_json::to_string(key)?, serde_json::to_string(value)?);
    if members.contains_key(key) {
        let others: BTreeMap<_, _> = members.into_iter().filter(|(other, _)| other != key).collect();
        return with_member(&serde_json::to_string(&others)?, key, value);
    }
    let (open, _) = object.trim_end().rsplit_once('}').unwrap_or((object, ""));
    let comma = if members.is_empty() { "" } else { "," };
    Ok(format!("{}{comma}{member}}}", open.trim_end()))
}

fn not_json(field: &'static str, error: &serde_json::Error) -> Error {
    Error::invalid_event(field, format!("it is not JSON: {error}"))
}

/// A stored event: with its position in the store, its position in its aggregate, and its recording time.
///
/// # Clone
///
/// Cheap: the bytes are shared. A recorded event keeps the buffer of its whole page alive. If you keep a few of many
/// events for long, copy their parts into owned strings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RecordedEvent {
    /// Its position in the whole store: 1, 2, 3, … without gaps (rule O1).
    pub version: Version,
    /// Its position in its aggregate: 1, 2, 3, … without gaps (rule O3).
    pub revision: Revision,
    /// When the writer took the event, by the system clock, in microseconds. Clocks may be set back: order by version.
    pub recorded_at: SystemTime,
    /// The event itself.
    pub event: Event,
}

impl RecordedEvent {
    /// For stores: an event with its position and recording time.
    #[must_use]
    pub fn new(version: Version, revision: Revision, recorded_at: SystemTime, event: Event) -> Self {
        RecordedEvent { version, revision, recorded_at, event }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn data_is_escaped_once_and_shortened_when_it_is_shown() {
        let shown = |data: &[u8]| {
            let event = Event::builder("T", "a").data(data.to_vec()).build().expect("valid");
            let text = format!("{event:?}");
            let (_, rest) = text.split_once(", data: ").expect("data");
            rest.split_once(", metadata: ").expect("metadata").0.to_owned()
        };
        assert_eq!(shown(br#"{"cents":12}"#), r#""{\"cents\":12}""#);
        assert_eq!(shown(&[0xff, 0]), r#""\xff\x00""#);
        assert_eq!(shown(&[b'x'; 300]), format!("\"{}\"… (300 bytes)", "x".repeat(200)));
    }

    fn refused(builder: EventBuilder) -> &'static str {
        match builder.build() {
            Err(Error::InvalidEvent { field, .. }) => field,
            other => panic!("expected InvalidEvent, got {other:?}"),
        }
    }

    #[test]
    fn parts_from_elsewhere_keep_the_limits() {
        let of = |parts: [&str; 5]| {
            let [id, event_type, aggregate_id, metadata, _] = parts.map(str::len);
            let layout = Layout {
                id_len: id as u16,
                type_len: event_type as u16,
                aggregate_id_len: aggregate_id as u16,
                metadata_len: metadata as u32,
            };
            Event::from_parts(parts.concat().into(), layout)
        };
        let refused = |parts| match of(parts) {
            Err(Error::InvalidEvent { field, .. }) => field,
            other => panic!("expected InvalidEvent, got {other:?}"),
        };
        let event = of(["i", "T", "a", r#"{"a":1}"#, "12"]).expect("valid");
        assert_eq!((event.id(), event.metadata(), event.data()), ("i", r#"{"a":1}"#, b"12".as_slice()));
        let [id, aggregate_id, data] =
            [MAX_ID_LEN, MAX_AGGREGATE_ID_LEN, MAX_DATA_LEN].map(|limit| "x".repeat(limit + 1));
        assert_eq!(refused([&id, "T", "a", "{}", ""]), "id");
        assert_eq!(refused(["i", &id, "a", "{}", ""]), "type");
        assert_eq!(refused(["i", "T", &aggregate_id, "{}", ""]), "aggregate_id");
        for metadata in ["", "[]", "{", "1"] {
            assert_eq!(refused(["i", "T", "a", metadata, ""]), "metadata");
        }
        assert_eq!(refused(["i", "T", "a", "{}", &data]), "data");
        assert_eq!(refused(["", "T", "a", "{}", ""]), "event");
    }

    #[test]
    fn ids_rise_whatever_the_clock_says() {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let now = SystemTime::now();
        let clock = [UNIX_EPOCH - year, UNIX_EPOCH, now, now - year, now, UNIX_EPOCH - year, now + year, now];
        let ids = clock.map(id_at);
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        id_at(UNIX_EPOCH + 20_000 * year);
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
        assert_eq!(event.data(), [0, 255, 10]);
        assert_eq!(event.metadata(), "{ \"b\" : 1.50,\n\"a\":2}");
        assert_eq!(event.data_bytes(), [0, 255, 10].as_slice());
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
    fn an_event_is_made_again_from_its_bytes() {
        let event = Event::builder("Tüpe", "a").data("data").build().expect("valid");
        assert_eq!(Event::from_stored(event.bytes().clone(), event.layout()), Some(event));
    }

    #[test]
    fn what_does_not_fit_is_damage() {
        let fits = |bytes: &'static [u8], [id_len, type_len, aggregate_id_len]: [u16; 3], metadata_len: u32| {
            let layout = Layout { id_len, type_len, aggregate_id_len, metadata_len };
            Event::from_stored(Bytes::from_static(bytes), layout).is_some()
        };
        let bytes = "aé{}".as_bytes();
        assert!(fits(bytes, [1, 2, 1], 1));
        assert!(!fits(bytes, [1, 1, 1], 2), "inside a character");
        assert!(!fits(bytes, [1, 2, 3], 1), "beyond the bytes");
        assert!(!fits(bytes, [1, 2, 1], u32::MAX), "far beyond the bytes");
        assert!(!fits(bytes, [0, 3, 1], 1), "empty id");
        assert!(!fits(b"a\xffc", [1, 1, 1], 0), "not UTF-8");
        assert!(fits(b"abc\xff", [1, 1, 1], 0), "data are any bytes");
    }
}

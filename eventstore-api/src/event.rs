use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
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
#[derive(Clone)]
pub struct Event {
    /// What is read from a store shares one buffer with all events of its page: reading an event costs no allocation.
    buffer: Arc<Buffer>,
    place: Place,
}

#[derive(Debug)]
struct Buffer {
    /// For each event its id, type, aggregate id and metadata, one behind the other.
    text: String,
    data: Bytes,
}

/// Where an event lies in its buffer.
#[derive(Clone, Copy, Debug)]
struct Place {
    text_start: u32,
    text_len: u32,
    data_start: u32,
    data_len: u32,
    lengths: TextLengths,
}

/// For stores: the lengths of the first parts of [`Event::text`]; the metadata is the rest.
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

    /// Where the metadata begins in [`Event::text`].
    #[must_use]
    pub const fn metadata_start(self) -> usize {
        self.type_end() + self.aggregate_id as usize
    }

    /// Whether these can be the lengths in this text: no part is empty, and each ends between two characters.
    fn fit(self, text: &str) -> bool {
        let ends = [self.id_end(), self.type_end(), self.metadata_start()];
        self.id > 0
            && self.event_type > 0
            && self.aggregate_id > 0
            && ends.iter().all(|&end| text.is_char_boundary(end))
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
        &self.text()[..self.place.lengths.id_end()]
    }

    /// The type: what kind of thing happened.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.text()[self.place.lengths.id_end()..self.place.lengths.type_end()]
    }

    /// The id of the aggregate this event belongs to.
    #[must_use]
    pub fn aggregate_id(&self) -> &str {
        &self.text()[self.place.lengths.type_end()..self.place.lengths.metadata_start()]
    }

    /// The metadata: a JSON object as text, exactly as it was given.
    #[must_use]
    pub fn metadata(&self) -> &str {
        &self.text()[self.place.lengths.metadata_start()..]
    }

    /// The data, exactly as it was given.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.buffer.data[self.data_range()]
    }

    /// The data as shared bytes, without copying them.
    #[must_use]
    pub fn data_bytes(&self) -> Bytes {
        self.buffer.data.slice(self.data_range())
    }

    /// Reads the data as JSON. Fails with [`Error::InvalidEvent`] if it is not what `T` expects.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.data()).map_err(|e| Error::invalid_event("data", format!("not readable: {e}")))
    }

    /// The bytes that count towards [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES): text and data.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.place.text_len as usize + self.place.data_len as usize
    }

    /// For stores: id, type, aggregate id and metadata in one piece. [`PageBuilder::push`] takes it back.
    #[must_use]
    pub fn text(&self) -> &str {
        let start = self.place.text_start as usize;
        &self.buffer.text[start..start + self.place.text_len as usize]
    }

    /// For stores: where the parts of [`Event::text`] end.
    #[must_use]
    pub fn text_lengths(&self) -> TextLengths {
        self.place.lengths
    }

    fn data_range(&self) -> Range<usize> {
        let start = self.place.data_start as usize;
        start..start + self.place.data_len as usize
    }
}

/// Two events are equal if id, type, aggregate id, data and metadata are, byte for byte.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.place.lengths == other.place.lengths && self.text() == other.text() && self.data() == other.data()
    }
}

impl Eq for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id())
            .field("event_type", &self.event_type())
            .field("aggregate_id", &self.aggregate_id())
            .field("data", &self.data().escape_ascii().to_string())
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
        // The limits keep both far below what a u32 holds.
        let (text_len, data_len) = (text.len() as u32, data.len() as u32);
        let place = Place { text_start: 0, text_len, data_start: 0, data_len, lengths };
        Ok(Event { buffer: Arc::new(Buffer { text, data }), place })
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

/// For stores: puts the events of a page into one buffer that all of them share.
#[derive(Debug, Default)]
pub struct PageBuilder {
    text: String,
    data: Vec<u8>,
    events: Vec<Built>,
}

#[derive(Debug)]
struct Built {
    version: Version,
    revision: u64,
    recorded_at: SystemTime,
    place: Place,
}

impl PageBuilder {
    /// An empty page.
    #[must_use]
    pub fn new() -> Self {
        PageBuilder::default()
    }

    /// Makes room for this many more events, and bytes of text and of data in all of them together.
    pub fn reserve(&mut self, events: usize, text_bytes: usize, data_bytes: usize) {
        self.events.reserve(events);
        self.text.reserve(text_bytes);
        self.data.reserve(data_bytes);
    }

    /// Adds an event from what [`Event::text`], [`Event::text_lengths`] and [`Event::data`] gave, by copying it.
    ///
    /// False, and nothing is added, if the lengths do not fit the text, which means that it was damaged, or if the page
    /// would go beyond 4 GiB.
    #[must_use]
    pub fn push(
        &mut self,
        (version, revision, recorded_at): (Version, u64, SystemTime),
        text: &str,
        lengths: TextLengths,
        data: &[u8],
    ) -> bool {
        let starts = (u32::try_from(self.text.len()), u32::try_from(self.data.len()));
        let lens = (u32::try_from(text.len()), u32::try_from(data.len()));
        let ((Ok(text_start), Ok(data_start)), (Ok(text_len), Ok(data_len))) = (starts, lens) else { return false };
        if !lengths.fit(text) {
            return false;
        }
        self.text.push_str(text);
        self.data.extend_from_slice(data);
        let place = Place { text_start, text_len, data_start, data_len, lengths };
        self.events.push(Built { version, revision, recorded_at, place });
        true
    }

    /// The number of events so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is no event yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The bytes of text, and those of data, so far.
    #[must_use]
    pub fn len_parts(&self) -> (usize, usize) {
        (self.text.len(), self.data.len())
    }

    /// The bytes of text and data together so far.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.text.len() + self.data.len()
    }

    /// The events, in the order they were added.
    #[must_use]
    pub fn finish(self) -> Vec<RecordedEvent> {
        let buffer = Arc::new(Buffer { text: self.text, data: self.data.into() });
        let event = |Built { version, revision, recorded_at, place }| {
            RecordedEvent::new(version, revision, recorded_at, Event { buffer: buffer.clone(), place })
        };
        self.events.into_iter().map(event).collect()
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
    fn events_of_a_page_are_equal_to_those_they_were_copied_from() {
        let events: Vec<_> = (0..3)
            .map(|n| {
                Event::builder("T", format!("aggregate-{n}")).data(vec![n; usize::from(n)]).build().expect("valid")
            })
            .collect();
        let mut page = PageBuilder::new();
        for (n, event) in events.iter().enumerate() {
            let place = (Version::new(n as u64 + 1), 1, SystemTime::UNIX_EPOCH);
            assert!(page.push(place, event.text(), event.text_lengths(), event.data()));
        }
        assert_eq!(page.len(), 3);
        let page = page.finish();
        assert_eq!(page.iter().map(|recorded| recorded.event.clone()).collect::<Vec<_>>(), events);
        assert_eq!(page[2].version, Version::new(3));
        assert_ne!(page[0].event, page[1].event);
    }

    #[test]
    fn lengths_that_do_not_fit_are_damage() {
        let fits = |id, event_type, aggregate_id| {
            let mut page = PageBuilder::new();
            let lengths = TextLengths { id, event_type, aggregate_id };
            let added = page.push((Version::ZERO, 0, SystemTime::UNIX_EPOCH), "aé{}", lengths, &[]);
            assert_eq!(page.is_empty(), !added);
            added
        };
        assert!(fits(1, 2, 1));
        assert!(!fits(1, 1, 1), "inside a character");
        assert!(!fits(1, 2, 3), "beyond the text");
        assert!(!fits(0, 1, 2), "empty id");
    }
}

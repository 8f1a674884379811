use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_EVENTS, RECORDED_AT_END, clamp_recorded_at};
use crate::{Error, Event, RecordedEvent, Result, Revision, Version};

/// The condition of an append. The writer checks it against everything stored before the append (rule W3).
///
/// To decide on an aggregate's state: load it, decide, append with the revision that you loaded. On a conflict, start
/// again.
///
/// ```
/// # use eventstore_api::{Context, Error, Event, EventStore, EventStoreExt, Expected, Result, Revision, Stored, Version};
/// async fn withdraw<S: EventStore + Clone>(store: &S, ctx: &Context, account: &str) -> Result<Stored> {
///     loop {
///         let history = store.load_by_aggregate(ctx, account, Version::ZERO).into_vec().await?;
///         // … decide on the history …
///         let seen = history.last().map_or(Revision::ZERO, |recorded| recorded.revision);
///         let event = Event::builder("MoneyWithdrawn", account).data("25").build()?;
///         match store.store(ctx, event, Expected::Revision(seen)).await {
///             Err(Error::VersionConflict { .. }) => continue, // somebody was faster
///             // After `OutcomeUnknown`, append this same event again: a new one has a new id.
///             result => return result,
///         }
///     }
/// }
/// ```
///
/// The text form, for command lines and logs, is `any`, `none`, `exists`, `revision=N` or `latest=N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expected {
    /// No condition: always append.
    #[default]
    Any,
    /// The aggregate has no events yet.
    NoEvents,
    /// The aggregate has at least one event.
    Exists,
    /// The newest event of the aggregate has this revision. [`Revision::ZERO`] is the same as `NoEvents`.
    Revision(Revision),
    /// The store's newest event has this version: nothing was appended since.
    LatestVersion(Version),
}

impl Expected {
    /// Whether the condition is about one aggregate. If so, all events of the batch must belong to that aggregate.
    #[must_use]
    pub fn is_about_aggregate(self) -> bool {
        matches!(self, Expected::NoEvents | Expected::Exists | Expected::Revision(_))
    }

    /// For stores: whether the condition holds, given the aggregate's revision and the store's latest version.
    #[must_use]
    pub fn holds(self, revision: Revision, latest: Version) -> bool {
        match self {
            Expected::Any => true,
            Expected::NoEvents => revision == Revision::ZERO,
            Expected::Exists => revision > Revision::ZERO,
            Expected::Revision(expected) => revision == expected,
            Expected::LatestVersion(expected) => latest == expected,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Any => f.write_str("any"),
            Expected::NoEvents => f.write_str("none"),
            Expected::Exists => f.write_str("exists"),
            Expected::Revision(revision) => write!(f, "revision={revision}"),
            Expected::LatestVersion(version) => write!(f, "latest={version}"),
        }
    }
}

impl FromStr for Expected {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::InvalidOption {
            option: "expected".to_owned(),
            reason: format!("{text:?} is not one of any, none, exists, revision=N, latest=N"),
        };
        match text.split_once('=') {
            None => match text {
                "any" => Ok(Expected::Any),
                "none" => Ok(Expected::NoEvents),
                "exists" => Ok(Expected::Exists),
                _ => Err(unknown()),
            },
            Some(("revision", number)) => number.parse().map(Expected::Revision).map_err(|_| unknown()),
            Some(("latest", number)) => number.parse().map(Expected::LatestVersion).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
        }
    }
}

/// When an append may return (rule W4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// The events are on stable storage: they survive a power cut, if the disk keeps what it confirmed.
    #[default]
    Sync,
    /// The events are handed to the operating system: they survive a killed process. A power cut may lose the newest
    /// ones, always from the end; their versions are then assigned again. Events appended with `Sync` are never at
    /// risk.
    Buffered,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Sync => "sync",
            Durability::Buffered => "buffered",
        })
    }
}

impl FromStr for Durability {
    type Err = Error;

    /// Reads `sync` or `buffered`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sync" => Ok(Durability::Sync),
            "buffered" => Ok(Durability::Buffered),
            _ => Err(Error::InvalidOption {
                option: "durability".to_owned(),
                reason: format!("{text:?} is not one of sync, buffered"),
            }),
        }
    }
}

/// Which content is compared when an event is appended again. If it is the same as that of the stored event with the
/// same id, the append is a repetition; otherwise it is a [`DuplicateEvent`](Error::DuplicateEvent) (rule W2).
///
/// A repetition returns the position of the stored event. It writes nothing, so the stored event stays as it is.
///
/// ```
/// use eventstore_api::{Batch, Event, Idempotency};
///
/// // Each attempt has its own trace id.
/// let attempt = |trace: &str| {
///     let event = Event::builder("OrderPlaced", "order-42").id("place-order-42").data(r#"{"total":12}"#);
///     event.metadata(&serde_json::json!({ "trace_id": trace })).build()
/// };
/// let (first, second) = (attempt("4bf9")?, attempt("a3ce")?);
/// assert!(!Idempotency::Content.is_same(&first, &second));
/// assert!(Idempotency::Data.is_same(&first, &second));
/// let batch = Batch::from(second).idempotency(Idempotency::Data);
/// # assert_eq!(batch.idempotency, Idempotency::Data);
/// # Ok::<(), eventstore_api::Error>(())
/// ```
///
/// The text form is `content`, `data` or `id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Idempotency {
    /// Type, aggregate, data and metadata, byte for byte.
    #[default]
    Content,
    /// Type, aggregate and data. The metadata may differ, such as a trace id that is new in each attempt.
    Data,
    /// The id alone: the first event with an id is stored, and every later append returns its position. Other content
    /// is not reported, so use this only for ids that are derived from what happened, such as the number of a message.
    Id,
}

impl Idempotency {
    /// For stores: whether `again`, which has the same id, repeats `first`.
    #[must_use]
    pub fn is_same(self, first: &Event, again: &Event) -> bool {
        match self {
            Idempotency::Content => first == again,
            Idempotency::Data => {
                first.event_type() == again.event_type()
                    && first.aggregate_id() == again.aggregate_id()
                    && first.data() == again.data()
            }
            Idempotency::Id => true,
        }
    }
}

impl fmt::Display for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Idempotency::Content => "content",
            Idempotency::Data => "data",
            Idempotency::Id => "id",
        })
    }
}

impl FromStr for Idempotency {
    type Err = Error;

    /// Reads `content`, `data` or `id`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "content" => Ok(Idempotency::Content),
            "data" => Ok(Idempotency::Data),
            "id" => Ok(Idempotency::Id),
            _ => Err(Error::InvalidOption {
                option: "idempotency".to_owned(),
                reason: format!("{text:?} is not one of content, data, id"),
            }),
        }
    }
}

/// Events that are appended together, all or none, with consecutive versions in their order (rules O2, W1).
///
/// ```
/// use eventstore_api::{Batch, Durability, Event, Expected};
///
/// let opened = Event::builder("AccountOpened", "account-7").build()?;
/// let deposited = Event::builder("MoneyDeposited", "account-7").data("25").build()?;
/// let batch = Batch::new(vec![opened, deposited]).expected(Expected::NoEvents).durability(Durability::Buffered);
/// assert_eq!(batch.events.len(), 2);
/// # Ok::<(), eventstore_api::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Batch {
    /// The events, in order. An empty batch is accepted: it writes nothing and checks no condition.
    pub events: Vec<Event>,
    /// The condition, [`Expected::Any`] by default.
    pub expected: Expected,
    /// When the append may return; `None` uses the store's setting, whose default is [`Durability::Sync`].
    pub durability: Option<Durability>,
    /// Which content is compared when an event is appended again; [`Idempotency::Content`] by default.
    pub idempotency: Idempotency,
    /// Explicit recording times, one for each event, in the years 1970 to 9999; `None` for the current time (rule W7).
    pub recorded_at: Option<Vec<SystemTime>>,
}

impl Batch {
    /// A batch of these events, without a condition, with the store's durability.
    #[must_use]
    pub fn new(events: Vec<Event>) -> Self {
        Batch { events, ..Batch::default() }
    }

    /// Appends only if this holds. A condition about an aggregate needs all events to belong to that aggregate.
    #[must_use]
    pub fn expected(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// Sets when the append may return.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Sets which content is compared when an event is appended again.
    #[must_use]
    pub fn idempotency(mut self, idempotency: Idempotency) -> Self {
        self.idempotency = idempotency;
        self
    }

    /// A batch that copies events of another store, with their recording times, on the condition that this store ends
    /// where they begin. If both stores have the same events before these, the copies get the same versions and
    /// revisions. A recording time outside the allowed years becomes the nearest allowed one.
    #[must_use]
    pub fn copy_of(recorded: &[RecordedEvent]) -> Self {
        let before = recorded.first().map_or(0, |first| first.version.get().saturating_sub(1));
        Batch::new(recorded.iter().map(|recorded| recorded.event.clone()).collect())
            .expected(Expected::LatestVersion(Version::new(before)))
            .recorded_at(recorded.iter().map(|recorded| clamp_recorded_at(recorded.recorded_at)).collect())
    }

    /// Sets the recording times, one for each event, for copies of events that were recorded elsewhere.
    #[must_use]
    pub fn recorded_at(mut self, times: Vec<SystemTime>) -> Self {
        self.recorded_at = Some(times);
        self
    }

    /// The size of all events together, in bytes, as [`MAX_BATCH_BYTES`] counts it.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.events.iter().map(Event::len_bytes).sum()
    }

    /// For stores: checks rule W5 for the batch as a whole. Each event was checked against its own limits when it was
    /// built.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidEvent`] with the field `batch`, `recorded_at` or `expected`.
    pub fn validate(&self) -> Result<()> {
        let count = self.events.len();
        if count > MAX_BATCH_EVENTS {
            let reason = format!("{count} events is over the limit of {MAX_BATCH_EVENTS} events; split it");
            return Err(Error::invalid_event("batch", reason));
        }
        let bytes = self.len_bytes();
        if bytes > MAX_BATCH_BYTES {
            let reason = format!("{bytes} bytes is over the limit of {MAX_BATCH_BYTES} bytes; split it");
            return Err(Error::invalid_event("batch", reason));
        }
        if let Some(times) = &self.recorded_at
            && times.len() != count
        {
            let reason = format!("{count} events but {} recording times; give one per event", times.len());
            return Err(Error::invalid_event("recorded_at", reason));
        }
        if let Some(time) = self.recorded_at.iter().flatten().find(|time| !can_be_recorded(**time)) {
            let reason = format!("{time:?} is not between the years 1970 and 9999");
            return Err(Error::invalid_event("recorded_at", reason));
        }
        if self.expected.is_about_aggregate()
            && let [first, rest @ ..] = self.events.as_slice()
            && let Some(other) = rest.iter().find(|event| event.aggregate_id() != first.aggregate_id())
        {
            let reason = format!(
                "{} is about one aggregate, but the batch has events of {:?} and {:?}; append them separately",
                self.expected,
                first.aggregate_id(),
                other.aggregate_id()
            );
            return Err(Error::invalid_event("expected", reason));
        }
        Ok(())
    }
}

fn can_be_recorded(time: SystemTime) -> bool {
    time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since_1970| since_1970 < RECORDED_AT_END)
}

impl From<Event> for Batch {
    fn from(event: Event) -> Self {
        Batch::new(vec![event])
    }
}

impl<const N: usize> From<[Event; N]> for Batch {
    fn from(events: [Event; N]) -> Self {
        Batch::new(events.into())
    }
}

impl From<Vec<Event>> for Batch {
    fn from(events: Vec<Event>) -> Self {
        Batch::new(events)
    }
}

/// The position of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stored {
    /// Its version in the store.
    pub version: Version,
    /// Its revision in its aggregate.
    pub revision: Revision,
    /// Whether this call wrote the event, or an earlier one had (rule W2).
    pub outcome: StoreOutcome,
}

/// Whether an append wrote the event or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreOutcome {
    /// This call wrote it.
    Written,
    /// An event with this id and the same content, as [`Idempotency`] compares it, was already stored. Nothing was
    /// written; the position is that of the stored event.
    AlreadyStored,
}

impl fmt::Display for StoreOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreOutcome::Written => "written",
            StoreOutcome::AlreadyStored => "already_stored",
        })
    }
}

impl FromStr for StoreOutcome {
    type Err = Error;

    /// Reads `written` or `already_stored`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "written" => Ok(StoreOutcome::Written),
            "already_stored" => Ok(StoreOutcome::AlreadyStored),
            _ => Err(Error::InvalidOption {
                option: "outcome".to_owned(),
                reason: format!("{text:?} is not one of written, already_stored"),
            }),
        }
    }
}

impl Stored {
    /// For stores: the position of an event, and whether this call wrote it.
    #[must_use]
    pub fn new(version: Version, revision: Revision, outcome: StoreOutcome) -> Self {
        Stored { version, revision, outcome }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Direction, Gc};

    fn event(aggregate_id: &str, data_len: usize) -> Event {
        Event::builder("T", aggregate_id).data(vec![0; data_len]).build().expect("valid")
    }

    fn refused(batch: &Batch) -> &'static str {
        match batch.validate() {
            Err(Error::InvalidEvent { field, .. }) => field,
            other => panic!("expected InvalidEvent, got {other:?}"),
        }
    }

    #[test]
    fn expectations_have_a_text_form() {
        for text in ["any", "none", "exists", "revision=0", "revision=12", "latest=0", "latest=3"] {
            let expected: Expected = text.parse().expect(text);
            assert_eq!(expected.to_string(), text);
        }
        for text in ["", "Any", "revision", "revision=", "revision=-1", "revision=1.5", "latest=x", "version=1"] {
            assert!(matches!(text.parse::<Expected>(), Err(Error::InvalidOption { .. })), "{text:?}");
        }
    }

    #[test]
    fn choices_have_a_text_form() {
        fn read_back<T: FromStr<Err = Error> + fmt::Display + fmt::Debug + PartialEq>(values: &[T], texts: &str) {
            assert_eq!(values.iter().map(T::to_string).collect::<Vec<_>>().join(" "), texts);
            let read = |text: &str| text.parse::<T>().expect("one of them");
            assert_eq!(texts.split(' ').map(read).collect::<Vec<_>>(), values);
            for wrong in ["", "Id", "sync ", "fast"] {
                assert!(matches!(wrong.parse::<T>(), Err(Error::InvalidOption { .. })), "{wrong:?}");
            }
        }
        read_back(&[Durability::Sync, Durability::Buffered], "sync buffered");
        read_back(&[Idempotency::Content, Idempotency::Data, Idempotency::Id], "content data id");
        read_back(&[StoreOutcome::Written, StoreOutcome::AlreadyStored], "written already_stored");
        read_back(&[Direction::Forward, Direction::Backward], "forward backward");
        read_back(&[Gc::Quick, Gc::Full], "quick full");
    }

    #[test]
    fn what_counts_in_a_repetition_is_what_its_idempotency_says() {
        let [first, metadata, data, other_type, aggregate] = [
            Event::builder("T", "a").data("1"),
            Event::builder("T", "a").data("1").metadata_json("{\"trace\":1}"),
            Event::builder("T", "a").data("2"),
            Event::builder("U", "a").data("1"),
            Event::builder("T", "b").data("1"),
        ]
        .map(|builder| builder.id("i").build().expect("valid"));
        let same = |idempotency: Idempotency, again: &Event| idempotency.is_same(&first, again);
        for idempotency in [Idempotency::Content, Idempotency::Data, Idempotency::Id] {
            assert!(same(idempotency, &first.clone()));
        }
        assert!(!same(Idempotency::Content, &metadata) && same(Idempotency::Data, &metadata));
        for other in [&data, &other_type, &aggregate] {
            assert!(!same(Idempotency::Content, other) && !same(Idempotency::Data, other));
            assert!(same(Idempotency::Id, other));
        }
        // Bytes that move from one part to the next change the digest.
        let shifted = Event::builder("T", "a1").id("i").data("").build().expect("valid");
        assert!(!same(Idempotency::Data, &shifted));
    }

    #[test]
    fn expectations_hold_for_what_they_say() {
        let at = |revision| move |expected: Expected| expected.holds(Revision::new(revision), Version::new(9));
        let (none, some) = (at(0), at(3));
        assert!(none(Expected::Any) && some(Expected::Any));
        assert!(none(Expected::NoEvents) && !some(Expected::NoEvents));
        assert!(!none(Expected::Exists) && some(Expected::Exists));
        assert!(
            none(Expected::Revision(Revision::ZERO))
                && some(Expected::Revision(Revision::new(3)))
                && !some(Expected::Revision(Revision::new(2)))
        );
        assert!(some(Expected::LatestVersion(Version::new(9))) && !some(Expected::LatestVersion(Version::new(8))));
    }

    #[test]
    fn batches_keep_the_limits() {
        assert!(Batch::new(vec![]).validate().is_ok());
        let many = Batch::new(vec![event("a", 0); MAX_BATCH_EVENTS]);
        assert!(many.validate().is_ok());
        let too_many = Batch::new(vec![event("a", 0); MAX_BATCH_EVENTS + 1]);
        assert_eq!(refused(&too_many), "batch");
        let too_large = Batch::new(vec![event("a", 16 << 20); 4]);
        assert_eq!(refused(&too_large), "batch");
        let two_aggregates = Batch::new(vec![event("a", 0), event("b", 0)]);
        assert!(two_aggregates.clone().expected(Expected::LatestVersion(Version::ZERO)).validate().is_ok());
        assert_eq!(refused(&two_aggregates.expected(Expected::Exists)), "expected");
        let one_time = Batch::new(vec![event("a", 0); 2]).recorded_at(vec![SystemTime::UNIX_EPOCH]);
        assert_eq!(refused(&one_time), "recorded_at");
        let at = |time| Batch::new(vec![event("a", 0)]).recorded_at(vec![time]);
        let (first, end) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + RECORDED_AT_END);
        let microsecond = Duration::from_micros(1);
        assert!(at(first).validate().is_ok() && at(end - microsecond).validate().is_ok());
        assert_eq!(refused(&at(first - microsecond)), "recorded_at");
        assert_eq!(refused(&at(end)), "recorded_at");
    }

    #[test]
    fn a_copy_has_the_times_and_goes_where_the_events_were() {
        let time = SystemTime::UNIX_EPOCH;
        let recorded = RecordedEvent::new(Version::new(7), Revision::new(2), time, event("a", 0));
        let copy = Batch::copy_of(std::slice::from_ref(&recorded));
        assert_eq!(copy.expected, Expected::LatestVersion(Version::new(6)));
        assert_eq!((copy.events, copy.recorded_at), (vec![recorded.event], Some(vec![time])));
    }
}

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_EVENTS, RECORDED_AT_END, clamp_recorded_at};
use crate::{Error, Event, RecordedEvent, Result, Version};

/// What must hold for an append to happen; checked by the writer against everything stored before it (rule W3).
///
/// To decide on what an aggregate is: load it, decide, append with the revision that was seen, and begin anew if somebody
/// was faster.
///
/// ```
/// # use eventstore_api::{Context, Error, Event, EventStore, EventStoreExt, Expected, Result, Stored, Version};
/// async fn withdraw<S: EventStore + Clone>(store: &S, ctx: &Context, account: &str) -> Result<Stored> {
///     loop {
///         let history = store.load_by_aggregate(ctx, account, Version::ZERO).into_vec().await?;
///         // … decide on the history …
///         let seen = history.last().map_or(0, |recorded| recorded.revision);
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
    /// Nothing: append in any case.
    #[default]
    Any,
    /// The aggregate has no events yet.
    NoEvents,
    /// The aggregate has at least one event.
    Exists,
    /// The aggregate's newest event has this revision. `Revision(0)` is the same as `NoEvents`.
    Revision(u64),
    /// The store's newest event has this version: nobody appended anything since.
    LatestVersion(Version),
}

impl Expected {
    /// Whether the condition is about an aggregate, and so needs a batch whose events all belong to one.
    #[must_use]
    pub fn is_about_aggregate(self) -> bool {
        matches!(self, Expected::NoEvents | Expected::Exists | Expected::Revision(_))
    }

    /// For stores: whether the condition holds, given the aggregate's revision (0 without events) and the store's
    /// latest version.
    #[must_use]
    pub fn holds(self, revision: u64, latest: Version) -> bool {
        match self {
            Expected::Any => true,
            Expected::NoEvents => revision == 0,
            Expected::Exists => revision > 0,
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
            Some(("revision", number)) => {
                let number: Version = number.parse().map_err(|_| unknown())?;
                Ok(Expected::Revision(number.get()))
            }
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
    /// The events are with the operating system: they survive a killed process, but a power cut may take the newest
    /// ones, always from the end, and their versions are then given again. It never endangers events that were appended
    /// with `Sync`.
    Buffered,
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

/// Events that are appended together, all or none, with consecutive versions in this order (rules O2, W1).
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
    /// When the append may return; `None` leaves it to the store, whose default is [`Durability::Sync`].
    pub durability: Option<Durability>,
    /// The times of recording, one for each event, in the years 1970 to 9999; `None` for now (rule W7).
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

    /// A batch that repeats what another store holds: these events with their times, if this store ends where they begin.
    /// If it holds what the other one held before them, they get the same versions and revisions. A time that cannot be recorded
    /// becomes the nearest one that can.
    #[must_use]
    pub fn copy_of(recorded: &[RecordedEvent]) -> Self {
        let before = recorded.first().map_or(0, |first| first.version.get().saturating_sub(1));
        Batch::new(recorded.iter().map(|recorded| recorded.event.clone()).collect())
            .expected(Expected::LatestVersion(Version::new(before)))
            .recorded_at(recorded.iter().map(|recorded| clamp_recorded_at(recorded.recorded_at)).collect())
    }

    /// Sets the times of recording, one for each event, for copies of events that were recorded elsewhere.
    #[must_use]
    pub fn recorded_at(mut self, times: Vec<SystemTime>) -> Self {
        self.recorded_at = Some(times);
        self
    }

    /// The bytes of all events together, as [`MAX_BATCH_BYTES`] counts them.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.events.iter().map(Event::len_bytes).sum()
    }

    /// For stores: checks rule W5 for the batch as a whole; each event already keeps its own limits.
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
            let reason = format!("{count} events with {} times of recording; give one for each", times.len());
            return Err(Error::invalid_event("recorded_at", reason));
        }
        if let Some(time) = self.recorded_at.iter().flatten().find(|time| !can_be_recorded(**time)) {
            let reason = format!("{time:?} is before 1970 or after 9999, which cannot be recorded");
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

impl From<Vec<Event>> for Batch {
    fn from(events: Vec<Event>) -> Self {
        Batch::new(events)
    }
}

/// Where an appended event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// Its version in the store.
    pub version: Version,
    /// Its revision in its aggregate.
    pub revision: u64,
    /// Whether this call wrote it, or an earlier one had (rule W2).
    pub outcome: StoreOutcome,
}

/// Whether an append wrote the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// This call wrote it.
    Written,
    /// The same event, with identical content, was there; nothing was written, and the place is that of the first.
    AlreadyStored,
}

impl Stored {
    /// For stores: the place of an event and how it came there.
    #[must_use]
    pub fn new(version: Version, revision: u64, outcome: StoreOutcome) -> Self {
        Stored { version, revision, outcome }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
    fn expectations_hold_for_what_they_say() {
        let at = |revision| move |expected: Expected| expected.holds(revision, Version::new(9));
        let (none, some) = (at(0), at(3));
        assert!(none(Expected::Any) && some(Expected::Any));
        assert!(none(Expected::NoEvents) && !some(Expected::NoEvents));
        assert!(!none(Expected::Exists) && some(Expected::Exists));
        assert!(none(Expected::Revision(0)) && some(Expected::Revision(3)) && !some(Expected::Revision(2)));
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
        let recorded = RecordedEvent::new(Version::new(7), 2, time, event("a", 0));
        let copy = Batch::copy_of(std::slice::from_ref(&recorded));
        assert_eq!(copy.expected, Expected::LatestVersion(Version::new(6)));
        assert_eq!((copy.events, copy.recorded_at), (vec![recorded.event], Some(vec![time])));
    }
}

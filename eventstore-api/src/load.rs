use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::{Error, RecordedEvent, Result, Revision, Version};

/// Whether a load runs from old to new or from new to old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Ascending versions.
    #[default]
    Forward,
    /// Descending versions.
    Backward,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        })
    }
}

impl FromStr for Direction {
    type Err = Error;

    /// Reads `forward` or `backward`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "forward" => Ok(Direction::Forward),
            "backward" => Ok(Direction::Backward),
            _ => Err(Error::InvalidOption {
                option: "direction".to_owned(),
                reason: format!("{text:?} is not one of forward, backward"),
            }),
        }
    }
}

/// Which events to load: those after `since` and before `before`, of one aggregate if set, that pass every filter.
///
/// A plain [`Version`] loads everything after it:
///
/// ```
/// use eventstore_api::{Direction, LoadOptions, Version};
///
/// let all_since: LoadOptions = Version::new(7).into();
/// assert_eq!(all_since, LoadOptions::since(Version::new(7)));
/// let newest_ten = LoadOptions::all().backward().limit(10);
/// assert_eq!(newest_ten.direction, Direction::Backward);
/// let payments = LoadOptions::all().aggregate_prefix("order-").types(["OrderPaid", "OrderRefunded"]);
/// assert_eq!(payments.types, ["OrderPaid", "OrderRefunded"]);
/// ```
///
/// # Cost
///
/// Versions and aggregates are found by an index; nothing else is read. Types, a prefix and times are filters: every
/// event between `since` and `before` (of the aggregate, if set) is read and checked, and only those that match are
/// returned. So a filter saves the work on events that do not match, but not the reading of them: to find three
/// matching events in a store of a hundred million, all are read. `since` and `before` bound the reading, and `limit`
/// ends it at the last event wanted. A load needs the memory of one page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Only events with a greater version. It may be beyond the newest event; then nothing matches.
    pub since: Version,
    /// Only events with a smaller version.
    pub before: Option<Version>,
    /// Only events of this aggregate. It may have no events; then nothing matches.
    pub aggregate_id: Option<String>,
    /// Only events with a greater revision; [`Revision::ZERO`] is before all of them.
    pub since_revision: Revision,
    /// Only events of one of these types; an empty list means every type.
    pub types: Vec<String>,
    /// Only events of aggregates whose ids begin with this prefix, compared byte by byte.
    pub aggregate_prefix: Option<String>,
    /// Only events recorded at this time or later.
    pub recorded_since: Option<SystemTime>,
    /// Only events recorded before this time.
    pub recorded_before: Option<SystemTime>,
    /// The end to begin with.
    pub direction: Direction,
    /// At most this many matching events.
    pub limit: Option<u64>,
}

impl LoadOptions {
    /// Every event, oldest first.
    #[must_use]
    pub fn all() -> Self {
        LoadOptions::default()
    }

    /// Every event with a greater version, oldest first. This is a seek: earlier events are not read.
    #[must_use]
    pub fn since(version: Version) -> Self {
        LoadOptions { since: version, ..LoadOptions::default() }
    }

    /// Only events with a smaller version. This is a seek: later events are not read.
    #[must_use]
    pub fn before(mut self, version: Version) -> Self {
        self.before = Some(version);
        self
    }

    /// Only events of this aggregate. Uses the index: other events are not read.
    #[must_use]
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// Only events with a greater revision. With [`aggregate`](Self::aggregate), this loads what is new in an aggregate
    /// that was loaded up to this revision.
    ///
    /// With an aggregate it is a seek, if the store's index has revisions. Without one it is a filter: every event
    /// between `since` and `before` is read.
    #[must_use]
    pub fn since_revision(mut self, revision: Revision) -> Self {
        self.since_revision = revision;
        self
    }

    /// Only events of one of these types. Types are compared as a whole. An empty list means every type.
    ///
    /// This is a filter: every event between `since` and `before`, of the aggregate if set, is read.
    #[must_use]
    pub fn types<T: Into<String>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        self.types = types.into_iter().map(Into::into).collect();
        self
    }

    /// Only events of aggregates whose ids begin with this prefix, compared byte by byte.
    ///
    /// This is a filter: every event between `since` and `before` is read, even if few aggregates match. In that case,
    /// list the aggregates with [`list_aggregates`](crate::EventStore::list_aggregates) and load each of them; both use
    /// the index.
    #[must_use]
    pub fn aggregate_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.aggregate_prefix = Some(prefix.into());
        self
    }

    /// Only events recorded at this time or later.
    ///
    /// This is a filter: every event between `since` and `before` is read. Recording times need not rise with versions,
    /// since clocks are set back and an append may set its own times. So a store may seek by time only where it knows
    /// better.
    #[must_use]
    pub fn recorded_since(mut self, time: SystemTime) -> Self {
        self.recorded_since = Some(time);
        self
    }

    /// Only events recorded before this time. The time itself is excluded, so that one period ends where the next
    /// begins.
    ///
    /// This is a filter, like [`recorded_since`](Self::recorded_since).
    #[must_use]
    pub fn recorded_before(mut self, time: SystemTime) -> Self {
        self.recorded_before = Some(time);
        self
    }

    /// Newest first.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.direction = Direction::Backward;
        self
    }

    /// At most this many matching events.
    #[must_use]
    pub fn limit(mut self, events: u64) -> Self {
        self.limit = Some(events);
        self
    }

    /// For stores: whether the options select this event. The limit is not checked.
    #[must_use]
    pub fn matches(&self, recorded: &RecordedEvent) -> bool {
        let RecordedEvent { version, revision, recorded_at, event, .. } = recorded;
        *version > self.since
            && self.before.is_none_or(|before| *version < before)
            && self.aggregate_id.as_deref().is_none_or(|id| id == event.aggregate_id())
            && *revision > self.since_revision
            && (self.types.is_empty() || self.types.iter().any(|wanted| wanted == event.event_type()))
            && self.aggregate_prefix.as_deref().is_none_or(|prefix| event.aggregate_id().starts_with(prefix))
            && self.recorded_since.is_none_or(|since| *recorded_at >= since)
            && self.recorded_before.is_none_or(|before| *recorded_at < before)
    }
}

impl From<Version> for LoadOptions {
    fn from(since: Version) -> Self {
        LoadOptions::since(since)
    }
}

/// The most that one page may hold. A page ends at the limit that is reached first, and has at least one event if any
/// matches. A store may end it earlier: pages larger than 65,536 events or 64 MiB have no benefit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PageSize {
    /// At most this many events; 0 counts as 1.
    pub events: usize,
    /// The page ends with the event that reaches this many bytes of stored records.
    pub bytes: usize,
}

impl PageSize {
    /// 64 events or 32 KiB: the first page of a stream, so that the first event comes soon.
    pub const FIRST: PageSize = PageSize { events: 64, bytes: 32 << 10 };

    /// 512 events or 256 KiB, which fits into the processor's cache. A stream grows its pages up to this size.
    pub const LARGEST: PageSize = PageSize { events: 512, bytes: 256 << 10 };

    /// A page of this many events or bytes of stored records.
    #[must_use]
    pub const fn new(events: usize, bytes: usize) -> Self {
        PageSize { events, bytes }
    }

    /// A page of twice this size, up to [`PageSize::LARGEST`].
    #[must_use]
    pub fn grown(self) -> Self {
        PageSize {
            events: self.events.saturating_mul(2).min(Self::LARGEST.events),
            bytes: self.bytes.saturating_mul(2).min(Self::LARGEST.bytes),
        }
    }
}

impl Default for PageSize {
    fn default() -> Self {
        PageSize::FIRST
    }
}

/// One page of a load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page {
    /// The events, in the direction of the load. Empty only if no more events matched.
    pub events: Vec<RecordedEvent>,
    /// The options for the next page, or `None` if this was the last one.
    ///
    /// They are bounded by the `head` of the first page: a load shows the store as it was when it began, and ends even
    /// while events are appended (rule O5).
    pub next: Option<LoadOptions>,
    /// The latest version when the page was read.
    pub head: Version,
}

impl Page {
    /// For stores: the page that answers `options` with these events, read at this head.
    ///
    /// `complete` means that no more events match. The limit is applied here.
    #[must_use]
    pub fn new(options: &LoadOptions, events: Vec<RecordedEvent>, head: Version, complete: bool) -> Self {
        let loaded = events.len() as u64;
        let next = match (events.last(), complete || options.limit.is_some_and(|limit| loaded >= limit)) {
            (Some(last), false) => {
                let mut next = options.clone();
                next.limit = options.limit.map(|limit| limit - loaded);
                next.before = Some(options.before.map_or(head.next(), |before| before.min(head.next())));
                match options.direction {
                    Direction::Forward => next.since = last.version,
                    Direction::Backward => next.before = Some(last.version),
                }
                Some(next)
            }
            _ => None,
        };
        Page { events, next, head }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Event, Revision};

    fn events(versions: &[u64]) -> Vec<RecordedEvent> {
        let event = Event::builder("T", "a").build().expect("valid");
        let recorded = |&version| {
            RecordedEvent::new(Version::new(version), Revision::new(1), SystemTime::UNIX_EPOCH, event.clone())
        };
        versions.iter().map(recorded).collect()
    }

    #[test]
    fn the_next_page_begins_behind_the_last_event_and_stays_below_the_first_head() {
        let options = LoadOptions::all().limit(5);
        let page = Page::new(&options, events(&[1, 2]), Version::new(9), false);
        let next = LoadOptions::since(Version::new(2)).before(Version::new(10)).limit(3);
        assert_eq!(page.next, Some(next.clone()));
        let page = Page::new(&next, events(&[3]), Version::new(99), false);
        assert_eq!(page.next, Some(LoadOptions::since(Version::new(3)).before(Version::new(10)).limit(2)));
    }

    #[test]
    fn the_next_page_has_the_filters_of_the_first() {
        let time = SystemTime::UNIX_EPOCH;
        let options =
            LoadOptions::all().aggregate("a").aggregate_prefix("a").types(["T"]).since_revision(Revision::new(3));
        let options = options.recorded_since(time).recorded_before(time + Duration::from_secs(1));
        let next = Page::new(&options, events(&[4]), Version::new(9), false).next.expect("more may match");
        assert_eq!(LoadOptions { since: Version::ZERO, before: None, ..next }, options);
    }

    #[test]
    fn each_filter_alone_accepts_what_it_is_about() {
        let time = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        let event = Event::builder("Paid", "order-42").build().expect("valid");
        let recorded = RecordedEvent::new(Version::new(7), Revision::new(3), time(5), event);
        let every = LoadOptions::all();
        let with = |change: fn(LoadOptions) -> LoadOptions| change(LoadOptions::all()).matches(&recorded);
        assert!(every.matches(&recorded));
        assert!(LoadOptions::since(6.into()).matches(&recorded) && !LoadOptions::since(7.into()).matches(&recorded));
        assert!(with(|all| all.before(8.into())) && !with(|all| all.before(7.into())));
        assert!(with(|all| all.aggregate("order-42")) && !with(|all| all.aggregate("order-4")));
        assert!(with(|all| all.since_revision(Revision::new(2))) && !with(|all| all.since_revision(Revision::new(3))));
        assert!(with(|all| all.types(["Placed", "Paid"])) && !with(|all| all.types(["Pai", "Paid2", "paid"])));
        assert!(with(|all| all.types([""; 0])), "no type is every type");
        assert!(with(|all| all.aggregate_prefix("")) && with(|all| all.aggregate_prefix("order-42")));
        assert!(!with(|all| all.aggregate_prefix("rder")) && !with(|all| all.aggregate_prefix("order-421")));
        for (at, is_since, is_before) in [(4, true, false), (5, true, false), (6, false, true)] {
            assert_eq!(every.clone().recorded_since(time(at)).matches(&recorded), is_since, "since {at}");
            assert_eq!(every.clone().recorded_before(time(at)).matches(&recorded), is_before, "before {at}");
        }
    }

    #[test]
    fn backward_pages_go_down() {
        let page = Page::new(&LoadOptions::all().backward(), events(&[9, 8]), Version::new(9), false);
        assert_eq!(page.next, Some(LoadOptions::all().backward().before(Version::new(8))));
    }

    #[test]
    fn a_complete_or_empty_or_filled_page_is_the_last() {
        let head = Version::new(2);
        assert!(Page::new(&LoadOptions::all(), events(&[1, 2]), head, true).next.is_none());
        assert!(Page::new(&LoadOptions::all(), vec![], head, false).next.is_none());
        assert!(Page::new(&LoadOptions::all().limit(2), events(&[1, 2]), head, false).next.is_none());
    }
}

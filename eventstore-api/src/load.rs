use crate::{RecordedEvent, Version};

/// Whether a load goes from old to new or from new to old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Ascending versions.
    #[default]
    Forward,
    /// Descending versions.
    Backward,
}

/// Which events to load: those with `since < version`, below `before` if set, of one aggregate if set.
///
/// A plain [`Version`] is a load of everything after it:
///
/// ```
/// use eventstore_api::{Direction, LoadOptions, Version};
///
/// let all_since: LoadOptions = Version::new(7).into();
/// assert_eq!(all_since, LoadOptions::since(Version::new(7)));
/// let newest_ten = LoadOptions::all().backward().limit(10);
/// assert_eq!(newest_ten.direction, Direction::Backward);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Only events with a greater version. A version beyond the newest event is no error; nothing matches.
    pub since: Version,
    /// Only events with a smaller version.
    pub before: Option<Version>,
    /// Only events of this aggregate. One without events is no error; nothing matches.
    pub aggregate_id: Option<String>,
    /// Which end to begin with.
    pub direction: Direction,
    /// At most this many events.
    pub limit: Option<u64>,
}

impl LoadOptions {
    /// Every event, oldest first.
    #[must_use]
    pub fn all() -> Self {
        LoadOptions::default()
    }

    /// Every event with a greater version, oldest first.
    #[must_use]
    pub fn since(version: Version) -> Self {
        LoadOptions { since: version, ..LoadOptions::default() }
    }

    /// Only events with a version smaller than this one.
    #[must_use]
    pub fn before(mut self, version: Version) -> Self {
        self.before = Some(version);
        self
    }

    /// Only events of this aggregate.
    #[must_use]
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// Newest first.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.direction = Direction::Backward;
        self
    }

    /// At most this many events.
    #[must_use]
    pub fn limit(mut self, events: u64) -> Self {
        self.limit = Some(events);
        self
    }
}

impl From<Version> for LoadOptions {
    fn from(since: Version) -> Self {
        LoadOptions::since(since)
    }
}

/// How much one page may hold. A page ends at whichever is reached first, and has at least one event if one matches.
/// A store may end it earlier: pages larger than 65,536 events or 64 MiB are of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageSize {
    /// At most this many events; 0 is taken as 1.
    pub events: usize,
    /// The page ends with the event that reaches this many bytes of stored records.
    pub bytes: usize,
}

impl PageSize {
    /// 64 events or 32 KiB: a stream begins with it, so that the first event comes soon.
    pub const FIRST: PageSize = PageSize { events: 64, bytes: 32 << 10 };

    /// 512 events or 256 KiB, which stays in the processor's cache: a stream grows its pages up to it.
    pub const LARGEST: PageSize = PageSize { events: 512, bytes: 256 << 10 };

    /// A page of this many events or bytes of stored records.
    #[must_use]
    pub const fn new(events: usize, bytes: usize) -> Self {
        PageSize { events, bytes }
    }

    /// Twice as large, up to [`PageSize::LARGEST`].
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
    /// The events, in the direction of the load. Empty only if no further event matched.
    pub events: Vec<RecordedEvent>,
    /// What to load for the next page, or `None` if this was the last one.
    ///
    /// It is bounded by the `head` of the first page: a load shows the store as it was when it began, and ends even
    /// while writers write (rule O5).
    pub next: Option<LoadOptions>,
    /// The latest version when the page was read.
    pub head: Version,
}

impl Page {
    /// For stores: the page that answers `options` with these events, read at this head.
    ///
    /// `complete` says that no further event matched; the limit is taken into account here.
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
    use std::time::SystemTime;

    use super::*;
    use crate::Event;

    fn events(versions: &[u64]) -> Vec<RecordedEvent> {
        let event = Event::builder("T", "a").build().expect("valid");
        let recorded = |&version| RecordedEvent::new(Version::new(version), 1, SystemTime::UNIX_EPOCH, event.clone());
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

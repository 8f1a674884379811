use std::collections::BTreeMap;

use crate::{Context, EventStore, LoadOptions, PageSize, Result, Revision, Version};

/// The newest revision and version of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct AggregateInfo {
    /// Its id.
    pub aggregate_id: String,
    /// The revision of its newest event, which is also its number of events: at least 1.
    pub revision: Revision,
    /// The version of its newest event.
    pub version: Version,
}

impl AggregateInfo {
    /// For stores: an aggregate whose newest event has this revision and this version.
    #[must_use]
    pub fn new(aggregate_id: String, revision: Revision, version: Version) -> Self {
        AggregateInfo { aggregate_id, revision, version }
    }
}

/// Which aggregates to list: those whose ids begin with `prefix` and are greater than `after`. If `before` is set, only
/// the events with smaller versions count.
///
/// ```
/// use eventstore_api::AggregateOptions;
///
/// let orders = AggregateOptions::all().prefix("order-").after("order-41");
/// assert_eq!((orders.prefix.as_str(), orders.after.as_str()), ("order-", "order-41"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AggregateOptions {
    /// Only aggregates whose ids begin with this prefix, compared byte by byte. Empty: all aggregates.
    pub prefix: String,
    /// Only aggregates whose ids are greater than this one, compared byte by byte. Empty: all aggregates.
    pub after: String,
    /// Only events with a smaller version count: the list shows the store as it was then. Aggregates without such
    /// events are left out.
    pub before: Option<Version>,
}

impl AggregateOptions {
    /// Every aggregate.
    #[must_use]
    pub fn all() -> Self {
        AggregateOptions::default()
    }

    /// Only aggregates whose ids begin with this. This is a seek: other aggregates are not read.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Only aggregates whose ids are greater than this one. This is a seek, like [`prefix`](Self::prefix).
    #[must_use]
    pub fn after(mut self, aggregate_id: impl Into<String>) -> Self {
        self.after = aggregate_id.into();
        self
    }

    /// Only events with a version smaller than this one count.
    #[must_use]
    pub fn before(mut self, version: Version) -> Self {
        self.before = Some(version);
        self
    }
}

/// One page of a list of aggregates.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AggregatePage {
    /// The aggregates, in ascending byte order of their ids. Empty only if there are no more.
    pub aggregates: Vec<AggregateInfo>,
    /// The options for the next page, or `None` if this was the last one.
    ///
    /// They are bounded by the `head` of the first page, like the next page of a load: a list shows the store as it was
    /// when the list began.
    pub next: Option<AggregateOptions>,
    /// The latest version when the page was read.
    pub head: Version,
}

impl AggregatePage {
    /// The most aggregates in one page, however many are asked for.
    pub const MOST: usize = 10_000;

    /// For stores: the page that answers `options` with these aggregates, read at this head. `complete` means that
    /// there are no more.
    #[must_use]
    pub fn new(options: &AggregateOptions, aggregates: Vec<AggregateInfo>, head: Version, complete: bool) -> Self {
        let next = aggregates.last().filter(|_| !complete).map(|last| AggregateOptions {
            after: last.aggregate_id.clone(),
            before: Some(options.before.map_or(head.next(), |before| before.min(head.next()))),
            prefix: options.prefix.clone(),
        });
        AggregatePage { aggregates, next, head }
    }
}

/// Lists aggregates by reading every event. Only the `most` aggregates with the smallest ids are kept in memory.
pub(crate) async fn list_by_reading<S: EventStore + ?Sized>(
    store: &S,
    ctx: &Context,
    options: &AggregateOptions,
    most: usize,
) -> Result<AggregatePage> {
    let most = most.clamp(1, AggregatePage::MOST);
    let mut events = LoadOptions::all();
    events.before = options.before;
    events.aggregate_prefix = Some(options.prefix.clone()).filter(|prefix| !prefix.is_empty());
    let (mut next, mut size, mut head) = (Some(events), PageSize::FIRST, None);
    let (mut smallest, mut complete) = (BTreeMap::<String, AggregateInfo>::new(), true);
    while let Some(events) = next {
        let page = store.load_page(ctx, &events, size).await?;
        head.get_or_insert(page.head); // the pages show the store as it was at the first one
        for recorded in &page.events {
            let aggregate_id = recorded.event.aggregate_id();
            if let Some(known) = smallest.get_mut(aggregate_id) {
                (known.revision, known.version) = (recorded.revision, recorded.version);
            } else if aggregate_id > options.after.as_str() {
                let aggregate = AggregateInfo::new(aggregate_id.to_owned(), recorded.revision, recorded.version);
                smallest.insert(aggregate_id.to_owned(), aggregate);
                if smallest.len() > most {
                    smallest.pop_last(); // greater than all that stay, so it cannot come back
                    complete = false;
                }
            }
        }
        (next, size) = (page.next, size.grown());
    }
    Ok(AggregatePage::new(options, smallest.into_values().collect(), head.unwrap_or_default(), complete))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_begins_behind_the_last_aggregate_and_stays_below_the_first_head() {
        let aggregates = |ids: &[&str]| -> Vec<_> {
            ids.iter().map(|id| AggregateInfo::new((*id).to_owned(), Revision::new(1), Version::new(1))).collect()
        };
        let options = AggregateOptions::all().prefix("o");
        let page = AggregatePage::new(&options, aggregates(&["o1", "o2"]), Version::new(9), false);
        let next = options.after("o2").before(Version::new(10));
        assert_eq!(page.next, Some(next.clone()));
        let page = AggregatePage::new(&next, aggregates(&["o3"]), Version::new(99), false);
        assert_eq!(page.next, Some(next.clone().after("o3")));
        assert!(AggregatePage::new(&next, aggregates(&["o4"]), Version::new(99), true).next.is_none());
        assert!(AggregatePage::new(&next, aggregates(&[]), Version::new(99), false).next.is_none());
    }
}

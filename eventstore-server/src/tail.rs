//! The newest events of a store: one task reads them, and wakes the followers whose filters they match.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::time::Duration;

use axum::body::Bytes;
use eventstore::backend::EventStore;
use eventstore_api::{Context, Error, LoadOptions, PageSize, RecordedEvent, Version};
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::follow::Stream;
use crate::stores::{Served, lock};

/// The most pages of news that wait for a slow follower. A follower beyond that reads from the store.
const PAGES: usize = 8;

/// The approximate cost of passing news to a follower, and of a follower that they do not match. Followers should use
/// only a part of the processors. So with many followers, news come in larger pages.
const COST: Duration = Duration::from_micros(25);
const COST_OF_IDLE: Duration = Duration::from_nanos(200);

/// The longest delay of news, however many followers there are.
const LONGEST_PACE: Duration = Duration::from_millis(500);

/// The pause before failed reads of news are repeated.
const PAUSE: Duration = Duration::from_secs(1);

/// The newest events of a store, read once and encoded once for all followers that are up to date.
pub(crate) struct Tail {
    store: Arc<dyn EventStore>,
    subscribers: Mutex<Subscribers>,
    /// Notified when the last subscriber leaves.
    is_left: Notify,
    /// Everything up to this version was put into the inboxes of the matching followers.
    head: AtomicU64,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let followers = lock(&self.subscribers).all.len();
        f.debug_struct("Tail").field("followers", &followers).finish_non_exhaustive()
    }
}

/// Consecutive events, in the requested formats.
pub(crate) struct News {
    pub(crate) events: Vec<RecordedEvent>,
    /// The version of the last event; for news without events, the version after which the next ones begin.
    pub(crate) head: Version,
    lines: OnceLock<Bytes>,
    messages: OnceLock<Bytes>,
    frames: OnceLock<Bytes>,
}

impl News {
    fn new(head: Version, events: Vec<RecordedEvent>) -> Arc<Self> {
        let [lines, messages, frames] = [const { OnceLock::new() }; 3];
        Arc::new(News { events, head, lines, messages, frames })
    }

    /// All events in this format.
    pub(crate) fn written(&self, form: Stream) -> Bytes {
        let cell = match form {
            Stream::Lines => &self.lines,
            Stream::Messages => &self.messages,
            Stream::Frames => &self.frames,
        };
        cell.get_or_init(|| form.write(&self.events)).clone()
    }
}

/// The subscribers to the news.
#[derive(Default)]
struct Subscribers {
    all: HashMap<u64, Subscriber>,
    next_key: u64,
    /// Subscribers by what they wait for, to look up new events.
    by_aggregate: Index<String>,
    by_type: Index<String>,
    /// Subscribers that must check each event.
    others: BTreeSet<u64>,
    /// Whether a task is reading for them.
    is_read: bool,
}

struct Subscriber {
    filter: LoadOptions,
    /// It has no filter.
    takes_all: bool,
    inbox: Arc<Inbox>,
}

/// The keys of subscribers.
struct Index<K>(HashMap<K, BTreeSet<u64>>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Index(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone> Index<K> {
    fn insert(&mut self, name: &K, key: u64) {
        self.0.entry(name.clone()).or_default().insert(key);
    }

    fn remove(&mut self, name: &K, key: u64) {
        if let Some(keys) = self.0.get_mut(name) {
            keys.remove(&key);
            if keys.is_empty() {
                self.0.remove(name);
            }
        }
    }
}

impl Subscribers {
    fn insert(&mut self, filter: LoadOptions, inbox: Arc<Inbox>) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        match (&filter.aggregate_id, &filter.types[..]) {
            (Some(id), _) => self.by_aggregate.insert(id, key),
            (None, []) => {
                self.others.insert(key);
            }
            (None, types) => types.iter().for_each(|name| self.by_type.insert(name, key)),
        }
        let takes_all = filter == LoadOptions::since(filter.since);
        self.all.insert(key, Subscriber { filter, takes_all, inbox });
        key
    }

    fn remove(&mut self, key: u64) -> Option<Subscriber> {
        let subscriber = self.all.remove(&key)?;
        match (&subscriber.filter.aggregate_id, &subscriber.filter.types[..]) {
            (Some(id), _) => self.by_aggregate.remove(id, key),
            (None, []) => {
                self.others.remove(&key);
            }
            (None, types) => types.iter().for_each(|name| self.by_type.remove(name, key)),
        }
        Some(subscriber)
    }

    /// The subscribers that these events concern.
    fn concerned(&self, events: &[RecordedEvent]) -> BTreeSet<u64> {
        let is_concerned = |key: &u64| {
            let subscriber = &self.all.get(key);
            subscriber.is_some_and(|one| one.takes_all || events.iter().any(|event| one.filter.matches(event)))
        };
        let mut keys: BTreeSet<u64> = self.others.iter().copied().filter(is_concerned).collect();
        for recorded in events {
            let indexed = [
                self.by_aggregate.0.get(recorded.event.aggregate_id()),
                self.by_type.0.get(recorded.event.event_type()),
            ];
            for &key in indexed.into_iter().flatten().flatten() {
                if !keys.contains(&key) && self.all.get(&key).is_some_and(|one| one.filter.matches(recorded)) {
                    keys.insert(key);
                }
            }
        }
        keys
    }

    /// Passes news to these subscribers, and returns their number.
    fn give(&mut self, keys: impl IntoIterator<Item = u64>, news: &Arc<News>) -> u32 {
        let mut given = 0;
        for key in keys {
            given += 1;
            if self.all.get(&key).is_some_and(|subscriber| !subscriber.inbox.put(news)) {
                self.remove(key);
            }
        }
        given
    }
}

/// The news that wait for a follower.
#[derive(Default)]
struct Inbox {
    waiting: Mutex<Waiting>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    news: VecDeque<Arc<News>>,
    /// Nothing follows: the follower was too slow, or the reader has ended.
    is_over: bool,
}

impl Inbox {
    /// Whether there was room. If not, the inbox is closed.
    fn put(&self, news: &Arc<News>) -> bool {
        let mut waiting = lock(&self.waiting);
        let has_room = waiting.news.len() < PAGES;
        match has_room {
            true => waiting.news.push_back(news.clone()),
            false => waiting.is_over = true,
        }
        drop(waiting);
        self.waker.wake();
        has_room
    }

    fn end(&self) {
        lock(&self.waiting).is_over = true;
        self.waker.wake();
    }
}

/// The subscription of a follower.
pub(crate) struct Subscription {
    served: Arc<Served>,
    key: u64,
    inbox: Arc<Inbox>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let tail = &self.served.tail;
        let mut subscribers = lock(&tail.subscribers);
        subscribers.remove(self.key);
        if subscribers.all.is_empty() {
            tail.is_left.notify_one();
        }
    }
}

impl Subscription {
    /// The next matching news; `None` if the follower has to read from the store and subscribe again.
    pub(crate) async fn next(&mut self) -> Option<Arc<News>> {
        poll_fn(|cx| {
            self.inbox.waker.register(cx.waker());
            let mut waiting = lock(&self.inbox.waiting);
            match (waiting.news.pop_front(), waiting.is_over) {
                (Some(news), _) => Poll::Ready(Some(news)),
                (None, true) => Poll::Ready(None),
                (None, false) => Poll::Pending,
            }
        })
        .await
    }

    /// A version up to which it has taken everything that matches; `None` if something waits, or it has ended.
    pub(crate) fn idle_up_to(&self) -> Option<Version> {
        // In this order: anything added in between is found in the inbox.
        let head = self.served.tail.head.load(Ordering::Acquire);
        let waiting = lock(&self.inbox.waiting);
        (waiting.news.is_empty() && !waiting.is_over).then(|| Version::new(head))
    }
}

impl Tail {
    pub(crate) fn new(store: Arc<dyn EventStore>) -> Self {
        Tail { store, subscribers: Mutex::default(), is_left: Notify::new(), head: AtomicU64::new(0) }
    }

    /// Subscribes to matching news from now on. A task reads them as long as somebody is subscribed.
    pub(crate) fn subscribe(served: &Arc<Served>, filter: LoadOptions) -> Subscription {
        let inbox = Arc::new(Inbox::default());
        let mut subscribers = lock(&served.tail.subscribers);
        let key = subscribers.insert(filter, inbox.clone());
        let is_read = std::mem::replace(&mut subscribers.is_read, true);
        drop(subscribers);
        if !is_read {
            tokio::spawn(read_news(served.clone()));
        }
        Subscription { served: served.clone(), key, inbox }
    }

    /// Returns how many subscribers it has woken, and how many there are.
    fn tell(&self, head: Version, events: Vec<RecordedEvent>) -> (u32, u32) {
        let mut subscribers = lock(&self.subscribers);
        let all = u32::try_from(subscribers.all.len()).unwrap_or(u32::MAX);
        let keys = subscribers.concerned(&events);
        let woken = subscribers.give(keys, &News::new(head, events));
        self.head.store(head.get(), Ordering::Release);
        (woken, all)
    }

    /// Tells all subscribers where the news begin. It matters to those that have read up to an earlier version.
    fn begin(&self, head: Version) {
        let mut subscribers = lock(&self.subscribers);
        let keys: Vec<_> = subscribers.all.keys().copied().collect();
        subscribers.give(keys, &News::new(head, Vec::new()));
        self.head.store(head.get(), Ordering::Release);
    }

    fn is_wanted(&self) -> bool {
        !lock(&self.subscribers).all.is_empty()
    }
}

/// Reads new events and passes them to all subscribers, until there are none.
async fn read_news(served: Arc<Served>) {
    /// However the reading ends, subscribers then read from the store, and the next subscription starts it again.
    struct Reading(Arc<Served>);
    impl Drop for Reading {
        fn drop(&mut self) {
            let mut subscribers = lock(&self.0.tail.subscribers);
            let none = Subscribers { next_key: subscribers.next_key, ..Subscribers::default() };
            let subscribers = std::mem::replace(&mut *subscribers, none);
            subscribers.all.into_values().for_each(|subscriber| subscriber.inbox.end());
        }
    }
    let reading = Reading(served);
    if let Err(error) = read_while_wanted(&reading.0.tail).await {
        tracing::debug!(%error, "reading new events failed");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Repeats a call while the server of the store is away (PostgreSQL): followers stay connected until it is back.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(tail: &Tail, call: impl Fn() -> F) -> Result<T, Error> {
    loop {
        let answer = call().await;
        if !matches!(answer, Err(Error::Unavailable { .. })) {
            return answer;
        }
        tokio::time::sleep(PAUSE).await;
        if !tail.is_wanted() {
            return answer;
        }
    }
}

async fn read_while_wanted(tail: &Tail) -> Result<(), Error> {
    let ctx = Context::background();
    let mut seen = patiently(tail, || tail.store.latest_version(&ctx)).await?;
    tail.begin(seen);
    while tail.is_wanted() {
        let waited = tokio::select! {
            biased;
            () = tail.is_left.notified() => continue, // somebody else may have come
            waited = patiently(tail, || tail.store.wait_for_events(&ctx, seen)) => waited,
        };
        waited?;
        // Read everything that is there by now: the pause is between rounds, not between pages.
        let mut next = Some(LoadOptions::since(seen));
        let (mut woken, mut all) = (0_u32, 0);
        while let Some(options) = next {
            let page = patiently(tail, || tail.store.load_page(&ctx, &options, PageSize::LARGEST)).await?;
            next = page.next;
            if let Some(last) = page.events.last() {
                seen = last.version;
                let (of_page, there) = tail.tell(seen, page.events);
                (woken, all) = (woken.max(of_page), there);
            }
        }
        let cost = COST.saturating_mul(woken).saturating_add(COST_OF_IDLE.saturating_mul(all));
        tokio::time::sleep(cost.min(LONGEST_PACE)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use eventstore_api::{Event, Revision};
    use std::time::SystemTime;

    use super::*;

    fn recorded(version: u64, event_type: &str, aggregate_id: &str) -> RecordedEvent {
        let event = Event::builder(event_type, aggregate_id).build().expect("valid");
        RecordedEvent::new(Version::new(version), Revision::new(1), SystemTime::UNIX_EPOCH, event)
    }

    fn filters() -> Vec<LoadOptions> {
        let all = LoadOptions::all;
        vec![
            all(),
            LoadOptions::since(Version::new(3)),
            all().aggregate("a"),
            all().aggregate("b").types(["T"]),
            all().aggregate("missing"),
            all().types(["T", "U"]),
            all().types(["V"]),
            all().aggregate_prefix("b"),
            all().since_revision(Revision::new(1)),
            all().recorded_since(SystemTime::now()),
            all().types(["T"]).aggregate_prefix("a"),
        ]
    }

    #[test]
    fn news_concern_those_whose_filter_matches_and_nobody_else() {
        let events = [
            recorded(1, "T", "a"),
            recorded(2, "U", "a"),
            recorded(3, "U", "b"),
            recorded(4, "V", "bc"),
            recorded(5, "W", "c"),
        ];
        for from in 0..events.len() {
            for to in from + 1..=events.len() {
                let events = &events[from..to];
                let mut subscribers = Subscribers::default();
                for filter in filters() {
                    subscribers.insert(filter, Arc::default());
                }
                let concerned: Vec<_> = subscribers.concerned(events).into_iter().collect();
                let matching = filters().into_iter().enumerate().filter(|(nth, filter)| {
                    // The beginning of later events is known to match only when it is read.
                    *nth == 1 || events.iter().any(|event| filter.matches(event))
                });
                assert_eq!(concerned, matching.map(|(nth, _)| nth as u64).collect::<Vec<_>>(), "{from}..{to}");
                for key in 0..filters().len() as u64 {
                    subscribers.remove(key).expect("there");
                }
                assert!(subscribers.concerned(events).is_empty());
                assert!(subscribers.by_aggregate.0.is_empty() && subscribers.by_type.0.is_empty(), "nothing is left");
            }
        }
    }

    #[tokio::test]
    async fn a_subscription_begins_where_the_news_do_and_leaves_nothing_behind() {
        let store = eventstore::open("memory:").await.expect("opened");
        store.append([recorded(1, "T", "a").event, recorded(2, "T", "a").event]).await.expect("appended");
        let served = Served::new(String::new(), store.backend().clone());
        let filter = LoadOptions::since(Version::new(2)).aggregate("b");
        let mut first = Tail::subscribe(&served, filter.clone());
        // Whoever read before that can tell by this whether there is a gap.
        let begin = first.next().await.expect("the beginning");
        assert_eq!((begin.head, begin.events.len()), (Version::new(2), 0));
        assert_eq!(first.idle_up_to(), Some(Version::new(2)));
        let second = Tail::subscribe(&served, filter);
        assert_eq!(lock(&served.tail.subscribers).all.len(), 2);
        store.append([recorded(3, "T", "a").event, recorded(4, "T", "b").event]).await.expect("appended");
        assert_eq!(first.next().await.expect("news").head, Version::new(4));
        assert_eq!(second.idle_up_to(), None, "something waits");
        drop((first, second));
        assert!(!served.tail.is_wanted() && lock(&served.tail.subscribers).by_aggregate.0.is_empty());
        // The notice at the reader's end, after an error or without subscribers.
        store.close().await.expect("closed");
        let mut third = Tail::subscribe(&served, LoadOptions::all());
        while third.next().await.is_some() {}
    }

    #[test]
    fn a_follower_that_is_too_slow_is_told_to_read_by_itself() {
        let mut subscribers = Subscribers::default();
        let (slow, other) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
        subscribers.insert(LoadOptions::all().aggregate("a"), slow.clone());
        subscribers.insert(LoadOptions::all().aggregate("b"), other.clone());
        for version in 1..=PAGES as u64 + 3 {
            let news = News::new(Version::new(version), vec![recorded(version, "T", "a")]);
            let keys = subscribers.concerned(&news.events);
            subscribers.give(keys, &news);
        }
        let waiting = lock(&slow.waiting);
        assert_eq!((waiting.news.len(), waiting.is_over), (PAGES, true));
        assert!(lock(&other.waiting).news.is_empty() && !lock(&other.waiting).is_over, "it is not even woken");
        assert_eq!(subscribers.all.len(), 1, "nothing more is kept for it");
    }
}

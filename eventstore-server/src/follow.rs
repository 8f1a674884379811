//! Streams of events that go on with each new one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use eventstore::backend::EventStore;
use eventstore_api::{Context, Error, LoadOptions, Page, PageSize, RecordedEvent, Version};
use eventstore_wire::{EVENT_STREAM, JSON_LINES, Problem};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, sleep_until};

use crate::access::{Gone, gone};
use crate::answer::{Answer, Params, Reading, accepts, stopping, stream};
use crate::gosync::frames;
use crate::read::check_since;
use crate::server::{App, Counted, Kind};
use crate::stores::Served;

/// Pages of news that wait for a follower that is slower. One that is slower still reads them from the store.
const PAGES: usize = 8;

/// What it costs to give news to a follower, about. All followers are to take a part of the processors, not all of them: so
/// with many of them the news come in larger pages.
const COST: Duration = Duration::from_micros(25);

/// The news come not later than this, however many followers there are.
const LONGEST_PACE: Duration = Duration::from_millis(500);

/// Types that a follower may name: they are kept as long as it follows, and each new event is compared with them.
const MOST_TYPES: usize = 100;

/// The newest events of a store, read once and written once for all followers that are up to date.
pub(crate) struct Tail {
    store: Arc<dyn EventStore>,
    news: broadcast::Sender<Arc<News>>,
    /// A task reads them.
    is_read: AtomicBool,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("followers", &self.news.receiver_count()).finish_non_exhaustive()
    }
}

/// Events without a gap, in the forms that were asked for.
struct News {
    events: Vec<RecordedEvent>,
    /// The version of the last of them; of the first news, which have none, the one behind which the others begin.
    head: Version,
    lines: OnceLock<Bytes>,
    messages: OnceLock<Bytes>,
    frames: OnceLock<Bytes>,
}

impl News {
    fn written(&self, form: Stream) -> Bytes {
        let cell = match form {
            Stream::Lines => &self.lines,
            Stream::Messages => &self.messages,
            Stream::Frames => &self.frames,
        };
        cell.get_or_init(|| form.write(&self.events)).clone()
    }
}

impl Tail {
    pub(crate) fn new(store: Arc<dyn EventStore>) -> Self {
        let (news, _) = broadcast::channel(PAGES);
        Tail { store, news, is_read: AtomicBool::new(false) }
    }

    /// News from here on, which a task reads as long as somebody wants them.
    fn subscribe(served: &Arc<Served>) -> broadcast::Receiver<Arc<News>> {
        let receiver = served.tail.news.subscribe();
        if !served.tail.is_read.swap(true, Ordering::SeqCst) {
            tokio::spawn(read_news(served.clone()));
        }
        receiver
    }

    fn tell(&self, head: Version, events: Vec<RecordedEvent>) {
        let [lines, messages, frames] = [const { OnceLock::new() }; 3];
        let news = News { events, head, lines, messages, frames };
        // Nobody may be there any more.
        let _ = self.news.send(Arc::new(news));
    }
}

/// Reads what is new, and gives it to all who wait for it, until nobody does.
async fn read_news(served: Arc<Served>) {
    /// Whatever ends the reading, the next follower begins it anew.
    struct Flag(Arc<Served>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.tail.is_read.store(false, Ordering::SeqCst);
        }
    }
    loop {
        let flag = Flag(served.clone());
        let ended = read_while_wanted(&served.tail).await;
        drop(flag);
        // Who came before the flag was taken back relies on it. After an error they find out themselves.
        let is_wanted = served.tail.news.receiver_count() > 0;
        if ended.is_err() || !is_wanted || served.tail.is_read.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}

async fn read_while_wanted(tail: &Tail) -> Result<(), Error> {
    /// Time to look whether anybody is still there.
    const LOOK: Duration = Duration::from_secs(1);
    let ctx = Context::background();
    let mut seen = tail.store.latest_version(&ctx).await?;
    // For those who have read up to before that already.
    tail.tell(seen, Vec::new());
    while tail.news.receiver_count() > 0 {
        match tail.store.wait_for_events(&ctx.clone().with_timeout(LOOK), seen).await {
            Ok(_) => {}
            Err(Error::DeadlineExceeded) => continue,
            Err(error) => return Err(error),
        }
        // All that is there by now: the pause is between moments, not between pages.
        let mut next = Some(LoadOptions::since(seen));
        while let Some(options) = next {
            let page = tail.store.load_page(&ctx, &options, PageSize::LARGEST).await?;
            next = page.next;
            if let Some(last) = page.events.last() {
                seen = last.version;
                tail.tell(seen, page.events);
            }
        }
        let followers = u32::try_from(tail.news.receiver_count()).unwrap_or(u32::MAX);
        tokio::time::sleep(COST.saturating_mul(followers).min(LONGEST_PACE)).await;
    }
    Ok(())
}

/// The forms of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Lines,
    Messages,
    /// Messages with many events each, as Go Sync Kit reads them.
    Frames,
}

impl Stream {
    fn media_type(self) -> &'static str {
        match self {
            Stream::Lines => JSON_LINES,
            Stream::Messages | Stream::Frames => EVENT_STREAM,
        }
    }

    fn write(self, events: &[RecordedEvent]) -> Bytes {
        if self == Stream::Frames {
            return frames(events).into();
        }
        let mut out = Vec::with_capacity(events.iter().map(|event| event.event.len_bytes() + 200).sum());
        for recorded in events {
            // Texts and numbers: nothing in it can fail.
            let json = serde_json::to_string(recorded).unwrap_or_default();
            let version = recorded.version;
            match self {
                Stream::Lines => out.extend_from_slice(format!("{{\"event\":{json}}}\n").as_bytes()),
                // The JSON of an event has no line ends.
                Stream::Messages | Stream::Frames => {
                    out.extend_from_slice(format!("id: {version}\nevent: event\ndata: {json}\n\n").as_bytes());
                }
            }
        }
        out.into()
    }

    fn heartbeat(self, head: Version) -> Bytes {
        match self {
            Stream::Lines => format!("{{\"heartbeat\":{{\"head\":{head}}}}}\n").into(),
            Stream::Messages | Stream::Frames => format!(": {head}\n\n").into(),
        }
    }

    fn end(self, problem: &Problem) -> Bytes {
        let json = problem.to_json();
        match self {
            Stream::Lines => format!("{{\"end\":{json}}}\n").into(),
            Stream::Messages => format!("event: end\ndata: {json}\n\n").into(),
            // Its client would take it for events.
            Stream::Frames => format!(": {json}\n\n").into(),
        }
    }
}

pub(crate) async fn follow(
    State(app): State<Arc<App>>,
    Reading(served): Reading,
    gone: Gone,
    headers: HeaderMap,
    params: Params,
) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = if accepts(&headers, EVENT_STREAM) { Stream::Messages } else { Stream::Lines };
    let since = check_since(&served, &ctx, &mut query).await?;
    let mut options = query.load()?;
    query.finish()?;
    options.since = since.unwrap_or_default();
    // What a browser's EventSource has seen is newer than what its address says.
    if let Some(seen) = headers.get("last-event-id") {
        options.since = seen.to_str().unwrap_or("?").parse()?;
    }
    if options.before.is_some() || options.direction != eventstore_api::Direction::Forward {
        let option = if options.before.is_some() { "before" } else { "direction" };
        let reason = "a stream that follows goes forward and has no end".to_owned();
        return Err(Error::InvalidOption { option: option.to_owned(), reason }.into());
    }
    if options.types.len() > MOST_TYPES {
        let reason = format!("{} are too many for a stream: at most {MOST_TYPES}", options.types.len());
        return Err(Error::InvalidOption { option: "type".to_owned(), reason }.into());
    }
    stream_of(app, served, gone, ctx, options, form)
}

/// The answer with the events that these options select, and each new one.
pub(crate) fn stream_of(
    app: Arc<App>,
    served: Arc<Served>,
    gone: Gone,
    ctx: Context,
    options: LoadOptions,
    form: Stream,
) -> Answer {
    let counted = app.count(&served, Kind::Follower)?;
    let follower = Follower::new(app, served, counted, gone, ctx, options, form);
    let pieces = futures_util::stream::unfold(follower, |mut follower| async move {
        follower.next().await.map(|piece| (Ok::<_, Infallible>(piece), follower))
    });
    let mut response = stream(form.media_type(), Body::from_stream(pieces));
    // Some proxies collect answers otherwise.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

/// A page and the news from before its reading on.
type NextPage = Pin<Box<dyn Future<Output = Result<(Page, broadcast::Receiver<Arc<News>>), Error>> + Send>>;

/// One who follows.
struct Follower {
    app: Arc<App>,
    served: Arc<Served>,
    /// Its token.
    gone: Gone,
    ctx: Context,
    options: LoadOptions,
    /// Everything up to here was given, or does not match.
    seen: Version,
    form: Stream,
    heartbeat: Duration,
    /// When there has to be a sign of life.
    due: Instant,
    size: PageSize,
    /// The page that is being read.
    reading: Option<NextPage>,
    /// Where it is up to date; `None` while it catches up.
    news: Option<broadcast::Receiver<Arc<News>>>,
    /// What waits to be sent.
    pieces: VecDeque<Bytes>,
    has_ended: bool,
    _counted: Counted,
}

impl Follower {
    fn new(
        app: Arc<App>,
        served: Arc<Served>,
        counted: Counted,
        gone: Gone,
        ctx: Context,
        options: LoadOptions,
        form: Stream,
    ) -> Self {
        let (seen, size, heartbeat) = (options.since, PageSize::FIRST, app.limits.heartbeat);
        Follower {
            app,
            served,
            gone,
            ctx,
            options,
            seen,
            form,
            heartbeat,
            due: Instant::now() + heartbeat,
            size,
            reading: None,
            news: None,
            // So that the client knows at once that it is connected.
            pieces: VecDeque::from([form.heartbeat(seen)]),
            has_ended: false,
            _counted: counted,
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                self.due = Instant::now() + self.heartbeat;
                return Some(piece);
            }
            if self.has_ended || self.options.limit == Some(0) {
                return None;
            }
            if let Err(refused) = self.step().await {
                self.has_ended = true;
                self.pieces.push_back(self.form.end(&refused.0));
            }
        }
    }

    async fn step(&mut self) -> Answer<()> {
        let (stopping_token, ctx, due) = (self.app.stopping.clone(), self.ctx.clone(), self.due);
        let Some(news) = &mut self.news else {
            let reading = self.reading.get_or_insert_with(|| {
                self.options.since = self.seen;
                let (served, ctx, options, size) =
                    (self.served.clone(), self.ctx.clone(), self.options.clone(), self.size);
                Box::pin(async move {
                    // From before the reading on, so that nothing comes between.
                    let news = Tail::subscribe(&served);
                    served.store.load_page(&ctx, &options, size).await.map(|page| (page, news))
                })
            });
            return tokio::select! {
                read = reading => {
                    self.reading = None;
                    let (page, news) = read?;
                    self.take_page(&page, news);
                    Ok(())
                }
                () = stopping_token.cancelled() => Err(stopping().into()),
                () = self.gone.wait() => Err(gone()),
                // The reading goes on: with a filter it may take long.
                () = sleep_until(due) => {
                    self.pieces.push_back(self.form.heartbeat(self.seen));
                    Ok(())
                }
            };
        };
        tokio::select! {
            biased;
            () = stopping_token.cancelled() => Err(stopping().into()),
            () = self.gone.wait() => Err(gone()),
            received = news.recv() => {
                match received {
                    Ok(news) => self.take(&news),
                    // It was too slow, or nobody reads the news any more: it reads itself.
                    Err(RecvError::Lagged(_) | RecvError::Closed) => self.news = None,
                }
                Ok(())
            }
            error = ctx.done() => Err(error.into()),
            () = sleep_until(due) => {
                // Whoever reads the news may have failed: reading here finds out.
                self.news = None;
                self.pieces.push_back(self.form.heartbeat(self.seen));
                Ok(())
            }
        }
    }

    /// Takes the next page; behind the last one, waits for news.
    fn take_page(&mut self, page: &Page, news: broadcast::Receiver<Arc<News>>) {
        self.size = self.size.grown();
        self.seen = match (&page.next, page.events.last()) {
            (Some(_), Some(last)) => last.version,
            _ => {
                self.news = Some(news);
                self.seen.max(page.head)
            }
        };
        self.give(&page.events, None);
    }

    /// Takes of the news what it has not seen.
    fn take(&mut self, news: &News) {
        if news.head <= self.seen {
            return;
        }
        let Some(first) = news.events.first().filter(|first| first.version <= self.seen.next()) else {
            // Something lies between.
            self.news = None;
            return;
        };
        let seen = std::mem::replace(&mut self.seen, news.head);
        let all = LoadOptions::since(self.options.since);
        if first.version == seen.next() && self.options == all {
            self.give(&news.events, Some(news));
        } else {
            let new = news.events.iter().filter(|event| event.version > seen && self.options.matches(event));
            let new: Vec<_> = new.cloned().collect();
            self.give(&new, None);
        }
    }

    /// Gives events, as many as are still wanted; they may be written already.
    fn give(&mut self, events: &[RecordedEvent], written: Option<&News>) {
        let events = match self.options.limit {
            Some(limit) => &events[..events.len().min(usize::try_from(limit).unwrap_or(usize::MAX))],
            None => events,
        };
        if let Some(limit) = &mut self.options.limit {
            *limit -= events.len() as u64;
        }
        if !events.is_empty() {
            self.pieces.push_back(written.map_or_else(|| self.form.write(events), |news| news.written(self.form)));
        }
    }
}

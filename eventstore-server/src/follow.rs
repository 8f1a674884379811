//! Streams of events that continue with each new one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use eventstore_api::{Context, Error, LoadOptions, Page, PageSize, RecordedEvent, Version};
use eventstore_wire::{EVENT_STREAM, JSON_LINES, Problem};
use tokio::time::{Instant, sleep_until};

use crate::access::{Gone, gone};
use crate::answer::{Answer, Params, Reading, accepts, stopping, stream};
use crate::gosync::frames;
use crate::read::check_since;
use crate::server::{App, Counted, Kind};
use crate::stores::Served;
use crate::tail::{News, Subscription, Tail};

/// The most types in a filter of a stream: they are kept as long as it lasts, and each new event is compared with them.
const MOST_TYPES: usize = 100;

/// The formats of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Lines,
    Messages,
    /// Messages with several events each, as Go Sync Kit reads them.
    Frames,
}

impl Stream {
    fn media_type(self) -> &'static str {
        match self {
            Stream::Lines => JSON_LINES,
            Stream::Messages | Stream::Frames => EVENT_STREAM,
        }
    }

    pub(crate) fn write(self, events: &[RecordedEvent]) -> Bytes {
        if self == Stream::Frames {
            return frames(events).into();
        }
        let mut out = Vec::with_capacity(events.iter().map(|event| event.event.len_bytes() + 200).sum());
        for recorded in events {
            // Serializing texts and numbers cannot fail.
            let json = serde_json::to_string(recorded).unwrap_or_default();
            let version = recorded.version;
            match self {
                Stream::Lines => out.extend_from_slice(format!("{{\"event\":{json}}}\n").as_bytes()),
                // The JSON of an event has no line breaks.
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
            // The client would interpret a message as events.
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
    // The version last seen by a browser's EventSource is newer than the one in its URL.
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
    // Otherwise, some proxies buffer answers.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

/// A page, and a subscription from before the page was read.
type NextPage = Pin<Box<dyn Future<Output = Result<(Page, Subscription), Error>> + Send>>;

/// A client that follows.
struct Follower {
    app: Arc<App>,
    served: Arc<Served>,
    /// Its token.
    gone: Gone,
    ctx: Context,
    options: LoadOptions,
    /// Everything up to this version was sent, or does not match.
    seen: Version,
    form: Stream,
    heartbeat: Duration,
    /// The time of the next heartbeat.
    due: Instant,
    size: PageSize,
    /// The page that is being read.
    reading: Option<NextPage>,
    /// The subscription, if the client is up to date; `None` while it catches up.
    news: Option<Subscription>,
    /// The pieces to send.
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
                    // Subscribes before reading, so that no event is missed in between.
                    let news = Tail::subscribe(&served, options.clone());
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
                // The read continues: with a filter it may take long.
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
            received = news.next() => {
                match received {
                    Some(news) => self.take(&news),
                    // It was too slow, or the reader of the news has ended: it reads from the store again.
                    None => self.news = None,
                }
                Ok(())
            }
            error = ctx.done() => Err(error.into()),
            () = sleep_until(due) => {
                if let Some(head) = news.idle_up_to() {
                    self.seen = self.seen.max(head);
                    self.pieces.push_back(self.form.heartbeat(self.seen));
                }
                Ok(())
            }
        }
    }

    /// Takes the next page. After the last one, waits for news.
    fn take_page(&mut self, page: &Page, news: Subscription) {
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

    /// Takes the unseen part of the news.
    fn take(&mut self, news: &News) {
        if news.head <= self.seen {
            return;
        }
        let takes_all = self.options == LoadOptions::since(self.options.since);
        let Some(first) = news.events.first().filter(|first| !takes_all || first.version <= self.seen.next()) else {
            // There is a gap before the news.
            self.news = None;
            return;
        };
        let seen = std::mem::replace(&mut self.seen, news.head);
        if takes_all && first.version == seen.next() {
            self.give(&news.events, Some(news));
        } else {
            let new = news.events.iter().filter(|event| event.version > seen && self.options.matches(event));
            let new: Vec<_> = new.cloned().collect();
            self.give(&new, None);
        }
    }

    /// Sends events, as many as are still wanted; `written` has them already encoded.
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

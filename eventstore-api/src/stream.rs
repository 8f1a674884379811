use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use futures_core::Stream;
use futures_core::stream::FusedStream;

use crate::{Context, Direction, Error, EventStore, LoadOptions, Page, PageSize, RecordedEvent, Result, Version};

/// Events one by one, read a page at a time.
///
/// It is a fused [`Stream`](futures_core::Stream), so the combinators of `futures` or `tokio-stream` work on it. The
/// methods here need neither crate. It ends after its last event, or after the first error.
///
/// # Cancellation
///
/// Dropping it stops the work within one page (rule C5). The context is checked before each page; events of a page that
/// was already read are still returned.
///
/// # Memory
///
/// One page, however slowly it is read (rule S2). The stream holds a handle to the store, which keeps the store open.
#[must_use = "a stream does nothing until it is polled"]
pub struct EventStream {
    page: std::vec::IntoIter<RecordedEvent>,
    pages: Pin<Box<dyn Stream<Item = Result<Vec<RecordedEvent>>> + Send>>,
    /// Nothing follows `page`.
    has_ended: bool,
}

impl EventStream {
    pub(crate) fn load<S: EventStore + Clone>(store: S, ctx: Context, options: LoadOptions) -> Self {
        Self::from_pages(Pages::new(LoadCursor { store, ctx, next: Some(options) }))
    }

    pub(crate) fn subscribe<S: EventStore + Clone>(store: S, ctx: Context, options: LoadOptions) -> Self {
        Self::from_pages(Pages::new(FollowCursor { store, ctx, seen: options.since, options }))
    }

    fn from_pages<C: Cursor>(pages: Pages<C>) -> Self {
        EventStream { page: Vec::new().into_iter(), pages: Box::pin(pages), has_ended: false }
    }

    /// The same events if `check` succeeds; otherwise its error and no event.
    pub fn after(self, check: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        let pages = Box::pin(Checked { check: Some(Box::pin(check)), pages: self.pages });
        EventStream { page: self.page, pages, has_ended: false }
    }

    /// The next event, or `None` after the last one.
    pub async fn next(&mut self) -> Option<Result<RecordedEvent>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next page of events, or `None` after the last one. This is the fastest way to read many events, and the way
    /// to apply and save several at once.
    pub async fn next_page(&mut self) -> Option<Result<Vec<RecordedEvent>>> {
        let rest = std::mem::take(&mut self.page);
        if rest.len() > 0 {
            return Some(Ok(rest.collect()));
        }
        std::future::poll_fn(|cx| self.poll_page(cx)).await
    }

    /// Replaces the current page by the next one. Nothing follows the last page or an error.
    fn poll_page(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Vec<RecordedEvent>>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let page = ready!(self.pages.as_mut().poll_next(cx));
        self.has_ended = !matches!(page, Some(Ok(_)));
        Poll::Ready(page)
    }

    /// All remaining events, in memory at once. On a subscription it returns only with an error.
    pub async fn into_vec(mut self) -> Result<Vec<RecordedEvent>> {
        let mut events = Vec::new();
        while let Some(page) = self.next_page().await {
            events.append(&mut page?);
        }
        Ok(events)
    }
}

impl Stream for EventStream {
    type Item = Result<RecordedEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.page.next() {
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(self.poll_page(cx)) {
                Some(Ok(page)) => self.page = page.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.page.len(), None)
    }
}

/// It has ended after `None` or an error; polling it again returns `None`.
impl FusedStream for EventStream {
    fn is_terminated(&self) -> bool {
        self.has_ended && self.page.len() == 0
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("buffered", &self.page.len()).finish_non_exhaustive()
    }
}

/// Pages that are read after a check has succeeded.
struct Checked {
    check: Option<Pin<Box<dyn Future<Output = Result<()>> + Send>>>,
    pages: Pin<Box<dyn Stream<Item = Result<Vec<RecordedEvent>>> + Send>>,
}

impl Stream for Checked {
    type Item = Result<Vec<RecordedEvent>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if let Some(check) = &mut self.check {
            let checked = ready!(check.as_mut().poll(cx));
            self.check = None;
            if let Err(error) = checked {
                return Poll::Ready(Some(Err(error)));
            }
        }
        self.pages.as_mut().poll_next(cx)
    }
}

/// A position in the store from which pages are read in sequence.
trait Cursor: Send + Sized + 'static {
    /// The next page that has events, and the cursor after it; `None` at the end.
    fn advance(self, size: PageSize)
    -> impl Future<Output = Option<(Result<Vec<RecordedEvent>>, Option<Self>)>> + Send;
}

type Step<C> = Pin<Box<dyn Future<Output = Option<(Result<Vec<RecordedEvent>>, Option<C>)>> + Send>>;

/// Drives a cursor: reads one page at a time, each up to twice as large as the one before.
struct Pages<C> {
    step: Option<Step<C>>,
    size: PageSize,
}

impl<C: Cursor> Pages<C> {
    fn new(cursor: C) -> Self {
        let size = PageSize::FIRST;
        Pages { step: Some(Box::pin(cursor.advance(size))), size }
    }
}

impl<C: Cursor> Stream for Pages<C> {
    type Item = Result<Vec<RecordedEvent>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let Some(step) = &mut self.step else { return Poll::Ready(None) };
        let done = ready!(step.as_mut().poll(cx));
        let Some((page, cursor)) = done else {
            self.step = None;
            return Poll::Ready(None);
        };
        self.size = self.size.grown();
        let size = self.size;
        self.step = cursor.map(|cursor| Box::pin(cursor.advance(size)) as Step<C>);
        Poll::Ready(Some(page))
    }
}

struct LoadCursor<S> {
    store: S,
    ctx: Context,
    next: Option<LoadOptions>,
}

impl<S: EventStore> Cursor for LoadCursor<S> {
    async fn advance(mut self, size: PageSize) -> Option<(Result<Vec<RecordedEvent>>, Option<Self>)> {
        let options = self.next.take()?;
        match self.store.load_page(&self.ctx, &options, size).await {
            Ok(Page { events, .. }) if events.is_empty() => None,
            Ok(Page { events, next, .. }) => {
                self.next = next;
                Some((Ok(events), Some(self)))
            }
            Err(error) => Some((Err(error), None)),
        }
    }
}

/// Catching up and following live are the same loop: read what comes after `seen`, and wait only if there is nothing.
/// So no event is lost or duplicated in between (rule S1).
struct FollowCursor<S> {
    store: S,
    ctx: Context,
    options: LoadOptions,
    /// Every matching event up to this version was returned.
    seen: Version,
}

impl<S: EventStore> FollowCursor<S> {
    async fn next_events(&mut self, size: PageSize) -> Result<Option<Vec<RecordedEvent>>> {
        if self.options.direction == Direction::Backward || self.options.before.is_some() {
            return Err(Error::Unsupported {
                what:
                    "a subscription that is backward or has an upper version; subscriptions go forward and have no end"
                        .to_owned(),
            });
        }
        loop {
            if self.options.limit == Some(0) {
                return Ok(None);
            }
            self.options.since = self.seen;
            let page = self.store.load_page(&self.ctx, &self.options, size).await?;
            self.seen = match (&page.next, page.events.last()) {
                (Some(_), Some(last)) => last.version,
                _ => self.seen.max(page.head),
            };
            if !page.events.is_empty() {
                if let Some(limit) = &mut self.options.limit {
                    *limit = limit.saturating_sub(page.events.len() as u64);
                }
                return Ok(Some(page.events));
            }
            self.store.wait_for_events(&self.ctx, self.seen).await?;
        }
    }
}

impl<S: EventStore> Cursor for FollowCursor<S> {
    async fn advance(mut self, size: PageSize) -> Option<(Result<Vec<RecordedEvent>>, Option<Self>)> {
        match self.next_events(size).await {
            Ok(Some(events)) => Some((Ok(events), Some(self))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{Event, Revision};

    struct Given(std::vec::IntoIter<Result<Vec<RecordedEvent>>>);

    impl Cursor for Given {
        async fn advance(mut self, _: PageSize) -> Option<(Result<Vec<RecordedEvent>>, Option<Self>)> {
            self.0.next().map(|page| (page, Some(self)))
        }
    }

    fn stream(pages: Vec<Result<Vec<RecordedEvent>>>) -> EventStream {
        EventStream::from_pages(Pages::new(Given(pages.into_iter())))
    }

    fn page(versions: std::ops::Range<u64>) -> Vec<RecordedEvent> {
        let event = Event::builder("T", "a").build().expect("valid");
        let recorded = |version| RecordedEvent::new(version, Revision::new(1), SystemTime::UNIX_EPOCH, event.clone());
        versions.map(Version::new).map(recorded).collect()
    }

    #[tokio::test]
    async fn a_stream_has_ended_behind_its_last_event() {
        let mut stream = stream(vec![Ok(page(1..3)), Ok(page(3..4))]);
        for version in 1..4 {
            assert!(!stream.is_terminated());
            let event = stream.next().await.expect("one more").expect("no error");
            assert_eq!(event.version.get(), version);
        }
        assert!(!stream.is_terminated(), "nobody has looked for more");
        assert!(stream.next().await.is_none() && stream.is_terminated());
        assert!(stream.next().await.is_none() && stream.next_page().await.is_none());
    }

    #[tokio::test]
    async fn nothing_comes_behind_an_error() {
        for checked in [false, true] {
            let all = vec![Ok(page(1..2)), Err(Error::Closed), Ok(page(2..3))];
            let mut stream = if checked { stream(all).after(async { Err(Error::Cancelled) }) } else { stream(all) };
            if !checked {
                assert!(stream.next().await.is_some_and(|event| event.is_ok()));
            }
            assert!(stream.next_page().await.is_some_and(|page| page.is_err()));
            assert!(stream.is_terminated());
            assert!(stream.next().await.is_none() && stream.next_page().await.is_none(), "{checked}");
        }
    }
}

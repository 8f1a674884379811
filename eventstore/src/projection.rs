//! Views that are kept up to date with the events.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use eventstore_api::{
    Context, Cursor, Error, EventStore, EventStoreExt, LoadOptions, PageSize, RecordedEvent, Result, Source, Version,
    async_trait,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{BoxError, CancellationToken, Store};

/// Builds a view (read model) from events: rows in a database, an index, a counter.
///
/// [`Store::project`] passes it the events, page by page. It saves the result of each page *together with the cursor*
/// of that page, in one transaction or by replacing one file. Then each event counts exactly once, even after a crash.
///
/// ```
/// use eventstore::{BoxError, Cursor, Event, Projection, RecordedEvent, async_trait};
///
/// /// The number of events, in memory: it is lost with the program, and so is its cursor.
/// #[derive(Default)]
/// struct Count {
///     events: usize,
///     cursor: Cursor,
/// }
///
/// #[async_trait]
/// impl Projection for Count {
///     async fn cursor(&mut self) -> Result<Cursor, BoxError> {
///         Ok(self.cursor)
///     }
///
///     async fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
///         self.events += events.len();
///         self.cursor = cursor;
///         Ok(())
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let store = eventstore::open("memory:").await?;
/// let running = store.project(Count::default()).start();
/// let appended = store.append(Event::builder("OrderPlaced", "order-42").build()?).await?;
/// running.reached(appended.last).await?; // what was just written can be read in the view
/// let count = running.stop().await?;
/// assert_eq!(count.events, 1);
/// # Ok::<(), eventstore::Error>(())
/// # }).unwrap();
/// ```
#[async_trait]
pub trait Projection: Send + 'static {
    /// The last saved cursor, or [`Cursor::START`]. Called when the projection starts, and after an error.
    async fn cursor(&mut self) -> Result<Cursor, BoxError>;

    /// Applies events, in the order of their versions, and saves the result together with the cursor. `events` is empty if no
    /// event up to the cursor matched the filter.
    ///
    /// After an error it is called again with the same events, and perhaps more. So a failed call must leave no effect,
    /// as with a transaction.
    ///
    /// An event that cannot be decoded is not retried. If the error is the [`Decode`](crate::Error::Decode) of
    /// [`RecordedEvent::decode`], or has it as a source, the projection ends with it or
    /// [skips the event](Project::on_decode_error).
    async fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError>;
}

impl Store {
    /// Runs a projection: passes it every event after its cursor, then each new one.
    pub fn project<P: Projection>(&self, projection: P) -> Project<P> {
        Project {
            store: self.backend().clone(),
            projection,
            name: None,
            options: LoadOptions::all(),
            page: PageSize::LARGEST,
            pauses: pauses(Duration::from_millis(100), Duration::from_secs(30)),
            give_up_after: None,
            on_decode_error: None,
            left_out: BTreeSet::new(),
            ctx: Context::background(),
            progress: watch::Sender::new(Seen::default()),
        }
    }
}

/// A projection that has not been started. See [`Store::project`].
#[must_use = "it does nothing until it is started"]
pub struct Project<P> {
    store: Arc<dyn EventStore>,
    projection: P,
    name: Option<String>,
    options: LoadOptions,
    page: PageSize,
    pauses: ExponentialBuilder,
    give_up_after: Option<u32>,
    on_decode_error: Option<Box<OnDecodeError>>,
    /// Events of the current page to skip.
    left_out: BTreeSet<Version>,
    ctx: Context,
    progress: watch::Sender<Seen>,
}

type OnDecodeError = dyn FnMut(&RecordedEvent, &Error) -> Result<()> + Send;

impl<P: Projection> Project<P> {
    /// Sets its name for logs and for the label `projection` of its metrics. Without a name it has no metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Only events of this aggregate.
    pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
        self.options = self.options.aggregate(aggregate_id);
        self
    }

    /// Only events of one of these types. This scans every event.
    pub fn types<T: Into<String>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        self.options = self.options.types(types);
        self
    }

    /// Only events of aggregates whose ids start with this prefix. This scans every event.
    pub fn aggregate_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.options = self.options.aggregate_prefix(prefix);
        self
    }

    /// Sets the largest number of events in a page, at least 1. The default is 512 events or 256 KiB.
    pub fn page_size(mut self, events: usize) -> Self {
        self.page = PageSize::new(events, usize::MAX);
        self
    }

    /// Sets the backoff after an error of the store or of the projection: from `shortest`, doubled each time, up to
    /// `longest`, with jitter. The default is 100 ms to 30 s.
    pub fn backoff(mut self, shortest: Duration, longest: Duration) -> Self {
        self.pauses = pauses(shortest, longest);
        self
    }

    /// Sets what happens with an event that the projection cannot decode. `Ok` skips it for good, and the projection
    /// gets the rest of its page; an error ends the projection. By default, the projection ends with
    /// [`Decode`](crate::Error::Decode).
    ///
    /// `decide` must not block. It is called once for each such event, and again if the program restarts before the
    /// page was saved.
    ///
    /// ```
    /// # use eventstore::{BoxError, Cursor, Event, Projection, RecordedEvent, async_trait};
    /// #[derive(serde::Deserialize)]
    /// enum Order {
    ///     Placed { cents: u64 },
    /// }
    ///
    /// #[derive(Default)]
    /// struct Total {
    ///     cents: u64,
    ///     cursor: Cursor,
    /// }
    ///
    /// #[async_trait]
    /// impl Projection for Total {
    /// #   async fn cursor(&mut self) -> Result<Cursor, BoxError> {
    /// #       Ok(self.cursor)
    /// #   }
    ///     async fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
    ///         let mut cents = self.cents;
    ///         for event in events {
    ///             let Order::Placed { cents: more } = event.decode()?;
    ///             cents += more;
    ///         }
    ///         (self.cents, self.cursor) = (cents, cursor);
    ///         Ok(())
    ///     }
    ///     // ...
    /// }
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let store = eventstore::open("memory:").await?;
    /// # store.append(Event::builder("Placed", "order-1").data("{not JSON").build()?).await?;
    /// # let last = store.append(Event::builder("Placed", "order-2").data(r#"{"cents":7}"#).build()?).await?.last;
    /// let running = store.project(Total::default()).on_decode_error(|event, error| {
    ///     eprintln!("left out: {} {error}", event.event.id());
    ///     Ok(())
    /// });
    /// # let running = running.start();
    /// # running.reached(last).await?;
    /// # assert_eq!(running.stop().await?.cents, 7);
    /// # Ok::<(), eventstore::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn on_decode_error(
        mut self,
        decide: impl FnMut(&RecordedEvent, &Error) -> Result<()> + Send + 'static,
    ) -> Self {
        self.on_decode_error = Some(Box::new(decide));
        self
    }

    /// Ends the projection with the error after this many errors in a row. The default is to retry forever.
    pub fn give_up_after(mut self, errors: u32) -> Self {
        self.give_up_after = Some(errors.max(1));
        self
    }

    /// Stops the projection when this token is cancelled, like [`Running::stop`].
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.ctx = self.ctx.with_cancellation(token.clone());
        self
    }

    /// Starts the projection as a task. Must be called inside a Tokio runtime.
    pub fn start(self) -> Running<P> {
        let (ctx, stop) = self.ctx.child();
        let progress = ViewProgress { seen: self.progress.subscribe(), store: self.store.clone() };
        let task = tokio::spawn(Project { ctx, ..self }.run());
        Running { task, stop, progress }
    }
}

impl<P> fmt::Debug for Project<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Project").field("name", &self.name).field("options", &self.options).finish_non_exhaustive()
    }
}

/// A running projection. Dropping it stops the projection between two pages.
///
/// It dereferences to [`ViewProgress`], the progress of the projection.
#[derive(Debug)]
pub struct Running<P> {
    task: JoinHandle<(P, Result<()>)>,
    stop: CancellationToken,
    progress: ViewProgress,
}

/// The progress of a projection, for readers of its view. See [`Running::progress`].
///
/// # Clone
///
/// Cheap: clones refer to the same projection. They do not keep it running.
#[derive(Clone, Debug)]
pub struct ViewProgress {
    seen: watch::Receiver<Seen>,
    store: Arc<dyn EventStore>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// Every event up to this version is in the view.
    version: Version,
    is_caught_up: bool,
    /// The error with which the projection ended; `Closed` if it was stopped.
    ended: Option<Error>,
}

impl ViewProgress {
    /// Waits until the view has every event up to this version, to read your own writes. Use [`tokio::time::timeout`]
    /// if a lagging projection must not delay the reader.
    ///
    /// # Errors
    ///
    /// The error of the projection if it ended earlier; `Closed` if it was stopped.
    pub async fn reached(&self, version: Version) -> Result<()> {
        let mut seen = self.seen.clone();
        let reached = seen.wait_for(|seen| seen.version >= version || seen.ended.is_some()).await;
        match reached {
            Ok(seen) if seen.version >= version => Ok(()),
            Ok(seen) => Err(seen.ended.clone().unwrap_or(Error::Closed)),
            Err(_) => Err(Error::Closed), // it panicked
        }
    }

    /// The version up to which the view has every event.
    #[must_use]
    pub fn version(&self) -> Version {
        self.seen.borrow().version
    }

    /// The number of versions by which the view lags behind the store.
    ///
    /// # Errors
    ///
    /// Those of [`Store::latest_version`].
    pub async fn lag(&self) -> Result<u64> {
        let latest = self.store.latest_version(&Context::background()).await?;
        Ok(latest.get().saturating_sub(self.version().get()))
    }

    /// Whether the projection had every event at its last check of the store, and is waiting for new ones.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.seen.borrow().is_caught_up
    }

    /// Waits until the projection has ended, by itself or because it was stopped. [`Running::stop`] returns the reason.
    pub async fn ended(&self) {
        let _ = self.seen.clone().wait_for(|seen| seen.ended.is_some()).await;
    }
}

impl<P> Running<P> {
    /// A handle to its progress, for readers that do not own the projection, such as request handlers.
    #[must_use]
    pub fn progress(&self) -> ViewProgress {
        self.progress.clone()
    }

    /// Stops the projection after its current page, and returns it.
    ///
    /// # Errors
    ///
    /// The reason if it ended by itself: `HistoryDiverged` if its cursor belongs to another history; `Decode` if it
    /// could not decode an event, or the error of [`on_decode_error`](Project::on_decode_error); the error of the store
    /// or of the projection, if it was told to [give up](Project::give_up_after); `Closed` if the store was closed.
    /// `Engine` if it panicked.
    pub async fn stop(mut self) -> Result<P> {
        self.stop.cancel();
        let (projection, result) = (&mut self.task).await.map_err(|error| Error::engine("run a projection", error))?;
        result.map(|()| projection)
    }
}

impl<P> Deref for Running<P> {
    type Target = ViewProgress;

    fn deref(&self) -> &ViewProgress {
        &self.progress
    }
}

impl<P> Drop for Running<P> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Why a step failed.
enum Failed {
    /// Retrying does not help.
    ForGood(Error),
    Perhaps(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled | Error::DeadlineExceeded | Error::Closed | Error::HistoryDiverged { .. } => {
                Failed::ForGood(error)
            }
            error => Failed::Perhaps(error),
        }
    }
}

/// The body of the task.
impl<P: Projection> Project<P> {
    async fn run(mut self) -> (P, Result<()>) {
        let result = match self.follow().await {
            // It was stopped on request.
            Err(Error::Cancelled) => Ok(()),
            result => result,
        };
        if let Err(error) = &result {
            tracing::error!(projection = self.name, %error, "a projection has ended");
        }
        let ended = result.clone().err().unwrap_or(Error::Closed);
        self.progress.send_modify(|seen| seen.ended = Some(ended));
        (self.projection, result)
    }

    async fn follow(&mut self) -> Result<()> {
        let mut cursor = None;
        let (mut errors, mut pauses) = (0, self.pauses.build());
        loop {
            let failed = match self.step(&mut cursor).await {
                Ok(()) => {
                    (errors, pauses) = (0, self.pauses.build());
                    continue;
                }
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::Perhaps(error)) => error,
            };
            errors += 1;
            if self.give_up_after.is_some_and(|most| errors >= most) {
                return Err(failed);
            }
            let waits = pauses.next().unwrap_or_default();
            tracing::warn!(projection = self.name, error = %failed, ?waits, "a projection retries");
            self.ctx.run(tokio::time::sleep(waits)).await?;
            cursor = None; // ask for the saved cursor: the error may have come after saving
        }
    }

    /// Processes one page, or waits for one.
    async fn step(&mut self, cursor: &mut Option<Cursor>) -> Result<(), Failed> {
        let at = match *cursor {
            Some(at) => at,
            None => {
                let saved = self.projection.cursor().await.map_err(projection_failed("read its cursor"))?;
                self.store.check_cursor(&self.ctx, saved).await?;
                let head = self.store.latest_version(&self.ctx).await?;
                self.tell(saved.version(), head, false);
                *cursor.insert(saved)
            }
        };
        self.options.since = at.version();
        let mut page = self.store.load_page(&self.ctx, &self.options, self.page).await?;
        // After the last page of matching events, everything up to the head has been read.
        let reached = match (&page.next, page.events.last()) {
            (Some(_), Some(last)) => last.version,
            _ => page.head.max(at.version()),
        };
        if reached == at.version() {
            self.tell(reached, page.head, true);
            self.store.wait_for_events(&self.ctx, reached).await?;
            return Ok(());
        }
        let next = self.store.cursor_at(&self.ctx, reached).await?;
        self.take_up(std::mem::take(&mut page.events), next).await?;
        *cursor = Some(next);
        self.tell(reached, page.head, page.next.is_none());
        self.ctx.check()?;
        Ok(())
    }

    /// Passes events to the projection, without those to skip.
    async fn take_up(&mut self, mut events: Vec<RecordedEvent>, cursor: Cursor) -> Result<(), Failed> {
        loop {
            events.retain(|recorded| !self.left_out.contains(&recorded.version));
            let Err(failed) = self.projection.apply(&events, cursor).await else {
                self.left_out.clear(); // the next page comes after them
                return Ok(());
            };
            let Some(error) = decode_error(&*failed) else { return Err(projection_failed("apply events")(failed)) };
            let is_it = |recorded: &&RecordedEvent| matches!(&error, Error::Decode { version, .. } if *version == Some(recorded.version));
            // Only an event that was passed to the projection can be skipped.
            let (Some(decide), Some(recorded)) = (&mut self.on_decode_error, events.iter().find(is_it)) else {
                return Err(Failed::ForGood(error));
            };
            decide(recorded, &error).map_err(Failed::ForGood)?;
            tracing::warn!(projection = self.name, %error, "a projection skips an event");
            self.left_out.insert(recorded.version);
        }
    }

    fn tell(&self, version: Version, head: Version, is_caught_up: bool) {
        self.progress.send_modify(|seen| (seen.version, seen.is_caught_up) = (version, is_caught_up));
        let Some(name) = &self.name else { return };
        let set = |metric: &'static str, value: u64| {
            metrics::gauge!(metric, &[("projection", name.clone())]).set(value as f64);
        };
        set("eventstore_projection_version", version.get());
        set("eventstore_projection_lag", head.get().saturating_sub(version.get()));
        set("eventstore_projection_caught_up", u64::from(is_caught_up));
    }
}

/// The decode error, if it is the cause of the failure.
fn decode_error(failed: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut next = Some(failed);
    while let Some(error) = next {
        match error.downcast_ref::<Error>() {
            Some(decode @ Error::Decode { .. }) => return Some(decode.clone()),
            _ => next = error.source(),
        }
    }
    None
}

fn projection_failed(what: &'static str) -> impl Fn(BoxError) -> Failed {
    move |error| Failed::Perhaps(Error::Engine { operation: what.into(), source: Source::from(error) })
}

/// An endless sequence of pauses, each up to twice as long as the one before. With jitter, a pause is up to twice as
/// long.
fn pauses(shortest: Duration, longest: Duration) -> ExponentialBuilder {
    let builder = ExponentialBuilder::new().with_jitter().without_max_times();
    builder.with_min_delay(shortest / 2).with_max_delay(longest.max(shortest) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_the_shortest_to_the_longest_and_never_end() {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(30));
        let pauses: Vec<_> = pauses(shortest, longest).build().take(200).collect();
        assert_eq!(pauses.len(), 200);
        assert!((shortest / 2..=shortest).contains(&pauses[0]), "{:?}", pauses[0]);
        assert!((shortest..=shortest * 2).contains(&pauses[1]), "{:?}", pauses[1]);
        assert!(pauses[12..].iter().all(|pause| (longest / 2..=longest).contains(pause)), "{pauses:?}");
        assert!(pauses[12..].iter().any(|pause| *pause != pauses[12]), "they differ");
        let same = super::pauses(longest, shortest).build().take(9);
        assert!(
            same.into_iter().all(|pause| (longest / 2..=longest).contains(&pause)),
            "the longest is at least the shortest"
        );
    }
}

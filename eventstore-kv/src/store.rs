use std::fmt;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, MAX_ID_LEN};
use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, CancellationToken, Context, Digest, Durability, Error,
    EventStore, Gc, GcReport, LoadOptions, Page, PageSize, RecordedEvent, Result, Revision, Stats, Stored,
    VerifyReport, Version, async_trait,
};
use eventstore_log::Directory;
use tokio::runtime::Handle;
use tracing::Instrument;
use uuid::Uuid;

use crate::engine::{Engine, index_advice};
use crate::error::log_error;
use crate::files::backup::backup;
use crate::files::compress;
use crate::files::open::{Opening, Ready, open, open_directory, open_read_only};
use crate::index::filters::Filters;
use crate::read::list::ListRead;
use crate::read::reader::{self, PageRead};
use crate::read::verify::verify;
use crate::shared::{Parts, Phase, Shared};
use crate::sync::{AtomicU64, Ordering, is_past, mpsc, oneshot, thread};
use crate::write::queue::{Message, Request, Room, Ticket, WithdrawOnDrop};
use crate::write::writer::Writer;
use crate::{StoreDirectory, StoreOptions, Task};

/// An event store: its own log, and an index that is stored in a key-value engine.
///
/// It keeps the contract of [`EventStore`]. One thread decides what is written, in groups with one sync each. Reads
/// proceed a page at a time and never wait for writes.
///
/// # Progress
///
/// A progress listener of a maintenance operation may read the store, drop handles, and call `close`. But there `close`
/// returns an `Engine` error at once, since the store cannot close before the operation ends; it closes then.
///
/// # Clone
///
/// Cheap; clones are handles to the same store. Dropping the last one closes it, which waits for the group that is
/// being committed.
pub struct KvStore<E: Engine> {
    inner: Arc<Inner<E>>,
}

struct Inner<E: Engine> {
    shared: Arc<Shared<E>>,
    queue: mpsc::UnboundedSender<Message>,
    room: Room,
    /// For appends that do not set one.
    durability: Durability,
    engine: E::Options,
    options: StoreOptions,
    /// Taken when the store is dropped.
    writer: Option<thread::JoinHandle<()>>,
}

/// A page is first read on the caller's thread, which is the fastest for data in memory. If that takes longer than this
/// time, the rest moves to a thread for blocking work. So a cold disk delays other tasks for this long per page, plus
/// the part that is being read then.
const INLINE_TIME: Duration = Duration::from_micros(300);

/// The length of one uninterrupted read on a thread for blocking work.
const SLICE: Duration = Duration::from_millis(20);

/// A page that may be larger than this is read on a thread for blocking work from the beginning.
const INLINE_BYTES: usize = 1 << 20;

impl<E: Engine> KvStore<E> {
    /// Opens the store in a directory. Creates it if there is none and `create_if_missing` is set. Blocks the thread:
    /// for a few reads, or longer if a lost or damaged index is rebuilt from the log.
    ///
    /// # Errors
    ///
    /// `InvalidOption`; `Locked`; `Open` if there is no store or the directory cannot be used; `Unsupported` for a
    /// store of another engine or of a newer version; `Corrupt` if the log has lost events; `Engine`.
    pub fn open(path: &Path, create_if_missing: bool, engine: E::Options, options: StoreOptions) -> Result<Self> {
        options.validate()?;
        let began = Instant::now();
        let directory = match create_if_missing {
            true => StoreDirectory::open(path, E::NAME)?,
            false => StoreDirectory::open_existing(path, E::NAME)?,
        };
        let ctx = Context::background();
        let ready = open_directory(directory, &engine, &options, &Task::new(&ctx, &|| Ok(())))?;
        Self::start_told(path, began, ready, engine, options)
    }

    /// Opens the store in a directory for reading, and writes nothing there: others may read it at the same time, and
    /// it may be on read-only media or belong to another user. Nobody may write to it meanwhile. Blocks the thread,
    /// like [`open`](KvStore::open).
    ///
    /// An index that is missing, damaged or far behind is built in a temporary directory. If the engine cannot open it
    /// without writing, it is copied there.
    ///
    /// # Errors
    ///
    /// Those of [`open`](KvStore::open).
    pub fn open_read_only(path: &Path, engine: E::Options, options: StoreOptions) -> Result<Self> {
        options.validate()?;
        let began = Instant::now();
        let directory = StoreDirectory::open_read_only(path, E::NAME)?;
        let ctx = Context::background();
        let ready = open_read_only(directory, &engine, &options, &Task::new(&ctx, &|| Ok(())))?;
        Self::start_told(path, began, ready, engine, options)
    }

    /// Opens a store that keeps its log in these files and has no directory: without backups, and with an index that is
    /// rebuilt from the log each time. It has no id. For tests.
    ///
    /// # Errors
    ///
    /// Those of [`open`](KvStore::open).
    pub fn over(files: Arc<dyn Directory>, engine: E::Options, options: StoreOptions) -> Result<Self> {
        Self::with_id([0; 16], files, engine, options)
    }

    /// Like [`over`](KvStore::over), with an id, which must be that in the log's headers.
    pub(crate) fn with_id(
        id: [u8; 16],
        files: Arc<dyn Directory>,
        engine: E::Options,
        options: StoreOptions,
    ) -> Result<Self> {
        let ctx = Context::background();
        let task = Task::new(&ctx, &|| Ok(()));
        let ready = open(Opening { files, id, directory: None, engine: &engine, options: &options, task: &task })?;
        Self::start(ready, engine, options)
    }

    /// Starts a store in a directory, and logs how it was opened.
    fn start_told(
        path: &Path,
        began: Instant,
        mut ready: Ready<E>,
        engine: E::Options,
        options: StoreOptions,
    ) -> Result<Self> {
        let actions = std::mem::take(&mut ready.actions);
        let store = Self::start(ready, engine, options)?;
        let Shared { observer, log, .. } = &*store.inner.shared;
        observer.opened(path, log.last(), &actions, began.elapsed());
        Ok(store)
    }

    fn start(ready: Ready<E>, engine: E::Options, options: StoreOptions) -> Result<Self> {
        let Ready { opened, committer, .. } = ready;
        let (mark, directory) =
            (opened.mark.get(), opened.parts.directory.as_ref().map(|directory| directory.path().to_owned()));
        let shared = Arc::new(Shared::new(opened).told(&options.metrics_label));
        let filters = match shared.is_read_only() {
            true => Filters::none(),
            false => Filters::open(&shared, directory.as_deref(), mark, options.id_filter),
        };
        let (queue, receiver) = mpsc::unbounded_channel();
        let writer = Writer::new(shared.clone(), receiver, queue.clone(), &options, committer, filters);
        let thread = thread::Builder::new()
            .name("eventstore-write".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::engine("start the writer thread", error))?;
        let inner = Inner {
            shared,
            queue,
            room: Room::new(options.queue_requests, options.queue_bytes),
            durability: options.durability,
            engine,
            options,
            writer: Some(thread),
        };
        Ok(KvStore { inner: Arc::new(inner) })
    }

    /// Queues the batch, as soon as there is room, and waits for the writer's answer.
    async fn append(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        let Inner { shared, queue, room, durability, .. } = &*self.inner;
        let bytes = batch.len_bytes();
        let place = ctx.run(room.take(bytes)).await??;
        let ticket = Arc::new(Ticket::default());
        let (reply, answer) = oneshot::channel();
        let _withdraw = WithdrawOnDrop(ticket.clone());
        let request = Request {
            events: batch.events,
            expected: batch.expected,
            durability: batch.durability.unwrap_or(*durability),
            idempotency: batch.idempotency,
            recorded_at: batch.recorded_at,
            bytes,
            queued_at: Instant::now(),
            ticket: ticket.clone(),
            reply,
            place: Some(place),
        };
        let waiting = &shared.waiting;
        let _waiting = Waiting::new(waiting);
        queue.send(Message::Append(request)).map_err(|_| Error::Closed)?;
        tell!(trace, name: "queued", bytes, "an append is in the queue");
        let is_alone = || bytes <= SHORT && waiting.load(Ordering::Relaxed) == 1 && shared.serves_one();
        match ctx.run(awake(answer, is_alone)).await {
            Ok(Ok(result)) => result.map_err(advised),
            Ok(Err(_)) => Err(Error::OutcomeUnknown {
                reason: format!("the writer stopped ({})", shared.fence_reason().unwrap_or("for an unknown reason")),
                source: None,
            }),
            Err(ended) if ticket.withdraw() => Err(ended),
            Err(ended) => Err(Error::OutcomeUnknown {
                reason: match ended {
                    Error::Cancelled => "cancelled while the commit was under way".to_owned(),
                    _ => "the deadline passed while the commit was under way".to_owned(),
                },
                source: None,
            }),
        }
    }

    /// Runs a maintenance operation. The work checks regularly whether it was cancelled, so this waits until it has
    /// ended, in any case.
    async fn run_task<T, F>(&self, operation: &'static str, ctx: &Context, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Shared<E>>, &Parts<E>, &Task<'_>) -> Result<T> + Send + 'static,
    {
        ctx.check()?;
        self.inner.shared.head()?; // fails if the store is closed
        let dropped = CancellationToken::new();
        let _cancel = dropped.clone().drop_guard();
        let shared = self.inner.shared.clone();
        let run = move |until: &Context| {
            let is_wanted = || match dropped.is_cancelled() {
                true => Err(Error::Cancelled),
                false => shared.head().map(drop),
            };
            let (observer, began) = (&shared.observer, Instant::now());
            observer.maintenance_span(operation).in_scope(|| {
                let result = shared.keep_parts(|parts| {
                    parts.check_place()?;
                    work(&shared, parts, &Task::new(until, &is_wanted))
                });
                observer.maintained(operation, began, &result);
                result
            })
        };
        self.run_blocking(&Context::background(), ctx.clone(), run).await
    }

    /// Runs a small read on the caller's thread, unless the engine is not available at once.
    async fn read_little<T, F>(&self, ctx: &Context, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Shared<E>, &Parts<E>) -> Result<T> + Send + 'static,
    {
        let shared = &self.inner.shared;
        match shared.try_with_parts(|parts| read(shared, parts)) {
            Some(done) => done.map_err(advised),
            None => {
                let shared = shared.clone();
                self.run_blocking(ctx, (), move |()| shared.with_parts(|parts| read(&shared, parts))).await
            }
        }
    }

    /// Runs a read until `step` says that it is done: on a thread for blocking work, one slice of time after the other.
    /// Closing the store, or reopening its engine, waits for one slice. An abandoned read continues for at most one
    /// slice.
    async fn read_on<R, F>(&self, ctx: &Context, mut read: R, step: F) -> Result<R>
    where
        R: Send + 'static,
        F: Fn(&mut R, &Shared<E>, &Parts<E>, Instant) -> Result<bool> + Send + 'static,
    {
        let shared = self.inner.shared.clone();
        let dropped = CancellationToken::new();
        let _cancel = dropped.clone().drop_guard();
        let rest = move |until: &Context| {
            loop {
                if shared.with_parts(|parts| step(&mut read, &shared, parts, Instant::now() + SLICE))? {
                    return Ok(read);
                }
                until.check()?;
                shared.head()?; // fails if the store is closed
                if dropped.is_cancelled() {
                    return Err(Error::Cancelled);
                }
            }
        };
        self.run_blocking(ctx, ctx.clone(), rest).await
    }

    /// Runs work of the engine that may take long, on a thread for blocking work if there is a runtime that has them.
    ///
    /// `callers`, which the work borrows, is dropped after the work, when the engine is free: it may hold the last
    /// handle, which waits for the engine.
    async fn run_blocking<T, C, F>(&self, ctx: &Context, callers: C, work: F) -> Result<T>
    where
        T: Send + 'static,
        C: Send + 'static,
        F: FnOnce(&C) -> Result<T> + Send + 'static,
    {
        match Handle::try_current() {
            Ok(runtime) => {
                let task = runtime.spawn_blocking(move || work(&callers));
                let done = ctx.run(task).await?.map_err(|error| Error::engine("finish a read", error))?;
                done.map_err(advised)
            }
            Err(_) => work(&callers).map_err(advised),
        }
    }
}

/// Adds advice to an error about a damaged index, which loses no events.
fn advised(error: Error) -> Error {
    match error {
        Error::Corrupt { version: None, reason } if !reason.contains("; ") => {
            Error::Corrupt { version: None, reason: index_advice(&reason) }
        }
        other => other,
    }
}

/// Counts a caller that waits for the answer to an append.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for a future, and stays awake for a while as long as there is no other work: the polling thread yields to
/// others but does not sleep. A wake-up takes about as long as a sync of a fast disk.
async fn awake<F: Future>(future: F, is_alone: impl Fn() -> bool) -> F::Output {
    let awake_until = Instant::now() + STAY_AWAKE;
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && is_alone() && !is_past(awake_until) {
            thread::yield_now();
            cx.waker().wake_by_ref();
        }
        polled
    })
    .await
}

/// How long a caller stays awake while it waits for the answer to an append.
const STAY_AWAKE: Duration = Duration::from_micros(300);

/// Larger batches take so long to stage, write and sync that staying awake is not worth it.
const SHORT: usize = 16 << 10;

/// The size of the store's files in bytes, if it has any.
fn len_bytes<E: Engine>(parts: &Parts<E>) -> Result<Option<u64>> {
    parts.directory.as_ref().map(StoreDirectory::len_bytes).transpose()
}

#[async_trait]
impl<E: Engine> EventStore for KvStore<E> {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        ctx.check()?;
        self.inner.shared.head()?; // fails if the store is closed
        batch.validate()?;
        self.inner.shared.check_writable("an append")?;
        if batch.events.is_empty() {
            return Ok(Vec::new());
        }
        let (observer, began) = (&self.inner.shared.observer, Instant::now());
        let span = observer.append_span(&batch);
        async {
            let result = self.append(ctx, batch).await;
            observer.appended(began, &result);
            result
        }
        .instrument(span)
        .await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        ctx.check()?;
        let shared = &self.inner.shared;
        let mut read = PageRead::new(options, size, shared.head()?);
        let began = Instant::now();
        let until = began + INLINE_TIME;
        if size.bytes <= INLINE_BYTES {
            let page = |parts: &Parts<E>| read.run(&shared.log, &shared.index.view(parts.engine()?), Some(until));
            // otherwise the whole page is read on a thread for blocking work
            shared.try_with_parts(page).unwrap_or(Ok(())).map_err(advised)?;
        }
        if !read.is_done() {
            read = self
                .read_on(ctx, read, |read, shared, parts, until| {
                    read.run(&shared.log, &shared.index.view(parts.engine()?), Some(until))?;
                    Ok(read.is_done())
                })
                .await?;
        } else if is_past(until) {
            // A sequence of pages of this length would keep the thread from its other tasks.
            tokio::task::yield_now().await;
        }
        let page = read.finish().map_err(advised);
        shared.observer.read(began, page.as_ref().ok().map(|page| page.events.len()));
        page
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        ctx.check()?;
        let head = self.inner.shared.head()?;
        if id.len() > MAX_ID_LEN {
            return Err(Error::EventNotFound { id: id.to_owned() }); // such a key may be too long for an engine
        }
        let wanted = id.to_owned();
        let find = move |shared: &Shared<E>, parts: &Parts<E>| {
            reader::find(&shared.log, &shared.index.view(parts.engine()?), &wanted, head)
        };
        self.read_little(ctx, find).await?.ok_or_else(|| Error::EventNotFound { id: id.to_owned() })
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        ctx.check()?;
        self.inner.shared.head()
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        ctx.check()?;
        let head = self.inner.shared.head()?;
        if aggregate_id.len() > MAX_AGGREGATE_ID_LEN {
            return Ok(Revision::ZERO); // such a key may be too long for an engine
        }
        let wanted = aggregate_id.to_owned();
        let find = move |shared: &Shared<E>, parts: &Parts<E>| {
            reader::revision_at(&shared.index.view(parts.engine()?), &wanted, head)
        };
        self.read_little(ctx, find).await.map(Revision::new)
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        ctx.check()?;
        let shared = &self.inner.shared;
        let mut list = ListRead::new(options, most, shared.head()?);
        let until = Instant::now() + INLINE_TIME;
        let page = |parts: &Parts<E>| list.run(&shared.index.view(parts.engine()?), until);
        shared.try_with_parts(page).unwrap_or(Ok(()))?; // otherwise the whole page is read on a thread for blocking work
        if !list.is_done() {
            list = self
                .read_on(ctx, list, |list, shared, parts, until| {
                    list.run(&shared.index.view(parts.engine()?), until)?;
                    Ok(list.is_done())
                })
                .await?;
        }
        Ok(list.finish())
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        ctx.check()?;
        let mut progress = self.inner.shared.watch();
        let reached = progress.wait_for(|progress| progress.head > after || progress.phase != Phase::Open);
        let progress = *ctx.run(reached).await?.map_err(|_| Error::Closed)?;
        match progress.phase {
            Phase::Open => Ok(progress.head),
            Phase::Closing | Phase::Closed => Err(Error::Closed),
        }
    }

    async fn digest(&self, ctx: &Context, version: Version) -> Result<Digest> {
        self.run_task("digest", ctx, move |shared, _, task| {
            task.check()?;
            shared.digests.at(version.min(shared.head()?).get())
        })
        .await
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        self.run_task("sync", ctx, |shared, _, _| {
            let head = shared.head()?;
            if shared.log.synced() < head.get() {
                shared.log.sync().map_err(log_error)?;
            }
            Ok(head)
        })
        .await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.run_task("gc", ctx, move |shared, parts, task| {
            shared.check_writable("a collection")?;
            let mut report = GcReport::default();
            report.bytes_before = len_bytes(parts)?;
            task.check()?;
            report.actions.extend(compress::run(shared, task)?);
            match gc {
                Gc::Full => report.actions.extend(parts.engine()?.compact(task)?),
                _ if report.actions.is_empty() => report.actions.push(
                    "nothing to do: the log has no garbage, and the engine collects that of its index itself"
                        .to_owned(),
                ),
                _ => {}
            }
            report.bytes_after = len_bytes(parts)?;
            Ok(report)
        })
        .await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let (target, engine, options) = (target.to_owned(), self.inner.engine.clone(), self.inner.options.clone());
        self.run_task("backup", ctx, move |shared, parts, task| backup(shared, parts, &target, &engine, &options, task))
            .await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.run_task("verify", ctx, |shared, parts, task| verify(shared, parts.engine()?, task)).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let (requests, bytes) = self.inner.room.taken();
        let mut stats = Stats::default();
        stats.backend = E::NAME.into();
        (stats.queued_requests, stats.queued_bytes) = (requests as u64, bytes as u64);
        self.run_task("stats", ctx, move |shared, parts, task| {
            stats.store_id = (shared.id != [0; 16]).then(|| Uuid::from_bytes(shared.id).simple().to_string());
            (stats.latest_version, stats.aggregates) = shared.count(parts.engine()?, task)?;
            stats.commits = shared.commits.load(Ordering::Relaxed);
            stats.events_written = shared.events_written.load(Ordering::Relaxed);
            stats.largest_group = shared.largest_group.load(Ordering::Relaxed);
            stats.fenced = shared.fence_reason().map(str::to_owned);
            stats.bytes_on_disk = len_bytes(parts)?;
            stats.properties =
                parts.engine()?.properties()?.into_iter().map(|(name, value)| (name.into(), value)).collect();
            Ok(stats)
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.inner.request_close();
        if self.inner.shared.is_kept_here() {
            let why =
                "it was called by a progress listener of maintenance, which must end first; the store closes then";
            return Err(Error::engine("wait until the store is closed", why));
        }
        let mut progress = self.inner.shared.watch();
        // This handle holds the sender, so it cannot be dropped.
        let _ = progress.wait_for(|progress| progress.phase == Phase::Closed).await;
        self.inner.shared.closing_result()
    }
}

impl<E: Engine> Inner<E> {
    fn request_close(&self) {
        self.shared.begin_closing();
        self.room.close();
        let _ = self.queue.send(Message::Wake); // fails if the writer has already ended
    }
}

impl<E: Engine> Drop for Inner<E> {
    /// No request can be pending here, so this waits for one group at most.
    fn drop(&mut self) {
        self.request_close();
        // An executor may drop the last handle on the writer's own thread, or on the committing thread, when that wakes
        // it. A progress listener of maintenance may drop it, too.
        let is_waited_for = |writer: &thread::JoinHandle<()>| {
            writer.thread().id() == thread::current().id()
                || self.shared.is_committing_here()
                || self.shared.is_kept_here()
        };
        if let Some(thread) = self.writer.take().filter(|writer| !is_waited_for(writer)) {
            let _ = thread.join();
        }
    }
}

impl<E: Engine> Clone for KvStore<E> {
    fn clone(&self) -> Self {
        KvStore { inner: self.inner.clone() }
    }
}

impl<E: Engine> fmt::Debug for KvStore<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvStore")
            .field("engine", &E::NAME)
            .field("head", &self.inner.shared.head())
            .field("fenced", &self.inner.shared.fence_reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_to_the_index_is_told_with_what_mends_it() {
        let advised = |error| advised(error).to_string();
        let of_index = advised(crate::damaged_index("page 7 is torn"));
        assert_eq!(
            of_index,
            "the store is corrupt: page 7 is torn; close the store and rebuild its index with `eventstore repair`"
        );
        let of_event = Error::Corrupt { version: Some(Version::new(7)), reason: "its checksum is wrong".to_owned() };
        let text = of_event.to_string();
        assert_eq!(advised(of_event), text);
    }
}

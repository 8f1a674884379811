use std::fmt;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, MAX_ID_LEN};
use eventstore_api::{
    BackupReport, Batch, CancellationToken, Context, Durability, Error, EventStore, Gc, GcReport, LoadOptions, Page,
    PageSize, RecordedEvent, Result, Stats, Stored, VerifyReport, Version, async_trait,
};
use tokio::runtime::Handle;
use tracing::Instrument;

use crate::engine::{Engine, Table, WriteBatch};
use crate::head::HeadFile;
use crate::index::{self, Debt, Opened};
use crate::memory::no_files;
use crate::queue::{Message, Request, Room, Ticket, WithdrawOnDrop};
use crate::reader::{self, PageRead};
use crate::shared::{Phase, Shared, with_causes};
use crate::sync::{AtomicU64, Ordering, is_past, mpsc, oneshot, thread};
use crate::verify::verify;
use crate::writer::Writer;
use crate::{FORMAT, Snapshot, StoreDirectory, StoreOptions, Task, keys};

/// An event store over a key-value engine.
///
/// It keeps the contract of [`EventStore`]: one thread writes, in groups with one sync each; reads go a page at a time
/// and wait for nobody.
///
/// # Clone
///
/// Cheap; clones are the same store. Dropping the last one closes it, which waits for the group that is being committed.
pub struct KvStore<E: Engine> {
    inner: Arc<Inner<E>>,
}

struct Inner<E: Engine> {
    name: &'static str,
    shared: Arc<Shared<E>>,
    queue: mpsc::UnboundedSender<Message>,
    room: Room,
    /// How many callers wait for the answer to an append.
    waiting: AtomicU64,
    /// Of appends that do not choose one.
    durability: Durability,
    /// Taken when the store is dropped.
    writer: Option<thread::JoinHandle<()>>,
}

/// A page is first read where its caller runs, which is the fastest for what is in memory; if that takes longer, the
/// rest of it moves to a thread where blocking is allowed. So a cold disk holds up other tasks for this long per page, and
/// for the rows until the reader looks at the clock again.
const INLINE_TIME: Duration = Duration::from_micros(300);

impl<E: Engine> KvStore<E> {
    /// Opens the store that `engine` holds, and begins it if the engine is empty. It blocks, a few reads long.
    ///
    /// # Errors
    ///
    /// `InvalidOption`; `Unsupported` for a store that a newer version wrote; `Corrupt`, `Engine` if it cannot be read.
    pub fn open(engine: E, options: StoreOptions) -> Result<Self> {
        options.validate()?;
        let head = Version::new(reader::newest_version(&engine.snapshot()?)?);
        engine.directory().map_or(Ok(()), |directory| directory.check_synced_head(head))?;
        let mark = check_format(&engine, head)?;
        let (name, head_file) = (engine.name(), engine.directory().map(HeadFile::new));
        let opened = Opened::read(&engine, mark.get(), head.get())?;
        let mut debt = Debt::new(&options, opened.recent_bytes);
        if debt.is_overdue(&opened.index)
            && let Err(error) = debt.settle(&opened.index, &engine)
        {
            tracing::warn!(error = with_causes(&error), "the index tables are behind; openings take longer");
        }
        let shared = Arc::new(Shared::new(engine, head, mark, opened));
        let (queue, receiver) = mpsc::unbounded_channel();
        let writer = Writer::new(shared.clone(), receiver, &options, head, debt, head_file);
        let thread = thread::Builder::new()
            .name("eventstore-write".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::engine("start the writer thread", error))?;
        let inner = Inner {
            name,
            shared,
            queue,
            room: Room::new(options.queue_requests, options.queue_bytes),
            waiting: AtomicU64::new(0),
            durability: options.durability,
            writer: Some(thread),
        };
        Ok(KvStore { inner: Arc::new(inner) })
    }

    /// Queues the batch, as soon as there is room, and waits for the writer's answer.
    async fn append(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        let Inner { shared, queue, room, durability, waiting, .. } = &*self.inner;
        let bytes = batch.len_bytes();
        let place = ctx.run(room.take(bytes)).await??;
        let ticket = Arc::new(Ticket::default());
        let (reply, answer) = oneshot::channel();
        let _withdraw = WithdrawOnDrop(ticket.clone());
        let request = Request {
            events: batch.events,
            expected: batch.expected,
            durability: batch.durability.unwrap_or(*durability),
            recorded_at: batch.recorded_at,
            bytes,
            queued_at: Instant::now(),
            ticket: ticket.clone(),
            reply,
            place: Some(place),
        };
        queue.send(Message::Append(request)).map_err(|_| Error::Closed)?;
        tracing::trace!(name: "queued", bytes, "an append is in the queue");
        let _waiting = Waiting::new(waiting);
        let is_alone = || waiting.load(Ordering::Relaxed) == 1 && shared.newest_group.load(Ordering::Relaxed) <= 1;
        match ctx.run(awake(answer, is_alone)).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::OutcomeUnknown {
                reason: format!("the writer stopped ({})", shared.fence_reason().unwrap_or("it did not say why")),
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

    /// Maintenance: it asks now and then whether it is wanted, so it is waited for until it has ended, also if that is
    /// before it is done.
    async fn run_task<T, F>(&self, operation: &'static str, ctx: &Context, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Shared<E>, &E, &Task<'_>) -> Result<T> + Send + 'static,
    {
        ctx.check()?;
        self.inner.shared.head()?; // refuses when closed
        let dropped = CancellationToken::new();
        let _cancel = dropped.clone().drop_guard();
        let shared = self.inner.shared.clone();
        let run = move |engine: &E, until: &Context| {
            let is_wanted = || match dropped.is_cancelled() {
                true => Err(Error::Cancelled),
                false => shared.head().map(drop),
            };
            let (observer, began) = (&shared.observer, Instant::now());
            observer.maintenance_span(operation).in_scope(|| {
                let result = work(&shared, engine, &Task::new(until, &is_wanted));
                observer.maintained(operation, began, &result);
                result
            })
        };
        self.run_blocking(&Context::background(), ctx.clone(), run).await
    }

    /// Engine work that may take long: on a thread where blocking is allowed, if there is a runtime that has them.
    ///
    /// What the work needs of the caller is dropped after it, when the engine is free: it may hold the last handle, which
    /// waits for the engine.
    async fn run_blocking<T, C, F>(&self, ctx: &Context, callers: C, work: F) -> Result<T>
    where
        T: Send + 'static,
        C: Send + 'static,
        F: FnOnce(&E, &C) -> Result<T> + Send + 'static,
    {
        let shared = self.inner.shared.clone();
        match Handle::try_current() {
            Ok(runtime) => {
                let task = runtime.spawn_blocking(move || shared.with_engine(|engine| work(engine, &callers)));
                ctx.run(task).await?.map_err(|error| Error::engine("finish a read", error))?
            }
            Err(_) => shared.with_engine(|engine| work(engine, &callers)),
        }
    }
}

/// Somebody who waits for the answer to an append.
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

/// Waits for a future, and stays awake for a while as long as nobody else has something to do: the thread that polls it gives
/// way to others, but does not sleep. Being woken takes about as long as a sync of a fast disk.
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

/// How long a caller stays awake who waits for the answer to an append.
const STAY_AWAKE: Duration = Duration::from_micros(300);

/// Bytes of the engine's files, if it has any.
fn len_bytes<E: Engine>(engine: &E) -> Result<Option<u64>> {
    engine.directory().map(StoreDirectory::len_bytes).transpose()
}

/// Refuses a store of a newer format, and marks a new one, and one of an older format, with ours. Returns the version up to
/// which the index tables reach.
fn check_format<E: Engine>(engine: &E, head: Version) -> Result<Version> {
    let damaged = |what: &str| Error::Corrupt { version: None, reason: what.to_owned() };
    let mut format = Vec::new();
    let is_marked = engine.snapshot()?.get(Table::Meta, keys::META_FORMAT, &mut format)?;
    let mark_with = |indexed: Version| {
        let mut batch = WriteBatch::new();
        batch.put(Table::Meta, keys::META_FORMAT, &FORMAT.to_be_bytes());
        batch.put(Table::Meta, keys::META_INDEXED, &keys::version_bytes(indexed.get()));
        engine.commit(&batch, Durability::Sync)?;
        Ok(indexed)
    };
    match is_marked.then(|| format.as_slice().try_into().map(u32::from_be_bytes)) {
        None if head > Version::ZERO => Err(damaged("it has events but no format mark")),
        None => mark_with(Version::ZERO),
        Some(Ok(FORMAT)) => match Version::new(index::mark(&engine.snapshot()?)?) {
            mark if mark > head => Err(damaged("its index tables are said to reach further than its log")),
            mark => Ok(mark),
        },
        Some(Ok(FORMAT_WITH_WHOLE_INDEXES)) => mark_with(head),
        Some(Ok(format)) => Err(Error::Unsupported {
            what: format!("the store has format {format}, and this version reads format {FORMAT}; upgrade eventstore"),
        }),
        Some(Err(_)) => Err(damaged("its format mark has a wrong size")),
    }
}

/// The format before this one: index entries were committed with their events.
const FORMAT_WITH_WHOLE_INDEXES: u32 = 1;

#[async_trait]
impl<E: Engine> EventStore for KvStore<E> {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        ctx.check()?;
        self.inner.shared.head()?; // refuses when closed
        batch.validate()?;
        if batch.events.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.shared.check_fence()?;
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
        shared.with_engine(|engine| read.run(&shared.index.view(engine)?, Some(until)))?;
        if !read.is_done() {
            let shared = shared.clone();
            let rest = move |engine: &E, (): &()| {
                read.run(&shared.index.view(engine)?, None)?;
                Ok(read)
            };
            read = self.run_blocking(ctx, (), rest).await?;
        } else if is_past(until) {
            // Page after page of this length would keep the thread from its other tasks.
            tokio::task::yield_now().await;
        }
        let page = read.finish();
        shared.observer.read(began, page.as_ref().ok().map(|page| page.events.len()));
        page
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        ctx.check()?;
        let head = self.inner.shared.head()?;
        if id.len() > MAX_ID_LEN {
            return Err(Error::EventNotFound { id: id.to_owned() }); // and too long a key for an engine
        }
        let shared = &self.inner.shared;
        let found = shared.with_engine(|engine| reader::find(&shared.index.view(engine)?, id, head))?;
        found.ok_or_else(|| Error::EventNotFound { id: id.to_owned() })
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        ctx.check()?;
        self.inner.shared.head()
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<u64> {
        ctx.check()?;
        let head = self.inner.shared.head()?;
        if aggregate_id.len() > MAX_AGGREGATE_ID_LEN {
            return Ok(0); // and too long a key for an engine
        }
        let shared = &self.inner.shared;
        shared.with_engine(|engine| reader::revision_at(&shared.index.view(engine)?, aggregate_id, head))
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

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.run_task("gc", ctx, move |_, engine, task| {
            let mut report = GcReport::default();
            report.bytes_before = len_bytes(engine)?;
            report.actions = engine.run_gc(gc, task)?;
            report.bytes_after = len_bytes(engine)?;
            Ok(report)
        })
        .await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let target = target.to_owned();
        self.run_task("backup", ctx, move |_, engine, task| {
            if engine.directory().is_none() {
                return Err(no_files());
            }
            let copy = engine.backup(StoreDirectory::begin_backup(&target, engine.name())?, task)?;
            let mut report = BackupReport::default();
            report.latest_version = Version::new(reader::newest_version(&copy.snapshot()?)?);
            report.bytes_on_disk = len_bytes(&copy)?.unwrap_or_default();
            Ok(report)
        })
        .await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.run_task("verify", ctx, |shared, engine, task| verify(engine, &shared.index, shared.head()?, task)).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let Inner { name, room, .. } = &*self.inner;
        let (requests, bytes) = room.taken();
        let mut stats = Stats::default();
        stats.backend = name;
        (stats.queued_requests, stats.queued_bytes) = (requests as u64, bytes as u64);
        self.run_task("stats", ctx, move |shared, engine, task| {
            (stats.latest_version, stats.aggregates) = shared.count(engine, task)?;
            stats.commits = shared.commits.load(Ordering::Relaxed);
            stats.events_written = shared.events_written.load(Ordering::Relaxed);
            stats.largest_group = shared.largest_group.load(Ordering::Relaxed);
            stats.fenced = shared.fence_reason().map(str::to_owned);
            stats.bytes_on_disk = len_bytes(engine)?;
            stats.properties = engine.properties()?;
            Ok(stats)
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.inner.request_close();
        let mut progress = self.inner.shared.watch();
        // The sender lives in what this handle holds, so it cannot be gone.
        let _ = progress.wait_for(|progress| progress.phase == Phase::Closed).await;
        self.inner.shared.closing_result()
    }
}

impl<E: Engine> Inner<E> {
    fn request_close(&self) {
        self.shared.begin_closing();
        self.room.close();
        let _ = self.queue.send(Message::Wake); // fails if the writer has ended already
    }
}

impl<E: Engine> Drop for Inner<E> {
    /// Nobody can hold a request here, so this waits for one group at most.
    fn drop(&mut self) {
        self.request_close();
        // An executor may drop the last handle on the writer's own thread, when that wakes it.
        if let Some(thread) = self.writer.take().filter(|writer| writer.thread().id() != thread::current().id()) {
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
            .field("engine", &self.inner.name)
            .field("head", &self.inner.shared.head())
            .field("fenced", &self.inner.shared.fence_reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use eventstore_api::{Event, EventStoreExt, StoreOutcome};

    use super::*;
    use crate::MemoryEngine;
    use crate::record::{self, Micros};
    use crate::transfer::put_indexes;

    #[tokio::test]
    async fn a_store_of_the_format_before_opens_and_becomes_one_of_this() {
        let event = |id: &str| Event::builder("Tested", "a").id(id).build().expect("valid");
        let engine = MemoryEngine::default();
        let mut batch = WriteBatch::new();
        batch.put(Table::Meta, keys::META_FORMAT, &FORMAT_WITH_WHOLE_INDEXES.to_be_bytes());
        for (version, id) in [(1, "one"), (2, "two")] {
            let header = record::header(&event(id), version, version, Micros::now());
            batch.put_parts(Table::Events, &keys::version_bytes(version), &[&header, event(id).bytes()]);
            put_indexes(&mut batch, &mut Vec::new(), &event(id), version, version);
        }
        engine.commit(&batch, Durability::Sync).expect("committed");

        assert_eq!(check_format(&engine, Version::new(2)).expect("known"), Version::new(2));
        assert_eq!(check_format(&engine, Version::new(2)).expect("changed"), Version::new(2));
        let store = KvStore::open(engine, StoreOptions::default()).expect("opened");
        let ctx = Context::background();
        assert_eq!(store.get(&ctx, "two").await.expect("found").version, Version::new(2));
        let again = store.store_batch(&ctx, Batch::new(vec![event("one")])).await.expect("stored");
        assert_eq!(again[0].outcome, StoreOutcome::AlreadyStored);
        let stored = store.store_batch(&ctx, Batch::new(vec![event("three")])).await.expect("stored");
        assert_eq!((stored[0].version, stored[0].revision), (Version::new(3), 3));
        assert_eq!(store.load_by_aggregate(&ctx, "a", Version::ZERO).into_vec().await.expect("read").len(), 3);
        assert!(store.verify(&ctx).await.expect("verified").is_clean());
    }

    #[test]
    fn what_meta_says_must_be_possible() {
        let refused = |entries: &[(&[u8], &[u8])], head: u64| {
            let engine = MemoryEngine::default();
            let mut batch = WriteBatch::new();
            entries.iter().for_each(|(key, value)| batch.put(Table::Meta, key, value));
            engine.commit(&batch, Durability::Sync).expect("committed");
            check_format(&engine, Version::new(head)).expect_err("it cannot be").code()
        };
        let format = FORMAT.to_be_bytes();
        assert_eq!(refused(&[], 1), "corrupt", "events and no format");
        assert_eq!(refused(&[(keys::META_FORMAT, &[1])], 0), "corrupt");
        assert_eq!(refused(&[(keys::META_FORMAT, &(FORMAT + 1).to_be_bytes())], 0), "unsupported");
        assert_eq!(refused(&[(keys::META_FORMAT, &format)], 0), "corrupt", "no mark");
        let mark = keys::version_bytes(2);
        assert_eq!(refused(&[(keys::META_FORMAT, &format), (keys::META_INDEXED, &mark)], 1), "corrupt", "beyond");
    }
}

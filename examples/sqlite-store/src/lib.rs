//! An event store over SQLite: a worked example of a store that is not key-value and implements [`EventStore`] directly.
//!
//! | file | what it is a model for |
//! |---|---|
//! | `lib.rs` | the trait: which thread does what, and what the end of a context means at each point |
//! | `writer.rs` | one thread that writes: group commit, repeated appends, conditions, durability, fencing |
//! | `shared.rs` | what callers and the writer share: the published head, the way to read |
//! | `database.rs` | files: creating, locking, opening, and errors of the engine in terms of the contract |
//! | `rows.rs` | an event as a row, with its checksum; a page as a query |
//! | `maintenance.rs` | backup and verification, with progress and cancellation |
//!
//! ```
//! use eventstore_api::{Context, Event, EventStoreExt, Expected};
//!
//! # async fn run(path: &std::path::Path) -> eventstore_api::Result<()> {
//! let store = sqlite_store::SqliteStore::open(path).await?;
//! let event = Event::builder("OrderPlaced", "order-42").data("{}").build()?;
//! store.store(&Context::background(), event, Expected::Any).await?;
//! # Ok(())
//! # }
//! # let directory = tempfile::tempdir().unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(run(directory.path())).unwrap();
//! ```

#![forbid(unsafe_code)]

mod database;
mod maintenance;
mod rows;
mod shared;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, CancellationToken, Context, Error, EventStore, Gc, GcReport,
    LoadOptions, Page, PageSize, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport, Version, async_trait,
};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::maintenance::Task;
use crate::rows::{ListRead, PageRead};
use crate::shared::{Phase, Place, Shared};
use crate::writer::{Message, Request, Ticket, WithdrawOnDrop, Writer};

/// An event store in one SQLite database, in a directory of its own.
///
/// # Clone
///
/// Cheap; clones are the same store. Dropping the last one closes it, which waits for the group that is being committed.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// It has no bound, so that the writer can always be woken; the room in it is counted apart, by `Shared::room`.
    queue: mpsc::UnboundedSender<Message>,
    /// Taken when the store is dropped.
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store in this directory, or creates one if the directory is missing or empty.
    ///
    /// # Errors
    ///
    /// `Locked`, `Open`, `Unsupported`, `Corrupt`, `Full`, `Engine`.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        match Handle::try_current() {
            Ok(runtime) => joined(runtime.spawn_blocking(move || Self::open_blocking(&path)).await),
            Err(_) => Self::open_blocking(&path),
        }
    }

    /// As [`SqliteStore::open`], on the caller's thread.
    ///
    /// # Errors
    ///
    /// Those of [`SqliteStore::open`].
    pub fn open_blocking(path: &Path) -> Result<Self> {
        let (files, db) = database::open(path)?;
        Self::start(files, db)
    }

    /// Begins the work of a store whose files are open.
    fn start(files: database::Files, db: rusqlite::Connection) -> Result<Self> {
        let head = rows::newest_version(&db)?;
        let shared = Arc::new(Shared::new(files, head));
        let (queue, receiver) = mpsc::unbounded_channel();
        let writer = Writer::new(db, shared.clone(), receiver, head)?;
        let writer = thread::Builder::new()
            .name("sqlite-store-write".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::engine("start the writer thread", error))?;
        Ok(SqliteStore { inner: Arc::new(Inner { shared, queue, writer: Some(writer) }) })
    }

    /// Queues the batch, as soon as there is room, and waits for the writer's answer.
    async fn append(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        let Inner { shared, queue, .. } = &*self.inner;
        // Until here nothing is queued: whatever ends the waiting has its plain error (C2).
        let place = ctx.run(Place::take(shared, batch.len_bytes())).await??;
        let ticket = Arc::new(Ticket::default());
        let (reply, answer) = oneshot::channel();
        let _withdraw = WithdrawOnDrop(ticket.clone());
        let request = Request { batch, ticket: ticket.clone(), reply, place };
        queue.send(Message::Append(request)).map_err(|_| Error::Closed)?;
        // From here on the ticket decides: who can withdraw it knows that nothing was or will be written (C2, C4); who
        // cannot has to say that the outcome is unknown (C3), and does not wait for it.
        match ctx.run(answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if ticket.withdraw() => Err(Error::Closed),
            Ok(Err(_)) => Err(unknown("the writer stopped")),
            Err(ended) if ticket.withdraw() => Err(ended),
            Err(Error::Cancelled) => Err(unknown("cancelled while the commit was under way")),
            Err(_) => Err(unknown("the deadline passed while the commit was under way")),
        }
    }

    /// Reads on a thread that may block, with one of a few connections: SQLite has no calls that can be awaited.
    ///
    /// A context that ends is obeyed at once by the caller. A read that has begun goes on to its end, which is one page, or
    /// one part of a search, away at most (C5).
    async fn read<T, F>(&self, ctx: &Context, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T> + Send + 'static,
    {
        let shared = self.inner.shared.clone();
        let turn = ctx.run(shared.readers.clone().acquire_owned()).await?.map_err(|_| Error::Closed)?;
        let read = move || {
            let result = shared.with_reader(work);
            drop(turn);
            result
        };
        match Handle::try_current() {
            Ok(runtime) => joined(ctx.run(runtime.spawn_blocking(read)).await?),
            Err(_) => read(),
        }
    }

    /// Long work with a connection of its own, so that it takes no reader's. It asks often whether it is wanted, so it is
    /// waited for until it has ended: when the call returns, nothing of it runs any more.
    async fn maintain<T, F>(&self, ctx: &Context, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut rusqlite::Connection, &Task) -> Result<T> + Send + 'static,
    {
        ctx.check()?;
        self.inner.shared.head()?; // refuses when closed
        let dropped = CancellationToken::new();
        let _cancel = dropped.clone().drop_guard();
        let task = Task::new(ctx.clone(), dropped, self.inner.shared.clone());
        match Handle::try_current() {
            Ok(runtime) => joined(runtime.spawn_blocking(move || task.run(work)).await),
            Err(_) => task.run(work),
        }
    }
}

fn unknown(reason: &str) -> Error {
    Error::OutcomeUnknown { reason: reason.to_owned(), source: None }
}

/// The result of a blocking task, which fails by itself if it panics or the runtime ends.
fn joined<T>(result: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| Error::engine("finish", error))?
}

#[async_trait]
impl EventStore for SqliteStore {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        ctx.check()?;
        self.inner.shared.head()?; // refuses when closed
        batch.validate()?;
        if batch.events.is_empty() {
            return Ok(Vec::new());
        }
        self.append(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        ctx.check()?;
        let mut page = PageRead::new(options, size, self.inner.shared.head()?);
        while !page.is_done() {
            page = self.read(ctx, move |db| page.go_on(db).map(|()| page)).await?;
        }
        Ok(page.finish())
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        ctx.check()?;
        let (head, wanted) = (self.inner.shared.head()?, id.to_owned());
        let found = self.read(ctx, move |db| rows::find(db, &wanted, head)).await?;
        found.ok_or_else(|| Error::EventNotFound { id: id.to_owned() })
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        ctx.check()?;
        self.inner.shared.head()
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        ctx.check()?;
        let (head, wanted) = (self.inner.shared.head()?, aggregate_id.to_owned());
        self.read(ctx, move |db| rows::revision(db, &wanted, head)).await.map(Revision::from)
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        ctx.check()?;
        let mut list = ListRead::new(options, most, self.inner.shared.head()?);
        while !list.is_done() {
            list = self.read(ctx, move |db| list.go_on(db).map(|()| list)).await?;
        }
        Ok(list.finish())
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        ctx.check()?;
        let mut state = self.inner.shared.state.subscribe();
        let reached = state.wait_for(|state| state.head > after || state.phase != Phase::Open);
        let state = *ctx.run(reached).await?.map_err(|_| Error::Closed)?;
        if state.phase == Phase::Open { Ok(state.head) } else { Err(Error::Closed) }
    }

    /// The write-ahead log becomes part of the database and is cut to nothing. That is short, so the writer does it between
    /// two groups: a checkpoint that fails has to fence it.
    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        ctx.check()?;
        let shared = &self.inner.shared;
        shared.head()?; // refuses when closed
        if gc == Gc::Full {
            let what = "a full collection: SQLite's VACUUM would hold up all appends and cannot give back what an \
                        append-only store never frees; run a quick one";
            return Err(Error::Unsupported { what: what.to_owned() });
        }
        let mut report = GcReport::default();
        report.bytes_before = Some(shared.files.len_bytes()?);
        let (reply, answer) = oneshot::channel();
        self.inner.queue.send(Message::Checkpoint(reply)).map_err(|_| Error::Closed)?;
        report.actions = ctx.run(answer).await?.map_err(|_| Error::Closed)??;
        report.bytes_after = Some(shared.files.len_bytes()?);
        Ok(report)
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let target = target.to_owned();
        self.maintain(ctx, move |db, task| maintenance::backup(db, &target, task)).await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.maintain(ctx, maintenance::verify).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        ctx.check()?;
        let shared = self.inner.shared.clone();
        let head = shared.head()?;
        self.read(ctx, move |db| {
            let mut stats = Stats::default();
            stats.backend = "sqlite".into();
            stats.latest_version = head;
            stats.aggregates = rows::count_aggregates(db, head)?;
            stats.bytes_on_disk = Some(shared.files.len_bytes()?);
            stats.queued_requests = shared.queued_requests.load(Ordering::Relaxed);
            stats.queued_bytes = shared.queued_bytes.load(Ordering::Relaxed);
            stats.commits = shared.commits.load(Ordering::Relaxed);
            stats.events_written = shared.events_written.load(Ordering::Relaxed);
            stats.largest_group = shared.largest_group.load(Ordering::Relaxed);
            stats.fenced = shared.fence_reason().map(str::to_owned);
            stats.properties = vec![("sqlite".into(), rusqlite::version().to_owned())];
            Ok(stats)
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.inner.request_close();
        let mut state = self.inner.shared.state.subscribe();
        // The sender lives in what this handle holds, so it cannot be gone.
        let _ = state.wait_for(|state| state.phase == Phase::Closed).await;
        self.inner.shared.closing_result()
    }
}

impl Inner {
    fn request_close(&self) {
        self.shared.begin_closing();
        let _ = self.queue.send(Message::Close); // fails if the writer has ended already
    }
}

impl Drop for Inner {
    /// Dropping the last handle is closing (L1), so it waits for the writer: for one group at most, since nobody can wait
    /// for an answer here.
    fn drop(&mut self) {
        self.request_close();
        // An executor may drop the last handle on the writer's own thread, when that wakes it.
        if let Some(writer) = self.writer.take().filter(|writer| writer.thread().id() != thread::current().id()) {
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.inner.shared;
        f.debug_struct("SqliteStore")
            .field("files", &shared.files)
            .field("head", &shared.head())
            .finish_non_exhaustive()
    }
}

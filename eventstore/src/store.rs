use std::fmt;
use std::path::Path;
use std::sync::Arc;

use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Cursor, Digest, EventStore, EventStoreExt, Gc, GcReport,
    RecordedEvent, Result, Revision, Stats, VerifyReport, Version,
};

use crate::CopyReport;
use crate::append::Append;
use crate::blocking::Blocking;
use crate::call::Call;
use crate::copy::copy;
use crate::load::{Load, Since, Subscribe};

/// A handle to an open store.
///
/// Options of a call are chained; the call starts when it is awaited:
///
/// ```
/// use std::time::Duration;
/// use eventstore::{Event, Expected, Version};
///
/// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// enum Order {
///     Placed { customer: String },
///     Paid { cents: u64 },
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let store = eventstore::open("memory:").await?; // or "lmdb:./data", which is kept
/// let placed = Event::of("order-42", &Order::Placed { customer: "Ada".into() })?;
/// let appended = store.append(placed).expected(Expected::NoEvents).timeout(Duration::from_secs(5)).await?;
/// let paid = Event::of("order-42", &Order::Paid { cents: 1200 })?;
/// store.append(paid).expected(Expected::Revision(appended.revision)).await?;
///
/// let newest = store.load(Version::ZERO).aggregate("order-42").backward().limit(1).await?;
/// assert_eq!(newest[0].decode::<Order>()?, Order::Paid { cents: 1200 });
/// # Ok::<(), eventstore::Error>(())
/// # }).unwrap();
/// ```
///
/// # Clone
///
/// Cheap: clones are handles to the same store. The store closes when the last handle is dropped, or when
/// [`close`](Store::close) is called on one of them.
///
/// # Errors
///
/// Every call fails with an [`Error`](crate::Error) that says what to do. After a failed append,
/// [`Error::written`](crate::Error::written) tells whether anything may have been written. [`EventStore`] has the
/// contract; names such as W2 are its rules.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn EventStore>,
}

impl From<Arc<dyn EventStore>> for Store {
    fn from(backend: Arc<dyn EventStore>) -> Self {
        Store { backend }
    }
}

impl<S: EventStore> From<Arc<S>> for Store {
    fn from(backend: Arc<S>) -> Self {
        Store { backend }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.backend).finish()
    }
}

impl Store {
    /// A handle to a store of any backend, such as one opened with typed options.
    #[must_use]
    pub fn new(backend: impl EventStore) -> Self {
        Store { backend: Arc::new(backend) }
    }

    /// The store behind the handle, for code that accepts any [`EventStore`].
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn EventStore> {
        &self.backend
    }

    fn call<T, F>(
        &self,
        work: impl FnOnce(Arc<dyn EventStore>, eventstore_api::Context) -> F + Send + 'static,
    ) -> Call<'static, T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let store = self.backend.clone();
        Call::new(move |ctx| work(store, ctx))
    }

    /// Appends one event, or several as one batch: all or none, with consecutive versions in their order. At most 10,000 events
    /// and 64 MiB at once; see [`limits`](crate::limits).
    ///
    /// Appends are idempotent: an event whose id is stored with the same content is not written again (rule W2). After
    /// [`OutcomeUnknown`](crate::Error::OutcomeUnknown), retry with the same events. [`Append::idempotency`] selects which content
    /// is compared.
    ///
    /// # Errors
    ///
    /// Nothing was written: `InvalidEvent`, `VersionConflict`, `DuplicateEvent`, `Cancelled`, `DeadlineExceeded`,
    /// `Closed`, `Fenced`, `Full`. Outcome unknown: `OutcomeUnknown`.
    pub fn append(&self, events: impl Into<Batch>) -> Append {
        Append::new(self.backend.clone(), events.into())
    }

    /// Loads the events after a version or a cursor, oldest first unless [`backward`](Load::backward) is set.
    ///
    /// ```
    /// use eventstore::{Event, Version};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let store = eventstore::open("memory:").await?;
    /// # store.append(Event::builder("OrderPlaced", "order-42").build()?).await?;
    /// let all_of_one = store.load(Version::ZERO).aggregate("order-42").await?;
    /// let mut events = store.load(Version::ZERO).before(Version::new(1_000)).stream();
    /// while let Some(event) = events.next().await {
    ///     println!("{}", event?.version);
    /// }
    /// # assert_eq!(all_of_one.len(), 1);
    /// # Ok::<(), eventstore::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Corrupt`, `Engine`; `HistoryDiverged` for a cursor of another history.
    pub fn load(&self, since: impl Into<Since>) -> Load {
        Load::new(self.backend.clone(), since.into())
    }

    /// Subscribes to the store: catches up with every event after a version or a cursor, then follows new ones, without gaps or
    /// repetitions (rules S1, S2).
    ///
    /// To resume after a restart, save a [`cursor`](Store::cursor_at), not only a version. For projections, use
    /// [`project`](Store::project).
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load), through the stream.
    pub fn subscribe(&self, since: impl Into<Since>) -> Subscribe {
        Subscribe::new(self.backend.clone(), since.into())
    }

    /// The event with this id.
    ///
    /// # Errors
    ///
    /// `EventNotFound`, and those of [`load`](Store::load).
    pub fn get(&self, id: impl Into<String>) -> Call<'static, RecordedEvent> {
        let id = id.into();
        self.call(move |store, ctx| async move { store.get(&ctx, &id).await })
    }

    /// The version of the newest event, which is the number of events; [`Version::ZERO`] for an empty store.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`.
    pub fn latest_version(&self) -> Call<'static, Version> {
        self.call(|store, ctx| async move { store.latest_version(&ctx).await })
    }

    /// The revision of the aggregate's newest event, which is the number of its events; [`Revision::ZERO`] if it has none.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load).
    pub fn revision(&self, aggregate_id: impl Into<String>) -> Call<'static, Revision> {
        let id = aggregate_id.into();
        self.call(move |store, ctx| async move { store.aggregate_revision(&ctx, &id).await })
    }

    /// A page of at most `most` aggregates (10,000 at most), in byte order of their ids, each with its revision and the
    /// version of its newest event. This reads only the index.
    ///
    /// ```
    /// use eventstore::{AggregateOptions, Event};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let store = eventstore::open("memory:").await?;
    /// # store.append(Event::builder("OrderPlaced", "order-42").build()?).await?;
    /// let mut next = Some(AggregateOptions::all().prefix("order-"));
    /// while let Some(options) = next {
    ///     let page = store.aggregates(options, 1_000).await?;
    ///     for aggregate in &page.aggregates {
    ///         println!("{} is at revision {}", aggregate.aggregate_id, aggregate.revision);
    ///     }
    ///     next = page.next;
    /// }
    /// # Ok::<(), eventstore::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load).
    pub fn aggregates(&self, options: AggregateOptions, most: usize) -> Call<'static, AggregatePage> {
        self.call(move |store, ctx| async move { store.list_aggregates(&ctx, &options, most).await })
    }

    /// Waits until the latest version is greater than this one, and returns it. Returns at once if it already is.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`.
    pub fn wait_for_events(&self, after: Version) -> Call<'static, Version> {
        self.call(move |store, ctx| async move { store.wait_for_events(&ctx, after).await })
    }

    /// The cursor after the newest event, to resume from later.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load).
    pub fn cursor(&self) -> Call<'static, Cursor> {
        self.call(|store, ctx| async move {
            let latest = store.latest_version(&ctx).await?;
            store.cursor_at(&ctx, latest).await
        })
    }

    /// The cursor after the event with this version, to resume from later.
    ///
    /// ```
    /// use eventstore::{Cursor, Event};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let store = eventstore::open("memory:").await?;
    /// let appended = store.append(Event::builder("OrderPlaced", "order-42").build()?).await?;
    /// let saved = store.cursor_at(appended.last).await?.to_string();
    ///
    /// let cursor: Cursor = saved.parse()?;
    /// assert!(store.load(cursor).await?.is_empty());
    /// # Ok::<(), eventstore::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load); `InvalidVersion` if the store ends before this version.
    pub fn cursor_at(&self, version: Version) -> Call<'static, Cursor> {
        self.call(move |store, ctx| async move { store.cursor_at(&ctx, version).await })
    }

    /// The digest of all events: two stores with the same events in the same order have the same digest, with any engine
    /// (rule M6). The store keeps it, so this reads little.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load).
    pub fn digest(&self) -> Call<'static, Digest> {
        self.digest_until(Version::new(u64::MAX))
    }

    /// The digest of the events up to a version; of all events, if the store ends before it.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Store::load).
    pub fn digest_until(&self, version: Version) -> Call<'static, Digest> {
        self.call(move |store, ctx| async move { store.digest(&ctx, version).await })
    }

    /// Copies every event to another store, with any engine. See [`copy`](crate::backend::copy).
    ///
    /// # Errors
    ///
    /// `Unsupported` if the target is neither empty nor a prefix of this store; `VersionConflict` if somebody appends to
    /// it meanwhile; those of loading and appending.
    pub fn copy_to(&self, target: &Store) -> Call<'static, CopyReport> {
        let target = target.backend.clone();
        self.call(move |store, ctx| async move { copy(&store, &target, &ctx).await })
    }

    /// Writes a copy of the store to the directory `target`, while reads and appends continue. See
    /// [`EventStore::backup`].
    ///
    /// # Errors
    ///
    /// `Open` if the target cannot be used; `Unsupported` for a store without files; `Cancelled`, `DeadlineExceeded`,
    /// `Closed`, `Engine`, `Corrupt`.
    pub fn backup(&self, target: impl AsRef<Path>) -> Call<'static, BackupReport> {
        let target = target.as_ref().to_owned();
        self.call(move |store, ctx| async move { store.backup(&ctx, &target).await })
    }

    /// Reads everything and reports what is wrong. See [`EventStore::verify`].
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Unsupported`. Damage to the store is a finding in the report.
    pub fn verify(&self) -> Call<'static, VerifyReport> {
        self.call(|store, ctx| async move { store.verify(&ctx).await })
    }

    /// Frees space where the engine can. See [`EventStore::run_gc`].
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Engine`, `Unsupported`.
    pub fn run_gc(&self, gc: Gc) -> Call<'static, GcReport> {
        self.call(move |store, ctx| async move { store.run_gc(&ctx, gc).await })
    }

    /// Statistics of the store.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`, `Closed`, `Engine`.
    pub fn stats(&self) -> Call<'static, Stats> {
        self.call(|store, ctx| async move { store.stats(&ctx).await })
    }

    /// Refuses new work, finishes what was accepted, and releases the files, for all handles (rule L1).
    ///
    /// # Errors
    ///
    /// The error of the last sync, if that fails. The store is closed all the same.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the closing.
    pub async fn close(&self) -> Result<()> {
        self.backend.close().await
    }

    /// The store for blocking code. See [`Blocking`].
    ///
    /// # Errors
    ///
    /// `Engine` if the operating system cannot create threads for a runtime.
    pub fn blocking(&self) -> Result<Blocking> {
        Blocking::new(self.clone())
    }
}

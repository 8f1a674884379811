use std::fmt;
use std::sync::Arc;

use eventstore_api::{
    AggregateOptions, AggregatePage, Cursor, Digest, Error, EventStore, EventStoreExt, LoadOptions, PageSize,
    RecordedEvent, Result, Revision, Version,
};

use crate::aggregate::load_before;
use crate::call::Call;
use crate::{Aggregate, Load, Loaded, Since, Store};

/// A store as it was at a version. Later events do not change what it returns. See [`Store::at`].
///
/// # Clone
///
/// Cheap. It holds no resources: events are never changed or removed, so it is valid as long as the store is open.
#[derive(Clone)]
pub struct StoreAt {
    store: Arc<dyn EventStore>,
    version: Version,
}

impl fmt::Debug for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreAt").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Store {
    /// The store as it was at this version, or at this cursor, whose history is checked first.
    ///
    /// ```
    /// use eventstore::{Event, Version};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let store = eventstore::open("memory:").await?;
    /// let placed = store.append(Event::builder("OrderPlaced", "order-42").build()?).await?;
    /// store.append(Event::builder("OrderPaid", "order-42").build()?).await?;
    ///
    /// let then = store.at(placed.last).await?;
    /// assert_eq!(then.load(Version::ZERO).aggregate("order-42").await?.len(), 1);
    /// assert_eq!(then.digest().await?, store.digest_until(placed.last).await?);
    /// # Ok::<(), eventstore::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidVersion` if the store ends before this version; `HistoryDiverged` for a cursor of another history; those of
    /// [`latest_version`](Store::latest_version).
    pub fn at(&self, version: impl Into<Since>) -> Call<'static, StoreAt> {
        let (store, at) = (self.backend().clone(), version.into());
        Call::new(move |ctx| async move {
            let version = match at {
                Since::Version(version) => version,
                Since::Cursor(cursor) => {
                    store.check_cursor(&ctx, cursor).await?;
                    cursor.version()
                }
            };
            let latest = store.latest_version(&ctx).await?;
            if version > latest {
                let reason = format!("the store ends at version {latest}");
                return Err(Error::InvalidVersion { text: version.to_string(), reason });
            }
            Ok(StoreAt { store, version })
        })
    }
}

impl StoreAt {
    fn call<T, F>(&self, work: impl FnOnce(StoreAt, eventstore_api::Context) -> F + Send + 'static) -> Call<'static, T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let then = self.clone();
        Call::new(move |ctx| work(then, ctx))
    }

    /// The version of the last event in it.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Loads the events after a version or a cursor, up to this version. See [`Store::load`].
    ///
    /// # Errors
    ///
    /// Those of [`Store::load`].
    pub fn load(&self, since: impl Into<Since>) -> Load {
        Load::until(self.store.clone(), since.into(), self.version)
    }

    /// The event with this id.
    ///
    /// # Errors
    ///
    /// Those of [`Store::get`]; `EventNotFound` also for a later event.
    pub fn get(&self, id: impl Into<String>) -> Call<'static, RecordedEvent> {
        let id = id.into();
        self.call(move |then, ctx| async move {
            let recorded = then.store.get(&ctx, &id).await?;
            if recorded.version > then.version { Err(Error::EventNotFound { id }) } else { Ok(recorded) }
        })
    }

    /// The revision that an aggregate had; [`Revision::ZERO`] if it had no events.
    ///
    /// # Errors
    ///
    /// Those of [`Store::load`].
    pub fn revision(&self, aggregate_id: impl Into<String>) -> Call<'static, Revision> {
        let id = aggregate_id.into();
        self.call(move |then, ctx| async move {
            let options = LoadOptions::all().aggregate(id).before(then.version.next()).backward().limit(1);
            let newest = then.store.load_page(&ctx, &options, PageSize::new(1, usize::MAX)).await?;
            Ok(newest.events.first().map_or(Revision::ZERO, |newest| newest.revision))
        })
    }

    /// A page of the aggregates that existed, with the revisions and versions they had. See [`Store::aggregates`].
    ///
    /// # Errors
    ///
    /// Those of [`Store::aggregates`].
    pub fn aggregates(&self, options: AggregateOptions, most: usize) -> Call<'static, AggregatePage> {
        self.call(move |then, ctx| async move {
            let end = then.version.next();
            let before = options.before.map_or(end, |before| before.min(end));
            then.store.list_aggregates(&ctx, &options.before(before), most).await
        })
    }

    /// An aggregate as it was: its state and its revision. See [`Store::aggregate`].
    ///
    /// # Errors
    ///
    /// Those of [`Store::aggregate`].
    pub fn aggregate<'a, A: Aggregate + 'a>(&self, aggregate_id: impl Into<String>) -> Call<'a, Loaded<A>> {
        let (then, id) = (self.clone(), aggregate_id.into());
        Call::new(move |ctx| async move { load_before(&then.store, &ctx, &id, then.version.next()).await })
    }

    /// The cursor after its last event.
    ///
    /// # Errors
    ///
    /// Those of [`Store::cursor_at`].
    pub fn cursor(&self) -> Call<'static, Cursor> {
        self.call(|then, ctx| async move { then.store.cursor_at(&ctx, then.version).await })
    }

    /// The digest of its events.
    ///
    /// # Errors
    ///
    /// Those of [`Store::digest`].
    pub fn digest(&self) -> Call<'static, Digest> {
        self.call(|then, ctx| async move { then.store.digest(&ctx, then.version).await })
    }
}

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::SystemTime;

use eventstore_api::{
    Context, Cursor, EventStore, EventStoreExt, EventStream, LoadOptions, RecordedEvent, Result, Revision, Version,
};

use crate::call::{BoxFuture, call_options};

/// Where a load or a subscription starts: after a version, or after a [`Cursor`], which is first compared with the store's
/// history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Since {
    /// After the event with this version; [`Version::ZERO`] is before the first.
    Version(Version),
    /// After this cursor, if the store has the same history up to it; [`HistoryDiverged`](crate::Error::HistoryDiverged) otherwise.
    Cursor(Cursor),
}

impl From<Version> for Since {
    fn from(version: Version) -> Self {
        Since::Version(version)
    }
}

impl From<Cursor> for Since {
    fn from(cursor: Cursor) -> Self {
        Since::Cursor(cursor)
    }
}

/// A load. It starts when it is awaited or its stream is polled. See [`Store::load`](crate::Store::load).
///
/// Awaiting it returns all matching events in memory; [`stream`](Load::stream) returns them one by one.
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until it is awaited, or made a stream"]
pub struct Load {
    selection: Selection,
    ctx: Context,
}

/// A subscription. It starts when its stream is polled. See [`Store::subscribe`](crate::Store::subscribe).
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until it is made a stream"]
pub struct Subscribe {
    selection: Selection,
    ctx: Context,
}

#[derive(Clone, Debug)]
struct Selection {
    store: Arc<dyn EventStore>,
    cursor: Option<Cursor>,
    options: LoadOptions,
    /// Events from this version on are hidden, whatever the options say.
    end: Option<Version>,
}

impl Selection {
    fn new(store: Arc<dyn EventStore>, since: Since) -> Self {
        let (version, cursor) = match since {
            Since::Version(version) => (version, None),
            Since::Cursor(cursor) => (cursor.version(), Some(cursor)),
        };
        Selection { store, cursor, options: LoadOptions::since(version), end: None }
    }

    /// The events, after the cursor was checked against the store's history.
    fn stream(
        self,
        ctx: &Context,
        read: fn(&Arc<dyn EventStore>, &Context, LoadOptions) -> EventStream,
    ) -> EventStream {
        let events = read(&self.store, ctx, self.options);
        let Some(cursor) = self.cursor else { return events };
        let (store, ctx) = (self.store, ctx.clone());
        events.after(async move { store.check_cursor(&ctx, cursor).await })
    }
}

/// The filters of loads and subscriptions.
macro_rules! filters {
    ($type:ident) => {
        impl $type {
            /// Only events of this aggregate, found by the index. It may have no events; then nothing matches.
            pub fn aggregate(mut self, aggregate_id: impl Into<String>) -> Self {
                self.selection.options = self.selection.options.aggregate(aggregate_id);
                self
            }

            /// Only events with a revision greater than this one, such as the new events of an aggregate that was loaded up to it.
            /// Together with an aggregate this uses the index; otherwise it is a scan.
            pub fn since_revision(mut self, revision: Revision) -> Self {
                self.selection.options = self.selection.options.since_revision(revision);
                self
            }

            /// Only events of one of these types. A scan of every event, or of the aggregate's if one is set.
            pub fn types<T: Into<String>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
                self.selection.options = self.selection.options.types(types);
                self
            }

            /// Only events of aggregates whose ids start with this prefix. A scan of every event. For few aggregates among many
            /// others, list them with [`Store::aggregates`](crate::Store::aggregates) and load each.
            pub fn aggregate_prefix(mut self, prefix: impl Into<String>) -> Self {
                self.selection.options = self.selection.options.aggregate_prefix(prefix);
                self
            }

            /// Only events recorded at this time or later. A scan: times are not necessarily in order.
            pub fn recorded_since(mut self, time: SystemTime) -> Self {
                self.selection.options = self.selection.options.recorded_since(time);
                self
            }

            /// Only events recorded before this time. A scan, like [`recorded_since`](Self::recorded_since).
            pub fn recorded_before(mut self, time: SystemTime) -> Self {
                self.selection.options = self.selection.options.recorded_before(time);
                self
            }

            /// At most this many matching events.
            pub fn limit(mut self, events: u64) -> Self {
                self.selection.options = self.selection.options.limit(events);
                self
            }
        }
    };
}

filters!(Load);
filters!(Subscribe);

impl Load {
    pub(crate) fn new(store: Arc<dyn EventStore>, since: Since) -> Self {
        Load { selection: Selection::new(store, since), ctx: Context::background() }
    }

    /// A load of the store as it was at this version.
    pub(crate) fn until(store: Arc<dyn EventStore>, since: Since, version: Version) -> Self {
        let mut load = Load::new(store, since);
        load.selection.end = Some(version.next());
        load.before(version.next())
    }

    /// Only events with a smaller version.
    pub fn before(mut self, version: Version) -> Self {
        let version = self.selection.end.map_or(version, |end| version.min(end));
        self.selection.options = self.selection.options.before(version);
        self
    }

    /// Newest first.
    pub fn backward(mut self) -> Self {
        self.selection.options = self.selection.options.backward();
        self
    }

    /// The events one by one, or page by page: a snapshot of the store when the first page was read.
    pub fn stream(self) -> EventStream {
        self.selection.stream(&self.ctx, |store, ctx, options| store.load(ctx, options))
    }
}

call_options!(impl Load);

impl IntoFuture for Load {
    type Output = Result<Vec<RecordedEvent>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.stream().into_vec())
    }
}

impl Subscribe {
    pub(crate) fn new(store: Arc<dyn EventStore>, since: Since) -> Self {
        Subscribe { selection: Selection::new(store, since), ctx: Context::background() }
    }

    /// The stored events (catch-up), then each new one as it is appended. It ends with [`Closed`](crate::Error::Closed)
    /// when the store is closed, and with [`Cancelled`](crate::Error::Cancelled) or
    /// [`DeadlineExceeded`](crate::Error::DeadlineExceeded) when its context ends.
    pub fn stream(self) -> EventStream {
        self.selection.stream(&self.ctx, |store, ctx, options| store.subscribe(ctx, options))
    }
}

call_options!(impl Subscribe);

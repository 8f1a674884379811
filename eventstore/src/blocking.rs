//! The store for synchronous code.

use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::sync::Arc;

use eventstore_api::{BoxError, Cursor, Error, EventStream, RecordedEvent, Result, async_trait};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

use crate::{Project, Running, Store};

/// Opens a store like [`eventstore::open`](crate::open), in a program without a runtime.
///
/// ```
/// use eventstore::{Event, Expected, Version};
///
/// let store = eventstore::blocking::open("memory:")?;
/// let event = Event::builder("OrderPlaced", "order-42").build()?;
/// let appended = store.run(store.append(event).expected(Expected::NoEvents))?;
/// for event in store.iter(store.load(Version::ZERO).stream()) {
///     println!("{}", event?.version);
/// }
/// # assert_eq!(appended.last, Version::new(1));
/// # Ok::<(), eventstore::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`eventstore::open`](crate::open); `Engine` if the operating system cannot create threads for a runtime.
///
/// # Panics
///
/// If called in an asynchronous function, which must not be blocked.
pub fn open(url: &str) -> Result<Blocking> {
    let runtime = OwnRuntime::new()?;
    let store = runtime.handle().block_on(crate::open(url))?;
    Ok(Blocking { store, handle: runtime.handle().clone(), _runtime: Some(Arc::new(runtime)) })
}

/// A [`Store`] whose calls block the thread until they finish.
///
/// Pass a call of the store to [`run`](Blocking::run).
///
/// # Clone
///
/// Cheap: clones share the store and the runtime.
#[derive(Clone)]
pub struct Blocking {
    store: Store,
    handle: Handle,
    /// Kept alive while in use; `None` if the runtime belongs to the program.
    _runtime: Option<Arc<OwnRuntime>>,
}

impl Blocking {
    /// Uses the caller's runtime if it is multi-threaded, or a new one. A current-thread runtime drives timers only while
    /// its thread runs it.
    pub(crate) fn new(store: Store) -> Result<Self> {
        if let Ok(handle) = Handle::try_current()
            && handle.runtime_flavor() != RuntimeFlavor::CurrentThread
        {
            return Ok(Blocking { store, handle, _runtime: None });
        }
        let runtime = OwnRuntime::new()?;
        Ok(Blocking { store, handle: runtime.handle().clone(), _runtime: Some(Arc::new(runtime)) })
    }

    /// Runs a call of the store and blocks the thread until it finishes.
    ///
    /// # Panics
    ///
    /// If called in an asynchronous function, which must not be blocked.
    pub fn run<C: IntoFuture>(&self, call: C) -> C::Output {
        self.handle.block_on(async { call.await })
    }

    /// Like [`Store::project`], for a projection whose functions block. It has the same options, and is started by
    /// [`start`](Blocking::start).
    pub fn project<P: Projection>(&self, projection: P) -> Project<Projecting<P>> {
        self.store.project(Projecting(Some(projection)))
    }

    /// Starts a projection. It runs in the background on the threads of the runtime.
    ///
    /// ```
    /// use eventstore::blocking::{self, Projection};
    /// use eventstore::{BoxError, Cursor, Event, RecordedEvent};
    ///
    /// /// The number of events, in memory.
    /// #[derive(Default)]
    /// struct Count {
    ///     events: usize,
    ///     cursor: Cursor,
    /// }
    ///
    /// impl Projection for Count {
    ///     fn cursor(&mut self) -> Result<Cursor, BoxError> {
    ///         Ok(self.cursor)
    ///     }
    ///
    ///     fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
    ///         self.events += events.len();
    ///         self.cursor = cursor;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let store = blocking::open("memory:")?;
    /// let running = store.start(store.project(Count::default()).name("count"));
    /// let appended = store.run(store.append(Event::builder("OrderPlaced", "order-42").build()?))?;
    /// store.run(running.reached(appended.last))?; // what was just written can be read in the view
    /// let count = store.run(running.stop())?.into_inner();
    /// assert_eq!(count.events, 1);
    /// # Ok::<(), eventstore::Error>(())
    /// ```
    pub fn start<P: crate::Projection>(&self, project: Project<P>) -> Running<P> {
        let _inside = self.handle.enter();
        project.start()
    }

    /// An iterator over the events of a stream.
    pub fn iter(&self, events: EventStream) -> Events<'_> {
        Events { store: self, events }
    }
}

impl Deref for Blocking {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocking").field(&self.store).finish()
    }
}

/// A [`Projection`](crate::Projection) whose functions block, such as one over a blocking database client. It is called
/// on a thread for blocking work. See [`Blocking::start`].
pub trait Projection: Send + 'static {
    /// The last saved cursor, or [`Cursor::START`]. See [`Projection::cursor`](crate::Projection::cursor).
    ///
    /// # Errors
    ///
    /// If the cursor cannot be read. It is read again later.
    fn cursor(&mut self) -> Result<Cursor, BoxError>;

    /// Applies events and saves the result together with the cursor. See [`Projection::apply`](crate::Projection::apply).
    ///
    /// # Errors
    ///
    /// If nothing was saved. The events are applied again later.
    fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError>;
}

/// An adapter from a blocking [`Projection`] to an asynchronous one. See [`Blocking::project`].
#[derive(Debug)]
pub struct Projecting<P>(
    /// `None` while it is called, and after a panic.
    Option<P>,
);

impl<P: Projection> Projecting<P> {
    /// The projection.
    ///
    /// # Panics
    ///
    /// If the projection panicked. This cannot happen after [`Running::stop`] has returned it.
    pub fn into_inner(self) -> P {
        self.0.expect("a projection that was stopped is not being called")
    }

    async fn call<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut P) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T, BoxError> {
        let mut projection = self.0.take().ok_or("it was called before and has not come back")?;
        let called = tokio::task::spawn_blocking(move || {
            let done = call(&mut projection);
            (projection, done)
        });
        match called.await {
            Ok((projection, done)) => {
                self.0 = Some(projection);
                done
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(error.into()), // the runtime is shutting down
            },
        }
    }
}

#[async_trait]
impl<P: Projection> crate::Projection for Projecting<P> {
    async fn cursor(&mut self) -> Result<Cursor, BoxError> {
        self.call(P::cursor).await
    }

    async fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
        let events = events.to_vec();
        self.call(move |projection| projection.apply(&events, cursor)).await
    }
}

/// Iterator over events. See [`Blocking::iter`].
#[derive(Debug)]
#[must_use = "nothing is read until it is iterated over"]
pub struct Events<'a> {
    store: &'a Blocking,
    events: EventStream,
}

impl Iterator for Events<'_> {
    type Item = Result<RecordedEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        self.store.run(self.events.next())
    }
}

/// A runtime that may be dropped anywhere, even in asynchronous code.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn new() -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("eventstore").enable_all().build();
        runtime.map(|runtime| OwnRuntime(Some(runtime))).map_err(|error| Error::engine("start a runtime", error))
    }

    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is there until it is dropped").handle()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background(); // blocking is forbidden in asynchronous code
        }
    }
}

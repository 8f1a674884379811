//! The store for code that is not asynchronous.

use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::sync::Arc;

use eventstore_api::{BoxError, Cursor, Error, EventStream, RecordedEvent, Result, async_trait};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

use crate::{Project, Running, Store};

/// Opens a store as [`eventstore::open`](crate::open) does, in a program without a runtime.
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
/// Those of [`eventstore::open`](crate::open); `Engine` if the operating system gives no threads for a runtime.
///
/// # Panics
///
/// In an asynchronous function, which must not be held up.
pub fn open(url: &str) -> Result<Blocking> {
    let runtime = OwnRuntime::new()?;
    let store = runtime.handle().block_on(crate::open(url))?;
    Ok(Blocking { store, handle: runtime.handle().clone(), _runtime: Some(Arc::new(runtime)) })
}

/// A [`Store`] whose calls hold up the thread until they are done.
///
/// The calls are those of the store, handed to [`run`](Blocking::run).
///
/// # Clone
///
/// Cheap: clones share the store and the runtime.
#[derive(Clone)]
pub struct Blocking {
    store: Store,
    handle: Handle,
    /// Kept for as long as it is used, if it is not the program's own.
    _runtime: Option<Arc<OwnRuntime>>,
}

impl Blocking {
    /// On the runtime of the caller, or on one of its own. One with a single thread has timers only while that drives it.
    pub(crate) fn new(store: Store) -> Result<Self> {
        if let Ok(handle) = Handle::try_current()
            && handle.runtime_flavor() != RuntimeFlavor::CurrentThread
        {
            return Ok(Blocking { store, handle, _runtime: None });
        }
        let runtime = OwnRuntime::new()?;
        Ok(Blocking { store, handle: runtime.handle().clone(), _runtime: Some(Arc::new(runtime)) })
    }

    /// Does a call of the store, and holds up the thread until it is done.
    ///
    /// # Panics
    ///
    /// In an asynchronous function, which must not be held up.
    pub fn run<C: IntoFuture>(&self, call: C) -> C::Output {
        self.handle.block_on(async { call.await })
    }

    /// A projection whose functions block, as [`Store::project`] for one whose functions do not: with the same options, started
    /// by [`start`](Blocking::start).
    pub fn project<P: Projection>(&self, projection: P) -> Project<Projecting<P>> {
        self.store.project(Projecting(Some(projection)))
    }

    /// Starts a projection, which runs beside the caller on the threads of the runtime.
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

    /// The events of a stream, one after the other.
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

/// A [`Projection`](crate::Projection) whose functions block, such as one over a database whose calls do. It has a thread for
/// blocking work while it is called. See [`Blocking::start`].
pub trait Projection: Send + 'static {
    /// The last saved cursor, or [`Cursor::START`]. See [`Projection::cursor`](crate::Projection::cursor).
    ///
    /// # Errors
    ///
    /// If it cannot be read, after which it is read again.
    fn cursor(&mut self) -> Result<Cursor, BoxError>;

    /// Applies events and saves the result together with the cursor. See [`Projection::apply`](crate::Projection::apply).
    ///
    /// # Errors
    ///
    /// If nothing was saved, after which it is called again.
    fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError>;
}

/// A blocking [`Projection`] as an asynchronous one. See [`Blocking::project`].
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
    /// If it has panicked; but then [`Running::stop`] does not give it back.
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
                Err(error) => Err(error.into()), // the runtime ends
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

/// Events one by one. See [`Blocking::iter`].
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

/// A runtime that may be dropped anywhere.
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
            runtime.shutdown_background(); // waiting is forbidden in asynchronous code
        }
    }
}

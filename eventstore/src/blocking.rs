//! The store for code that is not asynchronous.

use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::sync::Arc;

use eventstore_api::{Error, EventStream, RecordedEvent, Result};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

use crate::Store;

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

//! What a contestant is, and what it does.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use eventstore::Event;
use eventstore::backend::PageSize;
use serde::Serialize;

use crate::events::Sample;

/// What the report says of a contestant, and how its store is opened.
#[derive(Clone, Serialize)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    /// What an acknowledged append can rely on.
    pub(crate) guarantees: &'static str,
    /// What it does not keep or check, of what the workloads are about.
    pub(crate) lacks: &'static str,
    pub(crate) settings: &'static str,
    /// The contestant that is this one's engine itself.
    pub(crate) floor: Option<&'static str>,
    /// Whether it runs when nobody asks for it.
    pub(crate) by_default: bool,
    /// The directory of what it makes again from the rest if it is lost.
    pub(crate) index: Option<&'static str>,
    /// Opens the store in an existing directory, or creates it there.
    #[serde(skip)]
    pub(crate) open: Open,
    /// The same with small caches, if it has any.
    #[serde(skip)]
    pub(crate) open_small: Option<Open>,
}

type Open = fn(&Path) -> Result<Box<dyn Store>>;

/// An open store.
pub(crate) trait Store: Send + Sync {
    /// Appends what each appender has, all of them at once, each batch durably and before the appender's next one.
    fn append(&self, work: Work) -> Result<Appended>;

    /// Reads every event, payload copied, and counts them.
    fn scan(&self, how: Scan) -> Result<u64>;

    /// Reads the events of one aggregate after the other, payload copied, and counts them.
    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64>;

    /// Finds one event after the other by its id, payload copied, and checks each.
    fn get(&self, wanted: &Arc<[Sample]>) -> Result<()>;

    /// Appends events one by one while one subscriber follows, and gives the microseconds from each acknowledgement to when
    /// the subscriber had the event. They are negative if it was first.
    fn follow(&self, events: Vec<Event>) -> Result<Vec<f64>> {
        let _ = events;
        Err(Lacks("following is measured of eventstore alone").into())
    }

    /// Ends its work and releases its files.
    fn close(self: Box<Self>) -> Result<()>;
}

/// What a contestant cannot do, which is no failure.
#[derive(Debug)]
pub(crate) struct Lacks(pub(crate) &'static str);

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Lacks {}

/// The batches of one appender.
pub(crate) type Batches = Box<dyn Iterator<Item = Vec<Event>> + Send>;

/// What is to be appended.
pub(crate) struct Work {
    pub(crate) appenders: Vec<Batches>,
    /// Events are made and brought into the contestant's own form before the clock starts. Otherwise that goes on between
    /// the appends.
    pub(crate) prepared: bool,
}

/// What came of it.
pub(crate) struct Appended {
    /// From the start of all appenders to the end of the last; for one thread, the time of its appends.
    pub(crate) took: Duration,
    /// Of each append, without the making of its events.
    pub(crate) latencies: Vec<Duration>,
}

/// What a scan does with each payload it copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Keeps it until a page is full.
    Pages,
    /// Lets it go.
    Stream,
}

/// A scan's consumer, for those whose reads borrow.
pub(crate) struct Reader {
    how: Scan,
    page: Vec<Vec<u8>>,
    pub(crate) count: u64,
}

impl Reader {
    pub(crate) fn new(how: Scan) -> Self {
        Reader { how, page: Vec::new(), count: 0 }
    }

    pub(crate) fn take(&mut self, payload: &[u8]) {
        self.keep(payload.to_vec());
    }

    /// For what is owned already.
    pub(crate) fn keep(&mut self, payload: Vec<u8>) {
        self.count += 1;
        match self.how {
            Scan::Stream => drop(black_box(payload)),
            Scan::Pages => self.page.push(payload),
        }
        if self.page.len() == PageSize::LARGEST.events {
            drop(black_box(std::mem::take(&mut self.page)));
        }
    }
}

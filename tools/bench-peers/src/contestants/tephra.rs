//! tephra, embedded: a log of segments with an index of tags.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use tephra::{
    Event, EventType, Position, PositionRange, Query, QueryItem, SegmentConfig, SegmentSet, Tag, Tags,
    WriteCoordinator, WriteHandle, WriterConfig,
};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::blocking::{self, Blocking};
use super::{Appended, Contestant, Lacks, Reader, Scan, Store, Work, tasks};
use crate::events::Sample;

pub(super) const BLOCKING: Contestant = Contestant {
    name: "tephra",
    guarantees: "durable when acknowledged: one fdatasync for all appends that wait; atomic batches; positions without gaps; \
                 conditions on tags; checksums",
    lacks: "no index of ids (here the id stands before the data) and no check of them; no revisions; opening reads the whole \
            log and makes the newest segment's index again; four bytes of memory an event; goes on after a failed sync; \
            allocates a segment ahead, which counts as bytes on disk",
    settings: "segments of 256 MiB as in its documentation, WriterConfig::default(), the aggregate as a tag, no condition, \
               append of one thread an appender",
    floor: None,
    by_default: true,
    index: None,
    open: |path| open(path, None),
    open_small: None,
};

pub(super) const ASYNC: Contestant = Contestant {
    name: "tephra-async",
    settings: "as tephra, with append_async of one Tokio task an appender",
    open: |path| open(path, Some(Runtime::new()?)),
    ..BLOCKING
};

struct Tephra {
    coordinator: WriteCoordinator,
    handle: WriteHandle,
    /// What its asynchronous appends run in; without it they block.
    runtime: Option<Runtime>,
}

fn open(path: &Path, runtime: Option<Runtime>) -> Result<Box<dyn Store>> {
    let set = SegmentSet::open(path, SegmentConfig::new(256 << 20))?;
    let (coordinator, handle) = WriteCoordinator::start(set, WriterConfig::default())?;
    Ok(Box::new(Tephra { coordinator, handle, runtime }))
}

impl Blocking for Tephra {
    type Batch = Vec<Event>;

    fn prepare(&self, events: Vec<eventstore::backend::Event>) -> Result<Vec<Event>> {
        encoded(events)
    }

    fn append_batch(&self, batch: Vec<Event>) -> Result<()> {
        let events = batch.len();
        check(self.handle.append(batch, None)?, events)
    }
}

async fn append_batch(handle: WriteHandle, batch: Vec<Event>) -> Result<()> {
    let events = batch.len();
    check(handle.append_async(batch, None).await?, events)
}

fn encoded(events: Vec<eventstore::backend::Event>) -> Result<Vec<Event>> {
    let encode = |event: eventstore::backend::Event| {
        let payload = [Uuid::try_parse(event.id())?.as_bytes().as_slice(), event.data()].concat();
        Ok(Event::new(&EventType::new(event.event_type())?, &tags(event.aggregate_id())?, &payload)?)
    };
    events.into_iter().map(encode).collect()
}

fn check(positions: PositionRange, events: usize) -> Result<()> {
    ensure!(positions.count() == events as u64, "{} of {events} events got a position", positions.count());
    Ok(())
}

fn tags(aggregate_id: &str) -> Result<Tags> {
    Ok(Tags::new([Tag::new(aggregate_id)?])?)
}

impl Store for Tephra {
    fn append(&self, work: Work) -> Result<Appended> {
        let Some(runtime) = &self.runtime else { return blocking::append(self, work) };
        let handle = self.handle.clone();
        tasks::append(runtime, work, encoded, move |batch| append_batch(handle.clone(), batch))
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        let mut reader = Reader::new(how);
        let mut events = self.handle.read(&Query::all(), Position::ZERO, None);
        while let Some(event) = events.next() {
            reader.take(event?.event.data());
        }
        Ok(reader.count)
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let mut count = 0;
        for aggregate in aggregates {
            let query = Query::item(QueryItem::with_tags(tags(aggregate)?));
            let mut events = self.handle.read(&query, Position::ZERO, None);
            while let Some(event) = events.next() {
                count += black_box(event?.event.data().to_vec()).len().min(1) as u64;
            }
        }
        Ok(count)
    }

    fn get(&self, _: &Arc<[Sample]>) -> Result<()> {
        Err(Lacks("it has no index of ids").into())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.coordinator.shutdown();
        Ok(())
    }
}

//! tephra's server.

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use tephra_client::{
    AppendResult, AsyncClient, Client, ClientError, Event, Position, Query, QueryItem, SequencedEvent, Tag, Tags,
};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt as _;
use uuid::Uuid;

use super::blocking::{self, Blocking};
use super::server::{Served, Server};
use super::{Appended, Contestant, Lacks, Reader, Scan, Store, Work, tasks};
use crate::events::Sample;

pub(super) const EXECUTABLE: &str = "tephra-server";

pub(super) const BLOCKING: Contestant = Contestant {
    name: "tephra-server",
    guarantees: "durable when acknowledged: one fdatasync for all appends that wait; atomic batches; positions without gaps; \
                 conditions on tags; checksums",
    lacks: "no index of ids (here the id stands before the data) and no check of them; no revisions; goes on after a failed \
            sync",
    settings: "tephra-server's defaults, the aggregate as a tag, no condition; one thread an appender, each with a blocking \
               client of its own",
    floor: None,
    by_default: true,
    index: None,
    open: |path| open(path, Threads::connect),
    open_small: None,
};

pub(super) const ASYNC: Contestant = Contestant {
    name: "tephra-server-async",
    settings: "as tephra-server, with one asynchronous client for all; one Tokio task an appender",
    open: |path| open(path, Tasks::connect),
    ..BLOCKING
};

fn open<S: Store + 'static>(path: &Path, connect: fn(SocketAddr) -> Result<S>) -> Result<Box<dyn Store>> {
    let data = path.join("store").display().to_string();
    let server = Server::start(EXECUTABLE, path, ["--data-dir", &data, "--bind"])?;
    Ok(Box::new(Served { client: Box::new(connect(server.address)?), server }))
}

/// Blocking clients, each of which does one thing at a time.
struct Threads {
    idle: Mutex<Vec<Client>>,
}

impl Threads {
    /// As many as there are appenders at the most.
    const CLIENTS: usize = 64;

    fn connect(address: SocketAddr) -> Result<Self> {
        let clients: std::io::Result<_> = (0..Self::CLIENTS).map(|_| Client::connect(address)).collect();
        Ok(Threads { idle: Mutex::new(clients?) })
    }

    /// Whose request fails is not used again.
    fn call<T>(&self, request: impl FnOnce(&mut Client) -> Result<T>) -> Result<T> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = idle().pop().expect("there are as many as appenders");
        let answer = request(&mut client)?;
        idle().push(client);
        Ok(answer)
    }
}

impl Blocking for Threads {
    type Batch = Vec<Event>;

    fn prepare(&self, events: Vec<eventstore::Event>) -> Result<Vec<Event>> {
        encoded(events)
    }

    fn append_batch(&self, batch: Vec<Event>) -> Result<()> {
        let events = batch.len();
        check(self.call(|client| Ok(client.append(batch, None)?))?, events)
    }
}

impl Store for Threads {
    fn append(&self, work: Work) -> Result<Appended> {
        blocking::append(self, work)
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        self.call(|client| {
            let mut reader = Reader::new(how);
            for event in client.read(Query::all(), Position::ZERO, None)? {
                scanned(&mut reader, event)?;
            }
            Ok(reader.count)
        })
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        self.call(|client| {
            let mut count = 0;
            for aggregate in aggregates {
                let (events, _) = client.read_all(of_aggregate(aggregate)?, Position::ZERO, None)?;
                count += black_box(events).len() as u64;
            }
            Ok(count)
        })
    }

    fn get(&self, _: &Arc<[Sample]>) -> Result<()> {
        Err(NO_IDS.into())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// One client that does many things at a time.
struct Tasks {
    client: AsyncClient,
    runtime: Runtime,
}

impl Tasks {
    fn connect(address: SocketAddr) -> Result<Self> {
        let runtime = Runtime::new()?;
        Ok(Tasks { client: runtime.block_on(AsyncClient::connect(address))?, runtime })
    }
}

impl Store for Tasks {
    fn append(&self, work: Work) -> Result<Appended> {
        let client = self.client.clone();
        tasks::append(&self.runtime, work, encoded, move |batch| append_batch(client.clone(), batch))
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        let client = self.client.clone();
        tasks::run(&self.runtime, async move {
            let mut reader = Reader::new(how);
            let mut events = client.read(Query::all(), Position::ZERO, None).await;
            while let Some(event) = events.next().await {
                scanned(&mut reader, event)?;
            }
            Ok(reader.count)
        })
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let (client, aggregates) = (self.client.clone(), aggregates.to_vec());
        tasks::run(&self.runtime, async move {
            let mut count = 0;
            for aggregate in &aggregates {
                let (events, _) = client.read_all(of_aggregate(aggregate)?, Position::ZERO, None).await?;
                count += black_box(events).len() as u64;
            }
            Ok(count)
        })
    }

    fn get(&self, _: &Arc<[Sample]>) -> Result<()> {
        Err(NO_IDS.into())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

const NO_IDS: Lacks = Lacks("it has no index of ids");

async fn append_batch(client: AsyncClient, batch: Vec<Event>) -> Result<()> {
    let events = batch.len();
    check(client.append(batch, None).await?, events)
}

fn encoded(events: Vec<eventstore::Event>) -> Result<Vec<Event>> {
    let encode = |event: eventstore::Event| {
        let payload = [Uuid::try_parse(event.id())?.as_bytes().as_slice(), event.data()].concat();
        Ok(Event::new(event.event_type(), [event.aggregate_id()], payload)?)
    };
    events.into_iter().map(encode).collect()
}

fn check(appended: AppendResult, events: usize) -> Result<()> {
    let positions = (appended.last.get() + 1).saturating_sub(appended.first.get());
    ensure!(positions == events as u64, "{positions} of {events} events got a position");
    Ok(())
}

fn scanned(reader: &mut Reader, event: Result<SequencedEvent, ClientError>) -> Result<()> {
    let event = event?;
    ensure!(event.position().get() == reader.count + 1, "event {} has position {}", reader.count + 1, event.position());
    reader.take(event.event().payload());
    Ok(())
}

fn of_aggregate(aggregate_id: &str) -> Result<Query> {
    Ok(Query::item(QueryItem::with_tags(Tags::new([Tag::new(aggregate_id)?])?)))
}

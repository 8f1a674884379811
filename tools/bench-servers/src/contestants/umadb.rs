//! UmaDB's server.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use eventstore::Event;
use tokio::runtime::Runtime;
use umadb_client::{AsyncUmaDbClient, UmaDbClient};
use umadb_dcb::{DcbEvent, DcbEventStoreAsync as _, DcbQuery, DcbQueryItem};
use uuid::Uuid;

use super::server::{Served, Server};
use super::{Appended, Contestant, Lacks, Reader, Scan, Store, Work, tasks};
use crate::events::Sample;

pub(super) const EXECUTABLE: &str = "umadb";

pub(super) const CONTESTANT: Contestant = Contestant {
    name: "umadb-server",
    guarantees: "durable when acknowledged: two fdatasyncs for all appends that wait; atomic batches; positions without gaps; \
                 conditions on tags; checksums",
    lacks: "no index of ids and no check of them, as no condition asks for it; no revisions; goes on after a failed sync",
    settings: "`umadb` with 128 MiB of page cache and its other defaults, the aggregate as a tag, no condition; one client for all, \
               which reads in batches of 4,096 events, the most that the server sends; one Tokio task an appender",
    floor: None,
    by_default: true,
    index: None,
    open,
    open_small: None,
};

const BATCH: u32 = 4096;

struct Uma {
    client: Arc<AsyncUmaDbClient>,
    runtime: Runtime,
}

fn open(path: &Path) -> Result<Box<dyn Store>> {
    let data = path.join("store").display().to_string();
    let server = Server::start(EXECUTABLE, path, ["--db-path", &data, "--page-cache-max-mb", "128", "--listen"])?;
    let runtime = Runtime::new()?;
    let client = UmaDbClient::new(format!("http://{}", server.address)).batch_size(BATCH);
    let client = Arc::new(runtime.block_on(client.connect_async())?);
    Ok(Box::new(Served { client: Box::new(Uma { client, runtime }), server }))
}

fn encoded(events: Vec<Event>) -> Result<Vec<DcbEvent>> {
    let encode = |event: &Event| {
        Ok(DcbEvent {
            event_type: event.event_type().to_owned(),
            tags: vec![event.aggregate_id().to_owned()],
            data: event.data().to_vec(),
            uuid: Some(Uuid::try_parse(event.id())?),
            ..DcbEvent::default()
        })
    };
    events.iter().map(encode).collect()
}

async fn append_batch(client: Arc<AsyncUmaDbClient>, batch: Vec<DcbEvent>) -> Result<()> {
    let events = batch.len() as u64;
    let position = client.append(batch, None, None).await?;
    ensure!(position >= events, "the position {position} after {events} events");
    Ok(())
}

impl Store for Uma {
    fn append(&self, work: Work) -> Result<Appended> {
        let client = self.client.clone();
        tasks::append(&self.runtime, work, encoded, move |batch| append_batch(client.clone(), batch))
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        let client = self.client.clone();
        tasks::run(&self.runtime, async move {
            let mut reader = Reader::new(how);
            let mut events = client.read(None, None, false, None).await?;
            loop {
                let batch = events.next_batch().await?;
                if batch.is_empty() {
                    return Ok(reader.count);
                }
                for event in batch {
                    let expected = reader.count + 1;
                    ensure!(event.position == expected, "event {expected} has position {}", event.position);
                    reader.keep(event.event.data);
                }
            }
        })
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let (client, aggregates) = (self.client.clone(), aggregates.to_vec());
        tasks::run(&self.runtime, async move {
            let mut count = 0;
            for aggregate in aggregates {
                let query = DcbQuery::new().item(DcbQueryItem::new().tags([aggregate]));
                let (events, _) = client.read(Some(query), None, false, None).await?.collect_with_head().await?;
                count += black_box(events).len() as u64;
            }
            Ok(count)
        })
    }

    fn get(&self, _: &Arc<[Sample]>) -> Result<()> {
        Err(Lacks("it has no index of ids").into())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

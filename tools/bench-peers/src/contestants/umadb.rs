//! UmaDB, embedded: its storage and the thread that its server commits with, without the server.

use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use eventstore::backend::Event;
use gag::Gag;
use tokio::sync::{mpsc, oneshot, watch};
use umadb_core::db::UmaDb;
use umadb_core::mvcc::{Mvcc, StorageOptions};
use umadb_core::writer_thread_blocking::writer_thread_blocking;
use umadb_core::writer_thread_request::WriterThreadRequest;
use umadb_dcb::{DcbEvent, DcbEventStoreSync, DcbQuery, DcbQueryItem, DcbSequencedEvent};
use uuid::Uuid;

use super::blocking::{self, Blocking};
use super::{Appended, Contestant, Lacks, Reader, Scan, Store, Work};
use crate::events::Sample;

pub(super) const CONTESTANT: Contestant = Contestant {
    name: "umadb",
    guarantees: "durable when acknowledged: two fdatasyncs for all appends that wait; atomic batches; positions without gaps; \
                 conditions on tags; checksums",
    lacks: "no index of ids and no check of them, as no condition asks for it; no revisions; a read collects all it returns; \
            goes on after a failed sync; allocates its file ahead, which counts as bytes on disk",
    settings: "StorageOptions::default() with 128 MiB of cache, its blocking writer thread with the server's queue of 1,024 and groups of 2,000 \
               events, the aggregate as a tag, one thread an appender, no condition; scans in pages of 5,000, the largest \
               that the server reads",
    floor: None,
    by_default: false,
    index: None,
    open,
    open_small: None,
};

const QUEUE: usize = 1024;
const GROUP: usize = 2000;
const PAGE: u32 = 5000;

struct Uma {
    db: UmaDb,
    requests: mpsc::Sender<WriterThreadRequest>,
    writer: JoinHandle<()>,
}

fn open(path: &Path) -> Result<Box<dyn Store>> {
    // It tells its settings on stdout, which is the report's.
    let quiet = Gag::stdout()?;
    let mvcc = Arc::new(Mvcc::new(false, StorageOptions::default().db_path(path).page_cache_max_mb(128))?);
    drop(quiet);
    let db = UmaDb::from_arc(mvcc.clone());
    let (requests, receiver) = mpsc::channel(QUEUE);
    let (head, _) = watch::channel(db.head()?);
    let writer = thread::Builder::new()
        .name("umadb-writer".to_owned())
        .spawn(move || writer_thread_blocking(mvcc, receiver, head, GROUP))?;
    Ok(Box::new(Uma { db, requests, writer }))
}

impl Blocking for Uma {
    type Batch = Vec<DcbEvent>;

    fn prepare(&self, events: Vec<Event>) -> Result<Vec<DcbEvent>> {
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

    fn append_batch(&self, events: Vec<DcbEvent>) -> Result<()> {
        let (response_tx, response) = oneshot::channel();
        let request =
            WriterThreadRequest::Append { events, condition: None, tracking_info: None, response_tx, cancel: None };
        self.requests.blocking_send(request).map_err(|_| anyhow!("the writer ended"))?;
        let position = response.blocking_recv().context("the writer gave no answer")??;
        ensure!(position > 0, "no position");
        Ok(())
    }
}

impl Uma {
    fn page(&self, query: Option<DcbQuery>, from: Option<u64>) -> Result<Vec<DcbSequencedEvent>> {
        Ok(self.db.read(query, from, false, Some(PAGE))?.collect_with_head()?.0)
    }
}

impl Store for Uma {
    fn append(&self, work: Work) -> Result<Appended> {
        blocking::append(self, work)
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        let mut reader = Reader::new(how);
        let mut from = None;
        loop {
            let page = self.page(None, from)?;
            let Some(last) = page.last() else { return Ok(reader.count) };
            from = Some(last.position + 1);
            page.into_iter().for_each(|event| reader.keep(event.event.data));
        }
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let mut count = 0;
        for aggregate in aggregates {
            let query = DcbQuery::new().item(DcbQueryItem::new().tags([aggregate.clone()]));
            count += std::hint::black_box(self.page(Some(query), None)?).len() as u64;
        }
        Ok(count)
    }

    fn get(&self, _: &Arc<[Sample]>) -> Result<()> {
        Err(Lacks("it has no index of ids").into())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.requests.blocking_send(WriterThreadRequest::Shutdown).map_err(|_| anyhow!("the writer ended"))?;
        self.writer.join().map_err(|_| anyhow!("the writer panicked"))
    }
}

//! How loads with filters read the log: each event once, and nothing more when nobody waits for them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use eventstore_api::{
    AggregateOptions, CancellationToken, Context, Error, Event, EventStore, EventStoreExt, LoadOptions, PageSize,
    Version,
};
use eventstore_kv::{KvStore, MemoryEngine, StoreOptions};
use eventstore_log::{Directory, File, MemoryDirectory};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

type Store = KvStore<MemoryEngine>;

/// Files in memory that report reads.
#[derive(Debug)]
struct Watched<T: ?Sized> {
    reads: Arc<Reads>,
    inner: Arc<T>,
}

#[derive(Debug, Default)]
struct Reads {
    count: AtomicU64,
    bytes: AtomicU64,
    /// Notified of each read. While set, reads take as long as on a worn-out disk.
    slow: Mutex<Option<UnboundedSender<()>>>,
}

/// Longer than a store reads before it checks whether anybody waits.
const LONG: Duration = Duration::from_millis(80);

impl Reads {
    fn read(&self, bytes: usize) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
        let slow = self.slow.lock().unwrap().clone();
        if let Some(told) = slow {
            let _ = told.send(());
            thread::sleep(LONG);
        }
    }

    /// From now on, every read is slow and reported.
    fn slow_down(&self) -> UnboundedReceiver<()> {
        let (told, reads) = unbounded_channel();
        *self.slow.lock().unwrap() = Some(told);
        reads
    }

    fn speed_up(&self) {
        *self.slow.lock().unwrap() = None;
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

impl Directory for Watched<dyn Directory> {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Watched { reads: self.reads.clone(), inner: self.inner.open(name)? }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Watched { reads: self.reads.clone(), inner: self.inner.create(name)? }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.inner.subdirectory(name)
    }
}

impl File for Watched<dyn File> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let read = self.inner.read_at(out, at, len)?;
        self.reads.read(read);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.inner.write_at(bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.inner.sync_all()
    }
}

fn open() -> (Store, Arc<Reads>) {
    let reads = Arc::new(Reads::default());
    let inner: Arc<dyn Directory> = Arc::new(MemoryDirectory::default());
    let files = Arc::new(Watched { reads: reads.clone(), inner });
    let mut options = StoreOptions::default();
    options.segment_size = 4 << 20; // several of them
    (KvStore::over(files, (), options).expect("opened"), reads)
}

fn event(number: u64, event_type: &str) -> Event {
    let aggregate = if number.is_multiple_of(2) { "even" } else { "odd" };
    Event::builder(event_type, aggregate).id(number.to_string()).data(vec![b'x'; LEN]).build().unwrap()
}

const LEN: usize = 2_000;
const EVENTS: u64 = 6_000;

/// Fills the store. The first event, one in the middle and the last match.
async fn fill(store: &Store) {
    let is_wanted = |number| [1, EVENTS / 2, EVENTS].contains(&number);
    for first in (1..=EVENTS).step_by(1_000) {
        let each = |number| event(number, if is_wanted(number) { "Wanted" } else { "Other" });
        store
            .store_batch(&Context::background(), (first..first + 1_000).map(each).collect::<Vec<_>>().into())
            .await
            .unwrap();
    }
}

#[test]
fn a_search_that_nobody_waits_for_reads_no_further() {
    let runtime = Runtime::new().unwrap();
    let (store, reads) = open();
    runtime.block_on(fill(&store));
    // Several events of an aggregate are read together, with one or two reads each.
    for (options, how, most) in [
        (LoadOptions::all(), "forward", 2),
        (LoadOptions::all().backward(), "backward", 2),
        (LoadOptions::all().aggregate("odd"), "of an aggregate", 64),
    ] {
        let options = options.types(["Nothing"]);
        for is_dropped in [false, true] {
            // Dropping a runtime waits for the work on its threads.
            let runtime = Runtime::new().unwrap();
            let mut told = reads.slow_down();
            let token = CancellationToken::new();
            let ctx = Context::background().with_cancellation(token.clone());
            let page = {
                let (store, options) = (store.clone(), options.clone());
                runtime.spawn(async move { store.load_page(&ctx, &options, PageSize::FIRST).await })
            };
            runtime.block_on(async {
                // In the middle of the read, on a thread for blocking work.
                for _ in 0..3 {
                    told.recv().await.unwrap();
                }
                if is_dropped {
                    page.abort();
                    assert!(page.await.unwrap_err().is_cancelled(), "{how}");
                } else {
                    token.cancel();
                    assert!(matches!(page.await.unwrap(), Err(Error::Cancelled)), "{how}");
                }
            });
            let before = reads.count();
            drop(runtime);
            let more = reads.count() - before;
            assert!(more <= most, "{more} reads {how} after nobody waited, dropped: {is_dropped}");
            reads.speed_up();
        }
    }
}

#[test]
fn closing_ends_a_search() {
    let runtime = Runtime::new().unwrap();
    let (store, reads) = open();
    runtime.block_on(fill(&store));
    let mut told = reads.slow_down();
    runtime.block_on(async {
        let searching = {
            let store = store.clone();
            tokio::spawn(async move {
                let options = LoadOptions::all().types(["Nothing"]);
                store.load_page(&Context::background(), &options, PageSize::FIRST).await
            })
        };
        for _ in 0..3 {
            told.recv().await.unwrap();
        }
        let closing = store.clone();
        let closing = tokio::spawn(async move { closing.close().await });
        assert!(matches!(searching.await.unwrap(), Err(Error::Closed)), "it did not read to its end");
        reads.speed_up();
        closing.await.unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_search_reads_the_log_once() {
    let (store, reads) = open();
    fill(&store).await;
    let ctx = Context::background();
    let log = EVENTS * LEN as u64;
    for (types, found) in [("Nothing", 0), ("Wanted", 3)] {
        for options in [LoadOptions::all(), LoadOptions::all().backward()] {
            for size in [PageSize::new(1, 1 << 20), PageSize::FIRST] {
                let before = reads.bytes();
                let (mut next, mut events) = (Some(options.clone().types([types])), 0);
                while let Some(options) = next {
                    let page = store.load_page(&ctx, &options, size).await.unwrap();
                    events += page.events.len();
                    next = page.next;
                }
                assert_eq!(events, found);
                let read = reads.bytes() - before;
                // What a page read beyond its last event is read again. That is little, since it begins with small
                // reads.
                assert!(read < log * 13 / 10, "{read} bytes were read of {log}, in pages of {size:?}, {options:?}");
            }
        }
    }
    // A page that is full with the first event has not read far.
    let before = reads.bytes();
    let page = store.load_page(&ctx, &LoadOptions::all().types(["Wanted"]), PageSize::new(1, 1 << 20)).await.unwrap();
    assert_eq!(page.events.len(), 1);
    let read = reads.bytes() - before;
    assert!(read < 16 << 10, "{read} bytes were read for the first event");
}

#[tokio::test]
async fn a_subscriber_whose_filter_seldom_matches_reads_nothing_twice() {
    let (store, reads) = open();
    fill(&store).await;
    let ctx = Context::background();
    let mut stream = store.subscribe(&ctx, LoadOptions::since(Version::new(1)).types(["Wanted"]));
    for number in [EVENTS / 2, EVENTS] {
        assert_eq!(stream.next().await.unwrap().unwrap().version.get(), number);
    }
    let before = reads.bytes();
    for number in EVENTS + 1..=EVENTS + 200 {
        store.store_batch(&ctx, event(number, "Other").into()).await.unwrap();
        let early = tokio::time::timeout(Duration::ZERO, stream.next()).await;
        assert!(early.is_err(), "{early:?}");
    }
    store.store_batch(&ctx, event(EVENTS + 201, "Wanted").into()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().version.get(), EVENTS + 201);
    let (read, new) = (reads.bytes() - before, 201 * LEN as u64);
    // Each time from the last position before it that the log knows.
    assert!(read < new * 4, "{read} bytes were read of {new} that came");
}

#[tokio::test]
async fn a_list_of_aggregates_reads_no_event() {
    let (store, reads) = open();
    fill(&store).await;
    let before = reads.count();
    let page = store.list_aggregates(&Context::background(), &AggregateOptions::all(), 10).await.unwrap();
    let listed: Vec<_> = page.aggregates.iter().map(|one| (one.aggregate_id.as_str(), one.revision.get())).collect();
    assert_eq!(listed, [("even", EVENTS / 2), ("odd", EVENTS / 2)]);
    assert_eq!(reads.count(), before);
}

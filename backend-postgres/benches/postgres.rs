//! Compares a store on PostgreSQL with the usual hand-written table and with the embedded store, on a separate server.
//!
//! `cargo bench -p synckit-backend-postgres` prints Markdown. `-- --rounds N` sets the number of measurements of each,
//! which alternate; the figures are medians. `-- --test` runs everything briefly.

#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use backend_postgres::{Options, open};
use eventstore_api::{Batch, Context, Event, EventStore, EventStoreExt, LoadOptions, PageSize, Version};
use futures_util::TryStreamExt as _;
use postgres_cluster::Cluster;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

/// Bytes of data in each event. They are incompressible.
const DATA: usize = 300;

/// Events per aggregate.
const LENGTH: u64 = 34;

#[derive(Clone, Copy)]
struct Settings {
    rounds: usize,
    /// The duration of each measurement.
    time: Duration,
    /// The number of events before the measurements.
    filled: u64,
}

fn event(number: u64) -> Event {
    let mut random = fastrand::Rng::with_seed(number);
    let data: Vec<u8> = (0..DATA).map(|_| random.u8(..)).collect();
    Event::builder("Happened", format!("aggregate-{}", number / LENGTH)).data(data).build().expect("valid")
}

/// Numbers of events that were not used before.
static NEXT: AtomicU64 = AtomicU64::new(1 << 32);

fn next_events(events: u64) -> Vec<Event> {
    let first = NEXT.fetch_add(events, Ordering::Relaxed);
    (first..first + events).map(event).collect()
}

/// A subject of the comparison.
#[async_trait::async_trait]
trait Subject: Send + Sync {
    fn name(&self) -> &'static str;

    /// Appends in one transaction.
    async fn append(&self, events: Vec<Event>);

    /// Reads everything; returns the number of events.
    async fn scan(&self) -> u64;

    /// Reads an aggregate; returns its number of events.
    async fn aggregate(&self, id: &str) -> u64;

    async fn get(&self, id: &str);
}

struct Stores {
    name: &'static str,
    stores: Vec<Arc<dyn EventStore>>,
    next: AtomicU64,
}

#[async_trait::async_trait]
impl Subject for Stores {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn append(&self, events: Vec<Event>) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize % self.stores.len();
        self.stores[next].store_batch(&Context::background(), Batch::new(events)).await.expect("stored");
    }

    async fn scan(&self) -> u64 {
        let (mut count, mut next) = (0, Some(LoadOptions::all()));
        while let Some(options) = next {
            let size = PageSize::new(5_000, 4 << 20);
            let page = self.stores[0].load_page(&Context::background(), &options, size).await.expect("a page");
            count += page.events.len() as u64;
            next = page.next;
        }
        count
    }

    async fn aggregate(&self, id: &str) -> u64 {
        let events = self.stores[0].load_by_aggregate(&Context::background(), id, Version::ZERO);
        events.into_vec().await.expect("loaded").len() as u64
    }

    async fn get(&self, id: &str) {
        self.stores[0].get(&Context::background(), id).await.expect("found");
    }
}

/// A table with an identity column: without an order of visibility, conditions or digests.
struct Table {
    name: &'static str,
    clients: Vec<Client>,
    insert: Vec<Statement>,
    next: AtomicU64,
    copy: String,
}

impl Table {
    async fn new(url: &str, name: &'static str, connections: usize) -> Self {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connected");
            tokio::spawn(connection);
            clients.push(client);
        }
        let table = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
        let columns = "revision bigint NOT NULL, recorded_at timestamptz NOT NULL, id bytea NOT NULL UNIQUE, type bytea NOT NULL, \
                       aggregate_id bytea NOT NULL, metadata bytea NOT NULL, data bytea NOT NULL, digest bytea NOT NULL, \
                       UNIQUE (aggregate_id, revision)";
        let create = format!(
            "CREATE TABLE {table} (version bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns}); \
             CREATE FUNCTION write_{table}(a bytea, i bytea, t bytea, m bytea, d bytea, g bytea) RETURNS bigint LANGUAGE plpgsql AS $$ \
             DECLARE r bigint; v bigint; BEGIN \
             PERFORM pg_advisory_xact_lock(hashtext(encode(substr(a, 1, 9), 'hex'))); \
             SELECT coalesce(max(revision), 0) INTO r FROM {table} WHERE aggregate_id = a; \
             INSERT INTO {table} (revision, recorded_at, id, type, aggregate_id, metadata, data, digest) \
             VALUES (r + 1, now(), i, t, a, m, d, g) RETURNING version INTO v; RETURN v; END $$"
        );
        clients[0].batch_execute(&create).await.expect("created");
        let insert = match name {
            FUNCTION => format!(
                "SELECT write_{table}(a, i, t, m, d, g) FROM unnest($1::bigint[], $2::timestamptz[], $3::bytea[], $4::bytea[], \
                 $5::bytea[], $6::bytea[], $7::bytea[], $8::bytea[]) AS x(r, n, i, t, a, m, d, g)"
            ),
            _ => format!(
                "INSERT INTO {table} (revision, recorded_at, id, type, aggregate_id, metadata, data, digest) SELECT * FROM \
                 unnest($1::bigint[], $2::timestamptz[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[], \
                 $8::bytea[])"
            ),
        };
        let mut statements = Vec::new();
        for client in &clients {
            statements.push(client.prepare(&insert).await.expect("prepared"));
        }
        let copy = format!(
            "COPY {table} (version, revision, recorded_at, id, type, aggregate_id, metadata, data) TO STDOUT BINARY"
        );
        Table { name, clients, insert: statements, next: AtomicU64::new(0), copy }
    }
}

const PLAIN: &str = "a table";
const FUNCTION: &str = "a table with a function and an advisory lock";

#[async_trait::async_trait]
impl Subject for Table {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn append(&self, events: Vec<Event>) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize % self.clients.len();
        let part = |part: for<'e> fn(&'e Event) -> &'e [u8]| events.iter().map(part).collect::<Vec<_>>();
        // The revisions count the aggregate's events in this process: the caller has loaded it.
        let numbers: Vec<i64> = events.iter().map(|_| fastrand::i64(1..)).collect();
        let now = vec![SystemTime::now(); events.len()];
        let digests = vec![[7u8; 32].as_slice(); events.len()];
        let (ids, types) = (part(|event| event.id().as_bytes()), part(|event| event.event_type().as_bytes()));
        let (aggregates, metadata) =
            (part(|event| event.aggregate_id().as_bytes()), part(|event| event.metadata().as_bytes()));
        let data = part(Event::data);
        let values: [&(dyn ToSql + Sync); 8] = [&numbers, &now, &ids, &types, &aggregates, &metadata, &data, &digests];
        self.clients[next].query(&self.insert[next], &values).await.expect("inserted");
    }

    async fn scan(&self) -> u64 {
        let rows = self.clients[0].copy_out(&self.copy).await.expect("copied");
        let bytes: Vec<_> = rows.try_collect().await.expect("copied");
        bytes.len() as u64 // a message for each row
    }

    async fn aggregate(&self, _: &str) -> u64 {
        0
    }

    async fn get(&self, _: &str) {}
}

/// Appends from this many tasks, each with this many events at a time: events/s.
async fn append(subject: &Arc<dyn Subject>, tasks: usize, events: u64, time: Duration) -> f64 {
    let began = Instant::now();
    let appending = |_| {
        let subject = subject.clone();
        tokio::spawn(async move {
            let mut count = 0;
            while began.elapsed() < time || count == 0 {
                subject.append(next_events(events)).await;
                count += events;
            }
            count
        })
    };
    let tasks: Vec<_> = (0..tasks).map(appending).collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("no panic");
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[derive(Default)]
struct Figures(Vec<(String, Vec<Vec<f64>>)>);

impl Figures {
    fn add(&mut self, what: &str, subject: usize, of: usize, figure: f64) {
        let place = self.0.iter().position(|(name, _)| name == what).unwrap_or_else(|| {
            self.0.push((what.to_owned(), vec![Vec::new(); of]));
            self.0.len() - 1
        });
        self.0[place].1[subject].push(figure);
    }

    fn of(&self, what: &str, subject: usize) -> f64 {
        let figures = self.0.iter().find(|(name, _)| name == what).map(|(_, figures)| figures[subject].clone());
        figures.filter(|figures| !figures.is_empty()).map_or(f64::NAN, median)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let is_test = arguments.iter().any(|argument| argument == "--test");
    let rounds = arguments.windows(2).find(|pair| pair[0] == "--rounds").and_then(|pair| pair[1].parse().ok());
    let settings = match is_test {
        true => Settings { rounds: 1, time: Duration::from_millis(1), filled: 3_400 },
        false => Settings { rounds: rounds.unwrap_or(3), time: Duration::from_secs(3), filled: 204_000 },
    };
    let Some(cluster) =
        Cluster::start_if_installed(&["shared_buffers = 1GB", "max_wal_size = 4GB", "max_connections = 200"])
    else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("built");
    runtime.block_on(run(&cluster, settings));
}

async fn run(cluster: &Cluster, settings: Settings) {
    let directory = tempfile::tempdir().expect("made");
    let options = |schema: &str| {
        let mut options = Options::from_url(&cluster.url()).expect("valid");
        options.schema = schema.to_owned();
        options
    };
    let one: Arc<dyn EventStore> = Arc::new(open(options("one")).await.expect("opened"));
    let mut four: Vec<Arc<dyn EventStore>> = Vec::new();
    for _ in 0..4 {
        four.push(Arc::new(open(options("four")).await.expect("opened")));
    }
    let embedded =
        backend_lmdb::open(backend_lmdb::Options::new(directory.path().join("store"))).await.expect("opened");
    let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port());
    let stores = |name, stores| -> Arc<dyn Subject> { Arc::new(Stores { name, stores, next: AtomicU64::new(0) }) };
    let subjects: [Arc<dyn Subject>; 5] = [
        stores("the store", vec![one]),
        stores("four processes", four),
        Arc::new(Table::new(&url, PLAIN, 64).await),
        Arc::new(Table::new(&url, FUNCTION, 64).await),
        stores("embedded, LMDB", vec![Arc::new(embedded)]),
    ];
    let mut ids = Vec::new();
    for subject in &subjects {
        for first in (0..settings.filled).step_by(3_400) {
            let events: Vec<Event> = (first..first + 3_400).map(event).collect();
            if ids.len() < 2_000 && subject.name() == "the store" {
                ids.extend(events.iter().map(|event| event.id().to_owned()));
            }
            subject.append(events).await;
        }
    }
    cluster.sql("VACUUM ANALYZE").expect("analyzed");
    let (mut figures, of) = (Figures::default(), subjects.len());
    for round in 0..settings.rounds {
        for turn in 0..of {
            let nth = (turn + round) % of;
            let subject = &subjects[nth];
            let is_store = ["the store", "embedded, LMDB"].contains(&subject.name());
            if subject.name() != "four processes" {
                // Before the appends of this round make it longer.
                let began = Instant::now();
                let count = subject.scan().await;
                figures.add("scan, events/s", nth, of, count as f64 / began.elapsed().as_secs_f64());
            }
            if is_store {
                let began = Instant::now();
                let mut count = 0;
                while began.elapsed() < settings.time || count == 0 {
                    let id = format!("aggregate-{}", fastrand::u64(..settings.filled / LENGTH));
                    assert_eq!(subject.aggregate(&id).await, LENGTH, "{id}");
                    count += 1;
                }
                figures.add("aggregates of 34, loads/s", nth, of, f64::from(count) / began.elapsed().as_secs_f64());
            }
            if subject.name() == "the store" {
                let began = Instant::now();
                let mut count = 0;
                while began.elapsed() < settings.time || count == 0 {
                    subject.get(&ids[fastrand::usize(..ids.len())]).await;
                    count += 1;
                }
                figures.add("by id, events/s", nth, of, f64::from(count) / began.elapsed().as_secs_f64());
            }
            for (what, tasks, events) in [
                ("1 appender x 1, events/s", 1, 1),
                ("64 appenders x 1, events/s", 64, 1),
                ("256 appenders x 1, events/s", 256, 1),
                ("batches of 1,000, events/s", 1, 1000),
            ] {
                let figure = append(subject, tasks, events, settings.time).await;
                figures.add(what, nth, of, figure);
            }
        }
    }
    let mut report = String::from("| |");
    for subject in &subjects {
        let _ = write!(report, " {} |", subject.name());
    }
    let _ = writeln!(report, "\n|---|{}", "---:|".repeat(of));
    for (what, _) in &figures.0 {
        let _ = write!(report, "| {what} |");
        for nth in 0..of {
            match figures.of(what, nth) {
                figure if figure.is_nan() => report.push_str(" |"),
                figure => {
                    let _ = write!(report, " {figure:.0} |");
                }
            }
        }
        report.push('\n');
    }
    let ratio = |what: &str, one: usize, other: usize| figures.of(what, one) / figures.of(what, other);
    let _ = writeln!(
        report,
        "\n| | ratio | goal |\n|---|---:|---|\n\
         | 64 appenders to one appender | {:.1} | 10 |\n\
         | batches of 1,000, to a multi-row insert of the same columns | {:.2} | 0.8 |\n\
         | scan, to `COPY TO` of the same columns | {:.2} | 0.7 |\n\
         | four processes with 64 appenders each, to one process with 64 | {:.2} | 1 |",
        figures.of("64 appenders x 1, events/s", 0) / figures.of("1 appender x 1, events/s", 0),
        ratio("batches of 1,000, events/s", 0, 2),
        ratio("scan, events/s", 0, 2),
        figures.of("256 appenders x 1, events/s", 1) / figures.of("64 appenders x 1, events/s", 0),
    );
    println!("{report}");
}

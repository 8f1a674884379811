//! Wrong stores on PostgreSQL, which the suite and the fault tests must detect.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use backend_postgres::mutants::{Mutant, Mutants};
use backend_postgres::{Options, open};
use common::several::Several;
use common::{Writers, ctx, event, store};
use conformance::{Outcome, Profile, Suite};
use cutting_proxy::{Fate, Proxy};
use eventstore_api::{
    Actual, Batch, Bytes, Context, Direction, Error, Event, EventStore, Gc, GcReport, Layout, LoadOptions, Page,
    PageSize, RecordedEvent, Result, Revision, Stats, StoreOutcome, Stored, Version, async_trait,
};
use postgres_cluster::Cluster;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

/// Whether the suite finds a fault in one of these checks.
fn is_found<F, Fut>(checks: &'static [&'static str], limit: Duration, open: F) -> bool
where
    F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Arc<dyn EventStore>>> + Send + 'static,
{
    let profile = Profile::persistent().without_locking().without_read_only().without_backup().without_verification();
    let suite = Suite::new("mutant", profile.time_limit(limit), open);
    // A single run of a check may miss it by chance.
    (0..3).any(|_| checks.iter().any(|check| matches!(suite.run_check(check), Some(Outcome::Failed(_)))))
}

fn schema(directory: &Path) -> String {
    static NAMES: Mutex<Option<HashMap<PathBuf, usize>>> = Mutex::new(None);
    let mut names = NAMES.lock().expect("no panic");
    let names = names.get_or_insert_default();
    let next = names.len();
    format!("mutant_{}", names.entry(directory.to_owned()).or_insert(next))
}

/// Three processes, with this rule broken.
fn several(cluster: &Cluster, mutants: Mutants) -> impl Fn(PathBuf) -> Opening + Send + Sync + 'static {
    let url = cluster.url();
    move |directory| {
        let (url, schema) = (url.clone(), schema(&directory));
        Box::pin(async move {
            let mut stores: Vec<Arc<dyn EventStore>> = Vec::new();
            for _ in 0..3 {
                let mut options = Options::from_url(&url)?;
                (options.schema, options.mutants, options.max_connections) = (schema.clone(), mutants, 4);
                options.connect_timeout = Duration::from_secs(60);
                stores.push(Arc::new(open(options).await?));
            }
            Ok(Arc::new(Several { stores, next: AtomicUsize::new(0) }) as Arc<dyn EventStore>)
        })
    }
}

type Opening = std::pin::Pin<Box<dyn Future<Output = Result<Arc<dyn EventStore>>> + Send>>;

const ORDER: [&str; 3] = [
    "order::o1_a_refused_append_leaves_no_gap",
    "concurrency::o1_appends_at_once_have_one_order_that_agrees_with_time",
    "concurrency::o5_readers_beside_writers_see_prefixes_that_never_go_back",
];

const FOLLOWING: [&str; 2] = [
    "concurrency::s1_subscribers_beside_writers_lose_and_repeat_nothing",
    "following::s1_waiting_for_events_misses_no_event",
];

#[test]
fn the_suite_notices_followers_that_are_woken_before_the_commit() {
    let Some(cluster) = Cluster::start_if_installed(&["max_connections = 500"]) else { return };
    // The wrong store hangs; the right one does not, however slow the machine is.
    let [short, long] = [15, 240].map(Duration::from_secs);
    assert!(!is_found(&FOLLOWING, long, several(&cluster, Mutants::default())), "a store that keeps the rules does it");
    assert!(is_found(&FOLLOWING, short, several(&cluster, Mutants::with(Mutant::NotifiesBeforeCommit))));
}

#[test]
fn the_suite_notices_a_head_that_is_not_locked() {
    let Some(cluster) = Cluster::start_if_installed(&["max_connections = 500"]) else { return };
    let limit = Duration::from_secs(240);
    assert!(!is_found(&ORDER, limit, several(&cluster, Mutants::default())), "a store that keeps the rules does it");
    assert!(is_found(&ORDER, limit, several(&cluster, Mutants::with(Mutant::LocksNothing))));
}

#[test]
fn the_suite_notices_versions_of_a_plain_sequence() {
    let Some(cluster) = Cluster::start_if_installed(&["max_connections = 500"]) else { return };
    for check in 0..ORDER.len() {
        let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port());
        let open = move |directory: PathBuf| -> Opening {
            let (url, schema) = (url.clone(), schema(&directory));
            Box::pin(async move { Ok(Arc::new(Sequence::open(&url, schema).await) as Arc<dyn EventStore>) })
        };
        let checks: &'static [&'static str] = [&ORDER[0..1], &ORDER[1..2], &ORDER[2..3]][check];
        // The first check finds gaps, and the last finds events that become visible out of order.
        let found = is_found(checks, Duration::from_secs(60), open);
        assert!(found || check == 1, "{checks:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_taken_for_the_primary_is_noticed() {
    let Some(primary) = Cluster::start_if_installed(&[]) else { return };
    let standby = primary.standby("standby").expect("a standby");
    let url =
        format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?reads=standby", primary.port(), standby.port());
    let right = store(&url, |_| {}).await;
    right.store_batch(&ctx(), event("1", "a").into()).await.expect("stored");
    while standby.sql("SELECT count(*) FROM eventstore.events").unwrap_or_default() != "1" {
        tokio::task::yield_now().await;
    }
    standby.sql("SELECT pg_wal_replay_pause()").expect("paused");
    while standby.sql("SELECT pg_get_wal_replay_pause_state()").expect("asked") != "paused" {
        tokio::task::yield_now().await;
    }
    let wrong = store(&url, |options| options.mutants = Mutants::with(Mutant::TrustsStandby)).await;
    for (store, sees) in [(right, true), (wrong, false)] {
        let places = store.store_batch(&ctx(), event(&sees.to_string(), "a").into()).await.expect("stored");
        let page = store.load_page(&ctx(), &LoadOptions::all(), PageSize::FIRST).await.expect("a page");
        assert_eq!(page.head >= places[0].version, sees, "O6");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_without_a_commit_is_noticed() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let proxy = Proxy::start(&format!("127.0.0.1:{}", cluster.port())).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let wrong = store(&url, |options| options.mutants = Mutants::with(Mutant::AcknowledgesUnknown)).await;
    let direct = store(&cluster.url(), |_| {}).await;
    let writers = Writers::start(&[wrong], 3, 4);
    let mut writers = writers;
    for nth in 0..40 {
        proxy.next([Fate::CutRequest(6_000 + 977 * nth)]);
        proxy.cut_all().await;
        writers.go_on().await;
    }
    proxy.next([]);
    let checked = tokio::spawn(async move { writers.check(&direct).await }).await;
    assert!(checked.is_err(), "what was acknowledged is not there");
}

/// The usual hand-written table: the version is an identity column, and each append is a transaction.
#[derive(Debug)]
struct Sequence {
    clients: Vec<tokio::sync::Mutex<Client>>,
    next: AtomicUsize,
    schema: String,
}

const COLUMNS: &str = "version, revision, recorded_at, id, type, aggregate_id, metadata, data";

impl Sequence {
    async fn open(url: &str, schema: String) -> Self {
        let mut clients = Vec::new();
        for _ in 0..8 {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connected");
            tokio::spawn(connection);
            clients.push(client);
        }
        let create = format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE IF NOT EXISTS {schema}.events (\
             version bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, revision bigint NOT NULL, recorded_at timestamptz NOT NULL, \
             id bytea NOT NULL UNIQUE, type bytea NOT NULL, aggregate_id bytea NOT NULL, metadata bytea NOT NULL, \
             data bytea NOT NULL, UNIQUE (aggregate_id, revision))"
        );
        clients[0].batch_execute(&create).await.expect("created");
        Sequence {
            clients: clients.into_iter().map(tokio::sync::Mutex::new).collect(),
            next: AtomicUsize::new(0),
            schema,
        }
    }

    async fn client(&self) -> tokio::sync::MutexGuard<'_, Client> {
        self.clients[self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len()].lock().await
    }

    async fn rows(&self, conditions: &str) -> Vec<RecordedEvent> {
        let text = format!("SELECT {COLUMNS} FROM {}.events WHERE {conditions}", self.schema);
        self.client().await.query(&text, &[]).await.expect(&text).iter().map(recorded).collect()
    }

    async fn head(&self) -> Version {
        self.rows("true ORDER BY version DESC LIMIT 1").await.last().map_or(Version::ZERO, |last| last.version)
    }
}

fn hex(text: &str) -> String {
    text.bytes().fold("'\\x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")) + "'"
}

fn recorded(row: &Row) -> RecordedEvent {
    let parts: Vec<&[u8]> = (3..8).map(|column| row.get(column)).collect();
    let layout = Layout {
        id_len: parts[0].len() as u16,
        type_len: parts[1].len() as u16,
        aggregate_id_len: parts[2].len() as u16,
        metadata_len: parts[3].len() as u32,
    };
    let event = Event::from_stored(Bytes::from(parts.concat()), layout).expect("an event");
    let (version, revision) = (row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64);
    RecordedEvent::new(Version::new(version), Revision::new(revision), row.get(2), event)
}

#[async_trait]
impl EventStore for Sequence {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        ctx.check()?;
        let mut client = self.client().await;
        'again: loop {
            let transaction = client.transaction().await.expect("begun");
            let mut places = Vec::new();
            for event in &batch.events {
                let newest = format!(
                    "SELECT coalesce(max(revision), 0), (SELECT coalesce(max(version), 0) FROM {0}.events) FROM {0}.events \
                     WHERE aggregate_id = $1",
                    self.schema
                );
                let row = transaction.query_one(&newest, &[&event.aggregate_id().as_bytes()]).await.expect("read");
                let (revision, latest) = (row.get::<_, i64>(0), Version::new(row.get::<_, i64>(1) as u64));
                let found = Revision::new(revision as u64);
                let insert = format!(
                    "INSERT INTO {}.events (revision, recorded_at, id, type, aggregate_id, metadata, data) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING version",
                    self.schema
                );
                let (id, event_type) = (event.id().as_bytes(), event.event_type().as_bytes());
                let (aggregate_id, metadata) = (event.aggregate_id().as_bytes(), event.metadata().as_bytes());
                let (revision, now, data) = (revision + 1, SystemTime::now(), event.data());
                let values: [&(dyn ToSql + Sync); 7] =
                    [&revision, &now, &id, &event_type, &aggregate_id, &metadata, &data];
                let inserted = transaction.query_one(&insert, &values);
                let Ok(row) = inserted.await else { continue 'again }; // somebody else was faster
                if places.is_empty() && !batch.expected.holds(found, latest) {
                    let actual = Actual::of(batch.expected, event.aggregate_id(), found, latest);
                    return Err(Error::VersionConflict { expected: batch.expected, actual });
                }
                let version = Version::new(row.get::<_, i64>(0) as u64);
                places.push(Stored::new(version, found.next(), StoreOutcome::Written));
            }
            transaction.commit().await.expect("committed");
            return Ok(places);
        }
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        ctx.check()?;
        let head = self.head().await;
        let before = options.before.unwrap_or(head.next()).min(head.next());
        let mut conditions = format!("version > {} AND version < {before}", options.since);
        if let Some(id) = &options.aggregate_id {
            conditions += &format!(" AND aggregate_id = {}", hex(id));
        }
        let order = if options.direction == Direction::Backward { "DESC" } else { "ASC" };
        let most = (size.events.clamp(1, 1000) as u64).min(options.limit.unwrap_or(u64::MAX));
        let events = self.rows(&format!("{conditions} ORDER BY version {order} LIMIT {most}")).await;
        let is_complete = (events.len() as u64) < most;
        Ok(Page::new(options, events, head, is_complete))
    }

    async fn get(&self, _: &Context, id: &str) -> Result<RecordedEvent> {
        let found = self.rows(&format!("id = {}", hex(id))).await.pop();
        found.ok_or_else(|| Error::EventNotFound { id: id.to_owned() })
    }

    async fn latest_version(&self, _: &Context) -> Result<Version> {
        Ok(self.head().await)
    }

    async fn aggregate_revision(&self, _: &Context, aggregate_id: &str) -> Result<Revision> {
        let newest = format!("aggregate_id = {} ORDER BY revision DESC LIMIT 1", hex(aggregate_id));
        Ok(self.rows(&newest).await.last().map_or(Revision::ZERO, |last| last.revision))
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        loop {
            let head = self.head().await;
            if head > after {
                return Ok(head);
            }
            ctx.run(tokio::time::sleep(Duration::from_millis(1))).await?;
        }
    }

    async fn run_gc(&self, _: &Context, _: Gc) -> Result<GcReport> {
        Ok(GcReport::default())
    }

    async fn stats(&self, _: &Context) -> Result<Stats> {
        let mut stats = Stats::default();
        stats.latest_version = self.head().await;
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

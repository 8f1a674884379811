//! Connection poolers, callers that leave in the middle, and servers that have lost data.

#![allow(clippy::print_stderr, reason = "what is left out is told")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backend_postgres::{Options, open};
use common::{append_surely, buffered, ctx, event, options, store};
use cutting_proxy::{Fate, Proxy};
use eventstore_api::{Batch, Context, Error, EventStore, Gc, LoadOptions, PageSize, Version};
use postgres_cluster::{Cluster, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_with_capital_letters_can_be_followed() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let url = format!("{}?schema=Orders", cluster.url());
    let waits = store(&url, |options| options.poll_interval = Duration::from_secs(3600)).await;
    let appends = store(&url, |_| {}).await;
    // Events appended before it listens are found. Later ones are not.
    for number in 0..3 {
        let waiting = {
            let (waits, ctx) = (waits.clone(), Context::background().with_timeout(Duration::from_secs(30)));
            tokio::spawn(async move { waits.wait_for_events(&ctx, Version::new(number)).await })
        };
        appends.store_batch(&ctx(), event(&number.to_string(), "a").into()).await.expect("stored");
        assert_eq!(waiting.await.expect("no panic").expect("woken"), Version::new(number + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_woken_by_what_the_server_has_lost() {
    let settings = ["wal_writer_delay = 10s", "wal_writer_flush_after = 100MB"];
    let Some(cluster) = Cluster::start_if_installed(&settings) else { return };
    let store = store(&cluster.url(), |_| {}).await;
    store.store_batch(&ctx(), event("first", "a").into()).await.expect("stored");
    // The server may have written these bytes by chance; then use others.
    let mut numbers = 0..;
    let head = loop {
        let mut last = Version::ZERO;
        for number in numbers.by_ref().take(10) {
            let places = append_surely(&store, buffered(event(&format!("after {number}"), "a"))).await;
            last = places[0].version;
        }
        cluster.kill().expect("killed");
        cluster.restart().expect("restarted");
        let head = store.latest_version(&ctx()).await.expect("a head");
        if head < last {
            break head;
        }
    };
    let short = Context::background().with_timeout(Duration::from_millis(300));
    let woken = store.wait_for_events(&short, head).await;
    assert!(matches!(woken, Err(Error::DeadlineExceeded)), "the store has {head}: {woken:?}");
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.wait_for_events(&ctx(), head).await })
    };
    append_surely(&store, event("second", "a").into()).await;
    assert_eq!(waiting.await.expect("no panic").expect("woken"), head.next());
}

#[test]
fn a_store_whose_runtime_has_ended_is_closed() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let runtime = || tokio::runtime::Runtime::new().expect("started");
    let one = runtime();
    let store = one.block_on(store(&cluster.url(), |_| {}));
    drop(one);
    runtime().block_on(async {
        let outcomes = [
            store.store_batch(&ctx(), event("1", "a").into()).await.err(),
            store.latest_version(&ctx()).await.err(),
            store.load_page(&ctx(), &LoadOptions::all(), PageSize::new(10, 1000)).await.err(),
            store.wait_for_events(&ctx(), Version::ZERO).await.err(),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Some(Error::Closed)), "{outcome:?}");
        }
        store.close().await.expect("closed");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_is_dropped_leaves_no_transaction_behind() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let store = store(&cluster.url(), |options| options.max_connections = 1).await;
    let events: Vec<_> = (0..100).map(|number| event(&number.to_string(), "a")).collect();
    store.store_batch(&ctx(), Batch::new(events)).await.expect("stored");
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..60 {
        let verifies = {
            let store = store.clone();
            tokio::spawn(async move { store.verify(&ctx()).await })
        };
        tokio::time::sleep(Duration::from_micros(random.u64(..30_000))).await; // at a random moment
        verifies.abort();
        let _ = verifies.await;
        // A transaction of somebody else prevents it.
        store.run_gc(&ctx(), Gc::Quick).await.expect("vacuumed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_unavailable() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let proxy = Proxy::start(&format!("127.0.0.1:{}", cluster.port())).await;
    let url = format!("postgres://postgres@{}/postgres?connect_timeout=2s", proxy.address());
    for fate in [Fate::StallAnswer(0), Fate::StallRequest(3), Fate::StallAnswer(300)] {
        proxy.others(fate);
        let opening = open(Options::from_url(&url).expect("valid"));
        let opened = tokio::time::timeout(common::LONG, opening).await.expect("it ends");
        let is_told =
            matches!(&opened, Err(Error::Unavailable { reason, .. }) if reason.contains("did not answer within"));
        assert!(is_told, "{fate:?}: {opened:?}");
    }
}

/// `pgbouncer` with one connection to the server. Dropping it stops it.
struct Pooler {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill(); // fails if it has ended
        let _ = self.process.wait();
    }
}

impl Pooler {
    fn start_if_installed(cluster: &Cluster) -> Option<Self> {
        let directory = tempfile::tempdir().expect("made");
        let port = free_port().expect("a free port");
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 1\n",
            cluster.port()
        );
        let file = directory.path().join("pgbouncer.ini");
        std::fs::write(&file, config).expect("written");
        cluster.own(directory.path()).expect("given away");
        let mut command = Command::new("pgbouncer");
        // It refuses to run as root.
        if Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n")) {
            command.args(["-u", "postgres"]);
        }
        match command.arg(file).stderr(Stdio::null()).spawn() {
            Ok(process) => Some(Pooler { process, port, _directory: directory }),
            Err(_) => {
                eprintln!("left out: pgbouncer is not installed");
                None
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_no_statement_has_a_name_that_another_process_may_have() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let Some(pooler) = Pooler::start_if_installed(&cluster) else { return };
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", pooler.port);
    let stores =
        [store(&format!("{url}?schema=one"), |_| {}).await, store(&format!("{url}?schema=other"), |_| {}).await];
    for store in &stores {
        for number in 1..=3 {
            let places = store.store_batch(&ctx(), event(&number.to_string(), "a").into()).await.expect("stored");
            assert_eq!(places[0].version, Version::new(number));
        }
        assert_eq!(common::all(store).await.len(), 3);
    }
    let ctx = ctx();
    let waiting = stores[0].wait_for_events(&ctx, Version::new(3));
    let appending = stores[0].store_batch(&ctx, event("4", "a").into());
    let (woken, stored) = tokio::join!(waiting, appending);
    assert_eq!(woken.expect("woken"), stored.expect("stored")[0].version);
    // On the only connection to the server, which is the pooler's.
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connected");
    let driven = tokio::spawn(connection);
    let told = client.simple_query("SELECT name, statement FROM pg_prepared_statements").await.expect("told");
    let named: Vec<_> = told
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(1),
            _ => None,
        })
        .collect();
    assert!(named.is_empty(), "{named:?}");
    drop(client);
    driven.await.expect("no panic").expect("ended");
    for store in stores {
        store.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_large_aggregate_reads_no_more_than_itself() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let first = store(&cluster.url(), |_| {}).await;
    first.close().await.expect("closed");
    cluster
        .sql(
            "INSERT INTO eventstore.events SELECT v, CASE WHEN v % 2 = 1 THEN (v + 1) / 2 ELSE 1 END, now(), \
             convert_to('i' || v, 'UTF8'), 'T', convert_to(CASE WHEN v % 2 = 1 THEN 'large' ELSE 'o' || v END, 'UTF8'), \
             '{}', 'x', '' FROM generate_series(1, 40000) v; \
             UPDATE eventstore.head SET version = 40000, aggregates = 20001, largest = 30",
        )
        .expect("filled");
    cluster.sql("VACUUM ANALYZE eventstore.events").expect("vacuumed");
    const READ: &str = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'events'";
    let read = || cluster.sql(READ).expect("told").parse::<u64>().expect("a number");
    let before = read();
    let store = store(&cluster.url(), |options| options.max_connections = 1).await;
    for is_backward in [false, true] {
        let mut options = LoadOptions::all().aggregate("large");
        if is_backward {
            options = options.backward();
        }
        for _ in 0..10 {
            let page = store.load_page(&ctx(), &options, PageSize::new(10, 1 << 20)).await.expect("a page");
            assert_eq!(page.events.len(), 10);
            options = page.next.expect("there are more");
        }
    }
    store.close().await.expect("closed");
    drop(store);
    // A connection reports its reads when it ends.
    while !cluster.backends().expect("told").is_empty()
        && cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'eventstore'").expect("told")
            != "0"
    {
        tokio::task::yield_now().await;
    }
    let read = read() - before;
    assert!((200..2_000).contains(&read), "{read} entries of indexes for 200 events");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_url_is_told_and_not_tried_again() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    cluster
        .sql("CREATE SCHEMA one; CREATE TABLE one.events (x int); CREATE SCHEMA two; CREATE TABLE two.head (x int)")
        .expect("created");
    for schema in ["one", "two"] {
        let opened = open(options(&format!("{}?schema={schema}", cluster.url()))).await;
        let is_told = matches!(&opened, Err(Error::InvalidOption { option, reason }) if option == "schema" && reason.contains("choose another"));
        assert!(is_told, "{opened:?}");
    }
    let opened = open(options(&format!("{}?options=-c%20no_such%3D1", cluster.url()))).await;
    assert!(matches!(&opened, Err(Error::Open { reason, .. }) if reason.contains("no_such")), "{opened:?}");
    let opened = open(options(&format!("{}?sslmode=require", cluster.url()))).await;
    let is_told = matches!(&opened, Err(Error::Open { reason, .. }) if reason.contains("write sslmode=disable"));
    assert!(is_told, "{opened:?}");
    let opened = open(options(&format!("{}?dbname=missing", cluster.url()))).await;
    let error = opened.expect_err("there is no such database");
    let cause = std::error::Error::source(&error).expect("what the server said").to_string();
    assert!(error.to_string().contains(&cause), "its words are not told twice: {error}; {cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_let_in_is_told_what_to_check() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    cluster.sql("CREATE ROLE app LOGIN PASSWORD 'right'").expect("created");
    let path = cluster.socket().join("hba.conf");
    let rules = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&path, rules).expect("written");
    cluster.own(&path).expect("given to the server");
    cluster.configure(&[&format!("hba_file = '{}'", path.display())]).expect("configured");
    cluster.stop("fast").expect("stopped");
    cluster.restart().expect("restarted");
    for (user, advice) in [
        ("app:wrong@", "check PGPASSWORD, the password_file, or the password in the URL"),
        ("other@", "check the user in the URL, and pg_hba.conf on the server"),
    ] {
        let opened = open(Options::new(cluster.url().replace("postgres@", user))).await;
        let is_told = matches!(&opened, Err(Error::Forbidden { what }) if what.ends_with(advice));
        assert!(is_told, "{user}: {opened:?}");
    }
    let mut options = Options::new(cluster.url().replace("postgres@", "app@"));
    options.password = Some("right".to_owned());
    let opened = open(options).await;
    let is_let_in = matches!(&opened, Err(Error::Forbidden { what }) if what.contains("permission denied"));
    assert!(is_let_in, "it may not create a schema: {opened:?}");
}

//! A store on PostgreSQL and the command that uses it, in separate processes.

#![cfg(all(unix, feature = "lmdb", feature = "postgres", feature = "serve", feature = "http"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;
mod shell;
mod signals;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use postgres_cluster::Cluster;
use serde_json::Value;

use server::Server;
use shell::{Done, Shell, orders};

/// A test that waits longer than this hangs.
const LONG: Duration = Duration::from_secs(60);

fn url(cluster: &Cluster, schema: &str) -> String {
    format!("{}?schema={schema}", cluster.url())
}

impl Shell {
    /// The command with this store.
    fn on(&self, url: &str, args: &[&str]) -> Done {
        self.run(&[&["--store", url], args].concat())
    }
}

#[test]
fn every_command_works_on_a_store_on_postgresql() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, store) = (Shell::new(), url(&cluster, "orders"));
    // Reads create nothing.
    shell.on(&store, &["latest"]).failed("cannot_open", &["there is no store", "`schema=`", "importing"]);
    shell.on(&store, &["import", orders().to_str().unwrap()]).succeeded();
    let one = "{\"id\":\"o\\u0000ne\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data\":{\"n\": 1.50}}";
    shell.write("one.jsonl", one);
    let appended = shell.on(&store, &["append", "--expect", "none", "one.jsonl"]).succeeded().events();
    let latest = appended[0]["version"].as_u64().unwrap();
    assert_eq!(shell.on(&store, &["latest"]).succeeded().stdout, format!("{latest}\n"));
    assert_eq!(shell.on(&store, &["load"]).succeeded().events().len() as u64, latest);
    let newest = shell.on(&store, &["load", "--aggregate", "a", "--backward"]).succeeded();
    assert!(newest.stdout.contains(r#""data":{"n": 1.50}"#), "byte for byte: {}", newest.stdout);
    assert!(shell.on(&store, &["aggregates", "--prefix", "a"]).succeeded().stdout.contains(r#""revision":1"#));
    let stats: Value = serde_json::from_str(&shell.on(&store, &["stats", "--json"]).succeeded().stdout).unwrap();
    assert_eq!((stats["backend"].as_str(), stats["latest_version"].as_u64()), (Some("postgres"), Some(latest)));
    assert_eq!(stats["engine"]["synced_version"].as_u64(), Some(latest));
    assert_eq!(stats["engine"]["in_recovery"], false);
    assert_eq!(stats["engine"]["synchronous_commit"], "on");
    assert!(shell.on(&store, &["verify"]).succeeded().stdout.contains("verdict: clean"));
    assert!(shell.on(&store, &["gc"]).succeeded().stdout.contains("vacuumed the table events"));
    let full = shell.on(&store, &["gc", "--full"]).succeeded().stdout;
    assert!(full.contains("bytes_after") && full.contains("rewrote the table events"), "{full}");

    // To an embedded store, and back to a new one on PostgreSQL.
    let digest = shell.on(&store, &["digest"]).succeeded().stdout;
    shell.on(&store, &["copy", "--to", "lmdb:./copy"]).succeeded();
    shell.on(&store, &["backup", "backup"]).succeeded();
    let again = url(&cluster, "again");
    shell.on("lmdb:./copy", &["copy", "--to", &again]).succeeded();
    for copy in ["lmdb:./copy", "lmdb:./backup", &again] {
        assert_eq!(shell.on(copy, &["digest"]).succeeded().stdout, digest, "{copy}");
        assert!(shell.on(copy, &["verify"]).succeeded().stdout.contains("verdict: clean"), "{copy}");
    }
    // Only new data is copied to an earlier backup.
    shell.write("two.jsonl", r#"{"id":"two","type":"T","aggregate_id":"a","data":2}"#);
    shell.on(&store, &["append", "two.jsonl"]).succeeded();
    assert!(shell.on(&store, &["backup", "backup"]).succeeded().stdout.contains("copied: 1\n"));
    shell.on(&store, &["repair"]).failed("unsupported", &["a store on PostgreSQL has none"]);
    let bench = shell.on(&with_password(&cluster.url()), &["bench", "--quick", "--report", "report"]);
    assert_eq!(bench.code, Some(0), "{}", bench.stderr);
    assert!(bench.stdout.contains("append"), "{}", bench.stdout);
    let report = std::fs::read_dir(shell.path("report")).unwrap().map(|entry| entry.unwrap().path());
    let report: Vec<_> =
        report.map(|file| String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned()).collect();
    assert!(report.iter().any(|text| text.contains("127.0.0.1")), "the URL is in it");
    for text in report.iter().chain([&bench.stdout, &bench.stderr]) {
        assert!(!text.contains(PASSWORD));
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'eventstore_bench%'";
    assert_eq!(cluster.sql(schemas).unwrap(), "0", "its stores are gone");
}

const PASSWORD: &str = "s3cret";

/// A URL with the password of its user, which the server does not ask for.
fn with_password(url: &str) -> String {
    url.replace("postgres@", &format!("postgres:{PASSWORD}@"))
}

#[test]
fn a_password_in_a_url_is_shown_to_nobody() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, store) = (Shell::new(), with_password(&url(&cluster, "shown")));
    let server = Server::on_any_port(&shell, &["--store", &store]);
    let address = format!("127.0.0.1:{}/postgres?schema=shown", cluster.port());
    assert!(server.told.contains(&address) && !server.told.contains(PASSWORD), "{}", server.told);
    assert_eq!(server.end(15).1, "");
    // As the password of a parameter.
    let store = format!("{}&password={PASSWORD}", url(&cluster, "shown"));
    let server = Server::on_any_port(&shell, &["--store", &store]);
    assert!(server.told.contains(&address) && !server.told.contains(PASSWORD), "{}", server.told);
    assert_eq!(server.end(15).1, "");
    let help = shell.command(&["load", "--help"]).env("EVENTSTORE_URL", &store).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("EVENTSTORE_URL") && !help.contains(PASSWORD), "{help}");
}

#[test]
fn a_database_that_is_away_is_told_from_the_server_of_its_store() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, store) = (Shell::new(), url(&cluster, "away"));
    let server = Server::on_any_port(&shell, &["--store", &format!("{store}&retry_for=100ms")]);
    shell.write("one.jsonl", r#"{"id":"one","type":"T","aggregate_id":"a","data":1}"#);
    shell.on(&server.url, &["append", "one.jsonl"]).succeeded();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    // A machine that stands still for two seconds is told as a store that does not answer.
    let ready = || loop {
        let answer = answer(ask("/ready"));
        if !answer.contains("has not answered within") {
            return answer;
        }
    };
    assert!(ready().starts_with("HTTP/1.1 200"));
    let waits = ask("/wait?after=1&timeout=1h");
    let follows = ask("/follow?limit=2");
    follows.set_read_timeout(Some(LONG)).unwrap();
    let mut follows = BufReader::new(follows).lines().map(Result::unwrap);
    follows.find(|line| line.contains(r#""id":"one""#)).unwrap();
    cluster.stop("fast").unwrap();
    let not_ready = ready();
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("postgres://127.0.0.1"), "{not_ready}");
    // Whoever waits is told as well, and whoever asks now.
    for waits in [waits, ask("/wait?after=1&timeout=1h")] {
        let told = answer(waits);
        assert!(told.starts_with("HTTP/1.1 503") && told.contains("application/problem+json"), "{told}");
        assert!(told.contains(r#""code":"unavailable""#) && told.contains("it serves postgres://127.0.0.1"), "{told}");
    }
    let impatient = format!("{}?retry_for=0s", server.url);
    for command in [&["latest"][..], &["append", "one.jsonl"]] {
        shell
            .on(&impatient, command)
            .failed("unavailable", &["it serves postgres://127.0.0.1", "which is not available"]);
    }
    cluster.restart().unwrap();
    shell.write("two.jsonl", r#"{"id":"two","type":"T","aggregate_id":"a","data":2}"#);
    for file in ["one.jsonl", "two.jsonl"] {
        shell.on(&server.url, &["append", file]).succeeded();
    }
    assert!(ready().starts_with("HTTP/1.1 200"));
    // A stream that waited goes on.
    let more: Vec<_> = follows.filter(|line| line.contains("event") || line.contains("end")).collect();
    assert!(matches!(&more[..], [two] if two.contains(r#""id":"two""#)), "{more:?}");
}

#[cfg(feature = "sync")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_hub_on_postgresql_is_away_says_so_and_goes_on_when_it_is_back() {
    use synckit::{Options, SyncOptions, SyncState};

    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, hub) = (Shell::new(), url(&cluster, "hub"));
    shell.write("one.jsonl", r#"{"id":"one","type":"T","aggregate_id":"a","data":1}"#);
    shell.on(&hub, &["append", "one.jsonl"]).succeeded();
    let replica = Options::new(shell.path("replica")).hub(&hub).open().await.unwrap();
    let mut state = replica.watch_sync();
    let mut until = async |wanted: fn(&SyncState) -> bool| {
        let reached = tokio::time::timeout(LONG, state.wait_for(wanted)).await;
        reached.expect("it is told").expect("it runs").clone()
    };
    let mut options = SyncOptions::new();
    // A request to the hub may take longer than this test.
    options.timeout = 10 * LONG;
    let stop = options.stop.clone();
    let running = tokio::spawn({
        let replica = replica.clone();
        async move { replica.run(&options).await }
    });
    for _ in 0..2 {
        until(|state| matches!(state, SyncState::Live)).await;
        cluster.stop("fast").unwrap();
        let offline = until(|state| matches!(state, SyncState::Offline(_))).await;
        assert!(offline.to_string().contains("postgres://127.0.0.1"), "{offline}");
        cluster.restart().unwrap();
    }
    until(|state| matches!(state, SyncState::Live)).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    replica.close().await.unwrap();
}

#[test]
fn the_time_limit_of_appends_holds_for_opening_too() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, store) = (Shell::new(), url(&cluster, "orders"));
    shell.write("one.jsonl", r#"{"id":"one","type":"T","aggregate_id":"a","data":1}"#);
    shell.on(&store, &["append", "one.jsonl"]).succeeded();
    let held = cluster.hold("SELECT * FROM orders.head FOR UPDATE").unwrap();
    // Without the limit it would wait for the lock.
    let waits = format!("{store}&options=-c%20lock_timeout%3D10s");
    let appended = shell.on(&waits, &["append", "--timeout", "200ms", "one.jsonl"]);
    drop(held);
    appended.failed("deadline_exceeded", &["nothing was written"]);
}

#[test]
fn a_schema_is_printed_for_a_store_on_postgresql_only() {
    let shell = Shell::new();
    for args in [&["schema"][..], &["--store", "lmdb:./store", "schema"]] {
        shell.run(args).failed("invalid_option", &["`schema` prints", "--store postgres://"]);
    }
}

/// The SQL that the document gives in its section on the setup.
fn documented_sql() -> Vec<String> {
    let document = include_str!("../docs/postgres.md");
    let (_, setup) = document.split_once("## Setup").unwrap();
    let (setup, _) = setup.split_once("\n## ").unwrap();
    let blocks = setup.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

#[test]
fn the_documented_setup_is_enough() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let shell = Shell::new();
    let blocks = documented_sql();
    let [database, grants] = &blocks[..] else { panic!("{blocks:?}") };
    for statement in database.split_inclusive(';').filter(|statement| statement.contains(';')) {
        cluster.sql(statement).unwrap(); // each by itself: a database is not created in a transaction
    }
    shell.write("one.jsonl", r#"{"id":"one","type":"T","aggregate_id":"a","data":1}"#);
    let address = format!("127.0.0.1:{}", cluster.port());
    let append = |url: &str| shell.on(url, &["append", "one.jsonl"]);
    append(&format!("postgres://app@{address}/shop?schema=orders")).succeeded();

    // In a database of somebody else, by what is printed there. Through a socket as well.
    let printed = shell.on(&url(&cluster, "orders"), &["schema"]).succeeded().stdout;
    cluster.sql(&printed).unwrap();
    cluster.sql("CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN").unwrap();
    cluster.sql(grants).unwrap();
    let socket = cluster.socket().display().to_string();
    let escaped = socket.replace('/', "%2F");
    let of = |user: &str| {
        [
            format!("postgres://{user}@{address}/postgres?schema=orders"),
            format!("postgres:///postgres?host={socket}&port={}&user={user}&schema=orders", cluster.port()),
            format!("postgres://{user}@{escaped}:{}/postgres?schema=orders", cluster.port()),
        ]
    };
    for (url, readers) in of("writer").into_iter().zip(of("reader")) {
        append(&url).succeeded();
        shell.on(&url, &["gc"]).failed("forbidden", &["as the owner of the table"]);
        append(&readers).failed("forbidden", &["permission denied"]);
        assert_eq!(shell.on(&readers, &["load"]).succeeded().events().len(), 1);
        assert!(shell.on(&readers, &["verify"]).succeeded().stdout.contains("verdict: clean"));
        shell.on(&readers, &["digest"]).succeeded();
        shell.on(&readers, &["stats"]).succeeded();
    }
}

#[test]
fn the_printed_schema_creates_a_store_for_who_may_not() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, store) = (Shell::new(), url(&cluster, "printed"));
    cluster.sql("CREATE ROLE app LOGIN").unwrap();
    let own = store.replace("postgres@", "app@");
    shell.write("one.jsonl", r#"{"id":"one","type":"T","aggregate_id":"a","data":1}"#);
    shell.on(&own, &["append", "one.jsonl"]).failed("forbidden", &["permission denied"]);
    cluster.sql(&shell.on(&store, &["schema"]).succeeded().stdout).unwrap();
    let grants = "GRANT USAGE ON SCHEMA printed TO app; GRANT SELECT, INSERT ON printed.events TO app; \
                  GRANT SELECT, UPDATE ON printed.head TO app";
    cluster.sql(grants).unwrap();
    assert_eq!(shell.on(&own, &["append", "one.jsonl"]).succeeded().events()[0]["version"], 1);
    assert!(shell.on(&own, &["verify"]).succeeded().stdout.contains("verdict: clean"));
}

#[test]
fn two_processes_serve_one_store() {
    let Some(cluster) = Cluster::start_if_installed(&[]) else { return };
    let (shell, store) = (Shell::new(), url(&cluster, "shared"));
    shell.write("one.jsonl", r#"{"id":"one","type":"T","aggregate_id":"a","data":1}"#);
    shell.on(&store, &["append", "one.jsonl"]).succeeded();
    let servers =
        [Server::on_any_port(&shell, &["--store", &store]), Server::on_any_port(&shell, &["--store", &store])];
    let latest = |server: &Server| shell.on(&server.url, &["latest"]).succeeded().stdout.trim().parse::<u64>().unwrap();
    for round in 0..4 {
        let (one, other) = (&servers[round % 2], &servers[(round + 1) % 2]);
        shell.write("next.jsonl", format!(r#"{{"id":"{round}","type":"T","aggregate_id":"a","data":1}}"#));
        let appended = shell.on(&one.url, &["append", "next.jsonl"]).succeeded().events();
        assert_eq!(appended[0]["version"].as_u64(), Some(round as u64 + 2));
        assert_eq!(latest(other), round as u64 + 2, "the other sees it");
    }
    for server in servers {
        assert_eq!(server.end(15).0, Some(143));
    }
}

//! A store on PostgreSQL and the command that uses it, in separate processes.

#![cfg(all(unix, feature = "lmdb", feature = "postgres", feature = "serve", feature = "http"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;
mod shell;
mod signals;

use postgres_cluster::Cluster;
use serde_json::Value;

use server::Server;
use shell::{Done, Shell, orders};

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
    shell.on(&store, &["latest"]).failed("cannot_open", &["there is no store"]); // reads create nothing
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
    assert!(shell.on(&store, &["verify"]).succeeded().stdout.contains("verdict: clean"));
    assert!(shell.on(&store, &["gc"]).succeeded().stdout.contains("vacuumed the table events"));
    assert!(shell.on(&store, &["gc", "--full"]).succeeded().stdout.contains("bytes_after"));

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
    let bench = shell.on(&cluster.url(), &["bench", "--quick"]);
    assert_eq!(bench.code, Some(0), "{}", bench.stderr);
    assert!(bench.stdout.contains("append"), "{}", bench.stdout);
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'eventstore_bench%'";
    assert_eq!(cluster.sql(schemas).unwrap(), "0", "its stores are gone");
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

//! The commands for replicas, with a hub in a separate process.

#![cfg(all(unix, feature = "lmdb", feature = "serve", feature = "sync"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;
mod shell;
mod signals;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::Value;

use server::Server;
use shell::Shell;

fn line(id: &str, aggregate_id: &str) -> String {
    format!("{{\"id\":\"{id}\",\"type\":\"T\",\"aggregate_id\":\"{aggregate_id}\",\"data\":{{\"of\":\"{id}\"}}}}\n")
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn field<'text>(text: &'text str, name: &str) -> &'text str {
    let prefix = format!("{name}: ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn a_replica_appends_offline_syncs_and_follows() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    let url = server.url.clone();
    for name in ["a", "b"] {
        shell.run(&["replica", "init", name, "--hub", &url]).succeeded();
    }
    let again = shell.run(&["replica", "init", "a", "--hub", &url]);
    assert_eq!((again.code, again.stderr.contains("is a replica already")), (Some(1), true), "{}", again.stderr);
    server.kill();

    shell.write("one.jsonl", &(line("1", "x") + &line("2", "x")));
    let answers = shell.run(&["--store", "replica:a", "append", "--batch", "2", "one.jsonl"]).succeeded();
    assert_eq!(
        lines(&answers.stdout),
        [serde_json::json!({"id": "1", "pending": "1.0"}), serde_json::json!({"id": "2", "pending": "1.1"})]
    );
    let offline = shell.run(&["sync", "a"]);
    assert_eq!(offline.code, Some(1));
    assert!(offline.stderr.starts_with("error[unavailable]"), "{}", offline.stderr);
    assert_eq!(field(&shell.run(&["status", "a"]).succeeded().stdout, "pending"), "1");
    let pending = shell.run(&["pending", "a"]).succeeded();
    assert_eq!(lines(&pending.stdout)[0]["events"][1]["id"], "2");

    let server = Server::on_any_port(&shell, &[]);
    let synced = shell.run(&["sync", "a", "--hub", &server.url]).succeeded();
    assert_eq!((field(&synced.stdout, "confirmed batches"), field(&synced.stdout, "version")), ("1", "2"));
    shell.run(&["sync", "b", "--hub", &server.url]).succeeded();
    let cursor = |name| field(&shell.run(&["status", name]).succeeded().stdout, "cursor").to_owned();
    assert_eq!(cursor("a"), cursor("b"));

    // A live sync in a process that is ended by a signal.
    let mut live = shell.spawn(&["sync", "b", "--live"]);
    let mut told = BufReader::new(live.stderr.take().unwrap());
    let mut state = String::new();
    told.read_line(&mut state).unwrap();
    assert_eq!(state, "live\n");
    let locked = shell.run(&["status", "b"]);
    assert!(locked.stderr.starts_with("error[locked]"), "{}", locked.stderr);
    signals::send(&live, libc::SIGTERM);
    assert_eq!(live.wait().unwrap().code(), Some(143));
}

#[test]
fn a_conflict_waits_with_its_exit_code_until_somebody_decides() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    for name in ["a", "b"] {
        shell.run(&["replica", "init", name, "--hub", &server.url]).succeeded();
        shell.write("one.jsonl", line(&format!("of {name}"), "x"));
        let store = format!("replica:{name}");
        shell.run(&["--store", &store, "append", "--expect", "none", "one.jsonl"]).succeeded();
    }
    shell.run(&["sync", "a"]).succeeded();
    let waits = shell.run(&["sync", "b"]);
    assert_eq!(waits.code, Some(4), "{}", waits.stderr);
    assert!(waits.stderr.contains("batch 1 waits for a decision"), "{}", waits.stderr);
    assert_eq!(
        lines(&shell.run(&["pending", "b"]).succeeded().stdout)[0]["waits"],
        "there are events that its decision had not seen"
    );
    shell.run(&["sync", "b", "--resolve", "reject"]).succeeded();
    let rejected = shell.run(&["rejected", "b"]).succeeded();
    assert_eq!(lines(&rejected.stdout)[0]["reason"], "others changed it meanwhile");
    shell.run(&["rejected", "b", "--delete", "1"]).succeeded();
    assert_eq!(shell.run(&["rejected", "b"]).succeeded().stdout, "");
    // A dropped batch is not among them.
    let append = ["--store", "replica:b", "append", "--expect", "none", "one.jsonl"];
    shell.write("one.jsonl", line("dropped", "y"));
    shell.run(&append).succeeded();
    shell.write("one.jsonl", line("before it", "y"));
    shell.run(&["--store", &server.url, "append", "one.jsonl"]).succeeded();
    shell.run(&["sync", "b", "--resolve", "drop"]).succeeded();
    assert_eq!(shell.run(&["rejected", "b"]).succeeded().stdout, "");
    assert_eq!(shell.run(&["pending", "b"]).succeeded().stdout, "");
    let loaded = shell.run(&["--store", "replica:b", "load"]).succeeded();
    let ids: Vec<_> = lines(&loaded.stdout).iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, ["of a", "before it"]);
    let other = shell.run(&["--store", "replica:b", "verify"]);
    assert!(other.stderr.starts_with("error[unsupported]"), "{}", other.stderr);
}

/// Replicas and the hub are killed at random moments. At the end, every acknowledged event is at the hub once, and all
/// are equal.
#[test]
fn nothing_that_was_answered_is_lost_when_replicas_and_the_hub_are_killed() {
    const ROUNDS: u64 = 24;
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    let listen = format!("127.0.0.1:{}", server.port());
    for name in ["a", "b"] {
        shell.run(&["replica", "init", name, "--hub", &server.url]).succeeded();
    }
    let mut server = Some(server);
    let mut answered = BTreeSet::new();
    let mut random = fastrand::Rng::with_seed(14);
    for round in 0..ROUNDS {
        for name in ["a", "b"] {
            let ids: Vec<_> = (0..6).map(|number| format!("{name}-{round}-{number}")).collect();
            let events: String = ids.iter().map(|id| line(id, &format!("of {name}"))).collect();
            let file = format!("{name}.jsonl");
            shell.write(&file, &events);
            let store = format!("replica:{name}");
            let answers = shell.run(&["--store", &store, "append", "--batch", "2", &file]).succeeded();
            answered.extend(lines(&answers.stdout).iter().map(|answer| answer["id"].as_str().unwrap().to_owned()));
        }
        let mut syncing: Vec<_> = ["a", "b"].map(|name| shell.spawn(&["sync", name, "--live"])).into();
        // A random moment of the schedule, not a wait for something.
        std::thread::sleep(Duration::from_millis(random.u64(5..120)));
        if random.bool() {
            server.take().unwrap().kill();
        }
        for child in &mut syncing {
            std::thread::sleep(Duration::from_millis(random.u64(0..20)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        server.get_or_insert_with(|| Server::start(&shell, &["--listen", &listen]));
    }
    for name in ["a", "b", "a"] {
        shell.run(&["sync", name]).succeeded();
    }
    let loaded = |store: &str| {
        let events = lines(&shell.run(&["--store", store, "load"]).succeeded().stdout);
        events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let hub = loaded(&server.as_ref().unwrap().url);
    let ids: BTreeSet<_> = hub.iter().cloned().collect();
    assert_eq!((ids.len(), &ids), (hub.len(), &answered), "each once");
    // Batches have two events, which are adjacent.
    assert!(hub.chunks(2).all(|pair| pair[0].rsplit_once('-').unwrap().0 == pair[1].rsplit_once('-').unwrap().0));
    for name in ["a", "b"] {
        assert_eq!(loaded(&format!("replica:{name}")), hub, "{name}");
        assert_eq!(field(&shell.run(&["status", name]).succeeded().stdout, "pending"), "0");
    }
}

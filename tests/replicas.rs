//! The commands for replicas, with a hub in a separate process.

#![cfg(all(unix, feature = "lmdb", feature = "serve", feature = "sync"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;
mod shell;
mod signals;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
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
    assert_eq!(field(&shell.run(&["status", "a"]).succeeded().stdout, "pending batches"), "1 (2 events)");
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
    shell.run(&["status", "b"]).failed("locked", &["b is open in another process", "stop the `sync --live`"]);
    // Its hub goes, and comes back.
    let listen = format!("127.0.0.1:{}", server.port());
    server.kill();
    state.clear();
    told.read_line(&mut state).unwrap();
    assert!(state.starts_with("offline: "), "{state}");
    let _server = Server::start(&shell, &["--listen", &listen]);
    while state.starts_with("offline: ") {
        state.clear(); // the reason may be another one
        told.read_line(&mut state).unwrap();
    }
    assert_eq!(state, "live\n");
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
    assert!(waits.stderr.contains("eventstore sync b --resolve keep-both|reject|drop"), "{}", waits.stderr);
    // What is pending there has no revision that a condition could name.
    shell.write("two.jsonl", line("two", "x"));
    let unknown = shell.run(&["--store", "replica:b", "append", "--expect", "revision=1", "two.jsonl"]);
    unknown.failed("pending_in_scope", &["eventstore sync b", "--expect exists"]);
    let synced = shell.run(&["sync", "b", "--resolve", "reject"]).succeeded();
    assert_eq!((field(&synced.stdout, "confirmed batches"), field(&synced.stdout, "rejected batches")), ("0", "1"));
    let again = shell.run(&["--store", "replica:b", "append", "one.jsonl"]);
    again.failed("rejected", &["eventstore rejected b --delete 1"]);
    let rejected = shell.run(&["rejected", "b"]).succeeded();
    assert_eq!(lines(&rejected.stdout)[0]["reason"], "others changed it meanwhile");
    shell.run(&["rejected", "replica:b", "--delete", "1.0"]).succeeded();
    shell.run(&["rejected", "b", "--delete", "1"]).failed("batch_not_found", &["b has no rejected batch 1"]);
    assert_eq!(shell.run(&["rejected", "b"]).succeeded().stdout, "");
    // A dropped batch is not among them.
    let append = ["--store", "replica:b", "append", "--expect", "none", "one.jsonl"];
    shell.write("one.jsonl", line("dropped", "y"));
    shell.run(&append).succeeded();
    shell.write("one.jsonl", line("before it", "y"));
    shell.run(&["--store", &server.url, "append", "one.jsonl"]).succeeded();
    let synced = shell.run(&["sync", "b", "--resolve", "drop"]).succeeded();
    assert_eq!((field(&synced.stdout, "confirmed batches"), field(&synced.stdout, "dropped batches")), ("0", "1"));
    assert_eq!(shell.run(&["rejected", "b"]).succeeded().stdout, "");
    assert_eq!(shell.run(&["pending", "b"]).succeeded().stdout, "");
    let loaded = shell.run(&["--store", "replica:b", "load"]).succeeded();
    let ids: Vec<_> = lines(&loaded.stdout).iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, ["of a", "before it"]);
    let other = shell.run(&["--store", "replica:b", "verify"]);
    other.failed("unsupported", &["`verify` does not work on a replica", "in the store lmdb:b/confirmed-1"]);
    shell.run(&["--store", "lmdb:b/confirmed-1", "verify"]).succeeded();
    // An id that is taken.
    shell.write("one.jsonl", line("before it", "z"));
    shell.run(&["--store", "replica:a", "append", "one.jsonl"]).succeeded();
    let kept = shell.run(&["sync", "a", "--resolve", "keep-both"]);
    assert_eq!(kept.code, Some(0), "{}", kept.stderr);
    let new_id = kept.stderr.strip_prefix("batch 2: before it is now ").unwrap_or_else(|| panic!("{}", kept.stderr));
    let found = shell.run(&["--store", &server.url, "get", new_id.trim_end()]).succeeded();
    assert_eq!(found.events()[0]["aggregate_id"], "z");
}

#[test]
fn a_hub_is_checked_before_there_is_a_replica_and_kept_when_it_is_the_right_one() {
    let shell = Shell::new();
    for (hub, code, words) in [
        ("localhost:7080", "unsupported", "a hub is http://host:port"),
        ("./hub", "invalid_option", "a hub is http://host:port"),
        ("http://", "invalid_option", "http://host:7080/stores/name"),
        ("http://app:geheim@host", "invalid_option", "user names and passwords"),
        ("http://host?colour=red", "invalid_option", "colour"),
        ("lmdb:./hub", "cannot_open", "append or import something to it first"),
        ("memory:", "unsupported", "a store that is served"),
    ] {
        let refused = shell.run(&["replica", "init", "a", "--hub", hub]).failed(code, &[words]);
        assert!(!refused.stderr.contains("geheim"), "{}", refused.stderr);
        assert!(!shell.path("a").exists());
    }
    shell.write("file", "");
    shell
        .run(&["replica", "init", "file", "--hub", "http://host"])
        .failed("not_a_replica", &["name another directory"]);

    for name in ["one", "other"] {
        let file = format!("{name}.jsonl");
        shell.write(&file, line(name, "x"));
        shell.run(&["--store", &format!("lmdb:{name}"), "append", &file]).succeeded();
    }
    shell.run(&["replica", "init", "a", "--hub", "lmdb:one"]).succeeded();
    shell.run(&["sync", "a"]).succeeded();
    let refused = shell.run(&["sync", "a", "--hub", "lmdb:other"]);
    refused.failed("another_history", &["eventstore sync a --accept-history", "eventstore status a"]);
    assert_eq!(field(&shell.run(&["status", "replica:a"]).succeeded().stdout, "hub"), "lmdb:one");
    shell.run(&["sync", "a"]).succeeded();
    let accepted = shell.run(&["sync", "a", "--hub", "lmdb:other", "--accept-history"]).succeeded();
    assert_eq!(
        (field(&accepted.stdout, "kept aside"), field(&accepted.stdout, "batches pending again")),
        ("lmdb:a/aside/1", "0")
    );
    assert_eq!(field(&shell.run(&["status", "a"]).succeeded().stdout, "hub"), "lmdb:other");
    shell.run(&["sync", "a"]).succeeded();
}

/// A console of `docs/sync.md`, and its hub.
struct Console<'shell> {
    shell: &'shell Shell,
    server: Option<Server>,
    port: Option<String>,
    code: i32,
}

impl Console<'_> {
    /// Runs one line, and gives what it prints: results first, and then what is told.
    fn run(&mut self, line: &str) -> String {
        if line == "kill %1" {
            self.server.take().unwrap().kill();
        } else if let Some(args) = line.strip_prefix("eventstore serve ").and_then(|args| args.strip_suffix(" &")) {
            let port = self.port.clone().unwrap_or_else(|| "0".to_owned());
            let args = args.replace(PORT, &port);
            let args: Vec<_> = args.split(' ').collect();
            let server = Server::start(self.shell, &args);
            self.port = Some(server.port().to_owned());
            self.server = Some(server);
        } else {
            let bin = Path::new(env!("CARGO_BIN_EXE_eventstore")).parent().unwrap();
            let path = std::env::join_paths(
                std::iter::once(bin.to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
            );
            let script = format!("(exit {}); {}", self.code, line.replace(PORT, self.port.as_deref().unwrap()));
            let mut command = Command::new("sh");
            command.args(["-c", &script]).current_dir(self.shell.directory.path()).env("PATH", path.unwrap());
            let output = command.output().unwrap();
            self.code = output.status.code().unwrap();
            return String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        }
        String::new()
    }
}

/// The port of the hub in the document.
const PORT: &str = "7081";

/// Whether a text is the expected one, in which `…` stands for anything.
fn is_as(text: &str, expected: &str) -> bool {
    let mut pieces = expected.split('…');
    let Some(mut rest) = text.strip_prefix(pieces.next().unwrap()) else { return false };
    for piece in pieces {
        let Some((_, behind)) = rest.split_once(piece).filter(|_| !piece.is_empty()) else { return false };
        rest = behind;
    }
    rest.is_empty()
}

/// Every console of the chapter but those of tools, in one go: what is written there happens.
#[test]
fn the_consoles_of_the_chapter_on_syncing_are_as_they_are_shown() {
    let shell = Shell::new();
    let document = include_str!("../docs/sync.md");
    let consoles = document.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut console = Console { shell: &shell, server: None, port: None, code: 0 };
    let mut commands = 0;
    for text in consoles.filter(|text| !text.contains("cargo run")) {
        for step in text.split("$ ").skip(1).filter(|step| !step.is_empty()) {
            // Within a line `$ ` does not stand.
            let (line, expected) = step.split_once('\n').unwrap();
            let printed = console.run(line);
            let expected = expected.replace(PORT, console.port.as_deref().unwrap());
            assert!(is_as(&printed, &expected), "{line}\nprinted:\n{printed}expected:\n{expected}");
            commands += 1;
        }
    }
    assert!(commands > 20, "{commands}");
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
        assert_eq!(field(&shell.run(&["status", name]).succeeded().stdout, "pending batches"), "0");
    }
}

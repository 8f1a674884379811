//! The `eventstore bench` command, run briefly as users run it: tests its output, not the speed of anything.

#![cfg(feature = "lmdb")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod signals;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A directory in which the command runs.
struct Shell {
    directory: TempDir,
}

impl Shell {
    fn new() -> Self {
        signals::restore();
        Shell { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventstore"));
        command.current_dir(self.directory.path()).env_remove("EVENTSTORE_URL").arg("bench").args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The output of a command that must succeed.
    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The command must fail with one error with this code and these words.
    #[track_caller]
    fn fail(&self, args: &[&str], code: &str, words: &str) {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("error[{code}]: ")) && last.contains(words), "{stderr}");
        assert_eq!(output.status.code(), Some(if code == "usage" { 2 } else { 1 }));
    }

    fn entries(&self) -> Vec<String> {
        entries(self.directory.path())
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn measurement<'a>(store: &'a Value, name: &str) -> &'a Value {
    let all = store["measurements"].as_array().unwrap();
    all.iter().find(|measurement| measurement["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn two_stores_are_compared_and_reported_and_nothing_else_stays() {
    let shell = Shell::new();
    let args = ["--store", "memory:", "--against", "lmdb:?read_ahead=false", "--quick", "--report", "out/report"];
    let table = shell.succeed(&args);
    let titles = table.lines().next().unwrap();
    assert!(titles.ends_with("memory:  lmdb:?read_ahead=false"), "{titles}");
    for row in ["full scan, by page", "64 appenders, 1 event at a time each", "batches of 1000, random ids", "opening"]
    {
        let line = table.lines().find(|line| line.starts_with(row)).expect(row);
        assert!(
            line.split_whitespace().next_back().unwrap().starts_with(|first: char| first.is_ascii_digit()),
            "{line}"
        );
    }
    assert!(table.contains("warning: --quick"), "{table}");
    assert_eq!(shell.entries(), ["out"]);

    let report = shell.path("out/report");
    let results: Value = serde_json::from_str(&fs::read_to_string(report.join("results.json")).unwrap()).unwrap();
    let [memory, lmdb] = results["stores"].as_array().unwrap().as_slice() else { panic!("two stores: {results}") };
    assert_eq!((&memory["backend"], &lmdb["backend"]), (&"memory".into(), &"lmdb".into()));
    assert_eq!(lmdb["options"]["read_ahead"], "false");
    for name in
        ["append/8x1", "append-random-ids/1x100", "scan/stream", "aggregate/13", "aggregate/34", "get/id", "wake"]
    {
        for store in [memory, lmdb] {
            assert!(measurement(store, name)["value"].is_number(), "{name}: {store}");
            assert_eq!(measurement(store, name)["slices"].as_array().unwrap().len(), 3);
        }
    }
    let latency = &measurement(lmdb, "append/64x1")["latency_us"];
    let percentiles = ["p50", "p90", "p99", "p99.9", "max"].map(|name| latency[name].as_f64().unwrap());
    assert!(percentiles.is_sorted() && percentiles[0] > 0.0, "{latency}");
    assert!(measurement(memory, "open").is_null(), "there is nothing to open");
    assert!(measurement(lmdb, "disk/appended")["value"].as_f64().unwrap() > 300.0, "{lmdb}");
    assert!(lmdb["disk"]["fdatasync_us"]["p50"].is_number());

    let page = fs::read_to_string(report.join("index.html")).unwrap();
    assert_is_well_formed(&page);
    assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="), "it needs nothing else");
    for words in
        ["read_ahead=false", "Build profile", "Seed", "Kernel", "Append and fdatasync", "Warning: --quick", "dark"]
    {
        assert!(page.contains(words), "{words:?} is not in the page");
    }
    let plots: Vec<_> = entries(&report).into_iter().filter(|name| name.ends_with(".svg")).collect();
    assert_eq!(page.matches("<svg ").count(), plots.len());
    for plot in
        ["append-by-concurrency.svg", "append-by-batch-size.svg", "append-latency-64.svg", "reads.svg", "disk.svg"]
    {
        assert!(plots.iter().any(|name| name == plot), "{plot} is not among {plots:?}");
        let svg = fs::read_to_string(report.join(plot)).unwrap();
        assert_is_well_formed(&svg);
        assert!(svg.contains("lmdb:?read_ahead=false"), "{plot} has a legend");
    }
}

/// Every element that is opened is closed, in order.
#[track_caller]
fn assert_is_well_formed(markup: &str) {
    const ARE_EMPTY: [&str; 1] = ["meta"];
    let mut open = Vec::new();
    for tag in markup.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').expect(tag);
        assert!(!text.contains('>') || open.last() == Some(&"style"), "unescaped: {text}");
        let name = tag.trim_start_matches('/').split_whitespace().next().unwrap();
        match tag.starts_with('/') {
            _ if tag.starts_with('!') || tag.ends_with('/') || ARE_EMPTY.contains(&name) => {}
            true => assert_eq!(open.pop(), Some(name)),
            false => open.push(name),
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn results_as_json_are_those_of_the_report() {
    let shell = Shell::new();
    let args =
        ["--store", "memory:", "--quick", "--events", "47", "--seed", "7", "--format", "json", "--report", "report"];
    let printed: Value = serde_json::from_str(&shell.succeed(&args)).unwrap();
    let written = fs::read_to_string(shell.path("report/results.json")).unwrap();
    assert_eq!(printed, serde_json::from_str::<Value>(&written).unwrap());
    let features = [
        ("lmdb", cfg!(feature = "lmdb")),
        ("rocksdb", cfg!(feature = "rocksdb")),
        ("fjall", cfg!(feature = "fjall")),
        ("sled", cfg!(feature = "sled")),
        ("postgres", cfg!(feature = "postgres")),
    ];
    let compiled = features.into_iter().filter_map(|(name, is_there)| is_there.then_some(name));
    assert_eq!(printed["program"]["backends"], Value::from_iter(["memory"].into_iter().chain(compiled)));
    assert_eq!((&printed["settings"]["events"], &printed["settings"]["seed"]), (&47.into(), &7.into()));
}

#[test]
fn the_same_url_twice_is_two_stores() {
    let shell = Shell::new();
    let table = shell.succeed(&["--store", "memory:", "--against", "memory:", "--quick"]);
    assert!(table.lines().next().unwrap().ends_with("memory:  memory: (2)"), "{table}");
}

#[test]
fn a_directory_is_used_only_if_it_is_missing_or_empty() {
    let shell = Shell::new();
    fs::create_dir_all(shell.path("full")).unwrap();
    fs::write(shell.path("full/mine"), "mine").unwrap();
    fs::create_dir(shell.path("empty")).unwrap();
    shell.fail(&["--store", "lmdb:./full", "--quick"], "cannot_open", "bench makes stores of its own");
    shell.fail(
        &["--store", "lmdb:", "--against", "lmdb:./full", "--quick"],
        "cannot_open",
        "bench makes stores of its own",
    );
    shell.fail(&["--store", "memory:", "--report", "full", "--quick"], "cannot_open", "missing or empty");
    shell.succeed(&["--store", "lmdb:./empty", "--against", "lmdb:./a/b", "--quick"]);
    assert_eq!(shell.entries(), ["empty", "full"]);
    assert_eq!(entries(&shell.path("full")), ["mine"]);
    assert_eq!(entries(&shell.path("empty")), Vec::<String>::new());
}

#[test]
fn what_cannot_be_measured_is_told_and_nothing_stays() {
    let shell = Shell::new();
    shell.fail(&["--store", "lmdb:?nonsense=1", "--quick"], "invalid_option", "nonsense");
    shell.fail(&["--store", "nope:", "--quick"], "unsupported", "nope");
    for address in ["http://127.0.0.1:9", "unix:./socket", "gosync+http://127.0.0.1:9/sync"] {
        shell.fail(&["--store", address, "--quick"], "unsupported", "names a server");
    }
    shell.fail(&["--store", "memory:./data", "--quick"], "invalid_option", "memory:");
    shell.fail(
        &["--store", "lmdb:./a/b?map_size=1MiB&max_map_size=1MiB&index_events=100", "--quick"],
        "full",
        "max_map_size",
    );
    for args in [["--seconds", "0"], ["--seconds", "x"], ["--events", "0"], ["--format", "xml"]] {
        shell.fail(&args, "usage", "try 'eventstore --help'");
    }
    assert_eq!(shell.entries(), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_in_good_order_and_nothing_stays() {
    let shell = Shell::new();
    let mut child = shell.command(&["--store", "lmdb:./a/b", "--quick", "--seconds", "3600"]).spawn().unwrap();
    while !shell.path("a/b").exists() || entries(&shell.path("a/b")).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    signals::send(&child, 2);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(shell.entries(), Vec::<String>::new());
}

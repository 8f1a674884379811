//! How the `eventstore` command ends: on its own, without a reader, and by signals.

#![cfg(all(unix, feature = "lmdb"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod signals;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A directory in which the command runs, with its store in `store`.
struct Shell {
    directory: TempDir,
}

impl Shell {
    fn new() -> Self {
        signals::restore();
        Shell { directory: tempfile::tempdir().unwrap() }
    }

    /// A shell with a store of these events.
    fn with_events(events: impl IntoIterator<Item = u64>) -> Self {
        let shell = Shell::new();
        let lines: String = events.into_iter().map(line).collect();
        fs::write(shell.path("events.jsonl"), lines).unwrap();
        assert_eq!(shell.run(&["import", "events.jsonl"]).status.code(), Some(0));
        shell
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        self.prepare(Command::new(env!("CARGO_BIN_EXE_eventstore")), args)
    }

    /// The command, started by a shell that runs a script first.
    fn after(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{script}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_eventstore")]);
        self.prepare(command, args)
    }

    /// Runs it with standard output closed.
    fn without_stdout(&self, args: &[&str]) -> Command {
        self.after("exec >&-", args)
    }

    fn prepare(&self, mut command: Command, args: &[&str]) -> Command {
        command.current_dir(self.directory.path()).env("EVENTSTORE_URL", "lmdb:./store").args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it with a pipe whose reader left before it started.
    fn without_reader(&self, args: &[&str]) -> Output {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.command(args).stdout(writer).output().unwrap()
    }

    /// Runs it with its output on a full device.
    fn on_a_full_device(&self, args: &[&str]) -> Output {
        let full = File::options().write(true).open("/dev/full").unwrap();
        self.command(args).stdout(full).output().unwrap()
    }

    fn latest(&self, store: &str) -> String {
        let latest = self.run(&["--store", store, "latest"]);
        assert!(latest.status.success(), "{latest:?}");
        String::from_utf8(latest.stdout).unwrap().trim().to_owned()
    }

    /// Damages the data of the first event that contains a text.
    fn damage(&self, text: &str) {
        let path = self.path("store/log/0000000001-0.seg");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

fn line(number: u64) -> String {
    format!("{{\"id\":\"e{number}\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data\":\"payload-{number}\"}}\n")
}

#[track_caller]
fn ended_quietly(output: &Output) {
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

/// The command must have failed with one line on stderr.
#[track_caller]
fn failed(output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error[") && stderr.contains(words), "{words:?} is not in {stderr}");
}

/// Commands that only print.
const PRINTING: &[&[&str]] = &[
    &["load"],
    &["load", "--format", "table"],
    &["get", "e1"],
    &["latest"],
    &["stats"],
    &["digest"],
    &["--help"],
    &["demo"],
    #[cfg(feature = "sync")]
    &["demo", "sync"],
];

/// Commands that write or verify, on an intact store.
const WORKING: &[&[&str]] = &[
    &["verify"],
    &["import", "events.jsonl"],
    &["append", "events.jsonl"],
    &["gc"],
    &["backup", "backup"],
    &["--store", "lmdb:./restored", "restore", "backup"],
    &["copy", "--to", "lmdb:./copy"],
    &["repair"],
];

#[test]
fn a_reader_that_has_left_ends_what_only_prints_quietly() {
    let shell = Shell::with_events(1..4);
    for args in PRINTING {
        ended_quietly(&shell.without_reader(args));
    }
    failed(&shell.without_reader(&["get", "nobody"]), "nobody");
}

#[test]
fn a_reader_that_has_left_keeps_no_work_from_its_end() {
    let shell = Shell::with_events(1..4);
    fs::write(shell.path("events.jsonl"), (1..6).map(line).collect::<String>()).unwrap();
    for args in WORKING {
        ended_quietly(&shell.without_reader(args));
    }
    for store in ["lmdb:./store", "lmdb:./backup", "lmdb:./restored", "lmdb:./copy"] {
        assert_eq!(shell.latest(store), "5", "{store}");
    }
    // The answers to many appends are written one by one.
    fs::write(shell.path("more.jsonl"), (6..2000).map(line).collect::<String>()).unwrap();
    ended_quietly(&shell.without_reader(&["append", "--concurrency", "8", "more.jsonl"]));
    assert_eq!(shell.latest("lmdb:./store"), "1999");
}

#[test]
fn a_reader_that_has_left_hides_no_failure() {
    let shell = Shell::with_events(1..4);
    let other = line(7) + &line(2).replace("payload", "other");
    fs::write(shell.path("other.jsonl"), other).unwrap();
    failed(&shell.without_reader(&["append", "other.jsonl"]), "line 2: ");
    shell.damage("payload-2");
    assert_eq!(shell.without_reader(&["verify"]).status.code(), Some(1));
    failed(&shell.without_reader(&["copy", "--to", "lmdb:./copy"]), "version 2");
}

#[cfg(target_os = "linux")]
#[test]
fn without_standard_output_nothing_is_done() {
    let shell = Shell::with_events(1..4);
    fs::write(shell.path("events.jsonl"), (1..6).map(line).collect::<String>()).unwrap();
    for args in [PRINTING, WORKING].concat() {
        failed(&shell.without_stdout(args).output().unwrap(), "standard output is closed");
    }
    assert_eq!(shell.latest("lmdb:./store"), "3");
    for name in ["backup", "copy", "restored"] {
        assert!(!shell.path(name).exists(), "{name}");
    }
    // Redirecting output to nowhere is not an error, whichever way it was opened.
    for script in ["exec >/dev/null", "exec 1<>/dev/null"] {
        ended_quietly(&shell.after(script, &["latest"]).output().unwrap());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_an_error_of_every_command() {
    let shell = Shell::with_events(1..4);
    fs::write(shell.path("events.jsonl"), (1..6).map(line).collect::<String>()).unwrap();
    for args in [PRINTING, WORKING].concat() {
        failed(&shell.on_a_full_device(args), "cannot write to standard output");
    }
    // The work was done.
    for store in ["lmdb:./store", "lmdb:./backup", "lmdb:./restored", "lmdb:./copy"] {
        assert_eq!(shell.latest(store), "5", "{store}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_append_ends_when_its_answers_cannot_be_written_and_what_was_stored_is_stored() {
    let shell = Shell::new();
    fs::write(shell.path("events.jsonl"), (1..100).map(line).collect::<String>()).unwrap();
    let done = shell.on_a_full_device(&["append", "events.jsonl"]);
    failed(&done, "append it again");
    assert_eq!(shell.latest("lmdb:./store"), "1");
}

// Signals.

const HANGUP: i32 = 1;
const INTERRUPT: i32 = 2;
const TERMINATE: i32 = 15;
const SIGNALS: [i32; 3] = [HANGUP, INTERRUPT, TERMINATE];

/// Checks that it ended in an orderly way and reports the signal.
#[track_caller]
fn ended_by(child: Child, signal: i32) -> Output {
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.signal(), output.status.code()), (None, Some(128 + signal)), "{output:?}");
    output
}

fn lines_of(child: &mut Child) -> BufReader<ChildStdout> {
    BufReader::new(child.stdout.take().unwrap())
}

fn read_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

#[test]
fn a_signal_ends_an_append_that_waits_for_its_input() {
    for signal in SIGNALS {
        let shell = Shell::new();
        let mut child = shell.command(&["append"]).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), lines_of(&mut child));
        stdin.write_all(line(1).as_bytes()).unwrap();
        assert!(read_line(&mut stdout).contains("\"version\":1"));
        signals::send(&child, signal);
        let output = ended_by(child, signal);
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("interrupted: "), "{output:?}");
        assert_eq!(shell.latest("lmdb:./store"), "1");
    }
}

#[test]
fn a_signal_ends_what_follows_and_what_waits_for_its_reader() {
    let shell = Shell::with_events(1..4000);
    for signal in SIGNALS {
        for args in [&["load", "--follow", "--since", "3998"][..], &["load"], &["load", "--follow"]] {
            let mut child = shell.command(args).spawn().unwrap();
            let mut stdout = lines_of(&mut child);
            assert!(read_line(&mut stdout).contains("\"id\""));
            signals::send(&child, signal);
            let output = ended_by(child, signal);
            assert!(output.stderr.is_empty(), "{output:?}");
        }
    }
}

/// In a container, the first process is not ended by a signal without a handler.
#[cfg(target_os = "linux")]
#[test]
fn every_signal_is_listened_for_by_a_command_that_only_prints() {
    let shell = Shell::with_events(1..4000);
    let mut child = shell.command(&["load"]).spawn().unwrap();
    let mut stdout = lines_of(&mut child);
    read_line(&mut stdout);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    for signal in SIGNALS {
        assert_ne!(caught & 1 << (signal - 1), 0, "signal {signal}");
    }
    signals::send(&child, TERMINATE);
    ended_by(child, TERMINATE);
}

#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let shell = Shell::new();
    let mut child = shell.after("trap '' HUP", &["append"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), lines_of(&mut child));
    for number in 1..4 {
        stdin.write_all(line(number).as_bytes()).unwrap();
        assert!(read_line(&mut stdout).contains(&format!("\"version\":{number}")));
        signals::send(&child, HANGUP);
    }
    signals::send(&child, TERMINATE);
    ended_by(child, TERMINATE);
}

#[test]
fn a_signal_leaves_no_half_backup() {
    let shell = Shell::with_events(1..100_000);
    for signal in SIGNALS {
        let backup = shell.path("backup");
        // It may finish before the signal arrives: then try again.
        let ended = (0..50).find_map(|_| {
            let mut child = shell.command(&["backup", "backup"]).spawn().unwrap();
            let mut has_ended = false;
            while !backup.join("log").exists() && !has_ended {
                std::thread::yield_now();
                has_ended = child.try_wait().unwrap().is_some();
            }
            if !has_ended {
                signals::send(&child, signal);
            }
            let output = child.wait_with_output().unwrap();
            let is_done = output.status.success();
            if is_done {
                fs::remove_dir_all(&backup).unwrap();
            }
            (!is_done).then_some(output)
        });
        assert_eq!(ended.expect("one was interrupted").status.code(), Some(128 + signal));
        assert_eq!(fs::read_dir(&backup).unwrap().count(), 0, "nothing is left");
    }
}

/// Rebuilding an index takes as long as reading all events.
#[test]
fn a_signal_ends_an_opening_that_takes_long() {
    let shell = Shell::with_events(1..100_000);
    let index = shell.path("store/index");
    for args in [&["gc"][..], &["append", "events.jsonl"]] {
        // It may have opened before the signal arrives: then try again.
        let ended = (0..50).find_map(|_| {
            fs::remove_dir_all(&index).unwrap();
            let mut child = shell.command(args).spawn().unwrap();
            let mut has_ended = false;
            while !index.join("data.mdb").exists() && !has_ended {
                std::thread::yield_now();
                has_ended = child.try_wait().unwrap().is_some();
            }
            if !has_ended {
                signals::send(&child, TERMINATE);
            }
            let output = child.wait_with_output().unwrap();
            // A store that is already open reports the interruption.
            (!output.status.success() && output.stderr.is_empty()).then_some(output)
        });
        let ended = ended.expect("one was ended while it opened the store");
        assert_eq!((ended.status.signal(), ended.status.code()), (None, Some(128 + TERMINATE)), "{args:?}: {ended:?}");
    }
    assert_eq!(shell.latest("lmdb:./store"), "99999");
    assert!(shell.run(&["verify"]).status.success());
}

// Statistics.

#[test]
fn statistics_can_be_read_by_a_program() {
    let shell = Shell::with_events(1..4);
    let stats: Value = serde_json::from_slice(&shell.run(&["stats", "--json"]).stdout).unwrap();
    assert_eq!(stats["backend"], "lmdb");
    assert_eq!((stats["latest_version"].as_u64(), stats["aggregates"].as_u64()), (Some(3), Some(1)));
    assert!(stats["bytes_on_disk"].as_u64().unwrap() > 1000);
    assert!(stats["fenced"].is_null());
    let id = stats["store_id"].as_str().unwrap();
    assert!(stats["engine"]["map_size"].as_u64().unwrap() >= 1 << 20);
    let names: Vec<_> = stats.as_object().unwrap().keys().cloned().collect();
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    for name in &names {
        assert!(document.contains(&format!("| `{name}` |")), "{name} is documented");
    }
    // The text form has the same values.
    let text = String::from_utf8(shell.run(&["stats"]).stdout).unwrap();
    for wanted in ["backend: lmdb", "latest_version: 3", "aggregates: 1", "fenced: no", &format!("store_id: {id}")] {
        assert!(text.lines().any(|line| line == wanted), "{wanted:?} is not in:\n{text}");
    }
    for process in ["queued_requests", "commits", "events_written", "largest_group"] {
        assert!(!text.contains(process) && !names.iter().any(|name| name == process), "{process} is not the store's");
    }
    shell.damage("payload-2");
    let damaged: Value = serde_json::from_slice(&shell.run(&["stats", "--json"]).stdout).unwrap();
    assert_eq!(damaged["latest_version"].as_u64(), Some(3), "{damaged}");
}

// Texts.

#[test]
fn an_address_of_something_else_is_told_which_engines_there_are() {
    let shell = Shell::new();
    for address in
        ["nats://localhost:4222", "mysql://me@host/db", "ftp://example.org", "esdb:data", "C:\\data", "LMDB:./x"]
    {
        for args in [&["latest"][..], &["append"], &["repair"], &["bench", "--quick"], &["restore", "backup"]] {
            fs::create_dir_all(shell.path("backup")).unwrap();
            let output = shell.command(args).env("EVENTSTORE_URL", address).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            let told = String::from_utf8_lossy(&output.stderr);
            let told = told.lines().last().unwrap(); // `bench` prints warnings before
            assert!(told.starts_with("error[unsupported]: ") && told.contains("is not a known engine"), "{told}");
            for engine in ["memory", "lmdb", "rocksdb", "fjall", "sled"] {
                assert!(told.contains(engine), "{engine} is not in {told}");
            }
            assert!(!told.contains("relative path"), "{told}");
        }
    }
    // For an existing engine, the error explains how to write the path.
    let output = shell.command(&["latest"]).env("EVENTSTORE_URL", "lmdb://data").output().unwrap();
    failed(&output, "lmdb:./data");
}

#[test]
fn characters_that_turn_or_hide_text_are_shown_as_what_they_are() {
    let shell = Shell::new();
    let event =
        "{\"id\":\"e1\",\"type\":\"gp\u{202e}4pm\",\"aggregate_id\":\"漢字\u{2066}\",\"data\":\"\u{200b}\u{e0041}\"}";
    fs::write(shell.path("events.jsonl"), event).unwrap();
    ended_quietly(&shell.run(&["append", "events.jsonl"]));
    let table = String::from_utf8(shell.run(&["load", "--format", "table"]).stdout).unwrap();
    for shown in ["gp\\u{202e}4pm", "漢字\\u{2066}", "\\u{200b}\\u{e0041}"] {
        assert!(table.contains(shown), "{shown} is not in {table}");
    }
    let error = shell.run(&["get", "\u{202e}x"]);
    failed(&error, "\\u{202e}x");
    // The output for programs is unchanged.
    let json = String::from_utf8(shell.run(&["load"]).stdout).unwrap();
    assert!(json.contains("gp\u{202e}4pm"), "{json}");
}

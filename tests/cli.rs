//! The `eventstore` command, run as users run it.

#![cfg(feature = "lmdb")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod shell;
mod signals;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};

use serde_json::Value;

use shell::{Done, Shell, orders};

fn orders_text() -> String {
    fs::read_to_string(orders()).unwrap()
}

impl Shell {
    /// Starts the command with access to its stdin and the lines of its stdout.
    fn converse(&self, args: &[&str]) -> (Child, ChildStdin, BufReader<ChildStdout>) {
        let mut child = self.spawn(args);
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        (child, stdin, BufReader::new(stdout))
    }
}

fn text(event: &Value, field: &str) -> String {
    event[field].as_str().expect(field).to_owned()
}

/// One line of input.
fn line(id: &str, aggregate_id: &str, data: &str) -> String {
    let [id, aggregate_id] = [id, aggregate_id].map(|text| Value::from(text).to_string());
    format!("{{\"id\":{id},\"type\":\"T\",\"aggregate_id\":{aggregate_id},\"data\":{data}}}\n")
}

/// The lines of `load` without the fields that it adds.
fn without_places(loaded: &str) -> String {
    let mut lines = String::new();
    for line in loaded.lines() {
        lines.push_str(&line[..line.rfind(",\"version\":").expect(line)]);
        lines.push_str("}\n");
    }
    lines
}

// The main uses of the command.

#[test]
fn the_demo_works_and_leaves_nothing_behind() {
    let shell = Shell::new();
    let mut command = shell.command(&["demo"]);
    let tmp = shell.path("tmp");
    fs::create_dir(&tmp).unwrap();
    let output = command.env("TMPDIR", &tmp).output().unwrap();
    assert!(output.status.success());
    let shown = String::from_utf8(output.stdout).unwrap();
    for words in [
        "Placed has version 1, revision 1\n",
        "Shipped has version 3, revision 3",
        "error[version_conflict]: ",
        "error[deadline_exceeded]: ",
        "refused: the order is shipped",
        "Placed has version 1, revision 1, as it was stored before",
        "the subscriber received version 6",
    ] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    assert!(!shell.path("store").exists());
}

#[cfg(feature = "sync")]
#[test]
fn the_demo_of_syncing_ends_with_equal_digests_and_leaves_nothing_behind() {
    let shell = Shell::new();
    let mut command = shell.command(&["demo", "sync"]);
    let tmp = shell.path("tmp");
    fs::create_dir(&tmp).unwrap();
    let output = command.env("TMPDIR", &tmp).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap();
    for words in [
        "phone: 6 apples sold, 4 left; pending\n",
        "laptop: 5 apples sold, 5 left; pending\n",
        "pending on the phone: 3 batches\n",
        "batch 1 waits for a decision: 6 apples sold\n",
        "what it had not seen: 5 apples sold\n",
        "still possible: 3 pears sold; confirmed\n",
        "rejected: 6 apples sold, because 5 are left;",
        "of 7 writes 6 are at the hub once, and 1 is rejected with a reason\n",
    ] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    assert_eq!(shown.contains("offline: the hub cannot be reached"), cfg!(feature = "serve"));
    let places: Vec<_> = shown.lines().filter_map(|line| line.split_once("  version 6, digest ")).collect();
    assert_eq!(places.len(), 3, "{shown}");
    assert!(places.iter().all(|(_, digest)| digest.len() == 64 && *digest == places[0].1), "{shown}");
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    assert!(!shell.path("store").exists());
}

#[test]
fn an_import_gives_back_its_lines_and_may_be_repeated() {
    let shell = Shell::new();
    let file = orders();
    let file = file.to_str().unwrap();
    let first = shell.run(&["import", file]).succeeded();
    assert!(first.stdout.starts_with("72 stored, 0 already there, in "), "{}", first.stdout);
    let second = shell.run(&["import", file]).succeeded();
    assert!(second.stdout.starts_with("0 stored, 72 already there, in "), "{}", second.stdout);
    assert_eq!(shell.run(&["latest"]).succeeded().stdout, "72\n");
    assert_eq!(without_places(&shell.run(&["load"]).succeeded().stdout), orders_text());
}

#[test]
fn compressed_input_is_read_whatever_its_name() {
    let text = orders_text();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(text.as_bytes(), 3).unwrap();
    for (name, content) in [("a.jsonl.gz", &gzip), ("a.jsonl.zst", &zstd), ("gzip", &gzip), ("zstd", &zstd)] {
        let shell = Shell::new();
        shell.write(name, content);
        assert!(shell.run(&["import", name]).succeeded().stdout.starts_with("72 stored, "), "{name}");
        assert_eq!(without_places(&shell.run(&["load"]).stdout), text);
    }
    let shell = Shell::new();
    assert!(shell.run_with(&["import", "-"], &zstd).succeeded().stdout.starts_with("72 stored, "));
}

#[test]
fn a_copy_has_the_same_digest() {
    let shell = Shell::new();
    shell.run(&["append"]).succeeded(); // an empty input creates the store
    let empty = shell.run(&["digest"]).succeeded().stdout;
    assert_eq!(empty, format!("{}\n", "0".repeat(64)));
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let digest = shell.run(&["digest"]).succeeded().stdout;
    assert_ne!(digest, empty);
    let loaded = shell.run(&["load"]).succeeded().stdout;
    shell.run_with(&["--store", "lmdb:./copy", "import", "-"], &loaded).succeeded();
    assert_eq!(shell.run(&["--store", "lmdb:./copy", "digest"]).succeeded().stdout, digest);
    shell.run_with(&["--store", "lmdb:./copy", "append"], line("one more", "a", "1")).succeeded();
    assert_ne!(shell.run(&["--store", "lmdb:./copy", "digest"]).succeeded().stdout, digest);
}

#[test]
fn each_append_is_answered_with_its_place_when_it_arrives() {
    let shell = Shell::new();
    let (child, mut stdin, mut stdout) = shell.converse(&["append"]);
    let mut answer = String::new();
    for (index, aggregate_id) in ["a", "b", "a"].into_iter().enumerate() {
        // The next line is written only after the answer: stdin stays open, and the answer must not depend on more
        // input.
        stdin.write_all(line(&format!("e{index}"), aggregate_id, "1").as_bytes()).unwrap();
        stdout.read_line(&mut answer).unwrap();
    }
    assert_eq!(
        answer,
        "{\"id\":\"e0\",\"version\":1,\"revision\":1}\n\
         {\"id\":\"e1\",\"version\":2,\"revision\":1}\n\
         {\"id\":\"e2\",\"version\":3,\"revision\":2}\n"
    );
    // While it runs, it has the store locked.
    shell.run(&["latest"]).failed("locked", &[]);
    drop(stdin);
    Done::of(child).succeeded();
    shell.holds(&["e0", "e1", "e2"]);
}

#[test]
fn an_append_may_be_repeated() {
    let shell = Shell::new();
    let lines = [line("e1", "a", "1"), line("e2", "a", "2")].concat();
    let first = shell.run_with(&["append"], &lines).succeeded();
    assert_eq!(shell.run_with(&["append"], &lines).succeeded().stdout, first.stdout);
    assert_eq!(shell.run_with(&["append", "--expect", "none"], &lines).succeeded().stdout, first.stdout);
    shell.holds(&["e1", "e2"]);
}

#[test]
fn appends_in_flight_are_all_answered_with_their_places() {
    let shell = Shell::new();
    let done = shell.run(&["append", "--concurrency", "64", orders().to_str().unwrap()]).succeeded();
    let mut answers = done.events();
    answers.sort_by_key(|answer| answer["version"].as_u64());
    let loaded = shell.run(&["load"]).succeeded().events();
    assert_eq!(answers.len(), 72);
    for (answer, event) in answers.iter().zip(&loaded) {
        for field in ["id", "version", "revision"] {
            assert_eq!(answer[field], event[field]);
        }
    }
}

#[test]
fn batches_are_atomic_and_the_rest_comes_at_the_end() {
    let shell = Shell::new();
    let lines: Vec<_> = (1..=5).map(|number| line(&format!("e{number}"), "a", "1")).collect();
    let done = shell.run_with(&["append", "--batch", "2"], lines.concat()).succeeded();
    assert_eq!(done.stdout.lines().count(), 5);
    // The second event of the new batch has a used id, so the first one is not stored either.
    let taken = [line("e6", "a", "1"), line("e1", "a", "other")].concat().replace("other", "2");
    shell.run_with(&["append", "--batch", "2"], taken).failed("duplicate_event", &["line 2: ", "\"e1\"", "version 1"]);
    shell.holds(&["e1", "e2", "e3", "e4", "e5"]);
}

#[test]
fn conditions_hold_or_nothing_is_written() {
    let shell = Shell::new();
    let append = |expect: &str, id: &str| shell.run_with(&["append", "--expect", expect], line(id, "a", "1"));
    append("exists", "x").failed("version_conflict", &["line 1: ", "exists", "no events"]);
    append("none", "e1").succeeded();
    append("none", "x").failed("version_conflict", &["\"a\"", "revision 1"]);
    append("revision=1", "e2").succeeded();
    append("revision=1", "x").failed("version_conflict", &["revision 2"]);
    append("latest=2", "e3").succeeded();
    append("latest=2", "x").failed("version_conflict", &["version 3"]);
    append("exists", "e4").succeeded();
    append("any", "e5").succeeded();
    shell.holds(&["e1", "e2", "e3", "e4", "e5"]);
}

#[test]
fn a_deadline_that_has_passed_writes_nothing() {
    let shell = Shell::new();
    let args = ["append", "--timeout", "0ms"];
    shell.run_with(&args, line("e1", "a", "1")).failed("deadline_exceeded", &["line 1: "]);
    shell.run_with(&["append", "--timeout", "1h"], line("e2", "a", "1")).succeeded();
    shell.holds(&["e2"]);
}

#[test]
fn the_durability_is_for_the_user_to_choose() {
    let shell = Shell::new();
    shell.run_with(&["append", "--durability", "buffered"], line("e1", "a", "1")).succeeded();
    shell.run_with(&["append", "--durability", "sync"], line("e2", "a", "1")).succeeded();
    shell.run_with(&["append", "--durability", "maybe"], "").failed("invalid_option", &["sync, buffered"]);
    shell.holds(&["e1", "e2"]);
}

#[test]
fn loads_select_what_was_asked_for() {
    let shell = Shell::new();
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let all = shell.run(&["load"]).succeeded().events();
    let load = |args: &[&str]| shell.run(&[&["load"], args].concat()).succeeded().events();
    let none: [Value; 0] = [];

    assert_eq!(load(&["--since", "70"]), all[70..]);
    assert_eq!(load(&["--since", "72"]), none);
    assert_eq!(load(&["--since", "18446744073709551615"]), none);
    assert_eq!(load(&["--limit", "3"]), all[..3]);
    assert_eq!(load(&["--limit", "0"]), none);
    let backward: Vec<_> = all.iter().rev().take(10).cloned().collect();
    assert_eq!(load(&["--backward", "--limit", "10"]), backward);
    let aggregate: Vec<_> = all.iter().filter(|event| event["aggregate_id"] == "order-1003").cloned().collect();
    assert_eq!(aggregate.len(), 2);
    assert_eq!(load(&["--aggregate", "order-1003"]), aggregate);
    assert_eq!(load(&["--aggregate", "order-1003", "--backward", "--limit", "1"]), aggregate[1..]);
    assert_eq!(load(&["--aggregate", "nobody"]), none);
    assert_eq!(load(&["--follow", "--since", "60", "--limit", "12"]), all[60..]);

    let event = &all[41];
    let got = shell.run(&["get", event["id"].as_str().unwrap()]).succeeded();
    assert_eq!(got.events(), std::slice::from_ref(event));
    shell.run(&["get", "nobody"]).failed("event_not_found", &["\"nobody\""]);
}

#[test]
fn recorded_at_is_rfc_3339_with_microseconds() {
    let shell = Shell::new();
    let before = std::time::SystemTime::now();
    shell.run_with(&["append"], line("e1", "a", "1")).succeeded();
    let recorded_at = text(&shell.run(&["load"]).events()[0], "recorded_at");
    assert_eq!(recorded_at.len(), "2025-01-01T00:00:00.000000Z".len());
    let time = humantime::parse_rfc3339(&recorded_at).unwrap();
    let slack = std::time::Duration::from_micros(1); // it is truncated to microseconds
    assert!(time + slack >= before && time <= std::time::SystemTime::now());
}

#[test]
fn tables_are_for_people() {
    let shell = Shell::new();
    let lines = [line("e1", "a", "\"plain\""), line("e2", "\u{1b}[31m", "\"\u{7f}\"")].concat();
    shell.run_with(&["append"], lines).succeeded();
    let table = shell.run(&["load", "--format", "table"]).succeeded().stdout;
    let rows: Vec<_> = table.lines().collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[0].starts_with("VERSION  REVISION  RECORDED_AT "));
    assert!(rows[1].ends_with("  e1  \"plain\""));
    assert!(rows[2].contains("\\u{1b}[31m") && !table.contains('\u{1b}') && !table.contains('\u{7f}'));
    let empty = shell.run(&["load", "--format", "table", "--since", "2"]).succeeded().stdout;
    assert_eq!(empty.lines().count(), 1, "the titles alone");
}

#[test]
fn stats_and_gc_report_by_name() {
    let shell = Shell::new();
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let stats = shell.run(&["stats"]).succeeded().stdout;
    for wanted in ["backend: lmdb", "latest_version: 72", "fenced: no"] {
        assert!(stats.lines().any(|line| line == wanted), "{wanted:?} is not in:\n{stats}");
    }
    let report = shell.run(&["gc"]).succeeded().stdout;
    assert!(report.contains("bytes_before: ") && report.contains("bytes_after: "), "{report}");
    assert_eq!(without_places(&shell.run(&["load"]).succeeded().stdout), orders_text());
}

#[test]
fn the_store_is_named_by_option_environment_or_default() {
    let shell = Shell::new();
    shell.run_with(&["append", "--store", "lmdb:./option"], line("e1", "a", "1")).succeeded();
    assert!(shell.path("option").is_dir() && !shell.path("store").exists());
    shell.run_with(&["append"], line("e1", "a", "1")).succeeded();
    assert!(shell.path("store").is_dir());
    let mut command = shell.command(&["append"]);
    assert!(command.env_remove("EVENTSTORE_URL").output().unwrap().status.success());
    assert!(shell.path("eventstore-data").is_dir());
    let memory = shell.run_with(&["--store", "memory:", "append"], line("e1", "a", "1")).succeeded();
    assert_eq!(memory.stdout, "{\"id\":\"e1\",\"version\":1,\"revision\":1}\n");
}

#[test]
fn help_and_version_go_to_stdout() {
    let shell = Shell::new();
    for args in [&["--help"][..], &["append", "--help"], &["load", "--help"], &["help", "import"], &["bench", "--help"]]
    {
        assert!(shell.run(args).succeeded().stdout.contains("Examples:"), "{args:?}");
    }
    let version = shell.run(&["--version"]).succeeded().stdout;
    assert_eq!(version, format!("eventstore {}\n", env!("CARGO_PKG_VERSION")));
}

// Readers that leave, users that interrupt, processes that are killed.

/// More lines than a pipe can hold.
fn many_lines() -> String {
    (1..=4000).map(|number| line(&format!("e{number}"), "a", &format!("\"{}\"", "x".repeat(200)))).collect()
}

#[test]
fn a_reader_that_leaves_ends_a_load_quietly() {
    let shell = Shell::new();
    shell.run_with(&["import", "-"], many_lines()).succeeded();
    for format in ["jsonl", "table"] {
        let (child, _stdin, mut stdout) = shell.converse(&["load", "--format", format]);
        stdout.read_line(&mut String::new()).unwrap();
        drop(stdout);
        Done::of(child).succeeded();
    }
    assert_eq!(shell.run(&["latest"]).succeeded().stdout, "4000\n");
}

#[cfg(unix)]
#[test]
fn an_interrupted_append_has_stored_what_it_answered() {
    let shell = Shell::new();
    let (child, mut stdin, mut stdout) = shell.converse(&["append"]);
    stdin.write_all(line("e1", "a", "1").as_bytes()).unwrap();
    stdout.read_line(&mut String::new()).unwrap();
    signals::send(&child, 2);
    let done = Done::of(child);
    assert_eq!(done.code, Some(130));
    assert!(done.stderr.starts_with("interrupted: "), "{}", done.stderr);
    shell.holds(&["e1"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_import_tells_what_it_stored_and_goes_on_when_repeated() {
    let shell = Shell::new();
    let (child, mut stdin, stdout) = shell.converse(&["import", "-"]);
    // Stdin stays open, so the import never finishes. It handles Ctrl-C before it reads: when more than a pipe can hold
    // is written, the handler is set.
    stdin.write_all(many_lines().as_bytes()).unwrap();
    signals::send(&child, 2);
    let mut counts = String::new();
    BufReader::new(stdout).read_to_string(&mut counts).unwrap();
    let done = Done::of(child);
    assert_eq!(done.code, Some(130));
    assert!(done.stderr.starts_with("interrupted: "), "{}", done.stderr);
    let stored = counts.split(' ').next().unwrap().replace(',', "");
    assert_ne!(stored, "0");
    assert_eq!(shell.run(&["latest"]).succeeded().stdout.trim(), stored);

    shell.run_with(&["import", "-"], many_lines()).succeeded();
    assert_eq!(without_places(&shell.run(&["load"]).stdout).replace(",\"metadata\":{}", ""), many_lines());
}

#[cfg(unix)]
#[test]
fn following_prints_what_is_there_at_once_and_ends_quietly_with_an_interrupt() {
    let shell = Shell::new();
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let (child, _stdin, mut stdout) = shell.converse(&["load", "--follow", "--since", "70"]);
    for version in [71, 72] {
        let mut event = String::new();
        stdout.read_line(&mut event).unwrap();
        assert!(event.contains(&format!("\"version\":{version},")), "{event}");
    }
    signals::send(&child, 2);
    let done = Done::of(child);
    assert_eq!((done.code, done.stderr.as_str()), (Some(130), ""));
}

#[test]
fn a_killed_append_has_stored_what_it_answered() {
    let shell = Shell::new();
    let (mut child, mut stdin, mut stdout) = shell.converse(&["append", "--concurrency", "64"]);
    let writer = std::thread::spawn(move || stdin.write_all(many_lines().as_bytes()).ok());
    let mut answers = String::new();
    for _ in 0..100 {
        stdout.read_line(&mut answers).unwrap();
    }
    child.kill().unwrap();
    stdout.read_to_string(&mut answers).unwrap();
    child.wait().unwrap();
    writer.join().unwrap();

    let loaded = shell.run(&["load"]).succeeded().events();
    for (index, event) in loaded.iter().enumerate() {
        assert_eq!(event["version"], index as u64 + 1, "gapless");
    }
    for answer in answers.lines().filter(|line| line.ends_with('}')) {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let version = answer["version"].as_u64().unwrap() as usize;
        assert_eq!(loaded.get(version - 1).map(|event| &event["id"]), Some(&answer["id"]));
    }
}

// Invalid input gives a clear error, and nothing is lost.

#[test]
fn a_bad_line_is_named_and_what_comes_before_it_is_stored() {
    let bad: &[(&[u8], &str, &[&str])] = &[
        (b"{\"id\":", "malformed_input", &["line 3: "]),
        (b"not JSON", "malformed_input", &["not a JSON object"]),
        (b"[1]", "malformed_input", &["not a JSON object"]),
        (b"{\"id\":\"\xff\"}", "malformed_input", &["UTF-8"]),
        (br#"{"id":"x","type":"T","aggregate_id":"a","data":1,}"#, "malformed_input", &["trailing comma"]),
        (br#"{"id":"x","type":"T","aggregate_id":"a","datum":1}"#, "malformed_input", &["`datum`"]),
        (br#"{"id":"x","type":"T","aggregate_id":"a","data_base64":"!"}"#, "malformed_input", &["data_base64"]),
        (br#"{"id":1,"type":"T","aggregate_id":"a"}"#, "malformed_input", &["integer `1`"]),
        (br#"{"type":"T","aggregate_id":"a"}"#, "invalid_event", &["invalid id: ", "missing"]),
        (br#"{"id":"x","aggregate_id":"a"}"#, "invalid_event", &["invalid type: ", "missing"]),
        (br#"{"id":"x","type":"T"}"#, "invalid_event", &["invalid aggregate_id: ", "missing"]),
        (br#"{"id":"","type":"T","aggregate_id":"a"}"#, "invalid_event", &["invalid id: ", "empty"]),
        (br#"{"id":"x","type":"","aggregate_id":"a"}"#, "invalid_event", &["invalid type: ", "empty"]),
        (br#"{"id":"x","type":"T","aggregate_id":""}"#, "invalid_event", &["invalid aggregate_id: ", "empty"]),
        (br#"{"id":"x","type":"T","aggregate_id":"a","metadata":[]}"#, "invalid_event", &["metadata", "object"]),
        (br#"{"id":"e1","type":"T","aggregate_id":"a","data":9}"#, "duplicate_event", &["\"e1\"", "version 1"]),
    ];
    for (bad, code, words) in bad {
        let before = [line("e1", "a", "1"), "\n".to_owned()].concat();
        let input = [before.as_bytes(), bad, b"\n", line("after", "a", "1").as_bytes()].concat();
        let words = [&["line 3: "], *words].concat();
        let shell = Shell::new();
        let done = shell.run_with(&["append"], &input).failed(code, &words);
        assert_eq!(done.stdout, "{\"id\":\"e1\",\"version\":1,\"revision\":1}\n");
        shell.holds(&["e1"]);
        // Only the store detects that an id is in use; by then more of the input may be in flight.
        if *code != "duplicate_event" {
            let shell = Shell::new();
            shell.run_with(&["append", "--concurrency", "8"], &input).failed(code, &words);
            shell.holds(&["e1"]);
            let shell = Shell::new();
            let words = [&words[..], &["1 stored, 0 already there"]].concat();
            shell.run_with(&["import", "-"], &input).failed(code, &words);
            shell.holds(&["e1"]);
        }
    }
}

#[test]
fn the_same_id_twice_in_a_batch_is_refused_or_stored_once() {
    let shell = Shell::new();
    let other_content = [line("e1", "a", "1"), line("e2", "a", "1"), line("e1", "a", "2")].concat();
    for args in [&["append", "--batch", "3"][..], &["import", "-"]] {
        shell.run_with(args, &other_content).failed("duplicate_event", &["line 3: ", "\"e1\"", "same batch"]);
    }
    shell.holds(&[]);
    let same_content = [line("e1", "a", "1"), line("e2", "a", "1"), line("e1", "a", "1")].concat();
    let done = shell.run_with(&["append", "--batch", "3"], &same_content).succeeded();
    let answers: Vec<_> = done.stdout.lines().collect();
    assert_eq!(answers[0], answers[2]);
    shell.holds(&["e1", "e2"]);
}

#[test]
fn a_condition_about_an_aggregate_needs_a_batch_of_one() {
    let shell = Shell::new();
    let lines = [line("e1", "a", "1"), line("e2", "b", "1")].concat();
    let args = ["append", "--batch", "2", "--expect", "none"];
    shell.run_with(&args, &lines).failed("invalid_event", &["lines 1 to 2: ", "invalid expected: "]);
    shell.holds(&[]);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_stored() {
    let shell = Shell::new();
    let refused = |input: &str, field: &str| {
        shell.run_with(&["append"], input).failed("invalid_event", &["line 1: ", field, "over the limit"]);
    };
    refused(&line(&"i".repeat(256), "a", "1"), "invalid id: ");
    refused(&line("x", &"a".repeat(481), "1"), "invalid aggregate_id: ");
    refused(&line("x", "a", "1").replace("\"T\"", &format!("\"{}\"", "T".repeat(256))), "invalid type: ");
    let of_bytes = |id: &str, bytes: usize| line(id, "a", &format!("\"{}\"", "x".repeat(bytes - 2)));
    refused(&of_bytes("x", (16 << 20) + 1), "invalid data: ");

    let at_the_limits = line(&"i".repeat(255), &"a".repeat(480), "1");
    shell.run_with(&["append"], at_the_limits).succeeded();
    // Four times the largest event, plus the ids: over the size limit of a batch.
    let batch: String = ["b1", "b2", "b3", "b4"].map(|id| of_bytes(id, 16 << 20)).concat();
    let done = shell.run_with(&["append", "--batch", "4"], batch);
    done.failed("invalid_event", &["lines 1 to 4: ", "invalid batch: ", "over the limit"]);
    shell.run_with(&["append", "--batch", "10001"], "").failed("usage", &["10000"]);
    shell.holds(&["i".repeat(255).as_str()]);
}

#[test]
fn an_input_that_ends_in_the_middle_of_a_line_is_told() {
    let whole = [line("e1", "a", "1"), line("e2", "a", "2")].concat();
    for cut in [1, 5, line("e2", "a", "2").len() - 2] {
        for args in [&["append"][..], &["import", "-"]] {
            let shell = Shell::new();
            let input = &whole[..line("e1", "a", "1").len() + cut];
            shell.run_with(args, input).failed("malformed_input", &["line 2: the input ends in the middle of a line"]);
            shell.holds(&["e1"]);
        }
    }
    // Only the line feed is missing: the event is complete.
    let shell = Shell::new();
    shell.run_with(&["append"], whole.trim_end()).succeeded();
    shell.holds(&["e1", "e2"]);
    // In the middle of a character.
    let cut = [line("e3", "a", "3").as_bytes(), b"{\"id\":\"\xf0\x9f"].concat();
    shell.run_with(&["append"], cut).failed("malformed_input", &["line 2: the input ends in the middle of a line"]);
    shell.holds(&["e1", "e2", "e3"]);
}

#[test]
fn a_cut_compressed_input_is_told_and_may_be_repeated() {
    let shell = Shell::new();
    let whole = zstd::encode_all(many_lines().as_bytes(), 1).unwrap();
    shell.write("cut.zst", &whole[..whole.len() - 10]);
    shell.run(&["import", "cut.zst"]).failed("malformed_input", &["line ", "ends too early", " stored, "]);
    shell.write("whole.zst", &whole);
    shell.run(&["import", "whole.zst"]).succeeded();
    assert_eq!(without_places(&shell.run(&["load"]).stdout).replace(",\"metadata\":{}", ""), many_lines());
}

#[test]
fn a_text_that_is_no_version_is_told() {
    let shell = Shell::new();
    for text in ["-1", "1.5", "", " 1", "1e3", "18446744073709551616", "x"] {
        shell.run(&["load", "--since", text]).failed("invalid_version", &[&format!("{text:?}")]);
    }
    // What else would do.
    shell.run(&["load", "--since", "x"]).failed("invalid_version", &["a version, such as", "a cursor, such as"]);
    assert!(!shell.path("store").exists(), "nothing was opened");
}

#[test]
fn a_command_line_that_is_not_understood_is_one_line() {
    let shell = Shell::new();
    for args in [
        &["load", "--follow", "--backward"][..],
        &["load", "--format", "xml"],
        &["load", "--limit", "-1"],
        &["append", "--batch", "0"],
        &["append", "--concurrency", "0"],
        &["append", "--timeout", "5"],
        &["get"],
        &["import"],
        &["nonsense"],
        &["latest", "--nonsense"],
    ] {
        shell.run(args).failed("usage", &["try 'eventstore --help'"]);
    }
    shell.run(&["lod"]).failed("usage", &["'lod'; a similar subcommand exists: 'load'; try"]);
    shell
        .run(&["load", "--agregate", "a"])
        .failed("usage", &["'--agregate' found; a similar argument exists: '--aggregate'; try"]);
    for text in ["sometimes", "revision", "revision=-1", "revision=1.5", "latest=", "-1"] {
        let words = ["any, none, exists, revision=N, latest=N", &format!("{text:?}")];
        shell.run(&["append", "--expect", text]).failed("invalid_option", &words);
    }
}

#[test]
fn an_input_that_cannot_be_read_is_named_and_no_store_is_made() {
    let shell = Shell::new();
    for args in [["append", "nowhere.jsonl"], ["import", "nowhere.jsonl"]] {
        shell.run(&args).failed("io", &["nowhere.jsonl"]);
    }
    fs::create_dir(shell.path("directory")).unwrap();
    shell.run(&["import", "directory"]).failed("io", &["directory"]);
    assert!(!shell.path("store").exists());
    shell.run(&["import", "new\nline"]).failed("io", &["new\\nline"]);
}

#[test]
fn a_store_that_cannot_be_opened_is_named() {
    let shell = Shell::new();
    shell.write("file", "some text");
    shell.run(&["--store", "nope:./x", "latest"]).failed("unsupported", &["\"nope\"", "lmdb"]);
    shell.run(&["--store", "lmdb:./x?nonsense=1", "latest"]).failed("invalid_option", &["nonsense", "map_size"]);
    shell.run(&["--store", "lmdb:./file", "latest"]).failed("cannot_open", &["./file"]);
    assert_eq!(fs::read(shell.path("file")).unwrap(), b"some text");
    if cfg!(target_os = "linux") {
        // A place where even root cannot write.
        shell.run(&["--store", "lmdb:/proc/eventstore", "latest"]).failed("cannot_open", &["/proc/eventstore"]);
    }
}

#[test]
fn a_full_store_is_told_and_opens_again() {
    let shell = Shell::new();
    // The index is full, and appends continue until it is too far behind.
    let small = "lmdb:./store?map_size=1MiB&max_map_size=1MiB&index_events=100";
    let long = "long-".repeat(40);
    let lines = || (0..6000).map(|n| line(&format!("{long}{n}"), &format!("a-{n}"), "1")).collect::<String>();
    let done = shell.run_with(&["--store", small, "append"], lines()).failed("full", &["line ", "max_map_size"]);
    let answers = done.events();
    let answered: Vec<_> = answers.iter().map(|answer| answer["id"].as_str().unwrap()).collect();
    assert!(answered.len() > 100);
    shell.holds(&answered);
    // With more room it works again.
    shell.run_with(&["import", "-"], lines()).succeeded();
    assert_eq!(shell.run(&["latest"]).succeeded().stdout, "6000\n");
}

#[test]
fn a_damaged_event_is_told_and_the_others_can_be_loaded() {
    let shell = Shell::new();
    let marker = "a marker that is found on disk";
    let lines = [line("e1", "a", "1"), line("e2", "a", &format!("\"{marker}\"")), line("e3", "a", "3")].concat();
    shell.run_with(&["append"], lines).succeeded();
    let path = shell.path("store/log/0000000001-0.seg");
    let mut bytes = fs::read(&path).unwrap();
    let place = (0..bytes.len()).find(|&place| bytes[place..].starts_with(marker.as_bytes())).unwrap();
    bytes[place] ^= 1;
    fs::write(&path, bytes).unwrap();
    let done = shell.run(&["load"]).failed("corrupt", &["version 2"]);
    assert_eq!(done.events().len(), 1, "what comes before it: {}", done.stdout);
    shell.run(&["get", "e2"]).failed("corrupt", &["version 2"]);
    shell.run(&["get", "e1"]).succeeded();
    assert_eq!(shell.run(&["load", "--since", "2"]).succeeded().events()[0]["id"], "e3");
}

#[test]
fn texts_of_any_characters_come_back_unchanged() {
    let shell = Shell::new();
    let texts =
        [" ", "with space", "a/b/../c", "🦀 é \u{10ffff}", "nul\0inside", "\0", "tab\tline\nfeed", "\"\\", "../../x"];
    let lines: String = texts.iter().map(|text| line(text, text, "{\"a\" : 1.0}")).collect();
    shell.run_with(&["append"], &lines).succeeded();
    shell.holds(&texts);
    for event in shell.run(&["load"]).succeeded().events() {
        assert_eq!(event["id"], event["aggregate_id"]);
        assert_eq!(event["revision"], 1);
    }
    for text in texts.iter().filter(|text| !text.contains('\0')) {
        assert_eq!(text_of_only(&shell.run(&["get", text]).succeeded()), *text);
        assert_eq!(text_of_only(&shell.run(&["load", "--aggregate", text]).succeeded()), *text);
    }
}

fn text_of_only(done: &Done) -> String {
    let events = done.events();
    assert_eq!(events.len(), 1);
    text(&events[0], "id")
}

#[test]
fn data_that_is_no_json_line_travels_as_base64() {
    let shell = Shell::new();
    let lines = [
        "{\"id\":\"bytes\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data_base64\":\"/wA=\"}\n",
        // `{` line feed `}`
        "{\"id\":\"lines\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data_base64\":\"ewp9\"}\n",
        "{\"id\":\"none\",\"type\":\"T\",\"aggregate_id\":\"a\"}\n",
        "{\"id\":\"null\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data\":null}\n",
        "{\"id\":\"number\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data\":12345678901234567890.10}\n",
    ];
    shell.run_with(&["append"], lines.concat()).succeeded();
    let loaded = shell.run(&["load"]).succeeded().stdout;
    assert_eq!(without_places(&loaded).replace(",\"metadata\":{}", ""), lines.concat());
}

#[test]
fn reading_from_a_store_that_is_not_there_is_an_error_and_creates_nothing() {
    let shell = Shell::new();
    for args in [&["load"][..], &["latest"], &["get", "x"], &["stats"], &["gc"], &["digest"]] {
        shell.run(args).failed("cannot_open", &["./store", "no store", "check the path"]);
        assert!(!shell.path("store").exists(), "{args:?}");
    }
}

// Maintenance.

/// The values with this name in output of the form `name: value`.
fn fields<'a>(done: &'a Done, name: &str) -> Vec<&'a str> {
    done.stdout.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

#[test]
fn a_backup_is_restored_and_verified() {
    let shell = Shell::new();
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let digest = shell.run(&["digest"]).succeeded().stdout;
    let backup = shell.run(&["backup", "backup"]).succeeded();
    assert_eq!(fields(&backup, "latest_version"), ["72"]);
    assert_eq!(
        fields(&shell.run(&["backup", "backup"]).succeeded(), "latest_version"),
        ["72"],
        "it is brought up to date"
    );
    shell.run_with(&["--store", "lmdb:./another", "append"], line("e1", "a", "1")).succeeded();
    shell.run(&["backup", "another"]).failed("cannot_open", &["another", "another store"]);
    let restored = shell.run(&["--store", "lmdb:./restored", "restore", "backup"]).succeeded();
    assert_eq!(restored.stdout, "events: 72\naggregates: 33\nverdict: clean\n");
    for store in ["lmdb:./backup", "lmdb:./restored"] {
        assert_eq!(shell.run(&["--store", store, "digest"]).succeeded().stdout, digest);
    }
    shell.run(&["--store", "lmdb:./restored", "restore", "backup"]).failed("cannot_open", &["restored"]);
    shell.run(&["--store", "lmdb:./other", "restore", "nowhere"]).failed("cannot_open", &["nowhere", "no store"]);
    shell.run(&["--store", "memory:", "restore", "backup"]).failed("unsupported", &["lmdb engine", "copy"]);
    assert!(!shell.path("other").exists());
}

#[test]
fn a_copy_tells_what_it_did_and_goes_on() {
    let shell = Shell::new();
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let first = shell.run(&["copy", "--to", "lmdb:./copy"]).succeeded();
    assert_eq!((fields(&first, "copied"), fields(&first, "already_there")), (vec!["72"], vec!["0"]));
    assert_eq!(fields(&first, "digest"), [shell.run(&["digest"]).succeeded().stdout.trim()]);
    shell.run_with(&["append"], line("one more", "a", "1")).succeeded();
    let second = shell.run(&["copy", "--to", "lmdb:./copy"]).succeeded();
    assert_eq!((fields(&second, "copied"), fields(&second, "already_there")), (vec!["1"], vec!["72"]));
    assert_eq!(
        shell.run(&["load"]).succeeded().stdout,
        shell.run(&["--store", "lmdb:./copy", "load"]).succeeded().stdout,
        "with the same times"
    );
    shell.run_with(&["append"], line("mine", "a", "1")).succeeded();
    shell.run_with(&["--store", "lmdb:./copy", "append"], line("theirs", "a", "1")).succeeded();
    shell.run(&["copy", "--to", "lmdb:./copy"]).failed("unsupported", &["different events at version 74"]);
    shell.run(&["copy", "--to", "lmdb:././store"]).failed("cannot_open", &["the store that is copied"]);
    shell.run(&["--store", "lmdb:./nowhere", "copy", "--to", "lmdb:./new"]).failed("cannot_open", &["nowhere"]);
    assert!(!shell.path("new").exists());
}

#[test]
fn a_digest_can_end_at_a_version() {
    let shell = Shell::new();
    shell.run_with(&["append"], &(line("1", "a", "1") + &line("2", "a", "2"))).succeeded();
    shell.run_with(&["--store", "lmdb:./other", "append"], line("1", "a", "1")).succeeded();
    let until = shell.run(&["digest", "--until", "1"]).succeeded();
    assert_eq!(until.stdout, shell.run(&["--store", "lmdb:./other", "digest"]).succeeded().stdout);
    shell.run(&["digest", "--until", "-1"]).failed("usage", &[]);
    shell.run(&["digest", "--until", "x"]).failed("invalid_version", &["x"]);
    let latest: u64 = shell.run(&["latest"]).succeeded().stdout.trim().parse().unwrap();
    let all = shell.run(&["digest"]).succeeded().stdout;
    assert_eq!(shell.run(&["digest", "--until", &latest.to_string()]).succeeded().stdout, all);
    let (beyond, end) = ((latest + 1).to_string(), format!("ends at version {latest}"));
    shell.run(&["digest", "--until", &beyond]).failed("invalid_version", &[&beyond, &end]);
}

#[test]
fn a_damaged_store_is_told_by_verify_and_its_exit_code() {
    let shell = Shell::new();
    shell.run_with(&["append"], &(line("1", "a", "\"payload one\"") + &line("2", "a", "2"))).succeeded();
    assert_eq!(shell.run(&["verify"]).succeeded().stdout, "events: 2\naggregates: 1\nverdict: clean\n");
    let file = shell.path("store/log/0000000001-0.seg");
    let mut bytes = fs::read(&file).unwrap();
    let at = (0..bytes.len() - 11).find(|&at| &bytes[at..at + 11] == b"payload one").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let verified = shell.run(&["verify"]);
    assert_eq!((verified.code, verified.stderr.as_str()), (Some(1), ""));
    assert_eq!(fields(&verified, "verdict"), ["damaged"]);
    assert!(fields(&verified, "wrong")[0].starts_with("version 1: its checksum"), "{}", verified.stdout);
}

#[test]
fn collecting_and_repairing_tell_what_they_did() {
    let shell = Shell::new();
    shell.run_with(&["append"], line("1", "a", "1")).succeeded();
    for arguments in [&["gc"][..], &["gc", "--full"]] {
        assert!(!fields(&shell.run(arguments).succeeded(), "done").is_empty());
    }
    assert_eq!(fields(&shell.run(&["stats"]).succeeded(), "aggregates"), ["1"]);
    let before = shell.run(&["digest"]).succeeded().stdout.clone();
    let repaired = shell.run(&["repair"]).succeeded();
    assert!(fields(&repaired, "done").iter().any(|done| done.contains("index of 1 events")), "{}", repaired.stdout);
    assert_eq!(shell.run(&["digest"]).succeeded().stdout, before);
    assert_eq!(fields(&shell.run(&["verify"]).succeeded(), "verdict"), ["clean"]);
}

#[test]
fn a_backend_that_is_left_out_names_its_feature() {
    let shell = Shell::new();
    let backends =
        [("rocksdb", cfg!(feature = "rocksdb")), ("fjall", cfg!(feature = "fjall")), ("sled", cfg!(feature = "sled"))];
    for (scheme, is_there) in backends {
        let store = format!("{scheme}:./none");
        let done = shell.run(&["--store", &store, "latest"]);
        if is_there {
            done.failed("cannot_open", &["there is no store"]);
        } else {
            done.failed("unsupported", &[&format!("--features {scheme}")]);
        }
    }
    shell.run(&["--store", "lmdb:./store?block_cache=1GiB", "append"]).failed("invalid_option", &["block_cache"]);
}

//! `import`, run as its users run it, with the files that they have.

#![cfg(all(feature = "cli", feature = "lmdb"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory in which the command runs, with its store in `store`.
struct Shell {
    directory: TempDir,
}

/// What a finished command left.
#[derive(Debug)]
struct Done {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Shell {
    fn new() -> Self {
        Shell { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], stdin: impl AsRef<[u8]>) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventstore"));
        command.current_dir(self.directory.path()).env("EVENTSTORE_URL", "lmdb:./store").args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            let stdin = stdin.as_ref();
            // A command that has seen enough closes its stdin before the end.
            scope.spawn(move || to.write_all(stdin).ok());
            child.wait_with_output().unwrap()
        });
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Done { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() }
    }

    /// What `load` prints of the store.
    #[track_caller]
    fn load(&self) -> Vec<Value> {
        self.run(&["load"]).succeeded().events()
    }

    /// The store holds events with these ids, in this order.
    #[track_caller]
    fn holds(&self, ids: &[&str]) {
        let loaded = self.load();
        let found: Vec<_> = loaded.iter().map(|event| event["id"].as_str().unwrap()).collect();
        assert_eq!(found, ids);
    }
}

impl Done {
    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self
    }

    /// It did all but for some lines, which it counted.
    #[track_caller]
    fn skipped(self, summary: &str) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (Some(3), ""), "{self:?}");
        self.told(summary)
    }

    #[track_caller]
    fn told(self, summary: &str) -> Self {
        assert!(self.stdout.starts_with(&format!("{summary}, in ")), "{}", self.stdout);
        self
    }

    /// One line on stderr with this code, and these words in it.
    #[track_caller]
    fn failed(self, code: &str, words: &[&str]) -> Self {
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        assert!(self.stderr.starts_with(&format!("error[{code}]: ")), "{code}: {}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert_eq!(self.code, Some(if code == "usage" { 2 } else { 1 }));
        self
    }

    fn events(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

fn orders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/orders.jsonl")
}

/// One line of input, with more fields behind the usual ones.
fn line_with(id: &str, aggregate_id: &str, more: &str) -> String {
    format!("{{\"id\":\"{id}\",\"type\":\"T\",\"aggregate_id\":\"{aggregate_id}\"{more}}}\n")
}

fn line(id: &str, aggregate_id: &str, data: &str) -> String {
    line_with(id, aggregate_id, &format!(",\"data\":{data}"))
}

fn year_of(event: &Value) -> &str {
    &event["recorded_at"].as_str().unwrap()[..4]
}

// Times and places.

#[test]
fn events_that_are_loaded_and_imported_keep_their_times() {
    let shell = Shell::new();
    let timed = |id: &str, time: &str| line_with(id, "a", &format!(",\"recorded_at\":\"{time}\""));
    let lines = [
        timed("first", "1970-01-01T00:00:00Z"),
        timed("last", "9999-12-31T23:59:59.999999Z"),
        timed("elsewhere", "2021-06-01T09:30:00.123456+05:30"),
    ];
    shell.run_with(&["import", "-"], lines.concat()).succeeded().told("3 stored, 0 already there");
    let loaded = shell.run(&["load"]).succeeded();
    let times: Vec<_> = loaded.events().iter().map(|event| event["recorded_at"].as_str().unwrap().to_owned()).collect();
    assert_eq!(times, ["1970-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "2021-06-01T04:00:00.123456Z"]);

    shell.run_with(&["--store", "lmdb:./copy", "import", "-"], &loaded.stdout).succeeded();
    assert_eq!(shell.run(&["--store", "lmdb:./copy", "load"]).succeeded().stdout, loaded.stdout);
}

#[test]
fn an_event_without_a_time_is_recorded_now_also_beside_others() {
    let shell = Shell::new();
    let lines = [line_with("old", "a", ",\"recorded_at\":\"2001-02-03T04:05:06Z\""), line("new", "a", "1")].concat();
    let before = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
    shell.run_with(&["import", "-"], &lines).succeeded();
    let loaded = shell.load();
    assert_eq!(loaded[0]["recorded_at"], "2001-02-03T04:05:06.000000Z");
    let after = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
    let time = loaded[1]["recorded_at"].as_str().unwrap();
    assert!((before.as_str()..=after.as_str()).contains(&time), "{time}");
}

#[test]
fn times_that_are_not_kept_are_counted() {
    let shell = Shell::new();
    let lines = [
        line_with("old", "a", ",\"recorded_at\":\"2001-02-03T04:05:06Z\""),
        line_with("odd", "a", ",\"recorded_at\":12"),
        line("new", "a", "1"),
    ];
    let done = shell.run_with(&["import", "--recorded-at", "now", "-"], lines.concat()).succeeded();
    done.told("3 stored, 0 already there, 2 with the time of the import instead of their own");
    assert!(shell.load().iter().all(|event| year_of(event) > "2020"));
    // What is there already has lost nothing by the second import, and keeps what it has also when times are kept.
    let again = shell.run_with(&["import", "--recorded-at", "now", "-"], lines.concat()).succeeded();
    again.told("0 stored, 3 already there");
    let keeping = shell.run_with(&["import", "-"], [&*lines[0], &*lines[2]].concat()).succeeded();
    keeping.told("0 stored, 2 already there");
    assert!(shell.load().iter().all(|event| year_of(event) > "2020"));
}

#[test]
fn a_time_that_cannot_be_recorded_names_its_line() {
    for (time, words) in [
        ("\"yesterday\"", "RFC 3339"),
        ("\"2025-01-31\"", "RFC 3339"),
        ("\"\"", "RFC 3339"),
        ("\"2025-02-30T00:00:00Z\"", "1970 to 9999"),
        ("\"1969-12-31T23:59:59Z\"", "1970 to 9999"),
        ("\"9999-12-31T23:59:59-00:01\"", "1970 to 9999"),
        ("1700000000", "1700000000 is not a text"),
        ("{}", "{} is not a text"),
    ] {
        let shell = Shell::new();
        let bad = line_with("e2", "a", &format!(",\"recorded_at\":{time}"));
        let input = [line("e1", "a", "1"), bad.clone(), line("e3", "a", "1")].concat();
        let words = ["line 2: invalid recorded_at: ", words, "1 stored"];
        shell.run_with(&["import", "-"], &input).failed("invalid_event", &words);
        shell.holds(&["e1"]);
        // Whoever does not want the time is not bothered with it; `append` never wants it.
        shell.run_with(&["import", "--recorded-at", "now", "-"], &bad).succeeded();
        shell.run_with(&["append"], &bad).succeeded();
        shell.holds(&["e1", "e2"]);
    }
}

#[test]
fn places_that_are_checked_are_those_of_the_input() {
    let shell = Shell::new();
    shell.run(&["import", orders().to_str().unwrap()]).succeeded();
    let all = shell.run(&["load"]).succeeded().stdout;
    let import = |input: &str| shell.run_with(&["--store", "lmdb:./copy", "import", "--check-places", "-"], input);
    import(&all).succeeded().told("72 stored, 0 already there");
    import(&all).succeeded().told("0 stored, 72 already there");
    assert_eq!(shell.run(&["--store", "lmdb:./copy", "load"]).stdout, all);
    // Repeated lines, and lines that name no place.
    let copy = ["--store", "lmdb:./copy2", "import", "--check-places", "-"];
    let some: String = all.split_inclusive('\n').take(5).collect();
    shell.run_with(&copy, some.repeat(2)).succeeded().told("5 stored, 5 already there");
    shell.run_with(&copy, line("mine", "a", "1")).succeeded();
    let next = line_with("next", "a", ",\"version\":7,\"revision\":2");
    shell.run_with(&copy, next).succeeded();
}

#[test]
fn a_place_that_would_be_another_is_found_before_anything_is_stored_from_there_on() {
    let placed = |id: &str, aggregate_id: &str, version: u64, revision: u64| {
        line_with(id, aggregate_id, &format!(",\"version\":{version},\"revision\":{revision}"))
    };
    let good = [placed("e1", "a", 1, 1), placed("e2", "b", 2, 1), placed("e3", "a", 3, 2)].concat();
    for (bad, words) in [
        (placed("e4", "a", 5, 3), "has version 5, revision 3 in the input, and version 4, revision 3 in the store"),
        (placed("e4", "a", 4, 4), "has version 4, revision 4 in the input, and version 4, revision 3 in the store"),
        (placed("e4", "c", 4, 2), "has version 4, revision 2 in the input, and version 4, revision 1 in the store"),
        (placed("e2", "b", 4, 2), "has version 4, revision 2 in the input, and version 2, revision 1 in the store"),
        (line_with("e4", "a", ",\"revision\":1"), "version 4, revision 3 in the store"),
    ] {
        let input = [good.as_str(), &bad, &placed("e5", "a", 5, 3)].concat();
        let shell = Shell::new();
        let words = ["line 4: ", words, "nothing is stored", "3 stored, 0 already there"];
        shell.run_with(&["import", "--check-places", "-"], &input).failed("wrong_result", &words);
        shell.holds(&["e1", "e2", "e3"]);
        // The same when the first are there already.
        let words = ["line 4: ", "0 stored, 3 already there"];
        shell.run_with(&["import", "--check-places", "-"], &input).failed("wrong_result", &words);
        shell.holds(&["e1", "e2", "e3"]);
        // Who does not ask for it gets the events.
        shell.run_with(&["import", "-"], &input).succeeded();
    }
    let shell = Shell::new();
    for bad in [",\"version\":\"1\"", ",\"revision\":-1", ",\"version\":1.5"] {
        let input = line_with("e1", "a", bad);
        shell.run_with(&["import", "--check-places", "-"], &input).failed("malformed_input", &["line 1: ", "whole"]);
    }
    let both = ["import", "--check-places", "--skip-invalid", "x", "-"];
    shell.run(&both).failed("usage", &["--skip-invalid"]);
}

// Lines that are left out.

#[test]
fn invalid_lines_are_written_down_and_the_others_stored() {
    let shell = Shell::new();
    let lines: Vec<&[u8]> = vec![
        br#"{"id":"e1","type":"T","aggregate_id":"a","data":{"n":1}}"#,
        b"not JSON",
        br#"{"id":"e2","type":"T","aggregate_id":"a"}"#,
        br#"{"type":"T","aggregate_id":"a"}"#,
        b"",
        b"{\"id\":\"\xff\"}",
        br#"{"id":"e3","type":"T","aggregate_id":"a","recorded_at":"soon"}"#,
        br#"{"id":"e4","type":"T","aggregate_id":"a"}"#,
        br#"{"id":"cut"#,
    ];
    shell.write("events.jsonl", lines.join(&b'\n'));
    let import = ["import", "--skip-invalid", "rejected.jsonl", "events.jsonl"];
    shell.run(&import).skipped("3 stored, 0 already there, 5 skipped");
    shell.holds(&["e1", "e2", "e4"]);
    let rejected: Vec<Value> =
        shell.read("rejected.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<_> = rejected.iter().map(|rejected| rejected["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 4, 6, 7, 9]);
    for (rejected, (input, error)) in rejected.iter().zip([
        (json!("not JSON"), "malformed_input: not a JSON object"),
        (json!(r#"{"type":"T","aggregate_id":"a"}"#), "invalid_event: invalid id: it is missing"),
        (Value::Null, "malformed_input: not UTF-8"),
        (
            json!(r#"{"id":"e3","type":"T","aggregate_id":"a","recorded_at":"soon"}"#),
            "invalid_event: invalid recorded_at",
        ),
        (json!(r#"{"id":"cut"#), "malformed_input: the input ends in the middle of a line: "),
    ]) {
        assert_eq!(rejected["input"], input);
        assert!(rejected["error"].as_str().unwrap().starts_with(error), "{rejected}");
    }
    assert_eq!(rejected[2]["input_base64"], "eyJpZCI6Iv8ifQ==");

    // The file is not overwritten, and nothing happens.
    let before = shell.read("rejected.jsonl");
    shell.run(&import).failed("io", &["rejected.jsonl", "not mended"]);
    assert_eq!(shell.read("rejected.jsonl"), before);

    // Some are mended; the others are left out once more, as they were.
    let mended = before.replace("soon", "2025-01-31T00:00:00Z").replace(r#"{\"type\""#, r#"{\"id\":\"e5\",\"type\""#);
    shell.write("mended.jsonl", &mended);
    let retry = ["import", "--retry-skipped", "mended.jsonl", "--skip-invalid", "again.jsonl"];
    shell.run(&retry).skipped("2 stored, 0 already there, 3 skipped");
    shell.holds(&["e1", "e2", "e4", "e5", "e3"]);
    assert_eq!(shell.load()[4]["recorded_at"], "2025-01-31T00:00:00.000000Z");
    let again: Vec<Value> = shell.read("again.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let inputs: Vec<_> = again.iter().map(|rejected| (rejected["line"].clone(), rejected["input"].clone())).collect();
    assert_eq!(inputs, [(json!(1), json!("not JSON")), (json!(3), Value::Null), (json!(5), json!(r#"{"id":"cut"#))]);
    shell
        .run(&["import", "--retry-skipped", "events.jsonl"])
        .failed("malformed_input", &["line 1: ", "--skip-invalid"]);
}

#[test]
fn an_import_that_skips_nothing_ends_as_any_other() {
    let shell = Shell::new();
    let lines = [line("e1", "a", "1"), line("e2", "a", "1")].concat();
    shell.run_with(&["import", "--skip-invalid", "r", "-"], &lines).succeeded().told("2 stored, 0 already there");
    assert_eq!(shell.read("r"), "");
    // An empty file is none that anybody has to mend.
    shell.run_with(&["import", "--skip-invalid", "r", "-"], &lines).succeeded().told("0 stored, 2 already there");
    // Neither file nor store come to be for an input that is not there, nor a store for a file that cannot be written.
    let shell = Shell::new();
    shell.run(&["import", "--skip-invalid", "r", "nowhere"]).failed("io", &["nowhere"]);
    assert!(!shell.path("r").exists());
    shell.run_with(&["import", "--skip-invalid", "no/where", "-"], &lines).failed("io", &["no/where"]);
    assert!(!shell.path("store").exists());
}

#[test]
fn of_events_that_share_an_id_exactly_the_wrong_ones_are_skipped() {
    // The first content is that of the store or, without one, that which comes first.
    for is_there_before in [false, true] {
        let shell = Shell::new();
        if is_there_before {
            shell.run_with(&["import", "-"], line("e1", "a", "1")).succeeded();
        }
        let mut lines = [
            line("e0", "a", "0"),
            line("e1", "a", "1"),
            line("e1", "a", "2"),
            line("e2", "a", "2"),
            line("e1", "b", "1"),
            line("e1", "a", "1"),
            line("e2", "a", "3"),
            line("e3", "a", "3"),
        ];
        if is_there_before {
            // A wrong one may come before the right one.
            lines.swap(1, 2);
        }
        let wrong: Vec<u64> = if is_there_before { vec![2, 5, 7] } else { vec![3, 5, 7] };
        let done = shell.run_with(&["import", "--skip-invalid", "r", "-"], lines.concat());
        done.skipped(match is_there_before {
            true => "3 stored, 2 already there, 3 skipped",
            false => "4 stored, 1 already there, 3 skipped",
        });
        let rejected: Vec<Value> = shell.read("r").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let numbers: Vec<_> = rejected.iter().map(|rejected| rejected["line"].as_u64().unwrap()).collect();
        assert_eq!(numbers, wrong);
        for rejected in &rejected {
            assert!(rejected["error"].as_str().unwrap().starts_with("duplicate_event: "), "{rejected}");
            let line = &lines[rejected["line"].as_u64().unwrap() as usize - 1];
            assert_eq!(rejected["input"], line.trim_end());
        }
        let ids = if is_there_before { ["e1", "e0", "e2", "e3"] } else { ["e0", "e1", "e2", "e3"] };
        shell.holds(&ids);
        // Without leave to skip, the line of the first wrong one is named.
        let other = Shell::new();
        if is_there_before {
            other.run_with(&["import", "-"], line("e1", "a", "1")).succeeded();
        }
        let named = format!("line {}: ", wrong[0]);
        other.run_with(&["import", "-"], lines.concat()).failed("duplicate_event", &[&named]);
        other.run_with(&["append", "--batch", "8"], lines.concat()).failed("duplicate_event", &[&named]);
    }
}

#[test]
fn skipped_lines_are_counted_with_an_error_too() {
    let shell = Shell::new();
    let lines: String =
        (0..5_000).map(|n| if n % 2 == 0 { line(&format!("e{n}"), "a", "1") } else { "x\n".into() }).collect();
    let mut compressed = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    compressed.truncate(compressed.len() - 5);
    shell.write("cut.zst", compressed);
    let done = shell.run(&["import", "--skip-invalid", "r", "cut.zst"]);
    let done = done.failed("malformed_input", &[" stored, 0 already there, ", " skipped before that"]);
    let counted: Vec<_> = done.stderr.split("; ").last().unwrap().split(", ").collect();
    let count = |text: &str| text.split(' ').next().unwrap().replace(',', "").parse::<usize>().unwrap();
    assert_eq!(count(counted[0]), shell.load().len());
    assert_eq!(count(counted[2]), shell.read("r").lines().count());
}

//! `import`, run as users run it, with realistic files.

#![cfg(feature = "lmdb")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod shell;
mod signals;

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use shell::{Done, Shell, orders};

impl Shell {
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The output of `load`.
    #[track_caller]
    fn load(&self) -> Vec<Value> {
        self.run(&["load"]).succeeded().events()
    }
}

impl Done {
    /// The command must have succeeded with some lines skipped, which it counted.
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
}

/// One line of input, with additional fields.
fn line_with(id: &str, aggregate_id: &str, more: &str) -> String {
    format!("{{\"id\":\"{id}\",\"type\":\"T\",\"aggregate_id\":\"{aggregate_id}\"{more}}}\n")
}

fn line(id: &str, aggregate_id: &str, data: &str) -> String {
    line_with(id, aggregate_id, &format!(",\"data\":{data}"))
}

fn year_of(event: &Value) -> &str {
    &event["recorded_at"].as_str().unwrap()[..4]
}

// Recording times and positions.

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
    // A second import changes nothing about stored events, whether times are kept or not.
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
        // An invalid time does not matter if times are not kept; `append` never keeps them.
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
    // Repeated lines, and lines without a position.
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
        // The same when the first events are already stored.
        let words = ["line 4: ", "0 stored, 3 already there"];
        shell.run_with(&["import", "--check-places", "-"], &input).failed("wrong_result", &words);
        shell.holds(&["e1", "e2", "e3"]);
        // Without the option, the events are imported.
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

// Skipped lines.

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

    // The file is not overwritten, and nothing is imported.
    let before = shell.read("rejected.jsonl");
    shell.run(&import).failed("io", &["rejected.jsonl", "not corrected"]);
    assert_eq!(shell.read("rejected.jsonl"), before);

    // Some are corrected; the others are skipped again, unchanged.
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
    // An empty file has nothing to correct, so it may be overwritten.
    shell.run_with(&["import", "--skip-invalid", "r", "-"], &lines).succeeded().told("0 stored, 2 already there");
    // A missing input creates neither file nor store, and a file that cannot be written creates no store.
    let shell = Shell::new();
    shell.run(&["import", "--skip-invalid", "r", "nowhere"]).failed("io", &["nowhere"]);
    assert!(!shell.path("r").exists());
    shell.run_with(&["import", "--skip-invalid", "no/where", "-"], &lines).failed("io", &["no/where"]);
    assert!(!shell.path("store").exists());
}

#[test]
fn of_events_that_share_an_id_exactly_the_wrong_ones_are_skipped() {
    // The stored content counts or, if there is none, the first in the input.
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
            // A wrong one may precede the right one.
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
        // If nothing may be skipped, the error names the line of the first wrong one.
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

// Realistic files.

#[test]
fn compressed_files_are_read_whole_whatever_their_name() {
    let bzip2 = |text: &str| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let text = fs::read_to_string(orders()).unwrap();
    let (head, tail) = text.split_at(text.len() / 2);
    let shell = Shell::new();
    // Two parts, as parallel compressors write them.
    let whole = [bzip2(head), bzip2(tail)].concat();
    shell.write("orders", &whole);
    shell.run(&["import", "orders"]).succeeded().told("72 stored, 0 already there");
    shell.run_with(&["import", "-"], &whole).succeeded().told("0 stored, 72 already there");
    shell.write("cut.jsonl.bz2", &whole[..whole.len() - 20]);
    shell.run(&["import", "cut.jsonl.bz2"]).failed("malformed_input", &["line ", "cut.jsonl.bz2", "ends too early"]);
    // One event compressed by `xz`, and the same twice.
    let xz = base64(XZ);
    shell.write("event.xz", &xz);
    shell.write("twice.xz", xz.repeat(2));
    shell.run(&["import", "event.xz"]).succeeded().told("1 stored, 0 already there");
    shell.run(&["import", "twice.xz"]).succeeded().told("0 stored, 2 already there");
    shell.write("damaged.xz", [&xz[..40], b"?", &xz[41..]].concat());
    shell.run(&["import", "damaged.xz"]).failed("malformed_input", &["damaged.xz", "damaged: "]);
}

const XZ: &str = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4AA2ADVdAD2IiSaBk1OF2EVhqdT4oDO7XlqTBc11ILkzsyFWqKOMnk5b4UxaVgFCYeBE2ZDrh2Xr3xAAAAAAAAclAAlG5OWeAAFRNzF8mzsftvN9AQAAAAAEWVo=";

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn an_array_is_read_as_lines_are() {
    let text = fs::read_to_string(orders()).unwrap();
    let values: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for array in [
        format!("[{}]", text.trim_end().replace('\n', ",")),
        format!("[\n  {}\n]\n", text.trim_end().replace('\n', ",\n  ")),
        format!("\u{feff}{}", serde_json::to_string_pretty(&values).unwrap()),
        values.iter().map(|value| serde_json::to_string_pretty(value).unwrap() + "\n").collect(),
    ] {
        let shell = Shell::new();
        shell.run_with(&["import", "-"], array).succeeded().told("72 stored, 0 already there");
        let loaded = shell.load();
        for (event, value) in loaded.iter().zip(&values) {
            assert_eq!((&event["id"], &event["data"]), (&value["id"], &value["data"]));
        }
    }
    // Data printed over several lines becomes one line; nothing else changes.
    let shell = Shell::new();
    let printed =
        "[{\"id\":\"e1\",\"type\":\"T\",\"aggregate_id\":\"a\",\"data\":{\n  \"b\" : 1.50,\n  \"a\":[ 1,\n 2]\n}}]";
    shell.run_with(&["import", "-"], printed).succeeded();
    let loaded = shell.run(&["load"]).succeeded().stdout;
    assert!(loaded.contains(r#""data":{"b" : 1.50,"a":[ 1,2]},"#), "{loaded}");
}

#[test]
fn an_element_that_is_no_event_is_named_and_can_be_skipped() {
    let shell = Shell::new();
    let array =
        format!("[{},\n{},\n17,{}]", line("e1", "a", "1").trim(), r#"{"id":"e2"}"#, line("e3", "a", "1").trim());
    shell.run_with(&["import", "-"], &array).failed("invalid_event", &["line 2, element 2: invalid type", "1 stored"]);
    let done = shell.run_with(&["import", "--skip-invalid", "r", "-"], &array);
    done.skipped("1 stored, 1 already there, 2 skipped");
    let rejected: Vec<Value> = shell.read("r").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> =
        rejected.iter().map(|r| (r["line"].clone(), r["element"].clone(), r["input"].clone())).collect();
    assert_eq!(found, [(json!(2), json!(2), json!(r#"{"id":"e2"}"#)), (json!(3), json!(3), json!("17"))]);
    // After a syntax error in the array itself, nothing can be read, with or without skipping.
    let broken = array.replace(",\n17", "\n17");
    let done = shell.run_with(&["import", "--skip-invalid", "r2", "-"], broken);
    done.failed("malformed_input", &["line 3: a comma or ] is expected", "1 skipped before that"]);
}

#[test]
fn a_file_that_cannot_be_read_says_what_it_is() {
    let shell = Shell::new();
    for (content, words) in [
        (&b"PK\x03\x04rest"[..], "a zip archive or an Excel workbook"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"Obj\x01\x04", "an Avro file"),
        (b"<?xml version=\"1.0\"?>\n<feed/>\n", "XML"),
        (b"id,type,aggregate\n1,2,3\n", "CSV with the columns id, type, aggregate"),
    ] {
        shell.write("file", content);
        shell.run(&["import", "file"]).failed("malformed_input", &[words, "0 stored"]);
    }
}

/// The content fields of an event.
fn content(event: &Value) -> (&str, &str, &str, &Value, &Value) {
    let text = |field: &str| event[field].as_str().unwrap();
    (text("id"), text("type"), text("aggregate_id"), &event["data"], &event["metadata"])
}

#[test]
fn cloud_events_are_mapped_by_name() {
    let events = [
        r#"{"specversion":"1.0","id":"A1","source":"/shop","type":"order.placed","subject":"order-7","time":"2018-04-05T17:31:00+02:00","datacontenttype":"application/json","data":{"total": 12.50}}"#,
        r#"{"specversion":"1.0","id":"A1","source":"/bank","type":"paid","data_base64":"AAH/","traceparent":"00-x"}"#,
        r#"{"specversion":"1.0","id":"A2","source":"/bank","type":"closed","data":null}"#,
    ];
    for input in [events.join("\n"), format!("[{}]", events.join(",\n"))] {
        let shell = Shell::new();
        let import = ["import", "--map", "cloudevents", "-"];
        shell.run_with(&import, &input).succeeded().told("3 stored, 0 already there");
        shell.run_with(&import, &input).succeeded().told("0 stored, 3 already there");
        let loaded = shell.load();
        let metadata = json!({"specversion": "1.0", "id": "A1", "source": "/shop", "time": "2018-04-05T17:31:00+02:00",
            "datacontenttype": "application/json"});
        let data = json!({"total": 12.5});
        assert_eq!(content(&loaded[0]), ("/shop#A1", "order.placed", "order-7", &data, &metadata));
        assert!(shell.run(&["load"]).stdout.contains(r#""data":{"total": 12.50},"#));
        assert_eq!(loaded[0]["recorded_at"], "2018-04-05T15:31:00.000000Z");
        let metadata = json!({"specversion": "1.0", "id": "A1", "source": "/bank", "traceparent": "00-x"});
        assert_eq!(content(&loaded[1]), ("/bank#A1", "paid", "/bank", &Value::Null, &metadata));
        assert_eq!(loaded[1]["data_base64"], "AAH/");
        assert!(loaded[2].get("data").is_none());
        // Without the option, the error says what it is.
        let other = ["--store", "lmdb:./other", "import", "-"];
        shell.run_with(&other, &input).failed("malformed_input", &["line 1", "CloudEvents: write --map cloudevents"]);
    }
}

#[test]
fn exports_and_feeds_of_kurrentdb_are_mapped_by_name() {
    let exported = [
        r#"{"eventId":"e-0","eventType":"Placed","streamId":"order-1","eventNumber":0,"data":{"n":1},"metadata":{"by":"x"},"created":"2024-03-01T10:00:00.1234567Z"}"#,
        r#"{"eventId":"e-1","eventType":"Paid","streamId":"order-1","eventNumber":1,"data":{"n":2},"metadata":null,"created":"2024-03-01T10:00:01Z"}"#,
    ];
    // As the HTTP interface of EventStoreDB prints them: the newest first, with JSON as text.
    let feed = serde_json::to_string_pretty(&json!({"title": "Event stream 'order-1'", "streamId": "order-1",
        "headOfStream": true, "selfUrl": "http://localhost/streams/order-1", "links": [], "entries": [
            {"eventId": "e-1", "eventType": "Paid", "eventNumber": 1, "data": "{\"n\":2}", "metaData": "",
             "streamId": "order-1", "isJson": true, "title": "1@order-1", "updated": "2024-03-01T10:00:01Z"},
            {"eventId": "e-0", "eventType": "Placed", "eventNumber": 0, "data": "{\"n\":1}", "metaData": "{\"by\":\"x\"}",
             "streamId": "order-1", "isJson": true, "title": "0@order-1", "updated": "2024-03-01T10:00:00.1234567Z"}]}))
    .unwrap();
    let single = |event: &str| {
        let mut event: Value = serde_json::from_str(event).unwrap();
        let (created, stream) = (event["created"].take(), event["streamId"].take());
        event.as_object_mut().unwrap().retain(|key, _| !matches!(key.as_str(), "created" | "streamId"));
        event["eventStreamId"] = stream;
        json!({"title": "x", "updated": created, "summary": event["eventType"], "content": event}).to_string()
    };
    for input in [exported.join("\n"), feed, exported.map(single).join("\n")] {
        let shell = Shell::new();
        let import = ["import", "--map", "kurrentdb", "--check-places", "-"];
        shell.run_with(&import, &input).succeeded().told("2 stored, 0 already there");
        let loaded = shell.load();
        assert_eq!(content(&loaded[0]), ("e-0", "Placed", "order-1", &json!({"n": 1}), &json!({"by": "x"})));
        assert_eq!(content(&loaded[1]), ("e-1", "Paid", "order-1", &json!({"n": 2}), &json!({})));
        assert_eq!(loaded[0]["recorded_at"], "2024-03-01T10:00:00.123456Z");
        let other = ["--store", "lmdb:./other", "import", "-"];
        shell.run_with(&other, &input).failed("malformed_input", &["line 1", "write --map kurrentdb"]);
    }
    // A stream that does not start at its beginning gets other revisions here.
    let shell = Shell::new();
    let import = ["import", "--map", "kurrentdb", "--check-places", "-"];
    shell
        .run_with(&import, exported[1])
        .failed("wrong_result", &["revision 2 in the input", "revision 1 in the store"]);
    let feed = r#"{"entries":[{"eventId":"b","eventType":"T","streamId":"s"},{"eventId":"a","eventType":"T"}]}"#;
    let import = ["import", "--map", "kurrentdb", "--skip-invalid", "r", "-"];
    shell.run_with(&import, feed).skipped("1 stored, 0 already there, 1 skipped");
    let rejected: Value = serde_json::from_str(&shell.read("r")).unwrap();
    assert_eq!((&rejected["line"], &rejected["element"]), (&json!(1), &json!(2)));
    shell.write("r", shell.read("r").replace(r#"\"T\"}"#, r#"\"T\",\"streamId\":\"s\"}"#));
    shell.run(&["import", "--map", "kurrentdb", "--retry-skipped", "r"]).succeeded().told("1 stored, 0 already there");
    shell.holds(&["b", "a"]);
}

#[test]
fn gh_archive_is_mapped_by_name() {
    let event = r#"{"id":"2489651045","type":"CreateEvent","actor":{"id":1,"login":"x"},"repo":{"id":2,"name":"x/y"},"payload":{"ref":"main","size": 1e2},"public":true,"created_at":"2015-01-01T15:00:00Z"}"#;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writeln!(gzip, "{event}").unwrap();
    let shell = Shell::new();
    shell.write("2015-01-01-15.json.gz", gzip.finish().unwrap());
    shell.run(&["import", "2015-01-01-15.json.gz"]).failed("malformed_input", &["GH Archive: write --map gharchive"]);
    shell.run(&["import", "--map", "gharchive", "2015-01-01-15.json.gz"]).succeeded();
    let loaded = shell.load();
    let metadata = json!({"actor": {"id": 1, "login": "x"}, "repo": {"id": 2, "name": "x/y"}, "public": true,
        "created_at": "2015-01-01T15:00:00Z"});
    let data = json!({"ref": "main", "size": 100.0});
    assert_eq!(content(&loaded[0]), ("2489651045", "CreateEvent", "x/y", &data, &metadata));
    assert_eq!(loaded[0]["recorded_at"], "2015-01-01T15:00:00.000000Z");
    assert!(shell.run(&["load"]).stdout.contains(r#""data":{"ref":"main","size": 1e2},"#));
}

const SALES: &str = "\u{feff}customer;sold at;amount;note\n\
                     c-1;2024-01-01T00:00:00Z;12,50;\"said \"\"hi\"\"\ntwice\"\n\
                     c-2;2024-01-02T00:00:00Z;3;\n";
const SALE: &str = r#"id=sha256(.),type="Sale",aggregate_id=.customer,recorded_at=."sold at""#;

#[test]
fn the_rows_of_a_table_become_events() {
    let shell = Shell::new();
    shell.write("sales.csv", SALES);
    let words = ["CSV with the columns customer, sold at, amount, note", "--map"];
    shell.run(&["import", "sales.csv"]).failed("malformed_input", &words);
    let import = ["import", "--map", SALE, "sales.csv"];
    shell.run(&import).succeeded().told("2 stored, 0 already there");
    // An id derived from the content is the same each time.
    shell.run(&import).succeeded().told("0 stored, 2 already there");
    let loaded = shell.load();
    let data =
        json!({"customer": "c-1", "sold at": "2024-01-01T00:00:00Z", "amount": "12,50", "note": "said \"hi\"\ntwice"});
    assert_eq!((&loaded[0]["aggregate_id"], &loaded[0]["data"]), (&json!("c-1"), &data));
    assert_eq!(loaded[1]["recorded_at"], "2024-01-02T00:00:00.000000Z");
    assert_eq!(loaded[0]["id"].as_str().unwrap().len(), 64);
}

#[test]
fn rows_that_do_not_fit_are_named_and_can_be_mended() {
    let shell = Shell::new();
    let sales = format!("{SALES}c-3;2024-01-03T00:00:00Z;1\nc-4;never;1;\n");
    shell
        .run_with(&["import", "--map", SALE, "-"], &sales)
        .failed("malformed_input", &["line 5: columns: 3, and titles: 4"]);
    let import = ["import", "--format", "csv", "--map", SALE, "--skip-invalid", "r", "-"];
    shell.run_with(&import, &sales).skipped("0 stored, 2 already there, 2 skipped");
    shell.write("r", shell.read("r").replace("never", "2024-01-04T00:00:00Z"));
    // With the same options, although it is not CSV.
    let retry = ["import", "--format", "csv", "--map", SALE, "--retry-skipped", "r"];
    shell.run(&retry).succeeded().told("2 stored, 0 already there");
    assert_eq!(shell.load()[3]["data"]["customer"], "c-4");
}

#[test]
fn records_that_are_the_same_become_one_event_or_are_told_apart_by_their_number() {
    let lines = "{\"t\":1}\n{\"t\":1}\n\n{\"t\":2}\n";
    let shell = Shell::new();
    let import = ["import", "--map", r#"id=sha256(.),type="T",aggregate_id="a""#, "-"];
    shell.run_with(&import, lines).succeeded().told("2 stored, 1 already there");
    let shell = Shell::new();
    let import = ["import", "--map", r#"id=sha256(.)+"-"+number(),type="T",aggregate_id="a""#, "-"];
    shell.run_with(&import, lines).succeeded().told("3 stored, 0 already there");
    shell.run_with(&import, lines).succeeded().told("0 stored, 3 already there");
}

#[test]
fn a_mapping_that_is_wrong_is_told_before_anything_happens() {
    let shell = Shell::new();
    for (map, words) in [
        ("cloudevent", "none of cloudevents, kurrentdb, gharchive"),
        ("id=.id", "does not say what the type is"),
        ("id=.id,type=.t,aggregate_id=.a,when=.t", "\"when\" is none of the fields"),
    ] {
        let import = ["import", "--skip-invalid", "r", "--map", map, "-"];
        shell.run(&import).failed("invalid_option", &["map", words]);
    }
    assert!(!shell.path("store").exists() && !shell.path("r").exists());
    let import = ["import", "--map", "id=.id,type=.t,aggregate_id=.who.name", "-"];
    shell
        .run_with(&import, r#"{"id":1,"t":"T","who":"x"}"#)
        .failed("invalid_event", &["line 1: invalid aggregate_id: .who.name is missing"]);
    shell.holds(&[]);
}

#[test]
fn a_dry_run_shows_the_first_events_and_stores_nothing() {
    let shell = Shell::new();
    let file = orders();
    let done = shell.run(&["import", "--dry-run", file.to_str().unwrap()]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), "dry run: 72 events; nothing is stored\n"));
    let first: String = fs::read_to_string(&file).unwrap().split_inclusive('\n').take(3).collect();
    assert_eq!(done.stdout, first);

    shell.write("sales.csv", SALES);
    let done = shell.run(&["import", "--dry-run", "--map", SALE, "sales.csv"]);
    assert_eq!((done.code, done.events().len()), (Some(0), 2));
    assert_eq!(done.events()[0]["recorded_at"], "2024-01-01T00:00:00.000000Z");
    let done = shell.run(&["import", "--dry-run", "--recorded-at", "now", "--map", SALE, "sales.csv"]);
    assert!(done.events()[0].get("recorded_at").is_none());

    // Later errors are found as well.
    let lines = [line("e1", "a", "1"), "x\n".to_owned(), line("e2", "a", "1")].concat();
    let done = shell.run_with(&["import", "--dry-run", "-"], &lines);
    let done = done.failed("malformed_input", &["line 2: ", "1 event before that"]);
    assert_eq!(done.events()[0]["id"], "e1");
    let done = shell.run_with(&["import", "--dry-run", "--skip-invalid", "r", "-"], &lines);
    assert_eq!((done.code, done.stderr.as_str()), (Some(3), "dry run: 2 events, 1 skipped; nothing is stored\n"));
    assert_eq!(shell.read("r").lines().count(), 1);
    assert!(!shell.path("store").exists());
}

#[test]
fn a_record_may_have_more_events_than_a_batch() {
    let shell = Shell::new();
    let events: Vec<_> = (0..25_000).map(|n| format!("{{\"n\":{n}}}")).collect();
    let record = format!("{{\"events\":[{}]}}\n", events.join(","));
    let map = r#"each=.events,id=.n,type="T",aggregate_id="a""#;
    shell.run_with(&["import", "--map", map, "-"], &record).succeeded().told("25,000 stored, 0 already there");
    let loaded = shell.load();
    assert!((0..25_000).zip(&loaded).all(|(n, event)| event["id"] == n.to_string().as_str()), "in their order");
    // An event that is refused in the middle stops the import before later ones.
    let shell = Shell::new();
    let record = record.replace("{\"n\":20000}", "{\"n\":1,\"other\":true}");
    let done = shell.run_with(&["import", "--map", map, "-"], &record);
    done.failed("duplicate_event", &["line 1, element 20001: ", " stored, 0 already there before that"]);
    assert!(shell.load().len() <= 20_000);
}

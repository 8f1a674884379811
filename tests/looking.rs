//! Finding events and aggregates with the command, run as users run it.

#![cfg(feature = "lmdb")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod shell;
mod signals;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use shell::{Shell, orders};

impl Shell {
    /// A shell with the events of a shop: orders, payments and shipments.
    fn with_orders() -> Self {
        let shell = Shell::new();
        shell.run(&["import", orders().to_str().unwrap()]).succeeded();
        shell
    }

    /// A shell with these events: id, type, aggregate and recording time.
    fn with_events(events: &[(&str, &str, &str, &str)]) -> Self {
        let shell = Shell::new();
        let lines: String = events
            .iter()
            .map(|(id, event_type, aggregate_id, time)| {
                let event = json!({"id": id, "type": event_type, "aggregate_id": aggregate_id, "recorded_at": time});
                format!("{event}\n")
            })
            .collect();
        shell.write("events.jsonl", lines);
        shell.run(&["import", "events.jsonl"]).succeeded();
        shell
    }

    /// The output lines of a command that must succeed.
    #[track_caller]
    fn lines(&self, args: &[&str]) -> Vec<Value> {
        self.run(args).succeeded().events()
    }

    /// The ids of the events that `load` finds with these arguments.
    #[track_caller]
    fn found(&self, args: &[&str]) -> Vec<String> {
        let events = self.lines(&[&["load"], args].concat());
        events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn events_are_found_by_type_and_by_the_beginning_of_their_aggregate() {
    let shell = Shell::with_orders();
    let all = shell.lines(&["load"]);
    let ids = |wanted: &dyn Fn(&Value) -> bool| -> Vec<_> {
        all.iter().filter(|event| wanted(event)).map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    };
    let types: Vec<_> = all.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let (first, other) = (types[0], *types.iter().find(|other| **other != types[0]).unwrap());
    let expected = ids(&|event| event["type"] == first);
    assert!(expected.len() > 1 && expected.len() < all.len());
    assert_eq!(shell.found(&["--type", first]), expected);
    assert_eq!(
        shell.found(&["--type", first, "--type", other]),
        ids(&|event| event["type"] == first || event["type"] == other)
    );
    assert!(shell.found(&["--type", &first[..first.len() - 1]]).is_empty(), "a type is a whole one");

    let begins = |event: &Value, prefix: &str| event["aggregate_id"].as_str().unwrap().starts_with(prefix);
    let expected = ids(&|event| begins(event, "order-100"));
    assert!(expected.len() > 1 && expected.len() < all.len());
    assert_eq!(shell.found(&["--aggregate-prefix", "order-100"]), expected);
    assert_eq!(shell.found(&["--aggregate-prefix", ""]).len(), all.len());
    assert!(shell.found(&["--aggregate-prefix", "Order-"]).is_empty());
    let both = ["--aggregate-prefix", "order-100", "--type", first, "--since", "10"];
    let expected =
        ids(&|event| begins(event, "order-100") && event["type"] == first && event["version"].as_u64() > Some(10));
    assert!(!expected.is_empty());
    assert_eq!(shell.found(&both), expected);
    let aggregate = all[0]["aggregate_id"].as_str().unwrap();
    let expected = ids(&|event| event["aggregate_id"] == aggregate && event["type"] == first);
    assert_eq!(shell.found(&["--aggregate", aggregate, "--type", first]), expected);
    let refused = shell.run(&["load", "--aggregate", "a", "--aggregate-prefix", "a"]);
    assert_eq!(refused.code, Some(2));
}

#[test]
fn what_an_aggregate_has_got_since_a_revision_is_found() {
    let shell = Shell::with_orders();
    let all = shell.lines(&["load"]);
    let longest = all.iter().max_by_key(|event| event["revision"].as_u64()).unwrap();
    let (aggregate, revision) = (longest["aggregate_id"].as_str().unwrap(), longest["revision"].as_u64().unwrap());
    assert!(revision > 2);
    let ids = |since: u64| -> Vec<_> {
        let wanted = |event: &&Value| event["aggregate_id"] == aggregate && event["revision"].as_u64() > Some(since);
        all.iter().filter(wanted).map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    };
    for since in 0..=revision + 1 {
        let found = shell.found(&["--aggregate", aggregate, "--since-revision", &since.to_string()]);
        assert_eq!(found, ids(since), "since revision {since}");
    }
    let newer = all.iter().filter(|event| event["revision"].as_u64() > Some(1)).count();
    assert_eq!(shell.found(&["--since-revision", "1"]).len(), newer, "of all aggregates");
    let refused = shell.run(&["load", "--aggregate", aggregate, "--since-revision", "-1"]);
    assert_eq!(refused.code, Some(2));
}

#[test]
fn a_limit_counts_what_is_printed() {
    let shell = Shell::with_orders();
    let all = shell.found(&["--type", "OrderPlaced"]);
    assert!(all.len() > 4);
    assert_eq!(shell.found(&["--type", "OrderPlaced", "--limit", "3"]), all[..3]);
    let backward: Vec<_> = all.iter().rev().take(3).cloned().collect();
    assert_eq!(shell.found(&["--type", "OrderPlaced", "--limit", "3", "--backward"]), backward);
    assert!(shell.found(&["--type", "OrderPlaced", "--limit", "0"]).is_empty());
    assert_eq!(shell.found(&["--type", "OrderPlaced", "--limit", "1000"]), all);
    let output = shell.run(&["load", "--type", "OrderPlaced", "--limit", "2", "--format", "table"]);
    assert_eq!(output.stdout.lines().count(), 3, "the titles and two rows");
    let output = shell.run(&["load", "--type", "Nothing", "--format", "table"]);
    assert_eq!(output.stdout.lines().count(), 1, "the titles alone");
}

#[test]
fn following_prints_what_is_looked_for_and_ends_with_the_limit() {
    let shell = Shell::with_orders();
    let all = shell.found(&["--type", "OrderPlaced"]);
    let args = ["--follow", "--type", "OrderPlaced"];
    let limit = all.len().to_string();
    assert_eq!(shell.found(&[&args[..], &["--limit", &limit]].concat()), all);
    assert!(shell.found(&[&args[..], &["--limit", "0"]].concat()).is_empty());
    // Without a limit it does not end, but existing events are printed at once.
    let mut child =
        shell.command(&["load", "--follow", "--type", "OrderPlaced"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for id in &all {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(event["id"], id.as_str());
    }
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn events_are_found_by_the_time_of_recording() {
    // Times need not rise with versions.
    let shell = Shell::with_events(&[
        ("march", "T", "a", "2025-03-01T00:00:00Z"),
        ("january", "T", "a", "2025-01-01T00:00:00Z"),
        ("later", "U", "a", "2025-01-01T00:00:00.000001Z"),
        ("february", "T", "b", "2025-02-01T00:00:00Z"),
        ("before", "T", "b", "2024-12-31T23:59:59.999999Z"),
    ]);
    let january = ["--recorded-since", "2025-01-01", "--recorded-until", "2025-02-01"];
    assert_eq!(shell.found(&january), ["january", "later"]);
    assert_eq!(shell.found(&["--recorded-since", "2025-01-01T00:00:00.000001Z"]), ["march", "later", "february"]);
    assert_eq!(shell.found(&["--recorded-since", "2025-02-01T01:00:00+01:00"]), ["march", "february"]);
    assert_eq!(shell.found(&["--recorded-until", "2025-01-01"]), ["before"]);
    assert_eq!(shell.found(&[&january[..], &["--type", "U"]].concat()), ["later"]);
    assert_eq!(shell.found(&[&january[..], &["--backward", "--limit", "1"]].concat()), ["later"]);
    assert!(shell.found(&["--recorded-since", "2025-02-01", "--recorded-until", "2025-01-01"]).is_empty());
    for text in ["yesterday", "2025", "2025-13-01", "1969-12-31", "2025-01-01T00:00:00"] {
        for option in ["--recorded-since", "--recorded-until"] {
            let refused = shell.run(&["load", option, text]);
            let told = refused.stderr;
            assert_eq!((refused.code, told.lines().count()), (Some(2), 1), "{told}");
            assert!(told.contains(text) && told.contains("date"), "{told}");
        }
    }
}

#[test]
fn aggregates_are_listed_with_how_far_they_have_come() {
    let shell = Shell::with_orders();
    let all = shell.lines(&["load"]);
    let mut expected: Vec<Value> = Vec::new();
    for event in &all {
        let listed =
            json!({"aggregate_id": event["aggregate_id"], "revision": event["revision"], "version": event["version"]});
        match expected.iter_mut().find(|listed| listed["aggregate_id"] == event["aggregate_id"]) {
            Some(earlier) => *earlier = listed,
            None => expected.push(listed),
        }
    }
    assert_eq!(expected.len(), 33);
    expected.sort_by_key(|listed| listed["aggregate_id"].as_str().unwrap().to_owned());
    assert_eq!(shell.lines(&["aggregates"]), expected);
    expected.retain(|listed| listed["aggregate_id"].as_str().unwrap().starts_with("order-10"));
    assert!(!expected.is_empty());
    assert_eq!(shell.lines(&["aggregates", "--prefix", "order-10"]), expected);
    assert!(shell.lines(&["aggregates", "--prefix", "nobody"]).is_empty());
}

#[test]
fn aggregates_of_many_events_are_listed_once() {
    let events: Vec<_> = (0..2_000).map(|n| (format!("e{n}"), format!("a\n{}", n * 7919 % 331))).collect();
    let events: Vec<_> =
        events.iter().map(|(id, of)| (id.as_str(), "T", of.as_str(), "2025-01-01T00:00:00Z")).collect();
    let shell = Shell::with_events(&events);
    let listed = shell.lines(&["aggregates"]);
    assert_eq!(listed.len(), 331);
    let ids: Vec<_> = listed.iter().map(|aggregate| aggregate["aggregate_id"].as_str().unwrap()).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "in the order of their ids: {ids:?}");
    for aggregate in &listed {
        let of = aggregate["aggregate_id"].as_str().unwrap();
        let (last, _) = events.iter().enumerate().rfind(|(_, event)| event.2 == of).unwrap();
        let count = events.iter().filter(|event| event.2 == of).count() as u64;
        assert_eq!(
            (aggregate["version"].as_u64(), aggregate["revision"].as_u64()),
            (Some(last as u64 + 1), Some(count))
        );
    }
}

#[test]
fn aggregates_of_a_store_that_is_empty_or_not_there() {
    let shell = Shell { directory: tempfile::tempdir().unwrap() };
    let refused = shell.run(&["aggregates"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("no store"));
    let mut append = shell.command(&["append"]).stdin(Stdio::piped()).spawn().unwrap();
    append.stdin.take().unwrap().write_all(b"").unwrap();
    assert!(append.wait().unwrap().success());
    assert!(shell.lines(&["aggregates"]).is_empty());
}

#[test]
fn what_is_behind_a_cursor_is_loaded_if_it_is_of_the_same_history() {
    let shell = Shell::with_orders();
    let printed = |args: &[&str]| shell.run(args).succeeded().stdout.trim().to_owned();
    let (latest, cursor) = (printed(&["latest"]), printed(&["latest", "--cursor"]));
    assert!(cursor.starts_with(&format!("{latest}-")) && cursor.len() == latest.len() + 9, "{cursor}");
    shell.write("more.jsonl", json!({"id": "one more", "type": "Added", "aggregate_id": "order-1"}).to_string());
    shell.run(&["import", "more.jsonl"]).succeeded();
    let behind = shell.lines(&["load", "--since", &cursor]);
    assert!(behind.len() == 1 && behind[0]["id"] == "one more", "{behind:?}");
    let other = Shell::with_events(&[("a", "T", "a", "2024-01-01T00:00:00Z")]);
    other.run(&["load", "--since", &cursor]).failed("history_diverged", &[&cursor, "1-"]);
    other.run(&["load", "--follow", "--since", &cursor]).failed("history_diverged", &[&cursor]);
    other.run(&["load", "--since", "1-00"]).failed("invalid_version", &["1-00"]);
}

//! The table of checks in `docs/contract.md` matches the registered checks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use conformance::{CheckInfo, Profile, Suite};

/// If it is set to `write`, the table is updated.
const VARIABLE: &str = "EVENTSTORE_CONFORMANCE_TABLE";
/// The end of a comment about that.
const BEGIN: &str = "--test contract -->\n";
const END: &str = "<!-- The checks end here. -->";

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/contract.md")
}

/// The description of each check, for a store with all capabilities, and whether it runs on any store at all.
fn checks() -> Vec<(CheckInfo, bool)> {
    let never = |_| std::future::pending();
    let checks_of = |profile| Suite::new("any", profile, never).read_only(never).checks().collect::<Vec<_>>();
    let (everything, nothing) =
        (checks_of(Profile::persistent()), checks_of(Profile::in_memory().without_verification()));
    let runs = |(one, other): (CheckInfo, CheckInfo)| {
        let runs = one.ignored.is_none() || other.ignored.is_none();
        (one, runs)
    };
    everything.into_iter().zip(nothing).map(runs).collect()
}

/// The rows. A rule's number is only in its first row.
fn table() -> String {
    let mut table = "| rule | check |\n|---|---|\n".to_owned();
    let mut last = None;
    for (check, runs) in checks() {
        let rule = check.rule.clone().unwrap_or_else(|| "all".to_owned());
        let number = if last.as_ref() == Some(&rule) { String::new() } else { format!(" {rule}") };
        let _ = write!(table, "|{number} | `{}`", check.name);
        if !runs {
            let _ = write!(table, " does not run: it {}", check.ignored.unwrap_or_default());
        }
        table.push_str(" |\n");
        last = Some(rule);
    }
    table
}

#[test]
fn the_document_lists_every_check_with_its_rule() {
    let path = document();
    let text = fs::read_to_string(&path).expect("docs/contract.md is there");
    let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
    let (found, after) = rest.split_once(END).expect("where the table ends");
    let expected = format!("\n{}\n", table());
    if env::var(VARIABLE).is_ok_and(|value| value == "write") {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).expect("written");
        return;
    }
    assert!(
        found == expected,
        "the table of checks in docs/contract.md is not that of the registered checks; write it anew with\n    \
         {VARIABLE}=write cargo test -p synckit-conformance --test contract\n{}",
        first_difference(found, &expected)
    );
}

fn first_difference(found: &str, expected: &str) -> String {
    let mut lines = expected.lines();
    for found in found.lines() {
        let expected = lines.next().unwrap_or("nothing more");
        if found != expected {
            return format!("the first row that differs is\n    {found}\nand has to be\n    {expected}");
        }
    }
    format!("the row that is missing is\n    {}", lines.next().unwrap_or("an empty one"))
}

#[test]
fn every_rule_has_a_check() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../eventstore-api/src/rules.md");
    let text = fs::read_to_string(path).expect("the rules are there");
    let number = |line: &str| line.strip_prefix("- **")?.split_once("** ").map(|(number, _)| number.to_owned());
    let rules: BTreeSet<_> = text.lines().filter_map(number).collect();
    assert!(rules.len() > 30, "{rules:?}");
    let checked: BTreeSet<_> = checks().into_iter().filter_map(|(check, _)| check.rule).collect();
    assert_eq!(rules, checked, "the rules, and those of the checks");
}

/// A failure prints the text of the rule, which must begin with the number.
#[test]
fn every_text_begins_with_the_number_of_its_rule() {
    for (check, _) in checks() {
        let begin = check.rule.as_deref().unwrap_or("All rules");
        let rest = check.text.strip_prefix(begin);
        assert!(rest.is_some_and(|rest| rest.starts_with([':', ','])), "{}: {}", check.name, check.text);
        assert!(check.text.ends_with('.') && !check.text.contains("  "), "{}: {}", check.name, check.text);
    }
}

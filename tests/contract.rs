//! `docs/contract.md` has the rules of the trait's rustdoc, word for word.

use std::collections::BTreeMap;

/// The text of each rule, by its number, without line breaks and emphasis.
fn rules(text: &str) -> BTreeMap<String, String> {
    let mut rules = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        let line = line.trim_start_matches("///").trim();
        if let Some((number, rest)) = line.strip_prefix("- **").and_then(|line| line.split_once("** ")) {
            rules.insert(number.to_owned(), rest.to_owned());
            current = Some(number.to_owned());
        } else if line.is_empty() || line.starts_with(['#', '|', '-']) {
            current = None;
        } else if let Some(rule) = current.as_ref().and_then(|number| rules.get_mut(number)) {
            rule.push(' ');
            rule.push_str(line);
        }
    }
    rules
}

#[test]
fn the_document_and_the_rustdoc_have_the_same_rules() {
    let rustdoc = rules(include_str!("../eventstore-api/src/store.rs"));
    let document = rules(include_str!("../docs/contract.md"));
    assert_eq!(rustdoc, document);
    let numbers: Vec<_> = rustdoc.keys().map(String::as_str).collect();
    let expected = [
        "C1", "C2", "C3", "C4", "C5", "C6", "F1", "F2", "F3", "F4", "L1", "L2", "L3", "M1", "M2", "M3", "M4", "M5",
        "M6", "O1", "O2", "O3", "O4", "O5", "O6", "O7", "O8", "O9", "S1", "S2", "W1", "W2", "W3", "W4", "W5", "W6",
        "W7",
    ];
    assert_eq!(numbers, expected);
}

#[test]
fn the_document_has_every_error_with_its_code() {
    let errors = include_str!("../eventstore-api/src/error.rs");
    let document = include_str!("../docs/contract.md");
    let (_, codes) = errors.split_once("pub fn code(&self)").expect("the table of codes");
    let (codes, _) = codes.split_once("\n    }\n").expect("its end");
    let mut count = 0;
    for line in codes.lines().filter(|line| line.contains("=>")) {
        let variant = line.trim().trim_start_matches("Error::").split([' ', '{']).next().expect("a variant");
        let code = line.split('"').nth(1).expect("a code");
        assert!(document.contains(&format!("| `{variant}` | `{code}` |")), "{variant} {code}");
        count += 1;
    }
    assert_eq!(count, 17);
}

//! The documents agree with the code on the rules of the contract and its errors.

#[test]
fn the_rules_have_their_numbers_and_the_trait_shows_them() {
    let rules = include_str!("../../eventstore-api/src/rules.md");
    let number = |line: &'static str| line.strip_prefix("- **")?.split_once("** ").map(|(number, _)| number);
    let numbers: Vec<_> = rules.lines().filter_map(number).collect();
    let expected = [
        "O1", "O2", "O3", "O4", "O5", "O6", "O7", "O8", "O9", "W1", "W2", "W3", "W4", "W5", "W6", "W7", "C1", "C2",
        "C3", "C4", "C5", "C6", "L1", "L2", "L3", "L4", "F1", "F2", "F3", "F4", "F5", "S1", "S2", "S3", "M1", "M2",
        "M3", "M4", "M5", "M6", "R1", "R2", "R3", "R4",
    ];
    assert_eq!(numbers, expected);
    assert!(include_str!("../../eventstore-api/src/store.rs").contains(r#"#[doc = include_str!("rules.md")]"#));
    assert!(include_str!("../../docs/contract.md").contains("(../eventstore-api/src/rules.md)"));
}

#[test]
fn the_documents_have_every_error() {
    let errors = include_str!("../../eventstore-api/src/error.rs");
    let document = include_str!("../../docs/contract.md");
    let guide = include_str!("../../docs/guide.md");
    let (_, codes) = errors.split_once("pub fn code(&self)").expect("the table of codes");
    let (codes, _) = codes.split_once("\n    }\n").expect("its end");
    let mut count = 0;
    for line in codes.lines().filter(|line| line.contains("=>")) {
        let variant = line.trim().trim_start_matches("Error::").split([' ', '{']).next().expect("a variant");
        let code = line.split('"').nth(1).expect("a code");
        assert!(document.contains(&format!("| `{variant}` | `{code}` |")), "{variant} {code}");
        assert!(guide.contains(&format!("| `{variant}` | ")), "{variant} has no status of HTTP in the guide");
        count += 1;
    }
    assert_eq!(count, 21);
}

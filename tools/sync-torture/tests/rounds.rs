//! Some rounds, and rules without which they break.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

/// Runs the command, and gives whether all was well and what it printed.
fn torture(args: &[&str]) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync-torture"));
    command.args(args).arg("--quiet").arg("--directory").arg(directory.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(0) && !args.contains(&"--off") {
        // For whoever looks into it.
        let _ = directory.keep();
    }
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}: {text}", output.status);
    (output.status.success(), text)
}

#[test]
fn nothing_breaks_in_some_rounds() {
    let (is_well, text) = torture(&["--rounds", "20", "--seed", "1"]);
    assert!(is_well, "{text}");
    // There was something that could have broken.
    let count = |what: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("| {what} |"))).unwrap();
        line.rsplit('|').nth(1).unwrap().trim().parse::<u64>().unwrap()
    };
    for what in ["replicas killed", "hubs killed", "power cuts of replicas", "full disks", "of these cut or refused"] {
        assert!(count(what) > 0, "{what}: {text}");
    }
    assert!(count("batches acknowledged") > 500, "{text}");
}

/// Of what is shown, and of what decisions stand on.
#[test]
fn without_a_rule_some_round_breaks() {
    for rule in ["AckIsNoConfirmation", "AnywayHasCondition", "NoSilentMove"] {
        // It ends with the first that breaks, usually one of ten.
        let (is_well, text) = torture(&["--rounds", "1000", "--seed", "1", "--off", rule]);
        assert!(!is_well && text.contains("BROKEN"), "nothing breaks without {rule}: {text}");
    }
}

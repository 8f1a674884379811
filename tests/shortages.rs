//! A lack of resources is an error, and is not reported as damage to the store.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(unix)]

#[path = "../eventstore/tests/common/mod.rs"]
mod common;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::BACKENDS;

/// Runs the command with at most this many file descriptors.
fn run(url: &str, args: &[&str], descriptors: u32) -> Output {
    let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_eventstore"), "--store", url]).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Creates a store with several segments, and an index that was written in many parts.
fn fill(url: &str) {
    for part in 0..20 {
        let mut import = Command::new(env!("CARGO_BIN_EXE_eventstore"));
        import.args(["--store", url, "import", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut import = import.spawn().unwrap();
        let mut lines = String::new();
        for n in 0..100 {
            let data = "x".repeat(300);
            lines +=
                &format!("{{\"id\":\"{part}-{n}\",\"type\":\"T\",\"aggregate_id\":\"a-{n}\",\"data\":\"{data}\"}}\n");
        }
        import.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(import.wait().unwrap().success());
    }
}

#[test]
fn with_too_few_file_descriptors_a_sound_store_is_not_called_damaged() {
    for backend in BACKENDS {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("store");
        let url = format!("{backend}:{}?segment_size=64KiB&index_events=50", path.display());
        fill(&url);
        let (mut has_failed, mut has_succeeded) = (false, false);
        // The runtime takes seven. Some numbers are enough to open the store, but not for what follows.
        for descriptors in (8..40).chain([48, 64, 256]) {
            for args in [&["verify"][..], &["get", "19-99"]] {
                let output = run(&url, args, descriptors);
                let (told, error) = (text(&output.stdout), text(&output.stderr));
                let what = format!("{backend}, {args:?} with {descriptors}: {told}{error}");
                assert!(!error.contains("panicked") && output.status.code().is_some(), "{what}");
                if output.status.success() {
                    has_succeeded = true;
                    continue;
                }
                has_failed = true;
                assert!(error.contains("error[") && !error.contains("error[corrupt]") && told.is_empty(), "{what}");
            }
            // sled's index is rebuilt after every unclean shutdown.
            let is_aside = path.join("index.damaged").exists();
            assert!(*backend == "sled" || !is_aside, "{backend}: the index is put aside with {descriptors}");
        }
        assert!(has_failed && has_succeeded, "{backend}");
        let output = run(&url, &["verify"], 256);
        assert!(output.status.success(), "{backend}: {}", text(&output.stderr));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

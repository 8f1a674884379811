//! File permissions of a store: the owner may read and write, and the group as far as the umask allows, with any
//! engine.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(unix)]

#[path = "../eventstore/tests/common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{BACKENDS, below};

/// Runs the command, once or several times, with this umask.
fn run(umask: &str, arguments: &[&[&str]]) {
    for arguments in arguments {
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_eventstore")]).args(*arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_umask_says_who_else_may_read_and_write_a_store_and_never_everybody() {
    for backend in BACKENDS {
        for (umask, directory, file) in [("002", 0o770, 0o664), ("022", 0o750, 0o644), ("077", 0o700, 0o600)] {
            let temporary = tempfile::tempdir().unwrap();
            let path = |name: &str| temporary.path().join("made").join(name);
            let url = |name: &str| format!("{backend}:{}", path(name).display());
            let orders = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/orders.jsonl");
            let (store, copy, backup) = (url("store"), url("copy"), path("backup"));
            let backup = backup.to_str().unwrap();
            run(
                umask,
                &[
                    &["--store", &store, "import", orders],
                    &["--store", &store, "copy", "--to", &copy],
                    &["--store", &store, "backup", backup],
                    &["--store", &url("restored"), "restore", backup],
                    &["--store", &store, "verify"],
                ],
            );
            for name in ["store", "copy", "backup", "restored"] {
                assert_eq!(mode(&path(name)), directory, "{backend}: {name} with umask {umask}");
                let content = below(&path(name));
                assert!(content.iter().any(|path| path.ends_with("log")));
                for path in content.iter().filter(|path| path.is_file()) {
                    // RocksDB gives its group only read access, except for the file that each opening writes.
                    let is_rocksdbs = *backend == "rocksdb" && path.parent().unwrap().ends_with("index");
                    let file = if is_rocksdbs && !path.ends_with("LOCK") { file & 0o644 } else { file };
                    assert_eq!(mode(path), file, "{} with umask {umask}", path.display());
                }
            }
        }
    }
}

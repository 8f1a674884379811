//! The command, run as users run it.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::signals;

/// Realistic events of a shop: orders, payments and shipments.
pub(crate) fn orders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/orders.jsonl")
}

/// A directory in which the command runs, with its store in `store`.
pub(crate) struct Shell {
    pub(crate) directory: TempDir,
}

/// The result of a finished command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl Shell {
    pub(crate) fn new() -> Self {
        signals::restore();
        Shell { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventstore"));
        command.current_dir(self.directory.path()).env("EVENTSTORE_URL", "lmdb:./store").args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, "")
    }

    pub(crate) fn run_with(&self, args: &[&str], stdin: impl AsRef<[u8]>) -> Done {
        let mut child = self.spawn(args);
        let mut to = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            let stdin = stdin.as_ref();
            // A failing command closes its stdin early.
            scope.spawn(move || to.write_all(stdin).ok());
            Done::of(child)
        })
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Checks that the store opens and has exactly these events.
    #[track_caller]
    pub(crate) fn holds(&self, ids: &[&str]) {
        let loaded = self.run(&["load"]).succeeded();
        let found: Vec<_> =
            loaded.events().iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect();
        assert_eq!(found, ids);
        let versions: Vec<_> = loaded.events().iter().map(|event| event["version"].as_u64().unwrap()).collect();
        assert_eq!(versions, (1..=ids.len() as u64).collect::<Vec<_>>(), "gapless");
    }
}

impl Done {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Done { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() }
    }

    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
        self
    }

    /// The command must have failed with one line on stderr with this code and these words.
    #[track_caller]
    pub(crate) fn failed(self, code: &str, words: &[&str]) -> Self {
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        assert!(self.stderr.starts_with(&format!("error[{code}]: ")), "{code}: {}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert_eq!(self.code, Some(if code == "usage" { 2 } else { 1 }));
        self
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

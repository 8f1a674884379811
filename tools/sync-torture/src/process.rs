//! A process of a hub or a replica, as its parent sees it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::told::{ROLE, Role, Told};

/// Whoever tells nothing for so long hangs.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A process that is killed when it is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    is_killed: bool,
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, without complaint.
    Itself,
    /// Killed by the parent.
    Killed,
    /// Killed at a call of its own, which is how power cuts end as well.
    AtCall,
}

impl Process {
    /// Starts this program once more. What it complains about goes to a file.
    pub(crate) fn start(program: &Path, name: &str, role: &Role, log: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("a process of {name} cannot be started: {error}");
        let log = std::fs::File::options().create(true).append(true).open(log).map_err(failed)?;
        let role = serde_json::to_string(role).expect("it is made of texts and numbers");
        let mut command = Command::new(program);
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let lines = BufReader::new(stdout).lines();
        Ok(Process { name: name.to_owned(), child, stdin, lines, is_killed: false })
    }

    /// What it tells next; `None` when it has ended.
    pub(crate) async fn told(&mut self) -> Result<Option<Told>, String> {
        let name = &self.name;
        let line = tokio::time::timeout(LONG, self.lines.next_line()).await;
        let line = line.map_err(|_| format!("{name} hangs: it told nothing for {LONG:?}"))?;
        let Some(line) = line.map_err(|error| format!("{name} tells no text: {error}"))? else { return Ok(None) };
        match serde_json::from_str(&line) {
            Ok(told) => Ok(Some(told)),
            // It was killed while it told that.
            Err(_) if self.lines.next_line().await.is_ok_and(|next| next.is_none()) => Ok(None),
            Err(error) => Err(format!("{name} told {line:?}: {error}")),
        }
    }

    /// Bids it do something.
    pub(crate) async fn bid(&mut self, command: &str) {
        // If it has ended, its lines end as well.
        let _ = self.stdin.write_all(format!("{command}\n").as_bytes()).await;
    }

    /// Kills it, as `kill -9` does. What it has told is still to be read.
    pub(crate) fn kill(&mut self) {
        self.is_killed = true;
        let _ = self.child.start_kill();
    }

    /// Waits until it has ended, which has to be as it should.
    pub(crate) async fn end(mut self) -> Result<End, String> {
        let name = &self.name;
        let status = tokio::time::timeout(LONG, self.child.wait()).await;
        let status = status.map_err(|_| format!("{name} does not end"))?;
        let status = status.map_err(|error| format!("{name} cannot be waited for: {error}"))?;
        match (status.signal(), status.code()) {
            (Some(libc::SIGKILL), _) if self.is_killed => Ok(End::Killed),
            (Some(libc::SIGKILL), _) => Ok(End::AtCall),
            (_, Some(0)) => Ok(End::Itself),
            _ => Err(format!("{name} ended with {status}")),
        }
    }
}

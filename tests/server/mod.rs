//! A store served by a separate process.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr};
use std::time::{Duration, Instant};

use crate::shell::Shell;
use crate::signals;

/// `eventstore serve`, which is killed at the end.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) stderr: BufReader<ChildStderr>,
    pub(crate) url: String,
    /// The line that has its address.
    pub(crate) told: String,
}

impl Server {
    pub(crate) fn start(shell: &Shell, args: &[&str]) -> Self {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let mut child = shell.spawn(&[&["serve"], args].concat());
            let mut stderr = BufReader::new(child.stderr.take().unwrap());
            let mut line = String::new();
            stderr.read_line(&mut line).unwrap();
            let url = line.split(" at ").nth(1).and_then(|rest| rest.split(';').next()).map(str::to_owned);
            match url {
                Some(url) => return Server { child, stderr, url, told: line },
                // A process that another test has just started may still have the socket of an earlier server.
                None if line.contains("cannot listen") && Instant::now() < until => drop(child.wait().unwrap()),
                None => panic!("no address in {line:?}"),
            }
        }
    }

    pub(crate) fn on_any_port(shell: &Shell, args: &[&str]) -> Self {
        Self::start(shell, &[&["--listen", "127.0.0.1:0"], args].concat())
    }

    pub(crate) fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it with a signal. Returns its exit code and the rest of its output.
    pub(crate) fn end(mut self, signal: i32) -> (Option<i32>, String) {
        signals::send(&self.child, signal);
        let code = self.child.wait().unwrap().code();
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (code, rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A process of its own that fills a store, and is killed while the store is open.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::contestants::Contestant;
use crate::events::{Corpus, Ids};
use crate::machine;
use crate::turn::{self, Fill};

/// What the filling process tells, before it waits to be killed.
#[derive(Serialize, Deserialize)]
pub(crate) struct Filled {
    pub(crate) rates: turn::Rates,
    pub(crate) memory: Option<Memory>,
}

/// Bytes of anonymous memory beyond those that the process had before it opened the store.
#[derive(Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Some time after the last append.
    pub(crate) after: u64,
    /// Before an append.
    pub(crate) most: u64,
}

/// Fills a store in a process of its own, and kills that. With `idle`, its caches are small, and its memory is measured after
/// that time.
pub(crate) fn fill_and_kill(
    contestant: &Contestant,
    corpus: Corpus,
    directory: &Path,
    idle: Option<Duration>,
) -> Result<Filled> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("fill").args(["--contestant", contestant.name, "--events", &corpus.events().to_string()]);
    command.arg("--directory").arg(directory);
    if let Some(idle) = idle {
        command.args(["--memory-after", &idle.as_millis().to_string()]);
    }
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut child = KilledOnDrop(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().context("it is piped")?).read_line(&mut line)?;
    if line.is_empty() {
        let mut reason = String::new();
        child.0.stderr.take().context("it is piped")?.read_to_string(&mut reason)?;
        bail!("the process that fills the store ended: {}", reason.trim());
    }
    // While the store is open in it.
    child.0.kill()?;
    child.0.wait()?;
    Ok(serde_json::from_str(&line)?)
}

/// Leaves no process behind, whatever goes wrong.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The filling process: tells what it found, and keeps the store open until it is killed or its caller is gone.
pub(crate) fn fill(contestant: &Contestant, events: u64, directory: &Path, idle: Option<Duration>) -> Result<()> {
    let corpus = Corpus::new(events, Ids::TimeOrdered);
    let (store, filled) = match idle {
        Some(idle) => {
            let before = machine::anonymous_memory()?;
            let store = contestant.open_small.unwrap_or(contestant.open)(directory)?;
            let most = Arc::new(AtomicU64::new(0));
            let seen = most.clone();
            let fill = Fill::watched(corpus, move |_| {
                seen.fetch_max(machine::anonymous_memory().unwrap_or_default(), Ordering::Relaxed);
            });
            let rates = fill.into_store(&*store)?;
            thread::sleep(idle);
            let beyond = |bytes: u64| bytes.saturating_sub(before);
            let after = beyond(machine::anonymous_memory()?);
            let memory = Memory { after, most: beyond(most.load(Ordering::Relaxed)).max(after) };
            (store, Filled { rates, memory: Some(memory) })
        }
        None => {
            let store = (contestant.open)(directory)?;
            let rates = Fill::new(corpus).into_store(&*store)?;
            (store, Filled { rates, memory: None })
        }
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(&filled)?)?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(store);
    Ok(())
}

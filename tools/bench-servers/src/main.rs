//! A served eventstore beside the servers of its peers, under the same workloads in one run.
//!
//! The workloads, the rounds and the report are those of `bench-peers`; only the contestants differ. See `README.md`.

mod contestants;
#[expect(dead_code, reason = "no server has an index by the bytes of an id")]
#[path = "../../bench-peers/src/events.rs"]
mod events;
#[path = "../../bench-peers/src/machine.rs"]
mod machine;
#[path = "../../bench-peers/src/own.rs"]
mod own;
#[path = "../../bench-peers/src/process.rs"]
mod process;
#[path = "../../bench-peers/src/report.rs"]
mod report;
#[path = "../../bench-peers/src/run.rs"]
mod run;
#[path = "../../bench-peers/src/turn.rs"]
mod turn;
#[path = "../../bench-peers/src/workloads.rs"]
mod workloads;

use std::io::Write;
use std::process::ExitCode;

use crate::workloads::Kind;

fn main() -> anyhow::Result<ExitCode> {
    for (executable, contestants) in contestants::missing() {
        writeln!(std::io::stderr(), "left out: {contestants}, as `{executable}` is not in PATH")?;
    }
    // The others are about a store's files, or need a process with the store in it.
    run::main(|workload| workload.kind.shares_store() && !matches!(workload.kind, Kind::Follow))
}

//! eventstore, the raw engines below it and its peers, under the same workloads in one run on one machine.
//!
//! See `README.md`.

mod contestants;
mod events;
mod machine;
mod own;
mod process;
mod report;
mod run;
mod turn;
mod workloads;

// The floors are those of the root's own benchmarks.
#[expect(dead_code, reason = "not all of it is measured here")]
#[path = "../../benches/store/raw.rs"]
mod raw;
#[path = "../../benches/store/raw_lmdb.rs"]
mod raw_lmdb;
#[path = "../../benches/store/raw_rocksdb.rs"]
mod raw_rocksdb;
#[path = "../../benches/store/raw_sled.rs"]
mod raw_sled;

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    run::main(|_| true)
}

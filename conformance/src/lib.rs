//! The conformance suite of the event store contract: it runs against any
//! [`EventStore`](eventstore_api::EventStore), also one of your own, and knows no backend.
//!
//! The rules are those in the documentation of the trait; each check is named after the rule it checks, as in
//! `order::o1_versions_run_from_one_without_a_gap`. A test target with `harness = false` is all it takes:
//!
//! ```no_run
//! use std::process::ExitCode;
//! # use std::sync::Arc;
//! # use eventstore_api::{Error, EventStore};
//! # async fn open(_: std::path::PathBuf) -> Result<Arc<dyn EventStore>, Error> { Err(Error::Closed) }
//!
//! fn main() -> ExitCode {
//!     conformance::run("mine", conformance::Profile::persistent(), |directory| async { open(directory).await })
//! }
//! ```
//!
//! The command line is that of `cargo test`: a filter, `--list`, `--exact`, `--test-threads`. A rule that cannot be
//! checked here shows as ignored, with the reason.
//!
//! A failure names the rule, what was expected and what came, the operations that led to it, and the seed:
//!
//! ```text
//! the number of aggregates that `stats` gives after a history
//!   expected   3
//!   got        4
//!   operations all 4, the oldest first:
//!     1. open store → opened
//!     2. append "history-1" of "a", on any → version 1, revision 1
//!     3. append 3 events, "history-2" to "history-4" of "b" and others, on any → version 2, revision 1; …
//!     4. stats → version 4, 4 aggregates
//!   rule       M5: `stats` tells the numbers of events and aggregates as they are.
//!   runtime    multi-thread
//!   seed       16377631705692439067; EVENTSTORE_CONFORMANCE_SEED=16377631705692439067 runs it again
//!   checked    at conformance/src/rules/maintenance.rs:644
//! ```
//!
//! Of a check that hangs it tells which call has not returned. A program that shows a report of its own runs a [`Suite`]
//! with [`Suite::run_all`].
//!
//! # What can be trusted
//!
//! For each check there is a store that it refuses, in `tests/mutants`: the simplest store that keeps the contract, with
//! one fault. What no check covers is in the last section of `docs/contract.md`, beside the checks of each rule.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `EVENTSTORE_CONFORMANCE_SEED` | the seed of everything random; a failure prints the one it ran with |
//! | `EVENTSTORE_CONFORMANCE_CASES` | how many random programs the model check runs: by default 2,000 on a store in memory and 200 on others; `unbounded` for as many as it can until one fails |

#![forbid(unsafe_code)]

#[macro_use]
mod failure;
mod calls;
mod check;
#[cfg(feature = "crash")]
pub mod crash;
mod env;
mod events;
mod history;
mod journal;
mod model;
mod parallel;
mod profile;
mod random;
mod reading;
mod report;
mod rules;
mod suite;
mod tasks;

pub use failure::Failure;
pub use profile::Profile;
pub use report::{CheckReport, Report, RuleReport};
pub use suite::{CheckInfo, Outcome, Suite, check_environment, run};

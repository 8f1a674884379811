//! The conformance suite of the event store contract. It runs against any [`EventStore`](eventstore_api::EventStore),
//! including your own, and depends on no backend.
//!
//! The rules are in the documentation of the trait. Each check is named after its rule, as in
//! `order::o1_versions_run_from_one_without_a_gap`. You only need a test target with `harness = false`:
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
//! checked here is listed as ignored, with the reason.
//!
//! A failure prints the rule, the expected and the actual value, the operations that led to it, and the seed:
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
//!   rule       M5: `stats` reports the actual numbers of events and aggregates.
//!   runtime    multi-thread
//!   seed       16377631705692439067; EVENTSTORE_CONFORMANCE_SEED=16377631705692439067 runs it again
//!   checked    at conformance/src/rules/maintenance.rs:644
//! ```
//!
//! If a check hangs, the suite prints which call has not returned. To print your own report, run a [`Suite`] with
//! [`Suite::run_all`].
//!
//! If your store can be opened read-only, check that as well: `Suite::new("mine", profile, open)` with
//! [`read_only`](Suite::read_only), and then [`run`](Suite::run).
//!
//! # How the checks are tested
//!
//! For each check there is a wrong store that it rejects, in `tests/mutants`: the simplest store that keeps the
//! contract, with one bug. The last section of `docs/contract.md` lists the checks of each rule, and what no check
//! covers.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `EVENTSTORE_CONFORMANCE_SEED` | the seed of all random choices; a failure prints its seed |
//! | `EVENTSTORE_CONFORMANCE_CASES` | the number of random programs in the model check: by default 2,000 on a store in memory and 200 on others; `unbounded` runs until one fails |

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[macro_use]
mod failure;
mod calls;
mod check;
#[cfg(feature = "crash")]
pub mod crash;
mod env;
mod events;
mod files;
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

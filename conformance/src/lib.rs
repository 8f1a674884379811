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
mod env;
mod events;
mod history;
mod model;
mod profile;
mod random;
mod reading;
mod rules;
mod suite;
mod tasks;

pub use failure::Failure;
pub use profile::Profile;
pub use suite::{Outcome, Suite, run};

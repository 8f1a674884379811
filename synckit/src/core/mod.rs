//! The sync protocol as a state machine, without I/O, clock or randomness.
//!
//! A [`Machine`] says what has to be written and sent, and is told what was written and answered.
//! [`Replica`](crate::Replica) is the shell around it; the simulation in `tools/sync-simulation` is another.

mod listen;
mod machine;
mod record;
mod rules;

pub use listen::{Listener, Notice, PendingEvent, View};
pub use machine::{
    EventPlace, Expectation, Facts, Machine, Misfit, PendingBatch, Proposed, Question, Recovery, Refusal, Refused,
    SameContent, Status, Wanted, Why, Write,
};
pub use record::{
    BatchRecord, BeginRecord, Condition, Decision, MarkRecord, Number, OutcomeRecord, OwnRecord, Record, Scope, Seen,
};
pub use rules::Rule;

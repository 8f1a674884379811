//! What travels from the callers to the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use eventstore_api::{Durability, Event, Expected, Result, Stored};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(crate) enum Message {
    Append(Request),
    /// Wakes a writer that waits for work, so that it sees that the store is closing.
    Wake,
}

/// One append, from the queue to its answer.
pub(crate) struct Request {
    pub(crate) events: Vec<Event>,
    pub(crate) expected: Expected,
    pub(crate) durability: Durability,
    pub(crate) bytes: usize,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Stored>>>,
    /// Its share of the queue's bytes, given back when the request is dropped.
    pub(crate) share: OwnedSemaphorePermit,
}

const QUEUED: u8 = 0;
const STAGED: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Decides the race between the writer, which wants to stage a request, and its caller, who wants to leave: whoever
/// comes first has it. So a caller who has withdrawn knows that nothing was or will be written (rule C2).
#[derive(Debug, Default)]
pub(crate) struct Ticket(AtomicU8);

impl Ticket {
    /// The writer takes the request. False if the caller has withdrawn it.
    pub(crate) fn stage(&self) -> bool {
        self.leave_queue(STAGED)
    }

    /// The caller takes the request back. False if the writer has staged it.
    pub(crate) fn withdraw(&self) -> bool {
        self.leave_queue(WITHDRAWN)
    }

    fn leave_queue(&self, to: u8) -> bool {
        // Nothing else is published through the ticket, so the order of other memory does not matter.
        self.0.compare_exchange(QUEUED, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Withdraws the request when the caller's future is dropped before its answer (rule C4).
pub(crate) struct WithdrawOnDrop(pub(crate) Arc<Ticket>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_staged_or_withdrawn_but_never_both() {
        let staged = Ticket::default();
        assert!(staged.stage());
        assert!(!staged.withdraw());
        let withdrawn = Arc::new(Ticket::default());
        drop(WithdrawOnDrop(withdrawn.clone()));
        assert!(!withdrawn.stage());
    }
}

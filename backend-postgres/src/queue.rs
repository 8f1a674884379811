//! Appends on their way to the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use eventstore_api::{Batch, Context, Durability, Error, Result, Stored};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// The most units that wait.
const ROOM: usize = 1024;

/// The bytes of one unit. An append takes at least one, so there is room for 1,024 appends or 64 MiB.
const UNIT: usize = 64 << 10;

/// One append, from the queue to its answer.
pub(crate) struct Request {
    pub(crate) batch: Batch,
    pub(crate) is_sync: bool,
    pub(crate) bytes: usize,
    pub(crate) since: Instant,
    pub(crate) ticket: Arc<Ticket>,
    reply: oneshot::Sender<Result<Vec<Stored>>>,
    room: OwnedSemaphorePermit,
}

impl Request {
    /// Answers the caller, who finds the room free that the append took.
    pub(crate) fn answer(self, outcome: Result<Vec<Stored>>) {
        let Request { reply, room, .. } = self;
        drop(room);
        let _ = reply.send(outcome); // fails if nobody waits
    }
}

const QUEUED: u8 = 0;
const STAGED: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Decides the race between the writer, which is about to send an append, and its caller, which wants to leave: the
/// first one wins. So a caller who has withdrawn knows that nothing was or will be written (rule C2).
#[derive(Debug, Default)]
pub(crate) struct Ticket(AtomicU8);

impl Ticket {
    /// The writer takes the append, now or in an earlier attempt. False if the caller has withdrawn it.
    pub(crate) fn stage(&self) -> bool {
        // Nothing else is published through the ticket, so relaxed ordering is enough.
        !matches!(self.0.compare_exchange(QUEUED, STAGED, Ordering::Relaxed, Ordering::Relaxed), Err(WITHDRAWN))
    }

    /// The caller takes the append back. False if the writer has it.
    fn withdraw(&self) -> bool {
        self.0.compare_exchange(QUEUED, WITHDRAWN, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WITHDRAWN
    }
}

/// Withdraws an append when the caller's future is dropped before its answer (rule C4).
struct WithdrawOnDrop(Arc<Ticket>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// The callers' side of the queue.
///
/// The channel itself is unbounded. With a bounded channel, a future that was given a slot and is not polled again
/// could keep the writer from being woken.
#[derive(Debug)]
pub(crate) struct Queue {
    requests: mpsc::UnboundedSender<Request>,
    room: Arc<Semaphore>,
    durability: Durability,
}

impl Queue {
    pub(crate) fn new(durability: Durability) -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        (Queue { requests, room: Arc::new(Semaphore::new(ROOM)), durability }, receiver)
    }

    /// Passes the batch to the writer and waits for the answer.
    pub(crate) async fn append(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        let since = Instant::now();
        let bytes = batch.len_bytes();
        let units = (bytes / UNIT + 1).min(ROOM);
        let room = self.room.clone().acquire_many_owned(units as u32);
        let room = ctx.run(room).await?.map_err(|_| Error::Closed)?;
        let (reply, mut answer) = oneshot::channel();
        let ticket = Arc::new(Ticket::default());
        let is_sync = batch.durability.unwrap_or(self.durability) != Durability::Buffered;
        let request = Request { batch, is_sync, bytes, since, ticket: ticket.clone(), reply, room };
        self.requests.send(request).map_err(|_| Error::Closed)?;
        let wanted = WithdrawOnDrop(ticket);
        match ctx.run(&mut answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(unknown("the program's runtime ended", None))),
            Err(ended) if wanted.0.withdraw() => Err(ended),
            Err(ended) => Err(unknown(
                match ended {
                    Error::Cancelled => "cancelled while it was being committed",
                    _ => "the deadline passed while it was being committed",
                },
                None,
            )),
        }
    }

    /// Refuses everyone who waits for room now or later.
    pub(crate) fn close(&self) {
        self.room.close();
    }

    /// The number of units in use, and the bytes that they stand for.
    pub(crate) fn taken(&self) -> (u64, u64) {
        let taken = ROOM.saturating_sub(self.room.available_permits()) as u64;
        (taken, taken * UNIT as u64)
    }
}

pub(crate) fn unknown(reason: impl Into<String>, source: Option<eventstore_api::Source>) -> Error {
    Error::OutcomeUnknown { reason: reason.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_is_staged_or_withdrawn_but_never_both() {
        let staged = Ticket::default();
        assert!(staged.stage() && staged.stage(), "again in the next attempt");
        assert!(!staged.withdraw() && !staged.is_withdrawn());
        let withdrawn = Arc::new(Ticket::default());
        drop(WithdrawOnDrop(withdrawn.clone()));
        assert!(withdrawn.is_withdrawn() && !withdrawn.stage());
    }
}

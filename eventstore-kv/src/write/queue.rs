//! The messages from the callers to the writer.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use eventstore_api::{Durability, Error, Event, Expected, Idempotency, Result, Stored};

use crate::sync::{AtomicU8, Ordering, OwnedSemaphorePermit, Semaphore, oneshot};

pub(crate) enum Message {
    Append(Request),
    /// Wakes a waiting writer, so that it notices that the store is closing.
    Wake,
}

/// One append, from the queue to its answer.
pub(crate) struct Request {
    pub(crate) events: Vec<Event>,
    pub(crate) expected: Expected,
    pub(crate) durability: Durability,
    pub(crate) idempotency: Idempotency,
    /// One for each event, if the append sets them.
    pub(crate) recorded_at: Option<Vec<SystemTime>>,
    pub(crate) bytes: usize,
    pub(crate) queued_at: Instant,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Stored>>>,
    pub(crate) place: Option<Place>,
}

impl Request {
    pub(crate) fn is_sync(&self) -> bool {
        self.durability == Durability::Sync
    }
}

/// The room of a request in the queue. Released when it is dropped.
///
/// The channel itself is unbounded. With a bounded channel, a future that was given a slot and is not polled again
/// could keep the writer from being woken.
pub(crate) struct Place {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// The free room in the queue, in requests and in bytes.
pub(crate) struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all_requests: usize,
    all_bytes: usize,
}

impl Room {
    pub(crate) fn new(requests: usize, bytes: usize) -> Self {
        Room {
            requests: Arc::new(Semaphore::new(requests)),
            bytes: Arc::new(Semaphore::new(bytes)),
            all_requests: requests,
            all_bytes: bytes,
        }
    }

    /// Waits for room for one request of this many bytes. A request larger than the queue waits for the whole queue.
    ///
    /// # Errors
    ///
    /// `Closed` if the store is closed meanwhile.
    ///
    /// # Cancellation
    ///
    /// Dropping the future releases the room that it has.
    pub(crate) async fn take(&self, bytes: usize) -> Result<Place> {
        let share = u32::try_from(bytes.clamp(1, self.all_bytes)).unwrap_or(u32::MAX);
        let bytes = self.bytes.clone().acquire_many_owned(share).await.map_err(|_| Error::Closed)?;
        let request = self.requests.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        Ok(Place { _request: request, _bytes: bytes })
    }

    /// Refuses everyone who waits for room now or later.
    pub(crate) fn close(&self) {
        self.bytes.close();
        self.requests.close();
    }

    /// The number of queued requests, and the bytes of their events.
    pub(crate) fn taken(&self) -> (usize, usize) {
        (
            self.all_requests.saturating_sub(self.requests.available_permits()),
            self.all_bytes.saturating_sub(self.bytes.available_permits()),
        )
    }
}

const QUEUED: u8 = 0;
const STAGED: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Decides the race between the writer, which wants to stage a request, and its caller, which wants to leave: the first
/// one wins. So a caller who has withdrawn knows that nothing was or will be written (rule C2).
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
        // Nothing else is published through the ticket, so relaxed ordering is enough.
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

//! Appends on their way to the session's task.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use eventstore_api::{Batch, CancellationToken, Context, Error, Result, Source, Stored, Written};
use futures_util::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The most units that are with the session; the server accepts no more either.
const ROOM: usize = 1024;

/// The bytes of one unit. An append takes at least one, so there is room for 1,024 appends or 64 MiB.
const UNIT: usize = 64 << 10;

/// How long an append that was sent waits for the server's answer after its context has ended.
const GRACE: Duration = Duration::from_millis(250);

/// The appends that were not sent yet.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The server's address.
    url: String,
    retry_for: Duration,
    state: Mutex<State>,
    /// Wakes the session's task.
    waker: AtomicWaker,
    room: Arc<Semaphore>,
    /// Closing has begun.
    pub(crate) closing: CancellationToken,
    /// The session's task has ended.
    pub(crate) ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// By number.
    waiting: VecDeque<Append>,
    /// The numbers of appends that were taken from `waiting` and then withdrawn.
    withdrawn: Vec<u64>,
    next_number: u64,
    is_closing: bool,
    /// Why there is no connection, and since when.
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug)]
struct Trouble {
    since: Instant,
    reason: String,
    source: Option<Source>,
}

/// An append that the session has or will have.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) number: u64,
    pub(crate) batch: Batch,
    pub(crate) deadline: Option<Instant>,
    /// Nobody waits for it any more, but it was sent.
    pub(crate) is_withdrawn: bool,
    /// The approximate size of its frame in bytes.
    pub(crate) len: usize,
    since: Instant,
    /// Whether an attempt to reach the server has failed since it was queued.
    is_tried: bool,
    reply: oneshot::Sender<Result<Vec<Stored>>>,
    room: OwnedSemaphorePermit,
}

impl Append {
    /// Answers the caller, who finds the room free that the append took.
    pub(crate) fn answer(self, outcome: Result<Vec<Stored>>) {
        let Append { reply, room, .. } = self;
        drop(room);
        let _ = reply.send(outcome); // fails if nobody waits
    }
}

impl Queue {
    pub(crate) fn new(url: String, retry_for: Duration) -> Self {
        Queue {
            url,
            retry_for,
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            room: Arc::new(Semaphore::new(ROOM)),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes the batch to the session and waits for the answer.
    pub(crate) async fn append(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        let since = Instant::now();
        // The approximate size of its frame.
        let len = batch.len_bytes() + 24 * (batch.events.len() + 2);
        let units = (len / UNIT + 1).min(ROOM);
        let room = self.room.clone().acquire_many_owned(units as u32);
        let room = match ctx.run(room).await {
            Ok(room) => room.map_err(|_| Error::Closed)?,
            Err(ended) => return Err(self.not_sent(ended)),
        };
        let (reply, mut answer) = oneshot::channel();
        let append = Append {
            number: 0,
            batch,
            deadline: ctx.deadline(),
            is_withdrawn: false,
            len,
            since,
            is_tried: false,
            reply,
            room,
        };
        let mut wanted = Wanted { queue: self, number: Some(self.push(append)?) };
        match ctx.run(&mut answer).await {
            Ok(answer) => {
                wanted.number = None;
                answer.unwrap_or_else(|_| Err(unknown("the program's runtime ended")))
            }
            Err(ended) if wanted.withdraw() => Err(self.not_sent(ended)),
            Err(ended) => match tokio::time::timeout(GRACE, answer).await {
                Ok(Ok(Err(error))) if error.written() == Written::Nothing => Err(match error {
                    Error::Cancelled | Error::DeadlineExceeded | Error::Unavailable { .. } => ended,
                    // It was refused before it was withdrawn.
                    other => other,
                }),
                Ok(Ok(outcome)) => outcome,
                _ => Err(unknown(match ended {
                    Error::Cancelled => "cancelled while it was with the server",
                    _ => "the deadline passed while it was with the server",
                })),
            },
        }
    }

    /// The error of an append that was never sent before its context ended: there may have been no connection.
    fn not_sent(&self, ended: Error) -> Error {
        match (ended, &self.state().trouble) {
            (Error::DeadlineExceeded, Some(trouble)) => self.unavailable(trouble),
            (ended, _) => ended,
        }
    }

    fn unavailable(&self, trouble: &Trouble) -> Error {
        let Trouble { reason, source, .. } = trouble;
        Error::Unavailable { url: self.url.clone(), reason: reason.clone(), source: source.clone() }
    }

    fn push(&self, mut append: Append) -> Result<u64> {
        let mut state = self.state();
        if state.is_closing {
            drop(state);
            return Err(Error::Closed);
        }
        let number = state.next_number;
        state.next_number += 1;
        append.number = number;
        state.waiting.push_back(append);
        drop(state);
        self.waker.wake();
        Ok(number)
    }

    /// Whether the append was still in the queue, and so was never sent. Otherwise the session is told to cancel it.
    fn withdraw(&self, number: u64) -> bool {
        let mut state = self.state();
        let removed = state.remove(number);
        if removed.is_none() {
            state.withdrawn.push(number);
        }
        drop(state);
        if removed.is_none() {
            self.waker.wake();
        }
        removed.is_some()
    }

    /// Refuses further appends. The session ends when it has handled the queued ones.
    pub(crate) fn close(&self) {
        self.room.close();
        self.state().is_closing = true;
        self.closing.cancel();
        self.waker.wake();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }
}

impl State {
    fn place(&self, number: u64) -> std::result::Result<usize, usize> {
        self.waiting.binary_search_by_key(&number, |append| append.number)
    }

    fn remove(&mut self, number: u64) -> Option<Append> {
        self.place(number).ok().and_then(|place| self.waiting.remove(place))
    }
}

/// Marks an append as awaited until this is dropped.
struct Wanted<'a> {
    queue: &'a Queue,
    number: Option<u64>,
}

impl Wanted<'_> {
    fn withdraw(&mut self) -> bool {
        self.number.take().is_none_or(|number| self.queue.withdraw(number))
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// The side of the session's task.
impl Queue {
    /// Ready when something waits (true), or when nothing does and nothing more will come (false).
    pub(crate) fn poll_work(&self, cx: &mut TaskContext<'_>) -> Poll<bool> {
        self.waker.register(cx.waker());
        let mut state = self.state();
        state.withdrawn.clear(); // nothing was sent
        match (state.waiting.is_empty(), state.is_closing) {
            (false, _) => Poll::Ready(true),
            (true, true) => Poll::Ready(false),
            (true, false) => Poll::Pending,
        }
    }

    /// Whether there is something to send. If not, the task is woken later.
    pub(crate) fn has_work(&self, cx: &TaskContext<'_>) -> bool {
        self.waker.register(cx.waker());
        let state = self.state();
        !state.waiting.is_empty() || !state.withdrawn.is_empty()
    }

    /// Takes what to send: appends into `appends`, as many as fit into one message, and the numbers of withdrawn ones
    /// into `withdrawn`. Ready with true if there is anything, with false if there is nothing and nothing more will
    /// come.
    pub(crate) fn poll_take(
        &self,
        cx: &mut TaskContext<'_>,
        takes_appends: bool,
        appends: &mut Vec<Append>,
        withdrawn: &mut Vec<u64>,
    ) -> Poll<bool> {
        /// The size limit of a message, unless one append is larger.
        const MESSAGE_BYTES: usize = 1 << 20;
        /// The limit of parts in a message.
        const MESSAGE_PARTS: usize = 50_000;
        self.waker.register(cx.waker());
        let mut gone = Vec::new();
        let mut state = self.state();
        std::mem::swap(withdrawn, &mut state.withdrawn);
        for &number in &*withdrawn {
            gone.extend(state.remove(number)); // a session returned it without sending it
        }
        let (mut bytes, mut parts) = (0, 0);
        while takes_appends && let Some(next) = state.waiting.front() {
            bytes += next.len;
            parts += next.batch.events.len() + 1;
            if !appends.is_empty() && (bytes > MESSAGE_BYTES || parts > MESSAGE_PARTS) {
                break;
            }
            appends.extend(state.waiting.pop_front());
        }
        let is_over = state.is_closing && state.waiting.is_empty();
        drop(state);
        gone.into_iter().for_each(|append| append.answer(Err(Error::Cancelled)));
        match (appends.is_empty() && withdrawn.is_empty(), is_over) {
            (false, _) => Poll::Ready(true),
            (true, true) => Poll::Ready(false),
            (true, false) => Poll::Pending,
        }
    }

    /// Puts back what was not sent.
    pub(crate) fn put_back(&self, appends: impl IntoIterator<Item = Append>) {
        let mut state = self.state();
        let mut gone = Vec::new();
        for append in appends {
            let place = state.place(append.number);
            match place {
                Err(place) if !append.is_withdrawn => state.waiting.insert(place, append),
                _ => gone.push(append),
            }
        }
        drop(state);
        gone.into_iter().for_each(|append| append.answer(Err(Error::Cancelled)));
    }

    /// Notes that there is a working connection.
    pub(crate) fn works(&self) {
        self.state().trouble = None;
    }

    /// Notes that there is no connection, for this reason.
    pub(crate) fn is_in_trouble(&self, reason: String, source: Option<Source>) {
        let mut state = self.state();
        let since = state.trouble.take().map_or_else(Instant::now, |trouble| trouble.since);
        state.trouble = Some(Trouble { since, reason, source });
        state.waiting.iter_mut().for_each(|append| append.is_tried = true);
    }

    /// Fails all appends: nothing can be sent, and another attempt would not change that.
    pub(crate) fn fail_all(&self, error: &Error) {
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_iter().for_each(|append| append.answer(Err(error.clone())));
    }

    /// Fails the appends that have waited long enough for a connection, and returns when to check again.
    pub(crate) fn give_up(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        let trouble = state.trouble.clone()?;
        let end = |append: &Append| append.since.max(trouble.since).checked_add(self.retry_for);
        let mut next: Option<Instant> = None;
        let mut failed = Vec::new();
        for append in std::mem::take(&mut state.waiting) {
            match end(&append) {
                Some(end) if append.is_tried && end <= now => failed.push(append),
                end => {
                    // The others are checked when an attempt has failed.
                    next = [next, end.filter(|_| append.is_tried)].into_iter().flatten().min();
                    state.waiting.push_back(append);
                }
            }
        }
        drop(state);
        let error = self.unavailable(&trouble);
        failed.into_iter().for_each(|append| append.answer(Err(error.clone())));
        next
    }

    /// Notes that the session's task has ended.
    pub(crate) fn has_ended(&self) {
        self.close();
        self.fail_all(&Error::Closed);
        self.ended.cancel();
    }
}

pub(crate) fn unknown(reason: &str) -> Error {
    Error::OutcomeUnknown { reason: reason.to_owned(), source: None }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use eventstore_api::{Event, StoreOutcome, Version};

    use super::*;

    fn batch(data: usize) -> Batch {
        Event::builder("T", "a").data(vec![7; data]).build().expect("valid").into()
    }

    fn queue(retry_for: Duration) -> Arc<Queue> {
        Arc::new(Queue::new("http://host".to_owned(), retry_for))
    }

    type Outcome = tokio::task::JoinHandle<Result<Vec<Stored>>>;

    /// Appends, and returns when the appends wait in the queue.
    async fn appending(queue: &Arc<Queue>, ctx: &Context, sizes: &[usize]) -> Vec<Outcome> {
        let begin = |&size: &usize| {
            let (queue, ctx) = (queue.clone(), ctx.clone());
            tokio::spawn(async move { queue.append(&ctx, batch(size)).await })
        };
        let before = queue.state().next_number;
        let appends: Vec<_> = sizes.iter().map(begin).collect();
        while queue.state().next_number < before + sizes.len() as u64 {
            tokio::task::yield_now().await;
        }
        appends
    }

    async fn take(queue: &Queue) -> (Vec<Append>, Vec<u64>) {
        let (mut appends, mut withdrawn) = (Vec::new(), Vec::new());
        let is_more = poll_fn(|cx| queue.poll_take(cx, true, &mut appends, &mut withdrawn)).await;
        assert!(is_more);
        (appends, withdrawn)
    }

    fn numbers(appends: &[Append]) -> Vec<u64> {
        appends.iter().map(|append| append.number).collect()
    }

    #[tokio::test]
    async fn a_message_has_what_waits_up_to_a_size_and_what_comes_back_is_first() {
        let queue = queue(Duration::ZERO);
        let appends = appending(&queue, &Context::background(), &[10, 600 << 10, 600 << 10, 3 << 20, 10]).await;
        let first = take(&queue).await.0;
        assert_eq!(numbers(&first), [0, 1]);
        let second = take(&queue).await.0;
        assert_eq!(numbers(&second), [2]);
        queue.put_back(second.into_iter().chain(first));
        assert_eq!(numbers(&take(&queue).await.0), [0, 1]);
        assert_eq!(numbers(&take(&queue).await.0), [2]);
        assert_eq!(numbers(&take(&queue).await.0), [3], "larger than a message, alone");
        let last = take(&queue).await.0;
        assert_eq!(numbers(&last), [4]);
        let place = Stored::new(Version::new(1), 1.into(), StoreOutcome::Written);
        last.into_iter().for_each(|append| append.answer(Ok(vec![place])));
        for (number, append) in appends.into_iter().enumerate() {
            let outcome = append.await.expect("no panic");
            // The session dropped the others.
            assert_eq!(outcome.is_ok(), number == 4);
            assert!(matches!(outcome, Ok(_) | Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
        }
        assert_eq!(queue.room.available_permits(), ROOM);
    }

    #[tokio::test]
    async fn what_is_withdrawn_is_not_sent_and_what_was_sent_is_told() {
        let queue = queue(Duration::ZERO);
        let stop = CancellationToken::new();
        let ctx = Context::background().with_cancellation(stop.clone());
        let sent = appending(&queue, &ctx, &[1, 1]).await;
        let mut taken = take(&queue).await.0;
        let waiting = appending(&queue, &ctx, &[1]).await;
        stop.cancel();
        for append in waiting {
            assert!(matches!(append.await.expect("no panic"), Err(Error::Cancelled)), "it was never sent");
        }
        let mut withdrawn = Vec::new();
        while withdrawn.len() < 2 {
            let (appends, numbers) = take(&queue).await;
            assert!(appends.is_empty());
            withdrawn.extend(numbers);
        }
        assert_eq!(withdrawn, [0, 1]);
        // One was not sent at all and comes back; nothing is heard of the other.
        taken.iter_mut().for_each(|append| append.is_withdrawn = true);
        queue.put_back(taken.pop());
        let mut outcomes = Vec::new();
        for append in sent {
            outcomes.push(append.await.expect("no panic"));
        }
        assert!(matches!(outcomes[..], [Err(Error::OutcomeUnknown { .. }), Err(Error::Cancelled)]), "{outcomes:?}");
        drop(taken);
        assert_eq!(queue.room.available_permits(), ROOM);
    }

    #[tokio::test]
    async fn appends_give_up_after_an_attempt_and_their_time() {
        for (retry_for, gives_up) in [(Duration::ZERO, true), (Duration::from_secs(3600), false)] {
            let queue = queue(retry_for);
            let mut appends = appending(&queue, &Context::background(), &[1]).await;
            assert!(queue.give_up().is_none(), "nothing was tried");
            queue.is_in_trouble("refused".to_owned(), None);
            appends.extend(appending(&queue, &Context::background(), &[1]).await);
            assert_eq!(queue.give_up().is_none(), gives_up);
            let left = take(&queue).await.0;
            assert_eq!(numbers(&left), if gives_up { vec![1] } else { vec![0, 1] }, "one of them was not tried");
            if gives_up {
                let outcome = appends.remove(0).await.expect("no panic");
                assert!(matches!(outcome, Err(Error::Unavailable { reason, .. }) if reason == "refused"));
            }
        }
    }

    #[tokio::test]
    async fn there_is_room_for_so_many_appends_or_bytes() {
        let queue = queue(Duration::ZERO);
        let large = appending(&queue, &Context::background(), &[16 << 20; 3]).await;
        assert_eq!(queue.room.available_permits(), ROOM - 3 * 257);
        let waiting = {
            let queue = queue.clone();
            tokio::spawn(async move { queue.append(&Context::background(), batch(16 << 20)).await })
        };
        tokio::task::yield_now().await;
        assert_eq!(queue.state().waiting.len(), 3, "the fourth waits outside");
        queue.close();
        assert!(matches!(waiting.await.expect("no panic"), Err(Error::Closed)));
        queue.has_ended();
        for append in large {
            assert!(matches!(append.await.expect("no panic"), Err(Error::Closed)));
        }
        assert_eq!(queue.room.available_permits(), ROOM);
    }
}

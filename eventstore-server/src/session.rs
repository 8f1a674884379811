//! Many concurrent appends over one WebSocket.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use eventstore_api::{Batch, CancellationToken, Context, Error};
use eventstore_wire::{Answer as Outcome, Frame, decode_frames, encode_answers};
use futures_util::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::access::{GONE, Gone};
use crate::answer::{Answer, Params, Writing, problem_of, too_many};
use crate::server::{App, Kind};
use crate::socket::{FREE, Meter, Socket, Upgrade};
use crate::stores::Served;

/// The most unanswered appends of a session.
const MOST_APPENDS: usize = 1024;

/// The most bytes of unanswered appends of a session, except for a single larger one.
const MOST_BYTES: usize = 64 << 20;

/// A client that reads no answer for this time is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A silent client is pinged. It is gone after this many unanswered pings. A client that is sending a large batch over
/// a slow connection cannot answer meanwhile.
const PING: Duration = Duration::from_secs(20);
const PINGS: u32 = 9;

/// The most answers in one message.
const MOST_ANSWERS: usize = 256;

/// How long an ending session waits for the outcome of its appends.
const GRACE: Duration = Duration::from_secs(10);

/// The time that a client has to close the connection after the end of the session was announced.
const GOODBYE: Duration = Duration::from_secs(2);

pub(crate) async fn appends(
    State(app): State<Arc<App>>,
    Writing(served): Writing,
    gone: Gone,
    params: Params,
    upgrade: Answer<Upgrade>,
) -> Answer<Response> {
    params.query.finish()?;
    let upgrade = upgrade?;
    let counted = app.count(&served, Kind::Session)?;
    let answer = upgrade.answer();
    // A stopping server waits for it.
    let tasks = app.tasks.clone();
    tasks.spawn(async move {
        if let Some((socket, meter)) = upgrade.socket(app.body_room.clone(), app.limits).await {
            run(app, served, gone, socket, meter).await;
        }
        drop(counted);
    });
    Ok(answer)
}

/// An answer, and the room of its append, which is released when the answer is sent.
struct Answered {
    outcome: Outcome,
    /// `None` if it was not started.
    room: Option<Room>,
}

struct Room {
    _append: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    /// The room of the message that it came in, shared by its appends, within the room of all sessions and requests.
    _message: MessageRoom,
}

/// `None` if the message is small.
type MessageRoom = Option<Arc<OwnedSemaphorePermit>>;

async fn run(app: Arc<App>, served: Arc<Served>, gone: Gone, socket: Socket, meter: Meter) {
    let (sink, mut stream) = socket.split();
    // Bounded by the room of the session: each append that was read is answered once.
    let (answers, answered) = mpsc::unbounded_channel();
    let appends = Arc::new(Semaphore::new(MOST_APPENDS));
    let writer = tokio::spawn(write(sink, answered, appends.clone()));
    let session = Session {
        app,
        served,
        gone,
        meter,
        appends,
        bytes: Arc::new(Semaphore::new(MOST_BYTES)),
        running: FuturesUnordered::new(),
        cancels: HashMap::new(),
        answers,
    };
    session.run(&mut stream).await;
    // The writer ends when it has sent everything.
    let Ok((sink, has_closed)) = writer.await else { return };
    if !has_closed {
        return;
    }
    // Closing a connection with unread data may discard the data sent last.
    if let Ok(mut socket) = sink.reunite(stream) {
        let connection = socket.get_mut().get_mut();
        let mut unread = vec![0; 16 << 10];
        let rest = async { while connection.read(&mut unread).await.is_ok_and(|len| len > 0) {} };
        let _ = tokio::time::timeout(GOODBYE, rest).await;
    }
}

/// An instruction for the writer.
enum Told {
    Answered(Answered),
    Ping,
    /// Nothing follows.
    Close(CloseCode, &'static str),
}

type Appending = Pin<Box<dyn Future<Output = Answered> + Send>>;

struct Session {
    app: Arc<App>,
    served: Arc<Served>,
    /// Its token.
    gone: Gone,
    meter: Meter,
    appends: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    running: FuturesUnordered<Appending>,
    cancels: HashMap<u64, CancellationToken>,
    answers: mpsc::UnboundedSender<Told>,
}

impl Session {
    /// Reads and appends, and never waits for the writer: an append that nobody polls would block others.
    async fn run(mut self, stream: &mut SplitStream<Socket>) {
        let (stopping, gone) = (self.app.stopping.clone(), self.gone.clone());
        let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
        let mut unanswered = 0;
        loop {
            let message = tokio::select! {
                biased;
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    self.answer(done);
                    continue;
                }
                message = stream.next() => {
                    unanswered = 0;
                    message
                }
                _ = pings.tick() => {
                    unanswered += 1;
                    if unanswered > PINGS {
                        return;
                    }
                    if self.answers.send(Told::Ping).is_err() {
                        return;
                    }
                    continue;
                }
                () = stopping.cancelled() => return self.end(CloseCode::Away, "the server is shutting down").await,
                () = gone.wait() => return self.end(CloseCode::Policy, GONE).await,
                () = self.answers.closed() => return,
            };
            let bytes = match message {
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                    self.meter.take();
                    continue;
                }
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return self.end(CloseCode::Unsupported, "messages must be binary").await;
                }
                Some(Err(tungstenite::Error::Capacity(_))) => {
                    return self.end(CloseCode::Size, "a message has more than 65 MiB; send smaller ones").await;
                }
                Some(Err(tungstenite::Error::Protocol(_))) => {
                    return self.end(CloseCode::Protocol, "this is not the WebSocket protocol").await;
                }
                Some(Err(_)) if self.meter.is_refused() => {
                    let reason = "there are too many large messages at the same time; retry later";
                    return self.end(CloseCode::Again, reason).await;
                }
                // Unanswered appends are of no interest any more: they are dropped, and thereby cancelled.
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            };
            let taken = self.meter.take();
            let len = bytes.len();
            let Ok(frames) = decode_frames(bytes) else {
                return self.end(CloseCode::Invalid, "a message is malformed").await;
            };
            let room = self.message_room(len, taken).await;
            for frame in frames {
                // What was not started is not written.
                if self.answers.is_closed() || stopping.is_cancelled() || gone.is_gone() {
                    break;
                }
                self.take(frame, room.clone()).await;
            }
        }
    }

    /// Waits for room for a message, within the limit for all messages; an error if there is none.
    async fn message_room(&mut self, len: usize, mut taken: Option<OwnedSemaphorePermit>) -> Answer<MessageRoom> {
        let unanswered = MOST_BYTES - self.bytes.available_permits();
        if taken.is_none() && unanswered + len <= FREE {
            return Ok(None);
        }
        if let Some(taken) = &mut taken {
            drop(taken.split(taken.num_permits().saturating_sub(len)));
        }
        let missing = len.saturating_sub(taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        let all = self.app.body_room.clone();
        let more = all.acquire_many_owned(u32::try_from(missing).unwrap_or(u32::MAX));
        let mut more = std::pin::pin!(tokio::time::timeout(self.app.limits.body_wait, more));
        let more = loop {
            tokio::select! {
                biased;
                more = &mut more => break more,
                Some(done) = self.running.next(), if !self.running.is_empty() => self.answer(done),
            }
        };
        // The semaphore is never closed.
        let Ok(Ok(more)) = more else {
            return Err(too_many("there are too many large requests at the same time; retry later"));
        };
        let room = match taken {
            Some(mut taken) => {
                taken.merge(more);
                taken
            }
            None => more,
        };
        Ok(Some(Arc::new(room)))
    }

    /// Starts the work of a frame, once there is room.
    async fn take(&mut self, frame: Frame, room: Answer<MessageRoom>) {
        match frame {
            Frame::Cancel { number } => {
                if let Some(cancel) = self.cancels.get(&number) {
                    cancel.cancel();
                }
            }
            Frame::Append { number, timeout, batch } => {
                let message = match room {
                    Ok(message) => message,
                    Err(refused) => {
                        let outcome = Outcome { number, outcome: Err(refused.0) };
                        return self.answer(Answered { outcome, room: None });
                    }
                };
                // Its time limit starts here.
                let cancel = CancellationToken::new();
                let ctx = Context::background().with_cancellation(cancel.clone());
                let ctx = timeout.map_or(ctx.clone(), |timeout| ctx.with_timeout(timeout));
                let len = batch.as_ref().map_or(0, Batch::len_bytes).min(MOST_BYTES);
                let room = self.room(len, message).await;
                self.cancels.insert(number, cancel);
                let served = self.served.clone();
                self.running.push(Box::pin(async move {
                    let outcome = match batch {
                        Ok(batch) => served.store.store_batch(&ctx, batch).await,
                        Err(error) => Err(error),
                    };
                    let outcome = outcome.map_err(|error: Error| Box::new(problem_of(&error)));
                    Answered { outcome: Outcome { number, outcome }, room: Some(room) }
                }));
            }
        }
    }

    /// Waits for room, while running appends continue.
    async fn room(&mut self, len: usize, message: MessageRoom) -> Room {
        let (appends, bytes) = (self.appends.clone(), self.bytes.clone());
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let room = async move {
            // The semaphores are never closed.
            let append = appends.acquire_owned().await.ok()?;
            let bytes = bytes.acquire_many_owned(len).await.ok()?;
            Some(Room { _append: append, _bytes: bytes, _message: message })
        };
        let mut room = std::pin::pin!(room);
        loop {
            tokio::select! {
                biased;
                Some(room) = &mut room => return room,
                Some(done) = self.running.next(), if !self.running.is_empty() => self.answer(done),
            }
        }
    }

    fn answer(&mut self, done: Answered) {
        self.cancels.remove(&done.outcome.number);
        // If the writer has ended, the client is gone.
        let _ = self.answers.send(Told::Answered(done));
    }

    /// Stops reading, answers running appends, and sends the reason for the end.
    async fn end(mut self, code: CloseCode, reason: &'static str) {
        let rest = async {
            while let Some(done) = self.running.next().await {
                self.cancels.remove(&done.outcome.number);
                let _ = self.answers.send(Told::Answered(done));
            }
        };
        let _ = tokio::time::timeout(GRACE, rest).await;
        let _ = self.answers.send(Told::Close(code, reason));
    }
}

/// Sends answers, several in one message if they are ready. Returns whether the client was told that the session ends.
async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut told: mpsc::UnboundedReceiver<Told>,
    appends: Arc<Semaphore>,
) -> (SplitSink<Socket, Message>, bool) {
    let mut next = None;
    let mut has_closed = false;
    loop {
        let Some(first) = (match next.take() {
            Some(first) => Some(first),
            None => told.recv().await,
        }) else {
            return (sink, has_closed);
        };
        // The appends of a group are answered at nearly the same time: one turn later, one message takes all answers.
        if appends.available_permits() + 1 < MOST_APPENDS {
            tokio::task::yield_now().await;
        }
        let mut rooms = Vec::new();
        let message = match first {
            Told::Answered(first) => {
                let mut outcomes = Vec::new();
                let mut more = Some(first);
                while let Some(Answered { outcome, room }) = more.take() {
                    outcomes.push(outcome);
                    rooms.push(room);
                    if outcomes.len() >= MOST_ANSWERS {
                        break;
                    }
                    match told.recv().now_or_never() {
                        Some(Some(Told::Answered(answered))) => more = Some(answered),
                        Some(other) => next = other,
                        None => {}
                    }
                }
                Message::Binary(encode_answers(&outcomes).into())
            }
            Told::Ping => Message::Ping(Bytes::new()),
            Told::Close(code, reason) => {
                has_closed = true;
                Message::Close(Some(CloseFrame { code, reason: reason.into() }))
            }
        };
        match tokio::time::timeout(WRITE_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) => {}
            _ => return (sink, false),
        }
        drop(rooms);
    }
}

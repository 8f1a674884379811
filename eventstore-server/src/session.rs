//! Many appends at the same time over one WebSocket.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use eventstore_api::{Batch, CancellationToken, Context, Error};
use eventstore_wire::{Answer as Outcome, Frame, MAX_BODY, Problem, SESSION, decode_frames, encode_answers};
use futures_util::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::answer::{Answer, Params, Writing, problem_of};
use crate::server::{App, Counted, Kind};
use crate::stores::Served;

/// Unanswered appends of a session, at most.
const MOST_APPENDS: usize = 1024;

/// Bytes of unanswered appends of a session, at most, but for one that is larger alone.
const MOST_BYTES: usize = 64 << 20;

/// A client that takes no answer for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that says nothing is asked whether it is there, and is gone when it has not answered for so many times. One that
/// sends a large batch over a slow line cannot answer meanwhile.
const PING: Duration = Duration::from_secs(20);
const PINGS: u32 = 9;

/// So many answers are sent in one message, at most.
const MOST_ANSWERS: usize = 256;

/// How long a session that ends waits for the outcome of its appends.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn appends(
    State(app): State<Arc<App>>,
    Writing(served): Writing,
    params: Params,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    params.query.finish()?;
    let malformed = |detail: String| Problem::new(400, "malformed", detail);
    let upgrade = upgrade.map_err(|rejection| {
        malformed(format!("open this resource as a WebSocket, with the protocol {SESSION}: {}", rejection.body_text()))
    })?;
    let upgrade = upgrade.protocols([SESSION]).max_message_size(MAX_BODY).max_frame_size(MAX_BODY);
    if upgrade.selected_protocol().is_none() {
        return Err(malformed(format!("ask for the WebSocket protocol {SESSION}; this server speaks no other")).into());
    }
    let counted = app.count(&served, Kind::Session)?;
    // A server that stops waits for it.
    let tasks = app.tasks.clone();
    Ok(upgrade.on_upgrade(move |socket| tasks.track_future(run(app, served, socket, counted))))
}

/// An answer, and the room that its append takes until the answer is sent.
struct Answered {
    outcome: Outcome,
    room: Room,
}

struct Room {
    _append: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

async fn run(app: Arc<App>, served: Arc<Served>, socket: WebSocket, counted: Counted) {
    let (sink, stream) = socket.split();
    // Bounded by the room of the session: what was read is answered once.
    let (answers, answered) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write(sink, answered));
    let session = Session {
        app,
        served,
        appends: Arc::new(Semaphore::new(MOST_APPENDS)),
        bytes: Arc::new(Semaphore::new(MOST_BYTES)),
        running: FuturesUnordered::new(),
        cancels: HashMap::new(),
        answers,
    };
    session.run(stream).await;
    // The writer ends when it has sent what there is to send.
    let _ = writer.await;
    drop(counted);
}

/// What the writer is told.
enum Told {
    Answered(Answered),
    Ping,
    /// Nothing comes behind it.
    Close(u16, &'static str),
}

type Appending = Pin<Box<dyn Future<Output = Answered> + Send>>;

struct Session {
    app: Arc<App>,
    served: Arc<Served>,
    appends: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    running: FuturesUnordered<Appending>,
    cancels: HashMap<u64, CancellationToken>,
    answers: mpsc::UnboundedSender<Told>,
}

impl Session {
    /// Reads and appends, and never waits for the writer: an append that nobody polls would hold up others.
    async fn run(mut self, mut stream: SplitStream<WebSocket>) {
        let stopping = self.app.stopping.clone();
        let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
        let mut unanswered = 0;
        loop {
            let frames = tokio::select! {
                biased;
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    self.answer(done);
                    continue;
                }
                message = stream.next() => {
                    unanswered = 0;
                    match message {
                        Some(Ok(Message::Binary(bytes))) => match decode_frames(bytes) {
                            Ok(frames) => frames,
                            Err(_) => return self.end(close_code::INVALID, "a message is malformed").await,
                        },
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Text(_))) => {
                            return self.end(close_code::UNSUPPORTED, "messages have to be binary").await;
                        }
                        // Of what is not answered nobody wants to know: it is dropped, and with it cancelled.
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    }
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
                () = stopping.cancelled() => return self.end(close_code::AWAY, "the server is shutting down").await,
                () = self.answers.closed() => return,
            };
            for frame in frames {
                // What was not begun is not written.
                if self.answers.is_closed() || stopping.is_cancelled() {
                    break;
                }
                self.take(frame).await;
            }
        }
    }

    /// Begins what a frame asks for, once there is room.
    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Cancel { number } => {
                if let Some(cancel) = self.cancels.get(&number) {
                    cancel.cancel();
                }
            }
            Frame::Append { number, timeout, batch } => {
                // From here on its time runs.
                let cancel = CancellationToken::new();
                let ctx = Context::background().with_cancellation(cancel.clone());
                let ctx = timeout.map_or(ctx.clone(), |timeout| ctx.with_timeout(timeout));
                let len = batch.as_ref().map_or(0, Batch::len_bytes).min(MOST_BYTES);
                let room = self.room(len).await;
                self.cancels.insert(number, cancel);
                let served = self.served.clone();
                self.running.push(Box::pin(async move {
                    let outcome = match batch {
                        Ok(batch) => served.store.store_batch(&ctx, batch).await,
                        Err(error) => Err(error),
                    };
                    let outcome = outcome.map_err(|error: Error| Box::new(problem_of(&error)));
                    Answered { outcome: Outcome { number, outcome }, room }
                }));
            }
        }
    }

    /// Waits for room, while what runs goes on.
    async fn room(&mut self, len: usize) -> Room {
        let (appends, bytes) = (self.appends.clone(), self.bytes.clone());
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let room = async move {
            // Neither is ever closed.
            let append = appends.acquire_owned().await.ok()?;
            let bytes = bytes.acquire_many_owned(len).await.ok()?;
            Some(Room { _append: append, _bytes: bytes })
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
        // If the writer is gone, so is the client.
        let _ = self.answers.send(Told::Answered(done));
    }

    /// Reads no more, answers what runs, and says why it ends.
    async fn end(mut self, code: u16, reason: &'static str) {
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

/// Sends answers, those that are there together.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut told: mpsc::UnboundedReceiver<Told>) {
    let mut next = None;
    loop {
        let Some(first) = (match next.take() {
            Some(first) => Some(first),
            None => told.recv().await,
        }) else {
            return;
        };
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
            Told::Close(code, reason) => Message::Close(Some(CloseFrame { code, reason: reason.into() })),
        };
        match tokio::time::timeout(WRITE_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
        drop(rooms);
    }
}

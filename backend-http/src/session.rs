//! The session of appends: a task that owns the connection and sends the queued appends.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use backon::BackoffBuilder as _;
use bytes::Bytes;
use eventstore_api::{Error, Source};
use eventstore_wire::{Answer, Frame, MAX_BODY, SESSION, decode_answers, encode_frames};
use futures_util::{Sink as _, Stream as _, StreamExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Sleep, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::client::{Attempt, Failed, PAUSES, SharedClient, is_passing_problem};
use crate::net::{Conn, Traffic, source};
use crate::pool::Answered;
use crate::queue::{Append, Queue};

/// The time limit for the server to begin a session. It may have to open the store.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// The time limit for ending a session.
const GOODBYE: Duration = Duration::from_secs(1);

/// Runs the session until the queue is closed.
pub(crate) async fn run(client: SharedClient, queue: Arc<Queue>, lost_after: Duration) {
    let _ended = Ended(queue.clone());
    let mut pauses = PAUSES.build();
    while poll_fn(|cx| queue.poll_work(cx)).await {
        let failed = match meanwhile(&queue, connect(&client)).await {
            Ok(link) => {
                let mut serving = Serving::new(&client, &queue, link, lost_after);
                let end = serving.run().await;
                if serving.works {
                    pauses = PAUSES.build();
                }
                let Some(lost) = serving.end(end).await else { return };
                tracing::debug!(url = client.url, reason = lost.reason, "the session of appends has ended");
                if serving.works {
                    continue; // at once, if something waits
                }
                Failed::Passing { reason: lost.reason, source: lost.source, after: None, may_be_done: true }
            }
            Err(failed) => failed,
        };
        match failed {
            Failed::Final(error) => queue.fail_all(&error),
            Failed::Passing { reason, source, after, .. } => {
                queue.is_in_trouble(reason, source);
                let pause = pauses.next().max(after).unwrap_or_default();
                meanwhile(&queue, sleep(pause)).await;
            }
        }
    }
}

/// Notifies the waiting callers, however the task ends.
struct Ended(Arc<Queue>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.has_ended();
    }
}

/// Runs work while appends wait, and fails those that have waited long enough.
async fn meanwhile<F: Future>(queue: &Queue, work: F) -> F::Output {
    let mut work = pin!(work);
    loop {
        let look_again = async {
            match queue.give_up() {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = look_again => {}
        }
    }
}

/// A connection with a session.
struct Link {
    socket: WebSocketStream<Conn>,
    traffic: Arc<Traffic>,
}

/// Begins a session.
async fn connect(client: &SharedClient) -> Attempt<Link> {
    let conn = client.connector.connect().await.map_err(|error| client.unreachable(error))?;
    let traffic = conn.traffic.clone();
    match timeout(HANDSHAKE, handshake(client, conn)).await {
        Ok(socket) => Ok(Link { socket: socket?, traffic }),
        Err(_) => Err(Failed::passing(format!("it has not begun a session of appends within {HANDSHAKE:?}"))),
    }
}

async fn handshake(client: &SharedClient, conn: Conn) -> Attempt<WebSocketStream<Conn>> {
    let lost = |error| Failed::lost("the connection was lost", error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(conn)).await.map_err(lost)?;
    // It ends with the upgrade or with the connection.
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let key = generate_key();
    let mut request = client.request(Method::GET, "appends", eventstore_wire::JSON)?;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SESSION));
    if let Ok(key) = HeaderValue::try_from(&key) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    let mut answer = sender.send_request(request).await.map_err(lost)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(client.refusal(answer.map(Answered::from)).await);
    }
    let is = |name, wanted: &str| answer.headers().get(name).is_some_and(|value| value.as_bytes() == wanted.as_bytes());
    if !is(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) || !is(SEC_WEBSOCKET_PROTOCOL, SESSION) {
        return Err(Failed::Final(Error::Open {
            path: client.url.clone(),
            reason: format!("the server does not speak {SESSION}; check the address and what stands between"),
            source: None,
        }));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await.map_err(lost)?;
    let parts = upgraded
        .downcast::<TokioIo<Conn>>()
        .map_err(|_| Error::engine("begin a session of appends", "the connection is of another kind"))?;
    let mut config = WebSocketConfig::default();
    (config.max_message_size, config.max_frame_size) = (Some(MAX_BODY), Some(MAX_BODY));
    config.read_buffer_size = 64 << 10;
    let (conn, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
    Ok(WebSocketStream::from_partially_read(conn, read, Role::Client, Some(config)).await)
}

/// Why a session ended unexpectedly.
struct Lost {
    reason: String,
    source: Option<Source>,
}

impl Lost {
    fn new(reason: impl Into<String>) -> Self {
        Lost { reason: reason.into(), source: None }
    }
}

/// The next event.
enum Next {
    Flushed,
    Message(Message),
    /// There is something to send.
    Work,
    /// Nothing is left, and nothing more will come.
    Done,
    /// It is time to check whether the server is alive.
    Look,
}

/// A running session.
struct Serving<'a> {
    client: &'a SharedClient,
    queue: &'a Queue,
    link: Link,
    /// Appends that were sent, or are being sent, and are not answered.
    sent: HashMap<u64, Append>,
    /// The message that is being written to the socket.
    outgoing: Option<Outgoing>,
    /// Whether a flush is due.
    is_flushing: bool,
    /// The server accepts no more, for this reason: it is stopping.
    leaving: Option<String>,
    /// It has answered an append.
    works: bool,
    appends: Vec<Append>,
    withdrawn: Vec<u64>,
    /// The number of answers in the newest message with some.
    answered: usize,
    /// Other tasks have had a turn since there is something to send.
    has_yielded: bool,
    lost_after: Duration,
    heard: Heard,
    look: Pin<Box<Sleep>>,
}

struct Outgoing {
    numbers: Vec<u64>,
    /// The number of bytes written before it.
    begins_at: u64,
}

/// When the server was last heard.
struct Heard {
    at: Instant,
    read: u64,
    /// The bytes written when the socket was full: every further one means that the other side has read some.
    written: u64,
    /// When it was asked for a sign of life since then.
    asked: Option<Instant>,
}

impl Heard {
    fn new(at: Instant, traffic: &Traffic) -> Self {
        Heard { at, read: traffic.read(), written: traffic.written(), asked: None }
    }
}

impl<'a> Serving<'a> {
    fn new(client: &'a SharedClient, queue: &'a Queue, link: Link, lost_after: Duration) -> Self {
        Serving {
            client,
            queue,
            heard: Heard::new(Instant::now(), &link.traffic),
            link,
            sent: HashMap::new(),
            outgoing: None,
            is_flushing: false,
            leaving: None,
            works: false,
            appends: Vec::new(),
            withdrawn: Vec::new(),
            answered: 0,
            has_yielded: false,
            lost_after,
            look: Box::pin(sleep(lost_after / 2)),
        }
    }

    async fn run(&mut self) -> Result<(), Lost> {
        loop {
            let next = poll_fn(|cx| self.poll(cx)).await?;
            if let Next::Message(_) = next {
                self.was_heard(Instant::now());
            }
            match next {
                Next::Flushed => {
                    self.is_flushing = false;
                    self.outgoing = None;
                }
                Next::Message(Message::Binary(message)) => self.take_answers(message)?,
                Next::Message(Message::Close(frame)) => {
                    let said = frame.map_or_else(String::new, |frame| format!(": {}", frame.reason));
                    return Err(Lost::new(format!("the server ended the session{said}")));
                }
                Next::Message(Message::Text(_)) => return Err(Lost::new("the server sent an invalid answer")),
                Next::Message(_) => {}
                Next::Work => self.send()?,
                Next::Done => return Ok(()),
                Next::Look => self.look_after_server()?,
            }
            if let Some(reason) = &self.leaving
                && self.sent.is_empty()
            {
                return Err(Lost::new(reason.clone()));
            }
        }
    }

    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Next, Lost>> {
        let mut socket = Pin::new(&mut self.link.socket);
        if self.is_flushing
            && let Poll::Ready(flushed) = socket.as_mut().poll_flush(cx)
        {
            return Poll::Ready(flushed.map(|()| Next::Flushed).map_err(lost));
        }
        match socket.poll_next(cx) {
            Poll::Ready(Some(message)) => return Poll::Ready(message.map(Next::Message).map_err(lost)),
            Poll::Ready(None) => return Poll::Ready(Err(Lost::new("the server closed the connection"))),
            Poll::Pending => {}
        }
        if !self.is_flushing {
            // Callers that were answered together append again together: one turn later, one message takes all their appends.
            // A single caller does not wait for others.
            let has_others = self.answered > 1 || !self.sent.is_empty();
            if has_others && !std::mem::replace(&mut self.has_yielded, true) && self.queue.has_work(cx) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.has_yielded = false;
            let takes_appends = self.leaving.is_none();
            match self.queue.poll_take(cx, takes_appends, &mut self.appends, &mut self.withdrawn) {
                Poll::Ready(true) => return Poll::Ready(Ok(Next::Work)),
                Poll::Ready(false) if self.sent.is_empty() => return Poll::Ready(Ok(Next::Done)),
                _ => {}
            }
        }
        self.look.as_mut().poll(cx).map(|()| Ok(Next::Look))
    }

    /// Sends the appends taken from the queue as one message.
    fn send(&mut self) -> Result<(), Lost> {
        let now = Instant::now();
        let mut frames = Vec::with_capacity(self.appends.len() + self.withdrawn.len());
        for number in self.withdrawn.drain(..) {
            if let Some(append) = self.sent.get_mut(&number) {
                append.is_withdrawn = true;
                frames.push(Frame::Cancel { number });
            }
        }
        let cancels = frames.len();
        let mut going = Vec::with_capacity(self.appends.len());
        for mut append in self.appends.drain(..) {
            // Rounded up: the server must not give up before the client does.
            let left =
                append.deadline.map(|deadline| deadline.saturating_duration_since(now) + Duration::from_micros(1));
            let batch = Ok(std::mem::take(&mut append.batch));
            frames.push(Frame::Append { number: append.number, timeout: left, batch });
            going.push(append);
        }
        if frames.is_empty() {
            return Ok(());
        }
        let message = Bytes::from(encode_frames(&frames));
        let mut numbers = Vec::with_capacity(going.len());
        for (mut append, frame) in going.into_iter().zip(frames.into_iter().skip(cancels)) {
            if let Frame::Append { batch: Ok(batch), .. } = frame {
                append.batch = batch;
            }
            numbers.push(append.number);
            self.sent.insert(append.number, append);
        }
        self.outgoing = Some(Outgoing { numbers, begins_at: self.link.traffic.written() });
        self.is_flushing = true;
        self.heard.written = self.link.traffic.written();
        Pin::new(&mut self.link.socket).start_send(Message::Binary(message)).map_err(lost)
    }

    fn take_answers(&mut self, message: Bytes) -> Result<(), Lost> {
        let damaged = |what: &dyn std::fmt::Display| Lost::new(format!("an answer was damaged on its way: {what}"));
        let answers = decode_answers(message).map_err(|error| damaged(&error))?;
        self.answered = answers.len();
        for Answer { number, outcome } in answers {
            let Some(append) = self.sent.remove(&number) else { continue };
            match outcome {
                Ok(stored) if stored.len() == append.batch.events.len() => {
                    self.has_worked();
                    append.answer(Ok(stored));
                }
                Ok(stored) => {
                    let (places, events) = (stored.len(), append.batch.events.len());
                    self.sent.insert(number, append); // from now on, its outcome is unknown
                    return Err(damaged(&format_args!("{places} places of {events} events")));
                }
                Err(problem) if append.is_withdrawn && problem.code == "cancelled" => {
                    self.has_worked();
                    append.answer(Err(Error::Cancelled));
                }
                // The server will be back. Nothing was written, so the append can be sent again.
                Err(problem) if is_passing_problem(&problem) => {
                    self.leaving = Some(problem.reason.unwrap_or(problem.detail));
                    self.queue.put_back([append]);
                }
                Err(problem) => {
                    self.has_worked();
                    append.answer(Err(problem.into_error(&self.client.url)));
                }
            }
        }
        Ok(())
    }

    fn has_worked(&mut self) {
        if !self.works {
            self.works = true;
            self.queue.works();
        }
    }

    /// Pings the server, or gives the connection up.
    fn look_after_server(&mut self) -> Result<(), Lost> {
        let (now, written) = (Instant::now(), self.link.traffic.written());
        let takes_some = self.is_flushing && written != self.heard.written;
        if self.link.traffic.read() != self.heard.read || takes_some {
            self.was_heard(now);
        }
        let silent = now.saturating_duration_since(self.heard.at);
        let half = self.lost_after / 2;
        let next = match self.heard.asked {
            None if silent < half => self.heard.at + half,
            // Asked first, however long it was silent: perhaps this process did not run.
            None => {
                self.heard.asked = Some(now);
                if !self.is_flushing {
                    self.is_flushing = true;
                    self.heard.written = written;
                    Pin::new(&mut self.link.socket).start_send(Message::Ping(Bytes::new())).map_err(lost)?;
                }
                now + half
            }
            Some(asked) if now < asked + half => asked + half,
            Some(_) => return Err(Lost::new(format!("nothing was heard from the server for {silent:.1?}"))),
        };
        self.look.as_mut().reset(next.into());
        Ok(())
    }

    fn was_heard(&mut self, at: Instant) {
        self.heard = Heard::new(at, &self.link.traffic);
    }

    /// Ends the session: appends that were sent have an unknown outcome, others go back to the queue. Returns why it
    /// ended, if that was unexpected.
    async fn end(&mut self, end: Result<(), Lost>) -> Option<Lost> {
        let lost = match end {
            Ok(()) => {
                let goodbye = async {
                    self.link.socket.close(None).await.ok();
                    while let Some(Ok(_)) = self.link.socket.next().await {}
                };
                let _ = timeout(GOODBYE, goodbye).await;
                return None;
            }
            Err(lost) => lost,
        };
        if let Some(Outgoing { numbers, begins_at }) = self.outgoing.take()
            && begins_at == self.link.traffic.written()
        {
            self.queue.put_back(numbers.iter().filter_map(|number| self.sent.remove(number)).collect::<Vec<_>>());
        }
        // Appends that were taken but not even encoded.
        self.queue.put_back(self.appends.drain(..));
        let reason = format!("the connection to {} was lost before the answer came: {}", self.client.url, lost.reason);
        for (_, append) in self.sent.drain() {
            append.answer(Err(Error::OutcomeUnknown { reason: reason.clone(), source: lost.source.clone() }));
        }
        Some(lost)
    }
}

fn lost(error: tungstenite::Error) -> Lost {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            Lost::new("the server closed the connection")
        }
        error => Lost { reason: error.to_string(), source: Some(source(error)) },
    }
}

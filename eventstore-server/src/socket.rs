//! WebSockets whose large messages acquire room, within the limit for all bodies, while they arrive.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use eventstore_wire::{MAX_BODY, Problem, SESSION};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::PollSemaphore;

use crate::answer::{Answer, Refused};
use crate::server::Limits;
use crate::stores::lock;

/// Bytes that a session may hold without acquiring room. So messages up to the size of a piece need none while they
/// arrive.
pub(crate) const FREE: usize = 128 << 10;

/// The most bytes read at a time.
const PIECE: usize = 64 << 10;

/// A WebSocket of a session.
pub(crate) type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// A request for a session.
pub(crate) struct Upgrade {
    upgrade: OnUpgrade,
    accept: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let malformed = |detail: String| Refused::from(Problem::new(400, "malformed", detail));
        let has =
            |name: HeaderName, wanted: &str| words(&parts.headers, name).any(|word| word.eq_ignore_ascii_case(wanted));
        let missing = match () {
            () if parts.method != Method::GET => Some("it is no GET"),
            () if !has(header::CONNECTION, "upgrade") => Some("the header Connection does not say upgrade"),
            () if !has(header::UPGRADE, "websocket") => Some("the header Upgrade does not say websocket"),
            () if !has(header::SEC_WEBSOCKET_VERSION, "13") => Some("the header Sec-WebSocket-Version is not 13"),
            () => None,
        };
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        let missing = missing.or_else(|| key.is_none().then_some("the header Sec-WebSocket-Key is missing"));
        if missing.is_none() && !has(header::SEC_WEBSOCKET_PROTOCOL, SESSION) {
            return Err(malformed(format!("ask for the WebSocket protocol {SESSION}; this server speaks no other")));
        }
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        match (missing, key, upgrade) {
            (None, Some(accept), Some(upgrade)) => Ok(Upgrade { upgrade, accept }),
            (missing, ..) => Err(malformed(format!(
                "open this resource as a WebSocket over HTTP/1.1, with the protocol {SESSION}: {}",
                missing.unwrap_or("the connection cannot become one")
            ))),
        }
    }
}

fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

impl Upgrade {
    /// The answer that switches to the session.
    pub(crate) fn answer(&self) -> Response {
        let headers = [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SESSION)),
        ];
        let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response();
        // Base64 is always a valid header value.
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }

    /// The WebSocket, after the answer was sent. `None` if the connection was lost before.
    pub(crate) async fn socket(self, room: Arc<Semaphore>, limits: Limits) -> Option<(Socket, Meter)> {
        let upgraded = self.upgrade.await.ok()?;
        let meter = Meter::default();
        let metered = Metered::new(TokioIo::new(upgraded), meter.clone(), room, limits);
        let config = WebSocketConfig::default()
            .read_buffer_size(PIECE)
            .max_message_size(Some(MAX_BODY))
            .max_frame_size(Some(MAX_BODY));
        Some((WebSocketStream::from_raw_socket(metered, Role::Server, Some(config)).await, meter))
    }
}

/// The state of the message that is being read.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<Metering>>);

#[derive(Default)]
struct Metering {
    bytes: usize,
    room: Option<OwnedSemaphorePermit>,
    is_refused: bool,
}

impl Meter {
    /// A message is complete: returns its room.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        let mut metering = lock(&self.0);
        metering.bytes = 0;
        metering.room.take()
    }

    /// Whether reading failed because there was no room.
    pub(crate) fn is_refused(&self) -> bool {
        lock(&self.0).is_refused
    }
}

/// A connection that reads only as much as there is room for.
pub(crate) struct Metered<S> {
    stream: S,
    meter: Meter,
    room: PollSemaphore,
    limits: Limits,
    /// The remaining time to wait for room, while it waits.
    patience: Option<Pin<Box<Sleep>>>,
    /// The remaining time that the transfer may stall, while it does and there is room.
    paused: Option<Pin<Box<Sleep>>>,
}

impl<S> Metered<S> {
    fn new(stream: S, meter: Meter, room: Arc<Semaphore>, limits: Limits) -> Self {
        Metered { stream, meter, room: PollSemaphore::new(room), limits, patience: None, paused: None }
    }

    /// The underlying connection. Reading from it acquires no room.
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Acquires room for one more piece, unless the message is small.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut metering = lock(&self.meter.0);
        let held = metering.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if metering.bytes + PIECE <= FREE + held {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(more) = self.room.poll_acquire_many(cx, PIECE as u32) {
            self.patience = None;
            let Some(more) = more else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            match &mut metering.room {
                Some(room) => room.merge(more),
                None => metering.room = Some(more),
            }
            return Poll::Ready(Ok(()));
        }
        let wait = self.limits.body_wait;
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(wait)));
        ready!(patience.as_mut().poll(cx));
        metering.is_refused = true;
        metering.room = None;
        Poll::Ready(Err(io::Error::other("there is no room for the message")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_room(cx))?;
        let before = out.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, out) {
            self.paused = None;
            lock(&self.meter.0).bytes += out.filled().len() - before;
            return Poll::Ready(read);
        }
        if lock(&self.meter.0).room.is_none() {
            self.paused = None;
            return Poll::Pending;
        }
        let pause = self.limits.body_pause;
        let paused = self.paused.get_or_insert_with(|| Box::pin(sleep(pause)));
        ready!(paused.as_mut().poll(cx));
        lock(&self.meter.0).room = None;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

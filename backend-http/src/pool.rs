//! A pool of reusable connections.
//!
//! The pool of hyper-util is not used: if it gives a request to a connection that ends at this moment, the request may
//! hang (hyperium/hyper#4122). Here, the end of the connection is watched while waiting for an answer.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;

use crate::net::Connector;

/// Connections that were idle for this time are closed.
const IDLE: Duration = Duration::from_secs(30);

type Connection = SendRequest<Full<Bytes>>;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// There is no connection. Nothing was sent.
    NoConnection(io::Error),
    /// The connection was lost. The request may have been sent.
    Lost(hyper::Error),
}

/// A pool of connections to one server.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    connector: Connector,
    home: Handle,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Each with the start of its idle time, the longest idle first.
    connections: Vec<(Connection, Instant)>,
    /// Whether a task is closing idle connections.
    is_swept: bool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.0.connector).finish()
    }
}

impl Pool {
    /// A pool whose connections belong to this runtime.
    pub(crate) fn new(connector: Connector, home: Handle) -> Self {
        Pool(Arc::new(Inner { connector, home, idle: Mutex::default() }))
    }

    /// Sends a request and waits for the head of its answer. If the request was certainly not sent, and its connection
    /// had been used before, another connection is tried.
    pub(crate) async fn request(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Answered>, Unanswered> {
        loop {
            let used = self.0.take();
            let is_used = used.is_some();
            let mut connection = match used {
                Some(mut used) => match used.ready().await {
                    Ok(()) => used,
                    Err(_) => continue, // it has ended
                },
                None => self.0.connect().await?,
            };
            let mut answering = std::pin::pin!(connection.try_send_request(request));
            let answered = tokio::select! {
                biased;
                answered = &mut answering => answered,
                () = has_ended(&mut connection) => {
                    // This returns what the connection has not accepted.
                    drop(connection);
                    match answering.await {
                        Ok(answer) => return Ok(answer.map(Answered::from)),
                        Err(error) => {
                            request = unsent(error, is_used)?;
                            continue;
                        }
                    }
                }
            };
            match answered {
                Ok(answer) => {
                    let connection = Some((connection, Arc::downgrade(&self.0)));
                    return Ok(answer.map(|body| Answered { body, connection }));
                }
                Err(error) => request = unsent(error, is_used)?,
            }
        }
    }
}

/// The request, if it may be sent again over another connection.
fn unsent(mut error: TrySendError<Request<Full<Bytes>>>, is_used: bool) -> Result<Request<Full<Bytes>>, Unanswered> {
    match error.take_message().filter(|_| is_used) {
        Some(request) => Ok(request),
        None => Err(Unanswered::Lost(error.into_error())),
    }
}

/// Waits until a connection accepts no more requests.
async fn has_ended(connection: &mut Connection) {
    poll_fn(|cx| match connection.poll_ready(cx) {
        Poll::Ready(Err(_)) => Poll::Ready(()),
        // It is about to accept the request that was sent.
        Poll::Ready(Ok(())) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Pending => Poll::Pending,
    })
    .await
}

impl Inner {
    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most recently used connection.
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle();
        while let Some((connection, since)) = idle.connections.pop() {
            if !connection.is_closed() && since.elapsed() < IDLE {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Connection, Unanswered> {
        let io = self.connector.connect().await.map_err(Unanswered::NoConnection)?;
        let (connection, serving) = http1::handshake(TokioIo::new(io)).await.map_err(Unanswered::Lost)?;
        self.home.spawn(async move {
            if let Err(error) = serving.await {
                tracing::trace!(%error, "a connection has ended");
            }
        });
        Ok(connection)
    }

    fn give_back(self: Arc<Self>, connection: Connection) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle();
        idle.connections.push((connection, Instant::now()));
        if !std::mem::replace(&mut idle.is_swept, true) {
            drop(idle);
            let inner = Arc::downgrade(&self);
            self.home.spawn(async move {
                loop {
                    tokio::time::sleep(IDLE).await;
                    let Some(inner) = inner.upgrade() else { return };
                    let mut idle = inner.idle();
                    idle.connections.retain(|(connection, since)| !connection.is_closed() && since.elapsed() < IDLE);
                    if idle.connections.is_empty() {
                        idle.is_swept = false;
                        return;
                    }
                }
            });
        }
    }
}

/// The body of an answer. When it is read to its end, the connection can be reused.
pub(crate) struct Answered {
    body: Incoming,
    connection: Option<(Connection, Weak<Inner>)>,
}

impl From<Incoming> for Answered {
    /// The body of an answer over a connection that belongs to no pool.
    fn from(body: Incoming) -> Self {
        Answered { body, connection: None }
    }
}

impl Answered {
    fn is_read(&mut self) {
        if let Some((connection, pool)) = self.connection.take()
            && let Some(pool) = pool.upgrade()
        {
            pool.give_back(connection);
        }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

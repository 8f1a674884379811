//! Large answers that wait for slow clients: their total size is limited, and so is the time that they wait.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::response::{IntoResponse as _, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use crate::answer::too_many;
use crate::server::App;
use crate::stores::lock;

/// Smaller answers are not counted.
const LEAST: u64 = 64 << 10;

/// The number of bytes passed to the connection at a time. These no longer count.
const PIECE: usize = 64 << 10;

/// Acquires room for a large, complete answer, and sends it in pieces.
pub(crate) async fn hold(app: &App, response: Response) -> Response {
    let Some(len) = response.body().size_hint().exact().filter(|len| *len >= LEAST) else { return response };
    // The largest answer uses all the room that exists.
    let len = u32::try_from(len.min(app.limits.answer_bytes as u64)).unwrap_or(u32::MAX);
    let Ok(room) = app.answer_room.clone().try_acquire_many_owned(len) else {
        return too_many("too many large answers are waiting to be read; retry later, or ask for smaller pages")
            .into_response();
    };
    let (parts, body) = response.into_parts();
    // It is complete: its length is known.
    let Ok(bytes) = to_bytes(body, usize::MAX).await else { return Response::from_parts(parts, Body::empty()) };
    Response::from_parts(parts, Body::new(Held::new(bytes, room, app.limits.answer_pause)))
}

/// A body that is dropped when the client stops reading it.
struct Held {
    rest: Arc<Mutex<Rest>>,
    /// Checks whether it is being read.
    watch: AbortHandle,
}

struct Rest {
    bytes: Bytes,
    room: Option<OwnedSemaphorePermit>,
    is_given_up: bool,
    /// Whether something was read since the last check.
    was_taken: bool,
}

impl Held {
    fn new(bytes: Bytes, room: OwnedSemaphorePermit, pause: Duration) -> Self {
        let rest = Rest { bytes, room: Some(room), is_given_up: false, was_taken: false };
        let rest = Arc::new(Mutex::new(rest));
        let watched = rest.clone();
        let watch = tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let mut rest = lock(&watched);
                if !std::mem::take(&mut rest.was_taken) {
                    *rest = Rest { bytes: Bytes::new(), room: None, is_given_up: true, was_taken: false };
                    return;
                }
            }
        });
        Held { rest, watch: watch.abort_handle() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.watch.abort();
        // An aborted task is dropped only when its runtime gets to it.
        let mut rest = lock(&self.rest);
        (rest.bytes, rest.room) = (Bytes::new(), None);
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut rest = lock(&self.rest);
        if rest.is_given_up {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the answer was not read");
            return Poll::Ready(Some(Err(error)));
        }
        if rest.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let len = rest.bytes.len().min(PIECE);
        let piece = rest.bytes.split_to(len);
        rest.was_taken = true;
        // The rest keeps only the room that it needs.
        let left = rest.bytes.len();
        if let Some(room) = &mut rest.room {
            drop(room.split(room.num_permits().saturating_sub(left)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let rest = lock(&self.rest);
        rest.bytes.is_empty() && !rest.is_given_up
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(lock(&self.rest).bytes.len() as u64)
    }
}

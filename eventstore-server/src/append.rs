//! Appends a batch in one request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use bytes::{BufMut as _, BytesMut};
use eventstore_api::{Batch, Context, Error, Event};
use eventstore_wire::{
    Appended, BINARY, Incoming, JSON, JSON_LINES, MAX_BODY, Malformed, Problem, Query, decode_batch, read_events,
};
use futures_util::TryStreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::StreamReader;
use tower_http::timeout::TimeoutBody;

use crate::answer::{Answer, Params, Refused, Writing, json, stopping, too_many};
use crate::server::App;

/// The media type of a request's body. An HTML form of another origin cannot send any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyForm {
    Json,
    Binary,
}

impl BodyForm {
    pub(crate) fn of(headers: &HeaderMap) -> Answer<Self> {
        let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media_type.as_str() {
            BINARY => Ok(BodyForm::Binary),
            JSON | JSON_LINES => Ok(BodyForm::Json),
            other => {
                let detail =
                    format!("the Content-Type {other:?} is none of {JSON}, {JSON_LINES}, {BINARY}; name the body's");
                Err(Problem::new(415, "unsupported_media_type", detail).into())
            }
        }
    }
}

/// A body in memory, and the room that it occupies.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// The number of bytes read at a time.
const PIECE: usize = 64 << 10;

/// The binary logarithm of the largest window of a compressed body: 8 MiB, as in browsers.
const WINDOW_LOG: u32 = 23;

/// The size limits of a body in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// As sent.
    pub(crate) sent: usize,
    /// Uncompressed.
    pub(crate) read: usize,
}

impl Sizes {
    fn too_large(most: usize) -> Refused {
        Problem::new(413, "too_large", format!("the body has more than {most} bytes; send smaller batches")).into()
    }
}

/// Reads a body, within the available room and the time limit of the request.
pub(crate) async fn receive(app: &Arc<App>, ctx: &Context, headers: &HeaderMap, body: Body) -> Answer<Received> {
    // For an uncompressed body, the limit of the content applies.
    receive_within(Sizes { sent: usize::MAX, read: MAX_BODY }, app, ctx, headers, body).await
}

/// Reads a body within these limits.
pub(crate) async fn receive_within(
    sizes: Sizes,
    app: &Arc<App>,
    ctx: &Context,
    headers: &HeaderMap,
    body: Body,
) -> Answer<Received> {
    // A body with an excessive declared length is not read.
    if body.size_hint().lower() > sizes.sent as u64 {
        return Err(Sizes::too_large(sizes.sent));
    }
    let body = Body::new(TimeoutBody::new(app.limits.body_pause, body));
    let mut left = sizes.sent;
    let body = StreamReader::new(body.into_data_stream().map_err(io::Error::other).and_then(move |piece| {
        let rest = left.checked_sub(piece.len()).ok_or(io::ErrorKind::FileTooLarge);
        left = rest.unwrap_or_default();
        std::future::ready(rest.map(|_| piece).map_err(io::Error::from))
    }));
    let encoding = headers.get(header::CONTENT_ENCODING).map(|encoding| encoding.to_str().unwrap_or("?"));
    let encoding = encoding.map(|encoding| encoding.trim().to_ascii_lowercase());
    let reader: Pin<Box<dyn AsyncRead + Send>> = match encoding.as_deref() {
        None | Some("identity") => Box::pin(body),
        Some("gzip") => {
            let mut decoder = GzipDecoder::new(body);
            // As from concatenated files.
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Some("zstd") => {
            let mut decoder = ZstdDecoder::with_params(body, &[DParameter::window_log_max(WINDOW_LOG)]);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Some(other) => {
            let detail = format!("the Content-Encoding {other:?} is none of gzip, zstd; send the body as it is");
            return Err(Problem::new(415, "unsupported_media_type", detail).into());
        }
    };
    ctx.run(read_all(app, reader, sizes)).await?
}

async fn read_all(app: &Arc<App>, mut reader: Pin<Box<dyn AsyncRead + Send>>, sizes: Sizes) -> Answer<Received> {
    let mut bytes = BytesMut::new();
    // Acquired as the bytes arrive: a slow body occupies no more than it has sent.
    let mut room = app.body_room.clone().try_acquire_many_owned(0).map_err(|_| stopping())?;
    loop {
        if room.num_permits() <= bytes.len() {
            let more = app.body_room.clone().acquire_many_owned(PIECE as u32);
            let Ok(more) = tokio::time::timeout(app.limits.body_wait, more).await else {
                return Err(too_many("there are too many large requests at the same time; retry later"));
            };
            room.merge(more.map_err(|_| stopping())?);
        }
        let free = room.num_permits() - bytes.len();
        bytes.reserve(free);
        let read = reader.read_buf(&mut (&mut bytes).limit(free)).await;
        let read = match read {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(Sizes::too_large(sizes.sent)),
            Err(error) => {
                return Err(Problem::new(400, "malformed", format!("the body cannot be read: {error}")).into());
            }
            Ok(read) => read,
        };
        if bytes.len() > sizes.read {
            return Err(Sizes::too_large(sizes.read));
        }
        if read == 0 {
            return Ok(Received { bytes: bytes.freeze(), _room: room });
        }
    }
}

/// Parses a body, on a thread for blocking work if it is large.
pub(crate) async fn parse<T: Send + 'static>(
    received: Received,
    parse: impl FnOnce(&Bytes) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    const LARGE: usize = 256 << 10;
    if received.bytes.len() < LARGE {
        return parse(&received.bytes);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&received.bytes)).await;
    parsed.unwrap_or_else(|error| Err(Error::engine("read the body", error).into()))
}

/// The answer to an invalid message.
pub(crate) fn malformed(error: Malformed) -> Refused {
    Problem::new(400, "malformed", error.to_string()).into()
}

/// The batch, with the query parameters of an append.
fn batch(events: Vec<Incoming>, query: &mut Query) -> Answer<Batch> {
    let keep = match query.text("recorded_at")?.as_deref() {
        None | Some("now") => false,
        Some("keep") => true,
        Some(other) => {
            let reason = format!("{other:?} is neither keep nor now");
            return Err(Error::InvalidOption { option: "recorded_at".to_owned(), reason }.into());
        }
    };
    let times: Option<Vec<_>> = events.iter().map(|incoming| incoming.recorded_at).collect();
    if keep && times.is_none() {
        let reason = "recorded_at=keep wants a time of each event, and one has none";
        return Err(Error::invalid_event("recorded_at", reason).into());
    }
    let events: Vec<Event> = events.into_iter().map(|incoming| incoming.event).collect();
    let mut batch = Batch::new(events)
        .expected(query.value("expected")?.unwrap_or_default())
        .idempotency(query.value("idempotency")?.unwrap_or_default());
    batch.durability = query.value("durability")?;
    batch.recorded_at = times.filter(|_| keep);
    Ok(batch)
}

pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Writing(served): Writing,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = BodyForm::of(&headers)?;
    let received = receive(&app, &ctx, &headers, body).await?;
    let batch = match form {
        BodyForm::Binary => parse(received, |bytes| Ok(decode_batch(bytes.clone()).map_err(malformed)??)).await?,
        BodyForm::Json => batch(parse(received, |bytes| Ok(read_events(bytes)?)).await?, &mut query)?,
    };
    query.finish()?;
    let ids = batch.events.iter().map(|event| event.id().to_owned()).collect();
    json(&Appended::new(ids, served.store.store_batch(&ctx, batch).await?))
}

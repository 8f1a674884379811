//! A batch in one request.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use eventstore_api::{Batch, Context, Durability, Error, Event, Stored};
use eventstore_wire::{
    Appended, BINARY, Incoming, JSON, JSON_LINES, MAX_BODY, Malformed, Problem, Query, decode_batch, read_events,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::{Answer, Params, Refused, Writing, json};
use crate::server::App;
use crate::stores::Served;

/// The form of a request's body. What an HTML form of another origin can send is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyForm {
    Json,
    Binary,
}

impl BodyForm {
    pub(crate) fn of(headers: &HeaderMap) -> Answer<Self> {
        let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = value.split(';').next().unwrap_or_default().trim();
        match media_type {
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

/// A body in memory, and the room that it takes.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Reads a body, as far as there is room for it.
pub(crate) async fn receive(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Answer<Received> {
    let is_encoded = headers.contains_key(header::CONTENT_ENCODING);
    let len = headers.get(header::CONTENT_LENGTH).filter(|_| !is_encoded);
    let len = len.and_then(|len| len.to_str().ok()?.parse::<usize>().ok()).unwrap_or(MAX_BODY);
    if len > MAX_BODY {
        let detail = format!("the body has {len} bytes, over the limit of {MAX_BODY} bytes; send smaller batches");
        return Err(Problem::new(413, "too_large", detail).into());
    }
    let room = u32::try_from(len.min(app.limits.body_bytes)).unwrap_or(u32::MAX);
    let room = app.body_room.clone().acquire_many_owned(room).await;
    let room = room.map_err(|_| crate::answer::stopping())?;
    let body = tower_http::timeout::TimeoutBody::new(app.limits.body_pause, body);
    let bytes =
        axum::body::to_bytes(Body::new(body), MAX_BODY).await.map_err(|error| {
            match std::error::Error::source(&error).is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>())
            {
                true => {
                    let detail = format!("the body has more than {MAX_BODY} bytes; send smaller batches");
                    Problem::new(413, "too_large", detail)
                }
                false => Problem::new(400, "malformed", format!("the body cannot be read: {error}")),
            }
        })?;
    Ok(Received { bytes, _room: room })
}

/// A message that is not what it should be.
pub(crate) fn malformed(error: Malformed) -> Refused {
    Problem::new(400, "malformed", error.to_string()).into()
}

/// Which parameters an append has beside its body.
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
    let received = receive(&app, &headers, body).await?;
    let batch = match form {
        BodyForm::Binary => decode_batch(received.bytes.clone()).map_err(malformed)??,
        BodyForm::Json => batch(read_events(&received.bytes)?, &mut query)?,
    };
    query.finish()?;
    json(&Appended { stored: append(&served, &ctx, batch).await? })
}

/// Appends, and remembers what was synced.
pub(crate) async fn append(served: &Served, ctx: &Context, batch: Batch) -> Result<Vec<Stored>, Error> {
    let is_synced = batch.durability == Some(Durability::Sync);
    let stored = served.store.store_batch(ctx, batch).await?;
    if is_synced && let Some(last) = stored.iter().map(|place| place.version).max() {
        served.is_synced(last);
    }
    Ok(stored)
}

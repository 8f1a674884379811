//! The calls of replicas: `pull` and `push`, both at a version whose digest must match.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use eventstore_api::{Batch, Digest, Error, LoadOptions, Page, Place, Version};
use eventstore_wire::{Pushed, Query, QueryWriter, decode_batches, read_batches};

use crate::answer::{Answer, Form, Params, Reading, Writing, json, problem_of};
use crate::append::{BodyForm, malformed, parse, receive};
use crate::read::{page, page_size};
use crate::server::App;

/// The place that a replica names.
fn take_place(query: &mut Query, name: &str) -> Answer<Place> {
    let version = query.value(name)?.unwrap_or_default();
    match query.value("digest")? {
        Some(digest) => Ok(Place::new(version, digest)),
        None if version == Version::ZERO => Ok(Place::new(version, Digest::EMPTY)),
        None => {
            let reason = format!("it is missing: name the digest at {name}={version}");
            Err(Error::InvalidOption { option: "digest".to_owned(), reason }.into())
        }
    }
}

pub(crate) async fn pull(Reading(served): Reading, headers: HeaderMap, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = Form::of(&headers)?;
    let since = take_place(&mut query, "since")?;
    let size = page_size(&mut query)?;
    query.finish()?;
    let pulled = served.store.pull(&ctx, since, size).await?;
    let last = pulled.events.last().map_or(since.version, |last| last.version);
    let is_last = last >= pulled.head;
    let next = match form {
        Form::Json if !is_last => {
            let digest = served.store.digest(&ctx, last).await?;
            Some(QueryWriter::new().put("since", last).put("digest", digest).finish())
        }
        _ => None,
    };
    let options = LoadOptions::since(since.version);
    page(Page::new(&options, pulled.events, pulled.head, is_last), form, next).await
}

pub(crate) async fn push(
    State(app): State<Arc<App>>,
    Writing(served): Writing,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = BodyForm::of(&headers)?;
    let at = take_place(&mut query, "at")?;
    query.finish()?;
    let received = receive(&app, &ctx, &headers, body).await?;
    let batches: Vec<Result<Batch, Error>> = match form {
        BodyForm::Binary => parse(received, |bytes| decode_batches(bytes.clone()).map_err(malformed)).await?,
        BodyForm::Json => parse(received, |bytes| Ok(read_batches(bytes)?)).await?,
    };
    // An invalid batch is refused after the batches before it.
    let mut invalid = None;
    let sound = batches.into_iter().map_while(|batch| batch.map_err(|error| invalid = Some(error)).ok()).collect();
    let pushed = served.store.push(&ctx, at, sound).await?;
    let refused = pushed.refused.or(invalid).map(|error| Box::new(problem_of(&error)));
    json(&Pushed { stored: pushed.stored, refused, head: pushed.head })
}

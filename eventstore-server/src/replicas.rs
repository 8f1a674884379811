//! What replicas use: `pull` and `push`, both at a version whose digest is the same here and there.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use eventstore_api::{Batch, Context, Cursor, Digest, Error, Version};
use eventstore_wire::{Pushed, Query, QueryWriter, decode_batches, read_batches};

use crate::answer::{Answer, Form, Params, Reading, Writing, json, problem_of};
use crate::append::{BodyForm, append, malformed, parse, receive};
use crate::read::{page, page_size};
use crate::server::App;
use crate::stores::{Served, sync};

/// The place that a replica names.
struct Place {
    version: Version,
    digest: Digest,
}

impl Place {
    fn take(query: &mut Query, name: &str) -> Answer<Self> {
        let version = query.value(name)?.unwrap_or_default();
        let digest = match query.value("digest")? {
            Some(digest) => digest,
            None if version == Version::ZERO => Digest::EMPTY,
            None => {
                let reason = format!("it is missing: name the digest at {name}={version}");
                return Err(Error::InvalidOption { option: "digest".to_owned(), reason }.into());
            }
        };
        Ok(Place { version, digest })
    }

    /// The store has the same history up to here. What it has, it keeps: so this holds for the whole request.
    async fn check(&self, served: &Served, ctx: &Context, latest: Version) -> Answer<()> {
        let version = self.version.min(latest);
        let found = served.store.digest(ctx, version).await?;
        if version == self.version && found == self.digest {
            return Ok(());
        }
        let cursor = Cursor::new(self.version, self.digest);
        Err(Error::HistoryDiverged { cursor, found: Cursor::new(version, found) }.into())
    }
}

pub(crate) async fn pull(Reading(served): Reading, headers: HeaderMap, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = Form::of(&headers)?;
    let place = Place::take(&mut query, "since")?;
    let size = page_size(&mut query)?;
    query.finish()?;
    // Only what a power cut here does not take is given away.
    let synced = sync(&served, &ctx).await?;
    place.check(&served, &ctx, synced).await?;
    let options = eventstore_api::LoadOptions::since(place.version).before(synced.next());
    let mut found = served.store.load_page(&ctx, &options, size).await?;
    found.head = synced;
    let next = match (form, &found.next, found.events.last()) {
        (Form::Json, Some(_), Some(last)) => {
            let digest = served.store.digest(&ctx, last.version).await?;
            Some(QueryWriter::new().put("since", last.version).put("digest", digest).finish())
        }
        _ => None,
    };
    page(found, form, next).await
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
    let place = Place::take(&mut query, "at")?;
    query.finish()?;
    let received = receive(&app, &ctx, &headers, body).await?;
    let batches: Vec<Result<Batch, Error>> = match form {
        BodyForm::Binary => parse(received, |bytes| decode_batches(bytes.clone()).map_err(malformed)).await?,
        BodyForm::Json => parse(received, |bytes| Ok(read_batches(bytes)?)).await?,
    };
    place.check(&served, &ctx, served.store.latest_version(&ctx).await?).await?;
    let (mut stored, mut refused) = (Vec::new(), None);
    for batch in batches {
        let outcome = match batch {
            Ok(batch) => append(&served, &ctx, batch).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(places) => stored.push(places),
            Err(error) => {
                refused = Some(Box::new(problem_of(&error)));
                break;
            }
        }
    }
    // What was appended is there, whatever the context says by now.
    let head = served.store.latest_version(&Context::background()).await?;
    json(&Pushed { stored, refused, head })
}

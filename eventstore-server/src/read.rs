//! Pages, single events, positions, digests.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use eventstore_api::{AggregatePage, Context, Cursor, Error, EventStoreExt as _, LoadOptions, Page, PageSize, Version};
use eventstore_wire::{
    AggregatesForm, BINARY, DigestForm, Latest, PageForm, Query, RevisionForm, aggregate_query, encode_page, load_query,
};

use crate::answer::{Answer, Form, Params, Reading, bytes, json, unless_stopping};
use crate::server::App;
use crate::stores::Served;

/// The largest page: a slow reader of a larger one would occupy a lot of memory.
const LARGEST: PageSize = PageSize::new(10_000, 16 << 20);

/// Pages with more bytes are encoded on a thread for blocking work.
const LARGE: usize = 1 << 20;

/// `since` is a version, or a cursor whose history is checked.
pub(crate) async fn check_since(served: &Served, ctx: &Context, query: &mut Query) -> Answer<Option<Version>> {
    let Some(text) = query.text("since")? else { return Ok(None) };
    if !text.contains('-') {
        return Ok(Some(text.parse::<Version>()?));
    }
    let cursor: Cursor = text.parse()?;
    served.store.check_cursor(ctx, cursor).await?;
    Ok(Some(cursor.version()))
}

/// The requested size of a page.
pub(crate) fn page_size(query: &mut Query) -> Answer<PageSize> {
    let events = query.value("page_events")?.unwrap_or(PageSize::LARGEST.events);
    let bytes = query.value("page_bytes")?.unwrap_or(PageSize::LARGEST.bytes);
    Ok(PageSize::new(events.min(LARGEST.events), bytes.min(LARGEST.bytes)))
}

pub(crate) async fn events(Reading(served): Reading, headers: HeaderMap, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = Form::of(&headers)?;
    let since = check_since(&served, &ctx, &mut query).await?;
    let (mut options, size) = (query.load()?, page_size(&mut query)?);
    query.finish()?;
    options.since = since.unwrap_or_default();
    let found = served.store.load_page(&ctx, &options, size).await?;
    let next = found.next.as_ref().map(|next| load_query(next).finish());
    page(found, form, next).await
}

/// A page as a response. `next` is the query of the next page.
pub(crate) async fn page(page: Page, form: Form, next: Option<String>) -> Answer {
    let len: usize = page.events.iter().map(|recorded| recorded.event.len_bytes()).sum();
    let write = move || match form {
        Form::Binary => Ok(bytes(BINARY, encode_page(&page))),
        Form::Json => {
            let Page { events, head, .. } = page;
            json(&PageForm { head, events, next })
        }
    };
    if len < LARGE {
        return write();
    }
    let written = tokio::task::spawn_blocking(write).await;
    written.unwrap_or_else(|error| Err(Error::engine("write a page", error).into()))
}

pub(crate) async fn event(Reading(served): Reading, headers: HeaderMap, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let form = Form::of(&headers)?;
    let id = required(&mut query, "id")?;
    query.finish()?;
    let recorded = served.store.get(&ctx, &id).await?;
    match form {
        Form::Json => json(&recorded),
        Form::Binary => {
            let head = recorded.version;
            Ok(bytes(BINARY, encode_page(&Page::new(&LoadOptions::all(), vec![recorded], head, true))))
        }
    }
}

pub(crate) fn required(query: &mut Query, name: &'static str) -> Answer<String> {
    let missing = || Error::InvalidOption { option: name.to_owned(), reason: "it is missing".to_owned() };
    Ok(query.text(name)?.ok_or_else(missing)?)
}

pub(crate) async fn latest(Reading(served): Reading, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let with_cursor = query.flag("cursor")?;
    query.finish()?;
    let version = served.store.latest_version(&ctx).await?;
    let cursor = match with_cursor {
        true => Some(served.store.cursor_at(&ctx, version).await?),
        false => None,
    };
    json(&Latest { version, cursor })
}

pub(crate) async fn revision(Reading(served): Reading, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let aggregate_id = required(&mut query, "aggregate")?;
    query.finish()?;
    let revision = served.store.aggregate_revision(&ctx, &aggregate_id).await?;
    json(&RevisionForm { aggregate_id, revision })
}

pub(crate) async fn aggregates(Reading(served): Reading, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let options = query.aggregates()?;
    let most = query.value("limit")?.unwrap_or(1_000_usize);
    query.finish()?;
    let AggregatePage { aggregates, next, head, .. } = served.store.list_aggregates(&ctx, &options, most).await?;
    json(&AggregatesForm { head, aggregates, next: next.map(|next| aggregate_query(&next).finish()) })
}

pub(crate) async fn wait(State(app): State<Arc<App>>, Reading(served): Reading, params: Params) -> Answer {
    const LONGEST: Duration = Duration::from_secs(60);
    let (mut query, ctx) = (params.query, params.ctx);
    let after = query.value("after")?.unwrap_or_default();
    query.finish()?;
    let ctx = if ctx.deadline().is_none() { ctx.with_timeout(LONGEST) } else { ctx };
    let version = unless_stopping(&app, served.store.wait_for_events(&ctx, after)).await??;
    json(&Latest { version, cursor: None })
}

pub(crate) async fn digest(Reading(served): Reading, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let until = query.value("until")?;
    query.finish()?;
    let latest = served.store.latest_version(&ctx).await?;
    let version = until.map_or(latest, |until: Version| until.min(latest));
    json(&DigestForm { version, digest: served.store.digest(&ctx, version).await? })
}

//! Information about a server and its stores.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{FromRequestParts as _, OriginalUri, Request, State};
use axum::http::{HeaderMap, StatusCode};
use eventstore_api::{Context, Error};
use eventstore_wire::{Info, Problem, WIRE};
use serde::Serialize;
use serde_json::json;

use crate::access::Right;
use crate::answer::{Answer, Params, Reading, accepts, allowed, bytes, json as answer, problem};
use crate::server::App;
use crate::stores::{Served, Source, lock};
use crate::{description, page};

/// A store, as a page for browsers or as JSON for programs.
pub(crate) async fn store(State(app): State<Arc<App>>, OriginalUri(uri): OriginalUri, request: Request) -> Answer {
    if accepts(request.headers(), "text/html") {
        return Ok(page::html(uri.path()));
    }
    info(&app, request, false).await
}

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Answer {
    info(&app, request, true).await
}

async fn info(app: &Arc<App>, request: Request, create: bool) -> Answer {
    let (mut parts, _) = request.into_parts();
    Params::from_request_parts(&mut parts, app).await?.query.finish()?;
    let (name, allowed) = allowed(&mut parts, app).await?;
    let is_new = !app.stores.exists(&name);
    let may = match (is_new, create) {
        (true, true) => allowed.may_create && !app.is_read_only,
        // A token that may create the store may also find that it exists.
        (false, true) => allowed.right.is_some() || allowed.may_create,
        (_, false) => allowed.right.is_some(),
    };
    if !may {
        let what = if is_new && create { "create the store" } else { "read the store" };
        let detail = format!("the token does not have the right to {what} {name:?}; use one that has");
        return Err(Problem::new(403, "forbidden", detail).into());
    }
    let served = app.stores.get(&name, create).await?;
    let stats = served.store.stats(&Context::background()).await?;
    let info = Info {
        wire: vec![WIRE],
        name: Some(name).filter(|name| !name.is_empty()),
        backend: stats.backend.into_owned(),
        latest_version: stats.latest_version,
        writable: !app.is_read_only && allowed.right >= Some(Right::Write),
        server: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut response = answer(&info)?;
    if is_new && create {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

/// The root of a server of many stores.
pub(crate) async fn server(headers: HeaderMap, OriginalUri(uri): OriginalUri, params: Params) -> Answer {
    if accepts(&headers, "text/html") {
        return Ok(page::html(uri.path()));
    }
    params.query.finish()?;
    answer(&json!({ "wire": [WIRE], "server": env!("CARGO_PKG_VERSION"), "stores": "stores" }))
}

/// The answer to requests for a store on a server of many stores.
pub(crate) async fn name_one() -> Answer {
    Err(Problem::new(404, "not_found", "this server has many stores; name one: PUT /stores/NAME").into())
}

/// The stores that the token may read.
pub(crate) async fn stores(State(app): State<Arc<App>>, headers: HeaderMap, params: Params) -> Answer {
    params.query.finish()?;
    let of = app.clone();
    let names = tokio::task::spawn_blocking(move || of.stores.names()).await;
    let names = names.map_err(|error| Error::engine("list the stores", error))?;
    let names = names.map_err(|error| Error::engine("list the stores", error))?;
    let mut readable = Vec::new();
    for name in names {
        if app.access.allowed(&headers, &name)?.right.is_some() {
            readable.push(name);
        }
    }
    // Check the token even though no store is named: a wrong token is an error.
    app.access.allowed(&headers, "")?;
    answer(&json!({ "stores": readable }))
}

pub(crate) async fn stats(State(app): State<Arc<App>>, Reading(served): Reading, params: Params) -> Answer {
    params.query.finish()?;
    let stats = served.store.stats(&params.ctx).await?;
    #[derive(Serialize)]
    struct Report<'a> {
        #[serde(flatten)]
        stats: &'a eventstore_api::Stats,
        server: serde_json::Value,
    }
    let server = json!({
        "followers": served.followers.load(Ordering::Relaxed),
        "sessions": served.sessions.load(Ordering::Relaxed),
        "jobs": &*lock(&served.jobs),
        "uptime_seconds": app.started.elapsed().as_secs(),
    });
    answer(&Report { stats: &stats, server })
}

/// Liveness: the process is running.
pub(crate) async fn health(params: Params) -> Answer {
    params.query.finish()?;
    answer(&json!({ "status": "alive" }))
}

/// Readiness: the server accepts requests, and every open store accepts appends.
pub(crate) async fn ready(State(app): State<Arc<App>>, params: Params) -> Answer {
    params.query.finish()?;
    if app.stopping.is_cancelled() {
        return Err(crate::answer::stopping().into());
    }
    for served in app.stores.open() {
        if let Some(reason) = fence(&served).await? {
            return Err(Error::Fenced { reason }.into());
        }
    }
    answer(&json!({ "status": "ready" }))
}

async fn fence(served: &Served) -> Result<Option<String>, Error> {
    Ok(served.store.stats(&Context::background()).await?.fenced)
}

pub(crate) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap, params: Params) -> Answer {
    params.query.finish()?;
    // The labels of metrics have the names of all stores.
    if app.access.allowed(&headers, "")?.right.is_none() {
        let detail = "metrics cover all stores; use a token that may read all of them";
        return Err(Problem::new(403, "forbidden", detail).into());
    }
    match &app.metrics {
        Some(render) => Ok(bytes("text/plain; version=0.0.4; charset=utf-8", render().into_bytes())),
        None => Ok(problem(&Problem::new(404, "not_found", "this server has no metrics"))),
    }
}

pub(crate) async fn openapi(State(app): State<Arc<App>>, params: Params) -> Answer {
    params.query.finish()?;
    let text = match app.stores {
        Source::One(_) => description::ONE.to_vec(),
        Source::Many { .. } => description::of_many(),
    };
    Ok(bytes(eventstore_wire::JSON, text))
}

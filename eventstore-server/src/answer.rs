//! Common parts of requests and answers: media types, problems, and the store of a request.

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use eventstore_api::{Context, Error};
use eventstore_wire::{BINARY, JSON, PROBLEM, Problem, Query};
use serde::Serialize;

use crate::access::{Allowed, Gone, Right};
use crate::server::App;
use crate::stores::Served;

/// A request that was refused or failed.
#[derive(Clone, Debug)]
pub(crate) struct Refused(pub(crate) Box<Problem>);

/// The result of a handler.
pub(crate) type Answer<T = Response> = Result<T, Refused>;

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::from(problem_of(&error))
    }
}

/// An error of a store as a problem. A closed store is reported as unavailable: either the next request opens it again,
/// or the server is stopping.
pub(crate) fn problem_of(error: &Error) -> Problem {
    match error {
        Error::Closed => stopping(),
        error => Problem::from(error),
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Refused(Box::new(problem))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        problem(&self.0)
    }
}

/// A problem as a response.
pub(crate) fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = bytes(PROBLEM, problem.to_json().into_bytes());
    *response.status_mut() = status;
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The problem for requests to a server that is stopping.
pub(crate) fn stopping() -> Problem {
    let mut problem = Problem::new(503, "unavailable", "the server is shutting down; nothing was written; retry later");
    (problem.reason, problem.retryable) = (Some("the server is shutting down".to_owned()), true);
    problem
}

/// A limit is reached; there may be room later.
pub(crate) fn too_many(detail: impl Into<String>) -> Refused {
    let mut problem = Problem::new(429, "too_many", detail);
    problem.retryable = true;
    problem.into()
}

/// Bytes of this media type.
pub(crate) fn bytes(media_type: &'static str, bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")], bytes).into_response()
}

/// A value as JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Answer {
    let text = serde_json::to_vec(value).map_err(|error| Error::engine("write the answer as JSON", error))?;
    Ok(bytes(JSON, text))
}

/// A body that is produced while it is sent.
pub(crate) fn stream(media_type: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// The media types that some resources support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Binary,
}

/// Whether this media type is among the accepted ones.
pub(crate) fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    accepted(headers).any(|media_type| media_type.eq_ignore_ascii_case(wanted))
}

fn accepted(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|part| part.split(';').next().unwrap_or_default().trim())
}

impl Form {
    /// The accepted media type.
    pub(crate) fn of(headers: &HeaderMap) -> Answer<Self> {
        if accepts(headers, BINARY) {
            return Ok(Form::Binary);
        }
        let mut all = accepted(headers).peekable();
        if all.peek().is_none()
            || all.any(|accepted| ["*/*", "application/*", JSON].iter().any(|form| accepted.eq_ignore_ascii_case(form)))
        {
            return Ok(Form::Json);
        }
        let detail = format!("this resource has the forms {JSON} and {BINARY}; accept one of them");
        Err(Problem::new(406, "not_acceptable", detail).into())
    }
}

/// The query parameters of a request, and its time limit.
pub(crate) struct Params {
    pub(crate) query: Query,
    pub(crate) ctx: Context,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let mut query = Query::new(parts.uri.query().unwrap_or_default())?;
        let timeout = query.duration("timeout")?;
        let ctx = Context::background();
        Ok(Params { query, ctx: timeout.map_or(ctx.clone(), |timeout| ctx.with_timeout(timeout)) })
    }
}

/// The name of the store in a request's path; `""` is the only store of a server.
pub(crate) async fn store_name(parts: &mut Parts, app: &App) -> Answer<String> {
    let params = RawPathParams::from_request_parts(parts, app).await;
    let params = params.map_err(|_| Problem::new(400, "malformed", "the path is not UTF-8"))?;
    Ok(params.iter().find(|(name, _)| *name == "store").map_or("", |(_, value)| value).to_owned())
}

/// The rights of a request to its store.
pub(crate) async fn allowed(parts: &mut Parts, app: &App) -> Answer<(String, Allowed)> {
    let name = store_name(parts, app).await?;
    let allowed = app.access.allowed(&parts.headers, &name)?;
    Ok((name, allowed))
}

async fn served(parts: &mut Parts, app: &Arc<App>, wanted: Right) -> Answer<Arc<Served>> {
    let (name, allowed) = allowed(parts, app).await?;
    if allowed.right.is_none_or(|right| right < wanted) {
        let of = if name.is_empty() { String::new() } else { format!(" for the store {name:?}") };
        let detail = format!("the token does not have the right `{wanted}`{of}; use one that has");
        return Err(Problem::new(403, "forbidden", detail).into());
    }
    if app.is_read_only && wanted == Right::Write {
        let detail = "this server only reads; append where the store is written";
        return Err(Problem::new(403, "forbidden", detail).into());
    }
    parts.extensions.insert(allowed.gone);
    app.stores.get(&name, false).await
}

/// For the token of a request whose store was extracted before.
impl<S: Send + Sync> FromRequestParts<S> for Gone {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Gone>().cloned().unwrap_or_default())
    }
}

/// The store of a request with the right to read.
pub(crate) struct Reading(pub(crate) Arc<Served>);

/// The store of a request with the right to append.
pub(crate) struct Writing(pub(crate) Arc<Served>);

/// The store of a request with the right to do maintenance.
pub(crate) struct Maintaining(pub(crate) Arc<Served>);

impl FromRequestParts<Arc<App>> for Reading {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        served(parts, app, Right::Read).await.map(Reading)
    }
}

impl FromRequestParts<Arc<App>> for Writing {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        served(parts, app, Right::Write).await.map(Writing)
    }
}

impl FromRequestParts<Arc<App>> for Maintaining {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        served(parts, app, Right::Admin).await.map(Maintaining)
    }
}

/// Waits for work that may take long, unless the server stops.
pub(crate) async fn unless_stopping<T>(app: &App, work: impl Future<Output = T>) -> Answer<T> {
    tokio::select! {
        done = work => Ok(done),
        () = app.stopping.cancelled() => Err(stopping().into()),
    }
}

//! What there is over HTTP. Errors are `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::{StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use eventstore::{BoxError, DecideError, Error, Version, Written};
use rusqlite::OptionalExtension;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::App;
use crate::domain::{Cancel, Command, Order, Pay, Place, Refused, Ship, Status};

pub fn router(app: App) -> Router {
    Router::new()
        .route("/orders", get(orders))
        .route("/orders/{id}", get(order).post(place))
        .route("/orders/{id}/payments", post(pay))
        .route("/orders/{id}/shipment", post(ship))
        .route("/orders/{id}/cancellation", post(cancel))
        .route("/customers/{name}", get(customer))
        .with_state(app)
}

type Body<T> = Result<Json<T>, JsonRejection>;
type Answer = Result<(StatusCode, Json<Value>), Problem>;

async fn place(State(app): State<App>, Path(id): Path<String>, key: Key, body: Body<Place>) -> Answer {
    command(&app, id, key, Command::Place(body?.0)).await
}

async fn pay(State(app): State<App>, Path(id): Path<String>, key: Key, body: Body<Pay>) -> Answer {
    command(&app, id, key, Command::Pay(body?.0)).await
}

async fn ship(State(app): State<App>, Path(id): Path<String>, key: Key, body: Body<Ship>) -> Answer {
    command(&app, id, key, Command::Ship(body?.0)).await
}

async fn cancel(State(app): State<App>, Path(id): Path<String>, key: Key, body: Body<Cancel>) -> Answer {
    command(&app, id, key, Command::Cancel(body?.0)).await
}

/// The answer has the version that the command led to, for `?after=`; and the order as it is now, which is later if the
/// command is a repeated one.
async fn command(app: &App, id: String, key: Key, command: Command) -> Answer {
    let done = app
        .store
        .decide::<Order>(&id, |order| order.decide(&command))
        .idempotency_key(key.0)
        .metadata(&json!({ "command": command }))
        .snapshots(&app.snapshots)
        .timeout(Duration::from_secs(5))
        .await?;
    let Some(appended) = done.appended else { return Err(Error::Closed.into()) }; // every command leads to an event
    if let Some(first) = done.earlier.first()
        && first.event.metadata_as::<Value>()? != json!({ "command": command })
    {
        return Err(key_reused());
    }
    let status = if matches!(command, Command::Place(_)) { StatusCode::CREATED } else { StatusCode::OK };
    let body = json!({ "version": appended.last.get(), "repeated": !done.earlier.is_empty(), "order": done.state });
    Ok((status, Json(body)))
}

fn key_reused() -> Problem {
    let detail = "the key was used for another command; give each command a key of its own";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", detail)
}

/// From the events: always what is so now.
async fn order(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let order = app.store.aggregate::<Order>(id).await?;
    if order.state.status == Status::New {
        return Err(DecideError::Rejected(Refused::Unknown).into());
    }
    Ok((StatusCode::OK, Json(json!({ "version": order.version.get(), "order": order.state }))))
}

#[derive(Deserialize)]
struct Asked {
    /// Waits until the view has everything up to this version.
    after: Option<u64>,
    status: Option<String>,
}

impl Asked {
    async fn wait(&self, app: &App) -> Result<(), Problem> {
        let Some(after) = self.after else { return Ok(()) };
        match tokio::time::timeout(Duration::from_secs(5), app.progress.reached(Version::new(after))).await {
            Ok(reached) => Ok(reached?),
            Err(_) => {
                Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "view_lags", "the view is not there yet; ask again"))
            }
        }
    }
}

/// From the view.
async fn orders(State(app): State<App>, asked: Result<Query<Asked>, QueryRejection>) -> Answer {
    let Query(asked) = asked?;
    asked.wait(&app).await?;
    let read = app.view.with(move |database| {
        let mut rows =
            database.prepare_cached("SELECT id, customer, status FROM orders WHERE status = ?1 OR ?1 IS NULL")?;
        let row = |row: &rusqlite::Row<'_>| {
            let [id, customer, status] = [row.get::<_, String>(0)?, row.get(1)?, row.get(2)?];
            Ok(json!({ "id": id, "customer": customer, "status": status }))
        };
        Ok(rows.query_map([asked.status], row)?.collect::<Result<Vec<_>, _>>()?)
    });
    Ok((StatusCode::OK, Json(Value::Array(read.await?))))
}

/// From the view.
async fn customer(
    State(app): State<App>,
    Path(name): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Answer {
    asked?.wait(&app).await?;
    let read = app.view.with(move |database| {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        Ok(database.query_row("SELECT orders, paid FROM customers WHERE name = ?", [name], row).optional()?)
    });
    match read.await? {
        Some((orders, paid)) => Ok((StatusCode::OK, Json(json!({ "orders": orders, "paid_cents": paid })))),
        None => Err(Problem::new(StatusCode::NOT_FOUND, "unknown_customer", "there is no such customer")),
    }
}

/// The header `Idempotency-Key`, without which no command is taken: its sender could not repeat it.
struct Key(String);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.headers.get("Idempotency-Key").and_then(|key| key.to_str().ok()).filter(|key| !key.is_empty()) {
            Some(key) => Ok(Key(key.to_owned())),
            None => {
                let detail =
                    "a command needs the header Idempotency-Key, such as a new UUID, and the same when it is repeated";
                Err(Problem::new(StatusCode::BAD_REQUEST, "key_missing", detail))
            }
        }
    }
}

/// Beside the status a stable code, and whether something was written. Where that is unknown, the same request with the same
/// key finds out.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    written: Written,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl ToString) -> Self {
        Problem { status, code, detail: detail.to_string(), written: Written::Nothing }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
            "written": if self.written == Written::Nothing { "nothing" } else { "unknown" },
        });
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}

impl From<DecideError<Refused>> for Problem {
    fn from(error: DecideError<Refused>) -> Self {
        match error {
            // The ids of a command's events are those of its key.
            DecideError::Store(Error::DuplicateEvent { .. }) => key_reused(),
            DecideError::Store(error) => error.into(),
            DecideError::Rejected(refused) => {
                let status = match &refused {
                    Refused::Unknown => StatusCode::NOT_FOUND,
                    Refused::Empty => StatusCode::UNPROCESSABLE_ENTITY,
                    _ => StatusCode::CONFLICT,
                };
                Problem::new(status, refused.code(), refused)
            }
            error => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "unexpected", error),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::InvalidEvent { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Error::VersionConflict { .. } | Error::DuplicateEvent { .. } => StatusCode::CONFLICT,
            Error::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
            Error::DeadlineExceeded | Error::OutcomeUnknown { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::Cancelled | Error::Closed | Error::Fenced { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem { written: error.written(), ..Problem::new(status, error.code(), &error) }
    }
}

impl From<BoxError> for Problem {
    fn from(error: BoxError) -> Self {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "view", error)
    }
}

impl From<JsonRejection> for Problem {
    fn from(error: JsonRejection) -> Self {
        Problem::new(error.status(), "invalid_body", error.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(error: QueryRejection) -> Self {
        Problem::new(error.status(), "invalid_query", error.body_text())
    }
}

//! The wire protocol of Go Sync Kit: its unmodified clients can push, pull and follow here.
//!
//! The kit's own server answers 200 even after failures, and its managers lose events that two of them write
//! concurrently. With a separate base URL for each replica, nothing is lost: see `replica`.

mod frames;
mod replica;

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts as _, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::Response;
use eventstore_api::limits::MAX_BATCH_EVENTS;
use eventstore_api::{Batch, Context, Durability, Error, Event, EventStoreExt as _, LoadOptions, PageSize, Version};
use eventstore_wire::gosync::{self as form, Sent};
use eventstore_wire::{JSON, MAX_BODY, Problem};
use serde_json::json;
use serde_json::value::RawValue;

use crate::access::Gone;
use crate::answer::{Answer, Params, Reading, Refused, Writing, bytes, json as answer, problem};
use crate::append::{Received, Sizes, parse, receive_within};
use crate::follow;
use crate::server::App;
use crate::stores::Served;

use replica::{Pull, Range};

pub(crate) use frames::frames;
pub(crate) use replica::Replicas;

/// The limits of the kit's server for a body: as sent, and uncompressed.
const SIZES: Sizes = Sizes { sent: 10 << 20, read: 20 << 20 };

/// A replica pushes back what it pulled, in batches of a fixed number of events, however large these are.
const SIZES_OF_REPLICA: Sizes = Sizes { sent: MAX_BODY, read: MAX_BODY };

/// The most events of an answer, and the number of bytes after which it ends. The kit's clients accept 8 or 10 MiB in
/// an answer.
const MOST_EVENTS: usize = 10_000;
const MOST_BYTES: usize = 7 << 20;

/// The size of one read from the store.
const PIECE: PageSize = PageSize::LARGEST;

/// How often the new events of a push are determined again, if somebody else appends the same ids meanwhile.
const ATTEMPTS: usize = 5;

/// The resources below each base URL, for the OpenAPI description.
#[cfg(test)]
pub(crate) const RESOURCES: [&str; 5] = ["push", "pull", "latest-version", "pull-cursor", "sse"];

fn malformed(reason: String) -> Refused {
    Problem::new(400, "malformed", reason).into()
}

/// The kind of a base URL.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    /// All clients.
    Shared {
        /// Whether an event with an id that is in use is skipped, whatever its content.
        first_wins: bool,
    },
    /// One database.
    Replica(String),
}

/// The base URL and the resource of a path. Clients whose base URL ends with a slash send two slashes. Paths with
/// `/sync` in front, which the kit's server accepts, are accepted here as well.
fn resource(path: &str) -> Option<(Base, &str)> {
    let (base, rest) = match path.split_once('/') {
        Some(("first-wins", rest)) => (Base::Shared { first_wins: true }, rest),
        Some(("replicas", rest)) => {
            let (name, rest) = rest.split_once('/')?;
            (Base::Replica(name.to_owned()), rest)
        }
        _ => (Base::Shared { first_wins: false }, path),
    };
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    Some((base, rest.strip_prefix("sync/").unwrap_or(rest)))
}

/// Whether this is a valid name of a replica.
fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Answers every request below `sync`.
pub(crate) async fn respond(State(app): State<Arc<App>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    match choose(&app, &mut parts, body).await {
        Ok(response) => response,
        Err(refused) => error(&refused.0),
    }
}

/// A problem in the kit's form.
fn error(told: &Problem) -> Response {
    let mut response = problem(told);
    let text = json!({ "error": told.detail, "code": told.code }).to_string();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    *response.body_mut() = Body::from(text);
    response
}

async fn choose(app: &Arc<App>, parts: &mut Parts, body: Body) -> Answer {
    let params = RawPathParams::from_request_parts(parts, app).await;
    let params = params.map_err(|_| Problem::new(400, "malformed", "the path is not UTF-8"))?;
    let path = params.iter().find(|(name, _)| *name == "path").map_or("", |(_, value)| value);
    let Some((base, name)) = resource(path) else { return Err(no_resource().into()) };
    let method = match name {
        "push" | "pull-cursor" => Method::POST,
        "pull" | "latest-version" | "sse" => Method::GET,
        _ => return Err(no_resource().into()),
    };
    if parts.method != method {
        let detail = format!("{name:?} takes {method}, not {}", parts.method);
        return Err(Problem::new(405, "method_not_allowed", detail).into());
    }
    if let Base::Replica(name) = &base
        && !is_name(name)
    {
        let detail = format!("{name:?} is not a valid name of a replica: 1 to 100 letters, digits, - _ and .");
        return Err(Problem::new(400, "malformed", detail).into());
    }
    let params = Params::from_request_parts(parts, app).await?;
    if name == "push" {
        let Writing(served) = Writing::from_request_parts(parts, app).await?;
        return push(app, &served, &base, &parts.headers, params, body).await;
    }
    let Reading(served) = Reading::from_request_parts(parts, app).await?;
    let gone = parts.extensions.get::<Gone>().cloned().unwrap_or_default();
    match name {
        "pull" => pull(app, &served, &base, params).await,
        "latest-version" => latest(app, &served, &base, params).await,
        "pull-cursor" => pull_cursor(app, &served, &parts.headers, params, body).await,
        _ => stream(app, served, gone, params).await,
    }
}

fn no_resource() -> Problem {
    let detail = "there are push, pull, latest-version, pull-cursor and sse below a base URL; see docs/wire.md";
    Problem::new(404, "not_found", detail)
}

/// Reads the body of a request. The kit accepts bodies without a media type.
async fn read(app: &Arc<App>, ctx: &Context, headers: &HeaderMap, body: Body, sizes: Sizes) -> Answer<Received> {
    let media_type = headers.get(header::CONTENT_TYPE).map_or(JSON, |value| value.to_str().unwrap_or("?"));
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.is_empty() && !media_type.eq_ignore_ascii_case(JSON) {
        let detail = format!("the Content-Type {media_type:?} is not {JSON}; name the body's");
        return Err(Problem::new(415, "unsupported_media_type", detail).into());
    }
    receive_within(sizes, app, ctx, headers, body).await
}

/// The fate of a pushed event: its version, or why it was permanently refused.
type Fate = Result<Version, Error>;

async fn push(
    app: &Arc<App>,
    served: &Arc<Served>,
    base: &Base,
    headers: &HeaderMap,
    params: Params,
    body: Body,
) -> Answer {
    let ctx = params.ctx;
    let sizes = if matches!(base, Base::Replica(_)) { SIZES_OF_REPLICA } else { SIZES };
    let received = read(app, &ctx, headers, body, sizes).await?;
    let pushed = parse(received, |bytes| form::read_events(bytes).map_err(malformed)).await?;
    let first_wins = *base == Base::Shared { first_wins: true };
    let mut fates = Vec::with_capacity(pushed.len());
    for part in pushed.chunks(MAX_BATCH_EVENTS) {
        fates.extend(store(served, &ctx, part, first_wins).await?);
    }
    if let Base::Replica(name) = base {
        let numbered = pushed.iter().zip(&fates);
        let numbered = numbered.filter_map(|(pushed, fate)| Some((pushed.number?, fate_version(fate))));
        learn(app, served, &ctx, name, &numbered.collect::<Vec<_>>()).await?;
    }
    refusals(&pushed, fates)?;
    answer(&json!({ "status": "ok" }))
}

/// The version of the event at a replica's number. If there is another event with this id here, that one counts, since
/// the replica accepts no other event with this id.
fn fate_version(fate: &Fate) -> u64 {
    match fate {
        Ok(version) | Err(Error::DuplicateEvent { version: Some(version), .. }) => version.get(),
        Err(_) => 0,
    }
}

/// The refused events, as one problem.
fn refusals(pushed: &[Sent], fates: Vec<Fate>) -> Answer<()> {
    let count = fates.len();
    let mut refused = pushed.iter().zip(fates).filter_map(|(pushed, fate)| Some((pushed, fate.err()?)));
    let Some((first, error)) = refused.next() else { return Ok(()) };
    let more = refused.count();
    let id = &first.id;
    let mut problem = Problem::from(&error);
    problem.detail =
        format!("{} of {count} events were refused, all others are stored; event {id:?}: {error}", more + 1);
    tracing::warn!(refused = more + 1, events = count, id, %error, "events of Go Sync Kit were refused");
    Err(problem.into())
}

/// Appends events, and returns the fate of each. After an error, the same push may succeed later.
async fn store(served: &Served, ctx: &Context, pushed: &[Sent], first_wins: bool) -> Result<Vec<Fate>, Error> {
    let durable = |events| Batch::new(events).durability(Durability::Sync);
    let events: Option<Vec<Event>> = pushed.iter().map(|pushed| pushed.event.as_ref().ok().cloned()).collect();
    // Most pushes are either new or unchanged repetitions.
    if let Some(events) = events {
        match served.store.store_batch(ctx, durable(events)).await {
            Ok(places) => return Ok(places.into_iter().map(|place| Ok(place.version)).collect()),
            Err(Error::DuplicateEvent { .. } | Error::InvalidEvent { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let mut fates = Vec::with_capacity(pushed.len());
        let mut new: Vec<Event> = Vec::new();
        // For each new id, its position in the batch.
        let mut places: HashMap<&str, usize> = HashMap::new();
        for Sent { event, .. } in pushed {
            fates.push(match event {
                Err(error) => Found::Refused(refusal(error)),
                Ok(event) => match places.get(event.id()) {
                    Some(place) if first_wins || form::is_same(&new[*place], event) => Found::New(*place),
                    Some(_) => Found::Refused(Error::DuplicateEvent { id: event.id().to_owned(), version: None }),
                    None => match served.store.get(ctx, event.id()).await {
                        Ok(found) if first_wins || form::is_same(&found.event, event) => Found::There(found.version),
                        Ok(found) => Found::Refused(Error::DuplicateEvent {
                            id: event.id().to_owned(),
                            version: Some(found.version),
                        }),
                        Err(Error::EventNotFound { .. }) => {
                            places.insert(event.id(), new.len());
                            new.push(event.clone());
                            Found::New(new.len() - 1)
                        }
                        Err(error) => return Err(error),
                    },
                },
            });
        }
        let appended = match new.is_empty() {
            true => Vec::new(),
            false => match served.store.store_batch(ctx, durable(new)).await {
                Ok(appended) => appended,
                // Somebody else was faster: try again.
                Err(error @ Error::DuplicateEvent { .. }) => {
                    last = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        // Existing events must be synced as well before they are reported.
        if fates.iter().any(|found| matches!(found, Found::There(_))) {
            served.store.sync(ctx).await?;
        }
        let fates = fates.into_iter().map(|found| match found {
            Found::New(place) => Ok(appended.get(place).map_or(Version::ZERO, |place| place.version)),
            Found::There(version) => Ok(version),
            Found::Refused(error) => Err(error),
        });
        return Ok(fates.collect());
    }
    Err(last.unwrap_or(Error::Cancelled))
}

/// The state of a pushed event.
enum Found {
    /// Its position in the batch of new ones.
    New(usize),
    There(Version),
    Refused(Error),
}

/// A copy of the error of an event that cannot be stored.
fn refusal(error: &Error) -> Error {
    match error {
        Error::InvalidEvent { field, reason } => Error::InvalidEvent { field, reason: reason.clone() },
        other => Error::invalid_event("event", other.to_string()),
    }
}

/// Records which versions are at which numbers of a replica.
async fn learn(
    app: &Arc<App>,
    served: &Arc<Served>,
    ctx: &Context,
    name: &str,
    numbered: &[(u64, u64)],
) -> Result<(), Error> {
    let Some(newest) = numbered.iter().map(|(_, version)| *version).max() else { return Ok(()) };
    let cursor = served.store.cursor_at(ctx, Version::new(newest)).await?;
    let mut replica = ctx.run(app.replicas.lock(served, name)).await?;
    replica.check(served, ctx).await?;
    if !replica.learn(numbered, cursor) {
        tracing::warn!(
            store = served.name,
            replica = name,
            "a database of Go Sync Kit is not the one that had this name: two have it, or it was restored; it will \
             push all its events again"
        );
    }
    Ok(())
}

/// Events in the kit's form, separated by commas.
#[derive(Default)]
struct Told {
    events: Vec<u8>,
    versions: Vec<Range>,
}

impl Told {
    /// Writes one more event, if there is room for it.
    fn take(&mut self, recorded: &eventstore_api::RecordedEvent) -> bool {
        let before = self.events.len();
        if before > 0 {
            self.events.push(b',');
        }
        form::write_event(&mut self.events, &recorded.event, recorded.version);
        let has_room = before == 0 || self.events.len() <= MOST_BYTES;
        match has_room {
            true => self.versions.push(recorded.version.get()..=recorded.version.get()),
            false => self.events.truncate(before),
        }
        has_room
    }

    fn last(&self) -> Option<Version> {
        self.versions.last().map(|range| Version::new(*range.end()))
    }
}

/// Reads events in the order of the ranges, as many as fit into one answer. With `is_patient`, an event as large as an
/// answer is sent only when nothing else is left, so that a client that cannot accept it still gets all others.
async fn tell(served: &Served, ctx: &Context, ranges: &[Range], most: usize, is_patient: bool) -> Result<Told, Error> {
    let mut told = Told::default();
    let mut large = None;
    for range in ranges {
        let (mut since, end) = (Version::new(*range.start() - 1), Version::new(*range.end()));
        while since < end {
            if told.versions.len() == most {
                return Ok(told);
            }
            let options = LoadOptions::since(since).before(end.next());
            let size = PageSize::new(PIECE.events.min(most - told.versions.len()), PIECE.bytes);
            let page = served.store.load_page(ctx, &options, size).await?;
            let Some(last) = page.events.last() else { break };
            since = last.version;
            for recorded in page.events {
                if is_patient && recorded.event.len_bytes() > MOST_BYTES {
                    large.get_or_insert(recorded);
                } else if !told.take(&recorded) {
                    return Ok(told);
                }
            }
        }
    }
    if let Some(recorded) = large.filter(|_| told.versions.is_empty()) {
        told.take(&recorded);
    }
    Ok(told)
}

async fn pull(app: &Arc<App>, served: &Arc<Served>, base: &Base, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let since = form::read_version(query.texts("since").first().map_or("", String::as_str)).map_err(malformed)?;
    // Only synced events are sent.
    let head = served.store.sync(&ctx).await?.get();
    let told = match base {
        Base::Shared { .. } => tell(served, &ctx, &replica::from_to(since.get() + 1, head), MOST_EVENTS, false).await?,
        Base::Replica(name) => {
            let mut replica = ctx.run(app.replicas.lock(served, name)).await?;
            replica.check(served, &ctx).await?;
            match replica.pull(since.get(), head) {
                Pull::Later => Told::default(),
                Pull::Versions(versions) => {
                    let told = tell(served, &ctx, &versions, MOST_EVENTS, true).await?;
                    replica.is_sent(told.versions.clone());
                    told
                }
            }
        }
    };
    Ok(bytes(JSON, [b"[", told.events.as_slice(), b"]"].concat()))
}

async fn latest(app: &Arc<App>, served: &Arc<Served>, base: &Base, params: Params) -> Answer {
    let ctx = params.ctx;
    let text = match base {
        Base::Shared { .. } => served.store.sync(&ctx).await?.to_string(),
        Base::Replica(name) => {
            let mut replica = ctx.run(app.replicas.lock(served, name)).await?;
            replica.check(served, &ctx).await?;
            // The default parser of the kit's client rejects 0, but both of its parsers accept -1.
            replica.latest().map_or_else(|| "-1".to_owned(), |number| number.to_string())
        }
    };
    answer(&text)
}

async fn pull_cursor(app: &Arc<App>, served: &Arc<Served>, headers: &HeaderMap, params: Params, body: Body) -> Answer {
    let ctx = params.ctx;
    let received = read(app, &ctx, headers, body, SIZES).await?;
    let (since, limit) = parse(received, |bytes| form::read_page_request(bytes).map_err(malformed)).await?;
    let head = served.store.sync(&ctx).await?.get();
    let told = tell(served, &ctx, &replica::from_to(since.get().saturating_add(1), head), limit, false).await?;
    let next = told.last().map_or_else(String::new, |last| format!(",\"next\":{}", form::cursor(last)));
    Ok(bytes(JSON, [b"{\"events\":[", told.events.as_slice(), b"]", next.as_bytes(), b"}"].concat()))
}

async fn stream(app: &Arc<App>, served: Arc<Served>, gone: Gone, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let since = match query.text("cursor")?.filter(|cursor| !cursor.is_empty()) {
        None => Version::ZERO,
        Some(text) => {
            let cursor: Result<&RawValue, _> = serde_json::from_str(&text);
            let cursor = cursor.map_err(|error| malformed(format!("bad cursor: {error}")))?;
            form::read_cursor(cursor).map_err(malformed)?
        }
    };
    follow::stream_of(app.clone(), served, gone, ctx, LoadOptions::since(since), follow::Stream::Frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_a_base_url_and_a_resource() {
        let shared = |first_wins| Base::Shared { first_wins };
        let replica = |name: &str| Base::Replica(name.to_owned());
        for (path, base, name) in [
            ("push", shared(false), "push"),
            ("sync/push", shared(false), "push"),
            ("/push", shared(false), "push"),
            ("sync/sync/push", shared(false), "sync/push"),
            ("push/", shared(false), "push/"),
            ("syncpush", shared(false), "syncpush"),
            ("", shared(false), ""),
            ("sync", shared(false), "sync"),
            ("first-wins/pull", shared(true), "pull"),
            ("first-wins/sync/pull", shared(true), "pull"),
            ("replicas/phone-7/push", replica("phone-7"), "push"),
            ("replicas/phone-7//push", replica("phone-7"), "push"),
            ("replicas/phone-7/sync/sse", replica("phone-7"), "sse"),
            ("replicas//push", replica(""), "push"),
        ] {
            assert_eq!(resource(path), Some((base, name)), "{path}");
        }
        assert_eq!(resource("replicas/push"), None);
        for name in ["a", "A1", "phone-7_x.y", "550E8400-e29b-41d4-a716-446655440000", &"a".repeat(100)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "ä", "a/b", "a\0", &"a".repeat(101)] {
            assert!(!is_name(name), "{name}");
        }
    }
}

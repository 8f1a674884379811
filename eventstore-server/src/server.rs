//! The server: its stores, access rules, limits and routes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use eventstore::Store;
use eventstore_api::Error;
use eventstore_wire::{BINARY, EVENT_STREAM, JSON_LINES, Problem};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate as _};

use crate::access::{Access, Tokens};
use crate::answer::{Answer, Refused, problem, stopping, too_many};
use crate::gosync::{self, Replicas};
use crate::held::hold;
use crate::request_log::RequestLog;
use crate::stores::{Served, Source, Stores};
use crate::{about, append, backup, follow, page, read, replicas, session, work};

/// Limits of the whole server. A request beyond a limit is refused with `too_many` or `too_large`, and does not affect
/// others.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Concurrent followers: 20,000.
    pub followers: usize,
    /// Concurrent sessions of appends: 1,000.
    pub sessions: usize,
    /// Bytes in memory of request bodies, and of messages of sessions with unanswered appends: 256 MiB. In addition,
    /// each session has 128 KiB.
    pub body_bytes: usize,
    /// How long a body, or a message of a session, waits for room: 10 s.
    pub body_wait: Duration,
    /// How long the transfer of a body, or of a large message of a session, may stall: 30 s.
    pub body_pause: Duration,
    /// Bytes of answers of 64 KiB and more that wait to be read: 512 MiB.
    pub answer_bytes: usize,
    /// An answer is dropped if nothing of it is read for this time: 60 s.
    pub answer_pause: Duration,
    /// The time limit for a connection's TLS handshake, and for the head of a request: 15 s.
    pub head_wait: Duration,
    /// The time without an event after which a heartbeat is sent: 15 s.
    pub heartbeat: Duration,
    /// Replicas of Go Sync Kit that the server remembers: 10,000. Beyond that, the least recently used one is
    /// forgotten: it pushes all its events again, and nothing is lost.
    pub kit_replicas: usize,
    /// Bytes for what it remembers of them: 64 MiB. An event of a replica takes at most 8.
    pub kit_replica_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            followers: 20_000,
            sessions: 1_000,
            body_bytes: 256 << 20,
            body_wait: Duration::from_secs(10),
            body_pause: Duration::from_secs(30),
            answer_bytes: 512 << 20,
            answer_pause: Duration::from_secs(60),
            head_wait: Duration::from_secs(15),
            heartbeat: Duration::from_secs(15),
            kit_replicas: 10_000,
            kit_replica_bytes: 64 << 20,
        }
    }
}

type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves one store or many over HTTP: as a router inside a program, or on its own ([`serve`](crate::serve)).
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let store = eventstore::open("memory:").await?;
/// let events = eventstore_server::Server::new(store);
/// let app: axum::Router = axum::Router::new().nest("/events", events.router());
/// # Ok::<(), eventstore::Error>(())
/// # }).unwrap();
/// ```
///
/// Without [`tokens`](Server::tokens), everybody who can reach the router has access.
pub struct Server {
    source: Source,
    access: Access,
    limits: Limits,
    is_read_only: bool,
    metrics: Option<Metrics>,
    stopping: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("source", &self.source).field("access", &self.access).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves one store.
    pub fn new(store: impl Into<Store>) -> Self {
        Self::of(Source::one(store.into().backend().clone()))
    }

    /// Serves the stores of a directory by name, below `stores/`.
    #[must_use]
    pub fn of_many(stores: Stores) -> Self {
        Self::of(Source::many(stores))
    }

    fn of(source: Source) -> Self {
        Server {
            source,
            access: Access::Everybody,
            limits: Limits::default(),
            is_read_only: false,
            metrics: None,
            stopping: CancellationToken::new(),
        }
    }

    /// Accepts only requests with one of these tokens.
    #[must_use]
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.access = Access::Tokens(tokens);
        self
    }

    /// For a server that only this machine can reach: accepts everybody except pages of other origins in a browser, and
    /// refuses requests to any host name except loopback names.
    #[must_use]
    pub fn only_this_machine(mut self) -> Self {
        self.access = Access::ThisMachine;
        self
    }

    /// Refuses appends.
    #[must_use]
    pub fn read_only(mut self, is_read_only: bool) -> Self {
        self.is_read_only = is_read_only;
        self
    }

    /// Sets the limits of the whole server.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Answers `GET metrics` with this text, in the format of Prometheus. By default, there are no metrics.
    #[must_use]
    pub fn metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.metrics = Some(Arc::new(render));
        self
    }

    /// When this token is cancelled, streams end with a reason and new requests are refused. Accepted appends are
    /// finished.
    #[must_use]
    pub fn stop_on(mut self, token: CancellationToken) -> Self {
        self.stopping = token;
        self
    }

    /// The routes of the server.
    ///
    /// Must be called inside a Tokio runtime if it serves many stores: a task closes unused ones.
    pub fn router(self) -> Router {
        self.into_parts().0
    }

    /// The routes, and what closes the stores at the end.
    pub(crate) fn into_parts(self) -> (Router, Arc<App>) {
        let room = |bytes: usize| Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        let app = Arc::new(App {
            stores: self.source,
            access: self.access,
            limits: self.limits,
            is_read_only: self.is_read_only,
            metrics: self.metrics,
            stopping: self.stopping,
            started: Instant::now(),
            followers: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            body_room: room(self.limits.body_bytes),
            answer_room: room(self.limits.answer_bytes),
            backups: backup::Backups::default(),
            replicas: Replicas::new(self.limits.kit_replicas, self.limits.kit_replica_bytes),
            tasks: TaskTracker::new(),
        });
        app.clone().close_idle_stores();
        (routes(app.clone()), app)
    }
}

/// The state shared by all requests.
pub(crate) struct App {
    pub(crate) stores: Source,
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) is_read_only: bool,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) stopping: CancellationToken,
    pub(crate) started: Instant,
    followers: AtomicUsize,
    sessions: AtomicUsize,
    pub(crate) body_room: Arc<Semaphore>,
    pub(crate) answer_room: Arc<Semaphore>,
    pub(crate) backups: backup::Backups,
    pub(crate) replicas: Replicas,
    /// Work that continues after an answer, and must end before the stores are closed.
    pub(crate) tasks: TaskTracker,
}

/// Counts a follower or a session until it is dropped: for the limit of the server, and for its store.
pub(crate) struct Counted {
    app: Arc<App>,
    served: Arc<Served>,
    kind: Kind,
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Follower,
    Session,
}

impl Counted {
    fn counters(&self) -> [&AtomicUsize; 2] {
        match self.kind {
            Kind::Follower => [&self.app.followers, &self.served.followers],
            Kind::Session => [&self.app.sessions, &self.served.sessions],
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        for counter in self.counters() {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl App {
    /// Counts one more, if the limit allows it.
    pub(crate) fn count(self: &Arc<Self>, served: &Arc<Served>, kind: Kind) -> Answer<Counted> {
        let counted = Counted { app: self.clone(), served: served.clone(), kind };
        let [all, _] = counted.counters().map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        let (most, what) = match kind {
            Kind::Follower => (self.limits.followers, "followers"),
            Kind::Session => (self.limits.sessions, "sessions of appends"),
        };
        if all >= most {
            return Err(too_many(format!("the server has {most} {what} already; retry later, or raise its limit")));
        }
        Ok(counted)
    }

    /// Closes all stores.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.stores.close().await
    }

    fn close_idle_stores(self: Arc<Self>) {
        let Some(idle) = self.stores.idle() else { return };
        let (app, stopping) = (Arc::downgrade(&self), self.stopping.clone());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval((idle / 2).max(Duration::from_millis(10)));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stopping.cancelled() => return,
                }
                let Some(app) = app.upgrade() else { return };
                app.stores.close_idle().await;
            }
        });
    }
}

fn routes(app: Arc<App>) -> Router {
    let routes = match app.stores {
        Source::One(_) => {
            below("", resources().chain(resources_of_go_sync_kit())).route("/", get(about::store).put(about::create))
        }
        Source::Many { .. } => {
            below("/stores/{store}", resources().chain(resources_of_go_sync_kit()).chain(resources_of_page()))
                .route("/", get(about::server).put(about::name_one))
                .route("/stores", get(about::stores))
                .route("/stores/{store}", get(about::store).put(about::create))
                .route("/stores/{store}/", get(about::store).put(about::create))
        }
    };
    let routes = routes
        .merge(below("", resources_of_server().chain(resources_of_page())))
        .fallback(no_resource)
        .method_not_allowed_fallback(no_method);
    let is_compressed = DefaultPredicate::new()
        .and(NotForContentType::const_new(BINARY))
        .and(NotForContentType::const_new(JSON_LINES))
        .and(NotForContentType::const_new(EVENT_STREAM))
        .and(NotForContentType::const_new(backup::TAR));
    routes
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .layer(CompressionLayer::new().compress_when(is_compressed))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(RequestLog)
        .with_state(app)
}

/// The resources of a store.
fn resources() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<App>>)> {
    [
        ("events", get(read::events).post(append::events)),
        ("event", get(read::event)),
        ("follow", get(follow::follow)),
        ("latest", get(read::latest)),
        ("revision", get(read::revision)),
        ("aggregates", get(read::aggregates)),
        ("wait", get(read::wait)),
        ("digest", get(read::digest)),
        ("stats", get(about::stats)),
        ("verify", post(work::verify)),
        ("gc", post(work::gc)),
        ("backup", post(backup::make).get(backup::take)),
        ("appends", get(session::appends)),
        ("pull", get(replicas::pull)),
        ("push", post(replicas::push)),
    ]
    .into_iter()
}

/// The resources for clients of Go Sync Kit below their base URLs. Their errors have another form, for any path.
fn resources_of_go_sync_kit() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<App>>)> {
    ["sync", "sync/", "sync/{*path}"].into_iter().map(|path| (path, any(gosync::respond)))
}

/// The resources of the whole server.
fn resources_of_server() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<App>>)> {
    [
        ("health", get(about::health)),
        ("ready", get(about::ready)),
        ("metrics", get(about::metrics)),
        ("openapi.json", get(about::openapi)),
    ]
    .into_iter()
}

/// The other files of the page for browsers.
fn resources_of_page() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<App>>)> {
    [("page.css", get(page::css)), ("page.js", get(page::js))].into_iter()
}

/// Resources below this path.
fn below(base: &str, resources: impl Iterator<Item = (&'static str, MethodRouter<Arc<App>>)>) -> Router<Arc<App>> {
    resources.fold(Router::new(), |routes, (name, methods)| routes.route(&format!("{base}/{name}"), methods))
}

/// Common to every request.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Err(refused) = app.access.check_origin(request.uri(), request.headers()) {
        return refused.into_response();
    }
    let is_about_life = matches!(request.uri().path(), "/health" | "/ready" | "/metrics");
    if app.stopping.is_cancelled() && !is_about_life {
        return problem(&stopping());
    }
    let mut response = hold(&app, next.run(request).await).await;
    let headers = response.headers_mut();
    headers.insert("x-content-type-options", axum::http::HeaderValue::from_static("nosniff"));
    response
}

async fn no_resource(State(app): State<Arc<App>>, request: Request) -> Response {
    let path = request.uri().path();
    let why = match app.stores {
        Source::One(_) if path == "/stores" || path.starts_with("/stores/") => {
            ": this server serves one store, and its URL is the server's, without /stores"
        }
        Source::Many { .. } if !path.starts_with("/stores/") => {
            ": this server serves many stores, and their resources are below /stores/NAME"
        }
        Source::One(_) | Source::Many { .. } => "",
    };
    let detail = format!("there is no resource {path:?}{why}; docs/wire.md and GET /openapi.json list them");
    Refused::from(Problem::new(404, "not_found", detail)).into_response()
}

async fn no_method(request: Request) -> Response {
    let detail = format!("{:?} has no {}", request.uri().path(), request.method());
    Refused::from(Problem::new(405, "method_not_allowed", detail)).into_response()
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> axum::http::Response<Body> {
    // If a request panics, it is unknown whether its append was accepted.
    let mut bug = Problem::new(500, "engine", "the server failed to answer: this is a bug in it; its log has details");
    bug.written = "unknown".to_owned();
    problem(&bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_described_and_every_description_is_of_one() {
        let description: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).expect("JSON");
        let described = description["paths"].as_object().expect("paths").keys();
        let mut described: Vec<_> = described.map(|path| path.trim_start_matches('/').to_owned()).collect();
        let all = resources().chain(resources_of_server()).map(|(name, _)| name);
        let all = all.chain([""]).map(str::to_owned);
        let of_go_sync_kit = gosync::RESOURCES.iter();
        let of_go_sync_kit =
            of_go_sync_kit.flat_map(|name| ["sync", "sync/replicas/{replica}"].map(|base| format!("{base}/{name}")));
        let mut there: Vec<_> = all.chain(of_go_sync_kit).collect();
        described.sort_unstable();
        there.sort_unstable();
        assert_eq!(described, there);
    }
}

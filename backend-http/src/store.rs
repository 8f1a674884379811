//! The store.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, MAX_ID_LEN, MAX_TYPE_LEN};
use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, Direction, Error, EventStore, Gc, GcReport,
    LoadOptions, Page, PageSize, Place, Pulled, Pushed, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport,
    Version, async_trait,
};
use eventstore_wire::{
    AggregatesForm, BackupForm, DigestForm, Info, JSON, JSON_LINES, Latest, LineOfWork, MAX_BODY, Problem, QueryWriter,
    RevisionForm, WIRE, aggregate_query, decode_page, encode_batches, load_query,
};
use http::Method;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use crate::backup;
use crate::client::{Answer, Attempt, Client, Failed, PAGES, Retries, SharedClient, from_json, is_of};
use crate::options::{Options, check_writable};
use crate::queue::Queue;
use crate::session;

/// A store on a server.
///
/// It keeps the contract of [`EventStore`] as far as the server's store does.
///
/// # Clone
///
/// Cheap; clones are handles to the same store. Dropping the last one closes it in the background.
#[derive(Clone)]
pub struct HttpStore {
    shared: Arc<Shared>,
}

struct Shared {
    client: SharedClient,
    queue: Arc<Queue>,
    is_read_only: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore").field("url", &self.shared.client.url).finish_non_exhaustive()
    }
}

/// The largest page that a server returns.
const LARGEST: PageSize = PageSize::new(10_000, 16 << 20);

/// The longest query that servers accept.
const MAX_QUERY: usize = 64 << 10;

/// How long one request waits for events. The connection counts as lost if there is no answer within the same time
/// after that.
const WAIT: Duration = Duration::from_secs(30);
const SIGN: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(10);

/// The longest line in the answer of long work.
const MAX_LINE: usize = 16 << 20;

impl HttpStore {
    pub(crate) async fn open(options: Options, may_create: bool) -> Result<Self> {
        let (is_read_only, lost_after) = (options.read_only, options.lost_after);
        let client = Arc::new(Client::open(options).await?);
        let method = if may_create && !is_read_only { Method::PUT } else { Method::GET };
        let mut retries = Retries::new(client.connect_timeout.min(client.retry_for));
        let info = loop {
            // A server that accepts the request may have to open the store, but one that is silent for so long is not
            // an eventstore server.
            let asked = tokio::time::timeout(lost_after, info(&client, &method)).await;
            let silent = || Err(Failed::passing(format!("it has not answered for {lost_after:?}")));
            match asked.unwrap_or_else(|_| silent()) {
                Ok(info) => break info,
                Err(failed) => retries.pause(&Context::background(), failed, &client.url).await?,
            }
        };
        if !info.wire.contains(&WIRE) {
            let speaks = info.wire.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::Unsupported {
                what: format!(
                    "the server at {} (version {}) speaks the versions {speaks} of the wire protocol, and this \
                     program {WIRE}; update the older one",
                    client.url, info.server
                ),
            });
        }
        tracing::debug!(url = client.url, backend = info.backend, server = info.server, "a store on a server is open");
        let queue = Arc::new(Queue::new(client.url.clone(), client.retry_for));
        tokio::spawn(session::run(client.clone(), queue.clone(), lost_after));
        Ok(HttpStore { shared: Arc::new(Shared { client, queue, is_read_only }) })
    }

    fn client(&self) -> &Client {
        &self.shared.client
    }

    /// Refuses calls after closing.
    fn check(&self, ctx: &Context) -> Result<()> {
        ctx.check()?;
        if self.shared.queue.is_closing() { Err(Error::Closed) } else { Ok(()) }
    }

    /// The page of a load that matches nothing.
    async fn empty_page(&self, ctx: &Context, options: &LoadOptions) -> Result<Page> {
        let head = self.latest_version(ctx).await?;
        Ok(Page::new(options, Vec::new(), head, true))
    }

    /// Long work: the server reports progress and ends with a report.
    async fn work<T: DeserializeOwned>(&self, ctx: &Context, resource: &str, query: &str) -> Result<T> {
        self.check(ctx)?;
        let client = self.client();
        let answer = client.begin(ctx, Method::POST, resource, query, JSON_LINES).await?;
        let working = follow(client, ctx, answer);
        match ctx.run(working).await? {
            Ok(report) => Ok(report),
            Err(Failed::Final(error)) => Err(error),
            Err(Failed::Passing { reason, source, .. }) => {
                Err(Error::Unavailable { url: client.url.clone(), reason, source })
            }
        }
    }
}

/// The server's description of the store; with `PUT`, the store is created if it is missing.
fn name_one(url: &str) -> String {
    format!("the server has many stores; name one: {}/stores/NAME", url.trim_end_matches('/'))
}

async fn info(client: &Client, method: &Method) -> Attempt<Info> {
    let get = async |method: &Method| {
        let answer = client.send(client.request(method.clone(), "", JSON)?).await?;
        let body = client.body(answer, JSON).await?;
        from_json::<Info>(&body).map_err(|error| {
            let has_many =
                serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|root| root.get("stores").is_some());
            let error = match has_many {
                true => {
                    return Failed::Final(Error::Open {
                        path: client.url.clone(),
                        reason: name_one(&client.url),
                        source: None,
                    });
                }
                false => error,
            };
            let reason = format!("the answer does not come from an eventstore server ({error}); check the address");
            Failed::Final(Error::Open { path: client.url.clone(), reason, source: None })
        })
    };
    match get(method).await {
        // It may exist although the token does not allow creating one.
        Err(Failed::Final(Error::Forbidden { what })) if method == Method::PUT => match get(&Method::GET).await {
            Err(Failed::Final(Error::Open { .. })) => Err(Failed::Final(Error::Forbidden { what })),
            found => found,
        },
        found => found,
    }
}

/// Reads lines of progress up to the report.
async fn follow<T: DeserializeOwned>(client: &Client, ctx: &Context, answer: Answer) -> Attempt<T> {
    if !is_of(answer.headers(), JSON_LINES) {
        client.body(answer, JSON_LINES).await?; // checks the media type
        return Err(Failed::passing("its answer is of another kind"));
    }
    let mut body = answer.into_body();
    let mut line = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failed::lost("the connection was lost while it worked", error))?;
        let Ok(mut data) = frame.into_data() else { continue };
        while let Some(end) = data.iter().position(|&byte| byte == b'\n') {
            line.extend_from_slice(&data.split_to(end + 1));
            let read = from_json::<LineOfWork<T>>(&line);
            line.clear();
            match read {
                Ok(LineOfWork::Progress { done, total }) => {
                    // A listener may wait for other reads, over connections that this thread may have to drive.
                    let progress = ctx.progress().clone();
                    let told = tokio::task::spawn_blocking(move || progress.report(done, total)).await;
                    told.map_err(|error| Error::engine("tell a listener of the progress", error))?;
                }
                Ok(LineOfWork::Result(report)) => return Ok(report),
                Ok(LineOfWork::Error(problem)) => return Err(ended(client, *problem)),
                Err(error) => return Err(Failed::passing(format!("its answer is damaged: {error}"))),
            }
        }
        line.extend_from_slice(&data);
        if line.len() > MAX_LINE {
            let what = format!("a line is longer than {MAX_LINE} bytes");
            return Err(Failed::Final(Error::engine("read an answer", what)));
        }
    }
    Err(Failed::passing("its answer was cut off"))
}

/// The error of work that failed on the server.
fn ended(client: &Client, problem: Problem) -> Failed {
    match problem.code.as_str() {
        // Not by this client: the server is stopping.
        "cancelled" => Failed::passing("the server ended the work"),
        _ => Failed::Final(problem.into_error(&client.url)),
    }
}

/// A query for pages of this size, or of the largest possible size.
fn with_size(query: &mut QueryWriter, size: PageSize) -> String {
    let events = size.events.clamp(1, LARGEST.events);
    let bytes = size.bytes.clamp(1, LARGEST.bytes);
    query.put("page_events", events).put("page_bytes", bytes).finish()
}

/// The requested page; anything else counts as damage.
fn page(body: Bytes, options: &LoadOptions) -> std::result::Result<Page, String> {
    let page = decode_page(body, options).map_err(|error| error.to_string())?;
    let is_in_order = |pair: &[RecordedEvent]| match options.direction {
        Direction::Forward => pair[0].version < pair[1].version,
        Direction::Backward => pair[0].version > pair[1].version,
    };
    if !page.events.windows(2).all(is_in_order) || !page.events.iter().all(|event| options.matches(event)) {
        return Err("it has events that were not requested".to_owned());
    }
    Ok(page)
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl EventStore for HttpStore {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.check(ctx)?;
        batch.validate()?;
        check_writable(self.shared.is_read_only, "an append")?;
        if batch.events.is_empty() {
            return Ok(Vec::new());
        }
        self.shared.queue.append(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.check(ctx)?;
        let is_too_long = |id: &Option<String>| id.as_ref().is_some_and(|id| id.len() > MAX_AGGREGATE_ID_LEN);
        let mut sent = options.clone();
        sent.types.retain(|name| name.len() <= MAX_TYPE_LEN);
        let matches_no_type = sent.types.is_empty() && !options.types.is_empty();
        if is_too_long(&options.aggregate_id) || is_too_long(&options.aggregate_prefix) || matches_no_type {
            return self.empty_page(ctx, options).await; // it may be too long for a request
        }
        let query = with_size(&mut load_query(&sent), size);
        if query.len() > MAX_QUERY {
            return Err(Error::Unsupported {
                what: format!(
                    "a load by {} types, which does not fit into a request of {MAX_QUERY} bytes; load with fewer types",
                    options.types.len()
                ),
            });
        }
        self.client().get(ctx, "events", &query, PAGES, |body| page(body, options)).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.check(ctx)?;
        if id.is_empty() || id.len() > MAX_ID_LEN {
            return Err(Error::EventNotFound { id: id.to_owned() }); // it may be too long for a request
        }
        let query = QueryWriter::new().put("id", id).finish();
        let decode = |body| {
            let page = decode_page(body, &LoadOptions::all()).map_err(|error| error.to_string())?;
            let event = page.events.into_iter().next().filter(|event| event.event.id() == id);
            event.ok_or_else(|| "it has another event".to_owned())
        };
        self.client().get(ctx, "event", &query, PAGES, decode).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.check(ctx)?;
        Ok(self.client().get_json::<Latest>(ctx, "latest", "").await?.version)
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.check(ctx)?;
        if aggregate_id.is_empty() || aggregate_id.len() > MAX_AGGREGATE_ID_LEN {
            return Ok(Revision::ZERO); // it may be too long for a request
        }
        let query = QueryWriter::new().put("aggregate", aggregate_id).finish();
        Ok(self.client().get_json::<RevisionForm>(ctx, "revision", &query).await?.revision)
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        self.check(ctx)?;
        if options.prefix.len() > MAX_AGGREGATE_ID_LEN {
            let head = self.latest_version(ctx).await?;
            return Ok(AggregatePage::new(options, Vec::new(), head, true));
        }
        let mut sent = options.clone();
        // If it is longer than every id, its prefix has the same position among the ids.
        let end = (MAX_AGGREGATE_ID_LEN + 1..sent.after.len()).find(|&end| sent.after.is_char_boundary(end));
        sent.after.truncate(end.unwrap_or(usize::MAX));
        let query = aggregate_query(&sent).put("limit", most.clamp(1, AggregatePage::MOST)).finish();
        let AggregatesForm { head, aggregates, next } = self.client().get_json(ctx, "aggregates", &query).await?;
        Ok(AggregatePage::new(options, aggregates, head, next.is_none()))
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.check(ctx)?;
        let client = self.client();
        let waiting = async {
            // Waits until the context ends, whatever the server does meanwhile, unless the caller wants to learn of an
            // outage.
            let fresh = || match client.retry_waits {
                true => Retries::for_ever(),
                false => Retries::new(client.retry_for),
            };
            let mut retries = fresh();
            let query = QueryWriter::new().put("after", after).finish();
            loop {
                // After a failure, ask for a quick answer: it shows that the server is back.
                let within = if retries.has_failed() { SIGN } else { WAIT };
                let this = ctx.clone().with_timeout(within);
                let request = client.get_once(&this, "wait", &query, JSON, |body| from_json::<Latest>(&body));
                let failed = match tokio::time::timeout(within + LATE, request).await {
                    Ok(Ok(latest)) if latest.version > after => {
                        retries.succeeded(&client.url);
                        return Ok(latest.version);
                    }
                    Ok(Ok(latest)) => {
                        Failed::passing(format!("it says that {} is greater than {after}", latest.version))
                    }
                    Ok(Err(Failed::Final(Error::DeadlineExceeded))) => {
                        retries.succeeded(&client.url);
                        retries = fresh();
                        continue;
                    }
                    Ok(Err(failed)) => failed,
                    Err(_) => Failed::passing("it does not answer"),
                };
                if !retries.has_failed() {
                    retries = fresh(); // the limit counts from the beginning of the outage
                }
                retries.pause(&Context::background(), failed, &client.url).await?;
            }
        };
        let closing = self.shared.queue.closing.cancelled();
        let until_closed = async {
            tokio::select! {
                biased;
                done = waiting => done,
                () = closing => Err(Error::Closed),
            }
        };
        ctx.run(until_closed).await?
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.check(ctx)?;
        check_writable(self.shared.is_read_only, "a collection")?;
        let query = match gc {
            Gc::Quick => "",
            Gc::Full => "full=true",
            other => {
                return Err(Error::Unsupported { what: format!("a {other} collection over HTTP; run a full one") });
            }
        };
        self.work(ctx, "gc", query).await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        self.check(ctx)?;
        let place = backup::Place::new(ctx, target).await?;
        let BackupForm { id, latest_version, bytes_on_disk } = self.work(ctx, "backup", "").await?;
        let client = self.client();
        let query = QueryWriter::new().put("id", id).finish();
        let answer = client.begin(ctx, Method::GET, "backup", &query, "application/x-tar").await?;
        let unpacked = place.unpack(answer);
        match ctx.run(unpacked).await? {
            Ok(unpacked) => unpacked.take_place().await?,
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Passing { reason, source, .. }) => {
                return Err(Error::Unavailable { url: client.url.clone(), reason, source });
            }
        }
        let mut report = BackupReport::default();
        (report.latest_version, report.bytes_on_disk) = (latest_version, bytes_on_disk);
        Ok(report)
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.work(ctx, "verify", "").await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.check(ctx)?;
        let query = QueryWriter::new().put("until", until).finish();
        Ok(self.client().get_json::<DigestForm>(ctx, "digest", &query).await?.digest)
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        eventstore_api::replication::sync_by_appending(self, ctx).await
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        self.check(ctx)?;
        let query = with_size(QueryWriter::new().put("since", since.version).put("digest", since.digest), size);
        let options = LoadOptions::since(since.version);
        let page = self.client().get(ctx, "pull", &query, PAGES, |body| {
            let page = page(body, &options)?;
            let is_gapless = (since.version.get() + 1..).zip(&page.events).all(|(at, event)| event.version.get() == at);
            let last = page.events.last().map_or(since.version, |last| last.version);
            if is_gapless && last <= page.head { Ok(page) } else { Err("it has gaps".to_owned()) }
        });
        let page = page.await?;
        Ok(Pulled::new(page.events, page.head))
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        self.check(ctx)?;
        batches.iter().try_for_each(Batch::validate)?;
        check_writable(self.shared.is_read_only, "a push")?;
        let query = QueryWriter::new().put("at", at.version).put("digest", at.digest).finish();
        let client = self.client();
        let body = encode_batches(&batches);
        if body.len() > MAX_BODY {
            let reason =
                format!("the push has {} bytes, and a server takes {MAX_BODY}; push fewer batches", body.len());
            return Err(Error::invalid_event("batch", reason));
        }
        let pushed: eventstore_wire::Pushed = client.post(ctx, "push", &query, body).await?;
        let refused = pushed.refused.map(|problem| problem.into_error(&client.url));
        Ok(Pushed::new(pushed.stored, refused, pushed.head))
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.check(ctx)?;
        self.client().get_json(ctx, "stats", "").await
    }

    async fn close(&self) -> Result<()> {
        let queue = &self.shared.queue;
        queue.close();
        queue.ended.cancelled().await;
        Ok(())
    }
}

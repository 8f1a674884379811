//! A server of Go Sync Kit as a store.
//!
//! Its wire protocol has events and their versions, and nothing else: no revisions, conditions, digests or times, and
//! no way to read one aggregate. A *mirror* adds these: a store of this program, in memory or on disk, with the
//! server's events.
//!
//! # Weaker guarantees
//!
//! - The server checks no condition. This store checks it against the server's events just before it sends the batch;
//!   another writer may be faster.
//! - A batch is not atomic on the server: it stores event by event, and events of others may come in between. To
//!   complete a batch that was stored in part, append it again.
//! - The server reports success even if it could not store an event. So the events are read back, and an append whose
//!   events are not found is an error.
//! - The server rewrites JSON: the order of keys, white space, escapes; empty data becomes `null`. Data that it would
//!   alter beyond that is refused with `InvalidEvent`: data that is not JSON, and integers that a float64 cannot hold
//!   exactly.
//! - Its disk may lag behind its answers: it uses SQLite in a mode in which a power cut loses the latest events. That
//!   appears as another history.
//! - Its versions must have no gaps, like those of its SQLite store. Events after a gap are not read, since the missing
//!   one may still appear: that is `Unavailable`.
//! - Another history on the server, such as a restored backup, is detected only by the event at the end of the mirror.
//!   Then the mirror is rebuilt and has another digest.
//! - The recording time of an event is the time at which the mirror read it.
//! - There are no notifications of new events: the server is polled twice a second while somebody waits.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use eventstore_api::limits::{MAX_BATCH_BYTES, MAX_BATCH_EVENTS};
use eventstore_api::{
    Actual, AggregateOptions, AggregatePage, BackupReport, Batch, CancellationToken, Context, Digest, Durability,
    Error, Event, EventStore, Gc, GcReport, Idempotency, LoadOptions, Page, PageSize, Place, Pulled, Pushed,
    RecordedEvent, Result, Revision, Stats, StoreOutcome, Stored, VerifyReport, Version, async_trait, replication,
};
use eventstore_wire::gosync::{Sent, check_survives, is_same, page_request, read_page, write_event};
use eventstore_wire::{JSON, MAX_BODY};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::Full;

use crate::client::{Attempt, Client, Failed, collect_up_to, is_of};
use crate::options::{KNOWN, check_writable, invalid};

/// The backend's name.
pub const NAME: &str = "gosync";

/// Options of a store on a server of Go Sync Kit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The options of the connection: the base URL of the server's clients, and how to reach it.
    pub server: crate::Options,
    /// The directory of the mirror, which is created if it is missing. Default: none, for a mirror in memory, which
    /// reads all events of the server when it is opened.
    pub mirror: Option<PathBuf>,
}

impl Options {
    /// The options in a URL: `gosync+http://host:8080/base?mirror=DIR`, and those of [`crate::Options`] except
    /// `lost_after` and `retry_waits`.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for an invalid URL, and for an option that is unknown or cannot be parsed.
    pub fn from_url(url: &str) -> Result<Self> {
        let mut mirror = None;
        const OTHERS: [(&str, &str); 2] = [
            ("lost_after", "it does not apply to a server of Go Sync Kit; leave it out"),
            ("retry_waits", "a server of Go Sync Kit is polled for new events, so `retry_for` applies; leave it out"),
        ];
        let own = KNOWN.into_iter().filter(|option| OTHERS.iter().all(|(other, _)| other != option));
        let known: Vec<_> = own.chain(["mirror"]).collect();
        let url = url.strip_prefix("gosync+").unwrap_or(url);
        let server = crate::Options::from_url_with(url, &known, |given| {
            mirror = given.text("mirror")?.map(PathBuf::from);
            OTHERS.into_iter().try_for_each(|(option, reason)| match given.text(option)? {
                None => Ok(()),
                Some(_) => Err(invalid(option, reason)),
            })
        })?;
        Ok(Options { server, mirror })
    }
}

/// The storage of a [`GoSyncStore`]'s mirror. Its content may be deleted: the server has all of it.
#[async_trait]
pub trait Mirror: fmt::Debug + Send + Sync + 'static {
    /// Opens the mirror, or creates an empty one.
    async fn open(&self) -> Result<Arc<dyn EventStore>>;

    /// Deletes the mirror, which is closed.
    async fn remove(&self) -> Result<()>;
}

/// Opens the store of the Go Sync Kit server with this base URL, with a mirror. Must be called inside a Tokio runtime.
///
/// # Errors
///
/// `InvalidOption`; `Open` if there is no such server; `Unavailable` if it cannot be reached within `connect_timeout`;
/// errors of the mirror.
pub async fn open(options: crate::Options, mirror: impl Mirror) -> Result<GoSyncStore> {
    let is_read_only = options.read_only;
    let client = Client::open(options).await?;
    let ctx = Context::background().with_timeout(client.connect_timeout);
    latest(&client, &ctx).await?;
    let copy = mirror.open().await?;
    Ok(GoSyncStore {
        shared: Arc::new(Shared {
            client,
            mirror: Box::new(mirror),
            copy: RwLock::new(copy),
            refreshing: tokio::sync::Mutex::new(LIMIT),
            closed: CancellationToken::new(),
            is_read_only,
        }),
    })
}

/// A store on a server of Go Sync Kit. The [module](self) lists its weaker guarantees.
///
/// # Clone
///
/// Cheap; clones are handles to the same store.
#[derive(Clone)]
pub struct GoSyncStore {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    mirror: Box<dyn Mirror>,
    copy: RwLock<Arc<dyn EventStore>>,
    /// Held while new events are read into the mirror. The value is the number of events to request at a time.
    refreshing: tokio::sync::Mutex<usize>,
    closed: CancellationToken,
    is_read_only: bool,
}

impl fmt::Debug for GoSyncStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoSyncStore").field("url", &self.shared.client.url).finish_non_exhaustive()
    }
}

/// The most events to request at a time, which is the limit of the server.
const LIMIT: usize = 1000;

/// The fewest events to request: the last one of the mirror, and the next one.
const LEAST: usize = 2;

/// The longest answer that is read, unless it has the fewest possible events.
const PAGE_BYTES: usize = 32 << 20;

/// A request is sent when it has this many bytes. The server's limit is 10 MiB.
const PUSH_BYTES: usize = 4 << 20;

/// How often the server is polled for new events while somebody waits for some.
const POLL: Duration = Duration::from_millis(500);

/// How often the mirror may have to be rebuilt during one call.
const HISTORIES: u32 = 3;

/// An answer of the server other than the requested one.
enum Answer {
    Ok(Bytes),
    /// It rejects the body, for this reason.
    Refused(String),
    /// The answer is longer than allowed.
    TooLong,
}

/// Sends a request with a JSON body or without one.
async fn ask(client: &Client, method: Method, resource: &str, body: Option<Vec<u8>>, most: usize) -> Attempt<Answer> {
    let mut request = client.request(method, resource, JSON)?;
    if let Some(body) = body {
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        request = request.map(|_| Full::from(body));
    }
    let answer = client.exchange(request).await?;
    let (status, is_json) = (answer.status(), is_of(answer.headers(), JSON));
    let Some(body) = collect_up_to(answer, most).await? else { return Ok(Answer::TooLong) };
    if status == StatusCode::OK && is_json {
        return Ok(Answer::Ok(body));
    }
    #[derive(serde::Deserialize)]
    struct Told {
        error: String,
    }
    let told = serde_json::from_slice::<Told>(&body).map(|told| told.error).unwrap_or_default();
    match status {
        StatusCode::BAD_REQUEST if is_json => Ok(Answer::Refused(told)),
        StatusCode::PAYLOAD_TOO_LARGE => Ok(Answer::Refused(format!("it is too large. {told}"))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(Error::Forbidden { what: format!("the server answers HTTP {status}; check the token") }.into())
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(Failed::passing(format!("it answers HTTP {status}: {told}")))
        }
        status => Err(Error::Open {
            path: client.url.clone(),
            reason: format!(
                "the answer does not come from a server of Go Sync Kit (HTTP {status}); give the base URL of its clients"
            ),
            source: None,
        }
        .into()),
    }
}

fn damaged(what: impl fmt::Display) -> Failed {
    Failed::passing(format!("its answer is damaged: {what}"))
}

/// The server's latest version.
async fn latest(client: &Client, ctx: &Context) -> Result<Version> {
    let attempt = || async move {
        match ask(client, Method::GET, "latest-version", None, PAGE_BYTES).await? {
            Answer::Ok(body) => {
                let text: String = serde_json::from_slice(&body).map_err(damaged)?;
                // Some servers report -1 as the latest version of an empty store.
                let number: i64 = text.parse().map_err(damaged)?;
                Ok(Version::new(number.max(0).unsigned_abs()))
            }
            Answer::Refused(reason) => Err(damaged(reason)),
            Answer::TooLong => Err(damaged("it is not a version")),
        }
    };
    client.repeat(ctx, attempt).await
}

/// The state of the server after everything planned is stored.
struct Ahead {
    latest: Version,
    revisions: HashMap<String, Revision>,
    ids: HashMap<String, Event>,
}

impl Ahead {
    /// The aggregate's revision, according to the mirror and what is planned.
    async fn revision(&self, ctx: &Context, copy: &Arc<dyn EventStore>, id: &str) -> Result<Revision> {
        match self.revisions.get(id) {
            Some(revision) => Ok(*revision),
            None => copy.aggregate_revision(ctx, id).await,
        }
    }
}

/// The state of the mirror after a refresh.
struct Reached {
    copy: Arc<dyn EventStore>,
    latest: Version,
    /// Whether it has everything that the server has.
    is_all: bool,
}

impl GoSyncStore {
    fn url(&self) -> &str {
        &self.shared.client.url
    }

    fn copy(&self) -> Arc<dyn EventStore> {
        self.shared.copy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self, ctx: &Context) -> Result<()> {
        ctx.check()?;
        if self.shared.closed.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Waits for the server, unless the store is closed meanwhile.
    async fn until_closed<T>(&self, asking: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = asking => done,
            () = self.shared.closed.cancelled() => Err(Error::Closed),
        }
    }

    async fn latest(&self, ctx: &Context) -> Result<Version> {
        self.until_closed(latest(&self.shared.client, ctx)).await
    }

    /// Reads everything new on the server into the mirror.
    async fn refresh(&self, ctx: &Context) -> Result<Arc<dyn EventStore>> {
        Ok(self.refresh_up_to(ctx, Version::new(u64::MAX)).await?.copy)
    }

    /// Reads new events of the server into the mirror, until it has this version or there are no more. Continues where
    /// it was interrupted.
    async fn refresh_up_to(&self, ctx: &Context, enough: Version) -> Result<Reached> {
        self.check(ctx)?;
        let mut limit = ctx.run(self.shared.refreshing.lock()).await?;
        let mut histories = 0;
        loop {
            self.check(ctx)?;
            let copy = self.copy();
            let end = copy.latest_version(ctx).await?;
            // Includes the last event of the mirror, to check that both have the same history.
            let overlap = Version::new(end.get().saturating_sub(1));
            let Some(sent) = self.page(ctx, overlap, *limit).await? else {
                *limit = (*limit / 2).max(LEAST);
                continue;
            };
            let asked = *limit;
            *limit = (*limit * 2).min(LIMIT);
            let count = sent.len();
            let mut sent = sent.into_iter();
            if end > Version::ZERO && !self.is_at(ctx, &copy, end, sent.next()).await? {
                histories += 1;
                if histories > HISTORIES {
                    return Err(Error::engine("read the server's events", "its history keeps changing"));
                }
                self.make_anew(&copy).await?;
                continue;
            }
            let is_last = count < asked;
            let latest = self.take(ctx, &copy, end, sent.collect()).await?;
            if is_last || latest >= enough {
                return Ok(Reached { copy, latest, is_all: is_last });
            }
        }
    }

    /// At most this many events after a version; `None` if they exceed the size limit of an answer.
    async fn page(&self, ctx: &Context, since: Version, limit: usize) -> Result<Option<Vec<Sent>>> {
        let most = if limit == LEAST { MAX_BODY } else { PAGE_BYTES };
        let client = &self.shared.client;
        let attempt = || async move {
            let body = page_request(since, limit).into_bytes();
            match ask(client, Method::POST, "pull-cursor", Some(body), most).await? {
                Answer::Ok(body) => Ok(Some(read_page(&body).map_err(damaged)?)),
                Answer::Refused(reason) => Err(damaged(reason)),
                Answer::TooLong if limit > LEAST => Ok(None),
                Answer::TooLong => Err(Error::engine(
                    "read an event",
                    format!("those behind version {since} are longer than {MAX_BODY} bytes"),
                )
                .into()),
            }
        };
        self.until_closed(client.repeat(ctx, attempt)).await
    }

    /// Whether the server has the event at the end of the mirror.
    async fn is_at(&self, ctx: &Context, copy: &Arc<dyn EventStore>, end: Version, sent: Option<Sent>) -> Result<bool> {
        let Some(Sent { number, event: Ok(event), .. }) = sent else { return Ok(false) };
        let last = copy.load_page(ctx, &LoadOptions::all().backward().limit(1), PageSize::new(1, 1)).await?;
        let is_same = last.events.first().is_some_and(|last| last.version == end && is_same(&last.event, &event));
        Ok(number == Some(end.get()) && is_same)
    }

    /// The server has another history, so the mirror is rebuilt.
    async fn make_anew(&self, copy: &Arc<dyn EventStore>) -> Result<()> {
        tracing::warn!(url = self.url(), "the server's history differs from that of its mirror, which is rebuilt");
        copy.close().await?;
        self.shared.mirror.remove().await?;
        let new = self.shared.mirror.open().await?;
        *self.shared.copy.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Appends the events after the end of the mirror to it, and returns its latest version.
    async fn take(&self, ctx: &Context, copy: &Arc<dyn EventStore>, end: Version, sent: Vec<Sent>) -> Result<Version> {
        let (mut latest, mut bytes, mut events) = (end, 0, Vec::new());
        for Sent { number, event, id } in sent {
            let expected = latest.get() + 1 + events.len() as u64;
            if number != Some(expected) {
                latest = self.write(ctx, copy, latest, events).await?;
                let found = number.map_or_else(|| "none".to_owned(), |number| number.to_string());
                return match latest > end {
                    true => Ok(latest),
                    false => Err(Error::Unavailable {
                        url: self.url().to_owned(),
                        reason: format!(
                            "its event {id:?} has the version {found} where {expected} was expected; what belongs there may \
                             still appear, and events behind it are read when it does. A server whose versions have gaps for \
                             good, as on PostgreSQL, cannot be used"
                        ),
                        source: None,
                    }),
                };
            }
            let event = event.map_err(|error| Error::Unsupported {
                what: format!(
                    "version {expected} of {}, the event {id:?}, is none that a store can have: {error}",
                    self.url()
                ),
            })?;
            bytes += event.len_bytes();
            events.push(event);
            if events.len() == MAX_BATCH_EVENTS || bytes > MAX_BATCH_BYTES / 2 {
                latest = self.write(ctx, copy, latest, std::mem::take(&mut events)).await?;
                bytes = 0;
            }
        }
        self.write(ctx, copy, latest, events).await
    }

    async fn write(
        &self,
        ctx: &Context,
        copy: &Arc<dyn EventStore>,
        end: Version,
        events: Vec<Event>,
    ) -> Result<Version> {
        let count = events.len() as u64;
        // Events lost in a power cut are read again.
        let stored = copy.store_batch(ctx, Batch::new(events).durability(Durability::Buffered)).await?;
        let is_behind = |(place, version): (&Stored, u64)| place.version.get() == version;
        match stored.iter().zip(end.get() + 1..).all(is_behind) {
            true => Ok(Version::new(end.get() + count)),
            false => Err(Error::engine("read the server's events", "it has one id at two versions")),
        }
    }

    /// The event with this id, if the mirror has it.
    async fn find(ctx: &Context, copy: &Arc<dyn EventStore>, id: &str) -> Result<Option<RecordedEvent>> {
        match copy.get(ctx, id).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::EventNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Checks whether a batch can be appended after the planned ones, and plans it.
    async fn plan(ctx: &Context, copy: &Arc<dyn EventStore>, ahead: &mut Ahead, batch: Batch) -> Result<Vec<Event>> {
        batch.validate()?;
        if batch.recorded_at.is_some() {
            return Err(Error::Unsupported {
                what: "recording times on a server of Go Sync Kit, which stores none".to_owned(),
            });
        }
        let mut has_old = false;
        let mut ids: HashMap<String, Event> = HashMap::new();
        for event in &batch.events {
            let found = match ids.get(event.id()).or_else(|| ahead.ids.get(event.id())) {
                Some(planned) => Some((None, planned.clone())),
                None => Self::find(ctx, copy, event.id()).await?.map(|found| (Some(found.version), found.event)),
            };
            match found {
                Some((version, there)) => {
                    if batch.idempotency == Idempotency::Content && !is_same(&there, event) {
                        return Err(Error::DuplicateEvent { id: event.id().to_owned(), version });
                    }
                    // An event that occurs twice in this batch was not there before.
                    has_old |= !ids.contains_key(event.id());
                }
                None => {
                    check_survives(event)?;
                    ids.insert(event.id().to_owned(), event.clone());
                }
            }
        }
        // A batch that was stored in part met its condition when it was begun.
        if let Some(first) = batch.events.first().filter(|_| !has_old) {
            let id = first.aggregate_id();
            let revision = ahead.revision(ctx, copy, id).await?;
            if !batch.expected.holds(revision, ahead.latest) {
                let actual = Actual::of(batch.expected, id, revision, ahead.latest);
                return Err(Error::VersionConflict { expected: batch.expected, actual });
            }
        }
        for event in ids.values() {
            let id = event.aggregate_id();
            let revision = ahead.revision(ctx, copy, id).await?;
            ahead.revisions.insert(id.to_owned(), Revision::new(revision.get() + 1));
        }
        ahead.latest = Version::new(ahead.latest.get() + ids.len() as u64);
        ahead.ids.extend(ids);
        Ok(batch.events)
    }

    /// Appends batches in order, up to the first that is refused.
    async fn append(
        &self,
        ctx: &Context,
        batches: Vec<Batch>,
        copy: Arc<dyn EventStore>,
    ) -> Result<(Vec<Vec<Stored>>, Option<Error>)> {
        let latest = copy.latest_version(ctx).await?;
        let mut ahead = Ahead { latest, revisions: HashMap::new(), ids: HashMap::new() };
        let (mut plans, mut refused) = (Vec::new(), None);
        for batch in batches {
            match Self::plan(ctx, &copy, &mut ahead, batch).await {
                Ok(plan) => plans.push(plan),
                Err(error @ (Error::Cancelled | Error::DeadlineExceeded | Error::Closed)) => return Err(error),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        // The server detects known ids, and so does this program, so that nothing is sent twice.
        let is_new = |event: &&Event| ahead.ids.get(event.id()).is_some_and(|planned| planned == *event);
        let new: Vec<&Event> = plans.iter().flatten().filter(is_new).collect();
        let (why, copy) = match new.is_empty() {
            true => (None, copy),
            false => {
                let why = self.send(ctx, &new).await;
                // Determine the outcome, even if the context has ended by now.
                let unknown = |error: Error| Error::OutcomeUnknown {
                    reason: format!("events were sent to {}, and could not be read again", self.url()),
                    source: Some(error.into()),
                };
                let short = Context::background().with_timeout(self.shared.client.connect_timeout);
                let ctx = if ctx.check().is_ok() { ctx } else { &short };
                (why, self.refresh(ctx).await.map_err(unknown)?)
            }
        };
        let ctx = &Context::background();
        let mut stored = Vec::new();
        for events in plans {
            let mut places = Vec::with_capacity(events.len());
            let mut missing = None;
            for event in &events {
                let Some(found) = Self::find(ctx, &copy, event.id()).await? else {
                    missing.get_or_insert(event.id());
                    continue;
                };
                let is_written = ahead.ids.contains_key(event.id());
                if is_written && !is_same(&found.event, event) {
                    let error = Error::DuplicateEvent { id: event.id().to_owned(), version: Some(found.version) };
                    return Ok((stored, Some(error)));
                }
                let outcome = if is_written { StoreOutcome::Written } else { StoreOutcome::AlreadyStored };
                places.push(Stored::new(found.version, found.revision, outcome));
            }
            if let Some(id) = missing {
                let error = self.missing(id, places.len(), events.len(), why);
                return Ok((stored, Some(error)));
            }
            stored.push(places);
        }
        Ok((stored, refused))
    }

    /// Why an event that was sent is not there.
    fn missing(&self, id: &str, there: usize, of: usize, why: Option<Failed>) -> Error {
        let (reason, source, may_come) = match why {
            // It may still be on its way.
            Some(Failed::Final(error @ (Error::Cancelled | Error::DeadlineExceeded))) => {
                (error.to_string(), Some(error.into()), true)
            }
            Some(Failed::Final(error)) if there == 0 => return error,
            Some(Failed::Final(error)) => (error.to_string(), Some(error.into()), false),
            Some(Failed::Passing { reason, source, may_be_done, .. }) => (reason, source, may_be_done),
            None => ("it reports success; its log has the reason".to_owned(), None, false),
        };
        let url = self.url().to_owned();
        match there {
            0 if !may_come => {
                Error::Unavailable { url, reason: format!("it has not stored the event {id:?}: {reason}"), source }
            }
            there => Error::OutcomeUnknown {
                reason: format!(
                    "{url} has stored {there} events of a batch of {of}, and not {id:?}: {reason}. Append the batch again"
                ),
                source,
            },
        }
    }

    /// Sends events. Returns why, if not all of them were accepted.
    async fn send(&self, ctx: &Context, events: &[&Event]) -> Option<Failed> {
        let (mut body, mut first) = (vec![b'['], 0);
        for (index, event) in events.iter().enumerate() {
            if body.len() > 1 {
                body.push(b',');
            }
            // The server assigns the version itself, but requires the field.
            write_event(&mut body, event, Version::ZERO);
            if body.len() >= PUSH_BYTES || index + 1 == events.len() {
                body.push(b']');
                let body = std::mem::replace(&mut body, vec![b'[']);
                let failed = self.post(ctx, body, &events[first..=index]).await;
                if failed.is_some() {
                    return failed;
                }
                first = index + 1;
            }
        }
        None
    }

    async fn post(&self, ctx: &Context, body: Vec<u8>, events: &[&Event]) -> Option<Failed> {
        let asked = ask(&self.shared.client, Method::POST, "push", Some(body), PAGE_BYTES);
        let refused = match ctx.run(asked).await {
            Ok(Ok(Answer::Ok(_))) => return None,
            Ok(Ok(Answer::Refused(reason))) => reason,
            Ok(Ok(Answer::TooLong)) => "its answer is too long".to_owned(),
            Ok(Err(failed)) => return Some(failed),
            Err(ended) => return Some(Failed::Final(ended)),
        };
        // It rejects a whole body if it rejects one event.
        let [first, others @ ..] = events else { return None };
        if others.is_empty() {
            return Some(Failed::Final(Error::invalid_event(
                "event",
                format!("a server of Go Sync Kit does not take the event {:?}: {refused}", first.id()),
            )));
        }
        for event in events {
            let mut body = vec![b'['];
            write_event(&mut body, event, Version::ZERO);
            body.push(b']');
            let failed = Box::pin(self.post(ctx, body, &[event])).await;
            if failed.is_some() {
                return failed;
            }
        }
        None
    }
}

#[async_trait]
impl EventStore for GoSyncStore {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.check(ctx)?;
        check_writable(self.shared.is_read_only, "an append")?;
        if batch.events.is_empty() {
            return Ok(Vec::new());
        }
        let copy = self.refresh(ctx).await?;
        let (stored, refused) = self.append(ctx, vec![batch], copy).await?;
        refused.map_or_else(|| Ok(stored.into_iter().next().unwrap_or_default()), Err)
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.refresh(ctx).await?.load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.refresh(ctx).await?.get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.refresh(ctx).await?.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.refresh(ctx).await?.aggregate_revision(ctx, aggregate_id).await
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        self.refresh(ctx).await?.list_aggregates(ctx, options, most).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        loop {
            self.check(ctx)?;
            let found = self.latest(ctx).await?;
            if found > after {
                return Ok(found);
            }
            let pause = async {
                tokio::time::sleep(POLL).await;
                Ok(())
            };
            ctx.run(self.until_closed(pause)).await??;
        }
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        self.check(ctx)?;
        self.copy().run_gc(ctx, gc).await
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        self.refresh(ctx).await?.backup(ctx, target).await
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.refresh(ctx).await?.verify(ctx).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.refresh(ctx).await?.digest(ctx, until).await
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        self.latest_version(ctx).await // what the server returns is stored
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        // A page may be returned long before the mirror is complete.
        let enough = since.version.get().saturating_add(size.events as u64);
        let reached = self.refresh_up_to(ctx, Version::new(enough)).await?;
        replication::check(&*reached.copy, ctx, since, reached.latest).await?;
        let page = reached.copy.load_page(ctx, &LoadOptions::since(since.version), size).await?;
        let head = match reached.is_all {
            true => reached.latest,
            false => self.latest(ctx).await?.max(reached.latest),
        };
        Ok(Pulled::new(page.events, head))
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        check_writable(self.shared.is_read_only, "a push")?;
        let copy = self.refresh(ctx).await?;
        replication::check(&*copy, ctx, at, copy.latest_version(ctx).await?).await?;
        let (stored, refused) = self.append(ctx, batches, copy).await?;
        let head = self.copy().latest_version(&Context::background()).await?;
        Ok(Pushed::new(stored, refused, head))
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let mut stats = self.refresh(ctx).await?.stats(ctx).await?;
        stats.properties.insert(0, ("mirror".into(), stats.backend.to_string()));
        stats.backend = NAME.into();
        stats.store_id = None; // the mirror's id does not identify the server
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.cancel();
        // A running refresh must end first.
        let _refreshing = self.shared.refreshing.lock().await;
        self.copy().close().await
    }
}

//! Requests and their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use eventstore_api::{Context, Error, Result, Source};
use eventstore_wire::{BINARY, JSON, MAX_BODY, PROBLEM, Problem, QueryWriter};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use crate::net::{Connector, innermost, source, tls_advice};
use crate::options::{Address, Options, invalid};
use crate::pool::{Answered, Pool, Unanswered};

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Another attempt may succeed. `may_be_done`: the server may have processed the request.
    Passing { reason: String, source: Option<Source>, after: Option<Duration>, may_be_done: bool },
    /// Another attempt would fail as well.
    Final(Error),
}

impl Failed {
    pub(crate) fn passing(reason: impl Into<String>) -> Self {
        Failed::Passing { reason: reason.into(), source: None, after: None, may_be_done: true }
    }

    /// A connection failed or was lost.
    pub(crate) fn lost(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let reason = format!("{what}: {}", innermost(&error));
        Failed::Passing { reason, source: Some(source(error)), after: None, may_be_done: true }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Final(error)
    }
}

pub(crate) type Attempt<T> = std::result::Result<T, Failed>;

/// A client of one store on a server.
#[derive(Debug)]
pub(crate) struct Client {
    /// For messages.
    pub(crate) url: String,
    pub(crate) connector: Connector,
    pub(crate) retry_for: Duration,
    pub(crate) retry_waits: bool,
    pub(crate) connect_timeout: Duration,
    authority: HeaderValue,
    base: String,
    authorization: Option<HeaderValue>,
    pool: Pool,
}

/// The answer to a request, with its body still to be read.
pub(crate) type Answer = Response<Answered>;

/// The longest problem document or other small answer that is read.
const MAX_SMALL: usize = 1 << 20;

impl Client {
    /// A client with these options, in the runtime of the caller.
    pub(crate) async fn open(options: Options) -> Result<Self> {
        // It reads files.
        let client = tokio::task::spawn_blocking(move || Client::new(&options, &Handle::current())).await;
        client.map_err(|error| Error::engine("open the store", error))?
    }

    /// A client with these options, in this runtime. It reads the files that they name, which blocks.
    fn new(options: &Options, home: &Handle) -> Result<Self> {
        let address = options.validate()?;
        let connector = Connector::new(&address, options.ca_file.as_deref(), options.connect_timeout, home.clone())?;
        Ok(Client {
            url: address.to_string(),
            retry_for: options.retry_for,
            retry_waits: options.retry_waits,
            connect_timeout: options.connect_timeout,
            authority: authority(&address)?,
            base: address.base.clone(),
            authorization: authorization(options)?,
            pool: Pool::new(connector.clone(), home.clone()),
            connector,
        })
    }

    /// A request for a resource below the base: `events?since=7`, or `""` for the base itself.
    pub(crate) fn request(&self, method: Method, resource: &str, accept: &'static str) -> Result<Request<Full<Bytes>>> {
        let target = match resource {
            "" if self.base.is_empty() => "/".to_owned(),
            "" => self.base.clone(),
            _ => format!("{}/{resource}", self.base),
        };
        let request = Request::builder().method(method).uri(target).body(Full::default());
        let mut request = request.map_err(|error| Error::engine("make a request", error))?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    /// Sends a request and returns the answer, whatever it is.
    pub(crate) async fn exchange(&self, request: Request<Full<Bytes>>) -> Attempt<Answer> {
        self.pool.request(request).await.map_err(|error| match error {
            Unanswered::NoConnection(error) => self.unreachable(error),
            Unanswered::Lost(error) => Failed::lost("the connection was lost", error),
        })
    }

    /// Sends a request and returns the answer if it is the expected one.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Attempt<Answer> {
        let answer = self.exchange(request).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => Ok(answer),
            _ => Err(self.refusal(answer).await),
        }
    }

    /// Interprets a failure to connect.
    pub(crate) fn unreachable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Failed {
        let Some(advice) = tls_advice(&error) else {
            let reason = format!("it cannot be reached: {}", innermost(&error));
            return Failed::Passing { reason, source: Some(source(error)), after: None, may_be_done: false };
        };
        Failed::Final(Error::Open {
            path: self.url.clone(),
            reason: format!("{}; {advice}", innermost(&error)),
            source: Some(source(error)),
        })
    }

    /// Interprets an unexpected answer.
    pub(crate) async fn refusal(&self, answer: Answer) -> Failed {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = match collect(answer, MAX_SMALL).await {
            Ok(body) => body,
            Err(failed) => return failed,
        };
        let problem = match is_of(&headers, PROBLEM) {
            true => serde_json::from_slice::<Problem>(&body).ok(),
            false => None,
        };
        let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let after = after.map(|seconds: u64| Duration::from_secs(seconds.min(5)));
        let is_passing = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        match problem {
            Some(problem) if is_passing_problem(&problem) => {
                let reason = problem.reason.unwrap_or(problem.detail);
                Failed::Passing { reason, source: None, after, may_be_done: false }
            }
            Some(problem) => Failed::Final(problem.into_error(&self.url)),
            None if is_passing => {
                let reason = format!("it answers HTTP {status}");
                Failed::Passing { reason, source: None, after, may_be_done: true }
            }
            None => Failed::Final(self.foreign(status, &headers)),
        }
    }

    /// The answer does not come from an eventstore server.
    fn foreign(&self, status: StatusCode, headers: &HeaderMap) -> Error {
        let what = headers.get(CONTENT_TYPE).map_or("no type", |value| value.to_str().unwrap_or("an odd type"));
        Error::Open {
            path: self.url.clone(),
            reason: format!(
                "the answer does not come from an eventstore server (HTTP {status} with {what}); check the address, \
                 and any proxies"
            ),
            source: None,
        }
    }

    /// The whole body of an answer with this media type.
    pub(crate) async fn body(&self, answer: Answer, form: &str) -> Attempt<Bytes> {
        if !is_of(answer.headers(), form) {
            return Err(self.foreign(answer.status(), answer.headers()).into());
        }
        collect(answer, MAX_BODY).await
    }

    /// Sends an idempotent request until it is answered or the time is up.
    pub(crate) async fn get<T>(
        &self,
        ctx: &Context,
        resource: &str,
        query: &str,
        form: &'static str,
        decode: impl Fn(Bytes) -> std::result::Result<T, String>,
    ) -> Result<T> {
        self.repeat(ctx, || self.get_once(ctx, resource, query, form, &decode)).await
    }

    /// Repeats an idempotent attempt until it succeeds or the time is up.
    pub(crate) async fn repeat<T, F: Future<Output = Attempt<T>>>(
        &self,
        ctx: &Context,
        attempt: impl Fn() -> F,
    ) -> Result<T> {
        let mut retries = Retries::new(self.retry_for);
        loop {
            let failed = match ctx.run(attempt()).await {
                Ok(Ok(value)) => {
                    retries.succeeded(&self.url);
                    return Ok(value);
                }
                Ok(Err(failed)) => failed,
                Err(ended) => return Err(retries.ended(ended, &self.url)),
            };
            retries.pause(ctx, failed, &self.url).await?;
        }
    }

    /// Begins work that may be restarted: repeats the request until an answer begins or the time is up.
    pub(crate) async fn begin(
        &self,
        ctx: &Context,
        method: Method,
        resource: &str,
        query: &str,
        accept: &'static str,
    ) -> Result<Answer> {
        let method = &method;
        let attempt = || async move {
            let request = self.request(method.clone(), &with_timeout(resource, query, ctx), accept)?;
            self.send(request).await
        };
        self.repeat(ctx, attempt).await
    }

    /// Like [`get`](Client::get), but only once.
    pub(crate) async fn get_once<T>(
        &self,
        ctx: &Context,
        resource: &str,
        query: &str,
        form: &'static str,
        decode: impl Fn(Bytes) -> std::result::Result<T, String>,
    ) -> Attempt<T> {
        let target = with_timeout(resource, query, ctx);
        let answer = self.send(self.request(Method::GET, &target, form)?).await?;
        let body = self.body(answer, form).await?;
        decode(body).map_err(|what| Failed::passing(format!("its answer is damaged: {what}")))
    }

    /// The same for JSON.
    pub(crate) async fn get_json<T: DeserializeOwned>(&self, ctx: &Context, resource: &str, query: &str) -> Result<T> {
        self.get(ctx, resource, query, JSON, |body| from_json(&body)).await
    }

    /// Posts a body in the binary form. It is sent once: unless it certainly failed, it may have been processed.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        ctx: &Context,
        resource: &str,
        query: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let mut request = self.request(Method::POST, &with_timeout(resource, query, ctx), JSON)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(BINARY));
        let request = request.map(|_| Full::from(body));
        let posting = async {
            let answer = self.body(self.send(request).await?, JSON).await?;
            from_json(&answer).map_err(|what| Failed::passing(format!("its answer is damaged: {what}")))
        };
        let unknown = |reason, source| Error::OutcomeUnknown { reason, source };
        match ctx.run(posting).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failed::Final(error))) => Err(error),
            Ok(Err(Failed::Passing { reason, source, may_be_done: true, .. })) => {
                Err(unknown(format!("{}: {reason}", self.url), source))
            }
            Ok(Err(Failed::Passing { reason, source, .. })) => {
                Err(Error::Unavailable { url: self.url.clone(), reason, source })
            }
            Err(ended) => Err(unknown("the call ended before the server had answered".to_owned(), Some(ended.into()))),
        }
    }
}

/// A resource with its parameters and the time limit of the context.
pub(crate) fn with_timeout(resource: &str, query: &str, ctx: &Context) -> String {
    let timeout = ctx.deadline().map(|deadline| {
        // Rounded up: the server must not give up before the client does.
        let left = deadline.saturating_duration_since(Instant::now());
        QueryWriter::new().put("timeout", format_args!("{}us", left.as_micros() + 1)).finish()
    });
    match (query, timeout) {
        ("", None) => resource.to_owned(),
        (query, None) => format!("{resource}?{query}"),
        ("", Some(timeout)) => format!("{resource}?{timeout}"),
        (query, Some(timeout)) => format!("{resource}?{query}&{timeout}"),
    }
}

pub(crate) fn from_json<T: DeserializeOwned>(body: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Whether a problem means that the server is stopping or overloaded. It has not processed the request.
pub(crate) fn is_passing_problem(problem: &Problem) -> bool {
    problem.written != "unknown" && matches!(problem.code.as_str(), "unavailable" | "too_many" | "closed" | "cancelled")
}

/// Whether an answer's body has this media type.
pub(crate) fn is_of(headers: &HeaderMap, form: &str) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(form)
}

/// Reads a body of at most this many bytes.
async fn collect(answer: Answer, most: usize) -> Attempt<Bytes> {
    let too_long = || Failed::Final(Error::engine("read an answer", format!("it is longer than {most} bytes")));
    collect_up_to(answer, most).await?.ok_or_else(too_long)
}

/// Reads a body; `None` if it has more bytes than this.
pub(crate) async fn collect_up_to(answer: Answer, most: usize) -> Attempt<Option<Bytes>> {
    let mut body = answer.into_body();
    if hyper::body::Body::size_hint(&body).lower() > most as u64 {
        return Ok(None);
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failed::lost("its answer was cut off", error))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > most {
            return Ok(None);
        }
        // Most answers come in one piece, which needs no copy.
        match first.is_empty() && all.is_empty() {
            true => first = data,
            false => {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
    }
    Ok(Some(if all.is_empty() { first } else { all.freeze() }))
}

/// The target of the logs about a server that is away, and that is back.
const OUTAGE: &str = "backend_http::outage";

/// Retries with increasing pauses.
#[derive(Debug)]
pub(crate) struct Retries {
    until: Option<Instant>,
    began: Instant,
    pauses: <ExponentialBuilder as BackoffBuilder>::Backoff,
    last: Option<(String, Option<Source>)>,
    /// Whether it was logged that the server is away.
    is_told: bool,
}

impl Retries {
    pub(crate) fn new(retry_for: Duration) -> Self {
        let began = Instant::now();
        Retries { until: began.checked_add(retry_for), began, pauses: PAUSES.build(), last: None, is_told: false }
    }

    /// Without a limit except the context.
    pub(crate) fn for_ever() -> Self {
        Retries { until: None, began: Instant::now(), pauses: PAUSES.build(), last: None, is_told: false }
    }

    /// The error when the context ends: the last failure, if that is why there is no answer.
    pub(crate) fn ended(&mut self, ended: Error, url: &str) -> Error {
        match (ended, self.last.take()) {
            (Error::DeadlineExceeded, Some(last)) => self.unavailable(last, url),
            (ended, _) => ended,
        }
    }

    fn unavailable(&self, (reason, source): (String, Option<Source>), url: &str) -> Error {
        let tried = self.began.elapsed();
        let reason = match tried < Duration::from_millis(100) {
            true => reason,
            false => format!("{reason} (tried for {:.1} s)", tried.as_secs_f64()),
        };
        Error::Unavailable { url: url.to_owned(), reason, source }
    }

    /// Whether an attempt has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.last.is_some()
    }

    /// Notes that an attempt has succeeded.
    pub(crate) fn succeeded(&self, url: &str) {
        if self.is_told {
            tracing::info!(target: OUTAGE, "{url}: the server answers again");
        }
    }

    /// Waits before the next attempt; an error if there is no further attempt.
    pub(crate) async fn pause(&mut self, ctx: &Context, failed: Failed, url: &str) -> Result<()> {
        let (reason, source, after) = match failed {
            Failed::Passing { reason, source, after, .. } => (reason, source, after),
            Failed::Final(error) => return Err(error),
        };
        let pause = self.pauses.next().max(after).unwrap_or_default();
        if self.until.is_some_and(|until| Instant::now() + pause > until) {
            return Err(match self.has_failed() {
                true => self.unavailable((reason, source), url),
                // One attempt, however long the server took for it.
                false => Error::Unavailable { url: url.to_owned(), reason, source },
            });
        }
        tracing::debug!(url, reason, ?pause, "a request is repeated");
        // Most failures are resolved by the next attempt.
        if self.has_failed() && !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(target: OUTAGE, "{url}: {reason}; trying again");
        }
        self.last = Some((reason, source));
        match ctx.run(tokio::time::sleep(pause)).await {
            Ok(()) => Ok(()),
            Err(ended) => Err(self.ended(ended, url)),
        }
    }
}

/// The endless sequence of pauses between attempts: each up to twice as long as the one before, up to 2 s, and random
/// because of the jitter, which makes a pause up to twice as long.
pub(crate) const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_jitter()
    .with_min_delay(Duration::from_micros(2_500))
    .with_max_delay(Duration::from_secs(1))
    .without_max_times();

fn authority(address: &Address) -> Result<HeaderValue> {
    HeaderValue::try_from(address.authority()).map_err(|_| invalid("store", "its host name is not valid"))
}

/// The header with the token, if there is one.
fn authorization(options: &Options) -> Result<Option<HeaderValue>> {
    let (option, token) = match (&options.token, &options.token_file) {
        (Some(token), _) => ("token", token.clone()),
        (None, None) => return Ok(None),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| invalid("token_file", &format!("{} cannot be read: {error}", path.display())))?;
            ("token_file", text.lines().next().unwrap_or_default().to_owned())
        }
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = match &options.token_file {
            Some(path) if option == "token_file" && token.is_empty() => {
                format!("the first line of {} is empty; write the token there", path.display())
            }
            // The usual mistake is to give the client the file of `serve --token-file`.
            Some(path) if option == "token_file" => format!(
                "the first line of {} is not a token, which has only ASCII characters and no spaces; if this is the \
                 server's file, write only the token, without its rights, into a file for the client",
                path.display()
            ),
            _ => "it is not a token, which has one or more ASCII characters and no spaces".to_owned(),
        };
        return Err(invalid(option, &reason));
    }
    let mut value =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| invalid(option, "it is not valid in a header"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Shared by all handles.
pub(crate) type SharedClient = Arc<Client>;

/// The media type of pages and single events.
pub(crate) const PAGES: &str = BINARY;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_time_of_the_attempts_is_told_if_there_were_several() {
        let failed = || Failed::passing("refused");
        let ctx = Context::background();
        let four_seconds = |mut retries: Retries| {
            retries.began = retries.began.checked_sub(Duration::from_secs(4)).expect("the machine runs for longer");
            retries
        };
        let mut once = four_seconds(Retries::new(Duration::ZERO));
        let told = once.pause(&ctx, failed(), "http://host").await;
        assert!(matches!(&told, Err(Error::Unavailable { reason, .. }) if reason == "refused"), "{told:?}");
        let mut several = four_seconds(Retries::new(Duration::from_secs(60)));
        several.pause(&ctx, failed(), "http://host").await.expect("another attempt");
        several.until = Some(Instant::now());
        let told = several.pause(&ctx, failed(), "http://host").await;
        assert!(
            matches!(&told, Err(Error::Unavailable { reason, .. }) if reason.starts_with("refused (tried for ")),
            "{told:?}"
        );
    }
}

//! A log line for each request, after it has ended.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{Method, Response};
use futures_util::TryFutureExt as _;
use futures_util::future::{BoxFuture, Either, MapOk};
use http_body::{Frame, SizeHint};
use tower_layer::Layer;
use tower_service::Service;

/// The log target of requests.
pub(crate) const TARGET: &str = "eventstore_server::request";

/// Logs each request, if logging is enabled for the target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLog;

impl<S> Layer<S> for RequestLog {
    type Service = Logging<S>;

    fn layer(&self, inner: S) -> Logging<S> {
        Logging { inner }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Logging<S> {
    inner: S,
}

/// A body that is sent unchanged.
type AsItIs<F, B> = MapOk<F, fn(Response<B>) -> Response<Body>>;

impl<S, B> Service<Request> for Logging<S>
where
    S: Service<Request, Response = Response<B>>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<AsItIs<S::Future, B>, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if !tracing::event_enabled!(target: TARGET, tracing::Level::DEBUG) {
            let as_it_is: fn(Response<B>) -> Response<Body> = |response| response.map(Body::new);
            return Either::Left(self.inner.call(request).map_ok(as_it_is));
        }
        let mut entry = Entry::new(&request);
        let answering = self.inner.call(request);
        Either::Right(Box::pin(async move {
            let response = answering.await?;
            entry.status = response.status().as_u16();
            // A head without a body, and the switch to another protocol, are complete.
            entry.is_whole = response.body().is_end_stream();
            Ok(response.map(|body| Body::new(Counted { body: Body::new(body), entry })))
        }))
    }
}

/// The log entry of a request. It is logged when it is dropped.
struct Entry {
    method: Method,
    /// Without the query, which is private to the client and may have a token by mistake.
    path: String,
    began: Instant,
    /// 0 as long as there is no answer.
    status: u16,
    bytes: u64,
    is_whole: bool,
}

impl Entry {
    fn new(request: &Request) -> Self {
        // As the client sent it, even if a program has mounted the routes below a path.
        let uri = request.extensions().get::<axum::extract::OriginalUri>().map_or(request.uri(), |uri| &uri.0);
        Entry {
            method: request.method().clone(),
            path: uri.path().to_owned(),
            began: Instant::now(),
            status: 0,
            bytes: 0,
            is_whole: false,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let duration = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(
            target: TARGET,
            method = self.method.as_str(),
            path = self.path.as_str(),
            status = self.status,
            duration_us = duration,
            bytes = self.bytes,
            is_whole = self.is_whole,
            "answered"
        );
    }
}

/// The body of an answer, with its bytes counted.
struct Counted {
    body: Body,
    entry: Entry,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                // A reader that knows the length does not ask for more after the last bytes.
                self.entry.is_whole = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.entry.is_whole = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_shows_a_path_without_its_query() {
        let request = Request::builder().uri("/stores/a%20b/events?aggregate=secret&token=0123456789abcdef");
        let entry = Entry::new(&request.body(Body::empty()).expect("a request"));
        assert_eq!(entry.path, "/stores/a%20b/events");
    }
}

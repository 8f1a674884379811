//! Long work: it reports progress, and ends with the connection.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use eventstore_api::{Context, Error, Gc, Progress};
use eventstore_wire::{JSON_LINES, LineOfWork};
use serde::Serialize;
use tokio::sync::watch;

use crate::answer::{Answer, Maintaining, Params, problem_of, stopping, stream};
use crate::server::App;
use crate::stores::{JobGuard, Served};

/// The shortest time between two reports of progress.
const PACE: Duration = Duration::from_millis(200);

pub(crate) async fn verify(State(app): State<Arc<App>>, Maintaining(served): Maintaining, params: Params) -> Answer {
    let ctx = params.ctx;
    params.query.finish()?;
    let store = served.store.clone();
    Ok(run(app, &served, "verify", ctx, async move |ctx| store.verify(&ctx).await))
}

pub(crate) async fn gc(State(app): State<Arc<App>>, Maintaining(served): Maintaining, params: Params) -> Answer {
    let (mut query, ctx) = (params.query, params.ctx);
    let gc = if query.flag("full")? { Gc::Full } else { Gc::Quick };
    query.finish()?;
    let store = served.store.clone();
    Ok(run(app, &served, "gc", ctx, async move |ctx| store.run_gc(&ctx, gc).await))
}

/// Answers with the lines of this work. The work starts at once, and stops when nobody reads the lines any more.
pub(crate) fn run<T, F>(
    app: Arc<App>,
    served: &Arc<Served>,
    kind: &'static str,
    ctx: Context,
    work: impl FnOnce(Context) -> F + Send + 'static,
) -> axum::response::Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let (sender, progress) = watch::channel((0, 0));
    let job: JobGuard = served.begin(kind);
    let ctx = ctx.with_progress(Progress::new(move |done, total| {
        job.report(done, total);
        sender.send_replace((done, total));
    }));
    let steps = Steps { work: Some(Box::pin(work(ctx))), last: None, told: (0, 0), progress, app };
    let lines = futures_util::stream::unfold(steps, |mut steps: Steps<T, F>| async move {
        let line = steps.next().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), steps))
    });
    stream(JSON_LINES, Body::from_stream(lines))
}

struct Steps<T, F> {
    /// `None` once it has ended.
    work: Option<std::pin::Pin<Box<F>>>,
    /// The final line, if it is still to be sent.
    last: Option<LineOfWork<T>>,
    /// The last progress that was sent.
    told: (u64, u64),
    progress: watch::Receiver<(u64, u64)>,
    app: Arc<App>,
}

impl<T, F: Future<Output = Result<T, Error>>> Steps<T, F> {
    async fn next(&mut self) -> Option<LineOfWork<T>> {
        if let Some(last) = self.last.take() {
            return Some(last);
        }
        let work = self.work.as_mut()?;
        let ended = tokio::select! {
            biased;
            result = work => match result {
                Ok(report) => LineOfWork::Result(report),
                Err(error) => LineOfWork::Error(Box::new(problem_of(&error))),
            },
            () = self.app.stopping.cancelled() => LineOfWork::Error(Box::new(stopping())),
            // The sender is dropped with the work.
            () = changed(&mut self.progress) => {
                return Some(self.progress());
            }
        };
        self.work = None;
        // Report the final progress even if the work was fast.
        if *self.progress.borrow() != self.told {
            self.last = Some(ended);
            return Some(self.progress());
        }
        Some(ended)
    }

    fn progress(&mut self) -> LineOfWork<T> {
        self.told = *self.progress.borrow_and_update();
        let (done, total) = self.told;
        LineOfWork::Progress { done, total }
    }
}

async fn changed(progress: &mut watch::Receiver<(u64, u64)>) {
    tokio::time::sleep(PACE).await;
    if progress.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

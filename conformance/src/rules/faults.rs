//! F: the state after a failure.
//!
//! Few failures can be caused through the trait, so most of these rules show as ignored here.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use eventstore_api::{
    Batch, CancellationToken, Context, Error, EventStore, Expected, Gc, LoadOptions, Progress, Version,
};

use crate::calls::collect;
use crate::check::checks;
use crate::env::{Env, Store};
use crate::events::{append_large, append_one, background, event, events};
use crate::failure::{Checked, Failure};
use crate::reading::{NEWEST, audit, is_sound, load, pages_of};
use crate::tasks::{all_at_once, polled};

checks! {
    /// F1: After a failed commit or sync, the outcome is unknown and the writer is fenced; reads continue.
    #[ignore = "needs an engine whose sync can be made to fail"]
    async fn f1_a_failed_commit_fences_the_writer_and_reads_go_on(_env: &Env) {}

    /// F1: Only a failed commit fences the writer: an append that is refused or ended does not.
    #[on(Both)]
    async fn f1_an_append_that_is_refused_fences_nothing(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let token = CancellationToken::new();
        token.cancel();
        let (late, cancelled) = (
            Context::background().with_timeout(Duration::ZERO),
            Context::background().with_cancellation(token),
        );
        let new = events("new", "a", 2);
        let refused = [
            (background(), Batch::new(new.clone()).expected(Expected::NoEvents), "version_conflict"),
            (background(), Batch::new(vec![event("new", "a"), event("first", "b")]), "duplicate_event"),
            (background(), Batch::new(new.clone()).recorded_at(vec![SystemTime::now()]), "invalid_event"),
            (late, Batch::new(new.clone()), "deadline_exceeded"),
            (cancelled, Batch::new(new.clone()), "cancelled"),
        ];
        for (number, (ctx, batch, code)) in refused.into_iter().enumerate() {
            let outcome = store.store_batch(&ctx, batch).await;
            let found = outcome.as_ref().err().map(Error::code);
            expect_eq!(found, Some(code), "the code of the error of an append that has to be refused");
            polled(1 + number, store.store_batch(&background(), event(format!("dropped-{number}"), "b").into())).await;
            append_one(&store, event(format!("after-{code}"), "a")).await?;
            let fenced = store.stats(&background()).await?.fenced;
            expect_eq!(fenced, None, "why the writer is fenced after {code}");
        }
        audit(&store).await?;
    }

    /// F2: After a kill at any point, every event acknowledged with `Sync` is there, and no batch is there in part.
    #[ignore = "needs a second process that can be killed"]
    async fn f2_what_was_acknowledged_survives_a_kill(_env: &Env) {}

    /// F3: A damaged record is `Corrupt`, never a wrong event and never a panic.
    #[ignore = "needs access to the files of the store"]
    async fn f3_a_damaged_record_is_corrupt_and_never_a_wrong_event(_env: &Env) {}

    /// F4: If the disk is full, there is a clear error, nothing acknowledged is lost, and the store opens again.
    #[ignore = "needs a disk that can be filled"]
    async fn f4_a_full_disk_loses_nothing_that_was_acknowledged(_env: &Env) {}

    /// F5: A progress listener may wait for reads and appends of others: it blocks the work that it listens to, and
    /// nothing else.
    async fn f5_a_listener_of_progress_may_wait_for_readers_and_writers(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let others = Others::begin(store.clone(), env.profile.limit() / 2);
        for work in Work::all(env) {
            let asked = Arc::new(AtomicU64::new(0));
            let (listening, listener) = (others.clone(), asked.clone());
            let progress = Progress::new(move |_, _| {
                // Only some of hundreds of steps.
                if (listener.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
                    listening.wait_for_all(work);
                }
            });
            work.run(env, &store, &Context::background().with_progress(progress)).await?;
            others.outcome()?;
            if work.tells() {
                ensure!(asked.load(Ordering::Relaxed) > 0, "{work:?} ended and told nobody how far it had come");
            }
        }
        audit(&store).await?;
    }

    /// F5: A progress listener that panics ends at most its own call: reads, appends and the next call of that kind
    /// continue, nothing is fenced, and the store closes.
    #[on(Both)]
    async fn f5_a_listener_of_progress_that_panics_ends_its_own_call_alone(env: &Env) {
        let mut store = env.open().await?;
        append_large(&store).await?;
        for work in Work::all(env) {
            for at in [1, 2, 7] {
                let told = AtomicU64::new(0);
                let progress = Progress::new(move |_, _| {
                    if told.fetch_add(1, Ordering::Relaxed) + 1 == at {
                        // Like a panic, but without a message on the terminal.
                        std::panic::resume_unwind(Box::new("a listener panicked"));
                    }
                });
                let (ctx, called) = (Context::background().with_progress(progress), store.clone());
                let target = env.unused_path();
                // The call may succeed, fail, or end with the panic.
                let _ = tokio::spawn(async move { work.call(&called, &ctx, &target).await }).await;
                let written = event(format!("after {work:?} at {at}"), "after");
                append_one(&store, written.clone()).await?;
                let there = store.get(&background(), written.id()).await?;
                expect_eq!(there.event, written, "what was appended when a listener had panicked");
                work.run(env, &store, &background()).await?;
            }
            let fenced = store.stats(&background()).await?.fenced;
            expect_eq!(fenced, None, "why the writer is fenced after a listener of {work:?} has panicked");
        }
        let all = audit(&store).await?;
        if env.profile.verifies() {
            is_sound(&store.verify(&background()).await?, &all)?;
        }
        if env.profile.survives_closing() {
            store = env.reopen(store).await?;
            expect_eq!(audit(&store).await?.len(), all.len(), "the number of events after listeners that panicked");
        }
        store.close().await?;
    }

    /// F5: Metrics recorders and log subscribers that panic end at most the call that they observe.
    #[ignore = "needs a separate process with such a recorder and subscriber"]
    async fn f5_recorders_and_subscribers_that_panic_stop_nobody(_env: &Env) {}
}

/// Work that reports progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Collection(Gc),
    Backup,
    Verification,
    Digest,
}

impl Work {
    /// All such work of the store.
    fn all(env: &Env) -> Vec<Self> {
        let mut all = vec![Work::Collection(Gc::Quick), Work::Collection(Gc::Full), Work::Digest];
        all.extend(env.profile.takes_backups().then_some(Work::Backup));
        all.extend(env.profile.verifies().then_some(Work::Verification));
        all
    }

    /// Whether it must report progress. A garbage collection may have nothing to do, and a digest may be stored
    /// already.
    fn tells(self) -> bool {
        matches!(self, Work::Backup | Work::Verification)
    }

    async fn call(self, store: &Store, ctx: &Context, target: &Path) -> Result<(), Error> {
        match self {
            Work::Collection(gc) => collect(store, ctx, gc).await,
            Work::Backup => store.backup(ctx, target).await.map(drop),
            Work::Verification => store.verify(ctx).await.map(drop),
            Work::Digest => store.digest(ctx, NEWEST).await.map(drop),
        }
    }

    /// Runs it, and checks its result.
    async fn run(self, env: &Env, store: &Store, ctx: &Context) -> Checked {
        let (target, before) = (env.unused_path(), store.latest_version(&background()).await?);
        if self == Work::Verification {
            let report = store.verify(ctx).await?;
            expect_eq!(report.findings, [], "what was found in a sound store");
            return Ok(());
        }
        self.call(store, ctx, &target).await?;
        if self == Work::Backup {
            let backup = env.open_at(&target).await?;
            let kept = audit(&backup).await?.len() as u64;
            ensure!(kept >= before.get(), "a backup that began at version {before} has {kept} events");
            backup.close().await?;
        }
        Ok(())
    }
}

/// Another caller, on a separate thread and runtime, who reads and appends on request.
#[derive(Clone)]
struct Others {
    asks: Arc<Mutex<(Sender<()>, Receiver<Checked>)>>,
    outcome: Arc<Mutex<Checked>>,
    limit: Duration,
}

impl Others {
    fn begin(store: Store, limit: Duration) -> Self {
        let ((asks, asked), (answers, answered)) = (channel(), channel());
        thread::spawn(move || {
            let mut number = 0;
            // Until there are no more requests.
            while asked.recv().is_ok() {
                number += 1;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                let read = runtime
                    .map_err(Failure::from)
                    .and_then(|runtime| runtime.block_on(read_and_append(&store, number)));
                if answers.send(read).is_err() {
                    return;
                }
            }
        });
        Others { asks: Arc::new(Mutex::new((asks, answered))), outcome: Arc::new(Mutex::new(Ok(()))), limit }
    }

    /// Requests everything, and waits on this thread. For a listener, which cannot fail.
    fn wait_for_all(&self, work: Work) {
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.is_err() {
            return;
        }
        let _ = asks.0.send(());
        let answer = asks.1.recv_timeout(self.limit);
        *outcome = answer.unwrap_or_else(|error| {
            let text = match error {
                RecvTimeoutError::Timeout => "wait for a listener of it that waits for them: something hangs",
                RecvTimeoutError::Disconnected => "have ended with a panic while a listener of it waited for them",
            };
            Err(Failure::new(format!("beside {work:?}, those who read and append {text}")))
        });
    }

    /// The result of the requests.
    fn outcome(&self) -> Checked {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Every kind of call that others may wait for.
async fn read_and_append(store: &Store, number: u64) -> Checked {
    let written = event(format!("beside-{number}"), "beside");
    let stored = append_one(store, written.clone()).await?;
    let found = store.get(&background(), written.id()).await?;
    expect_eq!((found.version, &found.event), (stored.version, &written), "what was appended beside other work");
    expect_eq!(store.aggregate_revision(&background(), "beside").await?, stored.revision, "its revision");
    store.wait_for_events(&background(), Version::new(stored.version.get() - 1)).await?;
    ensure!(store.latest_version(&background()).await? >= stored.version, "an append is not among the events");
    let of_one = load(store, LoadOptions::all().aggregate("beside").backward().limit(1)).await?;
    expect_eq!(of_one, [found], "the newest event of an aggregate beside other work");
    store.load_page(&background(), &LoadOptions::all(), pages_of(50)).await?;
    store.stats(&background()).await?;
    let appends = (0..3).map(|nth| append_one(store, event(format!("beside-{number}-{nth}"), "other")));
    all_at_once(appends.collect::<Vec<_>>()).await.map(drop)
}

//! C: deadlines, cancellations and dropped futures, and their effects.
//!
//! The exact moment at which a context ends cannot be controlled from outside. So most checks end many contexts at many
//! points, and check each append against its own result. This works for a store of any speed: no check requires a
//! certain result.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eventstore_api::{
    AggregateOptions, Batch, CancellationToken, Context, Durability, Error, Event, EventStore, EventStoreExt,
    EventStream, Gc, LoadOptions, PageSize, StoreOutcome, Stored, Version,
};

use crate::calls::call_every_method;
use crate::check::checks;
use crate::env::{Env, Store};
use crate::events::{append, append_history, append_one, background, event, events};
use crate::failure::{Checked, Failure};
use crate::reading::{NEWEST, audit, ids, load, pages_of};
use crate::tasks::{Background, Ending, all_at_once, at_once, end_everywhere, interrupted, polled};

checks! {
    /// C1: After a cancellation before the call, every method returns `Cancelled`, and nothing is written.
    async fn c1_a_cancelled_context_is_refused_by_every_method(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let token = CancellationToken::new();
        token.cancel();
        let cancelled = Context::background().with_cancellation(token);
        // A cancellation also takes precedence over a deadline that has passed.
        for ctx in [cancelled.clone(), cancelled.with_timeout(Duration::ZERO)] {
            for after in [Version::ZERO, Version::new(1)] {
                for (method, outcome) in call_every_method(env, &store, &ctx, "refused", after).await {
                    expect_err!(outcome, Error::Cancelled, "`{method}` with a cancelled context");
                }
            }
        }
        append_one(&store, event("last", "a")).await?;
        expect_eq!(ids(&audit(&store).await?), ["first", "last"], "the events after cancelled appends");
    }

    /// C1: After a deadline before the call, every method returns `DeadlineExceeded`, and nothing is written.
    async fn c1_an_expired_context_is_refused_by_every_method(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let ctx = Context::background().with_timeout(Duration::ZERO);
        for after in [Version::ZERO, Version::new(1)] {
            for (method, outcome) in call_every_method(env, &store, &ctx, "refused", after).await {
                expect_err!(outcome, Error::DeadlineExceeded, "`{method}` with a deadline that has passed");
            }
        }
        append_one(&store, event("last", "a")).await?;
        expect_eq!(ids(&audit(&store).await?), ["first", "last"], "the events after expired appends");
    }

    /// C2: An append that is cancelled while it waits is `Cancelled`, and certainly nothing of it is written.
    #[on(Both)]
    async fn c2_an_append_cancelled_while_it_waits_is_not_written(env: &Env) {
        let store = env.open().await?;
        let busy = keep_busy(&store, 0);
        let attempts = attempts(&store, 300, |number, store, batch| async move {
            let token = CancellationToken::new();
            let ctx = Context::background().with_cancellation(token.clone());
            let outcome = interrupted(number % 4, store.store_batch(&ctx, batch), || token.cancel()).await;
            if matches!(outcome, Err(Error::DeadlineExceeded)) {
                return Err(Failure::new("an append without a deadline is `DeadlineExceeded`"));
            }
            Ok(Some(outcome))
        })
        .await?;
        busy.finish().await?;
        each_did_what_it_said(env, store, attempts).await?;
    }

    /// C2: An append whose deadline passes while it waits is `DeadlineExceeded`, and certainly nothing of it is
    /// written.
    #[on(Both)]
    async fn c2_an_append_whose_deadline_passes_while_it_waits_is_not_written(env: &Env) {
        let store = env.open().await?;
        let busy = keep_busy(&store, 0);
        let mut random = env.random();
        let limits: Vec<_> = (0..300).map(|_| Duration::from_micros(random.below(3000))).collect();
        let attempts = attempts(&store, 300, move |number, store, batch| {
            let ctx = Context::background().with_timeout(limits[number]);
            async move {
                let outcome = store.store_batch(&ctx, batch).await;
                let early = ctx.deadline().is_some_and(|deadline| Instant::now() < deadline);
                if matches!(outcome, Err(Error::Cancelled)) || (early && outcome.is_err()) {
                    let what = format_args!("an append with a deadline failed before it, or for another reason");
                    return Err(Failure::difference(what, "DeadlineExceeded, once it is", &format!("{outcome:?}")));
                }
                Ok(Some(outcome))
            }
        })
        .await?;
        busy.finish().await?;
        each_did_what_it_said(env, store, attempts).await?;
    }

    /// C3: If a context ends after the append was staged, the outcome is unknown, and repeating the append resolves it.
    #[on(Both)]
    async fn c3_an_unknown_outcome_is_resolved_by_repeating_the_append(env: &Env) {
        let store = env.open().await?;
        // A single append goes from waiting to staged to written quickly: end the context at many points on that way.
        let mut all = Vec::new();
        for number in 0..300 {
            let batch = events(&format!("attempt-{number}"), &format!("attempt-{number}"), 3);
            let token = CancellationToken::new();
            let ctx = Context::background().with_cancellation(token.clone());
            let appending = store.store_batch(&ctx, batch.clone().into());
            let outcome = interrupted(number % 40, appending, || token.cancel()).await;
            all.push(Attempt { batch, outcome: Some(outcome) });
        }
        each_did_what_it_said(env, store, all).await?;
    }

    /// C4: If the future of an append is dropped, all or nothing is written, and repeating the append resolves which.
    #[on(Both)]
    async fn c4_a_dropped_append_is_written_whole_or_not_at_all(env: &Env) {
        let store = env.open().await?;
        // A single append proceeds with each poll; among others, it is usually still waiting when it is dropped.
        let mut all = Vec::new();
        for number in 0..200 {
            let batch = events(&format!("attempt-alone-{number}"), &format!("attempt-alone-{number}"), 3);
            let outcome = polled(number % 20, store.store_batch(&background(), batch.clone().into())).await;
            all.push(Attempt { batch, outcome });
        }
        let busy = keep_busy(&store, 0);
        let among_others = attempts(&store, 200, |number, store, batch| async move {
            Ok(polled(number % 8, store.store_batch(&background(), batch)).await)
        });
        all.extend(among_others.await?);
        busy.finish().await?;
        each_did_what_it_said(env, store, all).await?;
    }

    /// C4: A future that was never polled has written nothing.
    async fn c4_an_append_that_was_never_polled_writes_nothing(env: &Env) {
        let store = env.open().await?;
        // Call the store itself: the implementation for `Arc` does nothing before it is polled, whatever the store
        // does.
        let direct: &dyn EventStore = store.as_ref();
        for number in 0..100 {
            drop(direct.store_batch(&background(), event(format!("dropped-{number}"), "a").into()));
        }
        append_one(&store, event("only", "a")).await?;
        expect_eq!(ids(&audit(&store).await?), ["only"], "the events after appends that were never polled");
    }

    /// C4: Dropped appends release their room in the queue, in number and in bytes.
    #[on(Both)]
    async fn c4_dropped_appends_give_their_places_back(env: &Env) {
        let store = env.open().await?;
        // More than a queue holds: if room were leaked, the last appends would hang.
        for number in 0..10_000 {
            let batch = Batch::from(event(format!("small-{number}"), "small")).durability(Durability::Buffered);
            polled(1 + number % 2, store.store_batch(&background(), batch)).await;
        }
        let data = eventstore_api::Bytes::from(vec![7; 512 << 10]);
        for number in 0..300 {
            let large = Event::builder("Large", "large").id(format!("large-{number}")).data(data.clone()).build()?;
            let batch = Batch::from(large).durability(Durability::Buffered);
            polled(1 + number % 2, store.store_batch(&background(), batch)).await;
        }
        let appends: Vec<_> =
            (0..64).map(|number| append_one(&store, event(format!("last-{number}"), "last"))).collect();
        all_at_once(appends).await?;
        let revision = store.aggregate_revision(&background(), "last").await?.get();
        expect_eq!(revision, 64, "the revision after the appends behind the dropped ones");
    }

    /// C4: Dropped appends do not stop others that are waiting.
    #[on(Both)]
    async fn c4_a_dropped_append_stops_no_other(env: &Env) {
        let store = env.open().await?;
        for round in 0..40 {
            let appends = (0..6).map(|number| {
                let store = store.clone();
                async move {
                    if number % 2 == 0 {
                        let dropped = events(&format!("dropped-{round}-{number}"), "dropped", 2);
                        polled((round + number) % 8, store.store_batch(&background(), dropped.into())).await;
                        return Ok(());
                    }
                    append(&store, events(&format!("kept-{round}-{number}"), "kept", 2)).await.map(drop)
                }
            });
            all_at_once(appends).await?;
        }
        let kept = load(&store, LoadOptions::all().aggregate("kept")).await?;
        expect_eq!(kept.len(), 40 * 3 * 2, "the number of events whose appends were not dropped");
        audit(&store).await?;
    }

    /// C5: A load whose context is cancelled fails before its next page.
    async fn c5_a_cancelled_load_ends_within_a_page(env: &Env) {
        let store = env.open().await?;
        append(&store, events("event", "a", 9_000)).await?;
        let every = LoadOptions::all();
        for options in [every.clone(), every.clone().backward(), every.aggregate("a")] {
            let token = CancellationToken::new();
            let mut stream = store.load(&Context::background().with_cancellation(token.clone()), options.clone());
            let first = stream.next().await;
            ensure!(matches!(first, Some(Ok(_))), "the first event of a load with {options:?}: {first:?}");
            token.cancel();
            let mut more = 0;
            let end = loop {
                match stream.next().await {
                    Some(Ok(_)) => more += 1,
                    end => break end,
                }
            };
            let error = end.map_or(Ok(()), |last| last.map(drop));
            expect_err!(error, Error::Cancelled, "the end of a cancelled load with {options:?}, {more} events later");
            ensure!(more < PageSize::LARGEST.events, "{more} events came after the load was cancelled");
            let after = stream.next().await;
            ensure!(after.is_none(), "a load goes on after its error: {after:?}");
        }
    }

    /// C5: A read whose context ends while it runs returns a result or the reason, and nothing else.
    #[on(Both)]
    async fn c5_a_read_that_runs_out_of_time_gives_all_or_an_error(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 300).await?;
        let mut random = env.random();
        let reads = (0..200).map(|number| {
            let (store, limit) = (store.clone(), Duration::from_micros(random.below(1000)));
            async move {
                let token = CancellationToken::new();
                let ctx = Context::background().with_timeout(limit).with_cancellation(token.clone());
                let every = LoadOptions::all();
                let read = store.load_page(&ctx, &every, pages_of(300));
                match interrupted(number % 3, read, || token.cancel()).await {
                    Ok(page) => expect_eq!(page.events.len(), 300, "the events of a page that was read"),
                    ended => expect_err!(
                        ended,
                        Error::Cancelled | Error::DeadlineExceeded,
                        "a read whose context ends while it runs"
                    ),
                }
                Ok(())
            }
        });
        all_at_once(reads.collect::<Vec<_>>()).await?;
        audit(&store).await?;
    }

    /// C5: Waiting for events ends with its context, and returns the reason.
    #[on(Both)]
    async fn c5_waiting_ends_with_its_context(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let waits = (0..40).map(|number| {
            let store = store.clone();
            async move {
                let token = CancellationToken::new();
                let ctx = Context::background().with_cancellation(token.clone());
                let cancelled = interrupted(number % 4, store.wait_for_events(&ctx, 1.into()), || token.cancel()).await;
                expect_err!(cancelled, Error::Cancelled, "a wait that is cancelled");
                let ctx = Context::background().with_timeout(Duration::from_millis(5));
                let expired = store.wait_for_events(&ctx, 1.into()).await;
                expect_err!(expired, Error::DeadlineExceeded, "a wait whose deadline passes");
                Ok(())
            }
        });
        all_at_once(waits.collect::<Vec<_>>()).await?;
        append_one(&store, event("second", "a")).await?;
    }

    /// C5: Dropped reads leave nothing behind: the store remains usable, and closes.
    #[on(Both)]
    async fn c5_dropped_reads_leave_nothing_behind(env: &Env) {
        let store = env.open().await?;
        append(&store, events("event", "a", 2000)).await?;
        for number in 0..300 {
            let mut loading = store.load(&background(), Version::ZERO);
            let mut following = store.subscribe(&background(), Version::new(1990));
            ensure!(matches!(loading.next().await, Some(Ok(_))), "a load has a first event");
            ensure!(matches!(following.next().await, Some(Ok(_))), "a subscription has a first event");
            // In the middle of a page, of a wait, and of a page that is not there yet.
            polled(number % 3, store.wait_for_events(&background(), u64::MAX.into())).await;
            polled(number % 3, store.load_page(&background(), &LoadOptions::all(), PageSize::LARGEST)).await;
            polled(number % 3, store.get(&background(), "event-7")).await;
            polled(1 + number % 3, following.into_vec()).await;
        }
        append_one(&store, event("last", "a")).await?;
        let reached = store.wait_for_events(&background(), Version::new(2000)).await?;
        expect_eq!(reached, Version::new(2001), "the version waited for after many dropped waits");
        expect_eq!(audit(&store).await?.len(), 2001, "the number of events after many dropped reads");
        let store = env.reopen(store).await?;
        append_one(&store, event("again", "a")).await?;
    }

    /// C4: An append that is dropped, cancelled or expires at any await point does what its result says, and leaves
    /// nothing in the queue.
    #[on(Both)]
    async fn c4_an_append_may_be_ended_at_every_await(env: &Env) {
        let store = env.open().await?;
        let mut all = Vec::new();
        for round in 0..6 {
            // Among others it waits longer, and is staged together with them.
            let busy = (round % 2 == 1).then(|| keep_busy(&store, round));
            let batch = |number| events(&format!("attempt-{round}-{number}"), &format!("attempt-{round}-{number}"), 3);
            let append = |number, ctx: Context| {
                let store = store.clone();
                async move { store.store_batch(&ctx, batch(number).into()).await }
            };
            end_everywhere(append, async |number, ending, outcome| {
                is_of(ending, &outcome, "an append")?;
                all.push(Attempt { batch: batch(number), outcome });
                Ok(())
            })
            .await?;
            if let Some(busy) = busy {
                busy.finish().await?;
            }
        }
        append_one(&store, event("last", "last")).await?;
        let stats = store.stats(&background()).await?;
        expect_eq!((stats.queued_requests, stats.queued_bytes), (0, 0), "what is queued after appends that were ended");
        each_did_what_it_said(env, store, all).await?;
    }

    /// C5: A read that is dropped, cancelled or expires at any await point returns a result or the reason, and leaves
    /// the store unchanged.
    #[on(Both)]
    async fn c5_a_read_may_be_ended_at_every_await(env: &Env) {
        let store = env.open().await?;
        append(&store, events("event", "a", 1500)).await?;
        let every = LoadOptions::all();
        let page = |options: LoadOptions| {
            read(&store, async move |store, ctx| {
                let page = store.load_page(&ctx, &options, pages_of(1500)).await?;
                Ok(page.events.iter().map(|event| event.version.get()).collect())
            })
        };
        let reads = [
            ("load_page", page(every.clone())),
            ("load_page backward", page(every.clone().backward())),
            ("load_page of an aggregate", page(every.aggregate("a"))),
            ("get", read(&store, async |store, ctx| Ok(vec![store.get(&ctx, "event-7").await?.version.get()]))),
            ("latest_version", read(&store, async |store, ctx| Ok(vec![store.latest_version(&ctx).await?.get()]))),
            ("aggregate_revision", read(&store, async |store, ctx| Ok(vec![store.aggregate_revision(&ctx, "a").await?.get()]))),
            (
                "wait_for_events",
                read(&store, async |store, ctx| Ok(vec![store.wait_for_events(&ctx, Version::ZERO).await?.get()])),
            ),
            (
                "list_aggregates",
                read(&store, async |store, ctx| {
                    let page = store.list_aggregates(&ctx, &AggregateOptions::all(), 10).await?;
                    Ok(page.aggregates.iter().map(|aggregate| aggregate.revision.get()).collect())
                }),
            ),
            ("stats", read(&store, async |store, ctx| Ok(vec![store.stats(&ctx).await?.aggregates]))),
        ];
        for (method, read) in &reads {
            let expected = read(background()).await?;
            end_everywhere(|_, ctx| read(ctx), async |_, ending, outcome| {
                is_of(ending, &outcome, method)?;
                if let Some(Ok(got)) = outcome {
                    expect_eq!(got, expected, "what `{method}` gives although it was ended");
                }
                Ok(())
            })
            .await?;
        }
        // More in sequence than an engine has reader slots: none may leak.
        let (_, read_page) = &reads[0];
        for _ in 0..150 {
            polled(1, read_page(background())).await;
            store.get(&background(), "event-1").await?;
        }
        append_one(&store, event("last", "a")).await?;
        audit(&store).await?;
    }

    /// C5: A load or subscription that is dropped, cancelled or expires at any await point has returned the first
    /// events without a gap, and ends with the reason.
    #[on(Both)]
    async fn c5_a_stream_may_be_ended_at_every_await(env: &Env) {
        let store = env.open().await?;
        append(&store, events("event", "a", 200)).await?;
        let load = |_, ctx: Context| first_versions(store.load(&ctx, LoadOptions::all().limit(200)), 0, 200);
        end_everywhere(load, async |_, ending, outcome| {
            is_of(ending, &outcome, "a load")?;
            if let Some(Ok((events, is_over))) = outcome {
                expect_eq!((events, is_over), (200, true), "the events of a load that ends without an error");
            }
            Ok(())
        })
        .await?;
        // Somebody must append what subscriptions wait for.
        let stop = Arc::new(AtomicBool::new(false));
        let writing = Background::start([{
            let (store, stop) = (store.clone(), stop.clone());
            async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    append_one(&store, event(format!("more-{number}"), "a")).await?;
                }
                Ok(())
            }
        }]);
        for _ in 0..3 {
            let since = store.latest_version(&background()).await?;
            let follow = |_, ctx: Context| {
                let store = store.clone();
                async move {
                    // From the newest version, so that it has to wait.
                    let since = store.latest_version(&background()).await?.max(since);
                    first_versions(store.subscribe(&ctx, since), since.get(), 3).await
                }
            };
            end_everywhere(follow, async |_, ending, outcome| {
                is_of(ending, &outcome, "a subscription")?;
                if let Some(Ok((events, is_over))) = outcome {
                    expect_eq!((events, is_over), (3, false), "the events of a subscription that goes on");
                }
                Ok(())
            })
            .await?;
        }
        stop.store(true, Ordering::Relaxed);
        writing.finish().await?;
        audit(&store).await?;
    }

    /// C5: Maintenance that is dropped, cancelled or expires at any await point returns the reason, changes no event,
    /// and can be repeated at once.
    #[on(Both)]
    async fn c5_maintenance_may_be_ended_at_every_await(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 300).await?;
        let before = audit(&store).await?;
        let mut tasks = vec![
            ("run_gc", read(&store, async |store, ctx| store.run_gc(&ctx, Gc::Quick).await.map(|_| vec![]))),
            (
                "run_gc, a full one",
                read(&store, async |store, ctx| match store.run_gc(&ctx, Gc::Full).await {
                    Err(Error::Unsupported { .. }) => Ok(vec![]),
                    outcome => outcome.map(|_| vec![]),
                }),
            ),
            ("stats", read(&store, async |store, ctx| Ok(vec![store.stats(&ctx).await?.latest_version.get()]))),
            (
                "digest",
                read(&store, async |store, ctx| {
                    Ok(store.digest(&ctx, NEWEST).await?.as_bytes().iter().copied().map(u64::from).collect())
                }),
            ),
        ];
        if env.profile.verifies() {
            let verify = read(&store, async |store, ctx| {
                let report = store.verify(&ctx).await?;
                Ok(vec![report.events, report.findings.len() as u64])
            });
            tasks.push(("verify", verify));
        }
        for (what, task) in &tasks {
            let expected = task(background()).await?;
            end_everywhere(|_, ctx| task(ctx), async |_, ending, outcome| {
                is_of(ending, &outcome, what)?;
                if let Some(Ok(got)) = outcome {
                    expect_eq!(got, expected, "what `{what}` gives although it was ended");
                }
                expect_eq!(task(background()).await?, expected, "what `{what}` gives after one that was ended");
                Ok(())
            })
            .await?;
        }
        if env.profile.takes_backups() {
            let backup = |_, ctx: Context| backup_beside(env, &store, ctx);
            end_everywhere(backup, async |_, ending, outcome| {
                is_of(ending, &outcome, "a backup")?;
                if let Some(Ok((target, latest))) = outcome {
                    expect_eq!(latest, before.len() as u64, "the latest version of a backup that was not ended in time");
                    let copy = env.open_at(&target).await?;
                    expect_eq!(audit(&copy).await?, before, "the events of a backup that was not ended in time");
                }
                Ok(())
            })
            .await?;
        }
        expect_eq!(audit(&store).await?, before, "the events after maintenance that was ended");
        append_one(&store, event("last", "a")).await?;
    }

    /// C6: A deadline may be as short as you like: nothing is `DeadlineExceeded` before its deadline.
    async fn c6_a_short_deadline_is_no_reason_to_refuse(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        for (number, limit) in [900, 500, 100, 50, 20, 10, 5, 2, 1].into_iter().enumerate() {
            let ctx = Context::background().with_timeout(Duration::from_millis(limit));
            // Each further method begins with less time; what counts is when the error comes.
            for (method, outcome) in call_every_method(env, &store, &ctx, &format!("short-{number}"), Version::ZERO).await {
                let passed = ctx.deadline().is_some_and(|deadline| deadline <= Instant::now());
                if outcome.is_err() && !passed {
                    expect_eq!(format!("{outcome:?}"), "Ok(())", "`{method}` with {limit} ms, which are not over yet");
                }
            }
        }
        // After the appends with unknown outcomes: from here on the store is idle.
        append_one(&store, event("last", "a")).await?;
        audit(&store).await?;
    }
}

type Read = Box<dyn Fn(Context) -> Pin<Box<dyn Future<Output = Result<Vec<u64>, Error>>>>>;

/// A read with any context; its result in numbers.
fn read(store: &Store, read: impl AsyncFn(Store, Context) -> Result<Vec<u64>, Error> + 'static) -> Read {
    let (store, read) = (store.clone(), Arc::new(read));
    Box::new(move |ctx| {
        let (store, read) = (store.clone(), read.clone());
        Box::pin(async move { read(store, ctx).await })
    })
}

/// Fails unless the call succeeded or returned the error for this ending.
#[track_caller]
fn is_of<T: std::fmt::Debug>(ending: Ending, outcome: &Option<Result<T, Error>>, what: &str) -> Checked {
    let expected = match (ending, outcome) {
        (_, Some(Ok(_)) | None)
        | (Ending::Cancelled, Some(Err(Error::Cancelled)))
        | (Ending::Expired, Some(Err(Error::DeadlineExceeded))) => return Ok(()),
        // Only appends may return this.
        (Ending::Cancelled | Ending::Expired, Some(Err(Error::OutcomeUnknown { .. }))) if what == "an append" => {
            return Ok(());
        }
        (Ending::Dropped, _) => "Ok: nobody ended it before",
        (Ending::Cancelled, _) => "Ok or Cancelled",
        (Ending::Expired, _) => "Ok or DeadlineExceeded",
    };
    let text = format!("{outcome:?}");
    Err(Failure::difference(format_args!("the outcome of `{what}` that was {ending:?}"), expected, &text))
}

/// Reads this many events, which must be those after `since`. Returns their number and whether the stream has ended.
/// After an error, a stream must have ended.
async fn first_versions(mut stream: EventStream, since: u64, count: u64) -> Result<(u64, bool), Error> {
    for number in 1..=count {
        match stream.next().await {
            Some(Ok(event)) if event.version.get() == since + number => {}
            Some(Ok(event)) => {
                let text = format!("version {} came as number {number} after version {since}", event.version);
                return Err(Error::engine("read a stream in order", text));
            }
            Some(Err(error)) => {
                return match stream.next().await {
                    None => Err(error),
                    more => Err(Error::engine("end a stream with its error", format!("{more:?} came after it"))),
                };
            }
            None => return Ok((number - 1, true)),
        }
    }
    // A load must end; a subscription would wait.
    let is_over = polled(1, stream.next()).await.is_some_and(|end| end.is_none());
    Ok((count, is_over))
}

/// Takes a backup at a new place. Returns the place and the latest version.
async fn backup_beside(env: &Env, store: &Store, ctx: Context) -> Result<(PathBuf, u64), Error> {
    let target = env.unused_path();
    let report = store.backup(&ctx, &target).await?;
    Ok((target, report.latest_version.get()))
}

/// An append and its result; `None` if its future was dropped.
struct Attempt {
    batch: Vec<Event>,
    outcome: Option<Result<Vec<Stored>, Error>>,
}

/// Makes many concurrent appends, each to its own aggregate, and each ended in its own way.
async fn attempts<F, Fut>(store: &Store, count: usize, append: F) -> Checked<Vec<Attempt>>
where
    F: Fn(usize, Store, Batch) -> Fut,
    Fut: Future<Output = Checked<Option<Result<Vec<Stored>, Error>>>> + Send + 'static,
{
    let attempts = (0..count).map(|number| {
        let batch = events(&format!("attempt-{number}"), &format!("attempt-{number}"), 3);
        let appending = append(number, store.clone(), batch.clone().into());
        async move { Ok(Attempt { batch, outcome: appending.await? }) }
    });
    at_once(attempts.collect::<Vec<_>>()).await?.into_iter().collect()
}

/// Keeps the writer busy, so that other appends have to wait.
fn keep_busy(store: &Store, round: usize) -> Background<()> {
    Background::start((0..4).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0..4 {
                append(&store, events(&format!("busy-{round}-{writer}-{number}"), "busy", 250)).await?;
            }
            Ok(())
        }
    }))
}

/// Checks every append against its result: written, certainly not written, or all or nothing.
async fn each_did_what_it_said(env: &Env, store: Store, attempts: Vec<Attempt>) -> Checked {
    for attempt in &attempts {
        holds(&store, attempt).await?;
    }
    // Anything still in progress comes before this append, or never.
    append_one(&store, event("barrier", "barrier")).await?;
    for attempt in &attempts {
        holds(&store, attempt).await?;
    }
    let store = if env.profile.survives_closing() { env.reopen(store).await? } else { store };
    for attempt in &attempts {
        let before = holds(&store, attempt).await?;
        let again = append(&store, attempt.batch.clone()).await?;
        let outcome = if before.is_empty() { StoreOutcome::Written } else { StoreOutcome::AlreadyStored };
        for (place, stored) in again.iter().enumerate() {
            let what = format!("the event {place} of an append repeated after {:?}", attempt.outcome);
            expect_eq!(stored.revision.get(), place as u64 + 1, "the revision of {what}");
            expect_eq!(stored.outcome, outcome, "the outcome of {what}");
            if let Some(version) = before.get(place) {
                expect_eq!(stored.version, *version, "the version of {what}");
            }
        }
    }
    let all = audit(&store).await?;
    let attempted = all.iter().filter(|event| event.event.aggregate_id().starts_with("attempt-")).count();
    expect_eq!(attempted, attempts.len() * 3, "the number of events once every append was repeated");
    Ok(())
}

/// The versions of the append's events in the store. Checks whether they may be there.
async fn holds(store: &Store, attempt: &Attempt) -> Checked<Vec<Version>> {
    let (aggregate, outcome) = (attempt.batch[0].aggregate_id(), &attempt.outcome);
    let there = load(store, LoadOptions::all().aggregate(aggregate)).await?;
    let versions: Vec<_> = there.iter().map(|event| event.version).collect();
    let all = attempt.batch.len();
    match outcome {
        Some(Ok(stored)) => {
            let places: Vec<_> = stored.iter().map(|stored| stored.version).collect();
            expect_eq!(versions, places, "the versions of an append that succeeded");
        }
        Some(Err(Error::Cancelled | Error::DeadlineExceeded)) => {
            expect_eq!(ids(&there), [""; 0], "the events of an append that ended with {outcome:?}");
            for event in &attempt.batch {
                let got = store.get(&background(), event.id()).await;
                expect_err!(got, Error::EventNotFound { .. }, "getting an event whose append ended with {outcome:?}");
            }
        }
        Some(Err(Error::OutcomeUnknown { .. })) | None => {
            ensure!(
                there.is_empty() || there.len() == all,
                "{} of {all} events are there of an append that ended with {outcome:?} (W1)",
                there.len()
            );
        }
        Some(Err(other)) => {
            return Err(Failure::difference(
                format_args!("an append whose context ended"),
                "Ok, Cancelled, DeadlineExceeded or OutcomeUnknown",
                &format!("{other:?}"),
            ));
        }
    }
    Ok(versions)
}

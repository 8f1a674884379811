//! All rules together: random programs against a model, and a race whose history is checked.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use eventstore_api::{
    Batch, Durability, Error, EventStore, EventStoreExt, EventStream, Expected, Gc, LoadOptions, RecordedEvent,
    StoreOutcome,
};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner};
use tokio::runtime::Runtime;

use crate::check::checks;
use crate::env::{Env, Store};
use crate::events::{append, background, event, events, found_in};
use crate::failure::{Checked, Failure};
use crate::model::{AGGREGATES, Ended, Model, Op, Step, Verdict, programs};
use crate::random::{self, Random};
use crate::reading::{audit, digests_of, list, load, load_pages, pages_of, same_events, select, select_aggregates};
use crate::tasks::{all_at_once, polled};

checks! {
    /// All rules: a program of appends, reads, subscriptions, maintenance and reopenings gives the same results as a
    /// simple model of the contract.
    async fn random_programs_agree_with_the_model(env: &Env) {
        let cases = random::cases(&env.profile)?;
        tokio::task::block_in_place(|| search(env, cases))?;
    }

    /// All rules: writers that race with conditions and repetitions leave one history, with every acknowledged event at
    /// its position.
    #[on(Both)]
    async fn racing_writers_leave_one_history(env: &Env) {
        let store = env.open().await?;
        let mut seeds = env.random();
        let writers = (0..8).map(|writer| {
            let random = Random::new(seeds.below(u64::MAX));
            race(store.clone(), writer, random)
        });
        let acknowledged = all_at_once(writers.collect::<Vec<_>>()).await?;
        let all = audit(&store).await?;
        let mut rest: BTreeMap<&str, &RecordedEvent> = all.iter().map(|event| (event.event.id(), event)).collect();
        for (id, version, revision) in acknowledged.iter().flatten() {
            let Some(stored) = rest.remove(id.as_str()) else {
                return Err(Failure::new(format!("an acknowledged event is not there, or was twice: {id:?}")));
            };
            expect_eq!(stored.version.get(), *version, "the version of the acknowledged event {id:?}");
            expect_eq!(stored.revision.get(), *revision, "the revision of the acknowledged event {id:?}");
        }
        expect_eq!(rest.into_keys().collect::<Vec<_>>(), [""; 0], "events that nobody was told of");
    }
}

/// The most steps of a program.
const STEPS: usize = 40;

/// A program that syncs leaves its processor idle for others.
const SEARCHERS_FOR_EACH_CORE: usize = 2;

const TIME_BETWEEN_REPORTS: Duration = Duration::from_secs(10);

/// The shared state of the searchers for a failing program.
struct Search {
    cases: u64,
    next: AtomicU64,
    agreed: AtomicU64,
    is_over: AtomicBool,
    /// With the number of its program: of several failures, the first is shown, so that a seed reproduces the same one.
    found: Mutex<Option<(u64, Failure)>>,
}

/// Runs this many programs, on all cores, until one fails.
fn search(env: &Env, cases: u64) -> Checked {
    let search = Search {
        cases,
        next: AtomicU64::new(0),
        agreed: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        found: Mutex::new(None),
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let searchers = u64::try_from(cores * SEARCHERS_FOR_EACH_CORE).unwrap_or(1).min(cases);
    thread::scope(|scope| {
        let search = &search;
        let start = |number| scope.spawn(move || search.run(env, number == 0));
        let started: Vec<_> = (0..searchers).map(start).collect();
        for searcher in started {
            searcher.join().map_err(|_| Failure::elsewhere("a program panicked; its message is above"))??;
        }
        Ok::<_, Failure>(())
    })?;
    match search.found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, failure)) => Err(failure),
        None => Ok(()),
    }
}

impl Search {
    fn run(&self, env: &Env, reports: bool) -> Checked {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (strategy, began, mut reported) = (programs(STEPS), Instant::now(), Instant::now());
        while !self.is_over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.cases {
                break;
            }
            if let Err(failure) = run_one(env, &runtime, &strategy, random::nth_seed(env.seed, number)) {
                self.is_over.store(true, Ordering::Relaxed);
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.as_ref().is_none_or(|(first, _)| number < *first) {
                    *found = Some((number, failure));
                }
            }
            let agreed = self.agreed.fetch_add(1, Ordering::Relaxed) + 1;
            if reports && reported.elapsed() > TIME_BETWEEN_REPORTS {
                reported = Instant::now();
                let rate = agreed as f64 / began.elapsed().as_secs_f64();
                let _ = writeln!(std::io::stderr(), "{agreed} programs agree with the model, {rate:.0} a second");
            }
        }
        Ok(())
    }
}

/// Runs the program of this seed. If it fails, searches for the shortest program that does.
fn run_one(env: &Env, runtime: &Runtime, programs: &impl Strategy<Value = Vec<Step>>, seed: u64) -> Checked {
    let a_quarter = env.profile.limit() / 4;
    let config = Config {
        cases: 1,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        // For programs on a store in memory, the default generator takes half of the time.
        rng_algorithm: RngAlgorithm::XorShift,
        // A failing program must be shown before the check runs out of time.
        max_shrink_time: u32::try_from(a_quarter.as_millis()).unwrap_or(u32::MAX),
        max_shrink_iters: 4096,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(programs, |program| {
        let outcome = runtime.block_on(async {
            let env = env.fresh()?;
            let running = tokio::time::timeout(a_quarter, run_program(&env, &program));
            running.await.unwrap_or_else(|_| Err(Failure::elsewhere("a step of the program hangs")))
        });
        env.goes_on();
        outcome.map_err(|failure: Failure| TestCaseError::fail(failure.to_string()))
    });
    let failure = match result {
        Ok(()) => return Ok(()),
        Err(TestError::Fail(reason, program)) => {
            let mut text = format!("{}\n  program   the shortest found that fails:", reason.message());
            for (number, step) in (1..).zip(&program) {
                let _ = write!(text, "\n    {number}. {step:?}");
            }
            Failure::new(text)
        }
        Err(TestError::Abort(reason)) => Failure::new(format!("no programs: {}", reason.message())),
    };
    Err(failure.with_seed(seed))
}

/// Fails at the first step whose result differs from the model.
async fn run_program(env: &Env, program: &[Step]) -> Checked {
    let handles = vec![env.open().await?];
    let mut running =
        Running { env, place: env.directory().to_owned(), model: Model::default(), handles, subscriptions: Vec::new() };
    for (number, step) in (1..).zip(program) {
        let outcome = running.run(step).await;
        outcome.map_err(|failure| failure.note("step", format!("{number}. {step:?}")))?;
    }
    running.compare_all().await.map_err(|failure| failure.note("step", "after the last"))
}

/// A running program.
struct Running<'env> {
    env: &'env Env,
    /// The directory of the store: a program may have moved to a backup.
    place: PathBuf,
    model: Model,
    handles: Vec<Store>,
    subscriptions: Vec<Subscription>,
}

struct Subscription {
    stream: EventStream,
    options: LoadOptions,
    /// The number of events that it has returned.
    given: usize,
}

impl Running<'_> {
    async fn run(&mut self, step: &Step) -> Checked {
        match &step.op {
            Op::CloneHandle => self.handles.push(self.handle(step)),
            Op::DropHandle if self.handles.len() > 1 => drop(self.handles.remove(step.handle % self.handles.len())),
            Op::DropHandle => {}
            Op::Reopen => {
                self.close(step).await?;
                self.open().await?;
            }
            Op::DropAndOpen => {
                self.subscriptions.clear();
                self.handles.clear();
                self.open().await?;
            }
            Op::Backup | Op::MoveToBackup => self.backup(step).await?,
            Op::Subscribe(_) | Op::Read { .. } | Op::Unsubscribe(_) => self.follow(step).await?,
            Op::Append { .. } | Op::Make(_) => self.append(step).await?,
            Op::Load { .. } | Op::Get(_) | Op::Latest | Op::Revision(_) | Op::List { .. } | Op::WaitFor(_) => {
                self.read(step).await?;
            }
            Op::Gc(_) | Op::Verify | Op::Digest(_) | Op::Stats => self.maintain(step).await?,
        }
        Ok(())
    }

    fn handle(&self, step: &Step) -> Store {
        self.handles[step.handle % self.handles.len()].clone()
    }

    async fn append(&mut self, step: &Step) -> Checked {
        let (events, on, durability, idempotency, times) = match &step.op {
            Op::Append { events, on, durability, idempotency, times } => {
                (events, *on, *durability, *idempotency, *times)
            }
            Op::Make(bad) => {
                let (made, of) = bad.make();
                expect_err!(made, Error::InvalidEvent { field, .. } if field == of, "making an event");
                return Ok(());
            }
            _ => return Ok(()),
        };
        let events: Vec<_> = events.iter().map(|small| small.event()).collect();
        let expected = self.model.condition(on, events.first().map_or("", |event| event.aggregate_id()));
        let mut batch = Batch::new(events).expected(expected).idempotency(idempotency);
        batch.durability = durability;
        batch.recorded_at = times.of(batch.events.len());
        let got = self.handle(step).store_batch(&step.context(), batch.clone()).await;
        if step.ended.is_some() && batch.validate().is_err() && matches!(got, Err(Error::InvalidEvent { .. })) {
            return Ok(()); // two rules refuse it, and either error is allowed
        }
        let Some(got) = unless_ended(step, got)? else { return Ok(()) };
        match (self.model.append(&batch), got) {
            (Verdict::Accepted(stored), Ok(got)) => expect_eq!(got, stored, "the append on {expected}"),
            (Verdict::Refused(refusals), Err(got)) if refusals.iter().any(|refusal| same_error(refusal, &got)) => {}
            (verdict, got) => expect_eq!(format!("{got:?}"), format!("{verdict:?}"), "the append on {expected}"),
        }
        Ok(())
    }

    /// Learns automatic recording times, if these options depend on them.
    async fn learn_for(&mut self, options: &LoadOptions) -> Checked {
        if options.recorded_since.is_some() || options.recorded_before.is_some() {
            let all = load(&self.handles[0], LoadOptions::all()).await?;
            self.model.learn(&all);
        }
        Ok(())
    }

    async fn read(&mut self, step: &Step) -> Checked {
        let (store, ctx) = (self.handle(step), step.context());
        match &step.op {
            Op::Load { options, page } => {
                self.learn_for(options).await?;
                let loaded = match (step.ended, page) {
                    (None, Some(events)) => Ok(load_pages(&store, options.clone(), pages_of(*events)).await?),
                    (None, None) => Ok(load(&store, options.clone()).await?),
                    (_, Some(events)) => {
                        store.load_page(&ctx, options, pages_of(*events)).await.map(|page| page.events)
                    }
                    (_, None) => store.load(&ctx, options.clone()).into_vec().await,
                };
                let Some(loaded) = unless_ended(step, loaded)? else { return Ok(()) };
                self.compare(&loaded?, options, "the load")
            }
            Op::Get(id) => {
                let id = id.id();
                let Some(got) = unless_ended(step, store.get(&ctx, &id).await)? else { return Ok(()) };
                if let Ok(got) = &got {
                    self.model.learn(std::slice::from_ref(got));
                }
                match (got, self.model.get(&id)) {
                    (Ok(got), Some(there)) => same_events(&[got], std::slice::from_ref(there), "`get`"),
                    (Err(Error::EventNotFound { id: not_found }), None) => {
                        expect_eq!(not_found, id, "the id that is not found");
                        Ok(())
                    }
                    (got, there) => Err(different("`get`", there, got)),
                }
            }
            Op::Latest => {
                let Some(latest) = unless_ended(step, store.latest_version(&ctx).await)? else { return Ok(()) };
                expect_eq!(latest?.get(), self.model.latest(), "the latest version");
                Ok(())
            }
            Op::Revision(of) => {
                let of = of.aggregate();
                let got = store.aggregate_revision(&ctx, &of).await;
                let Some(revision) = unless_ended(step, got)? else { return Ok(()) };
                expect_eq!(revision?.get(), self.model.revision(&of), "the revision");
                Ok(())
            }
            Op::List { options, most } => {
                let listed = match step.ended {
                    None => Ok(list(&store, options.clone(), *most).await?),
                    Some(_) => store.list_aggregates(&ctx, options, *most).await.map(|page| page.aggregates),
                };
                let Some(listed) = unless_ended(step, listed)? else { return Ok(()) };
                expect_eq!(listed?, select_aggregates(&self.model.events, options), "the list of aggregates");
                Ok(())
            }
            Op::WaitFor(after) => {
                let latest = self.model.latest();
                let mut waiting = store.wait_for_events(&ctx, (*after).into());
                if step.ended.is_none() && latest <= *after {
                    let early = polled(1, &mut waiting).await;
                    ensure!(early.is_none(), "waiting for what is after {after} at version {latest} ends: {early:?}");
                    return Ok(());
                }
                let Some(reached) = unless_ended(step, waiting.await)? else { return Ok(()) };
                expect_eq!(reached?.get(), latest, "the version that was waited for");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn follow(&mut self, step: &Step) -> Checked {
        match &step.op {
            Op::Subscribe(options) => {
                let mut stream = self.handle(step).subscribe(&step.context(), options.clone());
                if step.ended.is_some() && options.limit != Some(0) {
                    let first = stream.next().await.unwrap_or(Err(Error::Closed));
                    unless_ended(step, first)?;
                    let more = stream.next().await;
                    ensure!(more.is_none(), "a subscription goes on after its error: {more:?}");
                    return Ok(());
                }
                self.subscriptions.push(Subscription { stream, options: options.clone(), given: 0 });
            }
            Op::Read { subscription, events } if !self.subscriptions.is_empty() => {
                let at = subscription % self.subscriptions.len();
                let options = self.subscriptions[at].options.clone();
                self.learn_for(&options).await?;
                let Subscription { stream, options, given } = &mut self.subscriptions[at];
                let expected = select(&self.model.events, options);
                for expected in expected[*given..].iter().take(*events) {
                    // The event exists, so it must arrive, or it was lost.
                    let got = match tokio::time::timeout(self.env.profile.limit() / 8, stream.next()).await {
                        Ok(Some(Ok(got))) => got,
                        Ok(end) => return Err(different("a subscription", Some(expected), end)),
                        Err(_) => return Err(different("a subscription", Some(expected), "nothing at all")),
                    };
                    self.model.learn(std::slice::from_ref(&got));
                    let expected = select(&self.model.events, options);
                    same_events(&[got], &expected[*given..=*given], "what a subscription gives")?;
                    *given += 1;
                }
                if *given == expected.len() {
                    let has_all = options.limit == Some(*given as u64);
                    match polled(1, stream.next()).await {
                        None if !has_all => {}
                        Some(None) if has_all => {}
                        end => return Err(different("a subscription that has given everything", has_all, end)),
                    }
                }
            }
            Op::Unsubscribe(at) if !self.subscriptions.is_empty() => {
                drop(self.subscriptions.remove(at % self.subscriptions.len()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn maintain(&mut self, step: &Step) -> Checked {
        let (store, ctx) = (self.handle(step), step.context());
        match &step.op {
            Op::Gc(gc) => match store.run_gc(&ctx, *gc).await {
                Err(Error::Unsupported { .. }) if *gc == Gc::Full => {}
                outcome => {
                    if let Some(outcome) = unless_ended(step, outcome)? {
                        outcome?;
                    }
                }
            },
            Op::Verify => match store.verify(&ctx).await {
                Err(Error::Unsupported { .. }) if !self.env.profile.verifies() => {}
                outcome => {
                    let Some(report) = unless_ended(step, outcome)? else { return Ok(()) };
                    let report = report?;
                    expect_eq!(report.findings, [], "the findings of the verification");
                    expect_eq!(report.events, self.model.latest(), "the events that were verified");
                    expect_eq!(report.aggregates, self.model.aggregates(), "the aggregates that were verified");
                }
            },
            Op::Digest(until) => {
                let outcome = store.digest(&ctx, (*until).into()).await;
                let Some(digest) = unless_ended(step, outcome)? else { return Ok(()) };
                let expected = digests_of(&self.model.events);
                let last = usize::try_from(self.model.latest().min(*until)).unwrap_or_default();
                expect_eq!(digest?, expected[last], "the digest of the events up to version {until}");
            }
            Op::Stats => {
                let Some(stats) = unless_ended(step, store.stats(&ctx).await)? else { return Ok(()) };
                let stats = stats?;
                expect_eq!(stats.latest_version.get(), self.model.latest(), "the latest version in the stats");
                expect_eq!(stats.aggregates, self.model.aggregates(), "the aggregates in the stats");
                expect_eq!((stats.queued_requests, stats.queued_bytes), (0, 0), "what is queued in a store at rest");
            }
            _ => {}
        }
        Ok(())
    }

    async fn backup(&mut self, step: &Step) -> Checked {
        let place = self.env.unused_path();
        let outcome = self.handle(step).backup(&step.context(), &place).await;
        if !self.env.profile.takes_backups() && matches!(outcome, Err(Error::Unsupported { .. })) {
            return Ok(());
        }
        let Some(report) = unless_ended(step, outcome)? else { return Ok(()) };
        expect_eq!(report?.latest_version.get(), self.model.latest(), "the latest version of the backup");
        let copy = self.env.open_at(&place).await?;
        let loaded = load(&copy, LoadOptions::all()).await?;
        self.compare(&loaded, &LoadOptions::all(), "the events of the backup")?;
        if matches!(step.op, Op::MoveToBackup) {
            self.close(step).await?;
            (self.place, self.handles) = (place, vec![copy]);
        } else {
            copy.close().await?;
        }
        Ok(())
    }

    /// Closes through one handle, which ends what is open through the others.
    async fn close(&mut self, step: &Step) -> Checked {
        let about_times = self.subscriptions.iter().map(|subscription| subscription.options.clone());
        for options in about_times.collect::<Vec<_>>() {
            self.learn_for(&options).await?;
        }
        self.handle(step).close().await?;
        for handle in self.handles.drain(..) {
            expect_err!(handle.latest_version(&background()).await, Error::Closed, "a read through another handle");
            handle.close().await?;
        }
        for Subscription { mut stream, options, given } in self.subscriptions.drain(..) {
            // It may return what it has already read.
            let expected = select(&self.model.events, &options);
            for at in given.. {
                match (stream.next().await, expected.get(at)) {
                    (Some(Ok(got)), Some(_)) => {
                        self.model.learn(std::slice::from_ref(&got));
                        let expected = select(&self.model.events, &options);
                        same_events(&[got], &expected[at..=at], "what a subscription to a closed store gives")?;
                    }
                    (Some(Err(Error::Closed)), _) => break,
                    (None, _) if options.limit == Some(at as u64) => break,
                    (end, expected) => return Err(different("a subscription to a closed store", expected, end)),
                }
            }
        }
        Ok(())
    }

    async fn open(&mut self) -> Checked {
        if !self.env.profile.survives_closing() {
            self.model.events.clear();
        }
        self.handles = vec![self.env.open_at(&self.place).await?];
        Ok(())
    }

    fn compare(&mut self, got: &[RecordedEvent], options: &LoadOptions, what: &str) -> Checked {
        self.model.learn(got);
        same_events(got, &select(&self.model.events, options), what)
    }

    async fn compare_all(&mut self) -> Checked {
        let all = audit(&self.handles[0]).await?;
        self.compare(&all, &LoadOptions::all(), "the events at the end of a program")
    }
}

/// The result of a call; `None` if its context had ended before and it was refused for that, as required.
#[track_caller]
fn unless_ended<T: fmt::Debug>(step: &Step, outcome: Result<T, Error>) -> Checked<Option<Result<T, Error>>> {
    match (step.ended, outcome) {
        (None, outcome) => Ok(Some(outcome)),
        (Some(Ended::Cancelled), Err(Error::Cancelled)) | (Some(Ended::Expired), Err(Error::DeadlineExceeded)) => {
            Ok(None)
        }
        (Some(ended), outcome) => Err(different("a call whose context had ended", ended, outcome)),
    }
}

#[track_caller]
fn different(what: &str, expected: impl fmt::Debug, got: impl fmt::Debug) -> Failure {
    Failure::difference(format_args!("{what}"), &format!("{expected:?}"), &format!("{got:?}"))
}

/// Errors have no equality, because an engine's source has none. The texts of refused appends are compared, except for
/// the free-form reason of an invalid one.
fn same_error(expected: &Error, got: &Error) -> bool {
    match (expected, got) {
        (Error::InvalidEvent { field: expected, .. }, Error::InvalidEvent { field: got, .. }) => expected == got,
        _ => format!("{expected:?}") == format!("{got:?}"),
    }
}

/// Appends with the revision last seen until it wins, as applications do. Returns what was acknowledged.
async fn race(store: Store, writer: usize, mut random: Random) -> Checked<Vec<(String, u64, u64)>> {
    let mut acknowledged = Vec::new();
    let aggregate = |random: &mut Random| if random.below(2) == 0 { AGGREGATES[0] } else { AGGREGATES[1] };
    for number in 0..25 {
        let aggregate = aggregate(&mut random);
        let size = usize::try_from(random.below(3)).unwrap_or_default() + 1;
        let durability = if random.below(2) == 0 { Durability::Sync } else { Durability::Buffered };
        let mut seen = store.aggregate_revision(&background(), aggregate).await?.get();
        let batch = Batch::new(events(&format!("{writer}-{number}"), aggregate, size)).durability(durability);
        let stored = loop {
            let attempt = batch.clone().expected(Expected::Revision(seen.into()));
            match store.store_batch(&background(), attempt).await {
                Ok(stored) => break stored,
                Err(Error::VersionConflict { actual, .. }) => {
                    let found = found_in(&actual);
                    ensure!(found > seen, "a conflict on revision {seen} tells of revision {found}");
                    seen = found;
                }
                Err(error) => return Err(error.into()),
            }
        };
        expect_eq!(stored[0].revision.get(), seen + 1, "the revision after a condition on revision {seen} held");
        for (place, event) in stored.iter().zip(&batch.events) {
            expect_eq!(place.outcome, StoreOutcome::Written, "the outcome of an append that won");
            acknowledged.push((event.id().to_owned(), place.version.get(), place.revision.get()));
        }
        if random.below(3) == 0 {
            let again = append(&store, batch.expected(Expected::NoEvents)).await?;
            expect_eq!(again[0].version, stored[0].version, "the version of an append that was repeated");
        }
        if random.below(4) == 0 {
            let plain =
                store.store(&background(), event(format!("{writer}-{number}-any"), aggregate), Expected::Any).await?;
            acknowledged.push((format!("{writer}-{number}-any"), plain.version.get(), plain.revision.get()));
        }
    }
    Ok(acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(seed: u64) -> String {
        let config = Config { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
        let tree = programs(STEPS).new_tree(&mut TestRunner::new(config)).expect("nothing is rejected");
        format!("{:?}", proptest::strategy::ValueTree::current(&tree))
    }

    #[test]
    fn a_seed_names_one_program_and_a_run_with_it_begins_there() {
        assert_eq!(program(7), program(7));
        assert_ne!(program(7), program(8));
        let third = random::nth_seed(7, 3);
        assert_eq!(random::nth_seed(third, 0), third);
        assert_ne!(program(random::nth_seed(7, 0)), program(random::nth_seed(7, 1)));
    }
}

//! All rules together: random programs against a model, and a race whose history is checked afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use eventstore_api::{Batch, Durability, Error, EventStore, EventStoreExt, Expected, Gc, RecordedEvent, StoreOutcome};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use crate::check::checks;
use crate::env::{Env, Store};
use crate::events::{append, background, event, events};
use crate::failure::{Checked, Failure};
use crate::model::{AGGREGATES, Model, Op, Verdict, programs};
use crate::random::{self, Random};
use crate::reading::{audit, load, load_pages, pages_of, same_events, select};
use crate::tasks::all_at_once;

checks! {
    /// All rules: a program of appends, reads and reopenings gives what a simple model of the contract gives.
    async fn random_programs_agree_with_the_model(env: &Env) {
        let config = Config {
            cases: random::cases()?,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(env.seed),
            // A program that fails has to be shown before the check runs out of time.
            max_shrink_time: u32::try_from(env.profile.limit().as_millis() / 4).unwrap_or(u32::MAX),
            max_shrink_iters: 4096,
            ..Config::default()
        };
        let run = |program: Vec<Op>| {
            let outcome =
                tokio::runtime::Handle::current().block_on(async { run_program(&env.fresh()?, &program).await });
            outcome.map_err(|failure: Failure| TestCaseError::fail(failure.to_string()))
        };
        let result = tokio::task::block_in_place(|| TestRunner::new(config).run(&programs(40), run));
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, program)) => {
                let mut text = format!("{}\n  program   the shortest found that fails:", reason.message());
                for (number, op) in (1..).zip(&program) {
                    let _ = write!(text, "\n    {number}. {op:?}");
                }
                return Err(Failure::new(text));
            }
            Err(TestError::Abort(reason)) => return Err(Failure::new(format!("no programs: {}", reason.message()))),
        }
    }

    /// All rules: writers that race with conditions and repetitions leave one history, with every acknowledged event in
    /// its place.
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
            expect_eq!(stored.revision, *revision, "the revision of the acknowledged event {id:?}");
        }
        expect_eq!(rest.into_keys().collect::<Vec<_>>(), [""; 0], "events that nobody was told of");
    }
}

/// Fails at the first operation that gives something else than the model.
async fn run_program(env: &Env, program: &[Op]) -> Checked {
    let (mut store, mut model) = (env.open().await?, Model::default());
    let mut place = env.directory().to_owned();
    for (step, op) in (1..).zip(program) {
        match op {
            Op::Reopen => {
                store.close().await?;
                drop(store);
                store = reopened(env, &place, &mut model).await?;
            }
            Op::DropAndOpen => {
                drop(store);
                store = reopened(env, &place, &mut model).await?;
            }
            Op::MoveToBackup if env.profile.takes_backups() => {
                place = env.unused_path();
                let report = store.backup(&background(), &place).await?;
                expect_eq!(
                    report.latest_version.get(),
                    model.latest(),
                    "step {step}, the latest version of the backup"
                );
                store.close().await?;
                drop(store);
                store = env.open_at(&place).await?;
            }
            Op::Verify if env.profile.verifies() => {
                let report = store.verify(&background()).await?;
                expect_eq!(report.findings, [], "step {step}, the findings of the verification");
                expect_eq!(report.events, model.latest(), "step {step}, the events that were verified");
            }
            Op::MoveToBackup | Op::Verify => {}
            other => run_op(&store, &mut model, other, step).await?,
        }
    }
    let all = audit(&store).await?;
    same_events(&timeless(all), &model.events, "the events at the end of a program")
}

async fn reopened(env: &Env, place: &Path, model: &mut Model) -> Checked<Store> {
    if !env.profile.survives_closing() {
        model.events.clear();
    }
    env.open_at(place).await
}

async fn run_op(store: &Store, model: &mut Model, op: &Op, step: usize) -> Checked {
    let ctx = background();
    match op {
        Op::Append { events, on, durability } => {
            let events: Vec<_> = events.iter().map(|small| small.event()).collect();
            let expected = model.condition(*on, events.first().map_or("", |event| event.aggregate_id()));
            let batch = Batch::new(events).expected(expected).durability(*durability);
            let got = store.store_batch(&ctx, batch.clone()).await;
            let what = format!("step {step}, the append on {expected}");
            match (model.append(&batch), got) {
                (Verdict::Accepted(stored), Ok(got)) => expect_eq!(got, stored, "{what}"),
                (Verdict::Refused(refusals), Err(got)) if refusals.iter().any(|refusal| same_error(refusal, &got)) => {}
                (verdict, got) => expect_eq!(format!("{got:?}"), format!("{verdict:?}"), "{what}"),
            }
        }
        Op::Load { options, page } => {
            let loaded = match page {
                Some(events) => load_pages(store, options.clone(), pages_of(*events)).await?,
                None => load(store, options.clone()).await?,
            };
            same_events(&timeless(loaded), &select(&model.events, options), &format!("step {step}, the load"))?;
        }
        Op::Get(small) => match (store.get(&ctx, &small.id()).await, model.get(&small.id())) {
            (Ok(got), Some(there)) => {
                same_events(&timeless(vec![got]), std::slice::from_ref(there), &format!("step {step}, get"))?
            }
            (Err(Error::EventNotFound { id }), None) => expect_eq!(id, small.id(), "step {step}, the id not found"),
            (got, there) => expect_eq!(format!("{got:?}"), format!("{there:?}"), "step {step}, get"),
        },
        Op::Latest => {
            let latest = store.latest_version(&ctx).await?;
            expect_eq!(latest.get(), model.latest(), "step {step}, the latest version");
        }
        Op::Revision(at) => {
            let revision = store.aggregate_revision(&ctx, AGGREGATES[*at]).await?;
            expect_eq!(revision, model.revision(AGGREGATES[*at]), "step {step}, the revision of {:?}", AGGREGATES[*at]);
        }
        Op::Gc(gc) => match store.run_gc(&ctx, *gc).await {
            Err(Error::Unsupported { .. }) if *gc == Gc::Full => {}
            result => drop(result?),
        },
        Op::Verify | Op::MoveToBackup | Op::Reopen | Op::DropAndOpen => {}
    }
    Ok(())
}

/// Errors have no equality: an engine's source has none. For those of refused appends the text is exact, but for the
/// free reason of an invalid one.
fn same_error(expected: &Error, got: &Error) -> bool {
    match (expected, got) {
        (Error::InvalidEvent { field: expected, .. }, Error::InvalidEvent { field: got, .. }) => expected == got,
        _ => format!("{expected:?}") == format!("{got:?}"),
    }
}

fn timeless(mut events: Vec<RecordedEvent>) -> Vec<RecordedEvent> {
    events.iter_mut().for_each(|event| event.recorded_at = SystemTime::UNIX_EPOCH);
    events
}

/// Appends with the revision last seen until it wins, as applications do; returns what was acknowledged.
async fn race(store: Store, writer: usize, mut random: Random) -> Checked<Vec<(String, u64, u64)>> {
    let mut acknowledged = Vec::new();
    let aggregate = |random: &mut Random| if random.below(2) == 0 { AGGREGATES[0] } else { AGGREGATES[1] };
    for number in 0..25 {
        let aggregate = aggregate(&mut random);
        let size = usize::try_from(random.below(3)).unwrap_or_default() + 1;
        let durability = if random.below(2) == 0 { Durability::Sync } else { Durability::Buffered };
        let mut seen = store.aggregate_revision(&background(), aggregate).await?;
        let batch = Batch::new(events(&format!("{writer}-{number}"), aggregate, size)).durability(durability);
        let stored = loop {
            let attempt = batch.clone().expected(Expected::Revision(seen));
            match store.store_batch(&background(), attempt).await {
                Ok(stored) => break stored,
                Err(Error::VersionConflict { actual, .. }) => {
                    ensure!(actual > seen, "a conflict on revision {seen} tells of revision {actual}");
                    seen = actual;
                }
                Err(error) => return Err(error.into()),
            }
        };
        expect_eq!(stored[0].revision, seen + 1, "the revision after a condition on revision {seen} held");
        for (place, event) in stored.iter().zip(&batch.events) {
            expect_eq!(place.outcome, StoreOutcome::Written, "the outcome of an append that won");
            acknowledged.push((event.id().to_owned(), place.version.get(), place.revision));
        }
        if random.below(3) == 0 {
            let again = append(&store, batch.expected(Expected::NoEvents)).await?;
            expect_eq!(again[0].version, stored[0].version, "the version of an append that was repeated");
        }
        if random.below(4) == 0 {
            let plain =
                store.store(&background(), event(format!("{writer}-{number}-any"), aggregate), Expected::Any).await?;
            acknowledged.push((format!("{writer}-{number}-any"), plain.version.get(), plain.revision));
        }
    }
    Ok(acknowledged)
}

//! Runs one model with many schedules.

use std::collections::BTreeSet;
use std::env;
use std::panic::{UnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use libtest_mimic::{Failed, Trial};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

/// How many schedules of each kind a model is run with that is too large for all.
const RUNS: &str = "EVENTSTORE_MODEL_RUNS";
const DEFAULT_RUNS: usize = 5_000;

/// A schedule that a failure has printed: only that one is run.
const SCHEDULE: &str = "EVENTSTORE_MODEL_SCHEDULE";

/// A model that is too large for all of its schedules. Half of them are drawn step by step; the others let one thread run
/// as long as it can, but for a few switches, which finds what needs a thread to be held up for long.
pub(crate) fn some_orders(name: &'static str, model: fn()) -> Trial {
    Trial::test(name, move || {
        run(name, model, || {
            let runs = runs();
            run_with(RandomScheduler::new(runs), model);
            run_with(PctScheduler::new(SWITCHES, runs), model);
        })
    })
}

const SWITCHES: usize = 3;

fn runs() -> usize {
    let given = env::var(RUNS).ok();
    given.map_or(DEFAULT_RUNS, |runs| runs.parse().unwrap_or_else(|_| panic!("{RUNS} is no number: {runs}")))
}

/// A model that is small enough for all of its schedules. It must not draw anything.
pub(crate) fn all_orders(name: &'static str, model: fn()) -> Trial {
    Trial::test(name, move || run(name, model, || run_with(DfsScheduler::new(None, false), model)))
}

/// The same for a model that has to come to each of these outcomes, sorted, and to no other.
pub(crate) fn all_outcomes(name: &'static str, model: fn() -> String, expected: &'static [&'static str]) -> Trial {
    Trial::test(name, move || {
        let outcomes: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let found = outcomes.clone();
        run_with(DfsScheduler::new(None, false), move || {
            let outcome = model();
            found.lock().expect("nobody panics in between").insert(outcome);
        });
        let outcomes = outcomes.lock().expect("nobody panics in between");
        match outcomes.iter().eq(expected) {
            true => Ok(()),
            false => Err(format!("expected {expected:?}, got {outcomes:?}").into()),
        }
    })
}

fn run(name: &str, model: fn(), search: impl FnOnce() + UnwindSafe) -> Result<(), Failed> {
    let ran = catch_unwind(|| match env::var(SCHEDULE) {
        Ok(schedule) => run_with(ReplayScheduler::new_from_encoded(&schedule), model),
        Err(_) => search(),
    });
    ran.map_err(|panic| {
        let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!(
            "{}\nTo run the failing schedule that is printed above again:\n\
             {SCHEDULE}='the schedule' cargo test -p models -- --exact {name}",
            what.unwrap_or("the model panicked"),
        )
        .into()
    })
}

fn run_with(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.max_steps = MaxSteps::FailAfter(50_000); // who spins that long waits for ever
    config.silence_warnings = true; // of atomics that are weaker than modelled: see the documentation of the crate
    let runs = Runner::new(scheduler, config).run(model);
    assert!(runs > 0, "not one schedule was run");
}

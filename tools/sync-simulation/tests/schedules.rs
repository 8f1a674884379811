//! Thousands of schedules, and each rule's own.

use sync_simulation::run;
use synckit::core::Rule;

const STEPS: usize = 120;

/// Schedules of longer runs that found a fault. In 302663, a later batch of a copied directory shares an event with a waiting one.
#[test]
fn schedules_that_once_broke_an_invariant_hold() {
    for seed in [302_663] {
        if let Err(broken) = run(seed, STEPS, false) {
            panic!("{}: cargo run -p sync-simulation -- --seed {seed}", broken.0);
        }
    }
}

#[test]
fn no_schedule_breaks() {
    for seed in 0..6_000 {
        if let Err(broken) = run(seed, STEPS, false) {
            panic!("{}: cargo run -p sync-simulation -- --seed {seed}", broken.0);
        }
    }
}

#[test]
fn longer_schedules_do_not_break_either() {
    for seed in 0..400 {
        if let Err(broken) = run(seed, 1_000, false) {
            panic!("{}: cargo run -p sync-simulation -- --steps 1000 --seed {seed}", broken.0);
        }
    }
}

#[test]
fn without_any_rule_some_schedule_breaks() {
    for &rule in Rule::ALL {
        let breaks = |seed: &u64| run(*seed, STEPS, false).is_err();
        let found = rule.without(|| (0..30_000).find(breaks));
        assert!(found.is_some(), "nothing breaks without {rule:?}: {}", rule.about());
    }
}

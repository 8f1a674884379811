//! Tests of the suite itself: a check that cannot fail proves nothing, so for each there is a store that it must
//! refuse.
//!
//! Every such store is the reference store with one fault.

mod appends;
mod fault;
mod pages;
#[path = "../reference_store/mod.rs"]
mod reference_store;
mod store;
mod table;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use conformance::{Outcome, Profile, Suite};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::fault::Fault;
use crate::table::{FINDS, FINDS_FALSE_DECLARATIONS, HANGS};

fn main() -> ExitCode {
    let mut trials: Vec<_> = FINDS
        .iter()
        .map(|&(check, fault)| {
            Trial::test(format!("{check} finds {fault:?}"), move || fails(check, Profile::persistent(), fault))
        })
        .collect();
    trials.extend(FINDS_FALSE_DECLARATIONS.iter().map(|&check| {
        Trial::test(format!("{check} finds a false declaration"), move || {
            fails(check, Profile::in_memory().without_verification(), Fault::None)
        })
    }));
    trials.push(Trial::test("the required methods are enough for what they are about", required_methods_are_enough));
    trials.push(Trial::test("every check is known to find a fault", every_check_finds_a_fault));
    trials.push(Trial::test("every rule of the contract has a check", every_rule_has_a_check));
    trials.push(Trial::test("a hanging store is reported with the rule", a_hanging_store_is_reported_with_the_rule));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn suite(profile: Profile, fault: Fault) -> Suite {
    let opened = Arc::new(AtomicU64::new(0));
    let profile = if HANGS.contains(&fault) { profile.time_limit(Duration::from_secs(3)) } else { profile };
    Suite::new(&format!("{fault:?}"), profile, move |directory| store::open(directory, fault, opened.clone()))
}

fn fails(check: &str, profile: Profile, fault: Fault) -> Result<(), Failed> {
    match suite(profile, fault).run_check(check) {
        Some(Outcome::Failed(failure)) if HANGS.contains(&fault) || !failure.to_string().contains("hangs") => Ok(()),
        other => Err(format!("the check has to fail, but ended with {other:?}").into()),
    }
}

fn every_check_finds_a_fault() -> Result<(), Failed> {
    let known: BTreeSet<_> =
        FINDS.iter().map(|(check, _)| *check).chain(FINDS_FALSE_DECLARATIONS.iter().copied()).collect();
    let suite = suite(Profile::persistent(), Fault::None);
    for check in suite.names().filter(|name| !known.contains(name)) {
        let Some(Outcome::Ignored(_)) = suite.run_check(check) else {
            return Err(format!("no store is known that {check} refuses").into());
        };
    }
    let names: BTreeSet<_> = suite.names().collect();
    let gone: Vec<_> = known.difference(&names).collect();
    if gone.is_empty() { Ok(()) } else { Err(format!("these checks are not in the suite: {gone:?}").into()) }
}

/// A store that implements no more than it has to, and says so, keeps all rules.
fn required_methods_are_enough() -> Result<(), Failed> {
    let suite = suite(Profile::persistent().without_backup().without_verification(), Fault::HasOnlyRequiredMethods);
    for (check, outcome) in suite.outcomes() {
        match outcome {
            Outcome::Passed => {}
            Outcome::Ignored(_) if !check.contains("without_backups") && !check.contains("without_verification") => {}
            other => return Err(format!("{check} ended with {other:?}").into()),
        }
    }
    Ok(())
}

fn every_rule_has_a_check() -> Result<(), Failed> {
    let suite = suite(Profile::persistent(), Fault::None);
    for (area, letter, count) in [
        ("order", 'o', 9),
        ("writing", 'w', 7),
        ("context", 'c', 6),
        ("life", 'l', 3),
        ("faults", 'f', 4),
        ("following", 's', 2),
        ("maintenance", 'm', 5),
    ] {
        for number in 1..=count {
            let begins = format!("{area}::{letter}{number}_");
            if !suite.names().any(|name| name.starts_with(&begins)) {
                return Err(format!("no check begins with {begins}").into());
            }
        }
    }
    match suite.outcomes().next() {
        Some((first, Outcome::Passed)) if Some(first) == suite.names().next() => {}
        other => return Err(format!("the first check of the reference store ended with {other:?}").into()),
    }
    match suite.run_check("order::o0_no_such_rule") {
        None => Ok(()),
        other => Err(format!("a check that does not exist ended with {other:?}").into()),
    }
}

fn a_hanging_store_is_reported_with_the_rule() -> Result<(), Failed> {
    let profile = Profile::persistent().time_limit(Duration::from_millis(100));
    let suite = Suite::new("hanging", profile, |_directory| std::future::pending());
    match suite.run_check("order::o1_versions_run_from_one_without_a_gap") {
        Some(Outcome::Failed(failure)) if failure.to_string().contains("O1: Versions are 1 to") => Ok(()),
        other => Err(format!("expected a failure that names O1, got {other:?}").into()),
    }
}

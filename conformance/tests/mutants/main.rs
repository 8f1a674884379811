//! Tests of the suite itself: a check that cannot fail proves nothing, so for each there is a store that it must
//! reject.
//!
//! Every such store is the reference store with one fault.

mod appends;
mod digests;
mod fault;
mod pages;
#[path = "../reference_store/mod.rs"]
mod reference_store;
mod replicas;
mod search;
mod store;
mod table;
mod tamper;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance::{Outcome, Profile, Suite};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::fault::Fault;
use crate::store::Common;
use crate::table::{FINDS, FINDS_FALSE_DECLARATIONS, HANGS};

/// Set for a process that runs the suite on a faulty store, as a user sees it.
const AS_MUTANT: &str = "EVENTSTORE_CONFORMANCE_AS_MUTANT";

const MODEL: &str = "model::random_programs_agree_with_the_model";

fn main() -> ExitCode {
    if std::env::var_os(AS_MUTANT).is_some() {
        let common = Arc::new(Common::default());
        // Time enough to find the shortest program, so that it is the same one each time.
        let profile = Profile::persistent().time_limit(Duration::from_secs(600));
        return conformance::run("mutant", profile, move |directory| {
            store::open(directory, Fault::AggregateByPrefix, common.clone())
        });
    }
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
    trials.push(Trial::test("a report has every check once, in order", a_report_has_every_check_once));
    trials.push(Trial::test("the seed of a program that fails shows it again", a_seed_shows_the_program_again));
    trials.push(Trial::test("how many checks notice each store", how_many_notice).with_ignored_flag(true));
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    let (checks, stores) = counts();
    if !conclusion.has_failed() && conclusion.num_filtered_out == 0 {
        let pairs = FINDS.len() + FINDS_FALSE_DECLARATIONS.len();
        say(&format!(
            "{checks} checks, {stores} wrong stores: in {pairs} pairs, every store is refused by the check for it"
        ));
    }
    conclusion.exit_code()
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The number of checks that run in one process, with any profile, and of stores that they must reject.
fn counts() -> (usize, usize) {
    let names: BTreeSet<_> =
        FINDS.iter().map(|(check, _)| *check).chain(FINDS_FALSE_DECLARATIONS.iter().copied()).collect();
    let faults: BTreeSet<_> = FINDS.iter().map(|(_, fault)| format!("{fault:?}")).collect();
    // The reference store itself is wrong if an absence is falsely declared.
    (names.len(), faults.len() + 1)
}

/// Runs every check on every store: counts how many other checks notice a fault, and verifies that no check panics,
/// whatever the store does. It takes half an hour: `cargo test -p synckit-conformance --test mutants -- --ignored
/// --nocapture`.
fn how_many_notice() -> Result<(), Failed> {
    let mut faults: Vec<_> = FINDS.iter().map(|(_, fault)| *fault).collect();
    faults.sort_by_key(|fault| format!("{fault:?}"));
    faults.dedup();
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    for fault in faults {
        let suite = suite(Profile::persistent().time_limit(Duration::from_secs(3)), fault);
        let report = suite.run_all(threads, |_| ());
        let panicked = report.checks.iter().find(|check| format!("{:?}", check.outcome).contains("the check panicked"));
        if let Some(check) = panicked {
            return Err(format!("{} meets {fault:?}: {:?}", check.check.name, check.outcome).into());
        }
        let failed = report.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)));
        let noticed: BTreeSet<_> = failed.map(|check| check.check.name.as_str()).collect();
        let known: BTreeSet<_> =
            FINDS.iter().filter(|(_, of_table)| *of_table == fault).map(|(check, _)| *check).collect();
        say(&format!(
            "{fault:?}: {} in the table, noticed by {} others",
            known.len(),
            noticed.difference(&known).count()
        ));
        if let Some(missed) = known.difference(&noticed).next() {
            return Err(format!("{missed} does not notice {fault:?} among all checks").into());
        }
    }
    Ok(())
}

fn suite(profile: Profile, fault: Fault) -> Suite {
    let common = Arc::new(Common::default());
    let profile = if HANGS.contains(&fault) { profile.time_limit(Duration::from_secs(3)) } else { profile };
    let of_readers = common.clone();
    // The programs of some seeds, one in fifty, do not meet the rarest fault.
    Suite::new(&format!("{fault:?}"), profile, move |directory| store::open(directory, fault, common.clone()))
        .with_seed(7)
        .read_only(move |directory| store::open_read_only(directory, fault, of_readers.clone()))
}

/// Fails unless the check rejects the store and its failure has the text of the rule. A check that panics, or that
/// hangs although there is something to find, has found nothing.
fn fails(check: &str, profile: Profile, fault: Fault) -> Result<(), Failed> {
    let suite = suite(profile, fault);
    let Some(about) = suite.checks().find(|about| about.name == check) else {
        return Err(format!("there is no check {check}").into());
    };
    let text = match suite.run_check(check) {
        Some(Outcome::Failed(failure)) => failure.to_string(),
        other => return Err(format!("the check has to fail, but ended with {other:?}").into()),
    };
    let rule = format!("\n  rule       {}", about.text);
    let of_the_suite = ["the check panicked", "the suite itself failed", "a task of the check did not end well"];
    let is_precise = text.contains(&rule)
        && ["\n  seed       ", "\n  operations "]
            .iter()
            .all(|part| text.contains(part) || text.contains("\n  program "))
        && !of_the_suite.iter().any(|words| text.contains(words))
        && (HANGS.contains(&fault) || !text.contains("something hangs"));
    if is_precise { Ok(()) } else { Err(format!("the failure does not speak of the rule: {text}").into()) }
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

/// A store that implements only the required methods, and declares that, keeps all rules.
fn required_methods_are_enough() -> Result<(), Failed> {
    let profile = Profile::persistent().without_backup().without_verification().without_read_only();
    let suite = suite(profile, Fault::HasOnlyRequiredMethods);
    for (check, outcome) in suite.outcomes() {
        match outcome {
            Outcome::Passed => {}
            Outcome::Ignored(_)
                if !["without_backups", "without_verification", "without_it"]
                    .iter()
                    .any(|absent| check.contains(absent)) => {}
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
        ("life", 'l', 4),
        ("faults", 'f', 5),
        ("following", 's', 3),
        ("maintenance", 'm', 6),
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

fn a_report_has_every_check_once() -> Result<(), Failed> {
    let wanted = |name: &str| name.starts_with("order::o1_") || name.starts_with("faults::");
    let suite = suite(Profile::persistent(), Fault::RefusedIsWritten).only(wanted).with_seed(7);
    let ended = Mutex::new(Vec::new());
    let report = suite.run_all(NonZeroUsize::MIN.saturating_add(3), |check| {
        ended.lock().expect("nobody panics").push(check.check.name.clone());
    });
    let mut ended = ended.into_inner().expect("nobody panicked");
    let names: Vec<_> = suite.names().collect();
    let reported: Vec<_> = report.checks.iter().map(|check| check.check.name.as_str()).collect();
    assert_eq!(reported, names);
    ended.sort();
    assert_eq!(ended, names.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    for check in &report.checks {
        let (name, took) = (&check.check.name, check.took);
        let was_run = !matches!(check.outcome, Outcome::Ignored(_));
        assert_eq!((was_run, check.check.ignored.is_none()), (!took.is_zero(), was_run), "{name} took {took:?}");
        if let Outcome::Failed(failure) = &check.outcome {
            assert!(failure.to_string().contains("EVENTSTORE_CONFORMANCE_SEED=7 "), "{failure}");
        }
    }
    let verdicts: Vec<_> = report.rules().into_iter().map(|(rule, checks)| (rule, checks.verdict())).collect();
    assert_eq!(verdicts[0], ("O1", "FAILED"), "a refused append leaves a gap");
    assert_eq!(&verdicts[2..], [("F2", "not run"), ("F3", "not run"), ("F4", "not run"), ("F5", "passed")]);
    assert!(!report.is_ok() && report.sum().failed > 0);
    Ok(())
}

fn a_hanging_store_is_reported_with_the_rule() -> Result<(), Failed> {
    let profile = Profile::persistent().time_limit(Duration::from_millis(100));
    let suite = Suite::new("hanging", profile, |_directory| std::future::pending());
    match suite.run_check("order::o1_versions_run_from_one_without_a_gap") {
        Some(Outcome::Failed(failure)) if failure.to_string().contains("O1: Versions are 1 to") => Ok(()),
        other => Err(format!("expected a failure that names O1, got {other:?}").into()),
    }
}

/// The seed and the program that a run of the model check prints, in a separate process.
fn shown_program(seed: Option<&str>, cases: &str) -> Result<(String, String), Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([MODEL, "--exact"]).env(AS_MUTANT, "").env("EVENTSTORE_CONFORMANCE_CASES", cases);
    match seed {
        Some(seed) => command.env("EVENTSTORE_CONFORMANCE_SEED", seed),
        None => command.env_remove("EVENTSTORE_CONFORMANCE_SEED"),
    };
    let output = String::from_utf8(command.output()?.stdout)?;
    let between = |from: &str, to: &str| Some(output.split_once(from)?.1.split_once(to)?.0.to_owned());
    between("EVENTSTORE_CONFORMANCE_SEED=", " ")
        .zip(between("  program ", "  rule "))
        .ok_or_else(|| format!("no seed or no program was printed: {output}").into())
}

fn a_seed_shows_the_program_again() -> Result<(), Failed> {
    let (seed, program) = shown_program(None, "unbounded")?;
    // One program is enough: the seed is that of the program, not of the run in which it was found.
    let again = shown_program(Some(&seed), "1")?;
    if again != (seed.clone(), program.clone()) {
        return Err(format!("with the seed {seed}, {program} was shown first, and then {again:?}").into());
    }
    if program.lines().filter(|line| line.contains(". ")).count() > 10 {
        return Err(format!("a program that is too long to be read: {program}").into());
    }
    Ok(())
}

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::{CheckInfo, Outcome, random};

/// The result of the suite for one store, for programs that show it. [`Suite::run_all`](crate::Suite::run_all) returns
/// it.
///
/// The text form has a line for each rule, then every failure in full, then the totals.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The store's name.
    pub store: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// The duration of the run.
    pub took: Duration,
    /// Every check, in the order of registration.
    pub checks: Vec<CheckReport>,
}

/// The result of one check.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// The description of the check.
    pub check: CheckInfo,
    /// Its result.
    pub outcome: Outcome,
    /// Its duration, over all its runtimes; zero if it was not run.
    pub took: Duration,
}

impl CheckReport {
    /// Runs a check.
    pub(crate) fn of(check: CheckInfo, run: impl FnOnce() -> Outcome) -> Self {
        let began = Instant::now();
        let outcome = run();
        let took = if check.ignored.is_some() { Duration::ZERO } else { began.elapsed() };
        CheckReport { check, outcome, took }
    }
}

/// The results of the checks of one rule, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleReport {
    /// Checks that passed.
    pub passed: usize,
    /// Checks that failed.
    pub failed: usize,
    /// Checks that were not run; their outcomes have the reasons.
    pub ignored: usize,
}

impl RuleReport {
    /// Adds one check.
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Ignored(_) => self.ignored += 1,
        }
    }

    /// The verdict in a word: `FAILED`, `passed`, or `not run` if no check of the rule was run.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.failed, self.passed) {
            (0, 0) => "not run",
            (0, _) => "passed",
            _ => "FAILED",
        }
    }
}

impl Report {
    /// Whether no check failed and at least one was run.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        let sum = self.sum();
        sum.failed == 0 && sum.passed > 0
    }

    /// The totals over all checks.
    #[must_use]
    pub fn sum(&self) -> RuleReport {
        let mut sum = RuleReport::default();
        self.checks.iter().for_each(|check| sum.add(&check.outcome));
        sum
    }

    /// Each rule by its number, such as `O1`, in the contract's order. Checks of all rules together come last, as
    /// `all`.
    #[must_use]
    pub fn rules(&self) -> Vec<(&str, RuleReport)> {
        let mut rules: BTreeMap<(usize, &str), RuleReport> = BTreeMap::new();
        for CheckReport { check, outcome, .. } in &self.checks {
            let number = check.rule.as_deref().unwrap_or("all");
            rules.entry((area_of(number), number)).or_default().add(outcome);
        }
        rules.into_iter().map(|((_, number), rule)| (number, rule)).collect()
    }
}

/// The position of a rule's letter in the contract.
fn area_of(number: &str) -> usize {
    "OWCLFSM".find(|letter| number.starts_with(letter)).unwrap_or(usize::MAX)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, rule) in self.rules() {
            writeln!(f, "{number:<4} {:<8} {}", rule.verdict(), Counts(rule))?;
        }
        for CheckReport { check, outcome, .. } in &self.checks {
            if let Outcome::Failed(failure) = outcome {
                writeln!(f, "\n{}: {failure}", check.name)?;
            }
        }
        let (store, sum, seconds) = (&self.store, self.sum(), self.took.as_secs_f64());
        write!(f, "\n{store}: {} in {seconds:.1} s; seed {}", Counts(sum), random::replay(self.seed))
    }
}

struct Counts(RuleReport);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RuleReport { passed, failed, ignored } = self.0;
        write!(f, "{passed} passed, {failed} failed, {ignored} not run")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Failure;

    fn report(outcomes: &[(&str, Outcome)]) -> Report {
        let check = |(name, outcome): &(&str, Outcome)| CheckReport {
            check: CheckInfo::new(name, "A rule."),
            outcome: outcome.clone(),
            took: Duration::ZERO,
        };
        let checks = outcomes.iter().map(check).collect();
        Report { store: "mine".to_owned(), seed: 7, took: Duration::from_millis(1500), checks }
    }

    #[test]
    fn rules_are_counted_in_the_order_of_the_contract() {
        let failed = Outcome::Failed(Failure::elsewhere("it went wrong"));
        let ignored = Outcome::Ignored("not here".to_owned());
        let report = report(&[
            ("model::everything_at_once", Outcome::Passed),
            ("maintenance::m3_finds", ignored.clone()),
            ("writing::w1_whole", Outcome::Passed),
            ("writing::w1_whole_again", failed),
            ("order::o9_pages", Outcome::Passed),
            ("order::o9_pages_of_memory", ignored),
        ]);
        let verdicts: Vec<_> = report.rules().into_iter().map(|(number, rule)| (number, rule.verdict())).collect();
        assert_eq!(verdicts, [("O9", "passed"), ("W1", "FAILED"), ("M3", "not run"), ("all", "passed")]);
        assert!(!report.is_ok());
        let text = report.to_string();
        assert!(text.contains("W1   FAILED   1 passed, 1 failed, 0 not run\n"), "{text}");
        assert!(text.contains("\nwriting::w1_whole_again: it went wrong"), "{text}");
        assert!(text.contains("\nmine: 3 passed, 1 failed, 2 not run in 1.5 s; seed 7; "), "{text}");
    }

    #[test]
    fn a_run_that_checked_nothing_is_not_ok() {
        assert!(!report(&[]).is_ok());
        assert!(!report(&[("order::o1_x", Outcome::Ignored("not here".to_owned()))]).is_ok());
        assert!(report(&[("order::o1_x", Outcome::Passed)]).is_ok());
    }
}

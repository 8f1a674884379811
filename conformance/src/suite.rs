use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use eventstore_api::{Error, EventStore};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::check::{Check, Runtimes};
use crate::env::{self, Env, Ways};
use crate::failure::{Checked, Failure};
use crate::{CheckReport, Profile, Report, parallel, random, rules};

/// Runs the suite as the `main` of a test target with `harness = false`, and reports on the terminal.
///
/// `factory` opens the store in a directory, which exists and belongs to the check. It is called again with the same
/// directory for reopening. A store in memory ignores the directory. `name` is the store's name, for headings.
///
/// See the [crate documentation](crate) for an example, the command line and the environment.
pub fn run<F, Fut>(name: &str, profile: Profile, factory: F) -> ExitCode
where
    F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Arc<dyn EventStore>, Error>> + Send + 'static,
{
    Suite::new(name, profile, factory).run()
}

/// Checks the environment variables of the suite, so that a mistyped seed does not silently cause another run. [`run`]
/// calls this itself; a program with its own [`Suite`] should call it first.
///
/// # Errors
///
/// The failure names the variable and its value.
pub fn check_environment() -> Result<(), Failure> {
    random::check_environment()
}

/// A run without checks must not look like a successful one.
fn refused(name: &str, reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "conformance of {name}: {reason}");
    ExitCode::FAILURE
}

/// The suite for one store, for tools and for tests of the suite itself. Stores use [`run`].
pub struct Suite {
    name: String,
    profile: Profile,
    ways: Ways,
    seed: u64,
    checks: Vec<Arc<Check>>,
}

/// The description of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckInfo {
    /// `area::rule_number_and_rule_in_words`, such as `order::o1_versions_run_from_one_without_a_gap`.
    pub name: String,
    /// The number of the rule in the contract, such as `O1`; `None` for checks of all rules together.
    pub rule: Option<String>,
    /// What the check requires of the store, in a sentence or two.
    pub text: String,
    /// Why the check is not run for this store; `None` if it is.
    pub ignored: Option<String>,
}

impl CheckInfo {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let (_, words) = name.split_once("::").unwrap_or_default();
        let number = words.split_once('_').map_or("", |(number, _)| number);
        let is_number = number.len() == 2 && number.ends_with(|digit: char| digit.is_ascii_digit());
        let rule = is_number.then(|| number.to_ascii_uppercase());
        CheckInfo { name: name.to_owned(), rule, text: text.to_owned(), ignored: None }
    }
}

/// The result of a check.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The store keeps the rule.
    Passed,
    /// The store breaks the rule.
    Failed(Failure),
    /// It was not checked, for this reason: the profile says that the store lacks the capability, or the rule cannot be
    /// checked through the trait in one process.
    Ignored(String),
}

impl Outcome {
    /// The result in the form of the test runner.
    pub(crate) fn into_completion(self) -> Result<Completion, Failed> {
        match self {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Ignored(reason) => Ok(Completion::ignored_with(reason)),
            Outcome::Failed(failure) => Err(Failed::from(failure)),
        }
    }
}

impl Suite {
    /// The suite for the store that `factory` opens; see [`run`].
    pub fn new<F, Fut>(name: &str, profile: Profile, factory: F) -> Self
    where
        F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn EventStore>, Error>> + Send + 'static,
    {
        Suite {
            name: name.to_owned(),
            profile,
            ways: Ways { factory: env::way(factory), read_only: None },
            seed: random::seed(),
            checks: rules::checks().into_iter().map(Arc::new).collect(),
        }
    }

    /// Adds a way to open the store read-only, like `factory`: for rule L4, whose checks show as ignored without it.
    ///
    /// ```no_run
    /// # use std::{path::PathBuf, process::ExitCode, sync::Arc};
    /// # use eventstore_api::{Error, EventStore};
    /// # async fn open(_: PathBuf) -> Result<Arc<dyn EventStore>, Error> { Err(Error::Closed) }
    /// # async fn open_read_only(_: PathBuf) -> Result<Arc<dyn EventStore>, Error> { Err(Error::Closed) }
    /// use conformance::{Profile, Suite};
    ///
    /// fn main() -> ExitCode {
    ///     Suite::new("mine", Profile::persistent(), open).read_only(open_read_only).run()
    /// }
    /// ```
    #[must_use]
    pub fn read_only<F, Fut>(mut self, factory: F) -> Self
    where
        F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn EventStore>, Error>> + Send + 'static,
    {
        self.ways.read_only = Some(env::way(factory));
        self
    }

    /// Runs every check, as the `main` of a test target with `harness = false`, and reports on the terminal: see [`run`].
    #[must_use]
    pub fn run(&self) -> ExitCode {
        if let Err(failure) = check_environment() {
            return refused(&self.name, &failure.to_string());
        }
        let trials = self.trials();
        if trials.is_empty() {
            return refused(&self.name, "no check is registered");
        }
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    /// Sets the seed of all random choices, instead of that of the environment.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The seed of all random choices.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Restricts the suite to checks with wanted names.
    #[must_use]
    pub fn only(mut self, is_wanted: impl Fn(&str) -> bool) -> Self {
        self.checks.retain(|check| is_wanted(&check.name));
        self
    }

    /// Describes all checks, including those that are ignored for this store.
    pub fn checks(&self) -> impl Iterator<Item = CheckInfo> {
        self.checks.iter().map(|check| self.about(check))
    }

    fn about(&self, check: &Check) -> CheckInfo {
        let ignored = check.needs.missing(&self.profile, &self.ways).map(str::to_owned);
        CheckInfo { ignored, ..CheckInfo::new(&check.name, &check.rule) }
    }

    /// The names of all checks, including those that are ignored for this store.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().map(|check| check.name.as_str())
    }

    /// Runs the check with this name; `None` if there is none.
    #[must_use]
    pub fn run_check(&self, name: &str) -> Option<Outcome> {
        let check = self.checks.iter().find(|check| check.name == name)?;
        Some(self.outcome(check))
    }

    /// Runs all checks in sequence.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, Outcome)> {
        self.checks.iter().map(|check| (check.name.as_str(), self.outcome(check)))
    }

    /// Runs all checks on this many `threads`, and calls `ended` after each, on the thread that ran it.
    ///
    /// A check that hangs ends with the [time limit](Profile::time_limit) and leaves a thread behind, which ends with
    /// the process.
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// # use eventstore_api::{Error, EventStore};
    /// # async fn open(_: std::path::PathBuf) -> Result<Arc<dyn EventStore>, Error> { Err(Error::Closed) }
    /// use conformance::{Outcome, Profile, Suite};
    ///
    /// let suite = Suite::new("mine", Profile::persistent(), |directory| async { open(directory).await });
    /// let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
    /// let report = suite.run_all(threads, |ended| {
    ///     if let Outcome::Failed(_) = ended.outcome {
    ///         println!("{} failed after {:?}", ended.check.name, ended.took);
    ///     }
    /// });
    /// println!("{report}");
    /// ```
    pub fn run_all(&self, threads: NonZeroUsize, ended: impl Fn(&CheckReport) + Sync) -> Report {
        let began = Instant::now();
        let checks = parallel::map(threads, &self.checks, |check| {
            let report = CheckReport::of(self.about(check), || self.outcome(check));
            ended(&report);
            report
        });
        Report { store: self.name.clone(), seed: self.seed, took: began.elapsed(), checks }
    }

    fn outcome(&self, check: &Arc<Check>) -> Outcome {
        outcome(check, &self.profile, &self.ways, self.seed)
    }

    fn trials(&self) -> Vec<Trial> {
        let trial = |check: &Arc<Check>| {
            let name = check.name.clone();
            let (check, profile) = (check.clone(), self.profile.clone());
            let (ways, seed) = (self.ways.clone(), self.seed);
            let run = move || outcome(&check, &profile, &ways, seed).into_completion();
            Trial::ignorable_test(name, run).with_kind(self.name.clone())
        };
        self.checks.iter().map(trial).collect()
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("name", &self.name).field("profile", &self.profile).finish_non_exhaustive()
    }
}

fn outcome(check: &Arc<Check>, profile: &Profile, ways: &Ways, seed: u64) -> Outcome {
    if let Some(reason) = check.needs.missing(profile, ways) {
        return Outcome::Ignored(reason.to_owned());
    }
    let runtimes: &[&str] = match check.runtimes {
        Runtimes::MultiThread => &["multi-thread"],
        Runtimes::Both => &["multi-thread", "current-thread"],
    };
    for &runtime in runtimes {
        if let Err(failure) = run_limited(check, profile, ways, seed, runtime) {
            let seed = failure.seed().unwrap_or(seed);
            let failure = failure.note("rule", check.rule.as_str());
            return Outcome::Failed(failure.note("runtime", runtime).note("seed", random::replay(seed)));
        }
    }
    Outcome::Passed
}

/// Runs a check on a separate thread, so that a store that blocks its thread forever causes a failure and not a hang.
/// The thread is then left behind; the process ends with `main`.
fn run_limited(check: &Arc<Check>, profile: &Profile, ways: &Ways, seed: u64, runtime: &'static str) -> Checked {
    let root = tempfile::Builder::new().prefix("eventstore-conformance-").tempdir()?;
    let env = Env::new(profile.clone(), ways.clone(), seed, root.path().to_path_buf())?;
    let (steps, mut seen) = (env.steps(), 0);
    let (sender, receiver) = mpsc::sync_channel(1);
    let (body, journal) = (check.body, env.journal.clone());
    let thread = thread::Builder::new().name(check.name.clone()).spawn(move || {
        let _ = sender.send(run_on(runtime, body, &env));
    })?;
    loop {
        match receiver.recv_timeout(profile.limit()) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let before = std::mem::replace(&mut seen, steps.load(Ordering::Relaxed));
                if before == seen {
                    let text = format!("nothing came for {:?}: something hangs", profile.limit());
                    return Err(Failure::elsewhere(text).note("operations", journal.to_string()));
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let panic = thread.join().err();
                let text = panic.as_deref().and_then(panic_text).unwrap_or("without a message");
                let failure = Failure::elsewhere(format!("the check panicked: {text}"));
                return Err(failure.note("operations", journal.to_string()));
            }
        }
    }
}

fn run_on(runtime: &str, body: crate::check::Body, env: &Env) -> Checked {
    let mut builder = match runtime {
        "current-thread" => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    // More threads than the machine may have cores, so that everything can interleave.
    let runtime = builder.worker_threads(4).enable_all().build()?;
    let outcome = runtime.block_on(body(env));
    // Before the rest is dropped with the runtime. A program of the model lists its own operations.
    outcome.map_err(|failure| match failure.shows_a_program() {
        true => failure,
        false => failure.note("operations", env.journal.to_string()),
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
}

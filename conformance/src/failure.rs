use std::fmt::{self, Write as _};
use std::panic::Location;

/// The result of a check.
pub(crate) type Checked<T = ()> = Result<T, Failure>;

/// Why a check failed: the rule, the expected and actual value, and how to reproduce it.
#[derive(Clone)]
pub struct Failure {
    what: String,
    at: Option<&'static Location<'static>>,
    notes: Vec<(&'static str, String)>,
    seed: Option<u64>,
}

impl Failure {
    #[track_caller]
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Failure { what: what.into(), at: Some(Location::caller()), notes: Vec::new(), seed: None }
    }

    /// A failure without a location in the suite.
    pub(crate) fn elsewhere(what: impl Into<String>) -> Self {
        Failure { what: what.into(), at: None, notes: Vec::new(), seed: None }
    }

    #[track_caller]
    pub(crate) fn difference(what: fmt::Arguments<'_>, expected: &str, got: &str) -> Self {
        Failure::new(format!("{what}\n  expected   {}\n  got        {}", shortened(expected), shortened(got)))
    }

    /// Whether it lists the operations itself, as the shortest failing program.
    pub(crate) fn shows_a_program(&self) -> bool {
        self.what.contains("\n  program ")
    }

    /// Adds a line below the message, such as the rule or the seed.
    pub(crate) fn note(mut self, label: &'static str, text: impl Into<String>) -> Self {
        self.notes.push((label, text.into()));
        self
    }

    /// Sets the seed that reproduces it directly, if it differs from that of the run.
    pub(crate) fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    pub(crate) fn seed(&self) -> Option<u64> {
        self.seed
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for (label, text) in &self.notes {
            write!(f, "\n  {label:<10} {text}")?;
        }
        match self.at {
            Some(at) => write!(f, "\n  checked    at {}:{}", at.file(), at.line()),
            None => Ok(()),
        }
    }
}

/// Same as `Display`, for people.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For a call that must succeed, `?` is enough: the location is kept.
impl From<eventstore_api::Error> for Failure {
    #[track_caller]
    fn from(error: eventstore_api::Error) -> Self {
        Failure::difference(format_args!("a call that had to succeed failed"), "Ok", &format!("Err({error:?})"))
    }
}

impl From<std::io::Error> for Failure {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        Failure::new(format!("the suite itself failed: {error}"))
    }
}

/// Events can be large; their first part is enough to see what is wrong.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 1500;
    let mut short: String = text.chars().take(LONGEST).collect();
    let rest = text.chars().count().saturating_sub(LONGEST);
    if rest > 0 {
        let _ = write!(short, " … and {rest} characters more");
    }
    short
}

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::failure::Failure::new(format!($($what)+)));
        }
    };
}

/// Fails the check unless both are equal. The actual value comes first, the expected one second.
macro_rules! expect_eq {
    ($got:expr, $expected:expr, $($what:tt)+) => {
        match (&$got, &$expected) {
            (got, expected) => {
                if *got != *expected {
                    return Err($crate::failure::Failure::difference(
                        format_args!($($what)+),
                        &format!("{expected:?}"),
                        &format!("{got:?}"),
                    ));
                }
            }
        }
    };
}

/// Fails the check unless the result is an error of this form.
macro_rules! expect_err {
    ($result:expr, $error:pat $(if $guard:expr)?, $($what:tt)+) => {
        match $result {
            Err($error) $(if $guard)? => {}
            other => {
                return Err($crate::failure::Failure::difference(
                    format_args!($($what)+),
                    concat!("Err(", stringify!($error), ")" $(, " where ", stringify!($guard))?),
                    &format!("{other:?}"),
                ));
            }
        }
    };
}

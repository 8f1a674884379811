//! Rules that a test may break, to check that the breakage is noticed. Without the feature `mutants`, all are kept.

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Followers are woken before the commit, and never read the head without being woken.
    NotifiesBeforeCommit,
    /// The state of a standby is used like that of the primary.
    TrustsStandby,
    /// An append is acknowledged although its commit was not answered.
    AcknowledgesUnknown,
    /// The head is not locked.
    LocksNothing,
}

/// At most one mutant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mutants {
    #[cfg(feature = "mutants")]
    broken: Option<Mutant>,
}

impl Mutants {
    /// With this rule broken.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub const fn with(broken: Mutant) -> Self {
        Mutants { broken: Some(broken) }
    }

    /// Whether this rule is broken.
    pub(crate) fn has(self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        {
            self.broken == Some(mutant)
        }
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }
}

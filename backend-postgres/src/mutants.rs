//! Rules that a test may break, to see that somebody notices. Without the feature `mutants` none is.

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Followers are woken before the commit, and never look without being woken.
    NotifiesBeforeCommit,
    /// What a standby shows is taken as if it were the primary.
    TrustsStandby,
    /// An append is acknowledged although its commit was not answered.
    AcknowledgesUnknown,
    /// The head is not locked.
    LocksNothing,
}

/// At most one of them.
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

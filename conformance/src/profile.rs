use std::time::Duration;

/// What a store can do, beyond what every store can: each capability is there unless it is opted out of.
///
/// A rule that needs an absent capability shows as ignored. The absence itself is checked: a store that declares that
/// nothing survives closing has to be empty after reopening.
///
/// ```
/// use std::time::Duration;
/// use conformance::Profile;
///
/// let profile = Profile::persistent().without_locking().time_limit(Duration::from_secs(120));
/// assert!(profile.survives_closing() && !profile.locks());
/// ```
#[derive(Clone, Debug)]
pub struct Profile {
    survives_closing: bool,
    locks: bool,
    time_limit: Duration,
}

impl Profile {
    /// Everything: events survive closing, and a store that is open cannot be opened again.
    #[must_use]
    pub const fn persistent() -> Self {
        Profile { survives_closing: true, locks: true, time_limit: Duration::from_secs(60) }
    }

    /// A store in memory: nothing survives closing, and every opening is a store of its own.
    #[must_use]
    pub const fn in_memory() -> Self {
        Profile { survives_closing: false, locks: false, ..Profile::persistent() }
    }

    /// Opts out of rule L2: the store may be opened twice at the same time, as a client of a server may.
    #[must_use]
    pub const fn without_locking(mut self) -> Self {
        self.locks = false;
        self
    }

    /// How long one check may take before it counts as hanging: 60 seconds unless changed.
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Whether events are there again when a closed store is opened again.
    #[must_use]
    pub const fn survives_closing(&self) -> bool {
        self.survives_closing
    }

    /// Whether a second opening of an open store is refused.
    #[must_use]
    pub const fn locks(&self) -> bool {
        self.locks
    }

    pub(crate) const fn limit(&self) -> Duration {
        self.time_limit
    }
}

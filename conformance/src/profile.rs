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
    takes_backups: bool,
    verifies: bool,
    trusts_its_files: bool,
    time_limit: Duration,
}

impl Profile {
    /// Everything: events survive closing, a store that is open cannot be opened again, and it can be backed up and
    /// verified.
    #[must_use]
    pub const fn persistent() -> Self {
        Profile {
            survives_closing: true,
            locks: true,
            takes_backups: true,
            verifies: true,
            trusts_its_files: false,
            time_limit: Duration::from_secs(60),
        }
    }

    /// A store in memory: nothing survives closing, every opening is a store of its own, and there are no backups.
    #[must_use]
    pub const fn in_memory() -> Self {
        Profile { survives_closing: false, locks: false, takes_backups: false, ..Profile::persistent() }
    }

    /// Opts out of rule L2: the store may be opened twice at the same time, as a client of a server may.
    #[must_use]
    pub const fn without_locking(mut self) -> Self {
        self.locks = false;
        self
    }

    /// Opts out of rules M1 and M2: `backup` is `Unsupported`, as it is for a store that does not implement it.
    #[must_use]
    pub const fn without_backup(mut self) -> Self {
        self.takes_backups = false;
        self
    }

    /// Opts out of rule M3: `verify` is `Unsupported`, as it is for a store that does not implement it.
    #[must_use]
    pub const fn without_verification(mut self) -> Self {
        self.verifies = false;
        self
    }

    /// For an engine that believes its own pages, so that reading a damaged one can end the process: rule F3 is then asked of
    /// opening, of `verify`, and of reading what `verify` found sound.
    #[must_use]
    pub const fn trusting_its_files(mut self) -> Self {
        self.trusts_its_files = true;
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

    /// Whether `backup` writes one.
    #[must_use]
    pub const fn takes_backups(&self) -> bool {
        self.takes_backups
    }

    /// Whether `verify` does.
    #[must_use]
    pub const fn verifies(&self) -> bool {
        self.verifies
    }

    /// Whether damaged files may be read only after `verify`.
    #[must_use]
    pub const fn trusts_its_files(&self) -> bool {
        self.trusts_its_files
    }

    pub(crate) const fn limit(&self) -> Duration {
        self.time_limit
    }
}

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
    opens_read_only: bool,
    works_before_1970: bool,
    trusts_its_files: bool,
    time_limit: Duration,
}

impl Profile {
    /// Everything: events survive closing, a store that is open cannot be opened again, and it can be backed up, verified,
    /// and opened to be read only.
    #[must_use]
    pub const fn persistent() -> Self {
        Profile {
            survives_closing: true,
            locks: true,
            takes_backups: true,
            verifies: true,
            opens_read_only: true,
            works_before_1970: true,
            trusts_its_files: false,
            time_limit: Duration::from_secs(60),
        }
    }

    /// A store in memory: nothing survives closing, every opening is a store of its own, there are no backups, and nothing to
    /// be opened to be read only.
    #[must_use]
    pub const fn in_memory() -> Self {
        Profile {
            survives_closing: false,
            locks: false,
            takes_backups: false,
            opens_read_only: false,
            ..Profile::persistent()
        }
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

    /// Opts out of rule L4: opening to read only is `Unsupported`, or there is no way to ask for it.
    #[must_use]
    pub const fn without_read_only(mut self) -> Self {
        self.opens_read_only = false;
        self
    }

    /// For an engine that does not work with a clock before 1970: rule W7 is asked of later times alone, and in its place that
    /// the store says so and harms nothing.
    #[must_use]
    pub const fn without_clocks_before_1970(mut self) -> Self {
        self.works_before_1970 = false;
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

    /// Whether it can be opened to be read only.
    #[must_use]
    pub const fn opens_read_only(&self) -> bool {
        self.opens_read_only
    }

    /// Whether a clock before 1970 keeps it from nothing.
    #[must_use]
    pub const fn works_before_1970(&self) -> bool {
        self.works_before_1970
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

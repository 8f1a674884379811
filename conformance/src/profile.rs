use std::time::Duration;

/// The optional capabilities of a store. Each is present unless it is opted out of.
///
/// A rule that needs an absent capability shows as ignored. The absence itself is checked: a store that declares that
/// nothing survives closing must be empty after reopening.
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
    /// All capabilities: events survive closing, an open store cannot be opened again, and it supports backups,
    /// verification and read-only opening.
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

    /// A store in memory: nothing survives closing, every opening creates another store, and there are no backups and
    /// no read-only opening.
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

    /// Opts out of rule L2: the store may be opened twice at the same time, like a client of a server.
    #[must_use]
    pub const fn without_locking(mut self) -> Self {
        self.locks = false;
        self
    }

    /// Opts out of rules M1 and M2: `backup` is `Unsupported`, as in the default implementation.
    #[must_use]
    pub const fn without_backup(mut self) -> Self {
        self.takes_backups = false;
        self
    }

    /// Opts out of rule M3: `verify` is `Unsupported`, as in the default implementation.
    #[must_use]
    pub const fn without_verification(mut self) -> Self {
        self.verifies = false;
        self
    }

    /// Opts out of rule L4: read-only opening is `Unsupported`, or there is no way to request it.
    #[must_use]
    pub const fn without_read_only(mut self) -> Self {
        self.opens_read_only = false;
        self
    }

    /// For an engine that does not work with a clock before 1970: rule W7 is checked only for later times. Instead, the
    /// store must report the wrong clock and do no harm.
    #[must_use]
    pub const fn without_clocks_before_1970(mut self) -> Self {
        self.works_before_1970 = false;
        self
    }

    /// For an engine that trusts its own pages, so that reading a damaged one can crash the process: rule F3 is then
    /// checked only for opening, for `verify`, and for reading what `verify` found intact.
    #[must_use]
    pub const fn trusting_its_files(mut self) -> Self {
        self.trusts_its_files = true;
        self
    }

    /// Sets the time after which a check counts as hanging; 60 seconds by default.
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Whether events survive closing and reopening.
    #[must_use]
    pub const fn survives_closing(&self) -> bool {
        self.survives_closing
    }

    /// Whether a second opening of an open store is refused.
    #[must_use]
    pub const fn locks(&self) -> bool {
        self.locks
    }

    /// Whether `backup` is supported.
    #[must_use]
    pub const fn takes_backups(&self) -> bool {
        self.takes_backups
    }

    /// Whether `verify` is supported.
    #[must_use]
    pub const fn verifies(&self) -> bool {
        self.verifies
    }

    /// Whether read-only opening is supported.
    #[must_use]
    pub const fn opens_read_only(&self) -> bool {
        self.opens_read_only
    }

    /// Whether everything works with a clock before 1970.
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

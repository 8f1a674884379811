use crate::Version;

/// A snapshot of a store's state.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The name of the backend, such as `lmdb`.
    pub backend: &'static str,
    /// The latest version, which is also the number of events.
    pub latest_version: Version,
    /// Bytes that the store's files take on disk; `None` for a store in memory.
    pub bytes_on_disk: Option<u64>,
    /// Appends that wait for the writer right now.
    pub queued_requests: u64,
    /// Bytes of events that wait for the writer right now.
    pub queued_bytes: u64,
    /// Groups of appends committed since the store was opened; each cost one sync at most.
    pub commits: u64,
    /// Events written since the store was opened. Divided by `commits` it is the mean group size.
    pub events_written: u64,
    /// Why the writer is fenced (rule F1); `None` if it is not.
    pub fenced: Option<String>,
    /// What the engine tells about itself, by name.
    pub properties: Vec<(&'static str, String)>,
}

/// What a garbage collection did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GcReport {
    /// Bytes on disk before; `None` for a store in memory.
    pub bytes_before: Option<u64>,
    /// Bytes on disk after; `None` for a store in memory.
    pub bytes_after: Option<u64>,
    /// What was done, in a few words each.
    pub actions: Vec<String>,
}

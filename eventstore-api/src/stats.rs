use std::borrow::Cow;

use crate::Version;

/// A snapshot of a store's state.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// The name of the backend, such as `lmdb`.
    pub backend: Cow<'static, str>,
    /// The id of the store, 32 lower-case hexadecimal digits; `None` if the store has none, as one of somebody else may.
    ///
    /// It is made at random when the store is created, and stays the same when the store is reopened. A backup and any other
    /// copy of the store's files have it as well. So two stores with different ids were created separately, although one may
    /// have the other's events, as `copy` makes it. Two with the same id began as one, and may have gone on differently
    /// since: compare their [digests](crate::EventStore::digest) for that.
    pub store_id: Option<String>,
    /// The latest version, which is also the number of events.
    pub latest_version: Version,
    /// How many aggregates have events.
    pub aggregates: u64,
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
    /// Events of the largest group since the store was opened.
    pub largest_group: u64,
    /// Why the writer is fenced (rule F1); `None` if it is not.
    pub fenced: Option<String>,
    /// What the engine tells about itself, by name.
    #[cfg_attr(feature = "serde", serde(rename = "engine", with = "crate::json::properties"))]
    pub properties: Vec<(Cow<'static, str>, String)>,
}

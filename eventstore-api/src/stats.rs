use std::borrow::Cow;

use crate::Version;

/// A snapshot of a store's state.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// The name of the backend, such as `lmdb`.
    pub backend: Cow<'static, str>,
    /// The id of the store, 32 lower-case hexadecimal digits; `None` if the store has none, which is possible for
    /// third-party stores.
    ///
    /// It is random, made when the store is created, and stays the same when the store is reopened. A backup, or any
    /// other copy of the store's files, has the same id. Two stores with different ids were created separately,
    /// although one may have the other's events, as after `copy`. Two stores with the same id have a common beginning
    /// but may have diverged since: compare their [digests](crate::EventStore::digest) to find out.
    pub store_id: Option<String>,
    /// The latest version, which is also the number of events.
    pub latest_version: Version,
    /// The number of aggregates that have events.
    pub aggregates: u64,
    /// The size of the store's files on disk, in bytes; `None` for a store in memory.
    pub bytes_on_disk: Option<u64>,
    /// Appends that are waiting for the writer.
    pub queued_requests: u64,
    /// Bytes of events that are waiting for the writer.
    pub queued_bytes: u64,
    /// Groups of appends committed since the store was opened. Each cost at most one sync.
    pub commits: u64,
    /// Events written since the store was opened. Divided by `commits`, it gives the mean group size.
    pub events_written: u64,
    /// Events in the largest group since the store was opened.
    pub largest_group: u64,
    /// Why the writer is fenced (rule F1); `None` if it is not.
    pub fenced: Option<String>,
    /// Properties that the engine reports, by name.
    #[cfg_attr(feature = "serde", serde(rename = "engine", with = "crate::json::properties"))]
    pub properties: Vec<(Cow<'static, str>, String)>,
}

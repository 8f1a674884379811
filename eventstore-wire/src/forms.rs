//! JSON forms of answers.

use eventstore_api::{AggregateInfo, Cursor, Digest, RecordedEvent, Revision, StoreOutcome, Stored, Version};
use serde::{Deserialize, Serialize};

use crate::Problem;

/// What a server says of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Info {
    /// The versions of the wire that the server speaks.
    pub wire: Vec<u32>,
    /// The store's name on the server; `None` if it is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The engine, such as `lmdb`.
    pub backend: String,
    /// The version of the newest event.
    pub latest_version: Version,
    /// Whether the request's token may append.
    pub writable: bool,
    /// The version of the server's program.
    pub server: String,
}

/// The newest event's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latest {
    /// Its version; 0 for an empty store.
    pub version: Version,
    /// Its cursor, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// An aggregate's newest revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevisionForm {
    /// The aggregate's id.
    pub aggregate_id: String,
    /// The revision of its newest event; 0 if it has none.
    pub revision: Revision,
}

/// A page of events.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PageForm {
    /// The latest version when the page was read.
    pub head: Version,
    /// The events.
    pub events: Vec<RecordedEvent>,
    /// The parameters of the next page, or `null` if this is the last one.
    pub next: Option<String>,
}

/// A page of aggregates.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AggregatesForm {
    /// The latest version when the page was read.
    pub head: Version,
    /// The aggregates.
    pub aggregates: Vec<AggregateInfo>,
    /// The parameters of the next page, or `null` if this is the last one.
    pub next: Option<String>,
}

/// A backup that was made, and can be taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupForm {
    /// Its name.
    pub id: String,
    /// The newest version in it.
    pub latest_version: Version,
    /// Bytes that its files take on disk.
    pub bytes_on_disk: u64,
}

/// Where appended events stand, in the batch's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Appended {
    /// One place for each event.
    pub stored: Vec<StoredForm>,
}

/// Where an appended event stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredForm {
    /// Its id: the one that the server gave to an event that had none.
    pub id: String,
    /// Its version in the store.
    pub version: Version,
    /// Its revision in its aggregate.
    pub revision: Revision,
    /// Whether this append wrote it.
    pub outcome: StoreOutcome,
}

impl Appended {
    /// The places of events with these ids.
    #[must_use]
    pub fn new(ids: Vec<String>, stored: Vec<Stored>) -> Self {
        let places = ids.into_iter().zip(stored);
        let form = |(id, Stored { version, revision, outcome, .. })| StoredForm { id, version, revision, outcome };
        Appended { stored: places.map(form).collect() }
    }
}

/// What became of a push.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pushed {
    /// The batches that are stored, in their order, with the places of their events.
    pub stored: Vec<Vec<Stored>>,
    /// What was refused, or is unknown, of the first batch that is not stored. No later one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Box<Problem>>,
    /// The latest version after that.
    pub head: Version,
}

/// A line of work that takes long: how far it is, or how it ended. It is the last line then.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LineOfWork<T> {
    /// How far it is.
    Progress {
        /// What is done.
        done: u64,
        /// Of how much.
        total: u64,
    },
    /// It is done.
    Result(T),
    /// It failed.
    Error(Box<Problem>),
}

/// The digest of the events up to a version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DigestForm {
    /// The version of the last of them.
    pub version: Version,
    /// Their digest.
    pub digest: Digest,
}

//! The records in a replica's journal.

use std::fmt;

use eventstore_api::{Event, Version};
use serde::{Deserialize, Serialize};

/// A number in a replica's journal. Each record has one; numbers only grow and are never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Number(pub u64);

impl Number {
    /// Before every record.
    pub const ZERO: Number = Number(0);

    /// The next number.
    #[must_use]
    pub const fn next(self) -> Self {
        Number(self.0 + 1)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a decision had seen: the confirmed events up to a version, and the own log up to a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seen {
    /// The confirmed events up to this version.
    pub version: u64,
    /// The own batches and the decisions on them, up to this number.
    pub number: Number,
}

impl Seen {
    pub(crate) fn cut(self, version: Version) -> Self {
        Seen { version: self.version.min(version.get()), ..self }
    }
}

/// The condition of a batch: its scope has nothing that its decision had not seen, except earlier own batches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Condition {
    /// No condition.
    Any,
    /// The aggregate has events. The replica checks it.
    Exists(String),
    /// This aggregate has nothing unseen.
    Aggregate(String),
    /// The whole store has nothing unseen.
    Store,
}

impl Condition {
    /// The scope to watch for it.
    pub(crate) fn scope(&self) -> Option<Scope> {
        match self {
            Condition::Any => None,
            Condition::Exists(aggregate_id) | Condition::Aggregate(aggregate_id) => {
                Some(Scope::Aggregate(aggregate_id.clone()))
            }
            Condition::Store => Some(Scope::Store),
        }
    }
}

/// The scope of a condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One aggregate.
    Aggregate(String),
    /// The whole store.
    Store,
}

/// A batch of own events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRecord {
    /// Its number.
    pub number: Number,
    /// Its events.
    #[serde(with = "events_form")]
    pub events: Vec<Event>,
    /// Its condition.
    pub condition: Condition,
    /// What the decision to append it had seen.
    pub seen: Seen,
}

/// A decision on a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Append it anyway, unless something comes that this decision has not seen.
    Anyway,
    /// Append these events instead.
    Replace(#[serde(with = "events_form")] Vec<Event>),
    /// Do not append it, for this reason.
    Reject(String),
    /// There is nothing left to append. Nothing is kept of it; its ids may be reused.
    Drop,
}

/// A decision on a batch, as a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeRecord {
    /// Its number.
    pub number: Number,
    /// The batch.
    pub batch: Number,
    /// What was decided.
    pub decision: Decision,
    /// What the decision had seen.
    pub seen: Seen,
}

/// Later own batches than the mark's depend on something that has disappeared, if they had not seen the mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRecord {
    /// Its number.
    pub number: Number,
    /// The batch that was rejected, dropped or replaced; `ZERO` for foreign events that the new history does not have.
    pub batch: Number,
    /// The aggregates in which something has disappeared.
    pub aggregates: Vec<String>,
}

/// A confirmed batch of own events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRecord {
    /// Its number.
    pub number: Number,
    /// The runs of its events, in order: first version and length.
    pub runs: Vec<(u64, u32)>,
    /// Its condition.
    pub condition: Condition,
    /// What the decision to append it had seen.
    pub seen: Seen,
    /// The decision to reject it, if it was rejected here and pushed by a copy of the directory. Then its events do not
    /// count as own.
    pub rejected: Option<OutcomeRecord>,
}

/// A record of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The first record of a journal.
    Begin(BeginRecord),
    /// A batch was appended.
    Batch(BatchRecord),
    /// A decision was made.
    Outcome(OutcomeRecord),
    /// Something has disappeared.
    Mark(MarkRecord),
    /// A batch that was confirmed before the journal was compacted.
    Own(OwnRecord),
    /// A rejected batch was deleted.
    Deleted(Number),
    /// How far confirmed events are visible: up to a version while pages are staged after it, or up to their end.
    Shown(Option<u64>),
}

impl Record {
    /// The size of its events in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let of = |events: &[Event]| events.iter().map(Event::len_bytes).sum();
        match self {
            Record::Batch(batch) => of(&batch.events),
            Record::Outcome(OutcomeRecord { decision: Decision::Replace(events), .. }) => of(events),
            _ => 0,
        }
    }
}

/// The first record of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginRecord {
    /// The version of the format.
    pub format: u32,
    /// The number of the replica's history to which it belongs, counted from 1.
    pub generation: u32,
    /// The highest number so far.
    pub last: Number,
}

impl BeginRecord {
    /// The version of the format that this crate writes.
    pub const FORMAT: u32 = 1;
}

/// Events as the store keeps them: their bytes and the layout of their parts.
mod events_form {
    use bytes::Bytes;
    use eventstore_api::{Event, Layout};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Form<'bytes> {
        id_len: u16,
        type_len: u16,
        aggregate_id_len: u16,
        metadata_len: u32,
        bytes: &'bytes [u8],
    }

    pub(super) fn serialize<S: Serializer>(events: &[Event], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(events.iter().map(|event| {
            let layout = event.layout();
            Form {
                id_len: layout.id_len,
                type_len: layout.type_len,
                aggregate_id_len: layout.aggregate_id_len,
                metadata_len: layout.metadata_len,
                bytes: event.bytes(),
            }
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Event>, D::Error> {
        let forms: Vec<Form<'de>> = Vec::deserialize(deserializer)?;
        let event = |form: Form<'_>| {
            let layout = Layout {
                id_len: form.id_len,
                type_len: form.type_len,
                aggregate_id_len: form.aggregate_id_len,
                metadata_len: form.metadata_len,
            };
            Event::from_parts(Bytes::copy_from_slice(form.bytes), layout).map_err(D::Error::custom)
        };
        forms.into_iter().map(event).collect()
    }
}

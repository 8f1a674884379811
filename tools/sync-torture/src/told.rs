//! What a process is told to do, and what it tells its parent: a line of JSON each.

use std::io::Write as _;
use std::path::PathBuf;

use eventstore::Event;
use serde::{Deserialize, Serialize};

use crate::disk::DiskFault;

/// The variable in which a process finds what it is to do.
pub(crate) const ROLE: &str = "SYNC_TORTURE_ROLE";

/// What a process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Hub(HubPlan),
    Replica(ReplicaPlan),
}

/// What a hub does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HubPlan {
    pub(crate) directory: PathBuf,
    pub(crate) seed: u64,
    /// Before the labels of the batches that it appends itself; without it appends none.
    pub(crate) label: Option<String>,
    pub(crate) round: u64,
    pub(crate) fault: Option<DiskFault>,
    pub(crate) cut: Option<Cut>,
}

/// The power of a hub is cut some time behind an unsynced append, in which replicas may pull, and nothing else is appended by it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cut {
    /// Behind which of the unsynced appends, counted from 1.
    pub(crate) nth: u64,
    pub(crate) micros: u64,
    /// What survives.
    pub(crate) seed: u64,
}

/// What a replica does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReplicaPlan {
    /// The replica is in a directory in this one.
    pub(crate) directory: PathBuf,
    pub(crate) hub: String,
    pub(crate) seed: u64,
    /// Before the labels of its batches.
    pub(crate) label: String,
    pub(crate) round: u64,
    /// How many processes this replica had in this round before.
    pub(crate) turn: u64,
    /// How many batches it tries; `None` for one that only does as it is bidden.
    pub(crate) batches: Option<u32>,
    /// What an earlier process tried, and got no answer about.
    pub(crate) again: Vec<Trying>,
    /// Whether another history of the hub is accepted.
    pub(crate) accepts: bool,
    pub(crate) fault: Option<DiskFault>,
    /// A rule of syncing that is switched off, by its name.
    pub(crate) off: Option<String>,
}

/// An event, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) id: String,
    pub(crate) aggregate: String,
    pub(crate) data: String,
}

impl Written {
    pub(crate) fn of(event: &Event) -> Self {
        Written {
            id: event.id().to_owned(),
            aggregate: event.aggregate_id().to_owned(),
            data: String::from_utf8_lossy(event.data()).into_owned(),
        }
    }

    pub(crate) fn event(&self) -> Event {
        let built = Event::builder("Happened", &*self.aggregate).id(&*self.id).data(self.data.clone()).build();
        built.expect("it was made by rules that events have")
    }
}

/// What a batch stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stands {
    /// Nothing.
    Any,
    /// The aggregate has these events and no others, own earlier ones aside.
    Aggregate(String, Vec<String>),
    /// The same of the whole store.
    Store(Vec<String>),
    /// The aggregate has some event.
    Exists(String),
}

/// A batch that is about to be appended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trying {
    pub(crate) label: String,
    pub(crate) events: Vec<Written>,
    pub(crate) stands: Stands,
}

/// What was decided on a batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Anyway,
    Instead(Vec<Written>),
    Reject,
    Drop,
}

/// What a process tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// The hub answers at this address.
    Serves(String),
    /// The replica is open, and has accepted so many histories.
    Opened { histories: u32 },
    /// Told before an append.
    Trying(Trying),
    /// Told behind it: it returned. `number` is that of a new batch of a replica.
    Acknowledged { label: String, number: Option<u64>, is_durable: bool },
    /// It was refused: nothing was written.
    Refused { label: String, code: String },
    /// Nobody knows.
    Unknown { label: String, code: String },
    /// Told before a resolver answers. `ids` are those that the batch has now, and `view` those that it sees in the scope.
    Decided { ids: Vec<String>, verdict: Verdict, view: Vec<String> },
    /// Told before a rejected batch is deleted.
    Deleting { ids: Vec<String> },
    /// The confirmed events that it shows.
    Place { version: u64, digest: String },
    /// A call of the disk failed.
    Fired,
    /// The process cannot go on with these files before it opens them again.
    Failed { code: String },
    /// All batches were tried.
    Done,
    /// The answer to `sync`. `error`: what went wrong, and the rest is as it was before.
    Synced { version: u64, digest: String, pending: usize, histories: u32, error: Option<String> },
    /// The answer to `dump`.
    Dump(Dump),
    /// Something that may never happen.
    Wrong(String),
}

/// All that a replica shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Dump {
    /// The version and digest of the confirmed events that were loaded.
    pub(crate) version: u64,
    pub(crate) digest: String,
    /// A hash of the times at which they were recorded.
    pub(crate) times: u64,
    /// The ids of pending events.
    pub(crate) pending: Vec<String>,
    /// The ids of each rejected batch, and the reason.
    pub(crate) rejected: Vec<(Vec<String>, String)>,
    /// What verifying the confirmed events has found.
    pub(crate) findings: Vec<String>,
}

/// Tells the parent something. It is with the parent when this returns, whatever becomes of this process.
pub(crate) fn tell(told: &Told) {
    let mut line = serde_json::to_string(told).expect("it is made of texts and numbers");
    line.push('\n');
    let mut out = std::io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        // The parent is gone, and nobody else would end this process.
        std::process::exit(4);
    }
}

/// The batch and the place in it that an id names, such as `a3-7.0of2`, and how many events the batch has.
pub(crate) fn parsed(id: &str) -> Option<(&str, usize, usize)> {
    let (label, place) = id.rsplit_once('.')?;
    let (at, of) = place.split_once("of")?;
    Some((label, at.parse().ok()?, of.parse().ok()?))
}

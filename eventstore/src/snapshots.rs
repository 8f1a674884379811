//! Snapshots of aggregates, stored beside the store.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use eventstore_api::{Bytes, Context, Digest, Error, EventStore, Result, Revision, Version, async_trait};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::aggregate::{Aggregate, Loaded};

/// A place to keep snapshots. Snapshots may be lost at any time: they are made again from the events.
#[async_trait]
pub trait Snapshots: Debug + Send + Sync {
    /// The newest snapshot with this name, if there is one.
    async fn load(&self, name: &str) -> Result<Option<Bytes>>;

    /// Saves a snapshot under this name, replacing an older one.
    async fn save(&self, name: &str, snapshot: Bytes) -> Result<()>;
}

/// Snapshots in memory, which are lost when the program ends.
///
/// # Clone
///
/// Clones share the snapshots.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshots(Arc<Mutex<HashMap<String, Bytes>>>);

#[async_trait]
impl Snapshots for MemorySnapshots {
    async fn load(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn save(&self, name: &str, snapshot: Bytes) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), snapshot);
        Ok(())
    }
}

/// Snapshots in a directory: one file for each, replaced as a whole. Nothing is synced, since a lost snapshot is made
/// again.
#[derive(Clone, Debug)]
pub struct FileSnapshots {
    directory: Arc<PathBuf>,
}

impl FileSnapshots {
    /// Uses this directory, which is created if it is missing. It should not be inside the directory of a store.
    ///
    /// # Errors
    ///
    /// `Open` if the directory cannot be created.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        std::fs::create_dir_all(directory).map_err(|error| Error::Open {
            path: directory.display().to_string(),
            reason: "the directory of the snapshots cannot be created".to_owned(),
            source: Some(error.into()),
        })?;
        Ok(FileSnapshots { directory: Arc::new(directory.to_owned()) })
    }

    /// The path of the file for a name of any characters.
    fn path(&self, name: &str) -> PathBuf {
        let digest: [u8; 32] = Sha256::digest(name).into();
        self.directory.join(Digest::from_bytes(digest).to_string())
    }
}

#[async_trait]
impl Snapshots for FileSnapshots {
    async fn load(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        blocking("read a snapshot", move || match std::fs::read(path) {
            Ok(snapshot) => Ok(Some(snapshot.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn save(&self, name: &str, snapshot: Bytes) -> Result<()> {
        let (path, directory) = (self.path(name), self.directory.clone());
        blocking("write a snapshot", move || {
            let mut file = tempfile::NamedTempFile::new_in(&*directory)?;
            std::io::Write::write_all(&mut file, &snapshot)?;
            file.persist(path).map(drop).map_err(|error| error.error)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Error::engine(what, error))?;
    done.map_err(|error| Error::engine(what, error))
}

/// When snapshots of an aggregate are taken, and where they are kept. See [`Decide::snapshots`](crate::Decide::snapshots).
///
/// ```
/// # use eventstore::Aggregate;
/// use eventstore::{MemorySnapshots, SnapshotPolicy};
/// # #[derive(Default, serde::Serialize, serde::Deserialize)] struct Counter(u64);
/// # #[derive(serde::Serialize, serde::Deserialize)] enum Counted { Once }
/// # impl Aggregate for Counter {
/// #     type Event = Counted;
/// #     type Error = std::convert::Infallible;
/// #     fn apply(&mut self, _: Counted) { self.0 += 1 }
/// # }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let store = eventstore::open("memory:").await?;
/// let policy = SnapshotPolicy::new(MemorySnapshots::default(), 1).every(100);
/// let done = store.decide::<Counter>("counter", |_| Ok(vec![Counted::Once])).snapshots(&policy).await?;
/// # assert_eq!(done.state.0, 1);
/// # Ok::<(), eventstore::DecideError<std::convert::Infallible>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct SnapshotPolicy {
    snapshots: Arc<dyn Snapshots>,
    schema: u32,
    every: u64,
    prefix: String,
}

impl SnapshotPolicy {
    /// Takes a snapshot every 100 events and keeps it in `snapshots`. Snapshots with another schema number are ignored:
    /// change the number whenever the type of the aggregate or the logic of `apply` changes.
    pub fn new(snapshots: impl Snapshots + 'static, schema: u32) -> Self {
        SnapshotPolicy { snapshots: Arc::new(snapshots), schema, every: 100, prefix: String::new() }
    }

    /// Takes a snapshot after this many events since the last one, at least 1.
    #[must_use]
    pub fn every(mut self, events: u64) -> Self {
        self.every = events.max(1);
        self
    }

    /// Sets a prefix for the names of the snapshots, so that several kinds of aggregates with the same ids can share
    /// one place.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    pub(crate) fn is_due(&self, newest: Revision, reached: Revision) -> bool {
        reached.get().saturating_sub(newest.get()) >= self.every
    }

    fn name(&self, aggregate_id: &str) -> String {
        format!("{}{aggregate_id}", self.prefix)
    }

    /// The newest snapshot, if there is one with this schema that belongs to the store's history.
    pub(crate) async fn load<A: Aggregate>(
        &self,
        store: &dyn EventStore,
        ctx: &Context,
        aggregate_id: &str,
        codec: &Codec<A>,
    ) -> Result<Option<Loaded<A>>> {
        let snapshot = match ctx.run(self.snapshots.load(&self.name(aggregate_id))).await? {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(aggregate_id, %error, "a snapshot could not be read; all events are read instead");
                return Ok(None);
            }
        };
        let Ok(written) = serde_json::from_slice::<Written<'_>>(&snapshot) else { return Ok(None) };
        if written.schema != self.schema || written.aggregate != aggregate_id || written.check != written.checksum() {
            return Ok(None);
        }
        let Ok(digest_there) = written.digest.parse::<Digest>() else { return Ok(None) };
        let Some(state) = (codec.decode)(written.state.get()) else { return Ok(None) };
        // The same digest means the same history up to there. After a restored backup, the same event may follow other
        // ones.
        let (version, revision) = (Version::new(written.version), Revision::new(written.revision));
        match store.digest(ctx, version).await {
            Ok(digest) if digest == digest_there => Ok(Some(Loaded { state, revision, version })),
            Ok(_) => Ok(None),
            Err(error @ (Error::Cancelled | Error::DeadlineExceeded | Error::Closed)) => Err(error),
            Err(error) => {
                tracing::warn!(aggregate_id, %error, "a snapshot could not be checked against the store; all events are read instead");
                Ok(None)
            }
        }
    }

    /// Encodes a snapshot of an aggregate. `digest` is the store's digest at the version of its newest event.
    pub(crate) fn encode<A: Aggregate>(
        &self,
        aggregate_id: &str,
        loaded: &Loaded<A>,
        digest: Digest,
        codec: &Codec<A>,
    ) -> Result<Bytes> {
        let not_written = |error| Error::engine("write a snapshot", error);
        let state = (codec.encode)(&loaded.state).map_err(not_written)?;
        let mut written = Written {
            schema: self.schema,
            aggregate: aggregate_id.into(),
            version: loaded.version.get(),
            revision: loaded.revision.get(),
            digest: digest.to_string(),
            check: String::new(),
            state: &state,
        };
        written.check = written.checksum();
        serde_json::to_vec(&written).map(Bytes::from).map_err(not_written)
    }

    /// Saves a snapshot. A failure is only logged: the aggregate just takes longer to load.
    pub(crate) async fn keep(&self, ctx: &Context, aggregate_id: &str, snapshot: Result<Bytes>) {
        let kept = match snapshot {
            Ok(snapshot) => ctx.run(self.snapshots.save(&self.name(aggregate_id), snapshot)).await.flatten(),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(aggregate_id, %error, "a snapshot could not be taken");
        }
    }
}

/// The stored form of a snapshot.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    schema: u32,
    #[serde(borrow)]
    aggregate: std::borrow::Cow<'a, str>,
    version: u64,
    revision: u64,
    /// The digest of the store at that version.
    digest: String,
    /// A checksum of all other fields. Nothing is synced, and a damaged file may still be valid JSON.
    check: String,
    #[serde(borrow)]
    state: &'a RawValue,
}

impl Written<'_> {
    fn checksum(&self) -> String {
        let Written { schema, aggregate, version, revision, digest, check: _, state } = self;
        let mut hash = Sha256::new();
        for part in [&**aggregate, digest, state.get()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        for number in [u64::from(*schema), *version, *revision] {
            hash.update(number.to_be_bytes());
        }
        Digest::from_bytes(hash.finalize().into()).to_string()
    }
}

/// Encodes and decodes the state of an aggregate.
pub(crate) struct Codec<A> {
    encode: fn(&A) -> serde_json::Result<Box<RawValue>>,
    decode: fn(&str) -> Option<A>,
}

impl<A: Serialize + DeserializeOwned> Codec<A> {
    pub(crate) fn new() -> Self {
        Codec { encode: |state| serde_json::value::to_raw_value(state), decode: |text| serde_json::from_str(text).ok() }
    }
}

impl<A> fmt::Debug for Codec<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

//! The calls that replicas use: `sync`, `pull` and `push`.

use crate::{
    Batch, Context, Cursor, Digest, Durability, Error, EventStore, Idempotency, LoadOptions, PageSize, RecordedEvent,
    Result, Stored, Version,
};

/// A position in a history: a version, and the whole [`Digest`] at that version.
///
/// Two stores with the same place have the same events up to it. A [`Cursor`] has only a part of the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The version of the last event before the place; [`Version::ZERO`] at the start.
    pub version: Version,
    /// The digest of the events up to the place.
    pub digest: Digest,
}

impl Place {
    /// Before the first event: the same place in every history.
    pub const START: Place = Place { version: Version::ZERO, digest: Digest::EMPTY };

    /// The place after the event with this version, where the store has this digest.
    #[must_use]
    pub const fn new(version: Version, digest: Digest) -> Self {
        Place { version, digest }
    }

    /// The cursor of this place, with a part of the digest.
    #[must_use]
    pub fn cursor(self) -> Cursor {
        Cursor::new(self.version, self.digest)
    }
}

/// The result of a pull.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pulled {
    /// The events after the given place, in ascending order without gaps. Empty if there are none.
    pub events: Vec<RecordedEvent>,
    /// The version up to which the store was synced when it answered. If it is that of the last event, there are no
    /// more events.
    pub head: Version,
}

impl Pulled {
    /// For stores: these events, and the version up to which the store is synced.
    #[must_use]
    pub fn new(events: Vec<RecordedEvent>, head: Version) -> Self {
        Pulled { events, head }
    }
}

/// The result of a push.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pushed {
    /// The positions of the events of each stored batch, in the order of the push.
    pub stored: Vec<Vec<Stored>>,
    /// Why the first batch that is not stored was refused. Later batches were not tried.
    pub refused: Option<Error>,
    /// The latest version after the push.
    pub head: Version,
}

impl Pushed {
    /// For stores: the result for these batches, and the latest version afterwards.
    #[must_use]
    pub fn new(stored: Vec<Vec<Stored>>, refused: Option<Error>, head: Version) -> Self {
        Pushed { stored, refused, head }
    }
}

/// Syncs by appending the newest event again, which syncs it and all before it, whatever their durability (rule W4).
pub async fn sync_by_appending<S: EventStore + ?Sized>(store: &S, ctx: &Context) -> Result<Version> {
    loop {
        let newest = LoadOptions::all().backward().limit(1);
        let page = store.load_page(ctx, &newest, PageSize::new(1, 1)).await?;
        let Some(last) = page.events.into_iter().next() else { return Ok(Version::ZERO) };
        let again = Batch::from(last.event).durability(Durability::Sync).idempotency(Idempotency::Id);
        let stored = match store.store_batch(ctx, again).await {
            Ok(stored) => stored,
            // A store that is open for reading only is all on disk: nobody writes to it.
            Err(Error::Unsupported { .. }) => return Ok(last.version),
            Err(error) => return Err(error),
        };
        if let Some(place) = stored.first() {
            return Ok(place.version);
        }
    }
}

/// Checks that `place` belongs to this store, which ends at `latest`. A store keeps its events, so the answer holds for
/// the rest of the call.
pub async fn check<S: EventStore + ?Sized>(store: &S, ctx: &Context, place: Place, latest: Version) -> Result<()> {
    let version = place.version.min(latest);
    let found = Place::new(version, store.digest(ctx, version).await?);
    if found == place {
        return Ok(());
    }
    Err(Error::HistoryDiverged { cursor: place.cursor(), found: found.cursor() })
}

/// The default `pull`.
pub async fn pull<S: EventStore + ?Sized>(store: &S, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
    let head = store.sync(ctx).await?;
    check(store, ctx, since, head).await?;
    let page = store.load_page(ctx, &LoadOptions::since(since.version).before(head.next()), size).await?;
    Ok(Pulled::new(page.events, head))
}

/// The default `push`.
pub async fn push<S: EventStore + ?Sized>(store: &S, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
    check(store, ctx, at, store.latest_version(ctx).await?).await?;
    let (mut stored, mut refused, mut owes_sync) = (Vec::new(), None, false);
    for mut batch in batches {
        // One sync after all batches replaces one for each.
        let is_sync = batch.durability != Some(Durability::Buffered);
        batch.durability = Some(Durability::Buffered);
        match store.store_batch(ctx, batch).await {
            Ok(places) => {
                stored.push(places);
                owes_sync |= is_sync;
            }
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    if owes_sync {
        let unknown = |error: Error| Error::OutcomeUnknown {
            reason: "the batches of a push were stored, but may not be synced".to_owned(),
            source: Some(error.into()),
        };
        store.sync(ctx).await.map_err(unknown)?;
    }
    // The appended batches are stored, even if the context has ended by now.
    let head = store.latest_version(&Context::background()).await?;
    Ok(Pushed::new(stored, refused, head))
}

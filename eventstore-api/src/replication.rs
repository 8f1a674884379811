//! What replicas use of a store: `sync`, `pull` and `push`.

use crate::{
    Batch, Context, Cursor, Digest, Durability, Error, EventStore, Idempotency, LoadOptions, PageSize, RecordedEvent,
    Result, Stored, Version,
};

/// A place in a history: a version, and the whole [`Digest`] of the events up to it.
///
/// Two stores with the same place have the same events up to there. A [`Cursor`] has only a part of the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The version of the last event before it; [`Version::ZERO`] at the start.
    pub version: Version,
    /// The digest of the events up to there.
    pub digest: Digest,
}

impl Place {
    /// Before the first event, which is the same place in every history.
    pub const START: Place = Place { version: Version::ZERO, digest: Digest::EMPTY };

    /// The place behind the event with this version, where the store has this digest.
    #[must_use]
    pub const fn new(version: Version, digest: Digest) -> Self {
        Place { version, digest }
    }

    /// The same place with a part of the digest.
    #[must_use]
    pub fn cursor(self) -> Cursor {
        Cursor::new(self.version, self.digest)
    }
}

/// What a pull gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pulled {
    /// The events behind the place that was named, ascending and without a gap. Empty if there are none.
    pub events: Vec<RecordedEvent>,
    /// The version up to which the store was synced when it answered. If the last event has it, these are all there are.
    pub head: Version,
}

impl Pulled {
    /// For stores: these events, and the version up to which the store is synced.
    #[must_use]
    pub fn new(events: Vec<RecordedEvent>, head: Version) -> Self {
        Pulled { events, head }
    }
}

/// What became of a push.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pushed {
    /// The places of the events of each batch that is stored, in the order of the push.
    pub stored: Vec<Vec<Stored>>,
    /// Why the first batch that is not stored is not. No later one was tried.
    pub refused: Option<Error>,
    /// The latest version after that.
    pub head: Version,
}

impl Pushed {
    /// For stores: what became of the batches, and the latest version then.
    #[must_use]
    pub fn new(stored: Vec<Vec<Stored>>, refused: Option<Error>, head: Version) -> Self {
        Pushed { stored, refused, head }
    }
}

/// Syncs by appending the newest event again: that syncs it, and all before it, whatever it was appended with (rule W4).
pub async fn sync_by_appending<S: EventStore + ?Sized>(store: &S, ctx: &Context) -> Result<Version> {
    loop {
        let newest = LoadOptions::all().backward().limit(1);
        let page = store.load_page(ctx, &newest, PageSize::new(1, 1)).await?;
        let Some(last) = page.events.into_iter().next() else { return Ok(Version::ZERO) };
        let again = Batch::from(last.event).durability(Durability::Sync).idempotency(Idempotency::Id);
        let stored = match store.store_batch(ctx, again).await {
            Ok(stored) => stored,
            // Of a store that is only read all is on the disk: nobody else writes to it.
            Err(Error::Unsupported { .. }) => return Ok(last.version),
            Err(error) => return Err(error),
        };
        if let Some(place) = stored.first() {
            return Ok(place.version);
        }
    }
}

/// Refuses a place that is not one of this store, which ends at `latest`. What a store has, it keeps: so what holds now holds
/// for the rest of the call.
pub async fn check<S: EventStore + ?Sized>(store: &S, ctx: &Context, place: Place, latest: Version) -> Result<()> {
    let version = place.version.min(latest);
    let found = Place::new(version, store.digest(ctx, version).await?);
    if found == place {
        return Ok(());
    }
    Err(Error::HistoryDiverged { cursor: place.cursor(), found: found.cursor() })
}

/// What a store does that does not implement `pull`.
pub async fn pull<S: EventStore + ?Sized>(store: &S, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
    let head = store.sync(ctx).await?;
    check(store, ctx, since, head).await?;
    let page = store.load_page(ctx, &LoadOptions::since(since.version).before(head.next()), size).await?;
    Ok(Pulled::new(page.events, head))
}

/// What a store does that does not implement `push`.
pub async fn push<S: EventStore + ?Sized>(store: &S, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
    check(store, ctx, at, store.latest_version(ctx).await?).await?;
    let (mut stored, mut refused, mut owes_sync) = (Vec::new(), None, false);
    for mut batch in batches {
        // One sync behind all of them is as good as one for each.
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
            reason: "the batches of a push were stored, but not certainly synced".to_owned(),
            source: Some(error.into()),
        };
        store.sync(ctx).await.map_err(unknown)?;
    }
    // What was appended is there, whatever the context says by now.
    let head = store.latest_version(&Context::background()).await?;
    Ok(Pushed::new(stored, refused, head))
}

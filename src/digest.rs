use std::fmt;

use eventstore_api::{Context, EventStore, EventStoreExt, LoadOptions, RecordedEvent, Result, Version};
use sha2::{Digest as _, Sha256};

/// One hash over everything that a store holds; see [`digest`].
///
/// The text form is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The 32 bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Hashes every event of a store: two stores with the same events in the same order have the same digest, whatever
/// their engines. The time of recording is left out, because it differs between a store and its copy.
///
/// It is the SHA-256 over the following bytes of each event, in version order, with all integers as 8 bytes big-endian:
///
/// 1. the version
/// 2. the revision
/// 3. for each of id, type, aggregate id, data and metadata: the length in bytes, then the bytes
///
/// The lengths keep two different stores from feeding the same bytes. An empty store has the digest of no bytes,
/// `e3b0c442…`.
///
/// Every event is read, a page at a time. The digest is of the store as it was at the first page.
/// [`Progress`](crate::Progress) counts in events.
///
/// # Errors
///
/// Those of [`EventStore::load_page`].
///
/// # Cancellation
///
/// Dropping the future stops the reading within one page.
pub async fn digest<S: EventStore + Clone>(store: &S, ctx: &Context) -> Result<Digest> {
    digest_until(store, ctx, Version::new(u64::MAX)).await
}

/// As [`digest`], of the events up to this version: what a store is compared with that ends there, such as a backup.
///
/// # Errors
///
/// Those of [`EventStore::load_page`].
///
/// # Cancellation
///
/// Dropping the future stops the reading within one page.
pub async fn digest_until<S: EventStore + Clone>(store: &S, ctx: &Context, version: Version) -> Result<Digest> {
    let mut hash = Hasher::default();
    let mut events = store.load(ctx, LoadOptions::all().before(version.next()));
    let total = store.latest_version(ctx).await?.min(version).get();
    while let Some(page) = events.next_page().await {
        let page = page?;
        page.iter().for_each(|recorded| hash.update(recorded));
        ctx.progress().report(page.last().map_or(0, |last| last.version.get()), total);
    }
    Ok(hash.finish())
}

/// A digest that is being made.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, recorded: &RecordedEvent) {
        let (hash, event) = (&mut self.0, &recorded.event);
        hash.update(recorded.version.get().to_be_bytes());
        hash.update(recorded.revision.to_be_bytes());
        let parts = [event.id(), event.event_type(), event.aggregate_id()].map(str::as_bytes);
        for part in parts.into_iter().chain([event.data(), event.metadata().as_bytes()]) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }

    /// The digest of what came so far.
    pub(crate) fn finish(&self) -> Digest {
        Digest(self.0.clone().finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use eventstore_api::Event;

    use super::*;

    fn digest_of(recorded: &[RecordedEvent]) -> String {
        let mut hash = Hasher::default();
        recorded.iter().for_each(|recorded| hash.update(recorded));
        hash.finish().to_string()
    }

    fn recorded(id: &str, data: &'static str, recorded_at: SystemTime) -> RecordedEvent {
        let event = Event::builder("T", "a").id(id).data(data).build().expect("valid");
        RecordedEvent::new(Version::new(1), 1, recorded_at, event)
    }

    #[test]
    fn the_definition_is_pinned() {
        assert_eq!(digest_of(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let mut bytes = Vec::new();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        for part in ["i", "T", "a", "12", "{}"] {
            bytes.extend([0, 0, 0, 0, 0, 0, 0, part.len() as u8]);
            bytes.extend(part.as_bytes());
        }
        let expected = Digest(Sha256::digest(&bytes).into()).to_string();
        assert_eq!(digest_of(&[recorded("i", "12", SystemTime::UNIX_EPOCH)]), expected);
    }

    #[test]
    fn the_time_of_recording_does_not_count_and_every_boundary_does() {
        let epoch = SystemTime::UNIX_EPOCH;
        let later = epoch + Duration::from_secs(1);
        assert_eq!(digest_of(&[recorded("i", "12", epoch)]), digest_of(&[recorded("i", "12", later)]));
        assert_ne!(digest_of(&[recorded("ab", "c", epoch)]), digest_of(&[recorded("a", "bc", epoch)]));
    }
}

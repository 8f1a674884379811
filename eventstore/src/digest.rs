use eventstore_api::{Context, Digest, EventStore, Result, Version};

/// The digest of every event of a store. Two stores with the same events in the same order have the same digest,
/// whatever their engines (rule M6). See [`Digest`] for its definition.
///
/// [`Progress`](crate::backend::Progress) counts in events, if the store has to read them.
///
/// # Errors
///
/// Those of [`EventStore::digest`].
///
/// # Cancellation
///
/// Dropping the future stops the reading within one page.
pub async fn digest<S: EventStore + Clone>(store: &S, ctx: &Context) -> Result<Digest> {
    digest_until(store, ctx, Version::new(u64::MAX)).await
}

/// The [`digest`] of the events up to this version: to compare a store with one that ends there, such as a backup.
///
/// # Errors
///
/// Those of [`EventStore::digest`].
///
/// # Cancellation
///
/// Dropping the future stops the reading within one page.
pub async fn digest_until<S: EventStore + Clone>(store: &S, ctx: &Context, version: Version) -> Result<Digest> {
    store.digest(ctx, version).await
}

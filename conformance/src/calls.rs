//! Calls every method of the trait, for rules that apply to all of them.

use eventstore_api::{AggregateOptions, Context, Error, EventStore, EventStoreExt, Gc, LoadOptions, PageSize, Version};

use crate::env::{Env, Store};
use crate::events::event;

/// Calls every method that the profile has except `close`, and returns the result of each. `id` is for the appended
/// event; `after` is the version to wait for.
pub(crate) async fn call_every_method(
    env: &Env,
    store: &Store,
    ctx: &Context,
    id: &str,
    after: Version,
) -> Vec<(&'static str, Result<(), Error>)> {
    let (all, page) = (LoadOptions::all(), PageSize::FIRST);
    let mut following = store.subscribe(ctx, Version::ZERO);
    let mut loading = store.load(ctx, Version::ZERO);
    let mut outcomes = vec![
        (
            "store_batch",
            store.store_batch(ctx, vec![event(id, "a"), event(format!("{id}-2"), "a")].into()).await.map(drop),
        ),
        ("load_page", store.load_page(ctx, &all, page).await.map(drop)),
        ("load_page backward", store.load_page(ctx, &all.clone().backward(), page).await.map(drop)),
        ("load_page with a filter", store.load_page(ctx, &all.clone().types(["T"]), page).await.map(drop)),
        ("load_page of an aggregate", store.load_page(ctx, &all.aggregate("a"), page).await.map(drop)),
        ("list_aggregates", store.list_aggregates(ctx, &AggregateOptions::all(), 1).await.map(drop)),
        ("get", store.get(ctx, "first").await.map(drop)),
        ("latest_version", store.latest_version(ctx).await.map(drop)),
        ("aggregate_revision", store.aggregate_revision(ctx, "a").await.map(drop)),
        ("wait_for_events", store.wait_for_events(ctx, after).await.map(drop)),
        ("run_gc", store.run_gc(ctx, Gc::Quick).await.map(drop)),
        ("digest", store.digest(ctx, Version::new(u64::MAX)).await.map(drop)),
        ("digest of nothing", store.digest(ctx, Version::ZERO).await.map(drop)),
        ("stats", store.stats(ctx).await.map(drop)),
        ("load", loading.next().await.map_or(Ok(()), |first| first.map(drop))),
        ("subscribe", following.next().await.map_or(Ok(()), |first| first.map(drop))),
    ];
    if env.profile.takes_backups() {
        outcomes.push(("backup", store.backup(ctx, &env.unused_path()).await.map(drop)));
    }
    if env.profile.verifies() {
        outcomes.push(("verify", store.verify(ctx).await.map(drop)));
    }
    outcomes
}

/// Runs a garbage collection, if the engine has this kind.
pub(crate) async fn collect(store: &Store, ctx: &Context, gc: Gc) -> Result<(), Error> {
    match store.run_gc(ctx, gc).await {
        Err(Error::Unsupported { .. }) if gc == Gc::Full => Ok(()),
        outcome => outcome.map(drop),
    }
}

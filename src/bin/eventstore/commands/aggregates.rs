//! `aggregates`: each with its revision and its newest event, in memory that does not grow with their number.

use eventstore::{Context, EventStore, EventStoreExt, LoadOptions, PageSize};

use super::{Ending, Store, ending, reading};
use crate::failure::Failure;
use crate::interrupt;
use crate::json;
use crate::output::Output;

pub(crate) async fn run(url: &str, prefix: Option<&str>) -> Result<Ending, Failure> {
    let interrupted = interrupt::token();
    reading(url, async |store| {
        let ctx = Context::background().with_cancellation(interrupted.clone());
        let mut output = Output::of_printing();
        let listed = list(store, &ctx, prefix.unwrap_or(""), &mut output).await;
        // What came before an error is shown all the same.
        output.flush()?;
        ending(listed, &interrupted)
    })
    .await
}

/// Each aggregate has one first event, so nobody has to remember which ones were listed.
async fn list(store: &Store, ctx: &Context, prefix: &str, output: &mut Output) -> Result<(), Failure> {
    let mut events = store.load(ctx, LoadOptions::all());
    while let Some(page) = events.next_page().await {
        let page = page?;
        let firsts = page.iter().filter(|recorded| recorded.revision == 1);
        for first in firsts.filter(|recorded| recorded.event.aggregate_id().starts_with(prefix)) {
            let aggregate_id = first.event.aggregate_id();
            let newest = LoadOptions::all().aggregate(aggregate_id).backward().limit(1);
            let newest = store.load_page(ctx, &newest, PageSize::FIRST).await?.events.pop();
            // The first event is there in any case.
            let newest = newest.as_ref().unwrap_or(first);
            output.line(|out| json::write_aggregate(out, aggregate_id, newest.revision, newest.version))?;
        }
    }
    Ok(())
}

//! `aggregates`: each aggregate with its revision and its newest event, with one page in memory at a time.

use eventstore::backend::{AggregateOptions, AggregatePage, Context, EventStore};

use super::{Ending, Store, ending, reading};
use crate::failure::Failure;
use crate::interrupt;
use crate::json;
use crate::output::Output;

/// The number of aggregates requested at once.
const PAGE: usize = 1_000;

pub(crate) async fn run(url: &str, prefix: Option<String>) -> Result<Ending, Failure> {
    let interrupted = interrupt::token();
    reading(url, async |store| {
        let ctx = Context::background().with_cancellation(interrupted.clone());
        let mut output = Output::of_printing();
        let listed = list(store, &ctx, AggregateOptions::all().prefix(prefix.unwrap_or_default()), &mut output).await;
        // Results before an error are printed all the same.
        output.flush()?;
        ending(listed, &interrupted)
    })
    .await
}

async fn list(store: &Store, ctx: &Context, options: AggregateOptions, output: &mut Output) -> Result<(), Failure> {
    let mut asked = Some(options);
    while let Some(options) = asked {
        let AggregatePage { aggregates, next, .. } = store.list_aggregates(ctx, &options, PAGE).await?;
        for aggregate in &aggregates {
            output.line(|out| json::write_aggregate(out, aggregate))?;
        }
        asked = next;
    }
    Ok(())
}

//! `stats`: what the store tells about itself.

use eventstore::Context;

use super::{Ending, with_existing};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    with_existing(url, async |store| {
        let stats = store.stats(&Context::background()).await?;
        let mut output = Output::stdout();
        output.field("backend", stats.backend)?;
        output.field("latest_version", stats.latest_version)?;
        output.field("aggregates", stats.aggregates)?;
        if let Some(bytes) = stats.bytes_on_disk {
            output.field("bytes_on_disk", bytes)?;
        }
        output.field("queued_requests", stats.queued_requests)?;
        output.field("queued_bytes", stats.queued_bytes)?;
        output.field("commits", stats.commits)?;
        output.field("events_written", stats.events_written)?;
        output.field("largest_group", stats.largest_group)?;
        output.field("fenced", stats.fenced.as_deref().unwrap_or("no"))?;
        for (name, value) in stats.properties {
            output.field(name, value)?;
        }
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

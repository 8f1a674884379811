//! `latest`: the version of the newest event, or the cursor after it.

use eventstore::backend::{EventStore, EventStoreExt};

use super::{Ending, printing, reading};
use crate::cli::LatestArgs;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, args: LatestArgs) -> Result<Ending, Failure> {
    reading(url, async |store| {
        let latest = printing(async |ctx| {
            let version = store.latest_version(ctx).await?;
            Ok(match args.cursor {
                true => store.cursor_at(ctx, version).await?.to_string(),
                false => version.to_string(),
            })
        });
        let Some(latest) = latest.await? else { return Ok(Ending::Interrupted) };
        let mut output = Output::of_printing();
        output.text(&latest)?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

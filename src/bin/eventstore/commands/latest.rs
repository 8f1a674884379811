//! `latest`: the version of the newest event.

use super::{Ending, printing, reading};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    reading(url, async |store| {
        let latest = printing(async |ctx| store.latest_version(ctx).await);
        let Some(version) = latest.await? else { return Ok(Ending::Interrupted) };
        let mut output = Output::of_printing();
        output.text(&version.to_string())?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

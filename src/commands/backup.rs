//! `backup`: a copy of the store that can be opened.

use std::path::Path;

use super::{Ending, interruptible, reading};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, directory: &Path) -> Result<Ending, Failure> {
    reading(url, async |store| {
        let Some(report) = interruptible("bytes", async |ctx| store.backup(ctx, directory).await).await? else {
            return Ok(Ending::Interrupted);
        };
        let mut output = Output::of_work();
        output.field("latest_version", report.latest_version)?;
        output.field("bytes_on_disk", report.bytes_on_disk)?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

//! `gc`: unused space back to the file system.

use eventstore::{Context, Gc};

use super::{Ending, with_store};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    with_store(url, async |store| {
        let report = store.run_gc(&Context::background(), Gc::Quick).await?;
        let mut output = Output::stdout();
        if let Some(bytes) = report.bytes_before {
            output.field("bytes_before", bytes)?;
        }
        if let Some(bytes) = report.bytes_after {
            output.field("bytes_after", bytes)?;
        }
        for action in report.actions {
            output.field("done", action)?;
        }
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

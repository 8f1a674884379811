//! `gc`: frees unused disk space.

use eventstore::backend::Gc;

use super::{Ending, interruptible, with_existing};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, full: bool) -> Result<Ending, Failure> {
    let gc = if full { Gc::Full } else { Gc::Quick };
    with_existing(url, async |store| {
        let Some(report) = interruptible("steps", async |ctx| store.run_gc(ctx, gc).await).await? else {
            return Ok(Ending::Interrupted);
        };
        let mut output = Output::of_work();
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

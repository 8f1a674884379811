//! `repair`: rebuilds the index from the log, and accepts a lost end of the log.

use super::{Ending, interruptible};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    let Some(actions) = interruptible("events", async |ctx| eventstore::backend::repair(ctx, url).await).await? else {
        return Ok(Ending::Interrupted);
    };
    let mut output = Output::of_work();
    for action in &actions {
        output.field("done", action)?;
    }
    output.flush()?;
    Ok(Ending::Finished)
}

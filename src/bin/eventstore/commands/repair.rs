//! `repair`: what a crash left and the engine refuses to open.

use super::Ending;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    let actions = eventstore::repair(url).await?;
    let mut output = Output::stdout();
    for action in &actions {
        output.field("done", action)?;
    }
    if actions.is_empty() {
        output.text("nothing to repair: the store opens")?;
    }
    output.flush()?;
    Ok(Ending::Finished)
}

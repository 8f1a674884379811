//! `digest`: one hash over all events.

use eventstore::Context;

use super::{Ending, with_store};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    with_store(url, async |store| {
        let digest = eventstore::digest(store, &Context::background()).await?;
        let mut output = Output::stdout();
        output.text(&digest.to_string())?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

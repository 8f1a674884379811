//! `latest`: the version of the newest event.

use eventstore::Context;

use super::{Ending, with_existing};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    with_existing(url, async |store| {
        let version = store.latest_version(&Context::background()).await?;
        let mut output = Output::stdout();
        output.text(&version.to_string())?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

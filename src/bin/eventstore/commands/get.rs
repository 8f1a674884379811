//! `get`: one event by its id.

use eventstore::Context;

use super::{Ending, with_existing};
use crate::failure::Failure;
use crate::json;
use crate::output::Output;

pub(crate) async fn run(url: &str, id: &str) -> Result<Ending, Failure> {
    with_existing(url, async |store| {
        let recorded = store.get(&Context::background(), id).await?;
        let mut output = Output::stdout();
        output.line(|out| json::write(out, &recorded))?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

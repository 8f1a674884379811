//! `get`: one event by its id.

use super::{Ending, printing, reading};
use crate::failure::Failure;
use crate::json;
use crate::output::Output;

pub(crate) async fn run(url: &str, id: &str) -> Result<Ending, Failure> {
    reading(url, async |store| {
        let found = printing(async |ctx| store.get(ctx, id).await);
        let Some(recorded) = found.await? else { return Ok(Ending::Interrupted) };
        let mut output = Output::of_printing();
        output.line(|out| json::write(out, &recorded))?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

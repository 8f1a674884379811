//! `digest`: one hash over all events.

use eventstore::backend::Version;

use super::{Ending, interruptible, reading};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, until: Option<&str>) -> Result<Ending, Failure> {
    let until = until.map_or(Ok(Version::new(u64::MAX)), str::parse)?;
    reading(url, async |store| {
        let digest = interruptible("events", async |ctx| eventstore::backend::digest_until(store, ctx, until).await);
        let Some(digest) = digest.await? else { return Ok(Ending::Interrupted) };
        let mut output = Output::of_printing();
        output.text(&digest.to_string())?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

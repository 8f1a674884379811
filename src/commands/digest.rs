//! `digest`: one hash over all events.

use eventstore::backend::{Error, EventStore, Version};

use super::{Ending, interruptible, reading};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, until: Option<&str>) -> Result<Ending, Failure> {
    let until: Option<Version> = until.map(str::parse).transpose()?;
    reading(url, async |store| {
        let digest = interruptible("events", async |ctx| {
            // Without this check, the digest of fewer events could be mistaken for the requested one.
            let latest = if until.is_some() { store.latest_version(ctx).await? } else { Version::ZERO };
            if let Some(until) = until.filter(|until| *until > latest) {
                let reason =
                    format!("the store ends at version {latest}; leave --until out for the digest of all its events");
                return Err(Error::InvalidVersion { text: until.to_string(), reason });
            }
            eventstore::backend::digest_until(store, ctx, until.unwrap_or(Version::new(u64::MAX))).await
        });
        let Some(digest) = digest.await? else { return Ok(Ending::Interrupted) };
        let mut output = Output::of_printing();
        output.text(&digest.to_string())?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

//! `copy`: copies every event to another store, with any engine.

use std::time::Instant;

use eventstore::backend::Error;
use eventstore_kv::StoreUrl;

use super::{Ending, interruptible, reading, with_store};
use crate::failure::{Failure, tell};
use crate::output::Output;

pub(crate) async fn run(from: &str, to: &str) -> Result<Ending, Failure> {
    if are_one(from, to) {
        let reason = "it is the store that is copied; name another directory".to_owned();
        return Err(Error::Open { path: to.to_owned(), reason, source: None }.into());
    }
    reading(from, async |source| {
        with_store(to, async |target| {
            let started = Instant::now();
            let copied = interruptible("events", async |ctx| eventstore::backend::copy(source, target, ctx).await);
            let Some(report) = copied.await? else {
                tell("copy to the same store again to go on");
                return Ok(Ending::Interrupted);
            };
            let mut output = Output::of_work();
            output.field("copied", report.copied)?;
            output.field("already_there", report.already_there)?;
            output.field("latest_version", report.version)?;
            output.field("digest", report.digest)?;
            output.field("seconds", format_args!("{:.2}", started.elapsed().as_secs_f64()))?;
            output.flush()?;
            Ok(Ending::Finished)
        })
        .await
    })
    .await
}

/// Whether two URLs name the same existing directory.
fn are_one(one: &str, other: &str) -> bool {
    let directory = |url: &str| url.parse::<StoreUrl>().ok()?.path.canonicalize().ok();
    directory(one).is_some_and(|one| directory(other) == Some(one))
}

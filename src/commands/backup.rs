//! `backup`: a copy of the store that can be opened like any store.

use std::path::Path;

use eventstore::backend::{Error, is_postgres};

use super::{Ending, copy, interruptible, reading};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, directory: &Path) -> Result<Ending, Failure> {
    if is_postgres(url) {
        // The files of a server belong to the server. A copy has the same events, and opens at once.
        let path = directory.to_str().filter(|path| !path.contains('?')).ok_or_else(|| Error::InvalidOption {
            option: "directory".to_owned(),
            reason: format!("{} cannot be part of the URL of a store; choose another", directory.display()),
        })?;
        return copy::run(url, &format!("lmdb:{path}")).await;
    }
    reading(url, async |store| {
        let Some(report) = interruptible("bytes", async |ctx| store.backup(ctx, directory).await).await? else {
            return Ok(Ending::Interrupted);
        };
        let mut output = Output::of_work();
        output.field("latest_version", report.latest_version)?;
        output.field("bytes_on_disk", report.bytes_on_disk)?;
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

//! `restore`: a new store from a backup, verified.

use std::path::Path;

use super::{Ending, interruptible, verify};
use crate::failure::Failure;

pub(crate) async fn run(url: &str, directory: &Path) -> Result<Ending, Failure> {
    match interruptible("bytes", async |ctx| eventstore::backend::restore(ctx, directory, url).await).await? {
        Some(()) => verify::run(url).await,
        None => Ok(Ending::Interrupted),
    }
}

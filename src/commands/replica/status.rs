//! `status`: prints the state of a replica.

use std::path::Path;

use super::{Ending, existing};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(directory: &Path, as_json: bool) -> Result<Ending, Failure> {
    existing(directory, async |replica| {
        let status = replica.status().await?;
        let mut output = Output::of_printing();
        if as_json {
            let form = serde_json::json!({
                "hub": status.hub,
                "confirmed": status.confirmed.get(),
                "cursor": status.cursor.to_string(),
                "pending": status.pending,
                "waiting": status.waiting,
                "rejected": status.rejected,
                "histories_before": status.histories_before,
                "read_only": status.read_only,
            });
            output.text(&form.to_string())?;
        } else {
            output.field("hub", &status.hub)?;
            output.field("confirmed", status.confirmed)?;
            output.field("cursor", status.cursor)?;
            output.field("pending", status.pending)?;
            output.field("waiting", status.waiting)?;
            output.field("rejected", status.rejected)?;
            output.field("histories before", status.histories_before)?;
            output.field("read only", status.read_only)?;
        }
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

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
                "pending_events": status.pending_events,
                "waiting": status.waiting,
                "waiting_events": status.waiting_events,
                "rejected": status.rejected,
                "rejected_events": status.rejected_events,
                "histories_before": status.histories_before,
                "read_only": status.read_only,
            });
            output.text(&form.to_string())?;
        } else {
            output.field("hub", &status.hub)?;
            output.field("confirmed events", status.confirmed)?;
            output.field("cursor", status.cursor)?;
            output.field("pending batches", counted(status.pending, status.pending_events))?;
            output.field("waiting batches", counted(status.waiting, status.waiting_events))?;
            output.field("rejected batches", counted(status.rejected, status.rejected_events))?;
            output.field("histories before", status.histories_before)?;
            output.field("read only", status.read_only)?;
        }
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

/// Numbers of batches and of their events, as text.
fn counted(batches: usize, events: usize) -> String {
    match (batches, events) {
        (0, _) => "0".to_owned(),
        (_, 1) => format!("{batches} (1 event)"),
        _ => format!("{batches} ({events} events)"),
    }
}

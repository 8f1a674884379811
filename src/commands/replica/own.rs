//! `pending` and `rejected`: the unconfirmed own batches of a replica.

use std::io::Write as _;
use std::path::Path;

use synckit::OwnBatch;
use synckit::core::{Number, Status, Why};

use super::{Ending, existing};
use crate::failure::Failure;
use crate::json;
use crate::output::Output;

pub(crate) async fn pending(directory: &Path) -> Result<Ending, Failure> {
    existing(directory, async |replica| print(&replica.pending())).await
}

pub(crate) async fn rejected(directory: &Path, delete: Option<u64>) -> Result<Ending, Failure> {
    existing(directory, async |replica| {
        let Some(batch) = delete else { return print(&replica.rejected()) };
        match replica.delete_rejected(Number(batch)).await? {
            true => Ok(Ending::Finished),
            false => {
                let replica = directory.display();
                let message = format!(
                    "{replica} has no rejected batch {batch}; see those that it has with `eventstore rejected {replica}`"
                );
                Err(Failure::told("batch_not_found", message))
            }
        }
    })
    .await
}

fn print(batches: &[OwnBatch]) -> Result<Ending, Failure> {
    let mut output = Output::of_printing();
    for batch in batches {
        output.line(|out| {
            write!(out, "{{\"batch\":{}", batch.number)?;
            match &batch.status {
                Status::Waiting(why) => {
                    out.extend_from_slice(b",\"waits\":");
                    serde_json::to_writer(&mut *out, &describe(why))?;
                }
                Status::Rejected(reason) => {
                    out.extend_from_slice(b",\"reason\":");
                    serde_json::to_writer(&mut *out, reason)?;
                }
                _ => {}
            }
            out.extend_from_slice(b",\"events\":[");
            for (at, event) in batch.events.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                json::write_entry(out, event, None, None)?;
            }
            out.write_all(b"]}")
        })?;
    }
    output.flush()?;
    Ok(Ending::Finished)
}

/// Describes for people why a batch waits.
pub(super) fn describe(why: &Why) -> String {
    match why {
        Why::Conflict => "there are events that its decision had not seen".to_owned(),
        Why::Dependency => {
            "it depends on a batch that was rejected, dropped or replaced, or on events that the hub has lost"
                .to_owned()
        }
        Why::Duplicate => "the hub has one of its ids with other content".to_owned(),
        Why::Refused(reason) => format!("the hub will never accept it: {reason}"),
    }
}

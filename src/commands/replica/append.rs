//! `append` on a replica: appends events from JSON lines, and prints each one once it is durable, with or without a
//! hub.

use std::io::Write as _;
use std::path::Path;

use eventstore::backend::Expected;
use eventstore::backend::limits::MAX_BATCH_BYTES;
use synckit::core::EventPlace;

use super::{Ending, existing, told};
use crate::batches::{BatchSize, Batches, Form};
use crate::cli::AppendArgs;
use crate::failure::{Failure, tell};
use crate::input::Input;
use crate::interrupt;
use crate::output::Output;
use crate::records::Wanted;

pub(crate) async fn run(directory: &Path, args: &AppendArgs) -> Result<Ending, Failure> {
    let expected: Expected = args.expect.parse()?;
    let size = BatchSize { events: args.batch, bytes: MAX_BATCH_BYTES + 1 };
    let input = Input::open(&args.file)?;
    let interrupted = interrupt::token_of_work();
    existing(directory, async |replica| {
        let mut batches = Batches::new(input.into_records(Wanted::Lines)?, size, Form::default());
        let mut output = Output::of_work();
        loop {
            let next = tokio::select! {
                () = interrupted.cancelled() => {
                    tell("interrupted: what was answered is stored, and nothing else");
                    return Ok(Ending::Interrupted);
                }
                next = batches.next() => next?,
            };
            let Some(gathered) = next else { return Ok(Ending::Finished) };
            let appended = replica.append(gathered.batch()).expected(expected).await;
            let appended = appended.map_err(|error| told(directory, error))?;
            for (item, place) in gathered.items.iter().zip(&appended.places) {
                output.line(|out| {
                    out.extend_from_slice(b"{\"id\":");
                    serde_json::to_writer(&mut *out, item.event.id())?;
                    match place {
                        EventPlace::Confirmed(version) => write!(out, ",\"version\":{version}}}"),
                        EventPlace::Pending(..) => write!(out, ",\"pending\":\"{place}\"}}"),
                    }
                })?;
            }
            output.flush()?;
        }
    })
    .await
}

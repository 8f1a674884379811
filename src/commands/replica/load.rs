//! `load` on a replica: prints the confirmed events, followed by the pending ones.

use std::io::Write as _;
use std::path::Path;

use eventstore::backend::{Cursor, Error};
use synckit::{Entry, Notice, Replica};

use super::{Ending, existing};
use crate::cli::{Format, LoadArgs};
use crate::commands::version_or_cursor;
use crate::failure::Failure;
use crate::output::Output;
use crate::{interrupt, json};

pub(crate) async fn run(directory: &Path, args: LoadArgs) -> Result<Ending, Failure> {
    let has_filters = !args.types.is_empty()
        || args.aggregate_prefix.is_some()
        || args.recorded_since.is_some()
        || args.recorded_until.is_some()
        || args.since_revision > 0
        || args.backward
        || args.format != Format::Jsonl;
    if has_filters {
        let what = "a load of a replica with more than --since, --aggregate, --limit and --follow; pending events have no revision and no recording time";
        return Err(Error::Unsupported { what: what.to_owned() }.into());
    }
    let interrupted = interrupt::token();
    existing(directory, async |replica| {
        let mut output = Output::of_printing();
        let most = args.limit.unwrap_or(u64::MAX);
        let work = async {
            match args.follow {
                true => follow(replica, &args, &mut output, most).await,
                false => load(replica, &args, &mut output, most).await,
            }
        };
        tokio::select! {
            done = work => done?,
            () = interrupted.cancelled() => return Ok(Ending::Interrupted),
        }
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

/// The start: a version, or a cursor, which is checked.
async fn since(replica: &Replica, text: &str) -> Result<Cursor, Failure> {
    match version_or_cursor(text)? {
        (_, Some(cursor)) => Ok(cursor),
        (version, None) => Ok(replica.cursor_at(version).await?),
    }
}

async fn load(replica: &Replica, args: &LoadArgs, output: &mut Output, most: u64) -> Result<(), Failure> {
    let mut load = replica.load().since(since(replica, &args.since).await?.version());
    if let Some(aggregate_id) = &args.aggregate {
        load = load.aggregate(aggregate_id.clone());
    }
    for (entry, _) in load.await?.entries.iter().zip(0..most) {
        match entry {
            Entry::Confirmed(recorded) => output.line(|out| json::write(out, recorded))?,
            Entry::Pending(pending) => {
                let place = entry.place();
                output.line(|out| json::write_entry(out, &pending.event, None, Some(("pending", &place))))?;
            }
        }
    }
    Ok(())
}

async fn follow(replica: &Replica, args: &LoadArgs, output: &mut Output, most: u64) -> Result<(), Failure> {
    let mut notices = replica.subscribe(since(replica, &args.since).await?);
    if let Some(aggregate_id) = &args.aggregate {
        notices = notices.aggregate(aggregate_id.clone());
    }
    for _ in 0..most {
        let notice = match notices.try_next().await? {
            Some(notice) => notice,
            None => {
                output.flush()?;
                notices.next().await?
            }
        };
        match &notice {
            Notice::Confirmed { event, was } => {
                let was = was.as_ref().map(|place| ("was", place as &dyn std::fmt::Display));
                output.line(|out| json::write_entry(out, &event.event, Some(event), was))?;
            }
            Notice::Pending(pending) => {
                let place = format!("{}.{}", pending.batch, pending.index);
                output.line(|out| json::write_entry(out, &pending.event, None, Some(("pending", &place))))?;
            }
            Notice::Rejected { batch, reason } => output.line(|out| {
                write!(out, "{{\"rejected\":{batch},\"reason\":")?;
                serde_json::to_writer(&mut *out, reason)?;
                out.write_all(b"}")
            })?,
            Notice::Dropped { batch } => output.line(|out| write!(out, "{{\"dropped\":{batch}}}"))?,
            Notice::Replaced { batch } => output.line(|out| write!(out, "{{\"replaced\":{batch}}}"))?,
            _ => {}
        }
    }
    Ok(())
}

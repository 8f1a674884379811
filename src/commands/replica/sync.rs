//! `sync`: syncs a replica with its hub.

use std::path::Path;

use eventstore::CancellationToken;
use synckit::core::{Number, Why};
use synckit::{
    Answer, Conflict, KeepBoth, Options, RejectConflicts, Replica, Resolution, Resolver, SyncOptions, SyncReport,
    SyncState,
};

use super::own::describe;
use super::{Ending, check_hub, told, url_of, with_replica};
use crate::cli::{Resolve, SyncArgs};
use crate::failure::{Failure, tell};
use crate::interrupt;
use crate::output::Output;

pub(crate) async fn run(args: SyncArgs) -> Result<Ending, Failure> {
    let directory = super::argument(args.directory.clone());
    let mut options = Options::new(&directory).existing();
    if let Some(hub) = &args.hub {
        check_hub(hub)?;
        options = options.hub(hub.clone());
    }
    let stop = interrupt::token_of_work();
    with_replica(&directory, options, async |replica| {
        let how = how(&args, &stop);
        let done = match args.live {
            true => live(replica, &how, &stop).await,
            false => once(replica, &how, &stop).await,
        };
        done.map_err(|failure| match args.hub {
            None => failure,
            Some(_) => failure.note(format_args!(
                "a new hub is kept once a sync has found the replica's history there: see `eventstore status {}`",
                directory.display()
            )),
        })
    })
    .await
}

fn how(args: &SyncArgs, stop: &CancellationToken) -> SyncOptions {
    let mut options = SyncOptions::new().stop(stop.clone());
    options = match args.resolve {
        Resolve::Stop => options,
        Resolve::KeepBoth => options.resolver(TellNewIds),
        Resolve::Reject => options.resolver(RejectConflicts),
        Resolve::Drop => options.resolver(|_: &Conflict| Resolution::Drop),
    };
    if args.skip_waiting {
        options = options.skip_waiting();
    }
    if args.accept_history {
        options = options.accept_history();
    }
    options
}

/// Keeps both, and prints the events that get new ids.
struct TellNewIds;

#[synckit::async_trait]
impl Resolver for TellNewIds {
    async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
        let answer = KeepBoth.resolve(conflict).await?;
        if let Resolution::AppendInstead(events) = &answer.resolution {
            for (was, is) in conflict.events.iter().zip(events) {
                tell(&format!("batch {}: {} is now {}", conflict.batch, was.id(), is.id()));
            }
        }
        Ok(answer)
    }
}

async fn once(replica: &Replica, options: &SyncOptions, stop: &CancellationToken) -> Result<Ending, Failure> {
    let report = tokio::select! {
        report = replica.sync_once(options) => report.map_err(|error| told(replica.directory(), error))?,
        () = stop.cancelled() => {
            tell("interrupted: what was synced is kept, and the next sync continues");
            return Ok(Ending::Interrupted);
        }
    };
    let SyncReport { pulled, confirmed, rejected, dropped, accepted, version, waiting, .. } = report;
    let mut output = Output::of_work();
    for history in accepted {
        let (common, was) = (history.common, history.was);
        let accepted = format!("the hub's, which has the first {common} of the {was} events that were confirmed");
        output.field("accepted history", accepted)?;
        output.field("kept aside", aside(&history.aside))?;
        output.field("batches pending again", history.pending_again)?;
    }
    output.field("pulled events", pulled)?;
    output.field("confirmed batches", confirmed)?;
    for (name, batches) in [("rejected batches", rejected), ("dropped batches", dropped)] {
        if batches > 0 {
            output.field(name, batches)?;
        }
    }
    output.field("version", version)?;
    output.flush()?;
    let Some(batch) = waiting else { return Ok(Ending::Finished) };
    if let Some(conflict) = replica.next_conflict().await? {
        tell(&waits(replica.directory(), batch, &conflict.why));
    }
    Ok(Ending::Waiting)
}

/// The URL of the previous confirmed events.
fn aside(path: &Path) -> String {
    url_of(path).unwrap_or_else(|| path.display().to_string())
}

/// The line about a batch that waits for a decision.
fn waits(directory: &Path, batch: Number, why: &Why) -> String {
    let replica = directory.display();
    format!(
        "batch {batch} waits for a decision: {}; see it with: eventstore pending {replica}; decide with: eventstore sync \
         {replica} --resolve keep-both|reject|drop",
        describe(why)
    )
}

/// Prints each change of the sync state, until a signal.
async fn live(replica: &Replica, options: &SyncOptions, stop: &CancellationToken) -> Result<Ending, Failure> {
    let mut states = replica.watch_sync();
    let mut histories = replica.status().await?.histories_before;
    let telling = async {
        let mut last = SyncState::Idle;
        while states.changed().await.is_ok() {
            let state = states.borrow_and_update().clone();
            if options.accept_history {
                let now = replica.status().await.map_or(histories, |status| status.histories_before);
                for history in histories..now {
                    let path = replica.directory().join("aside").join((history + 1).to_string());
                    tell(&format!("accepted another history of the hub; kept aside: {}", aside(&path)));
                }
                histories = now;
            }
            // How far it is behind changes quickly and is not printed.
            if state != last && !matches!(state, SyncState::Behind(_)) {
                match &state {
                    SyncState::Waiting(batch) => match replica.next_conflict().await {
                        Ok(Some(conflict)) => tell(&waits(replica.directory(), *batch, &conflict.why)),
                        _ => tell(&state.to_string()),
                    },
                    _ => tell(&state.to_string()),
                }
                last = state;
            }
        }
    };
    tokio::select! {
        done = replica.run(options) => done.map_err(|error| told(replica.directory(), error))?,
        () = telling => {}
    }
    Ok(if stop.is_cancelled() { Ending::Interrupted } else { Ending::Finished })
}

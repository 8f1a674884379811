//! `sync`: syncs a replica with its hub.

use eventstore::CancellationToken;
use synckit::{Conflict, KeepBoth, Options, RejectConflicts, Replica, Resolution, SyncOptions, SyncReport, SyncState};

use super::own::describe;
use super::{Ending, with_replica};
use crate::cli::{Resolve, SyncArgs};
use crate::failure::{Failure, tell};
use crate::interrupt;
use crate::output::Output;

pub(crate) async fn run(args: SyncArgs) -> Result<Ending, Failure> {
    let mut options = Options::new(&args.directory).existing();
    if let Some(hub) = &args.hub {
        options = options.hub(hub.clone());
    }
    let stop = interrupt::token_of_work();
    with_replica(options, async |replica| {
        let how = how(&args, &stop);
        match args.live {
            true => live(replica, &how, &stop).await,
            false => once(replica, &how, &stop).await,
        }
    })
    .await
}

fn how(args: &SyncArgs, stop: &CancellationToken) -> SyncOptions {
    let mut options = SyncOptions::new().stop(stop.clone());
    options = match args.resolve {
        Resolve::Stop => options,
        Resolve::KeepBoth => options.resolver(KeepBoth),
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

async fn once(replica: &Replica, options: &SyncOptions, stop: &CancellationToken) -> Result<Ending, Failure> {
    let SyncReport { pulled, confirmed, version, waiting, .. } = tokio::select! {
        report = replica.sync_once(options) => report?,
        () = stop.cancelled() => {
            tell("interrupted: what was synced is kept, and the next sync continues");
            return Ok(Ending::Interrupted);
        }
    };
    let mut output = Output::of_work();
    output.field("pulled events", pulled)?;
    output.field("confirmed batches", confirmed)?;
    output.field("version", version)?;
    output.flush()?;
    match waiting {
        None => Ok(Ending::Finished),
        Some(batch) => {
            if let Some(conflict) = replica.next_conflict().await? {
                tell(&format!(
                    "batch {batch} waits for a decision: {}; see it with `eventstore pending`, and decide with --resolve",
                    describe(&conflict.why)
                ));
            }
            Ok(Ending::Waiting)
        }
    }
}

/// Prints each change of the sync state, until a signal.
async fn live(replica: &Replica, options: &SyncOptions, stop: &CancellationToken) -> Result<Ending, Failure> {
    let mut states = replica.watch_sync();
    let telling = async {
        let mut last = SyncState::Idle;
        while states.changed().await.is_ok() {
            let state = states.borrow_and_update().clone();
            // How far it is behind changes quickly and is not printed.
            if state != last && !matches!(state, SyncState::Behind(_)) {
                tell(&state.to_string());
                last = state;
            }
        }
    };
    tokio::select! {
        done = replica.run(options) => done?,
        () = telling => {}
    }
    Ok(if stop.is_cancelled() { Ending::Interrupted } else { Ending::Finished })
}

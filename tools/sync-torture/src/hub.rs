//! The hub: a store that is served, and that somebody appends to beside the replicas.

use std::sync::Arc;
use std::time::Duration;

use eventstore::{Error, Event, Store};
use eventstore_server::{Address, Limits, Listener, Server, serve};
use tokio_util::sync::CancellationToken;

use crate::child::{commands, heal, is_disk_to_blame, runtime};
use crate::disk::surviving;
use crate::told::{Cut, HubPlan, Stands, Told, Trying, Written, tell};

/// Small checkpoints of the index and small segments, so that each failure may hit one.
const OPTIONS: &str = "index_events=40&segment_size=64KiB&map_size=1MiB";

pub(crate) fn address_of(directory: &std::path::Path) -> String {
    format!("lmdb:{}", directory.join("store").display())
}

pub(crate) fn main(plan: HubPlan) {
    std::fs::create_dir_all(&plan.directory).expect("the directory can be made");
    faulty_disk::watch(&plan.directory);
    runtime(false).block_on(live(Arc::new(plan)));
}

async fn live(plan: Arc<HubPlan>) {
    let mut commands = commands();
    tokio::spawn(heal(plan.fault));
    if let Some(fault) = plan.fault.filter(|fault| fault.is_early) {
        fault.arm();
    }
    let opened = eventstore::open(&format!("{}?{OPTIONS}", address_of(&plan.directory))).await;
    let store = match opened {
        Ok(store) => store,
        Err(error) => return fail(&plan, "the hub's store does not open", &error),
    };
    if let Some(fault) = plan.fault.filter(|fault| !fault.is_early) {
        fault.arm();
    }
    let address: Address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&address).await.expect("a free port");
    tell(&Told::Serves(listener.url().trim_start_matches("http://").to_owned()));
    // Connections that stall are waited for no longer when it stops.
    let mut limits = Limits::default();
    limits.head_wait = Duration::from_millis(500);
    let server = Server::new(store.clone()).limits(limits);
    let stop = CancellationToken::new();
    if let Some(label) = plan.label.clone() {
        tokio::spawn(append(plan.clone(), label, store));
    }
    let stopping = stop.clone();
    tokio::spawn(async move {
        commands.recv().await;
        stopping.cancel();
    });
    if let Err(error) = serve(server, listener, stop).await
        && !is_disk_to_blame(plan.fault)
    {
        tell(&Told::Wrong(format!("the hub does not serve or close: {error}")));
    }
}

fn fail(plan: &HubPlan, what: &str, error: &Error) {
    tell(&match is_disk_to_blame(plan.fault) {
        true => Told::Failed { code: error.code().to_owned() },
        false => Told::Wrong(format!("{what}: {error:?}")),
    });
}

/// Appends batches beside those of replicas, some of them unsynced.
async fn append(plan: Arc<HubPlan>, label: String, store: Store) {
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut unsynced = 0;
    for number in 0.. {
        tokio::time::sleep(Duration::from_micros(random.u64(1_000..30_000))).await;
        let label = format!("{label}-{number}");
        let aggregate = format!("r{}-{}", plan.round, random.u8(..8));
        let of = random.usize(1..4);
        let written = |at: usize| Written {
            id: format!("{label}.{at}of{of}"),
            aggregate: aggregate.clone(),
            data: format!(r#"{{"of":"{label}","at":{at}}}"#),
        };
        let events: Vec<_> = (0..of).map(written).collect();
        let batch: Vec<Event> = events.iter().map(Written::event).collect();
        tell(&Told::Trying(Trying { label: label.clone(), events, stands: Stands::Any }));
        let is_durable = random.u8(..3) > 0;
        let append = store.append(batch);
        let appended = if is_durable { append.await } else { append.buffered().await };
        match appended {
            Ok(_) => {
                tell(&Told::Acknowledged { label, number: None, is_durable });
                unsynced += u64::from(!is_durable);
                if let Some(Cut { nth, micros, seed }) = plan.cut
                    && !is_durable
                    && nth == unsynced
                {
                    tokio::time::sleep(Duration::from_micros(micros)).await;
                    faulty_disk::cut_power(surviving(seed));
                }
            }
            Err(error @ (Error::Fenced { .. } | Error::Full { .. })) if is_disk_to_blame(plan.fault) => {
                tell(&Told::Refused { label, code: error.code().to_owned() });
                if matches!(error, Error::Fenced { .. }) {
                    return tell(&Told::Failed { code: error.code().to_owned() });
                }
            }
            Err(error) if is_disk_to_blame(plan.fault) => {
                tell(&Told::Unknown { label, code: error.code().to_owned() });
            }
            Err(Error::Closed) => return,
            Err(error) => return tell(&Told::Wrong(format!("the hub does not append: {error:?}"))),
        }
    }
}

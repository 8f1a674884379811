//! What processes of hubs and replicas have in common.

use std::io::BufRead as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::disk::DiskFault;
use crate::told::{ROLE, Role, Told, tell};
use crate::{hub, replica};

/// Runs this process as a hub or a replica, if its parent has said so.
#[must_use]
pub fn run_child() -> Option<ExitCode> {
    let role = std::env::var(ROLE).ok()?;
    let role: Role = serde_json::from_str(&role).expect("the parent has written it");
    match role {
        Role::Hub(plan) => hub::main(plan),
        Role::Replica(plan) => replica::main(plan),
    }
    Some(ExitCode::SUCCESS)
}

pub(crate) fn runtime(has_one_thread: bool) -> Runtime {
    let mut builder = if has_one_thread { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

/// The lines that the parent writes. The process ends with the parent.
pub(crate) fn commands() -> mpsc::UnboundedReceiver<String> {
    let (sender, commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                return;
            }
        }
        std::process::exit(4);
    });
    commands
}

/// Whether something that went wrong is the fault of the disk.
pub(crate) fn is_disk_to_blame(fault: Option<DiskFault>) -> bool {
    fault.is_some_and(DiskFault::is_survived) && faulty_disk::fired()
}

/// Makes the disk whole again, some time behind the first call that failed.
pub(crate) async fn heal(fault: Option<DiskFault>) {
    let Some(fault) = fault.filter(|fault| fault.is_survived() && !fault.stops()) else { return };
    while !faulty_disk::fired() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tell(&Told::Fired);
    tokio::time::sleep(Duration::from_millis(fault.lasts)).await;
    faulty_disk::disarm();
}

//! The servers that are compared, each reached by its own client.

#[path = "../../../bench-peers/src/contestants/blocking.rs"]
mod blocking;
mod eventstore;
#[path = "../../../bench-peers/src/contestants/handle.rs"]
mod handle;
mod server;
#[path = "../../../bench-peers/src/contestants/store.rs"]
mod store;
#[path = "../../../bench-peers/src/contestants/tasks.rs"]
mod tasks;
mod tephra;
mod umadb;

pub(crate) use store::{Appended, Batches, Contestant, Lacks, Reader, Scan, Store, Work};

/// Every server, with its executable.
const SERVERS: [(&str, Contestant); 4] = [
    (eventstore::EXECUTABLE, eventstore::CONTESTANT),
    (tephra::EXECUTABLE, tephra::BLOCKING),
    (tephra::EXECUTABLE, tephra::ASYNC),
    (umadb::EXECUTABLE, umadb::CONTESTANT),
];

/// Those whose executable is there.
pub(crate) fn all() -> Vec<Contestant> {
    SERVERS
        .into_iter()
        .filter(|(executable, _)| server::is_in_path(executable))
        .map(|(_, contestant)| contestant)
        .collect()
}

/// The executables that are not there, with the names of their contestants.
pub(crate) fn missing() -> impl Iterator<Item = (&'static str, &'static str)> {
    let missing = SERVERS.into_iter().filter(|(executable, _)| !server::is_in_path(executable));
    missing.map(|(executable, contestant)| (executable, contestant.name))
}

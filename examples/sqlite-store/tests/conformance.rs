//! The store keeps the contract.

use std::process::ExitCode;
use std::sync::Arc;

use conformance::Profile;
use eventstore_api::EventStore;
use sqlite_store::SqliteStore;

fn main() -> ExitCode {
    // Who reads SQLite's write-ahead log writes to its index. It opts out of nothing else.
    conformance::run("sqlite", Profile::persistent().without_read_only(), |directory| async {
        Ok(Arc::new(SqliteStore::open(directory).await?) as Arc<dyn EventStore>)
    })
}

//! The store keeps the contract.

use std::process::ExitCode;
use std::sync::Arc;

use conformance::Profile;
use eventstore_api::EventStore;
use sqlite_store::SqliteStore;

fn main() -> ExitCode {
    // It opts out of nothing.
    conformance::run("sqlite", Profile::persistent(), |directory| async {
        Ok(Arc::new(SqliteStore::open(directory).await?) as Arc<dyn EventStore>)
    })
}

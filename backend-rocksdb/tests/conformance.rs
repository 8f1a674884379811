//! The RocksDB store keeps the contract.

use std::process::ExitCode;
use std::sync::Arc;

use backend_rocksdb::{Options, open};
use conformance::Profile;
use eventstore_api::EventStore;

fn main() -> ExitCode {
    conformance::run("rocksdb", Profile::persistent(), |directory| async {
        Ok(Arc::new(open(Options::new(directory)).await?) as Arc<dyn EventStore>)
    })
}

//! The memory store keeps the contract.

use std::process::ExitCode;
use std::sync::Arc;

use conformance::Profile;
use eventstore_api::EventStore;
use eventstore_kv::{StoreOptions, memory};

fn main() -> ExitCode {
    conformance::run("memory", Profile::in_memory(), |_| async {
        Ok(Arc::new(memory::open(StoreOptions::default())?) as Arc<dyn EventStore>)
    })
}

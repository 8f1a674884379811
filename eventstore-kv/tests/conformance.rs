//! The memory store keeps the contract.

use std::process::ExitCode;
use std::sync::Arc;

use conformance::Profile;
use eventstore_api::EventStore;
use eventstore_kv::{Compression, StoreOptions, memory};

fn main() -> ExitCode {
    conformance::run("memory", Profile::in_memory(), |_| async {
        let mut options = StoreOptions::default();
        options.index_events = 3; // so that the checks cover all states of the index
        if cfg!(feature = "zstd") {
            options.compression = Compression::Zstd;
        }
        Ok(Arc::new(memory::open(options)?) as Arc<dyn EventStore>)
    })
}

//! The fjall store keeps the contract.

use std::process::ExitCode;
use std::sync::Arc;

use backend_fjall::{Options, open};
use conformance::Profile;
use eventstore_api::EventStore;

fn main() -> ExitCode {
    conformance::run("fjall", Profile::persistent(), |directory| async {
        let mut options = Options::new(directory);
        options.store.index_events = 5; // so that the checks see all of the index's ways
        Ok(Arc::new(open(options).await?) as Arc<dyn EventStore>)
    })
}

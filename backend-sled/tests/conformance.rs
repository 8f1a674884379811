//! The sled store keeps the contract.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use backend_sled::{Options, open, open_read_only};
use conformance::{Profile, Suite};
use eventstore_api::EventStore;

fn options(directory: PathBuf) -> Options {
    let mut options = Options::new(directory);
    options.store.index_events = 5; // so that the checks cover all states of the index
    options
}

fn main() -> ExitCode {
    let suite = Suite::new("sled", Profile::persistent(), |directory| async {
        Ok(Arc::new(open(options(directory)).await?) as Arc<dyn EventStore>)
    });
    let read_only =
        |directory| async { Ok(Arc::new(open_read_only(options(directory)).await?) as Arc<dyn EventStore>) };
    suite.read_only(read_only).run()
}

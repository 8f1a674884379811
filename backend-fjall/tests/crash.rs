//! The fjall store loses nothing, whatever ends its process and whatever its disk does.

use std::process::ExitCode;
use std::sync::Arc;

use backend_fjall::{Options, open};
use conformance::{Profile, crash::Kit};
use eventstore_api::EventStore;

fn main() -> ExitCode {
    let kit = Kit::new("fjall", Profile::persistent().without_clocks_before_1970(), |directory| async {
        let mut options = Options::new(directory);
        options.store.index_events = 20; // so that the index tables are written as well
        Ok(Arc::new(open(options).await?) as Arc<dyn EventStore>)
    });
    kit.run()
}

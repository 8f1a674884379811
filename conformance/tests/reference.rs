//! The whole suite over the reference store.

mod reference_store;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use conformance::{Profile, Suite};
use eventstore_api::EventStore;
use reference_store::Reference;

fn main() -> ExitCode {
    let suite = Suite::new("reference", Profile::persistent(), |directory| async move {
        Ok(Arc::new(Reference::open(&directory)?) as Arc<dyn EventStore>)
    });
    let read_only =
        |directory: PathBuf| async move { Ok(Arc::new(Reference::open_read_only(&directory)?) as Arc<dyn EventStore>) };
    suite.read_only(read_only).run()
}

//! The whole suite over the reference store.

mod reference_store;

use std::process::ExitCode;
use std::sync::Arc;

use conformance::Profile;
use eventstore_api::EventStore;
use reference_store::Reference;

fn main() -> ExitCode {
    conformance::run("reference", Profile::persistent(), |directory| async move {
        Ok(Arc::new(Reference::open(&directory)?) as Arc<dyn EventStore>)
    })
}

//! A store on PostgreSQL keeps the contract.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backend_postgres::{Options, open};
use conformance::{Profile, Suite};
use eventstore_api::{Error, EventStore};
use postgres_cluster::{Cluster, URL_VARIABLE};

/// The schemas of the stores, by their directories.
static SCHEMAS: Mutex<Option<HashMap<PathBuf, String>>> = Mutex::new(None);

/// A schema for each directory, of which nobody else has one.
fn schema(directory: PathBuf) -> String {
    let mut schemas = SCHEMAS.lock().unwrap_or_else(PoisonError::into_inner);
    let schemas = schemas.get_or_insert_default();
    let next = format!("suite_{}_{}", std::process::id(), schemas.len());
    schemas.entry(directory).or_insert(next).clone()
}

fn main() -> ExitCode {
    let (url, cluster) = match std::env::var(URL_VARIABLE) {
        Ok(url) => (url, None),
        Err(_) => match Cluster::start_if_installed(&["max_connections = 500"]) {
            Some(cluster) => (cluster.url(), Some(cluster)),
            None => return ExitCode::SUCCESS,
        },
    };
    let open = move |directory: PathBuf| {
        let url = url.clone();
        async move {
            let mut options = Options::from_url(&url)?;
            options.schema = schema(directory);
            options.max_connections = 4;
            Ok::<Arc<dyn EventStore>, Error>(Arc::new(open(options).await?))
        }
    };
    // A server of its own has its files: any number of processes may have the store open, and none of them can back it up.
    let profile = Profile::persistent().without_locking().without_read_only().without_backup();
    let outcome = Suite::new("postgres", profile.time_limit(Duration::from_secs(180)), open).run();
    drop(cluster);
    outcome
}

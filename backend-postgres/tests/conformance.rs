//! A store on PostgreSQL keeps the contract, for one process and for several at once.

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backend_postgres::{Options, open};
use common::several::Several;
use conformance::{Profile, Suite};
use eventstore_api::{Error, EventStore};
use postgres_cluster::{Cluster, URL_VARIABLE};

/// The schemas of the stores, by directory.
static SCHEMAS: Mutex<Option<HashMap<PathBuf, String>>> = Mutex::new(None);

/// A schema for each directory, which nobody else has.
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
    // The server has the files: any number of processes may have the store open, and none of them can back it up.
    let profile = Profile::persistent().without_locking().without_read_only().without_backup();
    let profile = profile.time_limit(Duration::from_secs(180));
    let one = {
        let url = url.clone();
        move |directory| open_one(url.clone(), schema(directory))
    };
    let several = move |directory| several(url.clone(), schema(directory));
    let outcomes = [
        Suite::new("postgres", profile.clone(), one).run(),
        Suite::new("postgres, by three processes", profile, several).run(),
    ];
    drop(cluster);
    if outcomes == [ExitCode::SUCCESS; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn open_one(url: String, schema: String) -> Result<Arc<dyn EventStore>, Error> {
    let mut options = Options::from_url(&url)?;
    options.schema = schema;
    options.max_connections = 4;
    options.connect_timeout = Duration::from_secs(60);
    Ok(Arc::new(open(options).await?))
}

/// The same store, opened by three processes that share only the server. Each call goes to the next of them.
async fn several(url: String, schema: String) -> Result<Arc<dyn EventStore>, Error> {
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(open_one(url.clone(), schema.clone()).await?);
    }
    Ok(Arc::new(Several { stores, next: AtomicUsize::new(0) }))
}

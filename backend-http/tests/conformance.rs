//! A store on a server keeps the contract: with a store in memory behind the server, and with LMDB.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Weak};

use backend_http::{HttpStore, Options, open};
use common::Running;
use conformance::{Profile, Suite};
use eventstore_api::{Batch, Context, Error, Event, EventStore, Expected};
use eventstore_kv::{StoreOptions, memory};
use eventstore_server::Server;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// The servers have a separate runtime, as they usually have a separate process: the suite creates and drops others.
static SERVERS: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("built")
});

/// The running servers, by the directories of their stores.
static RUNNING: LazyLock<Mutex<HashMap<PathBuf, Served>>> = LazyLock::new(Mutex::default);

struct Served {
    server: Running,
    /// The same store, in this process.
    behind: Arc<dyn EventStore>,
    /// The opened clients.
    stores: Vec<Weak<HttpStore>>,
}

#[derive(Clone, Copy)]
enum Behind {
    Memory,
    Lmdb,
}

/// The URL of the server of the store in this directory. It is started on first request.
async fn served(behind: Behind, directory: PathBuf) -> Result<String, Error> {
    let starting = SERVERS.spawn(async move {
        let mut running = RUNNING.lock().await;
        // Directories of finished checks are removed; their servers are no longer needed.
        let gone: Vec<_> = running.keys().filter(|directory| !directory.exists()).cloned().collect();
        for directory in gone {
            if let Some(server) = running.remove(&directory) {
                server.server.abandon();
            }
        }
        if let Some(served) = running.get(&directory) {
            return Ok(served.server.url.clone());
        }
        let store = behind.open(&directory).await?;
        let server = Running::start(Server::new(store.clone()).only_this_machine()).await;
        let url = server.url.clone();
        running.insert(directory, Served { server, behind: store, stores: Vec::new() });
        Ok(url)
    });
    starting.await.expect("no panic")
}

impl Behind {
    async fn open(self, directory: &Path) -> Result<Arc<dyn EventStore>, Error> {
        match self {
            Behind::Memory => Ok(Arc::new(memory::open(StoreOptions::default())?)),
            Behind::Lmdb => {
                let mut options = backend_lmdb::Options::new(directory);
                options.store.index_events = 5; // so that the checks cover all states of the index
                Ok(Arc::new(backend_lmdb::open(options).await?))
            }
        }
    }
}

/// A client of that server.
async fn client(behind: Behind, directory: PathBuf) -> Result<Arc<dyn EventStore>, Error> {
    let url = served(behind, directory.clone()).await?;
    let store = Arc::new(open(Options::new(url)).await?);
    let told = Arc::downgrade(&store);
    // A dropped client ends in the background. A store in the same process would wait for that, as do checks that open
    // it again.
    let alone = SERVERS.spawn(async move {
        loop {
            let mut running = RUNNING.lock().await;
            let Some(served) = running.get_mut(&directory) else { return };
            served.stores.retain(|store| store.strong_count() > 0);
            let sessions = served.server.stats().await["server"]["sessions"].as_u64().expect("a number");
            if sessions as usize <= served.stores.len() {
                // What the writer has begun ends before this is refused.
                let refused = Event::builder("T", "a").build().map(Batch::from).expect("valid");
                let refused = refused.expected(Expected::LatestVersion(u64::MAX.into()));
                served
                    .behind
                    .store_batch(&Context::background(), refused)
                    .await
                    .expect_err("a condition that never holds");
                return served.stores.push(told);
            }
            drop(running);
            tokio::task::yield_now().await;
        }
    });
    alone.await.expect("no panic");
    Ok(store)
}

fn suite(name: &str, behind: Behind, profile: Profile) -> Suite {
    Suite::new(name, profile, move |directory| client(behind, directory))
}

fn main() -> ExitCode {
    // Whatever the client does, the server keeps the events, writes its files and holds its lock. Of rule L4, only this
    // applies: appends and garbage collections are refused, which is tested in `store.rs`.
    let profile = Profile::persistent().without_locking().without_read_only();
    let memory = suite("http over memory", Behind::Memory, profile.clone().without_backup()).run();
    let lmdb = suite("http over lmdb", Behind::Lmdb, profile).run();
    if memory == ExitCode::SUCCESS { lmdb } else { memory }
}

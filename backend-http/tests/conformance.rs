//! A store on a server keeps the contract: with a store in memory behind the server, and with LMDB.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use backend_http::{Options, open};
use common::Running;
use conformance::{Profile, Suite};
use eventstore_api::{Error, EventStore};
use eventstore_kv::{StoreOptions, memory};
use eventstore_server::Server;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// The servers have a runtime of their own, as they have a process of their own elsewhere: the suite makes and drops others.
static SERVERS: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("built")
});

/// Those that run, by the directories of their stores.
static RUNNING: LazyLock<Mutex<HashMap<PathBuf, Running>>> = LazyLock::new(Mutex::default);

#[derive(Clone, Copy)]
enum Behind {
    Memory,
    Lmdb,
}

/// The URL of the server that has the store of this directory. It is started when somebody asks for the first time.
async fn served(behind: Behind, directory: PathBuf) -> Result<String, Error> {
    let starting = SERVERS.spawn(async move {
        let mut running = RUNNING.lock().await;
        // Directories of checks that have ended are removed; their servers are not needed any more.
        let gone: Vec<_> = running.keys().filter(|directory| !directory.exists()).cloned().collect();
        for directory in gone {
            if let Some(server) = running.remove(&directory) {
                server.abandon();
            }
        }
        if let Some(server) = running.get(&directory) {
            // A client that was dropped ends in the background; whoever opens the store in one process waits for that.
            while server.stats().await["server"]["sessions"] != 0 {
                tokio::task::yield_now().await;
            }
            return Ok(server.url.clone());
        }
        let store = behind.open(&directory).await?;
        let server = Running::start(Server::new(store).only_this_machine()).await;
        let url = server.url.clone();
        running.insert(directory, server);
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
                options.store.index_events = 5; // so that the checks see all of the index's ways
                Ok(Arc::new(backend_lmdb::open(options).await?))
            }
        }
    }
}

fn suite(name: &str, behind: Behind, profile: Profile) -> Suite {
    Suite::new(name, profile, move |directory| async move {
        Ok(Arc::new(open(Options::new(served(behind, directory).await?)).await?) as Arc<dyn EventStore>)
    })
}

fn main() -> ExitCode {
    // Whatever the client does, the server keeps the events, writes its files and has its lock: of rule L4 holds here that appends
    // and collections are refused, which is tested in `store.rs`.
    let profile = Profile::persistent().without_locking().without_read_only();
    let memory = suite("http over memory", Behind::Memory, profile.clone().without_backup()).run();
    let lmdb = suite("http over lmdb", Behind::Lmdb, profile).run();
    if memory == ExitCode::SUCCESS { lmdb } else { memory }
}

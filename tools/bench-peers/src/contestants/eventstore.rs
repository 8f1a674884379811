//! eventstore on each of its engines.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;

use super::handle::{ANY, Handle};
use super::{Contestant, Store};

pub(super) fn all() -> [Contestant; 5] {
    [
        Contestant {
            name: "eventstore-lmdb",
            floor: Some("raw-lmdb"),
            open: |path| open("lmdb", path, ""),
            open_small: Some(|path| {
                open("lmdb", path, "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384")
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-rocksdb",
            floor: Some("raw-rocksdb"),
            open: |path| open("rocksdb", path, ""),
            open_small: Some(|path| {
                open(
                    "rocksdb",
                    path,
                    "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384&block_cache=8MiB",
                )
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-fjall",
            floor: Some("raw-fjall"),
            open: |path| open("fjall", path, ""),
            open_small: Some(|path| {
                open(
                    "fjall",
                    path,
                    "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384&block_cache=8MiB",
                )
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-sled",
            floor: Some("raw-sled"),
            by_default: false,
            open: |path| open("sled", path, ""),
            open_small: Some(|path| {
                open(
                    "sled",
                    path,
                    "?log_cache=1MiB&aggregate_cache=1MiB&revision_cache=1MiB&index_events=16384&cache_capacity=8MiB",
                )
            }),
            ..ANY
        },
        Contestant {
            name: "eventstore-postgres",
            by_default: false,
            settings: "defaults, on the server that EVENTSTORE_POSTGRES_URL names; its sync is that server's, and bytes on disk are \
                       not measured",
            index: None,
            open: open_postgres,
            ..ANY
        },
    ]
}

/// A schema for each path, on a server that is there for the whole run and whose stores survive the process.
fn open_postgres(path: &Path) -> Result<Box<dyn Store>> {
    const SERVER: &str = "EVENTSTORE_POSTGRES_URL";
    let server = std::env::var(SERVER).with_context(|| format!("set {SERVER} to the URL of a PostgreSQL server"))?;
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    let runtime = Runtime::new()?;
    let mut options = eventstore::postgres::Options::from_url(&server)?;
    options.schema = format!("bench_peers_{:016x}", hasher.finish());
    let store = Arc::new(runtime.block_on(eventstore::postgres::open(options))?);
    Ok(Box::new(Handle { store, runtime }))
}

fn open(scheme: &str, path: &Path, options: &str) -> Result<Box<dyn Store>> {
    let runtime = Runtime::new()?;
    let url = format!("{scheme}:{}{options}", path.join("store").display());
    let store = runtime.block_on(eventstore::backend::open(&url))?;
    Ok(Box::new(Handle { store, runtime }))
}

//! `eventstore serve`, with LMDB.

use std::path::Path;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::handle::{ANY, Handle};
use super::server::{Served, Server};
use super::{Contestant, Store};

pub(super) const EXECUTABLE: &str = "eventstore";

pub(super) const CONTESTANT: Contestant = Contestant {
    name: "eventstore-server",
    settings: "`eventstore serve` with LMDB and its defaults; one client, whose appends share a WebSocket",
    index: None,
    open,
    ..ANY
};

fn open(path: &Path) -> Result<Box<dyn Store>> {
    let url = format!("lmdb:{}", path.join("store").display());
    let server = Server::start(EXECUTABLE, path, ["--store", &url, "serve", "--listen"])?;
    let runtime = Runtime::new()?;
    let store = runtime.block_on(eventstore::backend::open(&format!("http://{}", server.address)))?;
    Ok(Box::new(Served { client: Box::new(Handle { store, runtime }), server }))
}
